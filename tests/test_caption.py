"""`rvedit caption`: every row ends with a caption or with the true reason that it has none."""

import asyncio
import dataclasses
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from chat_server import MODEL, ChatServer, caption_of
from clips import write_clip
from processes import Command
from tiny_chat import save_tiny_chat
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from typer.testing import CliRunner

from rvedit.datasets.caption import (
    CaptionConfig,
    cache_path,
    caption_manifest,
    captioned_path,
    estimate_captions,
    failures_path,
)
from rvedit.datasets.captioners import CaptionSettings, endpoint_captioner, local_captioner
from rvedit.datasets.captioners import prompt as prompts
from rvedit.datasets.captioners.reading import read_caption
from rvedit.io.chat import BadReplyError, ChatReply, ChatRequest, Journal, RetryPolicy, Sampling
from rvedit.io.chat.local import LocalChat, local_name
from rvedit.io.errors import UserError
from rvedit.io.manifest import read_manifest, write_manifest
from rvedit.io.records import Category, Triplet
from rvedit_cli.main import app

QUICK = CaptionSettings(
    policy=RetryPolicy(tries=4, first_wait=0.01, longest_wait=0.05, total=60.0), timeout=20.0, concurrency=6
)
COUNT = 24


def row(number, **changes):
    triplet = Triplet(
        id=f"{number:03d}",
        dataset="reco",
        root="clips",
        source=f"{number:03d}.mp4",
        target=f"{number:03d}.mp4",
        instruction="make it red",
        category=Category.CHANGE,
        dataset_category="replace",
        num_frames=4,
        fps=12.0,
        width=32,
        height=32,
        licence="",
    )
    return dataclasses.replace(triplet, **changes)


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A folder of clips that differ."""
    folder = tmp_path_factory.mktemp("captions") / "clips"
    folder.mkdir()
    for number in range(COUNT):
        frames = np.random.default_rng(number).integers(0, 256, (4, 4, 4, 3), np.uint8)
        write_clip(folder / f"{number:03d}.mp4", frames.repeat(8, 1).repeat(8, 2))
    return folder


@pytest.fixture
def manifest(tmp_path, clips):
    """A manifest of them; its folder is the test's own."""
    path = tmp_path / "manifest.parquet"
    write_manifest(path, [row(number, root=str(clips)) for number in range(COUNT)])
    return path


def caption(manifest, server, out=None, settings=QUICK, model=None, **config):
    out = out or captioned_path(manifest)
    journal = Journal(cache_path(out))
    captioner = endpoint_captioner(journal, settings, server.url, model)
    report = caption_manifest(CaptionConfig(manifest, out, **config), captioner)
    journal.close()
    assert report.rows == report.captioned + report.failed + report.kept + report.own + report.left
    rows = read_manifest(out)
    lines = failures_path(out).read_text().splitlines() if failures_path(out).exists() else []
    failures = {failure["id"]: failure["reason"] for failure in map(json.loads, lines)}
    assert len(failures) == report.failed
    assert all((r.target_caption is None) == (r.id in failures) for r in rows[: len(rows) - report.left])
    return report, rows, failures


def test_every_target_is_captioned_and_a_second_run_sends_nothing(manifest):
    seen = []
    with ChatServer(served_as="qwen-3-vl-awq") as server:
        report, rows, _ = caption(manifest, server)
        assert (report.asked, report.failed, len(server.asked)) == (COUNT, 0, COUNT)
        assert (report.prompt_tokens, report.completion_tokens) == (100 * COUNT, 10 * COUNT)
        seen = [r.target_caption for r in rows]
        assert len(set(seen)) == COUNT
        assert set(seen) == {caption_of(a.digest) for a in server.asked}
        assert {r.caption_model for r in rows} == {"qwen-3-vl-awq"}
        assert {r.caption_prompt for r in rows} == {report.prompt_id}
        before = read_manifest(manifest)
        assert [
            dataclasses.replace(r, target_caption=None, caption_model=None, caption_prompt=None) for r in rows
        ] == before
        texts = json.dumps(server.asked[0].body)
        assert prompts.AFTER_FRAMES in texts
        assert "These are 4 frames" in texts
        heard = len(server.headers)
    with ChatServer() as gone:
        pass
    report, rows, _ = caption(manifest, gone)  # nobody is there to be asked, and nobody has to be
    assert (report.asked, report.from_cache) == (0, COUNT)
    assert [r.target_caption for r in rows] == seen
    report, rows, _ = caption(captioned_path(manifest), gone, out=captioned_path(manifest))
    assert report.kept == COUNT
    assert heard == len(server.headers)


@pytest.mark.slow
def test_a_server_with_every_trouble(manifest):
    """Some rows fail for good, most at first only: all are accounted for, with the true reason."""
    passing = [
        "429:0",
        "500",
        "hang",
        "truncated",
        "empty",
        "reset",
        "refusal",
        "cut-json",
        "503:0",
        "only-think",
    ]
    lasting = {
        0: ("500", "HTTP 500"),
        7: ("empty", "empty text"),
        13: ("400", "HTTP 400"),
        19: ("refusal", "refusal"),
    }
    order: dict[str, int] = {}

    def behave(asked):
        place = order.setdefault(asked.digest, len(order))
        if place in lasting:
            return lasting[place][0]
        return (
            passing[place % len(passing)]
            if asked.tries == 0
            else ("think", "quoted", "length", "ok")[place % 4]
        )

    hasty = dataclasses.replace(QUICK, timeout=2.5)  # of one that hangs
    with ChatServer(behave, latency=0.02) as server:
        report, rows, failures = caption(manifest, server, settings=hasty)
        assert (report.asked, report.failed) == (COUNT - len(lasting), len(lasting))
        assert server.most_in_flight <= QUICK.concurrency
        expected = {digest: lasting[place][1] for digest, place in order.items() if place in lasting}
        assert sorted(says for says in expected.values()) == sorted(
            next(says for says in expected.values() if says in reason) for reason in failures.values()
        )
        captions = {caption_of(digest) for digest, place in order.items() if place not in lasting}
        assert {r.target_caption for r in rows} == captions | {None}
        asked = len(server.asked)
        lasting.clear()
        report, rows, failures = caption(manifest, server)  # the failed ones are tried again, no others
    assert (report.asked, report.from_cache, report.failed) == (4, COUNT - 4, 0)
    assert len({a.digest for a in server.asked[asked:]}) == 4
    assert not failures_path(captioned_path(manifest)).exists()


def test_slots_are_full_and_clips_decode_meanwhile(manifest):
    with ChatServer(together=QUICK.concurrency) as server:
        report, _, _ = caption(manifest, server)
    assert report.asked == COUNT
    assert server.most_in_flight == QUICK.concurrency


def test_bad_clips_fail_alone(manifest, clips, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    good = row(0, root=str(clips), target_caption="An old one.", caption_model="other")
    bad = [row(90, root=".", target="none.mp4"), row(91, root=".", target="bad.mp4", target_caption="Old.")]
    write_manifest(manifest, [*bad, good])
    with ChatServer() as server:
        report, rows, failures = caption(manifest, server)
    assert (report.asked, report.failed) == (1, 2)
    assert "none.mp4: no such file" in failures["090"]
    assert "bad.mp4" in failures["091"]
    assert rows[1].target_caption is None
    listed = [json.loads(line) for line in failures_path(captioned_path(manifest)).read_text().splitlines()]
    assert {line["previous_caption"] for line in listed} == {None, "Old."}
    assert rows[2].target_caption == caption_of(server.asked[0].digest)


def test_playground_rows_keep_their_own_unless_asked(manifest, clips):
    own = {"root": str(clips), "dataset": "playground", "target_caption": "a red ball"}
    write_manifest(manifest, [row(0, **own), row(1, **own), row(2, root=str(clips))])
    with ChatServer() as server:
        report, rows, _ = caption(manifest, server)
        assert (report.own, report.asked) == (2, 1)
        assert rows[0].target_caption == "a red ball"
        report, rows, _ = caption(manifest, server, include_playground=True)
        assert (report.own, report.asked, report.from_cache) == (0, 2, 1)


def test_limit_and_changed_questions(manifest):
    with ChatServer(models=None) as server:
        report, rows, _ = caption(manifest, server, limit=5)
        assert (report.asked, report.left) == (5, COUNT - 5)
        assert sum(r.target_caption is not None for r in rows) == 5
        out = captioned_path(manifest)
        report, _, _ = caption(out, server, out=out, limit=5)  # in place, the next five
        assert (report.kept, report.asked, report.left) == (5, 5, COUNT - 10)
        fewer = dataclasses.replace(QUICK, frames=dataclasses.replace(QUICK.frames, count=2))
        report, _, _ = caption(out, server, out=out, settings=fewer, limit=3)
        assert (report.kept, report.asked) == (0, 3)
        report, rows, _ = caption(out, server, out=out, model="another", limit=3)
        assert report.asked == 3
        assert [r.caption_model for r in rows[:4]] == ["another"] * 3 + [MODEL]


def test_equal_clips_are_asked_once(manifest, clips):
    write_manifest(manifest, [row(0, root=str(clips), id=str(n)) for n in range(6)])
    with ChatServer(latency=0.05) as server:
        report, rows, _ = caption(manifest, server)
    assert len(server.asked) == 1
    assert (report.asked, report.from_cache) == (1, 5)
    assert len({r.target_caption for r in rows}) == 1


def test_out_elsewhere_still_finds_its_clips(tmp_path, clips):
    manifest = clips.parent / "here.parquet"
    write_manifest(manifest, [row(0), row(1, root=str(clips))])
    out = tmp_path / "a" / "b" / "there.parquet"
    with ChatServer() as server:
        _, rows, _ = caption(manifest, server, out=out)
    for r in rows:
        assert (out.parent / r.root / r.target).resolve() == (clips / r.target).resolve()


def test_the_run_stops_where_the_key_is_revoked(manifest):
    with ChatServer(lambda asked: "ok" if asked.number < 8 else "401") as server:
        report, _, failures = caption(manifest, server)
        assert report.asked == 8
        assert "HTTP 401" in report.stopped
        assert sum("not asked" in reason for reason in failures.values()) > 0
        assert len(server.asked) <= 8 + QUICK.concurrency
        server.behave = lambda asked: "ok"
        report, _, _ = caption(manifest, server)
    assert (report.asked, report.from_cache, report.failed) == (COUNT - 8, 8, 0)


def test_estimate_sends_nothing(manifest, tmp_path):
    write_manifest(manifest, [*read_manifest(manifest), row(99, target="none.mp4")])
    config = CaptionConfig(manifest, captioned_path(manifest))
    captioner = endpoint_captioner(Journal(cache_path(config.out)), QUICK)
    estimate = estimate_captions(config, captioner)
    assert (estimate.rows, estimate.requests, estimate.missing) == (COUNT + 1, COUNT, 1)
    assert estimate.prompt_tokens > COUNT * (4 * 1 + 150)
    assert list(tmp_path.glob("*cache*")) == []
    with ChatServer() as server:
        caption(manifest, server, limit=4)
    captioner = endpoint_captioner(Journal(cache_path(config.out)), QUICK)
    again = estimate_captions(config, captioner)
    assert (again.requests, again.from_cache) == (COUNT - 4, 4)


@pytest.mark.parametrize(
    ("reply", "reads"),
    [
        ("A dog\nruns.", "A dog runs."),
        ("<think>hm</think> A dog runs.", "A dog runs."),
        ('"A dog runs."', "A dog runs."),
        ('Caption: "A dog runs."', "A dog runs."),
        ("**Caption:** A dog runs.", "A dog runs."),
        ("```\nA dog runs.\n```", "A dog runs."),
        ("“A dog runs.”", "A dog runs."),
        ("<|begin_of_box|>A dog runs.<|end_of_box|>", "A dog runs."),
        ('"Go" says a sign, and another "Stop"', '"Go" says a sign, and another "Stop"'),
        ("I'm a dog, says the sign.", "I'm a dog, says the sign."),
        ("Caption boards hang on a wall: three of them.", "Caption boards hang on a wall: three of them."),
    ],
)
def test_replies_become_captions(reply, reads):
    assert read_caption(ChatReply(reply, MODEL)) == reads


@pytest.mark.parametrize(
    ("reply", "finish", "says"),
    [
        ("", "stop", "empty text"),
        (" ** \n", "stop", "empty text"),
        ("<think>on and on", "length", "reasoning"),
        ("A dog that", "length", "cut off"),
        ("A dog.", "content_filter", "filter"),
        ("I'm sorry, but I can't describe this.", "stop", "refusal"),
        ("I cannot assist with that.", "stop", "refusal"),
        ("As an AI language model, I do not see.", "stop", "refusal"),
        ("Unfortunately, I am unable to view it.", "stop", "refusal"),
    ],
)
def test_replies_that_are_no_captions(reply, finish, says):
    with pytest.raises(BadReplyError, match=says):
        read_caption(ChatReply(reply, MODEL, finish_reason=finish))


def test_a_refusal_field_and_misplaced_answers_are_no_captions():
    """Reasoning in place of a caption may be thoughts about the clip."""
    for fields, says in (
        ({"refusal": "I cannot."}, r"the model refuses: I cannot\."),
        ({"reasoning_content": "A dog runs."}, "empty text, with reasoning_content alone"),
        ({"finish_reason": "length"}, "reasoning used up the token limit: raise --max-tokens"),
    ):
        with pytest.raises(BadReplyError, match=says):
            read_caption(ChatReply(**{"text": "", "model": MODEL, "finish_reason": "stop", **fields}))


def test_a_caption_that_was_cut_off_ends_with_a_sentence():
    reply = ChatReply("A dog runs at 3.5 m/s. It barks! It then", MODEL, finish_reason="length")
    assert read_caption(reply) == "A dog runs at 3.5 m/s. It barks!"


def test_prompt_is_pinned():
    """A change of the words needs a new PROMPT_VERSION: captions name it."""
    words = prompts.SYSTEM + prompts.BEFORE_FRAMES + prompts.AFTER_FRAMES
    assert (prompts.PROMPT_VERSION, hashlib.sha256(words.encode()).hexdigest()[:8]) == ("1", "ebdf3eb1")


# The command


def start(*arguments, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("RVEDIT_")}
    return Command("caption", *arguments, cwd=cwd, environment=env | environment)


@pytest.mark.slow
def test_killed_and_run_again_asks_nothing_twice(manifest, tmp_path):
    with ChatServer(latency=0.15, served_as="m") as server:
        common = ("manifest.parquet", "--base-url", server.url, "--concurrency", 4)
        for _ in range(2):
            goal = len(server.times_answered) + 4
            process = start(*common, cwd=tmp_path)
            deadline = time.monotonic() + 60
            while len(server.times_answered) < goal and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.finish()
        assert 8 <= len(server.times_answered) < COUNT
        assert not captioned_path(manifest).exists()
        code, out, err = start(*common, "--json", cwd=tmp_path).finish()
        report = json.loads(out)
        assert (code, err) == (0, "")
        assert report["captioned"] == COUNT
        assert report["from_cache"] >= 1
        assert len(server.times_answered) == COUNT
        assert sum(server.times_answered.values()) <= COUNT + 2 * 4  # those in flight at each kill, at most
        asked = len(server.headers)
        code, out, _ = start(*common, cwd=tmp_path).finish()
        assert (code, len(server.headers)) == (0, asked)
        assert f"{COUNT} of {COUNT} rows captioned (0 asked, {COUNT} from cache), 0 failed" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_keeps_what_was_answered(manifest, tmp_path, number):
    with ChatServer(latency=0.15) as server:
        process = start("manifest.parquet", "--base-url", server.url, "--concurrency", 4, cwd=tmp_path)
        deadline = time.monotonic() + 60
        while sum(server.times_answered.values()) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        code, _, err = process.finish()
    assert (code, "interrupted" in err, "Traceback" in err) == (128 + number, True, False)
    replies = [
        line for line in cache_path(captioned_path(manifest)).read_text().splitlines() if "reply:" in line
    ]
    assert len(replies) >= 2


def test_failed_rows_end_with_1_and_the_key_is_nowhere(manifest, tmp_path):
    secret = "sk-very-secret-0123"
    with ChatServer(lambda asked: "400" if asked.number == 2 else "ok", key=secret) as server:
        process = start(
            "manifest.parquet", "--limit", 6, cwd=tmp_path, RVEDIT_CAPTION_BASE_URL=server.url,
            RVEDIT_CAPTION_API_KEY=secret, RVEDIT_CAPTION_MODEL=MODEL, RVEDIT_DEBUG="1",
        )  # fmt: skip
        code, out, err = process.finish()
    assert code == 1
    assert "5 of 24 rows captioned (5 asked, 0 from cache), 1 failed (see" in out
    assert "18 beyond the limit; 500 + 50 tokens" in out
    written = out + err + "".join(p.read_text(errors="replace") for p in tmp_path.iterdir())
    assert secret not in written
    assert "HTTP 400" in written


def test_mistakes_are_one_line_before_any_work(manifest, tmp_path, monkeypatch):
    from typer import Typer

    from rvedit_cli.caption import caption as command

    for name in ("BASE_URL", "API_KEY", "MODEL"):
        monkeypatch.delenv(f"RVEDIT_CAPTION_{name}", raising=False)
    app = Typer()
    app.command()(command)
    before = sorted(tmp_path.iterdir())
    with ChatServer() as server, ChatServer(key="k") as locked:
        with ChatServer() as gone:
            pass
        for arguments, says in (
            (["manifest.parquet"], "RVEDIT_CAPTION_BASE_URL"),
            (["none.parquet", "--base-url", server.url], "none.parquet"),
            (["manifest.parquet", "--base-url", gone.url], "cannot be reached"),
            (["manifest.parquet", "--base-url", "localhost"], "`base_url` localhost: not a URL"),
            (["manifest.parquet", "--base-url", locked.url], "set RVEDIT_CAPTION_API_KEY"),
            (["manifest.parquet", "--base-url", server.url, "--model", "other"], f"among {MODEL}"),
            (["manifest.parquet", "--base-url", server.url, "--captioner", "me"], "choose one of qwen3-vl"),
            (["manifest.parquet", "--base-url", server.url, "--out", "new.jsonl"], ".parquet"),
            (["manifest.parquet", "--base-url", server.url, "--out", "/proc/x/new.parquet"], "/proc"),
            (["manifest.parquet", "--local", "nowhere"], "nowhere"),
            (["manifest.parquet", "--extra", "{"], "--extra {: not a JSON object"),
            (["manifest.parquet", "--local", "a/b", "--base-url", server.url], "leave out"),
        ):
            monkeypatch.chdir(tmp_path)
            with pytest.raises(UserError) as caught:
                app(arguments, standalone_mode=False)
            assert says in str(caught.value)
            assert "\n" not in str(caught.value)
            assert sorted(tmp_path.iterdir()) == before
        assert server.asked == locked.asked == []


def test_sampling_from_the_command_line_is_part_of_the_request(manifest):
    with ChatServer(unknown={"top_p": (422, {"detail": "unexpected field: top_p"})}) as server:
        command = ["caption", str(manifest), "--limit", "1", "--base-url", server.url]
        for options in ([], ["--max-tokens", "99", "--extra", '{"seed": null, "top_k": 3}']):
            with pytest.warns(UserWarning, match="refuses top_p: leaving it out"):
                assert CliRunner().invoke(app, [*command, *options]).exit_code == 0
    sent = [{k: v for k, v in a.body.items() if k not in ("model", "messages")} for a in server.asked]
    assert sent == [
        {"max_tokens": 512, "temperature": 0.7, "seed": 0},
        {"max_tokens": 99, "temperature": 0.7, "top_k": 3},
    ]


def test_dry_run(manifest, tmp_path, capsys):
    code, out, err = start("manifest.parquet", "--dry-run", cwd=tmp_path).finish()
    assert (code, err) == (0, "")
    assert out.startswith(f"{COUNT} requests for {COUNT} rows (0 from cache); about ")
    assert out.endswith("nothing was sent\n")


# A model of our own, tiny and untrained


@pytest.fixture(scope="session")
def local_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3-vl"
    vision = {"deepstack_visual_indexes": [0]}
    return save_tiny_chat(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, {}, vision)


def test_a_local_model_captions(manifest, local_model):
    out = captioned_path(manifest)

    def run(max_tokens):
        sampling = Sampling(max_tokens=max_tokens, temperature=0.7, top_p=0.8, seed=0)
        captioner = local_captioner(
            Journal(cache_path(out)), dataclasses.replace(QUICK, sampling=sampling), str(local_model), "cpu"
        )
        return caption_manifest(CaptionConfig(manifest, out, limit=3), captioner)

    report = run(max_tokens=40)  # gibberish, but it ends by itself
    assert (report.asked, report.failed) == (3, 0)
    rows = read_manifest(out)
    assert {r.caption_model for r in rows if r.target_caption} == {local_name(str(local_model))}
    assert local_name(str(local_model)).startswith("local:tiny-qwen3-vl@")
    assert report.completion_tokens > 0
    assert run(max_tokens=40).from_cache == 3
    report = run(max_tokens=2)  # asks something else, and gets no sentence
    assert (report.asked, report.failed) == (0, 3)
    assert "cut off at max_tokens" in failures_path(out).read_text()


def test_a_local_model_sees_the_pictures_and_obeys_the_seed(local_model, clips):
    from rvedit.io.chat import FrameReader, FrameSettings

    chat = LocalChat(str(local_model), "cpu")
    chat._model.generation_config.exponential_decay_length_penalty = None
    frames = FrameReader(FrameSettings(count=2), Journal(clips / "unused"))
    first, second = (frames.read(clips / name) for name in ("000.mp4", "001.mp4"))
    sampling = Sampling(max_tokens=16, temperature=0.0)

    def ask(pictures, **changes):
        drawn = dataclasses.replace(sampling, **changes)
        request = ChatRequest(chat.name, "Be brief.", ("Look:", *pictures, "<|image_pad|> What?"), drawn, "1")
        return asyncio.run(chat.complete(request)), chat._inputs(request)

    (reply, inputs), (other, _) = ask(first), ask(second)
    assert reply == ask(first)[0]
    assert reply.text != other.text
    assert inputs["input_ids"].shape[1] == reply.prompt_tokens
    image_token = chat._model.config.image_token_id
    # 32 x 32 pixels are one merged patch a picture; the placeholder in the text stayed words
    assert int((inputs["input_ids"] == image_token).sum()) == len(inputs["image_grid_thw"]) == 2
    drawn = {seed: ask(first, temperature=2.0, seed=seed)[0].text for seed in (1, 2)}
    assert drawn[1] != drawn[2]
    assert drawn[1] == ask(first, temperature=2.0, seed=1)[0].text
    asyncio.run(chat.close())


def test_a_folder_that_holds_no_model_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"`local` .*empty: cannot be loaded"):
        LocalChat(str(tmp_path / "empty"), "cpu")


def test_local_names_tell_checkpoints_apart(tmp_path):
    names = set()
    for number, content in enumerate(("a", "b")):
        folder = tmp_path / str(number) / "model"
        folder.mkdir(parents=True)
        Path(folder / "config.json").write_text(content)
        names.add(local_name(str(folder)))
    assert len(names) == 2
    assert local_name("Qwen/Qwen3-VL-8B-Instruct") == "local:Qwen/Qwen3-VL-8B-Instruct"
    for wrong in ("nowhere", "./a/b", "/no/model"):
        with pytest.raises(UserError, match="no such folder"):
            local_name(wrong)
