"""`rvedit prepare`: a training set as its authors publish it becomes a manifest of triplets."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

from rvedit.datasets.probe import LEVELS, Level, Measurement, PairRule, probe_job
from rvedit.datasets.ray_jobs import run_on_ray
from rvedit.datasets.sources import SOURCES, BadRow, Row, Source
from rvedit.datasets.sources.base import row_id
from rvedit.datasets.sources.finder import Clip, Finder, archives_beside, stat_clip
from rvedit.datasets.stratify import rank, stratum_of
from rvedit.io.errors import UserError
from rvedit.io.manifest import (
    Failure,
    failures_path,
    prepare_folder,
    read_manifest,
    relative_root,
    write_failures,
    write_manifest,
)
from rvedit.io.pool import Journal, run_in_pool
from rvedit.io.records import Category, Triplet

_OURS = [category.value for category in Category]


@dataclass(frozen=True)
class DatasetConfig:
    """Which triplets of a training set are wanted, and how closely their clips are looked at."""

    dataset: str
    folders: tuple[Path, ...]
    """Hold metadata, clips or both."""
    out: Path
    categories: tuple[str, ...] = ()
    """Ours or the set's own words; all by default."""
    min_frames: int = 81
    """Frames that both clips must have; 81 is what the paper trains on."""
    level: Level = "decode"
    limit: int | None = None
    """Pairs per category to probe: the ones that a mix with the same seed draws first."""
    seed: int = 0
    workers: int | None = None
    ray: str | None = None
    """A Ray cluster's address, `auto`, or `local` for a new one here."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UserError(f"--probe {self.level}: choose one of {', '.join(LEVELS)}")
        for name in ("min_frames", "limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give at least 1")
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder: give the one that the data set was downloaded to")

    @property
    def source(self) -> Source:
        """The reader."""
        return SOURCES[self.dataset]

    @property
    def manifest(self) -> Path:
        """Where the manifest goes."""
        return self.out / "manifest.parquet"


@dataclass
class Survey:
    """What the metadata say and which clips are there; nothing is probed or written yet."""

    config: DatasetConfig
    origins: list[tuple[str, int]] = field(default_factory=list)
    """For each candidate its metadata file and row."""
    candidates: list[Triplet] = field(default_factory=list)
    """Rows with both clips on the disk; sizes and lengths are 0."""
    clips: dict[str, Clip] = field(default_factory=dict)
    """Each file once, by its path as the manifest has it."""
    failures: list[Failure] = field(default_factory=list)
    read: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by the set's own word and ours, before any choice."""
    archives: list[str] = field(default_factory=list)
    """Archives that lie where clips are missing, with the command to extract each."""
    measured: dict[str, Measurement] = field(default_factory=dict)

    @property
    def clip_bytes(self) -> int:
        """Size of all clips, which stay where they are."""
        return sum(clip.size for clip in self.clips.values())

    @property
    def output_bytes(self) -> int:
        """Estimate of what is written: parquet and JSONL, and the journal of probes."""
        lines = sum(len(json.dumps(dataclasses.asdict(row))) for row in self.candidates[:1000])
        per_row = lines / max(1, min(1000, len(self.candidates)))
        return int(1.5 * per_row * len(self.candidates)) + 250 * len(self.clips) + 300 * len(self.failures)


@dataclass(frozen=True)
class Report:
    """What became of a data set's rows."""

    manifest: Path
    count: int
    categories: list[dict[str, Any]]
    """Per kind of edit: word, category, and rows read, chosen, failed and usable."""
    reasons: dict[str, int]
    archives: list[str]


def prepare_dataset(config: DatasetConfig) -> Report:
    """Read, probe and write in one go."""
    survey = survey_dataset(config)
    for _ in measure_clips(survey):
        pass
    return write_dataset(survey)


def survey_dataset(config: DatasetConfig) -> Survey:
    """Read the metadata and look the clips up; writes nothing.

    Raises UserError where there is no metadata, no row of the categories asked for, or not one clip.
    """
    survey = Survey(config)
    missing: list[tuple[str, Sequence[Path]]] = []
    folders = [folder.absolute() for folder in config.folders]
    finder, seen = Finder(folders), dict[str, tuple[Path, int]]()
    for row, bases in _rows(config, folders):
        fail = _failing(survey, row)
        if isinstance(row, BadRow):
            fail("unreadable row", row.why)
            continue
        ours = row.category.value if row.category else None
        survey.read[row.word, ours or ""] += 1
        if config.categories and not {row.word, ours} & set(config.categories):
            continue
        if not row.instruction.strip():
            fail("empty instruction", "")
            continue
        identity = row_id(row, config.source.identity)
        first = seen.setdefault(identity, (row.file, row.number))
        if first != (row.file, row.number):
            fail("repeated row", f"the same as {first[0]}, row {first[1]}", identity)
            continue
        places = {side: finder.find(path, bases) for side, path in row.clips.items()}
        problem = _problem(places)
        if problem:
            fail(*problem, identity)
            missing += [(row.clips[side], bases) for side, found in places.items() if not found]
            continue
        source, target = (found[0] for found in places.values())
        survey.origins.append((str(row.file), row.number))
        survey.candidates.append(_candidate(config, row, identity, source, target, folders))
    survey.archives = archives_beside(missing, config.source.extracted_in)
    _check_something_is_there(survey, bool(missing))
    _limit(survey)
    _stat(survey)
    return survey


def _problem(places: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """Why the places found for both sides will not do: a reason and its details."""
    for side, found in places.items():
        if not found:
            return f"missing {side}", "not in the folders given"
        if len(found) > 1:
            return f"ambiguous {side}", f"both {found[0]} and {found[1]}"
    return None


def _rows(config: DatasetConfig, folders: Sequence[Path]) -> Iterator[tuple[Row | BadRow, tuple[Path, ...]]]:
    """All rows with the folders that their clips may lie in."""
    others, is_known = [], False
    for folder in folders:
        for file in config.source.metadata(folder):
            reading = config.source.read(folder, file)
            if reading is None:
                others.append(file.name)
                continue
            is_known = True
            bases = tuple(dict.fromkeys([*reading.folders, *folders]))
            for row in reading.rows:
                yield row, bases
    if not is_known:
        seen = f" (not so: {', '.join(others[:3])})" if others else ""
        where = ", ".join(map(str, config.folders))
        raise UserError(f"{where}: no metadata of {config.dataset}: expected {config.source.expected}{seen}")


def _failing(survey: Survey, row: Row | BadRow) -> Callable[..., None]:
    """How to note that this row fails: with a reason, its details, and the row's id once it has one."""

    def fail(reason: str, detail: str, identity: str | None = None) -> None:
        known = {}
        if isinstance(row, Row):
            known = {"dataset_category": row.word, "source": row.source, "target": row.target}
        failure = Failure(survey.config.dataset, reason, detail, str(row.file), row.number, identity, **known)
        survey.failures.append(failure)

    return fail


def _candidate(
    config: DatasetConfig, row: Row, identity: str, source: str, target: str, folders: Sequence[Path]
) -> Triplet:
    inside = [folder for folder in folders if target.startswith(f"{folder}{os.sep}")]
    root = max(inside, key=lambda folder: len(str(folder)), default=Path(target).parent)
    return Triplet(
        id=identity,
        dataset=config.dataset,
        root=relative_root(root, config.out),
        source=_below(root, source),
        target=_below(root, target),
        instruction=row.instruction.strip(),
        category=row.category,
        dataset_category=row.word,
        num_frames=0,
        fps=0.0,
        width=0,
        height=0,
        licence=config.source.licence,
    )


def _below(root: Path, path: str) -> str:
    """The path from `root`, with forward slashes."""
    start = f"{root}{os.sep}"
    return (path[len(start) :] if path.startswith(start) else os.path.relpath(path, root)).replace(
        os.sep, "/"
    )


def _check_something_is_there(survey: Survey, is_missing: bool) -> None:
    config, words = survey.config, {word for word, _ in survey.read}
    for category in config.categories:
        if category not in {*_OURS, *config.source.words, *words}:
            known = dict.fromkeys([*_OURS, *config.source.words, *sorted(words)])
            raise UserError(
                f"--category {category}: {config.dataset} has no such kind: choose from {', '.join(known)}"
            )
    if survey.candidates:
        return
    where = ", ".join(map(str, config.folders))
    if survey.archives:
        raise UserError(
            f"{where}: no pair of clips is there, but archives that are not extracted: {survey.archives[0]}"
            + (f" (and {len(survey.archives) - 1} more)" if len(survey.archives) > 1 else "")
        )
    if is_missing:
        first = next(failure for failure in survey.failures if failure.reason.startswith("missing"))
        path = first.source if first.reason == "missing source" else first.target
        raise UserError(
            f"{where}: no pair of clips is there, such as {path}: give the folder that they are in"
        )
    asked = ", ".join(config.categories)
    if asked:
        raise UserError(f"--category {asked}: no row: {where} has {', '.join(sorted(words)) or 'no rows'}")
    problems = ", ".join(sorted({failure.reason for failure in survey.failures})) or "it is empty"
    raise UserError(f"{where}: the metadata have no usable row: {problems}")


def _limit(survey: Survey) -> None:
    """Keep so many candidates per category as the order says, by their rank in the draw."""
    limit, seed = survey.config.limit, survey.config.seed
    if limit is None:
        return
    strata: dict[str | None, list[int]] = {}
    for index, triplet in enumerate(survey.candidates):
        strata.setdefault(stratum_of(triplet), []).append(index)
    kept = sorted(
        index
        for indices in strata.values()
        for index in nsmallest(limit, indices, key=lambda i: rank(seed, survey.candidates[i].key))
    )
    survey.candidates = [survey.candidates[index] for index in kept]
    survey.origins = [survey.origins[index] for index in kept]


def _stat(survey: Survey) -> None:
    """Note size and stamp of every clip."""
    out = os.path.realpath(survey.config.out)
    for triplet in survey.candidates:
        for side in ("source", "target"):
            name = _name(triplet, side)
            if name not in survey.clips:
                path = os.path.normpath(os.path.join(out, name))
                survey.clips[name] = stat_clip(path) or Clip(path, 0, "none")


def _name(triplet: Triplet, side: str) -> str:
    """A clip's path from the manifest's folder."""
    return os.path.normpath(os.path.join(triplet.root, getattr(triplet, side)))


def measure_clips(survey: Survey) -> Iterator[int]:
    """Probe every clip that the journal does not have yet, yielding how many are done (of `survey.clips`)."""
    config = survey.config
    _check_out(config)
    journal = Journal(config.out / "manifest.probes.jsonl")
    names = {f"{name}|{clip.stamp}": name for name, clip in survey.clips.items()}
    jobs = []
    for identity, name in names.items():
        entry = journal.done.get(identity)
        if entry and (entry["error"] or LEVELS.index(entry["level"]) >= LEVELS.index(config.level)):
            survey.measured[name] = _measurement(entry)
        else:
            jobs.append({"id": identity, "path": survey.clips[name].path, "level": config.level})
    yield len(survey.measured)
    if config.ray:
        results = iter(run_on_ray(probe_job, jobs, config.ray, config.out / ".ray"))
    else:
        results = run_in_pool(probe_job, jobs, config.workers)
    for entry in journal.record(results):
        survey.measured[names[entry["id"]]] = _measurement(entry)
        yield len(survey.measured)


def _check_out(config: DatasetConfig) -> None:
    prepare_folder(config.out)
    if config.manifest.is_file():
        there = {triplet.dataset for triplet in read_manifest(config.manifest)}
        if there != {config.dataset}:
            others = ", ".join(sorted(there))
            raise UserError(f"{config.manifest}: is a manifest of {others}: choose another --out")


def _measurement(entry: dict[str, Any]) -> Measurement:
    return Measurement(**{item.name: entry[item.name] for item in dataclasses.fields(Measurement)})


def write_dataset(survey: Survey) -> Report:
    """Judge the pairs, and write the manifest and its failures.

    Raises UserError, after writing the failures, where not one pair can be used.
    """
    config, rule = survey.config, PairRule(survey.config.min_frames)
    usable: list[Triplet] = []
    failures = list(survey.failures)
    chosen: Counter[tuple[str, str]] = Counter()
    for triplet, (file, number) in zip(survey.candidates, survey.origins, strict=True):
        chosen[_kind(triplet)] += 1
        pair = rule.judge(*(survey.measured[_name(triplet, side)] for side in ("source", "target")))
        if isinstance(pair, Measurement):
            usable.append(
                dataclasses.replace(
                    triplet, num_frames=pair.num_frames, fps=pair.fps, width=pair.width, height=pair.height
                )
            )
            continue
        reason, detail = pair
        known = {
            "dataset_category": triplet.dataset_category,
            "source": triplet.source,
            "target": triplet.target,
        }
        failures.append(Failure(config.dataset, reason, detail, file, number, triplet.id, **known))
    write_failures(config.manifest, failures)
    reasons = Counter(failure.reason for failure in failures)
    if not usable:
        most = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
        raise UserError(f"no pair can be used ({most}): see {failures_path(config.manifest)}")
    write_manifest(config.manifest, usable)
    counts = Counter(map(_kind, usable))
    rows = [
        {
            "word": word,
            "category": ours or None,
            "read": read,
            "probed": chosen[word, ours],
            "usable": counts[word, ours],
        }
        for (word, ours), read in sorted(survey.read.items())
    ]
    return Report(config.manifest, len(usable), rows, dict(reasons.most_common()), survey.archives)


def _kind(triplet: Triplet) -> tuple[str, str]:
    return triplet.dataset_category, triplet.category.value if triplet.category else ""
