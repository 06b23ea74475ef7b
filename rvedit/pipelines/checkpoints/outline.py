"""A checkpoint without its weights: the pipeline that it would be, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel

from rvedit.io.errors import UserError
from rvedit.models.edit_tokens import EditTokenConnector
from rvedit.models.presets import WAN22_5B_CONNECTOR, WAN22_5B_TRANSFORMER
from rvedit.models.presets_5b import WAN22_VAE, qwen25_vl_3b_config, umt5_xxl_config
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.checkpoints import kiwi_edit, wan
from rvedit.pipelines.checkpoints.files import read_config, weight_files
from rvedit.pipelines.checkpoints.find import find_checkpoint, is_hub_id
from rvedit.pipelines.checkpoints.folder import MODULE_CLASSES, absent_parts
from rvedit.pipelines.checkpoints.reading import Kind, checkpoint_kind
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline, from_version_0_1

PLANNED = "plans are made for RVEDiT, Wan2.2-TI2V-5B and Kiwi-Edit"


def outline(model: str) -> RVEDiTPipeline:
    """The pipeline of a checkpoint, without weights: by its configs, or as the 5B is published."""
    settings: dict[str, Any] = {}
    if is_hub_id(model):
        name = model.rpartition("/")[2].lower()
        is_kiwi = "kiwi-edit-5b" in name
        if not is_kiwi and "wan2.2-ti2v-5b" not in name:
            raise UserError(f"--plan {model}: its size is not known: download it and name its folder")
        modules = _published(WAN22_5B_TRANSFORMER, is_kiwi)
        settings = kiwi_edit.SETTINGS if is_kiwi else {}
    else:
        path = find_checkpoint(model)
        kind = checkpoint_kind(path)
        if kind == "own":
            index = from_version_0_1(read_config(path / "model_index.json"))
            settings = {name: index[name] for name in RVEDiTPipeline.setting_names() if name in index}
            modules = _own(path, index)
        else:
            is_kiwi = kind.startswith("kiwi")
            modules = _published(_transformer_config(path, kind), is_kiwi)
            settings = kiwi_edit.SETTINGS if is_kiwi else {}
    if not modules["transformer"].reads_native_tokens:
        modules["text_encoder"] = None
    nothing = {"tokenizer": None, "mllm_tokenizer": None, "scheduler": FlowMatchEulerDiscreteScheduler()}
    return RVEDiTPipeline(**modules, **nothing, **settings)


def _transformer_config(path: Path, kind: Kind) -> Mapping[str, Any]:
    if kind == "kiwi file":
        return WAN22_5B_TRANSFORMER  # over which it is laid
    if kind in ("kiwi", "wan"):
        return wan.transformer_config(path)
    return wan.original_config([path] if kind == "wan file" else weight_files(path), path)


def _own(path: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """The modules of one of our folders, on the meta device."""
    absent = absent_parts(index)
    with torch.device("meta"):
        return {name: None if name in absent else _module(name, path) for name in MODULE_CLASSES}


def _published(transformer: Mapping[str, Any], is_kiwi: bool) -> dict[str, Any]:
    """A transformer and what it is published with, on the meta device. Raises UserError for another Wan's."""
    config = {key: value for key, value in transformer.items() if not key.startswith("_")}
    channels, layers = WAN22_VAE["z_dim"], config["num_layers"]
    if config["in_channels"] != channels:
        raise UserError(f"--plan: latents of {config['in_channels']} channels, not {channels}: {PLANNED}")
    config["routing_depth"] = layers if is_kiwi else layers // 2
    width = config["num_attention_heads"] * config["attention_head_dim"]
    statistics = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    with torch.device("meta"):
        return {
            "transformer": RoutedWanTransformer3DModel(**config),
            "connector": EditTokenConnector(**{**WAN22_5B_CONNECTOR, "width": width}),
            "mllm": Qwen2_5_VLForConditionalGeneration(qwen25_vl_3b_config()),
            "text_encoder": UMT5EncoderModel(umt5_xxl_config()),
            "vae": AutoencoderKLWan(**{**WAN22_VAE, **statistics}),
        }


def _module(name: str, path: Path) -> Any:
    config = read_config(path / name / "config.json")
    cls = MODULE_CLASSES[name]
    if hasattr(cls, "from_config"):
        return cls.from_config(config)
    return cls(cls.config_class.from_dict(config))
