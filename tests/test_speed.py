"""Step caches: what they skip, that they are clean for every clip, and apart for the two conditions."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import edit, make_pipeline, random_clip

from rvedit.editing.config import EditConfig
from rvedit.io.errors import UserError
from rvedit.pipelines.speed import choose_attention, enable_step_cache, magnitude_ratios

WORDS = "make the fish orange"


@pytest.fixture
def pipeline(tiny_tokenizer):
    return make_pipeline(tiny_tokenizer)


def calls_of_the_last_block(pipeline):
    """How often it computes; hooks of caches wrap `forward`, so its attention is watched."""
    calls = []
    pipeline.transformer.blocks[-1].attn1.to_q.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(("guidance", "conditions"), [(1.0, 1), (2.0, 2)])
def test_the_first_block_decides(pipeline, guidance, conditions):
    """Two windows of six steps: with a threshold that nothing passes, each window computes but once."""
    settings, clip = EditConfig(6, guidance, detail=0), random_clip(10)
    plain = edit(pipeline, clip, WORDS, settings)
    enable_step_cache(pipeline, "first-block", threshold=0.0)
    calls = calls_of_the_last_block(pipeline)
    assert np.array_equal(edit(pipeline, clip, WORDS, settings), plain), "nothing is below a threshold of 0"
    assert len(calls) == 2 * 6 * conditions
    pipeline.transformer.disable_cache()
    enable_step_cache(pipeline, "first-block", threshold=1e9)
    calls.clear()
    assert not np.array_equal(edit(pipeline, clip, WORDS, settings), plain)
    assert len(calls) == 2 * conditions


@pytest.mark.parametrize("kind", ["first-block", "magcache", "taylorseer"])
def test_one_clip_leaves_nothing_to_the_next(pipeline, tiny_tokenizer, kind):
    settings = EditConfig(8, 2.0, detail=0)
    enable_step_cache(pipeline, kind)
    edit(pipeline, random_clip(5, seed=1), "remove the ball", settings)
    after = edit(pipeline, random_clip(5, seed=2), WORDS, settings)
    alone = make_pipeline(tiny_tokenizer)
    enable_step_cache(alone, kind)
    assert np.array_equal(after, edit(alone, random_clip(5, seed=2), WORDS, settings))


def test_the_two_conditions_are_kept_apart(pipeline, tiny_tokenizer):
    """With guidance 0 the result is the unconditional one alone: the conditional must not leak into it."""
    enable_step_cache(pipeline, "first-block", threshold=1e9)
    empty = EditConfig(6, 0.0, detail=0)
    a = edit(pipeline, random_clip(5), WORDS, empty)
    b = edit(pipeline, random_clip(5), "remove the ball", empty)
    assert np.array_equal(a, b)


def test_taylorseer_skips_attention(pipeline):
    settings, clip = EditConfig(9, detail=0), random_clip(5)
    plain = edit(pipeline, clip, WORDS, settings)
    calls = calls_of_the_last_block(pipeline)
    edit(pipeline, clip, WORDS, settings)
    whole = len(calls)
    enable_step_cache(pipeline, "taylorseer")
    calls.clear()
    near = edit(pipeline, clip, WORDS, settings)
    assert len(calls) < whole
    error = np.square(near.astype(float) - plain).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 15


def test_attention_kernels_have_names(pipeline):
    clip, settings = random_clip(5), EditConfig(2, detail=0)
    plain = edit(pipeline, clip, WORDS, settings)
    choose_attention(pipeline, "_native_math")
    assert np.abs(edit(pipeline, clip, WORDS, settings).astype(int) - plain).max() <= 1
    with pytest.raises(UserError, match="`attention` quick: choose one of"):
        choose_attention(pipeline, "quick")


def test_magcache_measures_how_the_blocks_change_grows(pipeline):
    """Against the residuals of a run of its own, by hand."""
    seen = []
    first, last = pipeline.transformer.blocks[0], pipeline.transformer.blocks[-1]
    ratios = magnitude_ratios(pipeline)
    hooks = [
        first.register_forward_pre_hook(lambda _, args: seen.append([args[0]])),
        last.register_forward_hook(lambda _, args, output: seen[-1].append(output)),
    ]
    assert magnitude_ratios(pipeline) == ratios
    for hook in hooks:
        hook.remove()
    sizes = [np.linalg.norm((after - before)[0].numpy(), axis=1) for before, after in seen]
    expected = [1.0, *(float((b / a).mean()) for a, b in pairwise(sizes))]
    assert len(ratios) == pipeline.config.default_steps
    assert ratios == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("steps", [6, 20])
def test_magcache_skips_for_any_number_of_steps(pipeline, steps):
    """By its rule from the measured ratios; what a threshold of 0 allows is nothing."""
    pipeline.register_to_config(default_steps=12)
    settings, clip = EditConfig(steps, detail=0), random_clip(5)
    plain = edit(pipeline, clip, WORDS, settings)
    enable_step_cache(pipeline, "magcache", threshold=0.0)
    calls = calls_of_the_last_block(pipeline)
    assert np.array_equal(edit(pipeline, clip, WORDS, settings), plain)
    assert len(calls) == steps
    pipeline.transformer.disable_cache()
    enable_step_cache(pipeline, "magcache", threshold=1e9)
    calls.clear()
    assert not np.array_equal(edit(pipeline, clip, WORDS, settings), plain)
    whole = round(0.2 * steps)  # the first fifth is never skipped, then one of four is not
    assert len(calls) == whole + (steps - whole) // 4


@pytest.mark.parametrize("kind", ["first-block", "magcache"])
def test_whole_steps_are_skipped_in_rvedits_own_models_alone(kind):
    with pytest.raises(UserError, match=f"`fast` {kind}: not supported by SimpleNamespace"):
        enable_step_cache(SimpleNamespace(transformer=None), kind)
