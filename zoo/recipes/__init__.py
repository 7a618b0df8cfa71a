"""Recipes: every setting of a training run as one typed value, and the runs that are proven.

A run's settings are the defaults below, then the model's own (`recipe=` in its registry entry), then the proven run
for that model and data set or, where one is named, the recipe of the literature (`zoo.recipes.literature`), then what
the caller overrides.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from zoo.registry import suggest

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "adamw", "nadam", "lion")
SCHEDULES = ("constant", "step", "exponential", "cosine", "warm_restarts", "one_cycle", "plateau")
SHAPES = {  # schedules with figures of their own, as examples with what each must look like
    "cosine:0.05": r"cosine:0?\.\d+",
    "poly:0.5": r"poly:\d+\.?\d*",
    "milestones:30:60:80": r"milestones(:\d+)+",
    "decay:0.94:2": r"decay:0?\.\d+:[1-9]\d*",
}
FIGURES = {  # how many figures an augmentation takes behind its name, such as "mixup:0.8"
    "resized_crop": 1,
    "randaugment": 2,
    "shift": 1,
    "crop": 0,
    "flip": 0,
    "rotate": 0,
    "noise": 0,
    "colour": 0,
    "erase": 1,
    "mixup": 1,
    "cutmix": 1,
    "mixup_or_cutmix": 2,
    "mosaic": 3,
}
AUGMENTATIONS = tuple(FIGURES)
MIXING = ("mixup", "cutmix", "mixup_or_cutmix", "mosaic")  # those that make one row of several
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
ADVERSARIAL = ("fgsm:8", "pgd:8", "pgd:8:10", "pgd-l2:64", "gaussian:32")  # examples; any figures will do
TOKENIZERS = ("wordpiece:8000", "bpe:4000", "unigram:2000", "words:10000", "characters")  # examples; any size will do
DATA_OPTIONS = (  # settings that say how data are read, where they are given
    "task",
    "context",
    "horizon",
    "season",
    "text",
    "tokenizer",
    "tokens",
)
SCALINGS = ("fitted", "caffe", "tf", "torch", "0/255")  # the last an example; any figures will do
ABOUT = {  # settings -> the only model inputs that they are about
    **dict.fromkeys(("context", "horizon", "season"), ("series",)),
    **dict.fromkeys(("text", "tokenizer", "tokens"), ("tokens",)),
    "scaling": ("image",),
}
FOLLOWING = (
    "input_shape",
    "classes",
    "vocabulary",
    "pad",
    "separator",
    "end",
    "places",
)  # arguments of builders that the data decide
CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": (*SCHEDULES, *SHAPES),
    "augment": AUGMENTATIONS,
    "precision": PRECISIONS,
    "adversarial": ADVERSARIAL,
    "scaling": SCALINGS,
    "tokenizer": TOKENIZERS,
}


class Perturbation(NamedTuple):
    """What is done to training rows before each step, as text `METHOD[-l2]:STRENGTH[:STEPS]`.

    Attributes:
        method: "fgsm", "pgd" or "gaussian".
        norm: "linf", a limit for each value, or "l2", one for all values of a row together.
        strength: the limit, or the standard deviation of the noise: in pixel values of 0 … 255 for images, in standard
            deviations of each column for tables.
        steps: gradient steps of the attack, 0 for noise.
    """

    method: str
    norm: str
    strength: float
    steps: int

    @classmethod
    def parse(cls, text: str) -> "Perturbation":
        """Read the text.

        Raises:
            ValueError: it is none.
        """
        found = re.fullmatch(r"(fgsm|pgd|gaussian)(-l2)?:(\d+\.?\d*)(?::(\d+))?", text)
        method, l2, strength, steps = found.groups() if found else ("", None, "0", None)
        if not float(strength) or steps == "0" or (steps and method != "pgd") or (l2 and method == "gaussian"):
            raise ValueError(
                f"adversarial must be fgsm:E, pgd:E, pgd:E:STEPS or gaussian:SIGMA with E and SIGMA above 0, and -l2 behind "
                f"the name of an attack for that norm, such as {', '.join(ADVERSARIAL)}, got {text!r}"
            )
        usual = {"fgsm": 1, "pgd": 7, "gaussian": 0}[method]  # 7 steps as Madry et al. 2018 take for CIFAR-10
        return cls(method, "l2" if l2 else "linf", float(strength), int(steps or usual))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, so that the same recipe gives the same result.

    Attributes:
        model: public name.
        data: data set name or path.
        target: target column of a table, "" where the data knows its own.
        task: what a file is for where it does not say it itself, such as "forecasting".
        context, horizon, season: of a forecast, the steps known, the steps asked for, and after how many the target repeats;
            0 for what suits the data.
        text: column of a table whose texts are read alone; "" where the data says it itself.
        tokenizer: of texts, what kind to make from the training texts, such as "wordpiece:8000", or the path of a
            `tokenizer.json`; "" for plain words, or "bpe" where texts are answered by texts. See `zoo.data.tokens`.
        tokens: that a text is filled up or cut to, 0 for as many as nearly all training texts have.
        arguments: the builder's arguments; `input_shape`, `classes` and `vocabulary` follow from the data.
        epochs: passes over the training split.
        batch_size: rows per step.
        accumulate: batches whose gradients are averaged into one step of the optimiser.
        optimizer: one of `OPTIMIZERS`; "momentum" and "nesterov" are SGD with momentum.
        momentum: of "momentum", "nesterov" and "rmsprop"; None for 0.9, and for "rmsprop" none.
        epsilon: that adaptive optimisers add to what they divide by; None for Keras' own.
        learning_rate: its highest value.
        schedule: one of `SCHEDULES`, over the whole run; "plateau" divides by 5 when validation stands still. Or, with
            figures of its own: "cosine:SHARE" that ends at this share of the rate, "poly:POWER", "milestones:EPOCH:EPOCH"
            that divides by 10 when these epochs are done, "decay:FACTOR:EPOCHS" that multiplies after each so many epochs.
        warmup: share of the steps in which the rate rises linearly from zero, in [0, 1).
        weight_decay: decoupled decay per step, relative to the learning rate.
        clip_norm: largest global norm of the gradients, None for no clipping.
        l1, l2: penalty on kernels; both together are the elastic net.
        loss: "" for the task's own, else a name from `zoo.tasks.losses`; of an embedding such as "arcface:0.5:64".
        label_smoothing: share of the target spread over all classes, in [0, 1).
        augment: names from `AUGMENTATIONS`, applied to training batches in this order, but those of pixels first; some take
            figures behind a colon, such as "mixup:0.8".
        unmixed: last epochs without those augmentations that make one row of several.
        adversarial: "" for none, else what each training and validation batch is changed by, see `Perturbation`.
        class_weights: weigh each class by the inverse of its frequency.
        precision: one of `PRECISIONS`; mixed precision pays on GPUs only.
        averaging: decay of the running average of the weights that the run ends with, 0 for none.
        patience: epochs without a better validation score before the run stops, 0 to never stop.
        weights: pretrained weights the run begins with, a declared name or a file; "" for fresh ones.
        scaling: how images are scaled: "" as the weights expect, and fitted on the training images where there are none;
            "fitted"; or a declared scaling, see `zoo.data.signature.read_scaling`.
        freeze: the last part of the network that stands still, such as "stage1"; "backbone" for all before neck, decoder
            and head; "" for none. See `zoo.backbone.parts`.
        unfreeze_every: epochs after which one more part learns, from the head to the input; 0 to keep them still.
        rate_decay: learning rate of each part as a share of that of the part behind it, in (0, 1]; the head has the whole.
        lora: rank of the adapters that learn in place of the network, 0 for none; see `zoo.training.lora`.
        lora_alpha: over `lora` it is what an adapter's product is multiplied by; 0 for 1.
        lora_layers: patterns of the names of dense layers that have adapters; queries and values, as in section 4.2 of the
            paper.
        literature: name of the published recipe these settings began with, see `zoo.recipes.literature`; "" for none.
        seed: of the weights, the order and the augmentation, and of the split where `split_seed` is None.
        split_seed: of the split; the recipe of a run names the one its data was split with.
        expected: score on the held-out split that this run is known to reach, None if not known.
    """

    model: str
    data: str
    target: str = ""
    task: str = ""
    context: int = 0
    horizon: int = 0
    season: int = 0
    text: str = ""
    tokenizer: str = ""
    tokens: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    momentum: float | None = None
    epsilon: float | None = None
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.0
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    l1: float = 0.0
    l2: float = 0.0
    loss: str = ""
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ()
    unmixed: int = 0
    adversarial: str = ""
    class_weights: bool = False
    precision: str = "float32"
    averaging: float = 0.0
    patience: int = 0
    weights: str = ""
    scaling: str = ""
    freeze: str = ""
    unfreeze_every: int = 0
    rate_decay: float = 1.0
    lora: int = 0
    lora_alpha: float = 0.0
    lora_layers: tuple[str, ...] = ("*query", "*value")
    literature: str = ""
    seed: int = 0
    split_seed: int | None = None
    expected: float | None = None

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "context": (self.context >= 0, "at least 1, or 0"),
            "horizon": (self.horizon >= 0, "at least 1, or 0"),
            "season": (self.season >= 0, "at least 1, or 0"),
            "tokens": (self.tokens >= 0, "at least 1, or 0"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "momentum": (self.momentum is None or 0 <= self.momentum < 1, "in [0, 1), or None"),
            "epsilon": (self.epsilon is None or self.epsilon > 0, "above 0, or None"),
            "unmixed": (self.unmixed >= 0, "at least 0"),
            "schedule": (
                self.schedule in SCHEDULES or any(re.fullmatch(form, self.schedule) for form in SHAPES.values()),
                f"one of {', '.join((*SCHEDULES, *SHAPES))}",
            ),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "above 0, or None"),
            "l1": (self.l1 >= 0, "at least 0"),
            "l2": (self.l2 >= 0, "at least 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "augment": (
                all(map(_augments, self.augment)),
                f"among {', '.join(AUGMENTATIONS)}, some with figures such as mixup:0.8",
            ),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "averaging": (0 <= self.averaging < 1, "in [0, 1)"),
            "patience": (self.patience >= 0, "at least 0"),
            "unfreeze_every": (self.unfreeze_every >= 0, "at least 0"),
            "rate_decay": (0 < self.rate_decay <= 1, "in (0, 1]"),
            "lora": (self.lora >= 0, "at least 1, or 0"),
            "lora_alpha": (self.lora_alpha >= 0, "above 0, or 0"),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        if self.unfreeze_every and not self.freeze:
            raise ValueError(
                f"unfreeze_every={self.unfreeze_every} has nothing to let go; say what stands still at first, such as freeze=backbone"
            )
        if self.adversarial:
            Perturbation.parse(self.adversarial)

    @property
    def data_options(self) -> dict[str, Any]:
        """Arguments of `zoo.data.load` that give the splits of this run."""
        given = {name: getattr(self, name) for name in DATA_OPTIONS if getattr(self, name)}
        return {
            "target": self.target or None,
            "seed": self.seed if self.split_seed is None else self.split_seed,
            **given,
        }

    def override(self, **settings: Any) -> "Recipe":
        """A copy with other settings; text is read as the setting's type, as from a command line.

        Raises:
            TypeError: no such setting (near names are suggested), or a value of another type.
            ValueError: a value out of range.
        """
        return dataclasses.replace(self, **{name: parse(name, value) for name, value in settings.items()})

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Read what `save` wrote."""
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        lists = {name: _tuples(value) for name, value in raw["arguments"].items()}
        tuples = {name: tuple(raw[name]) for name in ("augment", "lora_layers") if name in raw}
        return cls(**{**raw, "arguments": lists, **tuples})


def _augments(entry: str) -> bool:
    """Whether an augmentation is known, and has no more figures than it takes."""
    name, *figures = entry.split(":")
    known = name in FIGURES and len(figures) <= FIGURES[name]
    return known and all(re.fullmatch(r"\d+\.?\d*|\.\d+", figure) for figure in figures)


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
SETTINGS = {name: kind for name, kind in get_type_hints(Recipe).items() if name not in ("model", "data", "arguments")}


def parse(name: str, value: Any) -> Any:
    """The value of a setting, read from text where text is given.

    Raises:
        TypeError: no such setting, or a value of another type.
    """
    if name not in SETTINGS:
        raise TypeError(
            f"there is no training setting {name!r}; settings are {', '.join(SETTINGS)}.{suggest(name, SETTINGS)}"
        )
    kind = SETTINGS[name]
    optional = get_origin(kind) is UnionType
    if optional:
        if value is None or value in ("none", "None"):
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else tuple(value)
    if isinstance(value, str) and kind is not str:
        try:
            return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise TypeError(f"{name} takes {_KINDS[kind]}, got {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} takes {_KINDS[kind]}, got {value!r}")
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


_DIGITS: dict[str, Any] = dict(  # of networks with batch normalisation
    batch_size=64,
    optimizer="nesterov",
    learning_rate=0.05,
    weight_decay=1e-3,
    label_smoothing=0.1,
    warmup=0.1,
    augment=("rotate", "noise"),
)
_MLP: dict[str, Any] = dict(
    arguments=dict(dropout=0.3), epochs=60, learning_rate=2e-3, weight_decay=1e-2, label_smoothing=0.1
)
_VGG: dict[str, Any] = dict(
    arguments=dict(input_shape=(32, 32, 1), width=12, hidden=(64, 64), dropout=0.2),
    epochs=20,
    batch_size=64,
    learning_rate=1.5e-3,
    warmup=0.1,
    label_smoothing=0.1,
    augment=("shift", "rotate"),
)
_FACES: dict[str, Any] = dict(  # the first two stages, which are what pictures of 8 to 16 pixels have room for
    epochs=20, batch_size=64, learning_rate=2e-3, weight_decay=1e-2, loss="arcface:0.5:16"
)
_UNET: dict[str, Any] = dict(
    arguments=dict(width=8, depth=3, normalised=True),
    batch_size=8,
    learning_rate=3e-3,
    warmup=0.05,
    loss="combined",
    augment=("flip",),
)
_ROWS: dict[str, Any] = dict(  # of recurrent networks
    arguments=dict(dropout=0.2), epochs=30, batch_size=64, weight_decay=1e-2, label_smoothing=0.1, warmup=0.1
)
_DATES: dict[str, Any] = dict(
    epochs=20, batch_size=64, learning_rate=5e-3, label_smoothing=0.0, tokenizer="characters", tokens=32
)
_DATES_BLOCKS: dict[str, Any] = dict(width=64, depth=2, heads=4, hidden=128, dropout=0.0)
_YOLO: dict[str, Any] = dict(
    arguments=dict(width=12, depth=(1, 1, 1, 1)),
    epochs=24,
    learning_rate=6e-3,
    warmup=0.1,
    augment=("flip", "shift"),
)

# The score is the lowest of seeds 0, 1 and 2 on the held-out split, rounded down; `benchmarks/recipes.py` repeats them.
PROVEN: dict[tuple[str, str], dict[str, Any]] = {
    ("face_embedding", "digit_identities"): _FACES
    | dict(arguments=dict(depth=(1, 1), width=24, latent=64), expected=0.993),
    ("iresnet18", "digit_identities"): _FACES | dict(arguments=dict(depth=(2, 2), width=24, latent=64), expected=0.994),
    ("logistic_regression", "breast_cancer"): dict(  # the baseline's own kind, with the penalty of scikit-learn's
        epochs=40, learning_rate=0.1, l2=3e-3, expected=0.938
    ),
    ("mlp", "digits"): _MLP | dict(expected=0.974),
    ("mlp_shallow", "digits"): _MLP | dict(expected=0.98),
    ("mlp_deep", "digits"): _MLP | dict(expected=0.983),
    ("mlp_wide", "digits"): _MLP | dict(expected=0.983),
    ("lenet", "digits"): dict(
        arguments=dict(input_shape=(32, 32, 1)),
        epochs=30,
        learning_rate=3e-3,
        augment=("shift", "rotate"),
        expected=0.977,
    ),
    ("vgg11", "digits"): _VGG | dict(expected=0.98),
    ("vgg13", "digits"): _VGG | dict(expected=0.988),
    ("vgg16", "digits"): _VGG | dict(expected=0.988),
    ("vgg19", "digits"): _VGG | dict(expected=0.958),
    ("inception_v1", "digits"): _DIGITS
    | dict(arguments=dict(input_shape=(16, 16, 1), depth=(2, 2, 1), width=16), epochs=20, expected=0.983),
    ("inception_v3", "digits"): _DIGITS
    | dict(arguments=dict(input_shape=(16, 16, 1), depth=(1, 1, 1), width=12), epochs=20, expected=0.988),
    ("capsnet", "digits"): dict(
        arguments=dict(input_shape=(16, 16, 1), width=64, capsules=8, hidden=(128, 256), kernel=5),
        epochs=25,
        batch_size=64,
        learning_rate=3e-3,
        warmup=0.05,
        augment=("rotate", "noise"),
        expected=0.986,
    ),
    ("simple_rnn", "digits_rows"): _ROWS | dict(expected=0.963),
    ("lstm", "digits_rows"): _ROWS | dict(expected=0.96),
    ("gru", "digits_rows"): _ROWS | dict(expected=0.96),
    ("bidirectional_lstm", "digits_rows"): _ROWS | dict(expected=0.974),
    ("bidirectional_gru", "digits_rows"): _ROWS | dict(expected=0.988),
    ("lstm", "sunspots"): dict(
        arguments=dict(relative=True), epochs=60, batch_size=16, learning_rate=3e-3, expected=0.622
    ),
    ("resnet18", "digits"): _DIGITS | dict(epochs=30, expected=0.983),
    ("resnet34", "digits"): _DIGITS | dict(arguments=dict(width=16), epochs=20, expected=0.974),
    ("faster_rcnn", "shapes_boxes"): dict(
        arguments=dict(
            width=16,
            depth=(1, 1, 1),
            bottleneck=False,
            pyramid=32,
            hidden=64,
            anchors=(12, 20, 32, 48),
            proposals=32,
            candidates=100,
        ),
        epochs=12,
        batch_size=16,
        optimizer="adam",
        learning_rate=2e-3,
        warmup=0.05,
        augment=("flip",),
        expected=0.94,
    ),
    ("mobilenet_v2", "digits"): _DIGITS
    | dict(arguments=dict(depth=(1, 2, 2, 2)), epochs=25, learning_rate=0.1, expected=0.977),
    ("vit_tiny", "digits"): dict(
        arguments=dict(input_shape=(16, 16, 1), patch=8, width=64, depth=3, heads=4, pool="mean", dropout=0.1),
        epochs=70,
        learning_rate=3e-3,
        weight_decay=1e-2,
        label_smoothing=0.1,
        warmup=0.1,
        augment=("shift", "rotate"),
        expected=0.966,
    ),
    ("speech_ctc", "spoken_digits"): dict(
        arguments=dict(filters=8, width=64, depth=2),
        epochs=8,
        batch_size=16,
        learning_rate=4e-3,
        warmup=0.1,
        expected=0.998,
    ),
    ("bert_tiny", "entailment"): dict(  # of seed 0
        arguments=dict(width=64, heads=4), epochs=8, learning_rate=1e-3, tokenizer="wordpiece:200", expected=0.99
    ),
    ("bert_tiny", "memos"): dict(  # of seed 0
        arguments=dict(width=64, heads=4), epochs=12, learning_rate=2e-3, tokenizer="wordpiece:1000", expected=0.821
    ),
    ("bert_tiny", "spam"): dict(epochs=10, tokenizer="wordpiece:2000", expected=0.921),  # of seed 0
    ("gpt_nano", "stdlib_text"): dict(  # of seed 0
        arguments=dict(length=128, depth=2),
        tokens=128,
        epochs=6,
        batch_size=8,
        learning_rate=3e-3,
        warmup=0.03,
        expected=-1.82,
    ),
    ("clip_nano", "captioned_shapes"): dict(epochs=30, learning_rate=2e-3, expected=0.52),
    ("lstm", "spam"): dict(epochs=6, learning_rate=3e-3, tokenizer="words:2000", expected=0.993),
    ("seq2seq", "dates"): _DATES
    | dict(arguments=dict(width=96, depth=1, score="general", dropout=0.1), expected=0.996),
    ("t5_small", "dates"): _DATES | dict(arguments=_DATES_BLOCKS, warmup=0.1, expected=0.995),
    ("transformer", "dates"): _DATES | dict(arguments=_DATES_BLOCKS, warmup=0.1, expected=0.996),
    ("unet", "shapes"): _UNET | dict(epochs=10, expected=0.963),
    ("unet", "cells"): _UNET | dict(epochs=12, expected=0.977),
    ("yolo_nano", "shapes_boxes"): _YOLO
    | dict(arguments=dict(width=24, depth=(1, 1, 1, 1)), epochs=32, batch_size=16, learning_rate=1e-2, expected=0.975),
    ("yolo_tiny", "shapes_boxes"): _YOLO | dict(expected=0.85),
    ("yolo_small", "shapes_boxes"): _YOLO | dict(expected=0.85),  # with these arguments the same network as yolo_tiny
}


def find(model: str, data: str, defaults: dict[str, Any] | None = None, published: str = "") -> Recipe:
    """The recipe for a model on a data set: general defaults, then `defaults`, then the proven run if there is one.

    Args:
        model: public name.
        data: data set name or path.
        defaults: the model's own settings.
        published: recipe of the literature that is taken in place of the proven run, see `zoo.recipes.literature`.

    Raises:
        ValueError: the literature has no such recipe for this model.
    """
    proven = dict(PROVEN.get((model, data), {}))
    if published:
        from zoo.recipes import literature

        proven = {**literature.find(model, published).settings, "literature": published}
    arguments = proven.pop("arguments", {})
    return Recipe(model, data, arguments=arguments).override(**{**(defaults or {}), **proven})
