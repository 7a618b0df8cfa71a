"""Sequence to sequence: one recurrent network reads a text, another writes the answer and looks at what the first one saw.

- Encoder and decoder of LSTM layers: Sutskever, Vinyals & Le, "Sequence to Sequence Learning with Neural Networks", NeurIPS
  2014 (arXiv:1409.3215).
- Attention: Bahdanau, Cho & Bengio 2014 (arXiv:1409.0473); Luong, Pham & Manning, "Effective Approaches to Attention-based
  Neural Machine Translation", EMNLP 2015 (arXiv:1508.04025), sections 3.1 and 3.2. Departures: no scores by place alone (the
  "location" of section 3.1, which knows one length of texts), and no input feeding (section 3.3), for which the recurrent
  layers would have to wait for the attention at every step.
- An encoder that reads both ways: Bahdanau et al., section 3.2. Departure: the decoder begins where both ways ended; there
  it begins with a layer on the state of the backward one.

Padding of a text changes nothing: a padded row is answered as it is alone.
"""

import keras
from keras import layers

from zoo.layers.alignment import Alignment
from zoo.layers.blocks import dropped
from zoo.layers.sequences import TokenEmbedding
from zoo.layers.tokens import Present
from zoo.registry import Tensor, register

ATTENTIONS = ("global", "local_m", "local_p", "none")
SCORES = ("dot", "general", "concat")


def _found(x, memory, present, attention, score, window):
    """What each step of the decoder finds among those of the encoder: (batch, places, width) in and out."""
    width = x.shape[-1]
    query, key, more = x, memory, {}
    if score == "concat":
        query = layers.Dense(width, use_bias=False, name="attention_query")(x)
    if score != "dot":
        key = layers.Dense(width, use_bias=False, name="attention_key")(memory)
    if attention == "local_p":  # equation 9
        place = layers.Dense(width, activation="tanh", use_bias=False, name="attention_place_hidden")(x)
        more["place"] = layers.Dense(1, activation="sigmoid", use_bias=False, name="attention_place")(place)
    aligned = Alignment(
        "concat" if score == "concat" else "dot", 0 if attention == "global" else window, name="attention"
    )
    return aligned(query, key, memory, present=present, **more)


@register(
    "seq2seq",
    task="text-to-text",
    inputs={
        "tokens": Tensor("length", dtype="int32", unit="token"),
        "answer": Tensor("places", dtype="int32", unit="token, the start first"),
    },
    paper="Sutskever et al. 2014, Bahdanau et al. 2014, Luong et al. 2015",
    params=216_083_000,
    params_source="2*50,000*1000 embeddings, 8*4*(2000*1000 + 1000) of LSTM, 2000*1000 + 1000, 1000*50,000 + 50,000",
    variants={"seq2seq_local": dict(params=218_084_000, attention="local_p", score="general")},
    tiny=dict(
        input_shape=(9,),
        places=7,
        vocabulary=20,
        width=6,
        depth=1,
        attention="local_p",
        score="concat",
        window=2,
        dropout=0.0,
    ),
    data="dates",
    recipe=dict(learning_rate=2e-3, clip_norm=1.0),
    skip=dict(
        edge="an answer is written token by token, with files of their own; the device runner asks a model once",
        explain="an answer is a text and no one figure to share out; zoo explain RUN draws which tokens it looks at",
        int8="nearly all weights are those of recurrent nodes, which have no 8-bit form with fixed ranges; of the rest alone "
        "the file would grow",
    ),
)
def seq2seq(
    input_shape: tuple[int] = (50,),
    places: int = 50,
    vocabulary: int = 50_000,
    width: int = 1000,
    depth: int = 4,
    attention: str = "global",
    score: str = "dot",
    window: int = 10,
    pad: int = 0,
    dropout: float = 0.2,
    bidirectional: bool = False,
) -> keras.Model:
    """Build a recurrent encoder and decoder with attention.

    Args:
        input_shape: `(length,)` of the texts in tokens; `(None,)` for any.
        places: tokens of an answer, the start included; None for any.
        vocabulary: tokens that there are on both sides, numbered from 0.
        width: units of each token's vector and of each layer.
        depth: LSTM layers of the encoder, and of the decoder, each of which begins where its like ended.
        attention: "global" looks at a whole text; "local_m" around the answer's own place and "local_p" around one that it
            foretells, no farther than `window`; "none" knows of a text what the last states do.
        score: how a step of the decoder is compared with one of the encoder: "dot", "general" or "concat".
        window: tokens to either side that local attention sees.
        pad: token that fills up short texts; nothing reads it there.
        dropout: share of what each layer is given that is dropped in training, in [0, 1).
        bidirectional: whether half of each encoder layer's units read from the end to the beginning.

    Returns:
        Functional model, tokens `(batch, length)` and the answer so far `(batch, places)` -> `(batch, places, vocabulary)`
        logits of the answer's next token behind each place.

    Raises:
        ValueError: an argument is out of range.
    """
    if attention not in ATTENTIONS or score not in SCORES:
        raise ValueError(
            f"attention must be one of {', '.join(map(repr, ATTENTIONS))} and score one of {', '.join(map(repr, SCORES))}, "
            f"got attention={attention!r}, score={score!r}"
        )
    if min(vocabulary, width, depth, window) < 1:
        raise ValueError(
            f"vocabulary, width, depth and window must be at least 1, got vocabulary={vocabulary!r}, width={width!r}, "
            f"depth={depth!r}, window={window!r}"
        )
    if bidirectional and width % 2:
        raise ValueError(f"width must be even where the encoder reads both ways, got width={width!r}")
    tokens = keras.Input(input_shape, dtype="int32", name="tokens")
    answer = keras.Input((places,), dtype="int32", name="answer")
    start = keras.initializers.RandomNormal(stddev=1.0)
    memory = TokenEmbedding(vocabulary, width, pad, embeddings_initializer=start, name="encoder_words")(tokens)
    states = []
    for index in range(depth):
        name = f"encoder_layer{index}"
        layer = layers.LSTM(width // (1 + bidirectional), return_sequences=True, return_state=True, name=name)
        if bidirectional:
            layer = layers.Bidirectional(layer, name=name)
        memory, *last = layer(dropped(memory, dropout, name))
        if bidirectional:  # output and carry of one way, then of the other
            last = [layers.Concatenate(name=f"{name}_state{place}")(last[place::2]) for place in range(2)]
        states.append(last)
    start = keras.initializers.RandomNormal(stddev=1.0)
    x = layers.Embedding(vocabulary, width, embeddings_initializer=start, name="decoder_words")(answer)
    for index in range(depth):
        name = f"decoder_layer{index}"
        x = layers.LSTM(width, return_sequences=True, name=name)(dropped(x, dropout, name), initial_state=states[index])
    if attention != "none":
        found = _found(x, memory, Present(pad, name="present")(tokens), attention, score, window)
        x = layers.Concatenate(name="seen")([found, x])
    x = layers.Dense(width, activation="tanh", name="features")(x)  # equation 5
    x = layers.Dense(vocabulary, name="logits")(dropped(x, dropout, "features"))
    return keras.Model({"tokens": tokens, "answer": answer}, x, name="seq2seq")
