"""The job of `rvedit analyze trace`: edit one window and show its attention maps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rvedit.analysis.concepts import check_concept_blocks, checked_concepts
from rvedit.analysis.experiments import first_window
from rvedit.analysis.reasoning import trace_edit
from rvedit.analysis.trace_page import overlay_frames, write_trace_page
from rvedit.editing.config import EditConfig
from rvedit.editing.edit_file import checked_instruction
from rvedit.editing.step_callback import StepReport
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder
from rvedit.io.video import VideoReader, probe, write_like
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

MAX_BLOCKS, MAX_STEPS = 10, 4
"""How many are shown by default."""


@dataclass(frozen=True)
class TraceConfig:
    """Which edit to make, and which blocks and steps to show."""

    clip: Path
    instruction: str
    out: Path
    """Output folder."""
    blocks: tuple[int, ...] = ()
    """Counted from 1; empty for up to ten evenly spaced blocks, with L_s and L_s + 1 among them."""
    steps: tuple[int, ...] = ()
    """Counted from 1; empty for four evenly spaced steps."""
    settings: EditConfig = field(default_factory=EditConfig)
    overwrite: bool = False
    concepts: tuple[str, ...] = ()
    """Words that are not in the instruction and get maps too: none, or at least two."""

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.out / "trace.html"

    @property
    def video(self) -> Path:
        """The overlay video."""
        return self.out / "trace.mp4"


@dataclass(frozen=True)
class TraceReport:
    """The files written, and what they show."""

    page: Path
    video: Path
    blocks: tuple[int, ...]
    steps: tuple[int, ...]
    frames: int
    """Number of edited frames: at most the model's window."""
    seconds: float


def check_trace(config: TraceConfig) -> None:
    """Check the config before a model is loaded. Raises UserError."""
    probe(config.clip)
    checked_instruction(config.instruction)
    checked_concepts(config.concepts)
    for path in (config.page, config.video):
        if path.exists() and not config.overwrite:
            raise UserError(f"{path}: exists already: choose another `out`, or give `overwrite`")


def analyze_trace(
    config: TraceConfig,
    pipeline: RVEDiTPipeline,
    model: str,
    report: StepReport = lambda step, num_steps: None,
) -> TraceReport:
    """Edit the clip's first window with guidance scale 1, and write trace.html and trace.mp4."""
    started = time.perf_counter()
    check_trace(config)
    instruction = checked_instruction(config.instruction)
    num_blocks, depth = len(pipeline.transformer.blocks), pipeline.transformer.config.routing_depth
    settings = replace(config.settings, guidance_scale=1.0)
    num_steps = settings.num_inference_steps or pipeline.config.default_steps
    blocks = _checked("blocks", config.blocks, num_blocks) or default_blocks(num_blocks, depth)
    steps = _checked("at_steps", config.steps, num_steps) or default_steps(num_steps)
    concepts = checked_concepts(config.concepts)
    if concepts:
        check_concept_blocks(blocks, num_blocks, depth)
    prepare_folder(config.out)
    source = first_window(config.clip, pipeline)
    trace = trace_edit(pipeline, source, instruction, settings, blocks, steps, report, concepts)
    with VideoReader(config.clip, allow_truncated=True) as reader:
        overlays = overlay_frames(trace)
        timed = (t._replace(frame=overlay) for overlay, t in zip(overlays, reader, strict=False))
        write_like(config.video, reader.info, timed)
    write_trace_page(config.page, trace, model)
    return TraceReport(config.page, config.video, blocks, steps, len(source), time.perf_counter() - started)


def _checked(name: str, numbers: Sequence[int], maximum: int) -> tuple[int, ...]:
    wrong = next((number for number in numbers if not 1 <= number <= maximum), None)
    if wrong is not None:
        raise UserError(f"`{name}` {wrong}: give numbers from 1 to {maximum}")
    return tuple(sorted(set(numbers)))


def default_blocks(num_blocks: int, depth: int) -> tuple[int, ...]:
    """Return up to ten evenly spaced blocks, with L_s and L_s + 1 among them."""
    if num_blocks <= MAX_BLOCKS:
        return tuple(range(1, num_blocks + 1))
    boundary = [number for number in (depth, depth + 1) if 1 <= number <= num_blocks]
    return tuple(sorted({*_evenly_spaced(num_blocks, MAX_BLOCKS - len(boundary)), *boundary}))


def default_steps(num_steps: int) -> tuple[int, ...]:
    """Return up to four evenly spaced steps."""
    return _evenly_spaced(num_steps, MAX_STEPS)


def _evenly_spaced(maximum: int, count: int) -> tuple[int, ...]:
    """Return `count` evenly spaced integers from 1 to `maximum`, or all if there are fewer."""
    return tuple(np.linspace(1, maximum, min(count, maximum)).round().astype(int).tolist())
