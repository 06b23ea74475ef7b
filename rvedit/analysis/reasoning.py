"""The reasoning trace of one edit: maps over the frames of each word, the editing tokens and concepts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvedit.analysis.concepts import concept_shares, concept_tokens, concept_values
from rvedit.analysis.experiments import observe_edit
from rvedit.analysis.reading import attention_rows
from rvedit.editing.config import EditConfig
from rvedit.editing.step_callback import StepReport
from rvedit.io.frames import Frames, to_frames
from rvedit.models.autoencoder import decode
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

EDITING, VISUAL, PADDING, TOKEN = "editing tokens", "visual tokens", "text padding", "editing token {}"
CONCEPT = '"{}" (concept)'
NUM_SINGLE_TOKENS = 4
"""Number of editing tokens with a map of their own in each block: those whose attention varies most over
positions at the first recorded step."""


@dataclass(frozen=True)
class BlockMaps:
    """Attention maps of one block at one step."""

    block: int
    step: int
    maps: dict[str, NDArray[np.float32]]
    """By token group or word: the attention that each patch of the noisy latents pays to it, as
    (latent frames, rows, columns). By concept: its share among the concepts."""


@dataclass(frozen=True)
class ReasoningTrace:
    """One edit and its attention maps."""

    instruction: str
    source: Frames
    edit: Frames
    words: tuple[str, ...]
    """The words of the instruction that the text encoder read, as keys of the maps of deep blocks."""
    readings: tuple[BlockMaps, ...]
    num_steps: int
    num_blocks: int
    routing_depth: int
    concepts: tuple[str, ...] = ()
    """The names of the concepts' maps, which blocks deeper than L_s have."""

    def mean_maps(self) -> dict[str, NDArray[np.float32]]:
        """Return the mean over the recorded steps and the recorded blocks deeper than L_s, or the last one.

        Only maps that all of them have are kept: the single editing tokens differ between blocks.
        """
        last = max(reading.block for reading in self.readings)
        deep = [reading for reading in self.readings if reading.block > min(self.routing_depth, last - 1)]
        names = [name for name in deep[0].maps if all(name in reading.maps for reading in deep)]
        return {name: np.mean([x.maps[name] for x in deep], axis=0) for name in names}


def trace_edit(
    pipeline: RVEDiTPipeline,
    frames: Frames,
    instruction: str,
    config: EditConfig,
    blocks: Sequence[int],
    steps: Sequence[int],
    report: StepReport = lambda step, num_steps: None,
    concepts: Sequence[str] = (),
) -> ReasoningTrace:
    """Edit a window (t, h, w, 3) at the model's size and return it with the maps of some blocks and steps.

    Blocks and steps count from 1. Maps are means over heads. `config.guidance_scale` must be 1: one forward
    pass per step. `concepts` add maps to the blocks that read text, and do not change the edit.
    """
    words = word_tokens(pipeline, instruction)
    tokens = concept_tokens(pipeline, concepts) if concepts else []
    names = tuple(CONCEPT.format(concept) for concept in concepts)
    num_blocks, depth = len(pipeline.transformer.blocks), pipeline.transformer.config.routing_depth
    rows, columns = (side // pipeline.grid for side in frames.shape[1:3])
    readings: list[BlockMaps] = []
    single: dict[int, list[int]] = {}  # the single editing tokens of each block, the same at all steps

    def on_attention(step: int, block: int, query: Tensor, key: Tensor, groups: list[int]) -> None:
        if block in blocks and step in steps:
            maps, single[block] = _block_maps(query, key, groups, words, single.get(block))
            volumes = {name: x.numpy().reshape(-1, rows, columns) for name, x in maps.items()}
            readings.append(BlockMaps(block, step, volumes))

    def on_output(step: int, block: int, output: Tensor) -> None:
        if concepts and block > depth and block in blocks and step in steps:
            values = concept_values(pipeline.transformer.blocks[block - 1].attn2, tokens)
            shares = concept_shares(output[0], values).cpu().numpy().reshape(-1, rows, columns, len(names))
            maps = readings[-1].maps  # of this block and step: `on_attention` has just added them
            maps.update({name: shares[..., index] for index, name in enumerate(names)})

    latents = observe_edit(pipeline, frames, instruction, config, on_attention, report, on_output)
    with torch.no_grad():
        edit = to_frames(decode(pipeline.vae, latents)[0])[: len(frames)]
    num_steps = pipeline.num_timesteps
    return ReasoningTrace(
        instruction, frames, edit, tuple(words), tuple(readings), num_steps, num_blocks, depth, names
    )


def word_tokens(pipeline: RVEDiTPipeline, instruction: str) -> dict[str, list[int]]:
    """Return the positions in X_l of each word's tokens; a repeated word gets a number, such as "the (2)"."""
    if pipeline.tokenizer is None:
        return {}
    inputs = pipeline.tokenizer(
        instruction, truncation=True, max_length=pipeline.config.max_text_length, return_offsets_mapping=True
    )
    seen: Counter[str] = Counter()
    ends: dict[str, int] = {}
    for match in re.finditer(r"\S+", instruction):
        word = match[0]
        seen[word] += 1
        ends[f"{word} ({seen[word]})" if seen[word] > 1 else word] = match.end()
    tokens: dict[str, list[int]] = {}
    for position, (start, end) in enumerate(inputs["offset_mapping"]):
        if start < end:  # not a special token
            word = next(name for name, stop in ends.items() if end <= stop)
            tokens.setdefault(word, []).append(position)
    return tokens


def _block_maps(
    query: Tensor, key: Tensor, groups: Sequence[int], words: dict[str, list[int]], single: list[int] | None
) -> tuple[dict[str, Tensor], list[int]]:
    """Return the maps (s,) by token group or word, and the editing tokens that have a map of their own.

    Those tokens are `single`; if it is None, the ones whose attention varies most are selected.
    """
    num_edit, num_visual = groups[:2]
    columns: dict[str, slice | list[int]] = {}
    if key.shape[1] > num_edit:  # otherwise the editing tokens get all the attention at every position
        first_text = num_edit + num_visual
        of_words = {word: [first_text + position for position in at] for word, at in words.items()}
        padding = set(range(first_text, key.shape[1])) - set(chain(*of_words.values()))
        columns = {EDITING: slice(num_edit), VISUAL: slice(num_edit, first_text), **of_words}
        columns[PADDING] = sorted(padding)  # and special tokens
    chunks: dict[str, list[Tensor]] = defaultdict(list)
    edit_tokens = []
    for rows, _ in attention_rows(query, key):
        attention = rows.mean(dim=1)[0]
        for name, selected in columns.items():
            chunks[name].append(attention[:, selected].sum(dim=-1).float().cpu())
        edit_tokens.append(attention[:, slice(num_edit) if single is None else single].float().cpu())
    tokens = torch.cat(edit_tokens)
    if single is None:
        single = sorted(tokens.var(dim=0).topk(min(NUM_SINGLE_TOKENS, num_edit)).indices.tolist())
        tokens = tokens[:, single]
    maps = {name: torch.cat(parts) for name, parts in chunks.items()}
    return maps | {TOKEN.format(index + 1): tokens[:, i] for i, index in enumerate(single)}, single
