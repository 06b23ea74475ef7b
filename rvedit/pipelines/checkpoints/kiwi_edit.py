"""Loading of Kiwi-Edit's weights as an `RVEDiTPipeline` with routing_depth = L: every block attends to X_e.

Published folders hold `transformer`, `vae`, `mllm_encoder`, `source_embedder` and `processor`. The trainer
writes one file: weights or LoRA weights of the transformer, LoRA weights of the multimodal LLM, queries and
connector (spelled `connetor`); the other modules come from `base_wan` and `base_mllm`. In its first stage, on
images, it writes no source embedder and no queries for clips. A checkpoint trained with reference images has
an embedder, queries and a connector for them as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from rvedit.compat import convert_wan_keys
from rvedit.io.errors import UserError
from rvedit.models.edit_tokens import EditTokenConnector
from rvedit.models.model_spec import published_spec
from rvedit.models.presets import WAN21_14B_CONNECTOR, WAN22_5B_CONNECTOR
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.checkpoints import wan
from rvedit.pipelines.checkpoints.files import (
    build,
    check_file,
    convert_key_errors,
    read_config,
    read_shapes,
    read_tokenizer,
    read_weights,
    weight_files,
)
from rvedit.pipelines.checkpoints.find import base_wan
from rvedit.pipelines.checkpoints.folder import load_module
from rvedit.pipelines.checkpoints.quantized_files import transformer_weights
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

FRAME_SETTINGS = {"max_frames": 16, "min_pixels": 128 * 28**2, "max_pixels": 512 * 512, "coarse_grid": 56}
"""The connector's settings for the frames of the multimodal LLM."""
SETTINGS: dict[str, Any] = {"round_up": True, "max_area": 720 * 1280}
"""The pipeline's settings."""
PUBLISHED_SIGMA_MIN = 0.003 / 1.002
"""Kiwi-Edit's own pipeline for published folders ends here; its pipeline for files of the trainer, at 0."""


def load_folder(folder: Path, dtype: torch.dtype, transformer: Path | None = None) -> RVEDiTPipeline:
    """Load a published checkpoint, such as kiwi-edit-5b-instruct-only-diffusers.

    `transformer` is a file with the transformer's weights instead of the folder's.
    """
    config = read_config(folder / "transformer" / "config.json")
    source, reference = folder / "source_embedder", folder / "ref_embedder"
    has_references = reads_reference_images(folder)
    routed = wan.routed_transformer(
        config,
        transformer_weights(folder, transformer),
        dtype,
        transformer or folder / "transformer",
        _embedder(read_weights(weight_files(source)), source),
        _embedder(read_weights(weight_files(reference)), reference) if has_references else None,
        has_references and read_config(reference / "config.json").get("ref_pad_first", False),
    )
    encoder = folder / "mllm_encoder"
    qwen = encoder / "qwen_config.json"
    if not qwen.is_file():
        qwen = folder / "processor" / "qwen_config.json"
    read_config(qwen)  # raises a clear error if the file is missing or damaged
    encoder_config = read_config(encoder / "config.json")
    return RVEDiTPipeline(
        transformer=routed,
        connector=_connector(
            read_weights(weight_files(encoder)), dtype, encoder, encoder_config, has_references
        ),
        mllm=load_module("mllm", encoder, dtype, config=AutoConfig.from_pretrained(qwen)),
        text_encoder=None,
        vae=_vae(folder / "vae"),
        tokenizer=None,
        mllm_tokenizer=read_tokenizer(folder / "processor"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=wan.SHIFT),
        sigma_min=PUBLISHED_SIGMA_MIN,
        **SETTINGS,
    )


def reads_reference_images(path: Path) -> bool:
    """Return whether a published folder, or a file of the trainer, was trained with reference images."""
    if path.is_dir():
        return any((path / "ref_embedder").glob("diffusion_pytorch_model*.safetensors*"))
    with safe_open(path, "pt") as content:
        return any("ref_vae_condition." in key for key in content.keys())  # noqa: SIM118


def is_trained_file(file: Path) -> bool:
    """Return whether Kiwi-Edit's trainer wrote a file; otherwise it holds a transformer only."""
    check_file(file)
    with safe_open(file, "pt") as content:
        return any("_queries.q" in key for key in content.keys())  # noqa: SIM118


def file_transformer_config(file: Path) -> Mapping[str, Any]:
    """Return the config of the published backbone that a file of the trainer belongs to."""
    parts = _parts(read_shapes([file]))
    spec = published_spec(_latent_channels(parts))
    assert spec is not None
    return spec.transformer


def _parts(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return a file's tensors by module: the multimodal LLM, the embedders, and the transformer."""
    names = ("mllm", "vae_condition", "ref_vae_condition", "dit")
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, tensor in state.items():
        key = key.removeprefix("pipe.").removeprefix("dit.")
        part, _, name = key.partition(".")
        parts[part if part in parts else "dit"][name if part in parts else key] = tensor
    return parts


def load_file(file: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """Load a file of the trainer, combined with the backbone and the multimodal LLM."""
    parts = _parts(read_weights([file]))
    base = base_wan(_latent_channels(parts))
    qwen = wan.load_mllm(dtype)
    mllm_state = {key: tensor for key, tensor in parts["mllm"].items() if key.startswith("model.")}
    _update_mllm(qwen["mllm"], mllm_state, file)
    connector_state = {
        key.replace("connetor.", "connector.").replace("_queries.q", "_queries"): tensor
        for key, tensor in parts["mllm"].items()
        if key not in mllm_state
    }
    if "video_queries" not in connector_state:
        warnings.warn(f"{file}: has no queries for clips: edit images, or train it further", stacklevel=2)
        with convert_key_errors(file, "connector"):
            llm_width = connector_state["connector.0.weight"].shape[1]
        connector_state["video_queries"] = _untrained_queries(llm_width)
    reference = parts["ref_vae_condition"]
    return RVEDiTPipeline(
        transformer=_trained_transformer(parts["dit"], parts["vae_condition"], reference, base, dtype, file),
        connector=_connector(connector_state, dtype, file, {}, bool(reference)),
        **qwen,
        **wan.load_vae_and_scheduler(base),
        text_encoder=None,  # no block attends to X_l
        tokenizer=None,
        **SETTINGS,
    )


def _latent_channels(parts: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Return the channels of the latents; without a patch embedding, the connector's width tells them."""
    for part in ("vae_condition", "dit"):
        if (weight := parts[part].get("patch_embedding.weight")) is not None:
            return int(weight.shape[1])
    widths = {len(tensor) for key, tensor in parts["mllm"].items() if key.endswith(".2.bias")}
    return 16 if WAN21_14B_CONNECTOR["width"] in widths else 48


def _untrained_queries(llm_width: int) -> Tensor:
    """Return random queries for clips, always the same."""
    generator = torch.Generator().manual_seed(0)
    return 0.02 * torch.randn(WAN22_5B_CONNECTOR["num_queries"], llm_width, generator=generator)


def _trained_transformer(
    state: dict[str, Tensor],
    source: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    base: Path,
    dtype: torch.dtype,
    file: Path,
) -> RoutedWanTransformer3DModel:
    """Return the base's transformer, updated with the file's weights and merged LoRA weights."""
    lora = {key: tensor for key, tensor in state.items() if ".lora_" in key}
    trained = convert_wan_keys({k: v for k, v in state.items() if k not in lora})
    weights = {**read_weights(weight_files(base / "transformer")), **trained}
    for name, delta in _lora_deltas(lora, file).items():
        (key,) = convert_wan_keys({f"{name}.weight": delta})
        if key not in weights:
            raise UserError(f"{file}: LoRA weights of {name}, which the transformer does not have")
        weights[key] = weights[key].float() + delta
    config = read_config(base / "transformer" / "config.json")
    if not source:
        source = {part: torch.zeros_like(weights[f"patch_embedding.{part}"]) for part in ("weight", "bias")}
    # The trainer does not record the order of tokens; by default the reference image is last.
    embedder = _embedder(reference, file) if reference else None
    return wan.routed_transformer(config, weights, dtype, file, _embedder(source, file), embedder)


def _update_mllm(mllm: Any, state: Mapping[str, Tensor], file: Path) -> None:
    """Replace weights of a multimodal LLM by those of `state`, and merge its LoRA weights."""
    parameters = {_qwen_name(name): parameter for name, parameter in mllm.named_parameters()}
    replaced = {key: tensor for key, tensor in state.items() if ".lora_" not in key}
    deltas = {f"{name}.weight": delta for name, delta in _lora_deltas(state, file).items()}
    for key, tensor in (*replaced.items(), *deltas.items()):
        parameter = parameters.get(_qwen_name(key))
        if parameter is None or parameter.shape != tensor.shape:
            raise UserError(f"{file}: holds {key}, which the multimodal LLM does not have")
        previous = parameter.data.float() if key in deltas else 0.0
        parameter.data = (previous + tensor).to(parameter.dtype)


def _qwen_name(name: str) -> str:
    """Return a weight's name without the prefixes of peft, the trainer and versions of transformers."""
    for wrapper in ("base_model.", "base_layer.", "language_model.", "model."):
        name = name.replace(wrapper, "")
    return name


def _lora_deltas(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return, by layer, the product B A of LoRA weights; Kiwi-Edit adds it at a scale of 1."""
    deltas = {}
    for key, up in state.items():
        if ".lora_B." not in key:
            continue
        down = state.get(key.replace(".lora_B.", ".lora_A."))
        if down is None:
            raise UserError(f"{file}: incomplete LoRA weights: {key} has no lora_A")
        deltas[key.partition(".lora_B.")[0]] = up.float() @ down.float()
    return deltas


def _connector(
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    path: Path,
    encoder_config: Mapping[str, Any],
    has_references: bool,
) -> EditTokenConnector:
    """Return the connector with the queries for clips and images and, if it was trained, for references."""
    names = {"video_queries": "queries", "ref_queries": "reference_queries"}
    weights = {}
    for key, tensor in state.items():
        if has_references or not key.startswith("ref_"):
            weights[names.get(key, key.replace("ref_connector.", "reference_connector."))] = tensor
    with convert_key_errors(path, "connector"):
        config = {
            "num_queries": weights["queries"].shape[0],
            "num_image_queries": weights["image_queries"].shape[0],
            "num_reference_queries": weights["reference_queries"].shape[0] if has_references else 0,
            "max_reference_tokens": encoder_config.get("max_object_token", 768),
            "llm_width": weights["connector.0.weight"].shape[1],
            "width": weights["connector.2.weight"].shape[0],
            **FRAME_SETTINGS,
            "max_frames": encoder_config.get("max_frames", FRAME_SETTINGS["max_frames"]),
            "max_pixels": encoder_config.get("max_pixels_per_frame", FRAME_SETTINGS["max_pixels"]),
        }
        return build(EditTokenConnector, config, weights, dtype)


def _embedder(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weight and bias of the embedder of the source, or of reference images."""
    weights = {key.rpartition(".")[2]: tensor for key, tensor in state.items()}
    if set(weights) != {"weight", "bias"} or len(state) != 2:
        keys = ", ".join(state) or "none"
        raise UserError(f"{path}: the checkpoint's keys do not fit an embedder: {keys}")
    return weights


def _vae(folder: Path) -> AutoencoderKLWan:
    """Load the VAE, in diffusers' format or in Wan's own, as published."""
    config = read_config(folder / "config.json")
    if "base_dim" in config:
        return load_module("vae", folder, torch.float32)
    return wan.original_vae(config, read_weights(weight_files(folder)), folder)
