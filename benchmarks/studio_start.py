"""Seconds from the start of `rvedit studio` to the page's first paint, and of importing Gradio alone.

Needs chromium, chromedriver and selenium: python benchmarks/studio_start.py
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from selenium import webdriver

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
)


def import_seconds() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import gradio"], check=True)
    return time.perf_counter() - started


def start_seconds(driver: webdriver.Chrome, folder: Path) -> tuple[float, float]:
    """Return the seconds until the server answers, and until the browser has painted the page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, words = f"http://127.0.0.1:{port}", ["studio", "--port", str(port), "--folder", str(folder / "jobs")]
    started = time.perf_counter()
    server = subprocess.Popen([sys.executable, "-m", "rvedit_cli", *words], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.02)
        answered = time.perf_counter() - started
        driver.get(url)
        script = "return performance.getEntriesByName('first-contentful-paint').length"
        while not (driver.execute_script(script) and driver.find_elements("css selector", "#rv-edit")):
            time.sleep(0.02)
        return answered, time.perf_counter() - started
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for flag in (*FLAGS, f"--user-data-dir={name}/profile"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
        imported = sorted(import_seconds() for _ in range(3))[1]
        runs = sorted(start_seconds(driver, Path(name) / f"{number}") for number in range(3))[1]
        driver.quit()
    seconds = {"import_gradio": imported, "first_answer": runs[0], "first_paint": runs[1]}
    seconds["first_paint_beyond_import"] = runs[1] - imported
    print(json.dumps({key: round(value, 2) for key, value in seconds.items()}))


if __name__ == "__main__":
    main()
