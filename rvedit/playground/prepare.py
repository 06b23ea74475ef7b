"""Write playground triplets as files with a manifest: `rvedit prepare playground`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rvedit.io.errors import UserError, check_choice
from rvedit.io.manifest import prepare_folder, write_manifest
from rvedit.io.pool import run_in_pool
from rvedit.io.records import Triplet
from rvedit.io.video import write_clip
from rvedit.playground.world import FRAME_RATE, SPLITS, Split, render, sample_triplet


@dataclass(frozen=True)
class PlaygroundConfig:
    """Triplets to write."""

    count: int
    seed: int = 0
    split: Split = "train"
    num_frames: int = 33
    height: int = 128
    width: int = 128
    realism: float = 0.0

    def __post_init__(self) -> None:
        check_choice("`split`", self.split, SPLITS)
        for name in ("count", "num_frames", "height", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` {getattr(self, name)}: give at least 1")
        if not 0 <= self.realism <= 1:
            raise UserError(f"`realism` {self.realism}: give a number from 0 to 1")


def prepare_playground(config: PlaygroundConfig, folder: Path, workers: int | None = None) -> Iterator[int]:
    """Write triplets and `manifest.parquet` (with its JSONL export) to `folder`; yield how many are done.

    Existing clips are kept, so an interrupted run can be resumed.
    """
    for name in ("source", "target"):
        prepare_folder(folder / name)
    rows: dict[int, Triplet] = {}
    write = partial(_write_triplet, config, folder)
    chunk = max(1, min(32, config.count // 8))
    for index, row in run_in_pool(write, range(config.count), workers, chunk=chunk):
        rows[index] = row
        yield len(rows)
    write_manifest(folder / "manifest.parquet", [rows[index] for index in range(config.count)])


def _write_triplet(config: PlaygroundConfig, folder: Path, index: int) -> tuple[int, Triplet]:
    """Write both clips of a triplet; return its index and manifest row, with paths relative to `folder`."""
    triplet = sample_triplet(config.seed, index, config.split, realism=config.realism)
    paths = {}
    for name, scene in (("source", triplet.source), ("target", triplet.target)):
        relative = Path(name) / f"{triplet.id}.mp4"
        paths[name] = relative.as_posix()
        if not (folder / relative).is_file():
            clip = render(scene, config.num_frames, config.height, config.width)
            write_clip(folder / relative, clip, FRAME_RATE)
    return index, Triplet(
        id=triplet.id,
        dataset="playground",
        root=".",
        source=paths["source"],
        target=paths["target"],
        instruction=triplet.instruction,
        category=triplet.category,
        dataset_category=triplet.category.value,
        num_frames=config.num_frames,
        fps=float(FRAME_RATE),
        width=config.width,
        height=config.height,
        licence="Apache-2.0",
        target_caption=triplet.target_caption,
    )
