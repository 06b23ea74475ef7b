"""Captioners of clips (section 5: one model captions every target)."""

from rvedit.datasets.captioners.qwen import (
    SAMPLING,
    CaptionSettings,
    ChatCaptioner,
    endpoint_captioner,
    local_captioner,
)

CAPTIONERS = ("qwen3-vl",)

__all__ = [
    "CAPTIONERS",
    "SAMPLING",
    "CaptionSettings",
    "ChatCaptioner",
    "endpoint_captioner",
    "local_captioner",
]
