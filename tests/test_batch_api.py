"""`--batch-api`: requests as jobs, which a killed run finds again."""

import json
import os
import signal
import time
from collections import Counter

import pytest
from chat_server import Batches, ChatServer
from gemini_server import KEY, GeminiServer
from processes import Command, rvedit
from test_judge import make_bench, words

from rvedit.evaluation.judges import QWEN

TEXT = words(80, 70, 60)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("batch"), {"local_change": 3, "local_add": 2})


def command(folder, *more):
    bench = ("--bench", folder / "bench.csv", "--out", "out", "--batch-api", "--json")
    return ["judge", folder / "edits", *bench, *more]


def wait_for(true):
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "out/scores.jsonl").read_text().splitlines()]


def test_a_killed_run_finds_its_job_and_pays_once(small, tmp_path):
    batches = Batches(lambda line: (200, TEXT))
    with ChatServer(models=(QWEN,), batches=batches) as server:
        environment = {**os.environ, "RVEDIT_QWEN_BASE_URL": server.url}
        process = Command(*command(small), cwd=tmp_path, environment=environment)
        wait_for(lambda: batches.states_asked)
        process.send_signal(signal.SIGKILL)
        assert process.finish().returncode == -signal.SIGKILL
        assert not (tmp_path / "out/scores.jsonl").exists()
        batches.release.set()
        done = rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=0)
        again = rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=0)
    assert len(batches.jobs) == 1, "the second run sent none"
    assert len(batches.ids) == len(set(batches.ids)) == 5
    summary = json.loads(done.stdout)["judges"]["qwen"]
    assert (summary["scored"], summary["dropped"], summary["prompt_tokens"]) == (5, 0, 500)
    assert json.loads(again.stdout)["judges"]["qwen"]["from_cache"] == 5
    assert all(list(row["scores"].values()) == [80, 70, 60] for row in rows_of(tmp_path))
    assert server.asked == [], "nothing is asked one by one"


@pytest.mark.slow
def test_a_job_whose_name_was_not_written_is_found_by_its_label(small, tmp_path):
    """As if the run was killed between the server's reply and the next line of the journal."""
    batches = Batches(lambda line: (200, TEXT))
    with ChatServer(models=(QWEN,), batches=batches) as server:
        environment = {**os.environ, "RVEDIT_QWEN_BASE_URL": server.url}
        process = Command(*command(small), cwd=tmp_path, environment=environment)
        wait_for(lambda: batches.states_asked)
        process.send_signal(signal.SIGKILL)
        process.finish()
        journal = tmp_path / "out/journal.jsonl"
        lines = journal.read_text().splitlines()
        assert json.loads(lines[-1])["value"][0]["name"] == "batch-0"
        journal.write_text("\n".join(lines[:-1]) + "\n")
        batches.release.set()
        rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=0)
    assert len(batches.jobs) == 1
    assert len(rows_of(tmp_path)) == 5


@pytest.mark.slow
def test_unreadable_replies_and_errors_go_into_the_next_job(small, tmp_path):
    """One reply is gibberish three times, one request fails once, and one is refused."""
    failed = []

    def answer(line):
        text = line["body"]["messages"][0]["content"]
        if "number 0" in text:
            return 200, "I would say eighty."
        if "number 1" in text and not failed:
            failed.append(1)
            return 500, "busy"
        return (400, "too large") if "number 2" in text else (200, TEXT)

    batches = Batches(answer)
    batches.release.set()
    with ChatServer(models=(QWEN,), batches=batches) as server:
        done = rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=0)
        sent = len(batches.ids)
        rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=0)
        assert len(batches.ids) == sent + 1, "only what had no reply at all is sent again"
        rvedit(*command(small, "--retry-dropped"), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=0)
        assert len(batches.ids) == sent + 1 + 3 + 1, "what was dropped is asked anew"
    reasons = json.loads(done.stdout)["judges"]["qwen"]["reasons"]
    assert reasons == {
        "no score for Instruction Compliance (asked 3 times)": 1,
        "HTTP 400: too large": 1,
    }
    assert sent == 5 + 2 + 1


@pytest.mark.slow
def test_a_failed_job_ends_the_run(small, tmp_path):
    batches = Batches(lambda line: (200, TEXT))
    batches.status = "failed"
    batches.release.set()
    with ChatServer(models=(QWEN,), batches=batches) as server:
        done = rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=1)
        assert "the batch failed: no such model" in done.stderr
        batches.status = "completed"
        rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=0)
    assert len(batches.jobs) == 2


def test_a_server_without_batches_is_named(small, tmp_path):
    with ChatServer(models=(QWEN,), behave=lambda asked: "ok") as server:
        done = rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=2)
    assert "has no batch API" in done.stderr
    refused = rvedit(*command(small, "--judge", "reference"), cwd=tmp_path, check=2)
    assert "--batch-api: needs --judge qwen or gemini" in refused.stderr


def test_gemini_is_killed_and_resumed(small, tmp_path):
    with GeminiServer(lambda body: TEXT) as server:
        gemini = {"GEMINI_API_KEY": KEY, "RVEDIT_GEMINI_BASE_URL": server.url}
        arguments = command(small, "--judge", "gemini")
        process = Command(*arguments, cwd=tmp_path, environment={**os.environ, **gemini})
        wait_for(lambda: server.jobs)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.finish()
        server.release.set()
        done = rvedit(*arguments, cwd=tmp_path, check=0, **gemini)
    summary = json.loads(done.stdout)["judges"]["gemini"]
    assert (summary["scored"], summary["models"]) == (5, ["gemini-of-a-batch"])
    (job,) = server.jobs
    requests = job["batch"]["inputConfig"]["requests"]["requests"]
    assert len(requests) == 5
    first = requests[0]["request"]
    assert Counter("inlineData" in part for part in first["contents"][0]["parts"]) == {True: 10, False: 3}
    assert "Instruction Compliance" in first["systemInstruction"]["parts"][0]["text"]
    assert first["generationConfig"]["maxOutputTokens"] == 8192
    assert server.asked == []
