"""What is measured on one clip: how it is read while it is edited; the two branches against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvedit.analysis.observe import observed_attention, observed_traces
from rvedit.analysis.reading import attention_statistics
from rvedit.analysis.traces import TraceSimilarity, trace_similarity
from rvedit.editing.config import EditConfig
from rvedit.io.frames import Frames, resize_frames, to_model_range
from rvedit.io.video import VideoReader
from rvedit.losses.flow_matching import interpolate, shift_time
from rvedit.models.autoencoder import encode
from rvedit.models.token_groups import encode_tokens
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

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


def first_window(path: Path, pipeline: RVEDiTPipeline) -> Frames:
    """Return the frames of a clip's first window at the model's size; the clip may be damaged after it."""
    with VideoReader(path, allow_truncated=True) as reader:
        size = pipeline.model_size(reader.info.height, reader.info.width)
        frames = (resize_frames(timed.frame[None], *size)[0] for timed in reader)
        return np.stack(list(islice(frames, pipeline.config.window_frames)))


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
    config: EditConfig,
    report: Callable[[int, int], None] = lambda step, num_steps: None,
) -> EditReading:
    """Edit a window by Algorithm 2 and look on; `config.guidance_scale` has to be 1, one pass a step."""
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
        reading = attention_statistics(query, key, groups)
        mass[-1].append(reading.mass.cpu().numpy())
        entropy[-1].append(reading.entropy)

    with observed_attention(pipeline.transformer, on_attention):
        window_latents(pipeline, frames, instruction, config, report)
    return EditReading(np.array(mass), np.array(entropy), positions)


def window_latents(
    pipeline: RVEDiTPipeline,
    frames: Frames,
    instruction: str,
    config: EditConfig,
    report: Callable[[int, int], None] = lambda step, num_steps: None,
) -> Tensor:
    """Edit one window as `edit_video` edits the first one; return its latents (1, c, f, y, x)."""

    def on_step_end(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        report(step + 1, pipe.num_timesteps)
        return tensors

    latents: Tensor = pipeline(
        frames,
        instruction,
        height=frames.shape[1],
        width=frames.shape[2],
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        generator=torch.Generator().manual_seed(config.seed),
        output_type="latent",
        callback_on_step_end=on_step_end,
    ).frames
    return latents


@torch.no_grad()
def compare_branches(
    pipeline: RVEDiTPipeline, triplet: Triplet, num_times: int, seed: int, temperature: float
) -> list[list[TraceSimilarity]]:
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
    frame_processor = pipeline.edit_token_encoder.frame_processor
    editing, reference = (
        encode_tokens(pipeline, latents.to(transformer.dtype), [frame_processor(clip)], [words])
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
        found: dict[int, TraceSimilarity] = {}
        with observed_traces(transformer, lambda block, trace: traces.update({block: trace.cpu()})):  # noqa: B023
            transformer(noisy, 1000 * t, editing)

        def against(block: int, trace: Tensor) -> None:
            found[block] = trace_similarity(traces[block].to(trace.device), trace, temperature)  # noqa: B023

        with observed_traces(transformer, against):
            transformer(noisy, 1000 * t, reference)
        rows.append([found[block] for block in sorted(found)])
    return rows
