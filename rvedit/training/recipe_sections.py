"""The sections of a recipe: model, data, optimizer, losses and validation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, PositiveFloat, model_validator

from rvedit.io.records import ClipShape
from rvedit.models.model_spec import PRESETS
from rvedit.playground.grammar import Noun, Operation
from rvedit.training.paper_row import Section


def one_of(registered: Collection[str]) -> AfterValidator:
    """Return a validator that accepts the registered names alone."""

    def check(name: str) -> str:
        if name not in registered:
            raise ValueError(f"choose one of {', '.join(registered)}")
        return name

    return AfterValidator(check)


class ModelRecipe(Section):
    """The model to train, and its initial weights."""

    preset: Annotated[str, one_of(PRESETS)] = Field(
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
    transformer_lora_rank: int = Field(
        0, ge=0, description="rank of LoRA weights for the transformer, which alone are trained; 0: none"
    )
    transformer_lora_alpha: float | None = Field(
        None, gt=0, description="their products are multiplied by alpha / rank; null: alpha is the rank"
    )
    transformer_lora_targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
        description="last parts of the names of the transformer's layers that get LoRA weights",
    )
    frozen_weights: Literal["fp32", "bf16", "fp8", "nf4"] = Field(
        "fp32", description="with transformer_lora_rank: how the weights of frozen linear layers are stored"
    )
    offload: bool = Field(
        False,
        description="with transformer_lora_rank: keep VAE, MLLM and text encoder in host memory between uses",
    )
    gradient_checkpointing: bool = Field(
        False, description="store only the blocks' inputs and recompute the rest in the backward pass"
    )

    @model_validator(mode="after")
    def _lora_alone(self) -> ModelRecipe:
        if self.transformer_lora_rank and self.lora_rank:
            raise ValueError("transformer_lora_rank freezes the MLLM: set lora_rank: 0")
        if not self.transformer_lora_rank and (self.frozen_weights != "fp32" or self.offload):
            raise ValueError("frozen_weights and offload are for LoRA weights: set transformer_lora_rank")
        return self


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
    mask_weight: float = Field(
        1.0,
        gt=0,
        description="weight of L_fm in the mask of a pair, if outside it is 1; 1: no masks",
    )
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

    name: Literal["adamw", "adamw8bit", "muon"] = Field(
        "adamw", description="adamw8bit: moments in 8 bits; muon: orthogonalized updates of matrices"
    )
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
    """Edits and losses of held-out clips during training."""

    every: int = Field(0, ge=0, description="optimizer steps between validations; 0: none")
    count: int = Field(4, gt=0, description="number of clips to edit")
    held_out: int = Field(
        0, ge=0, description="rows of a manifest that are not trained on; validation has no other clips then"
    )
    timesteps: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (), description="times from 0 to 1 at which L_fm of held-out clips is logged; empty: none"
    )
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
