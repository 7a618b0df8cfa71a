import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import zoo
from zoo.compress import BudgetError, fit
from zoo.compress.budget import Limits, Point, front, next_share
from zoo.evaluate.report import answers


def measured(share, precision="fp32", fragile=0.0):
    """A model whose latency and size follow its arithmetic; below a share of `fragile` it loses its accuracy."""
    quick = {"fp32": 1.0, "int8": 0.4}[precision]
    score = 0.9 if share >= fragile else 0.5
    return Point(share, precision, score, 0.9 - score, int(1e6 * share * quick), 10 * share * quick, Path("x.onnx"))


def search(limits, fragile=0.0, trials=12, precisions=("fp32",)):
    """Points that a search goes through."""
    points = [measured(1.0, precision, 0.0) for precision in precisions]
    for _ in range(trials):
        share = next_share(points, limits)
        if share is None:
            break
        points += [measured(share, precision, fragile) for precision in precisions]
    return points


def test_the_first_guess_follows_from_the_excess_and_fits():
    points = search(Limits(0.01, ms=4.0))
    assert points[1].share == pytest.approx(0.38)
    assert Limits(0.01, ms=4.0).holds(points[1])


def test_nothing_is_trained_when_the_original_fits_in_some_form():
    assert len(search(Limits(0.01, ms=4.5), precisions=("fp32", "int8"))) == 2


def test_a_model_that_loses_its_accuracy_is_made_larger_until_it_fits_or_the_shares_meet():
    limits = Limits(0.01, ms=5.0)
    shares = [point.share for point in search(limits, fragile=0.3)]
    assert limits.holds(measured(shares[1], fragile=0.3))
    points = search(limits, fragile=0.6)  # what keeps the score is too slow
    assert not any(limits.holds(point) for point in points)
    lossless = min(p.share for p in points if p.drop == 0)
    lossy = max(p.share for p in points if p.drop > 0)
    assert 0.6 <= lossless < 1.25 * lossy < 1.25 * 0.6


def test_the_search_ends_when_even_a_model_that_loses_too_much_is_too_large():
    points = [measured(1.0), measured(0.2, fragile=0.3)]
    assert next_share(points, Limits(0.01, ms=1.0)) is None


def test_without_size_and_latency_the_search_goes_as_small_as_the_drop_allows():
    kept = [p for p in search(Limits(0.01), fragile=0.13) if p.drop == 0]
    assert 0.13 <= min(p.share for p in kept) < 0.13 * 1.25


def test_the_front_holds_what_nothing_beats():
    good, small = measured(1.0), measured(0.5)
    worse = Point(0.7, "fp32", 0.5, 0.4, 2_000_000, 20.0, Path("x.onnx"))
    assert front([good, small, worse]) == [small]  # equal score, smaller and faster
    better = Point(1.0, "fp32", 0.95, -0.05, 1_000_000, 10.0, Path("x.onnx"))
    assert front([better, small, worse]) == [better, small]
    assert front([small, small]) == [small, small]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return zoo.train(
        "mlp", data="digits", epochs=8, out=tmp_path_factory.mktemp("runs") / "mlp", quiet=True, width=(64,)
    )


def test_a_model_is_pruned_until_its_file_is_small_enough(trained, tmp_path, capsys):
    found = fit(trained, max_drop=0.1, max_size=12_000, precisions=("fp32",), epochs=6, trials=3, out=tmp_path / "fit")
    point = found.point
    assert point.share < 1 and point.file.stat().st_size == point.size <= 12_000 and point.drop <= 0.1
    assert found.model.count_params() < trained.model.count_params()
    assert found.run.metrics["validation"] > 0.85
    live = onnxruntime.InferenceSession(str(point.file), providers=["CPUExecutionProvider"])
    part = trained.data.validation
    answers = live.run(["probabilities"], part.x)[0].argmax(axis=1)
    assert np.mean(answers == part.y) == pytest.approx(point.score)
    rows = json.loads((tmp_path / "fit" / "points.json").read_text())
    assert len(rows) == len(found.points) and [row["fits"] for row in rows].count(True) >= 1
    assert (tmp_path / "fit" / "front.png").stat().st_size > 10_000
    assert "chosen: " in capsys.readouterr().out and "within a drop of at most 0.1000" in str(found)
    with pytest.raises(FileExistsError, match="overwrite the search that is there"):
        fit(trained, out=tmp_path / "fit")


def test_files_of_texts_are_measured_by_tokens(tmp_path):
    sizes = {"width": 8, "learning_rate": 0.01, "tokens": 24, "tokenizer": "words:200"}
    run = zoo.train("lstm", data="spam", epochs=2, out=tmp_path / "run", quiet=True, **sizes)
    found = fit(
        run, max_drop=0.5, max_size=1e6, precisions=("fp32", "int8"), trials=0, out=tmp_path / "fit", quiet=True
    )
    assert {point.precision for point in found.points} == {"fp32", "int8"}
    by_keras = answers(run.model, run.signature, run.data.validation.x).argmax(axis=1)
    float_score = next(point.score for point in found.points if point.precision == "fp32")
    assert np.mean(by_keras == run.data.validation.y) == pytest.approx(float_score, abs=0.005)


def test_what_cannot_be_reached_is_refused_with_what_came_closest(trained, tmp_path):
    with pytest.raises(BudgetError, match=r"nothing is within .* at most 900 bytes.*in int8 came closest") as caught:
        fit(trained, max_size=900, precisions=("fp32", "int8"), trials=0, out=tmp_path / "fit", quiet=True)
    assert caught.value.closest.precision == "int8" and len(caught.value.points) == 2
    assert (tmp_path / "fit" / "front.png").exists()


def test_bad_input_is_refused_before_anything_is_written(trained, tmp_path):
    fresh = zoo.get("mlp", input_shape=(8, 8, 1), classes=10)
    for words, arguments in (
        ("max_drop must be", dict(max_drop=-0.1)),
        ("max_size must be above 0 bytes", dict(max_size=0)),
        ("max_ms must be above 0 milliseconds", dict(max_ms=-1)),
        ("precisions must be among", dict(precisions=("int2",))),
        ("epochs, rows and threads at least 1", dict(epochs=0)),
    ):
        with pytest.raises(ValueError, match=words):
            fit(trained, out=tmp_path / "fit", **arguments)
    with pytest.raises(ValueError, match="a Keras model needs its data"):
        fit(fresh, out=tmp_path / "fit")
    with pytest.raises(TypeError, match="got a dict"):
        fit({}, out=tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("")
    with pytest.raises(FileExistsError, match=r"is not empty; choose another folder$"):
        fit(trained, out=tmp_path / "mine", overwrite=True)


def test_a_model_that_was_never_trained_is_refused(trained, tmp_path):
    fresh = zoo.get("mlp", input_shape=(8, 8, 1), classes=10)
    fresh.get_layer("logits").kernel.assign(np.zeros(fresh.get_layer("logits").kernel.shape))
    with pytest.raises(ValueError, match=r"no better than always the same answer.*train it first"):
        fit(fresh, trained.data, out=tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
