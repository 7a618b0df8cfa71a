"""The page in a browser: a server to visit, and what the tests of the page look for on it."""

import shutil
import threading
from contextlib import contextmanager

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright; run: pip install playwright")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDED = pytest.mark.skipif(BROWSER is None, reason="needs Chromium; install the package chromium")

FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WAIT = 10_000  # milliseconds for what should take a few


@contextmanager
def running(app):
    """Address of an app that is served."""

    class Quiet(WSGIRequestHandler):
        def log(self, *_):
            pass

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/"
    server.shutdown()
    thread.join(timeout=5)
    server.server_close()
    app.extensions["jobs"].close()
    app.extensions["explainer"].close()


def verdict(tab, text):
    playwright.expect(tab.locator("#verdict")).to_contain_text(text, timeout=WAIT)


def problem(tab, text):
    playwright.expect(tab.get_by_role("alert")).to_contain_text(text, timeout=WAIT)
