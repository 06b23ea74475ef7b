"""Convert a published training dataset to a manifest of triplets: `rvedit prepare`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvedit.datasets.probe import LEVELS, Measurement, judge_mask, judge_pair, probe_job
from rvedit.datasets.reference_images import EXTRACTED, extract_pictures, why_unreadable
from rvedit.datasets.survey import (
    DatasetConfig,
    Survey,
    category_counts,
    clip_names,
    relative_path,
    survey_dataset,
)
from rvedit.io.errors import UserError
from rvedit.io.journal import EntryLog
from rvedit.io.manifest import (
    Failure,
    clip_path,
    failures_path,
    prepare_folder,
    read_manifest,
    write_failures,
    write_manifest,
)
from rvedit.io.pool import run_in_pool
from rvedit.io.ray_jobs import run_on_ray
from rvedit.io.records import Triplet


@dataclass(frozen=True)
class Report:
    """Outcome of a dataset's rows."""

    manifest: Path
    count: int
    categories: list[dict[str, Any]]
    """For each category: its names, and the numbers of rows read, probed and usable."""
    reasons: dict[str, int]
    """Number of failed rows by reason."""
    archives: list[str]


def prepare_dataset(config: DatasetConfig) -> Report:
    """Survey, probe and write a dataset."""
    survey = survey_dataset(config)
    for _ in measure_clips(survey):
        pass
    return write_dataset(survey)


def measure_clips(survey: Survey) -> Iterator[int]:
    """Probe every clip that is not in the journal; yield how many of `survey.clips` are done."""
    config = survey.config
    prepare_folder(config.out)
    if config.manifest.is_file():
        datasets = {triplet.dataset for triplet in read_manifest(config.manifest)}
        if datasets != {config.dataset}:
            names = ", ".join(sorted(datasets))
            raise UserError(f"{config.manifest}: is a manifest of {names}: choose another `out`")
    journal = EntryLog(config.out / "manifest.probes.jsonl", "id")
    ids = {name: f"{name}|{clip.stamp}" for name, clip in survey.clips.items()}
    jobs = []
    for name, identity in ids.items():
        entry = journal.entry(identity)
        if not entry or not (entry["error"] or LEVELS.index(entry["level"]) >= LEVELS.index(config.level)):
            jobs.append({"id": identity, "path": survey.clips[name].path, "level": config.level})
    num_done = len(ids) - len(jobs)
    yield num_done
    if config.ray:
        results = iter(run_on_ray(probe_job, jobs, config.ray, config.out / ".ray"))
    else:
        results = run_in_pool(probe_job, jobs, config.workers)
    try:
        for count, entry in enumerate(results, start=num_done + 1):
            journal.append(entry)
            yield count
    finally:
        journal.close()
    fields = [field.name for field in dataclasses.fields(Measurement)]
    for name, identity in ids.items():
        entry = journal.entry(identity)
        survey.measurements[name] = Measurement(**{field: entry[field] for field in fields})


def write_dataset(survey: Survey) -> Report:
    """Check the pairs, and write the manifest and its failures.

    Raises UserError, after writing the failures, if no pair can be used.
    """
    config = survey.config
    usable: list[Triplet] = []
    failures = list(survey.failures)
    for triplet in survey.candidates:
        source, target, *masks = (survey.measurements[name] for name in clip_names(triplet))
        pair = judge_pair(source, target, config.min_frames, config.source.same_rate)
        if isinstance(pair, Measurement) and masks:
            pair = judge_mask(masks[0], pair) or pair
        if isinstance(pair, Measurement):
            measured = {name: getattr(pair, name) for name in ("num_frames", "fps", "width", "height")}
            usable.append(dataclasses.replace(triplet, **measured))
            continue
        file, number = survey.origins[triplet.id]
        fields = (triplet.id, triplet.dataset_category, triplet.source, triplet.target)
        failures.append(Failure(config.dataset, *pair, str(file), number, *fields))
    usable, unreadable = _with_pictures(survey, usable)
    failures += unreadable
    write_failures(config.manifest, failures)
    reasons = Counter(failure.reason for failure in failures)
    if not usable:
        common = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
        raise UserError(f"no pair can be used ({common}): see {failures_path(config.manifest)}")
    write_manifest(config.manifest, usable)
    rows = category_counts(survey, probed=survey.candidates, usable=usable)
    return Report(config.manifest, len(usable), rows, dict(reasons.most_common()), survey.archives)


def _with_pictures(survey: Survey, usable: list[Triplet]) -> tuple[list[Triplet], list[Failure]]:
    """Extract embedded reference images; return the triplets whose images can be read, and the others."""
    config, kept, failures = survey.config, [], []
    column = config.source.embedded_column or ""
    embedded = {t.id: survey.origins[t.id] for t in usable if t.id in survey.embedded}
    extracted = extract_pictures(embedded, column, config.out / EXTRACTED)
    for triplet in usable:
        reason = None
        if triplet.id in embedded:
            picture = extracted[triplet.id]
            if isinstance(picture, Path):
                root = (config.out / triplet.root).absolute()
                triplet = dataclasses.replace(
                    triplet, reference_image=relative_path(picture.absolute(), root)
                )
            else:
                reason = picture
        elif triplet.reference_image:
            reason = why_unreadable(clip_path(config.manifest, triplet, "reference_image"))
        if reason is None:
            kept.append(triplet)
            continue
        file, number = survey.origins[triplet.id]
        fields = (triplet.id, triplet.dataset_category, triplet.source, triplet.target)
        failures.append(
            Failure(config.dataset, "unreadable reference image", reason, str(file), number, *fields)
        )
    return kept, failures
