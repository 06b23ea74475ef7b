"""Pipelines by their names, placed on a device."""

from __future__ import annotations

from typing import Any

import torch

from rvedit.io.errors import UserError
from rvedit.pipelines.baselines import (
    BASELINE_CLASSES,
    BASELINES,
    NO_CAPABILITIES,
    Capabilities,
    load_baseline,
    load_baseline_folder,
)
from rvedit.pipelines.checkpoints import find_checkpoint, is_hub_id, load_checkpoint, pipeline_kind
from rvedit.pipelines.memory import (
    Offload,
    Quantize,
    check_packages,
    check_placement,
    place,
    quantize,
)
from rvedit.pipelines.speed import (
    Fast,
    check_attention,
    check_fast,
    choose_attention,
    compile_blocks,
    reuse_steps,
)

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
) -> Any:
    """Load a pipeline for `edit_video` and put it on a device.

    Args:
        model: `nano`, `lucy`, `vace`, `ditto`, or a folder, file or hub id of weights: RVEDiT's,
            Wan2.2-TI2V-5B's, Kiwi-Edit's, Lucy's or VACE's.
        device: by default a GPU if there is one.
        dtype: `fp32`, `bf16` or `fp16`; by default fp32 on a CPU and bf16 elsewhere.
        offload: keep what does not compute on the CPU: whole components (`model`) or all layers (`group`);
            `auto` offloads components if the weights fill more than half of the device's free memory.
        quantization: store the large matrices in int8, fp8 or nf4.
        vae_tiling: encode and decode by tiles.
        fast: reuse work of earlier steps (`first-block`, `magcache`, `taylorseer`).
        compile: compile the transformer's blocks.
        attention: attention kernels by diffusers' names.

    Raises UserError; for what can be known before weights are read, before that.
    """
    check_placement(offload, quantization)
    check_packages(quantization)
    check_fast(fast)
    check_attention(attention)
    at = pick_device(device)
    torch_dtype = pick_dtype(dtype, at)
    path = None if model in BASELINES else find_checkpoint(model)
    baseline = model if path is None else BASELINE_CLASSES.get(pipeline_kind(path))
    if baseline and fast:
        check_fast(fast, baseline)
    if path is None:
        pipe = load_baseline(model, torch_dtype)
    elif baseline:
        pipe = load_baseline_folder(path, baseline, torch_dtype)
    else:
        pipe = load_checkpoint(path, torch_dtype)
        if not pipe.transformer.reads_native_tokens:  # 11 GB of the 5B's that nothing would read
            pipe.register_modules(text_encoder=None, tokenizer=None)
    if quantization:
        quantize(pipe, quantization, at)
    if vae_tiling:
        pipe.vae.enable_tiling()
    if attention:
        choose_attention(pipe, attention)
    place(pipe, at, offload)
    if fast:
        reuse_steps(pipe, fast)
    if compile:
        compile_blocks(pipe)
    return pipe


def capabilities_of(model: str) -> Capabilities | None:
    """Return what a model reads, before it is loaded; None for a hub id, which is not known until then."""
    if model in BASELINES:
        return BASELINES[model].capabilities
    if is_hub_id(model):
        return None
    baseline = BASELINE_CLASSES.get(pipeline_kind(find_checkpoint(model)))
    return BASELINES[baseline].capabilities if baseline else NO_CAPABILITIES


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return a dtype by name; fp32 on a CPU and bf16 elsewhere by default."""
    kind = name or ("fp32" if device.type == "cpu" else "bf16")
    if kind not in DTYPES:
        raise UserError(f"`dtype` {kind}: choose one of {', '.join(DTYPES)}")
    return DTYPES[kind]


def pick_device(name: str | None) -> torch.device:
    """Return a device by name; a GPU if there is one by default. Raises UserError if it cannot be used."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"`device` {name}: this machine or this build of torch has no CUDA: try cpu")
        torch.zeros(1, device=device).item()  # which says whether it can be computed with
    except (RuntimeError, AssertionError, ImportError, NotImplementedError):
        raise UserError(f"`device` {name}: no such device: try cpu, cuda or cuda:0") from None
    return device
