"""Deep Speech 2: from a waveform to the symbols of a text, by convolutions, recurrent layers and the CTC loss.

Amodei et al., "Deep Speech 2: End-to-End Speech Recognition in English and Mandarin" (arXiv:1512.02595), section 3:
convolutions over time and frequency, bidirectional recurrent layers whose directions are added, batch normalisation and
clipped rectifiers. Departures: the waveform itself is the input, and its frames are mel bands, fewer than the paper's
linear ones, so that kernels span 11 of them and not 41 or 21; a layer's input is normalised before its matrix and not
behind it; no dense layer stands between the last recurrent layer and the logits.

Steps after a row's end are set to 0 behind every layer, so that a row answers the same whatever is padded behind it.
"""

import keras
from keras import layers

from zoo.layers.speech import BlankPadding, ClearPadding, EvenFrames, LogMel
from zoo.registry import Tensor, register

KERNEL = 11  # steps and bands that a convolution spans


def _conv(x, mask, filters, stride, name):
    """Convolution of a stride over time and 2 over bands, and its mask: (batch, steps, bands, channels) in and out."""
    # padded by itself: "same" would shift the places of a strided convolution by the length of the batch
    x = layers.ZeroPadding2D(KERNEL // 2, name=f"{name}_pad")(x)
    x = layers.Conv2D(filters, KERNEL, (stride, 2), use_bias=False, kernel_initializer="he_normal", name=name)(x)
    mask = mask[:, ::stride] if stride > 1 else mask
    bands = keras.ops.repeat(keras.ops.expand_dims(mask, -1), x.shape[2], axis=-1)
    x = layers.BatchNormalization(name=f"{name}_norm")(x, mask=bands)
    x = layers.ReLU(20.0, name=f"{name}_relu")(x)  # section 3.1
    return ClearPadding(name=f"{name}_clear")(x, mask), mask


@register(
    "speech_ctc",
    task="speech-recognition",
    inputs={"audio": Tensor("samples", unit="amplitude, NaN after the end", range=(-1, 1))},
    paper="Amodei et al. 2015",
    params=2_603_197,
    params_source="11*11*32 + 11*11*32*32 + 4*32, 6*(320*256 + 256*256 + 2*256) + 2*6*(2*256*256 + 2*256) + 4*256, 257*29",
    tiny=dict(input_shape=(640,), rate=4000, classes=5, mels=12, filters=4, width=6, depth=2),
    data="spoken_digits",
    skip={
        "explain": "a transcript is no single figure to share out; its probabilities over time say what was heard when"
    },
)
def speech_ctc(
    input_shape: tuple[int] = (16_000,),
    rate: int = 8000,
    classes: int = 29,
    window: float = 0.025,
    hop: float = 0.01,
    mels: int = 40,
    filters: int = 32,
    width: int = 256,
    depth: int = 3,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a Deep Speech 2 recogniser of short utterances.

    Args:
        input_shape: `(samples,)`, None for any number.
        rate: samples per second.
        classes: symbols, the first of which is the blank.
        window, hop: length and distance of the frames, in seconds.
        mels: bands of a frame.
        filters: channels of the two convolutions; the first reads every second frame.
        width: units of each direction of a recurrent layer.
        depth: bidirectional recurrent layers.
        dropout: share of a recurrent layer's inputs left out in training, in [0, 1).

    Returns:
        Functional model, `(batch, samples) -> (batch, steps, classes)` logits, no softmax. There is a step for every
        second frame; steps after a row's end, where its samples are NaN, say blank.

    Raises:
        ValueError: an argument is out of range, or the input is shorter than a window.
    """
    for name, number in {"rate": rate, "filters": filters, "width": width, "depth": depth}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={number!r}")
    if len(input_shape) != 1 or (input_shape[0] is not None and input_shape[0] < round(rate * window)):
        raise ValueError(
            f"input_shape must be (samples,) with at least the {round(rate * window)} samples of a window, got {input_shape!r}"
        )
    audio = keras.Input(input_shape, name="audio")
    x, mask = LogMel(rate, window, hop, mels, name="log_mel")(audio)
    x = EvenFrames(name="frames")(x, mask)
    x = layers.Reshape((-1, mels, 1), name="frames_map")(x)
    x, mask = _conv(x, mask, filters, 2, "conv0")
    x, mask = _conv(x, mask, filters, 1, "conv1")
    x = layers.Reshape((-1, x.shape[2] * filters), name="frames_line")(x)
    for block in range(depth):
        name = f"block{block}"
        if block:
            x = layers.BatchNormalization(name=f"{name}_norm")(x, mask=mask)
        if dropout:
            x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
        gru = layers.GRU(width, return_sequences=True, name=f"{name}_gru")
        x = layers.Bidirectional(gru, merge_mode="sum", name=f"{name}_both")(x, mask=mask)
        x = ClearPadding(name="features" if block == depth - 1 else f"{name}_clear")(x, mask)
    x = layers.Dense(classes, name="symbols")(x)
    return keras.Model(audio, BlankPadding(name="logits")(x, mask), name="speech_ctc")
