"""Provenance record and model card of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rvedit.io.errors import UserError

FILE, CARD = "provenance.json", "README.md"
WAN, QWEN, KIWI = "Wan-AI/Wan2.2-TI2V-5B", "Qwen/Qwen2.5-VL-3B-Instruct", "Kiwi-Edit"
PLAYGROUND = "the playground, drawn by rvedit"
WORD_SOURCES = ("GloVe 6B, 50 dimensions", "WordNet 3.0", "xkcd's color survey")
"""Sources of the word vectors."""
# As stated by the owners; published derivatives are bound by all of them.
LICENSES = {
    "nano": "Apache-2.0",
    PLAYGROUND: "Apache-2.0",
    WORD_SOURCES[0]: "PDDL-1.0 (public domain)",
    WORD_SOURCES[1]: "WordNet 3.0 license (free for any use, with its notice)",
    WORD_SOURCES[2]: "CC0-1.0 (public domain)",
    WAN: "Apache-2.0",
    QWEN: "Qwen Research License (not for commercial use)",
    KIWI: "MIT (its code; its training data are not for commercial use)",
    "OpenVE-3M": "CC BY-NC 4.0 (not for commercial use)",
    "ReCo-Data": "CC BY-NC-SA 4.0 (not for commercial use)",
    "Ditto-1M": "CC BY-NC-SA 4.0 (not for commercial use)",
}


_INTRODUCTION = """# {name}

An instruction-guided video editor after RVEDiT: *Reasoning to Align: Implicit Reasoning in Diffusion
Transformers for Video Editing*.

```bash
rvedit edit clip.mp4 "replace the dog with a corgi" --model THIS_FOLDER_OR_REPOSITORY
```"""


@dataclass(frozen=True)
class Provenance:
    """The origin of a checkpoint's weights."""

    base: tuple[str, ...] = ()
    """The initial weights."""
    data: tuple[str, ...] = ()
    """The training datasets."""
    recipe: Mapping[str, Any] | None = None
    """The recipe of the last training run."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """By judge: the table in the summary of `rvedit judge`."""

    def write(self, folder: Path, name: str, facts: Mapping[str, Any]) -> None:
        """Write the record and the model card to a checkpoint's folder, with directories of paths removed."""
        public = replace(self, recipe=_strip_directories(self.recipe))
        record = json.dumps(asdict(public), indent=2, ensure_ascii=False, default=str)
        (folder / FILE).write_text(record + "\n", encoding="utf-8")
        (folder / CARD).write_text(public.card(name, facts), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Provenance:
        """Return the record of a folder, empty if it has none. Raises UserError for a damaged record."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(values["base"]), tuple(values["data"]), values["recipe"], values["scores"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"{path}: cannot be read ({type(error).__name__}): delete the file or the folder"
            ) from None

    def with_scores(self, summary: Path) -> Provenance:
        """Return the record with the scores of `rvedit judge`, read from its `judge/summary.json`."""
        judges = json.loads(summary.read_text(encoding="utf-8"))["judges"]
        return replace(self, scores={name: {"table": scores["table"]} for name, scores in judges.items()})

    def card(self, name: str, facts: Mapping[str, Any]) -> str:
        """Return a model card with base weights, licenses, recipe and scores."""
        sources = [*self.base, *self.data]
        bound = [source for source in sources if source not in WORD_SOURCES]
        is_apache = bound and all("Apache" in LICENSES.get(source, "") for source in bound)
        header = {
            "library_name": "rvedit",
            "tags": ["video-editing", "diffusion", "rvedit"],
            "license": "apache-2.0" if is_apache else "other",
            "base_model": [source for source in self.base if "/" in source],
        }
        metadata = yaml.safe_dump({key: value for key, value in header.items() if value}, sort_keys=False)
        lines = ["---", metadata.strip(), "---", "", *_INTRODUCTION.format(name=name).splitlines(), ""]
        lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items()), ""]
        if sources:
            lines += ["## Made from", "", "| | license |", "|---|---|"]
            lines += [*(f"| {source} | {LICENSES.get(source, 'unknown')} |" for source in sources), ""]
        if self.recipe:
            recipe = yaml.safe_dump(dict(self.recipe), sort_keys=False)
            lines += ["## Recipe", "", "```yaml", recipe.strip(), "```", ""]
        if self.scores:
            lines += ["## Scores", "", "| judge | category | IC | CF | VQ | mean |", "|---" * 6 + "|"]
            lines += [*_score_rows(self.scores), ""]
        return "\n".join(lines)


def _strip_directories(values: Any) -> Any:
    """Replace absolute paths by their file names."""
    if isinstance(values, Mapping):
        return {key: _strip_directories(value) for key, value in values.items()}
    is_path = isinstance(values, str) and Path(values).is_absolute()
    return Path(values).name if is_path else values


def _score_rows(judges: Mapping[str, Any]) -> list[str]:
    rows = []
    for judge, summary in judges.items():
        table = summary.get("table") or {}
        for category, row in table.get("categories", {}).items():
            axes = " | ".join(f"{row['axes'][axis]['value']:.2f}" for axis in ("ic", "cf", "vq"))
            rows.append(f"| {judge} | {category} | {axes} | {row['score']['value']:.2f} |")
        if table:
            rows.append(f"| {judge} | Overall | | | | {table['overall']['value']:.2f} |")
    return rows
