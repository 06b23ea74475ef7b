"""RVEDiT: instruction-based video editing that reasons inside its backbone.

Names are imported on first use, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0.dev0"

NANO = Path(__file__).parent / "nano"
"""The folder of the embedded weights, for `RVEDiTPipeline.from_pretrained`."""
_HOMES = {
    "EditConfig": "rvedit.editing.config",
    "EditTokenConnector": "rvedit.models.edit_tokens",
    "Preview": "rvedit.editing.preview",
    "RVEDiTPipeline": "rvedit.pipelines.pipeline_rvedit",
    "RoutedWanTransformer3DModel": "rvedit.models.transformer",
    "edit_video": "rvedit.editing.long_video",
    "find_region": "rvedit.editing.regions",
    "load_pipeline": "rvedit.pipelines.loading",
}
__all__ = ["NANO", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module rvedit has no attribute {name}")
