"""The job of `rvedit judge`: score a folder of edited clips and write tables and a report (Appendix D.3)."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

from pydantic import TypeAdapter

from rvedit.evaluation.aggregate import CategoryScores, group, pooled, table_of
from rvedit.evaluation.checklist import checklist_table
from rvedit.evaluation.judges import Case, Judge
from rvedit.evaluation.measure_table import measure_table
from rvedit.evaluation.protocols import CHECKLIST, MEASURES, PAPER, WITHOUT_AXES, JudgeProtocol
from rvedit.evaluation.results import SCORES, JudgeReport, write_results
from rvedit.evaluation.statistics import Difference, agreement, compare
from rvedit.evaluation.verdict import Verdict
from rvedit.io.bench import BenchItem, read_bench, resolve_edits
from rvedit.io.chat import ChatError
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, read_rows
from rvedit.io.video import probe

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


def read_judge_set(config: JudgeConfig, protocol: JudgeProtocol) -> JudgeSet:
    """Find the edits and check the inputs before anything is decoded or sent.

    Raises UserError if no edit is found, names are ambiguous, or no item has a rubric.
    """
    if not config.edits.is_dir():
        raise UserError(f"{config.edits}: no such folder: name the folder of edited clips")
    items = read_bench(config.bench or config.edits)
    protocol.check_items(items)
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
        known = f"; the {protocol.name} protocol has rubrics for {', '.join(protocol.rubrics)}"
        raise UserError(
            f"{config.bench or config.edits}: no item to judge: its categories are {names}"
            f"{known if protocol.rubrics else ''}"
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
        measures=measure_table(verdicts) if any(v.protocol == MEASURES for v in verdicts) else None,
        checklists={
            name: checklist_table([v for v in verdicts if v.judge == name])
            for name in dict.fromkeys(v.judge for v in verdicts if v.protocol == CHECKLIST)
        },
    )
    write_results(report)
    report.seconds = time.perf_counter() - started
    return report


def scores_by_judge(verdicts: Sequence[Verdict]) -> dict[str, CategoryScores]:
    """Return the scores of each judge that gives scores, by category and item."""
    return {
        judge: group((v.category, v.item, v.scores) for v in verdicts if v.judge == judge and v.scores)
        for judge in dict.fromkeys(v.judge for v in verdicts if v.protocol not in WITHOUT_AXES)
    }


def compare_folders(
    a: Path, b: Path, categories: Sequence[str] = ()
) -> dict[str, dict[str, dict[str, Difference]]]:
    """Return B minus A for each judge that judged both: judge -> category -> axis.

    Of `categories`, if there are any, alone; overall is then the mean of these.
    """
    (protocol_a, scores_a), (protocol_b, scores_b) = (read_judged(path) for path in (a, b))
    if protocol_a != protocol_b:
        raise UserError(
            f"{a} was judged by the protocol {protocol_a}, {b} by {protocol_b}: protocols cannot be compared"
        )
    names = [name for name in scores_a if name in scores_b]
    if not names:
        judges = " and ".join(", ".join(side) or "nobody" for side in (scores_a, scores_b))
        raise UserError(f"{a} and {b}: no judge in common: judged by {judges}")
    known = {category for side in (scores_a, scores_b) for of_judge in side.values() for category in of_judge}
    if unknown := [category for category in categories if category not in known]:
        raise UserError(f"`category` {unknown[0]}: was not judged: choose among {', '.join(sorted(known))}")

    def chosen(scores: CategoryScores) -> CategoryScores:
        return {name: items for name, items in scores.items() if not categories or name in categories}

    differences = {name: compare(chosen(scores_a[name]), chosen(scores_b[name])) for name in names}
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
    rows = TypeAdapter(list[Verdict]).validate_python(read_rows(path))
    verdicts = [verdict for verdict in rows if verdict.protocol not in WITHOUT_AXES]
    if rows and not verdicts:
        raise UserError(f"{path}: has no scores on the axes: measures and checklists cannot be compared")
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
            num_dropped += verdicts[case].dropped is not None
            on_progress(judge.name, len(verdicts), num_dropped, len(cases))

    # More tasks than requests in flight, so that clips are decoded while all request slots are in use.
    await asyncio.gather(*(work() for _ in range(2 * judge.concurrency)))
    return stopped
