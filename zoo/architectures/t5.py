"""T5: every task is a text that is answered by a text; places are told apart by how far they are from each other.

Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li & Liu, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer", JMLR 21 (2020) (arXiv:1910.10683), sections 2.1 and 3.1.1. Version 1.1 (Shazeer 2020,
arXiv:2002.05202, as published beside T5) has gated GELU units and a matrix of its own for the logits.
"""

import keras
from keras import layers

from zoo.layers.activations import gelu_tanh
from zoo.layers.attention import Attention
from zoo.layers.blocks import dropped
from zoo.layers.positions import RelativeBias
from zoo.layers.tokens import Present
from zoo.registry import Tensor, register


def _norm(x, epsilon, name):
    """Each place's vector with mean square 1, then scaled as learned."""
    return layers.RMSNormalization(epsilon=epsilon, name=name)(x)


def _dense(x, units, name, deviation, activation=None):
    start = keras.initializers.RandomNormal(stddev=deviation)
    return layers.Dense(units, activation=activation, use_bias=False, kernel_initializer=start, name=name)(x)


def _looked(x, memory, present, bias, heads, units, causal, epsilon, dropout, name):
    """What normalised x finds in memory (itself if None), added to x: (batch, length, width) in and out."""
    width = x.shape[-1]
    y = _norm(x, epsilon, f"{name}_norm")
    memory = y if memory is None else memory
    query = _dense(y, units, f"{name}_query", (width * units // heads) ** -0.5)  # for a scale in the attention
    key, value = (_dense(memory, units, f"{name}_{part}", width**-0.5) for part in ("key", "value"))
    looked = Attention(heads, causal=causal, scale=1.0, dropout=dropout, name=f"{name}_attention")
    y = _dense(looked(query, key, value, present=present, bias=bias), width, f"{name}_mixed", units**-0.5)
    return layers.Add(name=f"{name}_add")([x, dropped(y, dropout, f"{name}_mixed")])


def _thought(x, hidden, gated, epsilon, dropout, name):
    """Two dense layers on a normalised copy that is added to x: (batch, length, width) in and out."""
    width = x.shape[-1]
    y = _norm(x, epsilon, f"{name}_norm")
    z = _dense(y, hidden, f"{name}_hidden", width**-0.5, gelu_tanh if gated else "relu")
    if gated:
        z = layers.Multiply(name=f"{name}_gated")([z, _dense(y, hidden, f"{name}_gate", width**-0.5)])
    y = _dense(dropped(z, dropout, f"{name}_hidden"), width, f"{name}_output", hidden**-0.5)
    return layers.Add(name=f"{name}_add")([x, dropped(y, dropout, f"{name}_output")])


@register(
    "t5_small",
    task="text-to-text",
    inputs={
        "tokens": Tensor("length", dtype="int32", unit="token"),
        "answer": Tensor("places", dtype="int32", unit="token, the start first"),
    },
    paper="Raffel et al. 2019",
    params=60_506_624,
    params_source="Hugging Face T5ForConditionalGeneration",
    variants={
        "t5_base": dict(params=222_903_552, width=768, depth=12, heads=12),
        "t5_large": dict(params=737_668_096, width=1024, depth=24, heads=16),
        "t5_v1_1_small": dict(params=76_961_152, depth=8, heads=6, latent=384, hidden=1024, gated=True),
    },
    tiny=dict(
        input_shape=(9,), places=7, vocabulary=20, width=12, depth=2, heads=3, buckets=4, distance=6, dropout=0.0
    ),
    aliases=("t5",),
    data="dates",
    skip=dict(
        edge="an answer is written token by token, with files of their own; the device runner asks a model once",
        explain="an answer is a text and no one figure to share out; zoo explain RUN draws which tokens it looks at",
    ),
    recipe=dict(learning_rate=1e-3, warmup=0.1, clip_norm=1.0),
)
def t5(
    input_shape: tuple[int] = (512,),
    places: int = 512,
    vocabulary: int = 32_128,
    width: int = 512,
    depth: int = 6,
    heads: int = 8,
    latent: int = 0,
    hidden: int = 0,
    buckets: int = 32,
    distance: int = 128,
    gated: bool = False,
    pad: int = 0,
    epsilon: float = 1e-6,
    dropout: float = 0.1,
) -> keras.Model:
    """Build a T5 encoder-decoder.

    Args:
        input_shape: `(length,)` of the texts in tokens; `(None,)` for any.
        places: tokens of an answer, the start included; None for any.
        vocabulary: tokens that there are on both sides, numbered from 0.
        width: units of each token's vector.
        depth: blocks of the encoder, and of the decoder.
        heads: of each attention layer.
        latent: units of all heads of an attention layer together, a multiple of `heads`; 0 for `width`.
        hidden: units of the first dense layer of each block; 0 for four times `width`.
        buckets: of distances between places, for each of which every head learns a number.
        distance: from which on all places are in one bucket.
        gated: version 1.1, whose dense layers multiply a gate and whose logits have a matrix of their own; else both come
            from the embeddings and plain ReLU.
        pad: token that fills up short texts; nothing reads it there.
        epsilon: added to the mean square in each normalisation.
        dropout: share dropped in training behind the embeddings, in the attention, in and behind each block's parts and
            before the logits, in [0, 1).

    Returns:
        Functional model, tokens `(batch, length)` and the answer so far `(batch, places)` -> `(batch, places, vocabulary)`
        logits of the answer's next token behind each place.

    Raises:
        ValueError: an argument is out of range.
    """
    if min(vocabulary, width, depth, heads) < 1 or min(latent, hidden) < 0:
        raise ValueError(
            f"vocabulary, width, depth and heads must be at least 1, latent and hidden at least 0, got "
            f"vocabulary={vocabulary!r}, width={width!r}, depth={depth!r}, heads={heads!r}, latent={latent!r}, "
            f"hidden={hidden!r}"
        )
    units = latent or width
    if units % heads:
        raise ValueError(f"latent (or width) must be a multiple of heads, got {units!r}, heads={heads!r}")
    tokens = keras.Input(input_shape, dtype="int32", name="tokens")
    answer = keras.Input((places,), dtype="int32", name="answer")
    start = keras.initializers.RandomNormal(stddev=1.0)
    kind = layers.Embedding if gated else layers.ReversibleEmbedding
    words = kind(vocabulary, width, embeddings_initializer=start, name="words")
    present = Present(pad, name="present")(tokens)
    rest = (epsilon, dropout)
    memory = dropped(words(tokens), dropout, "encoder_words")
    bias = RelativeBias(heads, buckets, distance, name="encoder_bias")(memory, memory)
    for block in range(depth):
        name = f"encoder_block{block}"
        memory = _looked(memory, None, present, bias, heads, units, False, *rest, f"{name}_self")
        memory = _thought(memory, hidden or 4 * width, gated, *rest, name)
    memory = dropped(_norm(memory, epsilon, "encoder_norm"), dropout, "encoder")
    x = dropped(words(answer), dropout, "decoder_words")
    bias = RelativeBias(heads, buckets, distance, causal=True, name="decoder_bias")(x, x)
    for block in range(depth):
        name = f"decoder_block{block}"
        x = _looked(x, None, None, bias, heads, units, True, *rest, f"{name}_self")
        x = _looked(x, memory, present, None, heads, units, False, *rest, f"{name}_cross")
        x = _thought(x, hidden or 4 * width, gated, *rest, name)
    x = dropped(_norm(x, epsilon, "features"), dropout, "features")
    if gated:
        x = _dense(x, vocabulary, "logits", width**-0.5)
    else:
        x = layers.Rescaling(width**-0.5, name="shrunk")(x)
        x = layers.Identity(name="logits")(words(x, reverse=True))
    return keras.Model({"tokens": tokens, "answer": answer}, x, name="t5")
