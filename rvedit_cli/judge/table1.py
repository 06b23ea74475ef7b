"""`rvedit judge table1 RECIPE --outputs DIR`: Table 1 of the paper, with our scores beside the paper's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError
from rvedit_cli import console
from rvedit_cli.judge.judges import CHAT_JUDGES, build_judge, check_model_options
from rvedit_cli.judge.prices import Prices, read_prices

if TYPE_CHECKING:
    from rvedit.evaluation.judge import CostEstimate, JudgeConfig, JudgeSet
    from rvedit.evaluation.judges import Judge
    from rvedit.evaluation.table1 import Price, TableRow

JUDGES = (*CHAT_JUDGES, "reference")
_files = partial(console.option, console.FILES)
_OUTPUTS_HELP = "Folder with the outputs of each row in a folder of its label. Tables go to DIR/table1_JUDGE."


def table1(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipes/table1.yaml.")],
    outputs: Annotated[Path, _files(_OUTPUTS_HELP, metavar="DIR")],
    bench: Annotated[
        Path | None, _files("OpenVE-Bench's CSV. Default: the list in each row's folder.", metavar="CSV")
    ] = None,
    only: Annotated[list[str] | None, _files("Only this row, by its label. Repeatable.")] = None,
    limit: Annotated[int | None, _files("Maximum number of items of each category.", min=1)] = None,
    as_json: console.Json = False,
    judges: Annotated[
        list[str] | None,
        console.option(
            "Scoring",
            "Judge to ask. Default: qwen. Repeatable.",
            "--judge",
            metavar="qwen|gemini|reference",
        ),
    ] = None,
    base_url: Annotated[
        str | None, console.option("Model", "OpenAI-compatible endpoint of Qwen. [env: RVEDIT_QWEN_BASE_URL]")
    ] = None,
    concurrency: console.Concurrency = 16,
    timeout: console.Timeout = 300.0,
    price: Prices = None,
    max_cost: Annotated[
        float | None, console.option("Requests", "Refuse to start a run that would cost more.", min=0)
    ] = None,
    dry_run: console.DryRun = False,
) -> None:
    """Judge the outputs of the editors in Table 1, and print our scores beside the paper's.

    Rows without outputs are named, with the command that makes them. An interrupted run can be resumed.
    """
    from rvedit.evaluation import judge as job
    from rvedit.evaluation.table1 import check_cost, expected_cost, read_table_rows

    names = list(dict.fromkeys(judges or ["qwen"]))
    if other := [name for name in names if name not in JUDGES]:
        raise UserError(f"--judge {other[0]}: choose one of {', '.join(JUDGES)}")
    check_model_options(names, None, base_url, None, None)
    prices = read_prices(price, names)
    rows = read_table_rows(recipe, outputs, only or ())
    settings: dict[str, Any] = {"concurrency": concurrency, "timeout": timeout, "probe": "none"}
    runs = {
        row.label: _prepare(row, bench, limit, names, settings, base_url) for row in rows if row.has_outputs
    }
    estimates = {label: job.estimate(judge_set, of_row) for label, (_, judge_set, of_row) in runs.items()}
    every = [cost for of_row in estimates.values() for cost in of_row]
    costs = expected_cost(every, prices)
    plan = [_plan(row, estimates.get(row.label), bench) for row in rows]
    if not as_json:
        for line in _plan_lines(plan, every, costs):
            typer.echo(line)
    check_cost(every, prices, max_cost)
    if dry_run:
        if as_json:
            console.print_json({"dry_run": True, "rows": plan, "expected_cost": costs})
        return
    stopped, spent = _judge_all(runs, names, prices)
    tables = _tables(recipe, outputs, {label: runs[label][0].edits for label in runs}, names, as_json)
    if as_json:
        shown = {"rows": plan, "expected_cost": costs, "cost": spent, "tables": tables, "stopped": stopped}
        console.print_json(shown)
    for place, reason in stopped.items():
        console.say(f"rvedit: {place} stopped early: {reason}; fix this and run the command again")
    if stopped:
        raise typer.Exit(1)


Run = tuple["JudgeConfig", "JudgeSet", "list[Judge]"]


def _prepare(
    row: TableRow,
    bench: Path | None,
    limit: int | None,
    names: list[str],
    settings: dict[str, Any],
    base_url: str | None,
) -> Run:
    """Return what is to be judged of a row, and by whom, before anything is sent."""
    from rvedit.evaluation.frames import FrameStore
    from rvedit.evaluation.judge import JudgeConfig, read_judge_set
    from rvedit.evaluation.protocols import PaperProtocol
    from rvedit.io.chat import Journal

    out = row.folder / "judge"
    config = JudgeConfig(row.folder, out, bench, limit=limit)
    journal = Journal(out / "journal.jsonl")
    protocol = PaperProtocol(FrameStore(out / "frames", journal))
    overrides: dict[str, Any] = {"max_tokens": None, "extra": {}}
    qwen = {"base_url": base_url, "model": None, "local": None, "device": None}
    gemini = {"base_url": None, "model": None}
    of_row = [build_judge(name, journal, protocol, settings, overrides, qwen, gemini) for name in names]
    return config, read_judge_set(config, protocol), of_row


def _plan(row: TableRow, estimates: list[CostEstimate] | None, bench: Path | None) -> dict[str, Any]:
    """Return what is known of a row before judging."""
    if estimates is not None:
        return {"label": row.label, "has_outputs": True, "judges": estimates}
    remedy = f"put the outputs of its own repository into {row.folder}"
    if row.model:
        remedy = f"rvedit edit --batch {bench or 'CSV'} --out-dir {row.folder} --model {row.model}"
    return {"label": row.label, "has_outputs": False, "remedy": remedy}


def _plan_lines(
    plan: list[dict[str, Any]], estimates: list[CostEstimate], costs: dict[str, float]
) -> list[str]:
    lines = []
    for row in plan:
        if not row["has_outputs"]:
            lines.append(f"{row['label']}: no outputs: {row['remedy']}")
            continue
        asked = [f"{e.judge} {e.verdicts} verdicts, {e.from_cache} cached" for e in row["judges"]]
        lines.append(f"{row['label']}: {'; '.join(asked)}")
    for name in dict.fromkeys(e.judge for e in estimates):
        of_judge = [e for e in estimates if e.judge == name]
        prompt, completion = (
            sum(getattr(e, f"{kind}_tokens") for e in of_judge) for kind in ("prompt", "completion")
        )
        cost = f", about {costs[name]:.2f}" if name in costs else ""
        requests = sum(e.requests for e in of_judge)
        lines.append(f"{name}: {requests} requests, about {prompt:,} + {completion:,} tokens{cost}")
    return lines


def _judge_all(
    runs: dict[str, Run], names: list[str], prices: dict[str, Price]
) -> tuple[dict[str, str], dict[str, float]]:
    """Judge every row; return why judges stopped early, by row and judge, and the cost by judge."""
    from rvedit.evaluation.judge import judge_edits

    stopped: dict[str, str] = {}
    spent = dict.fromkeys(prices, 0.0)
    for label, (config, judge_set, of_row) in runs.items():
        with console.progress_bar(*names, total=len(judge_set.cases)) as show:

            def on_progress(name: str, done: int, dropped: int, total: int, show: Any = show) -> None:
                show(done, total, f"{dropped} dropped" if dropped else "", name)

            report = judge_edits(config, judge_set, of_row, on_progress)
        for name, price in prices.items():
            spent[name] += price.cost(*report.tokens[name])
        stopped |= {f"{label}, {name}": reason for name, reason in report.stopped.items()}
        if report.stopped:
            break
    return stopped, spent


def _tables(
    recipe: Path, outputs: Path, folders: dict[str, Path], names: list[str], as_json: bool
) -> dict[str, Any]:
    """Write and print the table of each judge, and of the mean of several."""
    from rvedit.analysis.sheets import to_markdown
    from rvedit.analysis.tables import TablesConfig, analyze_tables
    from rvedit.evaluation.judge import read_judged

    judged = {label: read_judged(folder)[1] for label, folder in folders.items() if _is_judged(folder)}
    tables = {}
    for name in (*names, *(["mean"] if len(names) > 1 else [])):
        needed = names if name == "mean" else [name]
        labels = [label for label, scores in judged.items() if all(scores.get(judge) for judge in needed)]
        if not labels:
            continue
        runs = tuple(f"{label}={folders[label]}" for label in labels)
        config = TablesConfig(runs, "1", recipe.parent, name, out=outputs / f"table1_{name}")
        report = analyze_tables(config)
        tables[name] = report.as_json()
        if not as_json:
            typer.echo(to_markdown(report.sheet).removesuffix("\n"))
    return tables


def _is_judged(folder: Path) -> bool:
    return (folder / "judge" / "scores.jsonl").is_file()
