"""The results of judging: scores.jsonl, summary.json and report.html."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvedit.evaluation.aggregate import Table
from rvedit.evaluation.checklist import ChecklistRow
from rvedit.evaluation.measure_table import DEFINITIONS, MeasureTable
from rvedit.evaluation.report import write_report
from rvedit.evaluation.verdict import Verdict
from rvedit.io.manifest import write_json, write_rows

if TYPE_CHECKING:
    from rvedit.evaluation.judge import JudgeSet

SCORES, SUMMARY, REPORT = "scores.jsonl", "summary.json", "report.html"


@dataclass
class JudgeReport:
    """The results of a run."""

    folder: Path
    verdicts: list[Verdict]
    judge_set: JudgeSet
    tables: dict[str, Table | None]
    """By judge that gives scores."""
    mean: Table | None
    """Mean over the judges; None for a single judge, or if no item was scored by all."""
    agreement: dict[str, Any]
    """By pair of judges and axis."""
    tokens: dict[str, tuple[int, int]]
    """By judge: prompt and completion tokens of this run."""
    seconds: float = 0.0
    stopped: dict[str, str] = field(default_factory=dict)
    """By judge: why it stopped early."""
    measures: MeasureTable | None = None
    """Of the judge without a model."""
    checklists: dict[str, dict[str, ChecklistRow]] = field(default_factory=dict)
    """By judge and category."""

    def counts(self, judge: str) -> Counter[str]:
        """Count a judge's verdicts that are scored (or measured), dropped and from_cache."""
        verdicts = [verdict for verdict in self.verdicts if verdict.judge == judge]
        scored = sum(verdict.dropped is None for verdict in verdicts)
        from_cache = sum(verdict.from_cache for verdict in verdicts)
        return Counter(scored=scored, dropped=len(verdicts) - scored, from_cache=from_cache)


def write_results(report: JudgeReport) -> None:
    """Write scores.jsonl, summary.json and, if the verdicts have changed, report.html."""
    rows = [asdict(verdict) for verdict in report.verdicts]
    summary = summary_of(report)
    stable = [{**row, "from_cache": False} for row in rows]
    digest = hashlib.sha256(json.dumps([stable, summary["probe"]], sort_keys=True).encode()).hexdigest()
    summary_path, page = report.folder / SUMMARY, report.folder / REPORT
    try:
        old_digest = json.loads(summary_path.read_text(encoding="utf-8")).get("digest")
    except (OSError, ValueError):
        old_digest = None
    write_rows(report.folder / SCORES, rows)
    if old_digest != digest or not page.is_file():
        write_report(page, summary, report.verdicts, report.folder / "frames")
    write_json(summary_path, {**summary, "digest": digest})


def summary_of(report: JudgeReport) -> dict[str, Any]:
    """Return the contents of summary.json."""
    judges = {}
    for name in report.tokens:
        table = report.tables.get(name)
        verdicts = [verdict for verdict in report.verdicts if verdict.judge == name]
        prompt_tokens, completion_tokens = report.tokens[name]
        judges[name] = {
            **report.counts(name),
            "models": sorted({v.model for v in verdicts if v.model}),
            "asked_models": sorted({v.asked_model for v in verdicts}),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "tokens_of_all_verdicts": [
                sum(v.prompt_tokens for v in verdicts),
                sum(v.completion_tokens for v in verdicts),
            ],
            "reasons": dict(Counter(v.dropped for v in verdicts if v.dropped is not None).most_common()),
            "stopped": report.stopped.get(name),
            "table": asdict(table) if table else None,
        }
    return {
        "protocol": report.judge_set.protocol.name,
        "scale": report.judge_set.protocol.scale if report.tables else None,
        "axis_labels": report.judge_set.protocol.axis_labels,
        "probe": report.verdicts[0].probe,
        "judges": judges,
        "mean_over_judges": asdict(report.mean) if report.mean else None,
        "agreement": report.agreement,
        "measures": _measures_summary(report.measures) if report.measures else None,
        "checklists": {
            judge: {name: asdict(row) for name, row in table.items()}
            for judge, table in report.checklists.items()
        },
        "missing": [item.id for item in report.judge_set.missing],
        "without_rubric": report.judge_set.without_rubric,
    }


def _measures_summary(table: MeasureTable) -> dict[str, Any]:
    """Return the definitions and the means of the measures."""
    means = {
        category: {name: value and asdict(value) for name, value in row.items()}
        for category, row in table.items()
    }
    return {"definitions": {name: asdict(value) for name, value in DEFINITIONS.items()}, "means": means}
