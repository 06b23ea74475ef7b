"""`rvedit analyze attention`: Fig. 4 of a model, on clips."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvedit.analysis.experiments import GROUPS, Triplet, compare_branches, first_window, read_edit
from rvedit.editing.config import EditConfig
from rvedit.evaluation.aggregate import Estimate, estimate_of, resampled_means
from rvedit.io.bench import BenchItem, read_bench
from rvedit.io.errors import UserError
from rvedit.io.frames import Frames
from rvedit.io.manifest import prepare_folder, write_json, write_text
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

# Of the alignment the share of ln S, where nothing tells a position from another.
READING = (*(f"mass {name}" for name in GROUPS), "entropy")
LIKENESS = ("cosine", "js", "alignment", "spread")
LISTS = (".csv", ".jsonl", ".parquet")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class AttentionConfig:
    """What is looked at, and how."""

    clips: tuple[Path, ...]
    """Lists as `rvedit edit --batch` takes them, or clips."""
    out: Path
    instruction: str | None = None
    """For `clips` that are clips."""
    limit: int | None = None
    """Items of each list at most."""
    num_inference_steps: int | None = None
    num_times: int = 4
    """Times at which the two branches are compared."""
    temperature: float = 0.07
    """tau of Eq. 5."""
    seed: int = 0


@dataclass(frozen=True)
class ModelReading:
    """What was found in one model; all by quantity: (clips, blocks)."""

    name: str
    routing_depth: int
    num_layers: int
    num_inference_steps: int
    """That masses and entropies are averaged over."""
    positions: int
    """S of the last clip."""
    clips: tuple[str, ...]
    """Those that were edited."""
    compared: tuple[str, ...]
    """Those among them whose true edit and caption are known."""
    values: dict[str, Values]

    def is_comparable(self, other: ModelReading, quantity: str) -> bool:
        """Whether the same clips were read in as many blocks."""
        clips = [model.compared if quantity in LIKENESS else model.clips for model in (self, other)]
        return quantity in self.values and clips[0] == clips[1] and self.num_layers == other.num_layers

    def estimates(self, quantity: str, less: ModelReading | None = None) -> list[Estimate]:
        """By block: the mean over clips and its bootstrap interval, a point for a single clip.

        With another model, of the clips' differences to what that one does with the same clips.
        """
        rows = self.values[quantity] - (less.values[quantity] if less else 0)
        drawn = resampled_means(rows, np.random.default_rng(0))
        return [estimate_of(float(rows[:, i].mean()), drawn[:, i]) for i in range(rows.shape[1])]


@dataclass(frozen=True)
class AttentionReport:
    """What was written."""

    config: AttentionConfig
    models: tuple[ModelReading, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """What attention.json holds."""
        return {
            "models": [
                {
                    "model": model.name,
                    "routing_depth": model.routing_depth,
                    "blocks": model.num_layers,
                    "steps": model.num_inference_steps,
                    "positions": model.positions,
                    "clips": len(model.clips),
                    "compared_clips": len(model.compared),
                    "by_block": {
                        name: [dataclasses.asdict(e) for e in model.estimates(name)] for name in model.values
                    },
                }
                for model in self.models
            ],
            "differences": [
                {
                    "of": self.models[0].name,
                    "less": other.name,
                    "by_block": {
                        name: [dataclasses.asdict(e) for e in self.models[0].estimates(name, other)]
                        for name in other.values
                        if self.models[0].is_comparable(other, name)
                    },
                }
                for other in self.models[1:]
            ],
            "guidance": 1.0,
            "times": self.config.num_times,
            "temperature": self.config.temperature,
            "seed": self.config.seed,
            "seconds": round(self.seconds, 2),
        }


def read_items(config: AttentionConfig) -> list[BenchItem]:
    """The clips and their instructions. Raises UserError where a clip or its instruction is missing."""
    items: list[BenchItem] = []
    for path in config.clips:
        if path.suffix in LISTS or (path.is_dir() and not config.instruction):
            items += read_bench(path)[: config.limit]
        elif not config.instruction:
            raise UserError(
                f"{path}: what is asked of it is not known: give --instruction, or a list with instructions"
            )
        else:
            items.append(BenchItem(len(items), path.stem, config.instruction, None, "", path))
    for item in items:  # before anything is measured
        for clip in (item.source, *([item.target] if item.target else [])):
            if not clip.exists():
                raise UserError(f"{clip}: no such clip: is the list of {item.id} the right one?")
    return items


def analyze_attention(
    config: AttentionConfig,
    items: Sequence[BenchItem],
    models: Sequence[tuple[str, Callable[[], RVEDiTPipeline]]],
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> AttentionReport:
    """Measure each model in turn, and write attention.csv, .json, .png and .svg.

    `models` are names and what loads them: one is held at a time.
    """
    from rvedit.analysis.plots import plot_attention

    started = time.perf_counter()
    prepare_folder(config.out)
    readings = []
    for name, load in models:

        def progress(done: int, name: str = name) -> None:
            on_progress(name, done, len(items))

        readings.append(_read_model(config, items, name, load(), progress))
    report = AttentionReport(config, tuple(readings), time.perf_counter() - started)
    write_text(config.out / "attention.csv", _csv(readings))
    found = report.as_json()
    write_json(config.out / "attention.json", found)
    plot_attention(found["models"], config.out / "attention")
    return report


def _read_model(
    config: AttentionConfig,
    items: Sequence[BenchItem],
    name: str,
    pipeline: RVEDiTPipeline,
    on_progress: Callable[[int], None],
) -> ModelReading:
    settings = EditConfig(config.num_inference_steps, guidance_scale=1.0, seed=config.seed)
    read: dict[str, list[Values]] = {quantity: [] for quantity in (*READING, *LIKENESS)}
    compared: list[str] = []
    positions = 0
    for done, item in enumerate(items):
        on_progress(done)
        source = first_window(item.source, pipeline)
        reading = read_edit(pipeline, source, item.instruction, settings)
        positions = reading.positions
        for index, group in enumerate(GROUPS):
            read[f"mass {group}"].append(reading.mass[:, :, index].mean(axis=0))
        read["entropy"].append(reading.entropy.mean(axis=0))
        if item.target is None or not item.description:
            continue
        target = first_window(item.target, pipeline)
        if target.shape != source.shape:
            warnings.warn(
                f"{item.id}: the branches are not compared, as its true edit is {shape_of(target)} inside "
                f"the model and its source {shape_of(source)}",
                stacklevel=2,
            )
            continue
        triplet = Triplet(source, target, item.instruction, item.description)
        rows = compare_branches(pipeline, triplet, config.num_times, config.seed, config.temperature)
        compared.append(item.id)
        for quantity in LIKENESS:
            read[quantity].append(np.mean([[getattr(x, quantity) for x in row] for row in rows], axis=0))
        read["alignment"][-1] /= math.log(positions)
    on_progress(len(items))
    return ModelReading(
        name,
        pipeline.transformer.config.routing_depth,
        len(pipeline.transformer.blocks),
        len(reading.mass),
        positions,
        tuple(item.id for item in items),
        tuple(compared),
        {quantity: np.array(rows) for quantity, rows in read.items() if rows},
    )


def shape_of(frames: Frames) -> str:
    """Frames x height x width."""
    return "x".join(map(str, frames.shape[:3]))


def _csv(readings: Sequence[ModelReading]) -> str:
    """A line for every model, clip, block and quantity."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["model", "clip", "block", "quantity", "value"])
    for model in readings:
        for quantity, rows in model.values.items():
            clips = model.clips if quantity in READING else model.compared
            for clip, row in zip(clips, rows, strict=True):
                writer.writerows([model.name, clip, i, quantity, f"{v:.6g}"] for i, v in enumerate(row, 1))
    return text.getvalue()
