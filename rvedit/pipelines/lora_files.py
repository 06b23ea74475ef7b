"""Files with LoRA weights, by the names that users give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from rvedit.io.errors import UserError
from rvedit.pipelines.checkpoints.files import check_file
from rvedit.pipelines.checkpoints.find import download, is_hub_id

_USUAL_NAMES = ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"]
"""Names under which diffusers and peft save LoRA weights."""


class Lora(NamedTuple):
    """A file with LoRA weights, and the factor of their effect."""

    file: Path
    weight: float = 1.0


def find_lora(text: str) -> Lora:
    """Return the file and the weight of `NAME[:WEIGHT]`.

    `NAME` is a file, a folder, also that of a run, or a hub id, as `owner/name` or `owner/name/FILE`. Of a
    folder or a hub id without a file, the file that diffusers or peft saved is read, and nothing else is
    downloaded. Raises UserError if there is none, or if it is damaged.
    """
    name, weight = _split_weight(text)
    path = Path(name).expanduser()
    if not path.exists():
        owner, _, rest = name.partition("/")
        repository, _, file = rest.partition("/")
        hub_id = f"{owner}/{repository}"
        if not (repository and is_hub_id(hub_id)) or (file and not file.endswith(".safetensors")):
            raise UserError(
                f"`lora` {name}: no such file: give a file, or a hub id as owner/name or owner/name/FILE"
            )
        wanted = [file] if file else _USUAL_NAMES
        path = download(hub_id, "`lora`", allow_patterns=[*wanted, "adapter_config.json"]) / file
    if path.is_dir():
        places = (path, path / "model")  # a run of `rvedit train`
        found = [place / name for place in places for name in _USUAL_NAMES if (place / name).is_file()]
        if not found:
            raise UserError(f"`lora` {name}: holds no {' or '.join(_USUAL_NAMES)}: name a file in it")
        path = found[0]
    check_file(path)
    return Lora(path, weight)


def _split_weight(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0
    if not name or Path(text).exists():
        return text, 1.0
    if not math.isfinite(weight):
        raise UserError(f"`lora` {text}: the weight is not a finite number: give one such as 0.8")
    return name, weight
