"""Read the metadata of a training dataset and find its clips: the first step of `rvedit prepare`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from statistics import fmean
from typing import Any

from rvedit.datasets.mix import stratum_of
from rvedit.datasets.probe import LEVELS, Level, Measurement
from rvedit.datasets.sources import SOURCES, BadRow, Row, Source
from rvedit.datasets.sources.base import row_id
from rvedit.datasets.sources.finder import ClipFile, Finder, find_archives, stat_clip
from rvedit.io.errors import UserError
from rvedit.io.manifest import Failure, rank, relative_root
from rvedit.io.records import Category, Triplet


@dataclass(frozen=True)
class DatasetConfig:
    """Triplets to select from a training dataset, and how to probe their clips."""

    dataset: str
    folders: tuple[Path, ...]
    """Folders with metadata, clips or both."""
    out: Path
    categories: tuple[str, ...] = ()
    """The paper's names or the dataset's own; all by default."""
    min_frames: int = 81
    """Minimum length of both clips; the paper trains on 81 frames."""
    level: Level = "decode"
    limit: int | None = None
    """Maximum number of pairs per category to probe: those that a mix with the same seed draws first."""
    seed: int = 0
    workers: int | None = None
    ray: str | None = None
    """Address of a Ray cluster, "auto", or "local" to start one."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UserError(f"`probe` {self.level}: choose one of {', '.join(LEVELS)}")
        for name in ("min_frames", "limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` {value}: give at least 1")
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder: give the folder of the downloaded dataset")

    @property
    def source(self) -> Source:
        """Return the dataset's reader."""
        return SOURCES[self.dataset]

    @property
    def manifest(self) -> Path:
        """Return the path of the manifest to write."""
        return self.out / "manifest.parquet"


@dataclass
class Survey:
    """Parsed metadata and the clips found; nothing is probed or written yet."""

    config: DatasetConfig
    origins: dict[str, tuple[Path, int]] = field(default_factory=dict)
    """Metadata file and row of each id."""
    candidates: list[Triplet] = field(default_factory=list)
    """Rows with both clips on disk; sizes and lengths are still 0."""
    clips: dict[str, ClipFile] = field(default_factory=dict)
    """Each clip once, by its path relative to the manifest's folder."""
    failures: list[Failure] = field(default_factory=list)
    rows_read: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of rows by the dataset's category and the paper's, before any selection."""
    archives: list[str] = field(default_factory=list)
    """Archives in folders with missing clips, with the command to extract each."""
    measurements: dict[str, Measurement] = field(default_factory=dict)
    embedded: set[str] = field(default_factory=set)
    """Ids of the rows that hold their reference images themselves."""

    @property
    def clip_bytes(self) -> int:
        """Return the size of all clips, which stay where they are."""
        return sum(clip.size for clip in self.clips.values())

    @property
    def output_bytes(self) -> int:
        """Return an estimate of the bytes to write: parquet, JSONL and the journal of probes."""
        per_row = fmean(len(json.dumps(dataclasses.asdict(row))) for row in self.candidates[:1000])
        return int(1.5 * per_row * len(self.candidates)) + 250 * len(self.clips) + 300 * len(self.failures)


def survey_dataset(config: DatasetConfig) -> Survey:
    """Read the metadata and find the clips; writes nothing.

    Raises UserError if there is no metadata, no row of the selected categories, or no pair of clips.
    """
    survey = Survey(config)
    missing: list[tuple[str, Sequence[Path]]] = []
    folders = [folder.absolute() for folder in config.folders]
    finder = Finder(folders)
    for row, bases in _rows(config, folders):
        if isinstance(row, BadRow):
            _add_failure(survey, row, "unreadable row", row.reason)
            continue
        category = row.category.value if row.category else None
        survey.rows_read[row.dataset_category, category or ""] += 1
        if config.categories and not {row.dataset_category, category} & set(config.categories):
            continue
        if not row.instruction.strip():
            _add_failure(survey, row, "empty instruction", "")
            continue
        identity = row_id(row, config.source.id_fields)
        first = survey.origins.setdefault(identity, (row.file, row.number))
        if first != (row.file, row.number):
            _add_failure(survey, row, "repeated row", f"the same as {first[0]}, row {first[1]}", identity)
            continue
        paths = {name: finder.find(path, bases) for name, path in row.files.items()}
        if problem := _problem(paths):
            _add_failure(survey, row, *problem, identity)
            missing += [(row.files[name], bases) for name, found in paths.items() if not found]
            continue
        found = {name: places[0] for name, places in paths.items()}
        survey.candidates.append(_candidate(config, row, identity, found, folders))
        if row.has_embedded_image and not row.reference_image:
            survey.embedded.add(identity)
    survey.archives = find_archives(missing, config.source.extract_to)
    _check_candidates(survey)
    _apply_limit(survey)
    _stat_clips(survey)
    return survey


def _problem(paths: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """Return the reason and details if a file has no path or several, else None."""
    for name, found in paths.items():
        if not found:
            return f"missing {name}", "not in the folders given"
        if len(found) > 1:
            return f"ambiguous {name}", f"both {found[0]} and {found[1]}"
    return None


def _rows(config: DatasetConfig, folders: Sequence[Path]) -> Iterator[tuple[Row | BadRow, list[Path]]]:
    """Yield all rows with the folders to look for their clips in; raises UserError without metadata."""
    rejected, has_metadata = [], False
    for folder in folders:
        for file in config.source.metadata(folder):
            rows = config.source.read(file)
            if rows is None:
                rejected.append(file.name)
                continue
            has_metadata = True
            bases = list(dict.fromkeys([*config.source.clip_folders(folder, file), *folders]))
            for row in rows:
                yield row, bases
    if not has_metadata:
        found = f" (other format: {', '.join(rejected[:3])})" if rejected else ""
        where = ", ".join(map(str, config.folders))
        raise UserError(f"{where}: no metadata of {config.dataset}: expected {config.source.expected}{found}")


def _add_failure(
    survey: Survey, row: Row | BadRow, reason: str, detail: str, identity: str | None = None
) -> None:
    fields = {}
    if isinstance(row, Row):
        fields = {"dataset_category": row.dataset_category, "source": row.source, "target": row.target}
    failure = Failure(survey.config.dataset, reason, detail, str(row.file), row.number, identity, **fields)
    survey.failures.append(failure)


def _candidate(
    config: DatasetConfig, row: Row, identity: str, found: Mapping[str, str], folders: Sequence[Path]
) -> Triplet:
    target, picture, mask = found["target"], found.get("reference image"), found.get("mask")
    inside = [folder for folder in folders if target.startswith(f"{folder}{os.sep}")]
    root = max(inside, key=lambda folder: len(str(folder)), default=Path(target).parent)
    return Triplet(
        id=identity,
        dataset=config.dataset,
        root=relative_root(root, config.out),
        source=relative_path(found["source"], root),
        target=relative_path(target, root),
        instruction=row.instruction.strip(),
        category=row.category,
        dataset_category=row.dataset_category,
        num_frames=0,
        fps=0.0,
        width=0,
        height=0,
        licence=config.source.licence,
        reference_image=relative_path(picture, root) if picture else None,
        mask=relative_path(mask, root) if mask else None,
    )


def relative_path(path: str | Path, root: Path) -> str:
    """Return a path relative to a folder, with forward slashes."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def _check_candidates(survey: Survey) -> None:
    """Raise UserError for an unknown category, or if there are no candidates."""
    config, names = survey.config, sorted({name for name, _ in survey.rows_read})
    known = dict.fromkeys([*Category, *config.source.categories, *names])
    for category in config.categories:
        if category not in known:
            raise UserError(f"`category` {category}: not in {config.dataset}: choose from {', '.join(known)}")
    if survey.candidates:
        return
    where = ", ".join(map(str, config.folders))
    if survey.archives:
        raise UserError(
            f"{where}: no pair of clips found, but archives that are not extracted: {survey.archives[0]}"
            + (f" (and {len(survey.archives) - 1} more)" if len(survey.archives) > 1 else "")
        )
    first = next((failure for failure in survey.failures if failure.reason.startswith("missing")), None)
    if first:
        path = first.source if first.reason == "missing source" else first.target
        raise UserError(f"{where}: no pair of clips found: {path} is missing: add its folder")
    if config.categories:
        selected = ", ".join(config.categories)
        raise UserError(f"`category` {selected}: no row: {where} has {', '.join(names) or 'no rows'}")
    problems = ", ".join(sorted({failure.reason for failure in survey.failures})) or "it is empty"
    detail = next((f" ({failure.detail})" for failure in survey.failures if failure.detail), "")
    raise UserError(f"{where}: the metadata have no usable row: {problems}{detail}")


def _apply_limit(survey: Survey) -> None:
    """Keep at most `limit` candidates per category: those of the lowest rank."""
    limit, seed = survey.config.limit, survey.config.seed
    if limit is None:
        return
    strata: dict[str | None, list[Triplet]] = {}
    for triplet in survey.candidates:
        strata.setdefault(stratum_of(triplet), []).append(triplet)
    lowest = (nsmallest(limit, rows, key=lambda row: rank(seed, row.key)) for rows in strata.values())
    selected = {row.id for rows in lowest for row in rows}
    survey.candidates = [row for row in survey.candidates if row.id in selected]


def _stat_clips(survey: Survey) -> None:
    """Add the size and stamp of every clip to the survey."""
    out = os.path.realpath(survey.config.out)
    for triplet in survey.candidates:
        for name in clip_names(triplet):
            if name not in survey.clips:
                survey.clips[name] = stat_clip(os.path.normpath(os.path.join(out, name)))


def clip_names(triplet: Triplet) -> list[str]:
    """Return the paths of source, target and the mask, if any, relative to the manifest's folder."""
    clips = [triplet.source, triplet.target, *([triplet.mask] if triplet.mask else [])]
    return [os.path.normpath(os.path.join(triplet.root, clip)) for clip in clips]


def category_counts(survey: Survey, **triplets: list[Triplet]) -> list[dict[str, Any]]:
    """Return for each category its names, the number of rows read, and the numbers of the given triplets."""
    counts = {
        name: Counter((row.dataset_category, row.category or "") for row in rows)
        for name, rows in triplets.items()
    }
    return [
        {"word": key[0], "category": key[1] or None, "read": read}
        | {name: count[key] for name, count in counts.items()}
        for key, read in sorted(survey.rows_read.items())
    ]
