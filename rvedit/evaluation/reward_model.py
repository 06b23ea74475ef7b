"""A reward model in the layout of VEFX-Reward: Qwen3-VL with a linear head instead of generated text.

Gao et al., "VEFX-Bench: A Holistic Benchmark for Generic Video Editing and Visual Effects"
(arXiv:2604.16272). The model sees both clips and a prompt with three reward tokens. The head maps the last
hidden state at each of them to the thresholds of an ordinal regression, from 1 to 4. Safetensors are read
alone, and no code of the checkpoint is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as frame_size
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize

from rvedit.io.errors import UserError
from rvedit.io.frames import pillow_resize
from rvedit.io.video import VideoReader, evenly_spaced
from rvedit.pipelines.loading import pick_device, pick_dtype

DIMENSIONS = ("IF", "RQ", "EE")
"""Instructional following, render quality and edit exclusivity, in the order of their tokens."""
REWARD_TOKENS = tuple(f"<|{name}_reward|>" for name in DIMENSIONS)
FRAME_RATE = 4.0
"""Frames per second that the model sees."""
MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 399_360
"""Pixels of a frame."""
_MIN_FRAMES, _MAX_FRAMES = 4, 768
_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


class _RewardQwen3VL(Qwen3VLForConditionalGeneration):
    def __init__(self, config: Any, outputs: int = 3) -> None:
        super().__init__(config)
        self.rm_head = nn.Linear(config.text_config.hidden_size, outputs, bias=False)


class RewardModel:
    """A loaded reward model.

    Args:
        model: a folder, or an id on the Hub.
        prompt: the prompt, with `{text_prompt}` for the instruction and the tokens of `REWARD_TOKENS`.
        device: cpu, cuda, ...; by default CUDA if it is available.

    Raises UserError if the model cannot be loaded or has another layout.
    """

    def __init__(self, model: str, prompt: str, device: str | None = None) -> None:
        self.prompt = prompt
        place = pick_device(device)
        dtype = pick_dtype(None, place)
        settings = _settings(model)
        self._is_ordinal = bool(settings.get("use_ordinal", True))
        outputs = int(settings.get("output_dim", len(DIMENSIONS)))
        thresholds = int(settings.get("num_classes", 4)) - 1
        if settings.get("reward_token", "special") != "special":
            raise UserError(f"`local` {model}: has no reward tokens: choose a model such as VEFX-Reward-4B")
        if outputs != (thresholds if self._is_ordinal else len(DIMENSIONS)):
            raise UserError(f"`local` {model}: its vefx_config.json has {outputs} outputs for each dimension")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            loaded: Any = _RewardQwen3VL.from_pretrained(
                model, dtype=dtype, outputs=outputs, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"`local` {model}: cannot be loaded: {reason}") from None
        try:
            self._video: Any = Qwen3VLVideoProcessor.from_pretrained(model)
        except OSError:  # the family's defaults
            self._video = Qwen3VLVideoProcessor()
        reward_model, info = loaded
        if "rm_head.weight" in info["missing_keys"]:
            raise UserError(f"`local` {model}: has no rm_head: choose a reward model such as VEFX-Reward-4B")
        self._token_ids = self._tokenizer.convert_tokens_to_ids(list(REWARD_TOKENS))
        known = self._tokenizer.get_vocab()
        if missing := [token for token in REWARD_TOKENS if token not in known]:
            raise UserError(f"`local` {model}: its tokenizer has no {missing[0]}: choose a reward model")
        self._model = reward_model.to(place).eval()

    def score(self, source: Path, edited: Path, instruction: str) -> dict[str, float]:
        """Return the scores by the names of `DIMENSIONS`, from 1 to 4 and rounded to three decimals."""
        inputs = self._inputs([source, edited], instruction)
        with torch.inference_mode():
            hidden = self._model.model(**inputs, use_cache=False)[0][0]
            places = [(inputs["input_ids"][0] == token).nonzero()[-1, 0] for token in self._token_ids]
            logits = self._model.rm_head(hidden[torch.stack(places)]).float().cpu()
        values = ordinal_scores(logits) if self._is_ordinal else logits.diagonal()
        return {name: round(float(value), 3) for name, value in zip(DIMENSIONS, values, strict=True)}

    def _inputs(self, clips: list[Path], instruction: str) -> dict[str, Any]:
        """Return token ids and patches; each pair of frames has its time and its own video tokens."""
        patches, grids, placeholders = [], [], []
        for clip in clips:
            frames, times = self._read(clip)
            flat, *grid = self._video.patchify(
                frames[None], self._video.patch_size, self._video.merge_size, self._video.temporal_patch_size
            )
            patches.append(flat[0])
            grids.append(grid)
            count = grid[1] * grid[2] // self._video.merge_size**2
            pads = _VIDEO.replace("<|video_pad|>", "<|video_pad|>" * count)
            placeholders.append("".join(f"<{time:.1f} seconds>{pads}" for time in times))
        content = [{"type": "text", "text": self.prompt.replace("{text_prompt}", _escape(instruction))}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "video"}, *content]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        head, *rest = text.split(_VIDEO)
        if len(rest) != len(clips):
            raise UserError("the model's chat template has no place for two videos: choose a reward model")
        text = head + "".join(video + piece for video, piece in zip(placeholders, rest, strict=True))
        ids = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)
        is_video = ids["input_ids"] == self._model.config.video_token_id
        inputs = {
            "input_ids": ids["input_ids"],
            "attention_mask": ids["attention_mask"],
            "mm_token_type_ids": is_video.int() * 2,
            "pixel_values_videos": torch.cat(patches).to(self._model.dtype),
            "video_grid_thw": torch.tensor(grids),
        }
        return {name: value.to(self._model.device) for name, value in inputs.items()}

    def _read(self, clip: Path) -> tuple[torch.Tensor, list[float]]:
        """Return normalized frames (t, 3, h, w) and the time of each pair in seconds."""
        with VideoReader(clip, threads=1) as reader:
            info = reader.info
            indices = frame_indices(info.num_frames, float(info.frame_rate))
            if not indices:
                raise UserError(f"{clip}: has a single frame: the reward model needs a video")
            size = self._size(len(indices), info.height, info.width)
            frames = [
                pillow_resize(timed.frame[None], *size, Image.Resampling.BICUBIC)
                for timed in reader.pick(set(indices))
            ]
        tensor = torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (self._video.image_mean, self._video.image_std)
        )
        times = [index / float(info.frame_rate) for index in indices]
        return (tensor - mean) / std, [(a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True)]

    def _size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the frames' size: first the reward model's limits, then those of Qwen3-VL's processor."""
        height, width = frame_size(height, width, 28, MIN_PIXELS, MAX_PIXELS)
        factor = self._video.patch_size * self._video.merge_size
        limits = self._video.size
        return smart_resize(
            num_frames,
            height,
            width,
            self._video.temporal_patch_size,
            factor,
            limits["shortest_edge"],
            limits["longest_edge"],
        )


def ordinal_scores(logits: torch.Tensor) -> torch.Tensor:
    """Return the expected scores, from 1, of the logits (scores, thresholds) of an ordinal regression.

    Shi et al., "Deep Neural Networks for Rank-Consistent Ordinal Regression Based on Conditional
    Probabilities" (CORN, 2021): each logit is that of exceeding a threshold, given that the one below is
    exceeded. So P(score > k) is a product, and the expectation is 1 plus their sum.
    """
    return 1 + logits.sigmoid().cumprod(dim=-1).sum(dim=-1)


def frame_indices(num_frames: int, frame_rate: float) -> list[int]:
    """Return which frames the model sees: 4 per second, an even number, at least 4; none of a still.

    Clips of fewer frames give all of them, but an odd one.
    """
    even = num_frames // 2 * 2
    wanted = min(max(num_frames / frame_rate * FRAME_RATE, _MIN_FRAMES), _MAX_FRAMES, even)
    count = min(round(wanted / 2) * 2, num_frames)
    return evenly_spaced(num_frames, count) if count else []


def _settings(model: str) -> dict[str, Any]:
    """Return the contents of vefx_config.json; empty without the file, for the published defaults."""
    path = Path(model) / "vefx_config.json"
    if not Path(model).is_dir():
        try:
            path = Path(hf_hub_download(model, "vefx_config.json"))
        except OSError:  # of the hub's client, too: no such file, or offline
            return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError):
        raise UserError(f"{path}: is no JSON object: get the model's file again") from None


def _escape(text: str) -> str:
    """Return text in which special tokens, such as the reward tokens, are plain text."""
    return text.replace("<|", "< |").replace("|>", "| >")
