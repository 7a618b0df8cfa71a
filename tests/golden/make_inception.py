"""Write inception.npz: what torchvision's GoogLeNet and Inception v3 answer, for weights and images that a seed gives.

    python tests/golden/make_inception.py        (needs torch and torchvision; nothing of this package)

The file holds no weights, see make_resnet.py. The models have their auxiliary classifiers, as the published files do.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("inception.npz")
KINDS = {"inception_v1": ("GoogLeNet", 97), "inception_v3": ("Inception3", 128)}
CLASSES = 5


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary, and logits (batch, classes) of torchvision's model for `references.images`."""
    import torch

    builder, side = KINDS[kind]
    model = getattr(references.torchvision().models, builder)(CLASSES, init_weights=False).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in references.weights(shapes, seed).items()})
    with torch.no_grad():
        return shapes, model(torch.from_numpy(references.images(side).transpose(0, 3, 1, 2).copy())).numpy()


if __name__ == "__main__":
    golden = {}
    for kind in KINDS:
        shapes, logits = torch_answers(kind)
        golden[f"{kind}/names"] = np.array(list(shapes))
        golden[f"{kind}/shapes"] = np.array([(*shape, *[0] * (4 - len(shape))) for shape in shapes.values()], np.int32)
        golden[f"{kind}/logits"] = logits
    np.savez_compressed(PLACE, **golden)
    print(
        f"{PLACE.name}: {PLACE.stat().st_size:,} bytes",
        {kind: np.abs(golden[f"{kind}/logits"]).max() for kind in KINDS},
    )
