"""Captioners: whatever describes a clip (section 5: every target is annotated anew, by one model)."""

from rvedit.datasets.captioners.base import Caption, Captioner
from rvedit.datasets.captioners.qwen import (
    CaptionSettings,
    ChatCaptioner,
    endpoint_captioner,
    local_captioner,
)

CAPTIONERS = ("qwen3-vl",)

__all__ = [
    "CAPTIONERS",
    "Caption",
    "CaptionSettings",
    "Captioner",
    "ChatCaptioner",
    "endpoint_captioner",
    "local_captioner",
]
