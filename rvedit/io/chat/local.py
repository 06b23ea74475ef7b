"""A local Qwen-VL model in transformers; no code from the checkpoint is run."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from rvedit.io.chat.messages import ChatError, ChatReply, ChatRequest, Jpeg, Video
from rvedit.io.errors import UserError

_EXAMPLE = "Qwen/Qwen3-VL-8B-Instruct"
TEMPLATE_OPTIONS = "chat_template_kwargs"
"""The only key of `Sampling.extra` for a local model."""


class LocalChat:
    """A local model that answers one request at a time; a server such as vLLM batches, which is faster.

    The input comes from the checkpoint's tokenizer, chat template and image processor. They are combined
    here, as transformers' Qwen-VL processor needs torchvision for videos, which are not used.

    Args:
        model: a folder, or an id on the Hub.
        device: cpu, cuda, ...; by default CUDA if it is available.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        name = local_name(model)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self._images: Any = AutoImageProcessor.from_pretrained(model)
            self._model: Any = (
                AutoModelForImageTextToText.from_pretrained(model, dtype=dtype).to(device).eval()
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"`local` {model}: cannot be loaded: {reason}") from None
        config = self._model.config
        if not hasattr(config, "image_token_id") or not hasattr(self._images, "merge_size"):
            raise UserError(
                f"`local` {model}: is a {config.model_type}: choose a Qwen-VL, or serve it and set `base_url`"
            )
        self._image_token = self._tokenizer.convert_ids_to_tokens(config.image_token_id)
        if not self._tokenizer.chat_template:
            raise UserError(
                f"`local` {model}: its tokenizer has no chat template: choose an instruction-tuned model"
            )
        revision = getattr(config, "_commit_hash", None)  # only for Hub ids; a folder's name has a digest
        self.name = f"{name}@{revision[:8]}" if revision else name
        # One thread: generation keeps the device busy, and the event loop stays free to decode clips.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    async def check(self, probe: ChatRequest) -> None:
        """Do nothing: problems were found on loading."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Return the generated reply."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._generate, request)

    async def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _generate(self, request: ChatRequest) -> ChatReply:
        import torch

        inputs = self._inputs(request).to(self._model.device)
        sampling = request.sampling
        options: dict[str, Any] = {"max_new_tokens": sampling.max_tokens}
        if sampling.temperature == 0:
            options["do_sample"] = False
        elif sampling.temperature is not None:
            options |= {"do_sample": True, "temperature": sampling.temperature}
        if sampling.top_p is not None and sampling.temperature != 0:
            options["top_p"] = sampling.top_p
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            output = self._model.generate(**inputs, **options)
        length = inputs["input_ids"].shape[1]
        new = output[0, length:]
        return ChatReply(
            text=self._tokenizer.decode(new, skip_special_tokens=True),
            model=self.name,
            finish_reason="length" if len(new) >= sampling.max_tokens else "stop",
            prompt_tokens=length,
            completion_tokens=len(new),
        )

    def _inputs(self, request: ChatRequest) -> Any:
        """Return token ids and patches as Qwen's processor does, with one token for each merged patch."""
        from PIL import Image

        if any(isinstance(part, Video) for part in request.parts):
            raise ChatError("a local model accepts images, not whole videos: use an endpoint", "all")
        images = [Image.open(BytesIO(part.data)) for part in request.parts if isinstance(part, Jpeg)]
        content = [
            {"type": "text", "text": _escape(part)} if isinstance(part, str) else {"type": "image"}
            for part in request.parts
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if request.system is not None:
            system = [{"type": "text", "text": _escape(request.system)}]
            messages.insert(0, {"role": "system", "content": system})
        text = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            **(request.sampling.extra.get(TEMPLATE_OPTIONS) or {}),
        )
        vision: dict[str, Any] = {}
        if images:
            vision = dict(self._images(images=images, return_tensors="pt"))
            first, *rest = text.split(self._image_token)
            tokens = [int(grid.prod()) // self._images.merge_size**2 for grid in vision["image_grid_thw"]]
            text = first + "".join(
                self._image_token * count + piece for count, piece in zip(tokens, rest, strict=True)
            )
        inputs = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)
        inputs.update(vision)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._model.config.image_token_id).int()
        return inputs


def _escape(text: str) -> str:
    """Return text in which special tokens, such as the image placeholder, are plain text."""
    return text.replace("<|", "< |").replace("|>", "| >")


def local_name(model: str) -> str:
    """Return a name for a local model in requests, without loading it.

    A folder's name has a digest of its configs and of its weight files' names, sizes and times. Raises
    UserError if `model` is neither a folder nor a Hub id.
    """
    folder = Path(model)
    if not folder.is_dir():
        if model.count("/") != 1 or model.startswith((".", "/", "~")):
            raise UserError(f"`local` {model}: no such folder: give one, or a Hub id such as {_EXAMPLE}")
        return f"local:{model}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja"):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            stat = path.stat()
            digest.update(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return f"local:{folder.resolve().name}@{digest.hexdigest()[:8]}"
