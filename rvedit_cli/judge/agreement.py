"""`rvedit judge agreement`: compare judged folders with labels by people."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvedit.io.errors import UserError, check_choice
from rvedit.io.records import CATEGORY_TITLES
from rvedit_cli import console
from rvedit_cli.judge.printing import interval, new_table, print_table

if TYPE_CHECKING:
    from rvedit.evaluation.agreement import AgreementReport

_AMONG_PEOPLE = ("alpha", "spearman", "judge_spearman", "accuracy", "judge_accuracy")
_SUFFIXES = (".png", ".svg", ".pdf")
_files = partial(console.option, console.FILES)


def agreement(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="HUMAN", help="Table of labels by people: item, rater, axis, score, or another layout."
        ),
    ],
    outputs: Annotated[
        list[str],
        typer.Argument(
            metavar="OUTPUTS...",
            help="Judged folder. For preferences: one for each editor, as NAME=FOLDER if names differ.",
        ),
    ],
    plot: Annotated[Path | None, _files("Write a figure.", metavar="FILE.png|svg|pdf")] = None,
    as_json: console.Json = False,
) -> None:
    """Compare judges with people, and people with one another.

    Prints Spearman's and Kendall's coefficients and the accuracy on pairs, by category and axis, with 95%
    intervals. The agreement of people among themselves is the ceiling.
    """
    from rvedit.analysis.naming import named_folders
    from rvedit.evaluation.agreement import compare_with_people
    from rvedit.evaluation.human_labels import read_labels

    if plot:
        check_choice("--plot", plot.suffix, _SUFFIXES)
    report = compare_with_people(read_labels(labels), named_folders(outputs))
    if plot:
        try:
            from rvedit.analysis.agreement_figure import plot_agreement
        except ImportError:
            raise UserError("--plot: matplotlib is missing: pip install 'rvedit[analyze]'") from None
        plot_agreement(report, plot)
    if as_json:
        console.print_json(report)
        return
    if report.unknown:
        console.say(
            f"note: {len(report.unknown)} labeled edits are in no judged folder, such as {report.unknown[0]}"
        )
    if report.unlabeled:
        console.say(f"note: {report.unlabeled} judged edits have no label")
    _print_report(report)
    if plot:
        typer.echo(plot)


def _print_report(report: AgreementReport) -> None:
    """Print a table for each judge."""
    names = ["items", "raters", "Spearman", "Kendall", "accuracy", "alpha"]
    names += [f"{who} {measure}" for measure in ("Spearman", "accuracy") for who in ("rater", "judge")]
    for judge, categories in report.judges.items():
        table = new_table(*names)
        for category, axes in categories.items():
            for axis, row in axes.items():
                people = row.ceiling
                values = [row.spearman, row.kendall, row.accuracy]
                values += [getattr(people, name) if people else None for name in _AMONG_PEOPLE]
                title = (
                    f"{CATEGORY_TITLES.get(category, category)}, {axis if axis == 'mean' else axis.upper()}"
                )
                style = "bold" if category == "overall" else None
                table.add_row(
                    title,
                    str(row.items),
                    str(row.raters),
                    *(interval(value, ".2f") for value in values),
                    style=style,
                )
        typer.echo(f"{judge} and people, who gave {report.kind}")
        print_table(table, 190)
    typer.echo(
        "accuracy: pairs of edits ranked as people do. People among themselves: alpha (Krippendorff's, "
        "ordinal); rater: each rater against the mean of the other raters; judge: the judge against the same "
        "means. In brackets: 95% intervals over items."
    )
