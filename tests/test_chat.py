"""Asking models: what a request's key holds, what a journal survives, and how long a server is tried."""

import asyncio
import dataclasses
import json
import re
import resource
import time
from email.utils import formatdate
from io import BytesIO

import numpy as np
import pytest
from chat_server import MODEL, ChatServer, caption_of
from clips import write_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rvedit.io.chat import (
    BadReplyError,
    CachedChatClient,
    ChatError,
    ChatReply,
    ChatRequest,
    Endpoint,
    EndpointChat,
    FrameReader,
    FrameSettings,
    Journal,
    Jpeg,
    RetryPolicy,
    Sampling,
    answer_text,
    check_not_withheld,
    gray_image,
    is_cut_off,
    plain_text,
)
from rvedit.io.chat.frames import expected_tokens
from rvedit.io.chat.retries import retry_after_seconds, with_retries
from rvedit.io.errors import UserError
from rvedit.io.video import evenly_spaced

QUICK = RetryPolicy(tries=4, first_wait=0.01, longest_wait=0.05, total=60.0)


def request(text="What is this?", picture=b"", **changes):
    asked = ChatRequest(MODEL, "Be brief.", (text, Jpeg.of(picture)), Sampling(seed=1), "1")
    return dataclasses.replace(asked, **changes)


def read(reply):
    if not reply.text.strip():
        raise BadReplyError("empty text")
    return reply.text


def ask(server, journal, *requests, concurrency=8, policy=QUICK, timeout=20.0, key=None):
    """Every answer or ChatError, in order."""

    async def run():
        chat = EndpointChat(Endpoint(server.url, key, timeout))
        asker = CachedChatClient(chat, journal, concurrency, policy)
        try:
            return await asyncio.gather(*(asker.ask(r, read) for r in requests), return_exceptions=True)
        finally:
            await chat.close()

    return asyncio.run(run())


# Keys


def test_key_holds_all_that_can_change_the_answer():
    base = request()
    others = [
        request(text="What is that?"),
        request(picture=b"another"),
        request(model="other"),
        request(system=None),
        request(version="2"),
        request(repeat=1),
        request(parts=tuple(reversed(base.parts))),
        *(
            request(sampling=dataclasses.replace(base.sampling, **change))
            for change in (
                {"max_tokens": 7},
                {"temperature": 0.5},
                {"top_p": 0.5},
                {"seed": 2},
                {"extra": {"top_k": 3}},
            )
        ),
    ]
    assert len({r.key for r in [base, *others]}) == len(others) + 1
    known = dataclasses.replace(base, parts=(base.parts[0], Jpeg(base.parts[1].sha256)))
    assert known.key == base.key  # the bytes are not needed


# Journal


def test_journal_survives_a_torn_line_and_other_damage(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for number in range(3):
        journal.put(f"k{number}", {"text": f"ünï {number}\n"})
    journal.put("k0", "newer")
    journal.close()
    whole = path.read_bytes()
    last = len(whole.rstrip(b"\n").rpartition(b"\n")[0]) + 1
    for cut in (last + 1, last + 5, len(whole) - 2):
        path.write_bytes(whole[:cut])
        torn = Journal(path)
        assert torn.get("k0") == {"text": "ünï 0\n"}
        torn.put("k9", 9)
        torn.close()
        again = Journal(path)
        assert (again.get("k9"), again.get("k2"), again.get("none")) == (9, {"text": "ünï 2\n"}, None)
    path.write_bytes(b'\xff\xfe\n[1]\n{"key": 3}\nnull\n' + whole)
    assert Journal(path).get("k0") == "newer"


def test_journal_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        Journal(tmp_path / "file" / "journal.jsonl").put("k", 1)
    with pytest.raises(UserError, match="cannot be read"):
        Journal(tmp_path)


def test_a_full_disk_loses_nothing_that_was_put(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.put("k0", "x" * 50)
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, room[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written to .*make room"):
            journal.put("k1", "y" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    journal.put("k2", "z")
    again = Journal(tmp_path / "j")
    assert [again.get(k) for k in ("k0", "k1", "k2")] == ["x" * 50, None, "z"]


# Retries


def test_retry_after_by_number_and_by_date():
    assert retry_after_seconds("3") == 3
    assert retry_after_seconds("0.5") == 0.5
    assert retry_after_seconds("-1") == 0
    assert retry_after_seconds(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert retry_after_seconds(formatdate(time.time() - 30, usegmt=True)) == 0
    for header in (None, "", "soon", "nan"):
        assert retry_after_seconds(header) is None


@given(st.integers(0, 200), st.none() | st.floats(0, 1000))
def test_waits_grow_are_bounded_and_obey_the_server(number, retry_after):
    policy = RetryPolicy(first_wait=0.5, longest_wait=30)
    wait = policy.wait(number, retry_after)
    most = min(30, 0.5 * 2 ** min(number, 10))
    assert wait >= max(most / 2, retry_after or 0)
    assert wait <= max(most, (retry_after or 0) + 0.5)


def test_a_wait_beyond_the_total_is_not_begun(monkeypatch):
    calls = []

    async def attempt():
        calls.append(1)
        raise ChatError("busy", "attempt", retry_after=60.0)

    async def sleep(seconds):
        raise AssertionError(f"waits {seconds} s")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(ChatError, match=r"busy \(tried once\)"):
        asyncio.run(with_retries(RetryPolicy(total=5), attempt))
    assert len(calls) == 1


# Asking


def test_each_is_asked_once_and_remembered(tmp_path):
    pictures = [request(picture=bytes([n])) for n in range(6)]
    with ChatServer(latency=0.05) as server:
        first = ask(server, Journal(tmp_path / "j"), *pictures, *pictures)
        assert len(server.asked) == 6  # equal questions at the same time are one
        second = ask(server, Journal(tmp_path / "j"), *pictures)
        assert len(server.asked) == 6
    assert [a.from_cache for a in second] == [True] * 6
    assert [a.value for a in second] == [a.value for a in first[:6]]
    assert second[0].reply == first[0].reply
    assert first[0].reply.response_id.startswith("reply-")


def test_half_of_a_surrogate_pair_does_not_end_the_run(tmp_path):
    """JSON may hold one; UTF-8 may not."""
    with ChatServer(say=lambda asked: "a smile \ud83d") as server:
        (answer,) = ask(server, Journal(tmp_path / "j"), request())
        (again,) = ask(server, Journal(tmp_path / "j"), request())
    assert answer.value == again.value == "a smile ?"


def test_all_slots_are_used_and_no_more(tmp_path):
    with ChatServer(together=7) as server:
        answers = ask(
            server, Journal(tmp_path / "j"), *(request(picture=bytes([n])) for n in range(40)), concurrency=7
        )
    assert all(not isinstance(a, Exception) for a in answers)
    assert server.most_in_flight == 7


@pytest.mark.parametrize(
    "trouble", ["429:0", "500", "503", "408", "reset", "truncated", "cut-json", "no-choice"]
)
def test_a_passing_trouble_is_waited_out(tmp_path, trouble):
    with ChatServer(lambda asked: trouble if asked.tries < 2 else "ok") as server:
        (answer,) = ask(server, Journal(tmp_path / "j"), request())
    assert answer.value == caption_of(server.asked[0].digest)
    assert (answer.transport_retries, answer.format_retries) == (2, 0)
    assert len(server.asked) == 3


@pytest.mark.parametrize(("trouble", "least"), [("429:1", 1.0), ("503:date", 1.0)])
def test_retry_after_is_obeyed(tmp_path, trouble, least):
    with ChatServer(lambda asked: trouble if asked.tries == 0 else "ok") as server:
        (answer,) = ask(server, Journal(tmp_path / "j"), request())
    assert answer.transport_retries == 1
    assert server.arrivals[1] - server.arrivals[0] >= least


@pytest.mark.parametrize(
    ("trouble", "asked", "says"),
    [
        ("500", 4, r"HTTP 500: told to fail .*tried 4 times"),
        ("hang", 4, r"no reply within 0\.2 s"),
        ("truncated", 4, "connection broke"),
        ("cut-json", 4, "cut off"),
        ("no-choice", 4, "upstream is busy"),
        ("429:900", 1, "tried once"),
        ("400", 1, "HTTP 400"),
        ("422", 1, "HTTP 422"),
        ("404", 1, "HTTP 404"),
        ("empty", 3, "empty text"),
    ],
)
def test_a_lasting_trouble_ends_with_its_reason(tmp_path, trouble, asked, says):
    journal = Journal(tmp_path / "j")
    with ChatServer(lambda _: trouble) as server:
        (error,) = ask(
            server, journal, request(), timeout=0.2 if trouble == "hang" else 20.0, key="secret-key-1"
        )
    assert isinstance(error, ChatError)
    assert error.scope == {"404": "all"}.get(
        trouble, "request" if trouble in ("400", "422", "empty") else "attempt"
    )
    assert re.search(says, str(error)), str(error)
    assert "secret-key" not in str(error)
    assert len(server.asked) == asked
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("html", "<!DOCTYPE html> <html>Sign in</html>: check the URL"),
        ("plain", "no such path: check the URL"),
        ("error", "the error: Unexpected endpoint or method"),
        ("error-401", "the error: your trial ended"),
        ("object", '{"detail": "Not Found"}: check the URL'),
        ("list", '["nothing"]: check the URL'),
    ],
)
def test_a_success_that_is_no_reply_ends_the_run_at_once(tmp_path, trouble, says):
    with ChatServer(lambda _: trouble) as server:
        pictures = [request(picture=bytes([n])) for n in range(9)]
        errors = ask(server, Journal(tmp_path / "j"), *pictures, concurrency=1)
    assert len(server.asked) == 1
    assert {(str(error), error.scope) for error in errors} == {(str(errors[0]), "all")}
    assert str(errors[0]).startswith(f"{server.url}: HTTP 200 with ")
    assert says in str(errors[0])
    assert "\n" not in str(errors[0])


OPENAI = {"error": {"message": "Unrecognized request argument supplied: top_k", "param": None}}
PARAMETER = {"error": {"message": "unknown argument", "param": "top_k"}}
REPLACED = {"error": {"message": "'max_tokens' is not supported. Use 'max_completion_tokens' instead."}}

REST = {"max_tokens": 512, "seed": 1}


def validation(name):
    """As servers say it that check requests by pydantic."""
    part = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
    return {"detail": [part | {"input": "the seed of messages"}]}


@pytest.mark.parametrize(
    ("unknown", "sent"),
    [
        ({"top_k": (400, OPENAI)}, REST),
        ({"top_k": (400, PARAMETER)}, REST),
        ({"top_k": (400, [{"error": {"message": 'Unknown name "top_k"'}}])}, REST),
        ({"top_k": (422, validation("top_k"))}, REST),
        ({"top_k": (422, {"message": validation("top_k")})}, REST),
        ({"max_tokens": (422, validation("max_tokens"))}, {"top_k": 3, "seed": 1}),
        ({"max_tokens": (400, REPLACED)}, {"max_completion_tokens": 512, "top_k": 3, "seed": 1}),
        (
            {
                "seed": (422, validation("seed")),
                "max_tokens": (400, REPLACED),
                "max_completion_tokens": (422, validation("max_completion_tokens")),
            },
            {"top_k": 3},
        ),
    ],
)
def test_an_argument_that_the_server_does_not_know_is_left_out(tmp_path, unknown, sent):
    journal = Journal(tmp_path / "j")
    sampling = Sampling(seed=1, extra={"top_k": 3})
    requests = [request(picture=bytes([n]), sampling=sampling) for n in range(5)]
    with ChatServer(unknown=unknown) as server:
        with pytest.warns(UserWarning, match="refuses") as caught:
            answers = ask(server, journal, *requests, concurrency=1)
        again = ask(server, journal, *requests)
    assert [answer.value for answer in answers] == [caption_of(a.digest) for a in server.asked]
    assert [
        {k: v for k, v in a.body.items() if k not in ("model", "messages")} for a in server.asked
    ] == 5 * [sent]
    assert sorted(server.refused) == sorted(unknown)  # once each
    told = [str(warning.message) for warning in caught]
    assert len(told) == len(unknown)
    assert all(any(f"{server.url}: refuses {name}: " in text for text in told) for name in unknown)
    assert [answer.from_cache for answer in again] == 5 * [True]


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 512. This model supports at most 256",
        "max_tokens must be less than 100",
        "this image is not supported",
    ],
)
def test_a_refused_value_is_not_left_out(tmp_path, message):
    with ChatServer(unknown={"max_tokens": (400, {"error": {"message": message}})}) as server:
        (error,) = ask(server, Journal(tmp_path / "j"), request())
    assert (server.refused, str(error)) == (["max_tokens"], f"HTTP 400: {message}")


def test_null_removes_an_argument(tmp_path):
    extra = {"max_tokens": None, "temperature": 0, "chat_template_kwargs": None}
    with ChatServer() as server:
        ask(server, Journal(tmp_path / "j"), request(sampling=Sampling(temperature=1.0, extra=extra)))
    assert server.asked[0].body.keys() == {"model", "messages", "temperature"}
    assert server.asked[0].body["temperature"] == 0


def complete(server):
    async def run():
        chat = EndpointChat(Endpoint(server.url))
        try:
            return await chat.complete(request())
        finally:
            await chat.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("action", "fails", "text"),
    [
        ("ok", None, "A dog."),
        ("reasoning", None, "A dog."),
        ("reasoning-renamed", None, "A dog."),
        ("reasoning-tools", None, r"reasoning_content alone \(finish_reason tool_calls\)"),
        ("empty", None, r"the reply is empty: nothing was written \(finish_reason stop\)"),
        ("refusal-field", r"the model refuses: I cannot assist with that\.", ""),
        ("filter", r"a content filter withheld the reply \(content_filter\)", ""),
        ("abort", r"the server broke off the reply \(abort\)", ""),
    ],
)
def test_what_a_reply_says_and_where(action, fails, text):
    with ChatServer(lambda _: action, say=lambda _: "A dog.") as server:
        reply = complete(server)
    if fails:
        with pytest.raises(BadReplyError, match=fails):
            check_not_withheld(reply)
        return
    check_not_withheld(reply)
    if text == "A dog.":
        assert answer_text(reply) == text
    else:
        with pytest.raises(BadReplyError, match=text):
            answer_text(reply)


def test_a_reply_at_the_token_limit_is_cut_off():
    finishes = {"length": True, "MAX_TOKENS": True, "model_length": True, "stop": False, None: False}
    assert {f: is_cut_off(ChatReply("A", MODEL, finish_reason=f)) for f in finishes} == finishes


def test_a_reply_that_cannot_be_read_is_asked_for_with_another_seed(tmp_path):
    journal = Journal(tmp_path / "j")
    with ChatServer(lambda asked: "empty" if asked.tries == 0 else "ok") as server:
        (answer,) = ask(server, journal, request())
        (again,) = ask(server, journal, request())
    assert (answer.format_retries, again.from_cache) == (1, True)
    assert [a.body["seed"] for a in server.asked] == [1, 2]


def test_a_server_that_has_gone_is_not_called_for_every_row(tmp_path):
    with ChatServer(lambda _: "503") as server:
        errors = ask(server, Journal(tmp_path / "j"), *(request(picture=bytes([n])) for n in range(60)))
    assert all(isinstance(e, ChatError) for e in errors)
    assert len({a.digest for a in server.asked}) < 20
    assert "in a row got no reply" in str(errors[-1])
    assert errors[-1].scope == "all"


def test_a_server_goes_and_comes_back_within_the_budget(tmp_path):
    def behave(asked):
        return "503" if asked.tries < 3 and asked.number % 3 else "ok"

    with ChatServer(behave) as server:
        answers = ask(server, Journal(tmp_path / "j"), *(request(picture=bytes([n])) for n in range(30)))
    assert all(not isinstance(a, Exception) for a in answers)


def test_what_is_sent(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "not-for-this-host")
    sampling = Sampling(
        max_tokens=9, temperature=0.5, extra={"chat_template_kwargs": {"enable_thinking": False}}
    )
    with ChatServer(key="k") as server:
        ask(server, Journal(tmp_path / "j"), request(sampling=sampling), key="k")
    (asked,) = server.asked
    assert asked.body == {
        "model": MODEL,
        "max_tokens": 9,
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": False},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,"}},
                ],
            },
        ],
    }
    assert all("not-for-this-host" not in json.dumps(headers) for headers in server.headers)


# Checking


def check(server, model=MODEL, key=None, url=None, timeout=5.0):
    async def run():
        chat = EndpointChat(Endpoint(url or server.url, key, timeout, "RVEDIT_X"))
        try:
            await chat.check(request(model=model, parts=(gray_image(),)))
        finally:
            await chat.close()

    asyncio.run(run())


def test_an_endpoint_is_checked_before_it_is_asked():
    with ChatServer() as server:
        check(server)
        assert (server.probes, server.asked) == (1, [])
        with pytest.raises(UserError, match=f"does not serve other: choose a `model` among {MODEL}"):
            check(server, model="other")
    with pytest.raises(UserError, match="cannot be reached"):
        check(server)  # it has gone
    with ChatServer(key="right-key-0") as server:
        check(server, key="right-key-0")
        with pytest.raises(UserError, match=r"needs a key .*set RVEDIT_X_API_KEY"):
            check(server)
        with pytest.raises(UserError, match="does not accept the key in RVEDIT_X_API_KEY") as caught:
            check(server, key="wrong-key-0")
        assert "wrong-key" not in str(caught.value)
    with ChatServer(lambda _: "html", models=None) as server:
        with pytest.raises(
            UserError, match=r"/v1: refuses .*HTTP 200 with .*Sign in</html>: check the URL"
        ) as caught:
            check(server)
        assert str(caught.value).count(server.url) == 1
    with ChatServer(unknown={"seed": (400, {"error": {"message": "unknown field seed"}})}) as server:
        with pytest.warns(UserWarning, match="refuses seed: leaving it out"):
            check(server)
        assert server.probes == 1
    for trouble, passes in (("400", False), ("404", False), ("429", True), ("500", True), ("ok", True)):
        with ChatServer(lambda _, trouble=trouble: trouble, models=None) as server:
            if passes:
                check(server)
            else:
                with pytest.raises(UserError, match=f"refuses {MODEL}: HTTP {trouble}"):
                    check(server)


def test_addresses(monkeypatch):
    monkeypatch.delenv("RVEDIT_X_BASE_URL", raising=False)
    with pytest.raises(UserError, match="RVEDIT_X_BASE_URL"):
        Endpoint.from_environment("RVEDIT_X")
    for wrong in ("127.0.0.1:8000", "ftp://host/v1", "http://", "http://[1/v1", "http://host:port/v1"):
        with pytest.raises(UserError, match="not a URL"):
            Endpoint.from_environment("RVEDIT_X", wrong)
    monkeypatch.setenv("RVEDIT_X_BASE_URL", "http://user:password@127.0.0.1:1/v1?token=secret")
    monkeypatch.setenv("RVEDIT_X_API_KEY", " key\n")
    endpoint = Endpoint.from_environment("RVEDIT_X")
    assert endpoint.public_url == "http://127.0.0.1:1/v1"
    assert endpoint.api_key == "key"
    assert "key" not in repr(endpoint).replace("api_key", "")


# Text and frames


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (" A dog. ", "A dog."),
        ("<think>one\ntwo</think>\n\nA dog.", "A dog."),
        ("one two</think>A dog.", "A dog."),
        ("<think>a</think>A <think>b</think>dog.", "A dog."),
        ("<THINKING>a</THINKING>A dog.", "A dog."),
        ("<think>never ends", ""),
        ("<|begin_of_box|>A dog.<|end_of_box|>", "A dog."),
        ("<answer>\nA dog.</answer><｜end▁of▁sentence｜>", "A dog."),
        ("", ""),
    ],
)
def test_plain_text(reply, text):
    assert plain_text(reply) == text


@given(st.integers(1, 500), st.integers(1, 20))
def test_frames_are_spread_from_the_first_to_the_last(num_frames, count):
    indices = evenly_spaced(num_frames, count)
    assert len(set(indices)) == len(indices) == min(num_frames, count)
    assert indices == sorted(indices)
    if count > 1:
        assert (indices[0], indices[-1]) == (0, num_frames - 1)
        gaps = np.diff(indices)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_frames_are_small_jpegs_and_known_again(tmp_path):
    clip = tmp_path / "clip.mp4"
    shades = np.linspace(20, 230, 21).round().astype(np.uint8)
    write_clip(clip, np.broadcast_to(shades[:, None, None, None], (21, 320, 640, 3)).copy())
    frames = FrameReader(FrameSettings(count=5), Journal(tmp_path / "j"))
    assert frames.cached(clip) is None
    pictures = frames.read(clip)
    decoded = [Image.open(BytesIO(p.data)) for p in pictures]
    assert [(d.format, d.size) for d in decoded] == [("JPEG", (512, 256))] * 5
    for picture, index in zip(decoded, (0, 5, 10, 15, 20), strict=True):
        assert np.asarray(picture).mean() == pytest.approx(shades[index], abs=3)
    frames.store(clip, pictures)
    again = FrameReader(FrameSettings(count=5), Journal(tmp_path / "j"))
    assert again.cached(clip) == pictures
    assert FrameReader(FrameSettings(count=6), Journal(tmp_path / "j")).cached(clip) is None
    write_clip(clip, np.zeros((21, 320, 640, 3), np.uint8))
    assert again.cached(clip) is None
    assert again.cached(tmp_path / "none.mp4") is None


def test_expected_tokens():
    assert expected_tokens(FrameSettings(count=8), 81, 1280, 720) == 8 * 16 * 9
    assert expected_tokens(FrameSettings(count=8), 3, 128, 128) == 3 * 16
    assert expected_tokens(FrameSettings(count=8), 0, 0, 0) == 8 * 16 * 9
