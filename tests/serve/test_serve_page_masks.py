"""The page of a segmentation in a real browser, where one is installed: the mask over the picture."""

import io

import numpy as np
import pytest
from browsing import NEEDED, playwright, running, verdict
from PIL import Image
from test_serve_masks import answered, pixels, write_masks

from serve.app import create_app
from serve.store import Store

pytestmark = NEEDED


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = write_masks(tmp_path_factory.mktemp("page"))
    with running(create_app(Store(folder.parents[1], threads=1), explain_target="fake_explainers:echo")) as found:
        yield found


def drawn(tab, selector):
    """Pixels of an image or canvas as (height, width, 4)."""
    script = """element => {
        const canvas = document.createElement("canvas");
        canvas.width = element.naturalWidth ?? element.width;
        canvas.height = element.naturalHeight ?? element.height;
        canvas.getContext("2d").drawImage(element, 0, 0);
        return [canvas.height, canvas.width, ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
    }"""
    height, width, *values = tab.locator(selector).evaluate(script)
    return np.array(values).reshape(height, width, 4)


def test_an_example_shows_its_mask_over_its_pixels(visit):
    tab = visit("scenes")
    tab.get_by_role("button", name="Use an example").click()
    verdict(tab, "grey covers 16.7 % of the picture")
    truth = answered(pixels(1))["mask"][0]
    mask = drawn(tab, "#overlay .mask")
    assert np.array_equal(mask[..., 3] > 0, truth > 0)  # background lets the picture through
    assert mask[0, 0, :3].tolist() == [0x56, 0xB4, 0xE9] and mask[5, 0, :3].tolist() == [0xE6, 0x9F, 0x00]
    assert np.array_equal(drawn(tab, "#overlay canvas")[..., 0], pixels(1)[0, ..., 0])
    layers = [tab.locator(f"#overlay {part}").bounding_box() for part in (".mask", "canvas")]
    assert layers[0] == pytest.approx(layers[1], abs=1)
    colours = tab.locator(".track div").evaluate_all("fills => fills.map((fill) => fill.style.background)")
    assert colours[1] == "rgb(230, 159, 0)"
    strength = tab.get_by_label("Mask")
    strength.fill("0")
    assert tab.locator("#overlay .mask").evaluate("mask => getComputedStyle(mask).opacity") == "0"


def test_a_file_is_shown_under_its_mask_until_something_else_is_chosen(visit):
    tab = visit("scenes")
    file = io.BytesIO()
    Image.fromarray(pixels(3)[2, ..., 0]).resize((80, 60), Image.Resampling.NEAREST).save(file, "PNG")
    tab.set_input_files("input[type=file]", {"name": "scene.png", "mimeType": "image/png", "buffer": file.getvalue()})
    verdict(tab, "white covers 25")
    playwright.expect(tab.locator("#overlay img.picture")).to_be_visible()
    assert drawn(tab, "#overlay .mask").shape[:2] == (6, 8)
    tab.get_by_role("button", name="Use an example").click()
    verdict(tab, "grey covers")
    playwright.expect(tab.locator("#overlay img.picture")).to_have_count(0)
