"""Table 1 on a benchmark: edit with every editor, judge, and compare with the paper's scores.

    python benchmarks/table1.py --bench benchmark_videos.csv --work table1 --judge qwen --judge gemini

Each row of `recipes/table1.yaml` has a folder `WORK/LABEL`. `rvedit edit --batch` writes the edits of a row
with a model; for a row without one, put the outputs of its own repository there. `rvedit analyze tables` then
writes the comparison to `WORK/JUDGE`, and for several judges also their mean. Existing edits and verdicts are
reused. Use `--only LABEL` and `--limit N` for a small run, and `--judge reference` to score playground clips.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

RECIPE = Path(__file__).parents[1] / "recipes" / "table1.yaml"


def run(*arguments: str) -> bool:
    """Run an rvedit command; return whether it succeeded."""
    return subprocess.run([sys.executable, "-m", "rvedit_cli", *arguments], check=False).returncode == 0


def judges_of(scores: Path) -> set[str]:
    """Return the judges in a file of verdicts."""
    lines = scores.read_text(encoding="utf-8").splitlines() if scores.is_file() else []
    return {json.loads(line)["judge"] for line in lines}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", required=True, help="OpenVE-Bench's CSV, or a manifest")
    parser.add_argument("--work", type=Path, required=True, help="folder for the edits of all rows")
    parser.add_argument(
        "--judge",
        action="append",
        choices=("qwen", "gemini", "reference"),
        help="repeatable; default: qwen",
    )
    parser.add_argument("--only", action="append", help="label of a row; repeatable")
    parser.add_argument("--limit", type=int, help="maximum number of items")
    parser.add_argument(
        "--model", action="append", default=[], metavar="LABEL=MODEL", help="other weights of a row"
    )
    parser.add_argument("--steps", type=int, help="denoising steps; default: those of each editor")
    args = parser.parse_args()
    models = dict(pair.split("=", 1) for pair in args.model)
    judges = args.judge or ["qwen"]
    judge_options = [option for judge in judges for option in ("--judge", judge)]
    limit = ["--limit", str(args.limit)] if args.limit else []
    steps = ["--steps", str(args.steps)] if args.steps else []
    rows: dict[str, list[str]] = {}
    failed = []
    for row in yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["rows"]:
        label, folder = row["label"], args.work / row["label"]
        if args.only and label not in args.only:
            continue
        if model := models.get(label, row.get("model")):
            batch = ("--batch", args.bench, "--out-dir", str(folder), "--model", model)
            if not run("edit", *batch, *limit, *steps):
                failed.append(f"edits of {label}")
        if not folder.is_dir():
            continue
        out = folder / "judge"
        if not run("judge", str(folder), "--bench", args.bench, *judge_options, "--out", str(out)):
            failed.append(f"verdicts on {label}")
        for judge in judges_of(out / "scores.jsonl"):
            rows.setdefault(judge, []).append(f"{label}={folder}")
    if not rows:
        sys.exit("table1: nothing was judged: see the errors above")
    if len(judges) > 1:
        rows["mean"] = [row for row in rows.get(judges[0], []) if all(row in rows.get(j, []) for j in judges)]
    for judge, judged in rows.items():
        tables = ("analyze", "tables", *judged, "--table", "1", "--recipes", str(RECIPE.parent))
        if judged and not run(*tables, "--judge", judge, "--out", str(args.work / judge)):
            failed.append(f"the table by {judge}")
    if failed:
        sys.exit(f"table1: failed: {', '.join(failed)}: see the errors above, and run this again")


if __name__ == "__main__":
    main()
