"""Editors built from configs, read from folders and files, and written to folders.

`load_checkpoint` knows what it is given: our own folders, Wan2.2-TI2V-5B as diffusers or as Wan has it, and
Kiwi-Edit as published or as trained.
"""

from rvedit.pipelines.checkpoints.files import check_components, pipeline_kind, with_weights
from rvedit.pipelines.checkpoints.find import find_checkpoint, is_hub_id
from rvedit.pipelines.checkpoints.folder import MODULE_CLASSES, build_nano, load_module, with_vae
from rvedit.pipelines.checkpoints.reading import load_checkpoint
from rvedit.pipelines.checkpoints.wan import add_text_encoder

__all__ = [
    "MODULE_CLASSES",
    "add_text_encoder",
    "build_nano",
    "check_components",
    "find_checkpoint",
    "is_hub_id",
    "load_checkpoint",
    "load_module",
    "pipeline_kind",
    "with_vae",
    "with_weights",
]
