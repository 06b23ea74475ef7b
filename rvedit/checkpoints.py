"""Editors built from configs, read from folders and written to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel

from rvedit.errors import UserError
from rvedit.model.edit_tokens import EditTokenConnector
from rvedit.model.nano_tokenizer import train_tokenizer
from rvedit.model.presets import (
    NANO_CONNECTOR,
    NANO_PIPELINE,
    NANO_TRANSFORMER,
    nano_mllm_config,
    nano_text_config,
)
from rvedit.model.transformer import RoutedWanTransformer3DModel
from rvedit.pipeline import RVEDiTPipeline

# Folders of a saved pipeline, and the classes that read them.
MODULE_CLASSES: dict[str, Any] = {
    "transformer": RoutedWanTransformer3DModel,
    "connector": EditTokenConnector,
    "mllm": Qwen2_5_VLForConditionalGeneration,
    "text_encoder": UMT5EncoderModel,
    "vae": AutoencoderKLWan,
}


def build_nano(
    corpus: Iterable[str], vae: AutoencoderKLWan, routing_depth: int | None, shift: float, seed: int
) -> RVEDiTPipeline:
    """Nano with fresh weights over a tokenizer trained on `corpus`."""
    tokenizer = train_tokenizer(corpus)
    depth = NANO_TRANSFORMER["routing_depth"] if routing_depth is None else routing_depth
    torch.manual_seed(seed)
    return RVEDiTPipeline(
        transformer=RoutedWanTransformer3DModel(**{**NANO_TRANSFORMER, "routing_depth": depth}),
        connector=EditTokenConnector(**NANO_CONNECTOR),
        mllm=Qwen2_5_VLForConditionalGeneration(nano_mllm_config(tokenizer)),
        text_encoder=UMT5EncoderModel(nano_text_config(tokenizer)),
        vae=vae,
        tokenizer=tokenizer,
        mllm_tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        **NANO_PIPELINE,
    )


def find_checkpoint(name: str, option: str = "--model") -> Path:
    """The folder of a checkpoint: `nano`, a folder, a run's folder, or a hub id, which is fetched.

    `option` is how the user said it, for the error.
    """
    if name == "nano":
        return Path(str(files("rvedit") / "nano"))
    folder = Path(name).expanduser()
    if (folder / "model" / "model_index.json").is_file() or (folder / "model" / "vae").is_dir():
        return folder / "model"
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith(("/", ".", "~", "runs/")):
        raise UserError(
            f"{option} {name}: no such folder: give nano, a folder with a checkpoint, or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{option} {name}: not a folder here, and not to be had from the hub: {reason}"
        ) from None


def load_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> RVEDiTPipeline:
    """Read a folder that `RVEDiTPipeline.save_pretrained` wrote; keys that do not fit are a UserError."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{folder}: not a checkpoint of rvedit: it has no model_index.json")
    config = json.loads(index.read_text(encoding="utf-8"))
    if config.get("_class_name") != "RVEDiTPipeline":
        raise UserError(f"{folder}: a checkpoint of {config.get('_class_name')}, not of RVEDiTPipeline")
    for name in ("tokenizer", "mllm_tokenizer", "scheduler"):
        _require_folder(folder, name)
    settings = {key: value for key, value in config.items() if key in NANO_PIPELINE}
    return RVEDiTPipeline(
        **{name: load_module(name, folder / name, dtype) for name in MODULE_CLASSES},
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        mllm_tokenizer=AutoTokenizer.from_pretrained(folder / "mllm_tokenizer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        **settings,
    )


def load_module(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Read one module; keys that do not fit are an error that names them."""
    _require_folder(folder.parent, name)
    cls = MODULE_CLASSES[name]
    # transformers names the keys of wrong shape only when it is told to let them pass; diffusers always does.
    options = {"ignore_mismatched_sizes": True} if issubclass(cls, PreTrainedModel) else {}
    try:
        module, info = cls.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].split(". If you want")[0]
        raise UserError(f"{folder}: cannot be loaded as {name}: {reason}") from None
    problems = []
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(key if isinstance(key, str) else key[0] for key in info.get(f"{kind}_keys", ()))
        if keys:
            problems.append(f"{kind} {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else ""))
    if problems:
        raise UserError(f"{folder}: the checkpoint's keys do not fit {name}: {'; '.join(problems)}")
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


def with_vae(pipeline: RVEDiTPipeline, vae: AutoencoderKLWan) -> RVEDiTPipeline:
    """Nano on another VAE: what meets the latents starts fresh, all other weights are taken over."""
    old = pipeline.transformer
    depth = old.config.routing_depth
    transformer = RoutedWanTransformer3DModel(**{**NANO_TRANSFORMER, "routing_depth": depth})
    state = transformer.state_dict()
    fitting = {k: v for k, v in old.state_dict().items() if k in state and v.shape == state[k].shape}
    transformer.load_state_dict({**state, **fitting})
    pipeline.register_modules(transformer=transformer, vae=vae)
    return pipeline


def _require_folder(checkpoint: Path, name: str) -> None:
    if not (checkpoint / name).is_dir():
        raise UserError(f"{checkpoint}: not a whole checkpoint of rvedit: the folder {name}/ is missing")
