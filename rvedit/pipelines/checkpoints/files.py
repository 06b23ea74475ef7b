"""Reading of weights and configs with clear errors, and building of modules without a second copy."""

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
from rvedit.models.quantized_linear import is_quantized, load_quantized, shape_of, use_quantized_layers


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file. Raises UserError if it is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent}: incomplete checkpoint: {path.name} is missing") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: cannot be read: not a JSON object")
    return value


def weight_files(folder: Path, stem: str = "diffusion_pytorch_model") -> list[Path]:
    """Return the weight files of a module: one file, or the shards in its index.

    Raises UserError for missing shards and for a truncated file.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_config(index).get("weight_map", {}).values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            names = ", ".join(missing)
            raise UserError(
                f"{folder}: {len(missing)} of {len(files)} shards are missing ({names}): download them again"
            )
    else:
        files = [folder / f"{stem}.safetensors"]
        if not files[0].is_file():
            raise UserError(f"{folder}: incomplete checkpoint: {files[0].name} is missing")
    for file in files:
        check_file(file)
    return files


def check_file(file: Path) -> None:
    """Raise UserError if a file is missing, truncated or not in safetensors format."""
    try:
        with safe_open(file, "pt"):
            pass
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a complete safetensors file ({reason}): download it again") from None


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return all tensors of checked files, memory-mapped from disk."""
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as content:
            state.update({key: content.get_tensor(key) for key in content.keys()})  # noqa: SIM118
    return state


def read_shapes(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return all tensors of files on the meta device; only the headers are read."""
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as content:
            for key in content.keys():  # noqa: SIM118
                state[key] = torch.empty(content.get_slice(key).get_shape(), device="meta")
    return state


@contextmanager
def convert_key_errors(path: Path, module: str) -> Iterator[None]:
    """Convert a KeyError to a UserError: the checkpoint's keys do not fit the module."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: the checkpoint's keys do not fit {module}: {error.args[0]}") from None


def check_folder(folder: Path) -> None:
    """Raise UserError if a part's folder is missing in a checkpoint."""
    if not folder.is_dir():
        raise UserError(f"{folder.parent}: incomplete checkpoint: the folder {folder.name}/ is missing")


def read_tokenizer(folder: Path) -> Any:
    """Return a folder's tokenizer. Raises UserError if it is missing or damaged."""
    check_folder(folder)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: its tokenizer cannot be read: {reason}") from None


def pipeline_kind(path: Path) -> str:
    """Return the pipeline class in a folder's model_index.json, or an empty string without one."""
    index = path / "model_index.json"
    kind = read_config(index).get("_class_name") if index.is_file() else ""
    return str(kind[-1] if isinstance(kind, list) else kind)


def check_components(folder: Path) -> None:
    """Raise UserError if a pipeline's folder lacks weights: diffusers would initialize them randomly."""
    for name, value in read_config(folder / "model_index.json").items():
        library, kind = value if isinstance(value, list) else ("", "")
        if library == "transformers" and "Tokenizer" not in kind:
            weight_files(folder / name, "model")
        if library != "diffusers" or not issubclass(getattr(diffusers, kind, object), diffusers.ModelMixin):
            continue
        state = read_shapes(weight_files(folder / name))
        with init_empty_weights():
            module = getattr(diffusers, kind).from_config(read_config(folder / name / "config.json"))
        missing = [key for key in module.state_dict() if key not in state]
        if missing:
            raise UserError(f"{folder / name}: incomplete checkpoint: missing {abbreviate(missing)}")


def abbreviate(items: list[str]) -> str:
    """Return the first item and the number of the others."""
    return items[0] + (f" and {len(items) - 1} more" if len(items) > 1 else "")


def build(cls: Any, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """Return a diffusers model that uses the tensors of `state`, cast to `dtype` unless they are quantized.

    `_keep_in_fp32_modules` of the class stay in fp32. Raises KeyError with the keys that do not fit.
    """
    with init_empty_weights():
        module = cls.from_config(dict(config))
        use_quantized_layers(module, state, dtype)
    fp32_modules = cls._keep_in_fp32_modules or ()
    expected = module.state_dict()
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"mismatched {key}"
        for key, tensor in expected.items()
        if key in state and shape_of(state[key]) != tensor.shape
    ]
    if problems:
        raise KeyError(abbreviate(problems))
    cast = {
        key: tensor
        if is_quantized(tensor)
        else tensor.to(torch.float32 if any(name in key for name in fp32_modules) else dtype)
        for key, tensor in state.items()
    }
    load_quantized(module, cast)
    return module.eval()


def with_weights(module: Any, state: Mapping[str, Tensor]) -> Any:
    """Return a module with the class and config of `module` that uses the tensors of `state`."""
    cls, is_transformers = type(module), isinstance(module, PreTrainedModel)
    with init_empty_weights():
        copy = cls(module.config) if is_transformers else cls.from_config(module.config)
    copy.load_state_dict(state, assign=True)
    if is_transformers:
        copy.tie_weights()
    return copy
