"""Write resnet.npz: what torchvision's ResNets answer, for weights and images that a seed gives.

    python tests/golden/make_resnet.py        (needs torch and torchvision; nothing of this package)

The file holds no weights. `references.weights(shapes, seed)` draws them from numpy's frozen legacy generator, so the test draws
the same ones, writes them as safetensors, loads them with `zoo.get`, and compares the answers.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("resnet.npz")
KINDS = {"resnet18": ("BasicBlock", (2, 2, 2, 2)), "resnet50": ("Bottleneck", (3, 4, 6, 3))}
CLASSES = 5
SIDE = 64


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary, and logits (batch, classes) of torchvision's model for `references.images(SIDE)`."""
    import torch

    module = references.torchvision().models.resnet
    block, depth = KINDS[kind]
    model = module.ResNet(getattr(module, block), list(depth), num_classes=CLASSES).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in references.weights(shapes, seed).items()})
    with torch.no_grad():
        return shapes, model(torch.from_numpy(references.images(SIDE).transpose(0, 3, 1, 2).copy())).numpy()


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
