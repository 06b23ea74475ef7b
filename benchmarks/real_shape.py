"""Denoising steps, training steps and Eq. 5 at the 5B's real size, with random weights.

    python benchmarks/real_shape.py --out benchmarks/results/real_shape_h100.json

`--scale full` is 81 x 704 x 1280 in the 5B (S = 18,480, bf16, the default on CUDA), `small` is the same code
at S = 768, width 256, fp32 (the default elsewhere). There are three tables: a denoising step for each
context, with and without reuse of keys and values; a routed training step (`training_losses` and its backward
pass with gradient checkpointing, with the optimizer only if `--optimizer`) without alignment and with
alignment at some depths; Eq. 5 alone. Latents, X_e and text states are fixed. Ratios are relative to the
first row that fits; `by formula` is the ratio of FLOPs in matrix products; `of matmul` is the share of the
FLOP/s of a large matrix product, in bf16 for the transformer (fp32 at small scale) and in fp32 for Eq. 5.
Peak memory is the allocator's, on CUDA only, with weights and nothing else in memory; that of Eq. 5 excludes
its inputs (see alignment_memory.py). Variants that run out of memory are marked. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from _common import (
    Step,
    arguments,
    device_name,
    in_fresh_process,
    interleaved_medians,
    matmul_rate,
    peak_bytes,
    print_table,
    write_json,
)
from _shapes import (
    CONTEXTS,
    FULL,
    SMALL,
    Shape,
    StubPipeline,
    alignment_flops,
    build_token_groups,
    build_transformer,
    context_lengths,
    forward_flops,
    sample_of_depths,
    training_flops,
)
from alignment_memory import measure, random_traces
from training_step import build_steps

from rvedit.losses.alignment import alignment_loss
from rvedit.models.transformer import RoutedWanTransformer3DModel

HEADERS = ("", "ratio", "by formula", "TFLOP", "of matmul", "peak GB")


@dataclass(frozen=True)
class Variant:
    """A row of a table: a function that builds the call, and the call's FLOPs."""

    build: Callable[[], Step]
    flops: float


def measure_table(
    variants: Mapping[str, Variant], device: torch.device, repeats: int, rate: float
) -> dict[str, dict[str, Any]]:
    """Return the memory of each variant on its own, and interleaved times of those that fit."""
    peaks: dict[str, int | None] = {}
    failed = set()
    for name, variant in variants.items():
        peaks[name] = None
        try:
            step = variant.build()
            step()  # fills the caches
            peaks[name] = peak_bytes(step, device)[1] if device.type == "cuda" else None
        except torch.OutOfMemoryError:
            failed.add(name)
        step = None
        gc.collect()
        torch.cuda.empty_cache()
    steps = {name: variant.build() for name, variant in variants.items() if name not in failed}
    seconds = interleaved_medians(steps, device, repeats)
    first = next(iter(seconds), "")
    return {
        name: {
            "out_of_memory": name in failed,
            "flops": variant.flops,
            "by_formula": variant.flops / variants[first or name].flops,
            "peak_bytes": peaks[name],
            **(
                {
                    "seconds": seconds[name],
                    "ratio": seconds[name] / seconds[first],
                    "share_of_matmul": variant.flops / seconds[name] / rate,
                }
                if name in seconds
                else {}
            ),
        }
        for name, variant in variants.items()
    }


def show(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of `measure_table`."""
    cells = []
    for name, row in rows.items():
        peak = row.get("peak_bytes")
        if row.get("out_of_memory"):
            ratio, share, memory = "-", "-", "out of memory"
        else:
            ratio, share = f"{row['ratio']:.3f}", f"{row['share_of_matmul']:.0%}"
            memory = "-" if peak is None else f"{peak / 1e9:.3f}"
        cells.append((name, ratio, f"{row['by_formula']:.3f}", f"{row['flops'] / 1e12:.4g}", share, memory))
    print()
    print_table((title, *HEADERS[1:]), cells)


def edit_variants(transformer: RoutedWanTransformer3DModel, shape: Shape) -> dict[str, Variant]:
    """Return a denoising step for each context, with and without reuse of keys and values."""
    like = transformer.patch_embedding.weight
    latents = torch.randn(shape.latents, device=like.device, dtype=like.dtype)
    timestep = torch.full((1,), 500.0, device=like.device)

    def build(context: str, reuse: bool) -> Step:
        @torch.no_grad()
        def step() -> None:
            transformer(latents, timestep, groups, contexts)

        with torch.no_grad():
            groups = build_token_groups(transformer, shape, context)
        # This fixes what each block reads, so the transformer's routing depth may change later.
        contexts = transformer.contexts(groups, reuse)
        return step

    return {
        f"{context}{', reuse' if reuse else ''}": Variant(
            lambda context=context, reuse=reuse: build(context, reuse),
            forward_flops(shape, context_lengths(shape, context), reuse),
        )
        for context in CONTEXTS
        for reuse in (False, True)
    }


def training_variants(
    transformer: RoutedWanTransformer3DModel, shape: Shape, depths: list[int], bf16: bool, optimizer: bool
) -> dict[str, Variant]:
    """Return training steps without alignment and with alignment at each depth."""
    transformer.register_to_config(routing_depth=shape.config["routing_depth"])
    transformer.enable_gradient_checkpointing()
    steps = build_steps(StubPipeline(transformer, shape), shape, depths, bf16, optimizer)
    timed: list[list[int]] = [[], *([depth] for depth in depths)]
    return {
        name: Variant(lambda step=step: step, training_flops(shape, depth))
        for (name, step), depth in zip(steps.items(), timed, strict=True)
    }


def average_aligned(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of the aligned rows that fit: the cost at a uniformly drawn depth."""
    aligned = [row for name, row in list(rows.items())[1:] if "ratio" in row]
    if not aligned:
        return {}
    keys = ("seconds", "ratio", "by_formula", "flops", "share_of_matmul")
    return {"aligned, mean of these": {key: mean(row[key] for row in aligned) for key in keys}}


def alignment_variant(sequence: int, width: int, dtype: torch.dtype, device: torch.device) -> Variant:
    """Return a variant of Eq. 5 with its gradient."""

    def build() -> Step:
        trace, reference = random_traces(sequence, width, dtype, device)

        def step() -> None:
            alignment_loss(trace, reference).backward()
            trace.grad = None

        return step

    return Variant(build, alignment_flops(sequence, width))


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, repeats=3)
    default = "full" if torch.cuda.is_available() else "small"
    parser.add_argument("--scale", choices=("small", "full"), default=default)
    parser.add_argument("--depths", type=int, default=4, help="number of alignment depths to time")
    parser.add_argument("--parts", nargs="+", choices=("edit", "train", "alignment"), help="default: all")
    parser.add_argument("--optimizer", action="store_true", help="include AdamW's update in a training step")
    args = parser.parse_args()
    parts = args.parts or ("edit", "train", "alignment")
    full, device = args.scale == "full", args.device
    shape, dtype = (FULL, torch.bfloat16) if full else (SMALL, torch.float32)

    rates = {kind: matmul_rate(device, kind) for kind in {dtype, torch.float32}}
    print(f"{device_name(device)}: S {shape.sequence}, width {shape.width}, {shape.blocks} blocks, {dtype}")
    print("large matmul: " + ", ".join(f"{rate / 1e12:.3g} TFLOP/s {kind}" for kind, rate in rates.items()))
    results: dict[str, Any] = {
        "sequence": shape.sequence,
        "matmul_flops_per_second": {str(k): v for k, v in rates.items()},
    }
    transformer = build_transformer(shape, device, dtype) if {"edit", "train"} & set(parts) else None

    if "edit" in parts:
        variants = edit_variants(transformer, shape)
        results["edit"] = measure_table(variants, device, args.repeats, rates[dtype])
        show("a denoising step", results["edit"])
        gc.collect()
    if "train" in parts:
        depths = sample_of_depths(shape.blocks, args.depths)
        variants = training_variants(transformer, shape, depths, full, args.optimizer)
        rows = measure_table(variants, device, args.repeats, rates[dtype])
        results["train"] = rows | average_aligned(rows)
        show("a training step, routed", results["train"])
        lengths = context_lengths(shape, "routed")
        whole = forward_flops(shape, lengths)
        uniform = range(1, shape.blocks + 1)
        share = mean(forward_flops(shape, lengths, stop_at=depth) / whole for depth in uniform)
        ratio = training_flops(shape, uniform) / training_flops(shape)
        results["by_formula"] = {"reference_share_of_forward": share, "aligned_ratio": ratio}
        print(f"by formula, any depth: the reference is {share:.1%} of a forward, the step {ratio:.3f}")
    variants = transformer = None
    gc.collect()
    if "alignment" in parts:
        sequence, width = (shape.sequence, shape.width) if full else (2048, shape.width)
        variant = alignment_variant(sequence, width, dtype, device)
        name = f"S {sequence}, d {width}"
        row = measure_table({name: variant}, device, args.repeats, rates[torch.float32])[name]
        if not row["out_of_memory"]:
            extra = in_fresh_process(measure, "streamed", sequence, width, dtype, device)["extra_bytes"]
            row["peak_bytes"] = extra
        results["alignment"] = {name: row}
        show("Eq. 5 and its gradient", results["alignment"])
    write_json(args, results)


if __name__ == "__main__":
    main()
