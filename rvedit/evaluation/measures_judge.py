"""The judge without a model: it measures edits against their sources and gives no scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rvedit.evaluation.computed import ComputedJudge, Measures
from rvedit.evaluation.judges import Case
from rvedit.evaluation.model_free import measure_edit
from rvedit.evaluation.protocols import MEASURES, JudgeProtocol
from rvedit.evaluation.request import Probe
from rvedit.evaluation.verdict import Verdict
from rvedit.io.chat import Journal

VERSION = 1


class MeasuresJudge(ComputedJudge):
    """A judge whose verdicts have measures instead of scores, whatever the other judges' protocol is."""

    version = f"{MEASURES}-{VERSION}"

    def __init__(self, journal: Journal, protocol: JudgeProtocol, probe: Probe = "none") -> None:
        super().__init__(MEASURES, journal, protocol, probe, concurrency=2)

    def measure(self, case: Case) -> Measures:
        """See `ComputedJudge`."""
        return measure_edit(*self.clips(case))

    def result(self, measures: Measures) -> dict[str, Any]:
        """See `ComputedJudge`; measures are no scores."""
        return {}

    def verdict(self, case: Case, **fields: Any) -> Verdict:
        """See `Judge`."""
        return replace(super().verdict(case, **fields), protocol=MEASURES)
