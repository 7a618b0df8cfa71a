"""BERT with the weights of Hugging Face files gives the answers of transformers, on both backends."""

import json
import logging
from functools import partial
from pathlib import Path

import keras
import make_bert
import numpy as np
import onnxruntime
import pytest
import references
from safetensors.numpy import save_file

import export
import zoo
from zoo import registry

golden = partial(references.golden, make_bert.PLACE)  # weights of the reference, and what it answers
HEAD = {"encoder": "none", "vocabulary": "vocabulary", "pretraining": "vocabulary"}


def arguments(kind):
    _, width, depth, heads, hidden, _ = make_bert.SIZES[kind]
    sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "separator": make_bert.SEPARATOR}
    return {**sizes, "input_shape": (14,), **({"head": HEAD[kind]} if kind in HEAD else {})}


def loaded(kind, folder, weights=None, **more):
    save_file(golden(kind)[0] if weights is None else weights, Path(folder) / "model.safetensors")
    return zoo.get("bert_base", weights=Path(folder) / "model.safetensors", **{**arguments(kind), **more})


def answers(model, tokens):
    found = keras.ops.convert_to_numpy(model(tokens, training=False))
    return found * (tokens != 0)[..., None] if found.ndim == 3 else found


def compare(folder, kind, weights, expected):
    model = loaded(kind, folder, weights)
    assert np.abs(expected).max() > 0.5
    assert np.abs(answers(model, make_bert.tokens()) - expected).max() <= 1e-5


@pytest.mark.also_jax
@pytest.mark.parametrize("kind", list(make_bert.SIZES))
def test_answers_are_those_of_the_reference(tmp_path, kind):
    compare(tmp_path, kind, *golden(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_bert.SIZES))
def test_answers_are_those_of_the_reference_live(tmp_path, kind):
    if not references.installed("torch", "transformers"):
        pytest.skip("compares with torch and transformers themselves, which are not installed")
    shapes, expected = make_bert.torch_answers(kind, seed=5)
    compare(tmp_path, kind, references.weights(shapes, seed=5), expected)


@pytest.mark.parametrize("change", [{"epsilon": 1e-2}, {"heads": 4}, {"separator": -1}, {"pad": 1}])
def test_the_comparison_would_notice_what_the_file_does_not_say(tmp_path, change):
    expected = golden("classification")[1]
    found = answers(loaded("classification", tmp_path, **change), make_bert.tokens())
    assert np.abs(found - expected).max() > 1e-3


@pytest.mark.parametrize("kind", ["classification", "vocabulary"])
def test_the_file_of_a_loaded_model_answers_as_it_does(tmp_path, kind):
    model = loaded(kind, tmp_path, input_shape=(None,))
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    tokens, expected = make_bert.tokens(), golden(kind)[1]
    found = session.run(None, {"tokens": tokens})[0]
    assert np.abs((found * (tokens != 0)[..., None] if found.ndim == 3 else found) - expected).max() <= 1e-4
    short = session.run(None, {"tokens": tokens[3:4, :7]})[0]  # padding has no influence, so less of it changes nothing
    shape = (slice(3, 4), slice(None, 7)) if found.ndim == 3 else (slice(3, 4),)
    np.testing.assert_allclose(short, found[shape], atol=1e-5)


def test_padding_has_no_influence_and_none_but_padding_is_finite(tmp_path):
    model = loaded("classification", tmp_path, input_shape=(None,))
    tokens = make_bert.tokens()[3:4]
    np.testing.assert_allclose(answers(model, tokens), answers(model, tokens[:, :7]), atol=1e-6)
    assert np.isfinite(answers(model, np.zeros((2, 14), np.int32))).all()


def test_sizes_and_names_are_those_of_hugging_face():
    # transformers 5.23.0: BertForSequenceClassification(config).num_parameters() for 2 classes
    expected = {
        "bert_tiny": 4_386_178,
        "bert_mini": 11_171_074,
        "bert_small": 28_764_674,
        "bert_medium": 41_374_210,
        "bert_base": 109_483_778,
        "bert_large": 335_143_938,
    }
    assert {name: registry.entry(name).params for name in registry.names("bert_*")} == expected


@pytest.mark.parametrize(("kind", "more", "count"), [("vocabulary", {}, 4_416_698), ("none", {}, 4_369_408)])
def test_other_heads_have_the_parameters_that_they_read(kind, more, count):
    model = zoo.get("bert_tiny", head=kind, **more)  # BertForMaskedLM; BertModel(add_pooling_layer=False)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count


def test_the_file_says_what_it_can(tmp_path):
    model = loaded("tokens", tmp_path)
    assert model.output_shape == (None, 14, 5) and model.get_layer("positions").length == 20
    model = loaded("classification", tmp_path)
    assert model.output_shape == (None, 5) and model.get_layer("words").input_dim == 50
    _, width, depth, heads, hidden, _ = make_bert.SIZES["encoder"]
    sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
    save_file(golden("encoder")[0], tmp_path / "model.safetensors")
    model = zoo.get("bert_base", weights=tmp_path, head="none", **sizes)
    assert model.input_shape == (None, 20)
    assert zoo.get("bert_base", weights=tmp_path, head="none", length=16, **sizes).input_shape == (None, 16)
    assert model.get_layer("segment").separator == -1  # the vocabulary is smaller than that of the authors


def test_a_head_is_replaced_or_kept(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="zoo.weights")
    kept = loaded("classification", tmp_path)
    other = loaded("classification", tmp_path, classes=2)
    assert "5 classes, so the head for 2 classes is fresh" in caplog.text
    np.testing.assert_array_equal(other.get_layer("features").kernel, kept.get_layer("features").kernel)
    caplog.clear()
    loaded("encoder", tmp_path, head="classification", classes=3)
    assert "no head, so the head for 3 classes is fresh" in caplog.text
    caplog.clear()
    loaded("vocabulary", tmp_path, head="classification", classes=3)
    assert "the layers features and the head for 3 classes are fresh" in caplog.text
    model = loaded("pretraining", tmp_path, head="tokens", classes=4)
    assert model.output_shape == (None, 14, 4)


def test_a_config_with_other_heads_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"num_attention_heads": 1}')
    with pytest.raises(ValueError, match=r"says num_attention_heads=1, bert_base has heads=.*; pass heads=1"):
        loaded("classification", tmp_path)


def test_positions_are_cut_or_refused(tmp_path):
    whole = loaded("classification", tmp_path)
    short = loaded("classification", tmp_path, length=16)
    np.testing.assert_array_equal(short.get_layer("positions").table, whole.get_layer("positions").table[:16])
    np.testing.assert_array_equal(answers(short, make_bert.tokens()), answers(whole, make_bert.tokens()))
    with pytest.raises(ValueError, match="the weights have 20 positions, the model 21; pass length=20 or less"):
        loaded("classification", tmp_path, length=21)


def sharded(folder, weights, **index):
    folder.mkdir()
    names = sorted(weights)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / part)
    places = {name: part for part, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**places, **index}}))
    return folder


def test_weights_may_lie_in_several_files(tmp_path):
    weights, expected = golden("classification")
    folder = sharded(tmp_path / "shards", weights)
    for path in (folder, folder / "model.safetensors.index.json"):
        model = zoo.get("bert_base", weights=path, **arguments("classification"))
        assert np.abs(answers(model, make_bert.tokens()) - expected).max() <= 1e-5
    (folder / "two.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names two\.safetensors, which is not there; put all 2 files beside it"):
        zoo.get("bert_base", weights=folder, **arguments("classification"))
    other = sharded(tmp_path / "other", weights, more="../one.safetensors")
    with pytest.raises(ValueError, match=r"names '../one.safetensors', which is no safetensors file beside it"):
        zoo.get("bert_base", weights=other, **arguments("classification"))
    (other / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="cannot be read as the index of several safetensors files"):
        zoo.get("bert_base", weights=other, **arguments("classification"))


def test_old_names_and_matrices_that_are_there_twice(tmp_path):
    weights, expected = golden("vocabulary")
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): w for name, w in weights.items()
    }
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].copy()
    assert np.abs(answers(loaded("vocabulary", tmp_path, old), make_bert.tokens()) - expected).max() <= 1e-5
    old["cls.predictions.decoder.weight"] = old["cls.predictions.decoder.weight"] * 2
    with pytest.raises(ValueError, match=r"decoder\.weight is not the matrix of the embeddings"):
        loaded("vocabulary", tmp_path, old)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"of another shape.*block0_query/kernel is \(20, 20\) in the file and \(40, 40\)"
    ):
        loaded("classification", tmp_path, width=40)
    with pytest.raises(ValueError, match=r"missing \(16\): block3_query/kernel"):
        loaded("classification", tmp_path, depth=4)
    with pytest.raises(ValueError, match=r"missing \(5\): prediction/kernel"):
        loaded("encoder", tmp_path, head="vocabulary")
    more = {**golden("encoder")[0], "embeddings.project.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"not in the model \(1\): embeddings\.project\.weight"):
        loaded("encoder", tmp_path, more)
    with pytest.raises(
        ValueError, match="is a Hugging Face BERT file, which does not fit vit_tiny; take a model of the"
    ):
        save_file(golden("classification")[0], tmp_path / "model.safetensors")
        zoo.get("vit_tiny", weights=tmp_path / "model.safetensors")


@pytest.mark.parametrize("head", ["classification", "tokens", "vocabulary", "none"])
def test_our_own_files_are_loaded_back(tmp_path, head):
    sizes = {"width": 8, "depth": 1, "heads": 2, "vocabulary": 20, "separator": 3, "length": 12}
    model = zoo.get("bert_tiny", head=head, classes=3, input_shape=(7,), **sizes)
    random = np.random.RandomState(0)
    model.set_weights([random.standard_normal(weight.shape) for weight in model.weights])
    tokens = random.randint(0, 20, (3, 7)).astype(np.int32)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for path in tmp_path.iterdir():
        again = zoo.get("bert_tiny", weights=path, head=head, input_shape=(7,), width=8, depth=1, heads=2, separator=3)
        np.testing.assert_array_equal(answers(again, tokens), answers(model, tokens))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head": "pair"}, "head must be one of 'classification', 'tokens', 'vocabulary', 'none', got 'pair'"),
        ({"width": 10, "heads": 3}, "width must be a multiple of heads, got width=10, heads=3"),
        ({"depth": 0}, "depth, heads and length must be at least 1 and hidden at least 0"),
        (
            {"input_shape": (600,)},
            "'positions' has 512 positions, got 600 tokens; cut the text, or pass a larger length",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("bert_tiny", **given)
