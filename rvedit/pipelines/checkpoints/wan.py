"""Wan2.2-TI2V-5B as a start: its own weights, and ours so initialised that they disturb nothing.

Layouts: the folder of diffusers; Wan's own folder, or a single file of it, which hold the transformer alone;
the rest then comes from `companion_wan`. The multimodal LLM, which Wan lacks, is `companion_mllm`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor

from rvedit.io.errors import UserError
from rvedit.models.edit_tokens import EditTokenConnector
from rvedit.models.presets import WAN22_5B_CONNECTOR
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.checkpoints.files import (
    build,
    fitting,
    read_config,
    read_shapes,
    read_tokenizer,
    read_weights,
    weight_files,
)
from rvedit.pipelines.checkpoints.find import companion_mllm, companion_wan
from rvedit.pipelines.checkpoints.folder import load_module
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

SHIFT = 5.0
_HEAD_DIM = 128  # of every Wan; the weights do not tell


def load_folder(folder: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """`Wan2.2-TI2V-5B-Diffusers`."""
    config = transformer_config(folder)
    state = read_weights(weight_files(folder / "transformer"))
    return _assemble(routed_transformer(config, state, dtype, folder / "transformer"), folder, dtype)


def transformer_config(folder: Path) -> dict[str, Any]:
    """Of a folder of diffusers. Raises UserError for a Wan that we do not start from."""
    config = read_config(folder / "transformer" / "config.json")
    if (folder / "transformer_2").is_dir():
        raise UserError(f"{folder}: a Wan of two transformers: RVEDiT starts from Wan2.2-TI2V-5B")
    if config.get("in_channels") != config.get("out_channels") or config.get("image_dim"):
        raise UserError(
            f"{folder}: a Wan whose transformer reads {config.get('in_channels')} channels and gives "
            f"{config.get('out_channels')}: RVEDiT starts from Wan2.2-TI2V-5B"
        )
    return config


def is_original(folder: Path) -> bool:
    """Whether a folder is Wan's own: sharded weights beside a config of `WanModel`."""
    path = folder / "config.json"
    return path.is_file() and read_config(path).get("_class_name") == "WanModel"


def load_original(folder: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """Wan's own folder, for its transformer: its VAE and text encoder are pickles, so diffusers' are read."""
    return _from_original(read_weights(weight_files(folder)), dtype, folder)


def load_file(file: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """A single file of the transformer, with Wan's own names or diffusers'."""
    return _from_original(read_weights([file]), dtype, file)


def _from_original(state: dict[str, Tensor], dtype: torch.dtype, where: Path) -> RVEDiTPipeline:
    transformer = original_transformer(state, dtype, where)
    base = companion_wan()
    channels = read_config(base / "vae" / "config.json").get("z_dim")
    if transformer.config.in_channels != channels:
        raise UserError(
            f"{where}: a transformer of latents with {transformer.config.in_channels} channels: those of the "
            f"VAE in {base} have {channels}; RVEDiT starts from Wan2.2-TI2V-5B"
        )
    return _assemble(transformer, base, dtype)


def original_transformer(
    state: dict[str, Tensor], dtype: torch.dtype, where: Path
) -> RoutedWanTransformer3DModel:
    """The transformer of a state with Wan's own names."""
    state = _with_our_names(state)
    return routed_transformer(_config_of(state, where), state, dtype, where)


def original_config(files: Iterable[Path], where: Path) -> dict[str, Any]:
    """The config of a transformer with Wan's own names, from the headers of its files."""
    return _config_of(_with_our_names(read_shapes(files)), where)


def _with_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if any("condition_embedder" in key for key in state):
        return state
    renamed: dict[str, Tensor] = convert_wan_transformer_to_diffusers(dict(state))
    return renamed


def routed_transformer(
    config: Mapping[str, Any],
    state: dict[str, Tensor],
    dtype: torch.dtype,
    where: Path,
    routing_depth: int | None = None,
    source_embedder: Mapping[str, Tensor] | None = None,
) -> RoutedWanTransformer3DModel:
    """Wan's transformer with our parts.

    A fresh model is sane: the source's tokens are zero, so that the noisy ones are Wan's, and X_v starts as
    Wan itself would patch the source. `routing_depth` is half of the blocks where it is not given.
    """
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    config["routing_depth"] = config["num_layers"] // 2 if routing_depth is None else routing_depth
    patch = {part: state.get(f"patch_embedding.{part}") for part in ("weight", "bias")}
    if None in patch.values():
        raise UserError(f"{where}: not the weights of a Wan transformer: patch_embedding is missing")
    for part, tensor in patch.items():
        assert tensor is not None
        state[f"visual_embedder.{part}"] = tensor.clone()
        given = source_embedder[part] if source_embedder else torch.zeros_like(tensor)
        state[f"source_embedder.{part}"] = given
    with fitting(where, "transformer"):
        transformer: RoutedWanTransformer3DModel = build(RoutedWanTransformer3DModel, config, state, dtype)
    return transformer


def _config_of(state: Mapping[str, Tensor], where: Path) -> dict[str, Any]:
    """A transformer's config, from the shapes of its weights."""
    try:
        width, channels, *patch = state["patch_embedding.weight"].shape
        volume = patch[0] * patch[1] * patch[2]
        time = state["condition_embedder.time_embedder.linear_1.weight"]
        return {
            "patch_size": tuple(patch),
            "num_attention_heads": width // _HEAD_DIM,
            "attention_head_dim": _HEAD_DIM,
            "in_channels": channels,
            "out_channels": state["proj_out.weight"].shape[0] // volume,
            "text_dim": state["condition_embedder.text_embedder.linear_1.weight"].shape[1],
            "freq_dim": time.shape[1],
            "ffn_dim": state["blocks.0.ffn.net.0.proj.weight"].shape[0],
            "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        }
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{where}: not the weights of a Wan transformer: {error.args[0]} is missing"
        ) from None


# The original VAE's names, and diffusers'. In a residual block, 0 and 3 are norms, 2 and 6 convolutions.
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


def original_vae(config: Mapping[str, Any], state: Mapping[str, Tensor], where: Path) -> AutoencoderKLWan:
    """Wan2.2's VAE from its own names; in fp32, as its latents are coarse otherwise."""
    renamed = {}
    for key, tensor in state.items():
        for old, new in _VAE_NAMES:
            key = re.sub(old, new, key)
        renamed[key] = tensor
    with fitting(where, "vae"):
        levels = len(config["dim_mult"])
        first = renamed["decoder.conv_in.weight"].shape[0]
        settings = {
            "base_dim": config["dim"],
            "decoder_base_dim": first // config["dim_mult"][-1],
            "z_dim": config["z_dim"],
            "dim_mult": list(config["dim_mult"]),
            "num_res_blocks": config["num_res_blocks"],
            "attn_scales": list(config["attn_scales"]),
            "temperal_downsample": list(config["temperal_downsample"]),
            "latents_mean": list(config["latents_mean"]),
            "latents_std": list(config["latents_std"]),
            "is_residual": True,
            "patch_size": 2,
            "in_channels": renamed["encoder.conv_in.weight"].shape[1],
            "out_channels": renamed["decoder.conv_out.weight"].shape[0],
            "scale_factor_temporal": 2 ** sum(config["temperal_downsample"]),
            "scale_factor_spatial": 2**levels,
        }
        vae: AutoencoderKLWan = build(AutoencoderKLWan, settings, renamed, torch.float32)
    return vae


def add_text_encoder(pipeline: RVEDiTPipeline) -> None:
    """Give a pipeline that has none the text encoder of `companion_wan`, for blocks that are to read X_l."""
    if pipeline.text_encoder is None:
        pipeline.register_modules(**text_parts(companion_wan(), pipeline.connector.dtype))


def text_parts(wan: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The text encoder and its tokenizer of a diffusers folder of Wan."""
    return {
        "text_encoder": load_module("text_encoder", wan / "text_encoder", dtype),
        "tokenizer": read_tokenizer(wan / "tokenizer"),
    }


def wan_parts(wan: Path, dtype: torch.dtype) -> dict[str, Any]:
    """All that a diffusers folder of Wan gives beside its transformer."""
    return {**text_parts(wan, dtype), **frame_parts(wan)}


def frame_parts(wan: Path) -> dict[str, Any]:
    """The VAE, in fp32, and the scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return {"vae": load_module("vae", wan / "vae", torch.float32), "scheduler": scheduler}


def language_parts(dtype: torch.dtype) -> dict[str, Any]:
    """The multimodal LLM of `companion_mllm` and its tokenizer."""
    folder = companion_mllm()
    mllm = load_module("mllm", folder, dtype)
    return {"mllm": mllm, "mllm_tokenizer": read_tokenizer(folder)}


def _assemble(transformer: RoutedWanTransformer3DModel, wan: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """A pipeline on Wan's parts, with a connector that gives zeros before it is trained."""
    language = language_parts(dtype)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    sizes = {"llm_width": language["mllm"].config.text_config.hidden_size, "width": width}
    torch.manual_seed(0)  # of the queries
    connector = EditTokenConnector(**{**WAN22_5B_CONNECTOR, **sizes}).to(dtype).eval()
    return RVEDiTPipeline(
        transformer=transformer,
        connector=connector,
        **language,
        **wan_parts(wan, dtype),
    )
