import threading
import time

import numpy as np
import pytest

from serve.errors import RequestError
from serve.explainer import Explainer

ROW = {"numbers": np.array([[30, np.nan]], np.float32), "categories": np.array([[""]], object)}


@pytest.fixture
def start():
    """Makes explainers with a stand-in as target, and ends them."""
    made = []

    def make(function, timeout=20.0):
        made.append(Explainer(target=f"fake_explainers:{function}", timeout=timeout))
        return made[-1]

    yield make
    for explainer in made:
        explainer.close()


def test_a_worker_process_answers_and_is_kept(store, start):
    import os

    explainer, model = start("echo"), store.get("paints")
    told = explainer.explain(model.bundle, ROW, precision="fp32", method="exact", label=2, picture={})
    assert told["process"] != os.getpid()
    told_again = explainer.explain(model.bundle, ROW, precision="fp32")
    assert told_again["process"] == told["process"]
    assert told["name"] == "paints"
    assert told["shapes"] == {"numbers": [1, 2], "categories": [1, 1]}
    assert told["missing"] == [""] and told["sum"] == 30
    assert (told["precision"], told["method"], told["target"]) == ("fp32", "exact", 2)
    assert told["picture"].startswith("data:image/png;base64,iVBOR")


def test_most_of_the_time_limit_is_the_budget(store, start):
    explainer, model = start("echo", timeout=20.0), store.get("paints")
    explainer.explain(model.bundle, ROW, precision="fp32")
    told = explainer.explain(model.bundle, ROW, precision="fp32")
    assert 12 < told["budget"] <= 14 and "picture" not in told


def test_a_slow_explanation_is_cut_and_says_so(store, start):
    explainer, model = start("patient", timeout=6.0), store.get("paints")
    told = explainer.explain(model.bundle, ROW, precision="fp32", picture={})
    assert told["complete"] is False and told["faithfulness"]["deletion_random"] == 0.5
    assert told["picture"].startswith("data:image/png")


def test_a_hung_explainer_is_stopped_and_replaced(store, start):
    explainer, model = start("hang_once", timeout=5.0), store.get("paints")
    began = time.perf_counter()
    with pytest.raises(RequestError, match="took longer than 5 seconds") as caught:
        explainer.explain(model.bundle, ROW, precision="fp32")
    assert (caught.value.code, caught.value.status) == ("explain_timeout", 504)
    assert time.perf_counter() - began < 15
    assert explainer.explain(model.bundle, ROW, precision="fp32")["name"] == "paints"


def test_a_crashed_explainer_is_replaced(store, start):
    explainer, model = start("die_once"), store.get("paints")
    with pytest.raises(RequestError, match="process died") as caught:
        explainer.explain(model.bundle, ROW, precision="fp32")
    assert (caught.value.code, caught.value.status) == ("explainer_died", 500)
    assert explainer.explain(model.bundle, ROW, precision="fp32")["name"] == "paints"


@pytest.mark.parametrize(
    ("function", "status", "message"),
    [
        ("without_matplotlib", 501, r"No module named 'matplotlib'\); run: pip install 'zooroad\[explain\]'"),
        ("refuse", 422, "no method is called 'magic'"),
        ("fail", 500, "failed with RuntimeError: numerics"),
        ("missing_function", 500, "AttributeError"),
    ],
)
def test_failures_are_told_and_the_worker_lives_on(store, start, function, status, message):
    explainer, model = start(function), store.get("paints")
    with pytest.raises(RequestError, match=message) as caught:
        explainer.explain(model.bundle, ROW, precision="fp32", method="magic")
    assert caught.value.status == status
    assert explainer._worker.poll() is None


def test_more_requests_than_places_are_turned_away(store, start):
    explainer, model = start("hang_once", timeout=3.0), store.get("paints")
    codes = []

    def ask():
        try:
            codes.append(explainer.explain(model.bundle, ROW, precision="fp32")["name"])
        except RequestError as error:
            codes.append((error.code, error.headers.get("Retry-After")))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count(("explainer_busy", "5")) >= 3  # the one that waits may give up as the first is stopped
    assert ("explain_timeout", None) in codes


def test_a_version_that_went_away_is_no_failure_of_the_explainer(store, start):
    import shutil

    explainer, model = start("echo"), store.get("paints")
    shutil.rmtree(model.bundle.folder)
    with pytest.raises(RequestError, match="replaced or removed") as caught:
        explainer.explain(model.bundle, ROW, precision="fp32")
    assert (caught.value.code, caught.value.status) == ("version_gone", 503)
