"""The job of `rvedit analyze tables`: compare judged folders with the paper's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rvedit.analysis.naming import split_name
from rvedit.analysis.paper import FULL, MEAN, PaperEntry, notes, read_paper, row_names
from rvedit.analysis.sheets import Sheet, by_axis, overview, to_csv, to_latex, to_markdown
from rvedit.analysis.table_rows import Contrast, ResultRow, result_rows
from rvedit.editing.batch import SETTINGS
from rvedit.evaluation.aggregate import CategoryScores, Estimate, pooled
from rvedit.evaluation.judge import read_judged
from rvedit.evaluation.protocols import PAPER
from rvedit.evaluation.statistics import Difference
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, write_json, write_text


@dataclass(frozen=True)
class TablesConfig:
    """Which runs to compare with which table."""

    runs: tuple[str, ...]
    """Folders of judged edits, as FOLDER or LABEL=FOLDER; runs with the same label are its training seeds."""
    table: str
    recipes: Path
    judge: str | None = None
    """None for the only judge of all runs; MEAN for each item's mean over the judges of all runs."""
    full: str = FULL
    """Label of the row that others are compared with."""
    out: Path | None = None
    """Output folder; None writes nothing."""


@dataclass(frozen=True)
class TablesReport:
    """The results and the files written."""

    judge: str
    rows: tuple[ResultRow, ...]
    sheet: Sheet
    written: tuple[Path, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values; the key of a cell is category.axis."""
        rows = [
            {
                "label": row.label,
                "runs": row.runs,
                "items": row.items,
                "ours": _by_name(row.ours),
                "paper": {".".join(key): score for key, score in row.paper.items()},
                "less_full": row.contrast and _contrast_values(row.contrast),
            }
            for row in self.rows
        ]
        return {"judge": self.judge, "rows": rows, "notes": list(self.sheet.notes)}


def _contrast_values(contrast: Contrast) -> dict[str, Any]:
    names = ("p_value", "by_seed", "seed_interval", "paper", "verdict")
    return {"cells": _by_name(contrast.cells), **{name: getattr(contrast, name) for name in names}}


def _by_name(cells: Mapping[tuple[str, str], Estimate | Difference]) -> dict[str, Any]:
    return {".".join(key): asdict(cell) for key, cell in cells.items()}


def analyze_tables(config: TablesConfig) -> TablesReport:
    """Compare the runs and write tableN.md, .tex, .csv and .json. Raises UserError if a run has no label."""
    paper = read_paper(config.recipes, config.table)
    scores_by_label: dict[str, list[dict[str, CategoryScores]]] = {}
    protocols: set[str] = set()
    folders: set[Path] = set()
    for run in config.runs:
        label, folder = _label_and_folder(run, paper)
        protocol, scores = read_judged(folder)
        protocols.add(protocol)
        if folder.resolve() in folders:
            raise UserError(f"{folder}: is given twice: give each run once")
        folders.add(folder.resolve())
        scores_by_label.setdefault(label, []).append(scores)
    if protocols != {PAPER}:
        used = " and ".join(sorted(protocols))
        raise UserError(f"the runs were judged by the protocol {used}: the tables need the {PAPER} protocol")
    judges = _judges(scores_by_label, config.judge)
    judged: dict[str, Sequence[CategoryScores]] = {
        label: [pooled([run[judge] for judge in judges]) for run in runs]
        for label, runs in scores_by_label.items()
    }
    judge = config.judge or judges[0]
    full = row_names(paper).get(config.full, config.full)
    rows = result_rows(paper, judged, judge, full)
    has_full = any(row.label == full and row.runs for row in rows)
    if not has_full and config.full != FULL:
        raise UserError(f"`full` {config.full}: no run has this label: choose one of {', '.join(judged)}")
    title = f"Table {config.table}, our scores and the paper's ({judge} judge)"
    footnotes = notes(config.table, config.recipes)
    if not has_full:
        footnotes.append(f"No run is labeled {FULL}: set full to the label that others are compared with.")
    layout = overview if config.table == "2" else by_axis
    sheet = layout(rows, title, judge, full, footnotes)
    report = TablesReport(judge, tuple(rows), sheet, ())
    if config.out is None:
        return report
    prepare_folder(config.out)
    texts = {"md": to_markdown(sheet), "tex": to_latex(sheet), "csv": to_csv(rows, judge)}
    *paths, json_path = (config.out / f"table{config.table}.{suffix}" for suffix in (*texts, "json"))
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    write_json(json_path, report.as_json())
    return replace(report, written=(*paths, json_path))


def _label_and_folder(run: str, paper: Sequence[PaperEntry]) -> tuple[str, Path]:
    """Return the label and folder of LABEL=FOLDER, or of a FOLDER whose record names its label."""
    name, place = split_name(run)
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"{run}: no such folder: name folders of judged edits, or LABEL=FOLDER")
    label = name or _recorded_label(folder)
    if label is None:
        labels = ", ".join(entry.label for entry in paper)
        raise UserError(
            f"{folder}: has no record of its row in the table: write LABEL={folder}, with one of the "
            f"labels {labels} or a name of your own"
        )
    return label, folder


def _recorded_label(folder: Path) -> str | None:
    """Return the label in the recipe of the model that made the edits, or None."""
    for parent in (folder, folder.parent):
        if (parent / SETTINGS).is_file():
            model = Path(str(json.loads((parent / SETTINGS).read_text(encoding="utf-8")).get("model")))
            for recipe in (model / "recipe.yaml", model.parent / "recipe.yaml"):
                if recipe.is_file():
                    row = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("paper")
                    return row["label"] if row else None
    return None


def _judges(scores_by_label: dict[str, list[dict[str, CategoryScores]]], judge: str | None) -> list[str]:
    """Return `judge`, or the only judge of all runs, or for MEAN all judges of all runs."""
    if judge not in (None, MEAN):
        for label, runs in scores_by_label.items():
            if any(judge not in run for run in runs):
                names = ", ".join(runs[0]) or "nobody"
                raise UserError(f"{label}: was not judged by `judge` {judge}: choose among {names}")
        return [str(judge)]
    common = sorted(set.intersection(*(set(run) for runs in scores_by_label.values() for run in runs)))
    names = ", ".join(common) or "no judge"
    if judge == MEAN and len(common) < 2:
        raise UserError(f"`judge` {MEAN}: needs two judges of all runs: all were judged by {names}")
    if judge is None and len(common) != 1:
        raise UserError(f"`judge` must be given: all runs were judged by {names}")
    return common
