"""Networks that benchmarks measure and the zoo does not hold under a name."""

from typing import Any


def bert_base(depth: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 30_522, length: int = 512) -> Any:
    """An encoder with the sizes of BERT-base: tokens (batch, length), 0 being padding -> logits (batch, 2).

    109,482,240 parameters of Devlin et al. 2018 (arXiv:1810.04805), less the two segment vectors, and two classes.
    """
    import keras
    from keras import layers, ops

    tokens = keras.Input((None,), dtype="int32", name="tokens")
    mask = ops.expand_dims(ops.not_equal(tokens, 0), 1)  # (batch, 1, length): padding is never attended to
    x = layers.Embedding(vocabulary, width, name="token_embedding")(tokens)
    places = layers.Embedding(length, width, name="position_embedding")(ops.cumsum(ops.ones_like(tokens), axis=1) - 1)
    x = layers.LayerNormalization(epsilon=1e-12, name="embedding_norm")(layers.Add(name="embedding")([x, places]))
    for block in range(depth):
        name = f"block{block}"
        attention = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(
            x, x, attention_mask=mask
        )
        x = layers.LayerNormalization(epsilon=1e-12, name=f"{name}_norm0")(
            layers.Add(name=f"{name}_add0")([x, attention])
        )
        hidden = layers.Dense(4 * width, activation="gelu", name=f"{name}_up")(x)
        hidden = layers.Dense(width, name=f"{name}_down")(hidden)
        x = layers.LayerNormalization(epsilon=1e-12, name=f"{name}_norm1")(layers.Add(name=f"{name}_add1")([x, hidden]))
    first = layers.Dense(width, activation="tanh", name="features")(x[:, 0])
    return keras.Model(tokens, layers.Dense(2, name="logits")(first), name="bert_base")


def build(name: str) -> Any:
    """A network of this file, or of the zoo."""
    import zoo

    return bert_base() if name == "bert_base" else zoo.get(name)
