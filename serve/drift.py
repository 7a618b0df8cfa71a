"""Whether what a model is asked and answers still looks like its bundle's validation split. numpy only.

A worker turns a batch into counts by bin (`Sampler`), which is all that leaves it; the front keeps the counts of the
last rows of each version (`Drift`) and compares them with the shares in the bundle's `drift.json`. Per column:

- the population stability index, with what two equal distributions of these sizes show on average taken off. From 0.1
  on a column has shifted, from 0.25 on it has drifted: Siddiqi, "Credit Risk Scorecards" (2006), chapter 9.
- a test, so that few rows raise no alarm: two-sample Kolmogorov-Smirnov on the cumulated bins for what has an order
  (a little cautious, since it sees the bins and not the values), chi-squared for classes and categories. The p-values
  are corrected for the number of columns by Holm's method. A column has to fail both to be reported.
"""

import functools
import json
import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.distributions import chi_squared, holm, kolmogorov_smirnov, psi, stability
from serve.manifest import MANIFEST, Manifest

log = logging.getLogger("serve")

FILE = "drift.json"
WINDOW = 5000  # rows that are compared with the baseline
MINIMUM = 300  # rows before anything is said
BASELINE = 50  # rows that a baseline must rest on; on fewer, alarms are false more often than stated
PICTURES = 100  # that a baseline of pixel values must rest on, whose chance is not taken off
SHIFTED, DRIFTED = 0.1, 0.25  # population stability index
SIGNIFICANT = 0.01  # probability of one false alarm or more over all columns
SHARE = 0.01  # of a worker's time that may go into counting
ROWS = 64  # of one batch that are counted at most
VALUES = 2**20  # of one batch that are counted at most, unless one row holds more
PIXELS = 4096  # of one image that enter the histogram
SHOWN = 20  # columns whose bins are told, worst first
STATES = ("stable", "shifted", "drifted")


@dataclass(frozen=True)
class Feature:
    """One column that is watched.

    Attributes:
        part: "inputs", "confidence", "classes", "value" or "answers".
        name: column, image summary or channel; the part's name for outputs.
        labels: a name for each bin, in the order of the counts.
        shares: of the baseline's rows, by bin; they add up to 1.
        ordered: whether the bins have an order; False for classes and categories.
        edges: inner edges between ordered bins.
        missing: whether the last bin counts missing values.
        tested: False for pixels, which are not independent of each other and so have no p-value.
        start: where its counts begin among those of all features.
    """

    part: str
    name: str
    labels: tuple[str, ...]
    shares: np.ndarray
    ordered: bool
    edges: np.ndarray
    missing: bool
    tested: bool
    start: int

    @property
    def stop(self) -> int:
        return self.start + len(self.shares)


class Baseline:
    """`drift.json`, read: what is counted, where, and what to compare it with.

    Attributes:
        rows: of the split that the shares are of.
        features: every column watched.
        size: number of counts.
    """

    def __init__(self, raw: dict[str, Any], manifest: Manifest) -> None:
        """Read the parsed file.

        Args:
            raw: the file's content, in any order.
            manifest: of the same bundle; it has the columns and labels in the order of the tensors.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: not such a file.
        """
        self.rows = int(raw["rows"])
        self.features: list[Feature] = []
        inputs, outputs = raw["inputs"], raw["outputs"]
        columns = {port.name: port.columns for port in manifest.inputs}
        self.pixels = [
            (int(name.removeprefix("channel")), self._ordered("inputs", name, bins, tested=False))
            for name, bins in inputs.get("image", {}).items()
            if name.startswith("channel")
        ]
        self.summaries = {
            name: self._ordered("inputs", name, bins)
            for name, bins in inputs.get("image", {}).items()
            if name in SUMMARIES
        }
        self.texts = {name: self._ordered("inputs", name, bins) for name, bins in inputs.get("text", {}).items()}
        self._tokens = raw.get("pad", 0), raw.get("unknown")
        self.sounds = {name: self._ordered("inputs", name, bins) for name, bins in inputs.get("audio", {}).items()}
        self._rate = int(raw.get("rate", 1))
        self.series = {name: self._ordered("inputs", name, bins) for name, bins in inputs.get("series", {}).items()}
        self._columns = columns.get("series", ())
        numbers, categories = inputs.get("numbers"), inputs.get("categories")
        self.numbers = [self._ordered("inputs", name, numbers[name]) for name in columns["numbers"]] if numbers else []
        self.categories = [self._column(name, categories[name]) for name in columns["categories"]] if categories else []
        self.confidence = (
            self._ordered("confidence", "confidence", outputs["confidence"]) if "classes" in outputs else None
        )
        self.classes = (
            self._classes({label: outputs["classes"][label] for label in manifest.labels})
            if "classes" in outputs
            else None
        )
        self.value = self._ordered("value", "value", outputs["value"]) if "value" in outputs else None
        self.answers = {
            name: self._ordered("answers", name, bins) for name, bins in outputs.get("summaries", {}).items()
        }
        self.size = self.features[-1].stop if self.features else 0
        if self.numbers:
            widest = max(len(feature.edges) for feature in self.numbers)
            self._edges = np.full((len(self.numbers), max(1, widest)), np.inf, np.float32)
            for row, feature in zip(self._edges, self.numbers, strict=True):
                row[: len(feature.edges)] = feature.edges
            self._starts = np.array([feature.start for feature in self.numbers])
            self._missing = np.array([feature.stop - 1 for feature in self.numbers])
        self._tables = [np.searchsorted(f.edges, np.arange(256), side="right") for _, f in self.pixels]
        self._places = [
            {**{value: f.start + i for i, value in enumerate(f.labels[:-2])}, "": f.stop - 2} for f in self.categories
        ]

    def _add(self, part: str, name: str, labels: list[str], shares: list[float], **rest: Any) -> Feature:
        given = np.array(shares, float)
        if len(labels) != len(given) or (given < 0).any() or not np.isfinite(given).all():
            raise ValueError(f"{name!r} has {len(labels)} bins and the shares {shares}")
        start = self.features[-1].stop if self.features else 0
        feature = Feature(part, name, tuple(labels), given / (given.sum() or 1.0), start=start, **rest)
        self.features.append(feature)
        return feature

    def _ordered(self, part: str, name: str, bins: dict[str, Any], *, tested: bool = True) -> Feature:
        edges, shares = np.array(bins["edges"], float), list(bins["shares"])
        if len(edges) == len(shares) + 1:  # a histogram with its outer edges; values beyond count to the outer bins
            edges = edges[1:-1]
        if len(edges) + 1 != len(shares) or (np.diff(edges) <= 0).any():
            raise ValueError(f"{name!r} has the edges {bins['edges']} for {len(shares)} shares")
        texts = [f"{edge:.6g}" for edge in edges]
        labels = [f"{low} … {high}" for low, high in zip(["", *texts], [*texts, ""], strict=True)]
        missing = bins.get("missing")
        if missing is not None:
            labels.append("missing")
            shares = [share * (1 - missing) for share in shares] + [missing]
        return self._add(
            part, name, labels, shares, ordered=True, edges=edges, missing=missing is not None, tested=tested
        )

    def _column(self, name: str, bins: dict[str, Any]) -> Feature:
        labels = [*bins["values"], "missing", "unknown"]
        shares = [*bins["values"].values(), bins["missing"], bins["unknown"]]
        return self._add("inputs", name, labels, shares, ordered=False, edges=np.zeros(0), missing=False, tested=True)

    def _classes(self, rates: dict[str, float]) -> Feature:
        return self._add(
            "classes",
            "classes",
            list(rates),
            list(rates.values()),
            ordered=False,
            edges=np.zeros(0),
            missing=False,
            tested=True,
        )

    def count(
        self,
        feed: dict[str, np.ndarray],
        answers: np.ndarray | None,
        summaries: dict[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Counts of every bin, for checked raw inputs and the answers to them.

        Args:
            feed: raw inputs by port name, or the tokens of texts.
            answers: (rows, outputs), None where they are of another form or unknown.
            summaries: what `answer_summaries` gives, None where there are none.
        """
        counts = np.zeros(self.size, np.int64)
        numbers, categories, image = feed.get("numbers"), feed.get("categories"), feed.get("image")
        if numbers is not None and self.numbers and numbers.shape[1:] == (len(self.numbers),):
            # a value's bin is the number of edges not above it
            bins = self._starts + (numbers[:, :, None] >= self._edges).sum(axis=2)
            bins = np.where(np.isnan(numbers), self._missing, bins)
            counts += np.bincount(bins.ravel(), minlength=self.size)
        if categories is not None and categories.shape[1:] == (len(self.categories),):
            for feature, places, column in zip(self.categories, self._places, categories.T, strict=True):
                for value in column.tolist():
                    counts[places.get(value, feature.stop - 1)] += 1
        if image is not None and image.dtype == np.uint8 and image.ndim == 4:
            step = max(1, math.isqrt(image.shape[1] * image.shape[2] // PIXELS))
            for (channel, feature), table in zip(self.pixels, self._tables, strict=True):
                if channel < image.shape[3]:
                    found = np.bincount(image[:, ::step, ::step, channel].ravel(), minlength=256)
                    np.add.at(counts, feature.start + table, found)
            if self.summaries:
                for name, values in image_summaries(image).items():
                    if name in self.summaries:
                        self._bins(counts, self.summaries[name], values)
        tokens = feed.get("tokens")
        if tokens is not None and self.texts:
            for name, values in text_summaries(tokens, *self._tokens).items():
                if name in self.texts:
                    self._bins(counts, self.texts[name], values)
        series = feed.get("series")
        if series is not None and self.series:
            for name, values in series_summaries(series, self._columns).items():
                if name in self.series:
                    self._bins(counts, self.series[name], values)
        audio = feed.get("audio")
        if audio is not None and self.sounds:
            for name, values in audio_summaries(audio, self._rate).items():
                if name in self.sounds:
                    self._bins(counts, self.sounds[name], values)
        if answers is not None and answers.ndim == 2:
            if self.classes and self.confidence and answers.shape[1] == len(self.classes.shares):
                np.add.at(counts, self.classes.start + answers.argmax(axis=1), 1)
                self._bins(counts, self.confidence, answers.max(axis=1))
            if self.value:
                self._bins(counts, self.value, answers[:, 0])
        for name, values in (summaries or {}).items():
            if name in self.answers:
                self._bins(counts, self.answers[name], values)
        return counts

    @staticmethod
    def _bins(counts: np.ndarray, feature: Feature, values: np.ndarray) -> None:
        np.add.at(counts, feature.start + np.searchsorted(feature.edges, values, side="right"), 1)


def image_summaries(images: np.ndarray) -> dict[str, np.ndarray]:
    """One number per picture for its light, its contrast and its sharpness, which blur, night and a new camera move.

    Args:
        images: (batch, height, width, channels), uint8.

    Returns:
        `brightness`, the mean pixel value, `contrast`, the standard deviation of them, and `sharpness`, the mean
        difference between neighbours to the right and below; each (batch,), in pixel values.
    """
    values = images.astype(np.float32)
    across, down = np.abs(np.diff(values, axis=2)), np.abs(np.diff(values, axis=1))
    pairs = max(1, across[0].size + down[0].size) if len(values) else 1
    return {
        "brightness": values.mean(axis=(1, 2, 3)),
        "contrast": values.std(axis=(1, 2, 3)),
        "sharpness": (across.sum(axis=(1, 2, 3)) + down.sum(axis=(1, 2, 3))) / pairs,
    }


def text_summaries(tokens: np.ndarray, pad: int, unknown: int | None) -> dict[str, np.ndarray]:
    """Numbers that each text is watched by: another language, other words and longer messages move them.

    Args:
        tokens: (batch, length).
        pad: token that fills short rows.
        unknown: token for what the vocabulary has not, None where nothing is unknown.

    Returns:
        `length in tokens`, and `share of unknown tokens` where some can be; each (batch,).
    """
    count = (tokens != pad).sum(axis=1)
    found = {"length in tokens": count.astype(float)}
    if unknown is not None:
        found["share of unknown tokens"] = (tokens == unknown).sum(axis=1) / np.maximum(count, 1)
    return found


def series_summaries(series: np.ndarray, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Numbers that each series is watched by: another level, more unrest and another length move them.

    Args:
        series: (batch, time, columns), NaN where missing and behind a row's end.
        columns: their names.

    Returns:
        `steps`, and of each column `… mean` and `… spread` over a row's steps, 0 where it has no value; each (batch,).
    """
    known = ~np.isnan(series)
    count = np.maximum(known.sum(axis=1), 1)  # (batch, columns)
    mean = np.where(known, series, 0).sum(axis=1, dtype=np.float64) / count
    gap = np.where(known, series - mean[:, None], 0)
    spread = np.sqrt((gap**2).sum(axis=1) / count)
    steps = known.any(axis=2)
    found = {"steps": np.where(steps, np.arange(1, series.shape[1] + 1), 0).max(axis=1).astype(float)}
    for place, name in enumerate(columns):
        found |= {f"{name} mean": mean[:, place], f"{name} spread": spread[:, place]}
    return found


def audio_summaries(audio: np.ndarray, rate: int) -> dict[str, np.ndarray]:
    """Numbers that each recording is watched by: another microphone, room or way of cutting moves them.

    Args:
        audio: (batch, samples), NaN behind a row's end.
        rate: samples per second.

    Returns:
        `seconds`; `loudness in dB`, of the mean power below that of full scale; and `share of zero crossings`, which is
        higher for noise and for sharper sound; each (batch,).
    """
    known = ~np.isnan(audio)
    count = np.maximum(known.sum(axis=1), 1)
    waves = np.where(known, audio, 0).astype(np.float64)
    power = (waves**2).sum(axis=1) / count
    crossings = ((waves[:, 1:] < 0) != (waves[:, :-1] < 0)).sum(axis=1) / count
    return {
        "seconds": known.sum(axis=1) / rate,
        "loudness in dB": 10 * np.log10(np.maximum(power, 1e-12)),
        "share of zero crossings": crossings,
    }


SUMMARIES = ("brightness", "contrast", "sharpness")


def answer_summaries(outputs: dict[str, np.ndarray], task: str, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Numbers that each answer is watched by, (batch,) each, where an answer is more than a label or a value.

    Of a segmentation the share of the picture that each label covers; of a detection how many boxes of each label have a
    score of 0.5 or more, and the mean score of those that the picture has. Of an embedding over how many of its numbers its
    length is spread, as a share of them (the inverse participation ratio). Of an image and a text their cosine. Of a forecast its first and its last value. Of a transcript its symbols and how likely the best path is. Of
    labels of words the share of the places that each has, padding included.

    Args:
        outputs: answers by port name, batch first; not all of them need be there.
        task: of the manifest.
        labels: of the manifest.
    """
    if task == "segmentation" and "mask" in outputs:
        masks = outputs["mask"]
        return {f"share of {label}": (masks == place).mean(axis=(1, 2)) for place, label in enumerate(labels)}
    if task == "detection" and {"scores", "classes"} <= outputs.keys():
        scores, classes = outputs["scores"], outputs["classes"]
        sure = scores >= 0.5
        found = {f"boxes of {label}": (sure & (classes == place)).sum(axis=1) for place, label in enumerate(labels)}
        return found | {"score of boxes": (scores * sure).sum(axis=1) / np.maximum(sure.sum(axis=1), 1)}
    if task == "embedding" and "embedding" in outputs:
        squares = outputs["embedding"].astype(np.float64) ** 2
        fourth = np.maximum((squares**2).sum(axis=1), 1e-300)
        return {"spread": squares.sum(axis=1) ** 2 / fourth / squares.shape[1]}
    if task == "image-text" and {"image_embedding", "text_embedding"} <= outputs.keys():
        return {"cosine of image and text": (outputs["image_embedding"] * outputs["text_embedding"]).sum(axis=1)}
    if task == "forecasting" and "forecast" in outputs:
        return {labels[place]: outputs["forecast"][:, place] for place in sorted({0, len(labels) - 1})}
    if task == "speech-recognition" and "probabilities" in outputs:
        best = outputs["probabilities"].argmax(axis=2)
        new = np.concatenate([best[:, :1] > 0, (best[:, 1:] != best[:, :-1]) & (best[:, 1:] > 0)], axis=1)
        return {
            "symbols": new.sum(axis=1),
            "mean probability of the best path": outputs["probabilities"].max(axis=2).mean(axis=1),
        }
    if task == "token-classification" and "probabilities" in outputs:
        best = outputs["probabilities"].argmax(axis=2)
        return {f"places of {label}": (best == place).mean(axis=1) for place, label in enumerate(labels)}
    return {}


def read(folder: Path) -> Baseline | None:
    """The baseline of a verified bundle's folder; None if it has none, or one that cannot be used, which is logged."""
    try:
        raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Baseline(raw, Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        log.warning("%s/%s: %s cannot be used (%r); drift is not watched", folder.parent.name, folder.name, FILE, error)
        return None


def summarise(
    feed: dict[str, np.ndarray], outputs: dict[str, np.ndarray], manifest: Manifest, baseline: Baseline
) -> dict[str, Any]:
    """What the front needs to know of a batch: how many rows fell into each bin, and no value.

    Args:
        feed: checked raw inputs by port name, batch first.
        outputs: the answers by port name, batch first.
        manifest: the model's.
        baseline: what `read` gave for the model's bundle.

    Returns:
        `{"rows": rows counted, "counts": unsigned 32-bit little-endian counts as bytes}`; of a large batch, rows spread
        evenly over it.
    """
    first = next(iter(feed.values()))
    limit = max(1, min(ROWS, VALUES // max(1, math.prod(first.shape[1:]))))
    step = -(-len(first) // limit)
    answers = outputs.get(manifest.outputs[0].name)
    some = {name: values[::step] for name, values in outputs.items()}
    counts = baseline.count(
        {name: values[::step] for name, values in feed.items()},
        None if answers is None else answers[::step],
        answer_summaries(some, manifest.task, manifest.labels) if baseline.answers else None,
    )
    return {"rows": -(-len(first) // step), "counts": counts.astype("<u4").tobytes()}


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two summaries of one version as one."""
    counts = np.frombuffer(first["counts"], "<u4") + np.frombuffer(second["counts"], "<u4")
    return {"rows": first["rows"] + second["rows"], "counts": counts.astype("<u4").tobytes()}


class Sampler:
    """Summaries of the batches of one model version, as many as a fixed share of the time allows.

    The cost of one summary sets the pause behind it, so a model with few requests has every batch counted and a busy
    one a sample.
    """

    def __init__(
        self, manifest: Manifest, baseline: Baseline, tell: Callable[[dict[str, Any]], None], share: float = SHARE
    ) -> None:
        """Count for one model version.

        Args:
            manifest: the model's.
            baseline: what `read` gave for the model's bundle.
            tell: takes each summary.
            share: of the time that may go into this, in (0, 1].
        """
        self.manifest, self.baseline, self.tell, self.share = manifest, baseline, tell, share
        self._next = 0.0

    def __call__(self, feed: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        """Count a batch of checked raw inputs and the answers to them, if it is time to."""
        begun = time.perf_counter()
        if begun < self._next:
            return
        try:
            self.tell(summarise(feed, outputs, self.manifest, self.baseline))
        except Exception as error:  # watching must not cost an answer; the message may quote what a client sent
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("drift is watched no longer: %s at\n%s", type(error).__name__, place)
            self._next = math.inf
            return
        ended = time.perf_counter()
        self._next = ended + (ended - begun) * (1 / self.share - 1)


class _Window:
    """Counts of the last rows, in blocks of a tenth so that the oldest can be dropped."""

    def __init__(self, baseline: Baseline, rows: int) -> None:
        self.baseline, self.limit = baseline, rows
        self.counts = np.zeros(baseline.size, np.int64)
        self.rows = 0
        self.blocks: deque[tuple[int, np.ndarray, float]] = deque()  # rows, counts, when it began

    def add(self, rows: int, counts: np.ndarray) -> None:
        self.rows += rows
        self.counts += counts
        if self.blocks and self.blocks[-1][0] < max(1, self.limit // 10):
            held, sums, begun = self.blocks.pop()
            self.blocks.append((held + rows, sums + counts, begun))
        else:
            self.blocks.append((rows, counts.astype(np.int64), time.monotonic()))
        while self.rows - self.blocks[0][0] >= self.limit:
            dropped, sums, _ = self.blocks.popleft()
            self.rows -= dropped
            self.counts -= sums


class Drift:
    """The last rows of every version, compared with its baseline. May be used from several threads."""

    def __init__(
        self, folder: str | Path, *, window: int = WINDOW, minimum: int = MINIMUM, refresh: float = 5.0
    ) -> None:
        """Watch the versions of a store.

        Args:
            folder: the store, in which `<name>/<version>/drift.json` is looked for.
            window: rows compared, at most a tenth more.
            minimum: rows before anything is said.
            refresh: seconds for which an answer of `describe` stands.

        Raises:
            ValueError: window below minimum, or minimum below 1.
        """
        if not 1 <= minimum <= window:
            raise ValueError(f"minimum must lie in 1 … window, got minimum={minimum}, window={window}")
        self.folder, self.window, self.minimum, self.refresh = Path(folder), window, minimum, refresh
        self._windows: dict[tuple[str, str], _Window | None] = {}
        self._told: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def follow(self, store: Any) -> None:
        """Watch what a store serves, now and later."""
        if store.drift is self:
            return
        store.drift = self
        for versions in store.models.values():
            for model in versions.values():
                self.opened(model)

    def opened(self, model: Any) -> None:
        """A version was loaded, perhaps again: start it anew, and count its answers if it computes in this process."""
        self.forget(model.name, model.version)
        baseline = read(self.folder / model.name / model.version) if hasattr(model, "watcher") else None
        if baseline is not None:
            tell = functools.partial(self.add, model.name, model.version)
            model.watcher = Sampler(model.manifest, baseline, tell)

    def add(self, name: str, version: str, summary: dict[str, Any]) -> None:
        """Take in what a worker's `Sampler` found; `name` and `version` must be served ones."""
        counts = np.frombuffer(summary["counts"], "<u4")
        with self._lock:
            window = self._window(name, version)
            if window is not None and len(counts) != window.baseline.size:  # the version was replaced on disk
                self._forget(name, version)
                window = self._window(name, version)
            if window is not None and len(counts) == window.baseline.size:
                window.add(summary["rows"], counts)

    def forget(self, name: str, version: str) -> None:
        """Start a version anew, as after it was loaded from disk again."""
        with self._lock:
            self._forget(name, version)

    def describe(self, name: str, version: str) -> dict[str, Any]:
        """What can be said of a version now.

        Returns:
            `state` ("stable", "shifted", "drifted", "waiting" for more rows, or "unknown" without a usable baseline),
            `verdict` (a sentence or two for people), `rows`, `minimum`, `window`, `seconds` since the oldest row, and
            `features`, worst first: each with `part`, `name`, `state`, `psi`, `test` ("ks", "chi2" or ""),
            `statistic`, `p` (corrected, None without a test), `said`, and for the first 20 `labels`, `expected` and
            `observed` (shares by bin).
        """
        key, now = (name, version), time.monotonic()
        with self._lock:
            then, told = self._told.get(key, (-math.inf, {}))
            if now - then < self.refresh:
                return told
            window = self._window(name, version)
            if window is not None:
                baseline, counts, rows = window.baseline, window.counts.copy(), window.rows
                seconds = now - window.blocks[0][2] if window.blocks else 0.0
        frame = {"rows": 0, "minimum": self.minimum, "window": self.window, "seconds": 0.0, "features": []}
        if window is None:
            return {"state": "unknown", "verdict": f"the bundle has no {FILE} to compare with", **frame}
        frame |= {"rows": rows, "seconds": round(seconds, 1)}
        if baseline.rows < BASELINE:
            verdict = (
                f"drift is not judged: the bundle's baseline rests on {baseline.rows} rows of the validation split, at "
                f"least {BASELINE} are needed; export it with more rows"
            )
            return {"state": "unknown", "verdict": verdict, **frame}
        if rows < self.minimum:
            verdict = f"{rows} of the {self.minimum} rows that a comparison needs have been seen"
            return {"state": "waiting", "verdict": verdict, **frame}
        told = frame | compare(baseline, counts)
        with self._lock:
            self._told[key] = (now, told)
        return told

    def _forget(self, name: str, version: str) -> None:
        self._windows.pop((name, version), None)
        self._told.pop((name, version), None)

    def _window(self, name: str, version: str) -> _Window | None:
        key = (name, version)
        if key not in self._windows:
            baseline = read(self.folder / name / version)
            self._windows[key] = _Window(baseline, self.window) if baseline and baseline.size else None
        return self._windows[key]


def compare(baseline: Baseline, counts: np.ndarray) -> dict[str, Any]:
    """State, verdict and features, worst first, of counts against a baseline; see `Drift.describe`."""
    sides = [
        (feature, counts[feature.start : feature.stop])
        for feature in baseline.features
        if feature.tested or baseline.rows >= PICTURES
    ]
    found = [_compared(feature, seen, baseline.rows) for feature, seen in sides if seen.any()]
    tested = [entry for entry in found if entry["p"] is not None]
    for entry, p in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry["p"] = p
    for entry in found:
        significant = entry["p"] is None or entry["p"] < SIGNIFICANT
        entry["state"] = STATES[significant * int((entry["psi"] >= SHIFTED) + (entry["psi"] >= DRIFTED))]
    found.sort(key=lambda entry: (-STATES.index(entry["state"]), -entry["psi"]))
    for entry in found[SHOWN:]:
        for key in ("labels", "expected", "observed"):
            del entry[key]
    moved = [entry for entry in found if entry["state"] != "stable"]
    if not moved:
        verdict = f"as on the validation split: none of {len(found)} columns has shifted"
    else:
        first = "; ".join(f"{entry['name']} has {entry['state']}: {entry['said']}" for entry in moved[:3])
        verdict = f"{len(moved)} of {len(found)} columns differ from the validation split. {first}"
    return {"state": found[0]["state"] if found else "stable", "verdict": verdict, "features": found}


def _compared(feature: Feature, counts: np.ndarray, rows: int) -> dict[str, Any]:
    """One feature's figures, with its p-value uncorrected; something of it was counted."""
    total = int(counts.sum())
    expected, observed = feature.shares * rows, counts.astype(float)
    index = psi(expected, observed) if feature.tested else stability(feature.shares, observed / total)
    test, statistic, p = "", None, None
    if feature.tested and feature.ordered:
        ordered = slice(0, len(feature.edges) + 1)
        test = "ks"
        statistic, p = kolmogorov_smirnov(expected[ordered], observed[ordered])
        if feature.missing:  # two tests, of the values and of how many are missing
            sides = [np.array([side[ordered].sum(), side[-1]]) for side in (expected, observed)]
            p = min(1.0, 2 * min(p, chi_squared(*sides)[1]))
    elif feature.tested:
        test = "chi2"
        statistic, p = chi_squared(expected, observed)
    shares = observed / total
    return {
        "part": feature.part,
        "name": feature.name,
        "state": "",
        "psi": round(index, 4),
        "test": test,
        "statistic": None if statistic is None else round(statistic, 4),
        "p": p,
        "said": _said(feature, shares),
        "labels": list(feature.labels),
        "expected": feature.shares.round(5).tolist(),
        "observed": shares.round(5).tolist(),
    }


def _said(feature: Feature, shares: np.ndarray) -> str:
    """The change in words."""
    gap = shares - feature.shares
    if feature.missing and abs(gap[-1]) >= np.abs(gap[:-1]).max():
        return f"{feature.shares[-1]:.0%} of the values were missing, now {shares[-1]:.0%} are"
    if not feature.ordered:
        most = int(np.abs(gap).argmax())
        return f"{feature.labels[most]!r} was {feature.shares[most]:.0%} of the rows, now it is {shares[most]:.0%}"
    bins = len(feature.edges) + 1
    before, after = (side[:bins] / (side[:bins].sum() or 1.0) for side in (feature.shares, shares))
    higher = float(after @ (np.cumsum(before) - before / 2))  # chance that a new value is above an old one
    if abs(higher - 0.5) < 0.05:
        return "the values are spread otherwise around the same middle"
    return f"the values are mostly {'higher' if higher > 0.5 else 'lower'} than they were"
