"""Table 1 on a benchmark: every editor edits, the judges score, ours stands beside the paper's.

    python benchmarks/table1.py --bench benchmark_videos.csv --work table1 --judge qwen --judge gemini

Each row of `recipes/table1.yaml` has a folder `WORK/LABEL`. A row with a model is edited into it by `rvedit
edit --batch`; one without is expected to hold the outputs of its own repository. `rvedit analyze tables`
then compares, into `WORK/JUDGE`; with several judges once more by their mean. Everything goes on where it
was: edits and verdicts that are there are kept. `--only LABEL` and `--limit N` make it small; `--judge
reference` scores playground clips.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

RECIPE = Path(__file__).parents[1] / "recipes" / "table1.yaml"


def run(*arguments: str) -> bool:
    """Whether the command ended well; what it says goes through."""
    return subprocess.run([sys.executable, "-m", "rvedit_cli", *arguments], check=False).returncode == 0


def main() -> None:
    """Edit, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", required=True, help="OpenVE-Bench's CSV, or a manifest")
    parser.add_argument("--work", type=Path, required=True, help="folder of the rows' edits")
    parser.add_argument(
        "--judge",
        action="append",
        choices=("qwen", "gemini", "reference"),
        help="repeatable; by default qwen",
    )
    parser.add_argument("--only", action="append", help="label of a row; repeatable")
    parser.add_argument("--limit", type=int, help="items at most")
    parser.add_argument(
        "--model", action="append", default=[], metavar="LABEL=MODEL", help="other weights of a row"
    )
    parser.add_argument("--steps", type=int, help="denoising steps; by default each editor's own")
    args = parser.parse_args()
    models = dict(pair.split("=", 1) for pair in args.model)
    judges = args.judge or ["qwen"]
    asked = [word for judge in judges for word in ("--judge", judge)]
    limit = ["--limit", str(args.limit)] if args.limit else []
    steps = ["--steps", str(args.steps)] if args.steps else []
    rows = []
    for row in yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["rows"]:
        label, folder = row["label"], args.work / row["label"]
        if args.only and label not in args.only:
            continue
        if model := models.get(label, row.get("model")):
            run("edit", "--batch", args.bench, "--out-dir", str(folder), "--model", model, *limit, *steps)
        if folder.is_dir() and run(
            "judge", str(folder), "--bench", args.bench, *asked, "--out", str(folder / "judge")
        ):
            rows.append(f"{label}={folder}")
    if not rows:
        sys.exit("table1: nothing was judged: what failed is said above")
    tables = ("analyze", "tables", *rows, "--table", "1", "--recipes", str(RECIPE.parent))
    for judge in [*judges, "mean"] if len(judges) > 1 else judges:
        run(*tables, "--judge", judge, "--out", str(args.work / judge))


if __name__ == "__main__":
    main()
