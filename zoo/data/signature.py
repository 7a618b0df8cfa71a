"""What a model's raw inputs and outputs mean; it is fitted on the training split and travels with the model.

Raw inputs are a dictionary of arrays, as a client sends them:

- image: `{"image": uint8 (batch, height, width, channels)}`, in 0 … 255
- table: `{"numbers": float32 (batch, columns)}` with NaN where missing, and, when the table has any,
  `{"categories": str (batch, columns)}` with "" where missing
- series: `{"series": float32 (batch, time, columns)}` with NaN where missing, and in all columns behind a row's end
- text: `{"text": str (batch,)}`
- audio: `{"audio": float32 (batch, samples)}` in [-1, 1] with NaN behind a row's end
- captioned: `{"image": uint8 (batch, height, width, channels), "text": str (batch,)}`

`Signature.inputs(raw)` gives the model's own input: float32, or int32 tokens of a text; or a dictionary of such arrays by
name, for a model of several inputs. The exported ONNX file holds the same arithmetic; its input is the tokens where a client's
is a text, and `tokenizer.json` travels beside it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import targets
from zoo.data.audio import AudioPreprocess
from zoo.data.lazy import Pictures
from zoo.data.texts import TextPreprocess

TOKENIZER = "tokenizer.json"  # file beside a signature or a manifest of texts
EDGE = 1e-6  # probabilities nearer to 0 or 1 have no log odds in float32
_COUNTED = 2**22  # pixels whose values are counted at once
STEEPEST = 80.0  # log odds whose exponential float32 still holds


def _divisors(std: np.ndarray, mean: np.ndarray) -> list[float]:
    """What to divide by: 1 where a column is constant up to rounding."""
    return np.where(std > 1e-7 * np.abs(mean), std, 1.0).tolist()


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each channel's values over uint8 images `(rows, …, channels)`, and of their squares, int64 `(channels,)`."""
    counts = np.zeros((images.shape[-1], 256), np.int64)  # how often each value occurs
    step = max(1, _COUNTED // images[0, ..., 0].size)
    for start in range(0, len(images), step):
        for channel in range(len(counts)):
            counts[channel] += np.bincount(images[start : start + step, ..., channel].ravel(), minlength=256)
    return counts @ np.arange(256), counts @ np.arange(256) ** 2


# What pretrained weights expect of RGB pixels, 0 … 255: mean, std, and whether the model then takes BGR. The names are those of
# keras.applications' `preprocess_input`; "torch" has the ImageNet statistics of torchvision's and most of timm's models.
SCALINGS: dict[str, tuple[tuple[float, ...], tuple[float, ...], bool]] = {
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0), True),
    "tf": ((127.5,), (127.5,), False),
    "torch": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
}


def read_scaling(text: str) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and std of each channel on the 0 … 255 scale, and whether the model takes the first three in reverse.

    Args:
        text: a name in `SCALINGS`, or `MEAN/STD` with one number each, or one for each channel as it comes and commas
            between, such as "0/255"; `bgr:` before it for models that then take blue first.

    Raises:
        ValueError: it is neither, or a std is not above 0.
    """
    if text in SCALINGS:
        return SCALINGS[text]
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.removeprefix("bgr:").split("/"))
    except ValueError:
        mean, std = (), ()
    if not mean or len(mean) != len(std) or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise ValueError(
            f"scaling must be one of {', '.join(SCALINGS)}, or MEAN/STD on the 0 … 255 scale with as many numbers before as "
            f"behind, such as 0/255 or bgr:124,117,104/1,1,1; got {text!r}"
        )
    return mean, std, text.startswith("bgr:")


@dataclass(frozen=True)
class ImagePreprocess:
    """Pixels to `(pixel - mean) / std`, per channel, and then to the order of channels that the model takes.

    Attributes:
        height, width: of the images, in pixels.
        mean, std: of each channel as it comes, on the 0 … 255 scale.
        kind: "image".
        order: places of the model's channels among those that come, such as (2, 1, 0) for BGR; () as they come.
        scaling: "" where mean and std were fitted on the training images; else what was declared, see `read_scaling`.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str = "image"
    order: tuple[int, ...] = ()
    scaling: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input, `(height, width, channels)`."""
        return self.height, self.width, len(self.mean)

    @classmethod
    def fit(cls, images: np.ndarray | Pictures) -> "ImagePreprocess":
        """Mean and standard deviation per channel of the training images, uint8 `(rows, height, width, channels)`."""
        height, width = images.shape[1:3]
        total = len(images) * height * width
        moments = images.moments() if isinstance(images, Pictures) else _moments(images)
        # whole numbers of any size, divided once: the same to the last digit whoever added them up
        sums, squares = ([int(value) for value in moment] for moment in moments)
        mean = np.array([one / total for one in sums])
        variance = np.array([(total * two - one * one) / total**2 for one, two in zip(sums, squares, strict=True)])
        return cls(height, width, tuple(mean.tolist()), tuple(_divisors(np.sqrt(variance), mean)))

    @classmethod
    def declared(cls, scaling: str, shape: tuple[int, ...]) -> "ImagePreprocess":
        """What pretrained weights expect, for images `(height, width, channels)`.

        One channel in place of several takes the average of their figures; more channels than there are figures take these
        again from the first on, as the adapted first convolution takes its kernels (`zoo.weights`).

        Args:
            scaling: see `read_scaling`.
            shape: of one image.

        Raises:
            ValueError: the scaling cannot be read.
        """
        height, width, channels = shape
        mean, std, backwards = read_scaling(scaling)
        if len(mean) == 1:
            mean, std = mean * channels, std * channels
        swapped = min(3, channels) if backwards and channels > 1 else 0
        order = (*range(swapped)[::-1], *range(swapped, channels))
        figures = np.array([mean, std])
        if channels == 1:
            figures = figures.mean(axis=1, keepdims=True)
        elif channels != len(mean):
            taken = figures[:, ::-1] if backwards else figures  # in the order of the file's kernels
            figures = taken[:, np.arange(channels) % len(mean)][:, np.argsort(order)]
        means, stds = figures.tolist()
        return cls(height, width, tuple(means), tuple(stds), order=order if swapped else (), scaling=scaling)

    @property
    def declaration(self) -> str:
        """Text from which `declared` makes this step for images of any size."""
        if self.scaling:
            return self.scaling
        return f"{','.join(map(repr, self.mean))}/{','.join(map(repr, self.std))}"

    def ordered(self, values: Any) -> np.ndarray:
        """Values `(…, channels)` of the channels as they come, in the model's order, float32."""
        values = np.asarray(values, np.float32)
        return values[..., list(self.order)] if self.order else values

    def unordered(self, values: np.ndarray) -> np.ndarray:
        """Values `(…, channels)` of the model's channels, in the order in which they come."""
        return values[..., np.argsort(self.order)] if self.order else values

    def pixels(self, inputs: np.ndarray) -> np.ndarray:
        """Pixels on the 0 … 255 scale, float32 and neither rounded nor clipped, of the model's inputs `(batch, …)`."""
        return self.unordered(inputs) * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)

    def __call__(self, raw: dict[str, np.ndarray]) -> np.ndarray:
        images = np.asarray(raw["image"]).astype(np.float32)
        return self.ordered((images - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32))


@dataclass(frozen=True)
class TablePreprocess:
    """Columns to features: numbers standardised with the mean in place of NaN, then one 0/1 per known category value.

    A category value never seen in training, and a missing one, gives zeros in all of its column's places.
    """

    numbers: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kind: str = "table"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input, `(features,)`."""
        return (len(self.numbers) + sum(map(len, self.categories.values())),)

    @property
    def features(self) -> tuple[str, ...]:
        """Name of each model feature, categories as `column=value`."""
        return (*self.numbers, *(f"{column}={value}" for column, values in self.categories.items() for value in values))

    @classmethod
    def fit(
        cls, raw: dict[str, np.ndarray], numbers: tuple[str, ...], categories: tuple[str, ...]
    ) -> "TablePreprocess":
        """Mean and standard deviation of each number column, and values of each category column, of training rows."""
        mean, std = np.zeros(0), np.zeros(0)
        if numbers:
            values = np.ma.masked_invalid(raw["numbers"].astype(np.float64))
            mean, std = values.mean(0).filled(0.0), values.std(0).filled(0.0)
        known = {column: np.unique(raw["categories"][:, place]) for place, column in enumerate(categories)}
        return cls(
            numbers=tuple(numbers),
            mean=tuple(mean.tolist()),
            std=tuple(_divisors(std, mean)),
            categories={column: tuple(str(value) for value in values if value) for column, values in known.items()},
        )

    def __call__(self, raw: dict[str, np.ndarray]) -> np.ndarray:
        parts = []
        if self.numbers:
            mean = np.asarray(self.mean, np.float32)
            numbers = raw["numbers"].astype(np.float32)
            parts.append((np.where(np.isnan(numbers), mean, numbers) - mean) / np.asarray(self.std, np.float32))
        for position, values in enumerate(self.categories.values()):
            column = raw["categories"][:, position, None]
            parts.append((column == np.asarray(values)[None]).astype(np.float32))
        return np.concatenate(parts, axis=1)


def lengths(series: np.ndarray) -> np.ndarray:
    """Steps of each row of a series `(batch, time, columns)`, int64 `(batch,)`: up to the last that has any number."""
    known = ~np.isnan(series).all(axis=2)  # (batch, time)
    return np.where(known.any(axis=1), known.shape[1] - known[:, ::-1].argmax(axis=1), 0)


@dataclass(frozen=True)
class SeriesPreprocess:
    """Columns standardised with the mean in place of a missing value; what stands behind a row's end stays NaN.

    Attributes:
        length: most steps of a row.
        numbers: names of the columns.
        mean, std: of each column, over all steps of the training rows.
        kind: "series".
        time: the column of times that files have beside these, and its step, see `serve.times.checked`; empty where not
            known, as of runs from before it was kept.
    """

    length: int
    numbers: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str = "series"
    time: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input, `(time, columns)`."""
        return self.length, len(self.numbers)

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """None: a series has numbers alone."""
        return {}

    @classmethod
    def fit(cls, series: np.ndarray, numbers: tuple[str, ...]) -> "SeriesPreprocess":
        """Mean and standard deviation of each column of training rows `(rows, time, columns)`."""
        values = np.ma.masked_invalid(series.astype(np.float64))
        mean, std = (figure.filled(0.0) for figure in (values.mean((0, 1)), values.std((0, 1))))
        return cls(series.shape[1], tuple(numbers), tuple(mean.tolist()), tuple(_divisors(std, mean)))

    def __call__(self, raw: dict[str, np.ndarray]) -> np.ndarray:
        series = raw["series"].astype(np.float32)
        mean = np.asarray(self.mean, np.float32)
        within = np.arange(series.shape[1]) < lengths(series)[:, None]  # (batch, time)
        filled = np.where(np.isnan(series) & within[..., None], mean, series)
        return (filled - mean) / np.asarray(self.std, np.float32)


@dataclass(frozen=True)
class CaptionedPreprocess:
    """Pictures and texts, each by its own step.

    Attributes:
        image, text: the steps.
        kind: "captioned".
    """

    image: ImagePreprocess
    text: TextPreprocess
    kind: str = "captioned"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one picture, `(height, width, channels)`."""
        return self.image.shape

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each model input of one row."""
        return {"image": self.image.shape, "tokens": self.text.shape}

    @property
    def numbers(self) -> tuple[str, ...]:
        """None: there are no columns."""
        return ()

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """None, as `numbers`."""
        return {}

    @property
    def scaling(self) -> str:
        """That of the pictures."""
        return self.image.scaling

    def __call__(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": self.image(raw), "tokens": self.text(raw)}


Preprocess = (
    ImagePreprocess | TablePreprocess | SeriesPreprocess | TextPreprocess | AudioPreprocess | CaptionedPreprocess
)
_STEPS: dict[str, Any] = {
    "image": ImagePreprocess,
    "table": TablePreprocess,
    "series": SeriesPreprocess,
    "text": TextPreprocess,
    "audio": AudioPreprocess,
    "captioned": CaptionedPreprocess,
}


@dataclass(frozen=True)
class Forecast:
    """What a forecast is about.

    Attributes:
        target: column of the series whose next values are asked for.
        season: steps after which it repeats, 1 where it does not.
        scale: mean absolute change of the training values from one season (or step) to the next, in the target's unit;
            errors are told in shares of it (Hyndman & Koehler 2006, "Another look at measures of forecast accuracy",
            section 3).
    """

    target: str
    season: int
    scale: float


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities `(…, classes)` of logits, float32."""
    logits = np.asarray(logits, np.float32)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Calibration:
    """Logits to probabilities that are right as often as they say; `zoo.evaluate.calibrate` finds the constants.

    Attributes:
        method: "temperature": softmax of `logits * scale` (Guo et al. 2017, section 4.2); "platt": of each class
            `sigmoid(scale * log odds + bias)`, then divided by their sum (Platt 1999; Zadrozny & Elkan 2002, section
            3).
        scale: one number, 1 / temperature; or one per class.
        bias: one per class for "platt"; else empty.
    """

    method: str
    scale: tuple[float, ...]
    bias: tuple[float, ...] = ()

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities `(batch, classes)` of logits, float32."""
        if self.method == "temperature":
            return softmax(np.asarray(logits, np.float32) * np.float32(self.scale[0]))
        return self.decided(self.odds(logits))

    def odds(self, logits: np.ndarray) -> np.ndarray:
        """Log odds `(batch, classes)` of each class against the rest, which "platt" scales."""
        likely = np.clip(softmax(logits), EDGE, 1 - EDGE)
        return np.log(likely) - np.log(1 - likely)

    def decided(self, odds: np.ndarray) -> np.ndarray:
        """Probabilities of log odds, for "platt"."""
        moved = odds * np.asarray(self.scale, np.float32) + np.asarray(self.bias, np.float32)
        alone = 1 / (1 + np.exp(-np.clip(moved, -STEEPEST, STEEPEST)))
        return (alone / alone.sum(axis=-1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Signature:
    """Task, labels and preprocessing of a data set, as fitted on its training split.

    Attributes:
        task: "image-classification", "classification", "regression", "segmentation" …, see `zoo.tasks`.
        labels: class names in the order of the logits; for regression the target's name; for a forecast a name for each
            step.
        preprocess: raw inputs to model input.
        target_mean, target_std: a regression model is trained on `(target - mean) / std`; 0 and 1 otherwise.
        calibration: how logits become probabilities, plain softmax if None. A data set has none; an export may add one.
        forecast: what is forecast, None for other tasks.
    """

    task: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    target_mean: float = 0.0
    target_std: float = 1.0
    calibration: Calibration | None = None
    forecast: Forecast | None = None

    @property
    def outputs(self) -> int:
        """Number of outputs of the model's head; for a segmentation, of each pixel."""
        return len(self.labels)

    @property
    def one_label(self) -> bool:
        """Whether an answer is the probabilities of one label for each row."""
        return isinstance(targets.of(self.task), targets.Classes)

    @property
    def one_number(self) -> bool:
        """Whether an answer is one label or one value for each row, and no mask, box or the like."""
        return self.one_label or self.task == "regression"

    @property
    def valued(self) -> bool:
        """Whether an answer is values in the unit of the target, which is learned in standard deviations."""
        return isinstance(targets.of(self.task), targets.Values)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each model input of one row, by name; the name is "" where there is one input alone."""
        found = getattr(self.preprocess, "shapes", {})
        return found if len(found) > 1 else {"": self.preprocess.shape}

    @property
    def text(self) -> TextPreprocess | None:
        """The step that makes tokens, None where there is none."""
        step = self.preprocess.text if isinstance(self.preprocess, CaptionedPreprocess) else self.preprocess
        return step if isinstance(step, TextPreprocess) else None

    def inputs(self, raw: dict[str, np.ndarray]) -> Any:
        """Model input, float32 or int32 tokens, from raw inputs; of several inputs a dictionary by their names."""
        return self.preprocess(raw)

    def fed(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the exported file takes, from raw inputs: these themselves, but the tokens of a text."""
        step = self.preprocess
        if step.kind == "captioned":
            return {"image": raw["image"], "tokens": step.text(raw)}
        if step.kind != "text":
            return raw
        found = self.inputs(raw)
        return found if isinstance(found, dict) else {"tokens": found}

    def targets(self, y: np.ndarray) -> np.ndarray:
        """What a task encodes for the loss.

        Class indices `(batch,)` int64, standardised values `(batch, 1)` or `(batch, steps)` float32, or what else
        `zoo.data.targets` has.
        """
        if self.task == "token-classification":
            return y[:, : self.preprocess.length]  # words that are cut are judged alone
        if not self.valued:
            return targets.of(self.task).encoded(y)
        return ((y.reshape(len(y), -1) - self.target_mean) / self.target_std).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write as JSON; a tokenizer to `tokenizer.json` beside it."""
        described = asdict(self)
        if self.text:
            Path(path).with_name(TOKENIZER).write_text(self.text.tokenizer, encoding="utf-8")
            text_of(described["preprocess"])["tokenizer"] = TOKENIZER
        Path(path).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Signature":
        """Read what `save` wrote."""
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if text := text_of(raw["preprocess"]):
            text["tokenizer"] = Path(path).with_name(TOKENIZER).read_text(encoding="utf-8")
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Signature":
        step = _step(raw["preprocess"])
        found = raw.get("calibration")
        if found is not None:
            found = Calibration(found["method"], tuple(found["scale"]), tuple(found["bias"]))
        forecast = None if raw.get("forecast") is None else Forecast(**raw["forecast"])
        known = {"labels": tuple(raw["labels"]), "preprocess": step, "calibration": found, "forecast": forecast}
        return cls(**{**raw, **known})


def text_of(described: dict[str, Any]) -> dict[str, Any] | None:
    """Of a preprocessing in JSON the part that makes tokens, None where there is none."""
    return {"text": described, "captioned": described.get("text")}.get(described["kind"])


def _step(described: dict[str, Any]) -> Any:
    """A preprocessing from JSON."""
    found = dict(described)
    for key in ("mean", "std", "order", "numbers"):
        if key in found:
            found[key] = tuple(found[key])
    if "categories" in found:
        found["categories"] = {key: tuple(values) for key, values in found["categories"].items()}
    if found["kind"] == "captioned":
        found |= {part: _step(found[part]) for part in ("image", "text")}
    return _STEPS[found["kind"]](**found)
