"""Identities as data: photographs with pairs.txt, numbers made of digits, splits that share nobody."""

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.data import Rows, from_rows
from zoo.data.targets import Identities
from zoo.evaluate import verification

PEOPLE = ("Ann_Lee", "Bo", "Cy_Ek", "Di", "Ed_Ova", "Fi")


@pytest.fixture
def folder(tmp_path):
    """Six people with three pictures each, as Labeled Faces in the Wild names them."""
    random = np.random.default_rng(0)
    for name in PEOPLE:
        (tmp_path / name).mkdir()
        for number in (1, 2, 3):
            pixels = random.integers(0, 256, (6, 5, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{name}_{number:04d}.png")
    return tmp_path


def listed(folder, *lines):
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder


GOOD = (
    "2\t2",
    "Ann_Lee\t1\t2",
    "Bo\t1\t3",
    "Ann_Lee\t1\tBo\t2",
    "Ann_Lee\t3\tBo\t1",
    "Ann_Lee\t2\t3",
    "Bo\t1\t2",
    "Ann_Lee\t1\tBo\t1",
    "Ann_Lee\t2\tBo\t3",
)


def test_people_in_pairs_are_the_test_split_and_all_others_are_learnt_from(folder):
    data = zoo.data.load(listed(folder, *GOOD), seed=3)
    assert data.signature.task == "embedding" and data.signature.labels == ()
    assert data.signature.preprocess.shape == (6, 5, 3)
    owners = {part: set(split.y[:, 0].tolist()) for part, split in data.splits.items()}
    assert list(map(len, owners.values())) == [3, 1, 2]
    assert set.union(*owners.values()) == set(range(6)) and owners["train"] == {0, 1, 2}
    assert len(data.test) == 6
    pairs = verification.given(data.test.y)
    assert len(pairs) == 8 and pairs.same.sum() == 4 and np.bincount(pairs.fold).tolist() == [4, 4]
    picture = {number: np.asarray(Image.open(folder / "Bo" / f"Bo_000{number}.png")) for number in (1, 2, 3)}
    both = [
        (data.test.x["image"][left], data.test.x["image"][right])
        for left, right, same in zip(pairs.left, pairs.right, pairs.same, strict=True)
        if same
    ]
    assert any(
        {left.tobytes(), right.tobytes()} == {picture[1].tobytes(), picture[3].tobytes()} for left, right in both
    )
    assert "  identities      3           1     2" in data.summary().replace("  train  validation  test", "")


def test_pictures_are_brought_to_the_size_asked_for(folder):
    data = zoo.data.load(listed(folder, *GOOD), input_shape=(8, 8, 1))
    assert data.train.x["image"].shape[1:] == (8, 8, 1)


def test_without_pairs_people_are_dealt_whole_to_three_splits(folder):
    listed(folder)
    for source in ({}, {"task": "embedding"}):
        if source:
            (folder / "pairs.txt").unlink()
        data = zoo.data.load(folder, **source)
        owners = [set(split.y[:, 0].tolist()) for split in data.splits.values()]
        assert all(owners) and sum(map(len, owners)) == len(set.union(*owners)) == 6
        assert verification.given(data.test.y) is None
    assert zoo.data.load(folder).signature.task == "image-classification"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("ten 300",),
            r"line 1: the first line must be the number of folds and of pairs in each, such as '10 300', got",
        ),
        (("1 1", "Bo 1 2"), r"line 1 promises 2 pairs, 1 of one person and 1 of two in each fold, and 1 lines follow"),
        (("1 1", "Bo 1", "Bo 1 Fi 1"), r"line 2: 'name number number' is due here, got 'Bo 1'"),
        (("1 1", "Bo 1 2", "Bo 1 Fi"), r"line 3: 'name number name number' is due here, got 'Bo 1 Fi'"),
        (("1 1", "Bo 1 2", "", "Bo 1 Bo 2"), r"line 4: two pictures of two people are due here, got 'Bo 1 Bo 2'"),
        (("1 1", "Bo 2 2", "Bo 1 Fi 2"), r"line 2: two pictures of one person are due here, got 'Bo 2 2'"),
        (("1 1", "Bo 1 2", "Bo 1 Gus 2"), r"line 3: there is no folder 'Gus' beside this file"),
        (("1 1", "Bo 1 2", "Bo 1 Fi 9"), r"line 3: there is no picture Fi_0009 in .*Fi"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(folder, lines, message):
    with pytest.raises(ValueError, match=f"pairs.txt.{{1,2}}{message}"):
        zoo.data.load(listed(folder, *lines))


def test_too_few_people_to_learn_from_are_refused(folder):
    lines = ["1 2", "Bo 1 2", "Cy_Ek 1 2", "Bo 1 Ann_Lee 1", "Di 1 Ed_Ova 1"]
    with pytest.raises(ValueError, match=r"names 5 of its 6 people, which leaves 1; training and validation need at"):
        zoo.data.load(listed(folder, *lines))
    for name in PEOPLE[2:5]:
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    with pytest.raises(ValueError, match="has 3 people; training, validation and test need at least four"):
        zoo.data.load(listed(folder))


def test_equal_pictures_of_two_people_keep_these_in_one_split():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 4, 4, 1), np.uint8)
    identities = np.repeat(np.arange(12), 5)
    images[::5] = images[0]  # one picture is filed under everybody …
    images[35::5] = random.integers(0, 256, (5, 4, 4, 1), np.uint8)  # … but the last five
    rows = Rows("people", "embedding", {"image": images}, Identities.packed(identities), (), "test")
    for seed in range(3):
        data = from_rows(rows, seed=seed)
        assert data.leaks() == []
        groups = [{images[row].tobytes() for row in np.flatnonzero(identities == who)} for who in range(12)]
        at = [
            {part for part, split in data.splits.items() for image in split.x["image"] if image.tobytes() in group}
            for group in groups
        ]
        assert all(len(parts) == 1 for parts in at)
        assert len(set.union(*at[:7])) == 1 and len(set.union(*at)) == 3


def test_numbers_of_training_come_first_and_the_hash_does_not_depend_on_the_split():
    random = np.random.default_rng(0)
    identities = np.repeat(np.arange(100, 130), 4)
    images = random.integers(0, 256, (120, 4, 4, 1), np.uint8)
    rows = Rows("people", "embedding", {"image": images}, Identities.packed(identities), (), "test")
    one, other = (from_rows(rows, seed=seed) for seed in (0, 1))
    assert one.sha256 == other.sha256
    for data in (one, other):
        known = np.unique(data.train.y[:, 0])
        assert known.tolist() == list(range(len(known)))
        assert min(data.validation.y.min(), data.test.y.min()) == len(known)


def test_digit_identities_share_neither_a_number_nor_a_written_digit():
    data, written = zoo.data.load("digit_identities"), zoo.data.load("digits")
    assert {part: (len(split), len(np.unique(split.y))) for part, split in data.splits.items()} == {
        "train": (2560, 64), "validation": (800, 16), "test": (1000, 20),
    }  # fmt: skip
    used = [
        {half.tobytes() for half in np.concatenate([split.x["image"][:, :, :8], split.x["image"][:, :, 8:]])}
        for split in data.splits.values()
    ]
    assert sum(map(len, used)) == len(set.union(*used))
    known = {
        image.tobytes(): label
        for split in written.splits.values()
        for image, label in zip(split.x["image"], split.y, strict=True)
    }
    seen = {}
    for image, identity in zip(data.test.x["image"], data.test.y[:, 0], strict=True):
        number = tuple(known[np.ascontiguousarray(half).tobytes()] for half in (image[:, :8], image[:, 8:]))
        assert seen.setdefault(identity, number) == number
    assert len(set(seen.values())) == 20
