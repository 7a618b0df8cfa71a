"""Recurrent networks: a state that every step of a sequence changes, read out after the last one.

- Simple: Elman, "Finding Structure in Time", Cognitive Science 14 (1990) 179-211.
- LSTM: Hochreiter & Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997) 1735-1780, with the forget gate of
  Gers, Schmidhuber & Cummins 2000, whose bias starts at 1 (Jozefowicz et al. 2015, section 2).
- GRU: Cho et al. 2014 (arXiv:1406.1078), section 2.3. Departure: the reset gate acts behind the recurrent matrix, as in
  version 3 of the paper's cell that cuDNN and PyTorch compute.
- Both directions: Schuster & Paliwal, "Bidirectional Recurrent Neural Networks", IEEE Transactions on Signal Processing 45
  (1997) 2673-2681.

Steps behind a row's end (NaN in a series, the padding token in a text) change nothing: a padded row answers as it does alone.
"""

import keras
from keras import layers

from zoo.layers.sequences import OwnLevel, OwnScale, Steps, TokenEmbedding
from zoo.registry import Tensor, register

CELLS = {"simple_rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}


@register(
    "lstm",
    task=("series-classification", "regression", "forecasting", "text-classification"),
    inputs={"series": Tensor("time", "columns", unit="zero mean, unit variance; NaN behind a row's end")},
    alternatives={"tokens": Tensor("length", dtype="int32", unit="token")},
    paper="Elman 1990, Hochreiter & Schmidhuber 1997, Cho et al. 2014, Schuster & Paliwal 1997",
    params=19_338,
    params_source="gates*(8*64 + 64*64 + 64) each way, of a GRU two biases, + states*10+10",
    variants={
        "simple_rnn": dict(params=5_322, cell="simple_rnn"),
        "gru": dict(params=14_858, cell="gru"),
        "bidirectional_lstm": dict(params=38_666, cell="lstm", bidirectional=True),
        "bidirectional_gru": dict(params=29_706, cell="gru", bidirectional=True),
    },
    tiny=dict(input_shape=(5, 3), width=8, depth=2, classes=3),
    data="digits_rows",
    recipe=dict(learning_rate=5e-3, clip_norm=1.0),  # Pascanu, Mikolov & Bengio 2013, section 3.2
    skip=dict(
        int8="nearly all weights are those of recurrent nodes, which have no 8-bit form with fixed ranges; of the head alone "
        "the file would grow"
    ),
)
def recurrent(
    input_shape: tuple[int | None, ...] = (8, 8),
    classes: int = 10,
    cell: str = "lstm",
    width: int = 64,
    depth: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    relative: bool = False,
    vocabulary: int = 0,
    pad: int = 0,
) -> keras.Model:
    """Build a recurrent network over a series or a row of tokens.

    Args:
        input_shape: `(time, columns)` of a series, `(length,)` of tokens; None for steps of any number.
        classes: number of logits, of values to regress, or of steps to forecast.
        cell: "simple_rnn", "lstm" or "gru".
        width: units of each layer and direction, and of a token's vector.
        depth: layers, each of which reads what the one before it gives at every step.
        bidirectional: whether every layer also reads from the end to the beginning; the last states of both ways go on.
        dropout: share of what each layer gives that is dropped in training, in [0, 1).
        relative: whether each series is brought to its own mean and spread, and the answer back to those of its first
            column: for forecasts at levels that training has not seen.
        vocabulary: tokens there are; 0 for a series.
        pad: the token that fills short rows.

    Returns:
        Functional model, `(batch, time, columns)` float32 or `(batch, length)` int32 -> `(batch, classes)` logits.

    Raises:
        ValueError: an argument is out of range.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be {', '.join(map(repr, CELLS))}, got {cell!r}")
    if width < 1 or depth < 1:
        raise ValueError(f"width and depth must be at least 1, got width={width}, depth={depth}")
    if vocabulary and relative:
        raise ValueError("relative=True is for series, which tokens are not; leave it out")
    if vocabulary and not 0 <= pad < vocabulary:
        raise ValueError(f"pad must be a token below vocabulary={vocabulary}, got {pad}")
    axes = "(length,) of tokens" if vocabulary else "(time, columns) of a series; tokens need vocabulary=..."
    if len(input_shape) != (1 if vocabulary else 2) or any(size is not None and size < 1 for size in input_shape):
        raise ValueError(f"input_shape must be {axes}, got {tuple(input_shape)}")
    if not vocabulary and input_shape[-1] is None:
        raise ValueError(f"the number of columns must be known, got input_shape={tuple(input_shape)}")
    if vocabulary:
        inputs = keras.Input(input_shape, dtype="int32", name="tokens")
        x = TokenEmbedding(vocabulary, width, pad, name="embedding")(inputs)
    else:
        x = inputs = keras.Input(input_shape, name="series")
        if relative:
            x, mean, spread = OwnScale(name="own_scale")(inputs)
        x = Steps(name="steps")(x)
    for index in range(depth):
        last = index == depth - 1
        layer = CELLS[cell](width, return_sequences=not last, name=f"layer{index}")
        if bidirectional:
            layer = layers.Bidirectional(layer, name=f"layer{index}")
        x = layer(x)
        x = layers.Dropout(dropout, name="features" if last else f"layer{index}_dropout")(x)
    x = layers.Dense(classes, name="logits")(x)
    if relative:
        x = OwnLevel(name="own_level")(x, mean, spread)
    return keras.Model(inputs, x, name="recurrent")
