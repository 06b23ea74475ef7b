"""The judge's rubrics, word for word as in Appendix D.3 of the paper."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from rvedit.io.records import Category

COMMON_RULES, RESPONSE_FORMAT, EDIT_PROMPT = "<COMMON_RULES>", "<RESPONSE_FORMAT>", "{edit_prompt}"


@lru_cache
def rubric(category: Category) -> str:
    """A category's rubric with the shared blocks put in, and `{edit_prompt}` where the instruction goes."""
    text = _read(category.value)
    for mark, block in ((COMMON_RULES, "common_rules"), (RESPONSE_FORMAT, "response_format")):
        text = text.replace(mark, _read(block))
    return text


def with_instruction(text: str, instruction: str) -> str:
    """A rubric with the instruction in it: last and verbatim, whatever braces or marks it holds."""
    return text.replace(EDIT_PROMPT, instruction)


def _read(name: str) -> str:
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
