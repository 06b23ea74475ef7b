"""`--batch-api`: requests as jobs, which a killed run finds again."""

import asyncio
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
from rvedit.io.chat import BatchChat, ChatError, ChatReply, ChatRequest, Journal, Sampling, batches
from rvedit.io.errors import UserError

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


def kill_while_the_job_runs(small, folder, server, batches):
    environment = {**os.environ, "RVEDIT_QWEN_BASE_URL": server.url}
    process = Command(*command(small), cwd=folder, environment=environment)
    wait_for(lambda: batches.states_asked)
    process.send_signal(signal.SIGKILL)
    assert process.finish().returncode == -signal.SIGKILL


def rows_of(folder):
    return [json.loads(line) for line in (folder / "out/scores.jsonl").read_text().splitlines()]


def test_a_killed_run_finds_its_job_and_pays_once(small, tmp_path):
    batches = Batches(lambda line: (200, TEXT))
    with ChatServer(models=(QWEN,), batches=batches) as server:
        kill_while_the_job_runs(small, tmp_path, server, batches)
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
        kill_while_the_job_runs(small, tmp_path, server, batches)
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
    refused = rvedit(*command(small, "--concurrency", 4), cwd=tmp_path, check=2)
    assert "--concurrency: has no meaning with --batch-api" in refused.stderr


def test_gemini_is_killed_and_resumed(small, tmp_path):
    with GeminiServer(lambda body: TEXT) as server:
        gemini = {"GEMINI_API_KEY": KEY, "RVEDIT_GEMINI_BASE_URL": server.url}
        arguments = command(small, "--judge", "gemini")
        process = Command(*arguments, cwd=tmp_path, environment={**os.environ, **gemini})
        wait_for(lambda: server.jobs)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.finish()
        server.unnamed = 1
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


# One process, a server that answers at once, or fails as it is told


class Server:
    """A `BatchBackend`. `troubles` has the errors of its next calls by the name of the method."""

    name, max_bytes = "server", 1000

    def __init__(self, **troubles):
        self.troubles, self.jobs = troubles, {}

    def _fail(self, method):
        if errors := self.troubles.get(method):
            raise errors.pop(0)

    async def submit(self, token, requests):
        self.jobs[token] = list(requests)
        self._fail("submit")
        return token

    async def find(self, token):
        self._fail("find")
        return token if token in self.jobs else None

    async def collect(self, job):
        self._fail("collect")
        return {name: ChatReply("yes", "m") for name in self.jobs[job]}

    async def close(self):
        pass


def ask(server, journal, texts, **options):
    """The replies and errors of one run."""

    async def run():
        chat = BatchChat(server, journal, **options)
        requests = [ChatRequest("m", None, (text,), Sampling(), "1") for text in texts]
        answers = asyncio.gather(*map(chat.complete, requests), return_exceptions=True)
        return await asyncio.wait_for(answers, 60)

    return asyncio.run(run())


@pytest.fixture
def journal(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "QUIET", 0.05)
    return Journal(tmp_path / "journal.jsonl")


def test_a_job_is_searched_until_the_server_answers(journal):
    """Sending fails although the job has arrived, and so does the first search for it."""

    def broken():
        return ChatError("the connection broke", "attempt")

    server = Server(submit=[broken()], find=[broken()])
    assert [reply.text for reply in ask(server, journal, "ab")] == ["yes", "yes"]
    assert len(server.jobs) == 1


@pytest.mark.parametrize("method", ["submit", "find", "collect"])
def test_no_error_leaves_a_request_waiting(journal, method):
    error = UserError("journal.jsonl: cannot be written to: make room")
    lost = [ChatError("the connection broke", "attempt")] if method == "find" else []
    server = Server(**{"submit": lost, method: [error]})
    assert ask(server, journal, "ab") == [error, error]


def test_the_same_requests_in_a_new_job_have_another_label(journal):
    failed = [ChatError("the batch failed", "all")]
    server = Server(collect=failed)
    assert isinstance(ask(server, journal, "a")[0], ChatError)
    assert ask(server, journal, "a")[0].text == "yes"
    assert len(server.jobs) == 2


def test_a_job_waits_for_requests_that_are_being_made(journal):
    server, more = Server(), [True]

    async def run():
        chat = BatchChat(server, journal, has_more=lambda: more[0])
        requests = [ChatRequest("m", None, (text,), Sampling(), "1") for text in "ab"]
        first = asyncio.create_task(chat.complete(requests[0]))
        await asyncio.sleep(0.3)  # six times as long as it is quiet
        second = asyncio.create_task(chat.complete(requests[1]))
        more[0] = False
        await asyncio.gather(first, second)

    asyncio.run(run())
    assert [len(ids) for ids in server.jobs.values()] == [2]


def test_replies_that_cannot_be_read_are_collected_again(small, tmp_path):
    torn = Batches(lambda line: (200, TEXT))
    torn.release.set()
    torn.torn = 1
    with ChatServer(models=(QWEN,), batches=torn) as server:
        done = rvedit(*command(small), cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url, check=0)
    assert json.loads(done.stdout)["judges"]["qwen"]["scored"] == 5
    assert len(torn.jobs) == 1
