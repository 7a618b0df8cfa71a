"""Make the pictures of docs/explaining.md and print their figures: python docs/pictures/explaining.py.

Trains LeNet on digits and an MLP on wine into a temporary folder, exports both and explains the bundles; a minute or two.
Needs Playwright and Chromium for the picture of the page.
"""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

import export
import zoo

HERE = Path(__file__).parent
ROWS = 200  # of a summary


def save(figure: object, name: str) -> None:
    """A picture with few colours, so that the repository stays small."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)  # type: ignore[attr-defined]
    shrink(file, name)


def shrink(file: io.BytesIO, name: str) -> None:
    taken = Image.open(file).convert("RGB")
    path = HERE / f"explain-{name}.png"
    taken.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {taken.width}x{taken.height}, {path.stat().st_size // 1000} kB")


def bundle(model: str, data: str, folder: Path) -> tuple[object, zoo.data.Data]:
    run = zoo.train(model, data=data, out=folder / "runs" / model, quiet=True)
    return export.to_bundle(run, folder / "store" / data / "1", int8=False), run.data


def rows(data: zoo.data.Data, count: int) -> dict[str, np.ndarray]:
    return {name: values[:count] for name, values in data.test.x.items()}


def photograph(page: str, name: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 980, "height": 700}, color_scheme="dark")
        tab.set_content(page)
        shrink(io.BytesIO(tab.screenshot(full_page=True)), name)
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        digits, data = bundle("lenet", "digits", Path(place))
        found = zoo.explain(digits, rows(data, 2))
        save(found.plot(), "digits")
        print(found)
        whole = zoo.explain.summarise(zoo.explain(digits, rows(data, ROWS), quality=False))
        save(whole.plot(), "digits-summary")
        print(whole)
        wine, data = bundle("mlp", "wine", Path(place))
        found = zoo.explain(wine, rows(data, 1))
        save(found.plot(style="waterfall"), "wine")
        photograph(found.to_html(), "page")
        print(found)
        whole = zoo.explain.summarise(zoo.explain(wine, rows(data, ROWS), target="class_0", quality=False))
        save(whole.plot(), "wine-summary")
        print(whole)


if __name__ == "__main__":
    main()
