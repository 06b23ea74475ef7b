"""The stratified sample of Appendix D.1: so many triplets per category and data set.

What is drawn is a pure function of the seed and the triplets' keys: a triplet's rank is a hash of both,
and the lowest ranks of each stratum are taken. So the order of rows does not matter, and a larger draw
holds the smaller one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rvedit.io.errors import UserError
from rvedit.io.records import Category, Triplet


class MixRecipe(BaseModel):
    """Which triplets are drawn from which manifests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[str, ...] = Field(
        min_length=1, description="manifests, or their folders, relative to where the command is run"
    )
    per_category: int = Field(10_000, gt=0, description="triplets per category and data set, at most")
    categories: tuple[str, ...] = Field(
        tuple(category.value for category in Category),
        min_length=1,
        description="ours, or a data set's own words such as background_change",
    )
    seed: int = Field(0, description="of the draw")


@dataclass(frozen=True)
class Stratum:
    """One category of one data set: triplets that there were, that were left out as duplicates, and taken."""

    dataset: str
    category: str
    available: int
    duplicates: int
    taken: int
    wanted: int

    @property
    def short(self) -> int:
        """How many are missing from what was wanted."""
        return self.wanted - self.taken


def load_mix(path: Path) -> MixRecipe:
    """Read a recipe for a mix; raises UserError with the file, the key and what is allowed."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe: give a YAML file, such as recipes/data.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a YAML file: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not a {type(values).__name__}")
    try:
        return MixRecipe.model_validate(values)
    except ValidationError as error:
        # A misspelt key is also a missing one: the misspelling is what to tell.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(MixRecipe.model_fields)
            raise UserError(f"{path}: unknown key {key}: choose one of {known}") from None
        if first["type"] == "missing":
            raise UserError(f"{path}: {key} is missing: add it") from None
        problem = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise UserError(f"{path}: {key} is {first['input']!r}: {problem}") from None


def rank(seed: int, key: str) -> bytes:
    """Where a triplet stands in its stratum: the lowest are drawn first."""
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()


def stratum_of(triplet: Triplet, categories: Sequence[str] | None = None) -> str | None:
    """The category that a triplet counts for: its data set's own word where that is asked for, else ours.

    Without `categories` every triplet has one; with them, none where neither is asked for.
    """
    ours = triplet.category.value if triplet.category else None
    if categories is None:
        return ours or triplet.dataset_category
    if triplet.dataset_category in categories:
        return triplet.dataset_category
    return ours if ours in categories else None


def sample_mix(
    sources: Iterable[Sequence[Triplet]], recipe: MixRecipe
) -> tuple[list[Triplet], list[Stratum]]:
    """Draw the sample from manifests in the recipe's order; their roots are relative to one folder.

    A duplicate is a row whose target file another row has, or whose source file and instruction (but for
    case and blanks). Of a data set's duplicates the lowest rank is kept; of two data sets' the one that
    the recipe names first keeps it, so that a data set added at the end changes nothing before it.

    Raises UserError for a category that no manifest has.
    """
    by_dataset: dict[str, list[Triplet]] = {}
    words: set[str] = {category.value for category in Category}
    for triplets in sources:
        found: dict[str, list[Triplet]] = {}
        for triplet in triplets:
            words.add(triplet.dataset_category)
            if stratum_of(triplet, recipe.categories):
                found.setdefault(triplet.dataset, []).append(triplet)
            else:
                by_dataset.setdefault(triplet.dataset, [])
        for name in sorted(found):
            by_dataset.setdefault(name, []).extend(found[name])
    for category in recipe.categories:
        if category not in words:
            raise UserError(
                f"categories: no manifest has {category!r}: choose from {', '.join(sorted(words))}"
            )
    drawn: list[Triplet] = []
    strata: list[Stratum] = []
    seen: set[tuple[str, ...]] = set()
    for dataset, triplets in by_dataset.items():
        taken, counts = _draw_from(dataset, triplets, recipe, seen)
        drawn += taken
        strata += counts
    return sorted(drawn, key=lambda triplet: triplet.key), strata


def _draw_from(
    dataset: str, triplets: Sequence[Triplet], recipe: MixRecipe, seen: set[tuple[str, ...]]
) -> tuple[list[Triplet], list[Stratum]]:
    """Draw from one data set; adds the marks of all but its duplicates to `seen`, drawn or not."""
    pools: dict[str, list[Triplet]] = {category: [] for category in recipe.categories}
    available, duplicates = dict.fromkeys(pools, 0), dict.fromkeys(pools, 0)
    for triplet in sorted(triplets, key=lambda row: (rank(recipe.seed, row.key), row.target, row.source)):
        category = stratum_of(triplet, recipe.categories)
        assert category is not None
        available[category] += 1
        marks = _marks(triplet)
        if seen.isdisjoint(marks):
            pools[category].append(triplet)
            seen |= marks
        else:
            duplicates[category] += 1
    ours = {category.value for category in Category}
    strata = []
    for category, pool in pools.items():
        del pool[recipe.per_category :]
        if available[category] or category in ours:  # other sets do not fall short of a set's own words
            counts = (available[category], duplicates[category], len(pool), recipe.per_category)
            strata.append(Stratum(dataset, category, *counts))
    return [triplet for pool in pools.values() for triplet in pool], strata


def _marks(triplet: Triplet) -> set[tuple[str, ...]]:
    """What a duplicate of the triplet has in common with it."""
    source, target = (
        os.path.normpath(os.path.join(triplet.root, side)) for side in (triplet.source, triplet.target)
    )
    words = " ".join(triplet.instruction.lower().split())
    return {("target", target), ("edit", source, words), ("key", triplet.key)}
