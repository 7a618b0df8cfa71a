"""GPT: every token of a text looks at those before it, and says which one comes next.

Radford, Wu, Child, Luan, Amodei & Sutskever, "Language Models are Unsupervised Multitask Learners" 2019 (GPT-2), section 2.3
and table 2, whose counts of parameters leave out some; `gpt_nano` is of the size of Karpathy's nanoGPT for characters,
made smaller for CPUs. Texts are filled up behind their end, where no token looks, so the network needs not know with what.
"""

import keras
from keras import layers

from zoo.layers.activations import gelu_tanh
from zoo.layers.blocks import dropped, norm, pre_norm
from zoo.layers.positions import LearnedPositions
from zoo.registry import Tensor, register


@register(
    "gpt2",
    task="language-modelling",
    inputs={"tokens": Tensor("length", dtype="int32", unit="token")},
    paper="Radford et al. 2019",
    params=124_439_808,
    params_source="Hugging Face GPT2LMHeadModel",
    variants={
        "gpt2_medium": dict(params=354_823_168, width=1024, depth=24, heads=16),
        "gpt2_large": dict(params=774_030_080, width=1280, depth=36, heads=20),
        "gpt2_xl": dict(params=1_557_611_200, width=1600, depth=48, heads=25),
        "gpt_nano": dict(
            params=859_008, vocabulary=257, length=256, input_shape=(256,), width=128, depth=4, heads=4, dropout=0.0
        ),
    },
    tiny=dict(input_shape=(10,), vocabulary=20, width=12, depth=2, heads=3, dropout=0.0),
    aliases=("gpt",),
    data="stdlib_text",
    skip=dict(explain="it gives an answer for every place of a text, and explanations are of one"),
    recipe=dict(learning_rate=1e-3, weight_decay=0.1, warmup=0.05, clip_norm=1.0, batch_size=16, tokenizer="bpe:1000"),
)
def gpt(
    input_shape: tuple[int] = (1024,),
    vocabulary: int = 50_257,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int = 0,
    length: int = 1024,
    epsilon: float = 1e-5,
    dropout: float = 0.1,
) -> keras.Model:
    """Build a GPT-2 language model.

    Args:
        input_shape: `(length,)` of the texts in tokens, at most the argument `length`; `(None,)` for any.
        vocabulary: tokens that there are, numbered from 0.
        width: units of each token's vector, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention layer.
        hidden: units of the first dense layer of each block; 0 for four times `width`.
        length: positions that there are vectors for.
        epsilon: added to the variance in each normalisation.
        dropout: share dropped in training behind the embeddings, in the attention and behind each block's parts, in [0, 1).

    Returns:
        Functional model, tokens `(batch, length)` -> `(batch, length, vocabulary)` logits of the token behind each, by the
        matrix of the embeddings.

    Raises:
        ValueError: an argument is out of range, or a text longer than there are positions.
    """
    if min(vocabulary, width, depth, heads, length) < 1 or hidden < 0:
        raise ValueError(
            f"vocabulary, width, depth, heads and length must be at least 1 and hidden at least 0, got "
            f"vocabulary={vocabulary!r}, width={width!r}, depth={depth!r}, heads={heads!r}, length={length!r}, "
            f"hidden={hidden!r}"
        )
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width={width!r}, heads={heads!r}")
    tokens = keras.Input(input_shape, dtype="int32", name="tokens")
    start = keras.initializers.RandomNormal(stddev=0.02)
    words = layers.ReversibleEmbedding(vocabulary, width, embeddings_initializer=start, name="words")
    x = dropped(LearnedPositions(length, name="positions")(words(tokens)), dropout, "positions")
    deviation = 0.02 / (2 * depth) ** 0.5  # of what is added to the residual, section 2.3
    for block in range(depth):
        x = pre_norm(
            x, heads, hidden or 4 * width, f"block{block}", activation=gelu_tanh, epsilon=epsilon, dropout=dropout,
            deviations=(0.02, 0.02, deviation),
        )  # fmt: skip
    x = words(norm(x, epsilon, "features"), reverse=True)
    return keras.Model(tokens, layers.Identity(name="logits")(x), name="gpt")
