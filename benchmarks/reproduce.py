"""The paper's ablations at nano size: train, edit, judge, compare. `make reproduce`.

    python benchmarks/reproduce.py --first-stage runs/nano_first_stage --seeds 1

The nine configurations of Tables 2 and 3 start from the same first stage (Kiwi-Edit's conditioning, no
alignment) and see the same batches, times and noise for as many steps (`recipes/nano_scale.yaml`). They edit
held-out clips, the reference judge scores those, `rvedit analyze` lays them beside the paper's tables and
draws Fig. 4 of the full model. All goes on where it was: what is trained, edited or judged is kept, so more
seeds can be added later.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from _common import print_table
from nano_quality import SEED

from rvedit.analysis.plots import save_figure, style
from rvedit.recipes import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES, OVERLAY = ROOT / "recipes", ROOT / "recipes" / "nano_scale.yaml"
CONFIGURATIONS = (
    "rvedit", "ablation_wo_both", "ablation_wo_grtc", "ablation_wo_raaa", "ablation_ls8", "ablation_ls22",
    "ablation_lambda0.25", "ablation_lambda0.50", "ablation_lambda1.00",
)  # fmt: skip
FULL = CONFIGURATIONS[0]
LAST_STEPS = 50


def rvedit(*arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command of rvedit."""
    words = [str(argument) for argument in arguments]
    return subprocess.Popen([sys.executable, "-m", "rvedit_cli", *words], env={**os.environ, **environment})


def finish(*processes: subprocess.Popen[bytes]) -> None:
    """Wait for all; stop where one failed."""
    if any([process.wait() for process in processes]):
        sys.exit("reproduce: a command failed; mend it and run this again")


def train(name: str, seed: int, args: argparse.Namespace) -> None:
    """A run from the first stage, if it is not there yet; one that was made otherwise is refused."""
    run = args.work / f"{name}_{seed}"
    if (run / "model" / "model_index.json").is_file():
        made = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        wanted = args.steps or load_recipe(RECIPES / f"{name}.yaml", [OVERLAY]).steps
        if made["steps"] != wanted or Path(made["model"]["init_from"]) != args.first_stage:
            sys.exit(f"reproduce: {run} was made from {made['model']['init_from']} in {made['steps']} steps: "
                     "choose another --work")  # fmt: skip
        return
    settings = [
        f"name={name}_{seed}", f"model.init_from={args.first_stage}", f"seed={seed}", f"data.seed={seed}",
        *([f"steps={args.steps}"] if args.steps else []),
    ]  # fmt: skip
    sets = [word for setting in settings for word in ("--set", setting)]
    finish(rvedit("train", RECIPES / f"{name}.yaml", "--overlay", OVERLAY, "--runs", args.work, *sets))


def edit_and_judge(model: Path, edits: Path, held_out: Path, args: argparse.Namespace) -> None:
    """Edit the held-out clips in as many processes as there are cores, and score them."""
    cores = os.cpu_count() or 1
    common = ("edit", "--batch", held_out, "--limit", args.count, "--out-dir", edits, "--model", model)
    finish(
        *(rvedit(*map(str, common), "--shard", f"{i + 1}/{cores}", OMP_NUM_THREADS="1") for i in range(cores))
    )
    finish(rvedit("judge", edits, "--judge", "reference"))


def label_of(name: str) -> str:
    """A configuration's name in the paper."""
    row = load_recipe(RECIPES / f"{name}.yaml").paper
    assert row is not None
    return row.label


def losses(run: Path) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The flow-matching loss of every step."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line)["loss_fm"] for line in lines])


def training_losses(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The last steps' loss, and less the full model's: batches, times and noise are the same.

    The error is over trainings, since steps of one training are no independent samples of it.
    """

    def last(name: str) -> np.ndarray[Any, Any]:
        return np.array([losses(args.work / f"{name}_{seed}")[-LAST_STEPS:].mean() for seed in args.seeds])

    rows = []
    for name in CONFIGURATIONS:
        apart = last(name) - last(FULL)
        error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else None
        mean = {"loss_fm": float(last(name).mean()), "less_full": float(apart.mean())}
        rows.append({"label": label_of(name), **mean, "standard_error": error})
    return rows


def plot_losses(args: argparse.Namespace) -> None:
    """Learning curves, smoothed over 25 steps and averaged over seeds."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axis = figure.subplots()
        for number, name in enumerate(CONFIGURATIONS):
            curves = np.mean([losses(args.work / f"{name}_{seed}") for seed in args.seeds], axis=0)
            smooth = np.convolve(curves, np.ones(25) / 25, mode="valid")
            axis.plot(
                np.arange(len(smooth)) + 25,
                smooth,
                label=label_of(name),
                linestyle=("-", "--", ":")[number // 3],
            )
        axis.set_xlabel("step")
        axis.set_ylabel("flow-matching loss, mean of 25 steps")
        axis.set_title("All configurations from the same first stage, on the same batches and noise")
        axis.legend(fontsize=8, ncols=2)
        save_figure(figure, args.out / "learning_curves", (".png",))


def compare(folders: dict[str, list[Path]], args: argparse.Namespace) -> None:
    """Tables 2 and 3."""
    for table in ("2", "3"):
        runs: list[str] = []
        for name, seeds in folders.items():
            runs += [f"{label_of(name)}={folder}" for folder in seeds]
        runs.append(f"first stage={args.work / 'edits' / 'first_stage'}")
        finish(rvedit("analyze", "tables", *runs, "--table", table, "--recipes", RECIPES, "--out", args.out))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, edit, judge, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first-stage", type=Path, default=Path("runs/nano_first_stage"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--count", type=int, default=200, help="held-out clips")
    parser.add_argument("--steps", type=int, help="training steps; by default the overlay's")
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "reproduce")
    args = parser.parse_args(arguments)
    if not (args.first_stage / "model" / "model_index.json").is_file():
        sys.exit(f"reproduce: {args.first_stage}: no trained first stage: `make nano` trains one")
    held_out = args.work / "held_out"
    world = ("--split", "test", "--seed", SEED, "--num-frames", 9)
    finish(rvedit("prepare", "playground", "--out", held_out, "--count", str(args.count), *map(str, world)))
    folders: dict[str, list[Path]] = {name: [] for name in CONFIGURATIONS}
    for seed in args.seeds:
        for name in CONFIGURATIONS:
            train(name, seed, args)
        for name in CONFIGURATIONS:
            edits = args.work / "edits" / f"{name}_{seed}"
            edit_and_judge(args.work / f"{name}_{seed}", edits, held_out, args)
            folders[name].append(edits)
    edit_and_judge(args.first_stage, args.work / "edits" / "first_stage", held_out, args)
    compare(folders, args)
    full, seed = args.work / f"{FULL}_{args.seeds[0]}", args.seeds[0]
    finish(
        rvedit(
            "analyze", "attention", held_out, "--limit", "24", "--model", full, "--base", args.first_stage,
            "--out", args.out,
        )
    )  # fmt: skip
    shown = [f"first stage={args.work / 'edits' / 'first_stage'}"]
    shown += [f"{name.removeprefix('ablation_')}={args.work / 'edits' / f'{name}_{seed}'}"
              for name in ("ablation_wo_both", "ablation_wo_raaa", FULL)]  # fmt: skip
    finish(rvedit("analyze", "gallery", *shown, "--out", args.work / "gallery"))
    plot_losses(args)
    rows = training_losses(args)
    about = {
        "seeds": args.seeds,
        "clips": args.count,
        "steps": len(losses(full)),
        "training_loss_of_last_steps": rows,
    }
    (args.out / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print_table(
        (f"loss_fm of the last {LAST_STEPS} steps", "mean", "less the full model's"),
        [(row["label"], f"{row['loss_fm']:.4f}", f"{row['less_full']:+.4f}") for row in rows],
    )


if __name__ == "__main__":
    main()
