"""Recipes: the config of a training run, read from YAML.

Precedence: defaults < `extends:` < the recipe < overlays < assignments `a.b=c`. A recipe has only the keys
that differ from the recipe that it extends; an unknown key or a wrong type raises an error that names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from rvedit.io.errors import UserError
from rvedit.io.recipes import check_values, read_values
from rvedit.models.model_spec import PRESETS, model_spec
from rvedit.training.paper_row import PaperRow, Section
from rvedit.training.recipe_sections import (
    AlignmentRecipe,
    DataRecipe,
    DistillationRecipe,
    FlowRecipe,
    ModelRecipe,
    OptimizerRecipe,
    VAELossRecipe,
    ValidationRecipe,
    one_of,
)
from rvedit.training.tasks import TASKS


class Recipe(Section):
    """The config of a training run."""

    name: str = Field("rvedit", description="name of the run's folder")
    task: Annotated[str, one_of(TASKS)] = Field(
        "editor", description="training task: editor, distill, vae or a registered one"
    )
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    flow: FlowRecipe = FlowRecipe()
    alignment: AlignmentRecipe = AlignmentRecipe()
    distillation: DistillationRecipe = DistillationRecipe()
    vae_loss: VAELossRecipe = VAELossRecipe()
    steps: int = Field(15_000, gt=0, description="optimizer steps")
    batch_size: int = Field(8, gt=0, description="clips per optimizer step, over all processes")
    accumulation: int = Field(1, gt=0, description="minibatches per process and optimizer step")
    parallel: Literal["ddp", "fsdp2", "hsdp"] = Field("ddp", description="copy the model, shard it, or both")
    seed: int = Field(0, description="seed of initial weights, timesteps, noise and traced blocks")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16: autocast on devices with fast bf16; weights are fp32 in both cases"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of the weights' EMA per step; 0: no EMA")
    max_skipped: int = Field(20, ge=0, description="maximum number of updates skipped for not being finite")
    validation: ValidationRecipe = ValidationRecipe()
    paper: PaperRow | None = Field(None, description="the paper's results for this configuration")
    checkpoint_every: int = Field(500, gt=0, description="optimizer steps between checkpoints")
    log_every: int = Field(50, gt=0, description="optimizer steps between printed metrics")
    tracker: Literal["tensorboard", "wandb", "mlflow"] = Field(
        "tensorboard", description="where metrics go, beside metrics.jsonl"
    )
    compile: bool = Field(False, description="compile the transformer's blocks; the first steps take minutes")
    keep_checkpoints: int = Field(2, gt=0, description="number of checkpoints that are kept")
    export_every: int = Field(0, ge=0, description="optimizer steps between exports; 0: only at the end")
    context_parallel: int = Field(1, gt=0, description="processes that compute one clip together")
    shard_size: int | None = Field(None, gt=0, description="hsdp: processes of a copy; null: of a machine")

    @model_validator(mode="before")
    @classmethod
    def _read_version_0_1(cls, values: Any) -> Any:
        """Move keys of the VAE loss, which were at the top level in version 0.1, into their section."""
        moved = {key: values[key] for key in VAELossRecipe.model_fields if key in values}
        if not moved:
            return values
        others = {key: value for key, value in values.items() if key not in moved}
        return {**others, "vae_loss": {**moved, **(others.get("vae_loss") or {})}}


def load_recipe(
    path: Path | str, overlays: Sequence[Path | str] = (), assignments: Sequence[str] = ()
) -> Recipe:
    """Return a recipe with its `extends:` chain, overlays and `a.b=c` assignments.

    Raises UserError with the file, the key and the allowed values.
    """
    path = Path(path)
    values = {"name": path.stem, **_read(path)}
    for overlay in overlays:
        values = _overlay(values, Path(overlay))
    for assignment in assignments:
        values = _merge(values, _parse_assignment(assignment))
    recipe = check_values(Recipe, values, path)
    for key in ("data.manifest", "data.cache"):
        if recipe.data.source == "playground" and any(text.startswith(f"{key}=") for text in assignments):
            raise UserError(f"{key}: data.source playground does not use it: set data.source: manifest")
    for key in ("data.num_frames", "data.height", "data.width"):
        if recipe.data.buckets and any(text.startswith(f"{key}=") for text in assignments):
            warnings.warn(f"{path}: {key} is not used, as data.buckets has the shapes", stacklevel=2)
    if recipe.model.transformer_lora_rank and recipe.task in ("distill", "vae"):
        raise UserError(f"{path}: model.transformer_lora_rank is for task: editor, not {recipe.task}")
    if recipe.model.transformer_lora_rank and recipe.parallel != "ddp":
        raise UserError(f"{path}: model.transformer_lora_rank cannot be sharded: set parallel: ddp")
    if recipe.context_parallel > 1 and recipe.task in ("distill", "vae"):
        raise UserError(f"{path}: context_parallel is for task: editor, not {recipe.task}: set it to 1")
    validation = recipe.validation
    if validation.timesteps and recipe.data.source == "manifest" and not validation.held_out:
        raise UserError(f"{path}: validation.timesteps needs held-out rows: set validation.held_out")
    spec = model_spec(recipe.model.preset)
    if recipe.model.word_vectors and not spec.from_scratch:
        raise UserError(
            f"{path}: model.word_vectors: {spec.name} has its own words: set model.word_vectors: false"
        )
    blocks = spec.num_layers
    if (recipe.model.routing_depth or 0) > blocks:
        raise UserError(
            f"{path}: model.routing_depth is {recipe.model.routing_depth}: {recipe.model.preset} has "
            f"{blocks} blocks: choose 0 ... {blocks}"
        )
    return recipe


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values of a recipe file merged over those of the recipe that it extends."""
    if path in seen:
        raise UserError(f"{path}: `extends` is circular: remove one of them")
    values = read_values(path, "recipes/nano.yaml")
    parent = values.pop("extends", None)
    return _merge(_read(path.parent / parent, (*seen, path)), values) if parent else values


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        are_sections = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if are_sections else value
    return merged


def _overlay(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Merge an overlay over a recipe; if the preset changes, scale the routing depth to its blocks."""
    above = _read(path)
    merged = _merge(values, above)
    before, after = (v.get("model") or {} for v in (values, merged))
    large, small = (_num_layers(m.get("preset", "wan2.2-5b")) for m in (before, after))
    depth = before.get("routing_depth")
    if "routing_depth" not in (above.get("model") or {}) and isinstance(depth, int) and large and small:
        scaled = round(depth * small / large)
        if scaled != depth:
            note = f"routing_depth {depth} of {large} blocks becomes {scaled} of {small}"
            warnings.warn(f"{path}: {note}", stacklevel=2)
            merged["model"] = {**after, "routing_depth": scaled}
    return merged


def _num_layers(preset: object) -> int:
    return PRESETS[preset].num_layers if isinstance(preset, str) and preset in PRESETS else 0


def _parse_assignment(assignment: str) -> dict[str, Any]:
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise UserError(
            f"`assignments` {assignment}: write it as key=value, such as optimizer.learning_rate=1e-4"
        )
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"`assignments` {assignment}: the value is not YAML: close all brackets") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
