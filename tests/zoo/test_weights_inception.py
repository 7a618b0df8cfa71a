"""Inception networks answer like keras.applications and torchvision with their weights."""

import logging
import re
from pathlib import Path

import keras
import make_inception
import numpy as np
import pytest
import references
from safetensors.numpy import save_file

import zoo
from zoo import registry
from zoo.compress.costs import macs
from zoo.weights import layouts

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPE = (107, 96, 3)


def _answers(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def _images(shape=SHAPE):
    return np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    keras.utils.clear_session()  # its layers are numbered from those of this process on, which is the second here
    [keras.layers.Conv2D(1, 1) for _ in range(96)], keras.layers.BatchNormalization()
    model = keras.applications.InceptionV3(weights=None, classes=7, classifier_activation=None, input_shape=SHAPE)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.beta.shape
            layer.set_weights(
                [random.normal(0, 0.2, size), random.normal(0, 0.2, size), random.uniform(0.5, 1.5, size)]
            )
    return model


@pytest.fixture(scope="module")
def expected(reference):
    return _answers(reference, _images())


@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras", "model.h5"])
def test_inception_v3_answers_like_keras_applications(reference, expected, tmp_path, name):
    logging.disable(logging.WARNING)  # Keras advises against the old format
    (reference.save_weights if "weights" in name else reference.save)(tmp_path / name)
    logging.disable(logging.NOTSET)
    model = zoo.get("inception_v3", weights=tmp_path / name, input_shape=SHAPE)
    assert model.output_shape == (None, 7)
    assert np.abs(expected).max() > 0.1
    assert np.abs(_answers(model, _images()) - expected).max() <= 1e-4


def test_the_comparison_would_notice_zeros_in_the_averages(reference, expected, tmp_path):
    reference.save_weights(tmp_path / "model.weights.h5")
    model = zoo.get("inception_v3", weights=tmp_path / "model.weights.h5", input_shape=SHAPE)
    other = zoo.get("inception_v3", input_shape=SHAPE, classes=7, padded_mean=True)
    other.set_weights(model.get_weights())
    assert np.abs(_answers(other, _images()) - expected).max() > 1e-2


def _state(kind, golden, seed=0):
    sizes = golden[f"{kind}/shapes"].tolist()
    names = golden[f"{kind}/names"].tolist()
    return references.weights(
        {name: tuple(filter(None, size)) for name, size in zip(names, sizes, strict=True)}, seed=seed
    )


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "inception.npz") as file:
        return dict(file)


@pytest.mark.parametrize("kind", list(make_inception.KINDS))
def test_inceptions_answer_like_torchvision(golden, tmp_path, kind):
    side = make_inception.KINDS[kind][1]
    save_file(_state(kind, golden), tmp_path / "model.safetensors")
    model = zoo.get(kind, weights=tmp_path / "model.safetensors", input_shape=(side, side, 3))
    assert np.abs(golden[f"{kind}/logits"]).max() > 0.1
    assert np.abs(_answers(model, references.images(side)) - golden[f"{kind}/logits"]).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_inception.KINDS))
def test_inceptions_answer_like_torchvision_live(tmp_path, kind):
    if not references.installed("torch", "torchvision"):
        pytest.skip("compares with torch and torchvision themselves, which are not installed")
    shapes, found = make_inception.torch_answers(kind, seed=5)
    save_file(references.weights(shapes, seed=5), tmp_path / "model.safetensors")
    side = make_inception.KINDS[kind][1]
    model = zoo.get(kind, weights=tmp_path / "model.safetensors", input_shape=(side, side, 3))
    assert np.abs(_answers(model, references.images(side)) - found).max() <= 1e-4


@pytest.mark.parametrize("kind", list(make_inception.KINDS))
def test_every_tensor_of_torchvision_is_known_and_every_other_refused(golden, kind):
    tensors = _state(kind, golden)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    layout, ours, unknown = layouts.convert(
        {**tensors, "conv1.gain": np.ones(3), "inception3a.branch9.conv.weight": np.ones(3)},
        registry.entry(kind),
        Path("model.safetensors"),
    )
    assert layout.family == kind
    assert unknown == ["conv1.gain", "inception3a.branch9.conv.weight"]
    auxiliary = [name for name in tensors if re.match("aux|Aux", name)]
    scales = len([name for name in ours if name.endswith("_norm/beta")]) if kind == "inception_v3" else 0
    assert auxiliary and len(ours) == len(tensors) - len(auxiliary) - scales


def test_files_that_do_not_fit_are_refused(golden, tmp_path):
    save_file(_state("inception_v3", golden), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="Inception v3 file, which does not fit inception_v1"):
        zoo.get("inception_v1", weights=tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="was made with padded_mean=True, got padded_mean=False"):
        zoo.get("inception_v3", weights=tmp_path / "model.safetensors", padded_mean=False)
    with pytest.raises(ValueError, match=r"its stages have \(3, 4, 2\) blocks, the model's \(1, 1, 1\)"):
        zoo.get("inception_v3", weights=tmp_path / "model.safetensors", input_shape=(32, 32, 3), depth=(1, 1, 1))


@pytest.mark.parametrize("kind", list(make_inception.KINDS))
def test_own_files_are_loaded_back(tmp_path, kind):
    small = registry.entry(kind).tiny
    model = zoo.get(kind, **small)
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).uniform(0.5, 1, weight.shape))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    images = _images(small["input_shape"])
    for file in tmp_path.iterdir():
        loaded = zoo.get(kind, weights=file, **{key: value for key, value in small.items() if key != "classes"})
        assert np.array_equal(_answers(loaded, images), _answers(model, images))


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match=r"at least 75 pixels a side for the poolings.*got \(60, 90, 3\)"):
        zoo.get("inception_v3", input_shape=(60, 90, 3), stem="imagenet")
    with pytest.raises(ValueError, match="stem must be"):
        zoo.get("inception_v1", stem="large")
    with pytest.raises(ValueError, match=r"depth must be three numbers of blocks from 1 to \(2, 5, 2\)"):
        zoo.get("inception_v1", depth=(2, 6, 2))


def test_multiplications_are_those_published():
    published = {"inception_v1": 1.498e9, "inception_v3": 5.713e9}  # torchvision, `_ops` of the weights
    assert all(abs(macs(zoo.get(kind)) - count) < 5e5 for kind, count in published.items())


def test_the_papers_sizes():
    model = zoo.get("inception_v1", large=5)
    third = [layer for layer in model.layers if re.search(r"branch2_conv1$", layer.name)]
    assert [layer.kernel.shape[:2] for layer in third] == [(5, 5)] * 9
    sides = {name: model.get_layer(f"{name}_join").output.shape[1:] for name in ("stage0_block1", "stage1_block4")}
    assert sides == {"stage0_block1": (28, 28, 480), "stage1_block4": (14, 14, 832)}
    third = zoo.get("inception_v3")
    sides = [third.get_layer(f"{name}_join").output.shape[1:] for name in ("stage0_block2", "stage1_block3")]
    assert sides == [(35, 35, 288), (17, 17, 768)]  # table 1 of the second paper
    assert third.get_layer("stage2_block1_join").output.shape[1:] == (8, 8, 2048)
