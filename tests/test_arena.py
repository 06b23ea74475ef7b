"""`rvedit judge arena`: known strengths, both orders asked, and a journal that survives kills."""

import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from chat_server import ChatServer
from clips import write_clip
from gemini_server import KEY, GeminiServer
from processes import Command
from typer.testing import CliRunner

from rvedit.evaluation.aggregate import Estimate
from rvedit.evaluation.arena_judges import read_preference, score_of
from rvedit.evaluation.arena_schedule import Pool
from rvedit.evaluation.arena_table import arena_table, comparisons_needed
from rvedit.evaluation.bootstrap import bootstrap
from rvedit.evaluation.bradley_terry import (
    Outcome,
    count_outcomes,
    fit_strengths,
    information,
    pairs_of,
    probabilities,
    strength_statistic,
)
from rvedit.evaluation.judges import QWEN
from rvedit.io.chat import BadReplyError, ChatReply
from rvedit.io.errors import UserError
from rvedit_cli.main import app

# Strengths


def simulate(strengths, items, rng, bias=0.5):
    """All pairs on all items, by a judge that leans to the edit it sees first and is asked in both orders."""
    outcomes = []
    for item in range(items):
        for i, j in zip(*pairs_of(len(strengths)), strict=True):
            half = (strengths[i] - strengths[j]) / 2
            prefers_left = rng.random(2) < 1 / (1 + np.exp(-half + np.array([-bias, bias])))
            outcomes.append(Outcome(item, i, j, float(prefers_left.mean())))
    return outcomes


def test_two_editors_by_hand():
    # 6 wins, 2 ties, 2 losses: e^d = 6 / 2, and v / sqrt(P(win) P(loss)) = 2 / sqrt(6 * 2).
    outcomes = [Outcome(0, 0, 1, score) for score in 6 * [1.0] + 2 * [0.5] + 2 * [0.0]]
    wins, ties = (x.sum(axis=0)[None] for x in count_outcomes(1000 * outcomes, 1, 2))
    fitted = fit_strengths(wins, ties)
    assert fitted.log_strength[0] == pytest.approx([np.log(3) / 2, -np.log(3) / 2], abs=1e-3)
    assert np.exp(fitted.log_tie[0]) == pytest.approx(2 / np.sqrt(12), abs=1e-3)


def test_asking_in_both_orders_gives_davidsons_model():
    d, bias = 0.8, 0.7
    first, second = 1 / (1 + np.exp(-d / 2 - bias)), 1 / (1 + np.exp(-d / 2 + bias))
    expected = (first * second, first + second - 2 * first * second, (1 - first) * (1 - second))
    assert probabilities(np.array(d), np.log(2 * np.cosh(bias))) == pytest.approx(expected)
    win, tie, loss = expected
    mean = win + tie / 2
    variance = win + tie / 4 - mean**2
    assert information(np.array(d), np.log(2 * np.cosh(bias))) == pytest.approx(variance)
    assert win + tie + loss == pytest.approx(1)


def test_intervals_cover_known_strengths():
    strengths, covered = np.array([1.0, 0.0, -1.0]), 0
    for run in range(20):
        outcomes = simulate(strengths, 40, np.random.default_rng(run))
        found = bootstrap(strength_statistic(*count_outcomes(outcomes, 40, 3)), 40, resamples=300)
        covered += sum(e.low <= s <= e.high for e, s in zip(found, strengths, strict=False))
    assert covered >= 51  # of 60; 57 are expected


def test_an_editor_that_always_wins_is_finite_and_marked():
    outcomes = [Outcome(item, 0, 1, 1.0) for item in range(10)]
    table = arena_table(("a", "b"), *count_outcomes(outcomes, 10, 2))
    assert [row.unbounded for row in table.editors] == [True, True]
    assert np.isfinite(table.editors[0].strength.value)
    apart = [Outcome(item, 0, 1, 1.0) for item in range(10)] + [Outcome(i, 2, 3, 0.5) for i in range(10)]
    table = arena_table(("a", "b", "c", "d"), *count_outcomes(apart, 10, 4))
    assert all(row.strength is None for row in table.editors)  # nothing links a and b with c and d


def test_groups_that_always_win_are_marked():
    """a and b tie, as do c and d; the first two win against the others. Each has won and lost or tied."""
    outcomes = [Outcome(i, *pair, 0.5) for i in range(6) for pair in ((0, 1), (2, 3))]
    outcomes += [Outcome(i, *pair, 1.0) for i in range(6) for pair in ((0, 2), (1, 3))]
    table = arena_table(tuple("abcd"), *count_outcomes(outcomes, 6, 4))
    assert all(row.unbounded and row.strength for row in table.editors)
    bounded = {(pair.left, pair.right) for pair in table.pairs if not pair.unbounded}
    assert bounded == {("a", "b"), ("c", "d")}
    table = arena_table(tuple("abcd"), *count_outcomes([*outcomes, Outcome(0, 3, 0, 1.0)], 6, 4))
    assert not any(row.unbounded for row in (*table.editors, *table.pairs)), "a loss links the groups"


def test_comparisons_that_are_still_needed():
    """With the number that is named, about 80% of simulated pairs are told apart."""
    truth, log_tie, made = 0.8, np.array([np.log(2.0)]), 40
    error = 1 / np.sqrt(made * information(np.array([truth]), log_tie)[0])
    needed = comparisons_needed(Estimate(truth, truth - 1.96 * error, truth + 1.96 * error), log_tie)
    rng, apart = np.random.default_rng(0), 0
    total = made + needed
    probability = np.stack(probabilities(np.array([truth]), log_tie))[:, 0]
    for _ in range(400):
        win, tie, loss = rng.multinomial(total, probability)
        wins, ties = np.array([[[0.0, win], [loss, 0]]]), np.array([[[0.0, tie], [tie, 0]]])
        fitted = fit_strengths(wins, ties)
        difference = fitted.log_strength[0, 0] - fitted.log_strength[0, 1]
        apart += difference * np.sqrt(total * information(np.array([difference]), fitted.log_tie)[0]) > 1.96
    assert 0.74 < apart / 400 < 0.86
    assert comparisons_needed(Estimate(0.0, -1, 1), log_tie) is None


def test_chosen_comparisons_are_of_the_undecided_pair():
    strengths = np.array([3.0, 0.1, -0.1, -3.0])
    outcomes = simulate(strengths, 30, np.random.default_rng(0))
    wins, ties = (x.sum(axis=0) for x in count_outcomes(outcomes, 30, 4))
    pool = Pool(np.ones((30, 4), bool), ["a"] * 15 + ["b"] * 15)
    chosen = pool.take_best(wins, ties, 16, explore=False)
    assert {(m.left, m.right) for m in chosen} == {(1, 2)}
    assert len({m.item for m in chosen}) == 16
    assert abs(sum(m.item < 15 for m in chosen) - 8) <= 1  # categories in even shares
    fresh = Pool(np.ones((30, 4), bool), ["a"] * 30)
    first = fresh.take_best(np.zeros((4, 4)), np.zeros((4, 4)), 12, explore=True)
    assert len({(m.left, m.right) for m in first}) >= 4
    assert len(fresh) == 6 * 30 - 12


def test_choosing_needs_fewer_comparisons_for_the_two_closest_editors():
    strengths = np.array([2.5, 0.2, -0.2, -2.5])

    def width(adaptive, budget, seed):
        rng, pool, outcomes = np.random.default_rng(seed), Pool(np.ones((60, 4), bool), ["a"] * 60, seed), []
        while len(outcomes) < budget:
            wins, ties = (x.sum(axis=0) for x in count_outcomes(outcomes, 60, 4))
            explore = len(outcomes) < 0.4 * budget
            chosen = pool.take_best(wins, ties, 8, explore) if adaptive else [pool.take_random()]
            for m in chosen:
                half = (strengths[m.left] - strengths[m.right]) / 2
                prefers_left = rng.random(2) < 1 / (1 + np.exp(-half + np.array([-0.5, 0.5])))
                outcomes.append(Outcome(m.item, m.left, m.right, float(prefers_left.mean())))
        estimates = bootstrap(strength_statistic(*count_outcomes(outcomes, 60, 4)), 60, resamples=200)
        return estimates[4 + 3].high - estimates[4 + 3].low  # the pair (1, 2)

    chosen = np.mean([width(True, 136, seed) for seed in range(4)])
    assert chosen < np.mean([width(False, 200, seed) for seed in range(4)])  # 68%


# Replies


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("Reasoning: both are fine.\nPreference: A", "a"),
        ("**Preference:** B.", "b"),
        ("Preference: tie", "tie"),
        ("Preference: A\nwait\nPreference: Edit B", "b"),
        ("<think>Preference: A</think>Preference: TIE", "tie"),
        ("Preference: a tie.", "tie"),
        ("**Preference: A tie**", "tie"),
        ("Preference: A\r\n", "a"),
    ],
)
def test_preferences_are_read(text, preference):
    assert read_preference(ChatReply(text, "m", "stop")) == preference


@pytest.mark.parametrize(
    "reply",
    [
        ChatReply("A", "m", "stop"),
        ChatReply("Preference: Both", "m", "stop"),
        ChatReply("Preference: A, B or tie", "m", "stop"),
        ChatReply("Preference: A is sharper, but B follows the instruction", "m", "stop"),
        ChatReply("I have no preference: a or b", "m", "stop"),
        ChatReply("Preference: A", "m", "length"),
        ChatReply("", "m", "content_filter"),
    ],
)
def test_other_replies_are_not(reply):
    with pytest.raises(BadReplyError):
        read_preference(reply)


def test_a_preference_counts_if_both_orders_have_it():
    answers = (("left", "left"), ("right", "right"), ("left", "right"), ("left", "tie"))
    assert [score_of(pair) for pair in answers] == [1, 0, 0.5, 0.5]


# The command

ITEMS = 6
EDITORS = ("bad", "fair", "good")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("arena"), ITEMS)


def make_world(folder, items):
    """Sources that are black, and editors whose edits are the lighter, the better they are."""
    (folder / "videos").mkdir()
    lines = ["edited_type,prompt,original_video"]
    for i in range(items):
        write_clip(folder / "videos" / f"c{i:02d}.mp4", np.full((2, 16, 16, 3), 2 * i, np.uint8))
        lines.append(f"{('local_add', 'local_remove')[i % 2]},make it {i},videos/c{i:02d}.mp4")
    (folder / "bench.csv").write_text("\n".join(lines) + "\n")
    for level, name in enumerate(EDITORS):
        (folder / name).mkdir()
        for i in range(items):
            frames = np.full((2, 16, 16, 3), 90 + 60 * level + i % 30, np.uint8)
            write_clip(folder / name / f"c{i:02d}_edited.mp4", frames)
    return folder


def brightness(part):
    import base64
    import io

    from PIL import Image

    data = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data))).mean()


def lighter(asked):
    """Prefer the lighter edit, or the first one if `bad` and `fair` are compared."""
    levels = [
        brightness(part) for part in asked.body["messages"][-1]["content"] if part["type"] == "image_url"
    ]
    a, b = levels[len(levels) // 3], levels[-1]
    biased = max(a, b) < 90 + 60 + 45
    return f"Reasoning: light.\nPreference: {'A' if biased or a > b else 'B'}"


def serve(behave=lambda asked: "ok", **options):
    return ChatServer(behave, **{"models": (QWEN,), "say": lighter, **options})


def arena(world, out, *more, editors=EDITORS):
    arguments = ["judge", "arena", *(world / name for name in editors), "--bench", world / "bench.csv"]
    return CliRunner().invoke(app, list(map(str, [*arguments, "--out", out, *more])))


def test_all_pairs_in_both_orders(world, tmp_path):
    with serve() as server:
        result = arena(world, tmp_path, "--base-url", server.url)
        assert result.exit_code == 0, result.output
        assert len(server.asked) == 2 * 3 * ITEMS
        again = arena(world, tmp_path, "--base-url", server.url, "--json")
        assert len(server.asked) == 2 * 3 * ITEMS
    system, user = server.asked[0].body["messages"]
    assert "Preference: A, B or tie" in system["content"]
    assert "make it" in system["content"]
    kinds = [part["type"] for part in user["content"]]
    assert kinds.count("image_url") == 3 * 2
    rows = [json.loads(line) for line in (tmp_path / "comparisons.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * ITEMS
    for row in rows:
        left_is_better = EDITORS.index(row["left"]) > EDITORS.index(row["right"])
        if {row["left"], row["right"]} == {"bad", "fair"}:
            assert (row["score"], row["answers"]) == (0.5, ["left", "right"])
        else:
            assert row["score"] == left_is_better
    summary = json.loads(again.stdout)
    assert (summary["order_disagreements"], summary["from_cache"]) == (ITEMS, 3 * ITEMS)
    overall = summary["tables"]["overall"]
    assert overall["editors"][0]["name"] == "good"
    assert (overall["editors"][0]["wins"], overall["editors"][0]["unbounded"]) == (2 * ITEMS, True)
    pair = next(p for p in overall["pairs"] if {p["left"], p["right"]} == {"bad", "fair"})
    assert (pair["wins"], pair["ties"], pair["losses"], pair["apart"]) == (0, ITEMS, 0, False)
    assert set(summary["tables"]) == {"overall", "add", "remove"}
    assert summary["tables"]["add"]["editors"][0]["strength"] is None  # three items are too few
    page = (tmp_path / "arena.html").read_text()
    assert "http://www.w3.org/2000/svg" in page
    assert "the answers in the two orders differ" in result.stdout
    assert result.stdout.count("], no bound") == 3, "all strengths of the table of all items"


def test_gemini_compares(world, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with GeminiServer(lambda body: "Preference: tie") as server:
        more = ("--judge", "gemini", "--base-url", server.url, "--limit", 1, "--json")
        summary = json.loads(arena(world, tmp_path, *more).stdout)
        assert len(server.asked) == 2 * 3 * 2
    assert summary["tables"]["overall"]["tie_rate"] == 1
    assert summary["order_disagreements"] == 0


def test_a_budget_is_kept_and_resumed(world, tmp_path):
    with serve() as server:
        more = ("--base-url", server.url, "--budget", 10, "--json")
        first = json.loads(arena(world, tmp_path, *more).stdout)
        assert len(server.asked) == 20
        second = json.loads(arena(world, tmp_path, *more).stdout)
        assert len(server.asked) == 20
        assert first["tables"] == second["tables"]
        assert second["from_cache"] == 10
        json.loads(arena(world, tmp_path, "--base-url", server.url, "--budget", 99, "--json").stdout)
        assert len(server.asked) == 2 * 3 * ITEMS  # all, and none twice


def test_what_cannot_be_read_is_dropped_once(world, tmp_path):
    def behave(asked):
        return "refusal" if asked.body["messages"][0]["content"].count("make it 1") else "ok"

    with serve(behave) as server:
        summary = json.loads(arena(world, tmp_path, "--base-url", server.url, "--json").stdout)
        asked = len(server.asked)
        again = json.loads(arena(world, tmp_path, "--base-url", server.url, "--json").stdout)
        assert len(server.asked) == asked
    assert summary["dropped"] == again["dropped"] == {
        "no line with the preference A, B or tie (asked 3 times)": 3
    }  # fmt: skip
    assert summary["tables"]["overall"]["comparisons"] == 3 * (ITEMS - 1)


def test_a_server_that_fails_keeps_what_was_answered(world, tmp_path):
    with serve(lambda asked: "ok" if asked.number < 10 else "html") as server:
        result = arena(world, tmp_path, "--base-url", server.url, "--concurrency", 1)
    assert result.exit_code == 1
    assert "qwen stopped early" in result.stderr
    with serve() as server:
        assert arena(world, tmp_path, "--base-url", server.url).exit_code == 0
        assert len(server.asked) == 2 * 3 * ITEMS - 10


def test_an_editor_without_some_edits_is_noted(world, tmp_path):
    shutil.copytree(world / "bad", tmp_path / "bad")
    for name in ("c00_edited.mp4", "c01_edited.mp4"):
        (tmp_path / "bad" / name).unlink()
    arguments = [
        "judge",
        "arena",
        tmp_path / "bad",
        world / "good",
        "--bench",
        world / "bench.csv",
        "--dry-run",
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert "note: bad has no edit of 2 items" in result.stderr
    assert f"{ITEMS - 2} comparisons of {ITEMS - 2}, at most {2 * ITEMS - 4} requests" in result.stdout
    limited = CliRunner().invoke(app, list(map(str, [*arguments, "--limit", 1])))
    assert "2 comparisons of 2" in limited.stdout, "the limit is of items that can be compared"


def test_people_compare(world, tmp_path):
    lines = ["item,left,right,preferred,rater"]
    for i in range(ITEMS):
        lines += [f"c{i:02d},good,bad,left,ann", f"c{i:02d},bad,good,{'tie' if i % 2 else 'right'},bob"]
    labels = tmp_path / "votes.csv"
    labels.write_text("\n".join([*lines, "c00,good,unknown,left,ann"]) + "\n")
    result = arena(
        world, tmp_path / "out", "--judge", "human", "--labels", labels, "--json", editors=("bad", "good")
    )
    summary = json.loads(result.stdout)
    assert (summary["unused"], summary["comparisons"]) == (1, 2 * ITEMS)
    best = summary["tables"]["overall"]["editors"][0]
    assert (best["name"], best["wins"], best["ties"], best["losses"]) == ("good", 9, 3, 0)


def test_the_reference_prefers_the_greater_gain(tmp_path):
    from rvedit.playground.prepare import PlaygroundConfig, prepare_playground

    folder = tmp_path / "set"
    list(prepare_playground(PlaygroundConfig(5, 9, "test", 2, 32, 32), folder, workers=0))
    for name, side in (("copy", "source"), ("true", "target")):
        (tmp_path / name).mkdir()
        for clip in (folder / side).glob("*.mp4"):
            shutil.copy(clip, tmp_path / name / f"{clip.stem}_edited.mp4")
    arguments = [
        "judge",
        "arena",
        tmp_path / "copy",
        tmp_path / "true",
        "--bench",
        folder,
        "--judge",
        "reference",
    ]
    arguments += ["--out", tmp_path / "out", "--json"]
    summary = json.loads(CliRunner().invoke(app, list(map(str, arguments))).stdout)
    best = summary["tables"]["overall"]["editors"][0]
    assert (best["name"], best["wins"], best["ties"]) == ("true", 5, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{world}/good",), "an arena needs two editors or more"),
        (("{world}/good", "{world}/good"), "two folders are named good"),
        (("{world}/good", "{world}/none"), "none: no such folder"),
        (("{world}/good", "{world}/videos"), "videos: has no edit of any of the 6 items"),
        (("{world}/good", "{world}/bad", "--judge", "people"), "--judge people: choose one of qwen, gemini"),
        (("{world}/good", "{world}/bad", "--judge", "human"), "--judge human and --labels CSV go together"),
        (("{world}/good", "{world}/bad", "--labels", "x.csv"), "--judge human and --labels CSV go together"),
        (
            ("{world}/good", "{world}/bad", "--judge", "human", "--labels", "x.csv", "--budget", "3"),
            "--budget: chooses what to ask",
        ),
        (
            ("{world}/good", "{world}/bad", "--judge", "reference", "--model", "x"),
            "need --judge qwen or gemini",
        ),
        (("{world}/good", "{world}/bad", "--judge", "gemini", "--local", "x"), "--local: needs --judge qwen"),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, arguments, says):
    arguments = [argument.format(world=world) for argument in arguments]
    arguments = [
        "judge",
        "arena",
        *arguments,
        "--bench",
        str(world / "bench.csv"),
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError), result.output
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 60])
def test_killed_ten_times_loses_nothing_and_asks_nothing_twice(tmp_path, budget):
    world = make_world(tmp_path, 40)
    total = 2 * (budget or 3 * 40)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RVEDIT_", "GEMINI", "GOOGLE"))}
    common = ["judge", "arena", *(world / name for name in EDITORS), "--bench", world / "bench.csv"]
    common += ["--out", "out", "--concurrency", 4, "--json", *(["--budget", budget] if budget else [])]
    journal, rng = tmp_path / "out" / "journal.jsonl", random.Random(0)

    def kept():
        lines = journal.read_text().splitlines() if journal.exists() else []
        return sum(line.startswith('{"key": "reply:') and line.endswith("}") for line in lines)

    with serve(latency=0.03) as server:
        environment |= {"RVEDIT_QWEN_BASE_URL": server.url}
        lost = 0
        for _ in range(10):
            asked, before = len(server.asked), kept()
            process = Command(*common, cwd=tmp_path, environment=environment)
            goal, deadline = asked + rng.randint(1, total // 12), time.monotonic() + 60
            while len(server.asked) < goal and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            process.finish()
            while server.in_flight:
                time.sleep(0.005)
            assert kept() >= before
            in_flight = len(server.asked) - asked - (kept() - before)
            assert 0 <= in_flight <= 4  # no more than the requests that were under way
            lost += in_flight
        done = kept()
        assert 0 < done < total
        asked = len(server.asked)
        code, out, _ = Command(*common, cwd=tmp_path, environment=environment).finish()
        assert code == 0
        assert len(server.asked) - asked == total - done  # whatever was answered and kept is not asked again
        assert len(server.asked) == total + lost
        assert json.loads(out)["comparisons"] == total // 2
        assert Command(*common, cwd=tmp_path, environment=environment).finish().returncode == 0
        assert len(server.asked) == total + lost
