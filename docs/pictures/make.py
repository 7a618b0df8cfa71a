"""Take the pictures of the server's page that the documents show: python docs/pictures/make.py STORE.

Needs Playwright, Chromium, and a store with a model of small grey pictures (as `zoo demo` makes) and one of a table.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

THREE = (
    (0.3, 0.2),
    (0.5, 0.13),
    (0.7, 0.22),
    (0.68, 0.38),
    (0.45, 0.48),
    (0.7, 0.6),
    (0.72, 0.76),
    (0.5, 0.87),
    (0.28, 0.8),
)
DESKTOP, PHONE = {"width": 1100, "height": 700}, {"width": 390, "height": 844}


def draw(page: Page) -> None:
    """A three, with the mouse."""
    box = page.get_by_role("application").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in THREE]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()
    expect(page.locator("#bars li").first).to_be_visible()


def explain(page: Page) -> None:
    page.get_by_role("button", name="Explain this answer").click()
    expect(page.locator("#explanation img")).to_be_visible(timeout=120_000)


def rows(page: Page, text: str) -> None:
    """Give a CSV file to a table model."""
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a CSV file").click()
    chooser.value.set_files({"name": "rows.csv", "mimeType": "text/csv", "buffer": text.encode()})


def save(page: Page, name: str) -> None:
    page.wait_for_timeout(2500)  # until the figures of the last minute are there
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.mouse.move(0, 0)
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    path = Path(__file__).parent / f"page-{name}.png"
    taken.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {taken.width}x{taken.height}, {path.stat().st_size // 1000} kB")


def get(url: str) -> list[dict]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def take(address: str) -> None:
    models = [model for model in get(f"{address}/models") if "kind" in model]
    drawn = next(model["name"] for model in models if model["kind"] == "image" and model["inputs"][0]["shape"][-1] == 1)
    table = next(model["name"] for model in models if model["kind"] == "table" and model["task"] == "classification")
    examples = get(f"{address}/models/{table}/examples")
    columns = list(examples[0])
    lines = [",".join("" if row[column] is None else str(row[column]) for column in columns) + "\n" for row in examples]
    head = ",".join(columns) + "\n"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def visit(model: str, **options: object) -> Page:
            page = browser.new_page(**options)
            page.goto(f"{address}/#{model}")
            expect(page.locator("#input button").first).to_be_visible()
            return page

        page = visit(drawn, viewport=DESKTOP)
        draw(page)
        explain(page)
        save(page, "draw")
        page = visit(table, viewport=DESKTOP, color_scheme="dark")
        expect(page.locator("#bars li").first).to_be_visible()
        explain(page)
        save(page, "dark")
        page = visit(table, viewport=DESKTOP)
        rows(page, head + "".join(lines * 20))
        expect(page.get_by_role("button", name="Download the answers")).to_be_visible()
        save(page, "rows")
        page = visit(table, viewport=DESKTOP)
        number = next(at for at, column in enumerate(columns) if isinstance(examples[0][column], (int, float)))
        rows(page, head + lines[0] + ",".join("many" if at == number else "" for at in range(len(columns))) + "\n")
        expect(page.get_by_role("alert")).to_be_visible()
        save(page, "error")
        page = visit(drawn, viewport=PHONE, has_touch=True, is_mobile=True)
        draw(page)
        save(page, "phone")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of the server's page.")
    parser.add_argument("store", help="folder of bundles")
    command = [sys.executable, "-m", "serve", parser.parse_args().store, "--port", "0", "--explain-timeout", "120"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                take(found[0])
                break
    finally:
        server.terminate()
        server.wait(timeout=30)


if __name__ == "__main__":
    main()
