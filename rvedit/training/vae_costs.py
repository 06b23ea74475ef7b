"""FLOPs, memory and disk space of training a VAE, for the dry run."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rvedit.compat import storage_key
from rvedit.models.causal_convolution import use_fast_convolutions
from rvedit.models.model_spec import model_spec
from rvedit.pipelines.checkpoints.outline import meta_modules
from rvedit.training.costs import Tokens, is_trained
from rvedit.training.limits import clips_at_once
from rvedit.training.loop import freeze
from rvedit.training.memory import checkpoint_bytes, count_parameters, state_bytes
from rvedit.training.recipe import Recipe


class VAECosts:
    """Costs of training the VAE on crops."""

    tokens: Tokens | None = None
    notes = ("FLOPs: convolutions; memory: activations in fp32, an upper bound under bf16",)

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        spec = model_spec(recipe.model.preset)
        self.vae: AutoencoderKLWan = meta_modules(spec, only="vae")["vae"]
        use_fast_convolutions(self.vae)
        freeze(self.vae, recipe.model.frozen)
        self.groups = (count_parameters("VAE", self.vae),)
        data = recipe.data
        size = (data.crop, data.crop) if data.crop else (data.height, data.width)
        frames = {n: s for n, s in ((1, data.still_share), (data.num_frames, 1 - data.still_share)) if s}
        self.encoding = self.decoding = 0.0
        for number, share in frames.items():
            clip = torch.empty(1, 3, number, *size, device="meta")
            with FlopCounterMode(display=False) as encoder:
                latents = self.vae.encode(clip).latent_dist.mean
            with FlopCounterMode(display=False) as decoder:
                self.vae.decode(latents)
            self.encoding += share * encoder.get_total_flops()
            self.decoding += share * decoder.get_total_flops()
        self.saved = self._saved_bytes(torch.empty(1, 3, max(frames), *size, device="meta"))

    def _saved_bytes(self, clip: Tensor) -> int:
        """Return the bytes that autograd saves for a reconstruction, without weights."""
        weights = {storage_key(p) for p in self.vae.parameters()}
        saved: dict[int, Tensor] = {}
        pack = lambda tensor: saved.setdefault(storage_key(tensor), tensor)  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.vae.decode(self.vae.encode(clip).latent_dist.mean)
        return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in weights)

    def flops(self) -> dict[str, float]:
        """See `Costs.flops`."""
        encoder, decoder = (is_trained(part) for part in (self.vae.encoder, self.vae.decoder))
        return {
            "encoder, forward": self.encoding,
            "encoder, backward": 2 * self.encoding * encoder,
            "decoder, forward": self.decoding,
            "decoder, backward": (encoder + decoder) * self.decoding,
        }

    def memory(self, recipe: Recipe, gpus: int) -> dict[str, float]:
        """See `Costs.memory`."""
        state = state_bytes(recipe, self.vae, 0, gpus)
        return {**state, "activations": float(clips_at_once(recipe, gpus) * self.saved)}

    def disk(self) -> dict[str, float]:
        """See `Costs.disk`."""
        return checkpoint_bytes(self.recipe, self.groups, self.vae)
