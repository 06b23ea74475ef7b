"""Table 1 on a benchmark: every editor edits, the judges score, ours stands beside the paper's.

    python benchmarks/table1.py --bench OpenVE-Bench/benchmark_videos.csv --work table1 --judge qwen

Each row of `recipes/table1.yaml` has a folder `WORK/LABEL`. A row with a model is edited into it by `rvedit
edit --batch`; one without is expected to hold the outputs of its own repository. Everything goes on where it
was: edits and verdicts that are there are kept. `--only LABEL` and `--limit N` make it small; `--judge
reference` scores playground clips.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from _common import print_table

from rvedit.judge.aggregate import overall_of_cells

RECIPE = Path(__file__).parents[1] / "recipes" / "table1.yaml"
CATEGORIES, AXES = ("change", "remove", "add", "style"), ("ic", "cf", "vq")


def run(*arguments: str) -> bool:
    """Whether the command ended well; what it says goes through."""
    return subprocess.run([sys.executable, "-m", "rvedit_cli", *arguments], check=False).returncode == 0


def judged(folder: Path, judge: str) -> list[float | None] | None:
    """The twelve cells of a folder's summary; none where there is no such verdict."""
    path = folder / "judge" / "summary.json"
    if not path.is_file():
        return None
    table = json.loads(path.read_text(encoding="utf-8"))["judges"].get(judge, {}).get("table")
    if not table:
        return None
    rows = [table["categories"].get(category) for category in CATEGORIES]
    return [row["axes"][axis]["value"] if row else None for row in rows for axis in AXES]


def overall(cells: list[Any]) -> str:
    """The mean over categories of the means over axes; a dash where cells are missing."""
    if any(cell is None for cell in cells):
        return "–"
    return f"{overall_of_cells([cells[n : n + 3] for n in range(0, 12, 3)]):.2f}"


def main() -> None:
    """Edit, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", required=True, help="OpenVE-Bench's CSV, or a manifest")
    parser.add_argument("--work", type=Path, required=True, help="folder of the rows' edits")
    parser.add_argument("--judge", default="qwen", choices=("qwen", "gemini", "reference"))
    parser.add_argument("--only", action="append", help="label of a row; repeatable")
    parser.add_argument("--limit", type=int, help="items at most")
    parser.add_argument(
        "--model", action="append", default=[], metavar="LABEL=MODEL", help="other weights of a row"
    )
    parser.add_argument("--steps", type=int, help="denoising steps; by default each editor's own")
    args = parser.parse_args()
    models = dict(pair.split("=", 1) for pair in args.model)
    rows = []
    for row in yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["rows"]:
        label, folder = row["label"], args.work / row["label"]
        if args.only and label not in args.only:
            continue
        limit = ["--limit", str(args.limit)] if args.limit else []
        if model := models.get(label, row.get("model")):
            steps = ["--steps", str(args.steps)] if args.steps else []
            run("edit", "--batch", args.bench, "--out-dir", str(folder), "--model", model, *limit, *steps)
        if folder.is_dir():
            run(
                "judge",
                str(folder),
                "--bench",
                args.bench,
                "--judge",
                args.judge,
                "--out",
                str(folder / "judge"),
            )
        ours, paper = judged(folder, args.judge), row.get(args.judge)
        difference = "–"
        if ours and paper and None not in ours:
            difference = f"{float(overall(ours)) - float(overall(paper)):+.2f}"
        rows.append(
            (label, overall(ours) if ours else "no edits", overall(paper) if paper else "–", difference)
        )
    print_table((f"Overall, {args.judge}", "ours", "the paper's", "difference"), rows)


if __name__ == "__main__":
    main()
