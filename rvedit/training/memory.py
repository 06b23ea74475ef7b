"""What a training run holds in memory, from models that have shapes and no storage.

Weights, gradients, moments and their average are fp32, as the loop keeps them. Activations follow from what
the blocks' autograd keeps for the backward pass with fused (flash) attention; the tests count the same on
real tensors. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel

from rvedit.models.causal_convolution import use_single_frame_convolutions
from rvedit.models.edit_tokens import EditTokenConnector
from rvedit.models.flops import Shape, context_lengths
from rvedit.models.presets import (
    NANO_CONNECTOR,
    NANO_PIPELINE,
    NANO_TRANSFORMER,
    NANO_VAE,
    WAN22_5B_CONNECTOR,
    WAN22_5B_TRANSFORMER,
    nano_mllm_config,
    nano_text_config,
)
from rvedit.models.presets_5b import MAX_TEXT_LENGTH, WAN22_VAE, qwen25_vl_3b_config, umt5_xxl_config
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.training.distributed import SHARDED_LAYERS
from rvedit.training.loop import freeze
from rvedit.training.optimizers import MATRIX_LAYERS
from rvedit.training.recipe import Recipe

FP32, BF16 = 4, 2
"""Bytes."""

# What the loop does, as far as memory depends on it: change these with it.
CHECKPOINTS_LANGUAGE = False
"""Whether `gradient_checkpointing` means the MLLM's language tower too, beside the transformer's blocks."""
CACHES_CASTS = True
"""Whether autocast keeps its bf16 copies of trained weights until the forward pass ends."""

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Group:
    """Parameters of one part."""

    name: str
    trained: int
    frozen: int


@dataclass(frozen=True)
class EditorModels:
    """A preset's modules on the meta device, trained or frozen as a recipe says."""

    objective: nn.ModuleDict
    """Transformer, connector, multimodal LLM and text encoder."""
    vae: AutoencoderKLWan
    adapters: int
    """Weights of the language tower's adapters, which are not in the modules."""
    max_text_length: int

    def part(self, name: str) -> Any:
        """A module of `objective`."""
        return self.objective[name]

    @property
    def language(self) -> nn.Module:
        """The MLLM's language tower."""
        tower: nn.Module = self.part("mllm").model.language_model
        return tower

    @property
    def vision(self) -> nn.Module:
        """The MLLM's vision encoder."""
        encoder: nn.Module = self.part("mllm").model.visual
        return encoder

    @property
    def groups(self) -> tuple[Group, ...]:
        """Parameters by part."""
        modules = {
            "transformer": self.part("transformer"),
            "connector and queries": self.part("connector"),
            "MLLM language tower": self.language,
            "MLLM vision encoder": self.vision,
            "text encoder": self.part("text_encoder"),
            "VAE": self.vae,
        }
        groups = [count_parameters(name, module) for name, module in modules.items()]
        if self.adapters:
            groups.insert(3, Group("MLLM adapters", self.adapters, 0))
        return tuple(groups)

    @property
    def reads_native_tokens(self) -> bool:
        """Whether any block reads X_v and X_l (Eq. 3)."""
        return bool(self.part("transformer").reads_native_tokens)


def build_models(recipe: Recipe) -> EditorModels:
    """The modules that a recipe trains, none of them allocated."""
    nano = recipe.model.preset == "nano"
    depth = recipe.model.routing_depth
    transformer = {**(NANO_TRANSFORMER if nano else WAN22_5B_TRANSFORMER)}
    transformer |= {} if depth is None else {"routing_depth": depth}
    if nano:
        tokenizer = AutoTokenizer.from_pretrained(str(files("rvedit") / "nano" / "tokenizer"))
        mllm, text = nano_mllm_config(tokenizer), nano_text_config(tokenizer)
    else:
        mllm, text = qwen25_vl_3b_config(), umt5_xxl_config()
    with torch.device("meta"):
        objective = nn.ModuleDict(
            {
                "transformer": RoutedWanTransformer3DModel(**transformer),
                "connector": EditTokenConnector(**(NANO_CONNECTOR if nano else WAN22_5B_CONNECTOR)),
                "mllm": Qwen2_5_VLForConditionalGeneration(mllm),
                "text_encoder": UMT5EncoderModel(text),
            }
        )
    vae = build_vae(recipe).requires_grad_(False)
    length = NANO_PIPELINE["max_text_length"] if nano else MAX_TEXT_LENGTH
    models = EditorModels(objective, vae, _adapters(objective["mllm"], recipe.model.lora_rank), length)
    _choose_trained(models, recipe)
    return models


def build_vae(recipe: Recipe) -> AutoencoderKLWan:
    """The preset's VAE, not allocated; single frames cost a third, as in training."""
    with torch.device("meta"):
        vae = AutoencoderKLWan(**(NANO_VAE if recipe.model.preset == "nano" else WAN22_VAE))
    use_single_frame_convolutions(vae)
    return vae


def _choose_trained(models: EditorModels, recipe: Recipe) -> None:
    """As `EditorTask` does: what no block reads gets no gradient, then the recipe's own choice."""
    transformer = models.part("transformer")
    for part in (
        models.part("text_encoder"),
        transformer.visual_embedder,
        transformer.condition_embedder.text_embedder,
    ):
        part.requires_grad_(models.reads_native_tokens)
    freeze(models.objective, recipe.model.frozen)
    if recipe.model.lora_rank:
        models.language.requires_grad_(False)


def _adapters(mllm: Any, rank: int) -> int:
    """Weights of adapters of a rank: (in + out) x rank for each adapted matrix."""
    layers = mllm.model.language_model.named_modules()
    adapted = [m for name, m in layers if name.endswith(ADAPTED) and isinstance(m, nn.Linear)]
    return sum(rank * (m.in_features + m.out_features) for m in adapted)


def count_parameters(name: str, module: nn.Module) -> Group:
    """Trained and frozen parameters of a module."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Group(name, trained, sum(p.numel() for p in module.parameters()) - trained)


def matrices(module: nn.Module, trained: bool = False) -> int:
    """Weights of linear and convolutional layers, which autocast copies to bf16; all, or the trained ones."""
    layers: list[Any] = [m for m in module.modules() if isinstance(m, MATRIX_LAYERS)]
    return sum(m.weight.numel() for m in layers if m.weight.requires_grad or not trained)


# What is kept for the backward pass, in bytes of one clip. Copies of weights count apart.


def block_bytes(shape: Shape, context: int, bf16: bool) -> float:
    """One block of Wan over S tokens of width d, f inside its feed-forward part, reading `context` tokens.

    In bf16: inputs of norms, their outputs before modulation, queries and keys before and inside their own
    norm, and the feed-forward part's output stay fp32 (12 tensors of 4 S d: self-attention 6, cross-attention
    3, feed-forward 3); what enters a matrix, an attention kernel or a gate is bf16 (10 of 2 S d, 2 of 2 S f).
    Of the context: keys before and inside their norm, 8 C d bytes, keys and values, 4 C d.
    """
    s, d, f = shape.sequence, shape.width, shape.config["ffn_dim"]
    statistics = s * (9 * FP32 + 2 * FP32 * shape.config["num_attention_heads"]) + context * FP32
    if bf16:
        return s * (68 * d + 4 * f) + 12 * context * d + statistics
    return s * (88 * d + 8 * f) + 16 * context * d + statistics


def language_bytes(config: Any, tokens: int, bf16: bool, rank: int = 0, checkpointing: bool = False) -> float:
    """Qwen2.5's decoder; with adapters of a rank the norms' weights are frozen and keep less."""
    d, f = config.hidden_size, config.intermediate_size
    keys = d // config.num_attention_heads * config.num_key_value_heads
    statistics = 2 * FP32 + FP32 * config.num_attention_heads
    if bf16:
        each = (24 * d + 14 * rank if rank else 30 * d) + 4 * keys + 8 * f
    else:
        each = (24 * d + 28 * rank if rank else 32 * d) + 8 * keys + 16 * f
    layer = tokens * (each + statistics)
    if checkpointing:  # a layer's input is the fp32 sum of embeddings and what is added to it
        return float(config.num_hidden_layers * tokens * FP32 * d + layer)
    return float(config.num_hidden_layers * layer)


def vision_bytes(config: Any, patches: int, bf16: bool) -> float:
    """Qwen2.5-VL's vision encoder; a value keeps the whole of what query, key and value were cut from."""
    d, f = config.hidden_size, config.intermediate_size
    each = 32 * d + 8 * f if bf16 else 52 * d + 16 * f
    return float(config.depth * patches * (each + 2 * FP32 + FP32 * config.num_heads))


def text_encoder_bytes(config: Any, tokens: int, bf16: bool) -> float:
    """umT5's encoder, whose attention keeps its matrix."""
    d, f, inner = config.d_model, config.d_ff, config.num_heads * config.d_kv
    each = 28 * d + 12 * inner + (14 * f if bf16 else 28 * f)
    scores = (FP32 * config.num_heads + 8) * tokens**2
    return float(config.num_layers * (tokens * (each + 2 * FP32) + scores))


def kept_bytes(shape: Shape, checkpointing: bool, aligned: bool, bf16: bool) -> float:
    """The transformer from the first block to the loss.

    With checkpointing a block keeps its input alone. Beside the blocks: the last norm and its output, fp32,
    and what enters the last matrix, the source's tokens and the context; aligned, two traces and a gradient.
    """
    lengths = context_lengths(shape)
    token = (BF16 if bf16 else FP32) * shape.width
    beside = shape.sequence * (2 * FP32 * shape.width + (2 + 3 * aligned) * token) + max(lengths) * token
    if checkpointing:
        return shape.blocks * shape.sequence * token + beside
    return sum(block_bytes(shape, c, bf16) for c in lengths) + beside


def work_bytes(shape: Shape, checkpointing: bool, bf16: bool) -> tuple[float, float]:
    """What comes on top for a while in the forward pass, and in the backward pass, of one block.

    Forward: a feed-forward part's inside, twice. Backward: about three fp32 gradients of S d, and with
    checkpointing the block's activations again.
    """
    s, d, f = shape.sequence, shape.width, shape.config["ffn_dim"]
    again = max(block_bytes(shape, c, bf16) for c in context_lengths(shape)) * checkpointing
    return s * (2 * f + d) * (BF16 if bf16 else FP32), again + 3 * FP32 * s * d


def saved_bytes(call: Callable[[], Any], module: nn.Module) -> int:
    """Bytes that autograd keeps of a call, without the module's own weights; each storage counts once."""
    known = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)


# What is held all the time, in bytes of one GPU.


def held_bytes(recipe: Recipe, module: nn.Module, extra: int, whole: int, gpus: int) -> dict[str, float]:
    """Weights, gradients, moments and their average; `extra` trained parameters and `whole` frozen ones.

    FSDP2 leaves 1/N of everything but `whole` on a GPU and puts one layer together at a time; what is in none
    of its layers is one more unit, which stays together. DDP copies gradients into buckets.
    """
    part = count_parameters("", module)
    trained = part.trained + extra
    muon = matrices(module, trained=True) if recipe.optimizer.name == "muon" else 0
    sharded = recipe.parallel == "fsdp2" and gpus > 1
    shards = gpus if sharded else 1
    parts = {
        "trained weights": FP32 * trained / shards,
        "gradients": FP32 * trained / shards,
        "optimizer's moments": FP32 * (2 * trained - muon) / shards,  # Muon keeps one of a matrix
        "moving average": FP32 * trained / shards if recipe.ema_decay else 0.0,
        "frozen weights": FP32 * (part.frozen / shards + whole),
    }
    if sharded:
        layers = [m for m in module.modules() if type(m).__name__ in SHARDED_LAYERS]
        inside = [count_parameters("", layer) for layer in layers]
        rest = part.trained + part.frozen - sum(layer.trained + layer.frozen for layer in inside)
        rest += part.trained - sum(layer.trained for layer in inside)  # and its gradients
        # One layer at work and the next one on its way, and the gradients of one.
        largest = max((2 * layer.frozen + 3 * layer.trained for layer in inside), default=0)
        gathered = largest + rest
        parts["gathered by FSDP2"] = float(FP32 * gathered)
    elif gpus > 1:
        parts["buckets of DDP"] = float(FP32 * trained)
    return parts
