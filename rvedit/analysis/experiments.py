"""Measurements on one clip: the attention during an edit, and the similarity of the two branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rvedit.analysis.observe import observed_attention, observed_outputs, observed_traces
from rvedit.analysis.reading import AttentionStatistics, attention_statistics
from rvedit.analysis.traces import TraceSimilarity, trace_similarity
from rvedit.editing.config import EditConfig
from rvedit.editing.step_callback import StepReport, step_callback
from rvedit.evaluation.aggregate import Values
from rvedit.io.frames import Frames, resize_frames
from rvedit.io.video import VideoReader
from rvedit.losses.flow_matching import interpolate, shift_time
from rvedit.models.routing import TokenGroups
from rvedit.models.token_groups import encode_tokens
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

GROUPS = ("X_e", "X_v", "X_l", "padding")
"""Groups of tokens: X_l is the text alone; the zeros that pad it are a separate group."""
OnEditAttention = Callable[[int, int, Tensor, Tensor, list[int]], None]
"""Called with step and block (from 1), queries, keys, and the number of tokens of each of `GROUPS`."""
OnEditOutput = Callable[[int, int, Tensor], None]
"""Called with step and block (from 1), and the heads' attention outputs (1, s, h, e)."""


@dataclass(frozen=True)
class EditAttention:
    """Cross-attention statistics of an edit by step and block."""

    mass: Values
    """The fraction of attention on each of `GROUPS`, (steps, blocks, groups)."""
    entropy: Values
    """Entropy of the spatial attention maps divided by ln S, (steps, blocks)."""
    positions: int
    """S, the number of latent patches."""


def first_window(path: Path, pipeline: RVEDiTPipeline) -> Frames:
    """Return the frames of a clip's first window at the model's size; later frames may be damaged."""
    with VideoReader(path, allow_truncated=True) as reader:
        size = pipeline.model_size(reader.info.height, reader.info.width)
        frames = (resize_frames(timed.frame[None], *size)[0] for timed in reader)
        return np.stack(list(islice(frames, pipeline.config.window_frames)))


def measure_attention(
    pipeline: RVEDiTPipeline, frames: Frames, instruction: str, config: EditConfig
) -> EditAttention:
    """Edit a window by Algorithm 2 and return its attention statistics.

    `config.guidance_scale` must be 1, which is one forward pass per step.
    """
    statistics: list[AttentionStatistics] = []
    positions = 0

    def on_attention(step: int, block: int, query: Tensor, key: Tensor, groups: list[int]) -> None:
        nonlocal positions
        positions = query.shape[1]
        statistics.append(attention_statistics(query, key, groups))

    observe_edit(pipeline, frames, instruction, config, on_attention)
    mass = torch.stack([each.mass for each in statistics]).cpu().numpy()
    entropy = np.array([each.entropy for each in statistics])
    num_blocks = len(pipeline.transformer.blocks)
    return EditAttention(
        mass.reshape(-1, num_blocks, len(GROUPS)), entropy.reshape(-1, num_blocks), positions
    )


def observe_edit(
    pipeline: RVEDiTPipeline,
    frames: Frames,
    instruction: str,
    config: EditConfig,
    on_attention: OnEditAttention,
    report: StepReport = lambda step, num_steps: None,
    on_output: OnEditOutput = lambda step, block, output: None,
) -> Tensor:
    """Edit one window as `edit_video` edits a clip's first one; return the latents (1, c, f, y, x).

    Calls `on_attention` and then `on_output` for every cross-attention; `config.guidance_scale` must be 1.
    """
    if config.guidance_scale != 1.0:
        raise ValueError(f"guidance_scale is {config.guidance_scale}: it must be 1 to observe attention")
    num_text = 0  # the tokens of X_l before its padding
    if pipeline.tokenizer is not None:
        limit = pipeline.config.max_text_length
        num_text = len(pipeline.tokenizer(instruction, truncation=True, max_length=limit).input_ids)
    step = 0

    def observe(block: int, query: Tensor, key: Tensor) -> None:
        nonlocal step
        step += block == 1
        groups = _context_groups(pipeline, num_text, len(frames), query.shape[1], key.shape[1])
        on_attention(step, block, query, key, groups)

    with (
        observed_attention(pipeline.transformer, observe),
        observed_outputs(pipeline.transformer, lambda block, output: on_output(step, block, output)),
    ):
        latents: Tensor = pipeline(
            frames,
            instruction,
            height=frames.shape[1],
            width=frames.shape[2],
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            generator=torch.Generator().manual_seed(config.seed),
            output_type="latent",
            callback_on_step_end=step_callback(report),
        ).frames
    return latents


def _context_groups(
    pipeline: RVEDiTPipeline, num_text: int, num_frames: int, positions: int, tokens: int
) -> list[int]:
    """Return the number of tokens of each of `GROUPS` in a context of `tokens` tokens."""
    config = pipeline.connector.config
    is_still = num_frames == 1 and config.num_image_queries
    edit_tokens = config.num_image_queries if is_still else config.num_queries
    if tokens == edit_tokens:
        return [edit_tokens, 0, 0, 0]
    return [edit_tokens, positions, num_text, tokens - edit_tokens - positions - num_text]


@torch.no_grad()
def compare_branches(
    pipeline: RVEDiTPipeline,
    editing: tuple[Frames, str],
    reference: tuple[Frames, str],
    num_times: int,
    seed: int,
    temperature: float,
) -> list[list[TraceSimilarity]]:
    """Return the similarity of the editing branch's trace to the reference's by time and block (Algorithm 1).

    Both get the same noisy target; the editing branch is conditioned on (source, instruction), the reference
    on (target, caption). The times are the centers of equal intervals of [0, 1], with the scheduler's shift.
    The editing branch's traces are kept on the CPU; their memory is linear in S.
    """
    transformer = pipeline.transformer

    def encode(clip: Frames, text: str) -> tuple[Tensor, TokenGroups]:
        latents = pipeline.encode_video(clip)
        mllm_frames = pipeline.edit_token_encoder.frame_processor(clip)
        return latents, encode_tokens(pipeline, latents.to(transformer.dtype), [mllm_frames], [text])

    _, editing_tokens = encode(*editing)
    target, reference_tokens = encode(*reference)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(seed)).to(target.device)
    centers = (torch.arange(num_times) + 0.5) / num_times
    rows = []
    for time in shift_time(centers, pipeline.scheduler.config.shift):
        t = time.to(target.device)[None]
        noisy = interpolate(target, noise, t).to(transformer.dtype)
        traces: list[Tensor] = []
        with observed_traces(transformer, lambda block, trace: traces.append(trace.cpu())):  # noqa: B023
            transformer(noisy, 1000 * t, editing_tokens)
        row: list[TraceSimilarity] = []

        def compare(block: int, trace: Tensor) -> None:
            row.append(trace_similarity(traces[block - 1].to(trace.device), trace, temperature))  # noqa: B023

        with observed_traces(transformer, compare):
            transformer(noisy, 1000 * t, reference_tokens)
        rows.append(row)
    return rows
