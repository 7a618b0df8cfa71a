"""A model that writes texts on the page: the text comes as it is written, can be stopped, and says why it ended."""

import re

import pytest
from browsing import NEEDED, playwright, problem, running, verdict
from fake_generation import FAKE, write_painter, write_teller
from test_streaming import write_translator

from serve.app import create_app
from serve.store import Store

expect = playwright.expect
pytestmark = NEEDED


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_teller(folder)
    write_translator(folder)
    write_painter(folder)
    with running(create_app(Store(folder, threads=1, generator=FAKE))) as found:
        yield found


def test_a_text_appears_behind_what_was_sent(visit):
    tab = visit("teller")
    tab.get_by_label("Text").fill("Once upon a time ")
    tab.get_by_text("Settings").click()
    tab.get_by_label("Tokens at most").fill("4")
    tab.get_by_role("button", name="Continue").click()
    verdict(tab, "As long as asked: 4 tokens.")
    expect(tab.locator(".story")).to_have_text("Once upon a time 1/1 2/1 3/1 4/1 ")
    expect(tab.locator("#timing")).to_have_text(re.compile(r"first words after \d+ ms, then .* a second, by version 1"))
    tab.get_by_text("The same request from a terminal").click()
    expect(tab.locator("#command")).to_contain_text('/generate_stream\' -N -d \'{"text_input":"Once upon a time "')
    expect(tab.get_by_role("button", name="Explain this answer")).to_be_hidden()


def test_it_comes_while_it_is_written_and_can_be_stopped(visit):
    tab = visit("teller")
    tab.get_by_label("Text").fill("slow")
    tab.get_by_text("Settings").click()
    tab.get_by_label("Tokens at most").fill("500")
    tab.get_by_label("Text").press("Control+Enter")
    story = tab.locator(".story")
    expect(story).to_contain_text("5/1")
    expect(story).to_have_attribute("aria-busy", "true")
    tab.get_by_role("button", name="Stop").click()
    verdict(tab, "Stopped.")
    expect(tab.get_by_role("button", name="Stop")).to_be_hidden()
    expect(tab.get_by_role("button", name="Continue")).to_be_focused()
    assert "400/1" not in story.inner_text()


def test_settings_are_sent_and_what_is_wrong_with_them_is_said(visit):
    tab = visit("teller", allowed="422")
    tab.get_by_label("Text").fill("a cut text ")
    tab.get_by_text("Settings").click()
    tab.get_by_label("Stop at").fill("3")
    tab.get_by_role("button", name="Continue").click()
    verdict(tab, "It came to where it was to stop: 3 tokens.")
    expect(tab.locator(".story")).to_have_text("a cut text 1/1 2/1 ")
    tab.get_by_label("Top p").fill("0")
    tab.get_by_role("button", name="Continue").click()
    problem(tab, "'top_p' must be a number above 0, at most 1, got 0.")
    verdict(tab, "No answer.")


def test_a_text_that_breaks_off_says_so(visit):
    tab = visit("teller")
    tab.get_by_label("Text").fill("fails later")
    tab.get_by_role("button", name="Continue").click()
    problem(tab, "The model failed while it continued this text")
    verdict(tab, "It broke off.")
    expect(tab.locator(".story")).to_contain_text("fails later1/1 2/1")


def test_choosing_another_model_ends_the_text(visit):
    tab = visit("teller")
    tab.get_by_label("Text").fill("slow")
    tab.get_by_role("button", name="Continue").click()
    expect(tab.locator(".story")).to_contain_text("2/1")
    tab.get_by_role("button", name="translator").click()
    expect(tab.locator(".story")).to_have_count(0)
    tab.get_by_label("Text").fill("end")
    tab.get_by_role("button", name="Write").click()
    verdict(tab, "The model ended it: 2 tokens.")
    expect(tab.locator(".story")).to_have_text("1/1 2/1 ")


def test_a_picture_is_painted_as_freely_as_is_asked(visit):
    tab = visit("painter")
    verdict(tab, "Write what is to be painted.")
    tab.get_by_label("Text").fill("painted, cut")
    tab.get_by_role("button", name="Paint", exact=True).click()
    picture = tab.get_by_alt_text("painted, cut")
    seen = """image => { const canvas = document.createElement("canvas"); [canvas.width, canvas.height] = [4, 4];
        canvas.getContext("2d").drawImage(image, 0, 0); return canvas.getContext("2d").getImageData(1, 1, 1, 1).data[0]; }"""
    expect(tab.locator("#timing")).to_have_text(re.compile(r"painted by version 1 in \d+ ms"))
    assert picture.evaluate(seen) == 100 and picture.bounding_box()["width"] >= 100
    expect(tab.locator("#notes")).to_have_text("only the end of it was read")
    tab.get_by_text("Settings").click()
    assert tab.get_by_label("Tokens at most").count() == tab.get_by_label("Stop at").count() == 0
    tab.get_by_label("Temperature").fill("0")
    tab.get_by_role("button", name="Paint", exact=True).click()
    tab.get_by_text("The same request from a terminal").click()
    expect(tab.locator("#command")).to_contain_text("/predict/painter?temperature=0&top_p=1' -H 'Accept: image/png'")
    assert picture.evaluate(seen) == 0
    expect(tab.get_by_role("button", name="Explain this answer")).to_be_hidden()


def test_a_picture_that_cannot_be_painted_says_why(visit):
    tab = visit("painter", allowed="500")
    tab.get_by_label("Text").fill("painted, fail")
    tab.get_by_role("button", name="Paint", exact=True).click()
    problem(tab, "The model failed while it continued this text")
    verdict(tab, "No answer.")
    expect(tab.get_by_role("button", name="Stop")).to_be_hidden()


@pytest.mark.parametrize("width", [1100, 360])
def test_nothing_is_wider_than_the_page(visit, width):
    tab = visit("teller", viewport={"width": width, "height": 740})
    tab.get_by_label("Text").fill("long " * 200)
    tab.get_by_text("Settings").click()
    tab.get_by_role("button", name="Continue").click()
    verdict(tab, "As long as asked")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.locator(".story").inner_text().startswith("… ")
