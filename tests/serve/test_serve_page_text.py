"""A model of texts on the page: a text is read, its words are explained, and what was cut is said."""

import pytest
from browsing import NEEDED, playwright, running, verdict
from test_serve_text import write_mood

from serve.app import create_app
from serve.store import Store

expect = playwright.expect
pytestmark = NEEDED


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = write_mood(tmp_path_factory.mktemp("page"))
    with running(create_app(Store(folder.parents[1], threads=1))) as found:
        yield found


def test_a_text_is_read_and_its_words_are_explained(visit):
    tab = visit("mood")
    tab.get_by_label("Text").fill("good good fine")
    tab.get_by_role("button", name="Predict").click()
    verdict(tab, "positive with")
    expect(tab.locator("#notes li")).to_have_count(0)
    tab.get_by_role("button", name="Explain this answer").click()
    expect(tab.locator("#explanation img")).to_be_visible(timeout=60_000)


def test_what_was_cut_is_said(visit):
    tab = visit("mood")
    tab.get_by_label("Text").fill("bad " * 9)
    tab.get_by_role("button", name="Predict").click()
    verdict(tab, "negative with")
    expect(tab.locator("#notes li")).to_have_text(["row 1: only the first 4 tokens were read, the rest was cut off"])
