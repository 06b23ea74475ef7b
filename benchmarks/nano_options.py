"""The effect of options of `rvedit edit` on nano's edits of held-out clips, compared with plain edits.

    python benchmarks/nano_options.py --out benchmarks/results/nano_options.json

Four tables: --preserve (gain, preservation, flicker); --fast and --compile (time, gain, PSNR to the plain
edit); unknown instructions; seams (change from frame to frame across the borders of windows relative to that
inside, on clips of several windows, for edits, targets and the VAE's reconstructions of the targets).
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import torch
from _common import arguments, device_name, edit_clip, print_table, write_json
from nano_quality import held_out, measure, summarize

from rvedit.editing.config import EditConfig
from rvedit.editing.windows import WindowPlan
from rvedit.evaluation.measures import edit_gain
from rvedit.io.frames import to_model_range
from rvedit.models.autoencoder import FRAMES_PER_LATENT, StreamDecoder, encode
from rvedit.pipelines.loading import load_pipeline
from rvedit.pipelines.speed import FAST_MODES, enable_step_cache

SIZE = 128
PLAIN = EditConfig(detail=0)  # the model alone


def preserve_table(pipeline, count):
    variants = {
        "plain": EditConfig(detail=0),
        "--preserve": EditConfig(detail=0, preserve=True),
        "with detail": EditConfig(),
        "with detail, --preserve": EditConfig(preserve=True),
    }
    rows = {name: [] for name in variants}
    for triplet, source, target, mask in held_out(count, 9, SIZE):
        for name, settings in variants.items():
            edit = edit_clip(pipeline, source, triplet.instruction, settings)
            rows[name].append(measure(source, edit, target, mask))
    table = {name: summarize(measured) for name, measured in rows.items()}
    keys = ("gain", "preservation", "flicker")
    table["difference"] = {key: table["--preserve"][key] - table["plain"][key] for key in keys}
    print_table(
        (f"{count} clips", "gain", "preservation, dB", "flicker"),
        [(name, *(f"{row[key]:.3f}" for key in keys)) for name, row in table.items()],
    )
    return table


def fast_table(pipeline, compiled, count):
    transformer = pipeline.transformer
    variants = ["plain", *FAST_MODES, "compile"]
    first = next(held_out(1, 9, SIZE))
    edit_clip(compiled, first[1], first[0].instruction, PLAIN)  # compiles the model
    seconds, gains, near = (defaultdict(list) for _ in range(3))
    for triplet, source, target, mask in held_out(count, 9, SIZE):
        edits = {}
        for name in variants:
            if name in FAST_MODES:
                enable_step_cache(pipeline, name)
            started = time.perf_counter()
            pipe = compiled if name == "compile" else pipeline
            edits[name] = edit_clip(pipe, source, triplet.instruction, PLAIN)
            seconds[name].append(time.perf_counter() - started)
            if name in FAST_MODES:
                transformer.disable_cache()
            gains[name].append(edit_gain(source, edits[name], target, mask))
            error = np.square(edits[name].astype(float) - edits["plain"]).mean()
            near[name].append(10 * np.log10(255**2 / max(error, 1e-2)))
    base = np.median(seconds["plain"])
    table = {
        name: {
            "time": float(np.median(seconds[name]) / base),
            "gain": float(np.mean(gains[name])),
            "psnr": float(np.mean(near[name])),
        }
        for name in variants
    }
    rows = [
        (name, f"{r['time']:.2f}", f"{r['gain']:.3f}", "" if name == "plain" else f"{r['psnr']:.1f}")
        for name, r in table.items()
    ]
    print_table((f"--fast and --compile, {count} clips", "time", "gain", "dB against plain"), rows)
    return table


UNKNOWN = (
    "increase the narrative tension", "turn the zebra into a spaceship", "mach den Hund bitte gelb",
    "зроби небо зеленим", "asdf qwer", "!!!", "give her a hat made of glass", "x" * 300,
)  # fmt: skip


def unknown_table(pipeline, count):
    """Measure how close edits by unknown instructions are to the source, on held-out clips."""
    decibels = []
    for index, (_, source, _, _) in enumerate(held_out(count, 9, SIZE)):
        edit = edit_clip(pipeline, source, UNKNOWN[index % len(UNKNOWN)], PLAIN)
        decibels.append(10 * np.log10(255**2 / np.square(edit.astype(float) - source).mean()))
    table = {"median": float(np.median(decibels)), "least": float(min(decibels)), "clips": count}
    print_table(("unknown instructions: dB to the source", "median", "least"),
                [(f"{count} clips", f"{table['median']:.1f}", f"{table['least']:.1f}")])  # fmt: skip
    return table


def seams_and_borders(plan, num_frames):
    """Return which changes from a frame to the next cross windows, and which only groups of the VAE's frames.

    Seams are also borders between those groups, so these are measured for comparison.
    """
    seams = np.arange(plan.length - 1, num_frames - 1, plan.stride)
    return seams, np.setdiff1d(np.arange(0, num_frames - 1, FRAMES_PER_LATENT), seams)


def seam_table(pipeline, count, windows=4):
    plan = WindowPlan.of(pipeline)
    num_frames = plan.length + (windows - 1) * plan.stride
    seams, borders = seams_and_borders(plan, num_frames)
    across, inside, groups = (defaultdict(list) for _ in range(3))
    for triplet, source, target, _ in held_out(count, num_frames, SIZE):
        edit = edit_clip(pipeline, source, triplet.instruction, PLAIN)
        with torch.no_grad():
            latents = encode(pipeline.vae, to_model_range(target)[None].to(pipeline.device))
            reconstruction = StreamDecoder(pipeline.vae).frames(latents)
        for name, clip in (("edit", edit), ("VAE alone", reconstruction), ("true edit", target)):
            change = np.abs(np.diff(clip.astype(float), axis=0)).mean(axis=(1, 2, 3))
            across[name].append(change[seams].mean())
            inside[name].append(np.delete(change, seams).mean())
            groups[name].append(change[borders].mean())
    table = {
        name: {
            "across": float(np.mean(across[name])),
            "inside": float(np.mean(inside[name])),
            "groups_inside": float(np.mean(groups[name])),
        }
        for name in across
    }
    rows = []
    for name, r in table.items():
        ratios = (r["across"] / r["inside"], r["across"] / r["groups_inside"])
        rows.append((name, f"{r['across']:.2f}", f"{r['inside']:.2f}", *(f"{ratio:.2f}" for ratio in ratios)))
    title = f"seams, {count} clips of {num_frames} frames, gray levels"
    print_table((title, "across", "inside", "ratio", "ratio to group borders inside"), rows)
    return table


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument(
        "--count", type=int, default=60, help="clips for the first two tables; for seams a third of them"
    )
    args = parser.parse_args()
    pipeline = load_pipeline(args.model, args.device.type)
    compiled = load_pipeline(args.model, args.device.type, compile=True)
    print(device_name(args.device))
    write_json(
        args,
        {
            "preserve": preserve_table(pipeline, args.count),
            "fast": fast_table(pipeline, compiled, args.count),
            "unknown_words": unknown_table(pipeline, min(24, args.count)),
            "seams": seam_table(pipeline, max(8, args.count // 3)),
        },
    )


if __name__ == "__main__":
    main()
