"""Configs of nano, and of the 5B's transformer and connector; its other modules are in `presets_5b`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig, UMT5Config

NANO_LATENT_CHANNELS = 24
NANO_VAE: dict[str, Any] = {
    "base_dim": 16,
    "decoder_base_dim": 24,
    "z_dim": NANO_LATENT_CHANNELS,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "latents_mean": [0.0] * NANO_LATENT_CHANNELS,
    "latents_std": [1.0] * NANO_LATENT_CHANNELS,
}

NANO_WIDTH = 256
NANO_LLM_WIDTH = 192
NANO_TEXT_WIDTH = 192

NANO_TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "in_channels": NANO_LATENT_CHANNELS,
    "out_channels": NANO_LATENT_CHANNELS,
    "text_dim": NANO_TEXT_WIDTH,
    "freq_dim": 256,
    "ffn_dim": 1024,
    "num_layers": 8,
    "rope_max_seq_len": 256,
    "routing_depth": 4,
    "source_position": True,
}

NANO_CONNECTOR: dict[str, Any] = {
    "num_queries": 16,
    "llm_width": NANO_LLM_WIDTH,
    "width": NANO_WIDTH,
    "max_frames": 2,
    "max_pixels": 64 * 64,
    "system_prompt": "edit",
    "zero_init": False,
}

NANO_PIPELINE: dict[str, Any] = {
    "max_text_length": 32,
    "window_frames": 21,
    "window_stride": 16,
    "min_area": 112 * 128,
    "max_area": 136 * 128,
    "default_steps": 2,
    "default_guidance": 1.0,
}

WAN22_5B_TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 14336,
    "num_layers": 30,
    "routing_depth": 15,
    "source_position": False,
}

# Wan-AI/Wan2.1-T2V-14B, the other backbone of Kiwi-Edit.
WAN21_14B_TRANSFORMER: dict[str, Any] = {
    **WAN22_5B_TRANSFORMER,
    "num_attention_heads": 40,
    "in_channels": 16,
    "out_channels": 16,
    "ffn_dim": 13824,
    "num_layers": 40,
    "routing_depth": 20,
}

WAN22_5B_CONNECTOR: dict[str, Any] = {
    "num_queries": 512,
    "llm_width": 2048,
    "width": 3072,
    "max_frames": 16,
    "max_pixels": 262_144,
    "zero_init": True,
}

WAN21_14B_CONNECTOR: dict[str, Any] = {**WAN22_5B_CONNECTOR, "width": 5120}

NUM_REFERENCE_QUERIES = 768
"""Queries for prompts with a reference image, in Kiwi-Edit's checkpoints."""


def nano_mllm_config(tokenizer: Any) -> Qwen2_5_VLConfig:
    """Return the config of a Qwen2.5-VL of about 2.6 M parameters with nano's vocabulary."""
    from transformers import Qwen2_5_VLConfig

    token_id = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": NANO_LLM_WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 64,
            "out_hidden_size": NANO_LLM_WIDTH,
            "fullatt_block_indexes": [0, 1],
            "tokens_per_second": 1,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def nano_text_config(tokenizer: Any) -> UMT5Config:
    """Return the config of a umT5 encoder of less than 1 M parameters."""
    from transformers import UMT5Config

    return UMT5Config(
        vocab_size=len(tokenizer),
        d_model=NANO_TEXT_WIDTH,
        d_kv=32,
        d_ff=512,
        num_layers=2,
        num_heads=6,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        is_encoder_decoder=False,
        use_cache=False,
    )
