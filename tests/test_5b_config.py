"""The paper's size: the very parameters of Wan2.2-TI2V-5B, and two embedders of ours. None is allocated."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

from rvedit.models.presets import WAN22_5B_TRANSFORMER
from rvedit.models.transformer import RoutedWanTransformer3DModel

# The released config.json of Wan-AI/Wan2.2-TI2V-5B-Diffusers, transformer/.
RELEASED = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 14336,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
    "pos_embed_seq_len": None,
}


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def ours() -> RoutedWanTransformer3DModel:
    with torch.device("meta"):
        return RoutedWanTransformer3DModel(**WAN22_5B_TRANSFORMER)


@pytest.fixture(scope="module")
def theirs() -> WanTransformer3DModel:
    with torch.device("meta"):
        return WanTransformer3DModel(**RELEASED)


def test_parameters_are_wans_and_two_embedders(
    ours: RoutedWanTransformer3DModel, theirs: WanTransformer3DModel
) -> None:
    embedder = {"weight": (3072, 48, 1, 2, 2), "bias": (3072,)}
    added = {
        f"{name}.{part}": shape
        for name in ("source_embedder", "visual_embedder")
        for part, shape in embedder.items()
    }
    assert shapes(ours) == shapes(theirs) | added


def test_settings_without_parameters_are_the_released_ones(ours: RoutedWanTransformer3DModel) -> None:
    assert {name: ours.config[name] for name in RELEASED} == RELEASED
    assert ours.config.source_position is False, "a pretrained backbone is left as it is"
    assert 0 < ours.config.routing_depth < ours.config.num_layers


def test_wans_parameters_are_five_billion(theirs: WanTransformer3DModel) -> None:
    d, ffn, text, frequencies, patch = 3072, 14336, 4096, 256, 48 * 1 * 2 * 2

    def linear(inside: int, outside: int) -> int:
        return inside * outside + outside

    attention = 4 * linear(d, d) + 2 * d  # q, k, v, out; the two norms
    feed_forward = linear(d, ffn) + linear(ffn, d)
    block = 2 * attention + feed_forward + 2 * d + 6 * d  # norm2; the table of six modulations
    time = linear(frequencies, d) + linear(d, d) + linear(d, 6 * d)
    words = linear(text, d) + linear(d, d)
    total = linear(patch, d) + time + words + 30 * block + linear(d, patch) + 2 * d
    assert sum(parameter.numel() for parameter in theirs.parameters()) == total
    assert total == pytest.approx(5.0e9, rel=1e-3)
