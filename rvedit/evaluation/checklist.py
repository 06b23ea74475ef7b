"""The protocol of checklists: yes-or-no questions about each edit, answered by a chat model.

In the manner of CoVEBench (arXiv:2606.08415), whose true-or-false questions have an expected answer as well.
An item's score is the share of questions that are answered as expected, among those that are answered yes or
no. Answers that are unclear, and those that the reply does not have, are counted apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvedit.evaluation.aggregate import Estimate, estimate_of, resampled_means
from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.protocols import CHECKLIST, JudgeProtocol, Media
from rvedit.evaluation.request import EDITED_HEADER, FRAMES, SOURCE_HEADER, Parts
from rvedit.evaluation.rubrics import read_rubric, with_instruction
from rvedit.evaluation.verdict import Verdict
from rvedit.io.bench import BenchItem
from rvedit.io.chat import BadReplyError, plain_text
from rvedit.io.errors import UserError
from rvedit.io.tables import BadRow, read_table

OUTCOMES = ("expected", "other", "unclear", "unparsed")
_COLUMNS = ("item", "question")
_CLOSING = "Now answer the questions."
_LINE = re.compile(
    r"^[^\w\n]*(?:q(?:uestion)?\s*)?(?P<number>\d+)[^\w\n]+(?:answer[^\w\n]+)?(?P<answer>yes|no|unclear)\b"
    r"(?!\s*(?:/|or\b)\s*(?:yes|no|unclear)\b)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Question:
    """A question about an edit."""

    text: str
    expected: str = "yes"
    """The answer that counts for the edit: yes or no."""


class ChecklistProtocol(JudgeProtocol):
    """Questions about each item; the same frames as in the paper's protocol.

    Args:
        questions: of each item, by its id.
        frames: see `JudgeProtocol`.
    """

    name, scale = CHECKLIST, (0, 1)
    num_frames = 2 * FRAMES.count

    def __init__(self, questions: Mapping[str, Sequence[Question]], frames: FrameStore) -> None:
        super().__init__(frames, {CHECKLIST: read_rubric(CHECKLIST)})
        self.questions = questions

    def category_of(self, item: BenchItem) -> str | None:
        """See `JudgeProtocol`; items without questions have none."""
        if item.id not in self.questions:
            return None
        return item.category.value if item.category else item.dataset_category or "no category"

    def check_items(self, items: Sequence[BenchItem]) -> None:
        """See `JudgeProtocol`."""
        if unknown := [name for name in self.questions if name not in {item.id for item in items}]:
            example = items[0].id
            raise UserError(
                f"`questions`: {unknown[0]} is no item of the list: give ids of items, such as {example}"
            )

    def parts(self, source: Media, edited: Media, reference: Media = ()) -> Parts:
        """See `JudgeProtocol`."""
        return (SOURCE_HEADER, *source, EDITED_HEADER, *edited, _CLOSING)

    def rubric_of(self, item: BenchItem, category: str) -> str:
        """See `JudgeProtocol`."""
        lines = [f"{number}. {q.text}" for number, q in enumerate(self.questions[item.id], 1)]
        return with_instruction("\n".join([self.rubrics[CHECKLIST], "", *lines]), item.instruction)

    def expected_reply_tokens(self, item: BenchItem) -> int:
        """See `JudgeProtocol`."""
        return 6 * len(self.questions[item.id])

    def parse(self, text: str, item: BenchItem, category: str) -> dict[str, Any]:
        """See `JudgeProtocol`. Raises BadReplyError if no question has an answer of yes or no."""
        questions = self.questions[item.id]
        answers = read_answers(text, len(questions))
        outcomes = Counter(_outcome(answer, q) for answer, q in zip(answers, questions, strict=True))
        decided = outcomes["expected"] + outcomes["other"]
        if not decided:
            counted = f"{outcomes['unclear']} unclear, {outcomes['unparsed']} unparsed"
            raise BadReplyError(f"no question is answered yes or no ({counted})")
        counts: dict[str, float] = {name: outcomes[name] for name in OUTCOMES}
        return {
            "measures": {"share": outcomes["expected"] / decided, **counts},
            "answers": {q.text: answer or "" for q, answer in zip(questions, answers, strict=True)},
        }


def read_questions(path: Path) -> dict[str, tuple[Question, ...]]:
    """Return the questions of a CSV by item: columns item, question and, if any, expected (yes or no).

    Raises UserError with the file, the row and the column.
    """
    questions: dict[str, list[Question]] = {}
    for row in read_table(path, _COLUMNS, ("expected",)):
        if isinstance(row, BadRow):
            raise UserError(f"{path}, row {row.number}: {row.reason}")
        number, texts = row
        item, text, expected = (" ".join(texts[name].split()) for name in (*_COLUMNS, "expected"))
        if not item or not text:
            raise UserError(f"{path}, row {number}: item or question is empty: remove the row or fill it in")
        if expected.lower() not in ("", "yes", "no"):
            raise UserError(f"{path}, row {number}: expected is {expected}: give yes or no")
        if text in (other.text for other in questions.get(item, ())):
            raise UserError(f"{path}, row {number}: the same question about {item} again: remove it")
        questions.setdefault(item, []).append(Question(text, expected.lower() or "yes"))
    if not questions:
        raise UserError(f"{path}: holds no questions: give another list")
    return {item: tuple(of_item) for item, of_item in questions.items()}


def read_answers(reply: str, count: int) -> list[str | None]:
    """Return the answers (yes, no or unclear) to questions 1 to `count`; None for those that have none.

    If a number has several answers, the last one counts.
    """
    found = {int(m["number"]): m["answer"].lower() for m in _LINE.finditer(plain_text(reply))}
    return [found.get(number) for number in range(1, count + 1)]


def _outcome(answer: str | None, question: Question) -> str:
    if answer is None:
        return "unparsed"
    if answer == "unclear":
        return "unclear"
    return "expected" if answer == question.expected else "other"


@dataclass(frozen=True)
class ChecklistRow:
    """A category, or all items."""

    items: int
    score: Estimate
    """Mean over items of the share of questions that are answered as expected; the interval is over items."""
    answers: dict[str, int]
    """Number of questions by outcome, over all repeats."""


def checklist_table(verdicts: Sequence[Verdict], seed: int = 0) -> dict[str, ChecklistRow]:
    """Return the rows of one judge's verdicts by category, and "overall"; empty if nothing was answered."""
    answered = [verdict for verdict in verdicts if verdict.dropped is None]
    rng = np.random.default_rng(seed)
    table = {}
    for name in (*dict.fromkeys(v.category for v in answered), *(["overall"] if answered else [])):
        of_row = [v for v in answered if name in (v.category, "overall")]
        shares: dict[str, list[float]] = {}
        for verdict in of_row:
            shares.setdefault(verdict.item, []).append(float(verdict.measures["share"] or 0))
        means = np.array([np.mean(of_item) for of_item in shares.values()])
        counts = {key: int(sum(v.measures[key] or 0 for v in of_row)) for key in OUTCOMES}
        estimate = estimate_of(float(means.mean()), resampled_means(means[:, None], rng)[:, 0])
        table[name] = ChecklistRow(len(means), estimate, counts)
    return table
