"""Qwen3-VL as the multimodal LLM: prompt, positions and patches, and an edit, saved and read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LLM_WIDTH, edit, make_connector, make_pipeline, random_clip
from torch.testing import assert_close
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from rvedit.editing.config import EditConfig
from rvedit.models.edit_tokens import EditTokenEncoder
from rvedit.models.vision_prompt import IMAGE_TOKEN, VIDEO_TOKEN, Vision, patchify
from rvedit.pipelines.checkpoints import load_checkpoint

INSTRUCTION = "make the fish orange"


def make_qwen3(tokenizer) -> Qwen3VLForConditionalGeneration:
    special = tokenizer.convert_tokens_to_ids
    torch.manual_seed(7)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": LLM_WIDTH, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 4096, "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3],
                                "mrope_interleaved": True},
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": LLM_WIDTH,
            "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64, "initializer_range": 0.2,
        },
        image_token_id=special("<|image_pad|>"), video_token_id=special("<|video_pad|>"),
        vision_start_token_id=special("<|vision_start|>"), vision_end_token_id=special("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config).eval()


@pytest.fixture
def encoder(tiny_tokenizer) -> EditTokenEncoder:
    return EditTokenEncoder(make_qwen3(tiny_tokenizer), tiny_tokenizer, make_connector(zero_init=False))


def test_each_pair_of_frames_has_its_time_in_words(encoder):
    clip = encoder.frame_processor(random_clip(4))
    vision = Vision.of(clip[None], VIDEO_TOKEN, encoder.mllm.config)
    tokens = "<|video_pad|>" * (clip.shape[1] * clip.shape[2] // 16**2)
    assert vision.prompt == "".join(
        f"<{time} seconds><|vision_start|>{tokens}<|vision_end|>" for time in ("0.0", "0.1")
    )
    image = Vision.of(clip[None, :1], IMAGE_TOKEN, encoder.mllm.config)
    assert image.prompt == f"<|vision_start|>{tokens.replace('video', 'image')}<|vision_end|>"


def test_pixels_are_normalized_by_half():
    config = type("Config", (), {"model_type": "qwen3_vl"})
    config.vision_config = type("V", (), {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2})
    clip = np.zeros((1, 2, 16, 16, 3), np.uint8)
    clip[..., 0] = 255
    patches, _ = patchify(clip, config)
    assert patches.shape == (4, 3 * 2 * 64)
    assert set(patches.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("with_image", [False, True])
@torch.no_grad()
def test_tokens_are_those_of_the_library(encoder, tiny_tokenizer, with_image):
    """Its own positions and its own forward pass, from a prompt that is written here."""
    connector = encoder.connector
    if with_image:
        connector.add_reference_queries(5, zero_init=False)
    processor = encoder.frame_processor
    clip = processor(random_clip(4), has_reference=with_image)
    picture = processor.reference_image(random_clip(1, 32, 48)[0])
    references = ([picture],) if with_image else ()
    ours = encoder([clip], [INSTRUCTION], *references)

    queries = connector.reference_queries if with_image else connector.queries
    count, of_picture = clip.shape[1] * clip.shape[2] // 256, picture.shape[0] * picture.shape[1] // 256
    vision = "".join(
        f"<{time} seconds><|vision_start|>{'<|video_pad|>' * count}<|vision_end|>" for time in ("0.0", "0.1")
    )
    pads = "<|image_pad|>" * of_picture
    image = f" Use the reference input from last frame.<|vision_start|>{pads}<|vision_end|>"
    text = (
        f"<|im_start|>system\n{connector.config.system_prompt}<|im_end|>\n<|im_start|>user\n{vision}"
        f"{INSTRUCTION}{image * with_image}{'<|object_ref_start|>' * len(queries)}<|im_end|>\n"
    )
    ids = tiny_tokenizer(text, return_tensors="pt").input_ids
    config = encoder.mllm.config
    kinds = (ids == config.image_token_id) + 2 * (ids == config.video_token_id)
    patches, grid = patchify(clip[None], config)
    given, grids = {"pixel_values_videos": patches}, {"video_grid_thw": grid}
    if with_image:
        given["pixel_values"], grids["image_grid_thw"] = patchify(picture[None, None], config)
    positions, _ = encoder.mllm.model.get_rope_index(ids, kinds, **grids)
    embeddings = encoder.mllm.get_input_embeddings()(ids)
    embeddings[ids == tiny_tokenizer.convert_tokens_to_ids("<|object_ref_start|>")] = queries
    states = encoder.mllm.model(
        inputs_embeds=embeddings, position_ids=positions, use_cache=False, **given, **grids
    ).last_hidden_state
    of_image = states[:, (ids == config.image_token_id)[0]] if with_image else None
    assert_close(ours, connector(states[:, -len(queries) :], of_image), rtol=0, atol=1e-5)
    assert ours.shape[1] == len(queries) + of_picture * with_image


@torch.no_grad()
def test_clips_of_a_batch_are_encoded_as_alone(encoder):
    clips = [encoder.frame_processor(random_clip(4, seed=seed)) for seed in (0, 1)]
    texts = [INSTRUCTION, "remove it"]
    together = encoder(clips, texts)
    for clip, text, tokens in zip(clips, texts, together, strict=True):
        assert_close(encoder([clip], [text])[0], tokens, rtol=0, atol=1e-5)


def test_a_pipeline_with_it_edits_and_is_saved(tiny_tokenizer, tmp_path):
    pipe = make_pipeline(tiny_tokenizer)
    pipe.register_modules(mllm=make_qwen3(tiny_tokenizer))
    clip = random_clip(5, 64, 64)
    edited = edit(pipe, clip, INSTRUCTION, EditConfig(2))
    pipe.save_pretrained(tmp_path / "model")
    again = load_checkpoint(tmp_path / "model")
    assert isinstance(again.mllm, Qwen3VLForConditionalGeneration)
    assert np.array_equal(edited, edit(again, clip, INSTRUCTION, EditConfig(2)))
    other = edit(pipe, clip, "remove it", EditConfig(2))
    assert not np.array_equal(edited, other)
