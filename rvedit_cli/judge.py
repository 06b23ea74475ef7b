"""`rvedit judge`."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvedit.io.errors import UserError
from rvedit.io.records import CATEGORY_TITLES
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.evaluation.aggregate import Table
    from rvedit.evaluation.judge import JudgeConfig, JudgeReport
    from rvedit.evaluation.judges import Judge
    from rvedit.evaluation.protocols import JudgeProtocol
    from rvedit.io.chat import Journal

JUDGES = ("qwen", "gemini", "reference")


def judge(
    edits: Annotated[
        Path | None, typer.Argument(metavar="[OUTPUTS]", help="The folder of edited clips.")
    ] = None,
    judges: Annotated[
        list[str] | None, typer.Option("--judge", help="qwen, gemini or reference; repeatable.")
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|MANIFEST",
            help="The items: OpenVE-Bench's CSV or a manifest; by default what `rvedit edit --batch` left.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for scores, summary and report; by default OUTPUTS/judge, or judge_PROBE."),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="paper (Appendix D.3: 1 to 100, five and five frames) or openve (1 to 5, whole clips)."
        ),
    ] = "paper",
    rubrics: Annotated[
        Path | None,
        typer.Option(help="Of --protocol openve: a folder with its rubrics, as local_change.txt and so on."),
    ] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Only these: change, remove, add, style; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each category at most.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Verdicts on each item; they are averaged.")] = 1,
    probe: Annotated[
        str,
        typer.Option(help="Test the judge: identity (source as edit) or swap (headers exchanged)."),
    ] = "none",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at most.")] = 16,
    model: Annotated[
        str | None, typer.Option(help="Its name at the endpoint, where one chat judge is asked.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Qwen's OpenAI-compatible endpoint, or Gemini's where that alone is asked. "
            "[env: RVEDIT_QWEN_BASE_URL, RVEDIT_GEMINI_BASE_URL]"
        ),
    ] = None,
    local: Annotated[
        str | None, typer.Option(metavar="DIR|HUB_ID", help="Qwen's weights to run on this machine.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Of --local; by default what is there.")] = None,
    rubric_in: Annotated[str, typer.Option(help="Where the rubric stands: system or user.")] = "system",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one request may take.")] = 300.0,
    retry_dropped: Annotated[
        bool, typer.Option("--retry-dropped", help="Ask anew where no reply could be read before.")
    ] = False,
    price_in: Annotated[float | None, typer.Option(help="Of a million prompt tokens, in your money.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Of a million tokens of reply.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Two judged folders, item by item, instead of judging."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many requests and tokens, and send nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score edits by the paper's rubrics; interrupted, it goes on where it was.

    Keys come from the environment: RVEDIT_QWEN_API_KEY, GEMINI_API_KEY. Ends with 1 where a judge stopped.
    """
    from rvedit.evaluation.judge import JudgeConfig, compare_folders, estimate, judge_edits, read_judge_set

    if compare:
        if edits or judges:
            raise UserError("--compare A B judges nothing: leave out OUTPUTS and --judge")
        _print_comparison(compare_folders(*compare), compare, as_json)
        return
    if edits is None:
        raise UserError("name the folder of edited clips, or two judged folders with --compare A B")
    _chosen("--protocol", protocol, ("paper", "openve"))
    if (protocol == "openve") != (rubrics is not None):
        raise UserError("--protocol openve and --rubrics DIR go together: its rubrics are not ours to give")
    names = list(dict.fromkeys(judges or ["qwen"]))
    _check_place(names, model, base_url, local, device)
    if (price_in is None) != (price_out is None):
        raise UserError("--price-in and --price-out go together")
    config = JudgeConfig(
        edits,
        out or edits / ("judge" if probe == "none" else f"judge_{probe}"),
        bench,
        tuple(category or ()),
        limit,
        repeats,
        _chosen("--probe", probe, ("none", "identity", "swap")),
    )
    from rvedit.evaluation.frames import FrameStore
    from rvedit.evaluation.protocols import OpenVEProtocol, PaperProtocol
    from rvedit.io.chat import Journal

    journal = Journal(config.out / "journal.jsonl")
    frames = FrameStore(config.out / "frames", journal)
    way = OpenVEProtocol(rubrics, journal, frames) if rubrics else PaperProtocol(frames)
    for word in config.categories:
        if word not in way.categories:
            known = ", ".join(way.categories)
            raise UserError(
                f"--category {word}: has no rubric in the {protocol} protocol: choose among {known}"
            )
    docket = read_judge_set(config, way)
    options = {"model": model, "concurrency": concurrency, "retry_dropped": retry_dropped, "timeout": timeout}
    qwen = {"base_url": base_url, "local": local, "device": device, **options}
    options["base_url"] = None if "qwen" in names else base_url
    place = _chosen("--rubric-in", rubric_in, ("system", "user"))
    chosen = [_judge(name, journal, way, config, place, qwen, options) for name in names]
    if docket.missing and not as_json:
        first = docket.missing[0].id
        console.say(f"note: {len(docket.missing)} items have no edit in {edits}, such as {first}")
    if docket.without_rubric and not as_json:
        kinds = ", ".join(f"{count} {word}" for word, count in docket.without_rubric.items())
        console.say(f"note: left out, as the protocol has no rubric for them: {kinds}")
    if dry_run:
        rows = [dataclasses.asdict(e) for e in estimate(config, docket, chosen)]
        _print_estimates(rows, way.pictures, as_json)
        return
    if local:
        console.quiet_libraries()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with console.progress_bar() as bar:
        tasks = {name: bar.add_task(name, total=len(docket.cases) * repeats, note="") for name in names}

        def show(name: str, done: int, dropped: int, total: int) -> None:
            bar.update(tasks[name], completed=done, total=total, note=f"{dropped} dropped" if dropped else "")

        report = judge_edits(config, docket, chosen, show)
    _print_report(report, (price_in, price_out), as_json)
    odd = {verdict.item for verdict in report.verdicts if verdict.note}
    if odd and not as_json:
        console.say(f"note: {len(odd)} edits have another length than their source, such as {sorted(odd)[0]}")
    for name, reason in report.stopped.items():
        console.say(f"rvedit: {name} stopped early: {reason}; mend it and run the command again")
    if report.stopped:
        raise typer.Exit(1)


def _check_place(
    names: list[str], model: str | None, base_url: str | None, local: str | None, device: str | None
) -> None:
    """Options that say whom to ask are for judges that are asked; weights are no address."""
    asked = [name for name in names if name != "reference"]
    if model and len(asked) != 1:
        raise UserError("--model names one judge's model: leave it out, or ask one --judge at a time")
    if base_url and not asked:
        raise UserError("--base-url is for a judge that is asked: --judge qwen or gemini")
    if local and "qwen" not in names:
        raise UserError("--local runs Qwen: ask --judge qwen")
    if local and (base_url or model):
        raise UserError("--local names the model and runs it here: leave out --base-url and --model")
    if device and not local:
        raise UserError("--device is for --local: a server chooses its own")


def _chosen(option: str, value: str, values: tuple[str, ...]) -> Any:
    if value not in values:
        raise UserError(f"{option} {value}: choose one of {', '.join(values)}")
    return value


def _judge(
    name: str,
    journal: Journal,
    protocol: JudgeProtocol,
    config: JudgeConfig,
    rubric_in: Any,
    qwen: dict[str, Any],
    options: dict[str, Any],
) -> Judge:
    from rvedit.evaluation import judges
    from rvedit.evaluation.request import JudgeSettings

    probe: Any = config.probe
    if name == "reference":
        try:
            from rvedit.evaluation.reference import ReferenceJudge
        except ImportError:
            raise UserError("the reference judge needs scipy: pip install 'rvedit[judge]'") from None
        if protocol.name != "paper":
            raise UserError("--judge reference scores from 1 to 100: leave out --protocol openve")
        return ReferenceJudge(journal, protocol.frames, probe)
    if name == "qwen":
        return judges.qwen_judge(
            journal, protocol, JudgeSettings(judges.QWEN_SAMPLING, probe, rubric_in), **qwen
        )
    if name == "gemini":
        return judges.gemini_judge(
            journal, protocol, JudgeSettings(judges.GEMINI_SAMPLING, probe, rubric_in), **options
        )
    raise UserError(f"--judge {name}: choose among {', '.join(JUDGES)}")


def _print_estimates(rows: list[dict[str, Any]], pictures: int, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"dry_run": True, "judges": rows}))
        return
    beside = "" if pictures else ", and what the server makes of whole clips"
    for row in rows:
        typer.echo(
            f"{row['judge']}: {row['verdicts']} verdicts, {row['from_cache']} of them known; "
            f"{row['requests']} requests, about {row['prompt_tokens']:,} prompt and "
            f"{row['completion_tokens']:,} reply tokens{beside}; nothing was sent"
        )


def _print_report(report: JudgeReport, prices: tuple[float | None, float | None], as_json: bool) -> None:
    from rvedit.evaluation.judge import REPORT, summary_of

    summary = summary_of(report)
    if as_json:
        cost = {name: _cost(report.tokens[name], prices) for name in report.tables}
        typer.echo(json.dumps({**summary, "cost": cost, "folder": str(report.folder)}))
        return
    for name, table in report.tables.items():
        counts, (prompt, completion) = report.counts(name), report.tokens[name]
        words = f"{name}: {counts['scored']} scored, {counts['dropped']} dropped"
        words += f", {counts['from_cache']} from cache" if counts["from_cache"] else ""
        if prompt:
            words += f", {prompt:,} + {completion:,} tokens"
        price = _cost((prompt, completion), prices)
        typer.echo(words + (f", cost {price:.2f}" if price is not None else ""))
        _print_table(table)
        for reason, count in sorted(summary["judges"][name]["reasons"].items())[:5]:
            typer.echo(f"  dropped {count}: {reason}")
    if report.mean:
        typer.echo("mean over the judges, of the items that all scored")
        _print_table(report.mean)
    for pair, axes in report.agreement.items():
        for axis, row in axes.items():
            ranks = [f"{k} {row[k]:.2f}" for k in ("spearman", "kendall") if row[k] is not None]
            off = f"mean difference {row['mean_difference']:+.2f}"
            typer.echo(f"{pair}, {axis.upper()}: {', '.join([*ranks, off])} ({row['items']} items)")
    typer.echo(f"{report.folder / REPORT}: {report.seconds:.1f} s")


def _cost(tokens: tuple[int, int], prices: tuple[float | None, float | None]) -> float | None:
    if None in prices:
        return None
    return sum(count * (price or 0.0) / 1e6 for count, price in zip(tokens, prices, strict=True))


def _print_table(table: Table | None) -> None:
    """Category x axis, with intervals."""
    from rich.console import Console
    from rich.table import Table as RichTable

    from rvedit.evaluation.scores import AXES

    if table is None:
        typer.echo("  nothing was scored")
        return
    shown = RichTable(box=None, pad_edge=False)
    shown.add_column("")
    for name in ("items", *(axis.upper() for axis in AXES), "mean"):
        shown.add_column(name, justify="right")

    def cells(row: Any, score: Any) -> list[str]:
        values = [*(row[axis] for axis in AXES), score]
        return [f"{v.value:.2f} [{v.low:.1f}, {v.high:.1f}]".replace("[", r"\[") for v in values]

    for key, row in table.categories.items():
        shown.add_row(CATEGORY_TITLES.get(key, key), str(row.items), *cells(row.axes, row.score))
    shown.add_row("Overall", "", *cells(table.axes, table.overall), style="bold")
    Console(width=None if Console().is_terminal else 110).print(shown)


def _print_comparison(results: Any, folders: tuple[Path, Path], as_json: bool) -> None:
    if as_json:
        plain = {
            judge: {
                name: {axis: dataclasses.asdict(d) for axis, d in axes.items()} for name, axes in rows.items()
            }
            for judge, rows in results.items()
        }
        typer.echo(json.dumps({"a": str(folders[0]), "b": str(folders[1]), "difference": plain}))
        return
    typer.echo(f"{folders[1]} minus {folders[0]}, on the items that both have; p by permutation")
    for judge_name, rows in results.items():
        for name, axes in rows.items():
            first = next(iter(axes.values()))
            apart = f", {first.only_a} and {first.only_b} in one alone" if first.only_a + first.only_b else ""
            typer.echo(f"{judge_name}, {CATEGORY_TITLES.get(name, name)} ({first.items} items{apart})")
            for axis, d in axes.items():
                m = d.mean
                typer.echo(f"  {axis:>5} {m.value:+7.2f} [{m.low:+.2f}, {m.high:+.2f}]  p = {d.p_value:.4f}")
