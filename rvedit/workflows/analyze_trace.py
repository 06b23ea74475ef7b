"""`rvedit analyze trace`: look inside one edit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rvedit.analysis.experiments import first_window
from rvedit.analysis.reasoning import trace_edit
from rvedit.analysis.trace_page import overlay_frames, write_trace_page
from rvedit.data.manifest import prepare_folder
from rvedit.errors import UserError
from rvedit.pipeline import RVEDiTPipeline
from rvedit.records import EditSettings
from rvedit.video import VideoReader, write_like
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


def analyze_trace(
    order: TraceOrder,
    pipeline: RVEDiTPipeline,
    model: str,
    report: Callable[[int, int], None] = lambda step, num_steps: None,
) -> TraceReport:
    """Edit the clip's first window and write trace.html and trace.mp4."""
    started = time.perf_counter()
    instruction = checked_instruction(order.instruction)
    prepare_folder(order.out)
    page, video = order.out / "trace.html", order.out / "trace.mp4"
    if page.exists() and not order.overwrite:
        raise UserError(f"{page}: exists: choose another --out, or give --overwrite")
    num_blocks, depth = len(pipeline.transformer.blocks), pipeline.transformer.config.routing_depth
    settings = replace(order.settings, guidance_scale=1.0)
    num_steps = settings.num_inference_steps or pipeline.config.default_steps
    blocks = _checked("--blocks", order.blocks, num_blocks) or _blocks(num_blocks, depth)
    steps = _checked("--at-steps", order.steps, num_steps) or _spread(num_steps, MOST_STEPS)
    source = first_window(order.clip, pipeline)
    trace = trace_edit(pipeline, source, instruction, settings, blocks, steps, report)
    write_trace_page(page, trace, source, instruction, model, depth)
    with VideoReader(order.clip) as reader:
        pictures = overlay_frames(trace, source, depth)
        write_like(video, reader.info, (t._replace(frame=f) for t, f in zip(reader, pictures, strict=False)))
    return TraceReport(page, video, blocks, trace.steps, len(source), time.perf_counter() - started)


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
