"""Flow matching in Wan's convention, and that the pipeline integrates what training teaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import edit_latents, make_pipeline, random_clip
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from rvedit.losses.flow_matching import flow_matching_loss, interpolate, shift_time
from rvedit.models.transformer import RoutedOutput
from rvedit.training.step import binned, with_bins

SHAPE = (2, 3, 2, 4, 5)


def target_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    target, noise = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return target, noise


def test_time_0_is_the_target_and_time_1_the_noise() -> None:
    target, noise = target_and_noise()
    ends = interpolate(target, noise, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(ends[0], target[0])
    assert torch.equal(ends[1], noise[1])


def test_each_clip_of_a_batch_has_its_own_time() -> None:
    target, noise = target_and_noise()
    both = interpolate(target, noise, torch.tensor([0.25, 0.5], dtype=torch.float64))
    assert_close(both[0], 0.75 * target[0] + 0.25 * noise[0])
    assert_close(both[1], 0.5 * target[1] + 0.5 * noise[1])


def test_the_velocity_of_least_loss_is_the_derivative_in_time() -> None:
    target, noise = target_and_noise()
    time, step = torch.tensor([0.3, 0.6], dtype=torch.float64), 1e-3
    derivative = (interpolate(target, noise, time + step) - interpolate(target, noise, time)) / step
    assert flow_matching_loss(derivative, target, noise).max() < 1e-12
    assert flow_matching_loss(noise - target, target, noise).max() < 1e-12


def test_loss_is_the_mean_square_error_of_the_velocity() -> None:
    target, noise = target_and_noise()
    error = torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None, None, None, None]
    losses = flow_matching_loss(noise - target + error, target, noise)
    assert_close(losses.tolist(), [0.25, 4.0], rtol=1e-6, atol=0)


def test_loss_of_a_bf16_velocity_is_taken_in_full_precision() -> None:
    target, noise = (x.float() for x in target_and_noise())
    velocity = (noise - target).bfloat16()
    loss = flow_matching_loss(velocity, target, noise).mean()
    assert loss.dtype == torch.float32
    assert_close(loss, (velocity.double() - (noise - target).double()).square().mean().float())


@given(time=st.floats(0, 1), shift=st.floats(0.2, 10))
def test_shift_keeps_the_ends_and_is_undone_by_its_inverse(time: float, shift: float) -> None:
    times = torch.tensor([0.0, time, 1.0], dtype=torch.float64)
    shifted = shift_time(times, shift)
    assert shifted[0] == 0
    assert_close(shifted[2].item(), 1.0)
    assert_close(shift_time(shifted, 1 / shift), times, rtol=0, atol=1e-9)


def test_known_shifts() -> None:
    times = torch.tensor([0.5, 0.2, 0.75])
    assert torch.equal(shift_time(times, 1.0), times)
    # 3 * 0.5 / (1 + 2 * 0.5) = 3/4;  3 * 0.2 / 1.4 = 3/7;  3 * 0.75 / 2.5 = 9/10
    assert_close(shift_time(times, 3.0), torch.tensor([3 / 4, 3 / 7, 9 / 10]))


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_pipeline_integrates_a_perfect_velocity_to_the_target(
    tiny_tokenizer: PreTrainedTokenizerFast, shift: float, num_steps: int
) -> None:
    """The exact field towards one target, (x - x_1) / t, stands in for the transformer."""
    pipeline = make_pipeline(tiny_tokenizer)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    target = torch.randn(1, 8, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    times: list[float] = []
    first: list[torch.Tensor] = []

    def perfect(latents: torch.Tensor, timestep: torch.Tensor, *_: Any) -> RoutedOutput:
        assert timestep.shape == (1,)
        time = timestep.item() / 1000
        times.append(time)
        first.append(latents)
        return RoutedOutput((latents - target) / time)

    pipeline.transformer.forward = perfect
    latents = edit_latents(pipeline, random_clip(9), "add a red car", 11, num_inference_steps=num_steps)
    assert_close(latents, target, rtol=0, atol=1e-5)
    even = torch.tensor(np.linspace(1, 0, num_steps + 1)[:-1])
    assert_close(torch.tensor(times, dtype=torch.float64), shift_time(even, shift), rtol=0, atol=1e-6)
    pure_noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(11))
    assert torch.equal(first[0], pure_noise)


def test_losses_by_time_are_means_over_all_samples_of_a_bin() -> None:
    """Also if these are spread over minibatches, which are averaged."""
    parts = [([1.0, 3.0], [0.1, 0.2]), ([5.0, 7.0], [0.24, 1.0])]
    metrics = [binned(torch.tensor(errors), torch.tensor(times)) for errors, times in parts]
    mean = {name: float(sum(m[name] for m in metrics)) / 2 for name in metrics[0]}
    assert with_bins({"loss": 4.0, **mean}) == {"loss": 4.0, "fm_t0-0.25": 3.0, "fm_t0.75-1": 7.0}
