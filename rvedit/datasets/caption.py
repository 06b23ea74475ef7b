"""`rvedit caption`: every target clip of a manifest is described anew, by one model (section 5)."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvedit.datasets.captioners import Caption, Captioner
from rvedit.io.chat import ChatError
from rvedit.io.errors import UserError
from rvedit.io.manifest import clip_path, read_manifest, write_manifest, write_rows
from rvedit.io.records import Triplet


@dataclass(frozen=True)
class CaptionConfig:
    """Which rows are wanted, and where the new manifest goes (parquet, with its JSONL export)."""

    manifest: Path
    out: Path
    limit: int | None = None
    """Rows to caption at most; those beyond stay as they are."""
    include_playground: bool = False
    """The playground's own captions are exact; they are replaced only on demand."""


@dataclass
class CaptionReport:
    """What became of the rows: the six counts add up to `rows`. Tokens are those spent in this run."""

    manifest: Path
    failures: Path
    rows: int
    prompt_id: str
    asked: int = 0
    from_cache: int = 0
    failed: int = 0
    kept: int = 0
    """Had this model's caption by this prompt already."""
    own: int = 0
    """Playground rows, whose own captions are exact."""
    left: int = 0
    """Beyond the limit."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    """Why the run ended before all rows were asked."""

    @property
    def captioned(self) -> int:
        """Rows that got a caption in this run."""
        return self.asked + self.from_cache


@dataclass(frozen=True)
class CaptionEstimate:
    """What a run would do; tokens are rough, and an answer counts as cached if its clip is unchanged."""

    rows: int
    requests: int
    from_cache: int
    kept: int
    own: int
    left: int
    missing: int
    """Clips that are not there: these rows would fail."""
    prompt_tokens: int
    completion_tokens: int


@dataclass
class _Plan:
    triplets: list[Triplet]
    known: dict[int, Caption]
    unknown: list[int]
    kept: int
    own: int
    left: int


def captioned_path(manifest: Path) -> Path:
    """`triplets/manifest.parquet` -> `triplets/manifest_captioned.parquet`; a folder stands for it."""
    manifest = manifest / "manifest.parquet" if manifest.is_dir() else manifest
    return manifest.with_name(f"{manifest.stem}_captioned.parquet")


def failures_path(out: Path) -> Path:
    """The rows that got no caption, with the reasons, beside the new manifest."""
    return out.with_name(f"{out.stem}.caption_failures.jsonl")


def cache_path(out: Path) -> Path:
    """The replies so far, beside the new manifest."""
    return out.with_name(f"{out.stem}.caption_cache.jsonl")


def estimate_captions(config: CaptionConfig, captioner: Captioner) -> CaptionEstimate:
    """Say what a run would send; sends nothing and decodes nothing."""
    plan = _plan(config, captioner)
    there = [i for i in plan.unknown if clip_path(config.manifest, plan.triplets[i], "target").exists()]
    tokens = [
        captioner.expected_tokens(row.num_frames, row.width, row.height)
        for row in (plan.triplets[i] for i in there)
    ]
    return CaptionEstimate(
        rows=len(plan.triplets),
        requests=len(there),
        from_cache=len(plan.known),
        kept=plan.kept,
        own=plan.own,
        left=plan.left,
        missing=len(plan.unknown) - len(there),
        prompt_tokens=sum(prompt for prompt, _ in tokens),
        completion_tokens=sum(reply for _, reply in tokens),
    )


def caption_manifest(
    config: CaptionConfig,
    captioner: Captioner,
    on_progress: Callable[[CaptionReport, int], None] = lambda report, total: None,
) -> CaptionReport:
    """Caption the rows that need it and write the new manifest; `on_progress` gets the counts and the total.

    A row whose captioning fails has no caption afterwards; it is listed with its reason, and with the
    caption that it had, in `failures_path(out)`, and is tried again by the next run. Answers are kept as they
    come, so that an interrupted run goes on where it was. Raises UserError, before a clip is decoded, where
    nobody would answer or nothing could be written.
    """
    started = time.perf_counter()
    if config.out.suffix != ".parquet":
        raise UserError(f"--out {config.out}: name a .parquet file; the JSONL export is written beside it")
    plan = _plan(config, captioner)
    if config.out.is_dir() or not os.access(_nearest_folder(config.out), os.W_OK):
        raise UserError(f"--out {config.out}: cannot be written to: choose another")
    report = CaptionReport(config.out, failures_path(config.out), len(plan.triplets), captioner.prompt_id)
    report.kept, report.own, report.left = plan.kept, plan.own, plan.left
    report.from_cache = len(plan.known)
    captions, reasons = dict(plan.known), dict[int, str]()
    if plan.unknown:
        work = _caption_all(config, plan, captioner, captions, reasons, report, on_progress)
        asyncio.run(work)
    report.prompt_tokens, report.completion_tokens = captioner.tokens
    _write(config, plan.triplets, captions, reasons, captioner.prompt_id)
    report.seconds = time.perf_counter() - started
    return report


def _plan(config: CaptionConfig, captioner: Captioner) -> _Plan:
    """Sort the rows into what is done, what is known and what must be asked."""
    plan = _Plan(read_manifest(config.manifest), {}, [], 0, 0, 0)
    for index, row in enumerate(plan.triplets):
        if row.dataset == "playground" and row.target_caption and not config.include_playground:
            plan.own += 1
        elif row.target_caption and row.caption_prompt == captioner.prompt_id:
            plan.kept += 1
        elif config.limit is not None and len(plan.known) + len(plan.unknown) >= config.limit:
            plan.left += 1
        elif caption := captioner.known(clip_path(config.manifest, row, "target")):
            plan.known[index] = caption
        else:
            plan.unknown.append(index)
    return plan


async def _caption_all(
    config: CaptionConfig,
    plan: _Plan,
    captioner: Captioner,
    captions: dict[int, Caption],
    reasons: dict[int, str],
    report: CaptionReport,
    on_progress: Callable[[CaptionReport, int], None],
) -> None:
    """Caption the unknown rows; at the end each is either in `captions` or in `reasons`."""
    total = len(plan.known) + len(plan.unknown)

    async def work(rows: Iterator[int]) -> None:
        for index in rows:  # shared: whoever is free takes the next
            if report.stopped:
                reasons[index] = f"not asked, as the run had stopped: {report.stopped}"
            else:
                await describe(index)
            report.failed = len(reasons)
            on_progress(report, total)

    async def describe(index: int) -> None:
        try:
            caption = await captioner.caption(clip_path(config.manifest, plan.triplets[index], "target"))
        except ChatError as error:
            reasons[index] = str(error)
            if error.scope == "all":
                report.stopped = report.stopped or str(error)
            return
        captions[index] = caption
        report.asked += not caption.from_cache
        report.from_cache += caption.from_cache

    try:
        await captioner.check()
        on_progress(report, total)
        # More hands than requests in flight, so that clips are decoded while every slot is taken.
        hands = min(len(plan.unknown), captioner.concurrency + 2 * (os.cpu_count() or 1))
        rows = iter(plan.unknown)
        await asyncio.gather(*(work(rows) for _ in range(hands)))
    finally:
        await captioner.close()


def _write(
    config: CaptionConfig,
    triplets: list[Triplet],
    captions: dict[int, Caption],
    reasons: dict[int, str],
    prompt_id: str,
) -> None:
    """Write the failures first: a manifest that is there has its list beside it."""
    failures: list[dict[str, Any]] = []
    rows = []
    for index, row in enumerate(triplets):
        changes: dict[str, Any] = {"root": _moved_root(config, row.root)}
        if index in captions:
            caption = captions[index]
            changes |= {
                "target_caption": caption.text,
                "caption_model": caption.model,
                "caption_prompt": prompt_id,
            }
        elif index in reasons:
            changes |= {"target_caption": None, "caption_model": None, "caption_prompt": None}
            failures.append(
                {
                    "id": row.id,
                    "dataset": row.dataset,
                    "target": row.target,
                    "reason": reasons[index],
                    "previous_caption": row.target_caption,
                }
            )
        rows.append(dataclasses.replace(row, **changes))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    if failures:
        write_rows(failures_path(config.out), failures)
    write_manifest(config.out, rows)
    if not failures:
        failures_path(config.out).unlink(missing_ok=True)


def _moved_root(config: CaptionConfig, root: str) -> str:
    """The clips' folder as seen from the new manifest's; an absolute one stays."""
    folder = config.manifest if config.manifest.is_dir() else config.manifest.parent
    here, there = folder.resolve(), config.out.parent.resolve()
    if here == there or Path(root).is_absolute():
        return root
    return Path(os.path.relpath(here / root, there)).as_posix()


def _nearest_folder(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())
