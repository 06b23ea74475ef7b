"""`rvedit analyze tables`: judged folders beside the paper's rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rvedit.analysis.naming import split_name
from rvedit.analysis.paper import FULL, MEAN, notes, read_paper, row_names
from rvedit.analysis.sheets import Sheet, by_axis, overview, to_csv, to_latex, to_markdown
from rvedit.analysis.table_rows import ResultRow, result_rows
from rvedit.editing.batch import SETTINGS
from rvedit.evaluation.aggregate import CategoryScores, pooled
from rvedit.evaluation.judge import read_judged
from rvedit.evaluation.judges import PAPER
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, write_json, write_text


@dataclass(frozen=True)
class TablesConfig:
    """Which runs, and which table."""

    runs: tuple[str, ...]
    """Folders of judged edits, or LABEL=FOLDER; several of one label are its training seeds."""
    table: str
    recipes: Path
    judge: str | None = None
    """None: the only one that judged all. MEAN: every item's mean over the judges that judged all."""
    full: str = FULL
    """The row that others are compared with."""
    out: Path | None = None
    """Folder; none: nothing is written."""


@dataclass(frozen=True)
class TablesReport:
    """What came of it."""

    judge: str
    rows: tuple[ResultRow, ...]
    sheet: Sheet
    written: tuple[Path, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values; a cell's key is category.axis."""
        rows = []
        for row in self.rows:
            contrast = None
            if row.contrast:
                contrast = {
                    "cells": {".".join(key): asdict(value) for key, value in row.contrast.cells.items()},
                    "p_value": row.contrast.p_value,
                    "by_seed": row.contrast.by_seed,
                    "seed_interval": row.contrast.seed_interval,
                    "paper": row.contrast.paper,
                    "verdict": row.contrast.verdict,
                }
            rows.append(
                {
                    "label": row.label,
                    "runs": row.runs,
                    "items": row.items,
                    "ours": {".".join(key): asdict(value) for key, value in row.ours.items()},
                    "paper": {".".join(key): value for key, value in row.paper.items()},
                    "less_full": contrast,
                }
            )
        return {"judge": self.judge, "rows": rows, "notes": list(self.sheet.notes)}


def analyze_tables(config: TablesConfig) -> TablesReport:
    """Compare, and write tableN.md, .tex, .csv and .json. Raises UserError where a run cannot be placed."""
    paper = read_paper(config.recipes, config.table)
    found: dict[str, list[dict[str, CategoryScores]]] = {}
    protocols: set[str] = set()
    folders: set[Path] = set()
    for run in config.runs:
        label, folder = _labelled(run)
        if label is None:
            labels = ", ".join(entry.label for entry in paper)
            raise UserError(
                f"{folder}: which row it is, is not recorded: write LABEL={folder}, LABEL being one of "
                f"{labels}, or a name of your own"
            )
        protocol, scores = read_judged(folder)
        protocols.add(protocol)
        if folder.resolve() in folders:
            raise UserError(f"{folder}: is given twice: a training counts once")
        folders.add(folder.resolve())
        found.setdefault(label, []).append(scores)
    if protocols != {PAPER}:
        used = " and ".join(sorted(protocols))
        raise UserError(f"the runs were judged by the protocol {used}: the tables are of the paper's")
    judges = _judges(found, config.judge)
    judged: dict[str, Sequence[CategoryScores]] = {
        label: [pooled([run[judge] for judge in judges]) for run in runs] for label, runs in found.items()
    }
    judge = config.judge or judges[0]
    names = row_names(paper)
    full = names.get(config.full, config.full)
    called = full in (names.get(label, label) for label in judged)
    if not called and config.full != FULL:
        raise UserError(f"--full {config.full}: no run is called so: {', '.join(judged)}")
    rows = result_rows(paper, judged, judge, full)
    title = f"Table {config.table}, ours beside the paper's ({judge} judge)"
    footnotes = notes(config.table, config.recipes)
    if not called:
        footnotes.append(f"No run is called {FULL}: --full names the one that others are compared with.")
    shape = overview if config.table == "2" else by_axis
    sheet = shape(rows, title, judge, full, footnotes)
    report = TablesReport(judge, tuple(rows), sheet, _paths(config))
    if config.out:
        prepare_folder(config.out)
        texts = [to_markdown(sheet), to_latex(sheet), to_csv(rows, judge)]
        for path, text in zip(report.written, texts, strict=False):
            write_text(path, text)
        write_json(report.written[-1], report.as_json())
    return report


def _paths(config: TablesConfig) -> tuple[Path, ...]:
    out = config.out
    return tuple(out / f"table{config.table}.{end}" for end in ("md", "tex", "csv", "json")) if out else ()


def _labelled(run: str) -> tuple[str | None, Path]:
    """LABEL=FOLDER, or what the folder says about itself."""
    label, folder = split_name(run)
    if not Path(folder).is_dir():
        raise UserError(f"{run}: no such folder: name folders of judged edits, or LABEL=FOLDER")
    return label or _label_of(Path(folder)), Path(folder)


def _label_of(folder: Path) -> str | None:
    """By the model that made the edits, whose run's recipe names its row of the paper."""
    for home in (folder, folder.parent):
        if (home / SETTINGS).is_file():
            model = Path(str(json.loads((home / SETTINGS).read_text(encoding="utf-8")).get("model")))
            for record in (model / "recipe.yaml", model.parent / "recipe.yaml"):
                if record.is_file():
                    row = (yaml.safe_load(record.read_text(encoding="utf-8")) or {}).get("paper")
                    return row["label"] if row else None
    return None


def _judges(found: dict[str, list[dict[str, CategoryScores]]], chosen: str | None) -> list[str]:
    """The chosen judge, the only one that judged all, or for MEAN all who did."""
    if chosen not in (None, MEAN):
        for label, runs in found.items():
            if any(chosen not in run for run in runs):
                raise UserError(
                    f"{label}: --judge {chosen} has not judged it: {', '.join(runs[0]) or 'nobody'} has"
                )
        return [str(chosen)]
    common = sorted(set.intersection(*(set(run) for runs in found.values() for run in runs)))
    said = f"{', '.join(common)} did" if common else "none did"
    if chosen == MEAN and len(common) < 2:
        raise UserError(f"--judge {MEAN}: wants two judges that have judged all runs, and {said}")
    if chosen is None and len(common) != 1:
        raise UserError(f"which judge has judged all runs is not clear ({said}): choose with --judge")
    return common
