"""Frames x methods, as Figs. 2 and 5 to 12 show them; and the same side by side as a clip."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rvedit.analysis.plots import save_figure, style
from rvedit.analysis.tiles import tiled
from rvedit.io.frames import Frames
from rvedit.io.video import TimedFrame, VideoReader

_WIDTH = 1.9
"""Inches of a frame."""
_LETTERS = 30
"""Of an instruction, above each frame."""
_TILE = 320
"""Pixels of a clip's tiles, at least."""


@dataclass(frozen=True)
class GalleryFigure:
    """An item and its clips: the source, each method's edit, and the true edit where it is known."""

    id: str
    instruction: str
    clips: Mapping[str, Path]
    """By name, in the order of rows."""


def sample_frames(path: Path, count: int) -> list[Frames]:
    """So many frames, evenly spread, first and last among them; fewer of a shorter clip."""
    with VideoReader(path) as reader:
        wanted = set(np.linspace(0, reader.info.num_frames - 1, count).round().astype(int).tolist())
        return [timed.frame for timed in reader.pick(wanted)]


def plot_gallery(exhibits: Sequence[GalleryFigure], path: Path, columns: int, title: str) -> list[Path]:
    """A grid with a row for each clip and the instruction above each item's rows; writes PNG and PDF."""
    pictures = [[(name, sample_frames(c, columns)) for name, c in e.clips.items()] for e in exhibits]
    headings = [textwrap.wrap(f"“{e.instruction}”", _LETTERS * columns) for e in exhibits]
    ratios: list[float] = []
    for lines, rows in zip(headings, pictures, strict=True):
        height, width = rows[0][1][0].shape[:2]
        ratios += [0.04 + 0.12 * len(lines), *[height / width] * len(rows)]
    with style():
        # The label's column is half a frame wide; heights are in frames' widths, with a little air.
        figure = Figure(figsize=(_WIDTH * (columns + 0.5), _WIDTH * (sum(ratios) * 1.02 + 0.25)))
        grid = figure.add_gridspec(
            len(ratios), columns + 1, height_ratios=ratios, width_ratios=[0.5, *[1] * columns],
            hspace=0.03, wspace=0.03, left=0.005, right=0.995, bottom=0.005,
            top=1 - 0.25 / (sum(ratios) * 1.02 + 0.25),
        )  # fmt: skip
        figure.suptitle(title, x=0.01, y=0.995, ha="left", va="top", fontsize=12, fontweight="bold")
        place = 0
        words: dict[str, Any] = {"fontsize": 10, "va": "center", "parse_math": False}  # a dollar is a dollar
        for lines, rows in zip(headings, pictures, strict=True):
            heading = figure.add_subplot(grid[place, :])
            heading.axis("off")
            heading.text(0, 0.4, "\n".join(lines), style="italic", **words)
            for offset, (name, frames) in enumerate(rows, start=1):
                label = figure.add_subplot(grid[place + offset, 0])
                label.axis("off")
                label.text(0.96, 0.5, name, ha="right", wrap=True, **words)
                for column, frame in enumerate(frames, start=1):
                    axis = figure.add_subplot(grid[place + offset, column])
                    axis.imshow(frame, interpolation="antialiased", aspect="auto")
                    axis.axis("off")
            place += 1 + len(rows)
        return save_figure(figure, path, (".png", ".pdf"))


def side_by_side(exhibit: GalleryFigure) -> Iterator[TimedFrame]:
    """The clips beside each other, frame by frame, at the source's times; a shorter one holds its last."""
    with ExitStack() as stack:
        readers = [stack.enter_context(VideoReader(path)) for path in exhibit.clips.values()]
        width = max(_TILE, 2 * (readers[0].info.width // 2))
        others = [(timed.frame for timed in reader) for reader in readers[1:]]
        shown: list[Frames | None] = [None] * len(readers)
        for timed in readers[0]:
            following = [next(stream, before) for stream, before in zip(others, shown[1:], strict=True)]
            shown = [timed.frame, *following]
            pictures = list(zip(exhibit.clips, shown, strict=True))
            yield timed._replace(frame=tiled(pictures, width, columns=len(pictures)))
