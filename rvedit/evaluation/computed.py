"""Judges that compute their verdicts from the clips on this machine, without sending requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rvedit.evaluation.judges import Case, Judge
from rvedit.evaluation.verdict import Verdict
from rvedit.io.chat import file_key
from rvedit.io.errors import reason_of

Measures = dict[str, float | None]


class ComputedJudge(Judge):
    """A judge that measures clips; measurements are kept in the journal until a clip changes.

    Args: see `Judge`.
    """

    @property
    @abstractmethod
    def version(self) -> str:
        """What measures, for the journal and the verdicts; another one measures again."""

    @abstractmethod
    def measure(self, case: Case) -> Measures:
        """Return the measures of a case. Raises UserError if they cannot be computed."""

    @abstractmethod
    def result(self, measures: Measures) -> dict[str, Any]:
        """Return the fields of a verdict that follow from the measures, such as the scores."""

    def inputs(self, case: Case) -> Sequence[Path | None]:
        """Return the clips that the measures depend on."""
        return self.clips(case)

    def context(self, case: Case) -> Sequence[str]:
        """Return what else the measures depend on."""
        return ()

    def cached_verdict(self, case: Case) -> Verdict | None:
        """See `Judge`."""
        key = self._key(case)
        value = self._journal.get(key) if key else None
        return self._measured(case, value, from_cache=True) if value else None

    async def score(self, case: Case) -> Verdict:
        """See `Judge`; repeats reuse the first measurement."""
        if verdict := self.cached_verdict(case):
            return replace(verdict, from_cache=False)
        try:
            measures = await asyncio.to_thread(self.measure, case)
            for clip in self.clips(case):  # for the report
                await asyncio.to_thread(self.protocol.frames.read, clip)
        except Exception as error:  # a clip that fails must not stop the others
            return self.verdict(case, dropped=reason_of(error))
        if key := self._key(case):
            self._journal.put(key, measures)
        return self._measured(case, measures)

    def _key(self, case: Case) -> str | None:
        """Return the journal key of the measurement, or None if a clip is missing."""
        keys = [clip and file_key("clip", clip) for clip in self.inputs(case)]
        if None in keys:
            return None
        digest = hashlib.sha256(json.dumps([*self.context(case), keys]).encode())
        return f"{self.version}:{digest.hexdigest()}"

    def _measured(self, case: Case, measures: Measures, from_cache: bool = False) -> Verdict:
        return self.verdict(
            case,
            measures=measures,
            model=self.version,
            from_cache=from_cache,
            reasoning=", ".join(f"{k} {v:.3g}" for k, v in measures.items() if v is not None),
            request=self._key(case) or "",
            **self.result(measures),
            **self.shown_frames(case),
        )
