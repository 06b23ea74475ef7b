"""Editors by their names."""

from __future__ import annotations

from dataclasses import replace

import torch

from rvedit.checkpoints import find_checkpoint, is_hub_id, load_pipeline, pipeline_kind
from rvedit.editors.base import Editor
from rvedit.editors.placement import (
    Offload,
    Quantize,
    check_packages,
    check_placement,
    place,
    quantize,
)
from rvedit.editors.rvedit import RVEDiTEditor
from rvedit.editors.speed import (
    Fast,
    check_attention,
    check_fast,
    choose_attention,
    compile_blocks,
    reuse_steps,
)
from rvedit.editors.whole_clip import KNOWN, load_foreign, load_known
from rvedit.errors import UserError
from rvedit.pipeline import RVEDiTPipeline
from rvedit.records import EditSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FOREIGN = {"LucyEditPipeline": "lucy", "WanVACEPipeline": "vace"}


def load_editor(
    model: str = "nano",
    device: str | None = None,
    dtype: str | None = None,
    *,
    offload: Offload = "auto",
    quantization: Quantize | None = None,
    vae_tiling: bool = False,
    fast: Fast | None = None,
    compiled: bool = False,
    attention: str | None = None,
) -> Editor:
    """Load an editor: `nano`, `lucy`, `vace`, `ditto`, or a folder, a file or a hub id with weights.

    Without a device it is a GPU if there is one; without a dtype fp32 on a CPU and bf16 elsewhere.
    `offload` keeps what does not compute on the CPU: whole components (`model`) or all layers (`group`); by
    default components where the device's memory has little room beside them.
    `quantization` stores the large matrices in int8, fp8 or nf4. `vae_tiling` encodes and decodes by tiles.
    `fast` lets steps reuse earlier ones' work; `compiled` compiles the blocks; `attention` names kernels.
    Raises UserError, for what can be known before weights are read before that.
    """
    check_placement(offload, quantization)
    check_packages(quantization)
    check_fast(fast)
    check_attention(attention)
    at = pick_device(device)
    kind = pick_dtype(dtype, at)
    path = None if model in KNOWN else find_checkpoint(model)
    foreign = model if path is None else _FOREIGN.get(pipeline_kind(path))
    if foreign and fast:
        check_fast(fast, foreign)
    editor: Editor
    if path is None:
        editor = load_known(model, kind)
    elif foreign:
        editor = load_foreign(path, model, KNOWN[foreign], kind)
    else:
        editor = RVEDiTEditor(_without_unread(load_pipeline(path, kind)), model)
    if quantization:
        quantize(editor.pipeline, quantization, at)
    if vae_tiling:
        editor.pipeline.vae.enable_tiling()
    if attention:
        choose_attention(editor.pipeline, attention)
    place(editor.pipeline, at, offload)
    if fast:
        reuse_steps(editor.pipeline, fast)
    if compiled:
        compile_blocks(editor.pipeline)
    return editor


def check_settings(model: str, settings: EditSettings, listed: bool = False) -> None:
    """Before a model is fetched and loaded: raises UserError for what it would refuse or leave unheeded.

    A list's items may come with descriptions of their own.
    """
    if model in KNOWN:
        takes = KNOWN[model].takes
    elif is_hub_id(model):
        return  # what it is shows when it is here
    else:
        foreign = _FOREIGN.get(pipeline_kind(find_checkpoint(model)))
        takes = KNOWN[foreign].takes if foreign else RVEDiTEditor.takes
    if settings.description and not takes.description:
        raise UserError(f"--description: is for --model vace: {model} reads the instruction")
    takes.check(model, replace(settings, description="its item's") if listed else settings)


def _without_unread(pipeline: RVEDiTPipeline) -> RVEDiTPipeline:
    """Without the text encoder where no block reads X_l: 11 GB, of the 5B's."""
    if not pipeline.transformer.reads_native_tokens:
        pipeline.register_modules(text_encoder=None, tokenizer=None)
    return pipeline


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """By name; fp32 on a CPU and bf16 elsewhere."""
    kind = name or ("fp32" if device.type == "cpu" else "bf16")
    if kind not in DTYPES:
        raise UserError(f"--dtype {kind}: choose one of {', '.join(DTYPES)}")
    return DTYPES[kind]


def pick_device(name: str | None) -> torch.device:
    """By name; a GPU if there is one, else the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: this machine or this build of torch has no CUDA: try --device cpu"
            )
        torch.zeros(1, device=device).item()  # which says whether it can be computed with
    except (RuntimeError, AssertionError, ImportError, NotImplementedError):
        raise UserError(f"--device {name}: no such device: try cpu, cuda or cuda:0") from None
    return device
