"""The routed transformer against diffusers' own, and what it does beside it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from conftest import CHANNELS, TEXT_WIDTH, WIDTH, WatchCalls, make_transformer
from diffusers import WanTransformer3DModel
from torch.testing import assert_close

from rvedit.models.routing import TokenGroups
from rvedit.models.transformer import RoutedWanTransformer3DModel

DEPTHS = (1, 2, 3, 4)
GRID = (3, 4, 6)
TIMESTEPS = torch.tensor([137.0, 900.0])


def plain_wan(model: RoutedWanTransformer3DModel) -> WanTransformer3DModel:
    """Diffusers' transformer with the same weights."""
    names = set(inspect.signature(WanTransformer3DModel.__init__).parameters) - {"self"}
    wan = WanTransformer3DModel(**{name: model.config[name] for name in names}).eval()
    report = wan.load_state_dict(model.state_dict(), strict=False)
    assert not report.missing_keys
    assert {key.split(".")[0] for key in report.unexpected_keys} == {"source_embedder", "visual_embedder"}
    return wan


def all_groups(model: RoutedWanTransformer3DModel, seed: int = 1) -> TokenGroups:
    """X_e, X_v and X_l of two clips."""
    generator = torch.Generator().manual_seed(seed)
    return model.embed_tokens(
        torch.randn(2, 5, WIDTH, generator=generator),
        torch.randn(2, CHANNELS, *GRID, generator=generator),
        torch.randn(2, 7, TEXT_WIDTH, generator=generator),
    )


def noisy_latents(seed: int = 2) -> torch.Tensor:
    return torch.randn(2, CHANNELS, *GRID, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> RoutedWanTransformer3DModel:
    torch.manual_seed(0)
    return make_transformer()


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2)])
@torch.no_grad()
def test_text_alone_and_routing_depth_0_is_wan(patch: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = make_transformer(patch_size=patch, routing_depth=0)
    text_states = torch.randn(2, 7, TEXT_WIDTH)
    ours = model(noisy_latents(), TIMESTEPS, model.embed_tokens(text_states=text_states)).sample
    theirs = plain_wan(model)(noisy_latents(), TIMESTEPS, text_states).sample
    assert ours.shape == (2, CHANNELS, *GRID)
    assert theirs.std() > 0.05, "outputs near zero would agree whatever the model did"
    assert (ours - theirs).abs().max() <= 1e-5


@torch.no_grad()
def test_tokens_stand_frame_by_frame_in_the_order_of_the_noisy_ones(
    model: RoutedWanTransformer3DModel,
) -> None:
    """With the patch embedder's weights, the source's tokens of x are the noisy tokens of x."""
    torch.manual_seed(0)
    twin = make_transformer(source_position=False)
    twin.source_embedder.load_state_dict(twin.patch_embedding.state_dict())
    latents = noisy_latents()
    noisy = twin.patch_embedding(latents)
    source = twin.embed_tokens(source_latents=latents).source_tokens
    frame, row, column = 2, 1, 5
    place = (frame * GRID[1] + row) * GRID[2] + column
    assert_close(source[:, place], noisy[:, :, frame, row, column])


@torch.no_grad()
def test_positions_tell_every_token_of_a_constant_source_apart(model: RoutedWanTransformer3DModel) -> None:
    tokens = model.embed_tokens(source_latents=torch.ones(1, CHANNELS, *GRID)).visual_tokens[0]
    distances = torch.cdist(tokens, tokens) + torch.eye(len(tokens)) * 1e6
    assert distances.min() > 1e-2


@torch.no_grad()
def test_source_enters_scaled_by_the_noise_level(
    model: RoutedWanTransformer3DModel, count_calls: WatchCalls
) -> None:
    calls = count_calls(model.blocks[0])
    groups = all_groups(model)
    model(noisy_latents(), TIMESTEPS, groups)
    entering = calls[0][0][0]
    noisy = model.patch_embedding(noisy_latents()).flatten(2).transpose(1, 2)
    expected = noisy + torch.tensor([0.137, 0.9])[:, None, None] * groups.source_tokens
    assert_close(entering, expected)


def test_gradient_checkpointing_changes_neither_output_nor_trace_nor_gradient(
    model: RoutedWanTransformer3DModel,
) -> None:
    def run() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor | None]]:
        model.zero_grad()
        output = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=3)
        weights = torch.linspace(-1, 1, output.trace.numel()).view_as(output.trace)
        (output.sample.square().mean() + (weights * output.trace).mean()).backward()
        return output.sample, output.trace, {name: p.grad for name, p in model.named_parameters()}

    plain_sample, plain_trace, plain_gradients = run()
    model.enable_gradient_checkpointing()
    try:
        sample, trace, gradients = run()
    finally:
        model.disable_gradient_checkpointing()
        model.zero_grad()
    assert_close(sample, plain_sample, rtol=0, atol=1e-6)
    assert_close(trace, plain_trace, rtol=0, atol=1e-6)
    assert all(gradient is not None for gradient in plain_gradients.values())
    for name, gradient in gradients.items():
        assert_close(gradient, plain_gradients[name], rtol=1e-5, atol=1e-7, msg=name)


def test_trace_carries_gradient_up_to_its_block_and_no_further(model: RoutedWanTransformer3DModel) -> None:
    model.zero_grad()
    model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=2).trace.square().mean().backward()
    reached = [block.attn2.to_v.weight.grad is not None for block in model.blocks]
    model.zero_grad()
    assert reached == [True, True, False, False]


@pytest.mark.parametrize("depth", DEPTHS)
@torch.no_grad()
def test_trace_is_what_the_cross_attention_of_that_block_gives(
    model: RoutedWanTransformer3DModel, count_calls: WatchCalls, depth: int
) -> None:
    outputs = [count_calls(block.attn2) for block in model.blocks]
    trace = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=depth).trace
    assert torch.equal(trace, outputs[depth - 1][0][1])


@torch.no_grad()
def test_asking_for_a_trace_leaves_the_sample_alone(model: RoutedWanTransformer3DModel) -> None:
    plain = model(noisy_latents(), TIMESTEPS, all_groups(model))
    traced = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=2)
    assert plain.trace is None
    assert torch.equal(plain.sample, traced.sample)


@pytest.mark.parametrize("depth", DEPTHS)
@torch.no_grad()
def test_stopping_at_the_trace_gives_the_same_and_runs_nothing_after(
    model: RoutedWanTransformer3DModel, count_calls: WatchCalls, depth: int
) -> None:
    full = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=depth)
    watched: dict[str, list[list[Any]]] = {
        part: [count_calls(getattr(block, part)) for block in model.blocks]
        for part in ("attn1", "attn2", "ffn")
    }
    head = count_calls(model.proj_out)
    stopped = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=depth, stop_at_trace=True)
    assert stopped.sample is None
    assert_close(stopped.trace, full.trace, rtol=0, atol=1e-6)
    runs = {part: [len(calls) for calls in per_block] for part, per_block in watched.items()}
    up_to_depth = [1] * depth + [0] * (4 - depth)
    assert runs == {
        "attn1": up_to_depth,
        "attn2": up_to_depth,
        "ffn": [1] * (depth - 1) + [0] * (5 - depth),
    }
    assert not head


@torch.no_grad()
def test_bf16_autocast_stays_close_and_stops_at_the_same_trace(model: RoutedWanTransformer3DModel) -> None:
    exact = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=3)
        stopped = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=3, stop_at_trace=True)
    assert rough.trace.dtype == torch.bfloat16, "autocast was not in force"
    assert (rough.sample - exact.sample).norm() < 0.05 * exact.sample.norm()
    assert torch.equal(rough.trace, stopped.trace)


def test_bf16_autocast_trains_with_checkpointing(model: RoutedWanTransformer3DModel) -> None:
    model.enable_gradient_checkpointing()
    model.zero_grad()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(noisy_latents(), TIMESTEPS, all_groups(model), trace_depth=1)
            loss = output.sample.float().square().mean() + output.trace.float().square().mean()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert sum(float(g.abs().sum()) for g in gradients) > 0
    finally:
        model.disable_gradient_checkpointing()
        model.zero_grad()


@torch.no_grad()
def test_bf16_weights_give_bf16_and_the_same_trace_when_stopped() -> None:
    torch.manual_seed(0)
    model = make_transformer().to(torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    groups = model.embed_tokens(
        torch.randn(2, 5, WIDTH, generator=generator).bfloat16(),
        torch.randn(2, CHANNELS, *GRID, generator=generator).bfloat16(),
        torch.randn(2, 7, TEXT_WIDTH, generator=generator).bfloat16(),
    )
    latents = noisy_latents().bfloat16()
    full = model(latents, TIMESTEPS, groups, trace_depth=2)
    stopped = model(latents, TIMESTEPS, groups, trace_depth=2, stop_at_trace=True)
    assert full.sample.dtype == torch.bfloat16
    assert torch.equal(full.trace, stopped.trace)
