"""RVEDiT: instruction-based video editing that reasons inside its backbone.

Names are imported on first use, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

NANO = Path(__file__).parent / "nano"
"""The folder of the embedded weights, for `RVEDiTPipeline.from_pretrained`."""
_HOMES = {
    "RVEDiTPipeline": "rvedit.pipeline",
    "EditSettings": "rvedit.records",
    "load_editor": "rvedit.editors",
    "RoutedWanTransformer3DModel": "rvedit.model.transformer",
    "EditTokenConnector": "rvedit.model.edit_tokens",
}
__all__ = [
    "NANO",
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
