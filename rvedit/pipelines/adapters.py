"""LoRA weights for Wan and VACE with the layer names of DiffSynth, ComfyUI or Wan's own code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rvedit.compat import convert_wan_keys
from rvedit.io.errors import UserError
from rvedit.pipelines.checkpoints.files import check_file, read_weights

_PREFIX = re.compile(r"^(pipe\.|model\.|diffusion_model\.|transformer\.|vace\.|dit\.)*")
_MATRIX = re.compile(r"\.lora_(A|down|B|up)(?:\.default)?\.weight$")


def add_lora_weights(transformer: Any, file: Path) -> None:
    """Add LoRA weights from a file to a Wan or VACE transformer, at a scale of 1.

    Raises UserError if the file is damaged, holds no LoRA weights, or holds some for layers that the
    transformer lacks: diffusers would ignore those.
    """
    check_file(file)
    matrices: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    unknown: list[str] = []
    for key, tensor in read_weights([file]).items():
        name = _PREFIX.sub("", key)
        match = _MATRIX.search(name)
        if match:
            half = "A" if match[1] in ("A", "down") else "B"
            matrices[f"{_diffusers_name(name[: match.start()])}.lora_{half}.weight"] = tensor
        elif name.endswith(".alpha"):
            scales[_diffusers_name(name.removesuffix(".alpha"))] = float(tensor)
        else:
            unknown.append(key)
    layers = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    unknown += [key for key in matrices if key.rsplit(".", 2)[0] not in layers]
    if unknown or not matrices:
        problem = f"the transformer has no layer for {unknown[0]}" if unknown else "holds no LoRA weights"
        raise UserError(f"{file}: {problem}: give LoRA weights for this model")
    try:
        for name, alpha in scales.items():
            up = f"{name}.lora_B.weight"
            matrices[up] = matrices[up] * (alpha / matrices[up].shape[1])
        transformer.load_lora_adapter(matrices, prefix=None)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{file}: the LoRA weights do not fit: {str(error).splitlines()[0]}") from None


def _diffusers_name(layer: str) -> str:
    (key,) = convert_wan_keys({f"{layer}.weight": None})
    return str(key).removesuffix(".weight")
