"""LoRA weights for the transformer, in the layouts of diffusers, peft, DiffSynth, ComfyUI, kohya and Wan."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch import Tensor

from rvedit.compat import convert_wan_keys
from rvedit.io.errors import UserError
from rvedit.models.quantized_linear import is_quantized, shape_of
from rvedit.pipelines.checkpoints.files import check_file, read_config, read_weights
from rvedit.pipelines.lora_files import Lora

_PREFIX = re.compile(r"^((base_model|pipe|model|diffusion_model|transformer|vace|dit)\.)*")
_KEY = re.compile(r"(.+?)\.(?:lora[._](A|down|B|up)(?:\.\w+)?\.weight|(alpha|diff|diff_b))")
_PARTS = {"A": "lora_A", "down": "lora_A", "B": "lora_B", "up": "lora_B"}
_KOHYA_PREFIX = re.compile(r"^lora_(unet|transformer)_")
_UNDERSCORED = (
    "vace_blocks", "self_attn", "cross_attn", "k_img", "v_img", "img_emb", "before_proj", "after_proj",
    "time_embedding", "time_projection", "text_embedding", "patch_embedding",
)  # fmt: skip
"""Words of Wan's layer names that have an underscore of their own; kohya writes one for each dot."""


def add_loras(transformer: Any, loras: Sequence[Lora]) -> None:
    """Add adapters `lora_1`, `lora_2` and so on to a transformer, and activate all that it has.

    Raises UserError as `add_lora_weights` does.
    """
    weights = dict.fromkeys(getattr(transformer, "peft_config", {}), 1.0)
    for number, (file, weight) in enumerate(loras, start=1):
        if add_lora_weights(transformer, file, weight, name := f"lora_{number}"):
            weights[name] = weight
    if weights:
        transformer.set_adapters(list(weights), list(weights.values()))


def add_lora_weights(transformer: Any, file: Path, weight: float = 1.0, name: str | None = None) -> bool:
    """Add the LoRA matrices of a file as an adapter, at a scale of 1; return whether it holds any.

    Differences of whole weights and biases, which some files have beside the matrices, are added to the
    parameters, times `weight`. Raises UserError if the file is damaged, holds no LoRA weights, or holds some
    that do not fit the transformer: diffusers would ignore those.
    """
    check_file(file)
    parameters = {key.replace(".base_layer", ""): p for key, p in transformer.named_parameters()}
    parts: dict[tuple[str, str], tuple[str, Tensor]] = {}
    for key, tensor in read_weights([file]).items():
        match = _KEY.fullmatch(_PREFIX.sub("", key))
        layer = _diffusers_name(match[1], parameters) if match else ""
        part = (_PARTS.get(match[2]) or match[3]) if match else ""
        if not _fits(part, tensor, parameters.get(_parameter(layer, part, parameters))):
            raise _misfit(file, key)
        parts[layer, part] = key, tensor
    if not parts:
        raise UserError(f"{file}: holds no LoRA weights: give LoRA weights for this model")
    config = _read_config(file)
    matrices = {}
    for (layer, part), (key, tensor) in parts.items():
        if part in ("diff", "diff_b"):
            parameter = parameters[_parameter(layer, part, parameters)]
            parameter.data += weight * tensor.to(parameter)
            continue
        if not {(layer, "lora_A"), (layer, "lora_B")} <= parts.keys():
            raise _misfit(file, key)
        if part == "lora_B":
            alpha = parts.get((layer, "alpha"))
            rank = parts[layer, "lora_A"][1].shape[0]
            scale = float(alpha[1]) / rank if alpha else _scale(config, key, rank)
            matrices[f"{layer}.lora_B.weight"] = tensor * scale
        elif part == "lora_A":
            matrices[f"{layer}.lora_A.weight"] = tensor
    if matrices:
        transformer.load_lora_adapter(matrices, prefix=None, adapter_name=name)
    return bool(matrices)


def _misfit(file: Path, key: str) -> UserError:
    return UserError(f"{file}: {key} does not fit the transformer: give LoRA weights for this model")


def _parameter(layer: str, part: str, parameters: Mapping[str, Tensor]) -> str:
    """Return the name of the parameter that a part of a LoRA changes; some are no layer's weight."""
    if part == "diff_b":
        return f"{layer}.bias"
    return layer if layer in parameters else f"{layer}.weight"


def _fits(part: str, tensor: Tensor, parameter: Tensor | None) -> bool:
    if parameter is None:
        return False
    shape = shape_of(parameter)
    if part == "lora_A":
        return tensor.shape[1:] == shape[1:] and len(shape) > 1
    if part == "lora_B":
        return tensor.dim() == len(shape) and tensor.shape[0] == shape[0]
    # A difference of weights cannot be added to quantized weights.
    return part == "alpha" or (tensor.shape == shape and not is_quantized(parameter))


def _diffusers_name(layer: str, parameters: Mapping[str, Tensor]) -> str:
    """Return diffusers' name of a layer that may have Wan's name, with dots or with kohya's underscores."""
    flat, is_flat = _KOHYA_PREFIX.subn("", layer)
    if is_flat:
        for name in parameters:  # kohya's names of diffusers' layers
            if name.endswith(".weight") and flat == name.removesuffix(".weight").replace(".", "_"):
                return name.removesuffix(".weight")
        layer = flat.replace("_", ".")
        for word in _UNDERSCORED:
            layer = layer.replace(word.replace("_", "."), word)
    (key,) = convert_wan_keys({f"{layer}.weight": None})
    return str(key).removesuffix(".weight")


def _read_config(file: Path) -> dict[str, Any]:
    """Return peft's config of a LoRA: in the file, as diffusers saves it, or in adapter_config.json."""
    with safe_open(file, "pt") as content:
        saved = (content.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    if saved is not None:
        return {key.removeprefix("transformer."): value for key, value in json.loads(saved).items()}
    beside = file.with_name("adapter_config.json")
    return read_config(beside) if file.name == "adapter_model.safetensors" and beside.is_file() else {}


def _scale(config: Mapping[str, Any], key: str, rank: int) -> float:
    """Return the factor of the product of two matrices: peft's alpha / rank, or 1 without a config."""
    layer = key.partition(".lora_")[0]
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, layer), config.get("lora_alpha"))
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
