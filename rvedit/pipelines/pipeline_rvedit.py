"""Inference (Algorithm 2): edit one window of a clip by an instruction.

`rvedit.edit_video` edits clips of any length and size by calling this pipeline window by window.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from jaxtyping import Float
from torch import Tensor
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    UMT5EncoderModel,
)

from rvedit.io.frames import Frames, Picture, as_frames, to_model_range
from rvedit.models.autoencoder import StreamDecoder, encode
from rvedit.models.cross_attention import BlockContext
from rvedit.models.edit_tokens import EditTokenConnector, EditTokenEncoder
from rvedit.models.reference_images import ReferenceImages, as_pictures, pad_image
from rvedit.models.routing import TokenGroups
from rvedit.models.token_groups import encode_tokens
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.arguments import check_clips, check_sampling
from rvedit.pipelines.model_card import Provenance
from rvedit.pipelines.names import from_version_0_1
from rvedit.pipelines.noise import mix_shared_noise
from rvedit.pipelines.schedule import set_sigmas
from rvedit.pipelines.sigmas import check_shift, check_sigmas
from rvedit.pipelines.sizes import FrameSizes
from rvedit.pipelines.step_cache import reset_step_cache

StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
"""(pipeline, step, timestep, tensors) -> tensors to replace, as in diffusers."""


class RVEDiTPipeline(WanLoraLoaderMixin, DiffusionPipeline):
    """Pipeline that edits one window of a clip by an instruction.

    Args (in addition to the modules):
        max_text_length: maximum number of prompt tokens for the text encoder.
        window_frames, window_stride: frames per window, and frames between the starts of two windows.
        min_area, max_area: bounds of height x width inside the model; clips of other sizes are resized.
        default_steps, default_guidance: defaults of `num_inference_steps` and `guidance_scale`.
        sigma_min: last sigma of the schedule before the shift; the last step always ends at 0.
        shared_noise_ratio: share of the initial noise's variance that is common to all frames.
        round_up: round sizes up to multiples of the grid, as Kiwi-Edit does; see `FrameSizes`.

    `text_encoder` and `tokenizer` may be None if every block attends to the editing tokens alone. The VAE
    always computes in fp32.
    """

    # In the order of execution.
    model_cpu_offload_seq = "mllm->connector->text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012 (diffusers' name and type)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    reuse_key_values = True
    """Compute the cross-attention's keys and values once per call, not once per step, where that pays."""

    def __init__(
        self,
        transformer: RoutedWanTransformer3DModel,
        connector: EditTokenConnector,
        mllm: Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration,
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
        shared_noise_ratio: float = 0.0,
        round_up: bool = False,
    ) -> None:
        arguments = dict(locals())
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
        self.register_to_config(**{name: arguments[name] for name in RVEDiTPipeline.setting_names()})
        self.video_processor = VideoProcessor(vae_scale_factor=vae.config.scale_factor_spatial)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> RVEDiTPipeline:
        """Load a folder or hub id as diffusers does, in `torch_dtype` (default: fp32); the VAE in fp32."""
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
        dtypes = {**(dtype if isinstance(dtype, dict) else {"default": dtype}), "vae": torch.float32}
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            names = ("cache_dir", "force_download", "local_files_only", "revision", "token")
            options = {name: kwargs[name] for name in names if name in kwargs}
            folder = Path(cls.download(pretrained_model_name_or_path, **options))
        pipeline: RVEDiTPipeline = super().from_pretrained(folder, dtype=dtypes, **kwargs)
        pipeline.provenance = Provenance.read(folder)
        return pipeline

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Load model_index.json as diffusers does, with names of version 0.1 translated."""
        config = super().load_config(*args, **kwargs)
        if isinstance(config, tuple):
            return from_version_0_1(config[0]), *config[1:]
        return from_version_0_1(config)

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Return the names of the config's entries that are not modules."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return tuple(p.name for p in parameters if p.default is not inspect.Parameter.empty)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does, with a model card and the provenance of the weights."""
        folder = Path(save_directory)
        super().save_pretrained(folder, *args, **{**kwargs, "push_to_hub": False})
        blocks, depth = len(self.transformer.blocks), self.transformer.config.routing_depth
        modules = [module for module in self.components.values() if hasattr(module, "parameters")]
        count = sum(p.numel() for module in modules for p in module.parameters())
        facts = {
            "parameters": f"{count / 1e9:.3g} billion",
            "blocks, routing depth": f"{blocks}, {depth}",
            "editing tokens": self.connector.config.num_queries,
            "frames per window": self.config.window_frames,
            "steps, guidance": f"{self.config.default_steps}, {self.config.default_guidance:g}",
        }
        name = kwargs.get("repo_id") or folder.resolve().name
        self.provenance.write(folder, name, facts)
        if kwargs.get("push_to_hub"):
            options = {key: kwargs[key] for key in ("private", "token") if key in kwargs}
            self.push_to_hub(name, folder=folder, **options)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        folder: str | Path | None = None,
    ) -> str:
        """Upload the pipeline, or `folder` if it was saved there, and return the repository's URL."""
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
        """g_phi of Algorithm 1."""
        return EditTokenEncoder(self.mllm, self.mllm_tokenizer, self.connector, self._execution_device)

    @property
    def reads_reference_images(self) -> bool:
        """Whether the model was trained with reference images."""
        return bool(self.transformer.config.reads_reference_images)

    @property
    def grid(self) -> int:
        """Pixels per transformer token along each side; height and width are multiples of it."""
        return int(self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1])

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the current call."""
        return self._num_timesteps

    @property
    def sizes(self) -> FrameSizes:
        """Return the rules for the size of frames."""
        config = self.config
        return FrameSizes(self.grid, config.min_area, config.max_area, config.round_up)

    def model_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in multiples of `grid` at which a clip of this size is edited.

        The area is within the bounds. The aspect ratio is kept as far as the grid allows, up to 100.
        """
        return self.sizes.model_size(height, width)

    def set_timesteps(
        self,
        num_steps: int,
        device: torch.device,
        shift: float | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Set the scheduler's timesteps: of `sigmas`, or of a number of steps with a shift."""
        if sigmas is None:
            sigmas = np.linspace(1, self.config.sigma_min, num_steps + 1)[:-1].tolist()
            set_sigmas(self.scheduler, sigmas, self.scheduler.shift if shift is None else shift, device)
        else:
            set_sigmas(self.scheduler, sigmas, 1.0, device)
        self._num_timesteps = len(sigmas)

    @torch.no_grad()
    def encode_video(self, frames: Frames) -> Float[Tensor, "1 c f y x"]:
        """Return the normalized latents of 4k+1 frames (t, h, w, 3) whose size is a multiple of `grid`."""
        return encode(self.vae, to_model_range(frames)[None].to(self._execution_device))

    @torch.no_grad()
    def __call__(
        self,
        video: Any,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "b c f y x"] | None = None,
        source_latents: Float[Tensor, "b c f y x"] | None = None,
        prefix_latents: Float[Tensor, "b c k y x"] | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        shift: float | None = None,
        sigmas: Sequence[float] | None = None,
        reference_image: Any = None,
    ) -> Any:
        """Edit a clip of at most `window_frames` frames (Eq. 1 by Algorithm 2).

        Args:
            video: frames as a list of PIL images or arrays (h, w, 3), an array (t, h, w, 3) or a tensor
                (t, 3, h, w): uint8, or floats in [0, 1]. A batch of clips of equal size and length is a list
                of these, or has a leading axis.
            prompt: the instruction, or one for each clip.
            negative_prompt: prompt of the unconditional branch; empty by default.
            height, width: size to edit at, in multiples of `grid`; by default `model_size` of the video's.
            num_inference_steps, guidance_scale: by default the config's; guidance 1 needs one pass per step.
            generator: generator of the initial noise.
            latents: initial noise, instead of a generator.
            source_latents: the video's latents, if already computed (`encode_video`).
            prefix_latents: clean latents of the first frames, which are noised to each step's sigma and
                constrain the others. Windows after the first continue the edit in this way.
            output_type: `np` (b, t, h, w, 3) in [0, 1], `pil`, `pt` (b, t, 3, h, w) or `latent`.
            return_dict: return an object with `.frames` instead of a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in diffusers; may change `latents`.
            shift: shift of the timesteps; by default the scheduler's.
            sigmas: noise levels of the steps, used as they are instead of the number of steps and the shift.
            reference_image: a picture of what the prompt refers to, for models that read one; or a list with
                one for each clip. Their pictures must have one shape.

        Raises ValueError for invalid arguments, and for arguments that would have no effect.
        """
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        num_steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        if sigmas is not None:
            num_steps = len(sigmas := check_sigmas(sigmas))
        if shift is not None:
            check_shift(shift)
        clips = as_frames(video)
        num_frames = clips.shape[1]
        prompts = [prompt] * len(clips) if isinstance(prompt, str) else list(prompt)
        negatives = negative_prompt or ""
        negatives = [negatives] * len(clips) if isinstance(negatives, str) else list(negatives)
        size = self.model_size(*clips.shape[2:4]) if height is None or width is None else (height, width)
        check_clips(clips, prompts, negatives, self.config.window_frames)
        check_sampling(height, width, self.grid, num_steps, guidance, output_type)
        if negative_prompt is not None and guidance == 1.0:
            raise ValueError("`negative_prompt` has no effect with `guidance_scale` 1: omit it")
        if latents is not None and generator is not None:
            raise ValueError("`latents` replace the noise of `generator`: give one of them")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown.pop()}: only latents is available"
            )
        pictures = None if reference_image is None else as_pictures(reference_image, len(clips))
        if pictures and not self.reads_reference_images:
            raise ValueError("`reference_image`: this model reads none: leave it out")

        device = self._execution_device
        shown_size = self.sizes.mllm_size(*clips.shape[2:4]) if self.config.round_up else size
        shown = [self.sizes.resize(clip, *shown_size) for clip in clips]
        if source_latents is None:
            # The VAE needs 4k+1 frames: other clips are padded with their last frame, which is cut again.
            padding = (1 - num_frames) % self.vae.config.scale_factor_temporal
            frames = (self.sizes.resize(clip, *size) for clip in shown)
            padded = (np.concatenate([clip, clip[-1:].repeat(padding, axis=0)]) for clip in frames)
            source_latents = torch.cat([self.encode_video(clip) for clip in padded])
        if latents is None:
            latents = self._draw_noise(source_latents.shape, generator)
        if latents.shape != source_latents.shape:
            raise ValueError(
                f"`latents` have shape {tuple(latents.shape)}: give {tuple(source_latents.shape)}"
            )
        noise = latents = latents.to(device)

        references = None if pictures is None else self._encode_pictures(pictures, *size)
        conditional = self._encode_tokens(source_latents, shown, prompts, references)
        unconditional = None
        if guidance != 1.0:
            unconditional = self._encode_tokens(source_latents, shown, negatives, references)
        self.set_timesteps(num_steps, device, shift, sigmas)
        reset_step_cache(self.transformer, num_steps)
        with self.progress_bar(total=num_steps) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                velocity = self._velocity(latents, timestep, *conditional, "conditional")
                if unconditional is not None:
                    baseline = self._velocity(latents, timestep, *unconditional, "unconditional")
                    velocity = baseline + guidance * (velocity - baseline)
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if prefix_latents is not None:
                    sigma = self.scheduler.sigmas[step + 1]
                    prefix = slice(prefix_latents.shape[2])
                    latents[:, :, prefix] = (1 - sigma) * prefix_latents + sigma * noise[:, :, prefix]
                if callback_on_step_end is not None:
                    tensors = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
                    changed = callback_on_step_end(self, step, timestep, tensors) or {}
                    latents = changed.get("latents", latents)
                progress_bar.update()

        output: Any = latents
        if output_type != "latent":
            pixels = torch.cat(list(StreamDecoder(self.vae)(latents)), dim=2)[:, :, :num_frames]
            output = self.video_processor.postprocess_video(pixels.float(), output_type)
        self.maybe_free_model_hooks()
        return WanPipelineOutput(frames=output) if return_dict else (output,)

    def _draw_noise(
        self, shape: torch.Size, generator: torch.Generator | list[torch.Generator] | None
    ) -> Float[Tensor, "b c f y x"]:
        """Return initial noise in fp32, drawn on the generator's device: it depends on the seed alone."""
        noise = randn_tensor(shape, generator, self._execution_device)
        if not (ratio := self.config.shared_noise_ratio):
            return noise
        shared = randn_tensor((*shape[:2], 1, *shape[3:]), generator, self._execution_device)
        return mix_shared_noise(noise, shared, ratio)

    def _encode_pictures(self, pictures: Sequence[Picture], height: int, width: int) -> ReferenceImages:
        """Return reference images in the two forms that the model gets them in."""
        frames = [self.edit_token_encoder.frame_processor.reference_image(picture) for picture in pictures]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("`reference_image` has pictures of different shapes: edit the clips one by one")
        latents = torch.cat([self.encode_video(pad_image(p, height, width)[None]) for p in pictures])
        return ReferenceImages(frames, latents.to(self.transformer.dtype))

    def _encode_tokens(
        self,
        source_latents: Tensor,
        frames: Sequence[Frames],
        prompts: Sequence[str],
        references: ReferenceImages | None,
    ) -> tuple[TokenGroups, list[BlockContext] | None]:
        """Return X_e, X_v and X_l (Alg. 2, lines 1-2), and the blocks' contexts if they are reused."""
        frame_processor = self.edit_token_encoder.frame_processor
        mllm_frames = [frame_processor(clip, has_reference=references is not None) for clip in frames]
        latents = source_latents.to(self.transformer.dtype)
        tokens = encode_tokens(self, latents, mllm_frames, prompts, reference_images=references)
        reuse = self.reuse_key_values and self.transformer.reuse_pays(tokens)
        return tokens, self.transformer.contexts(tokens, reuse=True) if reuse else None

    def _velocity(
        self,
        latents: Tensor,
        timestep: Tensor,
        tokens: TokenGroups,
        contexts: list[BlockContext] | None,
        name: str,
    ) -> Tensor:
        """Return the predicted velocity; step caches keep a separate state for each `name`."""
        model = self.transformer
        with model.cache_context(name) if model.is_cache_enabled else nullcontext():
            output = model(latents.to(model.dtype), timestep.expand(len(latents)), tokens, contexts)
        return output.sample.float()
