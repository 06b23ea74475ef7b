"""Result rows as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rvedit.analysis.paper import CATEGORIES
from rvedit.analysis.tables import ResultRow
from rvedit.judge.scores import AXES

TITLES = {
    "change": "Local Change",
    "remove": "Local Remove",
    "add": "Local Add",
    "style": "Global Style",
    "overall": "Overall",
}
NOTHING = "–"


@dataclass(frozen=True)
class Sheet:
    """A table of words for people."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def overview(rows: Sequence[ResultRow], title: str, judge: str, full: str, notes: Sequence[str]) -> Sheet:
    """Table 2's shape, and Table 1's: overall and by category, ours / the paper's, and what the tests say."""
    headers = (
        "", "runs x items", "Overall, ours", "paper", f"ours less {full}", "single seeds", "p",
        f"paper less {full}", "the paper's sign", *(f"{TITLES[c]}, ours / paper" for c in CATEGORIES),
    )  # fmt: skip
    lines = []
    for row in rows:
        ours = row.ours.get(("overall", "score"))
        interval = f"{ours.value:.2f} [{ours.low:.1f}, {ours.high:.1f}]" if ours else NOTHING
        contrast = row.contrast
        tests = (NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
        if contrast:
            m = contrast.mean
            tests = (
                f"{m.value:+.2f} [{m.low:+.1f}, {m.high:+.1f}]",
                ", ".join(f"{value:+.1f}" for value in contrast.by_seed) or NOTHING,
                f"{contrast.p_value:.3f}",
                _number(contrast.paper, "+.2f"),
                contrast.verdict,
            )
        lines.append(
            (
                row.label,
                f"{row.runs} x {row.items}" if row.runs else NOTHING,
                interval,
                _number(row.paper.get(("overall", "score"))),
                *tests,
                *(_pair(row, (name, "score")) for name in CATEGORIES),
            )
        )
    return Sheet(title, headers, tuple(lines), (*_about(judge), *notes))


def by_axis(rows: Sequence[ResultRow], title: str, judge: str, notes: Sequence[str]) -> Sheet:
    """Table 3's shape: every category and axis, ours / the paper's."""
    columns = [(name, axis) for name in CATEGORIES for axis in AXES]
    short = {"change": "Change", "remove": "Remove", "add": "Add", "style": "Style"}
    headers = ("", *(f"{short[name]} {axis.upper()}" for name, axis in columns), "Overall")
    lines = [
        (row.label, *(_pair(row, column) for column in (*columns, ("overall", "score")))) for row in rows
    ]
    note = "Each cell: ours / the paper's."
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
    """A line for every row, category and axis, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["label", "judge", "runs", "items", "category", "axis", "ours", "low", "high", "paper", "difference"]
    )
    for row in rows:
        for key in dict.fromkeys((*row.ours, *row.paper)):
            ours, paper = row.ours.get(key), row.paper.get(key)
            values = [ours.value, ours.low, ours.high] if ours else [None] * 3
            apart = ours.value - paper if ours and paper is not None else None
            numbers = ["" if x is None else f"{x:.4f}" for x in (*values, paper, apart)]
            writer.writerow([row.label, judge, row.runs, row.items, *key, *numbers])
    return text.getvalue()


def _about(judge: str) -> tuple[str, ...]:
    intervals = (
        "Brackets: 95% bootstrap intervals over items. p: paired permutation over items, corrected over the "
        "rows; a sign counts as told only where all training seeds have it, too."
    )
    if judge in ("qwen", "gemini"):
        return (intervals,)
    scale = f"The {judge} judge's scale is its own: signs and order compare with the paper's, levels do not."
    return (intervals, scale)


def _pair(row: ResultRow, key: tuple[str, str]) -> str:
    ours = row.ours.get(key)
    return f"{_number(ours.value if ours else None)} / {_number(row.paper.get(key))}"


def _number(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None else format(value, form)


def _md(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _tex(text: str) -> str:
    """With LaTeX's own characters escaped, and the symbols of the paper as it sets them."""
    for plain, escaped in (
        ("\\", r"\textbackslash{}"),
        ("&", r"\&"),
        ("%", r"\%"),
        ("#", r"\#"),
        ("$", r"\$"),
    ):
        text = text.replace(plain, escaped)
    for plain, symbol in (("L_s", "$L_s$"), ("lambda", r"$\lambda$"), ("–", "--")):
        text = text.replace(plain, symbol)
    return text.replace("_", r"\_").replace(r"$L\_s$", "$L_s$")
