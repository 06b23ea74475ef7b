"""Editors by their names."""

from __future__ import annotations

import torch

from rvedit.checkpoints import find_checkpoint, load_pipeline, pipeline_kind
from rvedit.editors.base import Editor
from rvedit.editors.placement import Offload, Quantize, check_placement, quantize
from rvedit.editors.placement import place as put
from rvedit.editors.rvedit import RVEDiTEditor
from rvedit.editors.speed import FASTS, Fast, choose_attention, compile_blocks, reuse_steps
from rvedit.editors.whole_clip import KNOWN, load_foreign, load_known
from rvedit.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FOREIGN = {"LucyEditPipeline": "lucy", "WanVACEPipeline": "vace"}


def load_editor(
    model: str = "nano",
    device: str | None = None,
    dtype: str | None = None,
    offload: Offload = "auto",
    quantization: Quantize | None = None,
    vae_tiling: bool = False,
    fast: Fast | None = None,
    compiled: bool = False,
    attention: str | None = None,
) -> Editor:
    """Load an editor: `nano`, `lucy`, `vace`, `ditto`, or a folder, a file or a hub id with weights.

    Without a device it is the accelerator if there is one; without a dtype fp32 on a CPU and bf16 elsewhere.
    `offload` keeps what does not compute on the CPU: whole components (`model`) or all layers (`group`); by
    default components where the device's memory has little room beside them.
    `quantization` stores the large matrices in int8, fp8 or nf4. `vae_tiling` encodes and decodes by tiles.
    `fast` lets steps reuse earlier ones' work; `compiled` compiles the blocks; `attention` names kernels.
    """
    check_placement(offload, quantization)
    if fast is not None and fast not in FASTS:
        raise UserError(f"--fast {fast}: choose one of {', '.join(FASTS)}")
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    editor: Editor
    if model in KNOWN:
        editor = load_known(model, kind)
    else:
        path = find_checkpoint(model)
        foreign = _FOREIGN.get(pipeline_kind(path))
        if foreign:
            editor = load_foreign(path, model, KNOWN[foreign].native, kind)
        else:
            editor = RVEDiTEditor(load_pipeline(path, kind), model)
    if quantization:
        quantize(editor.pipeline, quantization, place)
    if vae_tiling:
        editor.pipeline.vae.enable_tiling()
    if attention:
        choose_attention(editor.pipeline, attention)
    try:
        put(editor.pipeline, place, offload)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{model}: its weights do not fit the memory of {place}: try --offload model or group, or "
            "--quantize nf4; --plan --card GB says what fits"
        ) from None
    if fast:
        reuse_steps(editor.pipeline, fast)
    if compiled:
        compile_blocks(editor.pipeline)
    return editor


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """By name; fp32 on a CPU and bf16 elsewhere."""
    kind = name or ("fp32" if device.type == "cpu" else "bf16")
    if kind not in DTYPES:
        raise UserError(f"--dtype {kind}: choose one of {', '.join(DTYPES)}")
    return DTYPES[kind]


def pick_device(name: str | None) -> torch.device:
    """By name; the accelerator if there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device {name}: no such device: try cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine or this build of torch has no CUDA: try --device cpu")
    return device
