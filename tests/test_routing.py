"""Eq. 3: which tokens each block reads, seen from inside the blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CHANNELS, TEXT_WIDTH, WIDTH, WatchCalls, make_transformer

from rvedit.models.routing import TokenGroups, route
from rvedit.models.transformer import RoutedWanTransformer3DModel

LAYERS = 4
ROUTING_DEPTHS = (0, 1, 2, 4)
LATENTS = torch.randn(2, CHANNELS, 2, 3, 4, generator=torch.Generator().manual_seed(3))
TIMESTEPS = torch.tensor([400.0, 700.0])


def routed(depth: int) -> tuple[RoutedWanTransformer3DModel, TokenGroups]:
    torch.manual_seed(0)
    model = make_transformer(num_layers=LAYERS, routing_depth=0)
    with torch.no_grad():
        groups = model.embed_tokens(
            torch.randn(2, 5, WIDTH), torch.randn(LATENTS.shape), torch.randn(2, 7, TEXT_WIDTH)
        )
    model.register_to_config(routing_depth=depth)
    return model, groups


@torch.no_grad()
def test_x_v_is_not_computed_if_no_block_reads_it() -> None:
    for depth in ROUTING_DEPTHS:
        model = make_transformer(num_layers=LAYERS, routing_depth=depth)
        groups = model.embed_tokens(torch.randn(2, 5, WIDTH), torch.randn(LATENTS.shape))
        assert (groups.visual_tokens is None) == (depth == LAYERS)
        assert groups.source_tokens is not None


@torch.no_grad()
def test_keys_and_values_are_kept_where_it_pays() -> None:
    for depth, num_edit_tokens, pays in ((0, 2, True), (LAYERS, 2, False), (LAYERS, 3, True)):
        model = make_transformer(num_layers=LAYERS, routing_depth=depth)
        text = torch.randn(2, 7, TEXT_WIDTH)
        groups = model.embed_tokens(torch.randn(2, num_edit_tokens, WIDTH), torch.randn(LATENTS.shape), text)
        assert groups.source_tokens.shape[1] == 24
        assert model.reuse_pays(groups) == pays


@torch.no_grad()
def block_outputs(
    model: RoutedWanTransformer3DModel, groups: TokenGroups, count_calls: WatchCalls
) -> list[Any]:
    calls = [count_calls(block) for block in model.blocks]
    model(LATENTS, TIMESTEPS, groups)
    return [call[0][1] for call in calls]


@pytest.mark.parametrize("depth", ROUTING_DEPTHS)
@torch.no_grad()
def test_each_block_reads_exactly_what_eq_3_shows_it(depth: int, count_calls: WatchCalls) -> None:
    model, groups = routed(depth)
    calls = [count_calls(block.attn2) for block in model.blocks]
    model(LATENTS, TIMESTEPS, groups)
    everything = torch.cat([groups.edit_tokens, groups.visual_tokens, groups.text_tokens], dim=1)
    assert everything.shape == (2, 5 + 24 + 7, WIDTH)
    for number, call in enumerate(calls, start=1):
        read = call[0][0][1].tokens  # the second argument of attn2: the block's context
        assert torch.equal(read, groups.edit_tokens if number <= depth else everything), f"block {number}"


@pytest.mark.parametrize("group", ["visual_tokens", "text_tokens"])
@pytest.mark.parametrize("depth", ROUTING_DEPTHS)
def test_x_v_and_x_l_act_on_blocks_after_the_routing_depth_alone(
    depth: int, group: str, count_calls: WatchCalls
) -> None:
    model, groups = routed(depth)
    before = block_outputs(model, groups, count_calls)
    perturbed = replace(groups, **{group: getattr(groups, group) + 1})
    after = block_outputs(model, perturbed, count_calls)
    same = [torch.equal(x, y) for x, y in zip(before, after, strict=True)]
    assert same == [True] * depth + [False] * (LAYERS - depth)


@pytest.mark.parametrize("depth", ROUTING_DEPTHS)
def test_x_e_acts_on_every_block(depth: int, count_calls: WatchCalls) -> None:
    model, groups = routed(depth)
    before = block_outputs(model, groups, count_calls)
    after = block_outputs(model, replace(groups, edit_tokens=groups.edit_tokens + 1), count_calls)
    assert not any(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("depth", [-1, LAYERS + 1])
def test_a_routing_depth_outside_the_blocks_is_refused(depth: int) -> None:
    model, groups = routed(depth)
    with pytest.raises(ValueError, match=f"routing_depth is {depth}.* 0 ... {LAYERS}"):
        model.contexts(groups)


def test_shallow_blocks_without_edit_tokens_are_refused() -> None:
    _, groups = routed(1)
    with pytest.raises(ValueError, match="edit_tokens"):
        route(replace(groups, edit_tokens=None), LAYERS, 1)


def test_no_tokens_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="edit_tokens"):
        route(TokenGroups(), LAYERS, 0)


def test_absent_groups_are_simply_not_read() -> None:
    _, groups = routed(0)
    contexts = route(replace(groups, visual_tokens=None), LAYERS, 1)
    assert torch.equal(contexts[3], torch.cat([groups.edit_tokens, groups.text_tokens], dim=1))
