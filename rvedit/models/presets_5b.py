"""Published configs of the other modules of Wan2.2-TI2V-5B and Wan2.1-T2V-14B, for plans of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig, UMT5Config

# Wan-AI/Wan2.2-TI2V-5B-Diffusers, vae/, without latents_mean and latents_std.
WAN22_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}

# Wan-AI/Wan2.1-T2V-14B-Diffusers, vae/, likewise.
WAN21_VAE: dict[str, Any] = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}

MAX_TEXT_LENGTH = 512
"""Text tokens that Wan was trained with."""


def qwen25_vl_3b_config() -> Qwen2_5_VLConfig:
    """Return the config of Qwen/Qwen2.5-VL-3B-Instruct."""
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128_000,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24],
            },
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
    )  # fmt: skip


def umt5_xxl_config() -> UMT5Config:
    """Return the config of the encoder of google/umt5-xxl."""
    from transformers import UMT5Config

    return UMT5Config(
        vocab_size=256_384,
        d_model=4096,
        d_kv=64,
        d_ff=10_240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
