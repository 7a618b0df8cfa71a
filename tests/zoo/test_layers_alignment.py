"""Attention of recurrent translators: the paper's equations on both backends, through ONNX, in the network, refused."""

import alignment_check
import keras
import numpy as np
import onnxruntime
import pytest

import export
import zoo
from zoo.architectures.seq2seq import ATTENTIONS, SCORES
from zoo.layers.alignment import Alignment


@pytest.mark.also_jax
@pytest.mark.parametrize("name", list(alignment_check.CHECKS))
def test_the_layer_is_what_the_paper_says(name):
    alignment_check.CHECKS[name]()


def network(attention, score, **more):
    """A small one with weights at random, so that nothing is near 0."""
    sizes = {
        "vocabulary": 20,
        "width": 6,
        "depth": 2,
        "window": 2,
        "dropout": 0.1,
        "input_shape": (None,),
        "places": None,
    }
    model = zoo.get("seq2seq", attention=attention, score=score, **{**sizes, **more})
    random = np.random.RandomState(0)
    model.set_weights([random.uniform(-0.7, 0.7, weight.shape) for weight in model.weights])
    return model


def given():
    random = np.random.RandomState(1)
    tokens, answer = random.randint(1, 20, (3, 9)), random.randint(1, 20, (3, 7))
    tokens[1, 4:] = tokens[2, 1:] = 0
    return {"tokens": tokens.astype(np.int32), "answer": answer.astype(np.int32)}


def answers(model, tokens):
    return keras.ops.convert_to_numpy(model(tokens, training=False))


def recurred(layer, x, states, mask=None, backwards=False):
    """What an LSTM layer gives, step by step in plain numpy: its outputs, where it counts, and the last states."""
    kernel, recurrent, bias = (np.array(weight, np.float64) for weight in layer.cell.get_weights())
    state, carry = (np.array(each, np.float64) for each in states)
    found = np.zeros((*x.shape[:2], len(recurrent)))
    for step in range(x.shape[1])[:: -1 if backwards else 1]:
        enter, forget, new, leave = np.split(x[:, step] @ kernel + state @ recurrent + bias, 4, axis=1)
        enter, forget, leave = (1 / (1 + np.exp(-gate)) for gate in (enter, forget, leave))
        counts = np.ones((len(x), 1), bool) if mask is None else mask[:, step, None]
        carry = np.where(counts, forget * carry + enter * np.tanh(new), carry)
        state = np.where(counts, leave * np.tanh(carry), state)
        found[:, step] = state
    return found, [state, carry]


def by_hand(model, given, attention, score, window):
    """Logits of the network in plain numpy, by the equations of Luong et al. 2015."""

    def weights(name):
        return [np.array(weight, np.float64) for weight in model.get_layer(name).get_weights()]

    tokens, answer = given["tokens"], given["answer"]
    mask, memory = tokens != 0, weights("encoder_words")[0][tokens]
    layer = model.get_layer("encoder_layer0")
    zeros = np.zeros((len(tokens), 6))
    if hasattr(layer, "backward_layer"):
        ways = [
            recurred(one, memory, [zeros[:, :3]] * 2, mask, backwards)
            for one, backwards in ((layer.forward_layer, False), (layer.backward_layer, True))
        ]
        memory = np.concatenate([steps for steps, _ in ways], axis=2)
        states = [np.concatenate(pair, axis=1) for pair in zip(*(last for _, last in ways), strict=True)]
    else:
        memory, states = recurred(layer, memory, [zeros] * 2, mask)
    x, _ = recurred(model.get_layer("decoder_layer0"), weights("decoder_words")[0][answer], states)
    if attention != "none":
        more = {"direction": weights("attention")[0]} if score == "concat" else {}
        query = x @ weights("attention_query")[0] if score == "concat" else x
        key = memory if score == "dot" else memory @ weights("attention_key")[0]
        if attention == "local_p":
            hidden = np.tanh(x @ weights("attention_place_hidden")[0])
            more["place"] = 1 / (1 + np.exp(-hidden @ weights("attention_place")[0]))
        window = 0 if attention == "global" else window
        found, _ = alignment_check.plain(query, key, memory, score, present=mask, window=window, **more)
        x = np.concatenate([found, x], axis=2)
    kernel, bias = weights("features")
    x = np.tanh(x @ kernel + bias)
    kernel, bias = weights("logits")
    return x @ kernel + bias


@pytest.mark.also_jax
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("score", SCORES)
def test_the_network_is_what_the_paper_says(attention, score, bidirectional):
    model = network(attention, score, depth=1, dropout=0.0, bidirectional=bidirectional)
    found, tokens = answers(model, given()), given()
    np.testing.assert_allclose(found, by_hand(model, tokens, attention, score, window=2), atol=2e-5)


KINDS = [(attention, score, False) for attention in ATTENTIONS for score in SCORES]


@pytest.mark.parametrize(("attention", "score", "bidirectional"), [*KINDS, ("global", "dot", True)])
def test_padding_and_what_comes_later_say_nothing_and_the_file_agrees(tmp_path, attention, score, bidirectional):
    model, tokens = network(attention, score, bidirectional=bidirectional), given()
    whole = answers(model, tokens)
    assert np.abs(whole).max() > 0.3
    alone = answers(model, {"tokens": tokens["tokens"][1:2, :4], "answer": tokens["answer"][1:2, :3]})
    np.testing.assert_allclose(alone[0], whole[1, :3], atol=1e-5)
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, tokens)[0], whole, atol=1e-5)


def test_the_kinds_of_attention_differ():
    tokens, found = given(), {}
    for attention in ATTENTIONS:
        model = zoo.get(
            "seq2seq", attention=attention, width=6, depth=1, vocabulary=20, window=1, places=7, input_shape=(9,)
        )
        for weight in model.weights:
            random = np.random.RandomState(len(weight.path))
            weight.assign(random.uniform(-0.9, 0.9, weight.shape))
        found[attention] = answers(model, tokens)
    kinds = list(found)
    for place, one in enumerate(kinds):
        for other in kinds[place + 1 :]:
            assert np.abs(found[one] - found[other]).max() > 1e-3, (one, other)


def test_the_decoder_begins_where_the_encoder_ended():
    model, tokens = network("none", "dot"), given()
    other = {**tokens, "tokens": tokens["tokens"][::-1]}
    assert np.abs(answers(model, tokens)[0] - answers(model, other)[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Alignment("general"),
            "score must be one of 'dot', 'concat' and window at least 0, got score='general'",
        ),
        (lambda: Alignment("dot", -1), "window=-1"),
        (
            lambda: zoo.get("seq2seq", attention="local"),
            "attention must be one of 'global', 'local_m', 'local_p', 'none'",
        ),
        (lambda: zoo.get("seq2seq", window=0), "depth and window must be at least 1, got .*window=0"),
        (
            lambda: zoo.get("seq2seq", width=5, bidirectional=True),
            "width must be even where the encoder reads both ways",
        ),
        (
            lambda: Alignment()(np.ones((1, 2, 3)), np.ones((1, 2, 4)), np.ones((1, 2, 4))),
            "queries and keys must have as many units, got 3 and 4; put a dense layer in front",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
