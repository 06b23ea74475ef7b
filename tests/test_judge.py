"""`rvedit judge`: every edit ends with a verdict or with the true reason that it has none."""

import base64
import csv
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children

import numpy as np
import pytest
import yaml
from chat_server import ChatServer
from clips import write_clip
from gemini_server import KEY, GeminiServer, pictures
from PIL import Image
from processes import Command
from typer.testing import CliRunner

from rvedit.evaluation.frames import FrameStore
from rvedit.evaluation.judge import JudgeConfig, compare_folders, estimate, judge_edits, read_judge_set
from rvedit.evaluation.judges import GEMINI_SAMPLING, QWEN, QWEN_SAMPLING, gemini_judge, qwen_judge
from rvedit.evaluation.protocols import PaperProtocol
from rvedit.evaluation.request import CLOSING, EDITED_HEADER, SOURCE_HEADER, JudgeSettings
from rvedit.evaluation.rubrics import rubric, with_instruction
from rvedit.io.bench import read_bench
from rvedit.io.chat import Journal, RetryPolicy
from rvedit.io.errors import UserError
from rvedit.pipelines.model_card import Provenance
from rvedit_cli.main import app

KINDS = {"local_change": 65, "local_remove": 59, "local_add": 67, "global_style": 58}
QUICK = RetryPolicy(tries=6, first_wait=0.01, longest_wait=0.05, total=60.0)


def noise(path, seed, frames=7):
    levels = np.random.default_rng(seed).integers(0, 256, (frames, 3, 4, 3), np.uint8)
    write_clip(path, levels.repeat(8, 1).repeat(8, 2))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Ten items with clips that differ, and their edits."""
    return make_bench(
        tmp_path_factory.mktemp("small"), {"local_change": 4, "local_add": 3, "global_style": 3}
    )


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory):
    """As many items as the paper's benchmark has, on a few clips each of which has many instructions."""
    return make_bench(tmp_path_factory.mktemp("bench"), KINDS)


def make_bench(folder, kinds):
    (folder / "videos").mkdir()
    (folder / "edits").mkdir()
    rows = [("edited_type", "prompt", "original_video")]
    number = 0
    for kind, count in kinds.items():
        for _ in range(count):
            stem = f"{number:04d}_clip"
            noise(folder / "videos" / f"{stem}.mp4", number)
            noise(folder / "edits" / f"{stem}_edited.mp4", 1000 + number)
            rows.append((kind, f"make number {number} {{red}}", f"videos/{stem}.mp4"))
            number += 1
    with (folder / "bench.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def scores_by(digest):
    """Three scores from a request's pictures, so that whoever mixes requests up is found out."""
    numbers = hashlib.sha256(digest.encode()).digest()
    return [1 + n % 100 for n in numbers[:3]]


def words(ic, cf, vq):
    return (
        f"Brief reasoning: fine.\nInstruction Compliance: {ic}\nConsistency & Detail Fidelity: {cf}\n"
        f"Visual Quality & Stability: {vq}"
    )


def say(asked):
    return words(*scores_by(asked.digest))


def serve(behave=lambda asked: "ok", **options):
    return ChatServer(behave, **{"models": (QWEN,), "say": say, **options})


def run(folder, server, out, judges=None, **config):
    names = ("probe", "concurrency", "timeout", "retry_dropped")
    settings = {key: config.pop(key) for key in names if key in config}
    config = JudgeConfig(folder / "edits", out, folder / "bench.csv", **config)
    journal = Journal(out / "journal.jsonl")
    protocol = PaperProtocol(FrameStore(out / "frames", journal))
    judge_set = read_judge_set(config, protocol)
    settings = JudgeSettings(QWEN_SAMPLING, policy=QUICK, **settings)
    judge = qwen_judge(journal, protocol, settings, base_url=server.url)
    report = judge_edits(config, judge_set, [judge, *(judges(journal, protocol) if judges else [])])
    journal.close()
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert all((row["scores"] is None) == (row["dropped"] is not None) for row in rows)
    return report, rows


def test_a_request_is_the_papers(small, tmp_path):
    with serve(served_as="qwen-awq") as server:
        report, rows = run(small, server, tmp_path)
    items = {item.id: item for item in read_bench(small / "bench.csv")}
    by_instruction = {a.body["messages"][0]["content"]: a for a in server.asked}
    for row in rows:
        item = items[row["item"]]
        asked = by_instruction[with_instruction(rubric(item.category), item.instruction)]
        system, user = asked.body["messages"]
        assert (system["role"], user["role"]) == ("system", "user")
        content = user["content"]
        assert [part["type"] for part in content] == [
            "text",
            *5 * ["image_url"],
            "text",
            *5 * ["image_url"],
            "text",
        ]
        assert [content[i]["text"] for i in (0, 6, 12)] == [SOURCE_HEADER, EDITED_HEADER, CLOSING]
        sent = [
            hashlib.sha256(base64.b64decode(part["image_url"]["url"].split(",", 1)[1])).hexdigest()
            for part in content
            if part["type"] == "image_url"
        ]
        assert sent == row["source_frames"] + row["edited_frames"]
        assert all((tmp_path / "frames" / f"{digest}.jpg").is_file() for digest in sent)
        assert list(row["scores"].values()) == scores_by(asked.digest)
        assert row["reply"] == say(asked)
        assert (row["model"], row["asked_model"], row["reasoning"]) == ("qwen-awq", QWEN, "fine.")
        assert (row["prompt_tokens"], row["protocol"], row["probe"]) == (100, "paper", "none")
    assert len(rows) == len(server.asked) == 10
    assert asked.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert report.counts("qwen") == Counter(scored=10, from_cache=0)
    page = (tmp_path / "report.html").read_text()
    assert "make number 3 {red}" in page
    assert page.count("data:image/jpeg;base64,") == 100
    assert not re.search(r"(src|href)\s*=\s*\"?https?:", page)


def test_the_table_is_the_mean_of_the_verdicts(small, tmp_path):
    with serve() as server:
        report, rows = run(small, server, tmp_path)
    cells = {}
    for category in ("change", "add", "style"):
        mine = [list(r["scores"].values()) for r in rows if r["category"] == category]
        cells[category] = np.mean(mine, axis=0)
    summary = json.loads((tmp_path / "summary.json").read_text())["judges"]["qwen"]
    for category, cell in cells.items():
        row = summary["table"]["categories"][category]
        assert [row["axes"][axis]["value"] for axis in ("ic", "cf", "vq")] == pytest.approx(cell)
    overall = np.mean([cell.mean() for cell in cells.values()])
    assert summary["table"]["overall"]["value"] == pytest.approx(overall)
    assert report.tables["qwen"].overall.value == pytest.approx(overall)
    card = Provenance().with_scores(tmp_path / "summary.json").card("judged", {})
    assert f"| qwen | Overall | | | | {overall:.2f} |" in card


@pytest.mark.slow
def test_249_items_and_a_second_run_that_sends_nothing(benchmark, tmp_path):
    """The wall time is a benchmark's business; here, that all slots are full and nothing is asked twice."""
    with serve(together=16) as server:
        report, rows = run(benchmark, server, tmp_path, concurrency=16)
        assert report.counts("qwen") == Counter(scored=249, from_cache=0)
        assert Counter(row["category"] for row in rows) == Counter(change=65, remove=59, add=67, style=58)
        assert server.most_in_flight == 16
        asked = len(server.headers)
        page = (tmp_path / "report.html").stat().st_mtime_ns
    again, same = run(benchmark, server, tmp_path)  # nobody is there to be asked, and nobody has to be
    assert len(server.headers) == asked
    assert again.counts("qwen") == Counter(scored=249, from_cache=249)
    assert [row["scores"] for row in same] == [row["scores"] for row in rows]
    assert (tmp_path / "report.html").stat().st_mtime_ns == page


@pytest.mark.slow
def test_a_server_with_every_trouble(benchmark, tmp_path):
    """10% 429, 5% 500, 5% hangs, 10% garbage: each is scored, or dropped with its true reason."""
    rng = random.Random(1)
    fates = {}

    def behave(asked):
        value = rng.random()
        fate = "429:0" if value < 0.1 else "500" if value < 0.15 else "hang" if value < 0.2 else "ok"
        fate = "refusal" if 0.2 <= value < 0.3 else fate
        fates.setdefault(asked.digest, []).append(fate)
        return fate

    with serve(behave) as server:
        report, rows = run(benchmark, server, tmp_path, concurrency=32, timeout=2.0)
    counts = report.counts("qwen")
    assert counts["scored"] + counts["dropped"] == len(rows) == 249
    assert counts["scored"] > 230
    for row in rows:
        # The server tells requests apart by their pictures.
        digest = (
            hashlib.sha256(
                b"".join(
                    (tmp_path / "frames" / f"{d}.jpg").read_bytes()
                    for d in row["source_frames"] + row["edited_frames"]
                )
            ).hexdigest()
            if row["source_frames"]
            else None
        )
        if row["scores"]:
            assert fates[digest][-1] == "ok"
            assert row["format_retries"] == fates[digest].count("refusal")
            # On a busy machine an answer may come too late, too.
            assert row["transport_retries"] >= sum(f not in ("ok", "refusal") for f in fates[digest])
        elif digest:
            assert fates[digest].count("refusal") == 3
            assert "no score for Instruction Compliance (asked 3 times)" in row["dropped"]
            assert "can't help" in row["reply"]
        else:
            assert re.search(r"HTTP 429|HTTP 500|no reply within", row["dropped"])


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("length", "cut off by the token limit: raise --max-tokens"),
        ("reasoning-cut", "cut off by the token limit: raise --max-tokens"),
        (
            "reasoning-draft",
            "no score for Instruction Compliance in reasoning_content, and the reply is empty",
        ),
        (
            "reasoning-tools",
            "the reply is empty: there is reasoning_content alone (finish_reason tool_calls)",
        ),
        ("empty", "the reply is empty: nothing was written (finish_reason stop)"),
        ("refusal-field", "the model refuses: I cannot assist with that."),
        ("filter", "a content filter withheld the reply (content_filter)"),
        ("abort", "the server broke off the reply (abort)"),
    ],
)
def test_each_kind_of_no_answer_is_named(small, tmp_path, action, reason):
    """Also where the reply has a draft of all three scores."""
    with serve(lambda asked: action) as server:
        _, rows = run(small, server, tmp_path, limit=1)
    assert {row["dropped"] for row in rows} == {f"{reason} (asked 3 times)"}


def test_scores_that_were_returned_as_reasoning_are_read(small, tmp_path):
    with serve(lambda asked: "reasoning") as server:
        report, rows = run(small, server, tmp_path)
        again, same = run(small, server, tmp_path)
    assert report.counts("qwen") == Counter(scored=10, from_cache=0)
    assert again.counts("qwen") == Counter(scored=10, from_cache=10)
    digests = {tuple(scores_by(asked.digest)): say(asked) for asked in server.asked}
    for row in (*rows, *same):
        assert (row["reply"], row["reasoning"]) == ("", "fine.")
        assert digests[tuple(row["scores"].values())] == row["reasoning_content"]


def test_what_was_dropped_for_its_form_stays_dropped_unless_asked(small, tmp_path):
    with serve(lambda asked: "refusal" if asked.tries < 3 else "ok") as server:
        report, _ = run(small, server, tmp_path)
        assert (report.counts("qwen")["dropped"], len(server.asked)) == (10, 30)
        report, rows = run(small, server, tmp_path)
        assert (report.counts("qwen")["dropped"], len(server.asked)) == (10, 30)
        assert all("asked 3 times" in row["dropped"] for row in rows)
        assert report.tables["qwen"] is None
        report, _ = run(small, server, tmp_path, retry_dropped=True)
        assert (report.counts("qwen")["scored"], len(server.asked)) == (10, 40)


def test_what_got_no_reply_is_asked_again_by_the_next_run(small, tmp_path):
    with serve(lambda asked: "400" if asked.number < 4 else "ok") as server:
        report, rows = run(small, server, tmp_path, concurrency=1)
        assert report.counts("qwen")["dropped"] == 4
        assert sum("HTTP 400" in (row["dropped"] or "") for row in rows) == 4
        report, _ = run(small, server, tmp_path)
        assert report.counts("qwen") == Counter(scored=10, from_cache=6)


def test_repeats_are_asked_for_themselves_and_averaged(small, tmp_path):
    def vary(asked):
        return words(10 + asked.tries, 50, 50)

    with serve(say=vary) as server:
        report, rows = run(small, server, tmp_path, repeats=3)
    assert len(rows) == len(server.asked) == 30
    seeds = {asked.body["seed"] for asked in server.asked}
    assert seeds == {0, 100, 200}
    assert report.tables["qwen"].axes["ic"].value == pytest.approx(11)
    assert report.tables["qwen"].categories["change"].items == 4


@pytest.mark.parametrize("probe", ["identity", "swap"])
def test_probes_of_a_judges_honesty(small, tmp_path, probe):
    with serve() as server:
        _, rows = run(small, server, tmp_path / probe, probe=probe)
        _, plain = run(small, server, tmp_path / "plain")
    for row, other in zip(rows, plain, strict=True):
        assert row["probe"] == probe
        source, edited = other["source_frames"], other["edited_frames"]
        shown = (source, source) if probe == "identity" else (edited, source)
        assert (row["source_frames"], row["edited_frames"]) == shown  # what the judge saw is on record
    digests = {
        hashlib.sha256(b"".join(_bytes(tmp_path / "plain", sides))).hexdigest()
        for row in plain
        for sides in [
            row["source_frames"] * 2 if probe == "identity" else row["edited_frames"] + row["source_frames"]
        ]
    }
    assert {asked.digest for asked in server.asked[:10]} == digests
    with pytest.raises(UserError, match="verdicts of a probe"):
        compare_folders(tmp_path / "plain", tmp_path / probe)


def _bytes(folder, digests):
    return [(folder / "frames" / f"{digest}.jpg").read_bytes() for digest in digests]


def test_a_damaged_edit_is_dropped_alone(small, tmp_path):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", small, folder], check=True)
    whole = (folder / "edits" / "0002_clip_edited.mp4").read_bytes()
    (folder / "edits" / "0002_clip_edited.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "edits" / "0003_clip_edited.mp4").write_bytes(b"not a clip")
    (folder / "edits" / "0004_clip_edited.mp4").unlink()
    with serve() as server:
        report, rows = run(folder, server, tmp_path / "out")
    assert report.counts("qwen") == Counter(scored=7, dropped=2, from_cache=0)
    reasons = {row["item"]: row["dropped"] for row in rows if row["dropped"]}
    assert set(reasons) == {"0002_clip", "0003_clip"}
    assert all("_edited.mp4" in reason for reason in reasons.values())
    assert [item.id for item in report.judge_set.missing] == ["0004_clip"]


def test_two_folders_are_compared(small, tmp_path):
    with serve(say=lambda asked: words(40, 50, 60)) as server:
        run(small, server, tmp_path / "a")
    with serve(say=lambda asked: words(44, 50, 60)) as server:
        run(small, server, tmp_path / "b")
    result = CliRunner().invoke(
        app, ["judge", "--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]
    )
    overall = json.loads(result.stdout)["difference"]["qwen"]["overall"]
    assert overall["ic"]["mean"]["value"] == pytest.approx(4)
    assert (overall["cf"]["mean"]["value"], overall["cf"]["p_value"]) == (0, 1)
    assert overall["ic"]["p_value"] < 0.01
    shown = CliRunner().invoke(app, ["judge", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]).stdout
    assert "qwen, Overall (10 items)" in shown
    with pytest.raises(UserError, match=r"has no scores\.jsonl"):
        compare_folders(tmp_path / "a", tmp_path)


# As users run it


def start(*arguments, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RVEDIT_", "GEMINI", "GOOGLE"))}
    return Command("judge", *arguments, cwd=cwd, environment=env | environment)


@pytest.mark.slow
def test_killed_ten_times_loses_nothing_and_asks_nothing_twice(benchmark, tmp_path):
    common = (benchmark / "edits", "--bench", benchmark / "bench.csv", "--out", "out", "--concurrency", 8)
    with serve(latency=0.05) as server:
        environment = {"RVEDIT_QWEN_BASE_URL": server.url}
        for kill in range(10):
            goal = len(server.times_answered) + 3 + kill % 5
            process = start(*common, cwd=tmp_path, **environment)
            deadline = time.monotonic() + 60
            while len(server.times_answered) < goal and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.finish()
        answered = len(server.times_answered)
        assert 30 <= answered < 249
        code, out, err = start(*common, "--json", cwd=tmp_path, **environment).finish()
        assert (code, err) == (0, "")
        counts = json.loads(out)["judges"]["qwen"]
        assert (counts["scored"], counts["dropped"]) == (249, 0)
        assert counts["from_cache"] >= answered - 10 * 8
        assert len(server.times_answered) == 249
        assert sum(server.times_answered.values()) <= 249 + 10 * 8  # those in flight at each kill, at most
        rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
        assert all(row["scores"] for row in rows)
        before = len(server.headers)
        code, out, _ = start(*common, cwd=tmp_path, **environment).finish()
        assert (code, len(server.headers)) == (0, before)
        assert "qwen: 249 scored, 0 dropped, 249 from cache" in out
        assert "Overall" in out


def judge_command(folder, out, server, *more):
    arguments = ["judge", folder / "edits", "--bench", folder / "bench.csv", "--out", out]
    return CliRunner().invoke(app, list(map(str, [*arguments, "--base-url", server.url, *more])))


def test_nothing_scored_is_a_failure_of_one_line(small, tmp_path):
    with serve(lambda asked: "length") as server:
        result = judge_command(small, tmp_path / "a", server)
        again = judge_command(small, tmp_path / "a", server, "--json")
    assert len(server.asked) == 30
    line = (
        "rvedit: qwen scored nothing: cut off by the token limit: raise --max-tokens (asked 3 times); fix "
        "this and run the command again with --retry-dropped\n"
    )
    for failed in (result, again):
        assert (failed.exit_code, failed.stderr) == (1, line)
    with serve(lambda asked: "ok" if asked.number == 0 else "length") as server:
        result = judge_command(small, tmp_path / "b", server, "--category", "change", "--concurrency", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "qwen: 1 scored, 3 dropped" in result.stdout


def test_sampling_from_the_command_line_is_part_of_the_request(small, tmp_path):
    extra = json.dumps({"chat_template_kwargs": None, "temperature": 0.5})
    with serve() as server:
        for options in (
            [],
            ["--max-tokens", 99],
            ["--extra", extra],
            ["--max-tokens", 99],
            ["--extra", extra],
        ):
            assert judge_command(small, tmp_path, server, "--limit", 1, *options).exit_code == 0
    sent = [{k: v for k, v in a.body.items() if k not in ("model", "messages")} for a in server.asked[::3]]
    usual = {"max_tokens": 1024, "seed": 0, "chat_template_kwargs": {"enable_thinking": False}}
    assert sent == [usual, {**usual, "max_tokens": 99}, {"max_tokens": 1024, "seed": 0, "temperature": 0.5}]


def test_a_sign_in_page_ends_a_run_at_once(small, tmp_path):
    with serve(lambda asked: "ok" if asked.number < 4 else "html") as server:
        result = judge_command(small, tmp_path, server, "--concurrency", 1)
        assert (result.exit_code, len(server.asked)) == (1, 5)
    assert f"rvedit: qwen stopped early: {server.url}: HTTP 200 with no reply" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    with serve(lambda asked: "html", models=None) as server:
        result = judge_command(small, tmp_path / "none", server)
        assert server.asked == []
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(f"{server.url}: refuses {QWEN}: HTTP 200 with no reply")


def test_a_signal_keeps_what_was_answered(small, tmp_path):
    common = (small / "edits", "--bench", small / "bench.csv", "--out", "out", "--concurrency", 1)
    with serve(latency=0.1) as server:
        process = start(*common, cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url)
        deadline = time.monotonic() + 60
        while len(server.times_answered) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        code, _, err = process.finish()
        assert (code, "interrupted" in err, "Traceback" in err) == (143, True, False)
        assert not [path for path in tmp_path.rglob(".*") if ".part" in path.name]
        code, _, _ = start(*common, cwd=tmp_path, RVEDIT_QWEN_BASE_URL=server.url).finish()
    assert code == 0
    assert sum(server.times_answered.values()) <= 10 + 1  # one was in flight


def test_keys_are_nowhere(small, tmp_path):
    secret = "sk-very-secret-0123"
    with serve(lambda asked: "400" if asked.number == 2 else "ok", key=secret) as server:
        process = start(
            small / "edits", "--bench", small / "bench.csv", "--out", "out", "--price", "qwen=2/10",
            cwd=tmp_path, RVEDIT_DEBUG="1", RVEDIT_QWEN_BASE_URL=server.url,
            RVEDIT_QWEN_API_KEY=secret,
        )  # fmt: skip
        code, out, err = process.finish()
    assert code == 0
    assert "qwen: 9 scored, 1 dropped, 900 prompt + 90 completion tokens, cost 0.00" in out
    assert "dropped 1: HTTP 400" in out
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".jpg"]
    assert secret not in out + err + "".join(path.read_text(errors="replace") for path in files)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give the folder of edited clips"),
        (["nowhere"], "no such folder: name the folder of edited clips"),
        (["edits/0000_clip_edited.mp4"], "no such folder: name the folder of edited clips"),
        (["edits", "--bench", "bench.csv", "--judge", "gpt"], "choose one of qwen, gemini, reference"),
        (["edits", "--bench", "bench.csv", "--category", "background_change"], "has no rubric"),
        (["edits", "--bench", "bench.csv", "--protocol", "openve"], "--rubrics DIR go together"),
        (["edits", "--bench", "bench.csv", "--probe", "x"], "choose one of none, identity, swap"),
        (["edits", "--bench", "bench.csv"], "no endpoint is given: set --base-url or RVEDIT_QWEN_BASE_URL"),
        (["edits", "--bench", "bench.csv", "--base-url", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["edits", "--bench", "bench.csv", "--judge", "gemini"], "no key for Gemini: set GEMINI_API_KEY"),
        (["edits", "--judge", "qwen", "--judge", "gemini", "--model", "x"], "one --judge at a time"),
        (
            ["edits", "--judge", "reference", "--base-url", "http://x"],
            "--base-url: needs --judge qwen or gemini",
        ),
        (["edits", "--local", "DIR", "--model", "x"], "leave out --base-url and --model"),
        (["edits", "--judge", "gemini", "--local", "DIR"], "--local: needs --judge qwen"),
        (["edits", "--device", "cpu"], "--device: needs --local"),
        (["edits", "--price", "qwen=1"], "--price qwen=1: give JUDGE=IN/OUT"),
        (["edits", "--price", "gemini=1/2"], "gemini is not asked: choose one of qwen"),
        (["edits", "--extra", "top_k=3"], "--extra top_k=3: not a JSON object: give one such as"),
        (["edits", "--extra", "[3]"], "--extra [3]: not a JSON object"),
        (["edits", "--extra", '{"model": "x"}'], "--extra: cannot replace the model or the messages"),
        (
            ["edits", "--extra", '{"top_k": 3}', "--local", "DIR"],
            "a local model accepts only chat_template_kwargs",
        ),
        (
            ["edits", "--extra", "{}", "--judge", "qwen", "--judge", "gemini"],
            "--extra: is for one chat judge",
        ),
        (["edits", "--extra", "{}", "--judge", "reference"], "--extra: is for one chat judge"),
        (
            ["edits", "--max-tokens", "9", "--judge", "reference"],
            "--max-tokens: needs --judge qwen or gemini",
        ),
        (["edits", "--compare", "edits", "edits"], "--compare: does not judge"),
        (["videos", "--bench", "other.csv"], "has rubrics for change, remove, add, style"),
        (["empty", "--bench", "bench.csv"], "has no edit of any of the 10 items, such as 0000_clip"),
        (["empty"], "holds none of edits.jsonl"),
    ],
)
def test_mistakes_are_one_line_before_any_work(small, tmp_path, arguments, says):
    for name in ("edits", "videos", "bench.csv"):
        (tmp_path / name).symlink_to(small / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text(
        "edited_type,prompt,original_video\nbackground_change,x,videos/0000_clip.mp4\n"
    )
    code, out, err = start(*arguments, *(["--out", "out"] if arguments else []), cwd=tmp_path).finish()
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "frames").exists()


def test_dry_run_sends_nothing(small, tmp_path):
    with serve() as server:
        arguments = [
            "judge",
            str(small / "edits"),
            "--bench",
            str(small / "bench.csv"),
            "--out",
            str(tmp_path),
        ]
        arguments += ["--base-url", server.url, "--dry-run"]
        result = CliRunner().invoke(app, arguments)
        assert not server.headers
        assert re.match(
            r"qwen: 10 verdicts, 0 of them cached; 10 requests, about [\d,]+ prompt", result.stdout
        )
        run(small, server, tmp_path)
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert json.loads(result.stdout)["judges"][0] == {
            "judge": "qwen", "verdicts": 10, "from_cache": 10, "requests": 0, "prompt_tokens": 0,
            "completion_tokens": 0,
        }  # fmt: skip
    assert list(estimate.__annotations__)


# Gemini


def by_pictures(body):
    return words(*scores_by("".join(pictures(body))))


def test_gemini_by_its_rest_address(small, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    fates = iter(["429:0", "503", "garbage", "empty", "blocked", "cut"])
    with GeminiServer(by_pictures, lambda number: next(fates, "ok")) as gemini, serve() as qwen:

        def judges(journal, protocol):
            settings = JudgeSettings(GEMINI_SAMPLING, concurrency=4, policy=QUICK)
            return [gemini_judge(journal, protocol, settings, base_url=gemini.url)]

        report, rows = run(small, qwen, tmp_path, judges)
        assert report.counts("gemini") == Counter(scored=10, from_cache=0)
        sent = len(gemini.asked)
        report, _ = run(small, qwen, tmp_path, judges)
        assert (len(gemini.asked), report.counts("gemini")["from_cache"]) == (sent, 10)
    theirs = [row for row in rows if row["judge"] == "gemini"]
    for row in theirs:
        assert list(row["scores"].values()) == scores_by("".join(row["source_frames"] + row["edited_frames"]))
        assert (row["model"], row["finish_reason"]) == ("gemini-3.1-pro-preview-07", "STOP")
        assert (row["prompt_tokens"], row["completion_tokens"]) == (11000, 340)
        assert row["response_id"].startswith("reply-")
    assert sum(row["transport_retries"] for row in theirs) == 3
    assert sum(row["format_retries"] for row in theirs) == 3
    body = gemini.asked[0]
    assert body["path"].endswith("models/gemini-3.1-pro-preview:generateContent")
    assert "temperature" not in body["generationConfig"]  # the vendor advises against one
    assert body["systemInstruction"]["parts"][0]["text"].startswith("You are a data rater")
    kinds = ["inlineData" if "inlineData" in part else "text" for part in body["contents"][0]["parts"]]
    assert kinds == ["text", *5 * ["inlineData"], "text", *5 * ["inlineData"], "text"]
    assert report.mean is not None
    assert set(report.agreement["qwen and gemini"]) == {"ic", "cf", "vq"}
    assert KEY not in "".join(p.read_text() for p in tmp_path.glob("*.json*"))


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("empty", "cut off by the token limit: raise --max-tokens (asked 3 times)"),
        ("draft", "cut off by the token limit: raise --max-tokens (asked 3 times)"),
        ("blocked", "a content filter withheld the reply (SAFETY) (asked 3 times)"),
        ("filtered", "a content filter withheld the reply (PROHIBITED_CONTENT) (asked 3 times)"),
        ("other", "the reply is empty: nothing was written (finish_reason OTHER) (asked 3 times)"),
        ("html", "URL: HTTP 200 with no reply of a chat model, but <html>Sign in</html>: check the URL"),
        ("error", "URL: HTTP 200 with no reply of a chat model, but an object without candidates"),
    ],
)
def test_what_gemini_says_in_place_of_an_answer(small, tmp_path, monkeypatch, action, reason):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    body = {"generationConfig": {"temperature": 0.5}}
    with GeminiServer(by_pictures, lambda number: action) as server:
        reason = reason.replace("URL:", f"{server.url}:")
        result = judge_command(
            small, tmp_path, server, "--judge", "gemini", "--limit", 1, "--concurrency", 1,
            "--max-tokens", 77, "--extra", json.dumps(body),
        )  # fmt: skip
    assert result.exit_code == 1
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(server.asked) == (9 if "asked" in reason else 1)
    assert server.asked[0]["generationConfig"] == {"maxOutputTokens": 77, "temperature": 0.5}


def test_gemini_with_a_wrong_key_is_one_line(small, tmp_path):
    with GeminiServer(by_pictures) as server:
        process = start(
            small / "edits", "--bench", small / "bench.csv", "--judge", "gemini", "--out", "out",
            cwd=tmp_path, GEMINI_API_KEY="wrong-key", RVEDIT_GEMINI_BASE_URL=server.url,
        )  # fmt: skip
        code, out, err = process.finish()
    assert (code, out) == (2, "")
    assert "API key not valid: ***" in err
    assert len(err.strip().splitlines()) == 1


def test_a_category_and_a_limit(small, tmp_path):
    protocol = PaperProtocol(FrameStore(tmp_path, Journal(tmp_path / "journal.jsonl")))
    config = JudgeConfig(small / "edits", tmp_path, small / "bench.csv", ("add", "style"), limit=2)
    assert Counter(case.category for case in read_judge_set(config, protocol).cases) == {"add": 2, "style": 2}


# The store of pictures


def test_processes_give_what_this_one_gives(small, tmp_path):
    clip = next((small / "edits").iterdir())
    alone = FrameStore(tmp_path / "alone", Journal(tmp_path / "alone.jsonl"))
    helped = FrameStore(tmp_path / "helped", Journal(tmp_path / "helped.jsonl"))
    helped.open()
    try:
        assert helped.read(clip) == alone.read(clip)
        assert helped.length(clip) == alone.length(clip) == 7
        assert helped.digests(clip) == tuple(frame.sha256 for frame in alone.read(clip))
        (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:200])
        with pytest.raises(UserError, match=r"broken\.mp4: not a video"):
            helped.read(tmp_path / "broken.mp4")
    finally:
        helped.close()


def test_a_killed_process_costs_its_own_clip_alone(small, tmp_path):
    """A decoder that crashes, or is killed for memory, is a reason; the next clip gets a new process."""
    os.mkfifo(tmp_path / "pipe")  # a decoder waits for what nobody writes
    (tmp_path / "endless.mp4").write_text("ffconcat version 1.0\nfile pipe\n")
    store = FrameStore(tmp_path / "frames", Journal(tmp_path / "journal.jsonl"))
    store.open()
    try:
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(store.read, tmp_path / "endless.mp4")
            while not (children := {child.pid for child in active_children()}):
                time.sleep(0.01)
            time.sleep(0.2)
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            # It might have been a neighbour's clip: it is read once more, in a process of its own.
            while not (alone := {child.pid for child in active_children()} - children):
                time.sleep(0.01)
            time.sleep(0.2)
            for pid in alone:
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(UserError, match="a worker process died"):
                waiting.result(30)
        assert len(store.read(next((small / "edits").iterdir()))) == 5
        assert children.isdisjoint(child.pid for child in active_children())
    finally:
        store.close()


# OpenVE's own protocol


def test_openves_protocol_is_another(small, tmp_path):
    """1 to 5, whole clips, the user's rubrics; a score of the other scale is a format failure."""
    rubrics = tmp_path / "rubrics"
    rubrics.mkdir()
    (rubrics / "local_change.txt").write_text("Grade from 1 to 5. Editing instruction is: {edit_prompt}.")
    arguments = ["judge", small / "edits", "--bench", small / "bench.csv", "--out", tmp_path / "openve"]
    arguments += ["--protocol", "openve", "--rubrics", rubrics]

    def grade(asked):
        system = asked.body["messages"][0]["content"]
        return words(9, 3, 3) if system.endswith("number 2 {red}.") else words(5, 3, 4)

    with serve(say=grade) as server:
        result = CliRunner().invoke(app, list(map(str, [*arguments, "--base-url", server.url])))
    assert result.exit_code == 0, result.output
    assert "left out, as the protocol has no rubric for them: 3 local_add, 3 global_style" in result.output
    rows = [json.loads(line) for line in (tmp_path / "openve" / "scores.jsonl").read_text().splitlines()]
    assert [(row["protocol"], row["category"]) for row in rows] == 4 * [("openve", "local_change")]
    given = [row["scores"] and list(row["scores"].values()) for row in rows]
    assert given == [[5, 3, 4], [5, 3, 4], None, [5, 3, 4]]
    assert "is 9, outside 1 to 5" in rows[2]["dropped"]
    system, user = server.asked[0].body["messages"]
    assert system["content"].startswith("Grade from 1 to 5. Editing instruction is: make number ")
    assert [part["type"] for part in user["content"]] == ["video_url", "video_url"]
    shown = {base64.b64decode(part["video_url"]["url"].split(",", 1)[1]) for part in user["content"]}
    clips = {path.read_bytes() for name in ("videos", "edits") for path in (small / name).iterdir()}
    assert shown <= clips
    with serve() as server:
        run(small, server, tmp_path / "paper")
    with pytest.raises(UserError, match="judged by the protocol"):
        compare_folders(tmp_path / "paper", tmp_path / "openve")


REFVIE = {
    "subject": ("Identity Consistency & Compliance", "Temporal Consistency & Texture Fidelity",
                "Physical Integration & Tracking"),
    "background": ("Reference Fidelity & Preservation", "Matting Quality & Temporal Stability",
                   "Visual Harmony & Perspective"),
}  # fmt: skip


def make_refvie(folder):
    """Two edits with pictures, named as Kiwi-Edit names them, and the rubrics of a user."""
    rows = []
    for name in ("videos", "edits", "rubrics"):
        (folder / name).mkdir()
    for index, kind in enumerate(REFVIE):
        noise(folder / "videos" / f"{index}.mp4", index)
        Image.fromarray(np.full((24, 32, 3), 60 * index, np.uint8)).save(folder / f"picture{index}.png")
        instruction = f"put this {kind} in the clip"
        noise(folder / "edits" / f"{index}_{instruction[:10]}_{index}.mp4", 10 + index)
        rows.append({"src_video": f"videos/{index}.mp4", "instruction": instruction,
                     "ref_img": f"picture{index}.png", "edit_type": kind})  # fmt: skip
    (folder / "refvie_bench.yaml").write_text(yaml.safe_dump(rows))
    for kind, labels in REFVIE.items():
        text = "\n".join([f"Grade the {kind}.", *labels, "**editing instruction is : {prompt}**"])
        (folder / "rubrics" / f"{kind}.txt").write_text(text)


def test_refvies_protocol_shows_the_reference_image(tmp_path):
    make_refvie(tmp_path)
    bench, out = tmp_path / "refvie_bench.yaml", tmp_path / "out"
    arguments = ["judge", tmp_path / "edits", "--bench", bench, "--out", out]
    arguments += ["--protocol", "refvie", "--rubrics", tmp_path / "rubrics"]

    def grade(asked):
        kind = asked.body["messages"][0]["content"].split("the ")[1].split(".")[0]
        return "Brief reasoning: fine.\n" + "\n".join(
            f"{label}: {score}" for label, score in zip(REFVIE[kind], (5, 4, 3), strict=True)
        )

    with serve(say=grade) as server:
        result = CliRunner().invoke(app, list(map(str, [*arguments, "--base-url", server.url])))
        assert result.exit_code == 0, (result.output, result.exception)
        again = CliRunner().invoke(app, list(map(str, [*arguments, "--base-url", server.url])))
        assert again.exit_code == 0
        assert len(server.asked) == 2, "asked again"
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [(row["protocol"], row["category"]) for row in rows] == [("refvie", kind) for kind in REFVIE]
    assert all(list(row["scores"].values()) == [5, 4, 3] for row in rows)
    for asked in server.asked:
        system, user = asked.body["messages"]
        assert "**editing instruction is : put this " in system["content"]
        assert [part["type"] for part in user["content"]] == ["image_url", "video_url", "video_url"]
        data = base64.b64decode(user["content"][0]["image_url"]["url"].split(",", 1)[1])
        shade = np.asarray(Image.open(io.BytesIO(data))).mean()
        assert abs(shade - 60 * ("background" in system["content"])) < 3, "the picture of the other item"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["axis_labels"]["ic"] == f"{REFVIE['subject'][0]} or {REFVIE['background'][0]}"
    (tmp_path / "rubrics" / "subject.txt").write_text("Grade {prompt} from 1 to 5.")
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert "does not ask for 'Identity Consistency & Compliance': add it" in str(result.exception)


def test_an_edit_of_another_length_is_judged_and_noted(small, tmp_path):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", small, folder], check=True)
    noise(folder / "edits" / "0001_clip_edited.mp4", 77, frames=9)
    with serve() as server:
        _, rows = run(folder, server, tmp_path / "out")
        _, again = run(folder, server, tmp_path / "out")
    notes = {row["item"]: row["note"] for row in rows if row["note"]}
    assert notes == {"0001_clip": "the edit has 9 frames, the source 7"}
    assert {row["item"]: row["note"] for row in again if row["note"]} == notes
    assert all(row["scores"] for row in rows)


def test_a_missing_key_is_found_before_another_judge_is_asked(small, tmp_path):
    with serve() as server:
        process = start(
            small / "edits", "--bench", small / "bench.csv", "--judge", "qwen", "--judge", "gemini",
            "--base-url", server.url, "--out", "out", cwd=tmp_path,
        )  # fmt: skip
        code, out, err = process.finish()
        assert (code, out, len(server.asked)) == (2, "", 0)
    assert "no key for Gemini" in err
