"""Planted copies, near copies, telling columns, ids, times and wrong labels are found; clean data gives no alarm."""

import dataclasses
import json

import numpy as np
import pytest

from zoo import data
from zoo.data import Split
from zoo.data import rows as raw
from zoo.evaluate.labels import doubtful, doubtful_labels
from zoo.evaluate.leakage import described, leakage


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def with_test(splits, **changes):
    return dataclasses.replace(splits, test=Split(changes.get("x", splits.test.x), changes.get("y", splits.test.y)))


def text(found):
    return "\n".join(map(str, found.findings))


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer", "diabetes", "circles", "spirals"])
def test_clean_data_gives_no_alarm(name):
    found = leakage(name)
    assert not found.copies and not found.near and not found.findings, str(found)
    assert "nothing leaks" in str(found)


def test_equal_rows_are_found_with_their_place(digits):
    images = digits.test.x["image"].copy()
    images[:3] = digits.train.x["image"][10:13]
    found = leakage(with_test(digits, x={"image": images}), near=False)
    assert [(copy.split, copy.row, copy.earlier, copy.there) for copy in found.copies] == [
        ("test", 0, "train", 10), ("test", 1, "train", 11), ("test", 2, "train", 12),
    ]  # fmt: skip
    assert "3 of 359 rows are equal to rows of an earlier split" in text(found) and "in one split" in text(found)


CHANGES = {
    "brightness": lambda image, random: image * 0.8 + 20,
    "noise": lambda image, random: image + random.normal(0, 6, image.shape),
    "mirrored": lambda image, random: image[:, ::-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_are_almost_equal_are_found_and_no_others(digits, change, tmp_path):
    random = np.random.default_rng(3)
    images = digits.test.x["image"].copy()
    taken = random.choice(len(digits.train), 12, replace=False)
    for row, source in enumerate(taken):
        image = digits.train.x["image"][source].astype(float)
        images[row] = np.clip(CHANGES[change](image, random), 0, 255)
    labels = digits.test.y.copy()
    labels[:12] = digits.train.y[taken]
    found = leakage(with_test(digits, x={"image": images}, y=labels))
    assert {(copy.row, copy.there) for copy in found.near} == set(enumerate(taken.tolist()))
    assert all(copy.mirrored == (change == "mirrored") and not copy.other_target for copy in found.near)
    assert "12 of 359 rows are almost equal" in text(found)
    assert found.plot(tmp_path / "pairs.png").stat().st_size > 10_000


def test_a_copy_with_another_label_is_told(digits):
    images, labels = digits.test.x["image"].copy(), digits.test.y.copy()
    images[0], labels[0] = digits.train.x["image"][5], (digits.train.y[5] + 1) % 10
    found = leakage(with_test(digits, x={"image": images}, y=labels), near=False)
    assert found.copies[0].other_target and "settle which target is right" in text(found)


def test_large_images_are_described_like_their_small_versions():
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (3, 20, 16, 3)).astype(np.uint8)
    large = small.repeat(7, axis=1).repeat(7, axis=2)
    splits = data.load("digits")
    one, other = (described(splits, {"image": images}) for images in (small, large))
    assert np.abs(one - other).max() < 0.1 and np.abs(one[0] - one[1]).max() > 0.2


def table(path, rows=400, seed=0, **columns):
    """A CSV of three honest columns, more given ones, and a target they do not quite tell."""
    random = np.random.default_rng(seed)
    honest = random.normal(size=(rows, 3))
    target = honest.sum(axis=1) + random.normal(size=rows) > 0
    made = {name: make(target, random) for name, make in columns.items()}
    lines = [",".join(["a", "b", "c", *made, "ill"])]
    for row in range(rows):
        values = [*(f"{v:.6f}" for v in honest[row]), *(str(column[row]) for column in made.values())]
        lines.append(",".join([*values, "yes" if target[row] else "no"]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_rows_of_a_table_that_are_almost_equal_are_found():
    splits = data.load("breast_cancer")
    random = np.random.default_rng(0)
    numbers = splits.test.x["numbers"].copy()
    numbers[:5] = splits.train.x["numbers"][:5] * (1 + 1e-4 * random.normal(size=(5, numbers.shape[1])))
    found = leakage(with_test(splits, x={"numbers": numbers}))
    assert {(copy.row, copy.there) for copy in found.near} == {(i, i) for i in range(5)}


def test_an_honest_table_gives_no_alarm(tmp_path):
    found = leakage(table(tmp_path / "clean.csv"), target="ill")
    assert not found.findings, str(found)


@pytest.mark.parametrize(
    ("column", "make", "expected"),
    [
        ("treated", lambda y, random: np.where(y, 7.5, 2.5) + random.normal(0, 0.3, len(y)), "tells the target by itself"),
        ("ward", lambda y, random: np.where(y, "ward two", "ward one"), "tells the target by itself"),
        ("place", lambda y, random: random.permutation(len(y)), "counts the rows"),
        ("patient_id", lambda y, random: random.choice(10**7, len(y), replace=False), "hardly any value twice"),
        ("seen", lambda y, random: random.integers(1_500_000_000, 1_600_000_000, len(y)), "looks like a time"),
        ("day", lambda y, random: [f"{d:02}.{m:02}.2024" for d, m in random.integers(1, 13, (len(y), 2))], "like a time"),
        ("born", lambda y, random: [int(f"19{n}0317") for n in random.integers(10, 99, len(y))], "looks like a time"),
        ("patient", lambda y, random: random.integers(0, 60, len(y)), "looks like a group"),
    ],
)  # fmt: skip
def test_planted_columns_are_named(tmp_path, column, make, expected):
    found = leakage(table(tmp_path / "leaky.csv", **{column: make}), target="ill")
    assert [finding.where for finding in found.findings] == [f"column {column!r}"], str(found)
    (finding,) = found.findings
    assert expected in finding.what and finding.advice
    assert found.plot(tmp_path / "columns.png").stat().st_size > 10_000
    assert json.loads(found.to_json())["findings"][0]["where"] == f"column {column!r}"


def test_a_text_that_is_never_twice_is_an_id():
    random = np.random.default_rng(0)
    rows = raw.Rows(
        "made", "classification",
        {"numbers": random.normal(size=(100, 1)).astype(np.float32), "categories": np.array([[f"n{n}"] for n in range(100)])},
        random.integers(0, 2, 100), ("no", "yes"), "made here", numbers=("size",), categories=("name",),
    )  # fmt: skip
    found = leakage(data.from_rows(rows))
    assert [f.where for f in found.findings] == ["column 'name'"] and "an id" in text(found)


def test_a_missing_value_that_tells_the_target_is_named(tmp_path):
    def result(y, random):
        return np.where(y, random.normal(size=len(y)).round(3).astype(str), "")

    found = leakage(table(tmp_path / "gaps.csv", result=result), target="ill")
    assert [finding.where for finding in found.findings] == ["column 'result'"]


def test_a_pixel_that_tells_the_class_is_named(digits):
    parts = {}
    for name, split in digits.splits.items():
        images = split.x["image"].copy()
        images[:, 0, 0, 0] = 25 * split.y
        parts[name] = Split({"image": images}, split.y)
    found = leakage(dataclasses.replace(digits, **parts), near=False)
    assert [finding.where for finding in found.findings] == ["pixel (0, 0)"] and found.columns[0].alone == 1


def test_a_column_that_holds_the_value_of_a_regression_is_named():
    splits = data.load("diabetes")
    parts = {}
    for name, split in splits.splits.items():
        numbers = split.x["numbers"].copy()
        numbers[:, 4] = 2 * split.y + 1
        parts[name] = Split({"numbers": numbers}, split.y)
    found = leakage(dataclasses.replace(splits, **parts), near=False)
    assert [f.where for f in found.findings] == [f"column {splits.signature.preprocess.numbers[4]!r}"]


# Labels


def test_wrong_labels_come_first(digits, tmp_path):
    random = np.random.default_rng(0)
    labels = digits.train.y.copy()
    wrong = random.choice(len(labels), 30, replace=False)
    labels[wrong] = (labels[wrong] + random.integers(1, 10, 30)) % 10
    found = doubtful_labels(dataclasses.replace(digits, train=Split(digits.train.x, labels)))
    listed = [doubt.row for doubt in found.doubts if doubt.split == "train"]
    assert len(set(listed) & set(wrong.tolist())) >= 21 and len(listed) <= 45
    assert len(set(listed[:15]) & set(wrong.tolist())) >= 12
    right = {row: str(digits.train.y[row]) for row in wrong.tolist()}
    likely = [
        doubt.likely == right[doubt.row] for doubt in found.doubts if doubt.split == "train" and doubt.row in right
    ]
    assert np.mean(likely) > 0.9 and "look wrong" in text(found) and "correct or remove" in text(found)
    assert found.plot(tmp_path / "doubts.png").stat().st_size > 10_000


def test_confident_learning_by_hand():
    answers = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8], [0.3, 0.7], [0.45, 0.55]])
    labels = np.array([0, 0, 0, 1, 1, 0])
    # The mean probability of class 0 among its rows is 0.6125, that of class 1 among its rows 0.75. No row labelled 0 is
    # confidently of 1, so none is thought wrong; row 2 is ahead by 0.4 and row 5 by 0.1, which is not clear.
    assert doubtful(answers, labels) == []
    answers[2] = (
        0.1,
        0.9,
    )  # the mean of class 0 falls to 0.5625: of three confident rows one is of 1, so 4/3 labels are wrong
    assert doubtful(answers, labels) == [(2, 1, pytest.approx(0.8))]


def test_a_model_of_the_zoo_can_judge_the_labels():
    splits = data.load("iris")
    labels = splits.test.y.copy()
    labels[:2] = (labels[:2] + 1) % 3
    found = doubtful_labels(with_test(splits, y=labels), model="logistic_regression", folds=2, epochs=8)
    assert found.judge == "logistic_regression" and found.accuracy > 0.7
    assert {("test", 0), ("test", 1)} & {(doubt.split, doubt.row) for doubt in found.doubts}


def test_labels_refuse_what_has_none():
    with pytest.raises(ValueError, match="data 'diabetes' has values, not labels"):
        doubtful_labels("diabetes")
    with pytest.raises(ValueError, match="got folds=1"):
        doubtful_labels("iris", folds=1)
    with pytest.raises(TypeError, match="'epochs' is a setting of a named model"):
        doubtful_labels("iris", epochs=3)


def test_texts_of_a_table_are_looked_at_alone(tmp_path):
    lines = [f"so it was {n} then,and {2 * n} now,{'yes' if n % 2 else 'no'},{n}" for n in range(60)]
    file = tmp_path / "told.csv"
    file.write_text("\n".join(["first,then,label,number", *lines, *lines[:20]]), encoding="utf-8")
    assert len(leakage(file, target="label", text="first,then").copies) == len(
        leakage(file, target="label", text="first").copies
    )
    assert not leakage(file, target="label", text="then").columns
    with pytest.raises(ValueError, match="has no column 'second' besides its target"):
        leakage(file, target="label", text="second")
