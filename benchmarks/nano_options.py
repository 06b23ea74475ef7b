"""What the options of `rvedit edit` do to nano's edits of held-out clips, each against the plain edit.

    python benchmarks/nano_options.py --out benchmarks/results/nano_options.json

Three tables: `--preserve` (preservation, gain); `--fast` (time of the same edits side by side, gain, decibels
against the plain edit); seams (frame-to-frame change across the borders of windows against that inside them,
on clips of several windows, and the same of the true edits and of the VAE's picture of them).
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import torch
from _common import arguments, device_name, print_table, write_json
from nano_quality import held_out

from rvedit.editors import load_editor
from rvedit.editors.speed import FASTS, reuse_steps
from rvedit.judge.measures import edit_gain, preservation
from rvedit.model.latents import StreamDecoder, encode
from rvedit.records import EditSettings
from rvedit.video_tensors import to_model_range

SIZE = 128


def preserve_table(pipeline, count):
    gains, kept = ([], []), ([], [])
    for triplet, source, target, mask in held_out(count, 9, SIZE):
        for side, flag in enumerate((False, True)):
            edit = pipeline(source, triplet.instruction, EditSettings(preserve=flag))
            gains[side].append(edit_gain(source, edit, target, mask))
            if not mask.all():
                kept[side].append(preservation(edit, target, mask))
    plain, preserved = (
        {"gain": float(np.mean(g)), "preservation": float(np.mean(k))}
        for g, k in zip(gains, kept, strict=True)
    )
    rows = [
        (name, f"{r['gain']:.3f}", f"{r['preservation']:.1f}")
        for name, r in (("plain", plain), ("--preserve", preserved))
    ]
    rows.append(
        (
            "difference",
            f"{preserved['gain'] - plain['gain']:+.3f}",
            f"{preserved['preservation'] - plain['preservation']:+.1f}",
        )
    )
    print_table((f"{count} clips", "gain", "preservation, dB"), rows)
    return {"plain": plain, "preserve": preserved, "clips": count}


def fast_table(pipeline, count):
    transformer = pipeline.transformer
    variants = ["plain", *FASTS]
    seconds, gains, near = (defaultdict(list) for _ in range(3))
    for triplet, source, target, mask in held_out(count, 9, SIZE):
        edits = {}
        for name in variants:
            if name != "plain":
                reuse_steps(pipeline, name)
            started = time.perf_counter()
            edits[name] = pipeline(source, triplet.instruction, EditSettings())
            seconds[name].append(time.perf_counter() - started)
            if name != "plain":
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
    print_table((f"--fast, {count} clips", "time", "gain", "dB against plain"), rows)
    return table


def seam_table(pipeline, count, num_frames=33):
    stride = pipeline.config.window_stride
    across, inside = defaultdict(list), defaultdict(list)
    for triplet, source, target, _ in held_out(count, num_frames, SIZE):
        edit = pipeline(source, triplet.instruction, EditSettings())
        with torch.no_grad():
            latents = encode(pipeline.vae, to_model_range(target)[None].to(pipeline.device))
            picture = StreamDecoder(pipeline.vae).frames(latents)
        for name, clip in (("edit", edit), ("VAE alone", picture), ("true edit", target)):
            change = np.abs(np.diff(clip.astype(float), axis=0)).mean(axis=(1, 2, 3))
            # The first window gives its whole length, each other one a stride more: here as many frames as
            # one latent covers, so that seams are where the VAE's groups meet; hence the VAE alone beside it.
            is_border = np.arange(num_frames - 1) % stride == 0
            is_border[: pipeline.config.window_frames - 1] = False
            across[name].append(change[is_border].mean())
            inside[name].append(change[~is_border].mean())
    table = {
        name: {"across": float(np.mean(across[name])), "inside": float(np.mean(inside[name]))}
        for name in across
    }
    rows = [
        (name, f"{r['across']:.2f}", f"{r['inside']:.2f}", f"{r['across'] / r['inside']:.2f}")
        for name, r in table.items()
    ]
    print_table(
        (f"seams, {count} clips of {num_frames} frames, grey levels", "across", "inside", "ratio"), rows
    )
    return table


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument(
        "--count", type=int, default=60, help="clips of the first two tables; a third of it for seams"
    )
    args = parser.parse_args()
    pipeline = load_editor(args.model, args.device.type).pipeline
    print(device_name(args.device))
    write_json(
        args,
        {
            "preserve": preserve_table(pipeline, args.count),
            "fast": fast_table(pipeline, args.count),
            "seams": seam_table(pipeline, max(8, args.count // 3)),
        },
    )


if __name__ == "__main__":
    main()
