"""The page of a model that embeds, in a real browser: compare with the one before, search, enrol, forget."""

import json

import pytest
from browsing import NEEDED, playwright, problem, running, verdict
from test_serve_gallery import write_faces

from serve.app import create_app
from serve.gallery import Gallery
from serve.guard import Guard
from serve.keys import KeyFile
from serve.store import Store

pytestmark = NEEDED


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    made = {"all": ["admin", "predict", "explain"], "visitor": ["predict", "explain"]}
    return {name: file.make(name, scopes=scopes)[1] for name, scopes in made.items()} | {"file": file.path}


@pytest.fixture(scope="module")
def address(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("page")
    write_faces(folder / "store")
    app = create_app(
        Store(folder / "store", threads=1),
        guard=Guard(keys=keys["file"]),
        gallery=Gallery(folder / "state"),
        explain_target="fake_explainers:echo",
    )
    with running(app) as found:
        yield found


def enter(tab, key):
    tab.get_by_label("API key").fill(key)
    tab.get_by_role("button", name="Use this key").click()
    tab.get_by_role("button", name="Use an example").click()
    verdict(tab, "Embedded")


def shows(tab, text):
    playwright.expect(tab.locator("#overlay")).to_contain_text(text)


def test_a_picture_is_compared_with_the_one_before_and_the_pair_explained(visit, keys):
    tab = visit("faces", allowed="status of 401")
    enter(tab, keys["visitor"])
    shows(tab, "4 numbers say what this picture is like. Nobody is enrolled for this version yet.")
    playwright.expect(tab.get_by_role("button", name="Explain this answer")).to_be_hidden()
    tab.get_by_role("button", name="Use an example").click()
    shows(tab, "the same as the one before")
    shows(tab, "the threshold is 0.9")
    tab.get_by_role("button", name="Use an example").click()
    shows(tab, "another than the one before")
    playwright.expect(tab.locator("#overlay .sides canvas")).to_have_count(2)
    with tab.expect_response("**/explain/faces*") as answered:
        tab.get_by_role("button", name="Explain this answer").click()
    assert json.loads(answered.value.body())["shapes"] == {"left": [1, 4, 4, 1], "right": [1, 4, 4, 1]}


def test_who_is_enrolled_is_found_and_forgotten(visit, keys):
    tab = visit("faces", allowed="status of 401")
    enter(tab, keys["all"])
    tab.get_by_label("Enrol as").fill("Ann Lee")
    tab.get_by_role("button", name="Enrol", exact=True).click()
    shows(tab, "Ann Lee has 1 embedding now; the picture was not kept.")
    tab.get_by_role("button", name="Use an example").click()
    shows(tab, "Nearest of the enrolled:")
    playwright.expect(tab.locator("#overlay .bars .label")).to_have_text("Ann Lee")
    tab.get_by_role("button", name="Use an example").click()
    playwright.expect(tab.locator("#overlay .bars .label")).to_have_text("Ann Lee?")  # the nearest, and somebody else
    tab.get_by_label("Enrol as").fill("Ann Lee")
    tab.get_by_role("button", name="Enrol", exact=True).click()
    shows(tab, "Ann Lee has 2 embeddings now")
    tab.get_by_role("button", name="Forget", exact=True).click()
    shows(tab, "Ann Lee is forgotten.")


def test_a_key_that_is_no_admins_is_told_so(visit, keys):
    tab = visit("faces", allowed="status of 40[13]")
    enter(tab, keys["visitor"])
    tab.get_by_label("Enrol as").fill("Ann Lee")
    tab.get_by_role("button", name="Enrol", exact=True).click()
    problem(tab, "This credential does not cover 'admin'")
