"""A look at a manifest of pairs before training: a picture, and what training will make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rvedit.io.frames import Frames
from rvedit.io.manifest import clip_path
from rvedit.io.records import Triplet
from rvedit.io.temporary import atomic_path
from rvedit.io.tiles import titled_rows
from rvedit.io.video import VideoReader

MAX_ROWS = 60
_HEIGHT = 128
_MASK = np.array([255, 0, 255], np.uint8)


def shape_counts(triplets: Sequence[Triplet]) -> dict[str, int]:
    """Return the number of pairs by kind and size, such as "video of 81 frames, 1280x704"."""
    names = (
        f"{f'video of {t.num_frames} frames' if t.num_frames > 1 else 'image'}, {t.width}x{t.height}"
        for t in triplets
    )
    return dict(Counter(names).most_common())


def write_pairs_sheet(manifest: Path, triplets: Sequence[Triplet], path: Path) -> None:
    """Write a picture with a row for each of at most `MAX_ROWS` pairs.

    A row has the first and last frame of the source, then those of the target; the source's are tinted where
    a mask is white.
    """
    rows = []
    for triplet in triplets[:MAX_ROWS]:
        ends = {side: _ends(manifest, triplet, side) for side in ("source", "target")}
        if triplet.mask:
            masks = _ends(manifest, triplet, "mask")
            for frame, mask in zip(ends["source"], masks * 2, strict=False):  # an image is for both ends
                image = Image.fromarray(mask).convert("L").resize(frame.shape[1::-1])
                inside = np.asarray(image) > 127
                frame[inside] = frame[inside] // 2 + _MASK // 2
        rows.append((f"{triplet.id}: {triplet.instruction}"[:140], [*ends["source"], *ends["target"]]))
    with atomic_path(path) as temporary:
        Image.fromarray(titled_rows(rows, _HEIGHT)).save(temporary, "PNG")


def _ends(manifest: Path, triplet: Triplet, side: str) -> list[Frames]:
    """Return the first and the last of the frames that training can use; once for an image."""
    found: list[Frames] = []
    with VideoReader(clip_path(manifest, triplet, side)) as reader:
        for number, timed in enumerate(reader):
            if number in (0, triplet.num_frames - 1):
                found.append(timed.frame.copy())
            if number >= triplet.num_frames - 1:
                break
    return found
