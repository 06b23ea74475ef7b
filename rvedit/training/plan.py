"""The dry run of `rvedit train`: compute, memory and disk space of a recipe, without weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rvedit.io.records import ClipShape
from rvedit.models.model_spec import model_spec
from rvedit.training.costs import VAE_PART, Costs, Tokens
from rvedit.training.limits import clips_at_once
from rvedit.training.memory import Group
from rvedit.training.recipe import Recipe
from rvedit.training.tasks import task_class

GPU_MEMORY = 80e9
"""Bytes of memory on a GPU."""
GPU_RATE = 380e12
"""Sustained FLOP/s of a GPU: 38% of an H100's peak of 989 TFLOP/s in bf16."""
GPU_RATE_FP32 = 51e12
"""FLOP/s of a GPU in fp32, in which the VAE computes: measured for matrix products on an H200."""
USUAL_SHAPES = tuple(
    ClipShape(num_frames, *size) for size in ((704, 1280), (480, 832)) for num_frames in (81, 41, 17, 1)
)
_ACTIVATIONS = ("activations", "temporary", "encoders")
USUAL_GPUS = (12, 16, 24, 32, 48, 80)
"""GB."""
NANO_REMEDY = "train at nano size: `overlay` recipes/nano_scale.yaml"


@dataclass(frozen=True)
class Compute:
    """FLOPs, and hours at an assumed FLOP/s."""

    per_clip: dict[str, float]
    """By part, expected over stills and sampled depths."""
    per_step: float
    """Of an optimizer step with all clips of the batch."""
    per_run: float
    flops_per_second: float
    """Assumed for each GPU."""
    hours: float
    """Of the run on all GPUs, without any waiting."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    parts: dict[str, float]
    total: float
    budget: float
    fits: bool
    with_checkpointing: float
    """The total with gradient checkpointing."""
    without_checkpointing: float
    """The total without it."""
    remedies: tuple[str, ...]
    """Settings that would fit, if this recipe does not."""


@dataclass(frozen=True)
class ShapePlan:
    """Bytes on one GPU if all clips had one shape."""

    shape: str
    """frames x height x width"""
    weights: float
    """Of weights, gradients and moments."""
    activations: float
    """Of activations and all that is temporary."""
    smallest_gpu: int | None
    """GB of the smallest usual GPU with enough memory, if there is one."""


@dataclass(frozen=True)
class TrainingPlan:
    """The result of a dry run."""

    recipe: str
    preset: str
    task: str
    gpus: int
    parallel: str
    clips_at_once: int
    """Clips in one forward pass on a GPU."""
    parameters: tuple[Group, ...]
    tokens: Tokens | None
    compute: Compute
    memory: Memory
    disk: dict[str, float]
    """Bytes."""
    shapes: tuple[ShapePlan, ...]
    """Other shapes of clips, for LoRA weights of the transformer."""
    notes: tuple[str, ...]
    """Assumptions."""

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def plan_training(
    recipe: Recipe,
    gpus: int | None = None,
    gpu_memory: float = GPU_MEMORY,
    flops_per_second: float = GPU_RATE,
) -> TrainingPlan:
    """Return the plan of a run on GPUs with `gpu_memory` bytes each; nothing is allocated or downloaded.

    The default of `gpus` is 1 for nano, and for others the largest of 8, 4, 2 and 1 that divides the batch.

    Raises UserError if the batch cannot be divided, or if `model.frozen` has an unknown module.
    """
    gpus = _default_gpus(recipe) if gpus is None else gpus
    clips = clips_at_once(recipe, gpus)
    costs: Costs = task_class(recipe.task).costs(recipe)
    per_clip = costs.flops()
    per_step = recipe.batch_size * sum(per_clip.values())
    per_run = recipe.steps * per_step
    is_small = model_spec(recipe.model.preset).from_scratch
    clips_in_run = recipe.steps * recipe.batch_size
    slow = per_run if recipe.precision == "fp32" else clips_in_run * per_clip.get(VAE_PART, 0.0)
    seconds = ((per_run - slow) / flops_per_second + slow / GPU_RATE_FP32) / gpus
    small = ", which so small a model does not reach" if is_small else ""
    rate = (
        f"hours: at {flops_per_second / 1e12:.0f} TFLOP/s per GPU, and {GPU_RATE_FP32 / 1e12:.0f} in fp32 "
        f"(the VAE){small}, without any waiting"
    )
    return TrainingPlan(
        recipe=recipe.name,
        preset=recipe.model.preset,
        task=recipe.task,
        gpus=gpus,
        parallel=recipe.parallel,
        clips_at_once=clips,
        parameters=costs.groups,
        tokens=costs.tokens,
        compute=Compute(per_clip, per_step, per_run, flops_per_second, seconds / 3600),
        memory=_memory(recipe, costs, gpus, gpu_memory),
        disk=costs.disk(),
        shapes=_usual_shapes(recipe, costs, gpus) if recipe.model.transformer_lora_rank else (),
        notes=(rate, *costs.notes),
    )


def _usual_shapes(recipe: Recipe, costs: Any, gpus: int) -> tuple[ShapePlan, ...]:
    """Return the memory of the usual shapes for an editor's LoRA weights."""
    if model_spec(recipe.model.preset).from_scratch:
        return ()
    plans = []
    for shape in USUAL_SHAPES:
        parts = costs.memory(recipe, gpus, shape)
        activations = sum(size for name, size in parts.items() if name.startswith(_ACTIVATIONS))
        total = sum(parts.values())
        fitting = next((gpu for gpu in USUAL_GPUS if total <= gpu * 1e9), None)
        plans.append(ShapePlan(str(shape), total - activations, activations, fitting))
    return tuple(plans)


def why_not_runnable(recipe: Recipe, gpus_available: int, memory_bytes: float = GPU_MEMORY) -> str | None:
    """Return why a recipe cannot be trained on this machine, in one line with a remedy; None if it can.

    `gpus_available` is the number of GPUs of the run, one per process; `memory_bytes` is the memory of one.
    Nano can be trained on a CPU.
    """
    is_small = model_spec(recipe.model.preset).from_scratch
    if is_small and not gpus_available:
        return None
    plan = plan_training(recipe, gpus_available or None, memory_bytes or GPU_MEMORY)
    if not is_small and not recipe.model.init_from:
        reason = f"model.init_from is not set, and {recipe.model.preset} cannot be trained from scratch"
    elif not gpus_available:
        reason = "this machine has no GPU"
    elif not plan.memory.fits:
        reason = f"a GPU has {memory_bytes / 1e9:.0f} GB"
    else:
        return None
    trained = sum(group.trained for group in plan.parameters)
    total = trained + sum(group.frozen for group in plan.parameters)
    remedies = plan.memory.remedies or ((NANO_REMEDY,) if not is_small else ())
    figures = (
        f"it trains {trained / 1e9:.3g} of {total / 1e9:.3g} billion parameters and needs "
        f"{plan.compute.per_step / recipe.batch_size / 1e15:.3g} PFLOP per clip and "
        f"{plan.memory.total / 1e9:.0f} GB on each of {plan.gpus} GPUs"
    )
    return f"{recipe.name} cannot be trained: {reason}; {figures}: {', or '.join(remedies)}"


def _default_gpus(recipe: Recipe) -> int:
    if model_spec(recipe.model.preset).from_scratch:
        return 1
    return next((n for n in (8, 4, 2) if recipe.batch_size % (n * recipe.accumulation) == 0), 1)


def _memory(recipe: Recipe, costs: Costs, gpus: int, budget: float) -> Memory:
    parts = costs.memory(recipe, gpus)
    total = sum(parts.values())
    with_checkpointing, without = (
        sum(costs.memory(_checkpointing(recipe, on), gpus).values()) for on in (True, False)
    )
    remedies = () if total <= budget else _remedies(recipe, costs, gpus, budget)
    return Memory(parts, total, budget, total <= budget, with_checkpointing, without, remedies)


def _checkpointing(recipe: Recipe, on: bool) -> Recipe:
    return _with_model(recipe, gradient_checkpointing=on)


def _with_model(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def _remedies(recipe: Recipe, costs: Costs, gpus: int, budget: float) -> tuple[str, ...]:
    """Return settings that fit on this number of GPUs or more, and nano, which always fits."""
    settings = []
    if recipe.task == "editor" and not recipe.model.gradient_checkpointing:
        settings.append("model.gradient_checkpointing: true")
    if recipe.model.transformer_lora_rank:
        settings += ["model.offload: true"] * (not recipe.model.offload)
        settings += ["model.frozen_weights: nf4"] * (recipe.model.frozen_weights != "nf4")
    can_be_sharded = recipe.optimizer.name == "adamw" and not recipe.model.transformer_lora_rank
    if recipe.parallel == "ddp" and can_be_sharded:
        settings.append("parallel: fsdp2")
    numbers = [n for n in range(gpus, recipe.batch_size + 1) if recipe.batch_size % n == 0]
    # At least one clip per forward pass; then as few settings as possible.
    choices = [settings[:n] for n in range(len(settings) + 1)] + [[setting] for setting in settings[1:]]
    found: list[str] = []
    for number in numbers:
        maximum = recipe.batch_size // number
        for accumulation in sorted({min(recipe.accumulation, maximum), maximum}):
            if recipe.batch_size % (number * accumulation):
                continue
            for chosen in sorted(choices, key=len):
                changed = recipe.model_copy(update={"accumulation": accumulation})
                if "model.gradient_checkpointing: true" in chosen:
                    changed = _checkpointing(changed, True)
                if "model.offload: true" in chosen:
                    changed = _with_model(changed, offload=True)
                if "model.frozen_weights: nf4" in chosen:
                    changed = _with_model(changed, frozen_weights="nf4")
                if "parallel: fsdp2" in chosen:
                    changed = changed.model_copy(update={"parallel": "fsdp2"})
                size = sum(costs.memory(changed, number).values())
                if size <= budget:
                    changes = [f"use {number} GPUs"] if number != gpus else []
                    changes += [f"set {setting}" for setting in chosen]
                    if accumulation != recipe.accumulation:
                        changes.append(f"set accumulation: {accumulation}")
                    found.append(f"{', '.join(changes)} ({size / 1e9:.0f} GB)")
                    break
        if found:
            break
    return (*found, *(() if model_spec(recipe.model.preset).from_scratch else (NANO_REMEDY,)))
