"""Plans of an edit's memory and time, made before any weights are loaded.

Memory is measured by running the model's modules on the meta device (`rvedit.editing.peak_memory`). Time is
the number of FLOPs over the device's measured FLOP/s of a matrix product. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rvedit.editing.detail import BAND_PIXELS, REACH
from rvedit.editing.peak_memory import peak_bytes
from rvedit.editing.windows import WindowPlan
from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.models.autoencoder import StreamDecoder, encode
from rvedit.models.flops import Shape, context_lengths, forward_flops
from rvedit.pipelines.baselines import BASELINES
from rvedit.pipelines.checkpoints import MODULE_CLASSES
from rvedit.pipelines.checkpoints.outline import SUPPORTED, outline
from rvedit.pipelines.checkpoints.quantized_files import is_quantized_file
from rvedit.pipelines.memory import (
    BITS,
    Offload,
    Quantize,
    check_placement,
    quantized_layers,
    transformer_stacks,
)
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

PROMPT_TOKENS = 64
"""Approximate text tokens of the multimodal LLM's prompt."""
UTILIZATION = {"vae": 0.12, "detail transfer": 0.01}
"""Share of the measured matrix FLOP/s that a component reaches: the VAE's fp32 convolutions reach 0.105 on
an H200 and 0.15 on a CPU core (benchmarks/real_edit.py)."""
USUAL_UTILIZATION = 0.6
"""The same for all others: the transformer reaches 0.65 on an H200."""
STEP = "a step"
USABLE_SHARE = 0.92
"""Share of a GPU's memory that a plan may use; the driver and the allocator need the rest."""


@dataclass(frozen=True)
class EditPlanOptions:
    """The options of an edit that change its memory and time."""

    dtype: torch.dtype = torch.bfloat16
    offload: Offload = "none"
    quantization: Quantize | None = None
    vae_tiling: bool = False
    steps: int | None = None
    guidance: float | None = None
    reconstruct: bool = True
    """Whether the source is reconstructed by the VAE, for detail transfer and `preserve`."""
    reference_image: bool = False
    transformer: Path | None = None
    """File with the transformer's weights, instead of the model's own."""

    def __post_init__(self) -> None:
        check_placement(self.offload, self.quantization)

    @property
    def words(self) -> str:
        """Return the options as on the command line."""
        parts = [] if self.offload in ("auto", "none") else [f"--offload {self.offload}"]
        parts += [f"--quantize {self.quantization}"] if self.quantization else []
        parts += ["--vae-tiling"] if self.vae_tiling else []
        return " ".join(parts) or "no option"


@dataclass(frozen=True)
class Stage:
    """A stage of an edit, with the modules that it needs on the device."""

    name: str
    modules: tuple[str, ...]
    work: int
    """Peak bytes in addition to weights."""
    flops: float
    """FLOPs per window; for the transformer, per denoising step."""


@dataclass(frozen=True)
class EditPlan:
    """The memory and time of an edit."""

    options: EditPlanOptions
    size: tuple[int, int]
    """Height and width in the model, in pixels."""
    windows: int
    steps: int
    weights: dict[str, int]
    """Bytes, by module."""
    stages: tuple[Stage, ...]
    device_bytes: int
    """Peak bytes on the device that computes."""
    host_bytes: int
    """Peak bytes of host memory, if that is separate."""

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        options = self.options
        return {
            "options": options.words,
            "dtype": str(options.dtype).removeprefix("torch."),
            "model_size": self.size,
            "windows": self.windows,
            "steps": self.steps,
            "weights_bytes": self.weights,
            "stage_bytes": {stage.name: stage.work for stage in self.stages},
            "device_bytes": self.device_bytes,
            "host_bytes": self.host_bytes,
            "step_flops": self._step.flops,
            "window_flops_beside_steps": sum(stage.flops for stage in self._others),
        }

    def seconds(self, flops_per_second: float) -> tuple[float, float]:
        """Return the seconds (per denoising step, in total) on a device with this matrix product FLOP/s."""

        def seconds(stage: Stage) -> float:
            share = UTILIZATION.get(stage.modules[0] if stage.modules else stage.name, USUAL_UTILIZATION)
            return stage.flops / (flops_per_second * share)

        step = seconds(self._step)
        others = sum(seconds(stage) for stage in self._others)
        return step, self.windows * (self.steps * step + others)

    @property
    def _step(self) -> Stage:
        return next(stage for stage in self.stages if stage.name == STEP)

    @property
    def _others(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.name != STEP]


class Planner:
    """Plans edits of one clip with one model; stages are measured once and cached.

    Raises UserError for a model that plans do not support.
    """

    def __init__(self, clip: ClipShape, model: str) -> None:
        self.clip = clip
        if model in BASELINES:
            raise UserError(f"`plan` with `model` {model}: {SUPPORTED}")
        self.pipeline, self.model = outline(model), model
        self._stage_cache: dict[tuple[Any, ...], tuple[Stage, ...]] = {}

    def __call__(self, options: EditPlanOptions) -> EditPlan:
        """Return the plan with these options."""
        pipeline, clip = self.pipeline, self.clip
        file = options.transformer or Path(self.model).expanduser()
        options = replace(options, transformer=file if is_quantized_file(file) else None)
        if options.reference_image and not pipeline.reads_reference_images:
            raise UserError("`reference`: this model reads no reference image: omit it")
        windows = WindowPlan.of(pipeline)
        frames = min(windows.length, clip.num_frames + (1 - clip.num_frames) % 4)
        rows, columns = pipeline.model_size(clip.height, clip.width)
        steps = options.steps or pipeline.config.default_steps
        guidance = pipeline.config.default_guidance if options.guidance is None else options.guidance
        conditions = 1 + (guidance != 1.0)
        names = [name for name in MODULE_CLASSES if getattr(pipeline, name) is not None]
        weights = {name: _weight_bytes(pipeline, name, options) for name in names}
        stages = self._stages(ClipShape(frames, rows, columns), options, conditions)
        if options.reconstruct:
            stages += (_detail_stage(clip, columns, frames),)
        total = sum(weights.values())
        # Weights are quantized after they have been loaded.
        loaded = sum(_weight_bytes(pipeline, name, replace(options, quantization=None)) for name in names)
        work = max(stage.work for stage in stages)
        if options.offload in ("auto", "none"):
            device = total + work
        elif options.offload == "model":
            # The VAE, the last module of the offloading chain, stays on the device after encoding the source.
            peaks = [stage.work + sum(weights[name] for name in {*stage.modules, "vae"}) for stage in stages]
            device = max(peaks)
        else:
            layers = [module for name in names for module in getattr(pipeline, name).modules()]
            largest = max(sum(p.numel() for p in layer.parameters(recurse=False)) for layer in layers)
            device = work + 2 * largest * options.dtype.itemsize
        # The host has the frames of source and edit, and those that detail transfer buffers for smoothing.
        buffered = frames + REACH
        host = loaded + 3 * rows * columns * (2 * frames + 2 * options.reconstruct * buffered)
        count = windows.count(clip.num_frames)
        return EditPlan(options, (rows, columns), count, steps, weights, stages, device, host)

    def _stages(self, clip: ClipShape, options: EditPlanOptions, conditions: int) -> tuple[Stage, ...]:
        """Return the stages except detail transfer, which depend only on dtype, tiling and guidance."""
        encoding, decoding = self._cached(_vae_stages, clip, options.vae_tiling)
        decoded_clips = 1 + options.reconstruct
        steps = self._cached(_transformer_stages, clip, options.dtype, conditions, options.reference_image)
        return (encoding, *steps, replace(decoding, flops=decoding.flops * decoded_clips))

    def _cached(self, measure: Callable[..., Iterator[Stage]], *args: Any) -> tuple[Stage, ...]:
        key = (measure, *args)
        if key not in self._stage_cache:
            self._stage_cache[key] = tuple(measure(self.pipeline, *args))
        return self._stage_cache[key]


def plan_edit(clip: ClipShape, model: str, options: EditPlanOptions) -> EditPlan:
    """Return the plan of editing a clip. Raises UserError for a model that plans do not support."""
    return Planner(clip, model)(options)


def find_fitting_plan(
    planner: Planner, options: EditPlanOptions, gpu_bytes: float, below: float = float("inf")
) -> EditPlan | None:
    """Return the fastest plan that fits a GPU and needs less than `below` bytes, or None."""
    choices: list[tuple[Offload, Quantize | None, bool]] = [  # from the fastest to the smallest
        ("none", None, False),
        ("none", None, True),
        ("model", None, False),
        ("model", None, True),
        ("model", "fp8", True),
        ("group", None, True),
        ("group", "nf4", True),
    ]
    for offload, quantization, tiling in choices:
        chosen = replace(options, offload=offload, quantization=quantization, vae_tiling=tiling)
        plan = planner(chosen)
        if plan.device_bytes <= USABLE_SHARE * gpu_bytes and plan.device_bytes < below:
            return plan
    return None


def suggest_options(clip: ClipShape, model: str, options: EditPlanOptions, gpu_bytes: float) -> str:
    """Return a remedy for an edit that did not fit a GPU, as the end of an error message."""
    try:
        planner = Planner(clip, model)
    except UserError:  # plans do not support the model
        return "try `offload` model or group, `vae_tiling` or `quantization` nf4"
    plan = find_fitting_plan(planner, options, gpu_bytes, below=planner(options).device_bytes)
    if plan is None:
        return f"no options fit {gpu_bytes / 1e9:.3g} GB: use a smaller clip or a larger GPU"
    return f"{plan.options.words} would need {plan.device_bytes / 1e9:.3g} GB of {gpu_bytes / 1e9:.3g}"


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product on this device.

    It is repeated until it gets no faster: an idle GPU needs some tenths of a second to raise its clock.
    """
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    a @ a
    best, since_best = float("inf"), 0
    while since_best < (3 if device.type == "cpu" else 50):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        since_best = 0 if seconds < 0.98 * best else since_best + 1
        best = min(best, seconds)
    return 2 * size**3 / best


def _weight_bytes(pipeline: RVEDiTPipeline, name: str, options: EditPlanOptions) -> int:
    module = getattr(pipeline, name)
    total = sum(parameter.numel() for parameter in module.parameters())
    if name == "vae":
        return 4 * total
    if name == "transformer" and options.transformer is not None:  # quantized
        # One matrix at a time is converted to the dtype.
        matrix = max(parameter.numel() for parameter in module.blocks.parameters())
        return options.transformer.stat().st_size + matrix * options.dtype.itemsize
    quantized = 0.0
    if options.quantization:
        stack = transformer_stacks(pipeline).get(name, nn.Module())
        matrices = sum(layer.weight.numel() for layer in quantized_layers(stack, options.quantization))
        quantized = matrices * BITS[options.quantization] / 8
        total -= matrices
    return round(total * options.dtype.itemsize + quantized)


def _stage(name: str, modules: tuple[str, ...], call: Callable[[], Any], times: int = 1) -> Stage:
    with FlopCounterMode(display=False) as counter:
        work = peak_bytes(call)
    return Stage(name, modules, work, float(counter.get_total_flops()) * times)


def _vae_stages(pipeline: RVEDiTPipeline, clip: ClipShape, tiling: bool) -> Iterator[Stage]:
    """Yield the stages of encoding the source and decoding the edit, in fp32."""
    vae = pipeline.vae
    spatial, temporal = vae.config.scale_factor_spatial, vae.config.scale_factor_temporal
    tile = (vae.tile_sample_min_height, vae.tile_sample_min_width) if tiling else (10**6, 10**6)
    rows, columns = min(clip.height, tile[0]), min(clip.width, tile[1])
    # The VAE processes one latent frame at a time, and three are enough to reach its peak.
    frames = min(clip.num_frames, 1 + 2 * temporal)
    pixels = torch.empty(1, 3, frames, rows, columns, device="meta")
    grid = (1 + (frames - 1) // temporal, rows // spatial, columns // spatial)
    latents = torch.empty(1, vae.config.z_dim, *grid, device="meta")

    def decode() -> None:
        for _ in StreamDecoder(vae)(latents):
            pass

    clip_bytes = 12 * clip.num_frames * clip.height * clip.width
    # With tiling the whole clip is decoded at once, and there are two copies while tiles are blended.
    tiled = 2 * clip_bytes * (rows * columns < clip.height * clip.width)
    scale = clip.num_frames * clip.height * clip.width / (frames * rows * columns)
    encoding = _stage("reading the source", ("vae",), lambda: encode(vae, pixels.clone()))
    yield replace(encoding, work=encoding.work + clip_bytes, flops=encoding.flops * scale)
    decoding = _stage("decoding", ("vae",), decode)
    yield replace(decoding, work=decoding.work + tiled, flops=decoding.flops * scale)


def _transformer_stages(
    pipeline: RVEDiTPipeline, clip: ClipShape, dtype: torch.dtype, conditions: int, has_reference: bool
) -> Iterator[Stage]:
    """Yield the stages of the language models and of a denoising step of the transformer.

    A reference image is counted with as many tokens as it may have.
    """
    vae, transformer, connector = pipeline.vae, pipeline.transformer, pipeline.connector

    def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    spatial, temporal = vae.config.scale_factor_spatial, vae.config.scale_factor_temporal
    grid = (1 + (clip.num_frames - 1) // temporal, clip.height // spatial, clip.width // spatial)
    latents = empty(1, vae.config.z_dim, *grid, of=torch.float32)
    # With guidance, the transformer embeds one branch's tokens before the language models encode the other's.
    embedding = ("transformer",) if conditions > 1 else ()
    frame_processor = pipeline.edit_token_encoder.frame_processor
    vision = pipeline.mllm.config.vision_config
    rows, columns = frame_processor.size(clip.height, clip.width)
    pairs = -(-min(clip.num_frames, frame_processor.max_frames) // vision.temporal_patch_size)
    tokens = pairs * (rows // frame_processor.grid) * (columns // frame_processor.grid)
    num_queries, reference_tokens = connector.config.num_queries, 0
    if has_reference:
        num_queries = connector.config.num_reference_queries
        reference_tokens = connector.config.max_reference_tokens
    length = tokens + reference_tokens + PROMPT_TOKENS + num_queries
    num_edit_tokens = reference_tokens + num_queries
    language = _cast(pipeline.mllm.model.language_model, dtype)
    states = empty(1, length, connector.config.llm_width)
    positions = torch.empty(3, 1, length, dtype=torch.long, device="meta")
    yield _stage(
        "editing tokens",
        ("mllm", "connector", *embedding),
        lambda: language(inputs_embeds=states.clone(), position_ids=positions, use_cache=False),
        conditions,
    )
    text = None
    if pipeline.text_encoder is not None:
        text_length = pipeline.config.max_text_length
        encoder = _cast(pipeline.text_encoder, dtype)
        ids = torch.empty(1, text_length, dtype=torch.long, device="meta")
        text = empty(1, text_length, encoder.config.d_model)
        yield _stage("text tokens", ("text_encoder", *embedding), lambda: encoder(ids), conditions)

    model = _cast(transformer, dtype)
    edit_tokens = empty(1, num_edit_tokens, connector.config.width)
    reference = latents[:, :, :1].to(dtype) if has_reference else None

    def two_steps() -> None:
        groups = [
            model.embed_tokens(edit_tokens, latents.to(dtype), text, reference) for _ in range(conditions)
        ]
        contexts = [model.contexts(tokens, model.reuse_pays(tokens)) for tokens in groups]
        for _ in range(2):
            for tokens, context in zip(groups, contexts, strict=True):
                model(latents.to(dtype), empty(1, of=torch.float32), tokens, context)

    shape = Shape(
        dict(transformer.config), (grid[0] + has_reference, *grid[1:]), num_edit_tokens,
        pipeline.config.max_text_length if text is not None else 0,
    )  # fmt: skip
    flops = conditions * forward_flops(shape, context_lengths(shape), reuse=True)
    yield Stage(STEP, ("transformer",), peak_bytes(two_steps), flops)


def _detail_stage(clip: ClipShape, columns: int, frames: int) -> Stage:
    """Return the stage of detail transfer, in fp32.

    Memory: 12 channels at the source's height and the model's width, and a band of rows at the source's
    width. FLOPs per pixel: 9 products, and resizing of 12 channels with 4 taps each.
    """
    pixels = clip.height * clip.width
    work = 4 * (12 * clip.height * columns + (12 + 12) * min(pixels, BAND_PIXELS))
    return Stage("detail transfer", (), work, 2.0 * frames * pixels * (9 + 12 * 4))


def _cast(module: Any, dtype: torch.dtype) -> Any:
    """Cast a module without diffusers' warning about parts in fp32, which is about real weights."""
    return nn.Module.to(module, dtype)
