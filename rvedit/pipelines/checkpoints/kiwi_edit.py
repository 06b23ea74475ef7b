"""Kiwi-Edit's weights in our pipeline: every block reads X_e alone (routing_depth = L), no code of theirs.

Published folders hold `transformer`, `vae`, `mllm_encoder`, `source_embedder` and `processor`. What the
trainer writes is one file: the transformer's weights, or adapters for them, adapters for the multimodal LLM,
queries and connector (spelt `connetor`); what it lacks comes from `companion_wan` and `companion_mllm`.
Embedders, queries and connector of reference pictures are left out: an instruction is all that we read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from rvedit.io.errors import UserError
from rvedit.models.edit_tokens import EditTokenConnector
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.checkpoints import wan
from rvedit.pipelines.checkpoints.files import (
    build,
    check_file,
    fitting,
    read_config,
    read_tokenizer,
    read_weights,
    weight_files,
)
from rvedit.pipelines.checkpoints.find import companion_wan
from rvedit.pipelines.checkpoints.folder import load_module
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

SIGHT = {"max_frames": 16, "min_pixels": 128 * 28**2, "max_pixels": 512 * 512, "coarse_grid": 56}
SETTINGS: dict[str, Any] = {"sigma_min": 0.003 / 1.002, "round_up": True, "max_area": 720 * 1280}
"""Of its pipeline: where its schedule ends, and the sizes that it edits in."""


def load_folder(folder: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """A published checkpoint, such as kiwi-edit-5b-instruct-only-diffusers."""
    config = read_config(folder / "transformer" / "config.json")
    source = read_weights(weight_files(folder / "source_embedder"))
    transformer = wan.routed_transformer(
        config,
        read_weights(weight_files(folder / "transformer")),
        dtype,
        folder / "transformer",
        _depth(config, folder),
        _source_embedder(source, folder / "source_embedder"),
    )
    encoder = folder / "mllm_encoder"
    qwen = next(
        (p for p in (encoder / "qwen_config.json", folder / "processor" / "qwen_config.json") if p.is_file()),
        None,
    )
    if qwen is None:
        raise UserError(f"{folder}: not a whole checkpoint: processor/qwen_config.json is missing")
    read_config(qwen)  # where it is damaged it says so
    seen = read_config(encoder / "config.json")
    return RVEDiTPipeline(
        transformer=transformer,
        connector=_connector(read_weights(weight_files(encoder)), dtype, encoder, seen),
        mllm=load_module("mllm", encoder, dtype, config=AutoConfig.from_pretrained(qwen)),
        text_encoder=None,
        vae=_vae(folder / "vae"),
        tokenizer=None,
        mllm_tokenizer=read_tokenizer(folder / "processor"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=wan.SHIFT),
        **SETTINGS,
    )


def is_trained_file(file: Path) -> bool:
    """Whether a file is what Kiwi-Edit's trainer writes, and not a transformer alone."""
    check_file(file)
    with safe_open(file, "pt") as content:
        return any("_queries.q" in key for key in content.keys())  # noqa: SIM118


def load_file(file: Path, dtype: torch.dtype) -> RVEDiTPipeline:
    """What the trainer writes, laid over Wan2.2-TI2V-5B and Qwen2.5-VL-3B."""
    state = {_plain_name(key): tensor for key, tensor in read_weights([file]).items()}
    parts: dict[str, dict[str, Tensor]] = {
        "mllm": {},
        "vae_condition": {},
        "ref_vae_condition": {},
        "dit": {},
    }
    for key, tensor in state.items():
        part, _, name = key.partition(".")
        parts[part if part in parts else "dit"][name if part in parts else key] = tensor
    base = companion_wan()
    qwen = wan.language_parts(dtype)
    language = {key: tensor for key, tensor in parts["mllm"].items() if key.startswith("model.")}
    _train_on(qwen["mllm"], language, file)
    ours = {
        key.replace("connetor.", "connector.").replace("_queries.q", "_queries"): tensor
        for key, tensor in parts["mllm"].items()
        if key not in language
    }
    return RVEDiTPipeline(
        transformer=_trained_transformer(parts["dit"], parts["vae_condition"], base, dtype, file),
        connector=_connector(ours, dtype, file, {}),
        **qwen,
        **wan.frame_parts(base),
        text_encoder=None,  # no block would read it
        tokenizer=None,
        **SETTINGS,
    )


def _trained_transformer(
    state: dict[str, Tensor], source: Mapping[str, Tensor], base: Path, dtype: torch.dtype, file: Path
) -> RoutedWanTransformer3DModel:
    """The base's transformer, with the file's weights in place of its own, and the file's adapters merged."""
    adapters = {key: tensor for key, tensor in state.items() if ".lora_" in key}
    own = convert_wan_transformer_to_diffusers({k: v for k, v in state.items() if k not in adapters})
    weights = {**read_weights(weight_files(base / "transformer")), **own}
    for name, delta in _deltas(adapters, file).items():
        (key,) = convert_wan_transformer_to_diffusers({f"{name}.weight": delta})
        if key not in weights:
            raise UserError(f"{file}: an adapter of {name}, which the transformer does not have")
        weights[key] = weights[key].float() + delta
    config = read_config(base / "transformer" / "config.json")
    embedder = _source_embedder(source, file)
    return wan.routed_transformer(config, weights, dtype, file, _depth(config, base), embedder)


def _depth(config: Mapping[str, Any], folder: Path) -> int:
    """L: as deep as all blocks read X_e alone."""
    with fitting(folder / "transformer", "transformer"):
        return int(config["num_layers"])


def _train_on(mllm: Any, state: Mapping[str, Tensor], file: Path) -> None:
    """Put the trained weights of a multimodal LLM in place, and add its adapters to the others."""
    own = {_qwen_name(name): parameter for name, parameter in mllm.named_parameters()}
    whole = {key: tensor for key, tensor in state.items() if ".lora_" not in key}
    deltas = {f"{name}.weight": delta for name, delta in _deltas(state, file).items()}
    for key, tensor in (*whole.items(), *deltas.items()):
        parameter = own.get(_qwen_name(key))
        if parameter is None or parameter.shape != tensor.shape:
            raise UserError(f"{file}: holds {key}, which the multimodal LLM does not have")
        before = parameter.data.float() if key in deltas else 0.0
        parameter.data = (before + tensor).to(parameter.dtype)


def _qwen_name(name: str) -> str:
    """A weight's name whatever wraps it: peft, the trainer, and transformers as it has changed over time."""
    for wrapper in ("base_model.", "base_layer.", "language_model.", "model."):
        name = name.replace(wrapper, "")
    return name


def _deltas(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """By layer: B A, which Kiwi-Edit's own tools add at a strength of 1."""
    deltas = {}
    for key, up in state.items():
        if ".lora_B." not in key:
            continue
        down = state.get(key.replace(".lora_B.", ".lora_A."))
        if down is None:
            raise UserError(f"{file}: half an adapter: {key} has no lora_A")
        deltas[key.partition(".lora_B.")[0]] = up.float() @ down.float()
    return deltas


def _plain_name(key: str) -> str:
    """Without the trainer's prefixes."""
    return key.removeprefix("pipe.").removeprefix("dit.")


def _connector(
    state: Mapping[str, Tensor], dtype: torch.dtype, where: Path, seen: Mapping[str, Any]
) -> EditTokenConnector:
    """Queries for clips and images, and the connector; those for reference pictures are left out."""
    ours = {
        key.replace("video_queries", "queries"): tensor
        for key, tensor in state.items()
        if not key.startswith("ref_")
    }
    with fitting(where, "connector"):
        config = {
            "num_queries": ours["queries"].shape[0],
            "num_image_queries": ours["image_queries"].shape[0],
            "llm_width": ours["connector.0.weight"].shape[1],
            "width": ours["connector.2.weight"].shape[0],
            **SIGHT,
            "max_frames": seen.get("max_frames", SIGHT["max_frames"]),
            "max_pixels": seen.get("max_pixels_per_frame", SIGHT["max_pixels"]),
        }
        connector: EditTokenConnector = build(EditTokenConnector, config, ours, dtype)
    return connector


def _source_embedder(state: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    found = {key.rpartition(".")[2]: tensor for key, tensor in state.items()}
    if set(found) != {"weight", "bias"} or len(state) != 2:
        keys = ", ".join(state) or "none"
        raise UserError(f"{where}: the checkpoint's keys do not fit source_embedder: {keys}")
    return found


def _vae(folder: Path) -> AutoencoderKLWan:
    """In Wan's own names, as published, or in diffusers'."""
    config = read_config(folder / "config.json")
    if "base_dim" in config:
        vae: AutoencoderKLWan = load_module("vae", folder, torch.float32)
        return vae
    return wan.original_vae(config, read_weights(weight_files(folder)), folder)
