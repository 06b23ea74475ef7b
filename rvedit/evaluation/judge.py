"""`rvedit judge`: a folder of edited clips becomes scores, tables and a page (Appendix D.3)."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from rvedit.evaluation.aggregate import CategoryScores, Table, group, pooled, table_of
from rvedit.evaluation.judges import PAPER, Case, Judge, dropped
from rvedit.evaluation.protocols import JudgeProtocol
from rvedit.evaluation.report import write_report
from rvedit.evaluation.statistics import Difference, agreement, compare
from rvedit.evaluation.verdict import Verdict
from rvedit.io.bench import BenchItem, read_bench, resolve_edits
from rvedit.io.chat import ChatError
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, read_rows, write_json, write_rows
from rvedit.io.video import probe

SCORES, SUMMARY, REPORT = "scores.jsonl", "summary.json", "report.html"


@dataclass(frozen=True)
class JudgeConfig:
    """Which edits are to be judged."""

    edits: Path
    """The folder of edited clips."""
    out: Path
    bench: Path | None = None
    """The list of items; none: what `rvedit edit --batch` left in `edits`."""
    categories: tuple[str, ...] = ()
    """Only these; none: all that have a rubric."""
    limit: int | None = None
    """Items of each category at most."""
    repeats: int = 1
    probe: str = "none"


@dataclass(frozen=True)
class JudgeSet:
    """What there is to judge, and what not."""

    cases: tuple[Case, ...]
    """One repeat of each item that has an edit."""
    missing: tuple[BenchItem, ...]
    """Items without an edit."""
    without_rubric: dict[str, int]
    """Items that are left out, by their word for the category."""
    protocol: str = PAPER
    scale: tuple[int, int] = (1, 100)


@dataclass(frozen=True)
class Estimate:
    """What a run would send; tokens are rough."""

    judge: str
    verdicts: int
    from_cache: int
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass
class JudgeReport:
    """What came of a run."""

    folder: Path
    verdicts: list[Verdict]
    docket: JudgeSet
    tables: dict[str, Table | None]
    """By judge."""
    mean: Table | None
    """Over the judges, where there are several."""
    agreement: dict[str, Any]
    tokens: dict[str, tuple[int, int]]
    seconds: float = 0.0
    stopped: dict[str, str] = field(default_factory=dict)
    """By judge: why it did not go on."""

    def counts(self, judge: str) -> Counter[str]:
        """Verdicts of a judge: scored, dropped, from_cache."""
        counts: Counter[str] = Counter()
        for verdict in self.verdicts:
            if verdict.judge == judge:
                counts["scored" if verdict.scores else "dropped"] += 1
                counts["from_cache"] += verdict.from_cache
        return counts


def read_judge_set(config: JudgeConfig, protocol: JudgeProtocol) -> JudgeSet:
    """Find the edits and check what can be checked before anything is decoded or asked.

    Raises UserError where no edit is found, names are ambiguous, or nothing has a rubric.
    """
    if not config.edits.is_dir():
        raise UserError(f"{config.edits}: no folder: name the folder of edited clips")
    items = read_bench(config.bench or config.edits)
    categories = {item.id: protocol.category_of(item) for item in items}
    without = Counter(item.word or "no category" for item in items if categories[item.id] is None)
    chosen: list[BenchItem] = []
    taken: Counter[str] = Counter()
    for item in items:
        category = categories[item.id]
        if category is None or (config.categories and category not in config.categories):
            continue
        if config.limit is None or taken[category] < config.limit:
            taken[category] += 1
            chosen.append(item)
    if not chosen:
        kinds = ", ".join(sorted({item.word for item in items}))
        raise UserError(
            f"{config.bench or config.edits}: no item to judge: its kinds of edit are {kinds}; the "
            f"{protocol.name} protocol has rubrics for {', '.join(protocol.categories)}"
        )
    gone = next((item for item in chosen if not item.source.is_file()), None)
    if gone:
        raise UserError(f"the source of {gone.id} is gone: {gone.source}: is --bench the right list?")
    edits = resolve_edits(chosen, config.edits)
    if not edits:
        raise UserError(
            f"{config.edits}: holds no edit of the {len(chosen)} items, such as "
            f"{chosen[0].source.stem}_edited.mp4"
        )
    cases = tuple(
        Case(item, category, edits[item.id])
        for item in chosen
        if item.id in edits and (category := categories[item.id])
    )
    missing = tuple(item for item in chosen if item.id not in edits)
    return JudgeSet(cases, missing, dict(without), protocol.name, (protocol.low, protocol.high))


def estimate(config: JudgeConfig, docket: JudgeSet, judges: Sequence[Judge]) -> list[Estimate]:
    """What a run would send; sends nothing and decodes nothing."""

    @cache
    def size(clip: Path) -> tuple[int, int]:
        try:
            info = probe(clip)
        except UserError:  # it will be dropped
            return 0, 0
        return info.width, info.height

    estimates = []
    for judge in judges:
        cases = list(_repeated(docket.cases, config.repeats))
        unknown = [case for case in cases if judge.known(case) is None]
        tokens = [judge.expected_tokens(case, *size(case.item.source)) for case in unknown]
        estimates.append(
            Estimate(
                judge.name,
                len(cases),
                len(cases) - len(unknown),
                len(unknown),
                sum(prompt for prompt, _ in tokens),
                sum(reply for _, reply in tokens),
            )
        )
    return estimates


def judge_edits(
    config: JudgeConfig,
    docket: JudgeSet,
    judges: Sequence[Judge],
    on_progress: Callable[[str, int, int, int], None] = lambda judge, done, dropped, total: None,
) -> JudgeReport:
    """Judge all cases by all judges, and write scores, summary and report to `order.out`.

    Answers are kept as they come, so that a killed run goes on where it was and asks nothing twice.
    `on_progress` gets the judge, verdicts so far, dropped ones among them, and the total.
    """
    started = time.perf_counter()
    prepare_folder(config.out)
    verdicts: list[Verdict] = []
    stopped: dict[str, str] = {}
    tokens: dict[str, tuple[int, int]] = {}
    cases = list(_repeated(docket.cases, config.repeats))
    known = [{i: v for i, case in enumerate(cases) if (v := judge.known(case))} for judge in judges]

    async def work() -> None:
        # All are checked before any is asked: a missing key is found before another judge's work is spent.
        waiting = [judge for judge, found in zip(judges, known, strict=True) if len(found) < len(cases)]
        try:
            for judge in waiting:
                await judge.check()
            for judge, found in zip(judges, known, strict=True):
                on_progress(judge.name, len(found), 0, len(cases))
                if judge in waiting:
                    reason = await _score_all(judge, cases, found, config, docket, on_progress)
                    if reason:
                        stopped[judge.name] = reason
        finally:
            for judge in waiting:
                await judge.close()

    asyncio.run(work())
    for judge, found in zip(judges, known, strict=True):
        verdicts += [found[index] for index in range(len(cases))]
        tokens[judge.name] = judge.tokens
    report = summarize(config.out, verdicts, docket, tokens, stopped)
    _write(config, report)
    report.seconds = time.perf_counter() - started
    return report


def summarize(
    folder: Path,
    verdicts: list[Verdict],
    docket: JudgeSet,
    tokens: dict[str, tuple[int, int]],
    stopped: dict[str, str],
) -> JudgeReport:
    """Aggregate as Appendix D.3 does."""
    names = list(dict.fromkeys(verdict.judge for verdict in verdicts))
    scores = {name: scores_of(verdicts, name) for name in names}
    tables = {name: table_of(scores[name]) for name in names}
    return JudgeReport(
        folder,
        verdicts,
        docket,
        tables,
        _mean_table(scores) if len(names) > 1 else None,
        {
            f"{a} and {b}": {axis: dataclasses.asdict(value) for axis, value in agreement(x, y).items()}
            for (a, x), (b, y) in combinations(scores.items(), 2)
        },
        tokens,
        stopped=stopped,
    )


def scores_of(verdicts: Sequence[Verdict], judge: str) -> CategoryScores:
    """One judge's scores, as they are aggregated."""
    return group((v.category, v.item, v.scores) for v in verdicts if v.judge == judge and v.scores)


def compare_folders(a: Path, b: Path) -> dict[str, dict[str, dict[str, Difference]]]:
    """B minus A, for each judge that judged both: judge -> category -> axis."""
    (of_a, first), (of_b, second) = (read_judged(path) for path in (a, b))
    if of_a != of_b:
        raise UserError(f"{a} was judged by the protocol {of_a}, {b} by {of_b}: those are not compared")
    sides = [first, second]
    names = [name for name in sides[0] if name in sides[1]]
    if not names:
        said = " and ".join(", ".join(side) or "nobody" for side in sides)
        raise UserError(f"{a} and {b}: no judge has judged both: {said}")
    found = {name: compare(sides[0][name], sides[1][name]) for name in names}
    if not any(found.values()):
        raise UserError(f"{a} and {b}: have no item that was scored in both: was one list judged?")
    return found


def read_judged(folder: Path) -> tuple[str, dict[str, CategoryScores]]:
    """The protocol of a judged folder, and its scores by judge. Raises UserError for probes and mixtures."""
    candidates = (folder, folder / SCORES, folder / "judge" / SCORES)
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(f"{folder}: holds no {SCORES}: run `rvedit judge` on it first")
    verdicts = [Verdict.from_row(row) for row in read_rows(path)]
    protocols = {(v.protocol, v.probe) for v in verdicts}
    if len({name for name, _ in protocols}) > 1 or any(probe != "none" for _, probe in protocols):
        raise UserError(f"{path}: holds verdicts of a probe or of two protocols: those are not compared")
    judges = dict.fromkeys(v.judge for v in verdicts)
    name = verdicts[0].protocol if verdicts else PAPER
    return name, {judge: scores_of(verdicts, judge) for judge in judges}


def _mean_table(scores: dict[str, CategoryScores]) -> Table | None:
    """Over judges, each with equal weight: of the items that all of them scored."""
    return table_of(pooled(list(scores.values())))


def _repeated(cases: Sequence[Case], repeats: int) -> Iterator[Case]:
    for repeat in range(repeats):
        for case in cases:
            yield dataclasses.replace(case, repeat=repeat)


async def _score_all(
    judge: Judge,
    cases: list[Case],
    found: dict[int, Verdict],
    config: JudgeConfig,
    docket: JudgeSet,
    on_progress: Callable[[str, int, int, int], None],
) -> str | None:
    """Score the unknown cases into `found`; returns why it stopped early, if it did."""
    stopped: str | None = None
    num_dropped = 0

    async def work(indices: Iterator[int]) -> None:
        nonlocal stopped, num_dropped
        for index in indices:  # shared: whoever is free takes the next
            case = cases[index]
            reason = f"not asked, as the run had stopped: {stopped}" if stopped else None
            if not reason:
                try:
                    found[index] = await judge.score(case)
                except ChatError as error:
                    stopped = stopped or str(error)
                    reason = str(error)
            if reason:
                found[index] = dropped(case, judge.name, config.probe, reason, docket.protocol)
            num_dropped += found[index].scores is None
            on_progress(judge.name, len(found), num_dropped, len(cases))

    unknown = [index for index in range(len(cases)) if index not in found]
    if unknown:
        # More hands than requests in flight, so that clips are decoded while every slot is taken.
        hands = min(len(unknown), 2 * judge.concurrency)
        indices = iter(unknown)
        await asyncio.gather(*(work(indices) for _ in range(hands)))
    return stopped


def _write(config: JudgeConfig, report: JudgeReport) -> None:
    """scores.jsonl, summary.json, report.html; the page only where the verdicts have changed."""
    rows = [verdict.as_row() for verdict in report.verdicts]
    stable = [{**row, "from_cache": False} for row in rows]
    digest = hashlib.sha256(json.dumps([stable, config.probe], sort_keys=True).encode()).hexdigest()
    summary_path, page = config.out / SUMMARY, config.out / REPORT
    try:
        before = json.loads(summary_path.read_text(encoding="utf-8")).get("digest")
    except (OSError, ValueError):
        before = None
    write_rows(config.out / SCORES, rows)
    summary = summary_of(report)
    if before != digest or not page.is_file():
        write_report(page, summary, report.verdicts, config.out / "frames")
    write_json(summary_path, {**summary, "digest": digest})


def summary_of(report: JudgeReport) -> dict[str, Any]:
    """What summary.json holds."""

    def table(value: Table | None) -> dict[str, Any] | None:
        return dataclasses.asdict(value) if value else None

    reasons = Counter(
        (verdict.judge, verdict.dropped) for verdict in report.verdicts if verdict.dropped is not None
    )
    return {
        "protocol": report.docket.protocol,
        "scale": report.docket.scale,
        "probe": report.verdicts[0].probe if report.verdicts else "none",
        "judges": {
            name: {
                **{key: report.counts(name)[key] for key in ("scored", "dropped", "from_cache")},
                "models": sorted({v.model for v in report.verdicts if v.judge == name and v.model}),
                "asked_models": sorted({v.asked_model for v in report.verdicts if v.judge == name}),
                "prompt_tokens": report.tokens.get(name, (0, 0))[0],
                "completion_tokens": report.tokens.get(name, (0, 0))[1],
                "tokens_of_all_verdicts": [
                    sum(v.prompt_tokens for v in report.verdicts if v.judge == name),
                    sum(v.completion_tokens for v in report.verdicts if v.judge == name),
                ],
                "reasons": {
                    str(reason): count for (judge, reason), count in reasons.most_common() if judge == name
                },
                "stopped": report.stopped.get(name),
                "table": table(report.tables[name]),
            }
            for name in report.tables
        },
        "mean_over_judges": table(report.mean),
        "agreement": report.agreement,
        "missing": [item.id for item in report.docket.missing],
        "without_rubric": report.docket.without_rubric,
    }
