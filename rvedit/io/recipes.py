"""Read recipes: YAML files whose keys and values a pydantic model checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rvedit.io.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def read_values(path: Path, example: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file; raises UserError, which suggests the path `example`."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe: give the path of a YAML file, such as {example}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a YAML file: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not a {type(values).__name__}")
    return values


def check_values(kind: type[Model], values: dict[str, Any], path: Path) -> Model:
    """Return the values as a model; raises UserError with the file, the key and the allowed values."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # A misspelled key is also a missing one: report the misspelling.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"] if part != "[key]"]  # pydantic's mark of a wrong key
    key = ".".join(location)
    if first["type"] == "missing":
        raise UserError(f"{path}: {key} is missing: add it")
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {key} is {first['input']!r}: {message[0].lower()}{message[1:]}")
    section: Any = kind
    for part in (name for name in location[:-1] if not name.isdigit()):  # a list index has no section
        annotation = section.model_fields[part].annotation  # a section, or `Section | None`
        section = next((a for a in get_args(annotation) if hasattr(a, "model_fields")), annotation)
    allowed = ", ".join(getattr(section, "model_fields", ()))
    raise UserError(f"{path}: unknown key {key}" + (f": choose one of {allowed}" if allowed else ""))
