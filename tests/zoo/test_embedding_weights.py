"""Face networks answer like torch with the same file, and refuse what does not fit."""

from pathlib import Path

import keras
import make_face_embedding
import numpy as np
import pytest
import references
from safetensors.numpy import save_file

import zoo
from zoo import registry
from zoo.compress.costs import macs
from zoo.weights.layouts import face_embedding as layout

GOLDEN = Path(__file__).parent.parent / "golden" / "face_embedding.npz"
BUILT = dict(input_shape=(make_face_embedding.SIDE,) * 2 + (3,), depth=make_face_embedding.DEPTH)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def _state(golden):
    shapes = {
        str(name): tuple(size for size in shape if size)
        for name, shape in zip(golden["names"], golden["shapes"].tolist(), strict=True)
    }
    return references.weights(shapes)


def _answers(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


@pytest.fixture(scope="module")
def file(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "face.safetensors"
    save_file(_state(golden), path)
    return path


def test_answers_equal_those_of_torch(golden, file):
    model = zoo.get("face_embedding", weights=file, **BUILT)
    found = _answers(model, references.images(make_face_embedding.SIDE))
    assert np.abs(found - golden["embeddings"]).max() <= 1e-4
    assert np.abs(golden["embeddings"]).max() > 0.1
    assert model.pretrained.scaling == "tf"


def test_the_comparison_would_notice_rows_of_the_dense_layer_in_another_order(golden, file, monkeypatch):
    placed = layout.LAYOUTS[0].adapt
    kept = {}

    def unplaced(tensors):
        kept.update(tensors)
        return placed(tensors) | {"logits/kernel": tensors["logits/kernel"].T}

    monkeypatch.setattr(layout, "LAYOUTS", (type(layout.LAYOUTS[0])(**{**vars(layout.LAYOUTS[0]), "adapt": unplaced}),))
    model = zoo.get("face_embedding", weights=file, **BUILT)
    assert kept
    found = _answers(model, references.images(make_face_embedding.SIDE))
    assert np.abs(found - golden["embeddings"]).max() > 1e-2


@pytest.mark.slow
def test_answers_equal_those_of_torch_here(tmp_path):
    if not references.installed("torch"):
        pytest.skip("torch is a test-only reference and not installed")
    import torch

    depth, side, latent = (1, 2, 1, 2), 56, 40
    shapes, expected = make_face_embedding.torch_answers(depth, side, latent, seed=3)
    state = {name: torch.from_numpy(tensor) for name, tensor in references.weights(shapes, 3).items()}
    from safetensors.torch import save_file as save_torch

    save_torch(state, tmp_path / "face.safetensors")
    model = zoo.get("iresnet18", weights=tmp_path / "face.safetensors", input_shape=(side, side, 3), depth=depth)
    assert np.abs(_answers(model, references.images(side)) - expected).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["face_embedding", "iresnet18", "iresnet34", "iresnet100"])
def test_parameters_are_those_of_torch_but_for_the_scale_that_is_not_trained(name):
    if not references.installed("torch"):
        pytest.skip("torch is a test-only reference and not installed")
    entry = registry.entry(name)
    depth = entry.arguments.get("depth", (3, 4, 14, 3))
    network = make_face_embedding.torch_network(depth, 512, 112)
    total = sum(parameter.numel() for parameter in network.parameters())
    assert entry.params == total - network.features.weight.numel()


def test_what_the_file_decides_need_not_be_said_and_other_lengths_are_refused(file):
    assert zoo.get("face_embedding", weights=file, **BUILT).output_shape == (None, make_face_embedding.LATENT)
    with pytest.raises(ValueError, match=r"logits/kernel is \(4608, 24\) in the file and \(4608, 12\) in the model"):
        zoo.get("face_embedding", weights=file, latent=12, **BUILT)


def test_a_file_with_other_stages_is_refused_by_name(file):
    with pytest.raises(ValueError, match=r"its stages have \(2, 1, 1, 1\) blocks, the model's \(2, 2, 2, 2\)"):
        zoo.get("iresnet18", weights=file, input_shape=BUILT["input_shape"])


def test_multiply_accumulates_are_those_of_convolutions_and_the_dense_layer():
    model = zoo.get("face_embedding", input_shape=(8, 8, 3), depth=(1,), width=4, latent=6)
    before_stride, behind = 64 * 9 * (3 + 4) * 4, 16 * (9 + 1) * 4 * 4
    assert macs(model) == before_stride + behind + 16 * 4 * 6


def test_own_files_load_again(tmp_path):
    keras.utils.set_random_seed(0)
    model = zoo.get("face_embedding", **registry.entry("face_embedding").tiny)
    images = references.images(8)
    model(images, training=True)  # so that the moving statistics are not 0 and 1
    model.save(tmp_path / "model.keras")
    tiny = {key: value for key, value in registry.entry("face_embedding").tiny.items() if key != "latent"}
    loaded = zoo.get("face_embedding", weights=tmp_path / "model.keras", **tiny)
    np.testing.assert_allclose(_answers(loaded, images), _answers(model, images), atol=1e-6)
