"""Masks of pictures of any size: read in parts, written as they become known, and said on the command line."""

import json
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from typer.testing import CliRunner

from zoo.cli import app
from zoo.data import large, shapes
from zoo.data.images import open_image
from zoo.evaluate import mask_files
from zoo.evaluate.tiles import Segmenter, segment

LABELS = ("background", "light", "very light")


def by_brightness(tiles):
    """A model that looks at no pixel but the one it answers for."""
    found = (tiles.astype(np.float32).max(axis=-1) // 86).astype(int)
    return np.eye(3, dtype=np.float32)[found]


def model(side=32, channels=3):
    return Segmenter(by_brightness, (side, side, channels), LABELS)


@pytest.fixture(scope="module")
def scene():
    drawn = shapes.draw(1, 200, least=4, most=6, seed=3).images[0]
    return Image.fromarray(drawn[:150, :190])


def tiled(path, image, side=64, empty=()):
    """A TIFF of compressed tiles, which Pillow reads and cannot write; `empty` were never written."""
    pixels = np.asarray(image)
    high, wide, channels = pixels.shape
    down, across = -(-high // side), -(-wide // side)
    padded = np.zeros((down * side, across * side, channels), np.uint8)
    padded[:high, :wide] = pixels
    parts = [
        b"" if row * across + column in empty
        else zlib.compress(padded[row * side : (row + 1) * side, column * side : (column + 1) * side].tobytes())
        for row in range(down)
        for column in range(across)
    ]  # fmt: skip
    tags = ImageFileDirectory_v2()
    for tag, value in {256: wide, 257: high, 258: (8,) * channels, 259: 8, 262: 2, 277: channels, 284: 1}.items():
        tags[tag] = value
    places = np.cumsum([8, *map(len, parts)])
    for tag, value in {322: side, 323: side, 324: tuple(places[:-1].tolist()), 325: tuple(map(len, parts))}.items():
        tags.tagtype[tag], tags[tag] = 4, value
    end = int(places[-1])
    body = b"II*\0" + end.to_bytes(4, "little") + b"".join(parts)
    path.write_bytes(body + tags.tobytes(end))
    return path


PARTS = ((0, 150, 0, 190), (3, 90, 17, 120), (63, 65, 189, 190), (140, 400, 100, 900))


@pytest.mark.parametrize(
    ("mode", "channels", "options"),
    [
        ("RGB", 3, {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
        ("RGB", 3, {"compression": "jpeg"}),
        ("RGB", 1, {"compression": "packbits"}),
        ("RGB", 3, {"compression": None, "tiffinfo": {278: 16}}),
        ("L", 3, {"compression": "tiff_adobe_deflate"}),
        ("P", 3, {"compression": "tiff_lzw"}),
        ("RGBA", 4, {"compression": "zstd"}),
    ],
)
def test_strips_are_read_one_by_one_and_are_what_the_whole_picture_is(scene, tmp_path, mode, channels, options):
    file = tmp_path / "scene.tif"
    image = scene.convert(mode)
    strip = {} if options["compression"] is None else {"strip_size": 16 * scene.width * len(image.getbands())}
    image.save(file, **options, **strip)
    picture, whole = large.open_large(file, channels), open_image(file, (150, 190, channels))
    assert picture.whole == 0 and picture.blocks["size"] == (16, 190) and picture.shape == whole.shape
    for top, bottom, left, right in PARTS:
        assert np.array_equal(picture[top:bottom, left:right], whole[top:bottom, left:right])
    assert len(picture.kept) <= 10 + 1


def test_tiles_are_read_one_by_one_and_those_never_written_are_black(scene, tmp_path):
    picture = large.open_large(tiled(tmp_path / "scene.tif", scene, empty=(4,)), 3)
    expected = np.asarray(scene).copy()
    expected[64:128, 64:128] = 0
    assert picture.whole == 0 and picture.blocks["size"] == (64, 64)
    for top, bottom, left, right in PARTS[1:]:
        assert np.array_equal(picture[top:bottom, left:right], expected[top:bottom, left:right])
    small = large.open_large(tmp_path / "scene.tif", 3)
    assert np.array_equal(small[0:10, 0:190], expected[0:10])
    assert len(small.kept) == 3  # one row of tiles, of three


def test_what_cannot_be_read_in_parts_is_decoded_whole_and_stands_upright(scene, tmp_path):
    turned = Image.Exif()
    turned[274] = 6
    for name, options in (("a.png", {}), ("a.jpg", {"exif": turned}), ("turned.tif", {"tiffinfo": {274: 6}})):
        file = tmp_path / name
        scene.save(file, **options)
        picture = large.open_large(file, 3)
        assert picture.whole >= 150 * 190 * 4, name
        assert picture.shape == ((150, 190, 3) if name == "a.png" else (190, 150, 3))
        assert np.array_equal(picture[0:190, 5:100], open_image(file, picture.shape)[:, 5:100])


def test_a_picture_beyond_pillows_limit_is_read_and_one_beyond_memory_is_not(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    scene.save(tmp_path / "a.png")
    scene.save(tmp_path / "a.tif", compression="tiff_lzw", strip_size=16 * 190 * 3)
    for name in ("a.png", "a.tif"):
        assert np.array_equal(large.open_large(tmp_path / name, 3)[0:150, 0:190], np.asarray(scene))
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(large, "memory", lambda: 100_000)
    with pytest.raises(
        ValueError, match=r"a\.png: it has to be decoded whole.*save it as a TIFF of tiles or strips, or as"
    ):
        large.open_large(tmp_path / "a.png", 3)
    assert large.open_large(tmp_path / "a.tif", 3).whole == 0


def test_pictures_that_cannot_be_read_are_named(scene, tmp_path):
    def refused(name, content, message, channels=3):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            large.open_large(tmp_path / name, channels)[0:150, 0:190]

    whole = tiled(tmp_path / "whole.tif", scene).read_bytes()
    at = whole.index(zlib.compress(np.asarray(scene)[:64, :64].tobytes()))
    refused("a.tif", whole[: at + 50] + bytes(300) + whole[at + 350 :], r"cannot read tile 1 of .*a\.tif")
    refused("a.txt", b"x", r"cannot read the image .*a\.txt: it is no image")
    refused("a.png", b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot read the image")
    refused("empty.npy", b"", "cannot read the array")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    refused("deep.png", (tmp_path / "deep.png").read_bytes(), "have the mode 'I;16', not 8 bits")
    refused("b.png", b"x", r"pictures have 1, 3 or 4 channels and the model takes 13; give a \.npy", channels=13)
    np.save(tmp_path / "floats.npy", np.full((9, 9, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"must hold uint8 \(height, width, 3\).*got float32 \(9, 9, 3\)"):
        large.open_large(tmp_path / "floats.npy", 3)
    with pytest.raises(ValueError, match="there is no picture"):
        large.open_large(tmp_path / "nowhere.png", 3)


def test_a_mask_is_written_as_it_becomes_known(scene, tmp_path):
    scene.save(tmp_path / "scene.tif", compression="tiff_lzw", strip_size=16 * 190 * 3)
    told = []
    done = mask_files.write(model(), tmp_path / "scene.tif", tmp_path / "out", progress=lambda *n: told.append(n))
    expected = np.asarray(scene).max(axis=-1) // 86
    with Image.open(done.mask) as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), expected)
        assert image.getpalette()[:6] == [38, 40, 44, 230, 159, 0]
    assert done.shares == {label: float((expected == place).mean()) for place, label in enumerate(LABELS)}
    assert told[-1] == (done.tiles, done.tiles) and len(told) > 2 and (done.height, done.width) == (150, 190)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scene.mask.png", "scene.overlay.png"]
    assert np.array_equal(segment(model(), tmp_path / "scene.tif", overlap=0), expected)


def test_an_overlay_is_the_picture_with_its_regions_tinted_and_outlined(tmp_path, monkeypatch):
    pixels = np.full((80, 70, 3), 20, np.uint8)
    pixels[:, 40:] = 120
    np.save(tmp_path / "half.npy", pixels)
    monkeypatch.setattr(mask_files, "LARGEST", 20)  # a pixel of the overlay for 4x4 of the picture
    drawn = []
    monkeypatch.setattr(mask_files, "_draw", lambda *given: drawn.append(given))
    mask_files.write(model(), tmp_path / "half.npy", tmp_path, overlap=8)
    shown, mask, shares, _ = drawn[0]
    assert shown.shape == (20, 18, 3) and shares["light"] == pytest.approx(30 / 70)
    assert (shown[:, :10] == 20).all() and (shown[:, 10:] == 120).all()
    assert (mask[:, :10] == 0).all() and (mask[:, 10:] == 1).all()
    colour = np.array([230, 159, 0])
    laid = mask_files.laid_over(shown, mask, LABELS)
    assert (laid[:, :10] == 20).all()  # the background is left as it is
    assert (laid[:, 10:12] == colour).all()  # the line along the edge
    assert (laid[:, 12:] == np.rint(0.6 * 120 + 0.4 * colour)).all()


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_pictures_of_any_channels_have_an_overlay(tmp_path, channels):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).integers(0, 256, (40, 50, channels), dtype=np.uint8))
    done = mask_files.write(model(16, channels), tmp_path / "many.npy", tmp_path)
    with Image.open(done.overlay) as image:
        assert image.width == 450  # nine times as large


def test_nothing_is_left_behind_where_a_picture_is_damaged(scene, tmp_path):
    whole = tiled(tmp_path / "whole.tif", scene).read_bytes()
    at = whole.index(zlib.compress(np.asarray(scene)[64:128, :64].tobytes()))
    (tmp_path / "bad.tif").write_bytes(whole[: at + 50] + bytes(300) + whole[at + 350 :])
    with pytest.raises(ValueError, match=r"cannot read tile 4 of .*bad\.tif"):
        mask_files.write(model(), tmp_path / "bad.tif", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.png"], "there is no picture .*nothing.png; name a file or a folder"),
        (["."], "holds no pictures"),
        (["a.png", "b/a.jpg"], r"would both write a\.mask\.png"),
        (["a.png", "--tile", "1x2"], "--tile takes a number of pixels such as 256, or height,width"),
        (["a.png", "--tile", "0"], "--tile takes a number of pixels"),
    ],
)
def test_mistakes_on_the_command_line_are_told_before_anything_is_loaded(
    scene, tmp_path, monkeypatch, arguments, message
):
    (tmp_path / "in" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in")
    if arguments != ["."]:
        scene.save("a.png")
        scene.save("b/a.jpg")
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["segment", "run", *arguments], catch_exceptions=False)


def test_the_command_writes_masks_of_files_and_folders(scene, tmp_path, monkeypatch):
    from zoo.commands import segment as command
    from zoo.evaluate import tiles

    asked = []
    monkeypatch.setattr(tiles, "segmenter", lambda *given: asked.append(given) or model())
    monkeypatch.setattr(command, "quiet_backend", lambda: None)
    (tmp_path / "many").mkdir()
    scene.save(tmp_path / "many" / "one.png")
    scene.save(tmp_path / "many" / "two.jpg")
    (tmp_path / "many" / "notes.txt").write_text("no picture")
    (tmp_path / "run").mkdir()
    np.save(tmp_path / "three.npy", np.asarray(scene))
    given = [str(tmp_path / name) for name in ("run", "many", "three.npy")]
    done = CliRunner().invoke(
        app, ["segment", *given, "--out", str(tmp_path / "out"), "--overlap", "8", "--tile", "32"]
    )
    assert done.exit_code == 0, done.output
    assert asked[0][2] == (32, 32)
    assert "one.mask.png  190 x 150 pixels, 99 tiles" in done.output and "3 masks in" in done.output
    assert len(list((tmp_path / "out").iterdir())) == 6
    more = ["--no-overlay", "--json", "--out", str(tmp_path / "second")]
    told = json.loads(CliRunner().invoke(app, ["segment", *given, *more]).stdout)
    assert told["labels"] == list(LABELS) and [row["overlay"] for row in told["pictures"]] == [None] * 3
    assert sum(told["pictures"][0]["shares"].values()) == pytest.approx(1)
