"""`rvedit analyze trace`: look inside one edit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rvedit.analysis.experiments import first_window
from rvedit.analysis.reasoning import trace_edit, word_tokens
from rvedit.analysis.trace_page import overlay_frames, write_trace_page
from rvedit.editing.config import EditConfig
from rvedit.editing.edit_file import checked_instruction
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder
from rvedit.io.video import VideoReader, probe, write_like
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

MOST_BLOCKS, MOST_STEPS = 10, 4
"""Shown where nothing is chosen."""


@dataclass(frozen=True)
class TraceConfig:
    """Which edit, and which of its blocks and steps."""

    clip: Path
    instruction: str
    out: Path
    """Folder."""
    blocks: tuple[int, ...] = ()
    """From 1; none: at most ten, evenly spread, the last ones on both sides of L_s among them."""
    steps: tuple[int, ...] = ()
    """From 1; none: four, evenly spread."""
    settings: EditConfig = field(default_factory=EditConfig)
    overwrite: bool = False

    @property
    def page(self) -> Path:
        """The page with the sliders."""
        return self.out / "trace.html"

    @property
    def video(self) -> Path:
        """The overlay video."""
        return self.out / "trace.mp4"


@dataclass(frozen=True)
class TraceReport:
    """What was written."""

    page: Path
    video: Path
    blocks: tuple[int, ...]
    steps: tuple[int, ...]
    frames: int
    """Of the clip, that were edited: at most the model's window."""
    seconds: float


def check_trace(config: TraceConfig) -> None:
    """What can be refused before a model is loaded. Raises UserError."""
    probe(config.clip)
    checked_instruction(config.instruction)
    for path in (config.page, config.video):
        if path.exists() and not config.overwrite:
            raise UserError(f"{path}: exists: choose another --out, or give --overwrite")


def analyze_trace(
    config: TraceConfig,
    pipeline: RVEDiTPipeline,
    model: str,
    report: Callable[[int, int], None] = lambda step, num_steps: None,
) -> TraceReport:
    """Edit the clip's first window, with guidance 1, and write trace.html and trace.mp4."""
    started = time.perf_counter()
    check_trace(config)
    instruction = checked_instruction(config.instruction)
    num_blocks, depth = len(pipeline.transformer.blocks), pipeline.transformer.config.routing_depth
    settings = replace(config.settings, guidance_scale=1.0)
    num_steps = settings.num_inference_steps or pipeline.config.default_steps
    blocks = _checked("--blocks", config.blocks, num_blocks) or _blocks(num_blocks, depth)
    steps = _checked("--at-steps", config.steps, num_steps) or _spread(num_steps, MOST_STEPS)
    prepare_folder(config.out)
    source = first_window(config.clip, pipeline)
    trace = trace_edit(pipeline, source, instruction, settings, blocks, steps, report)
    with VideoReader(config.clip, allow_truncated=True) as reader:
        pictures = overlay_frames(trace, source, depth)
        timed = (t._replace(frame=f) for f, t in zip(pictures, reader, strict=False))
        write_like(config.video, reader.info, timed)
    read = word_tokens(pipeline, instruction)
    cut = instruction.split()[len(read) :] if read else ()
    write_trace_page(config.page, trace, source, instruction, model, depth, num_blocks, cut)
    return TraceReport(
        config.page, config.video, blocks, trace.steps, len(source), time.perf_counter() - started
    )


def _checked(option: str, numbers: Sequence[int], most: int) -> tuple[int, ...]:
    wrong = next((number for number in numbers if not 1 <= number <= most), None)
    if wrong is not None:
        raise UserError(f"{option} {wrong}: give numbers from 1 to {most}")
    return tuple(sorted(set(numbers)))


def _blocks(num_blocks: int, depth: int) -> tuple[int, ...]:
    boundary = [number for number in (depth, depth + 1) if 1 <= number <= num_blocks]
    if num_blocks <= MOST_BLOCKS:
        return tuple(range(1, num_blocks + 1))
    return tuple(sorted({*_spread(num_blocks, MOST_BLOCKS - len(boundary)), *boundary}))


def _spread(most: int, count: int) -> tuple[int, ...]:
    """So many numbers from 1 to `most`, evenly spread."""
    count = min(count, most)
    if count == 1:
        return (most,)
    return tuple(dict.fromkeys(round(1 + i * (most - 1) / (count - 1)) for i in range(count)))
