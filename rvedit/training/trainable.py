"""The trainable parameters of an editor, for the run and for its dry run."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, LoraModel
from torch import nn

from rvedit.training.loop import freeze
from rvedit.training.recipe_sections import ModelRecipe

PARTS = ("transformer", "connector", "mllm", "text_encoder")
"""The modules of an editor that training may change."""
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of the language tower (section 5)."""


def choose_trained(objective: Any, model: ModelRecipe) -> LoraModel | None:
    """Freeze modules whose tokens no block attends to, those that the recipe freezes, and word vectors.

    With `lora_rank`, also freeze the language tower, add LoRA layers to it and return them. `objective` has
    the modules of `PARTS` as children; the text encoder may be missing.
    """
    transformer = objective.transformer
    children: dict[str, Any] = dict(objective.named_children())
    native = [transformer.visual_embedder, transformer.condition_embedder.text_embedder]
    native += [children["text_encoder"]] if "text_encoder" in children else []
    for module in native:
        module.requires_grad_(transformer.reads_native_tokens)
    absent = set(PARTS) - set(children)
    freeze(objective, [name for name in model.frozen if name.split(".")[0] not in absent])
    if model.word_vectors:
        for name in {"mllm", "text_encoder"} - absent:
            children[name].get_input_embeddings().requires_grad_(False)
    if not model.lora_rank:
        return None
    tower: nn.Module = objective.mllm.model.language_model
    tower.requires_grad_(False)
    config = LoraConfig(r=model.lora_rank, lora_alpha=model.lora_rank, target_modules=list(LORA_TARGETS))
    return LoraModel(tower, config, "default")
