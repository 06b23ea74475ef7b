"""RVEDiT's checkpoint folders, as written by `RVEDiTPipeline.save_pretrained`, and fresh pipelines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    UMT5EncoderModel,
)

from rvedit.io.errors import UserError
from rvedit.models.edit_tokens import EditTokenConnector
from rvedit.models.model_spec import ModelSpec
from rvedit.models.nano_tokenizer import train_tokenizer
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.models.vision_prompt import QWEN3
from rvedit.pipelines.checkpoints.files import (
    abbreviate,
    build,
    check_folder,
    convert_key_errors,
    read_config,
    read_tokenizer,
    weight_files,
)
from rvedit.pipelines.checkpoints.quantized_files import add_embedders, read_transformer_file
from rvedit.pipelines.model_card import Provenance
from rvedit.pipelines.names import from_version_0_1
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

# Classes of the modules in a saved pipeline.
MODULE_CLASSES: dict[str, Any] = {
    "transformer": RoutedWanTransformer3DModel,
    "connector": EditTokenConnector,
    "mllm": Qwen2_5_VLForConditionalGeneration,
    "text_encoder": UMT5EncoderModel,
    "vae": AutoencoderKLWan,
}


def module_class(name: str, config: Mapping[str, Any]) -> Any:
    """Return the class of a module with a config; the multimodal LLM may be Qwen3-VL too."""
    is_qwen3 = name == "mllm" and config.get("model_type") == QWEN3
    return Qwen3VLForConditionalGeneration if is_qwen3 else MODULE_CLASSES[name]


def build_from_scratch(
    spec: ModelSpec,
    corpus: Iterable[str],
    vae: AutoencoderKLWan,
    routing_depth: int | None,
    shift: float,
    seed: int,
) -> RVEDiTPipeline:
    """Return a pipeline of a preset with random weights, over a tokenizer trained on `corpus`."""
    tokenizer = train_tokenizer(corpus)
    depth = spec.transformer["routing_depth"] if routing_depth is None else routing_depth
    torch.manual_seed(seed)
    return RVEDiTPipeline(
        transformer=RoutedWanTransformer3DModel(**{**spec.transformer, "routing_depth": depth}),
        connector=EditTokenConnector(**spec.connector),
        mllm=Qwen2_5_VLForConditionalGeneration(spec.mllm(tokenizer)),
        text_encoder=UMT5EncoderModel(spec.text_encoder(tokenizer)),
        vae=vae,
        tokenizer=tokenizer,
        mllm_tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        **spec.pipeline,
    )


def load_own(folder: Path, dtype: torch.dtype, transformer: Path | None = None) -> RVEDiTPipeline:
    """Load a folder of RVEDiT. Raises UserError for missing parts and for keys that do not fit.

    `transformer` is a file with the transformer's weights instead of the folder's.
    """
    index = read_index(folder)
    absent = absent_parts(index)
    dtypes = dict.fromkeys(MODULE_CLASSES, dtype) | {"vae": torch.float32}  # less would round the latents
    parts: dict[str, Any] = {
        "scheduler": _read_scheduler(folder / "scheduler"),
        "mllm_tokenizer": read_tokenizer(folder / "mllm_tokenizer"),
        "tokenizer": None if "tokenizer" in absent else read_tokenizer(folder / "tokenizer"),
    }
    if transformer is not None:
        parts["transformer"] = _transformer_from(transformer, folder, dtype)
    parts |= {
        name: None if name in absent else load_module(name, folder / name, dtypes[name])
        for name in MODULE_CLASSES
        if name not in parts
    }
    parts |= {name: index[name] for name in RVEDiTPipeline.setting_names() if name in index}
    pipeline = RVEDiTPipeline(**parts)
    pipeline.provenance = Provenance.read(folder)
    return pipeline


def _transformer_from(file: Path, folder: Path, dtype: torch.dtype) -> RoutedWanTransformer3DModel:
    state = read_transformer_file(file)
    config = read_config(folder / "transformer" / "config.json")
    add_embedders(state, folder, config.get("reads_reference_images", False))
    with convert_key_errors(file, "transformer"):
        return build(RoutedWanTransformer3DModel, config, state, dtype)


def read_index(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's model_index.json, with names of version 0.1 translated."""
    return from_version_0_1(read_config(folder / "model_index.json"))


def absent_parts(index: Mapping[str, Any]) -> set[str]:
    """Return the modules that a checkpoint lacks, since all of its blocks attend to X_e alone."""
    return {name for name in ("text_encoder", "tokenizer") if index.get(name) == [None, None]}


def _read_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    check_folder(folder)
    try:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read: {str(error).strip().splitlines()[0]}") from None


def load_module(name: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Load one module. Raises UserError with the keys that do not fit."""
    check_folder(folder)
    given = options.get("config")
    config = given.to_dict() if given is not None else read_config(folder / "config.json")
    cls = module_class(name, config)
    is_transformers = issubclass(cls, PreTrainedModel)
    weight_files(folder, "model" if is_transformers else "diffusion_pytorch_model")
    # transformers reports the keys of wrong shape only with this option; diffusers always reports them.
    options |= {"ignore_mismatched_sizes": True} if is_transformers else {}
    try:
        module, info = cls.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].split(". If you want")[0]
        raise UserError(f"{folder}: cannot be loaded as {name}: {reason}") from None
    problems = []
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(key if isinstance(key, str) else key[0] for key in info.get(f"{kind}_keys", ()))
        if keys:
            problems.append(f"{kind} {abbreviate(keys)}")
    if problems:
        raise UserError(f"{folder}: the checkpoint's keys do not fit {name}: {'; '.join(problems)}")
    return module.eval()


def add_reference_modules(pipeline: Any) -> None:
    """Give a pipeline, or what has its `transformer` and `connector`, modules for reference images.

    The queries start as copies of those for clips. The tokens of an image start at zero, so that at first it
    acts on the queries alone.
    """
    transformer, connector = pipeline.transformer, pipeline.connector
    transformer.add_reference_embedder()
    num_queries = 3 * connector.config.num_queries // 2  # as in Kiwi-Edit
    connector.add_reference_queries(num_queries, zero_init=True)
    connector.register_to_config(max_reference_tokens=num_queries)
    with torch.no_grad():
        repeated = torch.arange(num_queries) % len(connector.queries)
        connector.reference_queries.copy_(connector.queries[repeated])
        for parameter in transformer.reference_embedder.parameters():
            parameter.zero_()


def with_vae(pipeline: RVEDiTPipeline, vae: AutoencoderKLWan) -> RVEDiTPipeline:
    """Give a pipeline another VAE; the transformer keeps the weights whose shapes do not depend on it."""
    old = pipeline.transformer
    transformer = RoutedWanTransformer3DModel.from_config(old.config)
    state = transformer.state_dict()
    matching = {k: v for k, v in old.state_dict().items() if k in state and v.shape == state[k].shape}
    transformer.load_state_dict({**state, **matching})
    pipeline.register_modules(transformer=transformer, vae=vae)
    return pipeline
