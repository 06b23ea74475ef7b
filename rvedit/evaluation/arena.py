"""The job of `rvedit judge arena`: compare editors in pairs on the same items, and rate them."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rvedit.evaluation.arena_judges import ArenaItem, Comparison, PairJudge
from rvedit.evaluation.arena_report import write_arena_report
from rvedit.evaluation.arena_schedule import EXPLORE, Matchup, Pool
from rvedit.evaluation.arena_table import ArenaTable, arena_table
from rvedit.evaluation.bradley_terry import Outcome, count_outcomes
from rvedit.evaluation.human_labels import MEAN, HumanLabels
from rvedit.io.bench import BenchItem, read_bench, resolve_edits
from rvedit.io.chat import ChatError
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, write_json, write_rows

COMPARISONS, SUMMARY, REPORT = "comparisons.jsonl", "arena.json", "arena.html"
ROUND = 8
"""Number of comparisons that are chosen at a time, with a budget."""
OnProgress = Callable[[int, int, int], None]
"""Gets the number of comparisons so far, how many of them are dropped, and the total."""


@dataclass(frozen=True)
class ArenaConfig:
    """Which editors to compare, and on what."""

    editors: Mapping[str, Path]
    """Folder of edits by name."""
    out: Path
    bench: Path | None = None
    """The list of items; None: the list in each folder, which has to be the same."""
    categories: tuple[str, ...] = ()
    """Categories to compare on; empty for all."""
    limit: int | None = None
    """Number of items per category that at least two editors have edited."""
    budget: int | None = None
    """Number of comparisons, chosen as results come; None for all."""
    seed: int = 0
    """Of the order of comparisons, and of the intervals."""


@dataclass(frozen=True)
class Contest:
    """The items on which at least two editors can be compared."""

    editors: tuple[str, ...]
    items: tuple[ArenaItem, ...]
    missing: dict[str, int]
    """Number of the list's items without an edit, by editor."""

    @property
    def pool(self) -> int:
        """The number of possible comparisons."""
        return sum(len(item.edits) * (len(item.edits) - 1) // 2 for item in self.items)


@dataclass
class ArenaReport:
    """The results of a run."""

    folder: Path
    judge: str
    editors: tuple[str, ...]
    comparisons: list[Comparison]
    tables: dict[str, ArenaTable]
    """By category; "overall" first."""
    missing: dict[str, int]
    possible: int
    """Number of possible comparisons."""
    order_disagreements: int
    """Comparisons whose answers in the two orders differ."""
    dropped: dict[str, int]
    """Number of dropped comparisons by reason."""
    tokens: tuple[int, int]
    """Prompt and completion tokens of this run."""
    stopped: str | None
    """Why the run ended early."""
    unused: int
    """Number of labels by people on other items or editors."""
    from_cache: int
    """Number of comparisons that an earlier run had made."""


def read_contest(config: ArenaConfig) -> Contest:
    """Find the edits of all editors. Raises UserError if there is nothing to compare."""
    if len(config.editors) < 2:
        raise UserError("an arena needs two editors or more: name their folders")
    items: dict[str, BenchItem] = {}
    edits: dict[str, dict[str, Path]] = {}
    for name, folder in config.editors.items():
        listed = read_bench(config.bench or folder)
        for item in listed:
            other = items.setdefault(item.id, item)
            if other.instruction != item.instruction:
                raise UserError(
                    f"{folder}: {item.id} has another instruction than in the other folders: compare edits "
                    "of one list, or name the list with --bench"
                )
        edits[name] = resolve_edits(listed, folder)
        if not edits[name]:
            raise UserError(f"{folder}: has no edit of any of the {len(listed)} items of the list")
    counts: Counter[str] = Counter()
    contest = []
    for item in items.values():
        category = item.category.value if item.category else item.dataset_category or "other"
        found = {name: edits[name][item.id] for name in config.editors if item.id in edits[name]}
        is_chosen = not config.categories or category in config.categories
        if len(found) < 2 or not is_chosen or counts[category] == config.limit:
            continue
        counts[category] += 1
        if not os.path.isfile(item.source):
            raise UserError(f"{item.source}: no such file, the source of {item.id}")
        contest.append(ArenaItem(item, category, found))
    for name, folder in config.editors.items():
        if not any(name in item.edits for item in contest):
            raise UserError(
                f"{folder}: has no edit of an item that another editor has edited; it has {len(edits[name])}"
            )
    missing = {name: sum(item not in edits[name] for item in items) for name in config.editors}
    return Contest(tuple(config.editors), tuple(contest), missing)


def run_arena(
    config: ArenaConfig,
    contest: Contest,
    judge: PairJudge,
    on_progress: OnProgress = lambda done, dropped, total: None,
) -> ArenaReport:
    """Compare the editors, and write comparisons, summary and report to `config.out`.

    The judge's journal has every answer as it comes: an interrupted run asks nothing twice.
    """
    prepare_folder(config.out)
    has_edit = np.array([[name in item.edits for name in contest.editors] for item in contest.items])
    pool = Pool(has_edit, [item.category for item in contest.items], config.seed)
    total = min(config.budget or len(pool), len(pool))
    comparisons: list[Comparison] = []
    stopped: str | None = None

    def note(done: Sequence[Comparison]) -> None:
        dropped = sum(c.score is None for c in (*comparisons, *done))
        on_progress(len(comparisons) + len(done), dropped, total)

    async def run() -> None:
        nonlocal stopped
        try:
            await judge.judge.check()
            while len(comparisons) < total and not stopped:
                if config.budget:
                    wins, ties = (x.sum(axis=0) for x in _counts(comparisons, contest.editors))
                    explore = len(comparisons) < EXPLORE * total
                    chosen = pool.take_best(wins, ties, min(ROUND, total - len(comparisons)), explore)
                else:
                    chosen = [pool.take_random() for _ in range(total)]
                done, stopped = await _compare_all(judge, contest, chosen, note)
                comparisons.extend(done)
        finally:
            await judge.judge.close()

    asyncio.run(run())
    return write_results(config, contest, judge.name, comparisons, stopped, judge.judge.tokens)


def human_arena(config: ArenaConfig, contest: Contest, labels: HumanLabels) -> ArenaReport:
    """Rate the editors by preferences of people, each of which is a comparison; write the results."""
    if labels.kind != "preferences":
        raise UserError(f"{labels.file}: has scores, not preferences: needs item, left, right, preferred")
    items = {item.item.id: item for item in contest.items}
    comparisons, unused = [], 0
    for (name, left, right), raters in sorted(labels.by_axis.get(MEAN, {}).items()):
        item = items.get(name)
        if item is None or left not in item.edits or right not in item.edits:
            unused += len(raters)
            continue
        for rater, value in sorted(raters.items()):
            score = (1 + value) / 2
            answer = {1.0: "left", 0.5: "tie", 0.0: "right"}[score]
            comparisons.append(
                Comparison(name, item.category, left, right, "human", score, (answer,), rater=rater)
            )
    if not comparisons:
        raise UserError(
            f"{labels.file}: has no preference between {', '.join(contest.editors)} on the mean of the axes"
        )
    prepare_folder(config.out)
    return write_results(config, contest, "human", comparisons, unused=unused)


def write_results(
    config: ArenaConfig,
    contest: Contest,
    judge: str,
    comparisons: list[Comparison],
    stopped: str | None = None,
    tokens: tuple[int, int] = (0, 0),
    unused: int = 0,
) -> ArenaReport:
    """Rate the editors overall and by category, write the files, and return the report."""
    scored = [c for c in comparisons if c.score is not None]
    groups: dict[str, list[Comparison]] = {"overall": scored}
    for comparison in scored:
        groups.setdefault(comparison.category, []).append(comparison)
    tables = {
        name: arena_table(contest.editors, *_counts(group, contest.editors), config.seed)
        for name, group in groups.items()
    }
    report = ArenaReport(
        config.out,
        judge,
        contest.editors,
        comparisons,
        tables,
        contest.missing,
        contest.pool,
        order_disagreements=sum(len(set(c.answers)) > 1 for c in scored),
        dropped=dict(Counter(c.dropped for c in comparisons if c.dropped is not None).most_common()),
        tokens=tokens,
        stopped=stopped,
        unused=unused,
        from_cache=sum(c.from_cache for c in comparisons),
    )
    write_rows(config.out / COMPARISONS, map(asdict, comparisons))
    summary = summary_of(report)
    write_json(config.out / SUMMARY, summary)
    instructions = {item.item.id: item.item.instruction for item in contest.items}
    write_arena_report(config.out / REPORT, summary, comparisons, instructions)
    return report


def summary_of(report: ArenaReport) -> dict[str, object]:
    """Return the contents of arena.json."""
    values = asdict(report)
    del values["folder"], values["comparisons"]
    return {**values, "comparisons": len(report.comparisons)}


def _counts(comparisons: Sequence[Comparison], editors: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return wins and ties by item, as `count_outcomes` does, of comparisons with a score."""
    scored = [c for c in comparisons if c.score is not None]
    items = {item: number for number, item in enumerate(dict.fromkeys(c.item for c in scored))}
    number = {name: index for index, name in enumerate(editors)}
    outcomes = [
        Outcome(items[c.item], number[c.left], number[c.right], c.score)
        for c in scored
        if c.score is not None
    ]
    return count_outcomes(outcomes, len(items), len(editors))


async def _compare_all(
    judge: PairJudge,
    contest: Contest,
    matchups: Sequence[Matchup],
    note: Callable[[Sequence[Comparison]], None],
) -> tuple[list[Comparison], str | None]:
    """Return the comparisons, those that were made before the judge stopped, and why it stopped."""
    done: dict[int, Comparison] = {}
    stopped: str | None = None
    pending = iter(enumerate(matchups))

    async def work() -> None:
        nonlocal stopped
        for number, matchup in pending:  # shared by all tasks
            if stopped:
                return
            left, right = contest.editors[matchup.left], contest.editors[matchup.right]
            try:
                done[number] = await judge.compare(contest.items[matchup.item], left, right)
            except ChatError as error:
                stopped = stopped or str(error)
            note(list(done.values()))

    await asyncio.gather(*(work() for _ in range(judge.concurrency)))
    return [done[number] for number in sorted(done)], stopped
