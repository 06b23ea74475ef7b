"""A fair test of alignment at nano size: weights that differ by what they do to the gradient.

    python benchmarks/alignment_arms.py --first-stage runs/nano_first_stage_short

At the paper's weights, alignment's gradient is many times that of L_fm at this size
(benchmarks/gradient_ratio.py). Here every arm starts from one under-trained first stage and is trained with
AdamW at a fine-tuning rate (recipes/nano_arms.yaml), on the same batches, timesteps and noise: without
alignment, at three weights, and at a weight that keeps alignment's gradient at a tenth of that of L_fm. One
pair of arms draws t uniformly, as Algorithm 1 does. For the effect of routing alone, in one arm without
alignment every block reads all tokens:

    python benchmarks/alignment_arms.py --seeds 1 2 3 --arms "lambda = 0" "lambda = 0, L_s = 0" \
        --out benchmarks/results/routing_arms.json

Losses and edits are compared on held-out clips. Intervals are over clips and do not include the variance of
trainings; the JSON has the differences of each seed. Finished runs and evaluations are reused, and an
interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import device_name, edit_clip, print_table
from gradient_ratio import TIMES, as_batch
from nano_quality import held_out
from reproduce import RECIPES, ROOT, each, logged, options, plot_losses, train

from rvedit.editing.config import EditConfig
from rvedit.evaluation.aggregate import estimate_of, resampled_means
from rvedit.evaluation.measures import SUCCESS_GAIN, edit_gain
from rvedit.pipelines.loading import load_pipeline
from rvedit.training.step import losses_at, sample_noise_and_timesteps

OVERLAY = RECIPES / "nano_arms.yaml"
NONE, NONE_UNIFORM, EVERYWHERE = "lambda = 0", "lambda = 0, shift 1", "lambda = 0, L_s = 0"
ARMS: dict[str, tuple[str, ...]] = {
    NONE: ("alignment.weight=0",),
    "lambda = 0.01": ("alignment.weight=0.01",),
    "lambda = 0.1": ("alignment.weight=0.1",),
    "lambda = 0.75": ("alignment.weight=0.75",),
    "ratio = 0.1": ("alignment.weight=null", "alignment.ratio=0.1"),
    NONE_UNIFORM: ("alignment.weight=0", "flow.shift=1"),
    "lambda = 0.1, shift 1": ("alignment.weight=0.1", "flow.shift=1"),
    EVERYWHERE: ("alignment.weight=0", "model.routing_depth=0"),
}
"""By label: the changed settings of recipes/rvedit.yaml under the overlay."""
FIRST_STAGE = "the first stage itself"
QUANTITIES = ("loss_fm", "loss_align", "gain", "success")
NUM_FRAMES, SIZE, REALISM = 1, 128, 0.5  # the arms are trained on stills of realism 0 to 1
NOISE_SEED = 0


def arm_name(label: str, seed: int) -> str:
    """Return the run folder's name of an arm."""
    return (
        "arm_" + "".join(c if c.isalnum() or c == "." else "_" for c in label).replace("__", "") + f"_{seed}"
    )


def train_first_stage(args: argparse.Namespace) -> None:
    """Train the first stage for a part of its steps, unless it exists."""
    if not (args.first_stage / "model" / "model_index.json").is_file():
        settings = ["model.vae_from=nano", f"steps={args.first_stage_steps}"]
        train(args.first_stage, RECIPES / "nano_first_stage.yaml", (), settings, 1)


def train_arm(label: str, seed: int, args: argparse.Namespace) -> Path:
    """Train an arm unless it is finished; return its run folder."""
    run = args.work / arm_name(label, seed)
    settings = [f"model.init_from={args.first_stage}", f"seed={seed}", f"data.seed={seed}", *ARMS[label]]
    if args.steps:
        settings.append(f"steps={args.steps}")
    train(run, RECIPES / "rvedit.yaml", [OVERLAY], settings, args.at_once)
    return run


@torch.no_grad()
def evaluate(model: Path, args: argparse.Namespace) -> list[dict[str, float]]:
    """Return the quantities of each held-out clip, from an earlier evaluation if there is one.

    Both losses are means over the times of `gradient_ratio.TIMES`, with one noise per clip. Eq. 5 is taken at
    one block for each time, so that all blocks have equal shares of all clips and times.
    """
    file = args.work / "evaluations" / f"{model.name}.json"
    settings = {"count": args.count, "denoising_steps": args.denoising_steps}
    if file.is_file() and (found := json.loads(file.read_text(encoding="utf-8")))["settings"] == settings:
        return found["clips"]
    pipeline = load_pipeline(str(model), args.device.type)
    config = EditConfig(num_inference_steps=args.denoising_steps, detail=0)
    blocks, rows = len(pipeline.transformer.blocks), []
    clips = held_out(args.count, NUM_FRAMES, SIZE, realism=REALISM)
    for number, (triplet, source, target, mask) in enumerate(clips):
        batch = as_batch(pipeline, number, triplet, source, target)
        shape = batch.reference.latents.shape[1:]
        noise = sample_noise_and_timesteps(NOISE_SEED, [number], shape)[1].to(args.device)
        losses = []
        for index, time in enumerate(TIMES):
            depth = 1 + (number * len(TIMES) + index) % blocks
            t = torch.full((1,), time, device=args.device)
            found = losses_at(pipeline, batch, t, noise, depth)
            losses.append([float(found[name]) for name in ("loss_fm", "loss_align")])
        gain = edit_gain(source, edit_clip(pipeline, source, triplet.instruction, config), target, mask)
        values = (*np.mean(losses, axis=0).tolist(), gain, float(gain > SUCCESS_GAIN))
        rows.append(dict(zip(QUANTITIES, values, strict=True)))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"settings": settings, "clips": rows}, indent=1) + "\n", encoding="utf-8")
    return rows


def interval(values: Any) -> list[float]:
    """Return the mean over clips (clips,) and its 95% interval."""
    estimate = estimate_of(
        float(values.mean()), resampled_means(values[:, None], np.random.default_rng(0))[:, 0]
    )
    return [estimate.value, estimate.low, estimate.high]


def summarize(label: str, clips: Any, base: Any, runs: Sequence[Path]) -> dict[str, Any]:
    """Return the row of an arm from its clips (seeds, clips, quantities) and those without alignment."""
    row: dict[str, Any] = {"label": label}
    for i, name in enumerate(QUANTITIES):
        row[name] = interval(clips[:, :, i].mean(axis=0))
        if base is not None:
            less = clips[:, :, i] - base[:, :, i]
            row[f"{name}_less_none"] = interval(less.mean(axis=0))
            row[f"{name}_less_none_by_seed"] = less.mean(axis=1).tolist()
    for key in ("grad_ratio_align", "align_weight"):
        values = np.concatenate([logged(run, key) for run in runs]) if runs else np.array([])
        row[key] = [float(f(values)) for f in (np.median, np.min, np.max)] if len(values) else None
    return row


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Evaluate the first stage and all arms; return the rows of the table."""
    clips = {FIRST_STAGE: np.array([[list(c.values()) for c in evaluate(args.first_stage, args)]])}
    runs = {label: [args.work / arm_name(label, seed) for seed in args.seeds] for label in args.arms}
    for label, folders in runs.items():
        clips[label] = np.array([[list(c.values()) for c in evaluate(run, args)] for run in folders])
    rows = []
    for label, values in clips.items():
        none = NONE_UNIFORM if "shift 1" in label else NONE
        base = None if label in (none, FIRST_STAGE) else clips.get(none)
        rows.append(summarize(label, values, base, runs.get(label, ())))
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""

    def cell(row: dict[str, Any], key: str, form: str) -> str:
        if row.get(key) is None:
            return ""
        return f"{{:{form}}} [{{:{form}}}, {{:{form}}}]".format(*row[key])

    print_table(
        ("mean [95%]", "L_fm", "less none", "Eq. 5", "gain", "less none", "success", "ratio: median [range]"),
        [
            (
                row["label"],
                cell(row, "loss_fm", ".4f"),
                cell(row, "loss_fm_less_none", "+.4f"),
                cell(row, "loss_align", ".2f"),
                cell(row, "gain", ".2f"),
                cell(row, "gain_less_none", "+.2f"),
                cell(row, "success", ".0%"),
                cell(row, "grad_ratio_align", ".2f"),
            )
            for row in rows
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the test."""
    parser = options(__doc__, ROOT / "benchmarks" / "results" / "alignment_arms.json")
    parser.set_defaults(
        first_stage=Path("runs/nano_first_stage_short"),
        work=Path("runs/alignment_arms"),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    parser.add_argument("--first-stage-steps", type=int, default=600, help="if it has to be trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--denoising-steps", type=int, help="of an edit; default: the model's")
    args = parser.parse_args(arguments)
    train_first_stage(args)
    jobs = [(label, seed) for seed in args.seeds for label in args.arms]
    each(lambda job: train_arm(*job, args), jobs, args)
    rows = compare(args)
    show(rows)
    runs = {label: [args.work / arm_name(label, seed) for seed in args.seeds] for label in args.arms}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot_losses(
        runs, args.out.with_suffix(""), "From one under-trained first stage, on the same batches and noise"
    )
    about = {
        "device": device_name(args.device),
        "seeds": args.seeds,
        "clips": args.count,
        "steps": len(logged(runs[args.arms[0]][0], "loss_fm")),
        "times": TIMES,
    }
    args.out.write_text(json.dumps({**about, "arms": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
