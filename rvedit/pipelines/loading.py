"""Loading of pipelines by name, and placement on a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rvedit.io.errors import UserError, check_choice
from rvedit.models.causal_convolution import use_fast_convolutions
from rvedit.pipelines import memory, speed
from rvedit.pipelines.adapters import add_loras
from rvedit.pipelines.baselines import (
    BASELINE_CLASSES,
    BASELINES,
    Capabilities,
    load_baseline,
    load_baseline_folder,
)
from rvedit.pipelines.checkpoints import (
    find_checkpoint,
    find_transformer_file,
    is_hub_id,
    load_checkpoint,
    pipeline_kind,
    reads_reference_images,
)
from rvedit.pipelines.lora_files import find_lora
from rvedit.pipelines.memory import Offload, Quantize
from rvedit.pipelines.speed import Fast

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(
    model: str = "nano",
    device: str | None = None,
    dtype: str | None = None,
    *,
    offload: Offload = "auto",
    quantization: Quantize | None = None,
    vae_tiling: bool = False,
    fast: Fast | None = None,
    compile: bool = False,
    attention: str | None = None,
    lora: Sequence[str] = (),
    transformer: Path | str | None = None,
) -> Any:
    """Load a pipeline for `edit_video` and place it on a device.

    Args:
        model: `nano`, `lucy`, `vace`, `ditto`, or a folder, file or hub id with weights of RVEDiT,
            Wan2.2-TI2V-5B, Kiwi-Edit, Lucy or VACE.
        device: by default a GPU if there is one.
        dtype: `fp32`, `bf16` or `fp16`; by default fp32 on a CPU and bf16 elsewhere.
        offload: keep idle weights on the CPU, by component (`model`) or by layer (`group`); `auto` offloads
            components if the weights exceed half of the device's free memory.
        quantization: store the weights of large linear layers in int8, fp8 or nf4.
        vae_tiling: encode and decode in tiles.
        fast: step cache (`first-block`, `magcache`, `taylorseer`).
        compile: compile the transformer's blocks.
        attention: attention backend, by its name in diffusers.
        transformer: file with the weights of a folder's transformer, instead of its own: safetensors, also in
            fp8, or GGUF.
        lora: LoRA weights, each a file, folder or hub id, and `:WEIGHT` if the weight is not 1.

    Raises UserError for invalid arguments, before weights are read wherever possible.
    """
    memory.check_placement(offload, quantization)
    memory.check_packages(quantization)
    speed.check_fast(fast)
    speed.check_attention(attention)
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    loras = [find_lora(text) for text in lora]
    file = None if transformer is None else find_transformer_file(transformer)
    path = None if model in BASELINES else find_checkpoint(model)
    baseline = model if path is None else BASELINE_CLASSES.get(pipeline_kind(path))
    speed.check_fast(fast, baseline)
    if file is not None and (path is None or baseline):
        raise UserError("`transformer`: is for RVEDiT, Wan2.2-TI2V-5B and Kiwi-Edit: leave it out")
    if path is None:
        pipe = load_baseline(model, torch_dtype)
    elif baseline:
        pipe = load_baseline_folder(path, baseline, torch_dtype)
    else:
        pipe = load_checkpoint(path, torch_dtype, file)
        if not pipe.transformer.reads_native_tokens:  # saves 11 GB for the 5B model
            pipe.register_modules(text_encoder=None, tokenizer=None)
    use_fast_convolutions(pipe.vae)
    add_loras(pipe.transformer, loras)
    if quantization and memory.is_quantized(pipe.transformer):
        raise UserError("`quantization`: the transformer's file is quantized already: leave one out")
    if quantization and loras:  # which would be quantized as well
        pipe.transformer.fuse_lora()
        pipe.transformer.unload_lora()
    if quantization:
        memory.quantize(pipe, quantization, torch_device)
    if vae_tiling:
        pipe.vae.enable_tiling()
    if attention:
        speed.choose_attention(pipe, attention)
    memory.place(pipe, torch_device, offload)
    if fast:
        speed.enable_step_cache(pipe, fast)
    if compile:
        pipe.transformer.compile_repeated_blocks(dynamic=None)  # one block, for all of them
    pipe.set_progress_bar_config(disable=False)
    return pipe


def quiet_libraries() -> None:
    """Disable the progress bars that diffusers and transformers show while they load weights."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def capabilities_of(model: str) -> Capabilities | None:
    """Return a model's capabilities without loading it; None for a hub id, where they are unknown."""
    if is_hub_id(model):
        return None
    if model in BASELINES:
        return BASELINES[model].capabilities
    path = find_checkpoint(model)
    name = BASELINE_CLASSES.get(pipeline_kind(path))
    if name:
        return BASELINES[name].capabilities
    return Capabilities(reference_image=reads_reference_images(path))


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; by default fp32 on a CPU and bf16 elsewhere."""
    name = name or ("fp32" if device.type == "cpu" else "bf16")
    check_choice("`dtype`", name, DTYPES)
    return DTYPES[name]


def pick_device(name: str | None) -> torch.device:
    """Return the device of a name; by default a GPU if there is one. Raises UserError if it is unusable."""
    name = name or _default_device()
    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"`device` {name}: CUDA is not available on this machine: try cpu")
        torch.zeros(1, device=device).item()  # raises an error if the device is unusable
    except (RuntimeError, AssertionError, ImportError, NotImplementedError):
        raise UserError(f"`device` {name}: no such device: try cpu, cuda or cuda:0") from None
    return device


def _default_device() -> str:
    """Return the name of a GPU if there is one; each process of torchrun has its own."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank else "cuda"
