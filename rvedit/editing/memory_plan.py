"""`rvedit edit --plan`: what an edit will take, before any weight is loaded.

Memory is found by running the editor's own modules on the meta device (`rvedit.editing.peak_memory`), time by
counting operations and measuring what this device multiplies. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rvedit.editing.detail import BAND_PIXELS, DetailSettings
from rvedit.editing.peak_memory import peak_bytes
from rvedit.editing.windows import WindowPlan
from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.models.autoencoder import StreamDecoder, encode
from rvedit.models.flops import Shape, context_lengths, forward_flops
from rvedit.pipelines.baselines import BASELINES
from rvedit.pipelines.checkpoints import MODULE_CLASSES
from rvedit.pipelines.checkpoints.outline import PLANNED, outline
from rvedit.pipelines.memory import (
    BITS,
    Offload,
    Quantize,
    check_placement,
    quantized_layers,
    transformer_stacks,
)
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

WORDS = 64
"""Of the multimodal LLM's prompt, roughly."""
UTILIZATION = {"vae": 0.12, "detail transfer": 0.01}
"""Of the device's measured matrix rate that a component reaches: the VAE's convolutions, in fp32, 0.105 on an
H200 and 0.15 on a CPU's core (benchmarks/real_edit.py)."""
USUAL_UTILIZATION = 0.6
"""Of the others: the transformer reaches 0.65 on an H200."""
STEP = "a step"
ROOM = 0.92
"""Of a card's memory that a plan may fill: the driver and the allocator want some."""


@dataclass(frozen=True)
class EditPlanOptions:
    """What the user may switch."""

    dtype: torch.dtype = torch.bfloat16
    offload: Offload = "none"
    quantization: Quantize | None = None
    vae_tiling: bool = False
    steps: int | None = None
    guidance: float | None = None
    reconstruct: bool = True
    """Also decodes the source's latents, for detail transfer and `--preserve`."""

    def __post_init__(self) -> None:
        check_placement(self.offload, self.quantization)

    @property
    def words(self) -> str:
        """As they are written on the command line."""
        parts = [] if self.offload in ("auto", "none") else [f"--offload {self.offload}"]
        parts += [f"--quantize {self.quantization}"] if self.quantization else []
        parts += ["--vae-tiling"] if self.vae_tiling else []
        return " ".join(parts) or "no option"


@dataclass(frozen=True)
class Stage:
    """A part of an edit: who is needed, what it holds beside its weights, and what it computes."""

    name: str
    modules: tuple[str, ...]
    work: int
    """Bytes."""
    flops: float
    """Of one window; of one step where it is the transformer's."""


@dataclass(frozen=True)
class EditPlan:
    """The answer."""

    options: EditPlanOptions
    size: tuple[int, int]
    """Rows and columns inside the model, pixels."""
    windows: int
    steps: int
    weights: dict[str, int]
    """Bytes, by component."""
    stages: tuple[Stage, ...]
    device_bytes: int
    """Peak on the device that computes."""
    host_bytes: int
    """Peak of the host's memory, where that is another."""

    def as_json(self) -> dict[str, Any]:
        """For a program."""
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
        """(per step, in total) at a matrix rate of which a part is reached."""

        def seconds(stage: Stage) -> float:
            part = UTILIZATION.get(stage.modules[0] if stage.modules else stage.name, USUAL_UTILIZATION)
            return stage.flops / (flops_per_second * part)

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
    """Plans edits of one clip by one model, whose outline and stages are found once.

    Raises UserError for an editor that is not RVEDiT's kind.
    """

    def __init__(self, clip: ClipShape, model: str) -> None:
        self.clip = clip
        if model in BASELINES:
            raise UserError(f"--plan {model}: {PLANNED}")
        self.pipeline = outline(model)
        self._known: dict[tuple[Any, ...], tuple[Stage, ...]] = {}

    def __call__(self, options: EditPlanOptions) -> EditPlan:
        """What the edit takes with these options."""
        pipeline, clip = self.pipeline, self.clip
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
        everything = sum(weights.values())
        # They are quantised once they are read.
        read = sum(_weight_bytes(pipeline, name, replace(options, quantization=None)) for name in names)
        most = max(stage.work for stage in stages)
        if options.offload in ("auto", "none"):
            device = everything + most
        elif options.offload == "model":
            # The VAE, the last in the chain, is sent back by nobody once it has read the source.
            held = [stage.work + sum(weights[name] for name in {*stage.modules, "vae"}) for stage in stages]
            device = max(held)
        else:
            layers = [module for name in names for module in getattr(pipeline, name).modules()]
            largest = max(sum(p.numel() for p in layer.parameters(recurse=False)) for layer in layers)
            device = most + 2 * largest * options.dtype.itemsize
        # Frames as they come and as they go lie on the host, and those whose detail waits for later ones.
        waiting = frames + DetailSettings().frames
        host = read + 3 * rows * columns * (2 * frames + 2 * options.reconstruct * waiting)
        count = windows.count(clip.num_frames)
        return EditPlan(options, (rows, columns), count, steps, weights, stages, device, host)

    def _stages(self, clip: ClipShape, options: EditPlanOptions, conditions: int) -> tuple[Stage, ...]:
        """They depend on neither offloading nor quantisation, and on tiling the VAE's alone."""
        reading, decoding = self._once(_vae_stages, clip, options.vae_tiling)
        pictures = 1 + options.reconstruct
        steps = self._once(_transformer_stages, clip, options.dtype, conditions)
        return (reading, *steps, replace(decoding, flops=decoding.flops * pictures))

    def _once(self, find: Callable[..., Iterator[Stage]], *given: Any) -> tuple[Stage, ...]:
        key = (find, *given)
        if key not in self._known:
            self._known[key] = tuple(find(self.pipeline, *given))
        return self._known[key]


def plan_edit(clip: ClipShape, model: str, options: EditPlanOptions) -> EditPlan:
    """What editing a clip takes. Raises UserError for an editor that is not RVEDiT's kind."""
    return Planner(clip, model)(options)


def find_fitting_plan(
    planner: Planner, options: EditPlanOptions, card_bytes: float, below: float = float("inf")
) -> EditPlan | None:
    """The first plan that fits a card and takes less than `below`, from the fastest to the smallest."""
    ladder: list[tuple[Offload, Quantize | None, bool]] = [
        ("none", None, False),
        ("none", None, True),
        ("model", None, False),
        ("model", None, True),
        ("model", "fp8", True),
        ("group", None, True),
        ("group", "nf4", True),
    ]
    for offload, quantization, tiling in ladder:
        chosen = replace(options, offload=offload, quantization=quantization, vae_tiling=tiling)
        plan = planner(chosen)
        if plan.device_bytes <= ROOM * card_bytes and plan.device_bytes < below:
            return plan
    return None


def suggest_options(clip: ClipShape, model: str, options: EditPlanOptions, card_bytes: float) -> str:
    """What to say where an edit did not fit a card of so many bytes."""
    try:
        planner = Planner(clip, model)
    except UserError:  # no plan is made for it
        return "try --offload model or group, --vae-tiling or --quantize nf4"
    plan = find_fitting_plan(planner, options, card_bytes, below=planner(options).device_bytes)
    if plan is None:
        return (
            f"nothing makes this edit fit {card_bytes / 1e9:.3g} GB: edit a smaller clip, or on a larger card"
        )
    return f"{plan.options.words} would take {plan.device_bytes / 1e9:.3g} GB of {card_bytes / 1e9:.3g}"


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions a second of this device, measured on one product that fills it.

    Until it gets no faster: a GPU that was idle takes some tenths of a second to raise its clock.
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
    small = 0.0
    if options.quantization:
        stack = transformer_stacks(pipeline).get(name, nn.Module())
        matrices = sum(layer.weight.numel() for layer in quantized_layers(stack, options.quantization))
        small = matrices * BITS[options.quantization] / 8
        total -= matrices
    return round(total * options.dtype.itemsize + small)


def _stage(name: str, modules: tuple[str, ...], call: Callable[[], Any], times: int = 1) -> Stage:
    with FlopCounterMode(display=False) as counter:
        work = peak_bytes(call)
    return Stage(name, modules, work, float(counter.get_total_flops()) * times)


def _vae_stages(pipeline: RVEDiTPipeline, clip: ClipShape, tiling: bool) -> Iterator[Stage]:
    """Reading the source and decoding the edit, in fp32."""
    vae = pipeline.vae
    spatial, temporal = vae.config.scale_factor_spatial, vae.config.scale_factor_temporal
    tile = (vae.tile_sample_min_height, vae.tile_sample_min_width) if tiling else (10**6, 10**6)
    rows, columns = min(clip.height, tile[0]), min(clip.width, tile[1])
    # The VAE works frame by frame, and three latent frames are enough to reach its peak.
    few = min(clip.num_frames, 1 + 2 * temporal)
    pixels = torch.empty(1, 3, few, rows, columns, device="meta")
    grid = (1 + (few - 1) // temporal, rows // spatial, columns // spatial)
    latents = torch.empty(1, vae.config.z_dim, *grid, device="meta")

    def decode() -> None:
        for _ in StreamDecoder(vae)(latents):
            pass

    given = 12 * clip.num_frames * clip.height * clip.width
    # What the tiles are put together into; the whole clip comes at once then, and twice as it is blended.
    tiled = 2 * given * (rows * columns < clip.height * clip.width)
    share = clip.num_frames * clip.height * clip.width / (few * rows * columns)
    reading = _stage("reading the source", ("vae",), lambda: encode(vae, pixels.clone()))
    yield replace(reading, work=reading.work + given, flops=reading.flops * share)
    decoding = _stage("decoding", ("vae",), decode)
    yield replace(decoding, work=decoding.work + tiled, flops=decoding.flops * share)


def _transformer_stages(
    pipeline: RVEDiTPipeline, clip: ClipShape, dtype: torch.dtype, conditions: int
) -> Iterator[Stage]:
    """The language models' reading, and a step of the transformer."""
    vae, transformer, connector = pipeline.vae, pipeline.transformer, pipeline.connector

    def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    spatial, temporal = vae.config.scale_factor_spatial, vae.config.scale_factor_temporal
    grid = (1 + (clip.num_frames - 1) // temporal, clip.height // spatial, clip.width // spatial)
    latents = empty(1, vae.config.z_dim, *grid, of=torch.float32)
    # What the transformer makes of one condition comes before the language models read the other.
    again = ("transformer",) if conditions > 1 else ()
    frame_processor = pipeline.edit_token_encoder.frame_processor
    vision = pipeline.mllm.config.vision_config
    seen_rows, seen_columns = frame_processor.size(clip.height, clip.width)
    pairs = -(-min(clip.num_frames, frame_processor.max_frames) // vision.temporal_patch_size)
    tokens = pairs * (seen_rows // frame_processor.grid) * (seen_columns // frame_processor.grid)
    length = tokens + WORDS + connector.config.num_queries
    language = _cast(pipeline.mllm.model.language_model, dtype)
    states = empty(1, length, connector.config.llm_width)
    places = torch.empty(3, 1, length, dtype=torch.long, device="meta")
    yield _stage(
        "editing tokens",
        ("mllm", "connector", *again),
        lambda: language(inputs_embeds=states.clone(), position_ids=places, use_cache=False),
        conditions,
    )
    text = None
    if pipeline.text_encoder is not None:
        words = pipeline.config.max_text_length
        encoder = _cast(pipeline.text_encoder, dtype)
        ids = torch.empty(1, words, dtype=torch.long, device="meta")
        text = empty(1, words, encoder.config.d_model)
        yield _stage("text tokens", ("text_encoder", *again), lambda: encoder(ids), conditions)

    model = _cast(transformer, dtype)
    edit_tokens = empty(1, connector.config.num_queries, connector.config.width)

    def two_steps() -> None:
        given = [model.embed_tokens(edit_tokens, latents.to(dtype), text) for _ in range(conditions)]
        read = [model.contexts(conditioning, reuse=True) for conditioning in given]
        for _ in range(2):
            for conditioning, contexts in zip(given, read, strict=True):
                model(latents.to(dtype), empty(1, of=torch.float32), conditioning, contexts)

    shape = Shape(
        dict(transformer.config), grid, connector.config.num_queries,
        pipeline.config.max_text_length if text is not None else 0,
    )  # fmt: skip
    flops = conditions * forward_flops(shape, context_lengths(shape), reuse=True)
    yield Stage(STEP, ("transformer",), peak_bytes(two_steps), flops)


def _detail_stage(clip: ClipShape, columns: int, frames: int) -> Stage:
    """Detail transfer: 12 channels at the source's height and the model's width, and a band of rows of its
    own width, in fp32; 9 products for each pixel and the resizing of 12 channels, of 4 taps each.
    """
    pixels = clip.height * clip.width
    work = 4 * (12 * clip.height * columns + (12 + 12) * min(pixels, BAND_PIXELS))
    return Stage("detail transfer", (), work, 2.0 * frames * pixels * (9 + 12 * 4))


def _cast(module: Any, dtype: torch.dtype) -> Any:
    """Without the library's advice on parts in fp32, which holds for weights."""
    return nn.Module.to(module, dtype)
