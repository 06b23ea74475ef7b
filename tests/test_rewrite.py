"""`rvedit edit --rewrite`: what a chat model's reply becomes, and who decides."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL, ChatServer
from clips import write_clip
from conftest import random_clip
from processes import rvedit

from rvedit.editing.rewrite import Rewriter, read_instructions
from rvedit.io.chat import BadReplyError, ChatReply
from rvedit.io.errors import UserError

STEPS = "1. make the brown dog blue\n2. make the sky dark"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_clip(path, random_clip(5, 64, 64))
    return path


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (STEPS, ["make the brown dog blue", "make the sky dark"]),
        ('- "make it sepia"\n\n', ["make it sepia"]),
        ("<think>\nwhich dog?\n</think>\n**Make the dog red.**", ["Make the dog red."]),
        ("Step 1: add a hat\nStep 2: make it night", ["add a hat", "make it night"]),
        ("replace 2 dogs with 3 cats", ["replace 2 dogs with 3 cats"]),
    ],
)
def test_lines_of_a_reply_are_instructions(text: str, lines: list[str]) -> None:
    assert read_instructions(ChatReply(text, "m")) == lines


@pytest.mark.parametrize(
    "reply",
    [
        ChatReply("", "m"),
        ChatReply("<think>hm", "m"),
        ChatReply("I'm sorry, but I can't help with that.", "m"),
        ChatReply("make the", "m", finish_reason="length"),
        ChatReply("\n".join("abcdef"), "m"),
        ChatReply("word " * 200, "m"),
    ],
)
def test_other_replies_are_refused(reply: ChatReply) -> None:
    with pytest.raises(BadReplyError):
        read_instructions(reply)


def test_the_model_sees_the_clip_and_the_words(clip: Path) -> None:
    with ChatServer(say=lambda asked: STEPS) as server:
        lines = Rewriter(server.url, MODEL).rewrite("make it better", clip)
    assert lines == ["make the brown dog blue", "make the sky dark"]
    parts = server.asked[0].body["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["image_url"] * 3 + ["text"]
    assert parts[-1]["text"] == "make it better"


def test_a_model_without_pictures_gets_the_words_alone(clip: Path) -> None:
    def behave(asked: Any) -> str:
        has_pictures = any(part["type"] == "image_url" for part in asked.body["messages"][-1]["content"])
        return "400" if has_pictures else "ok"

    with ChatServer(behave, say=lambda asked: "make it sepia") as server:
        assert Rewriter(server.url, MODEL).rewrite("old", clip) == ["make it sepia"]


def test_a_server_that_fails_is_named(clip: Path) -> None:
    with (
        ChatServer(lambda asked: "refusal") as server,
        pytest.raises(UserError, match=r"no rewritten instruction: the model refuses"),
    ):
        Rewriter(server.url, MODEL).rewrite("make it better", clip)


def test_without_a_terminal_the_words_are_printed_and_nothing_is_edited(clip: Path) -> None:
    with ChatServer(say=lambda asked: STEPS) as server:
        words = ("edit", clip, "make it better", "--rewrite", "--rewrite-with", server.url)
        done = rvedit(*words, "--rewrite-model", MODEL, cwd=clip.parent, check=1)
    assert done.stdout.splitlines() == ["make the brown dog blue", "make the sky dark"]
    assert "nothing was edited" in done.stderr
    assert not (clip.parent / "clip_edited.mp4").exists()


def test_with_yes_the_new_words_are_run(clip: Path) -> None:
    environment = {"RVEDIT_REWRITE_MODEL": MODEL}
    with ChatServer(say=lambda asked: STEPS) as server:
        words = ("edit", clip, "make it better", "--rewrite", "--yes", "--json", "--device", "cpu")
        done = rvedit(*words, cwd=clip.parent, check=0, RVEDIT_REWRITE_BASE_URL=server.url, **environment)
    assert json.loads(done.stdout)["instructions"] == ["make the brown dog blue", "make the sky dark"]
    assert "edits by: make the brown dog blue; make the sky dark" in done.stderr


@pytest.mark.slow
def test_on_a_terminal_the_user_changes_the_words(clip: Path) -> None:
    with ChatServer(say=lambda asked: STEPS) as server:
        leader, follower = pty.openpty()
        words = ["edit", "clip.mp4", "make it better", "--rewrite", "--rewrite-with", server.url]
        command = [
            sys.executable,
            "-m",
            "rvedit_cli",
            *words,
            "--rewrite-model",
            MODEL,
            "--json",
            "--device",
            "cpu",
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(
            command, stdin=follower, stderr=follower, stdout=subprocess.PIPE, cwd=clip.parent, env=environment
        )
        os.write(leader, b"\nmake it night\n")  # keeps the first, replaces the second
        output, _ = process.communicate(timeout=120)
        os.close(leader)
        os.close(follower)
    assert json.loads(output)["instructions"] == ["make the brown dog blue", "make it night"]


def test_without_a_model_the_remedy_is_said(clip: Path) -> None:
    done = rvedit("edit", clip, "make it better", "--rewrite", cwd=clip.parent, check=2)
    assert "--rewrite-with or RVEDIT_REWRITE_BASE_URL" in done.stderr
    for option in ("--yes", "--rewrite-model=x"):
        done = rvedit("edit", clip, "make it better", option, cwd=clip.parent, check=2)
        assert done.stderr.startswith(f"rvedit: {option.partition('=')[0]}: needs --rewrite\n")
    batch = ("edit", "--batch", "list.csv", "--out-dir", "out", "--rewrite")
    done = rvedit(*batch, cwd=clip.parent, check=2)
    assert done.stderr == "rvedit: --rewrite: cannot be used with --batch\n"
