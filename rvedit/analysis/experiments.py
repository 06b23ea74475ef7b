"""What is measured on one clip: how it is read while it is edited; the two branches against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvedit.analysis.observe import observed_attention, observed_traces
from rvedit.analysis.reading import read
from rvedit.analysis.traces import Likeness, likeness
from rvedit.model.conditioning import condition
from rvedit.model.latents import encode
from rvedit.objective.flow_matching import interpolate, shift_time
from rvedit.pipeline import RVEDiTPipeline
from rvedit.records import EditSettings
from rvedit.video import VideoReader
from rvedit.video_tensors import Frames, resize_frames, to_model_range
from rvedit.windows import Window, split

GROUPS = ("X_e", "X_v", "X_l", "padding")
"""Of tokens; X_l ends with the text, and the zeros behind it are a group of their own."""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class EditReading:
    """How the blocks read while a clip is edited."""

    mass: Values
    """(steps, blocks, groups): the share of attention on each of `GROUPS`."""
    entropy: Values
    """(steps, blocks): of the spatial attention maps, as a share of ln S."""
    positions: int
    """S."""


@dataclass(frozen=True)
class Triplet:
    """A window of a clip at the model's size, its true edit, and the words for both."""

    source: Frames
    target: Frames
    instruction: str
    caption: str


def first_window(path: Path, pipeline: RVEDiTPipeline) -> Window:
    """The clip's first window at the model's size; a clip that breaks off later will do."""
    with VideoReader(path, allow_truncated=True) as reader:
        size = pipeline.model_size(reader.info.height, reader.info.width)
        frames = (resize_frames(timed.frame[None], *size)[0] for timed in reader)
        return next(split(frames, pipeline.window_plan))


def text_length(pipeline: RVEDiTPipeline, instruction: str) -> int:
    """Tokens of X_l before its zeros; none where no block reads it."""
    if pipeline.tokenizer is None:
        return 0
    limit = pipeline.config.max_text_length
    return len(pipeline.tokenizer(instruction, truncation=True, max_length=limit).input_ids)


def context_groups(
    pipeline: RVEDiTPipeline, said: int, num_frames: int, positions: int, tokens: int
) -> list[int]:
    """Tokens of each of `GROUPS` in a context of so many: of clips of so many frames and positions, and of a
    text of the `text_length` said.
    """
    config = pipeline.connector.config
    is_still = num_frames == 1 and config.num_image_queries
    edit_tokens = config.num_image_queries if is_still else config.num_queries
    if tokens == edit_tokens:
        return [edit_tokens, 0, 0, 0]
    return [edit_tokens, positions, said, tokens - edit_tokens - positions - said]


def read_edit(
    pipeline: RVEDiTPipeline,
    frames: Frames,
    instruction: str,
    settings: EditSettings,
    report: Callable[[int, int], None] = lambda step, num_steps: None,
) -> EditReading:
    """Edit a window by Algorithm 2 and look on; `settings.guidance_scale` is to be 1, one pass a step."""
    mass: list[list[Values]] = []
    entropy: list[list[float]] = []
    positions = 0
    said = text_length(pipeline, instruction)

    def on_attention(block: int, query: Tensor, key: Tensor) -> None:
        nonlocal positions
        positions = query.shape[1]
        if block == 1:
            mass.append([])
            entropy.append([])
        groups = context_groups(pipeline, said, len(frames), positions, key.shape[1])
        reading = read(query, key, groups)
        mass[-1].append(reading.mass.cpu().numpy())
        entropy[-1].append(reading.entropy)

    noise = pipeline.window_noise(settings.seed)
    with observed_attention(pipeline.transformer, on_attention):
        pipeline.edit_window(frames, instruction, settings, noise, report)
    return EditReading(np.array(mass), np.array(entropy), positions)


@torch.no_grad()
def compare_branches(
    pipeline: RVEDiTPipeline, triplet: Triplet, num_times: int, seed: int, temperature: float
) -> list[list[Likeness]]:
    """By time and block: the trace of the editing branch against the reference's, as in Algorithm 1.

    Both see the same noisy target; the editing branch is conditioned on source and instruction, the reference
    on target and caption. The times are the middles of equal parts of [0, 1], shifted as the scheduler is.
    Traces of one pass are held on the CPU: linear in S.
    """
    transformer = pipeline.transformer
    device = transformer.device
    source, target = (
        encode(pipeline.vae, to_model_range(clip)[None].to(device))
        for clip in (triplet.source, triplet.target)
    )
    sight = pipeline.edit_token_encoder.sight
    editing, reference = (
        condition(pipeline, latents.to(transformer.dtype), [sight(clip)], [words])
        for latents, clip, words in (
            (source, triplet.source, triplet.instruction),
            (target, triplet.target, triplet.caption),
        )
    )
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    middles = (torch.arange(num_times) + 0.5) / num_times
    rows = []
    for time in shift_time(middles, pipeline.scheduler.config.shift):
        t = time.to(device)[None]
        noisy = interpolate(target, noise, t).to(transformer.dtype)
        traces: dict[int, Tensor] = {}
        found: dict[int, Likeness] = {}
        with observed_traces(transformer, lambda block, trace: traces.update({block: trace.cpu()})):  # noqa: B023
            transformer(noisy, 1000 * t, editing)

        def against(block: int, trace: Tensor) -> None:
            found[block] = likeness(traces[block].to(trace.device), trace, temperature)  # noqa: B023

        with observed_traces(transformer, against):
            transformer(noisy, 1000 * t, reference)
        rows.append([found[block] for block in sorted(found)])
    return rows
