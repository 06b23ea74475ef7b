"""A grid of frames by method, as in Figs. 2 and 5 to 12, and the same side by side as a clip."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rvedit.analysis.plots import STYLE, save_figure
from rvedit.io.frames import Frames
from rvedit.io.tiles import tiled
from rvedit.io.video import TimedFrame, VideoReader

_WIDTH = 1.9
"""Width of a frame in inches."""
_CHARACTERS = 30
"""Characters of the instruction per frame width."""
_MIN_TILE_WIDTH = 320
"""Minimum width of the clip's tiles in pixels."""


@dataclass(frozen=True)
class GalleryItem:
    """An item and its clips: the source, each method's edit, and the true edit if it is known."""

    id: str
    instruction: str
    clips: Mapping[str, Path]
    """By name, in the order of the rows."""


def sample_frames(path: Path, count: int) -> list[Frames]:
    """Return `count` evenly spaced frames from the first to the last, or all of a shorter clip."""
    with VideoReader(path) as reader:
        indices = set(np.linspace(0, reader.info.num_frames - 1, count).round().astype(int).tolist())
        return [timed.frame for timed in reader.pick(indices)]


def plot_gallery(items: Sequence[GalleryItem], path: Path, columns: int, title: str) -> list[Path]:
    """Write a grid as PNG and PDF: a row per clip, with the instruction above each item's rows."""
    rows_by_item = [[(name, sample_frames(c, columns)) for name, c in item.clips.items()] for item in items]
    headings = [textwrap.wrap(f"“{item.instruction}”", _CHARACTERS * columns) for item in items]
    ratios: list[float] = []
    for lines, rows in zip(headings, rows_by_item, strict=True):
        height, width = rows[0][1][0].shape[:2]
        ratios += [0.04 + 0.12 * len(lines), *[height / width] * len(rows)]
    with matplotlib.rc_context(STYLE):
        # The label column is half a frame wide; heights are in frame widths, with a 2% margin.
        figure = Figure(figsize=(_WIDTH * (columns + 0.5), _WIDTH * (sum(ratios) * 1.02 + 0.25)))
        grid = figure.add_gridspec(
            len(ratios), columns + 1, height_ratios=ratios, width_ratios=[0.5, *[1] * columns],
            hspace=0.03, wspace=0.03, left=0.005, right=0.995, bottom=0.005,
            top=1 - 0.25 / (sum(ratios) * 1.02 + 0.25),
        )  # fmt: skip
        figure.suptitle(title, x=0.01, y=0.995, ha="left", va="top", fontsize=12, fontweight="bold")
        top = 0
        text: dict[str, Any] = {"fontsize": 10, "va": "center", "parse_math": False}  # keep dollar signs
        for lines, rows in zip(headings, rows_by_item, strict=True):
            heading = figure.add_subplot(grid[top, :])
            heading.axis("off")
            heading.text(0, 0.4, "\n".join(lines), style="italic", **text)
            for row, (name, frames) in enumerate(rows, start=top + 1):
                label = figure.add_subplot(grid[row, 0])
                label.axis("off")
                label.text(0.96, 0.5, name, ha="right", wrap=True, **text)
                for column, frame in enumerate(frames, start=1):
                    axis = figure.add_subplot(grid[row, column])
                    axis.imshow(frame, interpolation="antialiased", aspect="auto")
                    axis.axis("off")
            top += 1 + len(rows)
        return save_figure(figure, path, (".png", ".pdf"))


def side_by_side(item: GalleryItem) -> Iterator[TimedFrame]:
    """Yield the clips side by side at the source's times; a shorter clip repeats its last frame."""
    with ExitStack() as stack:
        source, *others = (stack.enter_context(VideoReader(path)) for path in item.clips.values())
        width = max(_MIN_TILE_WIDTH, 2 * (source.info.width // 2))
        streams = [(timed.frame for timed in reader) for reader in others]
        frames: list[Frames | None] = [None] * len(others)
        for timed in source:
            frames = [next(stream, last) for stream, last in zip(streams, frames, strict=True)]
            tiles = list(zip(item.clips, [timed.frame, *frames], strict=True))
            yield timed._replace(frame=tiled(tiles, width, columns=len(tiles)))
