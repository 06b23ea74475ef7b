"""The trainable parameters of an editor, for the run and for its dry run."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import nn

from rvedit.compat import computes_bf16
from rvedit.io.errors import UserError
from rvedit.models.quantized_linear import store_weights
from rvedit.pipelines.memory import quantize, transformer_stacks
from rvedit.training.loop import freeze
from rvedit.training.recipe_sections import ModelRecipe

PARTS = ("transformer", "connector", "mllm", "text_encoder")
"""The modules of an editor that training may change."""
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of the language tower (section 5)."""


ADAPTER = "default"
"""Name of the adapter of the transformer's LoRA weights."""


def choose_trained(objective: Any, model: ModelRecipe, seed: int = 0) -> LoraModel | None:
    """Freeze modules whose tokens no block attends to, those that the recipe freezes, and word vectors.

    With `lora_rank`, also freeze the language tower, add LoRA layers to it and return them. With
    `transformer_lora_rank`, add LoRA layers to the transformer and freeze all else. `objective` has the
    modules of `PARTS` as children; the text encoder may be missing.
    """
    torch.manual_seed(seed)  # of initial LoRA weights
    transformer = objective.transformer
    if model.transformer_lora_rank:
        objective.requires_grad_(False)
        alpha = model.transformer_lora_alpha or model.transformer_lora_rank
        targets = list(model.transformer_lora_targets)
        config = LoraConfig(r=model.transformer_lora_rank, lora_alpha=alpha, target_modules=targets)
        try:
            transformer.add_adapter(config, ADAPTER)
        except ValueError:  # peft's, if no layer has such a name
            block = transformer.blocks[0]
            layers = [name for name, part in block.named_modules() if isinstance(part, nn.Linear)]
            raise UserError(
                f"model.transformer_lora_targets: {', '.join(targets)}: no layer has it: choose from "
                f"{', '.join(layers)}"
            ) from None
        cast_training_params(transformer)  # peft gave them the dtype of the frozen weights, which may be fp8
        for layer in transformer.modules():
            if isinstance(layer, LoraLayer):
                layer.reset_lora_parameters(ADAPTER, init_lora_weights=True)
        return None
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


def store_frozen(pipeline: Any, storage: str, precision: str, device: torch.device) -> None:
    """Store the weights of the large linear layers as `model.frozen_weights` says, before LoRA is added.

    The multimodal LLM and the text encoder then compute in `precision`.
    """
    if storage == "fp32":
        return
    if precision == "bf16" and computes_bf16(device):
        for module in (pipeline.mllm, pipeline.text_encoder):
            if module is not None:
                module.to(torch.bfloat16)
    if storage == "nf4":
        quantize(pipeline, "nf4", device)
        return
    dtype = torch.bfloat16 if storage == "bf16" else torch.float8_e4m3fn
    for stack in transformer_stacks(pipeline).values():
        store_weights(stack, dtype, skipped=("wo",))  # umT5 checks the dtype of wo's weight
