"""Edits at the 5B's real size with random weights, compared with the plans of `rvedit edit --plan`.

    python benchmarks/real_edit.py --out benchmarks/results/real_edit_h100.json

For each option, the pipeline of a published model is built on the device with random weights and edits a clip
of noise in a few steps. Peak memory is the allocator's. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import torch
from _common import arguments, device_name, print_table, synchronize, write_json
from torch import nn

from rvedit.editing.config import EditConfig, Progress
from rvedit.editing.long_video import edit_video
from rvedit.editing.memory_plan import EditPlanOptions, Planner, matrix_rate
from rvedit.io.records import ClipShape
from rvedit.pipelines.checkpoints import MODULE_CLASSES
from rvedit.pipelines.checkpoints.outline import outline
from rvedit.pipelines.loading import load_pipeline
from rvedit.pipelines.memory import place, quantize
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

OPTIONS: dict[str, dict[str, Any]] = {
    "no option": {},
    "vae-tiling": {"vae_tiling": True},
    "offload model": {"offload": "model"},
    "offload model, vae-tiling": {"offload": "model", "vae_tiling": True},
    "offload group": {"offload": "group"},
    "quantize fp8": {"quantization": "fp8"},
    "offload model, quantize fp8": {"offload": "model", "quantization": "fp8"},
}


def build(model: str, device: torch.device, dtype: torch.dtype) -> RVEDiTPipeline:
    """Return the pipeline of a model with random weights on the device, and nano's tokenizers."""
    plan, nano = outline(model), load_pipeline("nano", "cpu")
    special = nano.mllm_tokenizer.convert_tokens_to_ids
    modules: dict[str, Any] = {}
    for name in MODULE_CLASSES:
        module = getattr(plan, name)
        if module is None:
            continue
        kind = torch.float32 if name == "vae" else dtype
        torch.set_default_dtype(kind)
        cls = type(module)
        with torch.device(device):
            is_diffusers = hasattr(cls, "from_config")
            made = cls.from_config(module.config) if is_diffusers else cls(module.config)
        torch.set_default_dtype(torch.float32)
        modules[name] = nn.Module.to(made, kind).eval()
    fp32_modules = set(modules["transformer"]._keep_in_fp32_modules or ())
    for name, parameter in modules["transformer"].named_parameters():
        if not fp32_modules.isdisjoint(name.split(".")):
            parameter.data = parameter.data.float()
    config = modules["mllm"].config
    for kind in ("image", "video"):
        setattr(config, f"{kind}_token_id", special(f"<|{kind}_pad|>"))
    config.vision_start_token_id, config.vision_end_token_id = (
        special(f"<|vision_{end}|>") for end in ("start", "end")
    )
    return RVEDiTPipeline(
        **{"text_encoder": None, **modules},
        tokenizer=nano.tokenizer,
        mllm_tokenizer=nano.mllm_tokenizer,
        scheduler=plan.scheduler,
        **{name: plan.config[name] for name in RVEDiTPipeline.setting_names()},
    )


def edit(pipeline: RVEDiTPipeline, clip: ClipShape, steps: int, device: torch.device) -> dict[str, float]:
    """Return the seconds per step and in total, and the allocator's peak."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (clip.num_frames, clip.height, clip.width, 3), np.uint8)
    times = []

    def note(progress: Progress) -> None:
        synchronize(device)
        times.append(time.perf_counter())

    synchronize(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    count = sum(1 for _ in edit_video(pipeline, frames, "make it snow", EditConfig(steps), on_progress=note))
    ended = time.perf_counter()
    assert count == clip.num_frames
    cuda = device.type == "cuda"
    return {
        "seconds_a_step": float(np.median(np.diff(times))) if steps > 1 else float("nan"),
        "seconds_before_the_first_step_ends": times[0] - started,
        "seconds_after_the_last": ended - times[-1],
        "seconds": ended - started,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if cuda else float("nan"),
        "reserved_bytes": torch.cuda.max_memory_reserved(device) if cuda else float("nan"),
    }


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="Wan-AI/Wan2.2-TI2V-5B-Diffusers")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--size", type=int, nargs=2, default=(704, 1280), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS), metavar="OPTION")
    args = parser.parse_args()
    device = args.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    clip = ClipShape(args.frames, *args.size)
    rate = matrix_rate(device, dtype)
    shape = " x ".join(map(str, (args.frames, *args.size)))
    print(f"{device_name(device)}: {shape}, {args.steps} steps, {dtype}")
    planner = Planner(clip, args.model)
    rows: dict[str, Any] = {}
    for words in args.options:
        options = EditPlanOptions(dtype, steps=args.steps, **OPTIONS[words])
        plan = planner(options)
        pipeline = build(args.model, device, dtype)  # built again, since hooks and casts are hard to remove
        if options.quantization:
            quantize(pipeline, options.quantization, device)
        if options.vae_tiling:
            pipeline.vae.enable_tiling()
        try:
            place(pipeline, device, options.offload)
            measured = edit(pipeline, clip, args.steps, device)
        except torch.OutOfMemoryError:
            measured = {}
        each, total = plan.seconds(rate)
        rows[words] = {
            "planned": {**plan.as_json(), "seconds_a_step": each, "seconds": total},
            "measured": measured,
        }
        if measured:
            print(words, {key: f"{value:.4g}" for key, value in measured.items()}, flush=True)
        write_json(args, {"model": args.model, "matmul_flops_per_second": rate, "rows": rows})
        del pipeline
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    cells = []
    for words, row in rows.items():
        planned, measured = row["planned"], row["measured"]
        pairs = [("device_bytes", "peak_bytes"), ("seconds_a_step", "seconds_a_step"), ("seconds", "seconds")]
        cells.append([words])
        for (guess, found), unit in zip(pairs, (1e9, 1, 1), strict=True):
            cell = f"{measured[found] / unit:.2f}" if measured else "out of memory"
            cells[-1] += [f"{planned[guess] / unit:.2f}", cell]
    print()
    headers = ("option", "planned GB", "peak", "planned s/step", "s/step", "planned s", "s")
    print_table(headers, cells)


if __name__ == "__main__":
    main()
