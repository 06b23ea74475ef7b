"""`rvedit judge arena`: compare editors in pairs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError, check_choice
from rvedit.io.records import CATEGORY_TITLES
from rvedit_cli import console
from rvedit_cli.judge.judges import CHAT_JUDGES, build_judge
from rvedit_cli.judge.printing import interval, new_table, print_table

if TYPE_CHECKING:
    from rvedit.evaluation.arena import ArenaReport
    from rvedit.evaluation.arena_judges import PairJudge
    from rvedit.evaluation.arena_table import ArenaTable

JUDGES = (*CHAT_JUDGES, "reference", "human")
_files = partial(console.option, console.FILES)
_comparing = partial(console.option, "Comparing")
_model = partial(console.option, "Model")
_requests = partial(console.option, "Requests")


def arena(
    editors: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...", help="Folders of edits of the same items, as FOLDER or NAME=FOLDER."
        ),
    ],
    bench: Annotated[
        Path | None,
        _files(
            "The list of items. Default: the one that `rvedit edit --batch` wrote to each folder.",
            metavar="CSV|MANIFEST",
        ),
    ] = None,
    out: Annotated[Path, _files("Folder for results, report and answers.")] = Path("arena"),
    category: Annotated[list[str] | None, _files("Only items of this category. Repeatable.")] = None,
    limit: Annotated[int | None, _files("Maximum number of items of each category.", min=1)] = None,
    as_json: console.Json = False,
    judge: Annotated[str, _comparing("Who compares.", metavar="|".join(JUDGES))] = "qwen",
    labels: Annotated[
        Path | None,
        _comparing("With --judge human: table of preferences (item, left, right, preferred).", metavar="CSV"),
    ] = None,
    budget: Annotated[
        int | None,
        _comparing("Number of comparisons, chosen to tell editors apart. Default: all of them.", min=1),
    ] = None,
    seed: Annotated[int, _comparing("Seed of the order of comparisons.")] = 0,
    base_url: Annotated[str | None, _model("Endpoint of the judge.")] = None,
    model: Annotated[str | None, _model("Model name at the endpoint.")] = None,
    local: Annotated[
        str | None,
        _model("Run this Qwen model on this machine instead of an endpoint.", metavar="DIR|HUB_ID"),
    ] = None,
    device: console.LocalDevice = None,
    concurrency: console.Concurrency = 16,
    timeout: console.Timeout = 300.0,
    max_tokens: console.MaxTokens = None,
    extra: console.Extra = None,
    retry_dropped: console.RetryDropped = False,
    dry_run: Annotated[
        bool, _requests("Print the number of comparisons without making any.", "--dry-run")
    ] = False,
) -> None:
    """Compare editors in pairs on the same items, and rate them. An interrupted run can be resumed.

    A chat model is asked about each pair in both orders; disagreement is a tie. Exits with code 1 if the
    judge stopped early or could compare nothing.
    """  # fmt: skip
    from rvedit.analysis.naming import named_folders
    from rvedit.evaluation import arena as job

    check_choice("--judge", judge, JUDGES)
    chat = judge in CHAT_JUDGES
    if (judge == "human") != (labels is not None):
        raise UserError("--judge human and --labels CSV go together")
    if judge == "human" and budget:
        raise UserError("--budget: chooses what to ask, but people have answered: leave it out")
    if not chat and (base_url or model or max_tokens or extra):
        raise UserError("--base-url, --model, --max-tokens and --extra: need --judge qwen or gemini")
    if local and judge != "qwen":
        raise UserError("--local: needs --judge qwen")
    console.check_local(local, base_url or model, device)
    config = job.ArenaConfig(named_folders(editors), out, bench, tuple(category or ()), limit, budget, seed)
    contest = job.read_contest(config)
    for name, count in contest.missing.items():
        if count and not as_json:
            console.say(f"note: {name} has no edit of {count} items")
    total = min(budget or contest.pool, contest.pool)
    if dry_run:
        requests = 2 * total if chat else 0
        text = f"{total} comparisons of {contest.pool}, at most {requests} requests; nothing was sent"
        console.print_result(as_json, {"dry_run": True, "comparisons": total, "requests": requests}, text)
        return
    if labels:
        from rvedit.evaluation.human_labels import read_labels

        report = job.human_arena(config, contest, read_labels(labels))
    else:
        settings = {"concurrency": concurrency, "timeout": timeout, "retry_dropped": retry_dropped}
        sampling = {"max_tokens": max_tokens, "extra": console.extra_body(extra, local)}
        place = {"base_url": base_url, "model": model}
        if judge == "qwen":
            place |= {"local": local, "device": device}
        if local:
            console.quiet_libraries()
        pair_judge = _pair_judge(judge, out, settings, sampling, place)
        with console.progress_bar(judge, total=total) as show:
            report = job.run_arena(
                config,
                contest,
                pair_judge,
                lambda done, dropped, total: show(done, total, f"{dropped} dropped" if dropped else ""),
            )
    if as_json:
        console.print_json({**job.summary_of(report), "folder": report.folder})
    else:
        _print_report(report)
    if report.stopped:
        console.say(f"rvedit: {judge} stopped early: {report.stopped}; fix this and run the command again")
    elif not report.tables["overall"].comparisons:
        reason = next(iter(report.dropped), "there was nothing to compare")
        console.say(f"rvedit: {judge} compared nothing: {reason}")
    if report.stopped or not report.tables["overall"].comparisons:
        raise typer.Exit(1)


def _pair_judge(
    name: str, out: Path, settings: dict[str, Any], sampling: dict[str, Any], place: dict[str, Any]
) -> PairJudge:
    """Return the judge, whose answers are kept in `out`; `place` has the options of its model."""
    from rvedit.evaluation.arena_judges import ChatPairJudge, ReferencePairJudge
    from rvedit.evaluation.frames import FrameStore
    from rvedit.evaluation.protocols import PaperProtocol
    from rvedit.io.chat import Journal

    journal = Journal(out / "journal.jsonl")
    protocol = PaperProtocol(FrameStore(out / "frames", journal))
    judge: Any = build_judge(name, journal, protocol, {"probe": "none", **settings}, sampling, place, place)
    return ReferencePairJudge(judge) if name == "reference" else ChatPairJudge(judge, journal)


def _print_report(report: ArenaReport) -> None:
    from rvedit.evaluation.arena import REPORT

    counts = f"{len(report.comparisons)} comparisons of {report.possible} possible"
    cached = f", {report.from_cache} from cache" if report.from_cache else ""
    typer.echo(f"{report.judge}: {counts}{cached}")
    if report.judge in CHAT_JUDGES:
        typer.echo(f"in {report.order_disagreements} the answers in the two orders differ, which is a tie")
    if report.unused:
        typer.echo(f"{report.unused} labels are on other items or editors")
    for reason, count in report.dropped.items():
        typer.echo(f"  dropped {count}: {reason}")
    for name, table in report.tables.items():
        typer.echo(
            f"{CATEGORY_TITLES.get(name, name)}: {table.comparisons} comparisons on {table.items} items"
        )
        _print_table(table)
    typer.echo("log strengths, mean 0, with 95% intervals over items")
    for pair in report.tables["overall"].pairs:
        if pair.difference and not pair.apart:
            needed = "over 100,000" if pair.needed is None else f"about {pair.needed}"
            typer.echo(f"{pair.left} and {pair.right} cannot be told apart: {needed} more comparisons needed")
    typer.echo(report.folder / REPORT)


def _print_table(table: ArenaTable) -> None:
    """Print strengths, and the share of wins against each other editor, ties as half."""
    names = [row.name for row in table.editors]
    shown = new_table("strength", "wins", "ties", "losses", *(f"vs {name}" for name in names))
    share: dict[tuple[str, str], float] = {}
    for pair in table.pairs:
        if total := pair.wins + pair.ties + pair.losses:
            share[pair.left, pair.right] = (pair.wins + pair.ties / 2) / total
            share[pair.right, pair.left] = (pair.losses + pair.ties / 2) / total
    for row in table.editors:
        strength = interval(row.strength, "+.2f")
        if row.strength and row.unbounded:
            strength += ", no bound"
        against = [f"{share[row.name, name]:.0%}" if (row.name, name) in share else "" for name in names]
        shown.add_row(row.name, strength, *map(str, (row.wins, row.ties, row.losses)), *against)
    print_table(shown, 150)
