"""Face embeddings: an improved residual network whose answer is a point on the unit sphere, near for one person.

Deng, Guo, Xue & Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019
(arXiv:1801.07698), section 2.2 and its code: blocks of normalisation, convolution, normalisation, PReLU, convolution
with the stride, normalisation (Han, Kim & Kim, "Deep Pyramidal Residual Networks", CVPR 2017, figure 6 d), a first
stage that halves the image already, and an output of normalisation, dropout, dense layer, normalisation. Embeddings on
the unit sphere are those of Schroff, Kalenichenko & Philbin, "FaceNet: A Unified Embedding for Face Recognition and
Clustering", CVPR 2015 (arXiv:1503.03832), section 3. Departures: the unit length, which the published code leaves to
whoever compares, is part of the model; the last normalisation has no scale, which is held at 1 there. The margin's
class centres and the triplets belong to training, see `zoo.tasks.embedding`.
"""

import keras
from keras import initializers, layers

from zoo.registry import Tensor, register


def _conv(x, filters, size, stride, name):
    """Convolution padded by size // 2 on every side; "same" is that padding at stride 1 only."""
    padding = "same" if stride == 1 else "valid"
    if size > 1 and stride > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters, size, stride, padding, use_bias=False, kernel_initializer=initializers.RandomNormal(0, 0.1), name=name
    )(x)


def _norm(x, name, **options):
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm", **options)(x)


def _prelu(x, name):
    slope = initializers.Constant(0.25)
    return layers.PReLU(alpha_initializer=slope, shared_axes=(1, 2), name=f"{name}_prelu")(x)


@register(
    "face_embedding",
    task="embedding",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Deng, Guo, Xue & Zafeiriou 2019; Schroff, Kalenichenko & Philbin 2015",
    params=43_590_336,
    params_source="InsightFace iresnet50, 43.59 M, without the scale of its last normalisation, which is not trained",
    variants={
        "iresnet18": dict(params=24_025_088, depth=(2, 2, 2, 2)),
        "iresnet34": dict(params=34_138_816, depth=(3, 4, 6, 3)),
        "iresnet100": dict(params=65_155_648, depth=(3, 13, 30, 3)),
    },
    tiny=dict(input_shape=(8, 8, 3), latent=6, depth=(2, 1), width=4),
    aliases=("iresnet50", "arcface"),
    data="digit_identities",
)
def face_embedding(
    input_shape: tuple[int, int, int] = (112, 112, 3),
    latent: int = 512,
    depth: tuple[int, ...] = (3, 4, 14, 3),
    width: int = 64,
    dropout: float = 0.0,
) -> keras.Model:
    """Build an improved residual network that gives embeddings of length 1.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size; each stage halves it, rounded up.
        latent: numbers of an embedding.
        depth: blocks of each stage; two stages are enough for images of 8 to 16 pixels, three for 32.
        width: filters of the stem and of the first stage; they double with each stage.
        dropout: share of the features dropped in training, in [0, 1); the paper has 0.4.

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, latent)`, each row of length 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not depth or min(depth) < 1:
        raise ValueError(f"depth must hold at least one positive number of blocks, got depth={depth!r}")
    if latent < 2 or width < 1:
        raise ValueError(f"latent must be at least 2 and width at least 1, got latent={latent}, width={width}")
    image = keras.Input(input_shape, name="image")
    x = _prelu(_norm(_conv(image, width, 3, 1, "stem_conv"), "stem_conv"), "stem_conv")
    for stage, blocks in enumerate(depth):
        filters = width * 2**stage
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            stride = 1 if block else 2
            y = _conv(_norm(x, f"{name}_input"), filters, 3, 1, f"{name}_conv0")
            y = _prelu(_norm(y, f"{name}_conv0"), f"{name}_conv0")
            y = _norm(_conv(y, filters, 3, stride, f"{name}_conv1"), f"{name}_conv1")
            if not block:
                x = _norm(_conv(x, filters, 1, stride, f"{name}_shortcut"), f"{name}_shortcut")
            x = layers.Add(name=f"{name}_add")([y, x])
    x = layers.Flatten(name="features")(_norm(x, "final"))
    if dropout:
        x = layers.Dropout(dropout, name="features_dropout")(x)
    x = _norm(layers.Dense(latent, name="logits")(x), "logits", scale=False)
    return keras.Model(image, layers.UnitNormalization(name="embedding")(x), name="face_embedding")
