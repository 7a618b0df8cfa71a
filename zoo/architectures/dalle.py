"""DALL-E: a picture as a text of codes, which a transformer writes behind the words that tell of it.

Ramesh, Pavlov, Goh et al., "Zero-Shot Text-to-Image Generation", ICML 2021 (arXiv:2102.12092), section 2 and appendix A.
Departures: both halves learn at once, the transformer from what the codes are at the moment, where the paper trains one after
the other; no gradient passes from the transformer to the codes. The discrete autoencoder has one block of two convolutions at
each size, and attention sees all places in front instead of rows, columns and neighbourhoods. The logarithm of the likelihood's
scale is at least -5, half a pixel value.
"""

import math

import keras
from keras import KerasTensor, layers, ops

from zoo.layers.blocks import norm, pre_norm
from zoo.registry import Tensor, register

EPSILON = 0.1  # how far pixels stay from 0 and 1, appendix A.3
LEAST = -5.0  # logarithm of the likelihood's scale
COLDEST = 1 / 16  # temperature of the relaxed codes in the end, appendix A.2
WARM = 1 / 30  # share of the cooling in which the divergence's weight rises: 5,000 of 150,000 updates, appendix A.2
FIGURES = 3  # of each picture behind those of its places, see `Figures`


@keras.saving.register_keras_serializable("zoo")
class Counting(layers.Layer):
    """A layer that knows how many updates training has done; the count is its weight `count`.

    Args:
        updates: after which it has gone all its way.
    """

    def __init__(self, updates, **kwargs):
        super().__init__(**kwargs)
        self.updates = updates

    def build(self, *shapes):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def gone(self):
        """Share of its way, in [0, 1], where this update is one more."""
        share = ops.minimum(self.count / self.updates, 1.0)
        self.count.assign_add(1.0)
        return share

    def get_config(self):
        return {**super().get_config(), "updates": self.updates}


@keras.saving.register_keras_serializable("zoo")
class Relaxed(Counting):
    """Logits of codes -> the code of each place, one-hot; in training what gradients can pass, (..., codes) in and out.

    That is the softmax of logits and Gumbel noise, over a temperature that falls from 1 to 1/16 by half a cosine.

    Source: Jang, Gu & Poole 2017 (arXiv:1611.01144), equation 2; section 2.1 and appendix A.2 of the paper.
    """

    def __init__(self, updates, **kwargs):
        super().__init__(updates, **kwargs)
        self.seed = keras.random.SeedGenerator()

    def call(self, logits, training=False):
        if not training:
            return ops.one_hot(ops.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
        drawn = keras.random.uniform(ops.shape(logits), 1e-6, 1 - 1e-6, dtype="float32", seed=self.seed)
        temperature = COLDEST + (1 - COLDEST) * (1 + ops.cos(math.pi * self.gone())) / 2
        return ops.cast(relaxed(ops.cast(logits, "float32"), drawn, temperature), logits.dtype)

    def compute_output_spec(self, logits, training=False):
        return KerasTensor(logits.shape, self.compute_dtype)


def relaxed(logits, drawn, temperature):
    """A draw from the Gumbel-softmax distribution of logits (..., codes), given numbers of the same shape in (0, 1)."""
    return ops.softmax((logits - ops.log(-ops.log(drawn))) / temperature, axis=-1)


@keras.saving.register_keras_serializable("zoo")
class Divergence(Counting):
    """How far codes are from all alike, the Kullback-Leibler divergence: logits (batch, rows, columns, codes) -> (batch, 1).

    Summed over the places, times `weight` over the picture's values; in training the weight rises from 0.

    Args:
        updates: in which it rises.
        weight: beta, 1 for the evidence lower bound.
        values: of a picture.
    """

    def __init__(self, updates, weight, values, **kwargs):
        super().__init__(updates, **kwargs)
        self.weight, self.values = weight, values

    def call(self, logits, training=False):
        share = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        apart = ops.sum(ops.exp(share) * (share + math.log(logits.shape[-1])), axis=(1, 2, 3))
        return (self.gone() if training else 1.0) * self.weight * apart[:, None] / self.values

    def compute_output_spec(self, logits, training=False):
        return KerasTensor((logits.shape[0], 1), "float32")

    def get_config(self):
        return {**super().get_config(), "weight": self.weight, "values": self.values}


@keras.saving.register_keras_serializable("zoo")
class Likelihood(layers.Layer):
    """How well a picture is drawn: pixels in [0, 1] (batch, height, width, channels) and parameters with twice as many channels
    -> (batch, 2), nats of a value in the mean, and mean absolute error in [0, 1].
    """

    def call(self, image, parameters):
        image = ops.clip(ops.cast(image, "float32"), 0.0, 1.0)
        middle, scale = ops.split(ops.cast(parameters, "float32"), 2, axis=-1)
        nats = logit_laplace(image, middle, ops.maximum(scale, LEAST))
        return ops.stack([ops.mean(each, axis=(1, 2, 3)) for each in (nats, ops.abs(image - drawn(middle)))], axis=-1)

    def compute_output_spec(self, image, parameters):
        return KerasTensor((image.shape[0], 2), "float32")


def logit_laplace(image, middle, scale):
    """Negative logarithm of the logit-Laplace density of pixels in [0, 1], moved to [0.1, 0.9]; the same shape.

    Args:
        image: pixels.
        middle: of the pixels' logits, mu.
        scale: ln b.

    Source: appendix A.3, equation 2.
    """
    x = (1 - 2 * EPSILON) * image + EPSILON
    logit = ops.log(x) - ops.log1p(-x)
    return math.log(2) + scale + ops.log(x) + ops.log1p(-x) + ops.abs(logit - middle) * ops.exp(-scale)


def drawn(middle: KerasTensor) -> KerasTensor:
    """Pixels in [0, 1] that a picture's `middle` stands for, appendix A.3."""
    return ops.clip((ops.sigmoid(middle) - EPSILON) / (1 - 2 * EPSILON), 0.0, 1.0)


@keras.saving.register_keras_serializable("zoo")
class OneText(layers.Layer):
    """Tokens (batch, length) and logits of codes (batch, rows, columns, codes) -> int32 (batch, length + rows * columns).

    Tokens keep their numbers, below `vocabulary`; then comes a token for the padding of each place of a text, then the codes.

    Args:
        vocabulary: tokens that there are.
        pad: the one for padding.
    """

    def __init__(self, vocabulary, pad=0, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary, self.pad = vocabulary, pad

    def call(self, tokens, logits):
        length = tokens.shape[1]
        padding = ops.arange(self.vocabulary, self.vocabulary + length, dtype="int32")
        text = ops.where(ops.equal(tokens, self.pad), padding, ops.cast(tokens, "int32"))
        codes = ops.cast(ops.argmax(logits, axis=-1), "int32") + (self.vocabulary + length)
        return ops.concatenate([text, ops.reshape(codes, (-1, logits.shape[1] * logits.shape[2]))], axis=1)

    def compute_output_spec(self, tokens, logits):
        return KerasTensor((tokens.shape[0], tokens.shape[1] + logits.shape[1] * logits.shape[2]), "int32")

    def get_config(self):
        return {**super().get_config(), "vocabulary": self.vocabulary, "pad": self.pad}


@keras.saving.register_keras_serializable("zoo")
class TextAndGrid(layers.Layer):
    """Adds a learned vector to each place of a text, and those of its row and its column to each place of a picture behind it.

    (batch, length + rows * columns, width) in and out; all start normal with standard deviation 0.02. `start` is the place of
    the first token that a call sees, as in `zoo.layers.positions`.

    Args:
        length: places of the text.
        rows, columns: of the picture.
    """

    def __init__(self, length, rows, columns, **kwargs):
        super().__init__(**kwargs)
        self.length, self.rows, self.columns = length, rows, columns

    def build(self, shape):
        start = keras.initializers.RandomNormal(stddev=0.02)
        sizes = {"text": (self.length,), "row": (self.rows, 1), "column": (1, self.columns)}
        for name, size in sizes.items():
            setattr(self, name, self.add_weight(shape=(*size, shape[-1]), initializer=start, name=name))

    def call(self, x, start=0):
        grid = ops.reshape(self.row + self.column, (self.rows * self.columns, x.shape[-1]))
        table = ops.concatenate([ops.convert_to_tensor(self.text), grid], axis=0)
        if isinstance(start, int) and not start and x.shape[1] == table.shape[0]:
            return x + table
        return x + ops.take(table, ops.arange(ops.shape(x)[1]) + start, axis=0)

    def compute_output_spec(self, x, start=0):
        return KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "length": self.length, "rows": self.rows, "columns": self.columns}


@keras.saving.register_keras_serializable("zoo")
class Figures(layers.Layer):
    """All that training and judging ask of a row, side by side: (batch, length - 1 + 2 * places + 3).

    Nats of each token of the text but the first, given those in front; nats of each code; the codes themselves; nats of a
    picture's value given its codes, the mean absolute error, and the divergence.

    Args:
        length: tokens of the text.
        first: number of the first code.
    """

    def __init__(self, length, first, **kwargs):
        super().__init__(**kwargs)
        self.length, self.first = length, first

    def call(self, text, logits, likelihood, divergence):
        share = ops.log_softmax(ops.cast(logits[:, :-1], "float32"), axis=-1)
        nats = -ops.take_along_axis(share, text[:, 1:, None], axis=-1)[..., 0]  # (batch, length - 1 + places)
        codes = ops.cast(text[:, self.length :] - self.first, "float32")
        return ops.concatenate([nats, codes, likelihood, divergence], axis=1)

    def compute_output_spec(self, text, logits, likelihood, divergence):
        return KerasTensor((text.shape[0], 2 * text.shape[1] - self.length - 1 + FIGURES), "float32")

    def get_config(self):
        return {**super().get_config(), "length": self.length, "first": self.first}


def _convolutions(x, filters, name):
    """Two convolutions whose result is added to x: (batch, rows, columns, any) -> (batch, rows, columns, filters)."""
    y = x
    for number in range(2):
        y = layers.ReLU(name=f"{name}_relu{number}")(y)
        y = layers.Conv2D(filters, 3, padding="same", kernel_initializer="he_normal", name=f"{name}_conv{number}")(y)
    if x.shape[-1] != filters:
        x = layers.Conv2D(filters, 1, name=f"{name}_shortcut")(x)
    return layers.Add(name=f"{name}_add")([x, y])


def _encoder(image, filters, poolings, codes):
    """(batch, height, width, channels) -> logits of codes (batch, rows, columns, codes)."""
    x = layers.Conv2D(filters, 7, padding="same", name="encoder_stem")(image)
    for stage in range(poolings):
        x = _convolutions(x, filters * 2**stage, f"encoder_stage{stage}")
        x = layers.MaxPooling2D(name=f"encoder_stage{stage}_pool")(x)
    x = _convolutions(x, filters * 2**poolings, f"encoder_stage{poolings}")
    return layers.Conv2D(codes, 1, name="code_logits")(layers.ReLU(name="encoder_relu")(x))


def _decoder(codes, channels, filters, poolings):
    """One-hot codes (batch, rows, columns, codes) -> middle and scale of each value (batch, height, width, 2 * channels)."""
    x = layers.Conv2D(filters * 2**poolings, 1, name="decoder_stem")(codes)
    for stage in range(poolings, 0, -1):
        x = _convolutions(x, filters * 2**stage, f"decoder_stage{stage}")
        x = layers.UpSampling2D(name=f"decoder_stage{stage}_larger")(x)
    x = layers.ReLU(name="decoder_relu")(_convolutions(x, filters, "decoder_stage0"))
    return layers.Conv2D(2 * channels, 1, name="pixels")(x)


@register(
    "dalle",
    task="text-to-image",
    inputs={
        "tokens": Tensor("length", dtype="int32", unit="token"),
        "image": Tensor("height", "width", "channels", unit="pixel value / 255", range=(0, 1)),
    },
    paper="Ramesh et al. 2021",
    params=83_962_310,
    variants={
        "dalle_nano": dict(
            params=710_280,
            input_shape=(32, 32, 3),
            codes=128,
            filters=16,
            poolings=2,
            anneal=2_500,
            divergence=1.0,
            width=96,
            depth=4,
            heads=4,
            vocabulary=130,
            length=16,
        ),
    },
    tiny=dict(
        input_shape=(8, 8, 3),
        codes=5,
        filters=4,
        poolings=1,
        anneal=10,
        width=8,
        depth=1,
        heads=2,
        vocabulary=20,
        length=7,
    ),
    data="captioned_shapes",
    skip=dict(
        edge="it paints by many runs of one half and one of the other, which run.py of a bundle does",
        explain="it paints code by code, each of which has reasons of its own, and explanations are of one answer",
    ),
    recipe=dict(
        task="text-to-image", scaling="0/255", tokenizer="wordpiece", learning_rate=3e-3, warmup=0.05, batch_size=64
    ),
)
def dalle(
    input_shape: tuple[int, int, int] = (256, 256, 3),
    codes: int = 8_192,
    filters: int = 64,
    poolings: int = 3,
    anneal: int = 150_000,
    divergence: float = 6.6,
    width: int = 512,
    depth: int = 12,
    heads: int = 8,
    hidden: int = 0,
    vocabulary: int = 16_384,
    length: int = 256,
    pad: int = 0,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a discrete variational autoencoder of pictures and a transformer that writes its codes behind a text.

    The paper's transformer, of 12 billion parameters, has width 3,968, depth 64 and 62 heads.

    Args:
        input_shape: `(height, width, channels)` in pixels, sides multiples of 2 to the power of `poolings`.
        codes: that a place of a picture may have.
        filters: of the autoencoder's convolutions at full size, twice as many behind each pooling.
        poolings: that halve a side; 3 leave a place for 8 x 8 pixels.
        anneal: updates in which the temperature of the relaxed codes falls.
        divergence: weight beta of the codes' divergence from all alike.
        width: units of the vector of each token and code, a multiple of `heads`.
        depth: blocks of the transformer.
        heads: of each attention layer.
        hidden: units of the first dense layer of each block; 0 for four times `width`.
        vocabulary: tokens that there are, numbered from 0.
        length: tokens of a text.
        pad: token behind the end of shorter texts.
        dropout: share dropped in training in the attention and behind each block's parts, in [0, 1).

    Returns:
        Functional model of `{"tokens": (batch, length), "image": (batch, height, width, channels)}`, pixels in [0, 1], to
        `(batch, length - 1 + 2 * places + 3)`: how likely each row is, see `Figures`. Layer `code_logits` ends the encoder,
        `pixels` the decoder, whose input is the output of `codes`; `logits` is what comes next, given the output of `text`.

    Raises:
        ValueError: an argument is out of range, or the image cannot be halved so often.
    """
    sizes = dict(codes=codes, filters=filters, anneal=anneal, width=width, depth=depth, heads=heads)
    sizes |= dict(vocabulary=vocabulary, length=length)
    if small := [name for name, size in sizes.items() if size < 1]:
        raise ValueError(f"{small[0]} must be at least 1, got {sizes[small[0]]!r}")
    if min(hidden, poolings, divergence) < 0:
        raise ValueError(
            f"hidden, poolings and divergence must be at least 0, got hidden={hidden!r}, poolings={poolings!r}, "
            f"divergence={divergence!r}"
        )
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width={width!r}, heads={heads!r}")
    if any(side % 2**poolings for side in input_shape[:2]):
        raise ValueError(
            f"input_shape must have sides that are multiples of {2**poolings} for {poolings} poolings, got {input_shape!r}; "
            "resize the images, or pass fewer poolings"
        )
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    image = keras.Input(input_shape, name="image")
    code_logits = _encoder(image, filters, poolings, codes)
    shown = Relaxed(anneal, name="codes")(code_logits)
    pixels = _decoder(shown, input_shape[-1], filters, poolings)
    likelihood = Likelihood(dtype="float32", name="likelihood")(image, pixels)
    apart = Divergence(anneal * WARM, divergence, math.prod(input_shape), dtype="float32", name="divergence")(
        code_logits
    )

    first = vocabulary + length
    text = OneText(vocabulary, pad, name="text")(tokens, code_logits)
    start = keras.initializers.RandomNormal(stddev=0.02)
    x = layers.Embedding(first + codes, width, embeddings_initializer=start, name="words")(text)
    x = TextAndGrid(length, *code_logits.shape[1:3], name="positions")(x)
    for block in range(depth):
        x = pre_norm(x, heads, hidden or 4 * width, f"block{block}", activation="gelu", dropout=dropout)
    x = norm(x, 1e-5, "features")
    logits = layers.Dense(first + codes, name="logits")(x)
    figures = Figures(length, first, dtype="float32", name="figures")(text, logits, likelihood, apart)
    return keras.Model({"tokens": tokens, "image": image}, figures, name="dalle")
