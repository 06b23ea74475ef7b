"""What a checkpoint was made from, kept beside its weights, and the model card that says so."""

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
# As their owners state them; whoever publishes what is made from them is bound by all.
PLAYGROUND = "the playground, drawn by rvedit"
LICENCES = {
    "nano": "Apache-2.0",
    PLAYGROUND: "Apache-2.0",
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
    """Where weights come from."""

    base: tuple[str, ...] = ()
    """The weights it began with."""
    data: tuple[str, ...] = ()
    """What it was trained on."""
    recipe: Mapping[str, Any] | None = None
    """Of the last training."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """What judges said: by judge, the table in the summary of `rvedit judge`."""

    def write(self, folder: Path, name: str, facts: Mapping[str, Any]) -> None:
        """Leave the record and the card in a checkpoint's folder; of absolute paths the names alone."""
        shown = replace(self, recipe=_names_alone(self.recipe))
        record = json.dumps(asdict(shown), indent=2, ensure_ascii=False, default=str)
        (folder / FILE).write_text(record + "\n", encoding="utf-8")
        (folder / CARD).write_text(shown.card(name, facts), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Provenance:
        """The record; an empty one where there is none. Raises UserError for one that cannot be read."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(values["base"]), tuple(values["data"]), values["recipe"], values["scores"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"{path}: cannot be read ({type(error).__name__}): delete it, or the folder"
            ) from None

    def with_scores(self, summary: Path) -> Provenance:
        """Also what `rvedit judge` found: the `judge/summary.json` of the edits' folder."""
        judges = json.loads(summary.read_text(encoding="utf-8"))["judges"]
        return replace(self, scores={name: {"table": found["table"]} for name, found in judges.items()})

    def card(self, name: str, facts: Mapping[str, Any]) -> str:
        """A model card: base weights, licences, recipe, scores."""
        sources = [*self.base, *self.data]
        free = sources and all("Apache" in LICENCES.get(source, "") for source in sources)
        header = {
            "library_name": "rvedit",
            "tags": ["video-editing", "diffusion", "rvedit"],
            "license": "apache-2.0" if free else "other",
            "base_model": [source for source in self.base if "/" in source],
        }
        shown = yaml.safe_dump({key: value for key, value in header.items() if value}, sort_keys=False)
        lines = ["---", shown.strip(), "---", "", *_INTRODUCTION.format(name=name).splitlines(), ""]
        lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items()), ""]
        if sources:
            lines += ["## Made from", "", "| | licence |", "|---|---|"]
            lines += [f"| {source} | {LICENCES.get(source, 'see there')} |" for source in sources]
            lines += [""]
        if self.recipe:
            recipe = yaml.safe_dump(dict(self.recipe), sort_keys=False)
            lines += ["## Recipe", "", "```yaml", recipe.strip(), "```", ""]
        if self.scores:
            lines += ["## Scores", "", "| judge | category | IC | CF | VQ | mean |", "|---" * 6 + "|"]
            lines += [*_score_rows(self.scores), ""]
        return "\n".join(lines)


def _names_alone(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _names_alone(value) for key, value in values.items()}
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
