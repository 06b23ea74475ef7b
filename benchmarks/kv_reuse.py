"""The effect of reusing cross-attention's keys and values in all denoising steps of an edit.

    python benchmarks/kv_reuse.py

One window of nano (with random weights, which do not affect the result) is edited with and without reuse. The
step time excludes the first step, which fills the cache. Calls of `to_k` and `to_v` in all cross-attention
layers are counted. The two edits must be equal.
"""

from __future__ import annotations

import time
from collections import Counter
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import arguments, device_name, print_table, synchronize, write_json
from diffusers import AutoencoderKLWan

from rvedit.models.model_spec import model_spec
from rvedit.models.presets import NANO_VAE
from rvedit.pipelines.checkpoints import build_from_scratch
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

INSTRUCTION = "replace the dog with a corgi"


def edit(
    pipeline: RVEDiTPipeline, frames: np.ndarray, steps: int, guidance: float, device: torch.device
) -> tuple[torch.Tensor, list[float]]:
    """Return the edited latents of one window, and the seconds of each step from the second on."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    latents = pipeline(
        frames,
        INSTRUCTION,
        height=frames.shape[1],
        width=frames.shape[2],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=mark,
    ).frames
    return latents, np.diff(marks).tolist()


def count_projections(pipeline: RVEDiTPipeline, calls: Counter[str]) -> None:
    """Count every later projection of keys and values in `calls`."""
    for block in pipeline.transformer.blocks:
        for name in ("to_k", "to_v"):
            layer = getattr(block.attn2, name)
            layer.register_forward_hook(lambda *_, name=name: calls.update([name]))


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--steps", type=int, default=12, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=1.0, help="other than 1: two passes per step")
    args = parser.parse_args()

    vae = AutoencoderKLWan(**NANO_VAE)
    pipeline = build_from_scratch(
        model_spec("nano"), [INSTRUCTION], vae, routing_depth=None, shift=5.0, seed=0
    ).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    calls: Counter[str] = Counter()
    count_projections(pipeline, calls)
    frames = np.random.default_rng(0).integers(0, 256, (9, 112, 128, 3), dtype=np.uint8)

    seconds: dict[bool, list[float]] = {False: [], True: []}
    outputs, projections = {}, {}
    for repeat in range(1 + args.repeats):
        for reuse in (False, True):
            calls.clear()
            pipeline.reuse_key_values = reuse
            outputs[reuse], times = edit(pipeline, frames, args.steps, args.guidance, args.device)
            projections[reuse] = dict(calls)
            seconds[reuse] += times if repeat else []

    ratio = median(seconds[True]) / median(seconds[False])
    difference = float((outputs[True] - outputs[False]).abs().max())
    print(f"{device_name(args.device)}: {len(pipeline.transformer.blocks)} blocks, {args.steps} steps")
    names = {False: "without reuse", True: "with reuse"}
    print_table(
        ("one window", "to_k calls", "to_v calls", "step time, ratio"),
        [
            (name, str(calls["to_k"]), str(calls["to_v"]), f"{relative:.3f}")
            for name, calls, relative in zip(names.values(), projections.values(), (1.0, ratio), strict=True)
        ],
    )
    print(f"largest difference of the latents: {difference:.1e}")
    results = {"step_time_ratio": ratio, "max_difference": difference}
    write_json(args, {**results, "calls": {names[reuse]: calls for reuse, calls in projections.items()}})


if __name__ == "__main__":
    main()
