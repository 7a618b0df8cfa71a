"""Weights of others in our VGG networks: equal outputs, at any size, with any channels and classes."""

import logging
from pathlib import Path

import h5py
import keras
import make_vgg
import numpy as np
import pytest
import references
from safetensors.numpy import load_file, save_file

import zoo
from zoo import registry

GOLDEN = Path(__file__).parent.parent / "golden"
NARROW = {"width": 8, "hidden": make_vgg.HIDDEN}


def _answers(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def _saved(kind, file, seed=0):
    """The answers that the golden file has, and a file in torch names with the weights that gave them."""
    with np.load(GOLDEN / "vgg.npz") as golden:
        names, sizes = golden[f"{kind}/names"].tolist(), golden[f"{kind}/shapes"].tolist()
        shapes = {name: tuple(filter(None, size)) for name, size in zip(names, sizes, strict=True)}
        save_file(references.weights(shapes, seed), file)
        return golden[f"{kind}/logits"]


def _keras_1(file, model):
    """Write a model's weights as the published files hold them, whose names are of Keras 1."""
    place = {"hidden": "fc1", "features": "fc2", "logits": "predictions"}
    with h5py.File(file, "w") as archive:
        for layer in model.layers:
            if layer.weights:
                name = place.get(layer.name, "")
                if not name:
                    stage, conv = (int(part[-1]) + 1 for part in layer.name.split("_"))
                    name = f"block{stage}_conv{conv}"
                group = archive.create_group(name)
                for letter, values in zip("Wb", layer.get_weights(), strict=True):
                    group.create_dataset(f"{name}_{letter}_1:0", data=values)


@pytest.mark.parametrize("kind", list(make_vgg.KINDS))
def test_vggs_answer_like_torchvision(tmp_path, kind):
    expected = _saved(kind, tmp_path / "model.safetensors")
    side = make_vgg.KINDS[kind][1]
    model = zoo.get(kind, weights=tmp_path / "model.safetensors", input_shape=(side, side, 3), **NARROW)
    assert np.abs(expected).max() > 0.1
    assert np.abs(_answers(model, references.images(side)) - expected).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_vgg.KINDS))
def test_vggs_answer_like_torchvision_live(tmp_path, kind):
    if not references.installed("torch", "torchvision"):
        pytest.skip("compares with torch and torchvision themselves, which are not installed")
    shapes, expected = make_vgg.torch_answers(kind, seed=5)
    save_file(references.weights(shapes, seed=5), tmp_path / "model.safetensors")
    side = make_vgg.KINDS[kind][1]
    model = zoo.get(kind, weights=tmp_path / "model.safetensors", input_shape=(side, side, 3), **NARROW)
    assert np.abs(_answers(model, references.images(side)) - expected).max() <= 1e-4


@pytest.mark.slow
def test_vgg11_answers_like_timm_live(tmp_path):
    if not references.installed("torch", "timm"):
        pytest.skip("compares with timm itself, which is not installed")
    import torch

    theirs = references.timm().create_model("vgg11", num_classes=5).eval()
    weights = references.weights({name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()})
    save_file(weights, tmp_path / "model.safetensors")
    theirs.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    images = references.images(224, rows=1)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    model = zoo.get("vgg11", weights=tmp_path / "model.safetensors")
    assert np.abs(_answers(model, images) - expected).max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "side"), [("VGG16", 32), *(pytest.param(name, 224, marks=pytest.mark.slow) for name in ("VGG16", "VGG19"))]
)
def test_vggs_answer_like_keras_applications(tmp_path, name, side):
    builder = getattr(keras.applications, name)
    reference = builder(weights=None, input_shape=(side, side, 3), classes=4, classifier_activation=None)
    reference.save_weights(tmp_path / "model.weights.h5")
    model = zoo.get(name.lower(), weights=tmp_path / "model.weights.h5", input_shape=(side, side, 3))
    images = references.images(side, rows=2)
    assert model.output_shape == (None, 4) and model.pretrained.scaling == "caffe"
    assert np.abs(_answers(model, images) - _answers(reference, images)).max() <= 1e-4


@pytest.mark.parametrize("ending", [".weights.h5", ".keras", ".h5"])
def test_files_without_top_of_keras_applications_give_the_maps(tmp_path, caplog, ending):
    caplog.set_level(logging.INFO, logger="zoo.weights")
    reference = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    file = tmp_path / f"notop{ending}"
    logging.disable(logging.WARNING)  # Keras advises against the old format
    (reference.save_weights if "weights" in ending else reference.save)(file)
    logging.disable(logging.NOTSET)
    model = zoo.get("vgg16", weights=file, input_shape=(32, 32, 3), classes=3, hidden=(6, 5))
    maps = keras.Model(model.input, model.get_layer("stage4_pool").output)
    images = references.images(32, rows=2)
    assert np.abs(_answers(maps, images) - _answers(reference, images)).max() <= 1e-5
    assert model.output_shape == (None, 3) and model.pretrained.scaling == "caffe"
    assert "no head, so the layers hidden, features and the head for 3 classes are fresh: train them" in caplog.text
    with pytest.raises(ValueError, match=r"has no head, so the number of classes is unknown; pass classes="):
        zoo.get("vgg16", weights=file, input_shape=(32, 32, 3))
    with pytest.raises(ValueError, match=r"missing \(6\): stage2_conv3/kernel"):
        zoo.get("vgg19", weights=file, input_shape=(32, 32, 3), classes=3)


def test_torch_files_without_head_are_read_and_half_a_head_is_refused(tmp_path):
    _saved("vgg11", tmp_path / "whole.safetensors")
    whole = zoo.get("vgg11", weights=tmp_path / "whole.safetensors", input_shape=(64, 64, 3), **NARROW)
    tensors = load_file(tmp_path / "whole.safetensors")

    def without(*places):
        file = tmp_path / "part.safetensors"
        save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(places)}, file)
        return zoo.get("vgg11", weights=file, input_shape=(64, 64, 3), classes=3, grid=7, **NARROW)

    for model, fresh in ((without("classifier"), ["hidden", "features"]), (without("classifier.6"), [])):
        kernels = {layer.name: layer.kernel for layer in whole.layers if layer.weights and layer.name != "logits"}
        differing = [name for name in kernels if not np.array_equal(kernels[name], model.get_layer(name).kernel)]
        assert differing == fresh
    with pytest.raises(ValueError, match=r"missing \(1\): features/bias"):
        without("classifier.3.bias", "classifier.6")


def test_the_published_files_of_keras_1_are_read(tmp_path):
    model = zoo.get("vgg16", input_shape=(32, 32, 3), classes=3, width=4, hidden=(6, 5))
    _keras_1(tmp_path / "vgg16_weights.h5", model)
    loaded = zoo.get("vgg16", weights=tmp_path / "vgg16_weights.h5", input_shape=(32, 32, 3), width=4, hidden=(6, 5))
    images = references.images(32)
    assert np.array_equal(_answers(loaded, images), _answers(model, images))


def test_the_file_says_how_many_places_the_dense_layers_read(tmp_path):
    _saved("vgg11", tmp_path / "model.safetensors")
    model = zoo.get("vgg11", weights=tmp_path / "model.safetensors", input_shape=(40, 70, 3), **NARROW)
    assert model.get_layer("pool").output.shape[1:3] == (7, 7)
    small = zoo.get("vgg11", input_shape=(64, 64, 3), classes=5, **NARROW)
    small.save(tmp_path / "small.keras")
    larger = zoo.get("vgg11", weights=tmp_path / "small.keras", input_shape=(160, 96, 3), **NARROW)
    assert larger.get_layer("pool").output.shape[1:3] == (2, 2)
    assert np.array_equal(larger.get_weights()[0], small.get_weights()[0])


def test_one_channel_answers_as_the_same_grey_in_three(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="zoo.weights")
    _saved("vgg11", tmp_path / "model.safetensors")

    def model(channels):
        return zoo.get("vgg11", weights=tmp_path / "model.safetensors", input_shape=(64, 64, channels), **NARROW)

    grey = references.images(64, channels=1)
    expected = _answers(model(3), np.repeat(grey, 3, axis=-1))
    assert np.abs(_answers(model(1), grey) - expected).max() <= 1e-5
    assert "stage0_conv0/kernel is for RGB; for 1 channels it is summed over its channels" in caplog.text


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_more_channels_repeat_those_of_the_file(tmp_path, channels):
    _saved("vgg11", tmp_path / "model.safetensors")
    given = load_file(tmp_path / "model.safetensors")["features.0.weight"]  # (filters, 3, 3, 3)
    model = zoo.get(
        "vgg11", weights=tmp_path / "model.safetensors", input_shape=(32, 32, channels), classes=2, **NARROW
    )
    kernel = model.get_layer("stage0_conv0").get_weights()[0]  # (3, 3, channels, filters)
    for channel in range(channels):
        expected = given[:, channel % 3].transpose(1, 2, 0) * 3 / channels
        np.testing.assert_allclose(kernel[:, :, channel], expected, rtol=1e-6)
    assert model.output_shape == (None, 2)


def test_only_what_reads_the_image_is_adapted(tmp_path):
    tensors = references.weights({"features.0.weight": (8, 1, 3, 3), "classifier.0.weight": (24, 49 * 64)})
    save_file(tensors, tmp_path / "grey.safetensors")
    with pytest.raises(ValueError, match=r"stage0_conv0/kernel is \(3, 3, 1, 8\) in the file and \(3, 3, 3, 8\)"):
        zoo.get("vgg11", weights=tmp_path / "grey.safetensors", input_shape=(32, 32, 3), classes=2, **NARROW)


def test_files_of_other_depth_and_with_normalisation_are_refused(tmp_path):
    _saved("vgg16", tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"torchvision VGG\) does not fit vgg11: not in the model \(10\): .*stage0_conv1/"
    ):
        zoo.get("vgg11", weights=tmp_path / "model.safetensors", input_shape=(64, 64, 3), **NARROW)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "features.1.running_mean": np.ones(8, np.float32)}, tmp_path / "normalised.safetensors")
    with pytest.raises(ValueError, match=r"not in the model \(1\): features\.1\.running_mean"):
        zoo.get("vgg16", weights=tmp_path / "normalised.safetensors", input_shape=(64, 64, 3), **NARROW)
    with pytest.raises(ValueError, match="is a torchvision VGG file, which does not fit resnet18"):
        zoo.get("resnet18", weights=tmp_path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "billions"), [("vgg11", 7.609), ("vgg13", 11.308), ("vgg16", 15.47), ("vgg19", 19.632)]
)
def test_multiplications_are_those_that_torchvision_states(name, billions):
    assert round(zoo.compress.macs(registry.get(name)) / 1e9, 3) == billions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (31, 64, 3)}, r"must be at least 32 pixels a side for 5 poolings, got \(31, 64, 3\)"),
        ({"depth": (1, 0)}, r"depth must hold at least one positive number of convolutions, got depth=\(1, 0\)"),
        ({"hidden": (8,)}, r"hidden must be two positive numbers of units, got hidden=\(8,\)"),
        ({"grid": -1}, "grid must be at least 0 and width at least 1, got grid=-1, width=64"),
        ({"width": 0}, "width at least 1, got grid=0, width=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        registry.get("vgg11", **arguments)
