"""Vision-language models of two layers and random weights, saved as checkpoints are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rvedit.models.nano_tokenizer import train_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_chat(
    folder: Path, config_class: Any, model_class: Any, text: dict[str, Any], vision: dict[str, Any]
) -> Any:
    """Write a checkpoint of a Qwen-VL kind; `text` and `vision` are what its configs have of their own."""
    words = train_tokenizer(["a dog in a park", "write one caption of the clip"], 300)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = TEMPLATE
    token = tokenizer.convert_tokens_to_ids
    config = config_class(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2],
                                "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.5, **text,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 32, "num_position_embeddings": 16, "initializer_range": 0.5, **vision,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = model_class(config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.exponential_decay_length_penalty = (3, 3.0)  # else it would babble on
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    ).save_pretrained(folder)
    return folder
