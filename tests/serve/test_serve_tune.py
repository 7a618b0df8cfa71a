"""Settings from measurements: what is tried, what is chosen, what is written and read again."""

import json

import pytest
from small_bundles import write_image, write_table

from serve import tune
from serve.manifest import BundleError
from serve.tune import Measured, Point, Setting


def curve(setting, *points):
    return Measured(setting, tuple(Point(load, rate, median, 2 * median) for load, rate, median in points))


@pytest.mark.parametrize("available", [1, 2, 6, 16])
def test_candidates_never_need_more_than_the_cores(available):
    found = tune.candidates(available, ["onnxruntime"])
    shapes = {(each.workers, each.threads) for each in found}
    assert all(workers * threads <= available for workers, threads in shapes)
    assert {(1, available), (available, 1), (1, 1)} <= shapes
    assert len(found) == len(set(found)) == 2 * len(shapes)


def test_the_highest_rate_wins_and_the_quickest_answer_among_equals():
    slow = curve(Setting(1, 2), (1, 100, 5.0), (64, 400, 100.0))
    fast = curve(Setting(2, 1), (1, 80, 9.0), (64, 1000, 60.0))
    close = curve(Setting(1, 1), (1, 120, 4.0), (64, 960, 70.0))
    assert tune.best([slow, fast, Measured(Setting(9, 9), refused="no")]) is fast
    assert tune.best([slow, fast, close]) is close


def test_of_two_measurements_the_slower_counts():
    lucky = curve(Setting(2, 1), (1, 90, 1.0), (8, 900, 1.0))
    again = curve(Setting(2, 1), (1, 95, 1.0), (8, 300, 3.0))
    assert tune.slower(lucky, again).points == (lucky.points[0], again.points[1])
    refused = Measured(Setting(2, 1), refused="no room")
    assert tune.slower(lucky, refused) is refused and tune.slower(refused, again) is refused


def test_nothing_measured_says_why():
    with pytest.raises(BundleError, match="cannot be measured: it has no such precision"):
        tune.best([Measured(Setting(1, 1), refused="it has no such precision")])


def test_measures_writes_and_remembers(tmp_path):
    write_image(tmp_path / "store", "9")
    write_image(tmp_path / "store", "10")
    lines = []
    settings = [Setting(1, 1), Setting(2, 1, ahead=2)]
    chosen = tune.tune(tmp_path / "store" / "sides", seconds=0.1, loads=(1, 4), settings=settings, tell=lines.append)
    assert chosen.setting in settings
    assert [point.load for point in chosen.points] == [1, 4]
    assert all(point.rate > 0 and point.p99_ms >= point.median_ms > 0 for point in chosen.points)
    assert tune.remembered(tmp_path / "store") == {
        "workers": chosen.setting.workers, "threads": 1, "engine": "onnxruntime", "ahead": chosen.setting.ahead,
    }  # fmt: skip
    assert "sides version 10" in lines[0]
    assert len(lines) == 2 + 2 * len(settings) + 2  # each twice, with a line between
    assert [path.name for path in (tmp_path / "store").iterdir() if path.is_file()] == [tune.FILE]


def test_text_columns_can_be_asked(tmp_path):
    write_table(tmp_path / "store")
    folder = tmp_path / "store" / "paints" / "1"
    chosen = tune.tune(folder, seconds=0.05, loads=(1,), settings=[Setting(1, 1)], tell=lambda line: None)
    assert chosen.points[0].rate > 0


def test_a_precision_that_is_not_stored_is_refused_by_name(tmp_path):
    write_image(tmp_path / "store")
    with pytest.raises(BundleError, match=r"cannot be measured.*int8"):
        tune.tune(
            tmp_path / "store" / "sides",
            precision="int8",
            seconds=0.05,
            settings=[Setting(1, 1)],
            tell=lambda line: None,
        )


def test_a_folder_without_versions_is_named(tmp_path):
    with pytest.raises(BundleError, match="holds no version of a model; give the folder store/<name>"):
        tune.tune(tmp_path)


def test_settings_of_another_machine_are_left_alone(tmp_path):
    content = {"machine": "an abacus", "settings": {"workers": 3, "threads": 1, "engine": "onnxruntime", "ahead": 1}}
    (tmp_path / tune.FILE).write_text(json.dumps(content))
    assert tune.remembered(tmp_path) == {}
    (tmp_path / tune.FILE).write_text(json.dumps({**content, "machine": tune._machine()}))
    assert tune.remembered(tmp_path)["workers"] == 3


def test_no_settings_without_a_file(tmp_path):
    assert tune.remembered(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no settings"),
        ('{"machine": "", "settings": {"workers": 0, "threads": 1}}', "cannot be used"),
        ('{"machine": "", "settings": {"workers": 1, "threads": 1, "engine": "abacus"}}', "cannot be used"),
    ],
)
def test_a_damaged_file_is_refused_with_a_cure(tmp_path, text, reason):
    (tmp_path / tune.FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{reason}.*remove it, or tune again"):
        tune.remembered(tmp_path)


def test_what_was_asked_for_goes_before_what_was_measured(tmp_path):
    settings = {"workers": 3, "threads": 1, "engine": "onnxruntime", "ahead": 2}
    (tmp_path / tune.FILE).write_text(json.dumps({"machine": tune._machine(), "settings": settings}))
    assert tune.chosen(tmp_path, None, None, None) == settings
    assert tune.chosen(tmp_path, 1, None, None) == {"workers": 1, "threads": None, "engine": "onnxruntime"}
    assert tune.chosen(tmp_path / "elsewhere", None, None, None) == {}
