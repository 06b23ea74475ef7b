"""Figures for print and screen, on white and in color-blind-safe colors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rvedit.io.temporary import atomic_path

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#222222"  # Okabe and Ito's palette
PINK, YELLOW, SKY = "#CC79A7", "#E69F00", "#56B4E9"
STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK]),
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#e4e7ea",
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rvedit",  # makes the files reproducible
}


_GROUPS = (
    ("X_e", "editing tokens $X_e$", BLUE, "o"),
    ("X_v", "visual tokens $X_v$", GREEN, "s"),
    ("X_l", "text tokens $X_\\ell$", ORANGE, "^"),
    ("padding", "padding after the text", YELLOW, "v"),
)
_COLORS = (BLACK, PINK, SKY)  # of models; distinct from the token groups' colors
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))


def save_figure(figure: Figure, path: Path, suffixes: Sequence[str] = (".png", ".svg")) -> list[Path]:
    """Write a figure atomically as `path` plus each suffix, and return the paths."""
    written = []
    for suffix in suffixes:
        file = path.with_name(path.name + suffix)
        with atomic_path(file) as part:
            # Without dates, so that equal figures are equal files.
            metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
            figure.savefig(part, dpi=160, bbox_inches="tight", metadata=metadata)
        written.append(file)
    return written


def plot_attention(models: Sequence[dict[str, Any]], path: Path) -> None:
    """Write Fig. 4 for the models of `AttentionReport.as_json`; the others are baselines of the first."""
    has_branches = any("cosine" in model["by_block"] for model in models)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 6.4) if has_branches else (5, 6.4), layout="constrained")
        axes = figure.subplots(2, 3 if has_branches else 1, sharex=True, squeeze=False)
        _plot_mass(axes[0][0], models)
        _plot_metric(axes[1][0], models, "entropy", "Spatial entropy of attention", "fraction of ln S")
        if has_branches:
            _plot_metric(axes[0][1], models, "cosine", "(b) Cosine of editing and reference traces", "cosine")
            _plot_metric(axes[1][1], models, "js", "Jensen-Shannon divergence of the traces", "bits")
            _plot_metric(axes[0][2], models, "alignment", "(c) Loss of Eq. 5", "fraction of ln S")
            axes[0][2].axhline(1, color=BLACK, linewidth=1, linestyle=(0, (1, 2)))
            axes[0][2].annotate("ln S: all positions alike", (0.99, 1), (0, -3), fontsize=8,
                                ha="right", va="top", xycoords=("axes fraction", "data"),
                                textcoords="offset points")  # fmt: skip
            _plot_metric(axes[1][2], models, "spread", "Spread of features over positions", "1 - |mean|²")
        for axis in axes[1]:
            axis.set_xlabel("block")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in axes.flat:
            _mark_depth(axis, models[0], with_label=axis is axes[0][0])
        if len(models) > 1:
            names = [model["model"] for model in models]
            handles = [
                Line2D([], [], color=color, linestyle=dash, linewidth=1.8, label=name)
                for name, color, dash in zip(names, _COLORS, _DASHES, strict=False)
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=len(names), handlelength=3.5)
        save_figure(figure, path)


def _plot_mass(axis: Axes, models: Sequence[dict[str, Any]]) -> None:
    for number, model in enumerate(models):
        for name, label, color, marker in _GROUPS:
            estimates = model["by_block"][f"mass {name}"]
            if number and not any(e["value"] for e in estimates):
                continue  # a baseline that attends to X_e alone has a single line
            _plot_line(axis, estimates, color, marker, _DASHES[number], None if number else label)
    title = "(a) Cross-attention by token group"
    axis.set(title=title, ylabel="fraction of attention", ylim=(-0.03, 1.05))
    axis.legend(fontsize=8, loc="center left")


def _plot_metric(axis: Axes, models: Sequence[dict[str, Any]], metric: str, title: str, unit: str) -> None:
    for number, model in enumerate(models):
        if estimates := model["by_block"].get(metric):
            _plot_line(axis, estimates, _COLORS[number], "o", _DASHES[number], None)
    axis.set(title=title, ylabel=unit)


def _plot_line(
    axis: Axes, estimates: Sequence[dict[str, float]], color: str, marker: str, dash: Any, label: str | None
) -> None:
    blocks = range(1, len(estimates) + 1)
    low, value, high = ([e[name] for e in estimates] for name in ("low", "value", "high"))
    axis.fill_between(blocks, low, high, color=color, alpha=0.18, linewidth=0)
    axis.plot(
        blocks, value, color=color, marker=marker, markersize=4.5, linewidth=1.8, linestyle=dash, label=label
    )


def _mark_depth(axis: Axes, model: dict[str, Any], with_label: bool) -> None:
    """Draw a vertical line at the routing depth L_s, if only part of the blocks are restricted to X_e."""
    depth = model["routing_depth"]
    if not 0 < depth < model["blocks"]:
        return
    axis.axvline(depth + 0.5, color=BLACK, linewidth=1, linestyle="--")
    if with_label:
        axis.annotate(f"$L_s$ = {depth}", (depth + 0.5, 0.86), (4, 0), fontsize=9,
                      va="top", xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
