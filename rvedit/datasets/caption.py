"""Caption every target clip of a manifest with one model (section 5): `rvedit caption`."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvedit.datasets.captioners import ChatCaptioner
from rvedit.io.chat import Answer, ChatError
from rvedit.io.errors import UserError
from rvedit.io.manifest import clip_path, read_manifest, relative_root, write_manifest, write_rows
from rvedit.io.records import Triplet


@dataclass(frozen=True)
class CaptionConfig:
    """Rows to caption, and the path of the new manifest (parquet, with its JSONL export)."""

    manifest: Path
    out: Path
    limit: int | None = None
    """Maximum number of rows to caption; the others stay as they are."""
    include_playground: bool = False
    """Also caption playground rows, whose own captions are exact."""


@dataclass
class CaptionReport:
    """Counts of rows by outcome, which add up to `rows` (asked to left), and of tokens used in this run."""

    manifest: Path
    failures: Path
    rows: int
    prompt_id: str
    asked: int = 0
    from_cache: int = 0
    failed: int = 0
    kept: int = 0
    """Already have a caption with this prompt id."""
    own: int = 0
    """Playground rows that keep their exact captions."""
    left: int = 0
    """Beyond the limit."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    """Why the run stopped early, if it did."""

    @property
    def captioned(self) -> int:
        """Return the number of rows captioned in this run."""
        return self.asked + self.from_cache


@dataclass(frozen=True)
class CaptionEstimate:
    """Estimate of a run; token counts are rough, and replies count as cached if the clip is unchanged."""

    rows: int
    requests: int
    from_cache: int
    kept: int
    own: int
    left: int
    missing: int
    """Rows whose clip is missing, which would fail."""
    prompt_tokens: int
    completion_tokens: int


@dataclass
class _Plan:
    """Rows of a manifest, with captions or reasons of failure by index."""

    rows: list[Triplet]
    uncached: list[int] = field(default_factory=list)
    captions: dict[int, Answer[str]] = field(default_factory=dict)
    """At first those of the cache."""
    reasons: dict[int, str] = field(default_factory=dict)
    kept: int = 0
    own: int = 0
    left: int = 0


def captioned_path(manifest: Path) -> Path:
    """Return `triplets/manifest_captioned.parquet` for `triplets/manifest.parquet` or its folder."""
    manifest = manifest / "manifest.parquet" if manifest.is_dir() else manifest
    return manifest.with_name(f"{manifest.stem}_captioned.parquet")


def failures_path(out: Path) -> Path:
    """Return the path of the list of failed rows, beside the new manifest."""
    return out.with_name(f"{out.stem}.caption_failures.jsonl")


def cache_path(out: Path) -> Path:
    """Return the path of the reply cache, beside the new manifest."""
    return out.with_name(f"{out.stem}.caption_cache.jsonl")


def estimate_captions(config: CaptionConfig, captioner: ChatCaptioner) -> CaptionEstimate:
    """Estimate the requests and tokens of a run, without sending or decoding anything."""
    plan = _plan(config, captioner)
    uncached = [plan.rows[i] for i in plan.uncached]
    existing = [row for row in uncached if os.path.exists(clip_path(config.manifest, row, "target"))]
    tokens = [captioner.expected_tokens(row.num_frames, row.width, row.height) for row in existing]
    return CaptionEstimate(
        rows=len(plan.rows),
        requests=len(existing),
        from_cache=len(plan.captions),
        kept=plan.kept,
        own=plan.own,
        left=plan.left,
        missing=len(uncached) - len(existing),
        prompt_tokens=sum(prompt for prompt, _ in tokens),
        completion_tokens=sum(reply for _, reply in tokens),
    )


def caption_manifest(
    config: CaptionConfig,
    captioner: ChatCaptioner,
    on_progress: Callable[[CaptionReport, int], None] = lambda report, total: None,
) -> CaptionReport:
    """Caption the rows that need it and write the new manifest; `on_progress` gets the report and the total.

    Failed rows lose their caption; `failures_path(out)` lists them with the reason and the previous caption,
    and the next run tries them again. Replies are cached as they arrive, so that an interrupted run resumes.
    Raises UserError, before a clip is decoded, if the model cannot be reached or `out` cannot be written.
    """
    started = time.perf_counter()
    if config.out.suffix != ".parquet":
        raise UserError(f"`out` {config.out}: must end in .parquet; the JSONL export is written beside it")
    plan = _plan(config, captioner)
    folder = next(parent for parent in config.out.absolute().parents if parent.exists())
    if config.out.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"`out` {config.out}: cannot be written to: choose another path")
    report = CaptionReport(config.out, failures_path(config.out), len(plan.rows), captioner.prompt_id)
    report.kept, report.own, report.left = plan.kept, plan.own, plan.left
    report.from_cache = len(plan.captions)
    if plan.uncached:
        asyncio.run(_caption_all(config, plan, captioner, report, on_progress))
    report.prompt_tokens, report.completion_tokens = captioner.tokens
    _write(config, plan, captioner.prompt_id)
    report.seconds = time.perf_counter() - started
    return report


def _plan(config: CaptionConfig, captioner: ChatCaptioner) -> _Plan:
    """Sort the rows by what there is to do."""
    plan = _Plan(read_manifest(config.manifest))
    for index, row in enumerate(plan.rows):
        if row.dataset == "playground" and row.target_caption and not config.include_playground:
            plan.own += 1
        elif row.target_caption and row.caption_prompt == captioner.prompt_id:
            plan.kept += 1
        elif config.limit is not None and len(plan.captions) + len(plan.uncached) >= config.limit:
            plan.left += 1
        elif caption := captioner.cached(clip_path(config.manifest, row, "target")):
            plan.captions[index] = caption
        else:
            plan.uncached.append(index)
    return plan


async def _caption_all(
    config: CaptionConfig,
    plan: _Plan,
    captioner: ChatCaptioner,
    report: CaptionReport,
    on_progress: Callable[[CaptionReport, int], None],
) -> None:
    """Caption the uncached rows: add each either to the plan's captions or to its reasons."""
    total = len(plan.captions) + len(plan.uncached)

    async def work(indices: Iterator[int]) -> None:
        for index in indices:  # shared by all workers
            if report.stopped:
                plan.reasons[index] = f"not asked, because the run stopped: {report.stopped}"
            else:
                await describe(index)
            report.failed = len(plan.reasons)
            on_progress(report, total)

    async def describe(index: int) -> None:
        try:
            caption = await captioner.caption(clip_path(config.manifest, plan.rows[index], "target"))
        except ChatError as error:
            plan.reasons[index] = str(error)
            if error.scope == "all":
                report.stopped = report.stopped or str(error)
            return
        plan.captions[index] = caption
        report.asked += not caption.from_cache
        report.from_cache += caption.from_cache

    try:
        await captioner.check()
        on_progress(report, total)
        # More workers than concurrent requests, so that clips are decoded during requests.
        num_workers = min(len(plan.uncached), captioner.settings.concurrency + 2 * (os.cpu_count() or 1))
        indices = iter(plan.uncached)
        await asyncio.gather(*(work(indices) for _ in range(num_workers)))
    finally:
        await captioner.close()


def _write(config: CaptionConfig, plan: _Plan, prompt_id: str) -> None:
    """Write the failures, then the manifest: an existing manifest always has its list of failures."""
    folder = (config.manifest if config.manifest.is_dir() else config.manifest.parent).resolve()
    failures: list[dict[str, Any]] = []
    rows = []
    for index, row in enumerate(plan.rows):
        changes: dict[str, Any] = {}
        if not Path(row.root).is_absolute():
            changes["root"] = relative_root(folder / row.root, config.out.parent)
        if answer := plan.captions.get(index):
            changes |= {
                "target_caption": answer.value,
                "caption_model": answer.reply.model,
                "caption_prompt": prompt_id,
            }
        elif index in plan.reasons:
            changes |= {"target_caption": None, "caption_model": None, "caption_prompt": None}
            names = {"id": row.id, "dataset": row.dataset, "target": row.target}
            reason = plan.reasons[index]
            failures.append({**names, "reason": reason, "previous_caption": row.target_caption})
        rows.append(dataclasses.replace(row, **changes))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    if failures:
        write_rows(failures_path(config.out), failures)
    write_manifest(config.out, rows)
    if not failures:
        failures_path(config.out).unlink(missing_ok=True)
