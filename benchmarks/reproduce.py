"""The paper's ablations at nano size: train, edit, judge and compare (`make reproduce`).

    python benchmarks/reproduce.py --first-stage runs/nano_first_stage --seeds 1

The nine configurations of Tables 2 and 3 start from the same first stage (Kiwi-Edit's conditioning, no
alignment) and are trained with the same batches, timesteps and noise for the same number of steps
(`recipes/nano_scale.yaml`). They edit held-out clips, the reference judge scores the edits, and `rvedit
analyze` compares the scores with the paper's tables and draws Fig. 4 for the full model. Existing runs, edits
and scores are reused, so an interrupted run resumes and more seeds can be added later.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _common import print_table
from nano_quality import SEED

from rvedit.analysis.plots import STYLE, save_figure
from rvedit.training.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES, OVERLAY = ROOT / "recipes", ROOT / "recipes" / "nano_scale.yaml"
CONFIGURATIONS = (
    "rvedit", "ablation_wo_both", "ablation_wo_grtc", "ablation_wo_raaa", "ablation_ls8", "ablation_ls22",
    "ablation_lambda0.25", "ablation_lambda0.50", "ablation_lambda1.00",
)  # fmt: skip
FULL = CONFIGURATIONS[0]
LAST_STEPS = 50


def rvedit(*arguments: str | Path | int, at_once: int = 1) -> None:
    """Run an rvedit command with its share of the CPU cores among `at_once` commands; exit if it fails."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    command = [sys.executable, "-m", "rvedit_cli", *map(str, arguments)]
    if subprocess.run(command, env={**os.environ, **threads}).returncode:
        sys.exit(f"{Path(sys.argv[0]).stem}: a command failed: fix the error above and run this again")


def each(work: Callable[[Any], None], jobs: Sequence[Any], args: argparse.Namespace) -> None:
    """Do the work of all jobs, --at-once at a time."""
    with ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(work, jobs))


def train(run: Path, recipe: Path, overlays: Sequence[Path], settings: Sequence[str], at_once: int) -> None:
    """Train a recipe unless the run exists; exit if it exists with another recipe."""
    settings = (f"name={run.name}", *settings)
    if (run / "model" / "model_index.json").is_file():
        existing = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        requested = load_recipe(recipe, overlays, settings).model_dump(mode="json")
        if existing != requested:
            keys = ", ".join(key for key in requested if existing.get(key) != requested[key])
            sys.exit(f"{run}: was trained with another recipe ({keys}): choose another --work")
        return
    over = [word for overlay in overlays for word in ("--overlay", overlay)]
    sets = [word for setting in settings for word in ("--set", setting)]
    rvedit("train", recipe, *over, "--runs", run.parent, *sets, at_once=at_once)


def from_first_stage(name: str, seed: int, args: argparse.Namespace, *settings: str, run: str = "") -> Path:
    """Train a configuration from the first stage at nano size; return the run folder."""
    folder = args.work / f"{run or name}_{seed}"
    sets = [f"model.init_from={args.first_stage}", f"seed={seed}", f"data.seed={seed}", *settings]
    if args.steps:
        sets.append(f"steps={args.steps}")
    train(folder, RECIPES / f"{name}.yaml", [OVERLAY], sets, args.at_once)
    return folder


def prepare_held_out(args: argparse.Namespace) -> Path:
    """Write the held-out clips; return their folder."""
    held_out = args.work / "held_out"
    world = ("--split", "test", "--seed", SEED, "--num-frames", 9)
    rvedit("prepare", "playground", "--out", held_out, "--count", args.count, *world)
    return held_out


def edit_and_judge(model: Path, args: argparse.Namespace) -> Path:
    """Edit the held-out clips and score the edits; return their folder."""
    edits = args.work / "edits" / model.name
    batch = ("--batch", args.work / "held_out", "--limit", args.count, "--out-dir", edits)
    # The models are compared without detail transfer.
    options = ("--detail", "off", "--together", args.together)
    rvedit("edit", *batch, "--model", model, *options, at_once=args.at_once)
    rvedit("judge", edits, "--judge", "reference", at_once=args.at_once)
    return edits


def label_of(name: str) -> str:
    """Return a configuration's name in the paper."""
    row = load_recipe(RECIPES / f"{name}.yaml").paper
    assert row is not None
    return row.label


def logged(run: Path, key: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return a loss of every step."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([row[key] for row in map(json.loads, lines) if key in row])


def losses(run: Path) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the flow-matching loss of every step."""
    return logged(run, "loss_fm")


def training_losses(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the mean loss of the last steps, and its difference to the full model's.

    Batches, timesteps and noise are the same in all runs. The standard error is over runs, since the steps of
    one run are not independent. `fell` is the decrease from the same number of steps before, which shows
    whether the run was long enough.
    """

    def mean(name: str, steps: slice, key: str = "loss_fm") -> np.ndarray[Any, Any]:
        curves = [logged(args.work / f"{name}_{seed}", key)[steps] for seed in args.seeds]
        return np.array([curve.mean() if len(curve) else np.nan for curve in curves])

    last, before = slice(-LAST_STEPS, None), slice(-2 * LAST_STEPS, -LAST_STEPS)
    rows = []
    for name in CONFIGURATIONS:
        apart = mean(name, last) - mean(FULL, last)
        error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else None
        fell = mean(name, before) - mean(name, last)
        aligned = float(mean(name, last, "loss_align").mean())
        rows.append(
            {
                "label": label_of(name),
                "loss_fm": float(mean(name, last).mean()),
                "less_full": float(apart.mean()),
                "standard_error": error,
                "fell": float(fell.mean()),
                "loss_align": None if np.isnan(aligned) else aligned,
            }
        )
    return rows


def plot_losses(runs: Mapping[str, Sequence[Path]], path: Path, title: str) -> None:
    """Plot the logged losses of Eq. 6 by label, averaged over seeds and smoothed over 25 or more steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        titles = {"loss_fm": "flow-matching loss", "loss_align": "loss of Eq. 5, nats"}
        logs = [folders[0] for folders in runs.values()]
        titles = {key: name for key, name in titles.items() if any(len(logged(run, key)) for run in logs)}
        figure = Figure(figsize=(5.5 * len(titles), 4.6), layout="constrained")
        axes = figure.subplots(1, len(titles), squeeze=False)[0]
        for axis, (key, name) in zip(axes, titles.items(), strict=True):
            ends = []
            for number, (label, folders) in enumerate(runs.items()):
                curves = [logged(folder, key) for folder in folders]
                if not len(curves[0]):
                    continue  # there is no alignment
                mean = np.mean(curves, axis=0)
                width = min(max(25, len(mean) // 15), len(mean))
                smooth = np.convolve(mean, np.ones(width) / width, mode="valid")
                steps, dash = np.arange(len(smooth)) + width, ("-", "--", ":", "-.")[number // 3 % 4]
                axis.plot(steps, smooth, linestyle=dash, color=f"C{number}")  # the same in both plots
                ends.append((smooth[-1], label, f"C{number}"))
            axis.set_title(f"{name}, mean of {width} steps")
            axis.set_xlabel("step")
            low, high = axis.get_ylim()
            height = -np.inf
            for value, label, color in sorted(ends):  # labels at the curves' ends, without overlap
                height = max(value, height + (high - low) / 22)
                text = label.replace("lambda", r"$\lambda$").replace("L_s", "$L_s$")
                axis.annotate(text, (1.01, height), xycoords=("axes fraction", "data"), color=color,
                              fontsize=8, va="center", annotation_clip=False)  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        save_figure(figure, path, (".png",))


def compare(folders: dict[str, list[Path]], first: Path, args: argparse.Namespace) -> None:
    """Write Tables 2 and 3."""
    runs = [f"{label_of(name)}={folder}" for name, seeds in folders.items() for folder in seeds]
    runs.append(f"first stage={first}")
    for table in ("2", "3"):
        tables = ("analyze", "tables", *runs, "--table", table, "--recipes", RECIPES)
        rvedit(*tables, "--out", args.out)
        without = label_of("ablation_wo_raaa")  # to see the effect of routing alone
        rvedit(*tables, "--full", without, "--out", args.out / "less_wo_raaa")


def options(description: str | None, out: Path) -> argparse.ArgumentParser:
    """Return a parser with the common options of the experiments."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first-stage", type=Path, default=Path("runs/nano_first_stage"))
    parser.add_argument("--count", type=int, default=200, help="held-out clips")
    parser.add_argument("--steps", type=int, help="training steps; default: those of the overlay")
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"), help="folder for the runs")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument(
        "--at-once",
        type=int,
        default=1 if torch.cuda.is_available() else os.cpu_count(),
        help="number of runs and edits at a time; default: one on a GPU, one per core on a CPU",
    )
    together = 50 if torch.cuda.is_available() else 1
    parser.add_argument("--together", type=int, default=together, help="clips per forward pass of an edit")
    return parser


def require_first_stage(args: argparse.Namespace) -> None:
    """Train the first stage on the embedded VAE, unless it exists."""
    if not (args.first_stage / "model" / "model_index.json").is_file():
        train(args.first_stage, RECIPES / "nano_first_stage.yaml", (), ["model.vae_from=nano"], 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    parser = options(__doc__, ROOT / "benchmarks" / "results" / "reproduce")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args(arguments)
    require_first_stage(args)
    held_out = prepare_held_out(args)
    each(
        lambda job: edit_and_judge(from_first_stage(*job, args), args),
        [(name, seed) for seed in args.seeds for name in CONFIGURATIONS],
        args,
    )
    edits = args.work / "edits"
    folders = {name: [edits / f"{name}_{seed}" for seed in args.seeds] for name in CONFIGURATIONS}
    first = edit_and_judge(args.first_stage, args)
    compare(folders, first, args)
    full, seed = args.work / f"{FULL}_{args.seeds[0]}", args.seeds[0]
    models = ("--model", f"RVEDiT={full}", "--base", f"first stage={args.first_stage}")
    rvedit("analyze", "attention", held_out, "--limit", 24, *models, "--out", args.out)
    shown = [f"first stage={first}"]
    shown += [f"{label_of(name)}={edits / f'{name}_{seed}'}"
              for name in ("ablation_wo_both", "ablation_wo_raaa", FULL)]  # fmt: skip
    rvedit("analyze", "gallery", *shown, "--out", args.work / "gallery")
    plot_losses(
        {label_of(name): [args.work / f"{name}_{seed}" for seed in args.seeds] for name in CONFIGURATIONS},
        args.out / "learning_curves",
        "All configurations from the same first stage, on the same batches and noise",
    )
    rows = training_losses(args)
    about = {
        "seeds": args.seeds,
        "clips": args.count,
        "steps": len(losses(full)),
        "training_loss_of_last_steps": rows,
    }
    (args.out / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print_table(
        (
            f"loss_fm of the last {LAST_STEPS} steps",
            "mean",
            "less the full model's",
            "fell by",
            "Eq. 5, nats",
        ),
        [
            (
                row["label"],
                f"{row['loss_fm']:.4f}",
                f"{row['less_full']:+.4f}",
                f"{row['fell']:.4f}",
                f"{row['loss_align']:.2f}" if row["loss_align"] else "",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
