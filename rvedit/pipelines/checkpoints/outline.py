"""Pipelines without weights, on the meta device, for plans of memory and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rvedit import NANO
from rvedit.io.errors import UserError
from rvedit.models.model_spec import ModelSpec, model_spec, published_spec
from rvedit.models.presets import NUM_REFERENCE_QUERIES
from rvedit.pipelines.checkpoints import kiwi_edit, wan
from rvedit.pipelines.checkpoints.files import read_config, read_shapes, read_tokenizer, weight_files
from rvedit.pipelines.checkpoints.find import find_checkpoint, is_hub_id
from rvedit.pipelines.checkpoints.folder import MODULE_CLASSES, absent_parts, module_class, read_index
from rvedit.pipelines.checkpoints.quantized_files import transformer_shapes
from rvedit.pipelines.checkpoints.reading import Kind, checkpoint_kind
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

SUPPORTED = "plans support RVEDiT, Wan2.2-TI2V-5B, Wan2.1-T2V-14B and Kiwi-Edit"
_SIZES = {
    "wan2.2-5b": ("kiwi-edit-5b", "wan2.2-ti2v-5b"),
    "wan2.1-14b": ("kiwi-edit-14b", "wan2.1-t2v-14b"),
}
"""Presets, and the parts of hub ids that tell them."""


def meta_modules(
    spec: ModelSpec, routing_depth: int | None = None, only: str | None = None
) -> dict[str, Any]:
    """Return the modules of a preset on the meta device, or only the one named by `only`."""
    depth = {} if routing_depth is None else {"routing_depth": routing_depth}
    channels = spec.vae["z_dim"]
    statistics = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    tokenizer = read_tokenizer(NANO / "tokenizer") if spec.from_scratch else None
    configs = {
        "transformer": lambda: {**spec.transformer, **depth},
        "connector": lambda: spec.connector,
        "mllm": lambda: {"config": spec.mllm(tokenizer)},
        "text_encoder": lambda: {"config": spec.text_encoder(tokenizer)},
        "vae": lambda: {**statistics, **spec.vae},
    }
    with torch.device("meta"):
        return {
            name: MODULE_CLASSES[name](**config()) for name, config in configs.items() if only in (None, name)
        }


def outline(model: str) -> RVEDiTPipeline:
    """Return the pipeline of a checkpoint on the meta device, from its configs or those of the published 5B.

    Raises UserError if the size of the model is unknown.
    """
    settings: dict[str, Any] = {}
    if is_hub_id(model):
        name = model.rpartition("/")[2].lower()
        is_kiwi = "kiwi-edit-" in name
        size = next((size for size, names in _SIZES.items() if any(part in name for part in names)), None)
        if size is None:
            raise UserError(f"`model` {model}: its size is unknown: download it and give its folder")
        modules = _published(model_spec(size).transformer, is_kiwi, is_kiwi and "reference" in name)
    else:
        path = find_checkpoint(model)
        kind = checkpoint_kind(path)
        is_kiwi = kind.startswith("kiwi")
        if kind == "own":
            index = read_index(path)
            settings = {name: index[name] for name in RVEDiTPipeline.setting_names() if name in index}
            absent = absent_parts(index)
            with torch.device("meta"):
                modules = {n: None if n in absent else _module(n, path) for n in MODULE_CLASSES}
        else:
            has_references = is_kiwi and kiwi_edit.reads_reference_images(path)
            modules = _published(_transformer_config(path, kind), is_kiwi, has_references)
    settings |= kiwi_edit.SETTINGS if is_kiwi else {}
    if not modules["transformer"].reads_native_tokens:
        modules["text_encoder"] = None
    rest = {"tokenizer": None, "mllm_tokenizer": None, "scheduler": FlowMatchEulerDiscreteScheduler()}
    return RVEDiTPipeline(**modules, **rest, **settings)


def _transformer_config(path: Path, kind: Kind) -> Mapping[str, Any]:
    if kind == "kiwi file":
        return kiwi_edit.file_transformer_config(path)
    if kind in ("kiwi", "wan"):
        return wan.transformer_config(path)
    shapes = transformer_shapes(path) if kind == "wan file" else read_shapes(weight_files(path))
    return wan.original_config(shapes, path)


def _published(transformer: Mapping[str, Any], is_kiwi: bool, has_references: bool) -> dict[str, Any]:
    """Return the 5B's modules with this transformer. Raises UserError if it was trained on another VAE."""
    config = {key: value for key, value in transformer.items() if not key.startswith("_")}
    spec = published_spec(config["in_channels"])
    if spec is None:
        raise UserError(f"`plan`: latents of {config['in_channels']} channels: {SUPPORTED}")
    layers = config["num_layers"]
    config["routing_depth"] = layers if is_kiwi else layers // 2
    config["reads_reference_images"] = has_references
    width = config["num_attention_heads"] * config["attention_head_dim"]
    connector = {**spec.connector, "width": width}
    if has_references:
        connector["num_reference_queries"] = NUM_REFERENCE_QUERIES
    return meta_modules(replace(spec, transformer=config, connector=connector))


def _module(name: str, path: Path) -> Any:
    config = read_config(path / name / "config.json")
    cls = module_class(name, config)
    if hasattr(cls, "from_config"):
        return cls.from_config(config)
    return cls(cls.config_class.from_dict(config))
