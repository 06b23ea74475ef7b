"""Loading of checkpoints, and building of pipelines with random weights.

`load_checkpoint` detects the format: folders of RVEDiT, Wan2.2-TI2V-5B in diffusers' or Wan's own format, and
Kiwi-Edit as published or as written by its trainer.
"""

from rvedit.pipelines.checkpoints.files import check_components, pipeline_kind, with_weights
from rvedit.pipelines.checkpoints.find import find_checkpoint, find_transformer_file, is_hub_id
from rvedit.pipelines.checkpoints.folder import (
    MODULE_CLASSES,
    add_reference_modules,
    build_from_scratch,
    load_module,
    with_vae,
)
from rvedit.pipelines.checkpoints.reading import load_checkpoint, reads_reference_images
from rvedit.pipelines.checkpoints.wan import add_text_encoder
from rvedit.pipelines.checkpoints.words import use_word_vectors

__all__ = [
    "MODULE_CLASSES",
    "add_reference_modules",
    "add_text_encoder",
    "build_from_scratch",
    "check_components",
    "find_checkpoint",
    "find_transformer_file",
    "is_hub_id",
    "load_checkpoint",
    "load_module",
    "pipeline_kind",
    "reads_reference_images",
    "use_word_vectors",
    "with_vae",
    "with_weights",
]
