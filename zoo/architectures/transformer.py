"""Transformer: an answer is written token by token, looking at all of a text and at what is written so far.

Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser & Polosukhin, "Attention Is All You Need", NeurIPS 2017
(arXiv:1706.03762), section 3 and table 3. One matrix embeds both sides and gives the logits (section 3.4). Departures: dense
layers of the attention have a bias, as in PyTorch; 37,000 tokens are "about" those of section 5.1.
"""

import keras
from keras import layers

from zoo.layers.attention import Attention
from zoo.layers.blocks import dropped, norm
from zoo.layers.positions import WavePositions
from zoo.layers.tokens import Present
from zoo.registry import Tensor, register


def _looked(x, memory, present, heads, causal, epsilon, dropout, name):
    """What x finds in memory, added to x and then normalised: (batch, length, width) in and out."""
    width = x.shape[-1]
    sources = {"query": x, "key": memory, "value": memory}
    parts = [layers.Dense(width, name=f"{name}_{part}")(source) for part, source in sources.items()]
    y = Attention(heads, causal=causal, name=f"{name}_attention")(*parts, present=present)
    return _added(x, layers.Dense(width, name=f"{name}_mixed")(y), epsilon, dropout, name)


def _thought(x, hidden, epsilon, dropout, name):
    """Two dense layers at each place, added to x and then normalised: (batch, length, width) in and out."""
    y = layers.Dense(hidden, activation="relu", name=f"{name}_hidden")(x)
    return _added(x, layers.Dense(x.shape[-1], name=f"{name}_output")(y), epsilon, dropout, name)


def _added(x, y, epsilon, dropout, name):
    return norm(layers.Add(name=f"{name}_add")([x, dropped(y, dropout, name)]), epsilon, f"{name}_norm")


@register(
    "transformer",
    task="text-to-text",
    inputs={
        "tokens": Tensor("length", dtype="int32", unit="token"),
        "answer": Tensor("places", dtype="int32", unit="token, the start first"),
    },
    paper="Vaswani et al. 2017",
    params=63_082_496,
    params_source="torch.nn.Transformer without its last two normalisations, + 37,000*512; table 3 rounds to 65 million",
    variants={"transformer_big": dict(params=214_245_376, width=1024, heads=16, dropout=0.3)},
    tiny=dict(input_shape=(9,), places=7, vocabulary=20, width=12, depth=2, heads=3, dropout=0.0),
    data="dates",
    skip=dict(
        edge="an answer is written token by token, with files of their own; the device runner asks a model once",
        explain="an answer is a text and no one figure to share out; zoo explain RUN draws which tokens it looks at",
    ),
    recipe=dict(learning_rate=1e-3, warmup=0.1, clip_norm=1.0, label_smoothing=0.1),
)
def transformer(
    input_shape: tuple[int] = (256,),
    places: int = 256,
    vocabulary: int = 37_000,
    width: int = 512,
    depth: int = 6,
    heads: int = 8,
    hidden: int = 0,
    pad: int = 0,
    epsilon: float = 1e-6,
    dropout: float = 0.1,
) -> keras.Model:
    """Build a transformer of an encoder and a decoder.

    Args:
        input_shape: `(length,)` of the texts in tokens; `(None,)` for any.
        places: tokens of an answer, the start included; None for any.
        vocabulary: tokens that there are on both sides, numbered from 0.
        width: units of each token's vector, a multiple of `heads`.
        depth: blocks of the encoder, and of the decoder.
        heads: of each attention layer.
        hidden: units of the first dense layer of each block; 0 for four times `width`.
        pad: token that fills up short texts; nothing reads it there. Answers are filled up behind their end, where no
            token looks.
        epsilon: added to the variance in each normalisation.
        dropout: share dropped in training behind the embeddings and behind each block's parts, in [0, 1).

    Returns:
        Functional model, tokens `(batch, length)` and the answer so far `(batch, places)` -> `(batch, places, vocabulary)`
        logits of the answer's next token behind each place.

    Raises:
        ValueError: an argument is out of range.
    """
    if min(vocabulary, width, depth, heads) < 1 or hidden < 0:
        raise ValueError(
            f"vocabulary, width, depth and heads must be at least 1 and hidden at least 0, got vocabulary={vocabulary!r}, "
            f"width={width!r}, depth={depth!r}, heads={heads!r}, hidden={hidden!r}"
        )
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width={width!r}, heads={heads!r}")
    tokens = keras.Input(input_shape, dtype="int32", name="tokens")
    answer = keras.Input((places,), dtype="int32", name="answer")
    start = keras.initializers.RandomNormal(stddev=width**-0.5)
    words = layers.ReversibleEmbedding(vocabulary, width, embeddings_initializer=start, name="words")
    scaled = layers.Rescaling(width**0.5, name="scaled")  # section 3.4
    placed = WavePositions(name="positions")
    present = Present(pad, name="present")(tokens)
    rest = (epsilon, dropout)
    memory = dropped(placed(scaled(words(tokens))), dropout, "encoder")
    for block in range(depth):
        name = f"encoder_block{block}"
        memory = _looked(memory, memory, present, heads, False, *rest, f"{name}_self")
        memory = _thought(memory, hidden or 4 * width, *rest, name)
    x = dropped(placed(scaled(words(answer))), dropout, "decoder")
    for block in range(depth):
        name = f"decoder_block{block}"
        x = _looked(x, x, None, heads, True, *rest, f"{name}_self")
        x = _looked(x, memory, present, heads, False, *rest, f"{name}_cross")
        x = _thought(x, hidden or 4 * width, *rest, name)
    x = words(layers.Identity(name="features")(x), reverse=True)
    x = layers.Identity(name="logits")(x)
    return keras.Model({"tokens": tokens, "answer": answer}, x, name="transformer")
