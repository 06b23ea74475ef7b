"""An image with a row of frames for each clip: `python benchmarks/contact_sheet.py OUT.png CLIP...`"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from rvedit.analysis.gallery_figure import sample_frames
from rvedit.io.frames import Frames

GAP = 14
"""Pixels between frames."""


def sheet(clips: list[Path], columns: int = 3, width: int = 512) -> Image.Image:
    """Return an image of the clips' frames, resized to one width; a short clip's row has fewer frames."""
    rows = [[_resized(frame, width) for frame in sample_frames(path, columns)] for path in clips]
    heights = [row[0].height for row in rows]
    image = Image.new("RGB", (columns * (width + GAP) - GAP, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            image.paste(tile, (column * (width + GAP), sum(heights[:number])))
    return image


def _resized(frame: Frames, width: int) -> Image.Image:
    size = (width, round(width * frame.shape[0] / frame.shape[1]))
    return Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sheet([Path(name) for name in sys.argv[2:]]).save(sys.argv[1])
