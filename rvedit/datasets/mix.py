"""`rvedit prepare mix`: the stratified sample of Appendix D.1 as one manifest."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from rvedit.datasets.stratify import MixRecipe, Stratum, sample_mix
from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, read_manifest, relative_root, write_json, write_manifest
from rvedit.io.records import Triplet


@dataclasses.dataclass(frozen=True)
class Mix:
    """What was drawn, and from what."""

    recipe: MixRecipe
    triplets: list[Triplet]
    """Roots are relative to `folder`."""
    strata: list[Stratum]
    folder: Path

    def summary(self) -> dict[str, Any]:
        """All numbers, as mix.json has them."""
        strata = [{**dataclasses.asdict(stratum), "short": stratum.short} for stratum in self.strata]
        return {
            "manifest": str(self.folder / "manifest.parquet"),
            "count": len(self.triplets),
            "output_bytes": self.output_bytes,
            "recipe": self.recipe.model_dump(mode="json"),
            "strata": strata,
        }

    @property
    def output_bytes(self) -> int:
        """Estimate of what is written: parquet and JSONL."""
        return int(1.5 * sum(len(json.dumps(dataclasses.asdict(row))) for row in self.triplets))


def draw_mix(recipe: MixRecipe, folder: Path) -> Mix:
    """Draw the sample for a manifest in `folder`; writes nothing.

    Raises UserError for a manifest that is missing or is the one to be written, and for an unknown category.
    """
    sources = []
    for name in recipe.sources:
        path = Path(name)
        path = path / "manifest.parquet" if path.is_dir() else path
        if os.path.abspath(path.parent) == os.path.abspath(folder):
            raise UserError(
                f"sources: {name} lies in {folder}, the folder to be written: choose another --out"
            )
        rooted = [_from(path.parent, triplet, folder) for triplet in read_manifest(path)]
        sources.append(rooted)
    triplets, strata = sample_mix(sources, recipe)
    if not triplets:
        raise UserError(f"no triplet of {', '.join(recipe.categories)} in {', '.join(recipe.sources)}")
    return Mix(recipe, triplets, strata, folder)


def write_mix(mix: Mix) -> None:
    """Write the manifest and mix.json."""
    prepare_folder(mix.folder)
    write_manifest(mix.folder / "manifest.parquet", mix.triplets)
    write_json(mix.folder / "mix.json", mix.summary())


def _from(there: Path, triplet: Triplet, here: Path) -> Triplet:
    return dataclasses.replace(
        triplet, root=relative_root(os.path.join(os.path.realpath(there), triplet.root), here)
    )
