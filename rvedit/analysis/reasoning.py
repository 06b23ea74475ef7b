"""The reasoning trace of one edit: where in the frames each word and the editing tokens are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from rvedit.analysis.experiments import context_groups, text_length, window_latents
from rvedit.analysis.observe import observed_attention
from rvedit.analysis.reading import maps
from rvedit.editing.config import EditConfig
from rvedit.editing.windows import GROUP, pad_frames
from rvedit.io.frames import Frames, to_frames
from rvedit.models.autoencoder import decode
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

EDITING, VISUAL, PADDING, TOKEN = "editing tokens", "visual tokens", "behind the text", "editing token {}"
SINGLE_TOKENS = 4
"""Editing tokens that are shown one by one: those that are read most unevenly."""


@dataclass(frozen=True)
class BlockMaps:
    """What one block reads at one step."""

    block: int
    step: int
    maps: dict[str, NDArray[np.float32]]
    """By what is read: the share of attention at each place, (frames, rows, columns) of latent patches."""


@dataclass(frozen=True)
class ReasoningTrace:
    """One edit, and what was read on the way."""

    edit: Frames
    words: tuple[str, ...]
    """Of the instruction, as keys of the maps; empty where no block reads X_l."""
    readings: tuple[BlockMaps, ...]
    steps: tuple[int, ...]
    num_steps: int

    def mean_maps(self, deeper_than: int) -> dict[str, NDArray[np.float32]]:
        """Mean over the steps and blocks deeper than one; over the last block's steps if there are none.

        Of what all of them read: single editing tokens differ from block to block.
        """
        last = max(reading.block for reading in self.readings)
        deep = [x for x in self.readings if x.block > min(deeper_than, last - 1)]
        names = [name for name in deep[0].maps if all(name in reading.maps for reading in deep)]
        return {name: np.mean([x.maps[name] for x in deep], axis=0) for name in names}


def trace_edit(
    pipeline: RVEDiTPipeline,
    frames: Frames,
    instruction: str,
    config: EditConfig,
    blocks: Sequence[int],
    steps: Sequence[int],
    report: Callable[[int, int], None] = lambda step, num_steps: None,
) -> ReasoningTrace:
    """Edit a window's frames (t, h, w, 3) at the model's size and keep what blocks read at the given steps.

    Blocks count from 1 to L. Maps are means over heads. Guidance is 1: one pass a step, the conditional one.
    """
    count, frames = len(frames), pad_frames(frames)
    words = word_tokens(pipeline, instruction)
    said = text_length(pipeline, instruction)
    height, width = frames.shape[1:3]
    scale = pipeline.vae.config.scale_factor_spatial
    p_t, p_h, p_w = pipeline.transformer.config.patch_size
    grid = ((1 + (len(frames) - 1) // GROUP) // p_t, height // scale // p_h, width // scale // p_w)
    seen_steps = 0
    readings: list[BlockMaps] = []
    shown: dict[int, list[int]] = {}  # editing tokens of each block, the same at all steps

    def on_attention(block: int, query: Tensor, key: Tensor) -> None:
        nonlocal seen_steps
        seen_steps += block == 1
        if block not in blocks or seen_steps not in steps:
            return
        groups = context_groups(pipeline, said, len(frames), query.shape[1], key.shape[1])
        found, shown[block] = _block_maps(query, key, groups, words, shown.get(block))
        volumes = {
            name: rearrange(values, "(f y x) -> f y x", f=grid[0], y=grid[1], x=grid[2]).numpy()
            for name, values in found.items()
        }
        readings.append(BlockMaps(block, seen_steps, volumes))

    with observed_attention(pipeline.transformer, on_attention):
        latents = window_latents(pipeline, frames, instruction, config, report)
    with torch.no_grad():
        edit = to_frames(decode(pipeline.vae, latents)[0])[:count]
    read = tuple(word for word in words if any(word in reading.maps for reading in readings))
    kept = tuple(sorted({reading.step for reading in readings}))
    return ReasoningTrace(edit, read, tuple(readings), kept, seen_steps)


def word_tokens(pipeline: RVEDiTPipeline, instruction: str) -> dict[str, list[int]]:
    """The words of the instruction and the positions of each one's tokens in X_l; a word said twice is told
    apart by its number.
    """
    if pipeline.tokenizer is None:
        return {}
    inputs = pipeline.tokenizer(
        instruction,
        truncation=True,
        max_length=pipeline.config.max_text_length,
        return_offsets_mapping=True,
    )
    spans = [match.span() for match in re.finditer(r"\S+", instruction)]
    names: list[str] = []
    for start, end in spans:
        word = instruction[start:end]
        count = sum(name.partition(" (")[0] == word for name in names)
        names.append(f"{word} ({count + 1})" if count else word)
    tokens: dict[str, list[int]] = {}
    for position, (start, end) in enumerate(inputs["offset_mapping"]):
        if end == start:  # a mark of the tokenizer's own
            continue
        word_index = next(i for i, (_, stop) in enumerate(spans) if end <= stop)
        tokens.setdefault(names[word_index], []).append(position)
    return tokens


def _block_maps(
    query: Tensor,
    key: Tensor,
    groups: Sequence[int],
    words: dict[str, list[int]],
    single: list[int] | None,
) -> tuple[dict[str, Tensor], list[int]]:
    """By what is read: (s,) shares of attention; and the editing tokens that are shown one by one, which are
    chosen where `single` has none.
    """
    num_edit, num_visual, num_text = groups[0], groups[1], sum(groups[2:])
    said = {position for positions in words.values() for position in positions}
    unsaid = [position for position in range(num_text) if position not in said]
    rows: list[Any] = []
    edit_tokens = []
    for _, attention in maps(query, key):
        edit, visual, text = attention[0].split([num_edit, num_visual, num_text], dim=-1)
        edit_tokens.append((edit if single is None else edit[:, single]).float().cpu())
        row: dict[str, Tensor] = {}
        if num_visual + num_text:  # else the editing tokens have all there is, everywhere
            row = {EDITING: edit.sum(dim=-1), VISUAL: visual.sum(dim=-1)}
            row |= {word: text[:, positions].sum(dim=-1) for word, positions in words.items()}
            row[PADDING] = text[:, unsaid].sum(dim=-1)
        rows.append({name: values.float().cpu() for name, values in row.items()})
    found = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}  # empty where all is X_e
    tokens = torch.cat(edit_tokens)
    if single is None:
        single = sorted(tokens.var(dim=0).topk(min(SINGLE_TOKENS, num_edit)).indices.tolist())
        tokens = tokens[:, single]
    return found | {TOKEN.format(index + 1): tokens[:, i] for i, index in enumerate(single)}, single
