"""Write vgg.npz: what torchvision's VGG networks answer, an eighth as wide, for weights and images that a seed gives.

    python tests/golden/make_vgg.py        (needs torch and torchvision; nothing of this package)

The file holds no weights: the test draws the same ones, see `references.weights`.
"""

from pathlib import Path

import references

PLACE = Path(__file__).with_name("vgg.npz")
# configuration in the paper's table 1, and pixels a side: 224 is what the dense layers are made for, others are pooled to 7x7
KINDS = {"vgg11": ("A", 224), "vgg13": ("B", 96), "vgg16": ("D", 64), "vgg19": ("E", 32)}
NARROWER = 8
HIDDEN = (24, 16)
CLASSES = 5


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary, and logits (batch, classes) of torchvision's model for `references.images`."""
    import torch

    module = references.torchvision().models.vgg
    configuration, side = KINDS[kind]
    widths = [width if width == "M" else width // NARROWER for width in module.cfgs[configuration]]
    model = module.VGG(module.make_layers(widths), num_classes=CLASSES, init_weights=False)
    first, second = HIDDEN
    for place, units in ((0, (49 * widths[-2], first)), (3, (first, second)), (6, (second, CLASSES))):
        model.classifier[place] = torch.nn.Linear(*units)
    return references.answers(model, side, seed)


if __name__ == "__main__":
    references.save(PLACE, KINDS, torch_answers)
