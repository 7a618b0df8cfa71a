"""Write inception.npz: what torchvision's GoogLeNet and Inception v3 answer, for weights and images that a seed gives.

    python tests/golden/make_inception.py        (needs torch and torchvision; nothing of this package)

The file holds no weights, see make_resnet.py. The models have their auxiliary classifiers, as the published files do.
"""

from pathlib import Path

import references

PLACE = Path(__file__).with_name("inception.npz")
KINDS = {"inception_v1": ("GoogLeNet", 97), "inception_v3": ("Inception3", 128)}
CLASSES = 5


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary, and logits (batch, classes) of torchvision's model for `references.images`."""

    builder, side = KINDS[kind]
    model = getattr(references.torchvision().models, builder)(CLASSES, init_weights=False).eval()
    return references.answers(model, side, seed)


if __name__ == "__main__":
    references.save(PLACE, KINDS, torch_answers)
