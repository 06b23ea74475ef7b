"""`rvedit prepare playground`: triplets of the procedural world as files, with a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rvedit.data.manifest import prepare_folder, write_manifest
from rvedit.data.playground import FRAME_RATE, SPLITS, Frames, Scene, Split, render, sample_triplet
from rvedit.data.pool import run_in_pool
from rvedit.errors import UserError
from rvedit.records import Triplet
from rvedit.video import write_clip


@dataclass(frozen=True)
class PlaygroundOrder:
    """Which playground triplets are wanted."""

    count: int
    seed: int = 0
    split: Split = "train"
    num_frames: int = 33
    height: int = 128
    width: int = 128

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: choose one of {', '.join(SPLITS)}")
        for name in ("count", "num_frames", "height", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least 1")


def prepare_playground(order: PlaygroundOrder, folder: Path, workers: int | None = None) -> Iterator[int]:
    """Write triplets and `manifest.parquet` (with its JSONL export) to `folder`, yielding how many are done.

    Clips that are there already are kept, so an interrupted run goes on where it was.
    """
    for name in ("source", "target"):
        prepare_folder(folder / name)
    rows: dict[int, Triplet] = {}
    write = partial(_write_triplet, order, folder)
    for index, row in run_in_pool(
        write, range(order.count), workers, chunk=max(1, min(32, order.count // 8))
    ):
        rows[index] = row
        yield len(rows)
    write_manifest(folder / "manifest.parquet", [rows[index] for index in range(order.count)])


def _write_triplet(order: PlaygroundOrder, folder: Path, index: int) -> tuple[int, Triplet]:
    """Both clips of one triplet and its row of the manifest; paths are relative to the folder."""
    triplet = sample_triplet(order.seed, index, order.split)
    paths = {}
    for name, scene in (("source", triplet.source), ("target", triplet.target)):
        relative = Path(name) / f"{triplet.id}.mp4"
        paths[name] = relative.as_posix()
        if not (folder / relative).is_file():
            write_clip(folder / relative, _render(scene, order), FRAME_RATE)
    return index, Triplet(
        id=triplet.id,
        dataset="playground",
        root=".",
        source=paths["source"],
        target=paths["target"],
        instruction=triplet.instruction,
        category=triplet.category,
        dataset_category=triplet.category.value,
        num_frames=order.num_frames,
        fps=float(FRAME_RATE),
        width=order.width,
        height=order.height,
        licence="Apache-2.0",
        target_caption=triplet.target_caption,
    )


def _render(scene: Scene, order: PlaygroundOrder) -> Frames:
    return render(scene, order.num_frames, order.height, order.width)
