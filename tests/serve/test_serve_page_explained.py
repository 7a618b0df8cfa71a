"""The page's explanations in a real browser, where one is installed."""

import re

import numpy as np
import pytest
from browsing import NEEDED, playwright, problem, running, verdict
from small_bundles import add_background, write_map, write_table

from serve.app import create_app
from serve.store import Store

pytestmark = NEEDED

LOOK, EXPLAIN = "Where did it look?", "Explain this answer"
PIXELS = """(image, places) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return places.map(([x, y]) => [...context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data]);
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a server that explains in earnest: an image model with a map, and a table."""
    folder = tmp_path_factory.mktemp("explained") / "store"
    write_map(folder)
    background = {"numbers": np.array([[40, 70]], np.float32), "categories": np.array([["red"]])}
    add_background(write_table(folder), **background)
    with running(create_app(Store(folder, threads=1), explain_timeout=60)) as found:
        yield found


def shown(tab, name):
    """The picture behind a button, once it is there, and the request that it came by."""
    with tab.expect_request(lambda request: "/explain/" in request.url) as asked:
        tab.get_by_role("button", name=name).click()
    image = tab.locator("#explanation img")
    image.wait_for(timeout=60_000)
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 1000
    return image, asked.value.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_of_where_a_model_looked_has_the_pages_colours(visit, scheme):
    tab = visit("seen", color_scheme=scheme)
    tab.get_by_role("button", name="Use an example").click()
    verdict(tab, "right")
    image, url = shown(tab, LOOK)
    assert f"theme={scheme}" in url and "method=cam" in url
    assert image.get_attribute("alt") == "What spoke for and against the answer, by cam"
    card = tab.locator("section.card").last
    ground = [int(part) for part in re.findall(r"\d+", card.evaluate("card => getComputedStyle(card).backgroundColor"))]
    corner, middle = image.evaluate(PIXELS, [[0.001, 0.001], [0.9, 0.5]])
    assert corner[:3] == ground and (sum(ground) < 384) == (scheme == "dark")
    assert middle[0] > middle[2] + 60  # the right half of the map is red
    playwright.expect(tab.locator("#explanation dt")).to_have_text(["method", "arrives at", "took"])


def test_the_columns_of_a_row_are_explained_by_bars(visit):
    tab = visit("paints", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    verdict(tab, "silk")
    assert not tab.get_by_role("button", name=LOOK).is_visible()
    image, url = shown(tab, EXPLAIN)
    assert "width=4.0" in url
    assert re.search(r"by exact: (colour|age|weight) [+−][\d.]+, ", image.get_attribute("alt"))
    told = tab.locator("#explanation")
    for fact in ("starts from", "arrives at", "sum is off by", "deletion"):
        playwright.expect(told).to_contain_text(fact)
    assert image.bounding_box()["width"] <= 390
    tab.get_by_role("button", name="Another example").click()
    verdict(tab, "gloss")
    assert tab.locator("#explanation img").count() == 0  # it was about another row


def test_a_server_without_an_explainer_says_what_is_missing(visit, store):
    with running(create_app(store, explain_target="fake_explainers:without_matplotlib")) as at:
        tab = visit("paints", at=at, allowed="status of 501")
        verdict(tab, "silk")
        tab.get_by_role("button", name=EXPLAIN).click()
        problem(tab, "Explanations are not installed on this server (No module named 'matplotlib'); run: pip install")
        assert tab.locator("#explanation img").count() == 0
        assert tab.get_by_role("button", name=EXPLAIN).is_enabled()
        verdict(tab, "silk")  # the answer stays
        tab.close()


def test_after_a_crash_of_the_explainer_the_next_click_is_answered(visit, store):
    with running(create_app(store, explain_target="fake_explainers:die_once")) as at:
        tab = visit("paints", at=at, allowed="status of 500")
        verdict(tab, "silk")
        tab.get_by_role("button", name=EXPLAIN).click()
        problem(tab, "The explainer process died and will be started again at the next request; predictions go on.")
        tab.get_by_role("button", name=EXPLAIN).click()
        playwright.expect(tab.locator("#explanation img")).to_be_attached()
        assert tab.locator("#explanation .problem").count() == 0
        tab.close()


def test_an_answer_is_explained(visit, store):
    with running(create_app(store, explain_target="fake_explainers:echo")) as at:
        tab = visit("paints", at=at)
        verdict(tab, "silk")
        tab.get_by_role("button", name=EXPLAIN).click()
        shown = tab.get_by_role("img", name="What spoke for and against the answer, by auto")
        playwright.expect(shown).to_be_attached()
        assert shown.get_attribute("src").startswith("data:image/png;base64,")
        told = tab.locator("#explanation")
        playwright.expect(told).to_contain_text("The time limit ended it: this is the best so far.")
        playwright.expect(told).to_contain_text("0.25, in random orders 0.5")
        assert not tab.get_by_role("button", name=LOOK).is_visible()
        tab.close()
