"""Our own checkpoints: folders that `RVEDiTPipeline.save_pretrained` wrote, and nano built fresh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel

from rvedit.io.errors import UserError
from rvedit.models.edit_tokens import EditTokenConnector
from rvedit.models.nano_tokenizer import train_tokenizer
from rvedit.models.presets import (
    NANO_CONNECTOR,
    NANO_PIPELINE,
    NANO_TRANSFORMER,
    nano_mllm_config,
    nano_text_config,
)
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.checkpoints.files import read_tokenizer, weight_files
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

# Folders of a saved pipeline, and the classes that read them.
MODULE_CLASSES: dict[str, Any] = {
    "transformer": RoutedWanTransformer3DModel,
    "connector": EditTokenConnector,
    "mllm": Qwen2_5_VLForConditionalGeneration,
    "text_encoder": UMT5EncoderModel,
    "vae": AutoencoderKLWan,
}

OPTIONAL = ("text_encoder", "tokenizer")
"""What a checkpoint whose blocks all read X_e alone may lack."""


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


def load_own(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> RVEDiTPipeline:
    """Read a folder of ours, by its model_index.json; keys that do not fit are a UserError."""
    absent = absent_parts(index)
    for name in {"tokenizer", "mllm_tokenizer", "scheduler"} - absent:
        _require_folder(folder, name)
    settings = {name: index[name] for name in RVEDiTPipeline.setting_names() if name in index}
    dtypes = dict.fromkeys(MODULE_CLASSES, dtype) | {"vae": torch.float32}  # latents are coarse otherwise
    modules: dict[str, Any] = {
        name: None if name in absent else load_module(name, folder / name, kind)
        for name, kind in dtypes.items()
    }
    tokenizer = None if "tokenizer" in absent else read_tokenizer(folder / "tokenizer")
    return RVEDiTPipeline(
        **modules,
        tokenizer=tokenizer,
        mllm_tokenizer=read_tokenizer(folder / "mllm_tokenizer"),
        scheduler=_read_scheduler(folder / "scheduler"),
        **settings,
    )


def absent_parts(index: Mapping[str, Any]) -> set[str]:
    """What a checkpoint lacks and may lack, by its model_index.json."""
    return {name for name in OPTIONAL if index.get(name) == [None, None]}


def _read_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    try:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read: {str(error).strip().splitlines()[0]}") from None


def load_module(name: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Read one module; keys that do not fit are an error that names them."""
    _require_folder(folder.parent, folder.name)
    cls = MODULE_CLASSES[name]
    is_transformers = issubclass(cls, PreTrainedModel)
    weight_files(folder, "model" if is_transformers else "diffusion_pytorch_model")
    # transformers names the keys of wrong shape only when it is told to let them pass; diffusers always does.
    options |= {"ignore_mismatched_sizes": True} if is_transformers else {}
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
