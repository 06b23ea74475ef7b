"""RVEDiT: instruction-based video editing that reasons inside its backbone.

Names are imported on first use, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "RVEDiTPipeline": "rvedit.pipeline",
    "EditSettings": "rvedit.records",
    "load_editor": "rvedit.editors",
    "RoutedWanTransformer3DModel": "rvedit.model.transformer",
    "EditTokenConnector": "rvedit.model.edit_tokens",
}
__all__ = [
    "EditSettings",
    "EditTokenConnector",
    "RVEDiTPipeline",
    "RoutedWanTransformer3DModel",
    "load_editor",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module rvedit has no attribute {name}")
