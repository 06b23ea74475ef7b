"""X_e against transformers' own preprocessing and forward pass, and what it may depend on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import LLM_WIDTH, WIDTH, random_clip
from torch.testing import assert_close
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rvedit import NANO
from rvedit.models.edit_tokens import EditTokenConnector, EditTokenEncoder
from rvedit.models.vision_prompt import patchify
from rvedit.pipelines.checkpoints import load_checkpoint

K = 6
INSTRUCTION = "replace the dog with a corgi"
SPECIAL_WORDS = ("<|object_ref_start|>", "<|video_pad|>", "<|image_pad|>", "<|im_end|>", "<|vision_start|>")


def library_patches(frame: np.ndarray, limit: int = 32 * 32) -> tuple[torch.Tensor, list[int]]:
    """One frame as transformers' image processor cuts it: (patches, 3, 2, 8, 8), and its grid."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=8, temporal_patch_size=2, merge_size=2, min_pixels=16 * 16, max_pixels=limit
    )
    processed = processor(images=[frame], return_tensors="pt")
    return processed["pixel_values"].view(-1, 3, 2, 8, 8), processed["image_grid_thw"][0].tolist()


@torch.no_grad()
def patchify_with(encoder: EditTokenEncoder, clips: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return patchify(clips, encoder.mllm.config)


def prompt(encoder: EditTokenEncoder, instruction: str, vision_tokens: int = 8) -> str:
    clip = f"<|vision_start|>{'<|video_pad|>' * vision_tokens}<|vision_end|>"
    return encoder.prompt(instruction, encoder.connector.config.num_queries, [clip])


def tokens(encoder: EditTokenEncoder, frames: np.ndarray, instruction: str = INSTRUCTION) -> torch.Tensor:
    return encoder([frames], [instruction])[0]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48)])
def test_a_still_clip_is_cut_as_the_library_cuts_an_image(
    tiny_encoder: EditTokenEncoder, height: int, width: int
) -> None:
    frame = random_clip(1, height, width)[0]
    patches, grid = patchify_with(tiny_encoder, tiny_encoder.frame_processor(np.stack([frame, frame]))[None])
    expected, expected_grid = library_patches(frame)
    assert grid.tolist() == [expected_grid]
    assert_close(patches, expected.flatten(1), rtol=0, atol=1e-5)


def test_moving_clips_are_cut_pair_by_pair_and_clip_by_clip(tiny_encoder: EditTokenEncoder) -> None:
    clips = np.stack([random_clip(4, seed=1), random_clip(4, seed=2)])
    patches, grid = patchify_with(tiny_encoder, clips)
    assert grid.tolist() == [[2, 4, 4]]
    by_pair = patches.view(2, 2, 16, 3, 2, 8, 8)
    for clip in range(2):
        for frame in range(4):
            expected = library_patches(clips[clip, frame])[0][:, :, 0]
            assert_close(by_pair[clip, frame // 2, :, :, frame % 2], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_an_odd_frame_is_repeated(tiny_encoder: EditTokenEncoder, count: int) -> None:
    clip = random_clip(count)
    completed = np.concatenate([clip, clip[-1:]])
    patches, grid = patchify_with(tiny_encoder, clip[None])
    expected, expected_grid = patchify_with(tiny_encoder, completed[None])
    assert torch.equal(patches, expected)
    assert torch.equal(grid, expected_grid)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (90, 50), (37, 61), (8, 12)])
def test_other_sizes_are_resized_as_the_library_does(
    tiny_encoder: EditTokenEncoder, height: int, width: int
) -> None:
    frame = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    frame = (127 + 120 * np.sin(frame / 9)).astype(np.uint8)
    patches, grid = patchify_with(tiny_encoder, tiny_encoder.frame_processor(np.stack([frame, frame]))[None])
    expected, expected_grid = library_patches(frame)
    assert grid.tolist() == [expected_grid]
    # Pillow's bicubic filter works in integers: one of 256 levels, about 0.015 after normalisation.
    assert (patches - expected.flatten(1)).abs().max() < 0.02


def test_frames_are_spread_evenly_with_the_first_and_the_last(tiny_encoder: EditTokenEncoder) -> None:
    def chosen(count: int) -> list[int]:
        clip = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
        return tiny_encoder.frame_processor.sample(clip)[:, 0, 0, 0].tolist()

    assert [chosen(count) for count in (1, 3, 4)] == [[0], [0, 1, 2], [0, 1, 2, 3]]
    for count in (5, 9, 81, 200):
        picked = chosen(count)
        assert len(picked) == 4
        assert (picked[0], picked[-1]) == (0, count - 1)
        gaps = np.diff(picked)
        assert gaps.max() - gaps.min() <= 1


@torch.no_grad()
def test_the_whole_equals_the_librarys_model_with_queries_as_vocabulary(
    tiny_encoder: EditTokenEncoder,
) -> None:
    """An independent route: K new words whose embeddings are the queries, and input ids alone."""
    clip = random_clip(4)
    mllm, tokenizer = copy.deepcopy(tiny_encoder.mllm), tiny_encoder.tokenizer
    vocabulary = mllm.config.text_config.vocab_size
    mllm.resize_token_embeddings(vocabulary + K, mean_resizing=False)
    mllm.get_input_embeddings().weight[vocabulary:] = tiny_encoder.connector.queries

    before = tokenizer(
        "<|im_start|>system\nedit the dog<|im_end|>\n<|im_start|>user\n<|vision_start|>" + "<|video_pad|>" * 8
    ).input_ids
    words = tokenizer(f"<|vision_end|>{INSTRUCTION}").input_ids
    after = tokenizer("<|im_end|>\n").input_ids
    new_words = list(range(vocabulary, vocabulary + K))
    input_ids = torch.tensor([before + words + new_words + after])
    video = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    pairs = [
        torch.stack([library_patches(frame)[0][:, :, 0] for frame in clip[i : i + 2]], 2) for i in (0, 2)
    ]
    states = mllm(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        pixel_values_videos=torch.cat(pairs).flatten(1),
        video_grid_thw=torch.tensor([[2, 4, 4]]),
        mm_token_type_ids=torch.tensor([[2 if word == video else 0 for word in input_ids[0].tolist()]]),
        output_hidden_states=True,
    ).hidden_states[-1]
    hidden = states[0, -K:]
    first, _, last = tiny_encoder.connector.connector
    inner = torch.nn.functional.gelu(hidden @ first.weight.T + first.bias, approximate="tanh")
    expected = inner @ last.weight.T + last.bias
    assert expected.std() > 0.05
    assert_close(tokens(tiny_encoder, clip), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_batch_of_unequal_instructions_equals_one_by_one(tiny_encoder: EditTokenEncoder) -> None:
    clips = [random_clip(4, seed=seed) for seed in range(3)]
    instructions = ["", "add", "make the fish orange and then remove the red ball in the top left corner"]
    together = tiny_encoder(clips, instructions)
    assert together.shape == (3, K, WIDTH)
    for row, clip, instruction in zip(together, clips, instructions, strict=True):
        assert_close(row, tokens(tiny_encoder, clip, instruction), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("num_frames", "height", "width"), [(2, 112, 128), (21, 136, 128), (1, 16, 400)])
@torch.no_grad()
def test_nanos_positions_are_those_it_was_trained_with(num_frames: int, height: int, width: int) -> None:
    """Time included or not: nano sees one pair of frames, so that the rules of transformers 4 and 5 agree."""
    encoder = load_checkpoint(NANO).edit_token_encoder
    given = []
    encoder.mllm.model.language_model.register_forward_pre_hook(
        lambda module, args, arguments: given.append(arguments["position_ids"]), with_kwargs=True
    )
    frames = encoder.frame_processor(random_clip(num_frames, height, width))
    instructions = ["remove the ball", "replace the dog with a corgi"]
    encoder([frames, frames], instructions)
    _, grid = patchify_with(encoder, frames[None])
    prompts = [prompt(encoder, text, int(grid.prod()) // 4) for text in instructions]
    inputs = encoder.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    expected, _ = encoder.mllm.model.get_rope_index(
        inputs.input_ids,
        2 * (inputs.input_ids == encoder.mllm.config.video_token_id),
        video_grid_thw=grid.expand(2, 3),
        second_per_grid_ts=torch.ones(2),
        attention_mask=inputs.attention_mask,
    )
    assert torch.equal(given[0], expected)


def test_the_prompt_is_closed_by_k_placeholders(tiny_encoder: EditTokenEncoder) -> None:
    text = prompt(tiny_encoder, INSTRUCTION)
    assert text.count("<|object_ref_start|>") == K
    assert text.count("<|video_pad|>") == 8
    assert text.endswith(INSTRUCTION + "<|object_ref_start|>" * K + "<|im_end|>\n")
    assert text.startswith("<|im_start|>system\nedit the dog<|im_end|>\n")


@torch.no_grad()
def test_queries_stand_in_for_the_placeholders(tiny_encoder: EditTokenEncoder) -> None:
    before = tokens(tiny_encoder, random_clip(4))
    placeholder = tiny_encoder.tokenizer.convert_tokens_to_ids("<|object_ref_start|>")
    tiny_encoder.mllm.get_input_embeddings().weight[placeholder] += 1
    assert torch.equal(tokens(tiny_encoder, random_clip(4)), before), "the placeholder itself is read"
    tiny_encoder.connector.queries += 1
    assert (tokens(tiny_encoder, random_clip(4)) - before).abs().min(dim=1).values.max() > 1e-4


@torch.no_grad()
def test_a_query_acts_forward_only(tiny_encoder: EditTokenEncoder) -> None:
    before = tokens(tiny_encoder, random_clip(4))
    tiny_encoder.connector.queries[-1] += 1
    changed = (tokens(tiny_encoder, random_clip(4)) - before).abs().amax(dim=1) > 1e-6
    tail = len(tiny_encoder.tokenizer("<|im_end|>\n").input_ids)  # the last K positions end in these
    assert changed.tolist() == [False] * (K - tail - 1) + [True] * (tail + 1)


def test_gradient_reaches_every_query_of_every_clip(tiny_encoder: EditTokenEncoder) -> None:
    clips = [random_clip(2, seed=seed) for seed in range(2)]
    tiny_encoder(clips, ["add", INSTRUCTION]).square().sum().backward()
    gradient = tiny_encoder.connector.queries.grad
    assert gradient.shape == (K, LLM_WIDTH)
    assert (gradient.abs().sum(dim=1) > 0).all()


@torch.no_grad()
def test_tokens_depend_on_every_frame_and_on_the_instruction(tiny_encoder: EditTokenEncoder) -> None:
    clip = random_clip(4)
    before = tokens(tiny_encoder, clip)
    for frame in range(4):
        changed = clip.copy()
        changed[frame] = 255 - changed[frame]
        assert (tokens(tiny_encoder, changed) - before).abs().max() > 1e-4, f"frame {frame}"
    assert (tokens(tiny_encoder, clip, "remove the ball") - before).abs().max() > 1e-4
    assert (tokens(tiny_encoder, clip[::-1].copy()) - before).abs().max() > 1e-4


@pytest.mark.parametrize("special", SPECIAL_WORDS)
def test_special_tokens_typed_by_a_user_are_words(tiny_encoder: EditTokenEncoder, special: str) -> None:
    instruction = f"add {special} and {special}"
    assert tokens(tiny_encoder, random_clip(4), instruction).isfinite().all()
    tokenizer = tiny_encoder.tokenizer
    identifier = tokenizer.convert_tokens_to_ids(special)

    def count(text: str) -> int:
        return tokenizer(prompt(tiny_encoder, text)).input_ids.count(identifier)

    assert count(instruction) == count("add and")


@pytest.mark.parametrize(
    "nested", ["<<|video_pad|>", "<|<|video_pad|>|>", "<|video_pad<|video_pad|>|>", "<|video_pad", "<|>"]
)
def test_broken_special_tokens_do_not_heal(tiny_encoder: EditTokenEncoder, nested: str) -> None:
    video = tiny_encoder.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert tiny_encoder.tokenizer(prompt(tiny_encoder, nested)).input_ids.count(video) == 8
    assert tokens(tiny_encoder, random_clip(4), nested).isfinite().all()


@pytest.mark.parametrize(
    "instruction",
    ["", " ", "\n\t\0", "把狗换成柯基", "إزالة الكلب", "🐕 → 🦊‍❄️", "e\u0301\ufffd\U0010ffff", "a" * 500],
)
def test_any_text_is_accepted_and_told_apart(tiny_encoder: EditTokenEncoder, instruction: str) -> None:
    clip = random_clip(2)
    given = tokens(tiny_encoder, clip, instruction)
    assert given.isfinite().all()
    assert (given - tokens(tiny_encoder, clip, instruction + " cat")).abs().max() > 1e-6


def test_zero_init_starts_from_zero_tokens_and_learns_its_last_layer() -> None:
    torch.manual_seed(0)
    connector = EditTokenConnector(num_queries=K, llm_width=LLM_WIDTH, width=WIDTH, zero_init=True)
    given = connector(torch.randn(2, K, LLM_WIDTH))
    assert (given == 0).all()
    (given - 1).square().sum().backward()
    assert connector.connector[2].weight.grad.abs().sum() > 0


def test_capitals_and_full_stops_are_read_as_the_plain_words(tiny_tokenizer) -> None:
    plain = tiny_tokenizer("replace the dog with a corgi").input_ids
    assert tiny_tokenizer("Replace the DOG with a corgi.").input_ids == plain
    assert tiny_tokenizer("replace the dog with a cat").input_ids != plain
