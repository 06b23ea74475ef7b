"""Inference (Algorithm 2): an edited clip from a clip and an instruction, with no reference branch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from rvedit.editing.finish import EditedFrames, finish, read_twice
from rvedit.model.conditioning import condition
from rvedit.model.cross_attention import BlockContext
from rvedit.model.edit_tokens import EditTokenConnector, EditTokenEncoder
from rvedit.model.latents import StreamDecoder, encode
from rvedit.model.routing import Conditioning
from rvedit.model.step_cache import begin_window
from rvedit.model.transformer import RoutedWanTransformer3DModel
from rvedit.provenance import Provenance
from rvedit.records import EditSettings, Progress
from rvedit.video_tensors import Frames, resize_frames, to_frames, to_model_range
from rvedit.windows import Window, WindowNoise, WindowPlan, carry_over, split


@dataclass(frozen=True)
class _Condition:
    """One condition of a window (with or without the instruction) and what its blocks keep over the steps."""

    conditioning: Conditioning
    contexts: list[BlockContext] | None


class RVEDiTPipeline(DiffusionPipeline):
    """Edits clips of any length and size.

    Args (beside the modules):
        max_text_length: tokens of the instruction that the text encoder reads.
        window_frames, window_stride: frames edited at once, and from one window's start to the next.
        min_area, max_area: pixels of a frame inside the model; others are resized there and back.
        default_steps, default_guidance: sampling where the settings leave it open.
        sigma_min: where the schedule would end before its shift; the last step goes to 0 all the same.
        noise_share: of the initial noise's variance, what all frames of a clip have in common.
        round_up: sizes go up to the model's grid, as Kiwi-Edit's do, instead of to the nearest multiple.

    `text_encoder` and `tokenizer` may be absent where every block reads X_e alone.
    """

    # The order in which they compute: each sends the one before it back to the CPU.
    model_cpu_offload_seq = "mllm->connector->text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012 (diffusers' name and type)

    def __init__(
        self,
        transformer: RoutedWanTransformer3DModel,
        connector: EditTokenConnector,
        mllm: Qwen2_5_VLForConditionalGeneration,
        text_encoder: UMT5EncoderModel | None,
        vae: AutoencoderKLWan,
        tokenizer: Any,
        mllm_tokenizer: Any,
        scheduler: FlowMatchEulerDiscreteScheduler,
        max_text_length: int = 512,
        window_frames: int = 81,
        window_stride: int = 64,
        min_area: int = 256 * 256,
        max_area: int = 704 * 1280,
        default_steps: int = 50,
        default_guidance: float = 1.0,
        sigma_min: float = 0.0,
        noise_share: float = 0.0,
        round_up: bool = False,
    ) -> None:
        super().__init__()
        self.provenance = Provenance()
        self.register_modules(
            transformer=transformer,
            connector=connector,
            mllm=mllm,
            text_encoder=text_encoder,
            vae=vae,
            tokenizer=tokenizer,
            mllm_tokenizer=mllm_tokenizer,
            scheduler=scheduler,
        )
        self.register_to_config(
            max_text_length=max_text_length,
            window_frames=window_frames,
            window_stride=window_stride,
            min_area=min_area,
            max_area=max_area,
            default_steps=default_steps,
            default_guidance=default_guidance,
            sigma_min=sigma_min,
            noise_share=noise_share,
            round_up=round_up,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> RVEDiTPipeline:
        """Load as diffusers does, in `torch_dtype` or else in fp32; the VAE is in fp32 in any case.

        A folder's record of where its weights come from is kept.
        """
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
        dtypes = {**(dtype if isinstance(dtype, dict) else {"default": dtype}), "vae": torch.float32}
        pipeline: RVEDiTPipeline = super().from_pretrained(
            pretrained_model_name_or_path, dtype=dtypes, **kwargs
        )
        pipeline.provenance = Provenance.read(Path(pretrained_model_name_or_path))
        return pipeline

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """The names of what is no module."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return tuple(p.name for p in parameters if p.default is not inspect.Parameter.empty)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As diffusers', and a model card with where the weights come from; `push_to_hub` has its own way."""
        folder = Path(save_directory)
        super().save_pretrained(folder, *args, **{**kwargs, "push_to_hub": False})
        blocks, depth = len(self.transformer.blocks), self.transformer.config.routing_depth
        count = sum(
            p.numel()
            for part in self.components.values()
            if hasattr(part, "parameters")
            for p in part.parameters()
        )
        facts = {
            "parameters": f"{count / 1e9:.3g} billion",
            "blocks, routing depth": f"{blocks}, {depth}",
            "editing tokens": self.connector.config.num_queries,
            "frames at once": self.config.window_frames,
            "steps, guidance": f"{self.config.default_steps}, {self.config.default_guidance:g}",
        }
        self.provenance.write(folder, kwargs.get("repo_id") or folder.resolve().name, facts)
        if kwargs.get("push_to_hub"):
            options = {key: kwargs[key] for key in ("private", "token") if key in kwargs}
            self.push_to_hub(kwargs.get("repo_id") or folder.resolve().name, folder=folder, **options)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        folder: str | Path | None = None,
    ) -> str:
        """Upload the pipeline, or a folder that it was saved to; returns the address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as temporary:
            if folder is None:
                folder = Path(temporary) / repo_id.rpartition("/")[2]
                self.save_pretrained(folder)
            api.upload_folder(repo_id=repo.repo_id, folder_path=str(folder))
        return str(repo)

    @property
    def edit_token_encoder(self) -> EditTokenEncoder:
        """g_phi of Alg. 1."""
        return EditTokenEncoder(self.mllm, self.mllm_tokenizer, self.connector, self._execution_device)

    @property
    def window_plan(self) -> WindowPlan:
        """How long clips are cut."""
        return WindowPlan(self.config.window_frames, self.config.window_stride)

    def window_noise(self, seed: int) -> WindowNoise:
        """Where the windows of a clip draw their initial noise."""
        return WindowNoise(self.window_plan, seed, self.config.noise_share)

    def __call__(self, frames: Frames, instruction: str, settings: EditSettings | None = None) -> Frames:
        """Edit a clip in memory: uint8 (t, h, w, 3) -> the same shape (Eq. 1)."""
        return np.stack(list(self.stream(frames, instruction, settings)))

    def stream(
        self,
        frames: Iterable[Frames],
        instruction: str,
        settings: EditSettings | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Iterator[Frames]:
        """Edit a stream of frames (h, w, 3), holding one window at a time; as many come out as go in."""
        settings = settings or EditSettings()
        source, originals = read_twice(frames) if settings.reads_reconstruction else (iter(frames), None)
        first = next(source, None)
        if first is None:
            return
        inside = self.model_size(*first.shape[:2])
        resized = (resize_frames(frame[None], *inside)[0] for frame in chain([first], source))
        windows = self._edit_windows(resized, instruction, settings, on_progress)
        originals = repeat(first) if originals is None else originals
        yield from finish(windows, originals, settings, self.detail_cell, self._execution_device)
        self.maybe_free_model_hooks()

    @property
    def detail_cell(self) -> int:
        """Of detail transfer: half of a latent's side, in pixels of the model's size."""
        return int(self.vae.config.scale_factor_spatial // 2)

    def _edit_windows(
        self,
        frames: Iterable[Frames],
        instruction: str,
        settings: EditSettings,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[EditedFrames]:
        """The frames that each window adds, at the model's size."""
        edit = _ClipEdit(self, instruction, settings)
        for window in split(frames, self.window_plan):

            def report(step: int, num_steps: int, index: int = window.index) -> None:
                on_progress(Progress(index + 1, step, num_steps))

            latents = self._encode_window(window.frames)
            new = edit.next_window(window, latents, report)
            added = slice(window.first_new, window.end)
            reconstructed = None
            if settings.reads_reconstruction:
                reconstructed = self._decode(StreamDecoder(self.vae), latents)[added]
            count = window.end - window.first_new
            yield EditedFrames(new[:count], reconstructed, window.frames[added])

    @torch.no_grad()
    def _decode(self, decoder: StreamDecoder, latents: Tensor, known: int = 0) -> Frames:
        return decoder.frames(latents, known)

    def model_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size that the model takes: on its grid, of an area it knows, of about this shape."""
        grid = self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1]
        ratio = max(height, width) / min(height, width)
        if ratio > 100:  # a strip: any shape will do, it is resized back
            height, width = (100, 10_000) if width > height else (10_000, 100)
        least, most = self.config.min_area, self.config.max_area
        if self.config.round_up and height * width >= least:
            scale = min(1.0, (most / (height * width)) ** 0.5)
            if scale < 1:
                height, width = (int(side * scale) // 16 * 16 for side in (height, width))
            return -(-height // grid) * grid, -(-width // grid) * grid
        rows, columns = smart_resize(height, width, grid, least, most)
        return int(rows), int(columns)

    @torch.no_grad()
    def edit_window(
        self,
        frames: Frames,
        instruction: str,
        settings: EditSettings,
        noise: WindowNoise,
        report: Callable[[int, int], None] = lambda step, num_steps: None,
    ) -> Float[Tensor, "1 c f h w"]:
        """Algorithm 2 up to z_0: the edited latents of 4k+1 frames at model size."""
        source = self._encode_window(frames)
        return self._edit_latents(source, [frames], [instruction], settings, noise, report)

    @torch.no_grad()
    def edit_together(
        self, clips: Sequence[Frames], instructions: Sequence[str], settings: EditSettings | None = None
    ) -> list[Frames]:
        """Edit clips of equal size and length in one pass, each as if it were edited alone.

        For many short clips on a device that one of them does not fill. Raises ValueError for clips longer
        than a window or unequal ones.
        """
        settings = settings or EditSettings()
        count, height, width = clips[0].shape[:3]
        if len({clip.shape for clip in clips}) > 1:
            raise ValueError("only clips of one size and length are edited together")
        if count > self.window_plan.length:
            raise ValueError(f"{count} frames are more than a window of {self.window_plan.length}")
        padded = [np.concatenate([clip, clip[-1:].repeat((1 - count) % 4, axis=0)]) for clip in clips]
        frames = [resize_frames(clip, *self.model_size(height, width)) for clip in padded]
        source = torch.cat([self._encode_window(clip) for clip in frames])
        noise = self.window_noise(settings.seed)
        latents = self._edit_latents(source, frames, instructions, settings, noise)
        edited = self._decode_clips(latents)
        pictures = self._decode_clips(source) if settings.reads_reconstruction else [None] * len(clips)
        self.maybe_free_model_hooks()
        finished = []
        for clip, seen, edit, picture in zip(clips, frames, edited, pictures, strict=True):
            window = EditedFrames(edit[:count], None if picture is None else picture[:count], seen[:count])
            output = finish([window], clip, settings, self.detail_cell, self._execution_device)
            finished.append(np.stack(list(output)))
        return finished

    def _decode_clips(self, latents: Float[Tensor, "b c f h w"]) -> list[Frames]:
        parts = [part.float().cpu() for part in StreamDecoder(self.vae)(latents)]
        return [to_frames(clip) for clip in torch.cat(parts, dim=2)]

    @torch.no_grad()
    def _encode_window(self, frames: Frames) -> Tensor:
        return encode(self.vae, to_model_range(frames)[None].to(self._execution_device))

    @torch.no_grad()
    def _edit_latents(
        self,
        source: Tensor,
        frames: Sequence[Frames],
        instructions: Sequence[str],
        settings: EditSettings,
        noise: WindowNoise,
        report: Callable[[int, int], None] = lambda step, num_steps: None,
        known: Tensor | None = None,
    ) -> Tensor:
        """z_0 of a window of each clip, whose first latents may be `known`: at every step those are where
        they would be on their way from the noise, so that the others are drawn to go with them.
        """
        device = self._execution_device
        conditional = self._condition(source, frames, instructions, settings)
        guidance = (
            self.config.default_guidance if settings.guidance_scale is None else settings.guidance_scale
        )
        nothing = [""] * len(instructions)
        unconditional = self._condition(source, frames, nothing, settings) if guidance != 1.0 else None

        num_steps = settings.num_inference_steps or self.config.default_steps
        # From pure noise to the target; the scheduler shifts them once and ends at 0.
        sigmas = np.linspace(1, self.config.sigma_min, num_steps + 1)[:-1]
        self.scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)
        # The same for all clips, so that each is edited as it would be alone.
        initial = latents = noise.draw((1, *source.shape[1:])).to(device).expand(source.shape)
        begin_window(self.transformer, num_steps)
        given = 0 if known is None else known.shape[2]
        for step, timestep in enumerate(self.scheduler.timesteps, start=1):
            velocity = self._velocity(latents, timestep, conditional, "conditional")
            if unconditional is not None:
                baseline = self._velocity(latents, timestep, unconditional, "unconditional")
                velocity = baseline + guidance * (velocity - baseline)
            latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            if known is not None:
                sigma = self.scheduler.sigmas[step]
                latents[:, :, :given] = (1 - sigma) * known + sigma * initial[:, :, :given]
            report(step, num_steps)
        return latents

    def _condition(
        self, source: Tensor, frames: Sequence[Frames], instructions: Sequence[str], settings: EditSettings
    ) -> _Condition:
        """Alg. 2, lines 1-2."""
        seen = [self.edit_token_encoder.sight(clip) for clip in frames]
        conditioning = condition(self, source.to(self.transformer.dtype), seen, instructions)
        contexts = self.transformer.contexts(conditioning, reuse=True) if settings.reuse_key_values else None
        return _Condition(conditioning, contexts)

    def _velocity(self, latents: Tensor, timestep: Tensor, given: _Condition, name: str) -> Tensor:
        """`name` keeps apart what step caches remember of the two conditions."""
        model = self.transformer
        with model.cache_context(name) if model.is_cache_enabled else nullcontext():
            time = timestep.expand(len(latents))
            output = model(latents.to(model.dtype), time, given.conditioning, given.contexts)
        return output.sample.float()


class _ClipEdit:
    """The windows of a clip in their order: each goes on from what was edited before it, from its own first
    frame and the latents that they share.
    """

    def __init__(self, pipeline: RVEDiTPipeline, instruction: str, settings: EditSettings) -> None:
        self.pipeline, self.instruction, self.settings = pipeline, instruction, settings
        self.noise = pipeline.window_noise(settings.seed)
        self.decoder = StreamDecoder(pipeline.vae)
        self.latents: Tensor | None = None
        self.decoded: Frames | None = None  # of the last window, at the model's size

    def next_window(self, window: Window, source: Tensor, report: Callable[[int, int], None]) -> Frames:
        """The frames that it adds, at the model's size."""
        pipeline, plan = self.pipeline, self.pipeline.window_plan
        known = None
        if self.latents is not None and self.decoded is not None:
            first = pipeline._encode_window(self.decoded[plan.stride : plan.stride + 1])
            known = carry_over(self.latents, first, plan)
        self.latents = pipeline._edit_latents(
            source, [window.frames], [self.instruction], self.settings, self.noise, report, known
        )
        new = pipeline._decode(self.decoder, self.latents, 0 if known is None else known.shape[2])
        earlier = [] if self.decoded is None else [self.decoded[plan.stride :]]
        self.decoded = np.concatenate([*earlier, new])
        return new
