"""The judge's rubrics, verbatim from Appendix D.3 of the paper; that of checklists is our own."""

from __future__ import annotations

from importlib.resources import files

from rvedit.io.records import Category

EDIT_PROMPT = "{edit_prompt}"


def rubric(category: Category) -> str:
    """Return a category's rubric with the shared blocks filled in; `{edit_prompt}` is still a placeholder."""
    text = read_rubric(category.value)
    for block in ("common_rules", "response_format"):
        text = text.replace(f"<{block.upper()}>", read_rubric(block))
    return text


def with_instruction(text: str, instruction: str) -> str:
    """Return a rubric with the instruction filled in last and verbatim, so braces in it are not expanded."""
    return text.replace(EDIT_PROMPT, instruction)


def read_rubric(name: str) -> str:
    """Return a text of this folder."""
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
