"""Layer kinds that every exported file must get right: one small model of each, with inputs to run it on.

Each case is one layer, one operation, or a small arrangement of them that has a difficulty of its own. Free sizes are
`None`; they are drawn longer and shorter than the rows the exporter sees.
"""

# ruff: noqa: PLW0108 (a layer is made when its model is built, not when the case is declared)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import activations, layers, ops

from zoo.layers.detection import NonMaxSuppression, RoIAlign
from zoo.layers.regions import Proposals, PyramidAlign, RankBoxes
from zoo.layers.speech import CTCGreedyDecode

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Given:
    """One input: its shape without the batch, free axes as None, and how its values are drawn.

    `longer` is added to the free axes, so that two inputs can differ in length.
    """

    shape: tuple[int | None, ...]
    dtype: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    longer: int = 0


@dataclass(frozen=True)
class Kind:
    """A case: how to build the model, what it takes, and how far its answers may be off."""

    name: str
    body: Callable[..., Any]
    given: tuple[Given, ...]
    tolerance: float = 1e-4
    why: str = ""  # a tolerance above 1e-4 needs a reason
    trained: bool = True  # whether weights that start constant are moved, so that a lost one is seen

    def model(self) -> keras.Model:
        """Functional model with inputs `input0`, `input1`, ... and the same weights each time."""
        keras.utils.set_random_seed(0)
        inputs = [keras.Input(g.shape, dtype=g.dtype, name=f"input{i}") for i, g in enumerate(self.given)]
        outputs = self.body(*inputs)
        if isinstance(outputs, (list, tuple)):  # the outputs of one layer would share its name
            outputs = [layers.Identity(name=f"output{i}", dtype=y.dtype)(y) for i, y in enumerate(outputs)]
        model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs, name=self.name)
        random = np.random.default_rng(1)
        for weight in model.weights if self.trained else []:
            value = keras.ops.convert_to_numpy(weight).astype("float64")
            if value.dtype.kind == "f" and np.ptp(value) == 0 and "seed" not in weight.path:
                weight.assign(value + random.uniform(0.1, 0.6, value.shape))
        return model

    def inputs(self, rows: int, size: int, seed: int = 0) -> Arrays:
        """Values by input name.

        Args:
            rows: size of the batch.
            size: of the first free axis; each further one is 3 longer, so that height and width differ.
            seed: of the draw.
        """
        random = np.random.default_rng(seed)
        drawn = {}
        for i, given in enumerate(self.given):
            free = [axis for axis, length in enumerate(given.shape) if length is None]
            lengths = {axis: size + given.longer + 3 * nth for nth, axis in enumerate(free)}
            shape = tuple(lengths.get(axis, length) for axis, length in enumerate(given.shape))
            drawn[f"input{i}"] = given.draw(random, (rows, *shape)).astype(given.dtype)
        return drawn

    @property
    def free(self) -> bool:
        """Whether an axis other than the batch is free."""
        return any(None in given.shape for given in self.given)


KINDS: dict[str, Kind] = {}


def add(name: str, body: Callable[..., Any], *given: Given, **facts: Any) -> None:
    """Add a case."""
    if name in KINDS:
        raise ValueError(f"two cases are called {name!r}")
    KINDS[name] = Kind(name, body, given, **facts)


def floats(*shape: int | None, low: float | None = None, high: float = 1.0, longer: int = 0) -> Given:
    """Normal values, or uniform ones from `low` to `high`."""

    def draw(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return random.standard_normal(shape) if low is None else random.uniform(low, high, shape)

    return Given(shape, "float32", draw, longer)


def integers(*shape: int | None, below: int = 9, dtype: str = "int32", longer: int = 0) -> Given:
    """Whole numbers from 0 to `below` - 1."""
    return Given(shape, dtype, lambda random, shape: random.integers(0, below, shape), longer)


def mask(length: int | None, pattern: str, longer: int = 0) -> Given:
    """Which steps are valid: on the "right", "left" or with "gaps" padded; "empty" adds rows without a valid step."""
    return Given((length,), "bool", lambda random, shape: valid(random, shape, pattern), longer)


def tokens(length: int | None, pattern: str, below: int = 9) -> Given:
    """Token ids from 1 to `below` - 1, 0 where padded."""
    return Given(
        (length,),
        "int32",
        lambda random, shape: random.integers(1, below, shape) * valid(random, shape, pattern),
    )


def valid(random: np.random.Generator, shape: tuple[int, ...], pattern: str) -> np.ndarray:
    rows, length = shape
    lengths = random.integers(1, length + 1, (rows, 1))
    if pattern == "gaps":
        found = random.random(shape) < 0.6
        found[np.arange(rows), random.integers(0, length, rows)] = True
        return found
    found = np.arange(length) < lengths
    if pattern == "left":
        return found[:, ::-1]
    if pattern == "empty":
        found[::2] = False
    return found


ROW = floats(6)
STEPS = floats(9, 4)
FREE_STEPS = floats(None, 4)
IMAGE = floats(11, 9, 4)
VOLUME = floats(7, 6, 5, 2)
HALF = dict(tolerance=4e-3, why="Keras itself computes in 16 bits with an 11-bit fraction")
BRAIN = dict(tolerance=3e-2, why="Keras itself computes in 16 bits with an 8-bit fraction")

# Dense and embedding

add("dense", lambda x: layers.Dense(5, "relu")(x), ROW)
add("dense_without_bias", lambda x: layers.Dense(5, use_bias=False)(x), ROW)
add("dense_over_steps", lambda x: layers.Dense(5, "tanh")(x), FREE_STEPS)
add("dense_over_pixels", lambda x: layers.Dense(5)(x), floats(None, None, 3))
add("einsum_dense", lambda x: layers.EinsumDense("abc,cde->abde", (None, 3, 5), bias_axes="de")(x), FREE_STEPS)
add(
    "einsum_dense_contract_two",
    lambda x: layers.EinsumDense("abcd,cde->abe", (None, 7), bias_axes="e")(x),
    floats(5, 3, 4),
)
add("dense_of_whole_numbers", lambda x: layers.Dense(5)(x), integers(6))
add("dense_by_keyword", lambda x: layers.Dense(5)(inputs=x), ROW)
add("embedding", lambda x: layers.Embedding(9, 5)(x), integers(None))
add(
    "embedding_of_masked_tokens",
    lambda x: layers.GlobalAveragePooling1D()(layers.Embedding(9, 5, mask_zero=True)(x)),
    tokens(None, "gaps"),
)


def _tied(x: Any) -> Any:
    table = layers.ReversibleEmbedding(9, 5)
    return table(layers.Dense(5)(table(x)), reverse=True)


add("embedding_tied_to_the_output", _tied, integers(None))

# Convolution

add("conv1d_valid", lambda x: layers.Conv1D(5, 3)(x), STEPS)
add("conv1d_same_stride", lambda x: layers.Conv1D(5, 3, strides=2, padding="same", activation="relu")(x), FREE_STEPS)
add("conv1d_causal_dilated", lambda x: layers.Conv1D(5, 3, padding="causal", dilation_rate=2)(x), FREE_STEPS)
add("conv1d_groups", lambda x: layers.Conv1D(6, 3, padding="same", groups=2)(x), STEPS)
add("conv1d_even_kernel", lambda x: layers.Conv1D(5, 4, padding="same")(x), FREE_STEPS)
add("conv2d_valid", lambda x: layers.Conv2D(5, (3, 2))(x), IMAGE)
add("conv2d_same", lambda x: layers.Conv2D(5, 3, padding="same")(x), floats(None, None, 3))
add("conv2d_same_stride", lambda x: layers.Conv2D(5, (3, 4), strides=(2, 3), padding="same")(x), IMAGE)
add("conv2d_same_stride_free_size", lambda x: layers.Conv2D(5, 3, strides=2, padding="same")(x), floats(None, None, 3))
add("conv2d_dilated_same", lambda x: layers.Conv2D(5, 3, dilation_rate=2, padding="same")(x), IMAGE)
add("conv2d_dilated_valid", lambda x: layers.Conv2D(5, 3, dilation_rate=(2, 3))(x), IMAGE)
add("conv2d_groups", lambda x: layers.Conv2D(6, 3, groups=2, padding="same")(x), IMAGE)
add("conv2d_groups_stride_dilated", lambda x: layers.Conv2D(8, 3, groups=4, dilation_rate=2)(x), IMAGE)
add("conv2d_channels_first", lambda x: layers.Conv2D(6, 3, data_format="channels_first")(x), floats(3, 8, 9))
add("conv3d_same_stride", lambda x: layers.Conv3D(3, 3, strides=2, padding="same")(x), VOLUME)
add("conv3d_dilated", lambda x: layers.Conv3D(3, 2, dilation_rate=2)(x), VOLUME)
add("depthwise1d", lambda x: layers.DepthwiseConv1D(3, depth_multiplier=2, padding="same")(x), FREE_STEPS)
add("depthwise2d", lambda x: layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(x), IMAGE)
add("depthwise2d_dilated", lambda x: layers.DepthwiseConv2D(3, dilation_rate=2)(x), IMAGE)
add("separable1d", lambda x: layers.SeparableConv1D(5, 3, padding="same", depth_multiplier=2)(x), FREE_STEPS)
add("separable2d", lambda x: layers.SeparableConv2D(5, 3, strides=2, padding="same")(x), IMAGE)
add("transposed1d_same", lambda x: layers.Conv1DTranspose(5, 3, strides=2, padding="same")(x), STEPS)
add("transposed1d_valid", lambda x: layers.Conv1DTranspose(5, 4, strides=3)(x), STEPS)
add("transposed2d_same", lambda x: layers.Conv2DTranspose(5, 4, strides=2, padding="same")(x), IMAGE)
add(
    "transposed2d_free_size",
    lambda x: layers.Conv2DTranspose(5, 3, strides=2, padding="same")(x),
    floats(None, None, 3),
)
add(
    "transposed2d_output_padding",
    lambda x: layers.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=1)(x),
    IMAGE,
)
add("transposed2d_valid", lambda x: layers.Conv2DTranspose(5, (2, 3), strides=(3, 2))(x), IMAGE)
add("transposed3d_same", lambda x: layers.Conv3DTranspose(3, 3, strides=2, padding="same")(x), floats(4, 3, 5, 2))

# Pooling, padding, cropping, upsampling

add("max_pool1d_same", lambda x: layers.MaxPooling1D(3, 2, padding="same")(x), FREE_STEPS)
add("max_pool2d_same", lambda x: layers.MaxPooling2D(3, 2, padding="same")(x), floats(None, None, 3))
add("max_pool2d_valid", lambda x: layers.MaxPooling2D((2, 3))(x), IMAGE)
add("max_pool3d", lambda x: layers.MaxPooling3D(2, padding="same")(x), VOLUME)
add("average_pool1d_same", lambda x: layers.AveragePooling1D(3, 2, padding="same")(x), FREE_STEPS)
add("average_pool2d_same", lambda x: layers.AveragePooling2D(3, 2, padding="same")(x), IMAGE)
add("average_pool2d_valid", lambda x: layers.AveragePooling2D(2)(x), floats(None, None, 3))
add("average_pool3d", lambda x: layers.AveragePooling3D(2)(x), VOLUME)
add("global_average_pool1d", lambda x: layers.GlobalAveragePooling1D()(x), FREE_STEPS)
add(
    "global_average_pool1d_masked",
    lambda x, m: layers.GlobalAveragePooling1D()(x, mask=m),
    FREE_STEPS,
    mask(None, "gaps"),
)
add("global_average_pool2d", lambda x: layers.GlobalAveragePooling2D(keepdims=True)(x), floats(None, None, 3))
add("global_average_pool3d", lambda x: layers.GlobalAveragePooling3D()(x), VOLUME)
add("global_max_pool1d", lambda x: layers.GlobalMaxPooling1D()(x), FREE_STEPS)
add("global_max_pool2d", lambda x: layers.GlobalMaxPooling2D()(x), floats(None, None, 3))
add("adaptive_average_pool2d", lambda x: layers.AdaptiveAveragePooling2D((4, 3))(x), IMAGE)
add("adaptive_max_pool2d", lambda x: layers.AdaptiveMaxPooling2D((4, 3))(x), IMAGE)
add("adaptive_average_pool1d", lambda x: layers.AdaptiveAveragePooling1D(4)(x), STEPS)
add("zero_padding1d", lambda x: layers.ZeroPadding1D((2, 1))(x), FREE_STEPS)
add("zero_padding2d", lambda x: layers.ZeroPadding2D(((1, 2), (0, 3)))(x), floats(None, None, 3))
add("zero_padding3d", lambda x: layers.ZeroPadding3D((1, 0, 2))(x), VOLUME)
add("cropping1d", lambda x: layers.Cropping1D((1, 2))(x), FREE_STEPS)
add("cropping2d", lambda x: layers.Cropping2D(((1, 2), (0, 3)))(x), floats(None, None, 3))
add("cropping3d", lambda x: layers.Cropping3D((1, 2, 1))(x), VOLUME)
add(
    "whole_numbers_padded_and_cropped",
    lambda x: layers.Cropping1D((0, 1))(layers.ZeroPadding1D((2, 3))(layers.MaxPooling1D(2)(x))),
    integers(None, 4),
)
add("upsampling1d", lambda x: layers.UpSampling1D(3)(x), FREE_STEPS)
add("upsampling2d_nearest", lambda x: layers.UpSampling2D((2, 3))(x), floats(None, None, 3))
add("upsampling2d_bilinear", lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x), IMAGE)
add("upsampling2d_bicubic", lambda x: layers.UpSampling2D(2, interpolation="bicubic")(x), IMAGE)
add("upsampling3d", lambda x: layers.UpSampling3D((1, 2, 3))(x), VOLUME)
add(
    "channels_first_padded_cropped_enlarged",
    lambda x: layers.UpSampling2D(2, data_format="channels_first")(
        layers.Cropping2D(((1, 0), (0, 2)), data_format="channels_first")(
            layers.ZeroPadding2D(2, data_format="channels_first")(x)
        )
    ),
    floats(3, 5, 4),
)
add(
    "max_pool_of_padded_positives",
    lambda x: layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(layers.ReLU()(layers.Conv2D(4, 3)(x)))),
    IMAGE,
)
add("depth_to_space", lambda x: ops.nn.depth_to_space(x, 2), floats(5, 4, 12))
add("space_to_depth", lambda x: ops.nn.space_to_depth(x, 2), floats(6, 4, 3))

# Normalisation

add("batch_norm", lambda x: layers.BatchNormalization()(layers.Conv2D(5, 3, use_bias=False)(x)), IMAGE)
add("batch_norm_alone", lambda x: layers.BatchNormalization(scale=False)(x), ROW)
add("batch_norm_of_axis_1", lambda x: layers.BatchNormalization(axis=1, center=False)(x), floats(3, 8, 9))
add("layer_norm", lambda x: layers.LayerNormalization(epsilon=1e-6)(x), FREE_STEPS)
add("layer_norm_without_weights", lambda x: layers.LayerNormalization(scale=False, center=False)(x), FREE_STEPS)
add("layer_norm_of_two_axes", lambda x: layers.LayerNormalization(axis=[-2, -1])(x), IMAGE)
add("layer_norm_of_axis_1", lambda x: layers.LayerNormalization(axis=1)(x), STEPS)
add(
    "layer_norm_over_free_steps",
    lambda x: layers.LayerNormalization(axis=1, scale=False, center=False)(x),
    FREE_STEPS,
)
add("group_norm", lambda x: layers.GroupNormalization(2)(x), floats(None, None, 4))
add("instance_norm", lambda x: layers.GroupNormalization(-1)(x), IMAGE)
add("rms_norm", lambda x: layers.RMSNormalization()(x), FREE_STEPS)
add("unit_norm", lambda x: layers.UnitNormalization()(x), FREE_STEPS)
add("spectral_norm", lambda x: layers.SpectralNormalization(layers.Dense(5))(x), ROW, trained=False)

# Activations

for _name in [
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softmax",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
    "tanh",
    "tanh_shrink",
    "threshold",
]:
    _activation = activations.get(_name) if _name != "threshold" else (lambda x: ops.threshold(x, 0.3, -2.0))
    add(f"activation_{_name}", lambda x, a=_activation: layers.Activation(a)(2 * x), floats(None, 5))
add("activation_gelu_tanh", lambda x: ops.gelu(x, approximate=True), ROW)
add("activation_gelu_erf", lambda x: ops.gelu(x, approximate=False), ROW)
add("activation_glu", lambda x: ops.glu(x, axis=-1), floats(None, 6))
add("activation_sparsemax", lambda x: ops.sparsemax(x), floats(None, 6))
add("layer_relu", lambda x: layers.ReLU(max_value=1.5, negative_slope=0.1, threshold=0.2)(x), ROW)
add("layer_leaky_relu", lambda x: layers.LeakyReLU(0.2)(x), ROW)
add("layer_prelu", lambda x: layers.PReLU(shared_axes=[1, 2])(x), IMAGE)
add("layer_prelu_behind_conv", lambda x: layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(5, 3)(x)), IMAGE)
add("layer_prelu_of_each_place", lambda x: layers.PReLU()(layers.Conv2D(5, 3, padding="same")(x)), IMAGE)
add("layer_elu", lambda x: layers.ELU(0.7)(x), ROW)
add("layer_softmax_of_axis_1", lambda x: layers.Softmax(axis=1)(x), FREE_STEPS)
add("layer_softmax_of_two_axes", lambda x: layers.Softmax(axis=(1, 2))(x), FREE_STEPS)
add("layer_softmax_masked", lambda x, m: layers.Softmax()(x, mask=m), floats(None), mask(None, "gaps"))
add(
    "dropout_and_noise",
    lambda x: layers.SpatialDropout1D(0.3)(layers.GaussianNoise(1.0)(layers.Dropout(0.5)(x))),
    FREE_STEPS,
)

# Merging and shapes

PAIR = (floats(None, 4), floats(None, 4))
add("merge_add_three", lambda x, y: layers.Add()([x, y, layers.Dense(4)(x)]), *PAIR)
add("merge_subtract", lambda x, y: layers.Subtract()([x, y]), *PAIR)
add("merge_multiply", lambda x, y: layers.Multiply()([x, y]), *PAIR)
add("merge_average", lambda x, y: layers.Average()([x, y]), *PAIR)
add("merge_maximum", lambda x, y: layers.Maximum()([x, y]), *PAIR)
add("merge_minimum", lambda x, y: layers.Minimum()([x, y]), *PAIR)
add("merge_add_ranks", lambda x, y: layers.Add()([x, y]), floats(5, 4), floats(4))
add("merge_concatenate", lambda x, y: layers.Concatenate(axis=1)([x, y]), floats(None, 4), floats(None, 4, longer=2))
add("merge_whole_numbers", lambda x, y: layers.Add()([x, layers.Maximum()([x, y])]), integers(None), integers(None))
add("merge_types", lambda x, y: layers.Concatenate()([layers.Add()([x, y]), x]), integers(None, 4), floats(None, 4))
add(
    "merge_masked",
    lambda x, y: [
        merge([layers.Embedding(9, 4, mask_zero=True)(x), y])
        for merge in (layers.Multiply(), layers.Maximum(), layers.Minimum(), layers.Subtract())
    ],
    tokens(None, "gaps"),
    floats(None, 4),
)
add("merge_dot", lambda x, y: layers.Dot(axes=2)([x, y]), floats(None, 4), floats(None, 4, longer=2))
add("merge_dot_normalized", lambda x, y: layers.Dot(axes=1, normalize=True)([x, y]), ROW, ROW)
add("reshape", lambda x: layers.Reshape((-1, 6))(x), IMAGE)
add("reshape_of_free_length", lambda x: layers.Reshape((-1, 2, 2))(x), FREE_STEPS)
add("flatten", lambda x: layers.Dense(3)(layers.Flatten()(x)), IMAGE)
add("flatten_of_scalars", lambda x: layers.Flatten()(x), floats())
add("flatten_channels_first", lambda x: layers.Flatten("channels_first")(x), floats(3, 4, 5))
add("flatten_of_free_length", lambda x: layers.Flatten()(x), FREE_STEPS)
add("permute", lambda x: layers.Permute((3, 1, 2))(x), floats(None, None, 3))
add("repeat_vector", lambda x: layers.RepeatVector(4)(x), ROW)

# Recurrent

for _name in ("SimpleRNN", "LSTM", "GRU"):
    _rnn = getattr(layers, _name)
    _short = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}[_name]
    add(f"{_short}", lambda x, r=_rnn: r(5)(x), STEPS)
    add(f"{_short}_sequences_free_length", lambda x, r=_rnn: r(5, return_sequences=True)(x), FREE_STEPS)
    add(f"{_short}_backwards", lambda x, r=_rnn: r(5, return_sequences=True, go_backwards=True)(x), FREE_STEPS)
    add(f"{_short}_states", lambda x, r=_rnn: r(5, return_sequences=True, return_state=True)(x), STEPS)
    add(
        f"{_short}_right_padded",
        lambda x, r=_rnn: r(5)(layers.Embedding(9, 4, mask_zero=True)(x)),
        tokens(None, "right"),
    )
    add(
        f"{_short}_gaps_sequences",
        lambda x, m, r=_rnn: r(5, return_sequences=True, return_state=True)(x, mask=m),
        FREE_STEPS,
        mask(None, "gaps"),
    )
    add(
        f"{_short}_gaps_backwards",
        lambda x, m, r=_rnn: r(5, return_sequences=True, go_backwards=True)(x, mask=m),
        FREE_STEPS,
        mask(None, "gaps"),
    )
    add(f"{_short}_bidirectional", lambda x, r=_rnn: layers.Bidirectional(r(5, return_sequences=True))(x), FREE_STEPS)
    add(
        f"{_short}_bidirectional_gaps",
        lambda x, m, r=_rnn: layers.Bidirectional(r(5, return_sequences=True))(x, mask=m),
        FREE_STEPS,
        mask(None, "gaps"),
    )


def _start(rnn: Any, states: int, **options: Any) -> Callable[..., Any]:
    return lambda x, h, *more: rnn(5, **options)(
        x, initial_state=[h, *more[: states - 1]], mask=(more[states - 1 :] or [None])[0]
    )


add("rnn_relu_without_bias", lambda x: layers.SimpleRNN(5, "relu", use_bias=False)(x), STEPS)
add("rnn_stack", lambda x: layers.SimpleRNN(5)(layers.SimpleRNN(4, return_sequences=True)(x)), STEPS)
add("lstm_left_padded", lambda x: layers.LSTM(5)(layers.Embedding(9, 4, mask_zero=True)(x)), tokens(None, "left"))
add(
    "lstm_empty_rows",
    lambda x, m: layers.LSTM(5, return_sequences=True, return_state=True)(x, mask=m),
    FREE_STEPS,
    mask(None, "empty"),
)
add(
    "lstm_masking_layer", lambda x: layers.LSTM(5)(layers.Masking(0.0)(x * ops.cast(x[:, :, :1] > 0, "float32"))), STEPS
)
add(
    "lstm_zero_output_for_mask",
    lambda x, m: layers.LSTM(5, return_sequences=True, zero_output_for_mask=True)(x, mask=m),
    FREE_STEPS,
    mask(None, "gaps"),
)
add("lstm_start", _start(layers.LSTM, 2), STEPS, floats(5), floats(5))
add(
    "lstm_start_and_gaps",
    _start(layers.LSTM, 2, return_sequences=True),
    FREE_STEPS,
    floats(5),
    floats(5),
    mask(None, "gaps"),
)
add(
    "lstm_hard_sigmoid", lambda x: layers.LSTM(5, recurrent_activation="hard_sigmoid", unit_forget_bias=False)(x), STEPS
)
add(
    "lstm_other_activations", lambda x: layers.LSTM(5, activation="gelu", recurrent_activation="softmax")(x), FREE_STEPS
)
add(
    "lstm_other_activations_gaps",
    lambda x, m: layers.LSTM(5, activation="swish", return_sequences=True)(x, mask=m),
    FREE_STEPS,
    mask(None, "gaps"),
)
add("lstm_bidirectional_last", lambda x: layers.Bidirectional(layers.LSTM(5), merge_mode="sum")(x), FREE_STEPS)
add(
    "lstm_bidirectional_states",
    lambda x: layers.Bidirectional(layers.LSTM(5, return_sequences=True, return_state=True), merge_mode="ave")(x),
    STEPS,
)
add("lstm_bidirectional_separate", lambda x: layers.Bidirectional(layers.LSTM(5), merge_mode=None)(x), STEPS)
add(
    "lstm_bidirectional_padded",
    lambda x: layers.Bidirectional(layers.LSTM(5))(layers.Embedding(9, 4, mask_zero=True)(x)),
    tokens(None, "right"),
)
add(
    "lstm_stack_padded",
    lambda x: layers.LSTM(5)(layers.LSTM(6, return_sequences=True)(layers.Embedding(9, 4, mask_zero=True)(x))),
    tokens(None, "right"),
)
add(
    "bidirectional_of_two_kinds",
    lambda x, m: layers.Bidirectional(
        layers.LSTM(5, return_sequences=True),
        backward_layer=layers.GRU(3, return_sequences=True, go_backwards=True),
    )(x, mask=m),
    FREE_STEPS,
    mask(None, "gaps"),
)
add("gru_reset_before", lambda x: layers.GRU(5, reset_after=False)(x), STEPS)
add("gru_without_bias", lambda x: layers.GRU(5, use_bias=False, return_sequences=True)(x), FREE_STEPS)
add("gru_start", _start(layers.GRU, 1, return_sequences=True), STEPS, floats(5))
add("gru_left_padded", lambda x: layers.GRU(5)(layers.Embedding(9, 4, mask_zero=True)(x)), tokens(None, "left"))
add(
    "cells_stacked",
    lambda x: layers.RNN(layers.StackedRNNCells([layers.LSTMCell(5), layers.GRUCell(4)]), return_sequences=True)(x),
    FREE_STEPS,
)
add("conv_lstm1d", lambda x: layers.ConvLSTM1D(3, 3, padding="same", return_sequences=True)(x), floats(None, 6, 2))
add("conv_lstm2d", lambda x: layers.ConvLSTM2D(3, 2, strides=2)(x), floats(4, 6, 5, 2))
add("time_distributed_dense", lambda x: layers.TimeDistributed(layers.Dense(5))(x), FREE_STEPS)
add(
    "time_distributed_conv",
    lambda x: layers.TimeDistributed(layers.Conv2D(3, 3, activation="relu"))(x),
    floats(None, 6, 5, 2),
)
add(
    "time_distributed_model",
    lambda x: layers.TimeDistributed(keras.Sequential([keras.Input((6, 4)), layers.Flatten(), layers.Dense(3)]))(x),
    floats(5, 6, 4),
)


@keras.saving.register_keras_serializable("kinds")
class Leaky(layers.Layer):
    """A recurrent cell of one's own: a state that forgets at a learned rate."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.dense = layers.Dense(units)

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.dense.build(shape)
        self.rate = self.add_weight((self.units,), "zeros", name="rate")

    def call(self, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        keep = ops.sigmoid(self.rate)
        state = keep * states[0] + (1 - keep) * ops.tanh(self.dense(x))
        return ops.square(state), [state]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


add("cell_of_ones_own", lambda x: layers.RNN(Leaky(5), return_sequences=True)(x), FREE_STEPS)
add(
    "cell_of_ones_own_gaps",
    lambda x, m: layers.RNN(Leaky(5), return_state=True)(x, mask=m),
    FREE_STEPS,
    mask(None, "gaps"),
)

add("lstm_of_whole_numbers", lambda x: layers.LSTM(5)(x), integers(None, 4))

# Attention

LONG = floats(None, 6)
LONGER = floats(None, 6, longer=3)
add("attention", lambda q, v: layers.Attention()([q, v]), LONG, LONGER)
add("attention_scaled_concat", lambda q, v: layers.Attention(use_scale=True, score_mode="concat")([q, v]), LONG, LONGER)
add(
    "attention_masked",
    lambda q, v, m, n: layers.Attention()([q, v], mask=[m, n]),
    LONG,
    LONG,
    mask(None, "right"),
    mask(None, "gaps"),
)
add("attention_causal", lambda q: layers.Attention()([q, q], use_causal_mask=True), LONG)
add("attention_scores", lambda q, v: layers.Attention()([q, v], return_attention_scores=True), LONG, LONGER)
add(
    "attention_of_masked_tokens",
    lambda x, y: layers.Attention()([layers.Embedding(9, 6, mask_zero=True)(one) for one in (x, y)]),
    tokens(None, "right"),
    tokens(None, "gaps"),
)
add("additive_attention", lambda q, v: layers.AdditiveAttention()([q, v]), LONG, LONGER)
add(
    "additive_attention_masked",
    lambda q, v, n: layers.AdditiveAttention()([q, v], mask=[None, n]),
    LONG,
    LONG,
    mask(None, "right"),
)
add("multi_head", lambda x: layers.MultiHeadAttention(2, 3)(x, x), floats(7, 6))
add("multi_head_free_length", lambda x: layers.MultiHeadAttention(2, 3)(x, x), LONG)
add("multi_head_cross", lambda q, v: layers.MultiHeadAttention(2, 3)(q, v), LONG, LONGER)
add("multi_head_causal", lambda x: layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True), LONG)
add(
    "multi_head_padded",
    lambda x, m: layers.MultiHeadAttention(2, 3)(x, x, attention_mask=m[:, None, :]),
    LONG,
    mask(None, "right"),
)
add(
    "multi_head_causal_padded",
    lambda x, m: layers.MultiHeadAttention(2, 3)(x, x, key_mask=m, use_causal_mask=True),
    LONG,
    mask(None, "right"),
)
add(
    "multi_head_values",
    lambda q, v: layers.MultiHeadAttention(2, 3, value_dim=5, output_shape=7, use_bias=False)(q, v),
    LONG,
    LONGER,
)
add("multi_head_scores", lambda x: layers.MultiHeadAttention(2, 3)(x, x, return_attention_scores=True), LONG)
add("multi_head_over_pixels", lambda x: layers.MultiHeadAttention(2, 3, attention_axes=(1, 2))(x, x), floats(4, 3, 6))
add("multi_head_of_masked_tokens", lambda x: _encode(layers.Embedding(9, 6, mask_zero=True)(x)), tokens(None, "right"))
add("grouped_query", lambda x: layers.GroupQueryAttention(3, 4, 2)(x, x), LONG)
add("grouped_query_causal", lambda q, v: layers.GroupQueryAttention(3, 4, 2)(q, v, use_causal_mask=True), LONG, LONG)
add(
    "dot_product_attention",
    lambda q, k: ops.dot_product_attention(q, k, k),
    floats(None, 2, 3),
    floats(None, 2, 3, longer=2),
)
add(
    "dot_product_attention_biased_and_masked",
    lambda q, b, m: ops.dot_product_attention(q, q, q, bias=b, mask=m, is_causal=True),
    floats(5, 2, 3),
    floats(2, 5, 5),
    Given((1, 5, 5), "bool", lambda random, shape: random.random(shape) < 0.6),
)
add(
    "dot_product_attention_causal",
    lambda q: ops.dot_product_attention(q, q, q, is_causal=True, scale=0.7),
    floats(None, 2, 3),
)


def _encode(x: Any, name: str = "encoder") -> Any:
    """Transformer encoder block, Vaswani et al. 2017, normalised first."""
    y = layers.LayerNormalization(name=f"{name}_norm0")(x)
    x = x + layers.MultiHeadAttention(2, 3, name=f"{name}_attention")(y, y)
    y = layers.LayerNormalization(name=f"{name}_norm1")(x)
    return x + layers.Dense(6, name=f"{name}_shrink")(layers.Dense(12, "gelu", name=f"{name}_expand")(y))


@keras.saving.register_keras_serializable("kinds")
class Positions(layers.Layer):
    """Adds a learned vector for each position, of as many as there are."""

    def __init__(self, longest: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.longest = longest
        self.supports_masking = True

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.table = self.add_weight((self.longest, shape[-1]), "random_normal", name="table")

    def call(self, x: Any) -> Any:
        length = ops.shape(x)[1]
        return x + self.table[None, :length]

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "longest": self.longest}


def _translate(source: Any, target: Any) -> Any:
    memory = _encode(Positions(64)(layers.Embedding(9, 6, mask_zero=True)(source)), "encoder")
    y = Positions(64)(layers.Embedding(9, 6, mask_zero=True)(target))
    y = layers.LayerNormalization()(y + layers.MultiHeadAttention(2, 3)(y, y, use_causal_mask=True))
    y = layers.LayerNormalization()(y + layers.MultiHeadAttention(2, 3)(y, memory))
    return layers.Dense(9)(y)


def _classify(words: Any, kinds: Any, m: Any) -> Any:
    x = layers.Embedding(9, 6)(words) + layers.Embedding(2, 6)(kinds)
    x = layers.LayerNormalization(epsilon=1e-12)(Positions(64)(x))
    for block in range(2):
        y = layers.MultiHeadAttention(2, 3, name=f"block{block}_attention")(x, x, attention_mask=m[:, None, :])
        x = layers.LayerNormalization(epsilon=1e-12)(x + y)
        y = layers.Dense(6)(layers.Activation(lambda z: ops.gelu(z, approximate=False))(layers.Dense(12)(x)))
        x = layers.LayerNormalization(epsilon=1e-12)(x + y)
    return layers.Dense(3)(layers.Dense(6, "tanh")(x[:, 0]))


def _look(x: Any) -> Any:
    x = layers.Conv2D(6, 4, 4, name="patches")(x)
    x = Positions(64)(layers.Reshape((-1, 6))(x))
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(_encode(x)))


add("transformer_block", lambda x: _encode(x), LONG)
add("transformer_translation", _translate, tokens(None, "right"), tokens(None, "right"))
add("bert", _classify, integers(None), integers(None, below=2), mask(None, "right"))
add("vision_transformer", _look, floats(12, 16, 3))

# Preprocessing


@keras.saving.register_keras_serializable("kinds")
class AsLargeAs(layers.Layer):
    """Resizes one feature map to the size of another, as feature pyramids do."""

    def call(self, small: Any, large: Any) -> Any:
        return ops.image.resize(small, ops.shape(large)[1:3])

    def compute_output_shape(
        self, small_shape: tuple[int | None, ...], large_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (*large_shape[:3], small_shape[-1])


def _adapted(axis: Any) -> Callable[..., Any]:
    def body(x: Any) -> Any:
        layer = layers.Normalization(axis=axis)
        layer.adapt(np.random.default_rng(3).normal(3, 2, (16, *x.shape[1:])).astype("float32"))
        return layer(x)

    return body


add("normalization", _adapted(-1), ROW, trained=False)
add("normalization_of_images", _adapted(-1), IMAGE, trained=False)
add("normalization_as_a_whole", _adapted(None), IMAGE, trained=False)
add("normalization_given", lambda x: layers.Normalization(mean=[1.0] * 4, variance=[2.0] * 4, invert=True)(x), STEPS)
add(
    "rescaling",
    lambda x: layers.Rescaling([1 / 127, 1 / 100, 0.5], offset=-1)(x),
    floats(None, None, 3, low=0, high=255),
)
add("rescaling_bytes", lambda x: layers.Rescaling(1 / 255)(x), integers(6, 5, 3, below=256, dtype="uint8"))
for _name in ("nearest", "bilinear", "bicubic"):
    add(f"resizing_{_name}_up", lambda x, m=_name: layers.Resizing(224, 97, interpolation=m)(x), floats(83, 31, 2))
    add(f"resizing_{_name}_down", lambda x, m=_name: layers.Resizing(7, 31, interpolation=m)(x), floats(83, 61, 2))
    add(
        f"resizing_{_name}_free_size",
        lambda x, m=_name: layers.Resizing(13, 9, interpolation=m)(x),
        floats(None, None, 2),
    )
    add(
        f"image_resize_{_name}_antialias",
        lambda x, m=_name: ops.image.resize(x, (7, 40), interpolation=m, antialias=True),
        floats(30, 21, 2),
    )
add("resizing_nearest_up_from_free_size", lambda x: layers.Resizing(97, 83, "nearest")(x), floats(None, None, 2))
add("resizing_bytes", lambda x: layers.Resizing(13, 9, "bicubic")(x), integers(30, 21, 2, below=256, dtype="uint8"))
add(
    "image_resize_to_a_size_at_run_time",
    lambda x, y: AsLargeAs()(x, y),
    floats(None, None, 2),
    floats(None, None, 1, longer=4),
)
add(
    "image_resize_bilinear_antialias_free_size",
    lambda x: ops.image.resize(x, (4, 20), antialias=True),
    floats(None, None, 2),
)
add("image_resize_lanczos3", lambda x: ops.image.resize(x, (7, 40), interpolation="lanczos3"), floats(30, 21, 2))
add("resizing_crop_to_aspect_ratio", lambda x: layers.Resizing(12, 10, crop_to_aspect_ratio=True)(x), floats(31, 17, 2))
add(
    "resizing_pad_to_aspect_ratio",
    lambda x: layers.Resizing(12, 10, pad_to_aspect_ratio=True, fill_value=3.0)(x),
    floats(31, 17, 2),
)
add("center_crop", lambda x: layers.CenterCrop(6, 5)(x), IMAGE)
add("center_crop_enlarging", lambda x: layers.CenterCrop(16, 20)(x), IMAGE)
add("center_crop_free_size", lambda x: layers.CenterCrop(9, 7)(x), floats(None, None, 3))
add(
    "augmentation_that_rests",
    lambda x: layers.RandomCrop(6, 7)(layers.RandomZoom(0.3)(layers.RandomHue(0.3)(layers.RandomFlip()(x)))),
    floats(11, 9, 3, low=0, high=255),
)
add("discretization", lambda x: layers.Discretization([-0.5, 0.0, 0.7])(x), floats(None))
add("discretization_one_hot", lambda x: layers.Discretization([-0.5, 0.0, 0.7], output_mode="one_hot")(x), floats(1))
add("category_one_hot", lambda x: layers.CategoryEncoding(9, output_mode="one_hot")(x), integers(1))
add("category_multi_hot", lambda x: layers.CategoryEncoding(9, output_mode="multi_hot")(x), integers(5))
add("category_count", lambda x: layers.CategoryEncoding(9, output_mode="count")(x), integers(5))
add(
    "category_count_weights",
    lambda x, w: layers.CategoryEncoding(9, output_mode="count")(x, count_weights=w),
    integers(5),
    floats(5),
)
add("rgb_to_grayscale", lambda x: ops.image.rgb_to_grayscale(x), floats(None, None, 3))


def _warped(**options: Any) -> Callable[..., Any]:
    """Moves, turns and stretches each image a little, by its own numbers."""
    little = np.array([0.1, 0.1, 1, 0.1, 0.1, 1, 0, 0], "float32")
    same = np.array([1, 0, 0, 0, 1, 0, 0, 0], "float32")
    return lambda x, t: ops.image.affine_transform(x, t * little + same, **options)


add("affine_transform", _warped(), IMAGE, floats(8))
add("affine_transform_nearest_edge", _warped(interpolation="nearest", fill_mode="nearest"), IMAGE, floats(8))
add(
    "affine_transform_alike_for_all",
    lambda x: ops.image.affine_transform(x, np.array([1, 0.1, 0.5, 0, 1, 0.2, 0, 0], "float32")),
    IMAGE,
)
add("extract_patches", lambda x: ops.image.extract_patches(x, (3, 2), strides=(2, 2), padding="same"), IMAGE)

# Operations

add("slice_steps", lambda x: x[:, 1:-2:2], FREE_STEPS)
add("slice_backwards", lambda x: x[:, ::-1, 1], FREE_STEPS)
add("slice_ellipsis_and_new_axis", lambda x: x[..., None, 2:], FREE_STEPS)
add("slice_operation", lambda x: ops.slice(x, (0, 1, 2), (1, 3, 2)), floats(6, 4))
add("softmax_of_channels", lambda x: ops.log_softmax(layers.Conv2D(4, 3)(x), axis=-1), IMAGE)
add("slice_last", lambda x: x[:, -1], FREE_STEPS)
add(
    "slice_update",
    lambda x, y: ops.slice_update(x, (0, 1, 2), y * ops.ones_like(x[:, :2, :2])),
    floats(5, 4),
    floats(1, 1),
)
add("concatenate", lambda x, y: ops.concatenate([x, y, x], axis=-2), *PAIR)
add("stack", lambda x, y: ops.stack([x, y], axis=1), *PAIR)
add("unstack", lambda x: ops.unstack(x, axis=2)[1], FREE_STEPS)
add("split", lambda x: ops.split(x, [1, 3], axis=-1), FREE_STEPS)
add("split_equally", lambda x: ops.split(x, 3, axis=1)[1], STEPS)
add("take", lambda x: ops.take(x, [2, 0, -1], axis=1), STEPS)
add("take_rows", lambda x, i: ops.take(layers.Dense(3)(x)[0], i, axis=0), FREE_STEPS, integers(4, below=4))
add("take_along_axis", lambda x, i: ops.take_along_axis(x, i, axis=1), floats(5, 4), integers(3, 4, below=5))
add("where", lambda x, y: ops.where(x > 0.3, x, y), *PAIR)
add("where_scalar", lambda x: ops.where(ops.logical_and(x > -1, ops.logical_not(x > 0.5)), x, -2.0), FREE_STEPS)
add(
    "comparisons",
    lambda x, y: (
        ops.cast(x <= y, "float32")
        + ops.cast(ops.not_equal(x, y), "float32") * 2
        + ops.cast(ops.logical_or(x > 1, y < 0), "float32")
    ),
    *PAIR,
)
add("one_hot", lambda x: ops.one_hot(x, 9), integers(None))
add("one_hot_axis_1", lambda x: ops.one_hot(x, 9, axis=1, dtype="int32"), integers(None))
add("multi_hot", lambda x: ops.multi_hot(x, 9), integers(5))
add("argmax", lambda x: ops.argmax(x, axis=-1), FREE_STEPS)
add("argmin", lambda x: ops.argmin(x, axis=1), FREE_STEPS)
add("argsort", lambda x: ops.argsort(x, axis=1), FREE_STEPS)
add("sort", lambda x: ops.sort(x, axis=1), FREE_STEPS)
add("top_k", lambda x: ops.top_k(x, 2), FREE_STEPS)
add("in_top_k", lambda t, x: ops.in_top_k(t[:, 0], x, 2), integers(1, below=6), ROW)
add("cumsum", lambda x: ops.cumsum(x, axis=1), FREE_STEPS)
add("cumprod", lambda x: ops.cumprod(x, axis=1), STEPS)
add("einsum", lambda x, y: ops.einsum("bij,bkj->bik", x, y), floats(None, 4), floats(None, 4, longer=2))
add("einsum_three", lambda x, y: ops.einsum("bij,bkj,bk->bi", x, y, y[:, :, 0]), floats(None, 4), floats(None, 4))
add("matmul", lambda x, y: ops.matmul(x, ops.transpose(y, (0, 2, 1))), floats(None, 4), floats(None, 4, longer=2))
add("tensordot", lambda x, y: ops.tensordot(x, ops.reshape(y[0], (4, 3)), axes=[[2], [0]]), FREE_STEPS, floats(12))
add("outer_and_inner", lambda x, y: ops.einsum("bi,bj->bij", x, y) + ops.sum(x * y, axis=1)[:, None, None], ROW, ROW)
add("logsumexp", lambda x: ops.logsumexp(x * 30, axis=1, keepdims=True), FREE_STEPS)
add("erf", lambda x: ops.erf(x), ROW)
add(
    "moments",
    lambda x: ops.concatenate(
        [ops.mean(x, 1), ops.var(x, 1), ops.std(x, 1), ops.max(x, 1), ops.min(x, 1), ops.prod(x, 1)], 1
    ),
    FREE_STEPS,
)
add(
    "moments_of_two_axes",
    lambda x: ops.concatenate([*ops.moments(x, axes=[1, 2], keepdims=True), ops.sum(x, (1, 2), keepdims=True)], -1),
    floats(None, None, 3),
)
add("any_and_all", lambda x: ops.stack([ops.any(x > 1, axis=1), ops.all(x > -1, axis=1)], axis=1), FREE_STEPS)
add("norm", lambda x: ops.norm(x, axis=-1, keepdims=True), FREE_STEPS)
add("norm_of_order_1", lambda x: ops.norm(x, ord=1, axis=-1), FREE_STEPS)
add("normalize", lambda x: ops.normalize(x, axis=1, order=2), FREE_STEPS)
add("clip", lambda x: ops.clip(x, -0.5, 0.7), ROW)
add("pad_constant", lambda x: ops.pad(x, [[0, 0], [1, 2], [0, 1]], constant_values=3.0), FREE_STEPS)
add("pad_reflect", lambda x: ops.pad(x, [[0, 0], [2, 1], [0, 0]], mode="reflect"), FREE_STEPS)
add("pad_symmetric", lambda x: ops.pad(x, [[0, 0], [2, 1], [1, 0]], mode="symmetric"), FREE_STEPS)
add("roll", lambda x: ops.roll(x, 2, axis=1), FREE_STEPS)
add("flip", lambda x: ops.flip(x, axis=1), FREE_STEPS)
add("tile", lambda x: ops.tile(x, [1, 2, 3]), FREE_STEPS)
add("repeat", lambda x: ops.repeat(x, 3, axis=1), FREE_STEPS)
add(
    "broadcast",
    lambda x: ops.broadcast_to(x[:, None], (2, 3, 6))[:, :2] if x.shape[0] else x[:, None] + ops.zeros((1, 3, 6)),
    ROW,
)
add("triangles", lambda x: ops.tril(x) + 2 * ops.triu(x, k=1), floats(5, 5))
add("diagonal", lambda x: ops.diagonal(x, axis1=1, axis2=2), floats(5, 5))
add("swap_and_move_axes", lambda x: ops.moveaxis(ops.swapaxes(x, 1, 2), -1, 1) + 1, floats(None, 3, 4))
add("squeeze_and_expand", lambda x: ops.expand_dims(ops.squeeze(x, 2), 1), floats(None, 1, 4))
add(
    "arithmetic",
    lambda x, y: (x - 2 * y) / (ops.abs(y) + 0.5) + ops.square(x) ** 1.5 - ops.sqrt(ops.abs(x)) * -y,
    ROW,
    ROW,
)
add("rounding", lambda x: ops.floor(3 * x) + 10 * ops.ceil(3 * x) + 100 * ops.round(3 * x) + 1000 * ops.sign(x), ROW)
add(
    "division",
    lambda x, y: ops.mod(x, y + 1) + 10 * ops.floor_divide(x, y + 1),
    integers(6, below=30),
    integers(6, below=5),
)
add(
    "trigonometry",
    lambda x: ops.sin(x) + ops.cos(2 * x) + ops.arctan(x) + ops.sinh(x / 2) + ops.tan(x / 3) + ops.arctan2(x, 1.5 - x),
    ROW,
)
add(
    "logarithms",
    lambda x: (
        ops.log(x) + ops.log1p(x) + ops.expm1(x / 3) + ops.log2(x) + ops.log10(x) + ops.rsqrt(x) + ops.reciprocal(x)
    ),
    floats(6, low=0.1, high=2),
)
add("logaddexp", lambda x, y: ops.logaddexp(x, y), ROW, ROW)
add(
    "narrow_types",
    lambda x, y: [
        ops.cumsum(x, axis=1), ops.sort(y, axis=1), ops.argsort(x, axis=1), ops.abs(y), ops.tril(x[:, None] * y[..., None]),
        ops.prod(x, axis=1), ops.max(x, axis=1), ops.square(x), ops.relu6(x), x**2,
    ],
    integers(6, dtype="uint8"),
    integers(6, dtype="uint8"),
)  # fmt: skip
add("saturated", lambda x: ops.saturate_cast(x * 200, "uint8"), ROW)
add("scalar_of_numpy", lambda x: x * np.float64(2.5) + np.int64(3), ROW)
add("cast", lambda x: ops.cast(ops.cast(x * 3, "int32"), "float32") + ops.cast(x > 0, "float32"), ROW)
add("cast_through_half", lambda x: ops.cast(ops.cast(x * 2, "float16"), "float32"), ROW, **HALF)
add("nan_to_num", lambda x: ops.nan_to_num(ops.log(x), nan=-3.0, neginf=-9.0, posinf=5.0), floats(6, low=-1, high=1))
add("constants", lambda x: x + ops.arange(6, dtype="float32") * ops.eye(6)[2] - ops.linspace(0.0, 1.0, 6), ROW)
add("likes", lambda x: ops.concatenate([ops.zeros_like(x), ops.ones_like(x), ops.full_like(x, 2.5)], -1), FREE_STEPS)
add(
    "searchsorted",
    lambda x: ops.searchsorted(ops.convert_to_tensor([-1.0, 0.0, 1.0]), ops.reshape(x, (-1,))),
    floats(1),
)
add("bincount", lambda x: ops.bincount(x, minlength=9), integers(5))
add(
    "distances",
    lambda x, y: ops.sqrt(ops.sum(ops.square(x[:, :, None] - y[:, None]), -1) + 1e-3),
    floats(None, 4),
    floats(None, 4, longer=2),
)
add(
    "convolution_operation",
    lambda x: ops.conv(x, np.random.default_rng(5).normal(size=(3, 3, 4, 5)).astype("float32"), 2, "same"),
    IMAGE,
)
add("pooling_operation", lambda x: ops.average_pool(x, 3, 2, "same") + ops.max_pool(x, 3, 2, "same"), IMAGE)
add("spectrum", lambda x: ops.stack(ops.fft((x, ops.zeros_like(x))), axis=-1), floats(4, 16))
add("spectrum_of_windows", lambda x: ops.stack(ops.stft(x, 16, 8, 16), axis=-1), floats(64))
add(
    "spectrogram",
    lambda x: layers.STFTSpectrogram(mode="log", frame_length=16, frame_step=8, fft_length=32)(x),
    floats(80, 1),
)
add(
    "mel_spectrogram",
    lambda x: layers.MelSpectrogram(num_mel_bins=8, fft_length=32, sequence_stride=8, sampling_rate=800)(x),
    floats(200),
)


@keras.saving.register_keras_serializable("kinds")
class Widen(layers.Layer):
    """A transposed convolution by the operation, which Keras can call inside layers only."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.kernel = self.add_weight((3, 3, 5, shape[-1]), "random_normal", name="kernel")

    def call(self, x: Any) -> Any:
        return ops.conv_transpose(x, self.kernel, 2, "same", data_format="channels_last")


add("transposed_convolution_operation", lambda x: Widen()(x), IMAGE)
add(
    "separable_convolution_operation",
    lambda x: ops.separable_conv(
        x,
        np.ones((3, 3, 4, 2), "float32"),
        np.random.default_rng(5).normal(size=(1, 1, 8, 5)).astype("float32"),
        1,
        "same",
    ),
    IMAGE,
)
add("differences", lambda x: ops.diff(x, axis=1), FREE_STEPS)
add(
    "quarter_turns",
    lambda x: [ops.rot90(x, k=turns, axes=(1, 2)) for turns in (1, 3)],
    IMAGE,
)
add("select_and_close", lambda x: ops.select([x > 1, ops.isclose(x, x + 1e-9)], [x, -x], 3.0), ROW)
add("array_split", lambda x: ops.array_split(x, 2, axis=1), STEPS)
add(
    "pad_and_crop_images",
    lambda x: ops.image.crop_images(ops.image.pad_images(x, 1, 2, target_height=15, target_width=14), 1, 0, 3, 4),
    IMAGE,
)
add("median", lambda x: ops.median(x, axis=1), STEPS)
add("map_over_rows", lambda x: ops.map(lambda row: ops.tanh(row) - ops.max(row), x), STEPS)
add(
    "masks_of_two_embeddings",
    lambda x, y: layers.LSTM(3)(
        layers.Concatenate()([layers.Embedding(9, 3, mask_zero=True)(x), layers.Embedding(9, 2, mask_zero=True)(y)])
    ),
    tokens(None, "right"),
    tokens(None, "gaps"),
)
add(
    "masks_through_nested_layers",
    lambda x: keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.TimeDistributed(layers.Dense(5)),
            layers.Bidirectional(layers.GRU(3, return_sequences=True)),
            layers.LSTM(3),
        ]
    )(x),
    tokens(None, "right"),
)
add(
    "multi_head_gate_and_dropout",
    lambda x: layers.MultiHeadAttention(2, 3, dropout=0.3, use_gate=True)(x, x, use_causal_mask=True),
    LONG,
)
WEIGHTS = np.random.default_rng(5).normal(size=(6, 4)).astype("float32")
add("dot_and_inner", lambda x: [ops.dot(x, WEIGHTS), ops.inner(x, WEIGHTS.T), ops.dot(x, 2.0)], ROW)
add(
    "outer_and_vdot",
    lambda x: [ops.expand_dims(made, 0) for made in (ops.outer(x[0], x[0]), ops.vdot(x[0], x[0]))],
    ROW,
)
add("einsum_dense_of_any_rank", lambda x: layers.EinsumDense("...c,cd->...d", (9, 5))(x), STEPS)
add("einsum_dense_of_large_letters", lambda x: layers.EinsumDense("aBC,CD->aDB", (5, 9))(x), STEPS)
add("tensordot_of_two_axes", lambda x: ops.tensordot(x, np.ones((4, 3, 5), "float32"), axes=2), floats(2, 4, 3))
add("cross", lambda x, y: ops.cross(x, y), floats(5, 3), floats(5, 3))
add("determinant_and_inverse", lambda x: [ops.det(x + 6 * ops.eye(4)), ops.inv(x + 6 * ops.eye(4))], floats(4, 4))
add("solve_for_a_vector", lambda x, y: ops.solve(x + 6 * ops.eye(4), y), floats(4, 4), floats(4))
add("spectrum_of_real_rows", lambda x: ops.stack(ops.rfft(x), axis=-1), floats(16))
add("spectrum_of_complex_rows", lambda x, y: ops.stack(ops.fft((x, y)), axis=-1), floats(16), floats(16))
add("sequences", lambda x: ops.extract_sequences(x, 4, 3), floats(20))
add(
    "stacking",
    lambda x, y: [
        ops.hstack([x, y]), ops.append(x, y, axis=-1), ops.expand_dims(ops.diag(x[0]), 0),
        *(ops.expand_dims(one, 0) for one in ops.meshgrid(x[0], y[0])), ops.diagonal(x[:, None] * y[..., None], 1, 1, 2),
    ],
    ROW,
    ROW,
)  # fmt: skip
add("trace", lambda x: ops.trace(x, axis1=1, axis2=2), floats(5, 5))
add("repeat_unevenly", lambda x: ops.repeat(x, [1, 0, 2, 3], axis=2), FREE_STEPS)
add("take_along_one_line", lambda x, i: ops.take_along_axis(x, i, axis=1), floats(None, 4), integers(3, 1, below=5))
add(
    "divisions",
    lambda x, y: [
        ops.fmod(x, y), ops.mod(x, y), ops.floor_divide(x, y), ops.divide_no_nan(x, ops.relu(y)), ops.hypot(x, y),
        ops.logical_xor(x > 0, y > 0), ops.clip(x, -9.0, 0.5), ops.round(x, 1), ops.cbrt(x), ops.trunc(3 * x),
    ],
    ROW,
    ROW,
)  # fmt: skip
add(
    "summaries",
    lambda x: [
        ops.average(x, axis=1), ops.average(x, axis=1, weights=ops.abs(x)), ops.ptp(x, axis=1),
        ops.count_nonzero(x > 0, axis=1), ops.logsumexp(x, axis=1), ops.norm(x, ord=np.inf, axis=-1),
        ops.norm(x, ord=-np.inf, axis=-1), ops.norm(x, ord=3, axis=-1), ops.normalize(x, axis=1, order=1),
        ops.max(x, axis=1, initial=0.5), ops.digitize(x, np.array([-1.0, 0.0, 1.0])),
    ],
    FREE_STEPS,
)  # fmt: skip
add(
    "normalizations",
    lambda x: [
        ops.batch_normalization(x, WEIGHTS[0], np.abs(WEIGHTS[1]), axis=-1, offset=WEIGHTS[2], scale=WEIGHTS[3]),
        ops.layer_normalization(x, WEIGHTS[0], WEIGHTS[1], axis=-1),
        ops.rms_normalization(x, axis=(1, 2)),
        ops.rms_normalization(x, WEIGHTS[0], axis=-1),
    ],
    STEPS,
)
add("linear_solve", lambda x, y: ops.solve(x + 6 * ops.eye(4), y), floats(4, 4), floats(4, 2))


@keras.saving.register_keras_serializable("kinds")
class Drawn(layers.Layer):
    """Draws from the normal distribution of a given mean and spread, as a variational autoencoder does in use."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, mean: Any, spread: Any) -> Any:
        return mean + spread * keras.random.normal(ops.shape(mean), seed=self.seed)

    def compute_output_shape(
        self, mean_shape: tuple[int | None, ...], spread_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return mean_shape


add("random_numbers", lambda x: Drawn()(x, 0 * x), ROW)


def _scatter(x: Any, i: Any) -> Any:
    """Sums rows of x into 7 places, several of them more than once."""
    return ops.expand_dims(ops.scatter(i[0][:, None], x[0], (7, 4)), 0)


def _neighbours(x: Any, edges: Any) -> Any:
    """One graph convolution: each node gets the mean of its neighbours, over one graph given as edges."""
    nodes, sources, targets = x[0], edges[0, :, 0], edges[0, :, 1]
    count = 6
    messages = ops.take(layers.Dense(5)(nodes), sources, axis=0)
    degree = ops.segment_sum(ops.ones_like(messages[:, :1]), targets, num_segments=count)
    return ops.expand_dims(ops.segment_sum(messages, targets, num_segments=count) / ops.maximum(degree, 1.0), 0)


add("scatter", _scatter, floats(9, 4), integers(9, below=7))
add("scatter_update", lambda x, y: ops.scatter_update(x, [[0, 1, 2], [0, 3, 0]], y[0]), floats(5, 4), floats(2))
add("segment_sum", _neighbours, floats(6, 4), integers(None, 2, below=6))
add(
    "segment_max",
    lambda x, s: ops.expand_dims(ops.maximum(ops.segment_max(x[0], s[0], num_segments=3), -9.0), 0),
    FREE_STEPS,
    Given((None,), "int32", lambda random, shape: np.arange(shape[1]) % 3 + np.zeros(shape)),
)

# Loops and branches


@keras.saving.register_keras_serializable("kinds")
class Flow(layers.Layer):
    """x carried through dx/dt = tanh(W x + b) from 0 to 1 in equal Runge-Kutta steps of order 4."""

    def __init__(self, steps: int, loop: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps, self.loop = steps, loop

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.field = layers.Dense(shape[-1], "tanh")
        self.field.build(shape)

    def step(self, x: Any) -> Any:
        h = 1 / self.steps
        a = self.field(x)
        b = self.field(x + h / 2 * a)
        c = self.field(x + h / 2 * b)
        d = self.field(x + h * c)
        return x + h / 6 * (a + 2 * b + 2 * c + d)

    def call(self, x: Any) -> Any:
        if self.loop == "fori":
            return ops.fori_loop(0, self.steps, lambda _, y: self.step(y), x)
        if self.loop == "while":
            return ops.while_loop(lambda i, y: i < self.steps, lambda i, y: (i + 1, self.step(y)), (0, x))[1]
        last, _ = ops.scan(lambda y, _: (self.step(y), y), x, length=self.steps)
        return last

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "steps": self.steps, "loop": self.loop}


@keras.saving.register_keras_serializable("kinds")
class UntilSmall(layers.Layer):
    """Halves each row until its largest value is below 1: how often depends on the values."""

    def call(self, x: Any) -> Any:
        def large(y: Any) -> Any:
            return ops.max(ops.abs(y), axis=1, keepdims=True) >= 1

        return ops.while_loop(lambda y: ops.any(large(y)), lambda y: (ops.where(large(y), y / 2, y),), (x,))[0]

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape


@keras.saving.register_keras_serializable("kinds")
class EitherWay(layers.Layer):
    """Two ways to compute, chosen by the number of steps."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.dense = layers.Dense(shape[-1])
        self.dense.build(shape)

    def call(self, x: Any) -> Any:
        steps = ops.convert_to_tensor(ops.shape(x)[1])
        return ops.cond(steps > 6, lambda: self.dense(x), lambda: ops.tanh(x) - 1)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape


@keras.saving.register_keras_serializable("kinds")
class Settled(layers.Layer):
    """Repeats s = s / 2 + x: a loop that reads a tensor from outside it."""

    def call(self, x: Any) -> Any:
        return ops.fori_loop(0, 5, lambda turn, s: s / 2 + x * ops.cast(turn, "float32"), ops.zeros_like(x))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape


def _settled(x: Any) -> Any:
    y = layers.Dense(4)(x)
    return y, Settled()(y)


add("loop_reads_an_output", _settled, ROW)


@keras.saving.register_keras_serializable("kinds")
class Counted(layers.Layer):
    """Adds what a loop counts that reads no tensor."""

    def call(self, x: Any) -> Any:
        last, _ = ops.scan(lambda sum_, _: (sum_ + 1.5, sum_), ops.convert_to_tensor(0.0), length=4)
        return x + last


add(
    "loops_of_the_model_itself",
    lambda x: [
        ops.fori_loop(0, 3, lambda turn, y: y * 2 + 1, x),
        ops.while_loop(lambda y: ops.any(y < 5), lambda y: (ops.maximum(y, 0.0) * 0 + 6,), (x,))[0],
        ops.scan(lambda sum_, row: (sum_ + 1.5, sum_), x, length=3)[0],
        ops.map(lambda row: ops.tanh(row) - ops.max(row), x),
        ops.vectorized_map(lambda row: row * 2 + ops.sum(row), x),
        ops.switch(ops.cast(x[0, 0] > 0, "int32"), [lambda y: y * 2.0, lambda y: y - 1.0], x),
    ],
    ROW,
)
add("loop_without_tensors", lambda x: Counted()(x), ROW)
add("ode_fori_loop", lambda x: Flow(8, "fori")(x), ROW)
add("ode_while_loop", lambda x: Flow(8, "while")(x), ROW)
add("ode_scan", lambda x: Flow(8, "scan")(x), ROW)
add("while_depends_on_values", lambda x: UntilSmall()(x * 50), ROW)
add("cond", lambda x: EitherWay()(x), FREE_STEPS)

# Detection and speech


def boxes(count: int, side: float) -> Given:
    """Corners of boxes in an image, some of them partly outside."""

    def draw(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        start = random.uniform(-0.1 * side, 0.8 * side, (*shape[:-1], 2))
        return np.concatenate([start, start + random.uniform(0.1 * side, 0.6 * side, start.shape)], axis=-1)

    return Given((count, 4), "float32", draw)


SCORES = floats(20, 3, low=0)
add("non_max_suppression", lambda b, s: NonMaxSuppression(count=6, overlap=0.3, score=0.2)(b, s), boxes(20, 32), SCORES)
add(
    "non_max_suppression_few_left",
    lambda b, s: NonMaxSuppression(count=9, overlap=0.1, score=0.9)(b, s),
    boxes(20, 32),
    SCORES,
)
add(
    "non_max_suppression_of_candidates",
    lambda b, s: NonMaxSuppression(count=40, score=0, candidates=8)(b, s),
    boxes(20, 32),
    SCORES,
)
add("roi_align", lambda x, b: RoIAlign(3, 0.25)(x, b), floats(8, 9, 5), boxes(4, 32))
add(
    "roi_align_free_size",
    lambda x, b: RoIAlign(2, 0.5, samples=3)(layers.Conv2D(4, 3, padding="same")(x), b),
    floats(None, None, 3),
    boxes(3, 16),
)
add(
    "pyramid_align",
    lambda x, y, b: PyramidAlign((1 / 4, 1 / 8), size=3)([x, y], b),
    floats(40, 56, 4),
    floats(20, 28, 4),
    boxes(7, 150),
)
add(
    "proposals",
    lambda a, b, c, d: Proposals((32, 24), (8, 12), (0.5, 2.0), count=9, candidates=14)([a, b], [c, d])[0],
    floats(8, 6, 2),
    floats(4, 3, 2),
    floats(8, 6, 8),
    floats(4, 3, 8),
)
add(
    "rank_boxes",
    lambda x, d, b: RankBoxes((32, 24), candidates=8)(x, d, b, ops.sum(b, axis=-1) > 40),
    floats(6, 4),
    floats(6, 16),
    boxes(6, 24),
)
add("ctc_greedy_decode", lambda x: CTCGreedyDecode()(x), floats(None, 4))
add(
    "ctc_greedy_decode_lengths",
    lambda x, n: CTCGreedyDecode(blank=3)(x, n[:, 0]),
    floats(None, 4),
    integers(1, below=9),
)

# Layers of one's own, and models in models


@keras.saving.register_keras_serializable("kinds")
class Gaussians(layers.Layer):
    """Similarity to learned centres, Broomhead & Lowe 1988."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.centres = self.add_weight((self.units, shape[-1]), "random_normal", name="centres")
        self.log_width = self.add_weight((self.units,), "zeros", name="log_width")

    def call(self, x: Any) -> Any:
        gap = ops.expand_dims(x, 1) - self.centres
        return ops.exp(-ops.sum(ops.square(gap), axis=-1) / (2 * ops.exp(2 * self.log_width)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("kinds")
class Windows(layers.Layer):
    """Splits an image into windows, as many as its size gives, and mixes the pixels of each."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.dense = layers.Dense(5)
        self.dense.build((None, 4 * shape[-1]))

    def call(self, x: Any) -> Any:
        rows, height, width, channels = ops.shape(x)
        x = ops.reshape(x[:, : height // 2 * 2, : width // 2 * 2], (rows, height // 2, 2, width // 2, 2, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return self.dense(ops.reshape(x, (rows, (height // 2) * (width // 2), 4 * channels)))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (shape[0], None, 5)


@keras.saving.register_keras_serializable("kinds")
class Filled(layers.Layer):
    """Values and cuts of a size that is known at run time."""

    def call(self, x: Any) -> Any:
        rows, steps, _ = ops.shape(x)
        tiled = ops.tile(ops.ones((1, 1, 4)), (rows, steps, 1)) + ops.full((rows, steps, 4), 3.0) * ops.tile(
            x, [1, 1, 1]
        )
        spread = ops.broadcast_to(ops.arange(4, dtype="float32"), (rows, steps, 4)) + ops.zeros((rows, steps, 4))
        first = x[0, 0, 0] * 0 + 2
        parts = [x[:, : steps // 2, ...], x[..., steps // 2 :, :], ops.full((rows, 1, 4), first)]
        return ops.concatenate([tiled + spread, *parts], axis=1)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (shape[0], None, 4)


@keras.saving.register_keras_serializable("kinds")
class Rotary(layers.Layer):
    """Rotary positions, Su et al. 2021: pairs of features turned by an angle that grows with the position."""

    def call(self, x: Any) -> Any:
        half = x.shape[-1] // 2
        rates = 1.0 / 10_000.0 ** (ops.arange(half, dtype="float32") / half)
        angles = ops.arange(ops.shape(x)[1], dtype="float32")[:, None] * rates
        first, second = x[..., :half], x[..., half:]
        sine, cosine = ops.sin(angles), ops.cos(angles)
        return ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape


def _capsules(x: Any) -> Any:
    """Dynamic routing, Sabour et al. 2017, three rounds."""
    votes = layers.Reshape((6, 3, 4))(layers.Dense(72)(x))  # (batch, below, above, features)
    logits = ops.zeros_like(votes[..., :1])
    for _ in range(3):
        total = ops.sum(ops.softmax(logits, axis=2) * votes, axis=1, keepdims=True)
        length = ops.sum(ops.square(total), axis=-1, keepdims=True)
        squashed = length / (1 + length) * total / ops.sqrt(length + 1e-7)
        logits = logits + ops.sum(votes * squashed, axis=-1, keepdims=True)
    return ops.sqrt(ops.sum(ops.square(ops.squeeze(squashed, 1)), axis=-1))


@keras.saving.register_keras_serializable("kinds")
class Modulated(layers.Layer):
    """Modulated convolution, Karras et al. 2019: a style scales the input, the result is scaled back."""

    def build(self, image_shape: tuple[int | None, ...], style_shape: tuple[int | None, ...]) -> None:
        self.kernel = self.add_weight((3, 3, image_shape[-1], 5), "random_normal", name="kernel")

    def call(self, image: Any, style: Any) -> Any:
        power = ops.sum(ops.square(self.kernel * style[:, None, None, :, None]), axis=(1, 2, 3))  # (batch, 5)
        y = ops.conv(image * style[:, None, None], self.kernel, 1, "same")
        return y * ops.rsqrt(power + 1e-8)[:, None, None]


@keras.saving.register_keras_serializable("kinds")
class Whole(layers.Layer):
    """Pads images to multiples of 4, as windowed transformers do."""

    def call(self, x: Any) -> Any:
        _, height, width, _ = ops.shape(x)
        return ops.pad(x, ((0, 0), (0, -height % 4), (1, -width % 4), (0, 0)), constant_values=2.0)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (shape[0], None, None, shape[3])


@keras.saving.register_keras_serializable("kinds")
class Reversed(layers.Layer):
    """Identity whose gradient is turned round, Ganin & Lempitsky 2015, between two layers of one name."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = [layers.Dense(6, name="part"), layers.Dense(6, name="part")]

    def build(self, shape: tuple[int | None, ...]) -> None:
        for part in self.parts:
            part.build(shape)

    def call(self, x: Any) -> Any:
        @ops.custom_gradient
        def turned(x: Any) -> Any:
            return x, lambda *_, upstream=None: -upstream

        return self.parts[0](x) - 2 * self.parts[1](turned(x))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape


def _squeezed(x: Any) -> Any:
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(4, 1, activation="sigmoid")(layers.Conv2D(2, 1, activation="silu")(s))
    return layers.Multiply()([x, s])


def _twins(x: Any, y: Any) -> Any:
    tower = keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu"), layers.BatchNormalization()], name="tower")
    a, b = tower(x), tower(y)
    return ops.sqrt(ops.sum(ops.square(a - b), axis=1, keepdims=True) + 1e-6)


def _nested(x: Any) -> Any:
    inner_input = keras.Input((None, 4))
    inner = keras.Model(inner_input, layers.LayerNormalization()(layers.Dense(4)(inner_input)), name="inner")
    middle_input = keras.Input((None, 4))
    middle = keras.Model(middle_input, middle_input + inner(inner(middle_input)), name="middle")
    return layers.GlobalMaxPooling1D()(middle(x))


def _shared(x: Any) -> Any:
    dense, norm = layers.Dense(6, "relu"), layers.BatchNormalization()
    return norm(dense(norm(dense(x))))


def _two_and_two(image: Any, row: Any) -> Any:
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="relu")(image))
    x = layers.Concatenate()([x, layers.Dense(3)(row)])
    return layers.Dense(4, name="kind")(x), layers.Dense(1, name="size")(x)


def _residual(x: Any) -> Any:
    y = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", use_bias=False)(y))
    return layers.ReLU()(layers.Add()([x, y]))


def _unet(x: Any) -> Any:
    first = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    below = layers.Conv2D(6, 3, padding="same", activation="relu")(layers.MaxPooling2D()(first))
    above = layers.Conv2DTranspose(4, 2, strides=2)(below)
    return layers.Conv2D(2, 1)(layers.Concatenate()([first, above]))


def _policy(name: str) -> Callable[..., Any]:
    def body(x: Any) -> Any:
        y = layers.Conv2D(4, 3, dtype=name)(x)
        y = layers.ReLU(dtype=name)(layers.BatchNormalization(dtype=name)(y))
        y = layers.LayerNormalization(dtype=name)(layers.GlobalAveragePooling2D(dtype=name)(y))
        return layers.Dense(3, dtype="float32")(layers.Dense(5, "gelu", dtype=name)(y))

    return body


def _beside(x: Any) -> Any:
    """What a normalisation must not be folded into: a convolution that is read under another name, too."""
    y = layers.Conv2D(5, 3)(x)  # as many channels as columns
    turned = layers.BatchNormalization()(ops.transpose(y, (0, 3, 1, 2)))
    return layers.BatchNormalization()(ops.stop_gradient(y)), y + 1, turned


add("batch_norm_beside_others", _beside, floats(11, 7, 4))
add("gaussians", lambda x: layers.Dense(3)(Gaussians(5)(x)), ROW)
add("windows", lambda x: Windows()(x), floats(None, None, 3))
add("padded_to_whole_windows", lambda x: Whole()(x), floats(None, None, 3))
add("gradient_reversal_and_names_alike", lambda x: Reversed()(x), ROW)
add(
    "whole_numbers_into_a_model",
    lambda x: keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu")])(x),
    integers(6),
)
add("filled_to_sizes_at_run_time", lambda x: Filled()(x), FREE_STEPS)
add("rotary", lambda x: Rotary()(x), LONG)
add("capsules", _capsules, ROW)
add("modulated_convolution", lambda x, s: Modulated()(x, layers.Dense(4)(s) + 1), IMAGE, floats(3))
add("squeeze_and_excitation", _squeezed, floats(None, None, 4))
add("residual_block", _residual, floats(None, None, 4))
add("unet", _unet, floats(12, 8, 3))
add("twins", _twins, ROW, ROW)
add("nested_models", _nested, FREE_STEPS)
add("shared_layers", _shared, ROW)
add("two_inputs_two_outputs", _two_and_two, IMAGE, ROW)
add("lambda", lambda x: layers.Lambda(lambda z: ops.square(z) + 1)(x), ROW)
add("wide_integers", lambda x: layers.Embedding(9, 5)(x), integers(None, dtype="int64"))
add("integers_out", lambda x: x * 2 + 1, integers(None))
add("booleans_in", lambda x: ops.cast(x, "float32") * 2, mask(None, "gaps"))
add("mixed_float16", _policy("mixed_float16"), IMAGE, **HALF)
add(
    "mixed_float16_normalization",
    lambda x: layers.Dense(3, dtype="mixed_float16")(_adapted(-1)(x)),
    ROW,
    trained=False,
    **HALF,
)
add("mixed_bfloat16", _policy("mixed_bfloat16"), IMAGE, **BRAIN)
add("float16_lstm", lambda x: layers.Dense(2, dtype="float32")(layers.LSTM(5, dtype="mixed_float16")(x)), STEPS, **HALF)
add(
    "float16_attention",
    lambda x: layers.Dense(2, dtype="float32")(layers.MultiHeadAttention(2, 3, dtype="mixed_float16")(x, x)),
    LONG,
    **HALF,
)
