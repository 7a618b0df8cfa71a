"""From the names and conventions of a file to those of our layers; each module here knows the files of one family.

A module exports `LAYOUTS`, which are recognised by a tensor that only they have, and may export `arguments`: tensors by
`layer/variable` of ours -> builder arguments that can be read off them; and `fit`: the same tensors and the shapes that
the model wants -> tensors in these shapes, as far as the family knows how; and `HEAD`: names of the variables that another
number of classes replaces; and `TOP`: names of those that a file without head lacks besides. `HEAD` and `TOP` may be
functions of the builder's arguments.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

TORCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """One way to name and store the tensors of a family.

    Attributes:
        title: what to call it.
        family: builder it belongs to; "" for any.
        marker: tensor that only this layout has; or a function of all names, where no one tensor tells.
        rename: tensor name in the file -> `layer/variable` of ours, "" if unknown.
        arguments: builder arguments that the layout fixes.
        adapt: renamed tensors -> tensors as our layers hold them; as they are if None.
        scaling: how the images were scaled that such files are trained on, see `zoo.data.signature.read_scaling`; "" where
            that differs from file to file.
        pickle: of what is published in this layout as a pickle of torch only: name of the file, or names, the index under
            which the tensors lie in it, where it is, and on what terms.
        config: field of the `config.json` that lies beside such files, inner ones behind a dot -> builder argument that it
            gives; or the values with which the network, which has no such argument, is the same.
    """

    title: str
    family: str
    marker: str | Callable[[Iterable[str]], bool]
    rename: Callable[[str], str]
    arguments: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[Tensors], Tensors] | None = None
    scaling: str = ""
    pickle: tuple[str, str, str, str] | None = None
    config: dict[str, str | tuple[Any, ...]] = field(default_factory=dict)


OWN = Layout("this package", "", "logits/kernel", lambda name: name)


@cache
def _modules() -> tuple[Any, ...]:
    return tuple(importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))


def known() -> tuple[Layout, ...]:
    """Every layout, this package's own last."""
    return (*(layout for module in _modules() for layout in module.LAYOUTS), OWN)


def decided(entry: Any, tensors: Tensors) -> dict[str, Any]:
    """Builder arguments that can be read off the tensors, by `arguments(tensors)` in the module of the entry's family."""
    arguments = _function(entry, "arguments")
    return arguments(tensors) if arguments else {}


def fitted(entry: Any, tensors: Tensors, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """Tensors by our names in the model's shapes, by `fit(tensors, wanted)` in the module of the entry's family."""
    fit = _function(entry, "fit")
    return fit(tensors, wanted) if fit else tensors


def head(entry: Any, arguments: dict[str, Any]) -> tuple[str, ...]:
    """Variables that another number of classes replaces; the last axis of the first is as long as there are classes."""
    return _names(entry, "HEAD", arguments, ("logits/kernel", "logits/bias"))


def top(entry: Any, arguments: dict[str, Any]) -> tuple[str, ...]:
    """Variables between the backbone and the head, which files without head may lack: all of them, or none."""
    return _names(entry, "TOP", arguments, ())


def _names(entry: Any, name: str, arguments: dict[str, Any], usual: tuple[str, ...]) -> tuple[str, ...]:
    """Names of variables that the module of the entry's family has under `name`, or gives for the builder's arguments."""
    found = _function(entry, name)
    if callable(found):
        return found({**entry.arguments, **arguments})
    return usual if found is None else found


def _function(entry: Any, name: str) -> Any:
    """What the module of the entry's family calls so."""
    for module in _modules():
        if hasattr(module, name) and any(layout.family == entry.family for layout in module.LAYOUTS):
            return getattr(module, name)
    return None


def convert(tensors: Tensors, entry: Any, path: Path) -> tuple[Layout, Tensors, list[str]]:
    """Recognise a file's layout and translate its tensors.

    Returns:
        The layout, the tensors by `layer/variable` of ours, and the names that could not be translated.

    Raises:
        ValueError: the layout is unknown, or belongs to another family than the model's.
    """
    fitting = [layout for layout in known() if _marked(layout.marker, tensors)]
    layout = next((layout for layout in fitting if layout.family in ("", entry.family)), next(iter(fitting), None))
    if layout is None:
        raise ValueError(
            f"{path} is in no known layout: it starts with {', '.join(sorted(tensors)[:4])}; "
            f"known are {', '.join(layout.title for layout in known())}"
        )
    if layout.family not in ("", entry.family):
        raise ValueError(
            f"{path} is a {layout.title} file, which does not fit {entry.name}; take a model of the family {layout.family!r}"
        )
    found = {name: layout.rename(name) for name in tensors}
    unknown = [name for name, ours in found.items() if not ours]
    ours = {found[name]: tensor for name, tensor in tensors.items() if found[name]}
    return layout, layout.adapt(ours) if layout.adapt else ours, unknown


def _marked(marker: str | Callable[[Iterable[str]], bool], tensors: Tensors) -> bool:
    return marker in tensors if isinstance(marker, str) else marker(tensors)


def from_torch(tensors: Tensors) -> Tensors:
    """Torch stores convolutions as (out, in, height, width) and dense layers as (out, in)."""
    return {name: _transposed(tensor) if name.endswith("/kernel") else tensor for name, tensor in tensors.items()}


def _transposed(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def blocks(names: Iterable[str]) -> tuple[int, ...]:
    """Blocks of each stage, from tensor names; empty for models without stages."""
    found = {
        (int(match[1]), int(match[2])) for match in map(re.compile(r"stage(\d+)_block(\d+)_").match, names) if match
    }
    return tuple(sum(1 for stage, _ in found if stage == index) for index in sorted({stage for stage, _ in found}))
