"""T5 with the weights of Hugging Face files gives the answers of transformers, on both backends."""

import json
from functools import partial
from pathlib import Path

import keras
import make_t5
import numpy as np
import onnxruntime
import pytest
import references
from safetensors.numpy import save_file

import export
import zoo
from zoo import registry

golden = partial(
    references.golden, make_t5.PLACE, make=make_t5.weights_of
)  # weights of the reference, and what it answers


def loaded(kind, folder, weights=None, **more):
    save_file(golden(kind)[0] if weights is None else weights, Path(folder) / "model.safetensors")
    width, depth, heads, latent, hidden, gated = make_t5.SIZES[kind]
    sizes = {"width": width, "depth": depth, "heads": heads, "latent": latent, "hidden": hidden, "gated": gated}
    buckets = {"buckets": make_t5.BUCKETS, "distance": make_t5.DISTANCE}
    return zoo.get("t5_small", weights=folder, **{**sizes, **buckets, "input_shape": (11,), "places": 8, **more})


def answers(model):
    return keras.ops.convert_to_numpy(model(make_t5.given(), training=False))


def compare(folder, kind, weights, expected):
    assert np.abs(expected).max() > 0.3
    assert np.abs(answers(loaded(kind, folder, weights)) - expected).max() <= 1e-5


@pytest.mark.also_jax
@pytest.mark.parametrize("kind", list(make_t5.SIZES))
def test_answers_are_those_of_the_reference(tmp_path, kind):
    compare(tmp_path, kind, *golden(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_t5.SIZES))
def test_answers_are_those_of_the_reference_live(tmp_path, kind):
    if not references.installed("torch", "transformers"):
        pytest.skip("compares with torch and transformers themselves, which are not installed")
    shapes, expected = make_t5.torch_answers(kind, seed=5)
    compare(tmp_path, kind, make_t5.weights_of(shapes, seed=5), expected)


@pytest.mark.parametrize("change", [{"epsilon": 1e-2}, {"distance": 40}, {"pad": 29}])
def test_the_comparison_would_notice_what_the_file_does_not_say(tmp_path, change):
    assert np.abs(answers(loaded("plain", tmp_path, **change)) - golden("plain")[1]).max() > 1e-4


def test_the_file_of_a_loaded_model_answers_as_it_does(tmp_path):
    model = loaded("plain", tmp_path, input_shape=(None,), places=None)
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    given = make_t5.given()
    found = session.run(None, given)[0]
    assert np.abs(found - golden("plain")[1]).max() <= 1e-4
    begun = session.run(None, {"tokens": given["tokens"][1:2, :4], "answer": given["answer"][1:2, :3]})[0]
    np.testing.assert_allclose(begun[0], found[1, :3], atol=1e-5)  # padding and what comes later say nothing


def test_sizes_are_those_of_hugging_face():
    # transformers 5.23.0: T5ForConditionalGeneration(config).num_parameters()
    expected = {
        "t5_base": 222_903_552,
        "t5_large": 737_668_096,
        "t5_small": 60_506_624,
        "t5_v1_1_small": 76_961_152,
    }
    assert {name: registry.entry(name).params for name in registry.names("t5*")} == expected


def test_files_in_several_parts_are_read(tmp_path):
    weights, expected = golden("plain")
    parts = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for place, (name, tensor) in enumerate(weights.items()):
        list(parts.values())[place % 2][name] = tensor
    for name, part in parts.items():
        save_file(part, tmp_path / name)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    width, depth, heads, *_ = make_t5.SIZES["plain"]
    sizes = {"width": width, "depth": depth, "heads": heads, "buckets": make_t5.BUCKETS, "distance": make_t5.DISTANCE}
    model = zoo.get("t5_small", weights=tmp_path, input_shape=(11,), places=8, **sizes)
    assert np.abs(answers(model) - expected).max() <= 1e-5


def test_old_files_hold_the_embeddings_several_times(tmp_path):
    weights, expected = golden("plain")
    names = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    old = {**weights, **{name: weights["shared.weight"].copy() for name in names}}
    old["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones((8, 4), np.float32)
    assert np.abs(answers(loaded("plain", tmp_path, old)) - expected).max() <= 1e-5
    old["lm_head.weight"] = old["lm_head.weight"] * 2
    with pytest.raises(ValueError, match="lm_head is not the matrix of the embeddings"):
        loaded("plain", tmp_path, old)


def test_rows_that_no_token_of_the_tokenizer_has_are_cut(tmp_path):
    for kind in ("plain", "gated"):
        weights, expected = golden(kind)
        more = {
            name: tensor for name, tensor in weights.items() if "shared" in name or "embed" in name or "lm_head" in name
        }
        more = {
            name: np.concatenate([tensor, np.ones((98, tensor.shape[1]), np.float32)]) for name, tensor in more.items()
        }
        assert np.abs(answers(loaded(kind, tmp_path, weights | more, vocabulary=30)) - expected).max() <= 1e-5
    assert "the last 98 rows of words/embeddings, which no token has, are left out" in " ".join(
        loaded("gated", tmp_path, weights | more, vocabulary=30).pretrained.notes
    )


@pytest.mark.parametrize(("vocabulary", "beside"), [(20, False), (200, True)])
def test_another_vocabulary_is_refused_with_the_tokenizer_to_take(tmp_path, vocabulary, beside):
    name = str(tmp_path / "tokenizer.json") if beside else "FOLDER/tokenizer.json"
    if beside:
        Path(name).write_text("{}")
    message = (
        f"has a vocabulary of 30 tokens, the model one of {vocabulary}, and .* take that tokenizer: tokenizer={name}"
    )
    with pytest.raises(ValueError, match=message):
        loaded("plain", tmp_path, vocabulary=vocabulary)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing \(.*decoder_block0_gate/kernel"):
        loaded("plain", tmp_path, gated=True)
    with pytest.raises(ValueError, match=r"not in the model .*_gate/kernel"):
        loaded("gated", tmp_path, gated=False)
    weights = {**golden("plain")[0], "score.weight": np.ones((2, 24), np.float32)}
    with pytest.raises(ValueError, match=r"not in the model \(1\): score\.weight"):
        loaded("plain", tmp_path, weights)


@pytest.mark.parametrize("field", ["num_heads", "relative_attention_max_distance"])
def test_a_config_that_says_otherwise_is_refused(tmp_path, field):
    (tmp_path / "config.json").write_text(json.dumps({field: 99, "feed_forward_proj": "relu"}))
    with pytest.raises(ValueError, match=rf"says {field}=99, t5_small has .*; pass \w+=99"):
        loaded("plain", tmp_path)


def test_our_own_files_are_loaded_back(tmp_path):
    sizes = {"width": 8, "depth": 1, "heads": 2, "vocabulary": 20, "input_shape": (7,), "places": 5}
    tokens = {"tokens": np.ones((2, 7), np.int32), "answer": np.ones((2, 5), np.int32)}
    for name, more in (("t5_small", {}), ("t5_v1_1_small", {"latent": 8}), ("transformer", {})):
        model = zoo.get(name, **sizes, **more)
        model.save(tmp_path / "model.keras")
        again = zoo.get(name, weights=tmp_path / "model.keras", **sizes, **more)
        np.testing.assert_array_equal(model(tokens), again(tokens))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 10, "heads": 3}, r"latent \(or width\) must be a multiple of heads, got 10, heads=3"),
        ({"depth": 0}, "depth and heads must be at least 1, latent and hidden at least 0"),
        ({"buckets": 2}, "buckets must be at least 4"),
    ],
)
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("t5_small", **given)
