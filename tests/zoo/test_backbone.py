"""The pyramid of maps of an image model, by the names of its layers."""

import keras
import numpy as np
import pytest

import zoo
from zoo import registry

# strides and channels as timm's `features_only` has them for the same names
PYRAMIDS = {
    "vgg16": [(1, 64), (2, 128), (4, 256), (8, 512), (16, 512), (32, 512)],
    "resnet18": [(2, 64), (4, 64), (8, 128), (16, 256), (32, 512)],
    "resnet50": [(2, 64), (4, 256), (8, 512), (16, 1024), (32, 2048)],
}


@pytest.mark.parametrize("name", list(PYRAMIDS))
def test_pyramids_are_those_of_timm(name):
    smaller = {"hidden": (2, 2), "grid": 1} if name == "vgg16" else {}
    backbone = zoo.features(name, input_shape=(64, 96, 3), classes=2, **smaller)
    assert [(level.stride, level.channels) for level in backbone.pyramid] == PYRAMIDS[name]
    assert [level.name for level in backbone.pyramid] == [
        tensor._keras_history.operation.name for tensor in backbone.outputs
    ]
    for level, tensor in zip(backbone.pyramid, backbone.outputs, strict=True):
        assert tensor.shape[1:] == (64 // level.stride, 96 // level.stride, level.channels)


def test_the_pyramid_shares_the_weights_of_its_model():
    model = registry.get("resnet18", input_shape=(64, 64, 3), classes=2, depth=(1, 1), width=4)
    backbone = zoo.features(model, stages=(0, -1))
    assert [level.name for level in backbone.pyramid] == ["stem_conv_relu", "stage1_block0_relu"]
    image = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    coarsest = keras.ops.convert_to_numpy(backbone(image)[-1]).mean(axis=(1, 2))
    features = keras.Model(model.input, model.get_layer("features").output)(image)
    np.testing.assert_allclose(coarsest, keras.ops.convert_to_numpy(features), atol=1e-5)


def test_every_image_classifier_has_a_pyramid():
    families = {
        entry.family: name for name, entry in registry.entries().items() if "image-classification" in entry.tasks
    }
    seen = 0
    for name in families.values():
        entry = registry.entry(name)
        if name in ("logistic_regression", "mlp", "capsnet") or "height" not in next(iter(entry.inputs.values())).axes:
            continue
        seen += 1
        backbone = zoo.features(name, **entry.tiny)
        assert len(backbone.pyramid) >= 2, name
        strides = [level.stride for level in backbone.pyramid]
        assert strides == sorted(strides), name
    assert seen >= 3


def test_the_pyramid_of_a_u_net_is_its_contracting_path():
    backbone = zoo.features("unet", input_shape=(21, 32, 5), width=4, depth=2, classes=3)
    levels = [("down0_relu1", 1, 4), ("down1_relu1", 2, 8), ("bottom_relu1", 4, 16)]
    assert [tuple(level) for level in backbone.pyramid] == levels
    assert [tuple(tensor.shape[1:3]) for tensor in backbone.outputs] == [(24, 32), (12, 16), (6, 8)]


def test_a_transformers_tokens_are_laid_out_as_maps():
    backbone = zoo.features("vit_tiny", input_shape=(8, 12, 3), patch=4, width=8, depth=2, heads=2, classes=2)
    assert [tuple(level) for level in backbone.pyramid] == [("block0_add1", 4, 8), ("block1_add1", 4, 8)]
    assert [tuple(tensor.shape) for tensor in backbone.outputs] == [(None, 2, 3, 8)] * 2


def test_bad_calls():
    model = registry.get("resnet18", input_shape=(32, 32, 3), classes=2, depth=(1, 1), width=4)
    with pytest.raises(
        ValueError, match=r"stages must be among 0 stage0_block0_relu, 1 stage1_block0_relu, got stages=5"
    ):
        zoo.features(model, 5)
    with pytest.raises(TypeError, match="classes is for a model by name; leave it out"):
        zoo.features(model, classes=3)
    with pytest.raises(ValueError, match="features needs a functional model of images, got 'mlp'"):
        zoo.features("mlp")
