"""Keys and values are projected once per clip and condition, never carried to another clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    CHANNELS,
    WIDTH,
    WatchCalls,
    edit,
    edit_latents,
    make_pipeline,
    make_transformer,
    random_clip,
)
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from rvedit.editing.config import EditConfig
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

INSTRUCTION = "replace the dog with a corgi"


def latents_of(pipeline: RVEDiTPipeline, clip: np.ndarray, **settings: Any) -> torch.Tensor:
    """The edited latents of one window."""
    return edit_latents(pipeline, clip, INSTRUCTION, num_inference_steps=4, **settings)


def projections(pipeline: RVEDiTPipeline, count_calls: WatchCalls) -> list[list[Any]]:
    blocks = pipeline.transformer.blocks
    return [count_calls(part) for block in blocks for part in (block.attn2.to_k, block.attn2.to_v)]


@pytest.mark.parametrize(
    ("guidance", "reuse", "expected"), [(1.0, True, 1), (2.0, True, 2), (1.0, False, 4), (2.0, False, 8)]
)
def test_projections_run_once_per_condition(
    tiny_pipeline: RVEDiTPipeline,
    count_calls: WatchCalls,
    monkeypatch: pytest.MonkeyPatch,
    guidance: float,
    reuse: bool,
    expected: int,
) -> None:
    counts = projections(tiny_pipeline, count_calls)
    queries = count_calls(tiny_pipeline.transformer.blocks[0].attn2.to_q)
    monkeypatch.setattr(tiny_pipeline, "reuse_key_values", reuse)
    latents_of(tiny_pipeline, random_clip(9), guidance_scale=guidance)
    assert {len(calls) for calls in counts} == {expected}
    assert len(queries) == 4 * int(guidance), "queries depend on the step and run every time"


def test_every_window_projects_its_own(tiny_pipeline: RVEDiTPipeline, count_calls: WatchCalls) -> None:
    counts = projections(tiny_pipeline, count_calls)
    edit(tiny_pipeline, random_clip(17), INSTRUCTION, EditConfig(num_inference_steps=3))
    windows = 3  # frames 0-8, 4-12, 8-16
    assert {len(calls) for calls in counts} == {windows}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_reuse_changes_nothing(
    tiny_pipeline: RVEDiTPipeline, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    clip = random_clip(9)
    kept = latents_of(tiny_pipeline, clip, guidance_scale=guidance)
    monkeypatch.setattr(tiny_pipeline, "reuse_key_values", False)
    anew = latents_of(tiny_pipeline, clip, guidance_scale=guidance)
    assert_close(kept, anew, rtol=0, atol=1e-5)


def test_a_second_clip_never_sees_the_first_ones_keys(
    tiny_pipeline: RVEDiTPipeline, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second = random_clip(9, seed=1), random_clip(9, seed=2)
    after_another = (latents_of(tiny_pipeline, first), latents_of(tiny_pipeline, second))[1]
    alone = latents_of(make_pipeline(tiny_tokenizer), second)
    assert torch.equal(after_another, alone)
    assert not torch.equal(after_another, latents_of(tiny_pipeline, first))


@torch.no_grad()
def test_kept_keys_and_values_are_the_projected_tokens() -> None:
    torch.manual_seed(0)
    model = make_transformer()
    contexts = model.contexts(
        model.embed_tokens(torch.randn(1, 5, WIDTH), torch.randn(1, CHANNELS, 1, 2, 2)), reuse=True
    )
    assert [context.key_value for context in contexts] == [None] * 4
    groups = model.embed_tokens(torch.randn(1, 5, WIDTH), torch.randn(1, CHANNELS, 1, 2, 2))
    contexts = model.contexts(groups, reuse=True)
    for timestep in (900.0, 300.0):
        model(torch.randn(1, CHANNELS, 1, 2, 2), torch.tensor([timestep]), groups, contexts)
        for block, context in zip(model.blocks, contexts, strict=True):
            key, value = context.key_value
            assert_close(key.flatten(2), block.attn2.norm_k(block.attn2.to_k(context.tokens)))
            assert_close(value.flatten(2), block.attn2.to_v(context.tokens))


@torch.no_grad()
def test_without_reuse_nothing_is_kept() -> None:
    torch.manual_seed(0)
    model = make_transformer()
    groups = model.embed_tokens(torch.randn(1, 5, WIDTH), torch.randn(1, CHANNELS, 1, 2, 2))
    contexts = model.contexts(groups)
    model(torch.randn(1, CHANNELS, 1, 2, 2), torch.tensor([500.0]), groups, contexts)
    assert [context.key_value for context in contexts] == [None] * 4
