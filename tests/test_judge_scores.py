"""Reading a judge's reply: what is a verdict, and what is a format failure."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvedit.evaluation.scores import AXES, AXIS_LABELS, Scores, read_reasoning, read_scores
from rvedit.io.chat import BadReplyError

IC, CF, VQ = AXIS_LABELS.values()
PLAIN = f"Brief reasoning: Fine.\n{IC}: 85\n{CF}: 72\n{VQ}: 64"

GOOD = {
    "plain": (PLAIN, (85, 72, 64)),
    "blanks around": (f"\n\n  {PLAIN}  \n\n", (85, 72, 64)),
    "windows line ends": (PLAIN.replace("\n", "\r\n"), (85, 72, 64)),
    "no reasoning": (f"{IC}: 1\n{CF}: 100\n{VQ}: 50", (1, 100, 50)),
    "bold labels": (f"**{IC}:** 85\n**{CF}:** 72\n**{VQ}:** 64", (85, 72, 64)),
    "bold with the colon outside": (f"**{IC}**: 85\n**{CF}**: 72\n**{VQ}**: 64", (85, 72, 64)),
    "bold numbers": (f"{IC}: **85**\n{CF}: **72**\n{VQ}: **64**", (85, 72, 64)),
    "all bold": (f"**{IC}: 85**\n**{CF}: 72**\n**{VQ}: 64**", (85, 72, 64)),
    "underscores": (f"__{IC}__: 85\n_{CF}_: 72\n{VQ}: _64_", (85, 72, 64)),
    "code": (f"`{IC}: 85`\n`{CF}: 72`\n`{VQ}: 64`", (85, 72, 64)),
    "code block": (f"```\n{PLAIN}\n```", (85, 72, 64)),
    "code block with a language": (f"```text\n{PLAIN}\n```", (85, 72, 64)),
    "bullets": (f"- {IC}: 85\n- {CF}: 72\n- {VQ}: 64", (85, 72, 64)),
    "stars": (f"* {IC}: 85\n* {CF}: 72\n* {VQ}: 64", (85, 72, 64)),
    "round bullets": (f"• {IC}: 85\n• {CF}: 72\n• {VQ}: 64", (85, 72, 64)),
    "numbers before": (f"1. {IC}: 85\n2. {CF}: 72\n3. {VQ}: 64", (85, 72, 64)),
    "numbers in brackets": (f"1) {IC}: 85\n2) {CF}: 72\n3) {VQ}: 64", (85, 72, 64)),
    "numbers and bold": (f"1. **{IC}**: 85\n2. **{CF}**: 72\n3. **{VQ}**: 64", (85, 72, 64)),
    "headings": (f"### {IC}: 85\n### {CF}: 72\n### {VQ}: 64", (85, 72, 64)),
    "heading, then the number": (f"## {IC}\n85\n\n## {CF}\n72\n\n## {VQ}\n64", (85, 72, 64)),
    "quoted": (f"> {IC}: 85\n> {CF}: 72\n> {VQ}: 64", (85, 72, 64)),
    "table": (f"| Axis | Score |\n|---|---|\n| {IC} | 85 |\n| {CF} | 72 |\n| {VQ} | 64 |", (85, 72, 64)),
    "json": (f'{{"{IC}": 85, "{CF}": 72, "{VQ}": 64}}', (85, 72, 64)),
    "json on lines": (f'{{\n  "{IC}": 85,\n  "{CF}": 72,\n  "{VQ}": 64\n}}', (85, 72, 64)),
    "json strings": (f'{{"{IC}": "85", "{CF}": "72", "{VQ}": "64"}}', (85, 72, 64)),
    "one line": (f"{IC}: 85, {CF}: 72, {VQ}: 64", (85, 72, 64)),
    "one line with semicolons": (f"{IC}: 85; {CF}: 72; {VQ}: 64.", (85, 72, 64)),
    "equals": (f"{IC} = 85\n{CF} = 72\n{VQ} = 64", (85, 72, 64)),
    "dashes": (f"{IC} - 85\n{CF} – 72\n{VQ} — 64", (85, 72, 64)),
    "no colon": (f"{IC} 85\n{CF} 72\n{VQ} 64", (85, 72, 64)),
    "wide colon": (f"{IC}：85\n{CF}：72\n{VQ}：64", (85, 72, 64)),
    "arrow": (f"{IC} → 85\n{CF} → 72\n{VQ} → 64", (85, 72, 64)),
    "the word score": (f"{IC} score: 85\n{CF} Score: 72\n{VQ}: Score 64", (85, 72, 64)),
    "out of 100": (f"{IC}: 85/100\n{CF}: 72 / 100\n{VQ}: 64 out of 100", (85, 72, 64)),
    "percent": (f"{IC}: 85%\n{CF}: 72 %\n{VQ}: 64", (85, 72, 64)),
    "floats": (f"{IC}: 84.6\n{CF}: 72.4\n{VQ}: 63.5", (85, 72, 64)),
    "float of a whole": (f"{IC}: 85.0\n{CF}: 72.00\n{VQ}: 64.", (85, 72, 64)),
    "rounded into the range": (f"{IC}: 0.5\n{CF}: 100.4\n{VQ}: 1", (1, 100, 1)),
    "halves go up": (f"{IC}: 2.5\n{CF}: 3.5\n{VQ}: 99.5", (3, 4, 100)),
    "text after": (f"{IC}: 85 (minor errors)\n{CF}: 72, some blur\n{VQ}: 64 - a seam", (85, 72, 64)),
    "sentence after": (f"{PLAIN}\nOverall this is a good edit of 9 objects in 3 rows.", (85, 72, 64)),
    "number in the text after": (f"{IC}: 85 since 2 of 3 are right\n{CF}: 72\n{VQ}: 64", (85, 72, 64)),
    "lower case": (PLAIN.lower(), (85, 72, 64)),
    "upper case": (PLAIN.upper(), (85, 72, 64)),
    "another order": (f"{VQ}: 64\n{IC}: 85\n{CF}: 72", (85, 72, 64)),
    "and for &": (PLAIN.replace("&", "and"), (85, 72, 64)),
    "html entity": (PLAIN.replace("&", "&amp;"), (85, 72, 64)),
    "escaped &": (PLAIN.replace("&", r"\&"), (85, 72, 64)),
    "no blank at &": (PLAIN.replace(" & ", "&"), (85, 72, 64)),
    "abbreviations": (f"{IC} (IC): 85\n{CF} (CF): 72\n{VQ} (VQ): 64", (85, 72, 64)),
    "thoughts": (f"<think>{IC}: 10, or 20?</think>\n{PLAIN}", (85, 72, 64)),
    "thoughts with all the scores": (
        f"<think>\n{PLAIN.replace('85', '11')}\n</think>\n\n{PLAIN}",
        (85, 72, 64),
    ),
    "the end of thoughts alone": (f"{IC}: 10?\n</think>\n{PLAIN}", (85, 72, 64)),
    "labels in the reasoning": (
        f"Brief reasoning: {IC} is high, {CF}: 5 things moved.\n{IC}: 85\n{CF}: 72\n{VQ}: 64",
        (85, 72, 64),
    ),
    "the template repeated": (
        f"{IC}: <integer 1-100>\n{CF}: <integer 1-100>\n{VQ}: <integer 1-100>\n\n{PLAIN}",
        (85, 72, 64),
    ),
    "corrected at the end": (f"{PLAIN}\n\nOn reflection:\n{IC}: 80\n{CF}: 70\n{VQ}: 60", (80, 70, 60)),
    "blank lines between": (PLAIN.replace("\n", "\n\n"), (85, 72, 64)),
    "indented": (PLAIN.replace("\n", "\n    "), (85, 72, 64)),
    "other languages around": (f"评分如下：\n{PLAIN}\n谢谢。", (85, 72, 64)),
    "a plus sign": (f"{IC}: +85\n{CF}: 72\n{VQ}: 64", (85, 72, 64)),
    "the scale in brackets": (f"{IC} (1-100): 85\n{CF} (1–100): 72\n{VQ}: 64", (85, 72, 64)),
    "the score in brackets": (f"{IC}: (85)\n{CF}: (72)\n{VQ}: 64", (85, 72, 64)),
    "a dash and another number": (f"{IC}: 85 - 2 of 3 dogs\n{CF}: 72\n{VQ}: 64", (85, 72, 64)),
    "the next line's dash": (f"{IC}: 85\n- 2. {CF}: 72\n- 3. {VQ}: 64", (85, 72, 64)),
    "leading zeros": (f"{IC}: 085\n{CF}: 72\n{VQ}: 064", (85, 72, 64)),
    "the template's brackets": (f"{IC}: <85>\n{CF}: <integer 72>\n<{VQ}>: <64>", (85, 72, 64)),
    "escaped brackets": (f"{IC}: &lt;85&gt;\n{CF}: \\<72\\>\n{VQ}: \\[64\\]", (85, 72, 64)),
    "square brackets": (f"{IC}: [85]\n{CF}: [[72]]\n{VQ}: **[64]**/100", (85, 72, 64)),
    "other brackets": (f"{IC}: 【85】\n{CF}: 「72」\n{VQ}: “64”", (85, 72, 64)),
    "formulas": (
        f"{IC}: \\boxed{{85}}\n{CF}: $\\boxed{{\\text{{72}}}}$\n{VQ}: \\(\\mathbf{{64}}\\)",
        (85, 72, 64),
    ),
    "special tokens": (
        f"{IC}: <|begin_of_box|>85<|end_of_box|>\n<|sep|>{CF}: 72<|im_end|>\n{VQ}: <｜box｜>64",
        (85, 72, 64),
    ),
    "tags": (f"{IC}: <b>85</b>\n<b>{CF}</b>: <score>72</score>\n{VQ}: <box>64</box><br>", (85, 72, 64)),
    "an answer in tags": (f"<think>{IC}: 3</think><answer>{PLAIN}</answer>", (85, 72, 64)),
    "full-width": (f"{IC}：８５\n{CF}：７２／１００\n{VQ}：＜６４＞", (85, 72, 64)),
    "a bold table": (f"| **{IC}** | **85** | fine |\n| {CF} | `72` |\n| {VQ} | [64] |", (85, 72, 64)),
    "struck out": (f"{IC}: ~~70~~ 85\n{CF}: ~~80~~72\n{VQ}: <s>50</s> <del>60</del> 64", (85, 72, 64)),
    "struck out in other ways": (
        f"{IC}: ~70~ 85\n{CF}: 8\u03360\u0336 72\n{VQ}: \\sout{{50}} 64",
        (85, 72, 64),
    ),
    "a line struck out": (f"~~{IC}: 70~~\n{PLAIN}\n~~{VQ}: 50, or less~~", (85, 72, 64)),
    "about": (f"{IC}: ~85\n{CF}: ≈ 72\n{VQ}: → 64", (85, 72, 64)),
    "nested json": (
        f'{{"{IC}": {{"score": 85}}, "{CF}": {{"score": 72}}, "{VQ}": [64]}}',
        (85, 72, 64),
    ),
    "snake case": (
        "instruction_compliance: 85\nconsistency_and_detail_fidelity: 72\nvisual_quality_stability: 64",
        (85, 72, 64),
    ),
    "scales in brackets": (
        f"{IC}: 85 (out of 100)\n{CF} [1-100]: 72\n{VQ} (out of 100): 64 of 100",
        (85, 72, 64),
    ),
    "points": (f"{IC}: 85 points\n{CF}: 72 pts\n{VQ}: 64分", (85, 72, 64)),
    "sentences on one line": (f"{IC}: 85. {CF}: 72. {VQ}: 64.", (85, 72, 64)),
    "a list on one line": (f"1. {IC}: 85, 2. {CF}: 72; 3. {VQ}: 64", (85, 72, 64)),
    "comments with numbers": (f"{IC}: 85, 2 of 3\n{CF}: 72, 90% is kept\n{VQ}: 64 (3 seams)", (85, 72, 64)),
    "the next line begins with a number": (f"{IC}: 85\n99 frames.\n{CF}: 72\n{VQ}: 64", (85, 72, 64)),
}

NOT_SINGLE = [
    *("85 to 95", "85-95", "80–90", "85 - 95", "85—95 or so", "85 - 95, by frame", "85 - 95 (good)"),
    *("[85-95]", "<85-95>", "<85>-<95>", "**85**–**95**", "[85] to [95]", "[85, 95]", "85, 95", "85 95"),
    *(
        "85 (95)",
        "80~90",
        "80 ～ 90",
        "8~9",
        "85...95",
        "85 … 95",
        "85 ± 5",
        "85+/-5",
        "85 or 95",
        "85 and 95",
    ),
    *("85 up to 95", "80到90", "70 → 85", "70 -> 85", "85% - 95%", "85%-95%", "85/100 - 95/100"),
    *("85/100 to 95/100", "85 points to 95 points", "\\boxed{85-95}", "85-95 (out of 100)", "８５－９５"),
    *("85+", "8 (out of 10)", "8 of 10", "[8]/10", "85/90/100"),
]
NO_SCORE = [
    *("~~85~~", "<s>85</s>", "between 85 and 95", "from 85 to 95", ">85", "<85", "≥ 85", "&gt; 85"),
    *("<integer 1–100>", "<score>", "\\frac{85}{100}"),
]

BAD = {
    "empty": ("", "no score for Instruction"),
    "a refusal": ("I'm sorry, I cannot compare these videos.", "no score for Instruction"),
    "an axis is missing": (f"{IC}: 85\n{CF}: 72", "no score for Visual"),
    "the middle is missing": (f"{IC}: 85\n{VQ}: 64", "no score for Consistency"),
    "the template alone": (
        f"{IC}: <integer 1-100>\n{CF}: <integer 1-100>\n{VQ}: <integer 1-100>",
        "no score",
    ),
    "words": (f"{IC}: eighty\n{CF}: 72\n{VQ}: 64", "no score for Instruction"),
    "not available": (f"{IC}: N/A\n{CF}: 72\n{VQ}: 64", "no score for Instruction"),
    "numbers alone": ("85\n72\n64", "no score"),
    "abbreviations alone": ("IC: 85\nCF: 72\nVQ: 64", "no score"),
    "zero": (f"{IC}: 0\n{CF}: 72\n{VQ}: 64", "is 0, outside 1 to 100"),
    "nearly zero": (f"{IC}: 0.4\n{CF}: 72\n{VQ}: 64", "is 0.4, outside"),
    "above": (f"{IC}: 101\n{CF}: 72\n{VQ}: 64", "is 101, outside"),
    "rounded above": (f"{IC}: 100.5\n{CF}: 72\n{VQ}: 64", "outside"),
    "negative": (f"{IC}: -5\n{CF}: 72\n{VQ}: 64", "is -5, outside"),
    "far above": (f"{IC}: 85\n{CF}: 720\n{VQ}: 64", "is 720, outside"),
    "a range": (f"{IC}: 80-85\n{CF}: 72\n{VQ}: 64", "not a single score"),
    "a range with a dash": (f"{IC}: 85\n{CF}: 70 – 75\n{VQ}: 64", "not a single score"),
    "of ten": (f"{IC}: 8/10\n{CF}: 7/10\n{VQ}: 6/10", "not a single score"),
    "out of five": (f"{IC}: 4 out of 5\n{CF}: 3\n{VQ}: 2", "not a single score"),
    "thousands": (f"{IC}: 1,000\n{CF}: 72\n{VQ}: 64", "not a single score"),
    "cut off in thought": (f"<think>Let me see. {IC}: 85 and {CF}: 72, {VQ}: 64", "no score"),
    "a list's number for a score": (f"1. {IC}:\n2. {CF}: 80\n3. {VQ}: 70", "no score for Instruction"),
    "an exponent": (f"{IC}: 1e2\n{CF}: 72\n{VQ}: 64", "not a single score"),
    "cut off": (f"Brief reasoning: Fine.\n{IC}: 85\n{CF}:", "no score for Consistency"),
}


@pytest.mark.parametrize("name", GOOD)
def test_verdicts(name):
    reply, expected = GOOD[name]
    assert read_scores(reply).values == expected


@pytest.mark.parametrize("name", BAD)
def test_format_failures(name):
    reply, reason = BAD[name]
    with pytest.raises(BadReplyError, match=reason):
        read_scores(reply)


@pytest.mark.parametrize("words", NOT_SINGLE)
def test_two_numbers_and_other_scales_are_no_score(words):
    with pytest.raises(BadReplyError, match=f"{IC} is not a single score of 1 to 100"):
        read_scores(PLAIN.replace("85", words))


@pytest.mark.parametrize("words", NO_SCORE)
def test_what_holds_no_score(words):
    with pytest.raises(BadReplyError, match=f"no score for {IC}"):
        read_scores(PLAIN.replace("85", words))


def test_the_table_is_long_enough():
    assert len(GOOD) + len(BAD) >= 60


def test_reasoning():
    assert read_reasoning(PLAIN) == "Fine."
    assert read_reasoning(f"**Brief reasoning:** The dog: gone.\n{PLAIN}") == "The dog: gone."
    assert read_reasoning("- Brief Reasoning: yes") == "yes"
    assert read_reasoning(f"{IC}: 3") == ""


MARKS = st.sampled_from(["", "- ", "* ", "1. ", "2) ", "> ", "### ", "**", "  "])
SEPARATORS = st.sampled_from([": ", ":", " = ", " - ", " – ", "：", ":\n", ": **", " | "])
TAILS = st.sampled_from(
    ["", " ", "/100", " out of 100", "%", ".", ",", " (fine)", "** good", " because of 3 dogs"]
)
BETWEEN = st.sampled_from(["\n", "\n\n", "\r\n", "\nNote: 7 of 9.\n"])
NUMBERS = st.one_of(
    st.integers(1, 100).map(lambda n: (str(n), n)),
    st.floats(0.5, 100.4).map(lambda x: (f"{x:.3f}", math.floor(float(f"{x:.3f}") + 0.5))),
)


@settings(max_examples=400, deadline=None)
@given(
    order=st.permutations(AXES),
    marks=st.tuples(MARKS, MARKS, MARKS),
    separators=st.tuples(SEPARATORS, SEPARATORS, SEPARATORS),
    tails=st.tuples(TAILS, TAILS, TAILS),
    between=BETWEEN,
    numbers=st.tuples(NUMBERS, NUMBERS, NUMBERS),
    case=st.sampled_from([str, str.lower, str.upper]),
    thought=st.sampled_from(
        ["", "<think>Instruction Compliance: 3</think>\n", "Brief reasoning: 4 of 5 are right.\n"]
    ),
)
def test_any_triple_in_any_form_is_read_back(
    order, marks, separators, tails, between, numbers, case, thought
):
    rows = zip(order, marks, separators, numbers, tails, strict=True)
    lines = [f"{m}{case(AXIS_LABELS[axis])}{s}{text}{tail}" for axis, m, s, (text, _), tail in rows]
    expected = {axis: value for axis, (_, value) in zip(order, numbers, strict=True)}
    assert read_scores(thought + between.join(lines)) == Scores(**expected)


@pytest.mark.parametrize(
    "reply",
    [
        *("\n" * 20_000, " \n-" * 10_000, "reasoning " * 5_000, IC + "\n" * 20_000, IC + "-" * 20_000),
        *(IC + "( " * 10_000, IC + "(" + " " * 20_000, "<" * 20_000, "<" + "a" * 20_000, "~a" * 10_000),
    ],
)
def test_degenerate_replies_end(reply):
    """A pattern that backtracks in cubic time would take hours for these."""
    with pytest.raises(BadReplyError):
        read_scores(reply)
    assert read_reasoning(reply) == ""
