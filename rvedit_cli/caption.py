"""`rvedit caption`."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvedit.io.errors import check_choice
from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.datasets.caption import CaptionEstimate, CaptionReport

_files = partial(console.option, console.FILES)
_endpoint = partial(console.option, "Model")
_requests = partial(console.option, "Requests")
_MODEL_HELP = "Model name at the endpoint. [env: RVEDIT_CAPTION_MODEL; default: Qwen/Qwen3-VL-8B-Instruct]"


def caption(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="Manifest, as `rvedit prepare` writes it.")
    ],
    out: Annotated[
        Path | None, _files("New manifest (.parquet). Default: MANIFEST_captioned.parquet beside MANIFEST.")
    ] = None,
    cache: Annotated[
        Path | None, _files("Journal of all answers. Default: OUT.caption_cache.jsonl beside OUT.")
    ] = None,
    limit: Annotated[int | None, _files("Caption at most this many rows.", min=1)] = None,
    everything: Annotated[
        bool, _files("Also caption playground rows, whose captions are exact already.", "--all")
    ] = False,
    as_json: console.Json = False,
    captioner: Annotated[str, _endpoint("Prompt and answer format.", metavar="qwen3-vl")] = "qwen3-vl",
    base_url: Annotated[
        str | None, _endpoint("OpenAI-compatible endpoint, such as vLLM's. [env: RVEDIT_CAPTION_BASE_URL]")
    ] = None,
    model: Annotated[str | None, _endpoint(_MODEL_HELP)] = None,
    local: Annotated[
        str | None, _endpoint("Run this model on this machine instead of an endpoint.", metavar="DIR|HUB_ID")
    ] = None,
    device: console.LocalDevice = None,
    frames: Annotated[int, _requests("Number of frames of each clip that the model sees.", min=1)] = 8,
    concurrency: console.Concurrency = 16,
    timeout: console.Timeout = 120.0,
    max_tokens: console.MaxTokens = None,
    extra: console.Extra = None,
    dry_run: console.DryRun = False,
) -> None:
    """Caption the target clips of a manifest with one model. An interrupted run can be resumed.

    The endpoint's key is read from RVEDIT_CAPTION_API_KEY. Exits with code 1 if some rows failed; they are
    listed beside the new manifest and tried again by the next run.
    """
    from rvedit.datasets import caption as job
    from rvedit.datasets import captioners
    from rvedit.io.chat import FrameSettings, Journal

    check_choice("--captioner", captioner, captioners.CAPTIONERS)
    console.check_local(local, base_url or model, device)
    config = job.CaptionConfig(manifest, out or job.captioned_path(manifest), limit, everything)
    settings = captioners.CaptionSettings(
        FrameSettings(count=frames),
        captioners.SAMPLING.overridden(max_tokens, console.extra_body(extra, local)),
        concurrency=concurrency,
        timeout=timeout,
    )
    journal = Journal(cache or job.cache_path(config.out))
    chat_captioner = (
        captioners.local_captioner(journal, settings, local, device)
        if local
        else captioners.endpoint_captioner(journal, settings, base_url, model)
    )
    if dry_run:
        estimate = job.estimate_captions(config, chat_captioner)
        console.print_result(as_json, estimate, _estimate_line(estimate))
        return
    if local:
        console.quiet_libraries()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    with console.progress_bar("captioning", total=0) as show:

        def on_progress(report: CaptionReport, total: int) -> None:
            note = f"{report.from_cache} from cache, {report.failed} failed"
            show(report.captioned + report.failed, total, note)

        report = job.caption_manifest(config, chat_captioner, on_progress)
    result = {
        **dataclasses.asdict(report),
        "failures": report.failures if report.failed else None,
        "seconds": round(report.seconds, 3),
        "captioned": report.captioned,
    }
    console.print_result(as_json, result, _report_line(report))
    if report.stopped:
        console.say(f"rvedit: stopped early: {report.stopped}; fix this and run the command again")
    if report.failed:
        raise typer.Exit(1)


def _report_line(report: CaptionReport) -> str:
    failed = f"{report.failed} failed" + (f" (see {report.failures})" if report.failed else "")
    return (
        f"{report.manifest}: {report.captioned} of {report.rows} rows captioned ({report.asked} asked, "
        f"{report.from_cache} from cache), {failed}{_untouched_rows(report)}; "
        f"{report.prompt_tokens:,} + {report.completion_tokens:,} tokens, {report.seconds:.1f} s"
    )


def _estimate_line(estimate: CaptionEstimate) -> str:
    missing = f", {estimate.missing} would fail: clip missing" if estimate.missing else ""
    return (
        f"{estimate.requests} requests for {estimate.rows} rows "
        f"({estimate.from_cache} from cache{_untouched_rows(estimate)}{missing}); about "
        f"{estimate.prompt_tokens:,} + {estimate.completion_tokens:,} tokens; nothing was sent"
    )


def _untouched_rows(rows: CaptionReport | CaptionEstimate) -> str:
    counts = {
        "captioned before": rows.kept,
        "of the playground left as they are (--all captions them too)": rows.own,
        "beyond the limit": rows.left,
    }
    return "".join(f", {count} {text}" for text, count in counts.items() if count)
