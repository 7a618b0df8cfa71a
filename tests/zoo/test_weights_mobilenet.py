"""MobileNetV2 with the weights of keras.applications, torchvision and timm gives their answers."""

from pathlib import Path

import keras
import make_mobilenet
import numpy as np
import pytest
import references
from safetensors.numpy import load_file, save_file

import zoo
from zoo.compress import macs

GOLDEN = Path(__file__).parent.parent / "golden" / "mobilenet.npz"


def answers(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def applications(side, **arguments):
    """MobileNetV2 of keras.applications with logits, and normalisations as of a trained model."""
    model = keras.applications.MobileNetV2(
        (side, side, 3), weights=None, classes=7, classifier_activation=None, **arguments
    )
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            low = (0.5, -0.3, -0.3, 0.05)
            layer.set_weights([random.uniform(start, start + 0.6, layer.gamma.shape) for start in low])
    return model


@pytest.mark.parametrize(("side", "width"), [(64, 1.0), (65, 0.35)])
def test_answers_are_those_of_keras_applications(tmp_path, side, width):
    reference = applications(side, alpha=width)
    reference.save_weights(tmp_path / "model.weights.h5")
    model = zoo.get("mobilenet_v2", weights=tmp_path / "model.weights.h5", input_shape=(side, side, 3), width=width)
    expected = answers(reference, references.images(side))
    assert model.count_params() == reference.count_params()
    assert np.abs(expected).max() > 0.05
    assert np.abs(answers(model, references.images(side)) - expected).max() <= 1e-4


def test_the_comparison_would_notice_other_padding_and_epsilon(tmp_path):
    reference = applications(64)
    reference.save_weights(tmp_path / "model.weights.h5")
    loaded = zoo.get("mobilenet_v2", weights=tmp_path / "model.weights.h5", input_shape=(64, 64, 3))
    expected = answers(reference, references.images(64))
    for change in ({"symmetric": True}, {"epsilon": 1e-5}):
        arguments = {"symmetric": False, "epsilon": 1e-3, **change}
        other = zoo.get("mobilenet_v2", input_shape=(64, 64, 3), classes=7, **arguments)
        other.set_weights(loaded.get_weights())
        assert np.abs(answers(other, references.images(64)) - expected).max() > 5e-4


def test_size_and_arithmetic_are_the_published(tmp_path):
    model = zoo.get("mobilenet_v2")
    assert model.count_params() == 3_538_984  # documentation of keras.applications
    assert macs(model) == 300_774_272  # Sandler et al. 2018, table 4: 300M


@pytest.mark.parametrize("kind", list(make_mobilenet.WIDTHS))
def test_answers_are_those_of_torch(tmp_path, kind):
    with np.load(GOLDEN) as golden:
        names, sizes = golden[f"{kind}/names"].tolist(), golden[f"{kind}/shapes"].tolist()
        expected = golden[f"{kind}/logits"]
    shapes = {name: tuple(filter(None, size)) for name, size in zip(names, sizes, strict=True)}
    compare(tmp_path, kind, references.weights(shapes), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_mobilenet.WIDTHS))
def test_answers_are_those_of_torch_live(tmp_path, kind):
    if not references.installed("torch", "torchvision", "timm"):
        pytest.skip("compares with torch, torchvision and timm themselves, which are not installed")
    shapes, expected = make_mobilenet.torch_answers(kind, seed=5)
    compare(tmp_path, kind, references.weights(shapes, seed=5), expected)


def compare(folder, kind, weights, expected):
    save_file(weights, folder / "model.safetensors")
    side, width = make_mobilenet.SIDE, make_mobilenet.WIDTHS[kind]
    model = zoo.get("mobilenet_v2", weights=folder / "model.safetensors", input_shape=(side, side, 3), width=width)
    assert np.abs(expected).max() > 0.1
    assert np.abs(answers(model, references.images(side)) - expected).max() <= 1e-4


def test_the_same_weights_serve_small_images_and_other_classes(tmp_path):
    model = zoo.get("mobilenet_v2", input_shape=(64, 64, 3), classes=4, depth=(1, 2), width=0.25)
    model.save_weights(tmp_path / "model.weights.h5")
    arguments = {"input_shape": (32, 32, 3), "depth": (1, 2), "width": 0.25}
    small = zoo.get("mobilenet_v2", weights=tmp_path / "model.weights.h5", **arguments)
    assert small.get_layer("stage1_block1_project").output.shape[1:3] == (32, 32)
    fresh = zoo.get("mobilenet_v2", weights=tmp_path / "model.weights.h5", classes=9, **arguments)
    assert (small.output_shape, fresh.output_shape) == ((None, 4), (None, 9))
    for one, other in zip(small.weights[:-2], fresh.weights[:-2], strict=True):
        assert np.array_equal(one, other)


def test_what_does_not_fit_is_named(tmp_path):
    with np.load(GOLDEN) as golden:
        names, sizes = golden["torchvision/names"].tolist(), golden["torchvision/shapes"].tolist()
    shapes = {name: tuple(filter(None, size)) for name, size in zip(names, sizes, strict=True)}
    file = tmp_path / "model.safetensors"
    weights = references.weights(shapes)
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"of another shape.*stem_conv/kernel is \(3, 3, 3, 32\) in the file"):
        zoo.get("mobilenet_v2", weights=file, width=0.5)
    with pytest.raises(ValueError, match="was made with symmetric=True, got symmetric=False; leave it out"):
        zoo.get("mobilenet_v2", weights=file, symmetric=False)
    with pytest.raises(ValueError, match="is a torchvision MobileNetV2 file, which does not fit resnet50"):
        zoo.get("resnet50", weights=file)
    changed = load_file(file)
    changed["features.2.conv.4.weight"] = changed.pop("features.2.conv.3.weight")
    save_file(changed, file)
    missing = r"missing \(1\): stage1_block0_project_norm/gamma; not in the model \(1\): features\.2\.conv\.4\.weight"
    with pytest.raises(ValueError, match=missing):
        zoo.get("mobilenet_v2", weights=file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "tiny"}, "stem must be 'auto', 'imagenet' or 'small', got 'tiny'"),
        ({"width": 0}, "width must be a factor above 0, got width=0"),
        ({"depth": (1,) * 8}, "depth must hold one to seven positive numbers"),
        ({"depth": (1, 0)}, "depth must hold one to seven positive numbers"),
        ({"input_shape": (0, 8, 3)}, "input_shape must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("mobilenet_v2", **arguments)
