"""The methods that explain, what each needs, and which one suits a model.

None of them is shap's DeepExplainer or GradientExplainer, which fail on many layers, on JAX and on tokens, and may
break the process they run in: "deep" and "expected_gradients" are this package's own, on every layer and backend.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from zoo.explain.players import SINGLE, count
from zoo.explain.subject import Raw, Subject
from zoo.registry import suggest

ALL = ("image", "table", "text", "series", "graph", "pair")
ORDERED = ("image", "text", "series", "pair")  # whose players lie on a grid or in a row
EXACT = 10  # players; 2 ** 10 coalitions take no longer than sampling them
FEW = 25  # words that random orders take no more evaluations for than the tree does
HEAVY = 5_000_000  # parameters of a Keras model above which hundreds of forward passes are too slow


@dataclass(frozen=True)
class Method:
    """What is declared of a method.

    Attributes:
        kinds: of inputs that it takes.
        needs: "predict" alone; "gradients" of a Keras model; its convolution "maps"; its "attention" layers.
        additive: whether base and contributions promise to add up to the answer.
        place: "module:function".
        limit: what the function calls `max_evals`.
    """

    kinds: tuple[str, ...]
    needs: str
    additive: bool
    place: str
    limit: str = "max_evals"

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself; its module is loaded now."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(f"zoo.explain.{module}"), name)


METHODS = {
    "exact": Method(ALL, "predict", True, "shapley:exact"),
    "permutation": Method(ALL, "predict", True, "shapley:permutation"),
    "kernel": Method(ALL, "predict", True, "shapley:kernel"),
    "partition": Method(ORDERED, "predict", True, "owen:partition"),
    "lime": Method(ALL, "predict", False, "local:lime"),
    "occlusion": Method(ALL, "predict", False, "local:occlusion"),
    "rise": Method(ALL, "predict", False, "local:rise"),
    "integrated_gradients": Method(ALL, "gradients", True, "gradients:integrated_gradients", "steps"),
    "expected_gradients": Method(ALL, "gradients", True, "gradients:expected_gradients", "samples"),
    "gradient_times_input": Method(ALL, "gradients", False, "gradients:gradient_times_input", ""),
    "deep": Method(ALL, "gradients", True, "deep:deep", "references"),
    "grad_cam": Method(("image", "series"), "maps", False, "activations:grad_cam", ""),
    "cam": Method(("image", "series"), "maps", False, "activations:cam", ""),
    "attention_rollout": Method(("image", "text", "series"), "attention", False, "activations:attention_rollout", ""),
}


def choose(method: str, subject: Subject, raw: Raw) -> tuple[str, str]:
    """Method to use and why.

    Args:
        method: name of one, or "auto".
        subject: what is explained.
        raw: the rows to explain.

    Raises:
        ValueError: the method is unknown, not for this kind of input, or known to fail on such a model.
    """
    if method == "auto":
        return _automatic(subject, raw)
    known = [name for name, each in METHODS.items() if subject.kind in each.kinds and not _lacks(each, subject)]
    if method not in METHODS:
        raise ValueError(
            f"no method {method!r} for {subject.kind} inputs; methods are auto, {', '.join(known)}."
            f"{suggest(method, ['auto', *known])}"
        )
    wanted = METHODS[method]
    if subject.kind not in wanted.kinds:
        raise ValueError(f"no method {method!r} for {subject.kind} inputs; methods are auto, {', '.join(known)}.")
    lack = _lacks(wanted, subject) or fails(method, subject)
    if lack:
        raise ValueError(f"{method} {lack}; methods for {subject.name!r} are auto, {', '.join(known)}")
    return method, "asked for"


def evaluations(method: str, players: int, max_evals: int | None) -> int:
    """Coalitions that a method that needs predictions alone asks of one row, roughly."""
    if method == "exact":
        return 2**players
    return max_evals or {"permutation": 20 * players + 10, "kernel": 2 * players + 2048}.get(method, 500)


def fails(method: str, subject: Subject) -> str:
    """Why a method is known to fail on a model, empty if it is not."""
    if METHODS[method].needs == "predict":
        return ""
    if subject.task in ("detection", "segmentation", "similarity"):
        return f"explains outputs (batch, outputs) and not a {subject.task}"
    return ""


def _lacks(method: Method, subject: Subject) -> str:
    """What a method needs and the subject does not have, empty if nothing."""
    if method.needs == "predict" or (method is METHODS["cam"] and subject.maps is not None):
        return ""
    if subject.model is None and method is METHODS["cam"]:
        return f"needs the Keras model, or a bundle exported with activation_map=True, and {subject.name!r} is neither"
    if subject.model is None:
        return f"looks into a Keras model, and {subject.name!r} has only its answers"
    kinds = _layers(subject.model)
    if method.needs == "maps" and not any("Conv" in kind for kind in kinds):
        return f"needs convolutions, and {subject.name!r} has none"
    if method.needs == "attention" and not any("Attention" in kind for kind in kinds):
        return f"needs attention layers, and {subject.name!r} has none"
    return ""


def _layers(model: Any) -> set[str]:
    """Class names of all layers of a Keras model, also inside other layers."""
    return {type(layer).__name__ for layer in model._flatten_layers()}


def _automatic(subject: Subject, raw: Raw) -> tuple[str, str]:
    players = count(subject, raw)
    what = {
        "table": "columns",
        "image": "pixels" if _pixels(raw) == players else "tiles",
        "text": "words" if "text" in raw else "tokens",
        "series": "stretches of time",
        "graph": subject.explained,
        "pair": "parts of both sides",
    }[subject.kind]
    exactly = players <= EXACT
    if exactly:
        return "exact", f"{players} {what} have only {2**players:,} coalitions: all are evaluated"
    heavy = _heavy(subject)
    if heavy:
        return "expected_gradients", heavy
    if subject.kind not in ORDERED:
        return "permutation", f"{players} {what} have too many coalitions: random orders sample them"
    single = FEW if subject.kind in ("text", "pair") else SINGLE
    if players <= single:
        return "permutation", f"{players} {what} are few enough to be put in random orders one by one"
    many = f"{_pixels(raw):,} pixels" if subject.kind == "image" else f"{players:,} {what}"
    return "partition", f"{many} are too many one by one: a tree of halves spends its evaluations where they matter"


def _pixels(raw: Raw) -> int:
    """Pixels of an image, 0 of other kinds."""
    return math.prod(raw["image"].shape[1:3]) if "image" in raw else 0


def _heavy(subject: Subject) -> str:
    """Why gradients are taken in place of hundreds of predictions, empty where they are not."""
    if subject.model is None or subject.kind not in ("image", "series") or fails("expected_gradients", subject):
        return ""
    size = subject.model.count_params()
    if size <= HEAVY or len(getattr(subject.model, "outputs", ())) != 1:
        return ""
    return (
        f"{size / 1e6:.0f} million parameters make hundreds of predictions slow: gradients against the background "
        f"take few"
    )
