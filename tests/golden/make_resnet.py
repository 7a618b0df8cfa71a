"""Write resnet.npz: what torchvision's ResNets answer, for weights and images that a seed gives.

    python tests/golden/make_resnet.py        (needs torch and torchvision; nothing of this package)

The file holds no weights. `references.weights(shapes, seed)` draws them from numpy's frozen legacy generator, so the test draws
the same ones, writes them as safetensors, loads them with `zoo.get`, and compares the answers.
"""

from pathlib import Path

import references

PLACE = Path(__file__).with_name("resnet.npz")
KINDS = {"resnet18": ("BasicBlock", (2, 2, 2, 2)), "resnet50": ("Bottleneck", (3, 4, 6, 3))}
CLASSES = 5
SIDE = 64


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary, and logits (batch, classes) of torchvision's model for `references.images(SIDE)`."""

    module = references.torchvision().models.resnet
    block, depth = KINDS[kind]
    model = module.ResNet(getattr(module, block), list(depth), num_classes=CLASSES).eval()
    return references.answers(model, SIDE, seed)


if __name__ == "__main__":
    references.save(PLACE, KINDS, torch_answers)
