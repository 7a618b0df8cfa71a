"""Vision transformers with the weights of timm, Hugging Face and torchvision give their answers."""

import logging
from functools import partial

import keras
import make_vit
import numpy as np
import pytest
import references
from safetensors.numpy import load_file, save_file

import zoo
from zoo.compress import macs
from zoo.weights.layouts.vit import resampled

golden = partial(references.golden, make_vit.PLACE)  # weights of the reference, and what it answers
ARGUMENTS = {"width": 24, "depth": 2, "heads": 3}
SIZE = (make_vit.SIDE, make_vit.SIDE, 3)


def answers(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


@pytest.fixture
def file(tmp_path):
    """Weights of timm's vision transformer."""
    save_file(golden("timm")[0], tmp_path / "timm.safetensors")
    return tmp_path / "timm.safetensors"


def compare(folder, kind, weights, expected):
    save_file(weights, folder / "model.safetensors")
    classes = {"classes": 2} if kind == "hugging_face_backbone" else {}
    model = zoo.get("vit_tiny", weights=folder / "model.safetensors", input_shape=SIZE, **ARGUMENTS, **classes)
    if classes:  # there is no head in the file
        model = keras.Model(model.input, model.get_layer("features").output)
    assert np.abs(expected).max() > 0.1
    assert np.abs(answers(model, references.images(make_vit.SIDE)) - expected).max() <= 1e-4


@pytest.mark.parametrize("kind", list(make_vit.MODELS))
def test_answers_are_those_of_the_reference(tmp_path, kind):
    compare(tmp_path, kind, *golden(kind))


def test_a_config_with_other_heads_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"num_attention_heads": 6}')
    with pytest.raises(ValueError, match=r"says num_attention_heads=6, vit_tiny has heads=3\. .*; pass heads=6"):
        compare(tmp_path, "hugging_face", *golden("hugging_face"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_vit.MODELS))
def test_answers_are_those_of_the_reference_live(tmp_path, kind):
    if not references.installed("torch", "torchvision", "timm", "transformers"):
        pytest.skip("compares with torch, torchvision, timm and transformers themselves, which are not installed")
    shapes, expected = make_vit.torch_answers(kind, seed=5)
    compare(tmp_path, kind, references.weights(shapes, seed=5), expected)


@pytest.mark.parametrize("change", [{"epsilon": 1e-2}, {"heads": 6}])
def test_the_comparison_would_notice_what_the_file_does_not_say(file, change):
    loaded = zoo.get("vit_tiny", weights=file, input_shape=SIZE, **ARGUMENTS)
    other = zoo.get("vit_tiny", input_shape=SIZE, classes=5, patch=8, **{**ARGUMENTS, **change})
    weights = zip(loaded.get_weights(), other.get_weights(), strict=True)
    other.set_weights([mine.reshape(theirs.shape) for mine, theirs in weights])
    expected = golden("timm")[1]
    assert np.abs(answers(other, references.images(make_vit.SIDE)) - expected).max() > 1e-3


@pytest.mark.parametrize(("side", "size"), make_vit.GRIDS)
def test_positions_are_resampled_as_timm_does(side, size):
    with np.load(make_vit.PLACE) as file:
        expected = file[f"resampled/{side}/{size}"]
    assert np.abs(resampled(make_vit.positions(side), *size) - expected).max() <= 1e-5


def test_a_file_fits_images_of_another_size(file, caplog):
    caplog.set_level(logging.INFO, logger="zoo.weights")
    model = zoo.get("vit_tiny", weights=file, input_shape=(40, 56, 3), **ARGUMENTS)
    grid = golden("timm")[0]["pos_embed"][0, 1:].reshape(4, 4, 24)
    assert "positions of 4 x 4 patches are resampled to 5 x 7" in caplog.text
    assert np.allclose(model.get_layer("positions").grid, resampled(grid, 5, 7))
    assert model(references.images(56)[:, :40]).shape == (3, 5)


def test_our_own_files_are_loaded_back_at_any_size(tmp_path):
    arguments = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "hidden": 12}
    model = zoo.get("vit_tiny", input_shape=(8, 12, 1), classes=3, pool="token", **arguments)
    random = np.random.RandomState(0)
    model.set_weights([random.standard_normal(weight.shape) for weight in model.weights])
    images = random.standard_normal((2, 8, 12, 1)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    logging.disable(logging.WARNING)  # Keras advises against the old format
    model.save(tmp_path / "model.h5")
    logging.disable(logging.NOTSET)
    for path in tmp_path.iterdir():
        loaded = zoo.get("vit_tiny", weights=path, input_shape=(8, 12, 1), **arguments)
        assert np.array_equal(answers(loaded, images), answers(model, images)), path.name
    larger = zoo.get("vit_tiny", weights=tmp_path / "model.keras", input_shape=(16, 16, 1), **arguments)
    assert larger.get_layer("positions").grid.shape == (4, 4, 8)


def test_the_file_says_how_large_the_patches_are_and_what_is_read(tmp_path, file):
    model = zoo.get("vit_tiny", weights=file, input_shape=SIZE, **ARGUMENTS)
    assert model.get_layer("patches").kernel_size == (8, 8)
    weights, _ = golden("timm_mean")
    save_file(weights, tmp_path / "mean.safetensors")
    model = zoo.get("vit_tiny", weights=tmp_path / "mean.safetensors", input_shape=SIZE, **ARGUMENTS)
    assert [layer.name for layer in model.layers if layer.name in ("mean", "class_token")] == ["mean"]
    with pytest.raises(ValueError, match=r"not in the model.*class_token/token"):
        zoo.get("vit_tiny", weights=file, input_shape=SIZE, pool="mean", **ARGUMENTS)


def test_what_does_not_fit_is_named(tmp_path, file):
    with pytest.raises(ValueError, match=r"of another shape.*patches/kernel is .*, 24\) in the file and .*, 192\)"):
        zoo.get("vit_tiny", weights=file, input_shape=SIZE)
    with pytest.raises(ValueError, match=r"missing \(16\): block2_norm0/gamma"):
        zoo.get("vit_tiny", weights=file, input_shape=SIZE, **{**ARGUMENTS, "depth": 3})
    with pytest.raises(ValueError, match=r"was made with epsilon=1e-06, got epsilon=0\.001; leave it out"):
        zoo.get("vit_tiny", weights=file, input_shape=SIZE, epsilon=1e-3, **ARGUMENTS)
    tensors = load_file(file)
    tensors["blocks.1.ls1.gamma"] = np.ones(24, np.float32)  # a ViT with layer scale is another network
    save_file(tensors, tmp_path / "scaled.safetensors")
    with pytest.raises(ValueError, match=r"not in the model \(1\): blocks\.1\.ls1\.gamma"):
        zoo.get("vit_tiny", weights=tmp_path / "scaled.safetensors", input_shape=SIZE, **ARGUMENTS)


def test_arithmetic_is_the_published():
    billions = {name: macs(zoo.get(name)) / 1e9 for name in ("vit_tiny", "vit_small", "vit_base")}
    assert round(billions["vit_base"], 3) == 17.564  # torchvision
    assert (round(billions["vit_tiny"], 1), round(billions["vit_small"], 1)) == (1.3, 4.6)  # Touvron et al. 2020


def test_an_image_is_filled_up_to_whole_patches():
    arguments = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "classes": 3}
    odd, even = (zoo.get("vit_tiny", input_shape=(side, side, 1), **arguments) for side in (6, 8))
    even.set_weights(odd.get_weights())
    images = references.images(6, channels=1)
    filled = np.pad(images, ((0, 0), (0, 2), (0, 2), (0, 0)))
    assert np.abs(answers(odd, images) - answers(even, filled)).max() <= 1e-6


@pytest.mark.parametrize(("side", "patch"), [(5, 1), (8, 1), (32, 4), (63, 7), (64, 16), (224, 16)])
def test_small_images_have_small_patches(side, patch):
    model = zoo.get("vit_tiny", input_shape=(side, side + 9, 3), width=6, depth=1)
    assert model.get_layer("patches").kernel_size == (patch, patch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "max"}, "pool must be 'token' or 'mean', got 'max'"),
        (
            {"input_shape": (8, 32, 3), "patch": 16},
            r"at least 16 pixels a side for patches of 16, got \(8, 32, 3\); resize",
        ),
        ({"width": 100}, "width must be a multiple of heads, got width=100, heads=3"),
        ({"depth": 0}, "depth and heads must be at least 1"),
        ({"hidden": -1}, "patch and hidden at least 0"),
        ({"input_shape": (32, 32)}, "input_shape must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("vit_tiny", **arguments)
