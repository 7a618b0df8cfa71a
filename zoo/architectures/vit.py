"""Vision transformers: an image is a sequence of patches, and every block lets all of them look at each other.

Dosovitskiy, Beyer, Kolesnikov et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
ICLR 2021 (arXiv:2010.11929), section 3.1 and table 1; tiny and small are those of Touvron et al. 2020
(arXiv:2012.12877), table 1. The head is one linear layer, as for fine-tuning. Departure: an image whose sides are no
multiple of the patch is filled up with 0, the mean, on the right and below.
"""

import keras
from keras import layers

from zoo.layers.blocks import dropped, norm
from zoo.layers.tokens import ClassToken, Positions
from zoo.registry import Tensor, register

SMALL = 64  # pixels a side below which patches are an eighth of the side


def _patches(x, patch, width):
    """(batch, height, width, channels) -> (batch, rows, columns, units): each patch through one linear layer."""
    below, right = (-side % patch for side in x.shape[1:3])
    if below or right:
        x = layers.ZeroPadding2D(((0, below), (0, right)), name="patches_pad")(x)
    return layers.Conv2D(width, patch, patch, name="patches")(x)


def _block(x, heads, hidden, epsilon, dropout, name):
    """Attention and two dense layers, each on a normalised copy that is added to x: (batch, length, width) in and out."""
    width = x.shape[-1]
    y = norm(x, epsilon, f"{name}_norm0")
    y = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(y, y)
    x = layers.Add(name=f"{name}_add0")([x, dropped(y, dropout, f"{name}_attention")])
    y = norm(x, epsilon, f"{name}_norm1")
    y = layers.Dense(hidden, activation="gelu", name=f"{name}_hidden")(y)
    y = layers.Dense(width, name=f"{name}_output")(dropped(y, dropout, f"{name}_hidden"))
    return layers.Add(name=f"{name}_add1")([x, dropped(y, dropout, f"{name}_output")])


@register(
    "vit_tiny",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Dosovitskiy et al. 2021",
    params=5_717_416,
    params_source="timm",
    variants={
        "vit_small": dict(
            params=22_050_664,
            width=384,
            heads=6,
            weights={
                "timm": dict(
                    url="https://huggingface.co/timm/vit_small_patch16_224.augreg_in21k_ft_in1k/resolve/7e2c55630205e1266030f18370f4c6ed1a514b52/model.safetensors",
                    checksum="sha256:79c03c635cdfd798a364a9d8c4e5c0b7255b975ea2c9616046d4f77ab01435aa",
                    licence="Apache-2.0, as the model card states",
                    inputs="tf",
                )
            },
        ),
        "vit_base": dict(
            params=86_567_656,
            width=768,
            heads=12,
            weights={
                "timm": dict(
                    url="https://huggingface.co/timm/vit_base_patch16_224.augreg2_in21k_ft_in1k/resolve/063c6c38a5d8510b2e57df480445e94b231dad2c/model.safetensors",
                    checksum="sha256:32aa17d6e17b43500f531d5f6dc9bc93e56ed8841b8a75682e1bb295d722405b",
                    licence="Apache-2.0, as the model card states",
                    inputs="tf",
                ),
                "google": dict(
                    url="https://huggingface.co/google/vit-base-patch16-224/resolve/3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3/model.safetensors",
                    checksum="",
                    licence="Apache-2.0, as the model card states",
                    inputs="tf",
                ),
            },
        ),
    },
    tiny=dict(input_shape=(8, 8, 3), classes=3, patch=4, width=8, depth=2, heads=2),
    aliases=("vit",),
    data="digits",
    weights={
        "timm": dict(
            url="https://huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/7d3afdd0cf93ad84d986eb2d6bcc5812ebd0b106/model.safetensors",
            checksum="sha256:fecf81b492bd13ee7a5297cb74d1d417aac8bf7e1b7d96aed89c4691984587ed",
            licence="Apache-2.0, as the model card states",
            inputs="tf",
        )
    },
)
def vit(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    patch: int = 0,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    hidden: int = 0,
    pool: str = "token",
    epsilon: float = 1e-6,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a vision transformer.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size of at least one patch.
        classes: number of logits.
        patch: pixels of a patch's side; 0 for 16, or for an eighth of the shorter side where that is below 64 pixels. Time
            grows with the square of the patches' number.
        width: units of each patch's vector, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention layer.
        hidden: units of the first dense layer of each block; 0 for four times `width`.
        pool: "token" reads the answer at a class token, "mean" averages the patches and has no class token
            (appendix D.3).
        epsilon: added to the variance in each normalisation; 1e-6 in the authors' code and timm, 1e-12 in Hugging
            Face's.
        dropout: share dropped in training behind the positions, the attention and each dense layer, in [0, 1).

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, classes)` logits.

    Raises:
        ValueError: an argument is out of range, or the image smaller than a patch.
    """
    if pool not in ("token", "mean"):
        raise ValueError(f"pool must be 'token' or 'mean', got {pool!r}")
    if min(width, depth, heads) < 1 or min(patch, hidden) < 0:
        raise ValueError(
            f"width, depth and heads must be at least 1, patch and hidden at least 0, got width={width!r}, "
            f"depth={depth!r}, heads={heads!r}, patch={patch!r}, hidden={hidden!r}"
        )
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width={width!r}, heads={heads!r}")
    side = min(input_shape[:2])
    patch = patch or (16 if side >= SMALL else max(1, side // 8))
    if side < patch:
        raise ValueError(
            f"input_shape must be at least {patch} pixels a side for patches of {patch}, got {input_shape!r}; "
            f"resize the images, or pass a smaller patch"
        )
    image = keras.Input(input_shape, name="image")
    x = Positions(name="positions")(_patches(image, patch, width))
    x = layers.Reshape((x.shape[1] * x.shape[2], width), name="sequence")(x)
    if pool == "token":
        x = ClassToken(name="class_token")(x)
    x = dropped(x, dropout, "positions")
    for block in range(depth):
        x = _block(x, heads, hidden or 4 * width, epsilon, dropout, f"block{block}")
    if pool == "token":
        x = layers.Flatten(name="token")(layers.Cropping1D((0, x.shape[1] - 1), name="first")(x))
    else:
        x = layers.GlobalAveragePooling1D(name="mean")(x)
    x = norm(x, epsilon, "features")  # each vector is normalised by itself, so only the one that is read
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="vit")
