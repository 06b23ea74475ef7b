"""`rvedit judge agreement`: hand-computed coefficients, intervals that cover, labels in each layout."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from rvedit.evaluation.agreement import left_out_association
from rvedit.evaluation.association import preference_association, score_association
from rvedit.evaluation.bootstrap import bootstrap
from rvedit.evaluation.human_labels import read_labels
from rvedit.evaluation.krippendorff import alpha_of_coincidences, alpha_statistic, krippendorff_alpha
from rvedit.evaluation.scores import Scores
from rvedit.evaluation.verdict import Verdict
from rvedit.io.errors import UserError
from rvedit_cli.main import app

NONE = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
).T


@pytest.mark.parametrize(
    ("metric", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_of_the_published_example(metric, published):
    assert krippendorff_alpha(PUBLISHED, metric) == pytest.approx(published, abs=5e-4)


def test_alpha_by_hand_and_at_its_ends():
    # Two raters, two items, 1-1 and 1-2: o(1,2) = o(2,1) = 1, n = (3, 1); 1 - 3 * 2 / (2 * 3 * 1) = 0.
    assert krippendorff_alpha(np.array([[1.0, 1], [1, 2]])) == 0
    assert krippendorff_alpha(np.array([[1.0, 1], [2, 2], [4, 4]])) == 1
    assert np.isnan(krippendorff_alpha(np.array([[2.0, 2], [2, 2]])))  # nothing varies
    assert np.isnan(krippendorff_alpha(np.array([[1.0, NONE], [NONE, 2]])))  # nothing can be paired


def test_coefficients_by_hand():
    judge, human = np.array([10.0, 30, 20, 20]), np.array([1.0, 2, 3, 3])
    spearman, kendall, accuracy = score_association(judge, human)(np.ones((1, 4)))[0]
    # Of five pairs that people rank, the judge ranks three so and two the other way round.
    assert accuracy == pytest.approx(3 / 5)
    assert kendall == pytest.approx((3 - 2) / 5)
    assert spearman == pytest.approx(stats.spearmanr(judge, human).statistic)
    # The judge's tie of a pair that people rank counts half.
    assert score_association(np.array([1.0, 1]), np.array([1.0, 2]))(np.ones((1, 2)))[0, 2] == 0.5


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    judge = rng.integers(0, 6, 40).astype(float)
    human = judge + rng.integers(0, 6, 40)
    weights = rng.integers(0, 4, 40)
    again = np.repeat(np.arange(40), weights)
    expected = [f(judge[again], human[again]).statistic for f in (stats.spearmanr, stats.kendalltau)]
    found = score_association(judge, human)(weights[None].astype(float))[0]
    assert found[:2] == pytest.approx(expected)
    ratings = np.stack([judge, human], axis=1)
    weighted = alpha_statistic(ratings)(weights[None].astype(float))[0, 0]
    assert weighted == pytest.approx(krippendorff_alpha(ratings[again]))


def test_preferences_do_not_depend_on_the_order_of_the_two_edits():
    judge, human = np.array([3.0, -1, 0, 2, -4]), np.array([1.0, 1, 1, 0, -1])
    found = preference_association(judge, human)(np.ones((1, 5)))[0]
    assert found[2] == pytest.approx((1 + 0 + 0.5 + 1) / 4)  # people are undecided about one
    flipped = np.array([1, -1, 1, -1, -1])
    assert preference_association(judge * flipped, human * flipped)(np.ones((1, 5)))[0] == pytest.approx(
        found
    )


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(size=12)
    estimate = bootstrap(
        lambda weights: (weights @ values / weights.sum(axis=1))[:, None], 12, resamples=20000
    )[0]
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.05)
    assert bootstrap(lambda weights: weights[:, :1], 1) == [None]  # one item says nothing about others


def test_intervals_cover_the_truth_of_simulated_raters():
    """Truth: alpha of infinitely many items, by the exact coincidences of two raters of known noise."""
    quality = np.linspace(-6, 6, 2001)
    density = stats.norm.pdf(quality) * (quality[1] - quality[0])
    cuts = np.array([-1.0, 0, 1])
    above = stats.norm.cdf((quality[:, None] - cuts) / 0.5)
    levels = -np.diff(np.column_stack([np.ones(2001), above, np.zeros(2001)]), axis=1)
    pairs = 1e9 * np.einsum("q,qi,qj->ij", density, levels, levels)
    truth = alpha_of_coincidences(pairs[None], np.arange(1.0, 5), "ordinal")[0]
    covered = 0
    for run in range(40):
        rng = np.random.default_rng(run)
        seen = rng.normal(size=(60, 1)) + rng.normal(0, 0.5, (60, 3))
        estimate = bootstrap(alpha_statistic(1.0 + (seen[..., None] > cuts).sum(-1)), 60, resamples=400)[0]
        covered += estimate.low <= truth <= estimate.high
    assert covered >= 34  # 38 are expected; of a coverage of 95%, fewer than 34 have a chance of 1%


# Files


def judged(folder, scores, judge="qwen", protocol="paper"):
    """A judged folder: item -> scores on the axes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        asdict(
            Verdict(item, "change" if i % 2 else "add", "x", judge, protocol, "none", 0, "s.mp4",
                    f"out/{item}_edited.mp4", Scores(*values))
        )
        for i, (item, values) in enumerate(scores.items())
    ]  # fmt: skip
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["judge", "agreement", *map(str, arguments)])


def twelve(tmp_path):
    return judged(tmp_path / "outputs", {f"c{i:02d}": (10 + 5 * i, 50 - i, 40 + i % 5) for i in range(12)})


def test_our_own_table_beside_the_ceiling(tmp_path):
    folder = twelve(tmp_path)
    lines = ["item,rater,axis,score"]
    for i in range(12):
        for rater, shift in (("ann", 0), ("bob", i % 2), ("eve", -(i % 3 == 0))):
            for axis in ("IC", "cf", "vq"):
                lines.append(f"c{i:02d},{rater},{axis},{i // 2 + shift}")
    human = table(tmp_path / "human.csv", *lines, "unknown,ann,ic,3")
    plot = tmp_path / "plot.png"
    result = run(human, folder, "--json", "--plot", plot)
    assert result.exit_code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    report = json.loads(result.stdout)
    assert (report["unknown"], report["unlabeled"]) == (["unknown"], 0)
    overall = report["judges"]["qwen"]["overall"]
    assert list(overall) == ["ic", "cf", "vq", "mean"]
    mean = [i // 2 + (i % 2 - (i % 3 == 0)) / 3 for i in range(12)]
    expected = stats.spearmanr(range(12), mean).statistic
    assert overall["ic"]["spearman"]["value"] == pytest.approx(expected)
    assert overall["cf"]["spearman"]["value"] == pytest.approx(-expected)
    assert overall["ic"]["items"] == 12
    assert overall["ic"]["raters"] == 3
    ratings = np.array([[i // 2, i // 2 + i % 2, i // 2 - (i % 3 == 0)] for i in range(12)], float)
    ceiling = overall["ic"]["ceiling"]
    assert ceiling["alpha"]["value"] == pytest.approx(krippendorff_alpha(ratings))
    left_out = [
        stats.spearmanr(ratings[:, r], np.delete(ratings, r, axis=1).mean(axis=1)).statistic for r in range(3)
    ]
    assert ceiling["spearman"]["value"] == pytest.approx(np.mean(left_out))
    same_means = [
        stats.spearmanr(range(12), np.delete(ratings, r, axis=1).mean(axis=1)).statistic for r in range(3)
    ]
    assert ceiling["judge_spearman"]["value"] == pytest.approx(np.mean(same_means))
    assert set(report["judges"]["qwen"]) == {"overall", "change", "add"}
    text = run(human, folder)
    assert "note: 1 labeled edits are in no judged folder, such as unknown" in text.stderr
    assert "Overall, IC" in text.stdout
    assert re.search(r"alpha +rater Spearman +judge Spearman +rater accuracy +judge accuracy", text.stdout)


def test_a_judge_that_is_one_more_person_reaches_the_ceiling():
    """Beside the mean of all raters it would seem better than they are, as that mean is less noisy."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(1500, 1)) + rng.normal(size=(1500, 4))
    judge, raters, once = seen[:, 0], seen[:, 1:], np.ones((1, 1500))
    beside_all = score_association(judge, raters.mean(axis=1))(once)[0]
    person, beside_others = (left_out_association(raters, False, who)(once)[0] for who in (None, judge))
    assert beside_all[0] > person[0] + 0.02
    assert beside_others == pytest.approx(person, abs=0.015)


def test_a_single_rater_has_no_ceiling_and_ties_everywhere_no_coefficient(tmp_path):
    folder = twelve(tmp_path)
    human = table(
        tmp_path / "h.csv", "item,rater,axis,score", *(f"c{i:02d},ann,ic,{i % 4}" for i in range(12))
    )
    row = json.loads(run(human, folder, "--json").stdout)["judges"]["qwen"]["overall"]["ic"]
    assert row["ceiling"] is None
    assert row["spearman"]["low"] < row["spearman"]["value"] < row["spearman"]["high"]
    tied = table(
        tmp_path / "t.csv", "item,rater,axis,score", *(f"c{i:02d},{r},ic,2" for i in range(12) for r in "ab")
    )
    row = json.loads(run(tied, folder, "--json").stdout)["judges"]["qwen"]["overall"]["ic"]
    assert row["spearman"] is row["kendall"] is row["accuracy"] is row["ceiling"]["alpha"] is None
    assert "-" in run(tied, folder).stdout


def test_vefx_axes_are_found_by_the_edited_video(tmp_path):
    folder = twelve(tmp_path)
    lines = ["edited_video;IF;RQ;EE;annotator"]
    lines += [
        f"clips/c{i:02d}_edited.mp4;{1 + i // 4};{1 + i % 4};2;a{r}" for i in range(12) for r in range(2)
    ]
    assert "no judged folder" not in run(table(tmp_path / "h.csv", *lines), folder).stderr
    labels = read_labels(tmp_path / "h.csv")
    assert labels.kind == "scores"
    assert labels.by_axis["ic"][("clips/c11_edited.mp4",)] == {"a0": 3, "a1": 3}
    assert labels.by_axis["vq"][("clips/c11_edited.mp4",)] == {"a0": 4, "a1": 4}
    assert labels.by_axis["cf"][("clips/c00_edited.mp4",)] == {"a0": 2, "a1": 2}
    overall = json.loads(run(tmp_path / "h.csv", folder, "--json").stdout)["judges"]["qwen"]["overall"]
    assert overall["ic"]["accuracy"]["value"] == 1
    assert overall["mean"]["labels"] == 12


def test_pairs_of_editreward(tmp_path):
    good = judged(tmp_path / "good", {f"c{i}": (80, 80, 80) for i in range(8)})
    poor = judged(tmp_path / "poor", {f"c{i}": (20 + 10 * i, 20 + 10 * i, 20 + 10 * i) for i in range(8)})
    votes = ["leftvote"] * 6 + ["rightvote", "tie"]
    lines = ["key,instruction,left_model,right_model,vote_type"]
    lines += [f'c{i},"a, b",{"A" if i % 2 else "B"},{"B" if i % 2 else "A"},{votes[i]}' for i in range(8)]
    human = table(tmp_path / "h.csv", *lines, "c1,x,A,another,tie")
    report = json.loads(run(human, f"A={good}", f"B={poor}", "--json").stdout)
    row = report["judges"]["qwen"]["overall"]["mean"]
    # A is preferred in rows 1, 3, 5 and 6, B in 0, 2 and 4; the judge prefers A, but for a tie in row 6.
    assert row["accuracy"]["value"] == pytest.approx((3 + 0.5) / 7)
    assert report["unknown"] == ["c1, A, another"]
    assert report["kind"] == "preferences"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["item,axis,score", "c00,ic,3"], "needs the columns of one layout: item, rater, axis, score; item"),
        (["item,rater,axis,score", "c00,ann,ic,good"], "row 1: score is 'good', not a number"),
        (["item,rater,axis,score", "c00,ann,ic,nan"], "row 1: score is 'nan', not a number"),
        (["item,rater,axis,score", "c00,ann,beauty,3"], "axis is 'beauty': write one of ic, cf, vq, mean"),
        (["item,rater,axis,score", "c00,,ic,3"], "row 1: rater is empty"),
        (["item,rater,axis,score", "c00,ann,ic,3", "c00,ann,ic,4"], "rater ann labels c00 twice on ic"),
        (["item,rater,axis,score"], "has no labels below its header"),
        (["item,rater,axis,score", "x,ann,ic,3"], "labels nothing that is scored in"),
        (["item,IF,RQ,EE", "c00,1,5,2"], "row 1: RQ is 5, outside 1 to 4"),
        (["item,left,right,preferred", "c00,A,B,left"], "of each as NAME=FOLDER, with the names A, B"),
        (["item,left,right,preferred", "c00,A,B,both"], "preference is 'both': write left, right or tie"),
        (["item,left,right,preferred", "c00,A,A,left"], "compares A with itself"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, lines, says):
    result = run(table(tmp_path / "h.csv", *lines), twelve(tmp_path))
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_mistakes_of_folders(tmp_path):
    human = table(tmp_path / "h.csv", "item,rater,axis,score", "c00,ann,ic,3")
    for arguments, says in (
        ((tmp_path / "none.csv", twelve(tmp_path)), "none.csv: no such file"),
        ((human, tmp_path / "nowhere"), "nowhere: no such folder"),
        ((human, tmp_path), "has no scores.jsonl"),
        ((human, twelve(tmp_path), f"b={twelve(tmp_path)}"), "name one judged folder"),
        ((human, twelve(tmp_path), "--plot", "x.gif"), "--plot .gif: choose one of .png, .svg, .pdf"),
    ):
        assert says in str(run(*arguments).exception)
