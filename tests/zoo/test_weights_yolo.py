"""Weights of YOLOX in our model: equal answers, by the names of the authors' checkpoints."""

from pathlib import Path

import keras
import make_yolo
import numpy as np
import pytest
import references
from safetensors.numpy import save_file

import zoo

GOLDEN = np.load(Path(make_yolo.PLACE))
ARGUMENTS = {"nano": {}, "narrow": {"depth": (2, 6, 6, 2)}}
NAMES = {"nano": "yolo_nano", "narrow": "yolo_small"}


def stored(kind, folder):
    """A safetensors file as the authors' checkpoints name their tensors."""
    names, shapes = GOLDEN[f"{kind}/names"].tolist(), GOLDEN[f"{kind}/shapes"].tolist()
    gains = dict(zip(GOLDEN[f"{kind}/blocks"].tolist(), GOLDEN[f"{kind}/gains"], strict=True))
    shapes = {name: tuple(filter(None, shape)) for name, shape in zip(names, shapes, strict=True)}
    tensors = make_yolo.weights(shapes, gains)
    save_file(tensors, folder / f"{kind}.safetensors")
    return folder / f"{kind}.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yolo")
    return {kind: stored(kind, folder) for kind in make_yolo.KINDS}


def answers(model):
    """What the model says of the golden images, as the authors' network says it."""
    images = references.images(make_yolo.SIDE)
    raw = keras.ops.convert_to_numpy(model(images, training=False)).astype(np.float64)
    corners, logits = raw[..., :4], raw[..., 4:]
    centre, sides = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]
    return np.concatenate([centre, sides, 1 / (1 + np.exp(-logits))], axis=-1)


@pytest.mark.parametrize("kind", make_yolo.KINDS)
def test_answers_are_those_of_the_reference(kind, files):
    model = zoo.get(NAMES[kind], weights=files[kind], input_shape=(64, 64, 3), **ARGUMENTS[kind])
    truth = GOLDEN[f"{kind}/answers"]
    found = answers(model)
    assert found.shape == truth.shape
    # boxes in pixels: 1e-4 of their size
    assert np.abs(found[..., :4] - truth[..., :4]).max() <= 1e-4 * np.abs(truth[..., :4]).max()
    assert np.abs(found[..., 4:] - truth[..., 4:]).max() <= 1e-4
    assert np.ptp(truth[..., 4:], axis=0).mean() > 0.05  # between images


def test_another_number_of_classes_and_channels_gets_a_fresh_head_and_an_adapted_stem(files, caplog):
    with caplog.at_level("INFO", "zoo.weights"):
        model = zoo.get("yolo_nano", weights=files["nano"], input_shape=(64, 64, 1), classes=3)
    whole = zoo.get("yolo_nano", weights=files["nano"], input_shape=(64, 64, 3))
    assert "5 classes, so the head for 3 classes is fresh" in caplog.text
    assert model.output_shape == (None, 84, 8)
    grey = references.images(64, channels=1)
    found = keras.ops.convert_to_numpy(model(grey, training=False))
    truth = keras.ops.convert_to_numpy(whole(np.repeat(grey, 3, axis=-1), training=False))
    np.testing.assert_allclose(found[..., :5], truth[..., :5], rtol=1e-3, atol=1e-3)


def test_a_saved_model_loads_again(files, tmp_path):
    model = zoo.get("yolo_nano", weights=files["nano"], input_shape=(64, 64, 3))
    model.save(tmp_path / "model.keras")
    again = zoo.get("yolo_nano", weights=tmp_path / "model.keras", input_shape=(64, 64, 3))
    assert again.output_shape == (None, 84, 10)
    np.testing.assert_array_equal(answers(again), answers(model))


def test_another_variant_is_refused_naming_what_differs(files):
    with pytest.raises(ValueError, match=r"does not fit yolo_small.*not in the model .*_depthwise"):
        zoo.get("yolo_small", weights=files["nano"], input_shape=(64, 64, 3), depthwise=False)


@pytest.mark.slow
def test_the_golden_file_is_what_torch_says():
    if not references.installed("torch"):
        pytest.skip("torch is not installed")
    for kind in make_yolo.KINDS:
        shapes, _, found = make_yolo.torch_answers(kind)
        assert list(shapes) == GOLDEN[f"{kind}/names"].tolist()
        np.testing.assert_allclose(found, GOLDEN[f"{kind}/answers"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_reference_has_the_published_parameters():
    if not references.installed("torch"):
        pytest.skip("torch is not installed")
    from zoo import registry

    for name in ("yolo_small", "yolo_tiny", "yolo_nano"):
        entry = registry.entry(name)
        width, depthwise = entry.arguments.get("width", 32), entry.arguments.get("depthwise", False)
        assert make_yolo.parameters(width, 1, depthwise) == entry.params
