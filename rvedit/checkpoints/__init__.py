"""Editors built from configs, read from folders and files, and written to folders.

`load_pipeline` knows what it is given: our own folders, Wan2.2-TI2V-5B as diffusers or as Wan has it, and
Kiwi-Edit as published or as trained.
"""

from rvedit.checkpoints.files import check_components, pipeline_kind, with_weights
from rvedit.checkpoints.find import find_checkpoint, is_hub_id
from rvedit.checkpoints.load import load_pipeline
from rvedit.checkpoints.own import MODULE_CLASSES, build_nano, load_module, with_vae
from rvedit.checkpoints.wan import add_text_encoder

__all__ = [
    "MODULE_CLASSES",
    "add_text_encoder",
    "build_nano",
    "check_components",
    "find_checkpoint",
    "is_hub_id",
    "load_module",
    "load_pipeline",
    "pipeline_kind",
    "with_vae",
    "with_weights",
]
