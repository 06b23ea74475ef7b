"""Draw the stratified sample of Appendix D.1 as one manifest: `rvedit prepare mix`.

The sample has a number of triplets per category and dataset, and is a pure function of the seed and the
triplets' keys: a triplet's rank is a hash of both, and the lowest ranks of each stratum are drawn. So the
order of rows does not matter, and a larger sample contains the smaller one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, rank, read_manifest, relative_root, write_json, write_manifest
from rvedit.io.recipes import check_values, read_values
from rvedit.io.records import Category, Triplet


class MixRecipe(BaseModel):
    """Manifests to draw from, and the sizes of the strata."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[str, ...] = Field(
        min_length=1, description="manifests or their folders, relative to the working directory"
    )
    per_category: int = Field(10_000, gt=0, description="maximum number of triplets per category and dataset")
    categories: tuple[str, ...] = Field(
        tuple(category.value for category in Category),
        min_length=1,
        description="the paper's names, or a dataset's own such as background_change",
    )
    seed: int = Field(0, description="seed of the sample")


@dataclass
class Stratum:
    """One category of one dataset, with its numbers of available, duplicate, drawn and requested triplets."""

    dataset: str
    category: str
    available: int = 0
    duplicates: int = 0
    taken: int = 0
    wanted: int = 0

    @property
    def short(self) -> int:
        """Return how many triplets are missing."""
        return self.wanted - self.taken


@dataclass(frozen=True)
class Mix:
    """A drawn sample, with counts per stratum."""

    recipe: MixRecipe
    triplets: list[Triplet]
    """With roots relative to `folder`."""
    strata: list[Stratum]
    folder: Path

    def summary(self) -> dict[str, Any]:
        """Return the contents of mix.json."""
        return {
            "manifest": str(self.folder / "manifest.parquet"),
            "count": len(self.triplets),
            "output_bytes": self.output_bytes,
            "recipe": self.recipe.model_dump(mode="json"),
            "strata": [{**asdict(stratum), "short": stratum.short} for stratum in self.strata],
        }

    @property
    def output_bytes(self) -> int:
        """Return an estimate of the bytes to write: parquet and JSONL."""
        return int(1.5 * sum(len(json.dumps(asdict(row))) for row in self.triplets))


def load_mix(path: Path) -> MixRecipe:
    """Read the recipe of a mix; raises UserError with the file, the key and the allowed values."""
    return check_values(MixRecipe, read_values(path, "recipes/data.yaml"), path)


def draw_mix(recipe: MixRecipe, folder: Path) -> Mix:
    """Draw the sample for a manifest in `folder`; writes nothing.

    Raises UserError for a source that is missing or in `folder`, and for an unknown category.
    """
    sources = []
    for name in recipe.sources:
        base = Path(name) if Path(name).is_dir() else Path(name).parent
        if os.path.abspath(base) == os.path.abspath(folder):
            raise UserError(f"sources: {name} is in {folder}, the folder to be written: choose another `out`")
        base = base.resolve()
        rows = read_manifest(Path(name))
        sources.append([replace(r, root=relative_root(base / r.root, folder)) for r in rows])
    triplets, strata = sample_mix(sources, recipe)
    if not triplets:
        raise UserError(f"no triplet of {', '.join(recipe.categories)} in {', '.join(recipe.sources)}")
    return Mix(recipe, triplets, strata, folder)


def write_mix(mix: Mix) -> None:
    """Write the manifest and mix.json."""
    prepare_folder(mix.folder)
    write_manifest(mix.folder / "manifest.parquet", mix.triplets)
    write_json(mix.folder / "mix.json", mix.summary())


def stratum_of(triplet: Triplet, categories: Sequence[str] | None = None) -> str | None:
    """Return the category that a triplet counts for: the dataset's if in `categories`, else the paper's.

    None if neither is in `categories`; without `categories`, the paper's or else the dataset's.
    """
    category = triplet.category.value if triplet.category else None
    if categories is None:
        return category or triplet.dataset_category
    if triplet.dataset_category in categories:
        return triplet.dataset_category
    return category if category in categories else None


def sample_mix(
    sources: Iterable[Sequence[Triplet]], recipe: MixRecipe
) -> tuple[list[Triplet], list[Stratum]]:
    """Draw the sample from manifests in the recipe's order, with roots relative to one folder.

    Duplicates are rows with the same target file, or the same source file and instruction (ignoring case
    and whitespace). Within a dataset the lowest rank is kept; across datasets the one that the recipe names
    first, so that a dataset added at the end changes nothing before it.

    Raises UserError for a category that no manifest has.
    """
    by_dataset: dict[str, list[Triplet]] = {}
    names: set[str] = set(Category)
    for triplets in sources:
        names |= {triplet.dataset_category for triplet in triplets}
        for triplet in sorted(triplets, key=lambda row: row.dataset):
            by_dataset.setdefault(triplet.dataset, []).append(triplet)
    for category in recipe.categories:
        if category not in names:
            raise UserError(
                f"categories: no manifest has {category!r}: choose from {', '.join(sorted(names))}"
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
    """Draw from one dataset; adds the keys of all rows that are not duplicates to `seen`, drawn or not."""
    drawn = []
    strata = {name: Stratum(dataset, name, wanted=recipe.per_category) for name in recipe.categories}
    for triplet in sorted(triplets, key=lambda row: (rank(recipe.seed, row.key), row.target, row.source)):
        category = stratum_of(triplet, recipe.categories)
        if category is None:
            continue
        stratum, keys = strata[category], _duplicate_keys(triplet)
        stratum.available += 1
        if not seen.isdisjoint(keys):
            stratum.duplicates += 1
            continue
        seen |= keys
        if stratum.short:
            stratum.taken += 1
            drawn.append(triplet)
    # A category of the dataset's own may not exist in others.
    return drawn, [s for s in strata.values() if s.available or s.category in set(Category)]


def _duplicate_keys(triplet: Triplet) -> set[tuple[str, ...]]:
    """Return keys of which a duplicate of the triplet has at least one."""
    source, target = (
        os.path.normpath(os.path.join(triplet.root, side)) for side in (triplet.source, triplet.target)
    )
    instruction = " ".join(triplet.instruction.lower().split())
    return {("target", target), ("edit", source, instruction), ("key", triplet.key)}
