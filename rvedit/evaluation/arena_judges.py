"""Judges of pairs of edits: which of two edits of one clip is better?

The prompt is our own, not the paper's protocol, which scores edits one by one. A chat model is asked twice,
with the edits in both orders; if the two answers disagree, the comparison is a tie.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rvedit.evaluation.judges import Case, ChatJudge, Judge, whole_text
from rvedit.evaluation.reference import ReferenceJudge
from rvedit.evaluation.request import SOURCE_HEADER, Parts, judge_request
from rvedit.evaluation.rubrics import with_instruction
from rvedit.io.bench import BenchItem
from rvedit.io.chat import (
    Answer,
    BadReplyError,
    ChatError,
    ChatReply,
    Journal,
    Jpeg,
    UnreadableError,
    plain_text,
)
from rvedit.io.errors import reason_of

VERSION = 2
"""Increase it when the same reply would be read differently: cached answers depend on it."""
PROMPT = """You compare two edits of one source video, which were made by the same instruction:

"{edit_prompt}"

You see frames of the source, of edit A and of edit B, evenly spaced over each video. Decide which is
better. What counts, in this order: the requested change is there and complete; everything else is as in the
source; the video is free of artifacts, blur and flicker. The order of A and B means nothing. If neither is
better, say tie.

Answer in two lines:
Reasoning: one sentence
Preference: A, B or tie"""
EDIT_HEADERS = ("Frames of edit A:", "Frames of edit B:")
CLOSING = "Which edit is better? Answer in the specified format."
SAME_GAIN = 0.01
"""Gains of the reference judge that differ by less are a tie."""
_SIDES = {"a": "left", "b": "right", "tie": "tie"}
_SIDES_SWAPPED = {"a": "right", "b": "left", "tie": "tie"}
_PREFERENCE = re.compile(
    r"^\W*preference\W*(?:edit\W*|a\W+(?=tie))?(A|B|tie)[^\w\n]*$", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class ArenaItem:
    """An item and the edits of it."""

    item: BenchItem
    category: str
    edits: Mapping[str, Path]
    """By editor."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two editors' edits of an item: one line of comparisons.jsonl."""

    item: str
    category: str
    left: str
    right: str
    judge: str
    score: float | None = None
    """1 if left is better, 0 if right is, 0.5 for a tie; None if the comparison is dropped."""
    answers: tuple[str, ...] = ()
    """left, right or tie; with left first, and with right first."""
    dropped: str | None = None
    """Why there is no score."""
    replies: tuple[str, ...] = ()
    """Verbatim, or the measures."""
    model: str = ""
    from_cache: bool = False
    rater: str = ""
    """The person, if it is one."""


class PairJudge(ABC):
    """Compares two edits with the help of a judge that scores them one by one."""

    judge: Judge

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name, self.concurrency = judge, judge.name, judge.concurrency

    @abstractmethod
    async def compare(self, item: ArenaItem, left: str, right: str) -> Comparison:
        """Return the comparison of two editors, after `judge.check`.

        Raises ChatError of scope "all" if none can be made.
        """


class ChatPairJudge(PairJudge):
    """A multimodal chat model that compares edits.

    Args:
        judge: has the model, its client, its settings and the frames.
        journal: stores why a reply could not be read.
    """

    judge: ChatJudge

    def __init__(self, judge: ChatJudge, journal: Journal) -> None:
        super().__init__(judge)
        self._journal, self._settings = journal, judge.settings

    async def compare(self, item: ArenaItem, left: str, right: str) -> Comparison:
        """See `PairJudge`."""
        comparison = Comparison(item.item.id, item.category, left, right, self.name)
        frames = self.judge.protocol.frames
        try:
            source, *edits = await asyncio.gather(
                *(
                    asyncio.to_thread(frames.read, clip)
                    for clip in (item.item.source, item.edits[left], item.edits[right])
                )
            )
        except Exception as error:  # a clip that fails must not stop the others
            return replace(comparison, dropped=reason_of(error))
        asked = await asyncio.gather(
            *(self._ask(item.item.instruction, source, pair) for pair in (edits, edits[::-1])),
            return_exceptions=True,  # the other answer is still kept
        )
        if failures := [answer for answer in asked if isinstance(answer, BaseException)]:
            failure = failures[0]
            if not isinstance(failure, ChatError) or failure.scope == "all":
                raise failure
            return replace(comparison, dropped=str(failure))
        first, second = (answer for answer in asked if not isinstance(answer, BaseException))
        answers = (_SIDES[first.value], _SIDES_SWAPPED[second.value])
        return replace(
            comparison,
            score=score_of(answers),
            answers=answers,
            replies=(first.reply.text, second.reply.text),
            model=first.reply.model,
            from_cache=first.from_cache and second.from_cache,
        )

    async def _ask(self, instruction: str, source: list[Jpeg], edits: list[list[Jpeg]]) -> Answer[str]:
        """Return the preference: a, b or tie.

        Raises ChatError; a reply that could not be read in an earlier run is not asked for again, unless the
        settings say so.
        """
        parts: Parts = (
            SOURCE_HEADER,
            *source,
            EDIT_HEADERS[0],
            *edits[0],
            EDIT_HEADERS[1],
            *edits[1],
            CLOSING,
        )
        prompt = with_instruction(PROMPT, instruction)
        request = judge_request(self.judge.model, prompt, parts, self._settings)
        request = replace(request, version=f"arena-{VERSION}")
        dropped = f"dropped:{request.key}"
        failure = None if self._settings.retry_dropped else self._journal.get(dropped)
        if failure:
            raise UnreadableError(failure["reason"], ChatReply(**failure["reply"]))
        try:
            return await self.judge.client.ask(request, read_preference)
        except UnreadableError as error:
            self._journal.put(dropped, {"reason": str(error), "reply": asdict(error.reply)})
            raise


class ReferencePairJudge(PairJudge):
    """A judge that knows the true edit: the edit with the greater gain is better."""

    judge: ReferenceJudge

    async def compare(self, item: ArenaItem, left: str, right: str) -> Comparison:
        """See `PairJudge`; the order of the edits makes no difference."""
        comparison = Comparison(item.item.id, item.category, left, right, self.name)
        gains, cached = [], []
        for editor in (left, right):
            case = Case(item.item, item.category, item.edits[editor])
            verdict = self.judge.cached_verdict(case) or await self.judge.score(case)
            if verdict.dropped:
                return replace(comparison, dropped=f"{editor}: {verdict.dropped}")
            gains.append(float(verdict.measures["gain"] or 0.0))
            cached.append(verdict.from_cache)
        difference = gains[0] - gains[1]
        answer = "tie" if abs(difference) < SAME_GAIN else "left" if difference > 0 else "right"
        return replace(
            comparison,
            score=score_of((answer, answer)),
            answers=(answer, answer),
            replies=(f"gains {gains[0]:.3f} and {gains[1]:.3f}",),
            from_cache=all(cached),
        )


def score_of(answers: tuple[str, str]) -> float:
    """Return 1, 0 or 0.5 for answers in both orders: a preference counts if both have it."""
    return {("left", "left"): 1.0, ("right", "right"): 0.0}.get(answers, 0.5)


def read_preference(reply: ChatReply) -> str:
    """Return a, b or tie: the last line that names a preference. Raises BadReplyError if there is none."""
    found = _PREFERENCE.findall(plain_text(whole_text(reply)))
    if not found:
        raise BadReplyError("no line with the preference A, B or tie")
    return str(found[-1]).lower()
