"""Write mobilenet.npz: what the MobileNetV2 of torchvision and of timm answer, for weights and images that a seed gives.

    python tests/golden/make_mobilenet.py        (needs torch, torchvision and timm; nothing of this package)

The file holds no weights, see make_resnet.py.
"""

from pathlib import Path

import references

PLACE = Path(__file__).with_name("mobilenet.npz")
WIDTHS = {"torchvision": 1.0, "torchvision_035": 0.35, "timm": 1.0}
CLASSES = 5
SIDE = 64


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary, and logits (batch, classes) for `references.images(SIDE)`."""

    if kind == "timm":
        model = references.timm().create_model("mobilenetv2_100", num_classes=CLASSES)
    else:
        model = references.torchvision().models.MobileNetV2(CLASSES, WIDTHS[kind])
    return references.answers(model, SIDE, seed)


if __name__ == "__main__":
    references.save(PLACE, WIDTHS, torch_answers)
