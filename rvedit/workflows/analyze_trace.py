"""`rvedit analyze trace`: look inside one edit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rvedit.analysis.experiments import first_window
from rvedit.analysis.reasoning import trace_edit, word_tokens
from rvedit.analysis.trace_page import overlay_frames, write_trace_page
from rvedit.data.manifest import prepare_folder
from rvedit.errors import UserError
from rvedit.pipeline import RVEDiTPipeline
from rvedit.records import EditSettings
from rvedit.video import VideoReader, probe, write_like
from rvedit.workflows.edit import checked_instruction

MOST_BLOCKS, MOST_STEPS = 10, 4
"""Shown where nothing is chosen."""


@dataclass(frozen=True)
class TraceOrder:
    """Which edit, and which of its blocks and steps."""

    clip: Path
    instruction: str
    out: Path
    """Folder."""
    blocks: tuple[int, ...] = ()
    """From 1; none: at most ten, evenly spread, the last ones on both sides of L_s among them."""
    steps: tuple[int, ...] = ()
    """From 1; none: four, evenly spread."""
    settings: EditSettings = field(default_factory=EditSettings)
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


def check_trace(order: TraceOrder) -> None:
    """What can be refused before a model is loaded. Raises UserError."""
    probe(order.clip)
    checked_instruction(order.instruction)
    for path in (order.page, order.video):
        if path.exists() and not order.overwrite:
            raise UserError(f"{path}: exists: choose another --out, or give --overwrite")


def analyze_trace(
    order: TraceOrder,
    pipeline: RVEDiTPipeline,
    model: str,
    report: Callable[[int, int], None] = lambda step, num_steps: None,
) -> TraceReport:
    """Edit the clip's first window, with guidance 1, and write trace.html and trace.mp4."""
    started = time.perf_counter()
    check_trace(order)
    instruction = checked_instruction(order.instruction)
    num_blocks, depth = len(pipeline.transformer.blocks), pipeline.transformer.config.routing_depth
    settings = replace(order.settings, guidance_scale=1.0)
    num_steps = settings.num_inference_steps or pipeline.config.default_steps
    blocks = _checked("--blocks", order.blocks, num_blocks) or _blocks(num_blocks, depth)
    steps = _checked("--at-steps", order.steps, num_steps) or _spread(num_steps, MOST_STEPS)
    prepare_folder(order.out)
    window = first_window(order.clip, pipeline)
    source = window.frames[: window.end]
    trace = trace_edit(pipeline, window, instruction, settings, blocks, steps, report)
    with VideoReader(order.clip, allow_truncated=True) as reader:
        pictures = overlay_frames(trace, source, depth)
        timed = (t._replace(frame=f) for f, t in zip(pictures, reader, strict=False))
        write_like(order.video, reader.info, timed)
    read = word_tokens(pipeline, instruction)
    cut = instruction.split()[len(read) :] if read else ()
    write_trace_page(order.page, trace, source, instruction, model, depth, num_blocks, cut)
    return TraceReport(
        order.page, order.video, blocks, trace.steps, len(source), time.perf_counter() - started
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
