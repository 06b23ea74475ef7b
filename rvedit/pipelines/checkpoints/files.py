"""Weights as files: read whole or not at all, and put into modules without a second copy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from rvedit.io.errors import UserError


def read_config(path: Path) -> dict[str, Any]:
    """A config.json. Raises UserError where it is missing or not JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent}: not a whole checkpoint: {path.name} is missing") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: cannot be read: holds no object")
    return value


def weight_files(folder: Path, stem: str = "diffusion_pytorch_model") -> list[Path]:
    """The files of a model's weights: one, or the shards that its index names.

    Raises UserError that names those that are missing, or one that is cut off.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_config(index).get("weight_map", {}).values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            names = ", ".join(missing)
            raise UserError(
                f"{folder}: {len(missing)} of {len(files)} shards missing ({names}): download them again"
            )
    else:
        files = [folder / f"{stem}.safetensors"]
        if not files[0].is_file():
            raise UserError(f"{folder}: not a whole checkpoint: {files[0].name} is missing")
    for file in files:
        check_file(file)
    return files


def check_file(file: Path) -> None:
    """Raises UserError for a safetensors file that is cut off or none at all."""
    try:
        with safe_open(file, "pt"):
            pass
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a whole safetensors file ({str(error).splitlines()[0]}): download it again"
        ) from None


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of files that are known to be whole, mapped from the disk rather than copied."""
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as content:
            state.update({key: content.get_tensor(key) for key in content.keys()})  # noqa: SIM118
    return state


def read_shapes(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of files as they are named and shaped, on the meta device: nothing but headers is read."""
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as content:
            for key in content.keys():  # noqa: SIM118
                state[key] = torch.empty(content.get_slice(key).get_shape(), device="meta")
    return state


@contextmanager
def fitting(where: Path, part: str) -> Iterator[None]:
    """A KeyError inside is a UserError: the checkpoint's keys do not fit the part."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{where}: the checkpoint's keys do not fit {part}: {error.args[0]}") from None


def read_tokenizer(folder: Path) -> Any:
    """A tokenizer's folder. Raises UserError where it is missing or not whole."""
    if not folder.is_dir():
        raise UserError(f"{folder.parent}: not a whole checkpoint: the folder {folder.name}/ is missing")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: its tokenizer cannot be read: {reason}") from None


def pipeline_kind(path: Path) -> str:
    """The class of pipeline that a folder says it is; empty where it says nothing."""
    index = path / "model_index.json"
    kind = read_config(index).get("_class_name") if index.is_file() else ""
    return str(kind[-1] if isinstance(kind, list) else kind)


def check_components(folder: Path) -> None:
    """Raises UserError where a pipeline's folder lacks weights, of which diffusers would make new ones."""
    for name, value in read_config(folder / "model_index.json").items():
        library, kind = value if isinstance(value, list) else ("", "")
        if library == "transformers" and "Tokenizer" not in kind:
            weight_files(folder / name, "model")
        if library != "diffusers" or not issubclass(getattr(diffusers, kind, object), diffusers.ModelMixin):
            continue
        there = read_shapes(weight_files(folder / name))
        with init_empty_weights():
            module = getattr(diffusers, kind).from_config(read_config(folder / name / "config.json"))
        missing = [key for key in module.state_dict() if key not in there]
        if missing:
            raise UserError(f"{folder / name}: not a whole checkpoint: {_first(missing)} missing")


def _first(of: list[str]) -> str:
    return of[0] + (f" and {len(of) - 1} more" if len(of) > 1 else "")


def build(cls: Any, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """A diffusers model of a config that holds the state's own tensors, cast where they differ.

    What the class keeps in fp32 stays so. Raises KeyError with the keys that do not fit.
    """
    with init_empty_weights():
        module = cls.from_config(dict(config))
    precise = cls._keep_in_fp32_modules or ()
    own = module.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"of another shape {key}" for key in own if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise KeyError(_first(problems))
    cast = {
        key: tensor.to(torch.float32 if any(part in key for part in precise) else dtype)
        for key, tensor in state.items()
    }
    module.load_state_dict(cast, assign=True)
    return module.eval()


def with_weights(module: Any, state: Mapping[str, Tensor]) -> Any:
    """A module of the same config as `module`, holding the tensors of `state` themselves."""
    with init_empty_weights():
        config = module.config
        fresh = (
            type(module)(config) if isinstance(module, PreTrainedModel) else type(module).from_config(config)
        )
    fresh.load_state_dict(state, assign=True)
    if isinstance(fresh, PreTrainedModel):
        fresh.tie_weights()
    return fresh
