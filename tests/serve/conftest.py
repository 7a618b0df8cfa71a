"""A small store, on disk and opened; a browser for the tests of the page."""

import re

import pytest
from small_bundles import write_image, write_table, write_value

from serve.store import Store


@pytest.fixture
def folder(tmp_path):
    """Where a store will be."""
    return tmp_path / "store"


@pytest.fixture
def store_folder(tmp_path):
    """Versions 2, 9 and 10 of an image model, a table model, a regression, and a damaged bundle."""
    folder = tmp_path / "store"
    for version in ("2", "9", "10"):
        write_image(folder, version)
    write_table(folder)
    write_value(folder)
    damaged = write_image(folder, name="damaged")
    (damaged / "model.onnx").write_bytes(b"changed")
    return folder


@pytest.fixture
def store(store_folder):
    return Store(store_folder, threads=1)


@pytest.fixture(scope="module")
def browser():
    from browsing import BROWSER, FLAGS, playwright

    with playwright.sync_playwright() as manager:
        opened = manager.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page at a model; whatever the browser complains of, or asks of another host, fails the test."""
    from browsing import WAIT

    contexts, complaints = [], []

    def open_at(model="", at=address, allowed=r"$^", **options):
        context = browser.new_context(**options)
        context.set_default_timeout(WAIT)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in ("error", "warning") and not re.search(allowed, message.text)
                else None
            ),
        )
        tab.on(
            "request",
            lambda request: (
                complaints.append(request.url) if not request.url.startswith((at, "data:", "blob:")) else None
            ),
        )
        tab.goto(f"{at}#{model}")
        return tab

    yield open_at
    for context in contexts:
        context.close()
    assert complaints == []
