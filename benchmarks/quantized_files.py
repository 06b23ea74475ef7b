"""Edits by nano with quantized weights of its transformer, beside those in fp32.

    python benchmarks/quantized_files.py --count 24

The blocks' matrices are written as GGUF by the public gguf package (`pip install '.[gguf]'`), and as fp8
safetensors of ComfyUI's kind with one scale per matrix. PSNR is of the edits in fewer bits to those in fp32,
without detail transfer; gain is the share of the intended change (`rvedit.evaluation.measures`).
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from _common import arguments, edit_clip, print_table, write_json
from nano_quality import held_out
from safetensors.torch import save_file
from torch import Tensor

from rvedit.editing.config import EditConfig
from rvedit.evaluation.measures import edit_gain, psnr
from rvedit.pipelines.loading import load_pipeline

TYPES = ("fp32", "fp8", "Q8_0", "Q5_1", "Q4_0")
NUM_FRAMES = 9


def is_matrix(name: str, tensor: Tensor) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2


def write(folder: Path, state: dict[str, Tensor], kind: str) -> Path:
    """Write a transformer's weights in a type; return the file."""
    if kind in ("fp32", "fp8"):
        tensors = {}
        for name, tensor in state.items():
            tensors[name] = tensor.contiguous()
            if kind == "fp8" and is_matrix(name, tensor):
                scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
                tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
                tensors[f"{name.removesuffix('weight')}scale_weight"] = scale
        save_file(tensors, folder / f"{kind}.safetensors")
        return folder / f"{kind}.safetensors"
    path = folder / f"{kind}.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    quantization = gguf.GGMLQuantizationType[kind]
    for name, tensor in state.items():
        if is_matrix(name, tensor):
            data = gguf.quants.quantize(tensor.numpy(), quantization)
            writer.add_tensor(name, data, raw_dtype=quantization)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    parser = arguments(__doc__, chooses_device=False)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=24, help="number of held-out clips")
    args = parser.parse_args()
    clips = list(held_out(args.count, NUM_FRAMES, 128))
    transformer = load_pipeline(args.model, "cpu").transformer
    state = {name: tensor.float() for name, tensor in transformer.state_dict().items()}
    config = EditConfig(detail=0)
    edits: dict[str, list[Any]] = {}
    results, rows = {}, []
    with TemporaryDirectory() as folder:
        for kind in TYPES:
            file = write(Path(folder), state, kind)
            pipe = load_pipeline(args.model, "cpu", transformer=file)
            edits[kind] = [edit_clip(pipe, source, t.instruction, config) for t, source, _, _ in clips]
            gains = [edit_gain(s, e, t, m) for (_, s, t, m), e in zip(clips, edits[kind], strict=True)]
            same = [psnr(e, f) for e, f in zip(edits[kind], edits["fp32"], strict=True)]
            results[kind] = {
                "megabytes": file.stat().st_size / 1e6,
                "psnr_to_fp32": None if kind == "fp32" else float(np.mean(same)),
                "gain": float(np.mean(gains)),
            }
            shown = "" if kind == "fp32" else f"{np.mean(same):.1f} dB"
            rows.append([kind, f"{file.stat().st_size / 1e6:.1f} MB", shown, f"{np.mean(gains):.3f}"])
    print_table(["weights", "file", "PSNR to fp32", "gain"], rows)
    write_json(args, results)


if __name__ == "__main__":
    main()
