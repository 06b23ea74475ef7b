"""Result rows as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rvedit.analysis.paper import CATEGORIES, MEAN
from rvedit.analysis.table_rows import OVERALL, ResultRow
from rvedit.evaluation.aggregate import Estimate
from rvedit.evaluation.scores import AXES
from rvedit.io.records import CATEGORY_TITLES

NOTHING = "–"
_TESTS = ("ours less {}", "of single seeds", "p", "paper less {}", "the paper's sign")


@dataclass(frozen=True)
class Sheet:
    """A table of words for people."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def overview(rows: Sequence[ResultRow], title: str, judge: str, full: str, notes: Sequence[str]) -> Sheet:
    """Table 2's shape: overall and by category, ours / the paper's, and what the tests say."""
    headers = (
        "", "runs x items", "Overall, ours", "paper", *(text.format(full) for text in _TESTS),
        *(f"{CATEGORY_TITLES[c]}, ours / paper" for c in CATEGORIES),
    )  # fmt: skip
    lines = [
        (
            row.label,
            f"{row.runs} x {row.items}" if row.runs else NOTHING,
            _interval(row.ours.get(OVERALL)),
            _number(row.paper.get(OVERALL)),
            *_tests(row),
            *(_pair(row, (name, "score")) for name in CATEGORIES),
        )
        for row in rows
    ]
    return Sheet(title, headers, tuple(lines), (*_about(judge), *notes))


def by_axis(rows: Sequence[ResultRow], title: str, judge: str, full: str, notes: Sequence[str]) -> Sheet:
    """The shape of Tables 1 and 3: every category and axis, ours / the paper's; overall with its tests."""
    columns = [(name, axis) for name in CATEGORIES for axis in AXES]
    headers = (
        "", *(f"{name.capitalize()} {axis.upper()}" for name, axis in columns), "Overall, ours", "paper",
        *(text.format(full) for text in _TESTS),
    )  # fmt: skip
    lines = [
        (
            row.label,
            *(_pair(row, column) for column in columns),
            _interval(row.ours.get(OVERALL)),
            _number(row.paper.get(OVERALL)),
            *_tests(row),
        )
        for row in rows
    ]
    note = "Each cell: ours / the paper's; the CSV has its interval, and its difference to the full model."
    return Sheet(title, headers, tuple(lines), (note, *_about(judge), *notes))


def to_markdown(sheet: Sheet) -> str:
    """A table that GitHub shows, and its notes below."""
    lines = [f"**{sheet.title}**", "", _md(sheet.headers), _md(["---"] * len(sheet.headers))]
    lines += [_md(row) for row in sheet.rows]
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(sheet.notes, start=1))]
    return "\n".join(lines) + "\n"


def to_latex(sheet: Sheet) -> str:
    """A `table` for the packages booktabs and graphicx, as wide as the text; its notes stand below."""
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{_tex(sheet.title)}}}", r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(sheet.headers) - 1)}}}", r"\toprule",
        " & ".join(map(_tex, sheet.headers)) + r" \\", r"\midrule",
        *(" & ".join(map(_tex, row)) + r" \\" for row in sheet.rows),
        r"\bottomrule", r"\end{tabular}}", "",
        *(rf"\par\footnotesize {_tex(note)}" for note in sheet.notes), r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def to_csv(rows: Sequence[ResultRow], judge: str) -> str:
    """A line for every row, category and axis; p-values of cells are not corrected for their number."""
    text = io.StringIO()
    writer = csv.writer(text)
    less = ["less_full", "less_full_low", "less_full_high", "p"]
    about = ["label", "judge", "runs", "items", "category", "axis"]
    writer.writerow([*about, "ours", "low", "high", "paper", "ours_less_paper", *less])
    for row in rows:
        for key in dict.fromkeys((*row.ours, *row.paper)):
            ours, paper = row.ours.get(key), row.paper.get(key)
            values = [ours.value, ours.low, ours.high] if ours else [None] * 3
            apart = ours.value - paper if ours and paper is not None else None
            contrast = row.contrast.cells.get(key) if row.contrast else None
            mean = contrast.mean if contrast else None
            tested = [mean.value, mean.low, mean.high, contrast.p_value] if contrast and mean else [None] * 4
            numbers = ["" if x is None else f"{x:.4f}" for x in (*values, paper, apart, *tested)]
            writer.writerow([row.label, judge, row.runs, row.items, *key, *numbers])
    return text.getvalue()


def _tests(row: ResultRow) -> tuple[str, ...]:
    contrast = row.contrast
    if contrast is None:
        return (NOTHING,) * len(_TESTS)
    m = contrast.overall.mean
    return (
        f"{m.value:+.2f} [{m.low:+.1f}, {m.high:+.1f}]",
        ", ".join(f"{value:+.1f}" for value in contrast.by_seed) or NOTHING,
        f"{contrast.p_value:.3f}" if contrast.p_value >= 0.001 else "< 0.001",
        _number(contrast.paper, "+.2f"),
        contrast.verdict,
    )


def _interval(estimate: Estimate | None) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.1f}, {estimate.high:.1f}]" if estimate else NOTHING


def _about(judge: str) -> tuple[str, ...]:
    intervals = (
        "Brackets: 95% bootstrap intervals over items. p: paired permutation over items, corrected over the "
        "rows. A sign is told where p < 0.05 and, with several trainings, their t interval excludes 0."
    )
    of_table_1 = {"gemini": "its Gemini judge's", MEAN: "means over its two judges"}.get(judge)
    if of_table_1:
        return (intervals, f"The paper's figures are {of_table_1} in Table 1, its Qwen judge's in 2 and 3.")
    paper = "The paper's figures are its Qwen judge's."
    scale = f" The {judge} judge's scale is another: signs and order compare, levels do not."
    return (intervals, paper + ("" if judge == "qwen" else scale))


def _pair(row: ResultRow, key: tuple[str, str]) -> str:
    ours = row.ours.get(key)
    return f"{_number(ours.value if ours else None)} / {_number(row.paper.get(key))}"


def _number(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None else format(value, form)


def _md(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "$": r"\$", "_": r"\_", "{": r"\{",
    "}": r"\}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "–": "--",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}",
}  # fmt: skip


def _tex(text: str) -> str:
    """With LaTeX's own characters escaped, and the paper's two symbols as it sets them."""
    escaped = "".join(_ESCAPES.get(character, character) for character in text)
    return re.sub(r"\blambda\b", r"$\\lambda$", re.sub(r"\bL\\_s\b", "$L_s$", escaped))
