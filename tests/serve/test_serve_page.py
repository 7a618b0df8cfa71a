"""The page in a real browser, where one is installed."""

import re
import shutil
import subprocess

import pytest
from test_serve_host import serving

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium; install the package chromium"),
]


@pytest.fixture
def render(store_folder, tmp_path):
    """Text of the page, as a browser leaves it, opened at a model."""
    with serving(store_folder) as (_, port):

        def open_at(model):
            command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
            command += ["--dump-dom", f"http://127.0.0.1:{port}/#{model}"]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

        yield open_at


def test_a_table_shows_its_example_row_answered(render):
    page = render("paints")
    assert re.search(r'<p id="verdict"[^>]*><strong>silk</strong> with 84.4 %', page)
    assert re.findall(r'class="share">([^<]+)', page) == ["84.4 %", "11.4 %", "4.2 %"]
    assert re.findall(r"<label>(\w+)<(?:input|select)", page) == ["age", "weight", "colour"]
    assert "-d '{&quot;age&quot;:30," in page or """-d '{"age":30,""" in page


def test_a_small_image_model_offers_a_drawing_board(render):
    page = render("sides")
    assert 'aria-label="Drawing board' in page
    assert re.findall(r'<option value="(\d+)"', page) == ["10", "9", "2"]


def test_a_refused_model_says_why(render):
    assert "Version 1 is not served: damaged/1: 'model.onnx' does not match its hash" in render("damaged")
