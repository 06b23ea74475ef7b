"""`rvedit prepare`: triplets as files, with a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from rvedit.data.playground import FRAME_RATE, SPLITS, Frames, Scene, Split, render, sample_triplet
from rvedit.errors import UserError
from rvedit.video import VideoInfo, VideoWriter, temporary_sibling


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
    """Write triplets and `manifest.jsonl` to `folder`, yielding how many are done.

    Clips that are there already are kept, so an interrupted run goes on where it was.
    """
    try:
        for name in ("source", "target"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}): choose another --out") from None
    rows: list[dict[str, Any]] = []
    workers = min(workers or os.cpu_count() or 1, order.count)
    if workers == 1:
        produced = map(partial(_write_triplet, order, folder), range(order.count))
        yield from _collect(produced, rows)
    else:
        with ProcessPoolExecutor(workers) as pool:
            chunk = max(1, min(32, order.count // workers))
            yield from _collect(
                pool.map(partial(_write_triplet, order, folder), range(order.count), chunksize=chunk), rows
            )
    manifest = folder / "manifest.jsonl"
    part = temporary_sibling(manifest)
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(manifest)


def _collect(produced: Iterator[dict[str, Any]], rows: list[dict[str, Any]]) -> Iterator[int]:
    for row in produced:
        rows.append(row)
        yield len(rows)


def _write_triplet(order: PlaygroundOrder, folder: Path, index: int) -> dict[str, Any]:
    """Both clips of one triplet and its row of the manifest; paths are relative to the folder."""
    triplet = sample_triplet(order.seed, index, order.split)
    paths = {}
    for name, scene in (("source", triplet.source), ("target", triplet.target)):
        relative = Path(name) / f"{triplet.id}.mp4"
        paths[name] = relative.as_posix()
        if not (folder / relative).is_file():
            write_clip(folder / relative, _render(scene, order))
    return {
        "id": triplet.id,
        **paths,
        "instruction": triplet.instruction,
        "target_caption": triplet.target_caption,
        "category": triplet.category.value,
        "dataset": "playground",
        "split": order.split,
        "seed": order.seed,
        "num_frames": order.num_frames,
        "fps": FRAME_RATE,
        "width": order.width,
        "height": order.height,
        "licence": "Apache-2.0",
    }


def _render(scene: Scene, order: PlaygroundOrder) -> Frames:
    return render(scene, order.num_frames, order.height, order.width)


def write_clip(path: Path, frames: Frames, frame_rate: int = FRAME_RATE) -> None:
    """Write frames (t, h, w, 3) as a clip of constant rate, of high quality."""
    count, height, width, _ = frames.shape
    info = VideoInfo(
        path=path,
        kind="video",
        width=width,
        height=height,
        num_frames=count,
        frame_rate=Fraction(frame_rate),
        time_base=Fraction(1, frame_rate),
        duration=count / frame_rate,
        color_range=1,
        colorspace=1,
        color_primaries=1,
        color_trc=1,
        pix_fmt="yuv420p",
    )
    with VideoWriter(path, like=info, crf=10, preset="veryfast", overwrite=True) as writer:
        for pts, frame in enumerate(frames):
            writer.write(frame, pts, 1)
