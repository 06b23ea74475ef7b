"""Recipes: what a training run is, as frozen data read from YAML.

Order of precedence: defaults here < `extends:` < the recipe < `--overlay` < `--set a.b=c`. A recipe states
only what differs from the one it extends; an unknown key or a wrong type is refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.playground.grammar import Noun, Operation


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRecipe(_Section):
    """Which model is trained, and from what."""

    preset: Literal["nano", "wan2.2-5b"] = Field("wan2.2-5b", description="configs of all components")
    routing_depth: int | None = Field(
        None, ge=0, description="L_s of Eq. 3, in blocks; none: half of the blocks; 0: everything everywhere"
    )
    init_from: str | None = Field(
        None, description="folder of a run or a pipeline to start from; nano: the embedded one"
    )
    vae_from: str | None = Field(None, description="folder of the VAE's run; none: the one of init_from")
    frozen: tuple[str, ...] = Field(
        (), description="parts that are not trained, by the beginning of their name"
    )
    lora_rank: int = Field(
        0, ge=0, description="train the MLLM's language tower by adapters of this rank; 0: its weights"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep the blocks' inputs alone and compute the rest again in the backward pass"
    )


class Bucket(_Section):
    """A shape that batches may have."""

    num_frames: int = Field(gt=0, description="frames of a clip, 4k+1; 1: stills")
    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    share: float = Field(
        1.0, gt=0, description="weight of its batches; with a manifest, of each triplet in the bucket"
    )

    @property
    def shape(self) -> ClipShape:
        """Frames and size."""
        return ClipShape(self.num_frames, self.height, self.width)


class DataRecipe(_Section):
    """Which triplets are seen."""

    source: Literal["playground", "manifest"] = Field("playground", description="where triplets come from")
    manifest: str | None = Field(None, description="file of `rvedit prepare`, for source: manifest")
    cache: str | None = Field(None, description="folder of `rvedit prepare cache`: latents instead of pixels")
    seed: int = Field(0, description="seed of the procedural world, and of the order of a manifest")
    count: int = Field(120_000, gt=0, description="triplets in an epoch of the playground")
    height: int = Field(704, gt=0, description="pixels")
    width: int = Field(1280, gt=0, description="pixels")
    num_frames: int = Field(81, gt=0, description="frames of a clip, 4k+1")
    buckets: tuple[Bucket, ...] = Field(
        (), description="shapes of batches, instead of num_frames, height and width; none: those alone"
    )
    operations: dict[Operation, PositiveFloat] = Field(
        {}, description="weights of the playground's edits, as {swap: 3, style: 1}; none: categories evenly"
    )
    new_things: dict[Noun, PositiveFloat] = Field(
        {}, description="weights of what the playground's edits bring in, as {corgi: 8}; unnamed things: 1"
    )
    still_share: float = Field(0.0, ge=0, le=1, description="share of batches that see the first frame only")
    crop: int | None = Field(None, gt=0, description="side of random crops for the VAE, pixels")
    instruction_dropout: float = Field(
        0.0, ge=0, le=1, description="share of samples with an empty instruction, for guidance"
    )
    caption_dropout: float = Field(
        0.0, ge=0, le=1, description="share of samples whose reference branch reads an empty caption"
    )
    workers: int = Field(1, ge=0, description="processes that prepare batches, for each training process")

    @property
    def shapes(self) -> tuple[ClipShape, ...]:
        """What clips are read as."""
        return tuple(bucket.shape for bucket in self.buckets) or (
            ClipShape(self.num_frames, self.height, self.width),
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each shape."""
        return tuple(bucket.share for bucket in self.buckets) or (1.0,)

    def expected_shapes(self) -> dict[ClipShape, float]:
        """The share of batches of each shape, as far as it is known without the clips; stills apart."""
        expected: dict[ClipShape, float] = {}
        for shape, share in zip(self.shapes, self.shares, strict=True):
            for seen, part in ((shape.still, self.still_share), (shape, 1 - self.still_share)):
                if part:
                    expected[seen] = expected.get(seen, 0.0) + part * share / sum(self.shares)
        return expected


class OptimizerRecipe(_Section):
    """A linear warm-up, a constant rate and a linear decay to zero."""

    name: Literal["adamw", "muon"] = Field("adamw", description="muon: orthogonalised steps for matrices")
    learning_rate: float = Field(1e-5, gt=0, description="peak rate of AdamW")
    matrix_learning_rate: float = Field(1e-2, gt=0, description="peak rate of Muon, where it is chosen")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's averaging")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, on matrices only")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps")
    decay_steps: int = Field(0, ge=0, description="optimizer steps at the end of the run")
    max_grad_norm: float = Field(1.0, gt=0, description="global norm that gradients are clipped to")


class FlowRecipe(_Section):
    """Flow matching."""

    shift: float = Field(5.0, gt=0, description="timestep shift: t' = s*t / (1 + (s - 1)*t)")
    shared_noise_ratio: float = Field(
        0.0,
        ge=0,
        lt=1,
        validation_alias=AliasChoices("shared_noise_ratio", "noise_share"),  # its name in version 0.1
        description="share of the noise's variance that is common to all frames of a clip",
    )


class AlignmentRecipe(_Section):
    """Reference-anchored attention alignment (Eqs. 4-6)."""

    weight: float = Field(
        0.75, ge=0, description="lambda_align of Eq. 6; 0 switches the reference branch off"
    )
    warmup_steps: int = Field(
        0, ge=0, description="optimizer steps in which the weight rises linearly to its full value"
    )
    temperature: float = Field(0.07, gt=0, description="tau of Eq. 5")
    own_noise: bool = Field(False, description="the reference branch draws its own noise")

    def weight_at(self, step: int) -> float:
        """lambda_align at a step, from 0."""
        return self.weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.weight


class ValidationRecipe(_Section):
    """Edits of fixed clips while training goes on."""

    every: int = Field(0, ge=0, description="optimizer steps from one to the next; 0: none")
    count: int = Field(4, gt=0, description="clips")
    num_inference_steps: int | None = Field(None, gt=0, description="none: the model's own")


class AxisScores(_Section):
    """A category's row of Table 3."""

    ic: float = Field(description="instruction compliance, 1-100")
    cf: float = Field(description="consistency and detail fidelity, 1-100")
    vq: float = Field(description="visual quality, 1-100")


class PaperRow(_Section):
    """What the paper reports for this configuration, under its Qwen judge; no part of the training."""

    label: str = Field(description="the row's name in the paper")
    tables: tuple[str, ...] = Field(description="where it stands, such as 2a")
    table2: dict[str, float] | None = Field(None, description="overall and per category; none: no such row")
    table3: dict[str, AxisScores] | None = Field(None, description="per category and axis; none: no such row")


class Recipe(_Section):
    """One training run."""

    name: str = Field("rvedit", description="name of the run's folder")
    task: Literal["editor", "vae"] = Field("editor", description="what is trained")
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    flow: FlowRecipe = FlowRecipe()
    alignment: AlignmentRecipe = AlignmentRecipe()
    kl_weight: float = Field(0.02, ge=0, description="of the VAE's loss: scale of the L1 error per value")
    change_weight: float = Field(
        0.0, ge=0, description="of the VAE's loss: the L1 error of changes from frame to frame"
    )
    border_weight: float = Field(
        1.0, ge=0, description="of change_weight: its factor where the frames of two latents meet"
    )
    motion_weight: float = Field(
        0.0, ge=0, description="of the VAE's loss: the error of how much each frame changes, over all pixels"
    )
    latent_noise: float = Field(
        0.0,
        ge=0,
        description="of the VAE's training: noise that its decoder sees, up to this share of a latent",
    )
    steps: int = Field(15_000, gt=0, description="optimizer steps")
    batch_size: int = Field(8, gt=0, description="clips per optimizer step, of all processes together")
    accumulation: int = Field(1, gt=0, description="parts of a batch that a process works off in turn")
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="several processes: whole copies of the model, or shards of it"
    )
    seed: int = Field(0, description="of weights, order, times and noise")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16: autocast, on devices that compute it fast; weights stay fp32"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="moving average of the weights per step; 0: none")
    max_skipped: int = Field(
        20, ge=0, description="updates that may be skipped for a loss or gradient that is not finite"
    )
    validation: ValidationRecipe = ValidationRecipe()
    paper: PaperRow | None = Field(None, description="the paper's figures for this configuration")
    checkpoint_every: int = Field(500, gt=0, description="optimizer steps")
    log_every: int = Field(50, gt=0, description="optimizer steps")


NUM_BLOCKS = {"nano": 8, "wan2.2-5b": 30}
"""L of each preset."""


def load_recipe(
    path: Path | str, overlays: Sequence[Path | str] = (), assignments: Sequence[str] = ()
) -> Recipe:
    """Read a recipe with its `extends:` chain, overlays and `a.b=c` assignments.

    Raises UserError with the file, the key and what is allowed.
    """
    path = Path(path)
    values = {"name": path.stem, **_read(path)}
    for overlay in overlays:
        values = _overlay(values, Path(overlay))
    for assignment in assignments:
        values = _merge(values, _parse_assignment(assignment))
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(path, error)) from None
    for key in ("data.manifest", "data.cache"):
        if recipe.data.source == "playground" and any(text.startswith(f"{key}=") for text in assignments):
            raise UserError(f"--set {key}: is not read by data.source playground: --set data.source=manifest")
    blocks = NUM_BLOCKS[recipe.model.preset]
    if (recipe.model.routing_depth or 0) > blocks:
        raise UserError(
            f"{path}: model.routing_depth is {recipe.model.routing_depth}: {recipe.model.preset} has "
            f"{blocks} blocks: give 0 ... {blocks}"
        )
    return recipe


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's own values over those of the recipe that it extends."""
    if path in seen:
        raise UserError(f"{path}: `extends` goes round in a circle: remove one of them")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such recipe: give the path of a YAML file, such as recipes/nano.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a YAML file: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not a {type(values).__name__}")
    parent = values.pop("extends", None)
    return _merge(_read(path.parent / parent, (*seen, path)), values) if parent else values


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both_are_sections = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both_are_sections else value
    return merged


def _overlay(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Lay a recipe over another; one that changes the size of the model keeps the routing's proportion."""
    above = _read(path)
    merged = _merge(values, above)
    before, after = (v.get("model") or {} for v in (values, merged))
    large, small = (NUM_BLOCKS.get(m.get("preset", "wan2.2-5b"), 0) for m in (before, after))
    depth = before.get("routing_depth")
    if "routing_depth" not in (above.get("model") or {}) and isinstance(depth, int) and large and small:
        scaled = round(depth * small / large)
        if scaled != depth:
            note = f"routing_depth {depth} of {large} blocks becomes {scaled} of {small}"
            warnings.warn(f"{path}: {note}", stacklevel=2)
            merged["model"] = {**after, "routing_depth": scaled}
    return merged


def _parse_assignment(assignment: str) -> dict[str, Any]:
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise UserError(
            f"--set {assignment}: write it as key=value, such as --set optimizer.learning_rate=1e-4"
        )
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {assignment}: its value is no YAML: are brackets closed?") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _explain(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if part != "[key]"]  # pydantic's mark of a wrong key
    key = ".".join(location)
    if first["type"] != "extra_forbidden":
        return f"{path}: {key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    section: Any = Recipe
    for part in (name for name in location[:-1] if not name.isdigit()):  # a place in a list has no name
        section = _section_of(section.model_fields[part].annotation)
    if not hasattr(section, "model_fields"):
        return f"{path}: unknown key {key}"
    return f"{path}: unknown key {key}: choose one of {', '.join(section.model_fields)}"


def _section_of(annotation: Any) -> Any:
    """The section in `Section | None`."""
    return next((a for a in get_args(annotation) if hasattr(a, "model_fields")), annotation)
