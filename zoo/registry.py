"""The catalogue: which models exist and what is known of each, without loading Keras.

A model is declared once, by `@register(...)` above its builder. The files in `zoo/architectures` are read, not
imported: only the decorator's own expression is evaluated (so it may use literals, `Tensor` and `dict`), and the
file is imported when its model is first built. That keeps `zoo.names()` at a few milliseconds for any number of
models. Installed packages add models through the entry point group `zoo.models`, whose value is a module to read.
"""

import ast
import difflib
import fnmatch
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ENTRY_POINTS = "zoo.models"
_TOLERANCE = (1e-4, "")


@dataclass(frozen=True)
class Tensor:
    """One input of a model: its axes after the batch, element type, unit and range."""

    axes: tuple[str, ...]
    dtype: str
    unit: str
    range: tuple[float, float] | None

    def __init__(
        self, *axes: str, dtype: str = "float32", unit: str = "", range: tuple[float, float] | None = None
    ) -> None:
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "range", range)


@dataclass(frozen=True)
class Entry:
    """What is declared of one public name.

    Attributes:
        name: the public name.
        family: name of the builder function, shared by its variants.
        module: dotted name of the file that builds it.
        tasks: what it can be trained for, its usual task first.
        inputs: tensors by input name, without the batch axis.
        alternatives: tensors that it takes in place of `inputs` where the data, and so its arguments, ask for them.
        paper: authors and year.
        params: trainable parameters with the builder's default arguments.
        params_source: where that count can be checked.
        arguments: what the variant presets on the builder.
        tiny: arguments that build a model small enough for a test.
        data: default data set.
        recipe: training settings that differ from the defaults of `zoo.recipes.Recipe`.
        weights: pretrained files by name, `zoo.weights.Source` keyword arguments.
        skip: stage -> reason why the stage does not apply.
        tolerance: largest difference of its ONNX file from Keras, see `export.to_onnx`; and the reason, if above 1e-4.
        summary: first line of the builder's docstring.
        signature: the builder's parameters and defaults, as source text.
    """

    name: str
    family: str
    module: str
    tasks: tuple[str, ...]
    inputs: dict[str, Tensor]
    paper: str
    params: int
    params_source: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tiny: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    skip: dict[str, str] = field(default_factory=dict)
    tolerance: tuple[float, str] = _TOLERANCE
    aliases: tuple[str, ...] = ()
    alternatives: dict[str, Tensor] = field(default_factory=dict)
    summary: str = ""
    signature: dict[str, str] = field(default_factory=dict)

    def build(self, **arguments: Any) -> Any:
        """Build the Keras model; the variant's own arguments are defaults that `arguments` may replace."""
        unknown = [name for name in arguments if name not in self.signature]
        if unknown:
            takes = ", ".join(f"{name}={default}" for name, default in self.signature.items())
            raise TypeError(
                f"{self.name!r} takes no argument {unknown[0]!r}; it takes {takes}.{suggest(unknown[0], self.signature)}"
            )
        for name, value in arguments.items():
            if self.signature[name].startswith("(") and not isinstance(value, tuple | list):
                raise TypeError(f"{name} takes a tuple such as {self.signature[name]}, got {value!r}")
            if self.signature[name].lstrip("-")[:1].isdigit() and isinstance(value, str):
                raise TypeError(f"{name} takes a number such as {self.signature[name]}, got {value!r}")
        shape, image = arguments.get("input_shape"), "height" in next(iter(self.inputs.values())).axes
        if image and shape is not None and (len(shape) != 3 or not all(size and size >= 1 for size in shape)):
            raise ValueError(f"input_shape must be (height, width, channels), each at least 1, got {shape!r}")
        if arguments.get("classes", 1) < 1:
            raise ValueError(f"classes must be at least 1, got classes={arguments['classes']!r}")
        if not 0 <= arguments.get("dropout", 0) < 1:
            raise ValueError(f"dropout must be a share in [0, 1), got dropout={arguments['dropout']!r}")
        return getattr(importlib.import_module(self.module), self.family)(**{**self.arguments, **arguments})


@dataclass(frozen=True)
class _Declaration:
    """The decorator's arguments, before the function below it is known."""

    name: str
    task: str | tuple[str, ...]
    inputs: dict[str, Tensor]
    paper: str
    params: int
    tiny: dict[str, Any]
    params_source: str = ""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, str] | tuple[str, ...] = ()
    data: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    skip: dict[str, str] = field(default_factory=dict)
    tolerance: tuple[float, str] = _TOLERANCE
    alternatives: dict[str, Tensor] = field(default_factory=dict)


def register(name: str, **declaration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a model; the decorator leaves the builder as it is (the declaration is read from the source).

    Args:
        name: public name of the builder with its default arguments.
        declaration: `task` (one name, or several with the usual one first), `inputs` (name -> `Tensor`), `paper`,
            `params` (trainable count at the defaults) with `params_source`, `tiny` (arguments for tests), and
            optionally `variants` (public name -> `dict(params=..., weights=..., **arguments)`), `aliases` (other
            names of `name`, or alias -> variant), `alternatives` (name -> `Tensor`, taken in place of `inputs`),
            `data`, `recipe`, `weights`, `skip` (stage -> reason), `tolerance` (of the ONNX file, with the reason why 1e-4 cannot be held).

    Raises:
        TypeError: a required part is missing or a part is unknown.
    """
    _Declaration(name=name, **declaration)
    return lambda builder: builder


def _entries(declaration: _Declaration, module: str, function: ast.FunctionDef) -> Iterator[Entry]:
    parameters = [*function.args.args, *function.args.kwonlyargs]
    defaults = [*function.args.defaults, *(d for d in function.args.kw_defaults if d)]
    if len(parameters) != len(defaults) or function.args.kwarg or function.args.vararg:
        raise TypeError(
            f"builder {function.name!r} in {module}: give every argument a default, and no *args or **kwargs"
        )
    if declaration.tolerance[0] > _TOLERANCE[0] and not declaration.tolerance[1]:
        raise TypeError(f"{declaration.name!r} in {module}: a tolerance above {_TOLERANCE[0]:g} needs its reason")
    aliases = declaration.aliases
    if not isinstance(aliases, dict):
        aliases = dict.fromkeys(aliases, declaration.name)
    common: dict[str, Any] = dict(
        family=function.name,
        module=module,
        tasks=(declaration.task,) if isinstance(declaration.task, str) else tuple(declaration.task),
        inputs=declaration.inputs,
        paper=declaration.paper,
        params_source=declaration.params_source,
        tiny=declaration.tiny,
        data=declaration.data,
        recipe=declaration.recipe,
        skip=declaration.skip,
        tolerance=declaration.tolerance,
        alternatives=declaration.alternatives,
        summary=(ast.get_docstring(function) or "").partition("\n")[0],
        signature={p.arg: ast.unparse(d) for p, d in zip(parameters, defaults, strict=True)},
    )
    base = {declaration.name: {"params": declaration.params, "weights": declaration.weights}}
    for name, variant in {**base, **declaration.variants}.items():
        arguments = {key: value for key, value in variant.items() if key not in ("params", "weights")}
        yield Entry(
            name=name,
            params=variant["params"],
            weights=variant.get("weights", {}),
            arguments=arguments,
            aliases=tuple(alias for alias, target in aliases.items() if target == name),
            **common,
        )


def _read(path: Path, module: str) -> Iterator[Entry]:
    """Entries declared in one file, by evaluating its decorators alone."""
    source = path.read_text(encoding="utf-8")
    if "@register(" not in source:
        return
    for node in ast.parse(source, str(path)).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "register":
                scope = {"register": _Declaration, "Tensor": Tensor, "dict": dict, "tuple": tuple, "range": range}
                code = compile(ast.Expression(decorator), str(path), "eval")
                try:
                    declaration = eval(code, {"__builtins__": {}}, scope)
                except NameError as error:
                    raise NameError(
                        f"{path}, line {decorator.lineno}: {error}; write the value out, the file is not run"
                    ) from None
                yield from _entries(declaration, module, node)


def _files() -> Iterator[tuple[Path, str]]:
    folder = Path(__file__).parent / "architectures"
    for path in sorted(folder.glob("*.py")):
        yield path, f"zoo.architectures.{path.stem}"
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            spec = importlib.util.find_spec(point.value)
        except ModuleNotFoundError:  # of the package that should hold it
            spec = None
        if spec is None or not spec.origin:
            raise ImportError(
                f"entry point {point.name!r} in group {ENTRY_POINTS!r} names {point.value!r}, which is not installed; "
                f"install or uninstall its distribution"
            )
        yield Path(spec.origin), point.value


@cache
def entries() -> dict[str, Entry]:
    """All entries by public name, aliases not included."""
    found: dict[str, Entry] = {}
    for path, module in _files():
        for entry in _read(path, module):
            if entry.name in found:
                raise ValueError(
                    f"{entry.name!r} is declared in both {found[entry.name].module} and {module}; rename one"
                )
            found[entry.name] = entry
    return found


def entry(name: str) -> Entry:
    """The entry behind a public name or alias.

    Raises:
        KeyError: no such model; the message suggests near names.
    """
    known = entries()
    if name in known:
        return known[name]
    aliases = {alias: e for e in known.values() for alias in e.aliases}
    if name in aliases:
        return aliases[name]
    raise UnknownModelError(
        f"no model is called {name!r} ({len(known)} are registered).{suggest(name, [*known, *aliases])}"
    )


def tolerance(name: str) -> float:
    """Largest difference from Keras that an architecture's ONNX file may have; the usual one if it has no entry."""
    try:
        return entry(name).tolerance[0]
    except UnknownModelError:
        return _TOLERANCE[0]


class UnknownModelError(KeyError):
    """No model has the name asked for."""

    def __str__(self) -> str:
        return str(self.args[0])


def suggest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a' or 'b'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def names(pattern: str = "*", task: str | None = None) -> list[str]:
    """Sorted public names that match a shell-style pattern, aliases left out.

    Args:
        pattern: `*`, `?` and `[...]` as in file names, such as `"res*"`.
        task: keep only models that can be trained for this task.

    Raises:
        ValueError: no model has that task.
    """
    known = entries()
    tasks = sorted({t for e in known.values() for t in e.tasks})
    if task is not None and task not in tasks:
        raise ValueError(f"no model has the task {task!r}; tasks are {', '.join(tasks)}.{suggest(task, tasks)}")
    return sorted(n for n, e in known.items() if fnmatch.fnmatchcase(n, pattern) and (task is None or task in e.tasks))


def show(name: str) -> str:
    """What is known of a model, as text to print."""
    e = entry(name)
    rows = {
        "name": e.name + (f" (also {', '.join(e.aliases)})" if e.aliases else ""),
        "what": e.summary,
        "paper": e.paper,
        "task": ", ".join(e.tasks),
        "inputs": " or ".join(map(_listed, filter(None, (e.inputs, e.alternatives)))),
        "parameters": f"{e.params:,} trainable{f' ({e.params_source})' if e.params_source else ''}",
        "arguments": ", ".join(f"{key}={e.arguments.get(key, default)}" for key, default in e.signature.items()),
        "data": e.data,
        "weights": "; ".join(
            f"{key} (scaling {value['inputs']}; {value['licence']})" for key, value in e.weights.items()
        ),
        "not for": "; ".join(f"{stage}: {reason}" for stage, reason in e.skip.items()),
        "tolerance": f"{e.tolerance[0]:g} in ONNX: {e.tolerance[1]}" if e.tolerance[1] else "",
        "file": e.module,
    }
    width = max(map(len, rows))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows.items() if value)


def _listed(inputs: dict[str, Tensor]) -> str:
    """Input tensors in words."""
    return "; ".join(
        f"{key}: ({', '.join(('batch', *t.axes))}) {t.dtype}{f', {t.unit}' if t.unit else ''}"
        for key, t in inputs.items()
    )


def get(name: str, *, weights: str | None = None, **arguments: Any) -> Any:
    """Build a model by name.

    Args:
        name: public name or alias, see `names()`.
        weights: None for fresh weights, a name listed by `show(name)`, or the path of a file.
        arguments: the builder's arguments, such as `input_shape=(32, 32, 3), classes=10`.

    Returns:
        `keras.Model` whose head gives logits.

    Raises:
        KeyError: no such model.
        TypeError: the builder does not take such an argument.
        ValueError: an argument is out of range, or the weights do not fit.
    """
    e = entry(name)
    if weights is None:
        return e.build(**arguments)
    from zoo.weights import build_with

    return build_with(e, weights, arguments)


def import_architecture(name: str) -> None:
    """Import the file of a model, so that Keras knows its layers when it loads a saved one."""
    importlib.import_module(entry(name).module)
