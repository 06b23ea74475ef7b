"""What `rvedit judge` prints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rvedit.io.records import CATEGORY_TITLES
from rvedit_cli import console

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from rvedit.evaluation.aggregate import Estimate, Table
    from rvedit.evaluation.checklist import ChecklistRow
    from rvedit.evaluation.judge import CostEstimate
    from rvedit.evaluation.measure_table import MeasureTable
    from rvedit.evaluation.results import JudgeReport
    from rvedit.evaluation.table1 import Price


def new_table(*names: str) -> RichTable:
    """Return a table without borders: a column of titles, and columns of figures of these names."""
    from rich.table import Column
    from rich.table import Table as RichTable

    return RichTable("", *(Column(name, justify="right") for name in names), box=None, pad_edge=False)


def interval(estimate: Estimate | None, form: str, bounds: str | None = None) -> str:
    """Return the cell of an estimate, in a number format; `bounds` is that of the interval."""
    if estimate is None:
        return "-"
    low, high = (format(bound, bounds or form) for bound in (estimate.low, estimate.high))
    return rf"{estimate.value:{form}} \[{low}, {high}]"


def print_table(table: RichTable, width: int) -> None:
    """Print a table, in `width` columns if the output is no terminal."""
    from rich.console import Console

    Console(width=None if Console().is_terminal else width).print(table)


def print_estimates(
    estimates: list[CostEstimate], num_frames: int, prices: dict[str, Price], as_json: bool
) -> None:
    """Print the requests and tokens that a run would send."""
    clip_tokens = "" if num_frames else ", plus those of the clips"
    from rvedit.evaluation.table1 import expected_cost

    costs = expected_cost(estimates, prices)
    lines = [
        f"{cost.judge}: {cost.verdicts} verdicts, {cost.from_cache} of them cached; "
        f"{cost.requests} requests, about {cost.prompt_tokens:,} prompt and "
        f"{cost.completion_tokens:,} completion tokens{clip_tokens}"
        + (f", about {costs[cost.judge]:.2f}" if cost.judge in costs else "")
        + "; nothing was sent"
        for cost in estimates
    ]
    console.print_result(
        as_json, {"dry_run": True, "judges": estimates, "expected_cost": costs}, "\n".join(lines)
    )


def print_report(report: JudgeReport, prices: dict[str, Price], as_json: bool) -> None:
    """Print the results of a run."""
    from rvedit.evaluation.results import REPORT, summary_of

    summary = summary_of(report)
    costs = {
        name: prices[name].cost(*used) if name in prices else None for name, used in report.tokens.items()
    }
    if as_json:
        console.print_json({**summary, "cost": costs, "folder": report.folder})
        return
    for name in report.tokens:
        counts, (prompt, completion) = report.counts(name), report.tokens[name]
        done = "measured" if name == "measures" else "scored"
        line = f"{name}: {counts['scored']} {done}, {counts['dropped']} dropped"
        line += f", {counts['from_cache']} from cache" if counts["from_cache"] else ""
        if prompt:
            line += f", {prompt:,} prompt + {completion:,} completion tokens"
        cost = costs[name]
        typer.echo(line if cost is None else f"{line}, cost {cost:.2f}")
        if name in report.tables:
            _print_scores(report.tables[name])
        elif name in report.checklists:
            _print_checklist(report.checklists[name])
        elif report.measures:
            _print_measures(report.measures)
        reasons = Counter(summary["judges"][name]["reasons"])
        for reason, count in reasons.most_common(5):
            typer.echo(f"  dropped {count}: {reason}")
    if report.mean:
        typer.echo("mean over the judges, on items that all of them scored")
        _print_scores(report.mean)
    for pair, axes in report.agreement.items():
        for axis, row in axes.items():
            ranks = [f"{k} {row[k]:.2f}" for k in ("spearman", "kendall") if row[k] is not None]
            difference = f"second minus first {row['mean_difference']:+.2f}"
            typer.echo(f"{pair}, {axis.upper()}: {', '.join([*ranks, difference])} ({row['items']} items)")
    typer.echo(f"{report.folder / REPORT}: {report.seconds:.1f} s")


def main_reason(report: JudgeReport, name: str) -> str | None:
    """Return the most common reason for which a judge dropped verdicts."""
    reasons = Counter(verdict.dropped for verdict in report.verdicts if verdict.judge == name)
    return reasons.most_common(1)[0][0]


def _print_scores(table: Table | None) -> None:
    """Print scores by category and axis, with their intervals."""
    from rvedit.evaluation.scores import AXES

    if table is None:
        typer.echo("  nothing was scored")
        return
    shown = new_table("items", *(axis.upper() for axis in AXES), "mean")

    def cells(row: Any, score: Any) -> list[str]:
        return [interval(value, ".2f", ".1f") for value in (*(row[axis] for axis in AXES), score)]

    for key, row in table.categories.items():
        shown.add_row(CATEGORY_TITLES.get(key, key), str(row.items), *cells(row.axes, row.score))
    shown.add_row("Overall", "", *cells(table.axes, table.overall), style="bold")
    print_table(shown, 110)


def _print_checklist(table: dict[str, ChecklistRow]) -> None:
    """Print the share of questions that are answered as expected, and how many have no such answer."""
    for name, row in table.items():
        score, counts = row.score, row.answers
        asked = f"{counts['expected']} as expected, {counts['other']} otherwise"
        apart = f"not counted: {counts['unclear']} unclear, {counts['unparsed']} unparsed"
        title = "all items" if name == "overall" else CATEGORY_TITLES.get(name, name)
        share = f"{100 * score.value:.1f}% [{100 * score.low:.1f}, {100 * score.high:.1f}]"
        typer.echo(f"  {title}: {share} over {row.items} items; questions: {asked}; {apart}")


def _print_measures(table: MeasureTable) -> None:
    """Print the means of the measures, with their intervals over all items."""
    from rvedit.evaluation.measure_table import DEFINITIONS

    categories = [name for name in table if name != "overall"]
    titles = [CATEGORY_TITLES.get(name, name) for name in categories]
    shown = new_table("as the source", *titles, "all items")
    for name, definition in DEFINITIONS.items():
        means = [table[category][name] for category in categories]
        cells = [f"{mean.value:.3g}" if mean else "-" for mean in means]
        overall = interval(table["overall"][name], ".3g")
        shown.add_row(definition.label, f"{definition.perfect:g}", *cells, overall)
    print_table(shown, 130)


def print_comparison(results: Any, folders: tuple[Path, Path], as_json: bool) -> None:
    """Print the differences of two judged folders."""
    a, b = folders
    lines = [f"{b} minus {a}, on items that both have; p-values by permutation"]
    for judge_name, rows in results.items():
        for name, axes in rows.items():
            first = next(iter(axes.values()))
            counts = f"{first.items} items"
            if first.only_a + first.only_b:
                counts += f", {first.only_a} only in the first and {first.only_b} only in the second"
            lines.append(f"{judge_name}, {CATEGORY_TITLES.get(name, name)} ({counts})")
            for axis, d in axes.items():
                mean = f"{d.mean.value:+7.2f} [{d.mean.low:+.2f}, {d.mean.high:+.2f}]"
                lines.append(f"  {axis:>5} {mean}  p = {d.p_value:.4f}")
    console.print_result(as_json, {"a": a, "b": b, "difference": results}, "\n".join(lines))
