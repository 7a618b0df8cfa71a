"""Models in steps against themselves: caches, states and crossing tensors, whatever says where a token stands."""

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers, ops

import zoo
from export import ExportError, continuing, stepwise
from zoo.data import Signature
from zoo.data.texts import TextPreprocess
from zoo.layers.attention import Attention
from zoo.layers.positions import LearnedPositions, RelativeBias, Rotary, WavePositions
from zoo.layers.tokens import Present

VOCABULARY, WIDTH, HEADS, PLACES = 13, 12, 3, 9


def dense(x, units, name):
    return layers.Dense(units, kernel_initializer=keras.initializers.RandomNormal(stddev=0.4), name=name)(x)


def attended(x, memory, name, bias=None, turn=None, **options):
    """Queries from x, keys and values from `memory`, mixed and added to x."""
    query, key, value = (dense(y, WIDTH, f"{name}_{what}") for y, what in ((x, "q"), (memory, "k"), (memory, "v")))
    if turn:
        query, key = turn(query), turn(key)
    found = Attention(HEADS, name=name, **options)(query, key, value, bias=bias)
    return layers.Add(name=f"{name}_add")([x, dense(found, WIDTH, f"{name}_mixed")])


def decoder(kind):
    """A language model of two causal layers that tells places in one way."""
    tokens = keras.Input((PLACES,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, WIDTH, embeddings_initializer="normal", name="words")(tokens)
    bias, turn, options = None, None, {}
    if kind == "learned":
        x = LearnedPositions(PLACES, name="positions")(x)
    elif kind == "waves":
        x = WavePositions(name="positions")(x)
    elif kind == "relative":
        bias = RelativeBias(HEADS, 8, 6, causal=True, name="bias")(x, x)
        options = {"scale": 1.0}
    elif kind == "rotary":
        turn = Rotary(HEADS, name="turn")
    else:
        options = {"window": 3}
    for block in range(2):
        x = attended(x, x, f"self{block}", bias, turn, causal=True, **options)
    return keras.Model(tokens, dense(layers.LayerNormalization(name="norm")(x), VOCABULARY, "logits"), name=kind)


def pair(kind):
    """Encoder and decoder: a transformer, recurrent layers with attention, or recurrent layers alone."""
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    answer = keras.Input((PLACES,), dtype="int32", name="answer")
    words = layers.Embedding(VOCABULARY, WIDTH, embeddings_initializer="normal", name="words")
    memory, x = words(tokens), words(answer)
    if kind == "transformer":
        memory = attended(memory, memory, "encoder")
        x = attended(WavePositions(name="waves")(x), x, "self", causal=True)
        query = dense(x, WIDTH, "cross_q")
        key, value = dense(memory, WIDTH, "cross_k"), dense(memory, WIDTH, "cross_v")
        x = layers.Add(name="crossed")(
            [x, Attention(HEADS, name="cross")(query, key, value, Present(0, name="present")(tokens))]
        )
    elif kind == "lstm":
        memory, *states = layers.LSTM(WIDTH, return_sequences=True, return_state=True, name="reader")(memory)
        x = layers.LSTM(WIDTH, return_sequences=True, name="writer")(x, initial_state=states)
        x = attended(x, memory, "cross")
    else:
        memory = layers.GRU(WIDTH, name="reader")(memory)
        x = layers.GRU(WIDTH, return_sequences=True, name="writer0")(x, initial_state=memory)
        x = layers.SimpleRNN(WIDTH, return_sequences=True, name="writer1")(x)
    return keras.Model({"tokens": tokens, "answer": answer}, dense(x, VOCABULARY, "logits"), name=kind)


def rows_of(model, count=5):
    random = np.random.default_rng(3)
    return {t.name: random.integers(1, VOCABULARY, (count, t.shape[1]), dtype=np.int32) for t in model.inputs}


@pytest.mark.parametrize("kind", ["learned", "waves", "relative", "rotary", "window"])
def test_steps_of_a_language_model_give_its_logits(kind, tmp_path):
    model = decoder(kind)
    steps = stepwise.split(model)
    assert steps.encoder is None and steps.block["source"] == ""
    assert [one["shape"] for one in steps.block["caches"]] == [[HEADS, -1, 8]] * 4  # of 4 values, filled up
    assert steps.block["length"] == PLACES
    stepwise.write_steps(steps, tmp_path)
    trial = continuing.Trial(model, steps, rows_of(model))
    assert trial.largest > 0.1
    assert trial.gap(tmp_path, continuing.FILES["fp32"]) < 1e-5


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru"])
def test_steps_of_an_encoder_and_decoder_give_its_logits(kind, tmp_path):
    model = pair(kind)
    steps = stepwise.split(model)
    block = steps.block
    assert block["source"] == "tokens" and [t.name for t in steps.encoder.inputs] == ["tokens"]
    firsts = [one["first"] for one in block["states"]]
    if kind == "transformer":  # what crosses are keys and values themselves, and which of them exist
        assert block["crossing"] == ["cross_k", "cross_v", "present"] and not firsts
    elif kind == "lstm":
        assert len(firsts) == 2 and not set(firsts) & set(block["crossing"])
    else:
        assert [bool(first) for first in firsts] == [True, False] and not block["crossing"]
    stepwise.write_steps(steps, tmp_path)
    assert continuing.Trial(model, steps, rows_of(model)).gap(tmp_path, continuing.FILES["fp32"]) < 1e-5


def test_a_decoder_that_begins_where_both_ways_ended(tmp_path):
    sizes = {"places": PLACES, "vocabulary": VOCABULARY, "width": 8, "depth": 2}
    model = zoo.get("seq2seq", input_shape=(7,), bidirectional=True, **sizes)
    steps = stepwise.split(model)
    stepwise.write_steps(steps, tmp_path)
    assert continuing.Trial(model, steps, rows_of(model)).gap(tmp_path, continuing.FILES["fp32"]) < 1e-5


def test_only_the_last_place_goes_through_the_layers_behind_the_last_attention():
    steps = stepwise.split(decoder("learned"))
    own = [node for node in stepwise._nodes_behind(steps.decoder.outputs) if node.operation.name.startswith("get_item")]
    before = {node.input_tensors[0]._keras_history.operation.name for node in own}
    assert before == {"self1", "self0_add", "logits"}


@pytest.mark.parametrize("kind", ["learned", "relative", "window"])
def test_the_decoder_in_keras_gives_what_its_file_gives(kind, tmp_path):
    steps = stepwise.split(decoder(kind))
    stepwise.write_steps(steps, tmp_path)
    random = np.random.default_rng(0)
    feed = {"tokens": np.array([[3], [5]], np.int32), "cached": np.array([[2], [4]], np.int32)}
    shape = (2, HEADS, 6, 8)
    feed |= {one["name"]: random.normal(size=shape).astype(np.float32) for one in steps.block["caches"]}
    for name in feed:
        if name not in ("tokens", "cached"):
            feed[name][..., WIDTH // HEADS :] = 0
    live = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    found = dict(zip([port.name for port in live.get_outputs()], live.run(None, feed), strict=True))
    for name, expected in steps.decoder(feed).items():
        for row, places in enumerate((3, 5)):  # what stands behind them does not count
            own = (row, ..., slice(places), slice(None)) if name != "logits" else row
            np.testing.assert_allclose(found[name][own], ops.convert_to_numpy(expected)[own], atol=1e-5, err_msg=name)


def test_rows_of_other_lengths_and_free_places_do_not_count(tmp_path):
    model = decoder("learned")
    steps = stepwise.split(model)
    stepwise.write_steps(steps, tmp_path)
    live = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    tokens = rows_of(model, 1)["tokens"]
    random = np.random.default_rng(0)
    names = [one["name"] for one in steps.block["caches"]]
    empty = {name: random.normal(size=(1, HEADS, 6, 8)).astype(np.float32) for name in names}
    (logits,) = live.run(["logits"], {"tokens": tokens[:, :5], "cached": np.zeros((1, 1), np.int32), **empty})
    whole = keras.ops.convert_to_numpy(model(tokens))
    np.testing.assert_allclose(logits[0], whole[0, 4], atol=1e-5)


def bare(body):
    tokens = keras.Input((PLACES,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, WIDTH, name="words")(tokens)
    return keras.Model(tokens, dense(body(x), VOCABULARY, "logits"), name="bare")


REFUSED = {
    "'both' \\(Bidirectional\\) has no step": layers.Bidirectional(layers.GRU(6, return_sequences=True), name="both"),
    "'ahead' looks ahead in the text": lambda x: Attention(HEADS, name="ahead")(x, x, x),
    "'back' does not give a value for each place": layers.GRU(6, return_sequences=True, go_backwards=True, name="back"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_layers_without_a_step_are_named(reason):
    with pytest.raises(ExportError, match=reason):
        stepwise.split(bare(REFUSED[reason]))


def test_a_model_that_writes_nothing_is_refused():
    image = keras.Input((4, 4, 1), name="image")
    with pytest.raises(ExportError, match=r"it takes image and gives .* a model that writes takes answer or tokens"):
        stepwise.split(keras.Model(image, layers.Flatten()(image), name="still"))


@keras.saving.register_keras_serializable("test")
class Before(layers.Layer):
    """Adds the vector of the place before, and says so to nobody."""

    def call(self, x):
        return x + ops.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


BODIES = {
    "differ by .*: a layer looks at other places": lambda x: attended(Before(name="before")(x), x, "self", causal=True),
    "does not run in steps: ": lambda x: layers.Reshape((PLACES, WIDTH))(attended(x, x, "self", causal=True)),
}


@pytest.mark.parametrize("reason", BODIES)
def test_a_layer_that_needs_all_places_is_found_by_comparing(reason, tmp_path):
    model = bare(BODIES[reason])
    step = TextPreprocess.fit(["abc abd ab"], "bpe:257", PLACES)
    signature = Signature("language-modelling", ("a",), step)
    with pytest.raises(ExportError, match=f"'bare' .*{reason}"):
        continuing.write(model, signature, tmp_path, rows_of(model), ["fp32"])
