"""Checklists: yes-or-no questions about each item, answered by a chat model."""

import json

import pytest
from chat_server import ChatServer
from test_judge import make_bench
from typer.testing import CliRunner

from rvedit.evaluation.checklist import Question, read_answers, read_questions
from rvedit.evaluation.judges import QWEN
from rvedit.io.errors import UserError
from rvedit_cli.main import app

QUESTIONS = """item,question,expected
0000_clip,Is it red?,
0000_clip,"Is there, still, a dog?",no
0000_clip,Is it sharp?,yes
0000_clip,Is it calm?,yes
0001_clip,Is it red?,
0002_clip,Is it blue?,
0002_clip,Is it green?,Yes
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_bench(tmp_path_factory.mktemp("checklist"), {"local_change": 2, "camera": 2})
    (folder / "questions.csv").write_text(QUESTIONS)
    return folder


def run(folder, out, say, *more):
    """The summary, the rows, and the requests that were sent."""
    with ChatServer(say=say, models=(QWEN,)) as server:
        command = ["judge", str(folder / "edits"), "--bench", str(folder / "bench.csv"), "--json", *more]
        command += ["--protocol", "checklist", "--questions", str(folder / "questions.csv")]
        result = CliRunner().invoke(app, [*command, "--base-url", server.url, "--out", str(out)])
        rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
        return json.loads(result.stdout), rows, server.asked


def say(asked):
    system = asked.body["messages"][0]["content"]
    if "dog" in system:
        return "1: yes\n2: no\n3: unclear\n"
    return "1: Yes\n2: **No**" if "blue" in system else "I cannot tell."


def judge_command(folder, questions):
    command = ["judge", str(folder / "edits"), "--bench", str(folder / "bench.csv")]
    return [*command, "--protocol", "checklist", "--questions", str(folder / questions)]


def test_the_expected_reply_grows_with_the_questions(folder, tmp_path):
    command = [*judge_command(folder, "questions.csv"), "--out", str(tmp_path), "--dry-run", "--json"]
    (estimate,) = json.loads(CliRunner().invoke(app, command).stdout)["judges"]
    questions = sum(map(len, read_questions(folder / "questions.csv").values()))
    assert estimate["completion_tokens"] == 6 * questions


def test_an_items_score_is_the_share_of_expected_answers(folder, tmp_path):
    summary, rows, asked = run(folder, tmp_path, say)
    assert (summary["protocol"], summary["scale"]) == ("checklist", None)
    first, second, third = rows
    assert first["measures"] == {"share": 1, "expected": 2, "other": 0, "unclear": 1, "unparsed": 1}
    assert first["answers"] == {
        "Is it red?": "yes", "Is there, still, a dog?": "no", "Is it sharp?": "unclear", "Is it calm?": "",
    }  # fmt: skip
    assert second["dropped"] == "no question is answered yes or no (0 unclear, 1 unparsed) (asked 3 times)"
    assert third["measures"]["share"] == 0.5
    assert all(row["scores"] is None for row in rows)
    table = summary["checklists"]["qwen"]
    assert list(table) == ["change", "camera", "overall"]
    assert table["overall"]["items"] == 2
    assert table["overall"]["score"]["value"] == 0.75
    assert table["overall"]["score"]["low"] == 0.5
    assert table["overall"]["answers"] == {"expected": 3, "other": 1, "unclear": 1, "unparsed": 1}
    assert summary["judges"]["qwen"]["table"] is None
    assert summary["without_rubric"] == {"camera": 1}, "the item without questions"
    assert len(asked) == 5, "one request an item, but three for what is dropped"
    (text,) = (text for a in asked if "dog" in (text := a.body["messages"][0]["content"]))
    assert "1. Is it red?\n2. Is there, still, a dog?\n3. Is it sharp?\n4. Is it calm?" in text
    assert "make number 0 {red}" in text
    assert "Checklist" in (tmp_path / "report.html").read_text()


def test_a_second_run_asks_nothing_and_other_questions_are_asked(folder, tmp_path):
    run(folder, tmp_path, say)
    summary, _, asked = run(folder, tmp_path, say)
    assert (len(asked), summary["judges"]["qwen"]["from_cache"]) == (0, 3)
    (folder / "questions.csv").write_text(QUESTIONS.replace("blue", "blue or violet"))
    try:
        assert len(run(folder, tmp_path, say)[2]) == 1
    finally:
        (folder / "questions.csv").write_text(QUESTIONS)


@pytest.mark.parametrize(
    ("reply", "answers"),
    [
        ("1: yes\n2: no", ["yes", "no"]),
        ("**1.** Yes.\n**2.** No, the dog is gone", ["yes", "no"]),
        ("Q1 - unclear\nQuestion 2) NO", ["unclear", "no"]),
        ("<think>1: no\n2: no</think>1: yes", ["yes", None]),
        ("1: no\n1: yes", ["yes", None]),
        ("| 1 | Yes |\n| 2 | Unclear |", ["yes", "unclear"]),
        ("1: not yet\n2: nothing", [None, None]),
        ("1: yes/no\n12: yes", [None, None]),
        ("yes\nno", [None, None]),
        ("1: answer: yes\n2: maybe", ["yes", None]),
    ],
)
def test_answers_are_read_by_their_numbers(reply, answers):
    assert read_answers(reply, 2) == answers


def test_lists_of_questions(tmp_path, folder):
    path = tmp_path / "q.csv"
    path.write_text("item;question\na;Is it red?\n")
    assert read_questions(path) == {"a": (Question("Is it red?", "yes"),)}
    for text, says in (
        ("item,question,expected\na,Is it?,perhaps\n", "row 1: expected is perhaps: give yes or no"),
        ("item,question\na,\n", "row 1: item or question is empty"),
        ("item,question\na,Is it?\na,Is it?\n", "row 2: the same question about a again"),
        ("item,question\n", "holds no questions"),
        ("item\na\n", "question"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            read_questions(path)
    path.write_text("item,question\nnowhere,Is it?\n")
    refused = CliRunner().invoke(app, judge_command(folder, path))
    assert "nowhere is no item of the list" in str(refused.exception)
    refused = CliRunner().invoke(app, judge_command(folder, path)[:-2])
    assert "--questions CSV go together" in str(refused.exception)
