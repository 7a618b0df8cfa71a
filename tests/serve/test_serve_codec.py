import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from serve import codec
from serve.errors import RequestError

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
        inputs, notes = codec.read_json({"image": pixels.tolist()}, manifest)
        np.testing.assert_array_equal(inputs["image"], rows[None, ..., None].astype(np.uint8))
        assert notes == []


@pytest.mark.parametrize("body", [[], {"picture": []}, {"image": [[0]], "more": 1}, 3, None])
def test_other_json_for_an_image_is_refused(store, body):
    with pytest.raises(RequestError, match="an image file"):
        codec.read_json(body, store.get("sides").manifest)


def test_rows_become_columns_in_order_with_missing_values(store):
    rows = [{"weight": 2, "age": 1.5, "colour": "red"}, {"age": None}, {"colour": "mauve", "age": 1}]
    inputs, notes = codec.read_json(rows, store.get("paints").manifest)
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
        codec.read_json(row, store.get("paints").manifest)
    assert caught.value.code == code


def test_a_row_is_written_as_it_is_read(store):
    model = store.get("paints")
    for at in range(2):
        row = codec.to_row(model.examples, at, model.manifest)
        inputs, _ = codec.read_json(row, model.manifest)
        np.testing.assert_array_equal(inputs["numbers"], model.examples["numbers"][at : at + 1])
        assert inputs["categories"].tolist() == model.examples["categories"][at : at + 1].tolist()


def test_a_table_takes_no_image(store):
    with pytest.raises(RequestError, match=r'columns as JSON, such as \{"age": …, "weight": …\}') as caught:
        codec.read_images([b""], store.get("paints").manifest, max_pixels=LIMIT)
    assert caught.value.status == 415


def test_labels_come_sorted_and_cut(store):
    manifest = store.get("paints").manifest
    (answer,) = codec.answers({"probabilities": np.array([[0.2, 0.7, 0.1]], np.float32)}, manifest, top=2)
    best = {"label": "gloss", "probability": pytest.approx(0.7)}
    assert answer == {**best, "top": [best, {"label": "matt", "probability": pytest.approx(0.2)}]}


def test_regression_answers_with_a_value(store):
    answer = codec.answers({"value": np.array([[80.5]], np.float32)}, store.get("dose").manifest, top=5)
    assert answer == [{"value": 80.5, "target": "milligram"}]
