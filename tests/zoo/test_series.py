"""Series: windows in order of time, what is found by itself, and files that are refused with row and cure."""

import numpy as np
import pytest

from zoo import data
from zoo.data.series import Recording, season_of, simple
from zoo.data.signature import SeriesPreprocess, Signature, lengths


def recording(values, **more):
    """One column, or several whose first is the target."""
    values = np.asarray(values, np.float32).reshape(len(values), -1)
    names = tuple(f"c{place}" for place in range(values.shape[1]))
    return Recording("made", values, names, "c0", "made", generated=True, **more)


def splits(found, **options):
    return data.from_rows(found.cut(*(options.get(name, 0) for name in ("context", "horizon", "season")), 0.15, 0.2))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def monthly(values, start=(2001, 1), header="month,sold"):
    """Text of a CSV file with a value for the first of each month."""
    rows = [header]
    for place, value in enumerate(values):
        year, month = divmod(start[0] * 12 + start[1] - 1 + place, 12)
        rows.append(f"{year}-{month + 1:02d}-01,{value}")
    return "\n".join(rows) + "\n"


def wave(count=120, season=12):
    return np.round(50 + 10 * np.sin(2 * np.pi * np.arange(count) / season) + 0.1 * np.arange(count), 3)


def test_windows_ask_for_values_of_one_part_and_follow_each_other_in_time():
    found = splits(recording(np.arange(100.0)), context=5, horizon=3, season=1)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 58, "validation": 13, "test": 18}
    for (low, high), split in zip([(0, 65), (65, 80), (80, 100)], found.splits.values(), strict=True):
        assert split.y.min() >= low and split.y.max() < high
        gaps = np.concatenate([split.x["series"][:, :, 0], split.y], axis=1)
        assert (np.diff(gaps, axis=1) == 1).all()  # the context ends where the horizon begins
    for name in ("validation", "test"):
        assert (np.diff(found.splits[name].y[:, 0]) == 1).all()
    assert sorted(found.train.y[:, 0].tolist()) == list(range(5, 63))
    assert found.leaks() == []


def test_scaling_is_learned_from_training_times_alone():
    values = np.concatenate([np.tile([0.0, 1.0], 33), np.full(34, 1000.0)])
    found = splits(recording(values), context=4, horizon=2, season=1).signature
    assert max(*found.preprocess.mean, *found.preprocess.std, found.target_mean, found.forecast.scale) <= 1


def test_sizes_follow_from_the_season():
    found = splits(recording(wave()))
    assert found.signature.forecast.season == 12
    assert found.signature.preprocess.shape == (24, 1) and found.signature.outputs == 12
    assert found.signature.labels[::11] == ("c0+1", "c0+12")
    assert "12 values of c0 from the 24 steps before, season 12" in found.summary()


@pytest.mark.parametrize(
    ("values", "season"),
    [
        (wave(), 12),
        (np.sin(np.arange(300) * 2 * np.pi / 7), 7),
        (np.random.default_rng(0).standard_normal(300), 1),
        (np.cumsum(np.random.default_rng(1).standard_normal(300)), 1),
        (np.arange(50.0), 1),
        (np.ones(50), 1),
        (np.ones(1), 1),
    ],
)
def test_a_season_is_found_where_there_is_one(values, season):
    assert season_of(np.asarray(values, float)) == season


def test_simple_forecasts_are_the_last_value_and_the_last_season():
    found = splits(recording(np.tile([1.0, 2, 3, 4], 30)), context=8, horizon=6, season=4)
    told = simple(found.test.x, found.signature)
    assert np.array_equal(told["seasonal naive"], found.test.y)
    assert (told["naive"] == found.test.x["series"][:, -1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 80}, r"made has 120 times, 78 of them for training; context=80 and horizon=12 need 92 there"),
        ({"horizon": 25}, r"18 of them for validation; context=24 and horizon=25 need 25 there"),
        ({"context": 6}, r"context=6 is less than a season of 12 steps.*take context=12 or more, or season=1"),
        ({"horizon": -1}, r"horizon must be at least 1, or 0 for the usual, got horizon=-1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        splits(recording(wave()), **options)


def test_what_never_changes_is_refused():
    with pytest.raises(ValueError, match="target 'c0' is 3 at every time to learn from"):
        splits(recording(np.full(100, 3.0)))


def test_a_table_is_read_with_its_further_columns(tmp_path):
    rows = [
        line + f",{place % 2},{'' if place == 4 else place}" for place, line in enumerate(monthly(wave()).split()[1:])
    ]
    path = write(tmp_path / "sales.csv", "month,sold,promo,price\n" + "\n".join(rows))
    found = data.load(path, target="sold", task="forecasting", horizon=4)
    assert found.signature.preprocess.numbers == ("sold", "promo", "price")
    assert found.signature.preprocess.shape == (24, 3) and found.train.y.shape[1] == 4
    assert found.source == "sales.csv, 2001-01-01 … 2010-12-01"
    assert np.isnan(found.train.x["series"]).any() and not np.isnan(found.signature.inputs(found.train.x)).any()
    assert "missing values: price" in found.summary()


@pytest.mark.parametrize("header", ["year", "time"])
def test_times_may_be_numbers(tmp_path, header):
    text = f"{header},y\n" + "".join(f"{1900 + place},{value}\n" for place, value in enumerate(wave()))
    assert len(data.load(write(tmp_path / "years.csv", text), task="forecasting").test)


@pytest.mark.parametrize("times", [["2001-01", "2001-02", "2001-03"], ["2001-01-31", "2001-02-28", "2001-03-31"]])
def test_months_are_evenly_apart(tmp_path, times):
    rest = [f"{2001 + (m // 12)}-{m % 12 + 1:02d}" for m in range(3, 120)]
    if len(times[0]) > 7:
        rest = [str((np.datetime64(month, "M") + 1).astype("datetime64[D]") - 1) for month in rest]
    text = "month,sold\n" + "".join(f"{time},{value}\n" for time, value in zip([*times, *rest], wave(), strict=True))
    assert len(data.load(write(tmp_path / "sales.csv", text), target="sold", task="forecasting").train)


@pytest.mark.parametrize(
    ("first", "step", "unit"), [("2001-01-01", 1, "months"), ("2001-01", 1, "months"), ("1900", 1, "")]
)
def test_the_step_of_time_goes_with_the_signature(tmp_path, first, step, unit):
    times = [str(1900 + m) for m in range(120)]
    if unit:
        times = [f"{2001 + m // 12}-{m % 12 + 1:02d}{first[7:]}" for m in range(120)]
    lines = "".join(f"{time},{value}\n" for time, value in zip(times, wave(), strict=True))
    found = data.load(write(tmp_path / "sales.csv", f"year,sold\n{lines}"), target="sold", task="forecasting").signature
    assert found.preprocess.time == {"column": "year", "step": step, "unit": unit}
    found.save(tmp_path / "signature.json")
    assert Signature.load(tmp_path / "signature.json").preprocess.time == found.preprocess.time


def test_a_gap_within_one_day_is_refused(tmp_path):
    minutes = [minute for minute in range(121) if minute != 60]
    lines = "".join(f"2020-01-01 {m // 60:02d}:{m % 60:02d},{v}\n" for m, v in zip(minutes, wave(), strict=True))
    with pytest.raises(ValueError, match=r"row 61 .* by 2 minutes, most rows by 1 minute; add the rows between"):
        data.load(write(tmp_path / "sales.csv", f"time,sold\n{lines}"), target="sold", task="forecasting")


def changed(place, new=None):
    """The monthly file with a line replaced, or left out."""
    lines = monthly(wave(60)).splitlines()
    lines[place : place + 1] = [] if new is None else [new]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            changed(5),
            r"row 5 \(2001-06-01\) follows row 4 \(2001-04-01\) by 2 months, most rows by 1 month; add the rows",
        ),
        (changed(5, "2001-04-01,3"), r"row 5 has the time 2001-04-01 of row 4; keep one of them"),
        (
            changed(5, "2000-12-01,3"),
            r"row 5 \(2000-12-01\) is earlier than the row before it \(2001-04-01\); sort the rows",
        ),
        (changed(5, ",3"), r"column 'month' has no time in row 5; fill it in"),
        (changed(5, "2001-05-01,"), r"target 'sold' is missing in row 5; fill or remove the row"),
        (changed(5, "2001-05-01,much"), r"target 'sold' holds '50.\d+' in row 1; a forecast is about numbers"),
        (
            changed(0, "start,sold").replace("-01,", "th,"),
            r"has no column of times; add one, or call it time, date or year",
        ),
        (
            changed(0, "month,sold").replace("2001-03-01", "March"),
            r"column 'month' has 'March' in row 3, which is no time",
        ),
        (
            "\n".join(
                f"{line},{'shop' if not place else 'Bonn'}" for place, line in enumerate(monthly(wave()).split())
            ),
            r"column 'shop' holds text such as 'Bonn'.*write a file for each series",
        ),
        (monthly(wave(1)), r"has 1 time, 1 of them for training; context=24 and horizon=12 need 36 there"),
        (monthly(wave(20)), r"sales.csv, 2001-01-01 … 2002-08-01 has 20 times, 13 of them for training"),
    ],
)
def test_files_that_are_no_series_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path / "sales.csv", text), target="sold", task="forecasting")


def test_sizes_are_for_forecasts_alone():
    with pytest.raises(
        ValueError, match=r"context, horizon and season are for forecasting, 'iris' is for classification"
    ):
        data.load("iris", context=3)
    with pytest.raises(ValueError, match=r"'sunspots' is for forecasting, got task='regression'"):
        data.load("sunspots", task="regression")


def test_sunspots_and_digits_need_no_network():
    spots, digits = data.load("sunspots"), data.load("digits_rows")
    assert spots.signature.forecast.season == season_of(yearly()[:201]) == 11
    assert yearly()[[0, 257, -1]].tolist() == [5.0, 190.2, 2.9]  # 1700, the highest of all in 1957, 2008
    assert digits.train.x["series"].shape[1:] == (8, 8) and digits.signature.task == "series-classification"


def yearly():
    from zoo.data.builtin import sunspots

    return np.round(sunspots().values[:, 0].astype(float), 1)


def test_missing_values_take_the_mean_and_the_end_stays_open():
    series = np.array([[[1, 2], [np.nan, 4], [5, 6]], [[3, np.nan], [np.nan, np.nan], [np.nan, np.nan]]], np.float32)
    assert lengths(series).tolist() == [3, 1]
    step = SeriesPreprocess.fit(series, ("a", "b"))
    assert step.mean == (3.0, 4.0)
    found = step({"series": series})
    assert found[0, 1].tolist() == [0.0, 0.0] and found[1, 0].tolist() == [0.0, 0.0]
    assert np.isnan(found[1, 1:]).all() and np.isfinite(found[0]).all()


def test_a_signature_is_read_back(tmp_path):
    for name in ("sunspots", "digits_rows"):
        signature = data.load(name).signature
        signature.save(tmp_path / "signature.json")
        assert Signature.load(tmp_path / "signature.json") == signature


def test_arrays_of_series_are_read(tmp_path):
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 7, 2)).astype("float32")
    x[:, 6] = np.nan
    x[3, 4:] = np.nan
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(60) % 3, columns=["left", "right"])
    found = data.load(tmp_path / "x.npz")
    assert found.signature.task == "series-classification"
    assert found.signature.preprocess.shape == (6, 2) and found.signature.preprocess.numbers == ("left", "right")
    longer = data.load(tmp_path / "x.npz", input_shape=(9, 2))
    assert np.isnan(longer.train.x["series"][:, 6:]).all()
    np.savez(tmp_path / "y.npz", x=x, y=random.standard_normal(60))
    assert data.load(tmp_path / "y.npz").signature.task == "regression"
    np.savez(tmp_path / "z.npz", x=random.random((60, 4, 4)), y=np.arange(60) % 3)
    assert data.load(tmp_path / "z.npz", task="series-classification").signature.preprocess.shape == (4, 4)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (
            np.random.default_rng(0).random((60, 4, 4)),
            {},
            r"in 0 … 1, which may be images or series; store .* or say task=",
        ),
        (np.full((60, 4, 4), np.nan), {}, r"row 1 of x has no number at any step; leave it out"),
        (np.full((60, 4, 4), np.inf), {}, r"x is infinite in row 1, step 1, column 1"),
        (
            np.random.default_rng(0).standard_normal((60, 4, 2)),
            {"input_shape": (3, 2)},
            r"series of up to 4 steps of 2 columns, got input_shape=\(3, 2\); leave it out, or give more steps",
        ),
    ],
)
def test_arrays_that_are_no_series_are_refused(tmp_path, x, options, message):
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(60) % 3)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "x.npz", **options)
