"""A figure of judges' agreement with people, beside that of people among themselves."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rvedit.analysis.plots import BLACK, BLUE, GREEN, ORANGE, PINK, STYLE, save_figure
from rvedit.evaluation.aggregate import Estimate
from rvedit.evaluation.agreement import OVERALL, AgreementReport, HumanAgreement
from rvedit.io.records import CATEGORY_TITLES

_COLORS = (BLUE, ORANGE, GREEN, PINK)


def plot_agreement(report: AgreementReport, path: Path) -> None:
    """Write Spearman's coefficient and pairwise accuracy with their intervals, by axis and category."""
    names = list(dict.fromkeys(name for categories in report.judges.values() for name in categories))
    names = [*(name for name in names if name != OVERALL), OVERALL]
    axes_names = list(dict.fromkeys(a for c in report.judges.values() for axes in c.values() for a in axes))
    with matplotlib.rc_context(STYLE):
        size = (2.6 * len(axes_names) + 1.4, 1.7 + 0.62 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(2, len(axes_names), sharey=True, sharex="row", squeeze=False)
        for row, (measure, title) in enumerate(
            (("spearman", "Spearman's coefficient"), ("accuracy", "accuracy on pairs"))
        ):
            for panel, axis in zip(grid[row], axes_names, strict=True):
                _plot_panel(panel, report, names, axis, measure)
                panel.set_xlabel(title)
                if row == 0:
                    panel.set_title("mean of the axes" if axis == "mean" else axis.upper())
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        save_figure(figure, path.with_suffix(""), (path.suffix,))


def _plot_panel(panel: Axes, report: AgreementReport, names: list[str], axis: str, measure: str) -> None:
    """Plot each category's estimates, the judges' above those of people."""
    judges = list(report.judges.items())
    offsets = np.linspace(-0.2, 0.2, len(judges) + 1)
    for (judge, categories), offset, color in zip(judges, offsets, _COLORS * len(judges), strict=False):
        rows = {name: categories.get(name, {}).get(axis) for name in names}
        estimates = {n: _beside_people(r, measure) for n, r in rows.items() if r}
        _errorbars(panel, estimates, names, offset, color, judge)
    rows = {name: judges[0][1].get(name, {}).get(axis) for name in names}
    people = {name: _ceiling(row, measure) for name, row in rows.items() if row}
    _errorbars(panel, people, names, offsets[-1], BLACK, "each rater, with the others", marker="D")
    panel.axvline(0 if measure == "spearman" else 0.5, color=BLACK, linewidth=1, linestyle=(0, (1, 2)))
    panel.set_yticks(range(len(names)), [CATEGORY_TITLES.get(name, name) for name in names])
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlim(right=1.02)


def _beside_people(row: HumanAgreement, measure: str) -> Estimate | None:
    """Return the judge's agreement with the means that raters are compared with, if there are any."""
    return getattr(row.ceiling, f"judge_{measure}") if row.ceiling else getattr(row, measure)


def _ceiling(row: HumanAgreement, measure: str) -> Estimate | None:
    return getattr(row.ceiling, measure) if row.ceiling else None


def _errorbars(
    panel: Axes,
    estimates: dict[str, Estimate | None],
    names: list[str],
    offset: float,
    color: str,
    label: str,
    marker: str = "o",
) -> None:
    shown = [(names.index(name) + offset, e) for name, e in estimates.items() if e]
    values = np.array([e.value for _, e in shown])
    # An interval of the BCa method need not contain the value.
    sides = np.array([[e.value - e.low, e.high - e.value] for _, e in shown]).reshape(-1, 2).T
    panel.errorbar(values, [y for y, _ in shown], xerr=np.maximum(sides, 0), fmt=marker, color=color,
                   markersize=4.5, capsize=2.5, linewidth=1.3, label=label)  # fmt: skip
