"""GPT-2 with the weights of Hugging Face files gives the answers of transformers, on both backends."""

import json
from functools import partial
from pathlib import Path

import keras
import make_gpt
import numpy as np
import onnxruntime
import pytest
import references
from safetensors.numpy import save_file

import export
import zoo
from zoo import registry

golden = partial(references.golden, make_gpt.PLACE)  # weights of the reference, and what it answers


def loaded(kind, folder, weights=None, **more):
    save_file(golden(kind)[0] if weights is None else weights, Path(folder) / "model.safetensors")
    _, width, depth, heads, hidden, _ = make_gpt.SIZES[kind]
    sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden or 0, "input_shape": (15,)}
    return zoo.get("gpt2", weights=folder, **{**sizes, **more})


def answers(model, tokens):
    return keras.ops.convert_to_numpy(model(tokens, training=False)) * (tokens != 0)[..., None]


def compare(folder, kind, weights, expected):
    model = loaded(kind, folder, weights)
    if kind == "bare":
        model = keras.Model(model.input, model.get_layer("features").output)
    assert np.abs(expected).max() > 0.5
    assert np.abs(answers(model, make_gpt.tokens()) - expected).max() <= 1e-5


@pytest.mark.also_jax
@pytest.mark.parametrize("kind", list(make_gpt.SIZES))
def test_answers_are_those_of_the_reference(tmp_path, kind):
    compare(tmp_path, kind, *golden(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_gpt.SIZES))
def test_answers_are_those_of_the_reference_live(tmp_path, kind):
    if not references.installed("torch", "transformers"):
        pytest.skip("compares with torch and transformers themselves, which are not installed")
    shapes, expected = make_gpt.torch_answers(kind, seed=5)
    compare(tmp_path, kind, references.weights(shapes, seed=5), expected)


@pytest.mark.parametrize("change", [{"epsilon": 1e-2}, {"heads": 4}])
def test_the_comparison_would_notice_what_the_file_does_not_say(tmp_path, change):
    found = answers(loaded("language", tmp_path, **change), make_gpt.tokens())
    assert np.abs(found - golden("language")[1]).max() > 1e-3


def test_the_file_of_a_loaded_model_answers_as_it_does(tmp_path):
    model = loaded("language", tmp_path, input_shape=(None,))
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    tokens = make_gpt.tokens()
    found = session.run(None, {"tokens": tokens})[0] * (tokens != 0)[..., None]
    assert np.abs(found - golden("language")[1]).max() <= 1e-4
    begun = session.run(None, {"tokens": tokens[:1, :6]})[0]  # no token sees what is behind it
    np.testing.assert_allclose(begun[0], found[0, :6], atol=1e-5)


def test_sizes_are_those_of_hugging_face():
    # transformers 5.23.0: GPT2LMHeadModel(config).num_parameters()
    expected = {"gpt2": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080, "gpt2_xl": 1_557_611_200}
    assert {name: registry.entry(name).params for name in registry.names("gpt2*")} == expected


def test_positions_are_cut_or_refused(tmp_path):
    model = loaded("language", tmp_path, length=16)
    assert model.get_layer("positions").table.shape == (16, 24) and model.get_layer("words").input_dim == 40
    sizes = {"width": 24, "depth": 3, "heads": 3, "hidden": 40}
    assert zoo.get("gpt2", weights=tmp_path, length=16, **sizes).input_shape == (None, 16)
    with pytest.raises(ValueError, match="the weights have 18 positions, the model 30; pass length=18 or less"):
        loaded("language", tmp_path, length=30)


def configured(folder, **config):
    save_file(golden("language")[0], folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"n_embd": 24, "n_layer": 3, "n_head": 3, "n_inner": 40, **config}))
    return folder


def test_what_shapes_do_not_show_is_read_in_the_config_beside(tmp_path):
    for path in (configured(tmp_path), tmp_path / "model.safetensors"):
        model = zoo.get("gpt2", weights=path, hidden=40, input_shape=(15,))
        assert np.abs(answers(model, make_gpt.tokens()) - golden("language")[1]).max() <= 1e-5
    model = zoo.get("gpt2", weights=configured(tmp_path, layer_norm_epsilon=1e-2, n_head=4), hidden=40)
    assert model.pretrained.arguments["heads"] == 4 and model.pretrained.arguments["epsilon"] == 1e-2


@pytest.mark.parametrize(
    ("name", "given", "config", "message"),
    [
        ("gpt2", {"heads": 4}, {}, r"says n_head=3, gpt2 has heads=4\. Nothing was loaded; pass heads=3"),
        ("gpt_nano", {}, {}, r"says n_embd=24, gpt_nano has width=128\. Nothing was loaded; pass width=24"),
        (
            "gpt2",
            {"epsilon": 1e-5},
            {"layer_norm_epsilon": 1e-3},
            "says layer_norm_epsilon=0.001, gpt2 has epsilon=1e-05",
        ),
        ("gpt2", {}, {"activation_function": "relu"}, "says activation_function='relu', gpt2 has 'gelu_new' or"),
        ("gpt2", {}, {"n_head": "3"}, "says n_head='3', which is no number"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(tmp_path, name, given, config, message):
    with pytest.raises(ValueError, match=message):
        zoo.get(name, weights=configured(tmp_path, **config), hidden=40, **given)


@pytest.mark.parametrize(("content", "message"), [("{", "is no JSON"), ("[]", "is no object of fields, got a list")])
def test_a_damaged_config_is_refused(tmp_path, content, message):
    (configured(tmp_path) / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"config\.json {message}.*fetch or save it again"):
        zoo.get("gpt2", weights=tmp_path, hidden=40)


def test_old_files_hold_masks_and_the_matrix_twice(tmp_path):
    weights, expected = golden("language")
    old = {**weights, "lm_head.weight": weights["transformer.wte.weight"].copy()}
    old |= {"transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 18, 18), np.float32))}
    assert np.abs(answers(loaded("language", tmp_path, old), make_gpt.tokens()) - expected).max() <= 1e-5
    old["lm_head.weight"] = old["lm_head.weight"] * 2
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the matrix of the embeddings"):
        loaded("language", tmp_path, old)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"of another shape.*block0_query/kernel is \(24, 24\) in the file and \(48, 48\)"
    ):
        loaded("language", tmp_path, width=48)
    with pytest.raises(ValueError, match=r"missing \(16\): block3_norm0/gamma"):
        loaded("language", tmp_path, depth=4)
    with pytest.raises(ValueError, match=r"not in the model \(1\): score\.weight"):
        loaded("language", tmp_path, {**golden("language")[0], "score.weight": np.ones((2, 24), np.float32)})


def test_our_own_files_are_loaded_back(tmp_path):
    sizes = {"width": 8, "depth": 1, "heads": 2}
    model = zoo.get("gpt_nano", vocabulary=20, length=12, input_shape=(7,), **sizes)
    random = np.random.RandomState(0)
    model.set_weights([random.standard_normal(weight.shape) for weight in model.weights])
    tokens = random.randint(1, 20, (3, 7)).astype(np.int32)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for path in tmp_path.iterdir():
        again = zoo.get("gpt_nano", weights=path, input_shape=(7,), **sizes)
        np.testing.assert_array_equal(answers(again, tokens), answers(model, tokens))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 10, "heads": 3}, "width must be a multiple of heads, got width=10, heads=3"),
        ({"depth": 0}, "depth, heads and length must be at least 1 and hidden at least 0"),
        (
            {"input_shape": (600,)},
            "'positions' has 256 positions, got 600 tokens; cut the text, or pass a larger length",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("gpt_nano", **given)
