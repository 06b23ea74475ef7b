"""The effect of alignment at nano size.

    python benchmarks/alignment_study.py --first-stage runs/nano_first_stage

From one first stage, with the same batches, timesteps and noise, routed at half of the depth: no alignment is
compared with full weight, with a weight that rises over the whole training, and with the weight of Appendix
D.1. From scratch, on stills: no alignment is compared with D.1's weight by the training loss alone, since so
few steps are not enough to learn edits. Existing runs, edits and scores are reused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import print_table
from reproduce import (
    LAST_STEPS,
    OVERLAY,
    RECIPES,
    ROOT,
    each,
    edit_and_judge,
    from_first_stage,
    losses,
    options,
    plot_losses,
    prepare_held_out,
    require_first_stage,
    train,
)

from rvedit.analysis.table_rows import OVERALL, result_rows
from rvedit.evaluation.judge import read_judged
from rvedit.training.recipe import load_recipe

NONE = "lambda = 0"
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    NONE: ("ablation_wo_raaa", ()),
    "lambda = 0.75": ("rvedit", ()),
    "lambda = 0.75, rising over all steps": ("rvedit", ("alignment.warmup_steps={steps}",)),
    "lambda = 0.1": ("rvedit", ("alignment.weight=0.1",)),
}
"""By label: a recipe, run at nano size, and its changed settings."""
SCRATCH_WEIGHTS = (0.0, 0.1)
SCRATCH_STEPS = 150


def run_name(label: str) -> str:
    """Return a run folder's name for a label."""
    return "study_" + "".join(c if c.isalnum() or c in "._" else "" for c in label.replace(" ", "_"))


def from_scratch(weight: float, seed: int, args: argparse.Namespace) -> Path:
    """Train nano from scratch on stills, routed at half of its depth; return the run folder."""
    run = args.work / f"scratch_{weight:g}_{seed}"
    settings = [
        "model.init_from=null", f"model.vae_from={args.vae}", "model.routing_depth=4", "batch_size=24",
        f"alignment.weight={weight:g}", f"steps={SCRATCH_STEPS}", f"seed={seed}", f"data.seed={seed}",
    ]  # fmt: skip
    train(run, RECIPES / "nano_first_stage.yaml", (), settings, args.at_once)
    return run


def study(seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results of the variants; differences are to no alignment, over clips."""
    runs = {label: args.work / f"{run_name(label)}_{seed}" for label in VARIANTS}

    def one(label: str) -> None:
        name, settings = VARIANTS[label]
        steps = args.steps or load_recipe(OVERLAY).steps
        settings = tuple(setting.format(steps=steps) for setting in settings)
        edit_and_judge(from_first_stage(name, seed, args, *settings, run=run_name(label)), args)

    each(one, list(VARIANTS), args)
    edits = args.work / "edits"
    judged = {label: [read_judged(edits / run.name)[1]["reference"]] for label, run in runs.items()}
    judged["the first stage itself"] = [read_judged(edit_and_judge(args.first_stage, args))[1]["reference"]]
    rows = []
    for row in result_rows([], judged, "reference", NONE):
        overall, contrast = row.ours[OVERALL], row.contrast
        rows.append(
            {
                "label": row.label,
                "overall": [overall.value, overall.low, overall.high],
                "less_none": [getattr(contrast.overall.mean, k) for k in ("value", "low", "high")]
                if contrast
                else None,
                "p": contrast.p_value if contrast else None,
                "loss_fm": float(losses(runs[row.label])[-LAST_STEPS:].mean()) if row.label in runs else None,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = options(__doc__, ROOT / "benchmarks" / "results" / "alignment_study.json")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--vae", default="nano", help="model whose VAE the runs from scratch use")
    args = parser.parse_args(arguments)
    require_first_stage(args)
    prepare_held_out(args)
    each(lambda weight: from_scratch(weight, args.seed, args), SCRATCH_WEIGHTS, args)
    rows = study(args.seed, args)
    scratch = {
        f"lambda = {weight:g}": float(
            losses(args.work / f"scratch_{weight:g}_{args.seed}")[-LAST_STEPS:].mean()
        )
        for weight in SCRATCH_WEIGHTS
    }
    print_table(
        ("from the first stage", "overall", "less none", "p", f"loss_fm, last {LAST_STEPS} steps"),
        [
            (
                row["label"],
                "{:.1f} [{:.1f}, {:.1f}]".format(*row["overall"]),
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row["less_none"]) if row["less_none"] else "",
                f"{row['p']:.4f}" if row["less_none"] else "",
                f"{row['loss_fm']:.4f}" if row["loss_fm"] else "",
            )
            for row in rows
        ],
    )
    print_table(
        (f"from scratch, {SCRATCH_STEPS} steps", "loss_fm"), [(k, f"{v:.4f}") for k, v in scratch.items()]
    )
    plot_losses(
        {label: [args.work / f"{run_name(label)}_{args.seed}"] for label in VARIANTS},
        args.out.with_name("alignment_study"),
        "From the same first stage, on the same batches and noise",
    )
    steps = len(losses(args.work / f"{run_name(NONE)}_{args.seed}"))
    about = {"seed": args.seed, "clips": args.count, "steps": steps, "scratch_steps": SCRATCH_STEPS}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({**about, "from_first_stage": rows, "from_scratch_loss_fm": scratch}, indent=1) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
