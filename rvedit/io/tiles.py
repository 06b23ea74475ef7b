"""Pictures of many frames: a grid, and titled rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rvedit.io.frames import Frames

_CAPTION = 24
"""Height of the caption above each frame in pixels."""
_BACKGROUND, _TEXT = (24, 26, 29), (240, 240, 240)


def tiled(frames: Sequence[tuple[str, Frames | None]], width: int, columns: int) -> Frames:
    """Return a grid of captioned frames (y, x, 3), `width` pixels wide; None leaves a gap."""
    first = frames[0][1]
    assert first is not None
    # H.264 needs even sizes.
    size = (width, 2 * round(width * first.shape[0] / first.shape[1] / 2))
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    canvas = Image.new("RGB", (columns * size[0], rows * (size[1] + _CAPTION)), _BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for index, (caption, frame) in enumerate(frames):
        x, y = index % columns * size[0], index // columns * (size[1] + _CAPTION)
        draw.text((x + 4, y + 3), caption, fill=_TEXT, font=font)
        if frame is not None:
            resized = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
            canvas.paste(resized, (x, y + _CAPTION))
    return np.asarray(canvas)


def titled_rows(rows: Sequence[tuple[str, Sequence[Frames]]], height: int) -> Frames:
    """Return rows of frames (h, w, 3) of any size, each `height` pixels high, with titles above them."""
    font, gap = ImageFont.load_default(14), 4
    images = [
        (
            title,
            [Image.fromarray(x).resize((round(height * x.shape[1] / len(x)), height)) for x in frames],
        )
        for title, frames in rows
    ]
    widths = [sum(image.width + gap for image in row) - gap for _, row in images]
    widths += [round(font.getlength(title)) + 8 for title, _ in images]
    canvas = Image.new("RGB", (max(widths), len(rows) * (height + _CAPTION + gap)), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (title, row) in enumerate(images):
        x, y = 0, index * (height + _CAPTION + gap)
        draw.text((4, y + 3), title, fill=_TEXT, font=font)
        for image in row:
            canvas.paste(image, (x, y + _CAPTION))
            x += image.width + gap
    return np.asarray(canvas)
