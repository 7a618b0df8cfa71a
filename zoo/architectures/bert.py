"""BERT: every token of a text looks at all others, before and behind it.

Devlin, Chang, Lee & Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
NAACL 2019 (arXiv:1810.04805), section 3 and appendix A; tiny to medium are those of Turc, Chang, Lee & Toutanova, "Well-Read
Students Learn Better" 2019 (arXiv:1908.08962), section 3. Departure: which of its two segments a token is in is counted
from the separators in front of it, so tokens are all that the network takes.
"""

import keras
from keras import layers

from zoo.layers.attention import Attention
from zoo.layers.blocks import dropped, norm
from zoo.layers.positions import LearnedPositions
from zoo.layers.tokens import FirstToken, Present, Segments
from zoo.registry import Tensor, register

HEADS = ("classification", "tokens", "vocabulary", "none")


@keras.saving.register_keras_serializable("zoo")
class Bias(layers.Layer):
    """Adds a learned number to each value of the last axis; it starts at 0."""

    def build(self, shape):
        self.bias = self.add_weight(shape=shape[-1:], initializer="zeros", name="bias")

    def call(self, x):
        return x + self.bias


def _drawn():
    return keras.initializers.TruncatedNormal(stddev=0.02)


def _dense(x, units, name, activation=None):
    return layers.Dense(units, activation=activation, kernel_initializer=_drawn(), name=name)(x)


def _block(x, present, heads, hidden, epsilon, dropout, name):
    """Attention and two dense layers, each added to x and then normalised: (batch, length, width) in and out."""
    width = x.shape[-1]
    parts = [_dense(x, width, f"{name}_{part}") for part in ("query", "key", "value")]
    y = Attention(heads, dropout=dropout, name=f"{name}_attention")(*parts, present=present)
    y = dropped(_dense(y, width, f"{name}_mixed"), dropout, f"{name}_mixed")
    x = norm(layers.Add(name=f"{name}_add0")([x, y]), epsilon, f"{name}_norm0")
    y = _dense(x, hidden, f"{name}_hidden", "gelu")
    y = dropped(_dense(y, width, f"{name}_output"), dropout, f"{name}_output")
    return norm(layers.Add(name=f"{name}_add1")([x, y]), epsilon, f"{name}_norm1")


@register(
    "bert_base",
    task=("text-classification", "token-classification", "masked-language-modelling"),
    inputs={"tokens": Tensor("length", dtype="int32", unit="token")},
    paper="Devlin et al. 2018",
    params=109_483_778,
    params_source="Hugging Face BertForSequenceClassification; 109,482,240 without its last layer",
    variants={
        "bert_tiny": dict(params=4_386_178, width=128, depth=2, heads=2),
        "bert_mini": dict(params=11_171_074, width=256, depth=4, heads=4),
        "bert_small": dict(params=28_764_674, width=512, depth=4, heads=8),
        "bert_medium": dict(params=41_374_210, width=512, depth=8, heads=8),
        "bert_large": dict(params=335_143_938, width=1024, depth=24, heads=16),
    },
    tiny=dict(input_shape=(10,), vocabulary=20, classes=3, width=12, depth=2, heads=3, separator=3, dropout=0.0),
    aliases=("bert",),
    data="spam",
    recipe=dict(learning_rate=5e-4, weight_decay=0.01, warmup=0.1, tokenizer="wordpiece"),
)
def bert(
    input_shape: tuple[int] = (512,),
    classes: int = 2,
    vocabulary: int = 30_522,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int = 0,
    length: int = 512,
    head: str = "classification",
    pad: int = 0,
    separator: int = 102,
    epsilon: float = 1e-12,
    dropout: float = 0.1,
) -> keras.Model:
    """Build a BERT encoder with a head.

    Args:
        input_shape: `(length,)` of the texts in tokens, at most the argument `length`; `(None,)` for any. The first token
            is the one whose vector is classified.
        classes: number of logits, of each text or of each token.
        vocabulary: tokens that there are, numbered from 0.
        width: units of each token's vector, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention layer.
        hidden: units of the first dense layer of each block; 0 for four times `width`.
        length: positions that there are vectors for.
        head: that follows from the task in training; "classification" of whole texts, through the pooler; "tokens" classifies each token; "vocabulary" gives a
            logit for each token that could stand in a place, by the embeddings and behind one more dense layer, as in
            pre-training; "none" gives the vectors of the last block.
        pad: token that fills up short texts; nothing reads it.
        separator: token that ends a text or the first of two, which are segments 0 and 1; 102 in the vocabularies of the
            authors, -1 for none.
        epsilon: added to the variance in each normalisation.
        dropout: share dropped in training behind the embeddings, in the attention, behind each block's parts and before
            the head, in [0, 1).

    Returns:
        Functional model, tokens `(batch, length)` -> `(batch, classes)` logits; `(batch, length, classes)` with head
        "tokens", `(batch, length, vocabulary)` with "vocabulary", `(batch, length, width)` with "none".

    Raises:
        ValueError: an argument is out of range, or a text longer than there are positions.
    """
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(map(repr, HEADS))}, got {head!r}")
    if min(vocabulary, width, depth, heads, length) < 1 or hidden < 0:
        raise ValueError(
            f"vocabulary, width, depth, heads and length must be at least 1 and hidden at least 0, got "
            f"vocabulary={vocabulary!r}, width={width!r}, depth={depth!r}, heads={heads!r}, length={length!r}, "
            f"hidden={hidden!r}"
        )
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width={width!r}, heads={heads!r}")
    tokens = keras.Input(input_shape, dtype="int32", name="tokens")
    kind = layers.ReversibleEmbedding if head == "vocabulary" else layers.Embedding
    words = kind(vocabulary, width, embeddings_initializer=_drawn(), name="words")
    segments = layers.Embedding(2, width, embeddings_initializer=_drawn(), name="segments")
    x = LearnedPositions(length, name="positions")(words(tokens))
    x = layers.Add(name="embedded")([x, segments(Segments(separator, name="segment")(tokens))])
    x = dropped(norm(x, epsilon, "embedded_norm"), dropout, "embedded")
    present = Present(pad, name="present")(tokens)
    for block in range(depth):
        x = _block(x, present, heads, hidden or 4 * width, epsilon, dropout, f"block{block}")
    if head == "classification":
        x = _dense(FirstToken(name="first")(x), width, "features", "tanh")
        x = _dense(dropped(x, dropout, "features"), classes, "logits")
    elif head == "tokens":
        x = layers.Dropout(dropout, name="features")(x)
        x = _dense(x, classes, "logits")
    elif head == "vocabulary":
        x = norm(_dense(x, width, "prediction", "gelu"), epsilon, "features")
        x = Bias(name="logits")(words(x, reverse=True))
    return keras.Model(tokens, x, name="bert")
