"""How pretrained weights expect images to be scaled: read, applied, exported, attacked, explained and trained alike."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import zoo
from zoo import data as datasets
from zoo import registry
from zoo.data.signature import SCALINGS, ImagePreprocess, Signature, read_scaling
from zoo.evaluate.attacks import Region, deliver
from zoo.weights import Source

SHAPE = (8, 8, 3)
NARROW = {"depth": (1, 1), "width": 4, "hidden": (6, 5)}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def small(digits):
    """Few rows, so that a training step is all that takes time."""
    parts = {
        name: dataclasses.replace(part, x={"image": part.x["image"][:96]}, y=part.y[:96])
        for name, part in digits.splits.items()
    }
    return dataclasses.replace(digits, **parts)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the names of keras.applications, whose images are BGR without their mean."""
    import h5py

    model = registry.get("vgg11", input_shape=(8, 8, 3), classes=10, **NARROW)
    file = tmp_path_factory.mktemp("weights") / "vgg.h5"
    names = {"hidden": "fc1", "features": "fc2", "logits": "predictions"}
    with h5py.File(file, "w") as archive:
        for layer in model.layers:
            if layer.weights:
                stage, _, conv = layer.name.partition("_conv")
                name = names.get(layer.name) or f"block{int(stage[5:]) + 1}_conv{int(conv) + 1}"
                for variable, values in zip(("kernel:0", "bias:0"), layer.get_weights(), strict=True):
                    archive[f"{name}/{name}/{variable}"] = values
    return file


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_scalings_are_those_of_keras_applications(mode, images):
    expected = keras.applications.imagenet_utils.preprocess_input(images.astype(np.float32), mode=mode)
    step = ImagePreprocess.declared(mode, SHAPE)
    np.testing.assert_allclose(step({"image": images}), expected, atol=2e-5)
    np.testing.assert_allclose(step.pixels(step({"image": images})), images, atol=1e-3)


def test_other_channels_follow_the_adapted_kernels():
    red, green, blue = SCALINGS["caffe"][0]
    assert ImagePreprocess.declared("caffe", (8, 8, 1)).mean == pytest.approx([(red + green + blue) / 3])
    step = ImagePreprocess.declared("caffe", (8, 8, 5))  # the kernels take blue, green, red, blue, green
    assert step.order == (2, 1, 0, 3, 4)
    assert step.mean == pytest.approx([red, green, blue, blue, green])
    assert ImagePreprocess.declared("0/255", (8, 8, 4)).std == (255,) * 4


@pytest.mark.parametrize("text", ["cafe", "1,2/3", "0/0", "1/nan", "/", "5"])
def test_what_is_no_scaling_is_refused(text):
    with pytest.raises(ValueError, match=f"scaling must be one of caffe, tf, torch, or MEAN/STD .* got '{text}'"):
        read_scaling(text)


def test_every_declared_weights_file_has_a_scaling():
    declared = [Source(**source) for entry in registry.entries().values() for source in entry.weights.values()]
    assert all(read_scaling(source.inputs) for source in declared)


def test_a_signature_with_an_order_is_written_and_read(tmp_path):
    signature = Signature("image-classification", ("a", "b"), ImagePreprocess.declared("caffe", SHAPE))
    signature.save(tmp_path / "signature.json")
    assert Signature.load(tmp_path / "signature.json") == signature


def test_attacks_count_pixels_in_any_order(images):
    signature = Signature("image-classification", ("a", "b"), ImagePreprocess.declared("caffe", SHAPE))
    region = Region.of(signature)
    inputs = signature.inputs({"image": images})
    assert np.all(inputs >= region.low - 1e-4) and np.all(inputs <= region.high + 1e-4)
    black, white = (signature.inputs({"image": np.full((1, *SHAPE), value, np.uint8)}) for value in (0, 255))
    np.testing.assert_allclose(black[0, 0, 0], region.low, atol=1e-4)
    np.testing.assert_allclose(white[0, 0, 0], region.high, atol=1e-4)
    moved = inputs.copy()
    moved[..., 0] += 7 * region.unit[0]  # the model's first channel is blue
    found = deliver(moved, {"image": images}, signature, 7, "linf")["image"].astype(int)
    assert np.array_equal(found[..., 2], np.minimum(images[..., 2].astype(int) + 7, 255))
    assert np.array_equal(found[..., :2], images[..., :2])


def test_the_exported_file_holds_the_same_arithmetic(images, tmp_path):
    import onnxruntime

    import export
    from zoo.tasks import get

    keras.utils.set_random_seed(0)
    model = registry.get("vgg11", input_shape=SHAPE, classes=3, **NARROW)
    model.get_layer("stage0_conv0").kernel.assign(model.get_layer("stage0_conv0").kernel * 0.05)
    signature = Signature("image-classification", ("a", "b", "c"), ImagePreprocess.declared("caffe", SHAPE))
    export.to_onnx(model, tmp_path / "model.onnx", signature=signature)
    found = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(["probabilities"], {"image": images})[0]
    expected = get("image-classification").answer(np.asarray(model(signature.inputs({"image": images}))), signature)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    swapped = get("image-classification").answer(
        np.asarray(model(signature.inputs({"image": images[..., ::-1]}))), signature
    )
    assert np.abs(found - swapped).max() > 1e-2


def test_contributions_belong_to_the_channels_that_were_sent(images):
    """All that a model reads is red, so all shares must stand in the first channel although the model takes BGR."""
    signature = Signature("image-classification", ("a", "b"), ImagePreprocess.declared("caffe", SHAPE))
    image = keras.Input(SHAPE, name="image")
    x = keras.layers.Conv2D(2, 1, name="stage0_conv")(image)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    model = keras.Model(image, keras.layers.Dense(2, name="logits")(x))
    kernel = np.zeros((1, 1, 3, 2), np.float32)
    kernel[0, 0, 2] = (0.02, -0.02)  # the model's third channel
    model.get_layer("stage0_conv").set_weights([kernel, np.zeros(2, np.float32)])
    for method in ("gradient_times_input", "integrated_gradients"):
        background = {"image": np.zeros((1, *SHAPE), np.uint8)}
        found = zoo.explain(model, {"image": images[:1]}, method=method, signature=signature, background=background)
        values = np.abs(found.attributions).reshape(-1, *SHAPE)
        assert values[..., 0].max() > 0
        assert values[..., 1:].max() == 0


def test_training_from_weights_scales_as_they_expect(weights, small, tmp_path):
    settings = {"epochs": 1, "quiet": True, "augment": ("shift",), "input_shape": (8, 8, 1), **NARROW}
    run = zoo.train("vgg11", small, out=tmp_path / "run", weights=str(weights), **settings)
    assert run.recipe.weights == str(weights) and run.recipe.scaling == "caffe"
    assert run.recipe.arguments["grid"] == 2  # as the file has it
    assert run.signature.preprocess == ImagePreprocess.declared("caffe", (8, 8, 1))
    own = zoo.train("vgg11", small, out=tmp_path / "own", weights=str(weights), scaling="fitted", **settings)
    assert own.signature == small.signature
    assert run.metrics["baseline"] == own.metrics["baseline"]  # which has a scaling of its own
    again = zoo.train("vgg11", small, out=tmp_path / "again", weights=tmp_path / "own" / "model.keras", **settings)
    np.testing.assert_array_equal(again.signature.preprocess.mean, own.signature.preprocess.mean)
    assert again.signature.preprocess.scaling == own.signature.preprocess.declaration


def test_a_run_with_declared_scaling_finds_its_data_again(tmp_path):
    zoo.train("logistic_regression", "digits", out=tmp_path / "run", epochs=1, scaling="0/255", quiet=True)
    run = zoo.training.load(tmp_path / "run")
    assert zoo.training.load_data(run).signature == run.signature
    assert json.loads((tmp_path / "run" / "signature.json").read_text())["preprocess"]["scaling"] == "0/255"


def test_augmentation_is_the_same_under_any_scaling(small):
    from zoo.recipes import Recipe
    from zoo.training.fit import Batches

    recipe = Recipe("m", "digits", augment=("shift", "noise", "colour"), batch_size=16)
    caffe = datasets.scaled(small, "caffe")
    fitted, other = Batches(datasets.scaled(caffe, "fitted"), recipe), Batches(caffe, recipe)
    pixels = [each.data.signature.preprocess.pixels(each[0][0]) for each in (fitted, other)]
    np.testing.assert_allclose(*pixels, atol=1e-2)


def test_scaling_is_for_images(tmp_path):
    with pytest.raises(ValueError, match="scaling is for images, 'wine' has table inputs; leave it out"):
        zoo.train("mlp", "wine", out=tmp_path / "run", scaling="tf", quiet=True)


def test_a_bundle_of_published_weights_takes_their_scaling_and_names_their_licence(tmp_path):
    import export
    from zoo.weights import Pretrained

    keras.utils.set_random_seed(0)
    model = registry.get("vgg11", input_shape=SHAPE, classes=10, **NARROW)
    model.get_layer("logits").kernel.assign(np.zeros((5, 10), np.float32))  # an answer that never changes
    model.pretrained = Pretrained(tmp_path / "file.h5", {}, "caffe", "CC BY 4.0")
    with pytest.warns(UserWarning, match="no better than always the same answer"):
        made = export.to_bundle(model, tmp_path / "store" / "digits" / "1", data="digits", int8=False, litert=False)
    kept = made.manifest.preprocess
    assert (kept["scaling"], list(kept["order"])) == ("caffe", [2, 1, 0])
    assert "published weights, whose licence is: CC BY 4.0" in (made.folder / "LICENSES").read_text()


def test_the_file_for_phones_holds_the_same_arithmetic(images, tmp_path):
    import export
    from export import litert
    from zoo.tasks import get

    keras.utils.set_random_seed(0)
    model = registry.get("vgg11", input_shape=SHAPE, classes=3, **NARROW)
    model.get_layer("stage0_conv0").kernel.assign(model.get_layer("stage0_conv0").kernel * 0.05)
    signature = Signature("image-classification", ("a", "b", "c"), ImagePreprocess.declared("caffe", SHAPE))
    export.to_litert(model, tmp_path / "model.tflite", signature=signature)
    [found] = litert.run(tmp_path / "model.tflite", {"image": images}).values()
    expected = get("image-classification").answer(np.asarray(model(signature.inputs({"image": images}))), signature)
    np.testing.assert_allclose(found, expected, atol=1e-4)
