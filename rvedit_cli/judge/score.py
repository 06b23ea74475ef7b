"""`rvedit judge OUTPUTS`: score edits."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError, check_choice
from rvedit.io.records import CATEGORY_TITLES
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.evaluation.aggregate import Table
    from rvedit.evaluation.judge import CostEstimate, JudgeReport
    from rvedit.evaluation.judges import Judge
    from rvedit.evaluation.protocols import JudgeProtocol
    from rvedit.io.chat import Journal

JUDGES = ("qwen", "gemini", "reference")

_files = partial(console.option, console.FILES)
_scoring = partial(console.option, "Scoring")
_model = partial(console.option, "Model")
_requests = partial(console.option, "Requests")
_BENCH_HELP = (
    "OpenVE-Bench's CSV or a manifest. Default: the list that `rvedit edit --batch` wrote to OUTPUTS."
)
_PROTOCOL_HELP = (
    "paper: Appendix D.3, scores from 1 to 100 for five frames of each clip. openve: scores from 1 to 5 for "
    "whole clips. refvie: the same for edits with a reference image."
)
_PROBE_HELP = (
    "Test the judge instead of the edits. identity: the source as the edit. swap: source and edit exchanged "
    "in the prompt."
)
_URL_HELP = (
    "OpenAI-compatible endpoint of Qwen; of Gemini if it is the only chat judge. "
    "[env: RVEDIT_QWEN_BASE_URL, "
    "RVEDIT_GEMINI_BASE_URL]"
)


def score(
    edits: Annotated[Path | None, typer.Argument(metavar="OUTPUTS", help="Folder of edited clips.")] = None,
    bench: Annotated[Path | None, _files(_BENCH_HELP, metavar="CSV|MANIFEST")] = None,
    out: Annotated[
        Path | None, _files("Folder for scores and report. Default: OUTPUTS/judge, or OUTPUTS/judge_PROBE.")
    ] = None,
    category: Annotated[
        list[str] | None, _files("Only this category: change, remove, add or style. Repeatable.")
    ] = None,
    limit: Annotated[int | None, _files("Maximum number of items of each category.", min=1)] = None,
    compare: Annotated[
        tuple[Path, Path] | None, _files("Compare two judged folders instead of judging.", metavar="A B")
    ] = None,
    as_json: console.Json = False,
    judges: Annotated[
        list[str] | None,
        _scoring("Judge to ask. Default: qwen. Repeatable.", "--judge", metavar="qwen|gemini|reference"),
    ] = None,
    protocol: Annotated[str, _scoring(_PROTOCOL_HELP, metavar="paper|openve|refvie")] = "paper",
    rubrics: Annotated[
        Path | None,
        _scoring("With --protocol openve or refvie: folder of its rubrics, such as local_change.txt."),
    ] = None,
    rubric_in: Annotated[str, _scoring("Message that holds the rubric.", metavar="system|user")] = "system",
    repeats: Annotated[int, _scoring("Number of verdicts to average for each item.", min=1)] = 1,
    probe: Annotated[str, _scoring(_PROBE_HELP, metavar="none|identity|swap")] = "none",
    base_url: Annotated[str | None, _model(_URL_HELP)] = None,
    model: Annotated[str | None, _model("Model name at the endpoint, for a single chat judge.")] = None,
    local: Annotated[
        str | None,
        _model("Run this Qwen model on this machine instead of an endpoint.", metavar="DIR|HUB_ID"),
    ] = None,
    device: console.LocalDevice = None,
    concurrency: console.Concurrency = 16,
    timeout: console.Timeout = 300.0,
    max_tokens: console.MaxTokens = None,
    extra: console.Extra = None,
    retry_dropped: Annotated[
        bool, _requests("Ask again where an earlier reply could not be parsed.", "--retry-dropped")
    ] = False,
    price_in: Annotated[float | None, _requests("Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, _requests("Price of a million completion tokens.")] = None,
    dry_run: console.DryRun = False,
) -> None:
    """Score edits with multimodal LLMs. An interrupted run can be resumed.

    API keys are read from RVEDIT_QWEN_API_KEY and GEMINI_API_KEY. Exits with code 1 if a judge stopped early
    or scored nothing.
    """
    from rvedit.evaluation import judge as job

    if compare:
        if edits or judges:
            raise UserError("--compare: does not judge: leave out OUTPUTS and --judge")
        _print_comparison(job.compare_folders(*compare), compare, as_json)
        return
    if edits is None:
        raise UserError("give the folder of edited clips, or two judged folders with --compare A B")
    check_choice("--protocol", protocol, ("paper", "openve", "refvie"))
    if (protocol != "paper") != (rubrics is not None):
        raise UserError(
            "--protocol openve or refvie and --rubrics DIR go together: rvedit does not include their rubrics"
        )
    names = list(dict.fromkeys(judges or ["qwen"]))
    _check_model_options(names, model, base_url, local, device)
    overrides = _overrides(names, max_tokens, extra, local)
    if (price_in is None) != (price_out is None):
        raise UserError("--price-in and --price-out go together")
    check_choice("--probe", probe, ("none", "identity", "swap"))
    out = out or edits / ("judge" if probe == "none" else f"judge_{probe}")
    config = job.JudgeConfig(edits, out, bench, tuple(category or ()), limit, repeats)
    from rvedit.evaluation.frames import FrameStore
    from rvedit.evaluation.protocols import OpenVEProtocol, PaperProtocol, RefVIEProtocol
    from rvedit.io.chat import Journal

    journal = Journal(out / "journal.jsonl")
    frames = FrameStore(out / "frames", journal)
    judge_protocol: JudgeProtocol = PaperProtocol(frames)
    if rubrics:
        kind = RefVIEProtocol if protocol == "refvie" else OpenVEProtocol
        judge_protocol = kind(rubrics, journal, frames)
    for name in config.categories:
        if name not in judge_protocol.rubrics:
            known = ", ".join(judge_protocol.rubrics)
            raise UserError(f"--category {name}: has no rubric in protocol {protocol}: choose one of {known}")
    judge_set = job.read_judge_set(config, judge_protocol)
    check_choice("--rubric-in", rubric_in, ("system", "user"))
    settings: dict[str, Any] = {"probe": probe, "rubric_in": rubric_in, "concurrency": concurrency}
    settings |= {"timeout": timeout, "retry_dropped": retry_dropped}
    qwen = {"base_url": base_url, "model": model, "local": local, "device": device}
    gemini = {"base_url": None if "qwen" in names else base_url, "model": model}
    judge_list = [
        _build_judge(name, journal, judge_protocol, settings, overrides, qwen, gemini) for name in names
    ]
    if judge_set.missing and not as_json:
        first = judge_set.missing[0].id
        console.say(f"note: {len(judge_set.missing)} items have no edit in {edits}, such as {first}")
    if judge_set.without_rubric and not as_json:
        counts = ", ".join(f"{count} {name}" for name, count in judge_set.without_rubric.items())
        console.say(f"note: left out, as the protocol has no rubric for them: {counts}")
    if dry_run:
        _print_estimates(job.estimate(judge_set, judge_list), judge_protocol.num_frames, as_json)
        return
    if local:
        console.quiet_libraries()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with console.progress_bar(*names, total=len(judge_set.cases)) as show:

        def on_progress(name: str, done: int, dropped: int, total: int) -> None:
            show(done, total, f"{dropped} dropped" if dropped else "", name)

        report = job.judge_edits(config, judge_set, judge_list, on_progress)
    prices = None if price_in is None or price_out is None else (price_in, price_out)
    _print_report(report, prices, as_json)
    noted = sorted({verdict.item for verdict in report.verdicts if verdict.note})
    if noted and not as_json:
        console.say(f"note: {len(noted)} edits differ in length from their source, such as {noted[0]}")
    for name, reason in report.stopped.items():
        console.say(f"rvedit: {name} stopped early: {reason}; fix this and run the command again")
    unscored = [name for name, table in report.tables.items() if table is None]
    for name in unscored:
        if name not in report.stopped:
            console.say(
                f"rvedit: {name} scored nothing: {_main_reason(report, name)}; fix this and run the "
                "command again with --retry-dropped"
            )
    if report.stopped or unscored:
        raise typer.Exit(1)


def _check_model_options(
    names: list[str], model: str | None, base_url: str | None, local: str | None, device: str | None
) -> None:
    """Raise UserError for options of a model that none of the judges calls."""
    chat_judges = [name for name in names if name != "reference"]
    if model and len(chat_judges) != 1:
        raise UserError("--model: is for one chat judge: leave it out, or run one --judge at a time")
    if base_url and not chat_judges:
        raise UserError("--base-url: needs --judge qwen or gemini")
    if local and "qwen" not in names:
        raise UserError("--local: needs --judge qwen")
    console.check_local(local, base_url or model, device)


def _overrides(
    names: list[str], max_tokens: int | None, extra: str | None, local: str | None
) -> dict[str, Any]:
    """Return the changes of the judges' sampling. Raises UserError if none of the judges can use them."""
    chat_judges = [name for name in names if name != "reference"]
    if max_tokens and not chat_judges:
        raise UserError("--max-tokens: needs --judge qwen or gemini")
    if extra and len(chat_judges) != 1:
        raise UserError("--extra: is for one chat judge: leave it out, or run one --judge at a time")
    return {"max_tokens": max_tokens, "extra": console.extra_body(extra, local)}


def _build_judge(
    name: str,
    journal: Journal,
    protocol: JudgeProtocol,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    qwen: dict[str, Any],
    gemini: dict[str, Any],
) -> Judge:
    """Return a judge; `settings` are those of all judges, `qwen` and `gemini` the options of one model.

    `overrides` changes the sampling of a chat judge.
    """
    from rvedit.evaluation import judges
    from rvedit.evaluation.request import JudgeSettings

    check_choice("--judge", name, JUDGES)
    if name == "reference":
        try:
            from rvedit.evaluation.reference import ReferenceJudge
        except ImportError:
            raise UserError("--judge reference: scipy is missing: pip install 'rvedit[judge]'") from None
        if protocol.name != "paper":
            raise UserError("--judge reference: supports --protocol paper only")
        return ReferenceJudge(journal, protocol, settings["probe"])
    sampling = judges.QWEN_SAMPLING if name == "qwen" else judges.GEMINI_SAMPLING
    chat_settings = JudgeSettings(sampling.overridden(**overrides), **settings)
    if name == "qwen":
        return judges.qwen_judge(journal, protocol, chat_settings, **qwen)
    return judges.gemini_judge(journal, protocol, chat_settings, **gemini)


def _print_estimates(estimates: list[CostEstimate], num_frames: int, as_json: bool) -> None:
    clip_tokens = "" if num_frames else ", plus those of the clips"
    lines = [
        f"{cost.judge}: {cost.verdicts} verdicts, {cost.from_cache} of them cached; "
        f"{cost.requests} requests, about {cost.prompt_tokens:,} prompt and "
        f"{cost.completion_tokens:,} completion tokens{clip_tokens}; nothing was sent"
        for cost in estimates
    ]
    console.print_result(as_json, {"dry_run": True, "judges": estimates}, "\n".join(lines))


def _print_report(report: JudgeReport, prices: tuple[float, float] | None, as_json: bool) -> None:
    from rvedit.evaluation.judge import REPORT, summary_of

    summary = summary_of(report)
    costs: dict[str, float | None] = dict.fromkeys(report.tables)
    if prices:
        for name, (prompt, completion) in report.tokens.items():
            costs[name] = prompt * prices[0] / 1e6 + completion * prices[1] / 1e6
    if as_json:
        console.print_json({**summary, "cost": costs, "folder": report.folder})
        return
    for name, table in report.tables.items():
        counts, (prompt, completion) = report.counts(name), report.tokens[name]
        line = f"{name}: {counts['scored']} scored, {counts['dropped']} dropped"
        line += f", {counts['from_cache']} from cache" if counts["from_cache"] else ""
        if prompt:
            line += f", {prompt:,} prompt + {completion:,} completion tokens"
        typer.echo(line if costs[name] is None else f"{line}, cost {costs[name]:.2f}")
        _print_table(table)
        reasons = Counter(summary["judges"][name]["reasons"])
        for reason, count in reasons.most_common(5):
            typer.echo(f"  dropped {count}: {reason}")
    if report.mean:
        typer.echo("mean over the judges, on items that all of them scored")
        _print_table(report.mean)
    for pair, axes in report.agreement.items():
        for axis, row in axes.items():
            ranks = [f"{k} {row[k]:.2f}" for k in ("spearman", "kendall") if row[k] is not None]
            difference = f"second minus first {row['mean_difference']:+.2f}"
            typer.echo(f"{pair}, {axis.upper()}: {', '.join([*ranks, difference])} ({row['items']} items)")
    typer.echo(f"{report.folder / REPORT}: {report.seconds:.1f} s")


def _main_reason(report: JudgeReport, name: str) -> str | None:
    """Return the most common reason for which a judge dropped verdicts."""
    reasons = Counter(verdict.dropped for verdict in report.verdicts if verdict.judge == name)
    return reasons.most_common(1)[0][0]


def _print_table(table: Table | None) -> None:
    """Print scores by category and axis, with their intervals."""
    from rich.console import Console
    from rich.table import Column
    from rich.table import Table as RichTable

    from rvedit.evaluation.scores import AXES

    if table is None:
        typer.echo("  nothing was scored")
        return
    names = ("items", *(axis.upper() for axis in AXES), "mean")
    columns = [Column(name, justify="right") for name in names]
    shown = RichTable("", *columns, box=None, pad_edge=False)

    def cells(row: Any, score: Any) -> list[str]:
        values = [*(row[axis] for axis in AXES), score]
        return [f"{v.value:.2f} [{v.low:.1f}, {v.high:.1f}]".replace("[", r"\[") for v in values]

    for key, row in table.categories.items():
        shown.add_row(CATEGORY_TITLES.get(key, key), str(row.items), *cells(row.axes, row.score))
    shown.add_row("Overall", "", *cells(table.axes, table.overall), style="bold")
    Console(width=None if Console().is_terminal else 110).print(shown)


def _print_comparison(results: Any, folders: tuple[Path, Path], as_json: bool) -> None:
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
