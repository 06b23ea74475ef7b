"""`rvedit caption`."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvedit_cli import console

if TYPE_CHECKING:
    from rvedit.datasets.caption import CaptionEstimate, CaptionReport
    from rvedit.datasets.captioners import ChatCaptioner


def caption(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="Triplets, as `rvedit prepare` writes them.")
    ],
    captioner: Annotated[str, typer.Option(help="Who describes the clips: qwen3-vl.")] = "qwen3-vl",
    base_url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible endpoint, such as vLLM's. [env: RVEDIT_CAPTION_BASE_URL]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Its name at the endpoint. [env: RVEDIT_CAPTION_MODEL; default: Qwen/Qwen3-VL-8B-Instruct]"
        ),
    ] = None,
    local: Annotated[
        str | None,
        typer.Option(metavar="DIR|HUB_ID", help="Weights to run on this machine instead of an endpoint."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of --local: cpu, cuda, ...; by default what is there.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at most.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Caption so many rows at most.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The new manifest (.parquet); by default MANIFEST_captioned.parquet beside it."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Journal of the answers; by default OUT.caption_cache.jsonl beside OUT."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip that the model sees.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one request may take.")] = 120.0,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the playground's rows, whose own captions are exact.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many requests and tokens, and send nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Describe every target clip anew with one model; interrupted, it goes on where it was.

    A key for the endpoint comes from RVEDIT_CAPTION_API_KEY. Ends with 1 where rows failed: they are listed
    beside the new manifest and tried again by the next run.
    """
    from rvedit.datasets.caption import (
        CaptionConfig,
        cache_path,
        caption_manifest,
        captioned_path,
        estimate_captions,
    )
    from rvedit.datasets.captioners import (
        CAPTIONERS,
        CaptionSettings,
        endpoint_captioner,
        local_captioner,
    )
    from rvedit.io.chat import FrameSettings, Journal
    from rvedit.io.errors import UserError

    if captioner not in CAPTIONERS:
        raise UserError(f"--captioner {captioner}: choose one of {', '.join(CAPTIONERS)}")
    if local and (base_url or model):
        raise UserError("--local names the model and runs it here: leave out --base-url and --model")
    if device and not local:
        raise UserError("--device is for --local: a server chooses its own")
    config = CaptionConfig(manifest, out or captioned_path(manifest), limit, everything)
    settings = CaptionSettings(FrameSettings(count=frames), concurrency=concurrency, timeout=timeout)
    journal = Journal(cache or cache_path(config.out))
    describer: ChatCaptioner = (
        local_captioner(journal, settings, local, device)
        if local
        else endpoint_captioner(journal, settings, base_url, model)
    )
    if dry_run:
        estimate = estimate_captions(config, describer)
        typer.echo(json.dumps(dataclasses.asdict(estimate)) if as_json else _estimated(estimate))
        return
    if local:
        console.quiet_libraries()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every try
    with console.progress_bar() as bar:
        task = bar.add_task("captioning", total=0, note="")

        def show(report: CaptionReport, total: int) -> None:
            note = f"{report.from_cache} from cache, {report.failed} failed"
            bar.update(task, completed=report.captioned + report.failed, total=total, note=note)

        report = caption_manifest(config, describer, show)
    typer.echo(_as_json(report) if as_json else _reported(report))
    if report.stopped:
        console.say(f"rvedit: stopped early: {report.stopped}; mend it and run the command again")
    if report.failed:
        raise typer.Exit(1)


def _as_json(report: CaptionReport) -> str:
    fields = {**dataclasses.asdict(report), "captioned": report.captioned}
    fields |= {
        "manifest": os.fspath(report.manifest),
        "failures": os.fspath(report.failures) if report.failed else None,
        "seconds": round(report.seconds, 3),
    }
    return json.dumps(fields)


def _reported(report: CaptionReport) -> str:
    others = _others(report.kept, report.own, report.left)
    failed = f"{report.failed} failed" + (f" (see {report.failures})" if report.failed else "")
    return (
        f"{report.manifest}: {report.captioned} of {report.rows} rows captioned ({report.asked} asked, "
        f"{report.from_cache} from cache), {failed}{others}; {report.prompt_tokens:,} + "
        f"{report.completion_tokens:,} tokens, {report.seconds:.1f} s"
    )


def _estimated(estimate: CaptionEstimate) -> str:
    others = _others(estimate.kept, estimate.own, estimate.left)
    missing = f", {estimate.missing} would fail as their clips are not there" if estimate.missing else ""
    return (
        f"{estimate.requests} requests for {estimate.rows} rows "
        f"({estimate.from_cache} from cache{others}{missing}); about {estimate.prompt_tokens:,} + "
        f"{estimate.completion_tokens:,} tokens; nothing was sent"
    )


def _others(kept: int, own: int, left: int) -> str:
    """The rows that are not touched."""
    told = {
        f"{kept} had theirs already": kept,
        f"{own} of the playground's keep their own (--all asks for them too)": own,
        f"{left} beyond the limit": left,
    }
    return "".join(f", {words}" for words, count in told.items() if count)
