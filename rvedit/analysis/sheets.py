"""Format result rows as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from rvedit.analysis.paper import CATEGORIES, MEAN
from rvedit.analysis.table_rows import OVERALL, ResultRow
from rvedit.evaluation.scores import AXES
from rvedit.io.records import CATEGORY_TITLES

EMPTY = "–"
_TESTS = ("ours minus {}", "by seed", "p", "paper minus {}", "the paper's sign")


@dataclass(frozen=True)
class Sheet:
    """A table of formatted cells."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def overview(rows: Sequence[ResultRow], title: str, judge: str, full: str, notes: Sequence[str]) -> Sheet:
    """Return a sheet in the layout of Table 2: overall and by category, ours / the paper's, and the tests."""
    columns = (f"{CATEGORY_TITLES[name]}, ours / paper" for name in CATEGORIES)
    headers = ("", "runs x items", *_overall_headers(full), *columns)
    lines = [
        (
            row.label,
            f"{row.runs} x {row.items}" if row.runs else EMPTY,
            *_overall_cells(row),
            *(_pair(row, (name, "score")) for name in CATEGORIES),
        )
        for row in rows
    ]
    return Sheet(title, headers, tuple(lines), (*_judge_notes(judge), *notes))


def by_axis(rows: Sequence[ResultRow], title: str, judge: str, full: str, notes: Sequence[str]) -> Sheet:
    """Return a sheet in the layout of Tables 1 and 3: all categories and axes, and overall with its tests."""
    columns = [(name, axis) for name in CATEGORIES for axis in AXES]
    names = (f"{name.capitalize()} {axis.upper()}" for name, axis in columns)
    headers = ("", *names, *_overall_headers(full))
    lines = [(row.label, *(_pair(row, column) for column in columns), *_overall_cells(row)) for row in rows]
    note = "Each cell: ours / the paper's; the CSV has intervals and differences to the full model."
    return Sheet(title, headers, tuple(lines), (note, *_judge_notes(judge), *notes))


def to_markdown(sheet: Sheet) -> str:
    """Return a GitHub table with the notes below it."""
    lines = [f"**{sheet.title}**", "", _row(sheet.headers), _row(["---"] * len(sheet.headers))]
    lines += [_row(row) for row in sheet.rows]
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(sheet.notes, start=1))]
    return "\n".join(lines) + "\n"


def to_latex(sheet: Sheet) -> str:
    """Return a `table` as wide as the text with the notes below it; needs booktabs and graphicx."""
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{_latex(sheet.title)}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(sheet.headers) - 1)}}}", r"\toprule",
        " & ".join(map(_latex, sheet.headers)) + r" \\", r"\midrule",
        *(" & ".join(map(_latex, row)) + r" \\" for row in sheet.rows),
        r"\bottomrule", r"\end{tabular}}", "",
        *(rf"\par\footnotesize {_latex(note)}" for note in sheet.notes), r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def to_csv(rows: Sequence[ResultRow], judge: str) -> str:
    """Return a line per row, category and axis; the p-values of cells are not corrected for their number."""
    text = io.StringIO()
    writer = csv.writer(text)
    less = ["less_full", "less_full_low", "less_full_high", "p"]
    about = ["label", "judge", "runs", "items", "category", "axis"]
    writer.writerow([*about, "ours", "low", "high", "paper", "ours_less_paper", *less])
    for row in rows:
        for key in dict.fromkeys((*row.ours, *row.paper)):
            ours, paper = row.ours.get(key), row.paper.get(key)
            values = astuple(ours) if ours else (None,) * 3
            difference = ours.value - paper if ours and paper is not None else None
            contrast = row.contrast.cells.get(key) if row.contrast else None
            test = (*astuple(contrast.mean), contrast.p_value) if contrast else (None,) * 4
            numbers = ["" if x is None else f"{x:.4f}" for x in (*values, paper, difference, *test)]
            writer.writerow([row.label, judge, row.runs, row.items, *key, *numbers])
    return text.getvalue()


def _overall_headers(full: str) -> tuple[str, ...]:
    return ("Overall, ours", "paper", *(text.format(full) for text in _TESTS))


def _overall_cells(row: ResultRow) -> tuple[str, ...]:
    ours, contrast = row.ours.get(OVERALL), row.contrast
    interval = f"{ours.value:.2f} [{ours.low:.1f}, {ours.high:.1f}]" if ours else EMPTY
    scores = (interval, _number(row.paper.get(OVERALL)))
    if contrast is None:
        return (*scores, *[EMPTY] * len(_TESTS))
    m = contrast.overall.mean
    return (
        *scores,
        f"{m.value:+.2f} [{m.low:+.1f}, {m.high:+.1f}]",
        ", ".join(f"{value:+.1f}" for value in contrast.by_seed) or EMPTY,
        f"{contrast.p_value:.3f}" if contrast.p_value >= 0.001 else "< 0.001",
        _number(contrast.paper, "+.2f"),
        contrast.verdict,
    )


def _judge_notes(judge: str) -> tuple[str, ...]:
    intervals = (
        "Brackets: 95% bootstrap intervals over items. p: paired permutation test over items, corrected over "
        "the rows. A sign counts if p < 0.05 and, with several trainings, their t interval excludes 0."
    )
    table1 = {"gemini": "of its Gemini judge", MEAN: "the mean of its two judges"}.get(judge)
    if table1:
        return (intervals, f"The paper's scores are {table1} in Table 1, and of its Qwen judge in 2 and 3.")
    paper = "The paper's scores are of its Qwen judge."
    scale = f" The {judge} judge has another scale: compare signs and order, not levels."
    return (intervals, paper + ("" if judge == "qwen" else scale))


def _pair(row: ResultRow, key: tuple[str, str]) -> str:
    ours = row.ours.get(key)
    return f"{_number(ours.value if ours else None)} / {_number(row.paper.get(key))}"


def _number(value: float | None, form: str = ".2f") -> str:
    return EMPTY if value is None else format(value, form)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


_ESCAPES = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "$": r"\$", "_": r"\_", "{": r"\{",
    "}": r"\}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "–": "--",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}",
})  # fmt: skip


def _latex(text: str) -> str:
    """Return the text with special characters escaped, and lambda and L_s as symbols."""
    escaped = re.sub(r"\bL\\_s\b", "$L_s$", text.translate(_ESCAPES))
    return re.sub(r"\blambda\b", r"$\\lambda$", escaped)
