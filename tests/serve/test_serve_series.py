"""Series and forecasts at the edge of a server: what is read, what is refused with a reason, and how answers read."""

import numpy as np
import pytest

from serve import codec, forecasts, series
from serve.drift import answer_summaries, series_summaries
from serve.errors import RequestError
from serve.manifest import Manifest, Port, Precision

AXES = ("batch", "time", "columns")


def manifest(columns=("sold",), steps=4, task="forecasting"):
    labels = ("sold+1", "sold+2") if task == "forecasting" else ("calm", "wild")
    out = Port("forecast", "FP32", (-1, 2), ("batch", "steps"))
    if task != "forecasting":
        out = Port("probabilities", "FP32", (-1, 2), ("batch", "classes"))
    port = Port("series", "FP32", (-1, steps, len(columns)), AXES, columns=columns)
    stored = {"fp32": Precision("model.onnx", 1, 0.0)}
    return Manifest("shop", "1", "lstm", task, "series", (port,), (out,), labels, "r2", stored)


def rows(body, known):
    inputs, notes = codec.json_batch(body, known).take()
    return inputs["series"], notes


def test_a_forecast_is_made_from_the_last_steps():
    found, notes = rows({"series": [1, 2, 3, None, 5]}, manifest())
    assert found.dtype == np.float32 and np.array_equal(found, [[[2], [3], [np.nan], [5]]], equal_nan=True)
    assert notes == ["the forecast is made from the last 4 of 5 steps"]


def test_shorter_series_are_filled_up_where_there_is_an_end():
    known = manifest(("a", "b"), task="series-classification")
    found, notes = rows([{"series": [[1, 2], [None, 4]]}, {"series": [[5, 6]]}], known)
    assert np.isnan(found[0, 2:]).all() and np.isnan(found[1, 1:]).all() and not notes
    assert found[0, :2].tolist()[0] == [1, 2] and np.isnan(found[0, 1, 0])


@pytest.mark.parametrize(
    ("body", "task", "code", "message"),
    [
        ({"series": []}, "forecasting", "bad_value", "the series is empty; send at least one step"),
        ({"series": [1, 2, 3]}, "forecasting", "too_short", "needs the last 4 steps, got 3; send more of the past"),
        ({"series": [1, 2, 3, None]}, "forecasting", "bad_value", "the last step has no value"),
        ({"series": [None] * 4}, "forecasting", "bad_value", "every value of the series is missing; send some"),
        ({"series": [[1, 2]] * 4}, "forecasting", "bad_shape", r"step 1 must be a number \(sold\), got 2 values"),
        ({"series": [1] * 5}, "series-classification", "too_long", "has 5 steps, the model takes at most 4"),
        ({"serie": [1]}, "forecasting", "bad_request", r'send \{"series": \[value, …\]\} as JSON, or a CSV file'),
        ([], "forecasting", "bad_request", "send"),
        ({"series": [1, 2, 3, "four"]}, "forecasting", "bad_data", "series"),
        ([{"series": [1] * 4}, {"series": []}], "forecasting", "bad_value", "row 2: the series is empty"),
    ],
)
def test_what_is_no_series_is_refused(body, task, code, message):
    with pytest.raises(RequestError, match=message) as error:
        rows(body, manifest(task=task))
    assert error.value.code == code


def test_tensors_are_checked_too():
    whole = np.ones((2, 4, 1), np.float32)
    series.check(whole, manifest())
    whole[1] = np.nan
    with pytest.raises(RequestError, match="row 2: every value of the series is missing"):
        series.check(whole, manifest())


def test_lines_of_a_file_are_steps():
    known = manifest(("sold", "price"))
    body = b"month,price,sold\n2001-01,1,10\n2001-02,,20\n2001-03,3,30\n2001-04,4,40\n"
    batch = codec.csv_batch(body, known)
    inputs, notes = batch.take()
    assert batch.count == 1 and inputs["series"][0, :, 0].tolist() == [10, 20, 30, 40]
    assert np.isnan(inputs["series"][0, 1, 1]) and "not used" in notes[0]
    with pytest.raises(RequestError, match="the CSV file has no column price; a series needs all of them"):
        codec.csv_batch(b"sold\n1\n2\n3\n4\n", known)


@pytest.mark.parametrize("columns", [("sold",), ("sold", "price")])
def test_a_row_is_written_as_it_is_read(columns):
    known = manifest(columns, task="series-classification")
    given = np.random.default_rng(0).standard_normal((1, 4, len(columns))).astype(np.float32)
    given[0, 1, 0] = given[0, 3] = np.nan
    row = codec.to_row({"series": given}, 0, known)
    assert len(row["series"]) == 3
    found, _ = rows(row, known)
    assert np.array_equal(found[:, :, -1], given[:, :, -1], equal_nan=True)


def test_forecasts_are_told_with_their_target():
    outputs = {"forecast": np.array([[1.5, 2.5]], np.float32)}
    [told] = codec.answers(outputs, manifest(), top=5)
    assert told == {"target": "sold", "forecast": [1.5, 2.5]}
    [named] = codec.answers(outputs, manifest(), top=5, form="steps")
    assert named["forecast"] == {"sold+1": 1.5, "sold+2": 2.5}
    assert (
        forecasts.table([told], manifest())
        == forecasts.table([named], manifest())
        == [["sold+1", "sold+2"], [1.5, 2.5]]
    )
    assert codec.answers_csv([told], manifest()).splitlines() == ["sold+1,sold+2", "1.5,2.5"]


def test_series_are_watched_by_level_unrest_and_length():
    given = np.array([[[1.0], [3.0], [np.nan]], [[np.nan], [np.nan], [np.nan]]])
    found = series_summaries(given, ("sold",))
    assert found["steps"].tolist() == [2, 0]
    assert found["sold mean"].tolist() == [2, 0] and found["sold spread"].tolist() == [1, 0]
    told = answer_summaries({"forecast": np.array([[1.0, 2.0, 3.0]])}, "forecasting", ("a+1", "a+2", "a+3"))
    assert {name: values.tolist() for name, values in told.items()} == {"a+1": [1.0], "a+3": [3.0]}
