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
import json
import subprocess
import sys
from pathlib import Path

import yaml

RECIPE = Path(__file__).parents[1] / "recipes" / "table1.yaml"


def run(*arguments: str) -> bool:
    """Whether the command ended well; what it says goes through."""
    return subprocess.run([sys.executable, "-m", "rvedit_cli", *arguments], check=False).returncode == 0


def judges_of(scores: Path) -> set[str]:
    """Those that came to verdicts."""
    lines = scores.read_text(encoding="utf-8").splitlines() if scores.is_file() else []
    return {json.loads(line)["judge"] for line in lines}


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
        if not run("judge", str(folder), "--bench", args.bench, *asked, "--out", str(out)):
            failed.append(f"verdicts on {label}")
        for judge in judges_of(out / "scores.jsonl"):
            rows.setdefault(judge, []).append(f"{label}={folder}")
    if not rows:
        sys.exit("table1: nothing was judged: what failed is said above")
    if len(judges) > 1:
        rows["mean"] = [row for row in rows.get(judges[0], []) if all(row in rows.get(j, []) for j in judges)]
    for judge, judged in rows.items():
        tables = ("analyze", "tables", *judged, "--table", "1", "--recipes", str(RECIPE.parent))
        if judged and not run(*tables, "--judge", judge, "--out", str(args.work / judge)):
            failed.append(f"the table by {judge}")
    if failed:
        sys.exit(f"table1: not whole: {', '.join(failed)}; what failed is said above, and may be run again")


if __name__ == "__main__":
    main()
