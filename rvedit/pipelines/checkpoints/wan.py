"""Loading of Wan2.2-TI2V-5B or Wan2.1-T2V-14B as an `RVEDiTPipeline`.

New modules start at zero, or as copies of Wan's.

Formats: diffusers' folder; Wan's own folder or a single file, of which only the transformer is read: the
other modules then come from `base_wan`. The multimodal LLM, which Wan lacks, comes from `base_mllm`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rvedit.compat import convert_wan_vae_keys
from rvedit.io.errors import UserError
from rvedit.models.edit_tokens import EditTokenConnector
from rvedit.models.presets import WAN22_5B_CONNECTOR
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.checkpoints.files import (
    build,
    convert_key_errors,
    read_config,
    read_tokenizer,
    read_weights,
    weight_files,
)
from rvedit.pipelines.checkpoints.find import base_mllm, base_wan
from rvedit.pipelines.checkpoints.folder import load_module
from rvedit.pipelines.checkpoints.quantized_files import (
    read_transformer_file,
    to_diffusers_keys,
    transformer_weights,
)
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

SHIFT = 5.0
_HEAD_DIM = 128  # of all Wan models; the shapes of the weights do not determine it


def load_folder(folder: Path, dtype: torch.dtype, transformer: Path | None = None) -> RVEDiTPipeline:
    """Load a folder of diffusers' format, such as `Wan2.2-TI2V-5B-Diffusers`.

    `transformer` is a file with the transformer's weights instead of the folder's.
    """
    config = transformer_config(folder)
    state = transformer_weights(folder, transformer)
    return _build_pipeline(routed_transformer(config, state, dtype, folder / "transformer"), folder, dtype)


def transformer_config(folder: Path) -> dict[str, Any]:
    """Return the transformer's config of a diffusers folder. Raises UserError for unsupported Wan models."""
    config = read_config(folder / "transformer" / "config.json")
    if (folder / "transformer_2").is_dir():
        raise UserError(f"{folder}: a Wan model with two transformers: give Wan2.2-TI2V-5B or Wan2.1-T2V-14B")
    if config.get("in_channels") != config.get("out_channels") or config.get("image_dim"):
        raise UserError(
            f"{folder}: a Wan model with {config.get('in_channels')} input and {config.get('out_channels')} "
            "output channels: give Wan2.2-TI2V-5B or Wan2.1-T2V-14B"
        )
    return config


def is_original(folder: Path) -> bool:
    """Return whether a folder has Wan's own format: sharded weights and a config of `WanModel`."""
    path = folder / "config.json"
    return path.is_file() and read_config(path).get("_class_name") == "WanModel"


def load_original(folder: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """Load the transformer of Wan's own folder; its VAE and text encoder are pickles, which are not read."""
    return _load_transformer(read_weights(weight_files(folder)), dtype, folder)


def load_file(file: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """Load a single file of the transformer, with Wan's own key names or diffusers', also quantized."""
    return _load_transformer(read_transformer_file(file), dtype, file)


def _load_transformer(state: dict[str, Tensor], dtype: torch.dtype, path: Path) -> RVEDiTPipeline:
    transformer = original_transformer(state, dtype, path)
    base = base_wan(transformer.config.in_channels)
    check_channels(transformer.config.in_channels, base, path)
    return _build_pipeline(transformer, base, dtype)


def check_channels(channels: int, base: Path, path: Path) -> None:
    """Raise UserError if a transformer needs latents with other channels than those of a folder's VAE."""
    given = read_config(base / "vae" / "config.json").get("z_dim")
    if channels != given:
        raise UserError(
            f"{path}: needs latents with {channels} channels, but those of the VAE in {base} have {given}: "
            "set RVEDIT_WAN to the backbone that the weights were trained on"
        )


def original_transformer(
    state: dict[str, Tensor], dtype: torch.dtype, path: Path
) -> RoutedWanTransformer3DModel:
    """Return the transformer of a state with Wan's own key names."""
    state = to_diffusers_keys(state)
    return routed_transformer(_infer_config(state, path), state, dtype, path)


def original_config(shapes: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Return the config of a transformer with Wan's own key names, from tensors on the meta device."""
    return _infer_config(to_diffusers_keys(shapes), path)


def routed_transformer(
    config: Mapping[str, Any],
    state: dict[str, Tensor],
    dtype: torch.dtype,
    path: Path,
    source_embedder: Mapping[str, Tensor] | None = None,
    reference_embedder: Mapping[str, Tensor] | None = None,
    reference_first: bool = False,
) -> RoutedWanTransformer3DModel:
    """Return a routed transformer with Wan's weights.

    The visual embedder starts as a copy of Wan's patch embedding. With Kiwi-Edit's `source_embedder`, all
    blocks attend to X_e and timesteps are rounded; without, half of them do, and the source embedder starts
    at zero, so that the noisy tokens are Wan's. `reference_embedder` is that of reference images.
    """
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    for part in ("weight", "bias"):
        patch = state.get(f"patch_embedding.{part}")
        if patch is None:
            raise UserError(f"{path}: not the weights of a Wan transformer: patch_embedding is missing")
        source = source_embedder[part] if source_embedder else torch.zeros_like(patch)
        state |= {f"visual_embedder.{part}": patch.clone(), f"source_embedder.{part}": source}
        if reference_embedder:
            state[f"reference_embedder.{part}"] = reference_embedder[part]
    with convert_key_errors(path, "transformer"):
        config["routing_depth"] = config["num_layers"] // (1 if source_embedder else 2)
        config["rounds_timesteps"] = source_embedder is not None
        config["reads_reference_images"] = reference_embedder is not None
        config["reference_first"] = reference_first
        return build(RoutedWanTransformer3DModel, config, state, dtype)


def _infer_config(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return a transformer's config from the shapes of its weights."""
    try:
        width, channels, *patch = state["patch_embedding.weight"].shape
        volume = patch[0] * patch[1] * patch[2]
        return {
            "patch_size": tuple(patch),
            "num_attention_heads": width // _HEAD_DIM,
            "attention_head_dim": _HEAD_DIM,
            "in_channels": channels,
            "out_channels": state["proj_out.weight"].shape[0] // volume,
            "text_dim": state["condition_embedder.text_embedder.linear_1.weight"].shape[1],
            "freq_dim": state["condition_embedder.time_embedder.linear_1.weight"].shape[1],
            "ffn_dim": state["blocks.0.ffn.net.0.proj.weight"].shape[0],
            "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        }
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: not the weights of a Wan transformer: {error.args[0]} is missing") from None


# Regular expressions for the keys of Wan2.2's original VAE, and diffusers' names. In a residual block, 0 and
# 3 are norms, 2 and 6 convolutions.
_VAE_NAMES = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"coder\.conv1\.", "coder.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.(\d+)\.downsamples\.\d+\.(resample|time_conv)\.", r".down_blocks.\1.downsampler.\2."),
    (r"\.upsamples\.(\d+)\.upsamples\.\d+\.(resample|time_conv)\.", r".up_blocks.\1.upsampler.\2."),
    (r"\.downsamples\.(\d+)\.downsamples\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
    (r"\.upsamples\.(\d+)\.upsamples\.(\d+)\.", r".up_blocks.\1.resnets.\2."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
# Settings that have the same names in the original config.
_VAE_SETTINGS = (
    "z_dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample", "latents_mean", "latents_std"
)  # fmt: skip


def original_vae(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> AutoencoderKLWan:
    """Return Wan2.2's or Wan2.1's VAE, in fp32, from a state with its original key names."""
    with convert_key_errors(path, "vae"):
        if not any(".downsamples.0.downsamples." in key for key in state):
            settings = {**{name: config[name] for name in _VAE_SETTINGS}, "base_dim": config["dim"]}
            return build(AutoencoderKLWan, settings, convert_wan_vae_keys(state), torch.float32)
    renamed = {}
    for key, tensor in state.items():
        for old, new in _VAE_NAMES:
            key = re.sub(old, new, key)
        renamed[key] = tensor
    with convert_key_errors(path, "vae"):
        settings = {
            **{name: config[name] for name in _VAE_SETTINGS},
            "base_dim": config["dim"],
            "decoder_base_dim": renamed["decoder.conv_in.weight"].shape[0] // config["dim_mult"][-1],
            "is_residual": True,
            "patch_size": 2,
            "in_channels": renamed["encoder.conv_in.weight"].shape[1],
            "out_channels": renamed["decoder.conv_out.weight"].shape[0],
            "scale_factor_temporal": 2 ** sum(config["temperal_downsample"]),
            "scale_factor_spatial": 2 ** len(config["dim_mult"]),
        }
        return build(AutoencoderKLWan, settings, renamed, torch.float32)


def add_text_encoder(pipeline: RVEDiTPipeline) -> None:
    """Add the text encoder of `base_wan` to a pipeline without one, for blocks that attend to X_l."""
    if pipeline.text_encoder is None:
        base = base_wan(pipeline.transformer.config.in_channels)
        pipeline.register_modules(**_load_text_encoder(base, pipeline.connector.dtype))


def _load_text_encoder(wan: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Return the text encoder and its tokenizer from a diffusers folder of Wan."""
    return {
        "text_encoder": load_module("text_encoder", wan / "text_encoder", dtype),
        "tokenizer": read_tokenizer(wan / "tokenizer"),
    }


def load_vae_and_scheduler(wan: Path) -> dict[str, Any]:
    """Return the VAE, in fp32, from a diffusers folder of Wan, and the scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return {"vae": load_module("vae", wan / "vae", torch.float32), "scheduler": scheduler}


def load_mllm(dtype: torch.dtype) -> dict[str, Any]:
    """Return the multimodal LLM of `base_mllm` and its tokenizer."""
    folder = base_mllm()
    return {"mllm": load_module("mllm", folder, dtype), "mllm_tokenizer": read_tokenizer(folder)}


def _build_pipeline(
    transformer: RoutedWanTransformer3DModel, wan: Path, dtype: torch.dtype
) -> RVEDiTPipeline:
    """Return a pipeline with Wan's modules and a connector whose output is zero before training."""
    qwen = load_mllm(dtype)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    sizes = {"llm_width": qwen["mllm"].config.text_config.hidden_size, "width": width}
    torch.manual_seed(0)  # the queries are random
    connector = EditTokenConnector(**{**WAN22_5B_CONNECTOR, **sizes}).to(dtype).eval()
    modules = {**qwen, **_load_text_encoder(wan, dtype), **load_vae_and_scheduler(wan)}
    return RVEDiTPipeline(transformer=transformer, connector=connector, **modules)
