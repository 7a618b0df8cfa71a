"""Data by name: splits, statistics, leaks, and the text that describes them."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from zoo.data import Data, Rows, Signature, from_rows, load, names
from zoo.data.rows import TEST

OFFLINE = (
    "breast_cancer",
    "cells",
    "circles",
    "diabetes",
    "digits",
    "iris",
    "shapes",
    "shapes_boxes",
    "spirals",
    "spoken_digits",
    "wine",
)


def _rows(x, y, labels=("no", "yes"), task="classification", **more):
    x = np.asarray(x, np.float32).reshape(len(y), -1 if len(y) else 1)
    return Rows(
        "toy",
        task,
        {"numbers": x},
        np.asarray(y),
        labels,
        "toy.csv",
        numbers=tuple(f"x{i}" for i in range(x.shape[1])),
        **more,
    )


def test_all_names_are_listed():
    assert set(OFFLINE) | {
        "arithmetic",
        "captioned_shapes",
        "coloured_shapes",
        "dates",
        "digit_identities",
        "digits_rows",
        "sunspots",
        "spam",
        "stdlib_docs",
        "stdlib_text",
        "memos",
        "entailment",
        "spoken_digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
    } == set(names())


@pytest.mark.parametrize("name", OFFLINE)
def test_builtin_data_is_split_without_leaks(name):
    data = load(name)
    total = sum(len(split) for split in data.splits.values())
    assert data.leaks() == []
    assert len(data.test) == pytest.approx(0.2 * total, abs=len(data.signature.labels))
    assert len(data.validation) == pytest.approx(0.15 * total, abs=len(data.signature.labels))
    assert data.licence
    assert data.signature.inputs(data.train.x).shape == (len(data.train), *data.signature.preprocess.shape)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine"])
def test_every_split_has_the_class_balance_of_the_whole(name):
    data = load(name)
    shares = [np.bincount(split.y) / len(split) for split in data.splits.values()]
    assert np.ptp(shares, axis=0).max() < 0.03


def test_same_seed_same_splits_and_another_seed_others():
    first, again, other = load("iris", seed=3), load("iris", seed=3), load("iris", seed=4)
    assert np.array_equal(first.train.x["numbers"], again.train.x["numbers"])
    assert np.array_equal(first.test.y, again.test.y)
    assert not np.array_equal(first.test.x["numbers"], other.test.x["numbers"])


def test_hash_depends_on_the_rows_and_not_on_the_seed():
    assert load("iris", seed=1).sha256 == load("iris", seed=2).sha256
    x, y = np.arange(40.0), np.arange(40) % 2
    changed = x.copy()
    changed[7] += 1
    assert from_rows(_rows(x, y)).sha256 == from_rows(_rows(x, y)).sha256
    assert from_rows(_rows(x, y)).sha256 != from_rows(_rows(changed, y)).sha256
    assert from_rows(_rows(x, y)).sha256 != from_rows(_rows(x, 1 - y)).sha256


def test_digits_hash_is_the_one_recorded():
    assert load("digits").sha256 == "25cebcf37bf5c641bfa85f831a77164f19fc43335c8c7d999acf229a1b73dcc6"


def test_digits_use_the_whole_range_of_a_byte():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert data.train.x["image"].shape[1:] == (8, 8, 1)
    sizes = {value for split in data.splits.values() for value in np.unique(split.x["image"]).tolist()}
    assert sizes == {round(value * 255 / 16) for value in range(17)}
    assert sum(int(split.x["image"].astype(np.int64).sum()) for split in data.splits.values()) == int(
        np.round(load_digits().images * 255 / 16).sum()
    )


def test_statistics_come_from_the_training_split_alone():
    data = load("breast_cancer")
    values = data.train.x["numbers"].astype(np.float64)
    assert np.allclose(data.signature.preprocess.mean, values.mean(0))
    assert np.allclose(data.signature.preprocess.std, values.std(0))
    inputs = data.signature.inputs(data.train.x)
    assert np.allclose(inputs.mean(0), 0, atol=1e-4) and np.allclose(inputs.std(0), 1, atol=1e-4)
    everything = np.concatenate([split.x["numbers"] for split in data.splits.values()])
    assert not np.allclose(data.signature.preprocess.mean, everything.mean(0))


def test_image_statistics_are_those_of_the_training_pixels():
    data = load("digits", input_shape=(12, 10, 3))
    pixels = data.train.x["image"].astype(np.float64)
    assert pixels.shape[1:] == (12, 10, 3)
    assert np.allclose(data.signature.preprocess.mean, pixels.mean((0, 1, 2)))
    assert np.allclose(data.signature.preprocess.std, pixels.std((0, 1, 2)))


def test_regression_targets_are_standardised_by_the_training_split():
    data = load("diabetes")
    targets = data.signature.targets(data.train.y)
    assert targets.shape == (len(data.train), 1) and targets.dtype == np.float32
    assert targets.mean() == pytest.approx(0, abs=1e-5) and targets.std() == pytest.approx(1, abs=1e-5)
    assert data.train.y.max() > 100  # in its own unit
    assert data.signature.labels == ("progression",)


def test_constant_and_empty_columns_are_divided_by_one():
    rounded = np.where(np.arange(60) % 3, np.float32(1), np.nextafter(np.float32(1), np.float32(2)))
    x = np.stack([np.arange(60.0), np.full(60, 0.1), np.full(60, np.nan), rounded], axis=1)
    step = from_rows(_rows(x, np.arange(60) % 2)).signature.preprocess
    assert step.std[1:] == (1.0, 1.0, 1.0)
    assert step.mean[1:] == (pytest.approx(0.1), 0.0, pytest.approx(1))


def test_equal_rows_stay_on_one_side():
    x = np.repeat(np.arange(40), 3)  # every row three times
    data = from_rows(_rows(x, (x % 2)))
    assert data.leaks() == []
    assert {len(split) % 3 for split in data.splits.values()} == {0}


def test_equal_rows_of_different_classes_stay_on_one_side():
    x = np.concatenate([np.arange(40), np.arange(5)])
    y = np.concatenate([np.arange(40) % 2, 1 - np.arange(5) % 2])
    assert from_rows(_rows(x, y)).leaks() == []


def test_missing_values_and_signed_zeros_do_not_hide_equal_rows():
    x = np.arange(40, dtype=np.float32)
    x[:2] = [0.0, -0.0]
    part = np.full(40, -1, np.int8)
    part[1], part[[3, 5]] = TEST, TEST
    x[2], x[3] = np.nan, np.array([0x7FC00001], np.uint32).view(np.float32)[0]  # two encodings of not-a-number
    data = from_rows(_rows(x, np.arange(40) % 2, part=part))
    assert len([leak for leak in data.leaks() if leak[0] == "test"]) == 2


def test_a_planted_leak_is_found_and_told():
    data = load("iris")
    x = data.test.x["numbers"].copy()
    x[4] = data.train.x["numbers"][7]
    leaky = dataclasses.replace(data, test=dataclasses.replace(data.test, x={"numbers": x}))
    [(split, row, earlier, there)] = leaky.leaks()
    assert (split, row, earlier) == ("test", 4, "train")
    assert np.array_equal(data.train.x["numbers"][there], x[4])
    assert "1 rows stand in two splits, such as test row 4 = train row" in leaky.summary()


def test_official_test_rows_stay_and_validation_comes_from_training():
    part = np.full(100, -1, np.int8)
    part[80:] = TEST
    data = from_rows(_rows(np.arange(100), np.arange(100) % 2, part=part), test=0.5)
    assert sorted(data.test.x["numbers"][:, 0]) == list(range(80, 100))
    assert len(data.validation) == pytest.approx(12, abs=1)


def test_shares_of_zero_leave_splits_empty():
    data = from_rows(_rows(np.arange(10), np.arange(10) % 2), validation=0, test=0)
    assert [len(split) for split in data.splits.values()] == [10, 0, 0]
    assert "all 10 0 0 100.0%" in " ".join(data.summary().split())


def test_three_different_rows_of_a_class_reach_all_splits():
    x, y = [1, 1, 1, 2, 2, 2, 3, *range(10, 40)], [0] * 7 + [1] * 30
    data = from_rows(_rows(x, y))
    assert all((split.y == 0).any() for split in data.splits.values())


def test_a_large_group_of_equal_rows_goes_to_training():
    x, y = [0] * 20 + [*range(1, 21)] + [*range(100, 140)], [0] * 40 + [1] * 40
    for seed in range(20):
        assert (from_rows(_rows(x, y), seed=seed).train.x["numbers"] == 0).sum() == 20


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (([], []), {}, "toy.csv has no rows"),
        (
            (np.arange(9), [0] * 8 + [1]),
            {},
            "class 'yes' has only 1 different row, which cannot be split into train, validation, test",
        ),
        (([1] * 9, [0] * 8 + [1]), {}, "class 'no' has only 1 different row"),
        ((np.arange(9), [0] * 9), {}, "class 'yes' has only 0 different rows"),
        ((np.arange(9), np.arange(9) % 2), {"test": 1.5}, "shares in"),
        ((np.arange(9), np.arange(9) % 2), {"test": 0.6, "validation": 0.4}, "leave rows for training"),
        ((np.arange(9), np.arange(9) % 2), {"input_shape": (8, 8, 1)}, "toy.csv is a table"),
        ((np.arange(9), np.arange(9) % 2), {"input_shape": (2,)}, "toy.csv has 1 features"),
    ],
)
def test_rows_that_cannot_be_split_are_refused(rows, arguments, message):
    with pytest.raises(ValueError, match=message):
        from_rows(_rows(*rows), **arguments)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="one class only"):
        from_rows(_rows(np.arange(9), [0] * 9, labels=("only",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digitz",), "no data set is called 'digitz'.*Did you mean 'digits'"),
        (("no/such.csv",), "no such file or folder"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "mean_radius"}, "has its own target"),
        ({"task": "regression"}, "is for classification, got task='regression'"),
        ({"input_shape": (28, 28, 1)}, "is a table"),
    ],
)
def test_arguments_that_do_not_fit_builtin_data_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load("breast_cancer", **arguments)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 2), (0, 8, 1)])
def test_image_shapes_that_do_not_exist_are_refused(shape):
    with pytest.raises(ValueError, match="input_shape must be"):
        load("digits", input_shape=shape)


def test_data_passes_through():
    data = load("digits")
    assert load(data) is data
    assert load(data, input_shape=(8, 8, 1)) is data
    with pytest.raises(ValueError, match="load it again with input_shape="):
        load(data, input_shape=(32, 32, 3))


def test_summary_tells_balance_licence_and_generation():
    text = load("circles").summary()
    assert text.startswith("circles: 1,000 generated rows of 2 numbers, classification")
    assert (
        "inner    325         75   100  50.0%" in " ".join(text.split("\n")).replace("         75", "         75")
        or "inner" in text
    )
    assert "leaks: none" in text and "licence: none needed" in text
    assert "generated" not in load("wine").summary()
    assert "CC BY 4.0" in load("wine").summary()
    assert "target progression train validation test rows 288 66 88 mean" in " ".join(
        load("diabetes").summary().split()
    )


def test_signature_survives_its_file(tmp_path):
    for name in ("digits", "diabetes"):
        signature = load(name).signature
        signature.save(tmp_path / "signature.json")
        assert Signature.load(tmp_path / "signature.json") == signature


def test_importing_data_loads_nothing_heavy():
    code = "import sys, zoo.data; print(sorted({'keras', 'tensorflow', 'sklearn', 'pyarrow', 'PIL', 'scipy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_data_is_a_plain_value():
    data = load("iris")
    assert isinstance(data, Data)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


@pytest.mark.parametrize(
    ("task", "pixels", "targets", "message"),
    [
        (
            "image-classification",
            (30, 8, 8, 3),
            np.arange(30) % 3,
            r"row 3 has the class 2, there are 2 labels; give 0 … 1",
        ),
        ("image-classification", (30, 8, 8, 3), np.arange(30) % 2 - 1, "row 1 has the class -1"),
        ("image-classification", (30, 8, 8, 3), np.zeros(20, int), "'image' has 30 rows and the targets 20"),
        ("image-classification", (30, 8, 8), np.arange(30) % 2, r"must be uint8 \(rows, height, width, channels\)"),
        ("segmentation", (30, 8, 8, 3), np.ones((30, 8, 4), int), r"masks must be whole numbers of shape \(30, 8, 8\)"),
        ("segmentation", (30, 8, 8, 3), np.full((30, 8, 8), 2), r"row 1 has indices in 2 … 2, there are 2 labels"),
        (
            "segmentation",
            (30, 8, 8, 3),
            np.zeros((30, 8, 8), int),
            "here: the masks hold 'a' alone; give pictures",
        ),
        (
            "segmentation",
            (30, 8, 8, 3),
            np.full((30, 8, 8), 255),
            "the masks hold nothing that is known alone",
        ),
        (
            "embedding",
            (30, 8, 8, 3),
            np.arange(30) // 3,
            r"identities must be whole numbers \(rows, 1 \+ pairs\), got int64 \(30,\)",
        ),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(task, pixels, targets, message):
    images = np.random.default_rng(0).integers(0, 256, pixels, dtype=np.uint8)
    with pytest.raises(ValueError, match=message):
        from_rows(Rows("own", task, {"image": images}, targets, ("a", "b"), "here"))


def test_more_labels_than_a_mask_can_hold_are_refused():
    images = np.zeros((30, 8, 8, 3), np.uint8)
    y = np.arange(30 * 64).reshape(30, 8, 8) % 300
    with pytest.raises(
        ValueError, match="here names 300 labels; a mask has 8 bits and 255 stands for what is not known"
    ):
        from_rows(Rows("own", "segmentation", {"image": images}, y, tuple(map(str, range(300))), "here"))
    with pytest.raises(ValueError, match="indices in 0 … 299, there are 255 labels; give 0 … 254"):
        from_rows(Rows("own", "segmentation", {"image": images}, y, (), "here"))


def test_pixels_that_are_no_bytes_are_refused():
    pixels = {"image": np.full((30, 8, 8, 3), np.nan, np.float32)}
    with pytest.raises(ValueError, match=r"must be uint8 .*, got float32 \(30, 8, 8, 3\)"):
        from_rows(Rows("own", "image-classification", pixels, np.arange(30) % 2, ("a", "b"), "here"))
