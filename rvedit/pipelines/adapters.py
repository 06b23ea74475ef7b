"""Low-rank adapters of Wan and VACE, as DiffSynth, ComfyUI and Wan's own code name their layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor, nn

from rvedit.io.errors import UserError
from rvedit.pipelines.checkpoints.files import check_file, read_weights

_PREFIX = re.compile(r"^(pipe\.|model\.|diffusion_model\.|transformer\.|vace\.|dit\.)*")
_MATRIX = re.compile(r"\.lora_(A|down|B|up)(?:\.default)?\.weight$")


def add_adapters(transformer: Any, file: Path) -> None:
    """Add a file's adapters to a transformer of Wan's kind, VACE's blocks included; each weighs 1.

    Raises UserError where the file is damaged, holds no adapters, or ones of layers that are not there:
    diffusers would leave those out.
    """
    check_file(file)
    matrices: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    stray: list[str] = []
    for key, tensor in read_weights([file]).items():
        name = _PREFIX.sub("", key)
        match = _MATRIX.search(name)
        if match:
            half = "A" if match[1] in ("A", "down") else "B"
            matrices[f"{_own(name[: match.start()])}.lora_{half}.weight"] = tensor
        elif name.endswith(".alpha"):
            scales[_own(name.removesuffix(".alpha"))] = float(tensor)
        else:
            stray.append(key)
    layers = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    stray += [key for key in matrices if key.rsplit(".", 2)[0] not in layers]
    if stray or not matrices:
        what = f"{stray[0]}, which the transformer does not have" if stray else "none"
        raise UserError(f"{file}: adapters of {what}: name a file for this model")
    try:
        for name, alpha in scales.items():
            up = f"{name}.lora_B.weight"
            matrices[up] = matrices[up] * (alpha / matrices[up].shape[1])
        transformer.load_lora_adapter(matrices, prefix=None)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{file}: the adapters do not fit: {str(error).splitlines()[0]}") from None


def _own(layer: str) -> str:
    """A layer's name in diffusers."""
    (key,) = convert_wan_transformer_to_diffusers({f"{layer}.weight": None})
    return str(key).removesuffix(".weight")
