"""What image classifiers end with."""

from keras import layers


def pooled_logits(x, classes, dropout):
    """Maps to logits through their means, the landmarks `features` and `logits`: (batch, height, width, maps) -> (batch, classes)."""
    x = layers.GlobalAveragePooling2D(name="features")(x)
    if dropout:
        x = layers.Dropout(dropout, name="features_dropout")(x)
    return layers.Dense(classes, name="logits")(x)
