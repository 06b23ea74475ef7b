"""Frozen encoders that are in host memory while they are not used, for training on small GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rvedit.models.text_tokens import encode_text
from rvedit.training.step import BranchInputs, TripletBatch, with_latents


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a module to a device in this context, and back to host memory after it."""
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")


@torch.no_grad()
def encode_batch(models: Any, batch: TripletBatch, device: torch.device, both: bool) -> TripletBatch:
    """Return a batch with latents, text states and editing tokens, so that its encoders are not needed again.

    Each encoder is moved to the device in turn. The reference branch is encoded only with `both`.
    """
    with on_device(models.vae, device):
        batch = with_latents(models, batch)
    branches = [batch.editing, batch.reference] if both else [batch.editing]
    reads_text = models.transformer.reads_native_tokens
    if reads_text and any(branch.text_states is None for branch in branches):
        limit = models.config.max_text_length
        with on_device(models.text_encoder, device):
            branches = [
                replace(b, text_states=encode_text(models.tokenizer, models.text_encoder, b.texts, limit))
                for b in branches
            ]
    pictures = batch.reference_images.frames if batch.reference_images else ()

    def with_edit_tokens(branch: BranchInputs) -> BranchInputs:
        tokens = models.edit_token_encoder(branch.frames, branch.texts, pictures)
        return replace(branch, edit_tokens=tokens)

    with on_device(models.mllm, device):
        branches = [with_edit_tokens(branch) for branch in branches]
    return replace(batch, editing=branches[0], reference=branches[1] if both else batch.reference)
