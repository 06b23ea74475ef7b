"""What a recipe will take, without its weights: the dry run of `rvedit train`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rvedit.training.costs import Costs, EditorCosts, Tokens, VAECosts, clips_at_once
from rvedit.training.memory import Group
from rvedit.training.recipe import Recipe

GPU_MEMORY = 80e9
"""Bytes of a GPU."""
GPU_RATE = 380e12
"""FLOP/s that a GPU sustains: 38% of an H100's peak of 989 TFLOP/s in bf16."""
NANO_REMEDY = "train it at nano size with --overlay recipes/nano_scale.yaml"


@dataclass(frozen=True)
class Compute:
    """FLOPs, and hours at an assumed rate."""

    per_clip: dict[str, float]
    """By part, in expectation over stills and sampled depths."""
    per_step: float
    """Of an optimizer step, all clips of the batch."""
    per_run: float
    flops_per_second: float
    """Assumed of each GPU."""
    hours: float
    """Of the run on all GPUs, if nothing waits."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU."""

    parts: dict[str, float]
    total: float
    budget: float
    fits: bool
    with_checkpointing: float
    """The total, were gradient checkpointing on."""
    without_checkpointing: float
    """The total, were it off."""
    remedies: tuple[str, ...]
    """What makes it fit, where it does not."""


@dataclass(frozen=True)
class TrainingPlan:
    """A dry run."""

    recipe: str
    preset: str
    task: str
    gpus: int
    parallel: str
    clips_at_once: int
    """On a GPU."""
    parameters: tuple[Group, ...]
    tokens: Tokens | None
    compute: Compute
    memory: Memory
    disk: dict[str, float]
    """Bytes."""
    notes: tuple[str, ...]
    """What the figures assume."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def plan_training(
    recipe: Recipe,
    gpus: int | None = None,
    gpu_memory: float = GPU_MEMORY,
    flops_per_second: float = GPU_RATE,
) -> TrainingPlan:
    """Plan a run on so many GPUs of so many bytes; nothing is allocated or downloaded.

    Without a number it is one for nano, and for others the most of up to eight that can share the batch.

    Raises UserError where the GPUs cannot share the batch, or `model.frozen` names no part.
    """
    gpus = _usual_gpus(recipe) if gpus is None else gpus
    clips = clips_at_once(recipe, gpus)
    costs: Costs = VAECosts(recipe) if recipe.task == "vae" else EditorCosts(recipe)
    per_clip = costs.flops()
    per_step = recipe.batch_size * sum(per_clip.values())
    per_run = recipe.steps * per_step
    seconds = per_run / (gpus * flops_per_second)
    small = ", which so small a model does not reach" if recipe.model.preset == "nano" else ""
    rate = f"hours: at {flops_per_second / 1e12:.0f} TFLOP/s of each GPU{small}, as if nothing had to wait"
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
        notes=(rate, *costs.notes),
    )


def why_not_runnable(recipe: Recipe, gpus_available: int, memory_bytes: float = GPU_MEMORY) -> str | None:
    """Why a recipe cannot be trained here, in one line with the figures and a remedy; none if it can.

    `gpus_available` are those of the run, one for each process; `memory_bytes` is one GPU's. Nano trains on a
    CPU.
    """
    nano = recipe.model.preset == "nano"
    if nano and not gpus_available:
        return None
    plan = plan_training(recipe, gpus_available or None, memory_bytes or GPU_MEMORY)
    if not nano and not recipe.model.init_from:
        reason = f"the weights of {recipe.model.preset} are not here (model.init_from is not set)"
    elif not gpus_available:
        reason = "there is no GPU here"
    elif not plan.memory.fits:
        reason = f"a GPU here has {memory_bytes / 1e9:.0f} GB"
    else:
        return None
    trained = sum(group.trained for group in plan.parameters)
    everything = trained + sum(group.frozen for group in plan.parameters)
    remedies = plan.memory.remedies or ((NANO_REMEDY,) if not nano else ())
    figures = (
        f"it trains {trained / 1e9:.3g} of {everything / 1e9:.3g} billion parameters and takes "
        f"{plan.compute.per_step / recipe.batch_size / 1e15:.3g} PFLOP a clip, "
        f"{plan.memory.total / 1e9:.0f} GB on each of {plan.gpus} GPUs"
    )
    return f"{recipe.name} cannot be trained here: {reason}; {figures}: {', or '.join(remedies)}"


def _usual_gpus(recipe: Recipe) -> int:
    if recipe.model.preset == "nano":
        return 1
    return next((n for n in (8, 4, 2) if recipe.batch_size % (n * recipe.accumulation) == 0), 1)


def _memory(recipe: Recipe, costs: Costs, gpus: int, budget: float) -> Memory:
    parts = costs.memory(recipe, gpus)
    total = sum(parts.values())
    checkpointed, whole = (_total(costs, _checkpointing(recipe, on), gpus) for on in (True, False))
    remedies = () if total <= budget else _remedies(recipe, costs, gpus, budget)
    return Memory(parts, total, budget, total <= budget, checkpointed, whole, remedies)


def _total(costs: Costs, recipe: Recipe, gpus: int) -> float:
    return sum(costs.memory(recipe, gpus).values())


def _checkpointing(recipe: Recipe, on: bool) -> Recipe:
    model = recipe.model.model_copy(update={"gradient_checkpointing": on})
    return recipe.model_copy(update={"model": model})


def _remedies(recipe: Recipe, costs: Costs, gpus: int, budget: float) -> tuple[str, ...]:
    """The settings that make it fit, on these GPUs or on more; and nano, which always fits."""
    settings = []
    if recipe.task == "editor" and not recipe.model.gradient_checkpointing:
        settings.append("model.gradient_checkpointing=true")
    if recipe.parallel == "ddp" and recipe.optimizer.name == "adamw":
        settings.append("parallel=fsdp2")
    numbers = [n for n in range(gpus, recipe.batch_size + 1) if recipe.batch_size % n == 0]
    # One clip at a time is the least; then as few settings as there need be.
    choices = [settings[:n] for n in range(len(settings) + 1)] + [[setting] for setting in settings[1:]]
    found: list[str] = []
    for number in numbers:
        most = recipe.batch_size // number
        for accumulation in sorted({min(recipe.accumulation, most), most}):
            if recipe.batch_size % (number * accumulation):
                continue
            for chosen in sorted(choices, key=len):
                changed = recipe.model_copy(update={"accumulation": accumulation})
                if "model.gradient_checkpointing=true" in chosen:
                    changed = _checkpointing(changed, True)
                if "parallel=fsdp2" in chosen:
                    changed = changed.model_copy(update={"parallel": "fsdp2"})
                size = _total(costs, changed, number)
                if size <= budget:
                    spread = [f"accumulation={accumulation}"] if accumulation != recipe.accumulation else []
                    words = [f"--set {setting}" for setting in (*chosen, *spread)]
                    if number != gpus:
                        words.insert(0, f"{number} GPUs")
                    found.append(f"{' '.join(words)} ({size / 1e9:.0f} GB)")
                    break
        if found:
            break
    return (*found, *(() if recipe.model.preset == "nano" else (NANO_REMEDY,)))
