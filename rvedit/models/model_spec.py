"""Registry of presets: the configs of all modules of a model size.

To add one, call `register_preset`; recipes select it with `model.preset`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rvedit.io.errors import UserError
from rvedit.models import presets, presets_5b

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig, UMT5Config


@dataclass(frozen=True)
class ModelSpec:
    """The configs of a model size; the classes are the same for all sizes.

    `mllm` and `text_encoder` return transformers configs for a tokenizer, which published sizes ignore.
    """

    name: str
    transformer: Mapping[str, Any]
    connector: Mapping[str, Any]
    vae: Mapping[str, Any]
    mllm: Callable[[Any], Qwen2_5_VLConfig]
    text_encoder: Callable[[Any], UMT5Config]
    pipeline: Mapping[str, Any]
    """Settings of `RVEDiTPipeline`."""
    from_scratch: bool
    """Whether it is small enough to train from random weights, on a CPU."""

    @property
    def num_layers(self) -> int:
        """Return L, the number of transformer blocks."""
        return int(self.transformer["num_layers"])


PRESETS: dict[str, ModelSpec] = {}


def register_preset(spec: ModelSpec) -> None:
    """Register a preset for recipes."""
    PRESETS[spec.name] = spec


def model_spec(name: str) -> ModelSpec:
    """Return a preset by name. Raises UserError for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"model.preset is {name}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


register_preset(
    ModelSpec(
        "nano",
        presets.NANO_TRANSFORMER,
        presets.NANO_CONNECTOR,
        presets.NANO_VAE,
        presets.nano_mllm_config,
        presets.nano_text_config,
        presets.NANO_PIPELINE,
        from_scratch=True,
    )
)
for name, transformer, connector, vae in (
    ("wan2.2-5b", presets.WAN22_5B_TRANSFORMER, presets.WAN22_5B_CONNECTOR, presets_5b.WAN22_VAE),
    ("wan2.1-14b", presets.WAN21_14B_TRANSFORMER, presets.WAN21_14B_CONNECTOR, presets_5b.WAN21_VAE),
):
    register_preset(
        ModelSpec(
            name,
            transformer,
            connector,
            vae,
            lambda tokenizer: presets_5b.qwen25_vl_3b_config(),
            lambda tokenizer: presets_5b.umt5_xxl_config(),
            {"max_text_length": presets_5b.MAX_TEXT_LENGTH},
            from_scratch=False,
        )
    )


def published_spec(latent_channels: int) -> ModelSpec | None:
    """Return the published preset with latents of so many channels."""
    published = (spec for spec in PRESETS.values() if not spec.from_scratch)
    return next((spec for spec in published if spec.vae["z_dim"] == latent_channels), None)
