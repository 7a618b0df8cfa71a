"""Write resnet.npz: what torchvision's ResNets answer, for weights and images that a seed gives.

    python tests/golden/make_resnet.py        (needs torch and torchvision; nothing of this package)

The file holds no weights. `weights(shapes, seed)` draws them from numpy's frozen legacy generator, so the test draws
the same ones, writes them as safetensors, loads them with `zoo.get`, and compares the answers.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np

PLACE = Path(__file__).with_name("resnet.npz")
KINDS = {"resnet18": ("BasicBlock", (2, 2, 2, 2)), "resnet50": ("Bottleneck", (3, 4, 6, 3))}
CLASSES = 5
SIDE = 64


def weights(shapes, seed=0):
    """Weights by torch name for the shapes of a state dictionary: activations stay near 1, and nothing is 0 or symmetric."""
    random = np.random.RandomState(seed)
    found = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            found[name] = np.array(7, np.int64)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            found[name] = random.uniform(0.5, 1.0, shape).astype(np.float32)
        elif len(shape) > 1:
            found[name] = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        else:
            found[name] = random.uniform(-0.3, 0.3, shape).astype(np.float32)
    return found


def images():
    """Three random images, float32 (batch, height, width, channels)."""
    return np.random.RandomState(1).standard_normal((3, SIDE, SIDE, 3)).astype(np.float32)


def installed():
    """Whether `torch_answers` can be asked."""
    return all(name in sys.modules or importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def _resnet_module():
    """torchvision.models.resnet without the package's compiled operators, which need a matching build of torch."""
    if "torchvision" not in sys.modules:
        folder = Path(importlib.util.find_spec("torchvision").origin).parent
        for name, path in {"torchvision": folder, "torchvision.models": folder / "models"}.items():
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(path)]
    return importlib.import_module("torchvision.models.resnet")


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary, and logits (batch, classes) of torchvision's model for `images()`."""
    import torch

    module = _resnet_module()
    block, depth = KINDS[kind]
    model = module.ResNet(getattr(module, block), list(depth), num_classes=CLASSES).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights(shapes, seed).items()})
    with torch.no_grad():
        return shapes, model(torch.from_numpy(images().transpose(0, 3, 1, 2).copy())).numpy()


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
