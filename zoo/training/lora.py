"""Low-rank adapters: a large network stays as it is, and what it learns is a small product of two matrices beside some kernels.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang & Chen, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022
(arXiv:2106.09685), section 4. A kernel W is used as W + alpha / rank * A B; A (inputs, rank) is drawn, B (rank, units) is 0, so that
training begins with the network as it was. In the end the product is added to the kernel, and nothing of it is left to see.
"""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.backbone import parts
from zoo.recipes import Recipe
from zoo.training.fit import Method

FILE = "adapters.safetensors"  # in the run folder
_BEHIND = ("top", "head")  # parts that learn as a whole, since another task has others


class Adapters(Method):
    """Only the adapters of some dense layers learn, and what is behind the last block.

    Attributes:
        told: how much learns, in words.
        tensors: what was learnt, by layer and variable, once training is done.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.tensors: dict[str, np.ndarray] = {}

    def check(self, network: Any, data: Any, recipe: Recipe) -> None:
        if recipe.freeze or recipe.rate_decay != 1:
            raise ValueError(
                f"lora keeps all but its adapters still, and freeze={recipe.freeze!r} with rate_decay={recipe.rate_decay!r} says "
                "what else does; leave them out"
            )
        chosen = adapted(network, recipe)
        behind = _behind(network, chosen)
        small = sum(recipe.lora * sum(layer.kernel.shape) for layer in chosen)
        head = sum(_size(layer) for layer in behind)
        whole = network.count_params()
        self.told = [
            f"LoRA of rank {recipe.lora} beside {len(chosen)} kernels: {small:,} parameters of adapters and {head:,} of "
            f"{', '.join(layer.name for layer in behind)} learn, {(small + head) / whole:.2%} of {whole:,}; an optimiser with two "
            f"moments holds {8 * (small + head) / 2**20:.2f} MiB and not {8 * whole / 2**20:.2f}"
        ]

    def begin(self, network: Any, data: Any, recipe: Recipe) -> Any:
        """A copy of the network with adapters, in which only these and the head learn."""
        self._network, self._recipe = network, recipe
        self._model = keras.models.clone_model(network)
        self._model.set_weights(network.get_weights())
        self._chosen = adapted(self._model, recipe)
        self._behind = _behind(self._model, self._chosen)
        chosen, behind = set(map(id, self._chosen)), set(map(id, self._behind))
        for layer in self._model.layers:
            if id(layer) in chosen:
                layer.enable_lora(recipe.lora, lora_alpha=recipe.lora_alpha or recipe.lora)
                if layer.bias is not None:
                    layer.bias.trainable = False
            elif id(layer) not in behind:
                layer.trainable = False
        return self._model

    def finish(self) -> None:
        """Add what was learnt to the kernels of the network itself."""
        for layer in self._chosen:
            for name, own in (("down", layer.lora_kernel_a), ("up", layer.lora_kernel_b)):
                self.tensors[f"{layer.name}/{name}"] = keras.ops.convert_to_numpy(own)
        for layer in self._behind:
            for variable in layer.weights:
                self.tensors[f"{layer.name}/{variable.name}"] = keras.ops.convert_to_numpy(variable)
        merge(self._network, self.tensors, _scale(self._recipe))

    def save(self, folder: Path) -> None:
        """Write what was learnt, without the network that it belongs to."""
        from safetensors.numpy import save

        about = {"rank": self._recipe.lora, "scale": _scale(self._recipe), "model": self._recipe.model}
        (folder / FILE).write_bytes(save(self.tensors, metadata={"lora": json.dumps(about)}))


def adapted(network: Any, recipe: Recipe) -> list[Any]:
    """The dense layers that get adapters, by the patterns of their names.

    Raises:
        ValueError: there is none, or its kernel is too small for the rank.
    """
    dense = [layer for layer in network.layers if type(layer) is keras.layers.Dense]
    patterns = recipe.lora_layers
    found = [layer for layer in dense if any(fnmatchcase(layer.name, pattern) for pattern in patterns)]
    if not found:
        known = ", ".join(sorted({layer.name for layer in dense})[:12]) or "none"
        raise ValueError(
            f"lora_layers={','.join(patterns)!r} fits no dense layer of {network.name!r}; its dense layers are {known}"
        )
    for layer in found:
        if recipe.lora > min(layer.kernel.shape):
            raise ValueError(
                f"lora={recipe.lora} is more than the smaller side of {layer.name!r}, {min(layer.kernel.shape)}; take less"
            )
    return found


def merge(network: Any, tensors: dict[str, np.ndarray], scale: float) -> None:
    """Add adapters to the kernels of a network, and put what else was learnt in its place.

    Args:
        network: Keras model, changed in place.
        tensors: by `layer/variable`; `down` (inputs, rank) and `up` (rank, units) are an adapter.
        scale: that their product is multiplied by.

    Raises:
        ValueError: a layer is not there, or of another shape; nothing is changed.
    """
    layers = {layer.name: layer for layer in network.layers}
    new: list[tuple[Any, np.ndarray]] = []
    for name, tensor in tensors.items():
        layer, _, variable = name.rpartition("/")
        own = {each.name: each for each in layers[layer].weights} if layer in layers else {}
        if variable == "up":
            continue
        goal = own.get("kernel" if variable == "down" else variable)
        value = tensor
        if variable == "down" and goal is not None:
            value = keras.ops.convert_to_numpy(goal) + scale * tensor @ tensors[f"{layer}/up"]
        if goal is None or tuple(goal.shape) != value.shape:
            there = "is not there" if goal is None else f"is {tuple(goal.shape)}"
            raise ValueError(
                f"the adapters hold {name!r} {tensor.shape}, which {there} in {network.name!r}; build the model that they were "
                "made for"
            )
        new.append((goal, value))
    for goal, value in new:
        goal.assign(value)


def apply(network: Any, path: str | Path) -> None:
    """Give a network what a run with adapters has learnt from the same start, and change it in place.

    Args:
        network: Keras model with the weights that the run began with.
        path: `adapters.safetensors`, or the folder of the run that it is in.

    Raises:
        ValueError: the file is none, or for another network.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["lora"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dictionary
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as adapters ({error}); give the {FILE} of a run with lora") from error
    merge(network, tensors, float(about["scale"]))


def _behind(network: Any, chosen: list[Any]) -> list[Any]:
    """Layers behind the last block, which learn as a whole."""
    found = parts(network)
    own = set(map(id, chosen))
    return [layer for name in _BEHIND for layer in found.get(name, ()) if id(layer) not in own]


def _scale(recipe: Recipe) -> float:
    return (recipe.lora_alpha or recipe.lora) / recipe.lora


def _size(layer: Any) -> int:
    return sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)
