"""`rvedit judge OUTPUTS`: score edits."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rvedit.io.errors import UserError, check_choice
from rvedit_cli import console
from rvedit_cli.judge.judges import (
    batch_settings,
    build_judge,
    build_protocol,
    check_model_options,
    protocol_name,
    sampling_overrides,
)
from rvedit_cli.judge.prices import Prices, read_prices
from rvedit_cli.judge.printing import main_reason, print_comparison, print_estimates, print_report

_files = partial(console.option, console.FILES)
_scoring = partial(console.option, "Scoring")
_model = partial(console.option, "Model")
_requests = partial(console.option, "Requests")
_BENCH_HELP = (
    "OpenVE-Bench's CSV or a manifest. Default: the list that `rvedit edit --batch` wrote to OUTPUTS."
)
_PROTOCOL_HELP = (
    "paper: Appendix D.3, scores from 1 to 100 for five frames of each clip. openve: scores from 1 to 5 for "
    "whole clips. refvie: the same for edits with a reference image. checklist: yes-or-no questions."
)
_RUBRICS_HELP = (
    "With --protocol openve or refvie: folder of its rubrics, such as local_change.txt. With --judge reward: "
    "file of the model's prompt."
)
_BATCH_HELP = "Send requests through the server's batch API: cheaper, and answered within hours."
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
        Path | None,
        _files("Folder for results. Default: OUTPUTS/judge, or OUTPUTS/judge_PROTOCOL_PROBE."),
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
        _scoring(
            "Judge to ask. Default: qwen. Repeatable.",
            "--judge",
            metavar="qwen|gemini|reference|reward|measures",
        ),
    ] = None,
    protocol: Annotated[str, _scoring(_PROTOCOL_HELP, metavar="paper|openve|refvie|checklist")] = "paper",
    rubrics: Annotated[
        Path | None,
        _scoring(_RUBRICS_HELP, metavar="DIR|FILE"),
    ] = None,
    questions: Annotated[
        Path | None,
        _scoring("With --protocol checklist: CSV with columns item, question and expected.", metavar="CSV"),
    ] = None,
    rubric_in: Annotated[str, _scoring("Message that holds the rubric.", metavar="system|user")] = "system",
    repeats: Annotated[int, _scoring("Number of verdicts to average for each item.", min=1)] = 1,
    probe: Annotated[str, _scoring(_PROBE_HELP, metavar="none|identity|swap")] = "none",
    base_url: Annotated[str | None, _model(_URL_HELP)] = None,
    model: Annotated[str | None, _model("Model name at the endpoint, for a single chat judge.")] = None,
    local: Annotated[
        str | None,
        _model("Run this Qwen or reward model on this machine.", metavar="DIR|HUB_ID"),
    ] = None,
    device: console.LocalDevice = None,
    concurrency: Annotated[
        int | None, _requests("Maximum number of concurrent requests. Default: 16.", min=1)
    ] = None,
    timeout: console.Timeout = 300.0,
    max_tokens: console.MaxTokens = None,
    extra: console.Extra = None,
    retry_dropped: console.RetryDropped = False,
    batch_api: Annotated[bool, _requests(_BATCH_HELP, "--batch-api")] = False,
    price: Prices = None,
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
        print_comparison(job.compare_folders(*compare, tuple(category or ())), compare, as_json)
        return
    if edits is None:
        raise UserError("give the folder of edited clips, or two judged folders with --compare A B")
    names = list(dict.fromkeys(judges or ["qwen"]))
    protocol = protocol_name(names, protocol, rubrics, questions)
    check_model_options(names, model, base_url, local, device)
    overrides = sampling_overrides(names, max_tokens, extra, local)
    prices = read_prices(price, names)
    check_choice("--probe", probe, ("none", "identity", "swap"))
    own_folder = [protocol] if protocol in ("measures", "vefx", "checklist") else []
    out = out or edits / "_".join(["judge", *own_folder, *([probe] if probe != "none" else [])])
    config = job.JudgeConfig(edits, out, bench, tuple(category or ()), limit, repeats)
    from rvedit.evaluation.frames import FrameStore
    from rvedit.io.chat import Journal

    journal = Journal(out / "journal.jsonl")
    frames = FrameStore(out / "frames", journal)
    judge_protocol = build_protocol(protocol, rubrics, questions, journal, frames)
    for name in config.categories if protocol in ("paper", "openve", "refvie") else ():
        if name not in judge_protocol.rubrics:
            known = ", ".join(judge_protocol.rubrics)
            raise UserError(f"--category {name}: has no rubric in protocol {protocol}: choose one of {known}")
    judge_set = job.read_judge_set(config, judge_protocol)
    check_choice("--rubric-in", rubric_in, ("system", "user"))
    settings: dict[str, Any] = {"probe": probe, "rubric_in": rubric_in, "timeout": timeout}
    settings["retry_dropped"] = retry_dropped
    if batch_api:
        settings |= batch_settings(names, local, concurrency)
    elif concurrency:
        settings["concurrency"] = concurrency
    qwen = {"base_url": base_url, "model": model, "local": local, "device": device}
    gemini = {"base_url": None if "qwen" in names else base_url, "model": model}
    judge_list = [
        build_judge(name, journal, judge_protocol, settings, overrides, qwen, gemini, rubrics)
        for name in names
    ]
    if judge_set.missing and not as_json:
        first = judge_set.missing[0].id
        console.say(f"note: {len(judge_set.missing)} items have no edit in {edits}, such as {first}")
    if judge_set.without_rubric and not as_json:
        counts = ", ".join(f"{count} {name}" for name, count in judge_set.without_rubric.items())
        console.say(f"note: left out, as the protocol has no rubric for them: {counts}")
    if dry_run:
        print_estimates(job.estimate(judge_set, judge_list), judge_protocol.num_frames, prices, as_json)
        return
    if local:
        console.quiet_libraries()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with console.progress_bar(*names, total=len(judge_set.cases)) as show:

        def on_progress(name: str, done: int, dropped: int, total: int) -> None:
            show(done, total, f"{dropped} dropped" if dropped else "", name)

        report = job.judge_edits(config, judge_set, judge_list, on_progress)
    print_report(report, prices, as_json)
    noted = sorted({verdict.item for verdict in report.verdicts if verdict.note})
    if noted and not as_json:
        console.say(f"note: {len(noted)} edits differ in length from their source, such as {noted[0]}")
    for name, reason in report.stopped.items():
        console.say(f"rvedit: {name} stopped early: {reason}; fix this and run the command again")
    unscored = [name for name in names if not report.counts(name)["scored"]]
    for name in unscored:
        if name not in report.stopped:
            console.say(
                f"rvedit: {name} scored nothing: {main_reason(report, name)}; fix this and run the "
                "command again with --retry-dropped"
            )
    if report.stopped or unscored:
        raise typer.Exit(1)
