import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from small_bundles import write_text

from serve import codec
from serve.errors import RequestError
from serve.store import Store

LIMIT = 10_000


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height, width, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


@pytest.mark.parametrize("shape", [(7, 5, 1), (7, 5, 3), (7, 5, 4), (20, 30, 3), (60, 40, 1)])
def test_a_file_is_converted_and_then_resized_bilinearly(shape):
    source = noise(20, 30)
    expected = source.convert(codec.MODES[shape[2]]).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    found = codec.read_image(encoded(source), shape, max_pixels=LIMIT)
    assert found.shape == shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(expected).reshape(shape))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P with transparency", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_read_as_the_training_data_was(tmp_path, mode, channels):
    images = pytest.importorskip("zoo.data.images")
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"transparency": bytes(range(256))} if "with" in mode else {}
    kind = "JPEG" if mode == "CMYK" else "PNG"
    body = encoded(noise(20, 30).convert(mode.partition(" ")[0]), kind, exif=exif, **options)
    (tmp_path / "one").write_bytes(body)
    expected = images.open_image(tmp_path / "one", (8, 9, channels))
    np.testing.assert_array_equal(codec.read_image(body, (8, 9, channels), max_pixels=LIMIT), expected)


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    sideways = noise(4, 6)
    found = codec.read_image(encoded(sideways, exif=exif), (6, 4, 3), max_pixels=LIMIT)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(sideways), -1))


def test_a_free_size_is_kept():
    assert codec.read_image(encoded(noise(20, 30)), (-1, -1, 3), max_pixels=LIMIT).shape == (20, 30, 3)


def test_pixels_are_limited_before_decoding():
    size = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 50_000, 1, 0, 0, 0, 0)  # 3,000 megapixels, declared only
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    bomb += struct.pack(">I", 4) + b"IDAT" + bytes(8)
    for body in (bomb, encoded(noise(101, 100))):
        with pytest.raises(RequestError, match="smaller") as caught:
            codec.read_image(body, (8, 8, 1), max_pixels=LIMIT)
        assert (caught.value.code, caught.value.status) == ("too_many_pixels", 413)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not an image",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(noise(20, 30))[:200],
        encoded(noise(20, 30), "JPEG")[:-300],
        encoded(Image.fromarray(np.full((8, 8), 60_000, np.uint16))),
    ],
    ids=["empty", "text", "svg", "cut PNG", "cut JPEG", "16 bits"],
)
def test_what_is_no_8_bit_image_is_refused(body):
    with pytest.raises(RequestError) as caught:
        codec.read_image(body, (8, 8, 1), max_pixels=LIMIT)
    assert (caught.value.code, caught.value.status) == ("bad_image", 422)


def test_pixels_as_nested_lists(store):
    manifest = store.get("sides").manifest
    rows = np.arange(16).reshape(4, 4)
    for pixels in (rows, rows[..., None], rows[None, ..., None]):
        inputs, notes = codec.json_batch({"image": pixels.tolist()}, manifest).take()
        np.testing.assert_array_equal(inputs["image"], rows[None, ..., None].astype(np.uint8))
        assert notes == []


@pytest.mark.parametrize("body", [[], {"picture": []}, {"image": [[0]], "more": 1}, 3, None])
def test_other_json_for_an_image_is_refused(store, body):
    with pytest.raises(RequestError, match="an image file"):
        codec.json_batch(body, store.get("sides").manifest).take()


def test_rows_become_columns_in_order_with_missing_values(store):
    rows = [{"weight": 2, "age": 1.5, "colour": "red"}, {"age": None}, {"colour": "mauve", "age": 1}]
    inputs, notes = codec.json_batch(rows, store.get("paints").manifest).take()
    np.testing.assert_array_equal(inputs["numbers"], np.array([[1.5, 2], [np.nan, np.nan], [1, np.nan]], np.float32))
    assert inputs["categories"].tolist() == [["red"], [""], ["mauve"]]
    assert notes == [
        "not sent, so taken as missing: weight, colour",
        "every value of a row is missing; its answer is that of an average row",
        "column 'colour': 'mauve' was not seen in training and counts as missing",
    ]


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ({"wieght": 1}, "unknown_column", "Did you mean 'weight'"),
        ({"age": "30"}, "bad_value", "column 'age' must be a number within FP32 or null, got '30'"),
        ({"age": True}, "bad_value", "column 'age' must be a number"),
        ({"age": [30]}, "bad_value", "column 'age' must be a number"),
        ({"colour": 1.5}, "bad_value", "column 'colour' must be text"),
        ({"age": 10**400}, "bad_value", "number within FP32 or null, got 1000"),
        ({"age": 10**5000}, "bad_value", "got an integer of thousands of digits"),
        ({"age": 1e39}, "bad_value", "number within FP32"),
        ([], "bad_request", "one object per row"),
        ([{"age": 1}, 3], "bad_request", "one object per row"),
        ("text", "bad_request", "one object per row"),
    ],
)
def test_bad_rows_name_the_column(store, row, code, message):
    with pytest.raises(RequestError, match=message) as caught:
        codec.json_batch(row, store.get("paints").manifest).take()
    assert caught.value.code == code


def test_a_row_is_written_as_it_is_read(store):
    model = store.get("paints")
    for at in range(2):
        row = codec.to_row(model.examples, at, model.manifest)
        inputs, _ = codec.json_batch(row, model.manifest).take()
        np.testing.assert_array_equal(inputs["numbers"], model.examples["numbers"][at : at + 1])
        assert inputs["categories"].tolist() == model.examples["categories"][at : at + 1].tolist()


def table(store, text):
    body = text if isinstance(text, bytes) else text.encode()
    return codec.csv_batch(body, store.get("paints").manifest)


@pytest.mark.parametrize(
    "text",
    [
        "age,weight,colour\n1.5,2,red\n,-3e1,\n",
        "colour,age,weight\r\nred,1.5,2\r\n,,-30.0",
        '"age","weight","colour"\n"1.5"," 2 ","red"\n"","-30",""\n',
        '"age";"weight";"colour"\n1.5;2;red\n;-30;\n',
        "age\tweight\tcolour\n1.5\t2\tred\n\t-30\t\n",
        "\ufeffage,weight,colour\n\n1.5,2,red\n\n,-30,\n\n",
        " age , weight,colour\n1.5,2,red\n,-30,\n",
    ],
    ids=["plain", "order and CRLF", "quoted", "semicolons", "tabs", "mark and blank lines", "blanks in the header"],
)
def test_csv_files_are_read_by_their_header(store, text):
    batch = table(store, text)
    assert batch.count == 2
    inputs, notes = batch.take()
    np.testing.assert_array_equal(inputs["numbers"], np.array([[1.5, 2], [np.nan, -30]], np.float32))
    assert inputs["categories"].tolist() == [["red"], [""]]
    assert notes == []


def test_quoted_cells_may_hold_separators_quotes_and_line_breaks(store):
    inputs, notes = table(store, 'colour,age\n"a ""b"", c\nd",1\n').take()
    assert inputs["categories"].tolist() == [['a "b", c\nd']]
    assert notes[0] == "not sent, so taken as missing: weight"
    assert "was not seen in training" in notes[1]


def test_columns_of_no_model_are_left_out_with_a_note(store):
    inputs, notes = table(store, "number,age,finish\n1,30,silk\n").take()
    assert inputs["numbers"][0, 0] == 30
    assert notes[0] == "not used, since the model has no such columns: number, finish"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("age,weight\n1,2\n3,heavy\n", "bad_value", "line 3, column 'weight' must be a number or empty, got 'heavy'"),
        ('colour,age\n"a\nb",1\nred,x\n', "bad_value", "line 4, column 'age'"),
        ("age\n1_000\n", "bad_value", "line 2, column 'age'"),
        ("age\nnan\n", "bad_value", "got 'nan'"),
        ("age\n1e39\n", "bad_value", "within ±3.403e.38, got '1e39'"),
        ("age;weight\n1,5;2\n", "bad_value", "got '1,5'"),
        ("age,weight\n1,2\n\n3\n", "bad_csv", "line 4 has 1 cells, the header has 2"),
        ("age,weight\n1,2,3\n", "bad_csv", "line 2 has 3 cells"),
        ('age,colour\n1,"red\n', "bad_csv", "line 2: the CSV file cannot be read"),
        ("age,age\n1,2\n", "bad_csv", "line 1: column 'age' is given twice"),
        ("age,wieght\n1,2\n", "unknown_column", "line 1: no column is called 'wieght'.*Did you mean 'weight'"),
        ("1,2,red\n3,4,blue\n", "bad_csv", "names no column of the model; it must name some of age, weight, colour"),
        ("", "bad_csv", "names no column"),
        ("age,weight\n", "bad_csv", "no rows below"),
        ("age," + ",".join("abcdefgh" + str(n) for n in range(300)) + "\n", "bad_csv", "300 columns that the model does not know"),
        ("age,colour\n1," + "x" * 200_000 + "\n", "bad_csv", "line 2: .* at most 131072 characters"),
        (b"age,colour\n1,red\n2,vert fonc\xe9\n", "bad_encoding", "not UTF-8: byte 0xe9 in line 3"),
    ],
)  # fmt: skip
def test_a_csv_file_that_cannot_be_read_names_line_and_column(store, text, code, message):
    with pytest.raises(RequestError, match=message) as caught:
        table(store, text).take()
    assert caught.value.code == code


def test_a_csv_file_is_read_piece_by_piece(store):
    batch = table(store, "age\n" + "".join(f"{n}\n" for n in range(10)) + "bad\n")
    pieces = []
    while batch.left > 1:
        pieces.append(batch.take(4 if batch.left > 4 else batch.left - 1)[0]["numbers"][:, 0].tolist())
    assert pieces == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(RequestError, match="line 12"):
        batch.take()


def test_json_rows_of_a_list_are_numbered_in_messages(store):
    rows = codec.json_batch([{"age": 1}, {"age": 2}, {"age": "x"}], store.get("paints").manifest)
    rows.take(2)
    with pytest.raises(RequestError, match=r"^row 3: column 'age'"):
        rows.take(1)


def test_text_comes_plain_as_json_and_as_csv(tmp_path):
    write_text(tmp_path)
    manifest = Store(tmp_path, threads=1).get("mood").manifest
    for batch in (
        codec.text_batch("\ufeffgood".encode(), manifest),
        codec.json_batch({"text": "good"}, manifest),
        codec.csv_batch(b'text\n"good"\n', manifest),
    ):
        inputs, notes = batch.take()
        assert inputs["text"].tolist() == [["good"]] and notes == []
    with pytest.raises(RequestError, match=r"row 2: .*empty"):
        codec.json_batch([{"text": "good"}, {"text": " "}], manifest).take()
    with pytest.raises(RequestError, match=r'row 1: send \{"text": "some text"\}'):
        codec.json_batch([{"words": "good"}, {}], manifest).take()


@pytest.mark.parametrize("model", ["sides", "paints"])
def test_other_models_take_no_text(store, model):
    with pytest.raises(RequestError, match="takes no text; send") as caught:
        codec.text_batch(b"good", store.get(model).manifest)
    assert caught.value.status == 415


def test_an_image_model_takes_no_csv(store):
    with pytest.raises(RequestError, match=r"no columns .* send an image file") as caught:
        codec.csv_batch(b"a\n1\n", store.get("sides").manifest)
    assert caught.value.status == 415


def test_a_table_takes_no_image(store):
    with pytest.raises(RequestError, match=r'columns as JSON, such as \{"age": …, "weight": …\}') as caught:
        codec.image_batch([b""], store.get("paints").manifest, max_pixels=LIMIT)
    assert caught.value.status == 415


def test_labels_come_sorted_and_cut(store):
    manifest = store.get("paints").manifest
    (answer,) = codec.answers({"probabilities": np.array([[0.2, 0.7, 0.1]], np.float32)}, manifest, top=2)
    best = {"label": "gloss", "probability": pytest.approx(0.7)}
    assert answer == {**best, "top": [best, {"label": "matt", "probability": pytest.approx(0.2)}]}


def test_regression_answers_with_a_value(store):
    answer = codec.answers({"value": np.array([[80.5]], np.float32)}, store.get("dose").manifest, top=5)
    assert answer == [{"value": 80.5, "target": "milligram"}]


def test_answers_as_csv(store):
    manifest = store.get("paints").manifest
    rows = codec.answers({"probabilities": np.array([[0.2, 0.7, 0.1], [0.5, 0, 0.5]], np.float32)}, manifest, top=2)
    assert codec.answers_csv(rows, manifest).split("\r\n") == [
        "label,probability,label_2,probability_2",
        "gloss,0.7,matt,0.2",
        "matt,0.5,silk,0.5",
        "",
    ]
    values = codec.answers({"value": np.array([[80.5], [-1]], np.float32)}, store.get("dose").manifest, top=5)
    assert codec.answers_csv(values, store.get("dose").manifest).split() == ["milligram", "80.5", "-1.0"]
