"""Step caches: what they skip, that they are clean for every clip, and apart for the two conditions."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_pipeline, random_clip

from rvedit.editors.speed import choose_attention, reuse_steps
from rvedit.errors import UserError
from rvedit.records import EditSettings

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
    settings, clip = EditSettings(6, guidance), random_clip(10)
    plain = pipeline(clip, WORDS, settings)
    reuse_steps(pipeline, "first-block", threshold=0.0)
    calls = calls_of_the_last_block(pipeline)
    assert np.array_equal(pipeline(clip, WORDS, settings), plain), "nothing is below a threshold of 0"
    assert len(calls) == 2 * 6 * conditions
    pipeline.transformer.disable_cache()
    reuse_steps(pipeline, "first-block", threshold=1e9)
    calls.clear()
    assert not np.array_equal(pipeline(clip, WORDS, settings), plain)
    assert len(calls) == 2 * conditions


@pytest.mark.parametrize("kind", ["first-block", "taylorseer"])
def test_one_clip_leaves_nothing_to_the_next(pipeline, tiny_tokenizer, kind):
    settings = EditSettings(8, 2.0)
    reuse_steps(pipeline, kind)
    pipeline(random_clip(5, seed=1), "remove the ball", settings)
    after = pipeline(random_clip(5, seed=2), WORDS, settings)
    alone = make_pipeline(tiny_tokenizer)
    reuse_steps(alone, kind)
    assert np.array_equal(after, alone(random_clip(5, seed=2), WORDS, settings))


def test_the_two_conditions_are_kept_apart(pipeline, tiny_tokenizer):
    """With guidance 0 the result is the unconditional one alone: the conditional must not leak into it."""
    reuse_steps(pipeline, "first-block", threshold=1e9)
    empty = EditSettings(6, 0.0)
    a = pipeline(random_clip(5), WORDS, empty)
    b = pipeline(random_clip(5), "remove the ball", empty)
    assert np.array_equal(a, b)


def test_taylorseer_skips_attention(pipeline):
    settings, clip = EditSettings(9), random_clip(5)
    plain = pipeline(clip, WORDS, settings)
    calls = calls_of_the_last_block(pipeline)
    pipeline(clip, WORDS, settings)
    whole = len(calls)
    reuse_steps(pipeline, "taylorseer")
    calls.clear()
    near = pipeline(clip, WORDS, settings)
    assert len(calls) < whole
    error = np.square(near.astype(float) - plain).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 15


def test_attention_kernels_have_names(pipeline):
    clip, settings = random_clip(5), EditSettings(2)
    plain = pipeline(clip, WORDS, settings)
    choose_attention(pipeline, "_native_math")
    assert np.abs(pipeline(clip, WORDS, settings).astype(int) - plain).max() <= 1
    with pytest.raises(UserError, match="--attention quick: choose one of"):
        choose_attention(pipeline, "quick")
