"""What is asked for: the settings of one edit, as the page, the API and the command line give them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from rvedit.io.errors import UserError

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
Moment = Annotated[str, StringConstraints(strip_whitespace=True, max_length=40)]

_REMEDIES = {"missing": "give it", "extra_forbidden": "leave it out"}


class EditRequest(BaseModel):
    """Settings of an edit. Names of models and adapters are checked against those that the server offers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instructions: Annotated[tuple[Text, ...], Field(min_length=1, max_length=8)]
    model: str | None = None
    """None is the first that the server offers."""
    lora: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    preserve: bool = False
    detail: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    description: tuple[Text, ...] = ()
    region: Text | None = None
    """Words or a box; a drawn mask is a file of the job."""
    grow: Annotated[int, Field(ge=0, le=10_000)] = 0
    invert_mask: bool = False
    start: Moment | None = None
    stop: Moment | None = None
    fade: Annotated[float, Field(ge=0)] = 0.0

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> EditRequest:
        """Return the request with these values. Raises UserError that names a wrong one and a remedy."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            field, *parts = first["loc"]
            name = ".".join([str(field), *(str(part) for part in parts if isinstance(part, int))])
            value = "" if first["type"] == "missing" else f" {str(first['input'])[:80]}"
            reason = first["msg"][0].lower() + first["msg"][1:]
            remedy = _REMEDIES.get(first["type"], "give another value")
            raise UserError(f"{name}{value}: {reason}: {remedy}") from None


@dataclass(frozen=True)
class EditFiles:
    """The files of an edit; `name` is that of the clip as the user knows it."""

    source: Path
    name: str
    mask: Path | None = None
    reference: Path | None = None


def command_line(request: EditRequest, files: EditFiles) -> str:
    """Return the `rvedit edit` command that does the same, with the names of the files as they are given."""
    positional = [files.name, *request.instructions]
    words = ["rvedit", "edit", *positional]
    options: dict[str, Any] = {
        "--model": None if request.model == "nano" else request.model,
        "--lora": request.lora,
        "--seed": request.seed or None,
        "--steps": request.steps,
        "--guidance": request.guidance,
        "--preserve": request.preserve,
        "--detail": None if request.detail == "auto" else request.detail,
        "--description": request.description,
        "--reference": files.reference and files.reference.name,
        "--mask": files.mask and files.mask.name,
        "--region": request.region,
        "--grow": request.grow or None,
        "--invert-mask": request.invert_mask,
        "--from": request.start,
        "--to": request.stop,
        "--fade": request.fade or None,
    }
    for flag, value in options.items():
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and item is not False:
                words += [flag] if item is True else [flag, str(item)]
    if any(word.startswith("-") for word in positional):
        words = ["rvedit", "edit", *words[2 + len(positional) :], "--", *positional]
    return shlex.join(words)
