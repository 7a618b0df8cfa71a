"""Capsule network: groups of units whose direction says how a part looks and whose length says whether it is there.

Sabour, Frosst & Hinton, "Dynamic Routing Between Capsules", NeurIPS 2017 (arXiv:1710.09829), section 4, figures 1 and
2; routing is in `zoo.layers.capsules`. Departures: the logits are the log-odds of the lengths of the class capsules, so
that their sigmoid is the length that the margin loss is about, and their softmax a distribution over the classes;
images come standardised, so the decoder ends without a sigmoid, and its loss counts a tenth of the paper's 0.0005, as
the pixels of MNIST between 0 and 1 have a variance of a tenth; small images are padded where the unpadded convolutions
do not fit.
"""

import math

import keras
from keras import layers, ops

from zoo.layers.capsules import ClassCapsules, Squash, squash
from zoo.registry import Tensor, register


@keras.saving.register_keras_serializable("zoo")
class CapsuleNetwork(keras.Model):
    """A functional model that ends in `ClassCapsules`, and a decoder that draws the image from the class capsules.

    In training the capsules of all classes but the true one are hidden from the decoder, and the squared error of its
    drawing is added to the loss (section 4.1). The decoder has no part in the answers, so it is in no exported file, and a
    pruned model begins with a fresh one.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs, outputs, name=name, **kwargs)
        head, image = self._head(), self.input_shape[1:]
        self.decoder = keras.Sequential(
            [
                keras.Input((head.classes * head.length,)),
                *(layers.Dense(units, activation="relu", name=f"hidden{i}") for i, units in enumerate(head.hidden)),
                layers.Dense(math.prod(image), name="pixels"),
                layers.Reshape(image, name="image"),
            ],
            name="decoder",
        )

    def _head(self):
        return self.get_layer("logits")  # as an attribute it would be saved under another name

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        head = self._head()
        seen, head.seen = head.seen, None
        if seen is None:
            return loss
        truth = ops.convert_to_tensor(y)[:, : head.classes]  # a teacher's answers may stand behind it
        gap = ops.square(ops.cast(self.draw(seen, truth), "float32") - ops.cast(x, "float32"))
        return loss + head.reconstruction * ops.mean(ops.sum(gap, axis=(1, 2, 3)))

    def draw(self, capsules, shown):
        """Images that the decoder draws.

        Args:
            capsules: of the classes, `(batch, classes, length)`.
            shown: share of each class's capsule that the decoder sees, `(batch, classes)`.
        """
        visible = capsules * ops.cast(shown, capsules.dtype)[..., None]
        return self.decoder(ops.reshape(visible, (-1, capsules.shape[1] * capsules.shape[2])))

    def reconstruct(self, images, labels=None):
        """Images as the network would draw them.

        Args:
            images: as the model takes them, `(batch, height, width, channels)`.
            labels: class of each image whose capsule is shown to the decoder; None for the longest.

        Returns:
            Images of the same shape and scale.
        """
        head = self._head()
        received = head.received(keras.Model(self.input, head.input)(images, training=False))
        if labels is None:
            labels = ops.argmax(ops.sum(ops.square(received), axis=-1), axis=-1)
        return self.draw(squash(received), ops.one_hot(labels, head.classes))


@register(
    "capsnet",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Sabour, Frosst & Hinton 2017",
    params=8_215_568,
    params_source="20,992 + 5,308,672 + 1,474,560, the paper's 6.8 M, and 82,432 + 525,312 + 803,600 of the decoder",
    tiny=dict(input_shape=(8, 8, 3), classes=3, width=6, capsules=2, length=(4, 6), hidden=(8,), kernel=3),
    data="digits",
    recipe=dict(loss="margin"),
)
def capsnet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    width: int = 256,
    capsules: int = 32,
    length: tuple[int, int] = (8, 16),
    hidden: tuple[int, ...] = (512, 1024),
    kernel: int = 9,
    iterations: int = 3,
    reconstruction: float = 5e-5,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a capsule network with dynamic routing.

    Args:
        input_shape: `(height, width, channels)` in pixels. The paper's unpadded convolutions need 17 pixels a side,
            twice `kernel` less one; where they do not fit, they are padded.
        classes: number of logits, with a capsule each.
        width: filters of the first convolution.
        capsules: kinds of primary capsules; there is one of each kind at each place that is left.
        length: values of a primary and of a class capsule.
        hidden: units of the decoder's layers, () for a network that learns without drawing the image again.
        kernel: side of both convolutions in pixels.
        iterations: of routing.
        reconstruction: weight of the squared error of the drawing, summed over the pixels.
        dropout: share of the primary capsules dropped in training, in [0, 1).

    Returns:
        `CapsuleNetwork`, `(batch, height, width, channels) -> (batch, classes)` logits, whose sigmoid is the length of
        each class's capsule; a plain functional model without `hidden`.

    Raises:
        ValueError: an argument is out of range.
    """
    if len(length) != 2 or min(length) < 1:
        raise ValueError(f"length must be two numbers of values, of primary and class capsules, got length={length!r}")
    if min(width, capsules, kernel, iterations, *hidden, 1) < 1:
        raise ValueError(
            f"width, capsules, kernel, iterations and hidden must be at least 1, "
            f"got {width}, {capsules}, {kernel}, {iterations} and {hidden}"
        )
    padding = "valid" if min(input_shape[:2]) >= 2 * kernel - 1 else "same"
    image = keras.Input(input_shape, name="image")
    stem = layers.Conv2D(
        width, kernel, padding=padding, activation="relu", kernel_initializer="he_normal", name="stem_conv"
    )
    primary = layers.Conv2D(
        capsules * length[0], kernel, 2, padding, kernel_initializer="lecun_normal", name="primary_conv"
    )
    x = primary(stem(image))
    x = layers.Reshape((*x.shape[1:3], capsules, length[0]), name="primary_kinds")(x)
    x = layers.Reshape((-1, length[0]), name="primary")(x)  # (batch, rows * columns * capsules, length)
    x = Squash(name="features")(x)
    if dropout:
        x = layers.Dropout(dropout, noise_shape=(None, None, 1), name="features_dropout")(x)
    logits = ClassCapsules(classes, length[1], iterations, hidden, reconstruction, name="logits")(x)
    return (CapsuleNetwork if hidden else keras.Model)(image, logits, name="capsnet")
