"""What the measures without a model are called, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rvedit.evaluation.aggregate import Estimate, estimate_of, resampled_means
from rvedit.evaluation.protocols import MEASURES
from rvedit.evaluation.verdict import Verdict

MeasureTable = dict[str, dict[str, Estimate | None]]
"""Category, or "overall" -> measure -> mean."""


@dataclass(frozen=True)
class Definition:
    """What a measure is called, its unit, and its value for an edit that is equal to the source."""

    label: str
    unit: str
    perfect: float


DEFINITIONS: Mapping[str, Definition] = {
    "changed": Definition("Changed pixels", "share of the clip, 0 to 1", 0.0),
    "psnr": Definition("PSNR outside the changed region", "dB, at most 60", 60.0),
    "ssim": Definition("SSIM outside the changed region", "-1 to 1", 1.0),
    "displacement": Definition("Displacement", "percent of the diagonal", 0.0),
    "frame_change": Definition("Change between frames", "ratio to the source", 1.0),
    "warping_error": Definition("Warping error", "ratio to the source", 1.0),
    "sharpness": Definition("Sharpness", "ratio to the source", 1.0),
    "color_shift": Definition("Color shift", "Delta E", 0.0),
    "duration": Definition("Duration", "ratio to the source", 1.0),
    "num_frames": Definition("Number of frames", "ratio to the source", 1.0),
    "size": Definition("Pixels of a frame", "ratio to the source", 1.0),
    "frame_rate": Definition("Frame rate", "ratio to the source", 1.0),
    "sound": Definition("Sound kept", "1 or 0; none if the source is silent", 1.0),
}


def measure_table(verdicts: Sequence[Verdict], seed: int = 0) -> MeasureTable:
    """Return the mean of each measure over the items of a category, and "overall" over all items.

    Intervals are of a bootstrap over items. Items to which a measure does not apply are left out of its mean,
    which is None if there are no others.
    """
    items = {v.item: v for v in verdicts if v.protocol == MEASURES and v.dropped is None}
    categories = dict.fromkeys(v.category for v in items.values())
    rng = np.random.default_rng(seed)
    return {
        name: {
            measure: _estimate(
                [v.measures[measure] for v in items.values() if name in (v.category, "overall")], rng
            )
            for measure in DEFINITIONS
        }
        for name in (*categories, "overall")
    }


def _estimate(values: Sequence[float | None], rng: np.random.Generator) -> Estimate | None:
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    return estimate_of(float(known.mean()), resampled_means(known[:, None], rng)[:, 0])
