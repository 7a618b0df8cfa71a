"""Data by name or path, split and described: `load("digits")`, `load("photos/")`, `load("patients.csv", target="ill")`.

Statistics for scaling come from the training split alone and travel with the model as a `Signature`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zoo.data import audio, captions, corpus, hiding, images, lazy, masks, splits, tagging, targets
from zoo.data.audio import AudioPreprocess
from zoo.data.builtin import BUILTIN
from zoo.data.online import ONLINE
from zoo.data.rows import TEST, TRAIN, VALIDATION, Rows, digests, fingerprint
from zoo.data.series import Recording
from zoo.data.signature import (
    CaptionedPreprocess,
    ImagePreprocess,
    SeriesPreprocess,
    Signature,
    TablePreprocess,
    lengths,
)
from zoo.data.texts import TextPreprocess
from zoo.registry import suggest

__all__ = [
    "AudioPreprocess",
    "CaptionedPreprocess",
    "Data",
    "ImagePreprocess",
    "Rows",
    "SeriesPreprocess",
    "Signature",
    "Split",
    "TablePreprocess",
    "TextPreprocess",
    "from_rows",
    "load",
    "names",
    "scaled",
]


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        x: raw inputs by name, see `zoo.data.signature`. Where all pictures together do not fit in memory they are
            `zoo.data.lazy.Pictures`, which stay in their files until rows of them are read.
        y: class indices int64 `(rows,)`, regression targets float32 `(rows,)` in their own unit, or what else
            `zoo.data.targets` has, such as masks uint8 `(rows, height, width)`.
    """

    x: dict[str, np.ndarray | lazy.Pictures]
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Data:
    """A data set, split.

    Attributes:
        name: name of the data set, or of the file or folder.
        signature: task, labels and preprocessing, fitted on `train`.
        train, validation, test: the splits, in seeded order; windows to judge forecasts by in order of time.
        source, licence: where the rows come from and their terms.
        sha256: hash of all rows, whatever their split.
        generated: the rows were computed, not observed.
        seed: that `load` split them with; None where it did not.
    """

    name: str
    signature: Signature
    train: Split
    validation: Split
    test: Split
    source: str
    licence: str
    sha256: str
    generated: bool = False
    seed: int | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def leaks(self) -> list[tuple[str, int, str, int]]:
        """Rows whose inputs stand in an earlier split too.

        Returns:
            `(split, row, earlier split, row there)`, for each row found again; empty if no row leaks.
        """
        seen: dict[bytes, tuple[str, int]] = {}
        found = []
        for name, split in self.splits.items():
            own: dict[bytes, tuple[str, int]] = {}
            for row, digest in enumerate(digests(split.x)):
                if digest in seen:
                    found.append((name, row, *seen[digest]))
                else:
                    own.setdefault(digest, (name, row))
            seen.update(own)
        return found

    def summary(self) -> str:
        """Rows per split, class balance, what is missing or cut, leaks and licence, as text to print."""
        step = self.signature.preprocess
        shape = "x".join(map(str, step.shape))
        what = f"images of {shape} pixels" if step.kind == "image" else f"rows of {_columns(step)}"
        if step.kind == "series":
            what = f"series of {_steps(step)}"
        if step.kind == "audio":
            what = f"recordings of up to {step.samples / step.rate:.2f} s at {step.rate} Hz"
        if step.kind == "text":
            what = f"texts as {step.length} of {step.vocabulary:,} tokens"
            what += f", with answers of up to {step.answer - 2}" * bool(step.answer)
        if step.kind == "captioned":
            what = f"images of {shape} pixels with texts as {step.text.length} of {step.text.vocabulary:,} tokens"
        total = sum(map(len, self.splits.values()))
        head = f"{self.name}: {total:,} {'generated ' if self.generated else ''}{what}, {self.signature.task}"
        forecast = self.signature.forecast
        if self.signature.valued:
            rows = [
                ("target " + (forecast.target if forecast else self.signature.labels[0]), *self.splits),
                ("rows", *(f"{len(s):,}" for s in self.splits.values())),
            ]
            values = [s.y.astype(np.float64) for s in self.splits.values()]
            for name in ("mean", "std", "min", "max"):
                rows.append((name, *(f"{getattr(np, name)(y):.4g}" if len(y) else "-" for y in values)))
        else:
            kind, classes = targets.of(self.signature.task), self.signature.outputs
            present = [kind.present(s.y, classes).sum(axis=0) for s in self.splits.values()]
            counts = sum(kind.counts(s.y, classes) for s in self.splits.values())
            rows = [("class" if self.signature.one_label else "rows with", *self.splits, "share")]
            for index, label in enumerate(self.signature.labels[: len(present[0])]):
                share = counts[index] / max(1, counts.sum())
                rows.append((label, *(f"{int(rows_of[index]):,}" for rows_of in present), f"{share:.1%}"))
            whole = [kind.whole(s.y) for s in self.splits.values()]
            if whole[0] is not None:
                rows.append((kind.together[1], *(f"{len(np.unique(codes)):,}" for codes in whole), ""))
            rows.append(("all", *(f"{len(s):,}" for s in self.splits.values()), "100.0%"))
        width = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = [
            f"  {row[0]:<{width[0]}}" + "".join(f"  {v:>{w}}" for v, w in zip(row[1:], width[1:], strict=True))
            for row in rows
        ]
        return "\n".join(
            [
                head,
                *table,
                *self._missing(),
                *self._lost(),
                *([f"  forecast: {_asked(self.signature)}"] if forecast else []),
                f"  leaks: {_leaks(self.leaks())}",
                f"  source: {self.source}",
                f"  licence: {self.licence}",
                f"  sha256: {self.sha256}",
            ]
        )

    def _missing(self) -> list[str]:
        step = self.signature.preprocess
        if step.kind in ("image", "text", "audio", "captioned"):
            return []
        found = {}
        if "series" in self.train.x:
            every = [s.x["series"] for s in self.splits.values()]
            within = [np.arange(values.shape[1]) < lengths(values)[:, None] for values in every]
            gaps = sum((np.isnan(v) & w[..., None]).sum((0, 1)) for v, w in zip(every, within, strict=True))
            found.update(zip(step.numbers, gaps.tolist(), strict=True))
        if "numbers" in self.train.x:
            gaps = sum(np.isnan(s.x["numbers"]).sum(0) for s in self.splits.values())
            found.update(zip(step.numbers, gaps.tolist(), strict=True))
        if "categories" in self.train.x:
            gaps = sum((s.x["categories"] == "").sum(0) for s in self.splits.values())
            found.update(zip(step.categories, gaps.tolist(), strict=True))
        text = ", ".join(f"{column} {count:,}" for column, count in found.items() if count)
        return [f"  missing values: {text}"] if text else []

    def _lost(self) -> list[str]:
        """What a model does not see of texts."""
        step = self.signature.text
        if step is None or "text" not in self.train.x:
            return []
        every = [s.x for s in self.splits.values()]
        texts, second = ([str(text) for x in every for text in x.get(name, ())] for name in ("text", "second"))
        cut, unknown = step.lost(texts, second)
        told = []
        if cut:
            told.append(f"cut: {cut:,} of {len(texts):,} texts, to {step.length} token{'s' * (step.length > 1)}")
        if unknown >= 0.0005:
            told.append(f"unknown: {unknown:.1%} of the tokens")
        return [f"  {'; '.join(told)}"] if told else []


def names() -> list[str]:
    """Sorted names of the data sets that `load` knows."""
    return sorted([*BUILTIN, *ONLINE])


def load(
    source: "str | Path | Data",
    *,
    input_shape: tuple[int, ...] | None = None,
    target: str | None = None,
    task: str | None = None,
    text: str = "",
    tokenizer: str | TextPreprocess = "",
    tokens: int = 0,
    rate: int = 0,
    seed: int = 0,
    validation: float = 0.15,
    test: float = 0.2,
    context: int = 0,
    horizon: int = 0,
    season: int = 0,
) -> Data:
    """Read a data set and split it.

    Args:
        source: a name from `names()`; a folder with one folder of images per class, or with folders `images` and
            `masks` (see `zoo.data.masks`), or with `train`, `validation` and `test` folders of these; a `.csv` or
            `.parquet` file; a `.txt` file of running text, or a folder of these; an `.npz` file with arrays `x, y` or
            `x_train, y_train, x_test, y_test`; or a `Data`, which is returned as it is.
        input_shape: `(height, width, channels)` to resize and convert images to, `(time, columns)` of series that are to
            be filled up to so many steps; None keeps their own.
        target: column to predict, for CSV and Parquet.
        task: "classification" or "regression", where the target's type does not say it: text, true/false and up to
            20 different integers are classes, other numbers are values; "forecasting" of a table whose rows follow each
            other in time; "language-modelling" and "masked-language-modelling" of any texts, whose labels are then left
            aside; "text-to-text" of a table whose target is a text; "text-to-image" of any images with captions.
        text: column of a CSV or Parquet file whose texts are read, and nothing else of it; found where it is the only one
            besides the target.
        tokenizer: of texts: what kind to make from the training texts, such as "bpe:4000", or a `tokenizer.json`, see
            `zoo.data.tokens`; or a finished one.
        tokens: that a text is filled up or cut to; 0 for as many as nearly all training texts have.
        rate: samples per second that recordings are brought to; 0 for those of most files.
        seed: the same seed gives the same splits.
        validation, test: shares of the rows, in [0, 1); a source with its own test split keeps it.
        context, horizon, season: for forecasting, steps known, asked for and after which the target repeats; see
            `zoo.data.series.Recording.cut`.

    Returns:
        Splits, stratified by class, and the signature fitted on the training split.

    Raises:
        TypeError: `source` is none of these.
        ValueError: no such data, or something in it cannot be used; the message names file and row.
        OSError: an online data set could not be downloaded; the message names the file and where to put it.
    """
    if isinstance(source, Data):
        if input_shape is not None and tuple(input_shape) != source.signature.preprocess.shape:
            raise ValueError(
                f"the data given is {source.signature.preprocess.shape}, asked for {tuple(input_shape)}; "
                f"load it again with input_shape={tuple(input_shape)}"
            )
        return source
    if not isinstance(source, str | Path):
        raise TypeError(f"data must be a name, a path or a zoo.data.Data, got a {type(source).__name__}")
    rows = _read(source, input_shape, target, "image-text" if task == captions.PAINTED else task, text)
    if task == captions.PAINTED:
        rows = replace(rows, task=task)
    if task in (hiding.TASK, corpus.TASK):
        rows = hiding.without_labels(rows, task)
    if isinstance(rows, Recording):
        rows = rows.cut(context, horizon, season, validation, test)
    elif context or horizon or season:
        raise ValueError(
            f"context, horizon and season are for forecasting, {rows.name!r} is for {rows.task}; leave them out, or say "
            "task='forecasting' (--task forecasting on the command line)"
        )
    return from_rows(
        rows,
        input_shape=input_shape,
        tokenizer=tokenizer,
        tokens=tokens,
        rate=rate,
        seed=seed,
        validation=validation,
        test=test,
    )


def scaled(data: Data, scaling: str) -> Data:
    """The same rows, with images scaled as pretrained weights expect.

    Args:
        data: splits; only their signature changes.
        scaling: see `zoo.data.signature.read_scaling`; "fitted" for statistics of the training rows, "" to leave it as it
            is.

    Raises:
        ValueError: there is no such scaling, or no images.
    """
    step = data.signature.preprocess
    if not scaling or (scaling == "fitted" and not getattr(step, "scaling", "")):
        return data
    if not isinstance(step, ImagePreprocess | CaptionedPreprocess):
        raise ValueError(f"scaling is for images, {data.name!r} has {step.kind} inputs; leave it out")
    if scaling == "fitted":
        pixels = ImagePreprocess.fit(data.train.x["image"])
    else:
        pixels = ImagePreprocess.declared(scaling, step.shape)
    step = replace(step, image=pixels) if isinstance(step, CaptionedPreprocess) else pixels
    return replace(data, signature=replace(data.signature, preprocess=step))


def _read(
    source: str | Path, input_shape: tuple[int, ...] | None, target: str | None, task: str | None, text: str = ""
) -> Rows | Recording:
    name = str(source)
    if name in BUILTIN or name in ONLINE:
        rows = BUILTIN[name]() if name in BUILTIN else ONLINE[name]()
        if target is not None:
            raise ValueError(f"{name!r} has its own target, got target={target!r}; leave it out")
        if text:
            raise ValueError(f"{name!r} has no columns of text to choose from, got text={text!r}; leave it out")
        own = "forecasting" if isinstance(rows, Recording) else rows.task
        if task not in (None, own, own.partition("-")[2], hiding.TASK, corpus.TASK):
            raise ValueError(f"{name!r} is for {own}, got task={task!r}")
        return rows
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(
            f"no data set is called {name!r} and there is no such file or folder.{suggest(name, names())} "
            f"Known names are {', '.join(names())}"
        )
    from zoo.data import files

    return files.read(path, input_shape, target, task, text)


def _check(rows: Rows) -> None:
    """Refuse inputs and targets that do not belong together."""
    for name, values in rows.x.items():
        if len(values) != len(rows.y):
            raise ValueError(
                f"{rows.source}: input {name!r} has {len(values)} rows and the targets {len(rows.y)}; give as many of both"
            )
    image = rows.x.get("image")
    if image is not None and (image.dtype != np.uint8 or len(image.shape) != 4):
        raise ValueError(
            f"{rows.source}: images must be uint8 (rows, height, width, channels), 0 … 255, got {image.dtype} {image.shape}"
        )
    if rows.task == "segmentation":
        masks.checked(rows.source, image, rows.y, rows.labels)
    if rows.task == "embedding" and (rows.y.ndim != 2 or rows.y.dtype.kind not in "iu"):
        raise ValueError(
            f"{rows.source}: identities must be whole numbers (rows, 1 + pairs), got {rows.y.dtype} {rows.y.shape}; "
            "pack them with zoo.data.targets.Identities.packed(identities)"
        )
    if isinstance(targets.of(rows.task), targets.Classes) and len(rows.labels) > 1:
        outside = np.flatnonzero((rows.y < 0) | (rows.y >= len(rows.labels)))
        if len(outside):
            raise ValueError(
                f"{rows.source}: row {outside[0] + 1} has the class {rows.y[outside[0]].item()!r}, there are {len(rows.labels)} "
                f"labels; give 0 … {len(rows.labels) - 1}"
            )


def from_rows(
    rows: Rows,
    *,
    input_shape: tuple[int, ...] | None = None,
    tokenizer: str | TextPreprocess = "",
    tokens: int = 0,
    rate: int = 0,
    seed: int = 0,
    validation: float = 0.15,
    test: float = 0.2,
) -> Data:
    """Split rows and fit their signature; the arguments are those of `load`.

    Raises:
        ValueError: too few rows or classes, or a shape that does not fit.
    """
    if not len(rows.y):
        raise ValueError(f"{rows.source} has no rows; give it at least a few dozen")
    _check(rows)
    kind = targets.of(rows.task)
    if len(rows.labels) < kind.least:
        raise ValueError(
            f"{rows.source} has one class only, {', '.join(rows.labels)!r}; {rows.task.removeprefix('image-')} needs at least two"
        )
    rows = replace(rows, y=rows.y.astype(kind.dtype))
    if "image" in rows.x:
        resized = images.resize(rows.x["image"], input_shape)
        y = kind.resized(rows.y, rows.x["image"].shape[1:], resized.shape[1:])
        rows = replace(rows, x={**rows.x, "image": resized}, y=y)
    elif "series" in rows.x:
        rows = replace(rows, x={"series": _filled(rows, input_shape)})
    elif "audio" in rows.x:
        rows = _recorded(rows, rate, input_shape)
    elif input_shape is not None and len(tuple(input_shape)) != 1:
        raise ValueError(f"{rows.source} is a table, got input_shape={tuple(input_shape)} for images; leave it out")
    part = splits.assign(rows, validation, test, seed)
    y = kind.numbered(rows.y, part == TRAIN)
    random = np.random.default_rng(seed)
    found = {}
    for split in (TRAIN, VALIDATION, TEST):
        order = np.flatnonzero(part == split)
        if not kind.timed or split == TRAIN:
            order = random.permutation(order)
        found[split] = Split({key: lazy.pick(values, order) for key, values in rows.x.items()}, y[order])
    if "text" in rows.x and "image" not in rows.x and not tokens and input_shape is not None:
        (tokens,) = input_shape
    signature = _fit(rows, found[TRAIN], tokenizer, tokens)
    if rows.task == "text-to-text":
        step = signature.preprocess
        signature = replace(signature, labels=corpus.spelled(step))
        found = {key: replace(part, y=step.following(part.x["answer"])) for key, part in found.items()}
    if rows.task == corpus.TASK:
        step = signature.preprocess
        signature = replace(signature, labels=corpus.spelled(step))
        found = {key: replace(part, y=corpus.followed(step, part.x["text"])) for key, part in found.items()}
    if rows.task == tagging.TASK:
        texts, spans = (np.concatenate(own) for own in zip(*((s.x["text"], s.y) for s in found.values()), strict=True))
        each = np.split(tagging.tagged(signature.preprocess, texts, spans), np.cumsum([*map(len, found.values())])[:-1])
        found = {key: replace(part, y=own) for (key, part), own in zip(found.items(), each, strict=True)}
    if rows.task == hiding.TASK:
        step = replace(signature.preprocess, marks=True)
        signature = replace(signature, preprocess=step, labels=corpus.spelled(step))
        drawn = {key: np.random.default_rng([seed, key]) for key in found}
        found = {key: Split(*hiding.of_split(step, part.x, drawn[key])) for key, part in found.items()}
    if input_shape is not None and signature.preprocess.shape != tuple(input_shape):
        raise ValueError(
            f"{rows.source} has {signature.preprocess.shape[0]} features, got input_shape={tuple(input_shape)}; leave it out"
        )
    return Data(
        name=rows.name,
        signature=signature,
        train=found[TRAIN],
        validation=found[VALIDATION],
        test=found[TEST],
        source=rows.source,
        licence=rows.licence,
        sha256=fingerprint(rows),
        generated=rows.generated,
        seed=seed,
    )


def _fit(rows: Rows, train: Split, tokenizer: str | TextPreprocess = "", tokens: int = 0) -> Signature:
    if "text" in train.x:
        made = tokenizer
        if not isinstance(made, TextPreprocess):
            more = (train.x[name].tolist() if name in train.x else () for name in ("answer", "second"))
            if rows.task == corpus.TASK:  # which needs one that knows every text
                made = made or "bpe"
            made = TextPreprocess.fit(train.x["text"].tolist(), made, tokens, *more)
        if "image" in train.x:
            made = CaptionedPreprocess(ImagePreprocess.fit(train.x["image"]), made)
        return Signature(rows.task, rows.labels, made)
    if "image" in train.x:
        step: ImagePreprocess | TablePreprocess | SeriesPreprocess = ImagePreprocess.fit(train.x["image"])
    elif "audio" in train.x:
        return Signature(rows.task, rows.labels, AudioPreprocess(rows.rate, train.x["audio"].shape[1]))
    elif "series" in train.x:
        step = replace(SeriesPreprocess.fit(train.x["series"], rows.numbers), time=rows.time)
    else:
        step = TablePreprocess.fit(train.x, rows.numbers, rows.categories)
    if not isinstance(targets.of(rows.task), targets.Values):
        return Signature(rows.task, rows.labels, step)
    if rows.forecast is not None:  # the target is a column of the series, and is scaled as it is
        place = step.numbers.index(rows.forecast.target)
        return Signature(rows.task, rows.labels, step, step.mean[place], step.std[place], forecast=rows.forecast)
    values = train.y.astype(np.float64)
    mean, std = float(values.mean()), float(values.std()) or 1.0
    return Signature(rows.task, rows.labels, step, mean, std)


def _filled(rows: Rows, shape: tuple[int, ...] | None) -> np.ndarray:
    """Series `(rows, time, columns)`, filled up with NaN to the steps that are asked for."""
    series = rows.x["series"]
    shape = series.shape[1:] if shape is None else tuple(shape)
    if len(shape) != 2 or shape[1] != series.shape[2] or (shape[0] or 0) < series.shape[1]:
        raise ValueError(
            f"{rows.source} has series of up to {series.shape[1]} steps of {series.shape[2]} columns, got "
            f"input_shape={shape}; leave it out, or give more steps"
        )
    more = [(0, 0), (0, shape[0] - series.shape[1]), (0, 0)]
    return np.pad(series, more, constant_values=np.nan)


def _recorded(rows: Rows, rate: int, shape: tuple[int, ...] | None) -> Rows:
    """Recordings at the rate, and filled up to the samples, that are asked for."""
    if rate and rate != rows.rate:
        waves = [audio.resample(own[~np.isnan(own)], rows.rate, rate) for own in rows.x["audio"]]
        rows = replace(rows, x={"audio": audio.rows_of(waves)}, rate=rate)
    if shape is not None and shape[0]:
        try:
            rows = replace(rows, x={"audio": audio.padded(rows.x["audio"], *shape)})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{rows.source}: {error}; or give a larger input_shape, got {tuple(shape)}") from None
    return rows


def _steps(step: SeriesPreprocess) -> str:
    time, columns = step.shape
    return f"{'up to ' * (time > 1)}{time} step{'s' * (time > 1)} of {columns} column{'s' * (columns > 1)}"


def _asked(signature: Signature) -> str:
    """Context, horizon and season in words."""
    forecast = signature.forecast
    season = f"season {forecast.season}" if forecast.season > 1 else "no season"
    return (
        f"{signature.outputs} values of {forecast.target} from the {signature.preprocess.length} steps before, {season}"
    )


def _columns(step: TablePreprocess) -> str:
    counts = ((len(step.numbers), "number", "numbers"), (len(step.categories), "category", "categories"))
    return " and ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts if count)


def _leaks(found: list[tuple[str, int, str, int]]) -> str:
    if not found:
        return "none, no row of one split stands in another"
    split, row, earlier, there = found[0]
    return f"{len(found)} rows stand in two splits, such as {split} row {row} = {earlier} row {there}"
