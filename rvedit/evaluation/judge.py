"""The job of `rvedit judge`: score a folder of edited clips and write tables and a report (Appendix D.3)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rvedit.evaluation.aggregate import CategoryScores, Table, group, pooled, table_of
from rvedit.evaluation.judges import Case, Judge
from rvedit.evaluation.protocols import PAPER, JudgeProtocol
from rvedit.evaluation.report import write_report
from rvedit.evaluation.statistics import Difference, agreement, compare
from rvedit.evaluation.verdict import Verdict
from rvedit.io.bench import BenchItem, read_bench, resolve_edits
from rvedit.io.chat import ChatError
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, read_rows, write_json, write_rows
from rvedit.io.video import probe

SCORES, SUMMARY, REPORT = "scores.jsonl", "summary.json", "report.html"
OnProgress = Callable[[str, int, int, int], None]
"""Gets the judge's name, the number of verdicts so far, how many of them are dropped, and the total."""


@dataclass(frozen=True)
class JudgeConfig:
    """Which edits to judge."""

    edits: Path
    """Folder of edited clips."""
    out: Path
    """Folder for the results."""
    bench: Path | None = None
    """The list of items; None: the list in `edits` (of `rvedit edit --batch`, a manifest or a CSV)."""
    categories: tuple[str, ...] = ()
    """The categories to judge; empty for all that have a rubric."""
    limit: int | None = None
    """Number of items per category: the first of the list, with or without an edit."""
    repeats: int = 1


@dataclass(frozen=True)
class JudgeSet:
    """The edits to judge, and the items that are left out."""

    cases: tuple[Case, ...]
    """All repeats of the items that have an edit."""
    missing: tuple[BenchItem, ...]
    """Items without an edit."""
    without_rubric: dict[str, int]
    """Number of items without a rubric, by the list's category name."""
    protocol: JudgeProtocol


@dataclass(frozen=True)
class CostEstimate:
    """The requests and, roughly, the tokens that a run would send; unreadable replies are asked again."""

    judge: str
    verdicts: int
    from_cache: int
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass
class JudgeReport:
    """The results of a run."""

    folder: Path
    verdicts: list[Verdict]
    judge_set: JudgeSet
    tables: dict[str, Table | None]
    """By judge."""
    mean: Table | None
    """Mean over the judges; None for a single judge, or if no item was scored by all."""
    agreement: dict[str, Any]
    """By pair of judges and axis."""
    tokens: dict[str, tuple[int, int]]
    """By judge: prompt and completion tokens of this run."""
    seconds: float = 0.0
    stopped: dict[str, str] = field(default_factory=dict)
    """By judge: why it stopped early."""

    def counts(self, judge: str) -> Counter[str]:
        """Count a judge's verdicts that are scored, dropped and from_cache."""
        verdicts = [verdict for verdict in self.verdicts if verdict.judge == judge]
        scored = sum(verdict.scores is not None for verdict in verdicts)
        from_cache = sum(verdict.from_cache for verdict in verdicts)
        return Counter(scored=scored, dropped=len(verdicts) - scored, from_cache=from_cache)


def read_judge_set(config: JudgeConfig, protocol: JudgeProtocol) -> JudgeSet:
    """Find the edits and check the inputs before anything is decoded or sent.

    Raises UserError if no edit is found, names are ambiguous, or no item has a rubric.
    """
    if not config.edits.is_dir():
        raise UserError(f"{config.edits}: no such folder: name the folder of edited clips")
    items = read_bench(config.bench or config.edits)
    categories: dict[str, str] = {}
    without_rubric: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for item in items:
        category = protocol.category_of(item)
        if category is None:
            without_rubric[item.dataset_category or "no category"] += 1
        elif (not config.categories or category in config.categories) and counts[category] != config.limit:
            counts[category] += 1
            categories[item.id] = category
    selected = [item for item in items if item.id in categories]
    if not selected:
        names = ", ".join(sorted({item.dataset_category for item in items}))
        raise UserError(
            f"{config.bench or config.edits}: no item to judge: its categories are {names}; the "
            f"{protocol.name} protocol has rubrics for {', '.join(protocol.rubrics)}"
        )
    no_source = next((item for item in selected if not os.path.isfile(item.source)), None)
    if no_source:
        raise UserError(
            f"{no_source.source}: no such file, the source of {no_source.id}: is `bench` the right list?"
        )
    edits = resolve_edits(selected, config.edits)
    if not edits:
        raise UserError(
            f"{config.edits}: has no edit of any of the {len(selected)} items, such as "
            f"{selected[0].source.stem}_edited.mp4"
        )
    cases = tuple(
        Case(item, categories[item.id], edits[item.id], repeat)
        for repeat in range(config.repeats)
        for item in selected
        if item.id in edits
    )
    missing = tuple(item for item in selected if item.id not in edits)
    return JudgeSet(cases, missing, dict(without_rubric), protocol)


def estimate(judge_set: JudgeSet, judges: Sequence[Judge]) -> list[CostEstimate]:
    """Return the requests and tokens that a run would send, by judge, without sending or decoding."""

    @cache
    def size(clip: Path) -> tuple[int, int]:
        try:
            info = probe(clip)
        except UserError:  # the item will be dropped
            return 0, 0
        return info.width, info.height

    estimates = []
    for judge in judges:
        pending = [case for case in judge_set.cases if judge.cached_verdict(case) is None]
        tokens = [judge.expected_tokens(case, *size(case.item.source)) for case in pending]
        estimates.append(
            CostEstimate(
                judge.name,
                len(judge_set.cases),
                len(judge_set.cases) - len(pending),
                sum(prompt > 0 for prompt, _ in tokens),
                sum(prompt for prompt, _ in tokens),
                sum(completion for _, completion in tokens),
            )
        )
    return estimates


def judge_edits(
    config: JudgeConfig,
    judge_set: JudgeSet,
    judges: Sequence[Judge],
    on_progress: OnProgress = lambda judge, done, dropped, total: None,
) -> JudgeReport:
    """Judge all cases by all judges, and write scores, summary and report to `config.out`.

    Replies are stored as they arrive, so that an interrupted run resumes and sends no request twice. The
    mean over judges is of the items that all of them scored.
    """
    started = time.perf_counter()
    prepare_folder(config.out)
    stopped: dict[str, str] = {}
    cases = judge_set.cases
    # By judge: the verdicts by case, at first those of earlier runs.
    by_case = [{case: v for case in cases if (v := judge.cached_verdict(case))} for judge in judges]

    async def run() -> None:
        # All judges are checked before any is used: a missing key is found before another judge costs money.
        active = [judge for judge, done in zip(judges, by_case, strict=True) if len(done) < len(cases)]
        try:
            for judge in active:
                await judge.check()
            for judge, done in zip(judges, by_case, strict=True):
                on_progress(judge.name, len(done), 0, len(cases))
                if reason := await _score_all(judge, cases, done, on_progress):
                    stopped[judge.name] = reason
        finally:
            for judge in active:
                await judge.close()

    asyncio.run(run())
    verdicts = [done[case] for done in by_case for case in cases]
    scores = scores_by_judge(verdicts)
    report = JudgeReport(
        config.out,
        verdicts,
        judge_set,
        tables={name: table_of(of_judge) for name, of_judge in scores.items()},
        mean=table_of(pooled(list(scores.values()))) if len(scores) > 1 else None,
        agreement={
            f"{a} and {b}": {axis: asdict(value) for axis, value in agreement(x, y).items()}
            for (a, x), (b, y) in combinations(scores.items(), 2)
        },
        tokens={judge.name: judge.tokens for judge in judges},
        stopped=stopped,
    )
    _write(report)
    report.seconds = time.perf_counter() - started
    return report


def scores_by_judge(verdicts: Sequence[Verdict]) -> dict[str, CategoryScores]:
    """Return the scores of each judge by category and item."""
    return {
        judge: group((v.category, v.item, v.scores) for v in verdicts if v.judge == judge and v.scores)
        for judge in dict.fromkeys(v.judge for v in verdicts)
    }


def compare_folders(a: Path, b: Path) -> dict[str, dict[str, dict[str, Difference]]]:
    """Return B minus A for each judge that judged both: judge -> category -> axis."""
    (protocol_a, scores_a), (protocol_b, scores_b) = (read_judged(path) for path in (a, b))
    if protocol_a != protocol_b:
        raise UserError(
            f"{a} was judged by the protocol {protocol_a}, {b} by {protocol_b}: protocols cannot be compared"
        )
    names = [name for name in scores_a if name in scores_b]
    if not names:
        judges = " and ".join(", ".join(side) or "nobody" for side in (scores_a, scores_b))
        raise UserError(f"{a} and {b}: no judge in common: judged by {judges}")
    differences = {name: compare(scores_a[name], scores_b[name]) for name in names}
    if not any(differences.values()):
        raise UserError(f"{a} and {b}: no item was scored in both: judge both with the same list")
    return differences


def read_judged(folder: Path) -> tuple[str, dict[str, CategoryScores]]:
    """Return a judged folder's protocol and its scores by judge. Raises UserError as `read_verdicts` does."""
    verdicts = read_verdicts(folder)
    return verdicts[0].protocol if verdicts else PAPER, scores_by_judge(verdicts)


def read_verdicts(folder: Path) -> list[Verdict]:
    """Return the verdicts of a judged folder.

    Raises UserError if they are those of a probe or of several protocols.
    """
    candidates = (folder, folder / SCORES, folder / "judge" / SCORES)
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(f"{folder}: has no {SCORES}: run `rvedit judge` on it first")
    verdicts = TypeAdapter(list[Verdict]).validate_python(read_rows(path))
    if any(verdict.probe != "none" for verdict in verdicts):
        raise UserError(
            f"{path}: has verdicts of a probe, which tests the judge: compare runs without `probe`"
        )
    if len({verdict.protocol for verdict in verdicts}) > 1:
        raise UserError(f"{path}: has verdicts of two protocols, whose scales differ: judge again with one")
    return verdicts


async def _score_all(
    judge: Judge, cases: Sequence[Case], verdicts: dict[Case, Verdict], on_progress: OnProgress
) -> str | None:
    """Score the cases without a verdict into `verdicts`; return why it stopped early, or None."""
    stopped: str | None = None
    num_dropped = 0
    pending = iter([case for case in cases if case not in verdicts])

    async def work() -> None:
        nonlocal stopped, num_dropped
        for case in pending:  # shared by all tasks
            if stopped:
                reason = f"not asked, as the run had stopped: {stopped}"
                verdicts[case] = judge.verdict(case, dropped=reason)
            else:
                try:
                    verdicts[case] = await judge.score(case)
                except ChatError as error:
                    stopped = stopped or str(error)
                    verdicts[case] = judge.verdict(case, dropped=str(error))
            num_dropped += verdicts[case].scores is None
            on_progress(judge.name, len(verdicts), num_dropped, len(cases))

    # More tasks than requests in flight, so that clips are decoded while all request slots are in use.
    await asyncio.gather(*(work() for _ in range(2 * judge.concurrency)))
    return stopped


def _write(report: JudgeReport) -> None:
    """Write scores.jsonl, summary.json and, if the verdicts have changed, report.html."""
    rows = [asdict(verdict) for verdict in report.verdicts]
    summary = summary_of(report)
    stable = [{**row, "from_cache": False} for row in rows]
    digest = hashlib.sha256(json.dumps([stable, summary["probe"]], sort_keys=True).encode()).hexdigest()
    summary_path, page = report.folder / SUMMARY, report.folder / REPORT
    try:
        old_digest = json.loads(summary_path.read_text(encoding="utf-8")).get("digest")
    except (OSError, ValueError):
        old_digest = None
    write_rows(report.folder / SCORES, rows)
    if old_digest != digest or not page.is_file():
        write_report(page, summary, report.verdicts, report.folder / "frames")
    write_json(summary_path, {**summary, "digest": digest})


def summary_of(report: JudgeReport) -> dict[str, Any]:
    """Return the contents of summary.json."""
    judges = {}
    for name, table in report.tables.items():
        verdicts = [verdict for verdict in report.verdicts if verdict.judge == name]
        prompt_tokens, completion_tokens = report.tokens[name]
        judges[name] = {
            **report.counts(name),
            "models": sorted({v.model for v in verdicts if v.model}),
            "asked_models": sorted({v.asked_model for v in verdicts}),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "tokens_of_all_verdicts": [
                sum(v.prompt_tokens for v in verdicts),
                sum(v.completion_tokens for v in verdicts),
            ],
            "reasons": dict(Counter(v.dropped for v in verdicts if v.dropped is not None).most_common()),
            "stopped": report.stopped.get(name),
            "table": asdict(table) if table else None,
        }
    return {
        "protocol": report.judge_set.protocol.name,
        "scale": report.judge_set.protocol.scale,
        "axis_labels": report.judge_set.protocol.axis_labels,
        "probe": report.verdicts[0].probe,
        "judges": judges,
        "mean_over_judges": asdict(report.mean) if report.mean else None,
        "agreement": report.agreement,
        "missing": [item.id for item in report.judge_set.missing],
        "without_rubric": report.judge_set.without_rubric,
    }
