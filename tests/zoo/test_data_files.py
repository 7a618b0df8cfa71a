"""A user's own data: folders of images, CSV and Parquet, .npz; and what is said of files that cannot be used."""

import datetime

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from zoo.data import Signature, load


def _folder(path, count=6, size=(7, 5), mode="RGB", classes=("cat", "dog"), seed=0):
    """Class folders of random images, as saved; returns their pixels in file order."""
    random = np.random.default_rng(seed)
    found = []
    for label in classes:
        (path / label).mkdir(parents=True)
        for index in range(count):
            image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 4), np.uint8), "RGBA").convert(mode)
            image.save(path / label / f"{index}.png")
            found.append(np.asarray(image))
    return np.stack(found)


def _csv(path, text):
    file = path / "people.csv"
    file.write_text(text, encoding="utf-8")
    return file


def _people(rows=60):
    lines = ["age,town,member,ill"]
    for row in range(rows):
        age = "" if row == 5 else str(20 + row)
        town = "" if row == 6 else ("Bonn", "Köln", "Trier")[row % 3]
        lines.append(f"{age},{town},{'true' if row % 2 else 'false'},{'yes' if row % 4 == 0 else 'no'}")
    return "\n".join(lines) + "\n"


def test_folder_of_images_keeps_pixels_and_names_classes(tmp_path):
    pixels = _folder(tmp_path / "pets")
    (tmp_path / "pets" / ".DS_Store").write_text("x")
    data = load(tmp_path / "pets")
    assert (
        data.name == "pets"
        and data.signature.labels == ("cat", "dog")
        and data.signature.task == "image-classification"
    )
    assert data.signature.preprocess.shape == (5, 7, 3)
    found = np.concatenate([split.x["image"] for split in data.splits.values()])
    assert sorted(map(bytes, found)) == sorted(map(bytes, pixels))
    for split in data.splits.values():
        for image, label in zip(split.x["image"], split.y, strict=True):
            assert (pixels[6 * label : 6 * label + 6] == image).all((1, 2, 3)).any()


def test_folder_with_its_own_splits_keeps_them(tmp_path):
    _folder(tmp_path / "pets" / "train", count=8, seed=1)
    test = _folder(tmp_path / "pets" / "test", count=2, seed=2)
    data = load(tmp_path / "pets")
    assert sorted(map(bytes, data.test.x["image"])) == sorted(map(bytes, test))
    assert (len(data.train), len(data.validation)) == (14, 2)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_channels_follow_the_images(tmp_path, mode, channels):
    _folder(tmp_path / "pets", mode=mode)
    assert load(tmp_path / "pets").train.x["image"].shape[1:] == (5, 7, channels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_size_are_resized_and_converted(tmp_path, channels):
    _folder(tmp_path / "pets" / "a", classes=("cat",))
    _folder(tmp_path / "pets" / "b", size=(20, 30), classes=("dog",))
    (tmp_path / "pets" / "a" / "cat").rename(tmp_path / "pets" / "cat")
    (tmp_path / "pets" / "b" / "dog").rename(tmp_path / "pets" / "dog")
    for empty in ("a", "b"):
        (tmp_path / "pets" / empty).rmdir()
    data = load(tmp_path / "pets", input_shape=(9, 11, channels))
    assert data.train.x["image"].shape[1:] == (9, 11, channels) and data.train.x["image"].dtype == np.uint8
    with pytest.raises(
        ValueError,
        match=r"images differ in size: .*0.png is 5x7 pixels, .*0.png 30x20; say what size .* --set input_shape=32,32,",
    ):
        load(tmp_path / "pets")


def test_photographs_stand_upright(tmp_path):
    _folder(tmp_path / "pets", count=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    for file in (tmp_path / "pets").glob("*/*.png"):
        with Image.open(file) as image:
            image.load()
            image.save(file, exif=exif)
    assert load(tmp_path / "pets").train.x["image"].shape[1:] == (7, 5, 3)


def test_bad_folders_are_refused_with_the_file_named(tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "pets")

    (tmp_path / "pets").mkdir()
    refused("needs one folder of images for each of at least two classes, found none")
    _folder(tmp_path / "pets" / "x", classes=("cat",))
    (tmp_path / "pets" / "x" / "cat").rename(tmp_path / "pets" / "cat")
    (tmp_path / "pets" / "x").rmdir()
    refused("found 'cat'")
    (tmp_path / "pets" / "dog").mkdir()
    refused("class folder .*dog is empty")
    (tmp_path / "pets" / "dog" / "notes.txt").write_text("not an image")
    refused("cannot read the image .*notes.txt")
    (tmp_path / "pets" / "dog" / "notes.txt").unlink()
    whole = (tmp_path / "pets" / "cat" / "0.png").read_bytes()
    (tmp_path / "pets" / "dog" / "half.png").write_bytes(whole[: len(whole) // 2])
    refused("cannot read the image .*half.png")
    (tmp_path / "pets" / "dog" / "half.png").unlink()
    Image.fromarray(np.zeros((5, 7), np.uint16)).save(tmp_path / "pets" / "dog" / "deep.png")
    refused("deep.png: its pixels have the mode 'I;16', not 8 bits")
    (tmp_path / "pets" / "stray.png").write_bytes(whole)
    refused("stray.png stands beside the folders of the classes")


def test_csv_becomes_numbers_and_categories(tmp_path):
    data = load(_csv(tmp_path, _people()), target="ill")
    step = data.signature.preprocess
    assert data.signature.task == "classification" and data.signature.labels == ("no", "yes")
    assert step.numbers == ("age",)
    assert step.categories == {"town": ("Bonn", "Köln", "Trier"), "member": ("false", "true")}
    assert step.features == ("age", "town=Bonn", "town=Köln", "town=Trier", "member=false", "member=true")
    rows = {
        "numbers": np.concatenate([split.x["numbers"] for split in data.splits.values()]),
        "categories": np.concatenate([split.x["categories"] for split in data.splits.values()]),
    }
    assert rows["numbers"].dtype == np.float32 and rows["categories"].dtype.kind == "U"
    assert np.isnan(rows["numbers"]).sum() == 1 and (rows["categories"] == "").sum() == 1
    inputs = data.signature.inputs(rows)
    assert inputs.shape == (60, 6) and np.isfinite(inputs).all()
    assert inputs[np.isnan(rows["numbers"][:, 0]), 0].item() == 0  # a missing number counts as the mean
    assert inputs[rows["categories"][:, 0] == "", 1:4].sum() == 0  # a missing category is none of the known ones
    assert "missing values: age 1, town 1" in data.summary()


def test_parquet_gives_what_csv_gives(tmp_path):
    from pyarrow import csv

    file = _csv(tmp_path, _people())
    table = csv.read_csv(file, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    table = table.set_column(1, "town", table["town"].dictionary_encode())
    parquet.write_table(table, tmp_path / "people.parquet")
    assert load(tmp_path / "people.parquet", target="ill").sha256 == load(file, target="ill").sha256


def test_usual_target_names_are_found_and_semicolons_read(tmp_path):
    text = _people().replace("ill\n", "label\n", 1).replace(",", ";")
    assert load(_csv(tmp_path, text)).signature.labels == ("no", "yes")


@pytest.mark.parametrize(
    ("values", "task", "expected", "labels"),
    [
        (["3", "5"], None, "classification", ("3", "5")),
        (["false", "true"], None, "classification", ("false", "true")),
        (["0.5", "1.5", "2.5"], None, "regression", ("ill",)),
        ([str(i) for i in range(30)], None, "regression", ("ill",)),
        (["3", "5"], "regression", "regression", ("ill",)),
        (["3.0", "5.0"], "classification", "classification", ("3", "5")),
    ],
)
def test_task_follows_the_target(tmp_path, values, task, expected, labels):
    lines = [f"{row},{values[row % len(values)]}" for row in range(60)]
    data = load(_csv(tmp_path, "x,ill\n" + "\n".join(lines)), target="ill", task=task)
    assert (data.signature.task, data.signature.labels) == (expected, labels)


def test_categories_seen_only_outside_training_count_as_unknown(tmp_path):
    data = load(_csv(tmp_path, _people()), target="ill")
    raw = {"numbers": np.zeros((1, 1), np.float32), "categories": np.array([["Ulm", "true"]])}
    assert data.signature.inputs(raw)[0, 1:].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", {}, "people.csv is empty"),
        ("a,ill\n", {"target": "ill"}, "has a header and no rows"),
        (_people(), {}, "which column of .*people.csv is the target.*'age', 'town', 'member', 'ill'"),
        (_people(), {"target": "il"}, "has no column 'il'. Did you mean 'ill'"),
        (
            _people(),
            {"target": "ill", "task": "sorting"},
            "people.csv is not read for task='sorting'; tasks are classification, .*, language-modelling, masked-language-mod",
        ),
        ("ill\n1\n2\n", {"target": "ill"}, "no column besides the target"),
        ("a,a,ill\n1,2,3\n", {"target": "ill"}, "several columns called 'a'"),
        ("a,ill\n1,x\n2\n", {"target": "ill"}, "row 2 has 1 cells, the header has 2: '2'"),
        ("a,ill\n1,x\n2,y\n3,\n", {"target": "ill"}, "target 'ill' is missing in row 3"),
        ("a,ill\n1,0.5\n2,nan\n", {"target": "ill"}, "target 'ill' is missing in row 2"),
        ("a,ill\n1,x\n2,x\n", {"target": "ill"}, "target 'ill' has one class only, 'x'"),
        ("a,ill\n1,x\n2,y\n", {"target": "ill"}, "class 'x' has only 1 different row, which cannot be split"),
        ("a,ill\n1,x\n2,y\n", {"target": "ill", "task": "regression"}, "holds text such as 'x' in row 1"),
        (
            "a,ill\n1,0.5\n2,1\n",
            {"target": "ill", "task": "classification"},
            "the value 0.5 in row 1, which is no class",
        ),
        ("a,ill\n1,2\n2,2\n", {"target": "ill", "task": "regression"}, "is 2 in every row"),
        (
            "day,ill\n2020-01-01,x\n2020-01-02,y\n",
            {"target": "ill"},
            "column 'day' has the type date32.*--task forecasting",
        ),
        ("a,b,ill\n1,,x\n2,,y\n", {"target": "ill"}, "column 'b' has no value in any row"),
        (
            "a,ill\n" + "".join(f"{i},x\n" for i in range(30)) + "twelve,y\n",
            {"target": "ill"},
            "'a' holds numbers, but 'twelve' in row 31",
        ),
        ("a;ill\n1,5;x\n2,25;y\n", {"target": "ill"}, "column 'a' has numbers with a decimal comma, such as '1,5'"),
        ('a,ill\n"1,x\n2,y\n', {"target": "ill"}, "people.csv"),
    ],
)
def test_bad_tables_are_refused_with_file_and_row(tmp_path, text, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(_csv(tmp_path, text), **arguments)
    assert "people.csv" in str(caught.value)


def test_categories_survive_the_signature_file(tmp_path):
    signature = load(_csv(tmp_path, _people()), target="ill").signature
    signature.save(tmp_path / "signature.json")
    assert Signature.load(tmp_path / "signature.json") == signature


def test_large_integers_and_columns_without_values(tmp_path):
    table = {"a": [2**60 + 2**50 * row for row in range(40)], "b": ["x", ""] * 20, "ill": [0, 1, 1, 0] * 10}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet", target="ill").train.x["numbers"].max() > 1e18
    table["b"] = [""] * 40
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="column 'b' has no value in any row"):
        load(tmp_path / "t.parquet", target="ill")


def test_identifiers_are_refused(tmp_path):
    text = "name,ill\n" + "".join(f"n{row},{row % 2}\n" for row in range(40))
    with pytest.raises(ValueError, match="column 'name' has 40 different texts in 40 rows"):
        load(_csv(tmp_path, text), target="ill")


def test_other_encodings_and_damaged_files_are_refused(tmp_path):
    file = tmp_path / "people.csv"
    file.write_bytes("town,ill\nKöln,x\nBonn,y\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"people\.csv is not UTF-8 text, see line 2 after 'K"):
        load(file, target="ill")
    file.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    with pytest.raises(ValueError, match=r"people\.csv is no text file"):
        load(file, target="ill")
    broken = tmp_path / "people.parquet"
    broken.write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"people.parquet cannot be read as Parquet"):
        load(broken, target="ill")
    parquet.write_table(pyarrow.table({"t": [datetime.timedelta(1)] * 4, "ill": [0, 1, 0, 1]}), broken)
    with pytest.raises(ValueError, match="column 't' has the type duration"):
        load(broken, target="ill")


@pytest.mark.parametrize(
    ("later", "wrong"),
    [("yes,fine", "is never closed"), ('yes,"fine, too"', "is closed in the middle of a cell of line 52")],
)
def test_a_quote_that_swallows_lines_is_refused_with_its_line(tmp_path, later, wrong):
    lines = [f"{'yes' if row % 2 else 'no'},we met number {row}" for row in range(60)]
    lines[0] = 'no,"one, that\nsays ""two"" lines"'  # a proper one
    lines[1] = 'yes,"two" of one line'  # and one that swallows nothing
    told = load(_csv(tmp_path, "\n".join(["answer,note", *lines])), target="answer", text="note")
    found = [text for split in told.splits.values() for text in split.x["text"].tolist()]
    assert len(found) == 60 and {'one, that\nsays "two" lines', "two of one line"} <= set(found)
    lines[30], lines[49] = 'no,"he said', later
    with pytest.raises(ValueError, match=rf"""the quote in line 33 that opens the cell '"he said' {wrong}; close it"""):
        load(_csv(tmp_path, "\n".join(["answer,note", *lines])), target="answer", text="note")


def test_numbers_beyond_float32_are_refused_with_their_row(tmp_path):
    parquet.write_table(pyarrow.table({"a": [1.0, 1e300, 2.0, 3.0], "ill": [0, 1, 0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"column 'a' has the value 1e\+300 in row 2"):
        load(tmp_path / "t.parquet", target="ill")


def test_npz_of_images_and_of_numbers(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (30, 6, 6), np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y, labels=np.array(["a", "b", "c"]))
    data = load(tmp_path / "a.npz")
    assert data.signature.task == "image-classification" and data.signature.labels == ("a", "b", "c")
    assert data.train.x["image"].shape[1:] == (6, 6, 1)
    np.savez(tmp_path / "b.npz", x=random.normal(size=(30, 2)), y=random.normal(size=30), columns=np.array(["w", "h"]))
    data = load(tmp_path / "b.npz")
    assert data.signature.task == "regression" and data.signature.preprocess.numbers == ("w", "h")


def test_npz_with_its_own_test_rows_keeps_them(tmp_path):
    x = np.arange(80.0).reshape(40, 2)
    np.savez(tmp_path / "a.npz", x_train=x[:30], y_train=np.arange(30) % 2, x_test=x[30:], y_test=np.arange(10) % 2)
    data = load(tmp_path / "a.npz")
    assert sorted(data.test.x["numbers"][:, 0]) == x[30:, 0].tolist()
    assert len(data.train) + len(data.validation) == 30


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 2))}, "holds images, and neither x nor x_train"),
        ({"x": np.zeros((4, 2))}, "no array 'y'"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, "must have as many rows"),
        ({"x": np.zeros((4, 2)), "y": np.zeros((4, 3))}, "use numpy.argmax for one-hot rows"),
        ({"x": np.zeros((4, 5, 5, 3)), "y": np.arange(4) % 2}, "images must be whole numbers in 0 … 255, got float64"),
        ({"x": np.full((4, 5, 5), 300), "y": np.arange(4) % 2}, "got int64 in .* … 300"),
        ({"x": np.zeros((4, 5, 5, 2), np.uint8), "y": np.arange(4) % 2}, "1, 3 or 4 channels"),
        ({"x": np.zeros(4), "y": np.arange(4) % 2}, "x must be uint8 images"),
        ({"x": np.array([[1.0], [np.inf]]), "y": np.arange(2)}, "inf.* in row 2, column 1"),
        ({"x": np.zeros((4, 2)), "y": np.array([0.5, np.nan, 1, 2])}, "'y' is missing or not finite in row 2, got nan"),
        (
            {"x": np.zeros((4, 2)), "y": np.arange(4), "labels": np.array(["a", "b"])},
            "indices of the 2 labels, got 2 in row 3",
        ),
        ({"x": np.zeros((4, 2)), "y": np.arange(4), "columns": np.array(["a"])}, "names 1 columns, x has 2"),
        (
            {"x_train": np.zeros((4, 2)), "y_train": np.arange(4), "x_test": np.zeros((4, 3)), "y_test": np.arange(4)},
            "differ in shape",
        ),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.npz")


def test_npz_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}, {}], dtype=object), y=np.arange(2))
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        load(tmp_path / "a.npz")


def test_files_of_other_kinds_and_needless_arguments_are_refused(tmp_path):
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(ValueError, match="is of no known kind"):
        load(tmp_path / "a.doc")
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    with pytest.raises(ValueError, match="target='y' names a column"):
        load(tmp_path / "a.npz", target="y")
    _folder(tmp_path / "pets")
    with pytest.raises(ValueError, match="folder of images per class, got task='regression'"):
        load(tmp_path / "pets", task="regression")
