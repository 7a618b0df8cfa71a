"""Weights of others in our models: equal outputs, and what is said of files that do not fit."""

import hashlib
import io
import json
import logging
import re
import urllib.request
import zipfile
from pathlib import Path

import h5py
import keras
import make_resnet
import numpy as np
import pytest
import references
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import zoo
from zoo import registry
from zoo.cli import app
from zoo.weights import Source, files, layouts

GOLDEN = Path(__file__).parent.parent / "golden"


def _applications(builder, side=64, **arguments):
    """A keras.applications model with logits, whose normalisations and biases are those of a trained model: not 0 and 1."""
    model = builder(**{"weights": None, "input_shape": (side, side, 3), **arguments})
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.set_weights(
                [
                    random.uniform(0.5, 1.5, size),
                    random.normal(0, 0.2, size),
                    random.normal(0, 0.2, size),
                    random.uniform(0.5, 1.5, size),
                ]
            )
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(0, 0.3, layer.bias.shape))
    return model


def _images(side=64):
    return np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)


def _answers(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


@pytest.fixture(scope="module")
def resnet50():
    return _applications(keras.applications.ResNet50, classes=7, classifier_activation=None)


@pytest.fixture(scope="module")
def saved(resnet50, tmp_path_factory):
    """The three formats that keras.applications models are kept in."""
    folder = tmp_path_factory.mktemp("keras")
    resnet50.save_weights(folder / "model.weights.h5")
    resnet50.save(folder / "model.keras")
    logging.disable(logging.WARNING)  # Keras advises against the old format
    resnet50.save(folder / "model.h5")
    logging.disable(logging.NOTSET)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Torch names and shapes of a small ResNet of two stages, in a safetensors file with 3 classes."""
    file = tmp_path_factory.mktemp("torch") / "small.safetensors"
    shapes = {"conv1.weight": (4, 3, 3, 3), "fc.weight": (3, 32), "fc.bias": (3,)}

    def norm(name, size):
        shapes.update({f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 4)
    for stage, (inner, incoming) in enumerate(((4, 4), (8, 16)), start=1):
        block = f"layer{stage}.0"
        for index, shape in enumerate(
            [(inner, incoming, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)], start=1
        ):
            shapes[f"{block}.conv{index}.weight"] = shape
            norm(f"{block}.bn{index}", shape[0])
        shapes[f"{block}.downsample.0.weight"] = (4 * inner, incoming, 1, 1)
        norm(f"{block}.downsample.1", 4 * inner)
    save_file(references.weights(shapes), file)
    return file


SMALL = {"input_shape": (8, 8, 3), "depth": (1, 1), "width": 4}


@pytest.fixture(scope="module")
def loaded(saved):
    return zoo.get("resnet50", weights=saved / "model.weights.h5", input_shape=(64, 64, 3))


def test_resnet50_answers_like_keras_applications(resnet50, loaded):
    assert loaded.output_shape == (None, 7)  # the classes come from the file
    assert np.abs(_answers(loaded, _images()) - _answers(resnet50, _images())).max() <= 1e-4


def test_the_comparison_would_notice_another_stride(resnet50, loaded):
    other = zoo.get("resnet50", input_shape=(64, 64, 3), classes=7, stem="imagenet", stride_first=False)
    other.set_weights(loaded.get_weights())
    assert np.abs(_answers(other, _images()) - _answers(resnet50, _images())).max() > 1e-2


@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras", "model.h5"])
def test_every_format_of_keras_holds_the_same_tensors(resnet50, saved, name):
    expected = {f"{layer.name}/{variable.name}": variable for layer in resnet50.layers for variable in layer.weights}
    tensors = files.read(saved / name)
    assert set(tensors) == set(expected)
    assert all(np.array_equal(tensors[key], variable) for key, variable in expected.items())


def test_epsilon_and_biases_of_keras_applications_are_folded_in():
    variance = np.array([0, 1e-6, 1], np.float32)
    tensors = {
        "conv1_conv/bias": np.array([1, 2, 3], np.float32),
        "conv1_bn/gamma": np.ones(3, np.float32),
        "conv1_bn/moving_mean": np.array([4, 4, 4], np.float32),
        "conv1_bn/moving_variance": variance,
    }
    _, ours, unknown = layouts.convert(tensors, registry.entry("resnet50"), Path("model.h5"))
    assert unknown == [] and "stem_conv/bias" not in ours
    assert ours["stem_conv_norm/moving_mean"].tolist() == [3, 2, 1]
    added = ours["stem_conv_norm/moving_variance"].astype(np.float64) + 1e-5
    assert np.allclose(added, variance + np.float64(1.001e-5), rtol=1e-6, atol=0)


def test_resnet50v2_answers_like_keras_applications(tmp_path):
    reference = _applications(keras.applications.ResNet50V2, side=32, classes=4, classifier_activation=None)
    reference.save_weights(tmp_path / "model.weights.h5")
    model = zoo.get("resnet50v2", weights=tmp_path / "model.weights.h5", input_shape=(32, 32, 3))
    assert np.abs(_answers(model, _images(32)) - _answers(reference, _images(32))).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet101", "ResNet152"])
def test_deeper_resnets_answer_like_keras_applications(tmp_path, name):
    reference = _applications(getattr(keras.applications, name), classes=1000)
    reference.save_weights(tmp_path / "model.weights.h5")
    model = zoo.get(name.lower(), weights=tmp_path / "model.weights.h5", input_shape=(64, 64, 3))
    answers = keras.ops.convert_to_numpy(keras.ops.softmax(_answers(model, _images())))
    assert np.abs(answers - _answers(reference, _images())).max() <= 1e-4


@pytest.mark.parametrize("name", list(make_resnet.KINDS))
def test_resnets_answer_like_torchvision(tmp_path, name):
    with np.load(GOLDEN / "resnet.npz") as golden:
        sizes = golden[f"{name}/shapes"].tolist()
        shapes = {
            key: tuple(filter(None, size)) for key, size in zip(golden[f"{name}/names"].tolist(), sizes, strict=True)
        }
        expected = golden[f"{name}/logits"]
    save_file(references.weights(shapes), tmp_path / "model.safetensors")
    model = zoo.get(name, weights=tmp_path / "model.safetensors", input_shape=(64, 64, 3))
    assert np.abs(expected).max() > 0.1
    assert np.abs(_answers(model, references.images(make_resnet.SIDE)) - expected).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", list(make_resnet.KINDS))
def test_resnets_answer_like_torchvision_live(tmp_path, name):
    if not references.installed("torch", "torchvision"):
        pytest.skip("compares with torch and torchvision themselves, which are not installed")
    shapes, expected = make_resnet.torch_answers(name, seed=5)
    save_file(references.weights(shapes, seed=5), tmp_path / "model.safetensors")
    model = zoo.get(name, weights=tmp_path / "model.safetensors", input_shape=(64, 64, 3))
    assert np.abs(_answers(model, references.images(make_resnet.SIDE)) - expected).max() <= 1e-4


def test_our_own_files_are_loaded_back(tmp_path):
    arguments = {"input_shape": (8, 8, 1), "width": (2, 3, 6, 5), "dropout": 0.5}
    model = zoo.get("lenet", classes=3, **arguments)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for file in tmp_path.iterdir():
        assert np.array_equal(_answers(zoo.get("lenet", weights=file, **arguments), images), _answers(model, images))


def test_another_number_of_classes_leaves_a_fresh_head(small, caplog):
    caplog.set_level(logging.INFO, logger="zoo.weights")
    whole = zoo.get("resnet50", weights=small, **SMALL)
    model = zoo.get("resnet50", weights=small, classes=10, **SMALL)
    assert model.output_shape == (None, 10)
    features = [keras.Model(m.input, m.get_layer("features").output) for m in (whole, model)]
    assert np.array_equal(*(_answers(m, _images(8)) for m in features))
    assert "the file has 3 classes, so the head for 10 classes is fresh" in caplog.text


def test_a_file_without_head_needs_classes(small, tmp_path):
    tensors = {name: tensor for name, tensor in load_file(small).items() if not name.startswith("fc.")}
    save_file(tensors, tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError, match="has no head, so the number of classes is unknown; pass classes="):
        zoo.get("resnet50", weights=tmp_path / "backbone.safetensors", **SMALL)
    assert zoo.get("resnet50", weights=tmp_path / "backbone.safetensors", classes=2, **SMALL).output_shape == (None, 2)


@pytest.mark.parametrize(
    ("builder", "name"), [("ResNet50", "resnet50"), ("ResNet50V2", "resnet50v2"), ("MobileNetV2", "mobilenet_v2")]
)
def test_files_without_top_of_keras_applications_give_the_backbone(tmp_path, caplog, builder, name):
    caplog.set_level(logging.INFO, logger="zoo.weights")
    reference = _applications(getattr(keras.applications, builder), side=32, include_top=False, pooling="avg")
    reference.save_weights(tmp_path / "notop.weights.h5")
    model = zoo.get(
        name, weights=tmp_path / "notop.weights.h5", input_shape=(32, 32, 3), classes=3,
        **{"stem": "imagenet"} if name == "mobilenet_v2" else {},
    )  # fmt: skip
    features = keras.Model(model.input, model.get_layer("features").output)
    assert np.abs(_answers(features, _images(32)) - _answers(reference, _images(32))).max() <= 1e-4
    assert "the file has no head, so the head for 3 classes is fresh: train it" in caplog.text
    assert model.pretrained.notes[0].startswith(f"{len(reference.weights)} tensors loaded from") or name == "resnet50"


@pytest.mark.parametrize(("kind", "gap"), [("float16", 1e-3), ("bfloat16", 1e-2), ("float64", 0)])
def test_other_precisions_are_loaded_as_float32(small, tmp_path, kind, gap):
    import ml_dtypes  # noqa: F401 it gives numpy the type bfloat16

    floats = {name: tensor for name, tensor in load_file(small).items() if tensor.dtype == np.float32}
    save_file({name: tensor.astype(kind) for name, tensor in floats.items()}, tmp_path / "other.safetensors")
    whole = zoo.get("resnet50", weights=small, **SMALL)
    other = zoo.get("resnet50", weights=tmp_path / "other.safetensors", **SMALL)
    assert {weight.dtype for weight in other.weights} == {"float32"}
    apart = max(np.abs(one - two).max() for one, two in zip(whole.get_weights(), other.get_weights(), strict=True))
    assert apart <= gap and (gap == 0 or apart > 0)


def _without(tensors):
    del tensors["layer2.0.conv2.weight"]


def _with_another(tensors):
    tensors["layer1.0.se.weight"] = np.zeros((2, 2), np.float32)


def _reshaped(tensors):
    tensors["layer1.0.conv1.weight"] = np.zeros((4, 5, 1, 1), np.float32)


def _endless(tensors):
    tensors["bn1.bias"][1] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, r"missing \(1\): stage1_block0_conv1/kernel"),
        (_with_another, r"not in the model \(1\): layer1\.0\.se\.weight"),
        (_reshaped, r"stage0_block0_conv0/kernel is \(1, 1, 5, 4\) in the file and \(1, 1, 4, 4\) in the model"),
        (_endless, r"not finite \(1\): stem_conv_norm/beta"),
    ],
)
def test_what_differs_is_listed_and_nothing_is_loaded(small, tmp_path, change, message):
    tensors = load_file(small)
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        zoo.get("resnet50", weights=tmp_path / "changed.safetensors", **SMALL)
    assert "changed.safetensors (torchvision or timm ResNet) does not fit resnet50" in str(caught.value)
    assert "Nothing was loaded" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": (1, 2)}, r"its stages have \(1, 1\) blocks, the model's \(1, 2\)"),
        ({"width": 8}, r"of another shape \(\d\d\): stem_conv/kernel is .* and \d+ more"),
        ({"bottleneck": False}, r"not in the model \(15\): stage0_block0_conv2"),
        ({"stride_first": True}, "was made with stride_first=False, got stride_first=True"),
        ({"stem": "imagenet"}, "stem_conv/kernel is .*3, 3, 3, 4.* in the file and .*7, 7, 3, 4"),
    ],
)
def test_arguments_that_do_not_fit_the_file_are_refused(small, arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("resnet50", weights=small, **{**SMALL, **arguments})


def test_files_of_another_family_are_refused(small, saved):
    with pytest.raises(ValueError, match="is a torchvision or timm ResNet file, which does not fit resnet50v2"):
        zoo.get("resnet50v2", weights=small)
    with pytest.raises(ValueError, match=r"its stages have \(3, 4, 6, 3\) blocks, the model's \(3, 4, 23, 3\)"):
        zoo.get("resnet101", weights=saved / "model.weights.h5", input_shape=(64, 64, 3))
    with pytest.raises(ValueError, match="file, which does not fit lenet"):
        zoo.get("lenet", weights=small)


def test_unknown_and_damaged_files_are_refused(small, tmp_path):
    def refused(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            zoo.get("resnet50", weights=tmp_path / name)

    refused("a.pth", b"\x80\x02", r"a\.pth is a pickle, which can run code when read.*safetensors")
    refused("a.pt", b"PK", r"torch\.load\('a\.pt', weights_only=True\).*or the dictionary of tensors in it")
    refused("a.txt", b"x", "is of no known kind")
    refused("a.safetensors", small.read_bytes()[:-100], "cannot be read as safetensors.*fetch or save it again")
    refused("empty.safetensors", b"", "cannot be read as safetensors.*it is empty, fetch or save it again")
    refused("page.h5", b"<!DOCTYPE html>", "cannot be read as HDF5.*it is a web page; fetch it again")
    refused("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS to the file")
    refused(
        "renamed.safetensors", b"PK\x03\x04" + bytes(99), r"it is a zip archive; if torch wrote it, convert it.*'renam"
    )
    refused("renamed.h5", b"\x80\x02" + bytes(99), "it is a pickle; convert it where you trust it")
    refused("hdf.safetensors", b"\x89HDF\r\n\x1a\n" + bytes(99), "it is an HDF5 file; give it the ending .h5")
    refused("a.h5", b"not hdf5", "cannot be read as HDF5")
    header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    refused(
        "eight.safetensors", len(header).to_bytes(8, "little") + header + b"a", "of a type that is not read.*float32"
    )
    with pytest.raises(ValueError, match=r"is a folder, give the file of weights in it, such as .*a\.h5"):
        zoo.get("resnet50", weights=tmp_path)
    refused("a.keras", b"not a zip", "cannot be read as a Keras model")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", "{}")
    refused("b.keras", buffer.getvalue(), "cannot be read as a Keras model")
    save_file({"encoder.weight": np.zeros(3, np.float32)}, tmp_path / "c.safetensors")
    refused(
        "c.safetensors",
        (tmp_path / "c.safetensors").read_bytes(),
        "is in no known layout: it starts with encoder.weight",
    )
    save_file({"steps": np.zeros(3, np.int64)}, tmp_path / "d.safetensors")
    refused("d.safetensors", (tmp_path / "d.safetensors").read_bytes(), "holds no weights")


def test_folders_are_refused_with_the_file_that_is_needed(tmp_path):
    with pytest.raises(ValueError, match="is a folder, and no file of weights is in it; give the file"):
        zoo.get("resnet50", weights=tmp_path)
    for number in (1, 2):
        save_file({"a": np.zeros(3, np.float32)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    with pytest.raises(
        ValueError, match=r"several files \(model-00001.*; put model\.safetensors\.index\.json beside them"
    ):
        zoo.get("resnet50", weights=tmp_path)
    index = {"weight_map": {name: f"model-0000{number}-of-00002.safetensors" for number, name in ((1, "a"), (2, "b"))}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(
        ValueError, match=r"model-00002-of-00002\.safetensors cannot be read as safeten.*a pointer of Git LFS"
    ):
        zoo.get("resnet50", weights=tmp_path)


def test_hdf5_that_points_to_other_files_is_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("conv1_bn/gamma", (4,), "f4", external=[(str(tmp_path / "secret.bin"), 0, 16)])
    with pytest.raises(ValueError, match="'conv1_bn/gamma' lies in another file, which is not followed"):
        zoo.get("resnet50", weights=tmp_path / "a.h5")


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"has no weights called 'kera'.*Did you mean 'keras'.*it has 'keras', 'timm'"):
        zoo.get("resnet50", weights="kera")
    with pytest.raises(ValueError, match="it has none by name"):
        zoo.get("mlp", weights="keras")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolo_nano", r"YOLOX is published as a pickle.*yolox_nano\.pth.*releases/tag.*weights_only=True\)\['model'\]"),
        ("inception_v1", r"torchvision GoogLeNet is published as a pickle.*get googlenet-1378be20\.pth"),
        ("faster_rcnn", r"torchvision Faster R-CNN.*torch\.load\('fasterrcnn_resnet50_fpn_coco-258fb6c6\.pth'"),
        ("iresnet18", r"InsightFace is published as a pickle.*for non-commercial research only"),
    ],
)
def test_where_only_a_pickle_is_published_it_is_told_how_to_convert_it(name, expected):
    with pytest.raises(ValueError, match=rf"{name}' has no weights called 'published'.*none by name\. {expected}"):
        zoo.get(name, weights="published")
    assert re.search(expected, CliRunner().invoke(app, ["show", name]).output)


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["", "['model']"])
def test_the_conversion_that_is_told_makes_a_file_that_is_read(tmp_path, monkeypatch, inside):
    if not references.installed("torch"):
        pytest.skip("saves a pickle with torch, which is not installed")
    import torch

    tensors = {"conv.weight": torch.arange(6.0).reshape(2, 3), "norm.num_batches_tracked": torch.tensor(7)}
    monkeypatch.chdir(tmp_path)
    torch.save({"model": tensors, "epoch": 300} if inside else tensors, "published.pth")
    exec(f"import safetensors.torch, torch\n{files.conversion('published.pth', inside)}")
    read = files.read(tmp_path / "weights.safetensors")
    assert {name: tensor.tolist() for name, tensor in read.items()} == {"conv.weight": [[0, 1, 2], [3, 4, 5]]}


def test_declared_files_are_fetched_once_and_their_licence_shown_once(small, tmp_path, monkeypatch, caplog):
    content = small.read_bytes()
    asked = []
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: asked.append(url) or io.BytesIO(content))
    entry = registry.entry("resnet50")
    declared = {**entry.weights["timm"], "checksum": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    monkeypatch.setitem(entry.weights, "timm", declared)
    for _ in range(2):
        assert zoo.get("resnet50", weights="timm", **SMALL).output_shape == (None, 3)
    assert asked == [declared["url"]]
    assert (tmp_path / "weights" / "resnet50" / "timm" / "model.safetensors").read_bytes() == content
    assert caplog.text.count("licence Apache-2.0, as the model card states") == 1


def test_without_a_network_file_and_folder_are_named(tmp_path, monkeypatch):
    def urlopen(url, timeout):
        raise ConnectionError("offline")

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    folder = re.escape(str(tmp_path / "weights" / "resnet50" / "keras"))
    message = f"put the file resnet50_weights_tf_dim_ordering_tf_kernels.h5 .* into the folder {folder} by hand"
    with pytest.raises(OSError, match=message):
        zoo.get("resnet50", weights="keras")


def test_every_declared_file_has_an_address_and_a_licence_and_mostly_a_checksum():
    declared = [Source(**source) for entry in registry.entries().values() for source in entry.weights.values()]
    assert len(declared) >= 17
    for source in declared:
        assert source.url.startswith("https://") and source.licence and source.inputs
        assert re.fullmatch("(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})?", source.checksum)
        assert source.url.endswith((".h5", ".safetensors"))
    assert sum(not source.checksum for source in declared) <= 2  # where none is known
