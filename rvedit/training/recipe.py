"""Recipes: the config of a training run, read from YAML.

Precedence: defaults < `extends:` < the recipe < overlays < assignments `a.b=c`. A recipe has only the keys
that differ from the recipe that it extends; an unknown key or a wrong type raises an error that names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, AliasChoices, Field, PositiveFloat, model_validator

from rvedit.io.errors import UserError
from rvedit.io.recipes import check_values, read_values
from rvedit.io.records import ClipShape
from rvedit.models.model_spec import PRESETS, model_spec
from rvedit.playground.grammar import Noun, Operation
from rvedit.training.paper_row import PaperRow, Section
from rvedit.training.tasks import TASKS


def _one_of(registered: Collection[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in registered:
            raise ValueError(f"choose one of {', '.join(registered)}")
        return name

    return AfterValidator(check)


class ModelRecipe(Section):
    """The model to train, and its initial weights."""

    preset: Annotated[str, _one_of(PRESETS)] = Field(
        "wan2.2-5b", description="configs of all modules: nano, wan2.2-5b, wan2.1-14b or another"
    )
    routing_depth: int | None = Field(
        None,
        ge=0,
        description="L_s of Eq. 3: so many blocks read X_e alone, the rest all tokens; null: half of them",
    )
    init_from: str | None = Field(
        None, description="folder of a run or a pipeline to start from; nano: the embedded model"
    )
    vae_from: str | None = Field(None, description="run folder of a VAE; null: the VAE of init_from")
    word_vectors: bool = Field(
        False, description="nano: 10,000 whole words; new ones learn from word vectors, and all are frozen"
    )
    reference_images: bool = Field(
        False, description="read pictures of what instructions refer to; new modules start without effect"
    )
    frozen: tuple[str, ...] = Field(
        (), description="prefixes of the names of parameters that are not trained"
    )
    lora_rank: int = Field(
        0, ge=0, description="LoRA rank for the MLLM's language tower; 0: train its full weights"
    )
    gradient_checkpointing: bool = Field(
        False, description="store only the blocks' inputs and recompute the rest in the backward pass"
    )


class Bucket(Section):
    """A shape of batches."""

    num_frames: int = Field(gt=0, description="frames of a clip, 4k+1; 1: stills")
    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    share: float = Field(
        1.0, gt=0, description="weight of its batches; with a manifest, weight of each triplet in the bucket"
    )

    @property
    def shape(self) -> ClipShape:
        """Return frames and size."""
        return ClipShape(self.num_frames, self.height, self.width)


class DataRecipe(Section):
    """The training data."""

    source: Literal["playground", "manifest"] = Field("playground", description="where triplets come from")
    manifest: str | None = Field(None, description="file written by `rvedit prepare`, for source: manifest")
    cache: str | None = Field(None, description="folder of `rvedit prepare cache`, whose latents are read")
    seed: int = Field(0, description="seed of the playground's clips or of the order of a manifest")
    count: int = Field(120_000, gt=0, description="triplets in an epoch of the playground")
    height: int = Field(704, gt=0, description="pixels")
    width: int = Field(1280, gt=0, description="pixels")
    num_frames: int = Field(81, gt=0, description="frames of a clip, 4k+1")
    buckets: tuple[Bucket, ...] = Field(
        (), description="shapes of batches, instead of num_frames, height and width; empty: that one shape"
    )
    operations: dict[Operation, PositiveFloat] = Field(
        {}, description="weights of the playground's edits, as {swap: 3, style: 1}; empty: equal categories"
    )
    new_things: dict[Noun, PositiveFloat] = Field(
        {}, description="weights of the objects that the playground's edits add, as {corgi: 8}; others: 1"
    )
    realism: float = Field(
        0.0, ge=0, le=1, description="highest realism of playground clips, each drawn uniformly from 0 to it"
    )
    flat_share: float = Field(0.0, ge=0, le=1, description="share of playground samples at realism 0")
    degrade: float = Field(
        0.0, ge=0, le=1, description="highest strength of noise and compression of playground sources"
    )
    synonyms: float = Field(
        0.0, ge=0, le=1, description="probability that a word of the playground's instructions is a synonym"
    )
    reference_share: float = Field(
        0.0, ge=0, le=1, description="share of the playground's batches that have reference images"
    )
    reference_dropout: float = Field(
        0.0, ge=0, le=1, description="share of batches with reference images that are trained without them"
    )
    still_share: float = Field(0.0, ge=0, le=1, description="share of batches that have only first frames")
    crop: int | None = Field(None, gt=0, description="side of random crops for the VAE, pixels; null: none")
    instruction_dropout: float = Field(
        0.0, ge=0, le=1, description="share of samples with an empty instruction, for guidance"
    )
    caption_dropout: float = Field(
        0.0, ge=0, le=1, description="share of samples with an empty caption in the reference branch"
    )
    workers: int = Field(1, ge=0, description="dataloader workers of each training process")
    max_unreadable: int = Field(
        20, ge=0, description="maximum number of clips that cannot be read; others take their place"
    )

    @property
    def shapes(self) -> tuple[ClipShape, ...]:
        """Return the shape of each bucket."""
        return tuple(bucket.shape for bucket in self.buckets) or (
            ClipShape(self.num_frames, self.height, self.width),
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the weight of each shape."""
        return tuple(bucket.share for bucket in self.buckets) or (1.0,)

    def expected_shapes(self) -> dict[ClipShape, float]:
        """Return the expected share of batches of each shape, stills included, from the recipe alone."""
        expected: dict[ClipShape, float] = {}
        for shape, share in zip(self.shapes, self.shares, strict=True):
            for kind, part in ((shape.still, self.still_share), (shape, 1 - self.still_share)):
                if part:
                    expected[kind] = expected.get(kind, 0.0) + part * share / sum(self.shares)
        return expected


class OptimizerRecipe(Section):
    """The optimizer; its learning rate has a linear warmup, a constant part and a linear decay to zero."""

    name: Literal["adamw", "muon"] = Field("adamw", description="muon: orthogonalized updates of matrices")
    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")
    matrix_learning_rate: float = Field(1e-2, gt=0, description="peak learning rate of Muon")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay rates of AdamW's moments")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay, for matrices only")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of the warmup")
    decay_steps: int = Field(0, ge=0, description="optimizer steps of the decay, at the end of the run")
    max_grad_norm: float = Field(1.0, gt=0, description="maximum global norm of the gradients")


class FlowRecipe(Section):
    """Flow matching."""

    shift: float = Field(5.0, gt=0, description="timestep shift: t' = s*t / (1 + (s - 1)*t)")
    shared_noise_ratio: float = Field(
        0.0,
        ge=0,
        lt=1,
        validation_alias=AliasChoices("shared_noise_ratio", "noise_share"),  # its name in version 0.1
        description="share of the noise's variance that all frames of a clip have in common",
    )


class AlignmentRecipe(Section):
    """Reference-anchored attention alignment (Eqs. 4-6)."""

    weight: float | None = Field(
        0.75,
        ge=0,
        description="lambda_align of Eq. 6; 0 disables the reference branch; null: alignment.ratio sets it",
    )
    ratio: float | None = Field(
        None,
        gt=0,
        description="instead of a fixed weight: weight x |gradient of L_align| / |gradient of L_fm| to keep",
    )
    log_ratio_every: int = Field(
        0, ge=0, description="optimizer steps between logged values of that ratio at a fixed weight; 0: none"
    )
    warmup_steps: int = Field(
        0, ge=0, description="optimizer steps over which the weight, or the ratio, rises linearly"
    )
    temperature: float = Field(0.07, gt=0, description="tau of Eq. 5")
    own_noise: bool = Field(False, description="separate noise for the reference branch")

    @model_validator(mode="before")
    @classmethod
    def _ratio_has_no_weight(cls, values: Any) -> Any:
        is_alone = isinstance(values, dict) and values.get("ratio") is not None and "weight" not in values
        return {**values, "weight": None} if is_alone else values

    @model_validator(mode="after")
    def _weight_or_ratio(self) -> AlignmentRecipe:
        if self.weight is not None and self.ratio is not None:
            raise ValueError("a fixed weight and a ratio exclude each other: set weight or ratio to null")
        if self.weight is None and self.ratio is None:
            raise ValueError("there is neither a weight nor a ratio: set weight: 0 for no alignment")
        return self

    @property
    def enabled(self) -> bool:
        """Return whether there is a reference branch."""
        return bool(self.weight) or self.ratio is not None

    def weight_at(self, step: int) -> float:
        """Return the fixed lambda_align at a step, counted from 0."""
        assert self.weight is not None
        return self.weight * self._warmup_at(step)

    def ratio_at(self, step: int) -> float:
        """Return the ratio to keep at a step, counted from 0."""
        assert self.ratio is not None
        return self.ratio * self._warmup_at(step)

    def _warmup_at(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0

    def logs_ratio_at(self, step: int) -> bool:
        """Return whether the ratio is measured at a step, counted from 0, although the weight is fixed."""
        return bool(self.weight and self.log_ratio_every) and step % self.log_ratio_every == 0


class DistillationRecipe(Section):
    """Phased consistency distillation, for `task: distill`."""

    student_steps: int = Field(4, gt=0, description="denoising steps of the student")
    substeps: int = Field(8, gt=0, description="steps of the teacher in each step of the student")


class ValidationRecipe(Section):
    """Edits of fixed clips during training."""

    every: int = Field(0, ge=0, description="optimizer steps between validations; 0: none")
    count: int = Field(4, gt=0, description="number of clips")
    num_inference_steps: int | None = Field(
        None, gt=0, description="denoising steps; null: the model's default"
    )


class VAELossRecipe(Section):
    """The loss of `task: vae`: an L1 error, a KL divergence and errors of motion."""

    kl_weight: float = Field(
        0.02, ge=0, description="weight of the KL divergence; set it to the expected L1 error"
    )
    change_weight: float = Field(
        0.0, ge=0, description="weight of the L1 error of differences between consecutive frames"
    )
    border_weight: float = Field(
        1.0, ge=0, description="factor of change_weight between frames of different latent frames"
    )
    motion_weight: float = Field(
        0.0, ge=0, description="weight of the error of each frame's mean change over all pixels"
    )
    latent_noise: float = Field(
        0.0, ge=0, description="noise on the decoder's input, up to this share of the latents' scale"
    )


class Recipe(Section):
    """The config of a training run."""

    name: str = Field("rvedit", description="name of the run's folder")
    task: Annotated[str, _one_of(TASKS)] = Field(
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
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="for several processes: ddp copies the model, fsdp2 shards it"
    )
    seed: int = Field(0, description="seed of initial weights, timesteps, noise and traced blocks")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16: autocast on devices with fast bf16; weights are fp32 in both cases"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of the weights' EMA per step; 0: no EMA")
    max_skipped: int = Field(
        20, ge=0, description="maximum number of updates skipped because the loss or a gradient is not finite"
    )
    validation: ValidationRecipe = ValidationRecipe()
    paper: PaperRow | None = Field(None, description="the paper's results for this configuration")
    checkpoint_every: int = Field(500, gt=0, description="optimizer steps between checkpoints")
    log_every: int = Field(50, gt=0, description="optimizer steps between printed metrics")

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
