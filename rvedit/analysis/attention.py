"""The job of `rvedit analyze attention`: measure models on clips and plot Fig. 4."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rvedit.analysis.experiments import GROUPS, compare_branches, first_window, measure_attention
from rvedit.analysis.traces import TraceSimilarity
from rvedit.editing.config import EditConfig
from rvedit.evaluation.aggregate import Estimate, Values, estimate_of, resampled_means
from rvedit.io.bench import BenchItem, read_bench
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, write_json, write_text
from rvedit.io.records import ClipShape
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

BRANCH_METRICS = TraceSimilarity._fields
"""Similarity of the editing branch to the reference; alignment is divided by ln S."""


@dataclass(frozen=True)
class AttentionConfig:
    """Which clips to measure, and how."""

    clips: tuple[Path, ...]
    """Lists as `rvedit edit --batch` takes them, or video files."""
    out: Path
    instruction: str | None = None
    """The instruction for video files in `clips`."""
    limit: int | None = None
    """Maximum number of items per list."""
    num_inference_steps: int | None = None
    num_times: int = 4
    """Number of times t at which the two branches are compared."""
    temperature: float = 0.07
    """tau of Eq. 5."""
    seed: int = 0


@dataclass(frozen=True)
class ModelAttention:
    """Measurements of one model."""

    name: str
    routing_depth: int
    num_layers: int
    num_inference_steps: int
    """Number of steps that masses and entropies are averaged over."""
    positions: int
    """S of the last clip."""
    clips: tuple[str, ...]
    """Ids of the clips that were edited."""
    compared: tuple[str, ...]
    """Ids of those with a true edit and its caption, on which the branches were compared."""
    values: dict[str, Values]
    """By metric: (clips, blocks)."""

    def clips_of(self, metric: str) -> tuple[str, ...]:
        """Return the ids of the clips that the metric was measured on."""
        return self.compared if metric in BRANCH_METRICS else self.clips

    def estimates(self, metric: str, baseline: ModelAttention | None = None) -> list[Estimate]:
        """Return, by block, the mean over clips with its bootstrap interval (zero width for one clip).

        With a baseline, return that of the difference to the baseline on the same clips.
        """
        rows = self.values[metric] - (baseline.values[metric] if baseline else 0)
        resamples = resampled_means(rows, np.random.default_rng(0))
        return [estimate_of(float(rows[:, i].mean()), resamples[:, i]) for i in range(rows.shape[1])]

    def by_block(self, baseline: ModelAttention | None = None) -> dict[str, list[dict[str, float]]]:
        """Return estimates by metric; with a baseline, of metrics on the same clips and as many blocks."""
        other = baseline or self
        metrics = [
            name
            for name in self.values
            if name in other.values
            and self.clips_of(name) == other.clips_of(name)
            and self.num_layers == other.num_layers
        ]
        return {name: [dataclasses.asdict(e) for e in self.estimates(name, baseline)] for name in metrics}


@dataclass(frozen=True)
class AttentionReport:
    """The results, as written to the output folder."""

    config: AttentionConfig
    models: tuple[ModelAttention, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the contents of attention.json."""
        first, *baselines = self.models
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
                    "by_block": model.by_block(),
                }
                for model in self.models
            ],
            "differences": [
                {"of": first.name, "less": baseline.name, "by_block": first.by_block(baseline)}
                for baseline in baselines
            ],
            "guidance": 1.0,
            "times": self.config.num_times,
            "temperature": self.config.temperature,
            "seed": self.config.seed,
            "seconds": round(self.seconds, 2),
        }


def read_items(config: AttentionConfig) -> list[BenchItem]:
    """Return the clips with their instructions. Raises UserError if a clip or its instruction is missing."""
    items: list[BenchItem] = []
    for path in config.clips:
        if path.suffix in (".csv", ".jsonl", ".parquet") or (path.is_dir() and not config.instruction):
            items += read_bench(path)[: config.limit]
        elif not config.instruction:
            raise UserError(f"{path}: has no instruction: give `instruction`, or a list with instructions")
        else:
            items.append(BenchItem(len(items), path.stem, config.instruction, None, "", path))
    for item in items:
        for clip in (item.source, item.target):
            if clip and not clip.exists():
                raise UserError(f"{clip}: no such clip (item {item.id}): check its path")
    return items


def analyze_attention(
    config: AttentionConfig,
    items: Sequence[BenchItem],
    models: Sequence[tuple[str, Callable[[], RVEDiTPipeline]]],
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> AttentionReport:
    """Measure each model and write attention.csv, .json, .png and .svg.

    `models` has names and functions that load the model: one model is in memory at a time.
    """
    from rvedit.analysis.plots import plot_attention

    started = time.perf_counter()
    prepare_folder(config.out)
    measured = [
        _measure_model(config, items, name, load(), partial(on_progress, name)) for name, load in models
    ]
    report = AttentionReport(config, tuple(measured), time.perf_counter() - started)
    write_text(config.out / "attention.csv", _csv(measured))
    results = report.as_json()
    write_json(config.out / "attention.json", results)
    plot_attention(results["models"], config.out / "attention")
    return report


def _measure_model(
    config: AttentionConfig,
    items: Sequence[BenchItem],
    name: str,
    pipeline: RVEDiTPipeline,
    on_progress: Callable[[int, int], None],
) -> ModelAttention:
    settings = EditConfig(config.num_inference_steps, guidance_scale=1.0, seed=config.seed)
    values: dict[str, list[Values]] = defaultdict(list)
    compared: list[str] = []
    for done, item in enumerate(items):
        on_progress(done, len(items))
        source = first_window(item.source, pipeline)
        attention = measure_attention(pipeline, source, item.instruction, settings)
        for index, group in enumerate(GROUPS):
            values[f"mass {group}"].append(attention.mass[:, :, index].mean(axis=0))
        values["entropy"].append(attention.entropy.mean(axis=0))
        if item.target is None or not item.description:
            continue
        target = first_window(item.target, pipeline)
        if target.shape != source.shape:
            sizes = [ClipShape(*clip.shape[:3]) for clip in (source, target)]
            warnings.warn(
                f"{item.id}: branches not compared: at the model's size its true edit is {sizes[1]} "
                f"(frames x height x width), the source {sizes[0]}",
                stacklevel=2,
            )
            continue
        editing, reference = (source, item.instruction), (target, item.description)
        rows = compare_branches(
            pipeline, editing, reference, config.num_times, config.seed, config.temperature
        )
        compared.append(item.id)
        for metric, means in zip(BRANCH_METRICS, np.mean(rows, axis=0).T, strict=True):
            values[metric].append(means)
        values["alignment"][-1] /= math.log(attention.positions)
    on_progress(len(items), len(items))
    return ModelAttention(
        name,
        pipeline.transformer.config.routing_depth,
        len(pipeline.transformer.blocks),
        len(attention.mass),
        attention.positions,
        tuple(item.id for item in items),
        tuple(compared),
        {metric: np.array(rows) for metric, rows in values.items()},
    )


def _csv(models: Sequence[ModelAttention]) -> str:
    """Return CSV with a line per model, metric, clip and block."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["model", "clip", "block", "quantity", "value"])
    for model in models:
        for metric, rows in model.values.items():
            for clip, row in zip(model.clips_of(metric), rows, strict=True):
                writer.writerows([model.name, clip, i, metric, f"{v:.6g}"] for i, v in enumerate(row, 1))
    return text.getvalue()
