"""What keeping cross-attention's keys and values over the steps of an edit gives.

    python benchmarks/kv_reuse.py

One window of nano (random weights; the result does not depend on them) is edited with and without reuse.
Times are of steps from the second on: the first fills what later ones reuse. Counted: calls of `to_k` and
`to_v` in all cross-attentions. The edits must be equal.
"""

from __future__ import annotations

import time
from collections import Counter
from statistics import median

import numpy as np
import torch
from _common import arguments, device_name, print_table, synchronize, write_json
from diffusers import AutoencoderKLWan

from rvedit.editing.windows import WindowNoise
from rvedit.models.presets import NANO_VAE
from rvedit.pipelines.checkpoints import build_nano
from rvedit.pipelines.pipeline_rvedit import EditConfig, RVEDiTPipeline

INSTRUCTION = "replace the dog with a corgi"


def edit(
    pipeline: RVEDiTPipeline, frames: np.ndarray, settings: EditConfig, device: torch.device
) -> tuple[torch.Tensor, list[float]]:
    """The edited latents of one window, and the seconds of its steps from the second on."""
    marks: list[float] = []

    def mark(step: int, num_steps: int) -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    noise = WindowNoise(pipeline.window_plan, settings.seed)
    latents = pipeline.edit_window(frames, INSTRUCTION, settings, noise, mark)
    return latents, np.diff(marks).tolist()


def count_projections(pipeline: RVEDiTPipeline, calls: Counter[str]) -> None:
    """Count from now on how often keys and values are projected."""
    for block in pipeline.transformer.blocks:
        for name in ("to_k", "to_v"):
            layer = getattr(block.attn2, name)
            layer.register_forward_hook(lambda *_, name=name: calls.update([name]))


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--steps", type=int, default=12, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=1.0, help="other than 1: a second pass a step")
    args = parser.parse_args()

    vae = AutoencoderKLWan(**NANO_VAE)
    pipeline = build_nano([INSTRUCTION], vae, routing_depth=None, shift=5.0, seed=0).to(args.device)
    calls: Counter[str] = Counter()
    count_projections(pipeline, calls)
    frames = np.random.default_rng(0).integers(0, 256, (9, 112, 128, 3), dtype=np.uint8)

    seconds: dict[bool, list[float]] = {False: [], True: []}
    outputs, projections = {}, {}
    for repeat in range(1 + args.repeats):
        for reuse in (False, True):
            calls.clear()
            settings = EditConfig(args.steps, args.guidance, reuse_key_values=reuse, detail=0)
            outputs[reuse], times = edit(pipeline, frames, settings, args.device)
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
