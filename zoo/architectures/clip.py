"""CLIP: pictures and texts as points on one sphere, a picture near the texts that tell what it shows.

Radford, Kim, Hallacy et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021
(arXiv:2103.00020), sections 2.3 to 2.5 and tables 19 and 20; weights begin as in the authors' code. A text is read at the
token of its end, which sees all before it. Departure: an image whose sides are no multiple of the patch is filled up with 0,
the mean, on the right and below.
"""

import math

import keras
from keras import layers, ops

from zoo.layers.activations import gelu_sigmoid
from zoo.layers.blocks import norm, pre_norm
from zoo.layers.positions import LearnedPositions
from zoo.layers.tokens import ClassToken, FirstToken, Positions, TokenOf
from zoo.registry import Tensor, register

HOTTEST = 100.0  # largest factor of the cosines, section 2.5


@keras.saving.register_keras_serializable("zoo")
class AtMost(keras.constraints.Constraint):
    """A weight that stays at or below a number."""

    def __init__(self, most):
        self.most = most

    def __call__(self, weight):
        return ops.minimum(weight, self.most)

    def get_config(self):
        return {"most": self.most}


@keras.saving.register_keras_serializable("zoo")
class Pairs(layers.Layer):
    """Vectors of pictures, times a learned factor, beside those of texts: (batch, width) each -> (batch, 2, width).

    The product of a picture's with any text's is their logit. The factor starts at 1 / 0.07 and stays at or below 100;
    its logarithm is the weight `scale`.
    """

    def build(self, image_shape, text_shape):
        start = keras.initializers.Constant(math.log(1 / 0.07))
        most = AtMost(math.log(HOTTEST))
        self.scale = self.add_weight(shape=(), initializer=start, constraint=most, name="scale")

    def call(self, image, text):
        return ops.stack([image * ops.exp(self.scale), text], axis=1)

    def compute_output_spec(self, image, text):
        return keras.KerasTensor((image.shape[0], 2, image.shape[-1]), self.compute_dtype)


def _blocks(x, depth, heads, hidden, causal, epsilon, dropout, name):
    width = x.shape[-1]
    deviations = width**-0.5, (2 * width) ** -0.5, width**-0.5 * (2 * depth) ** -0.5
    for block in range(depth):
        x = pre_norm(
            x, heads, hidden or 4 * width, f"{name}_block{block}", activation=gelu_sigmoid, causal=causal, epsilon=epsilon,
            dropout=dropout, deviations=deviations,
        )  # fmt: skip
    return x


def _projected(x, units, name):
    start = keras.initializers.RandomNormal(stddev=x.shape[-1] ** -0.5)
    return layers.Dense(units, use_bias=False, kernel_initializer=start, name=name)(x)


def _image_tower(image, patch, width, depth, heads, hidden, epsilon, dropout):
    """(batch, height, width, channels) -> the class token's vector, normalised, (batch, units)."""
    below, right = (-side % patch for side in image.shape[1:3])
    x = layers.ZeroPadding2D(((0, below), (0, right)), name="image_pad")(image) if below or right else image
    x = layers.Conv2D(width, patch, patch, use_bias=False, name="image_patches")(x)
    x = Positions(name="image_positions")(x)
    x = layers.Reshape((x.shape[1] * x.shape[2], width), name="image_sequence")(x)
    x = norm(ClassToken(name="image_class_token")(x), epsilon, "image_norm")
    x = _blocks(x, depth, heads, hidden, False, epsilon, dropout, "image")
    return norm(FirstToken(name="image_token")(x), epsilon, "image_features")


def _text_tower(tokens, vocabulary, length, width, depth, heads, hidden, end, epsilon, dropout):
    """Tokens (batch, length) -> the vector at the token of the text's end, normalised, (batch, units)."""
    start = keras.initializers.RandomNormal(stddev=0.02)
    x = layers.Embedding(vocabulary, width, embeddings_initializer=start, name="text_words")(tokens)
    x = LearnedPositions(length, name="text_positions")(x)
    x = _blocks(x, depth, heads, hidden, True, epsilon, dropout, "text")
    return norm(TokenOf(end, name="text_token")(x, tokens), epsilon, "text_features")


@register(
    "clip",
    task="image-text",
    inputs={
        "image": Tensor("height", "width", "channels", unit="zero mean, unit variance"),
        "tokens": Tensor("length", dtype="int32", unit="token"),
    },
    paper="Radford et al. 2021",
    params=151_277_313,
    params_source="Hugging Face CLIPModel",
    variants={
        "clip_vit_b_16": dict(params=149_620_737, patch=16),
        "clip_vit_l_14": dict(
            params=427_616_513, latent=768, patch=14, width=1024, depth=24, heads=16, text_width=768, text_heads=12
        ),
        "clip_nano": dict(
            params=425_761,
            input_shape=(32, 32, 3),
            latent=64,
            patch=8,
            width=96,
            depth=3,
            heads=4,
            vocabulary=130,
            length=16,
            text_width=64,
            text_depth=1,
            text_heads=2,
            end=3,
        ),
    },
    tiny=dict(
        input_shape=(8, 8, 3),
        latent=6,
        patch=4,
        width=12,
        depth=2,
        heads=3,
        vocabulary=20,
        length=7,
        text_width=8,
        text_depth=1,
        text_heads=2,
        end=3,
    ),
    aliases=("clip_vit_b_32",),
    data="captioned_shapes",
    skip=dict(
        edge="a device asks for a label of an image: zoo zero-shot makes a classifier, which has a file for devices",
        explain="it answers with vectors: zoo zero-shot makes a classifier, whose labels are explained",
    ),
    recipe=dict(learning_rate=5e-4, weight_decay=0.1, warmup=0.1, batch_size=64, clip_norm=1.0, tokenizer="wordpiece"),
)
def clip(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    latent: int = 512,
    patch: int = 32,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int = 0,
    vocabulary: int = 49_408,
    length: int = 77,
    text_width: int = 512,
    text_depth: int = 12,
    text_heads: int = 8,
    text_hidden: int = 0,
    end: int = 49_407,
    epsilon: float = 1e-5,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a vision transformer and a text transformer that end in one space.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size of at least one patch.
        latent: numbers of a picture's and a text's vector.
        patch: pixels of a patch's side.
        width: units of each patch's vector, a multiple of `heads`.
        depth: blocks of the picture's transformer.
        heads: of each of its attention layers.
        hidden: units of the first dense layer of each of its blocks; 0 for four times `width`.
        vocabulary: tokens that there are, numbered from 0.
        length: tokens of a text.
        text_width, text_depth, text_heads, text_hidden: the same of the text's transformer.
        end: token that ends a text, at which it is read; a text without it is read at its last place.
        epsilon: added to the variance in each normalisation.
        dropout: share dropped in training in the attention and behind each block's parts, in [0, 1).

    Returns:
        Functional model of `{"image": (batch, height, width, channels), "tokens": (batch, length)}` -> `(batch, 2, latent)`:
        of each row the picture's unit vector times the learned factor, and the text's unit vector, so that the product of any
        picture's with any text's is their logit. The unit vectors are the layers `image_embedding` and `text_embedding`.

    Raises:
        ValueError: an argument is out of range, or the image smaller than a patch.
    """
    sizes = dict(
        latent=latent, patch=patch, width=width, depth=depth, heads=heads, vocabulary=vocabulary, length=length
    )
    sizes |= dict(text_width=text_width, text_depth=text_depth, text_heads=text_heads)
    small = [name for name, size in sizes.items() if size < 1]
    if small or min(hidden, text_hidden) < 0:
        name = (small or ["hidden and text_hidden"])[0]
        raise ValueError(
            f"{name} must be at least {1 if small else 0}, got {sizes[name] if small else (hidden, text_hidden)!r}"
        )
    if width % heads or text_width % text_heads:
        raise ValueError(
            f"width must be a multiple of heads, got width={width!r}, heads={heads!r}, text_width={text_width!r}, "
            f"text_heads={text_heads!r}"
        )
    if min(input_shape[:2]) < patch:
        raise ValueError(
            f"input_shape must be at least {patch} pixels a side for patches of {patch}, got {input_shape!r}; "
            f"resize the images, or pass a smaller patch"
        )
    image = keras.Input(input_shape, name="image")
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = _image_tower(image, patch, width, depth, heads, hidden, epsilon, dropout)
    y = _text_tower(tokens, vocabulary, length, text_width, text_depth, text_heads, text_hidden, end, epsilon, dropout)
    x = _projected(x, latent, "image_projection")
    y = _projected(y, latent, "text_projection")
    x, y = layers.UnitNormalization(name="image_embedding")(x), layers.UnitNormalization(name="text_embedding")(y)
    return keras.Model({"image": image, "tokens": tokens}, Pairs(name="pairs")(x, y), name="clip")
