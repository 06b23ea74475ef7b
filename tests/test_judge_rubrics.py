"""The rubrics are the paper's, word for word."""

import hashlib
import re
from pathlib import Path

import pytest

from rvedit.evaluation.rubrics import rubric, with_instruction
from rvedit.io.records import Category

PAPER = sorted((Path(__file__).parents[2] / "shared" / "paper").glob("*.txt"))
HEADINGS = {
    Category.CHANGE: "Local Change.",
    Category.REMOVE: "Local Remove.",
    Category.ADD: "Local Add.",
    Category.STYLE: "Global Style.",
}
# Of the words alone, so that a stranger without the paper's text can tell that they have not changed.
DIGESTS = {
    Category.CHANGE: "d3aed6f9c80e5c37",
    Category.REMOVE: "ec6fab6b8a8da7e7",
    Category.ADD: "59304c4f0ca9a423",
    Category.STYLE: "fccec228c09c25ba",
}


def words(text):
    """Without fences, list marks and line breaks, which the paper's text has from its conversion."""
    lines = [re.sub(r"^\s*- ", "", line) for line in text.replace("```", "").splitlines()]
    return re.sub(r"(\d)\s+:", r"\1:", " ".join(" ".join(lines).split()))


@pytest.mark.skipif(not PAPER, reason="the paper's text is not at hand")
@pytest.mark.parametrize("category", Category)
def test_rubrics_are_the_papers(category):
    text = PAPER[0].read_text(encoding="utf-8")
    text = text[text.index("Exact prompt templates") :]
    blocks = text.split("```")[1]
    common, response = blocks.split("# Shared block: <RESPONSE_FORMAT>")
    common = common.split("<COMMON_RULES>", 1)[1]
    rest = text[text.index("```", text.index("```") + 3) + 3 :]
    starts = sorted(rest.index(f"\n{heading}\n") for heading in HEADINGS.values())
    start = rest.index(f"\n{HEADINGS[category]}\n")
    end = next((other for other in starts if other > start), len(rest))
    theirs = rest[start + len(HEADINGS[category]) + 2 : end]
    theirs = theirs.replace("<COMMON_RULES>", common).replace("<RESPONSE_FORMAT>", response)
    assert words(rubric(category)).split(" ") == words(theirs).split(" ")


@pytest.mark.parametrize("category", Category)
def test_rubrics_are_as_they_were(category):
    digest = hashlib.sha256(words(rubric(category)).encode()).hexdigest()[:16]
    assert digest == DIGESTS[category]


@pytest.mark.parametrize(
    "instruction",
    [
        "replace the dog with a corgi",
        'write "{edit_prompt}" on {the} wall {0} {}',
        "<COMMON_RULES> and <RESPONSE_FORMAT> 'as is' \\1 %s",
        "two\nlines '''",
    ],
)
def test_the_instruction_goes_in_verbatim(instruction):
    prompt = with_instruction(rubric(Category.ADD), instruction)
    assert f"'''\n{instruction}\n'''" in prompt
    assert prompt.count("Scoring rules (apply to all three dimensions):") == 1
    assert prompt.replace(instruction, "{edit_prompt}") == rubric(Category.ADD)
