"""Write mobilenet.npz: what the MobileNetV2 of torchvision and of timm answer, for weights and images that a seed gives.

    python tests/golden/make_mobilenet.py        (needs torch, torchvision and timm; nothing of this package)

The file holds no weights, see make_resnet.py.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("mobilenet.npz")
WIDTHS = {"torchvision": 1.0, "torchvision_035": 0.35, "timm": 1.0}
CLASSES = 5
SIDE = 64


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary, and logits (batch, classes) for `references.images(SIDE)`."""
    import torch

    if kind == "timm":
        model = references.timm().create_model("mobilenetv2_100", num_classes=CLASSES)
    else:
        model = references.torchvision().models.MobileNetV2(CLASSES, WIDTHS[kind])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = references.weights(shapes, seed)
    model.eval().load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    with torch.no_grad():
        return shapes, model(torch.from_numpy(references.images(SIDE).transpose(0, 3, 1, 2).copy())).numpy()


if __name__ == "__main__":
    golden = {}
    for kind in WIDTHS:
        shapes, logits = torch_answers(kind)
        golden[f"{kind}/names"] = np.array(list(shapes))
        golden[f"{kind}/shapes"] = np.array([(*shape, *[0] * (4 - len(shape))) for shape in shapes.values()], np.int32)
        golden[f"{kind}/logits"] = logits
    np.savez_compressed(PLACE, **golden)
    print(f"{PLACE.name}: {PLACE.stat().st_size:,} bytes")
