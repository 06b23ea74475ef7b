"""Figures, for print and for screens of any colour: on white, in colours that the colour-blind tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rvedit.io.manifest import put_in_place

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#222222"  # Okabe and Ito's, as the others
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
    "svg.hashsalt": "rvedit",  # equal figures are equal files
}


def style() -> AbstractContextManager[None]:
    """Figures made within look like ours."""
    return matplotlib.rc_context(STYLE)


_GROUPS = (
    ("X_e", "editing tokens $X_e$", BLUE, "o"),
    ("X_v", "visual tokens $X_v$", GREEN, "s"),
    ("X_l", "text tokens $X_\\ell$", ORANGE, "^"),
    ("padding", "zeros behind the text", YELLOW, "v"),
)
_COLORS = (BLACK, PINK, SKY)  # of models: none that a group of tokens has
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))


def save_figure(figure: Figure, path: Path, suffixes: Sequence[str] = (".png", ".svg")) -> list[Path]:
    """Write a figure as `path` with each suffix, whole or not at all."""
    written = []
    for suffix in suffixes:
        with put_in_place(path.with_name(path.name + suffix)) as part:
            # No date inside: the same figure is the same file.
            metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
            figure.savefig(part, dpi=160, bbox_inches="tight", metadata=metadata)
        written.append(path.with_name(path.name + suffix))
    return written


def plot_attention(models: Sequence[dict[str, Any]], path: Path) -> list[Path]:
    """Fig. 4 of models as `AttentionReport.as_json` has them; the first is the one in question."""
    compared = any("cosine" in model["by_block"] for model in models)
    with style():
        figure = Figure(figsize=(12, 6.4) if compared else (5, 6.4), layout="constrained")
        axes = figure.subplots(2, 3 if compared else 1, sharex=True, squeeze=False)
        _mass(axes[0][0], models)
        _lines(axes[1][0], models, "entropy", "Spatial entropy of attention", "share of ln S")
        if compared:
            _lines(axes[0][1], models, "cosine", "(b) Cosine of editing and reference trace", "cosine")
            _lines(axes[1][1], models, "js", "Jensen-Shannon divergence of the two", "bits")
            _lines(axes[0][2], models, "alignment", "(c) Loss of Eq. 5", "share of ln S")
            axes[0][2].axhline(1, color=BLACK, linewidth=1, linestyle=(0, (1, 2)))
            axes[0][2].annotate("ln S: no position is told from another", (0.99, 1), (0, -3), fontsize=8,
                                ha="right", va="top", xycoords=("axes fraction", "data"),
                                textcoords="offset points")  # fmt: skip
            _lines(axes[1][2], models, "spread", "Spread of features over positions", "1 - |mean|²")
        for axis in axes[1]:
            axis.set_xlabel("block")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for row in axes:
            for axis in row:
                _mark_depth(axis, models[0], named=axis is axes[0][0])
        if len(models) > 1:
            names = [model["model"] for model in models]
            figure.legend(
                handles=_handles(names), loc="outside lower center", ncols=len(names), handlelength=3.5
            )
        return save_figure(figure, path)


def _mass(axis: Axes, models: Sequence[dict[str, Any]]) -> None:
    for number, model in enumerate(models):
        for name, label, color, marker in _GROUPS:
            estimates = model["by_block"][f"mass {name}"]
            if number and not any(e["value"] for e in estimates):
                continue  # a base that reads X_e alone has but one line to show
            _line(axis, estimates, color, marker, _DASHES[number], None if number else label)
    axis.set_ylim(-0.03, 1.05)
    axis.set_title("(a) What cross-attention reads")
    axis.set_ylabel("share of attention")
    axis.legend(fontsize=8, loc="center left")


def _lines(axis: Axes, models: Sequence[dict[str, Any]], quantity: str, title: str, unit: str) -> None:
    for number, model in enumerate(models):
        if estimates := model["by_block"].get(quantity):
            _line(axis, estimates, _COLORS[number], "o", _DASHES[number], None)
    axis.set_title(title)
    axis.set_ylabel(unit)


def _line(
    axis: Axes, estimates: Sequence[dict[str, float]], color: str, marker: str, dash: Any, label: str | None
) -> None:
    blocks = range(1, len(estimates) + 1)
    low, value, high = ([e[name] for e in estimates] for name in ("low", "value", "high"))
    axis.fill_between(blocks, low, high, color=color, alpha=0.18, linewidth=0)
    axis.plot(
        blocks, value, color=color, marker=marker, markersize=4.5, linewidth=1.8, linestyle=dash, label=label
    )


def _mark_depth(axis: Axes, model: dict[str, Any], named: bool) -> None:
    depth = model["routing_depth"]
    if 0 < depth < model["blocks"]:
        axis.axvline(depth + 0.5, color=BLACK, linewidth=1, linestyle="--")
    if named and 0 < depth < model["blocks"]:
        axis.annotate(
            f"$L_s$ = {depth}",
            (depth + 0.5, 0.86),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
            fontsize=9,
        )


def _handles(names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=_COLORS[i], linestyle=_DASHES[i], linewidth=1.8, label=name)
        for i, name in enumerate(names)
    ]
