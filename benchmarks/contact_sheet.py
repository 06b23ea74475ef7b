"""A picture of clips, a row each: `python benchmarks/contact_sheet.py OUT.png CLIP...`"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rvedit.video import VideoReader

GAP = 14
"""Pixels between frames."""


def sheet(clips: list[Path], columns: int = 4, width: int = 258) -> Image.Image:
    """Frames of each clip, resized to one width."""
    rows = []
    for path in clips:
        with VideoReader(path) as reader:
            wanted = set(np.linspace(0, reader.info.num_frames - 1, columns).round().astype(int).tolist())
            height = round(width * reader.info.height / reader.info.width)
            frames = [timed.frame for index, timed in enumerate(reader) if index in wanted]
        tiles = [
            np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS)) for f in frames
        ]
        gap = np.full((height, GAP, 3), 255, np.uint8)
        rows.append(np.concatenate([part for tile in tiles for part in (gap, tile)][1:], axis=1))
    return Image.fromarray(np.concatenate([row for row in rows if row.shape[1] == rows[0].shape[1]], axis=0))


if __name__ == "__main__":
    sheet([Path(name) for name in sys.argv[2:]]).save(sys.argv[1])
