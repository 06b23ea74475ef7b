"""Names of version 0.1 in saved pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def from_version_0_1(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a model_index.json with the current names of modules and settings."""
    renamed = {"noise_share": "shared_noise_ratio"}
    translated = {}
    for name, value in index.items():
        if isinstance(value, list | tuple) and isinstance(value[0], str):
            module = value[0].replace("rvedit.model.", "rvedit.models.")
            value = [module, *value[1:]]
        translated[renamed.get(name, name)] = value
    return translated
