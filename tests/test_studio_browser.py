"""The studio's page in a real browser."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import ChatServer
from PIL import Image
from studio_server import ROOT, StudioServer, until

pytest.importorskip("gradio")
pytest.importorskip("selenium")
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
PARK = ROOT / "assets" / "park.mp4"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1360,1000",
)  # fmt: skip


class Page:
    """The page in a browser."""

    def __init__(self, url: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        for flag in (*FLAGS, f"--user-data-dir={self._profile.name}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.url = url
        self.load()

    def load(self) -> None:
        self.driver.get(self.url)
        self.wait("#rv-clip input[type=file]")

    def close(self) -> None:
        self.driver.quit()
        self._profile.cleanup()

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, selector: str, text: str = "", seconds: float = 120.0) -> Any:
        """Return the first element that is shown and has the text."""

        def found() -> Any:
            try:
                return next((element for element in self.all(selector) if text in element.text), None)
            except WebDriverException:  # it has just been replaced
                return None

        return until(found, seconds)

    def click(self, selector: str) -> None:
        self.driver.execute_script("arguments[0].click()", self.wait(selector))

    def drop(self, path: Path) -> None:
        """Upload a clip in place of the last one."""
        if self.all("#rv-clip button[aria-label='Clear']"):
            self.click("#rv-clip button[aria-label='Clear']")
        self.wait("#rv-clip input[type=file]").send_keys(str(path))

    def write(self, instruction: str) -> None:
        field = self.wait("#rv-instruction textarea")
        field.clear()
        field.send_keys(instruction)

    def edit(self, instruction: str) -> str:
        """Press Edit; return the id of the new job."""
        before = {row.get_attribute("data-id") for row in self.all(".rv-job")}
        self.write(instruction)
        self.click("#rv-edit")
        new = until(lambda: {row.get_attribute("data-id") for row in self.all(".rv-job")} - before)
        return str(new.pop())

    def wait_for(self, job: str, state: str) -> Any:
        return self.wait(f".rv-job[data-id='{job}'][data-state='{state}']")

    def canvas(self, number: int = 0) -> np.ndarray:
        """Return the pixels (h, w, 3) of a picture of the viewer."""
        script = """
            const canvas = document.querySelectorAll(".rv-canvas")[arguments[0]], {width, height} = canvas;
            return [width, height, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]]"""
        width, height, data = self.driver.execute_script(script, number)
        return np.array(data, np.uint8).reshape(height, width, 4)[..., :3]

    def slide(self, share: float) -> None:
        self.driver.execute_script(
            "const range = document.querySelector('.rv-split'); range.value = 1000 * arguments[0];"
            "range.dispatchEvent(new Event('input'))",
            share,
        )
        until(lambda: f"{100 * share:g}%" in self.wait(".rv-stage").get_attribute("style"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioServer]:
    with StudioServer(tmp_path_factory.mktemp("studio") / "jobs") as running:
        yield running


@pytest.fixture
def page(server: StudioServer) -> Iterator[Page]:
    opened = Page(server.url)
    yield opened
    opened.close()


def test_an_edit_from_upload_to_download(server: StudioServer, page: Page) -> None:
    page.drop(PARK)
    assert len(until(lambda: page.all(".rv-film img"))) == 8
    page.wait(".rv-facts", "33 frames, 2.75 s, 512×512")
    job = page.edit("make it sepia")
    page.wait(".rv-wait", "window ")  # the progress
    until(lambda: any(image.is_displayed() for image in page.all(".rv-preview")))
    page.load()  # in the middle of the edit
    page.wait_for(job, "done")
    until(lambda: page.canvas().any())
    page.click(".rv-play")
    page.slide(1)
    source = page.canvas().astype(float)
    page.slide(0)
    edit = page.canvas().astype(float)
    page.slide(0.5)
    both, half = page.canvas().astype(float), source.shape[1] // 2
    until(lambda: np.abs(page.canvas()[:, half:] - edit[:, half:]).mean() < 1)
    both = page.canvas().astype(float)
    assert np.abs(both[:, :half] - source[:, :half]).mean() < 1
    assert np.abs(edit - source).mean() > 20
    assert page.wait(".rv-command code").text == "rvedit edit park.mp4 'make it sepia'"
    link = page.wait(".rv-download")
    assert (link.text, link.get_attribute("download")) == ("Download park_edited.mp4", "park_edited.mp4")
    assert link.get_attribute("href") == f"{server.url}/jobs/{job}/result.mp4?save=1"
    addresses = {
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in page.driver.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    }
    assert all(url.startswith((server.url, "data:", "blob:", "chrome")) for url in addresses), addresses


def test_two_jobs_in_the_queue_one_cancelled_another_seed_and_a_comparison(page: Page) -> None:
    page.drop(PARK)
    until(lambda: page.all(".rv-film img"))
    first = page.edit("make it snow")
    second = page.edit("make it night")
    page.wait_for(first, "running")
    page.wait_for(second, "queued")
    page.wait(f".rv-job[data-id='{first}'] .rv-status", "window")
    page.click(f".rv-job[data-id='{first}'] .rv-cancel")
    page.wait_for(first, "cancelled")
    page.wait_for(second, "done")
    before = {row.get_attribute("data-id") for row in page.all(".rv-job")}
    page.click(f".rv-job[data-id='{second}'] .rv-again")
    third = until(lambda: {row.get_attribute("data-id") for row in page.all(".rv-job")} - before).pop()
    page.wait_for(third, "done")
    for job in (second, third):
        page.click(f".rv-job[data-id='{job}'] .rv-compare input")
    captions = [
        page.wait("figcaption", "make it night · seed 0"),
        page.wait("figcaption", "make it night · seed "),
    ]
    assert len(captions) == len(page.all(".rv-canvas")) == 2
    until(lambda: page.canvas(0).any() and page.canvas(1).any())


def test_a_bad_file_and_no_instruction_are_said(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no clip at all" * 100)
    page.drop(bad)
    page.wait(".toast-body", "bad.mp4")
    assert not page.all(".rv-film img")
    page.load()
    page.drop(PARK)
    until(lambda: page.all(".rv-film img"))
    count = len(page.all(".rv-job"))
    page.click("#rv-edit")
    page.wait(".toast-body", "no instruction")
    assert len(page.all(".rv-job")) == count
    assert "no chat model is set" in page.wait("#rv-precise").text
    assert not page.wait("#rv-precise").is_enabled()


def test_the_words_of_a_chat_model_are_shown_before_anything_runs(tmp_path: Path) -> None:
    with (
        ChatServer(say=lambda asked: "1. make the dog blue\n2. make it night", models=None) as chat,
        StudioServer(tmp_path / "jobs", "--rewrite-with", chat.url) as server,
        closing(Page(server.url)) as page,
    ):
        page.drop(PARK)
        until(lambda: page.all(".rv-film img"))
        page.write("blue dog at night")
        page.click("#rv-precise")
        page.wait("#rv-note", "You wrote: blue dog at night")
        field = page.wait("#rv-instruction textarea")
        assert field.get_attribute("value") == "make the dog blue\nmake it night"
        assert not page.all(".rv-job")
        assert page.edit("make the dog green")  # the user's words win
        page.wait(".rv-words", "make the dog green")


def test_a_drawn_mask_and_a_range_limit_the_edit(server: StudioServer, page: Page) -> None:
    page.drop(PARK)
    until(lambda: page.all(".rv-film img"))
    page.driver.execute_script(
        "const [from] = document.querySelectorAll('.rv-film input'); from.value = 12;"
        "from.dispatchEvent(new Event('input')); from.dispatchEvent(new Event('change'))"
    )
    page.click("#rv-where > button")
    until(lambda: page.wait("#rv-from input, #rv-from textarea").get_attribute("value") == "12f")
    canvas = page.wait("#rv-mask canvas")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    until(lambda: page.wait("#rv-mask", "%"))
    drawing = ActionChains(page.driver).move_to_element_with_offset(canvas, -40, 20).click_and_hold()
    drawing.move_by_offset(60, 0).move_by_offset(0, 40).release().perform()
    page.click("#rv-settings > button")
    page.click("#rv-needs")
    page.wait("#rv-plan", "An estimate: nothing was loaded")
    job = page.edit("make it sepia")
    page.wait_for(job, "done")
    folder = server.folder / job
    mask = np.asarray(Image.open(folder / "mask.png")) > 0
    assert mask.shape == (512, 512)
    assert 0.005 < mask.mean() < 0.1
    assert page.wait(".rv-command code").text == (
        "rvedit edit park.mp4 'make it sepia' --mask mask.png --from 12f"
    )
    page.click(".rv-play")
    changed = _changes(folder)
    assert changed[:12].mean() < 1  # before the range
    assert changed[12][mask].mean() > 5
    assert changed[20][mask].mean() > 5
    far = np.ones_like(mask)
    far[np.ix_(*(slice_of(mask, axis) for axis in (1, 0)))] = False
    assert changed[20][far].mean() < 1


def slice_of(mask: np.ndarray, axis: int) -> np.ndarray:
    """Return the rows or columns of a mask with 40 pixels around it."""
    drawn = np.flatnonzero(mask.any(axis=axis))
    return np.arange(max(0, drawn[0] - 40), min(len(mask), drawn[-1] + 40))


def _changes(folder: Path) -> np.ndarray:
    """Return the mean change (t, h, w) of each pixel from source to result."""
    from rvedit.io.video import VideoReader

    clips = []
    for name in ("source.mp4", "result.mp4"):
        with VideoReader(folder / name) as reader:
            clips.append(np.stack([timed.frame for timed in reader]).astype(np.float32))
    return np.abs(clips[0] - clips[1]).mean(axis=-1)
