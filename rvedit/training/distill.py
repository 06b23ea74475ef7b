"""The training task `distill`: a student of few denoising steps, taught by the model it starts from.

The loss is `rvedit.losses.consistency`. A jump is a step of Euler's method, so that the student edits by
Algorithm 2 like any other model.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from rvedit.compat import computes_bf16
from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.losses.consistency import consistency_loss, phase_times
from rvedit.losses.flow_matching import interpolate
from rvedit.models.text_tokens import encode_text
from rvedit.models.token_groups import encode_tokens
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.training.costs import EditorCosts
from rvedit.training.distributed import Processes
from rvedit.training.editor import EditorObjective, EditorTask
from rvedit.training.memory import BF16, FP32
from rvedit.training.recipe import Recipe
from rvedit.training.step import Loss, TripletBatch, sample_noise_and_timesteps, with_latents

TAUGHT = "transformer"
"""The module that the student trains; the others are the teacher's."""


class DistillCosts(EditorCosts):
    """Costs of distillation: two forward passes without a gradient, and the teacher's weights."""

    def _flops(self, clip: ClipShape) -> dict[str, float]:
        flops = super()._flops(clip)
        return {**flops, "teacher, and the student at its point": 2 * flops["transformer, forward"]}

    def memory(self, recipe: Recipe, gpus: int, clip: ClipShape | None = None) -> dict[str, float]:
        """See `Costs.memory`."""
        size = BF16 if recipe.precision == "bf16" else FP32
        weights = sum(parameter.numel() for parameter in self.transformer.parameters())
        return {**super().memory(recipe, gpus, clip), "teacher": float(size * weights)}


class DistillTask(EditorTask):
    """Train the transformer to edit in `distillation.student_steps` steps."""

    costs = DistillCosts

    def __init__(self, recipe: Recipe, processes: Processes):
        if recipe.alignment.enabled:
            raise UserError("alignment.weight: distillation has no reference branch: set it to 0")
        super().__init__(recipe, processes)
        others = [name for name, p in self.objective.named_parameters() if p.requires_grad]
        if stray := next((name for name in others if not name.startswith(TAUGHT)), None):
            raise UserError(
                f"model.frozen: distillation trains the transformer only, but {stray} is trained: set it to "
                "[connector, mllm, text_encoder]"
            )
        self.objective = DistillObjective(self.pipeline, recipe, processes)
        # The student's edits take its own number of steps.
        self.pipeline.register_to_config(
            default_steps=recipe.distillation.student_steps, default_guidance=1.0
        )


class DistillObjective(EditorObjective):
    """The loss of a student; the teacher is no child module, and so neither trained nor saved."""

    teacher: RoutedWanTransformer3DModel

    def __init__(self, pipeline: RVEDiTPipeline, recipe: Recipe, processes: Processes):
        super().__init__(pipeline, recipe)
        device = processes.device
        teacher = copy.deepcopy(pipeline.transformer).requires_grad_(False).eval()
        if recipe.precision == "bf16" and computes_bf16(device):
            teacher.to(torch.bfloat16)
        processes.receive(teacher)
        object.__setattr__(self, "teacher", teacher)
        pipeline.set_timesteps(recipe.distillation.student_steps, device)
        self.boundaries = tuple(pipeline.scheduler.sigmas.tolist())

    def forward(self, batch: TripletBatch, step: int, only: Loss | None = None) -> dict[str, Tensor]:
        """Return the loss of a minibatch; there is only one."""
        recipe, models, teacher = self.recipe, self.pipeline, self.teacher
        batch = with_latents(models, batch)
        source, target = batch.editing.latents, batch.reference.latents
        assert source is not None
        assert target is not None
        device = target.device
        numbers = batch.numbers or range(len(target))
        uniform, noise, _ = sample_noise_and_timesteps(
            recipe.seed, numbers, target.shape[1:], recipe.flow.shared_noise_ratio
        )
        boundaries = torch.tensor(self.boundaries, device=device)
        times = phase_times(uniform.to(device), boundaries, recipe.distillation.substeps)
        text_states = None
        if models.transformer.reads_native_tokens:
            text_states = batch.editing.text_states
            if text_states is None:
                texts, limit = batch.editing.texts, models.config.max_text_length
                text_states = encode_text(models.tokenizer, models.text_encoder, texts, limit).to(device)
        frames, texts, images = batch.editing.frames, batch.editing.texts, batch.reference_images
        tokens = encode_tokens(models, source, frames, texts, text_states, images)
        of_images = images.latents.to(teacher.dtype) if images else None
        with torch.no_grad():
            given = teacher.embed_tokens(tokens.edit_tokens, source.to(teacher.dtype), text_states, of_images)
        loss = consistency_loss(
            lambda x, t: models.transformer(x, 1000 * t, tokens).sample,
            lambda x, t: teacher(x.to(teacher.dtype), 1000 * t, given).sample,
            interpolate(target, noise.to(device), times[0]),
            *times,
        )
        return {"loss": loss}
