"""Series and forecasts at the edge of a server: what is read, what is refused with a reason, and how answers read."""

import dataclasses

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


DAYS = {"column": "date", "step": 86_400.0, "unit": "seconds"}
MONTHS = {"column": "date", "step": 1.0, "unit": "months"}
YEARS = {"column": "date", "step": 1.0, "unit": ""}


def dated(times, known, header="date,sold"):
    """A file with a value at each of these times, as the model reads it that knows such steps."""
    body = "\n".join([header, *(f"{time},{place}" for place, time in enumerate(times))])
    batch = codec.csv_batch(body.encode(), dataclasses.replace(manifest(), preprocess={"time": known}))
    return batch.take()


@pytest.mark.parametrize(
    ("times", "known", "message"),
    [
        (
            ["2020-01-04", "2020-01-03", "2020-01-02", "2020-01-01"],
            DAYS,
            r"line 3 \(2020-01-03\) is earlier than the row before it \(2020-01-04\); sort the rows by 'date'",
        ),
        (
            ["2020-01-01", "2020-01-02", "2020-01-02", "2020-01-03"],
            DAYS,
            "line 4 has the time 2020-01-02 of line 3; keep one",
        ),
        (
            ["2020-01-01", "2020-01-02", "2020-01-06", "2020-01-07"],
            DAYS,
            r"line 4 \(2020-01-06\) follows line 3 \(2020-01-02\) by 4 days, and the model was trained on rows 1 day",
        ),
        (
            [f"2020-01-01 {hour:02d}:00" for hour in range(4)],
            DAYS,
            "by 1 hour, and the model was trained on rows 1 day",
        ),
        (
            [f"2020-{month:02d}" for month in range(1, 5)],
            DAYS,
            "by 31 days, and the model was trained on rows 1 day apart",
        ),
        ([f"2020-01-{day:02d}" for day in range(1, 5)], MONTHS, "line 3 .* by 1 day, .* trained on rows 1 month apart"),
        (
            ["2020-01", "2020-02", "2020-04", "2020-05"],
            MONTHS,
            "line 4 .* by 2 months, .* trained on rows 1 month apart",
        ),
        (["2020-01-01", "2020-02-01", "2020-03-02", "2020-04-01"], MONTHS, "line 4 .* by 30 days, .* 1 month apart"),
        (["2020-01-01", "2020-01-02", "gestern", "2020-01-04"], DAYS, "'gestern' in line 4, which is no time; write"),
        (["2020-01-01", "", "2020-01-03", "2020-01-04"], DAYS, "no time in line 3; fill it in, or remove the row"),
        ([2000, 2001, 2003, 2004], YEARS, r"line 4 \(2003\) follows line 3 \(2001\) by 2, .* rows 1 apart"),
        ([2000, 2001, "2002-01", 2003], YEARS, "'2002-01' in line 4, which is no number as the other times are"),
    ],
)
def test_lines_that_do_not_follow_each_other_as_in_training_are_refused(times, known, message):
    with pytest.raises(RequestError, match=message) as error:
        dated(times, known)
    assert (error.value.code, error.value.status) == ("bad_time", 422)


@pytest.mark.parametrize(
    ("times", "known"),
    [
        (["2020-02-28", "2020-02-29 ", "2020-03-01", "2020-03-02"], DAYS),
        ([f"2020-02-0{day}T23:30:00.250+01:00" for day in range(1, 5)], DAYS),
        (["2020-07-01", "2020-08-01", "2020-09-01", "2020-10-01"], MONTHS),
        (["2020-01-31", "2020-02-29", "2020-03-31", "2020-04-30"], MONTHS),
        (["2020-01", "2020-02", "2020-03", "2020-04"], MONTHS),
        ([1999, 2000, "2001.0", 2002], YEARS),
    ],
)
def test_lines_that_follow_each_other_are_answered_without_a_note(times, known):
    inputs, notes = dated(times, known)
    assert inputs["series"][0, :, 0].tolist() == [0, 1, 2, 3] and not notes


def test_a_file_without_times_is_taken_as_it_is():
    inputs, _ = dated(["b", "a", "c", "d"], DAYS, header="shop,sold")
    assert inputs["series"][0, :, 0].tolist() == [0, 1, 2, 3]


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
