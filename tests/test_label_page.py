"""`rvedit judge label`: the page in a real browser, by keyboard, over a reload, and read again."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from browser import chromium
from clips import write_clip
from PIL import Image
from typer.testing import CliRunner

from rvedit.evaluation.human_labels import read_labels
from rvedit.io.errors import UserError
from rvedit_cli.main import app

ITEMS = 5
TRICKY = 'say "hi", </script><b>bold</b>'


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    (folder / "outputs").mkdir()
    lines = ["edited_type,prompt,original_video"]
    for i in range(ITEMS):
        for name in (f"c{i}.mp4", f"outputs/c{i}_edited.mp4"):
            write_clip(folder / name, np.full((6, 32, 32, 3), 40 * i, np.uint8))
        prompt = TRICKY.replace('"', '""') if i == 0 else f"edit {i}"
        lines.append(f'local_add,"{prompt}",c{i}.mp4')
    (folder / "bench.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(folder, *arguments):
    arguments = ["judge", "label", folder / "outputs", "--bench", folder / "bench.csv", *arguments]
    return CliRunner().invoke(app, list(map(str, arguments)))


def press(window, keys):
    from selenium.webdriver import ActionChains

    ActionChains(window).send_keys(keys).perform()


def start(window, page, rater):
    window.get(page.as_uri())
    window.find_element("id", "name").send_keys(rater)
    window.find_element("id", "begin").click()


def state(window):
    return window.execute_script("return [ratings, order, position, axis]")


def text(window, name):
    return window.find_element("id", name).text


def saved(window, folder):
    """The table that the button downloads."""
    window.find_element("id", "save").click()
    deadline = time.monotonic() + 20
    while not (found := list((folder / "downloads").glob("*.csv"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found[0]


def test_the_page_is_one_file_without_addresses(outputs, tmp_path):
    result = run(outputs, "--out", tmp_path / "label.html")
    assert result.exit_code == 0
    assert f"{ITEMS} edits to rate" in result.stdout
    assert "it can be sent alone" in result.stdout
    page = (tmp_path / "label.html").read_text()
    assert not re.search(r"https?://|src=\"|<link|@import", page)
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])
    assert len(data["clips"]) == 2 * ITEMS
    assert all("data" in clip and "url" not in clip for clip in data["clips"])
    assert TRICKY not in page
    assert data["items"][0]["instruction"] == TRICKY


def test_a_browser_keeps_the_scores_of_each_editor_apart(outputs, tmp_path):
    shutil.copytree(outputs / "outputs", tmp_path / "other")

    def page_id():
        result = CliRunner().invoke(
            app, ["judge", "label", str(tmp_path / "other"), "--bench", str(outputs / "bench.csv")]
        )
        assert result.exit_code == 0
        return json.loads(re.search(r"const data = (.*);\n", (tmp_path / "other/label.html").read_text())[1])[
            "id"
        ]

    copied = page_id()
    assert page_id() == copied
    write_clip(tmp_path / "other/c3_edited.mp4", np.full((6, 32, 32, 3), 9, np.uint8))
    assert page_id() != copied, "the edit of another editor"


def test_larger_clips_are_linked_and_what_is_missing_is_named(outputs, tmp_path):
    edits = tmp_path / "outputs"
    shutil.copytree(outputs / "outputs", edits)
    (edits / "c1_edited.mp4").unlink()
    arguments = ["judge", "label", edits, "--bench", outputs / "bench.csv", "--max-size", 0]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert "it links to the clips" in result.stdout
    assert f"note: 1 items have no edit in {edits}, such as c1" in result.stderr
    page = (edits / "label.html").read_text()
    assert '"url": "c0_edited.mp4"' in page
    assert "base64" not in page


def test_mistakes_are_one_line(outputs, tmp_path):
    for arguments, says in (
        ((tmp_path / "none",), "no such file"),
        ((outputs / "outputs",), "holds none of edits.jsonl"),
        ((tmp_path, "--bench", outputs / "bench.csv"), f"has no edit of any of the {ITEMS} items"),
    ):
        result = CliRunner().invoke(app, ["judge", "label", *map(str, arguments)])
        assert isinstance(result.exception, UserError)
        assert says in str(result.exception)


def test_rated_by_keyboard_reloaded_saved_and_read(outputs, tmp_path):
    page = tmp_path / "label.html"
    run(outputs, "--out", page)
    with chromium(tmp_path) as window:
        start(window, page, 'Ann "A", B')
        assert sorted(state(window)[1]) == list(range(ITEMS))
        assert window.execute_script("return [...document.querySelectorAll('video')].length") == 2
        press(window, "34")  # the axes follow one another
        press(window, "v2")  # or are chosen by their letters
        press(window, "i1")  # a score can be changed
        first = window.execute_script("return item().id")
        assert state(window)[0][first] == {"ic": 1, "cf": 4, "vq": 2}
        assert text(window, "count") == f"1 of {ITEMS} rated"
        press(window, "\ue007")  # enter: the next unrated
        press(window, "5")  # not on the scale
        second = window.execute_script("return item().id")
        assert second != first
        window.find_element("css selector", "button[data-axis=cf][data-score='3']").click()
        before = state(window)
        window.refresh()
        after = state(window)
        assert after[:3] == before[:3]
        assert "Ann" in text(window, "rater")
        press(window, "\ue012")  # back
        assert window.execute_script("return item().id") == first
        press(window, " ")
        assert window.execute_script("return [...document.querySelectorAll('video')].every(v => v.paused)")
        table = saved(window, tmp_path)
        assert window.get_log("browser") == []
    labels = read_labels(table)
    assert labels.by_axis["ic"] == {(first,): {'Ann "A", B': 1}}
    assert labels.by_axis["cf"] == {(first,): {'Ann "A", B': 4}, (second,): {'Ann "A", B': 3}}
    with chromium(tmp_path / "another") as window:  # a browser that knows nothing
        window.get(page.as_uri())
        window.find_element("id", "file").send_keys(str(table))
        deadline = time.monotonic() + 20
        while not text(window, "count") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert state(window)[0] == before[0]
        assert state(window)[1] == before[1]  # the order is the rater's
        assert text(window, "message") == 'Loaded 4 scores of Ann "A", B.'
        other = tmp_path / "other.csv"
        other.write_text(f"item,rater,axis,score\n{first},Bob,ic,2\nnone,Ann,ic,2\n")
        window.find_element("id", "file").send_keys(str(other))
        time.sleep(0.3)
        assert "2 rows are of other raters, items or scales" in text(window, "message")
        assert state(window)[0] == before[0]


@pytest.mark.slow
def test_each_rater_has_an_order_of_their_own_and_a_narrow_page_does_not_scroll_sideways(outputs, tmp_path):
    page = tmp_path / "label.html"
    run(outputs, "--out", page)
    with chromium(tmp_path, width=500) as window:
        orders = []
        for rater in ("Ann", "Bob", "Eve", "Kim"):
            window.get(page.as_uri())
            window.execute_script("localStorage.clear()")
            start(window, page, rater)
            orders.append(tuple(state(window)[1]))
        assert len(set(orders)) > 1
        assert window.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_stills_are_shown_as_pictures(outputs, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "out" / "a_edited.png")
    (tmp_path / "bench.csv").write_text("edited_type,prompt,original_video\nlocal_add,x,a.png\n")
    page = tmp_path / "label.html"
    arguments = ["judge", "label", tmp_path / "out", "--bench", tmp_path / "bench.csv", "--out", page]
    assert CliRunner().invoke(app, list(map(str, arguments))).exit_code == 0
    with chromium(tmp_path) as window:
        start(window, page, "Ann")
        pictures = "return [...document.querySelectorAll('figure img')].map(i => i.src.slice(0, 5))"
        assert window.execute_script(pictures) == ["blob:", "blob:"]
