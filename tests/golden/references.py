"""What every comparison with a reference library needs: the libraries themselves, and weights that a seed gives."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import numpy as np


def installed(*names):
    """Whether all of these packages can be imported."""
    return all(name in sys.modules or importlib.util.find_spec(name) for name in names)


def torchvision():
    """The package torchvision, whose compiled operators may be missing: its models need none to be built and called.

    The operators that registering looks for are declared here without a body where they are not there.
    """
    import torch

    if "torchvision" not in sys.modules:
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for declaration in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
            "int sampling_ratio, bool aligned) -> Tensor",
        ):
            operators.define(declaration)
        import torchvision.models

        torchvision.declared = operators  # the declarations last as long as this object
    return sys.modules["torchvision"]


def timm():
    """The package timm, which imports torchvision."""
    torchvision()
    import timm

    return timm


def transformers():
    """The package transformers, which imports torchvision where it is there; it may ask nobody for files."""
    torchvision()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


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


def images(side, rows=3, channels=3):
    """Random images, float32 (rows, side, side, channels)."""
    return np.random.RandomState(1).standard_normal((rows, side, side, channels)).astype(np.float32)


def answers(model, side, seed=0):
    """What a torch model answers to `images(side)` with `weights` of a seed.

    Returns:
        Shapes of its state dictionary by name, and its answer.
    """
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights(shapes, seed).items()})
    with torch.no_grad():
        return shapes, model.eval()(torch.from_numpy(images(side).transpose(0, 3, 1, 2).copy())).numpy()


def rewritten(model, seed=0, make=weights, **settings):
    """A model of transformers in the file that it writes, and read from there with the weights of a seed.

    Args:
        model: what the library made.
        seed: of the weights.
        make: weights by name, given the shapes by name and the seed.
        settings: of reading the file.

    Returns:
        Shapes in the file by name, and the model.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        model.save_pretrained(folder)
        shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
        tensors = {name: torch.from_numpy(np.asarray(tensor)) for name, tensor in make(shapes, seed).items()}
        save_file(tensors, file, {"format": "pt"})
        return shapes, type(model).from_pretrained(folder, **settings).eval()


def save(place, kinds, ask, **more):
    """Write names, shapes and logits of each kind, which `ask(kind)` gives, and further arrays, and say how large they are."""
    golden = dict(more)
    for kind in kinds:
        shapes, logits = ask(kind)
        golden[f"{kind}/names"] = np.array(list(shapes))
        golden[f"{kind}/shapes"] = np.array([(*shape, *[0] * (4 - len(shape))) for shape in shapes.values()], np.int32)
        golden[f"{kind}/logits"] = logits
    np.savez_compressed(place, **golden)
    print(
        f"{place.name}: {place.stat().st_size:,} bytes",
        {kind: np.abs(golden[f"{kind}/logits"]).max() for kind in kinds},
    )


def golden(place, kind, make=weights):
    """Weights of a kind that `save` has written, which `make` gives for their shapes, and what the reference answered."""
    with np.load(place) as file:
        names, sizes = file[f"{kind}/names"].tolist(), file[f"{kind}/shapes"].tolist()
        shapes = {name: tuple(filter(None, size)) for name, size in zip(names, sizes, strict=True)}
        return make(shapes), file[f"{kind}/logits"]
