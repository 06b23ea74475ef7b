"""A local multimodal model of the Qwen-VL kind, by transformers; no code of the checkpoint's is run."""

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
_TEMPLATE_OPTIONS = "chat_template_kwargs"


class LocalChat:
    """Answers one request after the other; for many clips a server such as vLLM, which batches, is faster.

    The checkpoint's own tokenizer, chat template and image processor make the input. They are put together
    here, since transformers' processor for Qwen-VL needs torchvision, for videos, which are not used.

    Args:
        model: a folder, or an id on the hub.
        device: cpu, cuda, ...; by default what is there.
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
            raise UserError(f"--local {model}: cannot be loaded: {reason}") from None
        config = self._model.config
        self._picture = self._tokenizer.convert_ids_to_tokens(getattr(config, "image_token_id", None) or 0)
        if not hasattr(config, "image_token_id") or not hasattr(self._images, "merge_size"):
            raise UserError(
                f"--local {model}: a {config.model_type}: choose a Qwen-VL, or serve it and give --base-url"
            )
        if not self._tokenizer.chat_template:
            raise UserError(
                f"--local {model}: its tokenizer has no chat template: choose an instruction-tuned model"
            )
        revision = getattr(config, "_commit_hash", None)  # of a hub's model: a folder's name tells it already
        self.name = f"{name}@{revision[:8]}" if revision else name
        # One thread: generation keeps a device busy by itself, and the loop stays free to decode clips.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    async def check(self, probe: ChatRequest) -> None:
        """What can be wrong was found on loading."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Generate a reply."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._generate, request)

    async def close(self) -> None:
        """End the thread."""
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
        """Token ids and patches, as Qwen's processor makes them: a token for each merged patch."""
        from PIL import Image

        if any(isinstance(part, Video) for part in request.parts):
            raise ChatError("a local model is shown pictures, not whole clips: use an endpoint", "all")
        pictures = [Image.open(BytesIO(part.data)) for part in request.parts if isinstance(part, Jpeg)]
        content = [
            {"type": "text", "text": self._plain(part)} if isinstance(part, str) else {"type": "image"}
            for part in request.parts
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if request.system is not None:
            system = [{"type": "text", "text": self._plain(request.system)}]
            messages.insert(0, {"role": "system", "content": system})
        text = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            **request.sampling.extra.get(_TEMPLATE_OPTIONS, {}),
        )
        vision: dict[str, Any] = {}
        if pictures:
            vision = dict(self._images(images=pictures, return_tensors="pt"))
            first, *rest = text.split(self._picture)
            tokens = [int(grid.prod()) // self._images.merge_size**2 for grid in vision["image_grid_thw"]]
            text = first + "".join(
                self._picture * count + piece for count, piece in zip(tokens, rest, strict=True)
            )
        inputs = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)
        inputs.update(vision)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._model.config.image_token_id).int()
        return inputs

    def _plain(self, text: str) -> str:
        """Words: a placeholder for a picture written in a text must not act as one."""
        return text.replace("<|", "< |").replace("|>", "| >")


def local_name(model: str) -> str:
    """What a local model is asked for by; a folder is told from others of its name, without being loaded.

    By its configs' content and its weights' names, sizes and times. Raises UserError for what is neither.
    """
    folder = Path(model)
    if not folder.is_dir():
        if model.count("/") != 1 or model.startswith((".", "/", "~")):
            raise UserError(f"--local {model}: no such folder, and no id on the hub such as {_EXAMPLE}")
        return f"local:{model}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja"):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            stat = path.stat()
            digest.update(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return f"local:{folder.resolve().name}@{digest.hexdigest()[:8]}"
