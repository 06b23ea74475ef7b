"""Pictures with their names in a grid, for clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rvedit.io.frames import Frames

_CAPTION = 24
"""Pixels of the line of text above each picture."""
_PAPER, _INK = (24, 26, 29), (240, 240, 240)


def tiled(pictures: Sequence[tuple[str, Frames | None]], width: int, columns: int) -> Frames:
    """A grid of pictures (y, x, 3), each `width` pixels wide, in the shape of the first; none is a gap."""
    first = pictures[0][1]
    assert first is not None
    # H.264 counts a picture's size in pairs of pixels.
    size = (width, 2 * round(width * first.shape[0] / first.shape[1] / 2))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * size[0], rows * (size[1] + _CAPTION)), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for place, (caption, picture) in enumerate(pictures):
        x, y = place % columns * size[0], place // columns * (size[1] + _CAPTION)
        draw.text((x + 4, y + 3), caption, fill=_INK, font=font)
        if picture is not None:
            resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
            canvas.paste(resized, (x, y + _CAPTION))
    return np.asarray(canvas)
