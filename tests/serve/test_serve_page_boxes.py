"""The page of a detection in a real browser, where one is installed: boxes over the picture."""

import io

import pytest
from browsing import NEEDED, playwright, running, verdict
from PIL import Image
from test_serve_boxes import pixels, write_boxes

from serve.app import create_app
from serve.store import Store

pytestmark = NEEDED


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = write_boxes(tmp_path_factory.mktemp("page"))
    with running(create_app(Store(folder.parents[1], threads=1), explain_target="fake_explainers:echo")) as found:
        yield found


def test_boxes_lie_over_the_picture_where_they_are(visit):
    tab = visit("pets")
    file = io.BytesIO()
    Image.new("L", (160, 120), 255).save(file, "PNG")
    tab.set_input_files("input[type=file]", {"name": "pet.png", "mimeType": "image/png", "buffer": file.getvalue()})
    verdict(tab, "dog found")
    playwright.expect(tab.locator("#overlay .box")).to_have_count(1)
    assert tab.locator("#overlay .box span").inner_text() == "dog 1.00"
    picture, box = (tab.locator(f"#overlay {part}").bounding_box() for part in ("img.picture", ".box"))
    assert [box["x"], box["y"]] == pytest.approx([picture["x"], picture["y"]], abs=1.5)
    assert box["width"] == pytest.approx(picture["width"] / 2, abs=2)
    assert box["height"] == pytest.approx(picture["height"] / 2, abs=2)
    assert tab.locator("#overlay .layers").get_attribute("aria-label") == "What the model found: dog"
    assert tab.locator(".bars li").count() == 1


def test_a_picture_with_nothing_in_it_says_so(visit):
    tab = visit("pets")
    file = io.BytesIO()
    Image.fromarray(pixels(0)[0, ..., 0]).save(file, "PNG")
    tab.set_input_files("input[type=file]", {"name": "pet.png", "mimeType": "image/png", "buffer": file.getvalue()})
    verdict(tab, "nothing found")
    playwright.expect(tab.locator("#overlay .box")).to_have_count(0)
