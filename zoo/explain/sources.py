"""Where subjects come from: bundles, runs, Keras models and any predict function."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from zoo.explain.subject import ANSWERS, KINDS, Raw, Subject, article
from zoo.registry import suggest

BACKGROUND = 100  # training rows of a run, as a bundle holds
ACTIVATIONS = 3  # largest layer outputs held at once inside a model, roughly
_OF_EACH = {  # tasks whose answer is no single one
    "token-classification": "each word of a text",
    "masked-language-modelling": "each place of a text",
    "language-modelling": "each place of a text",
}


def subject_of(
    model: Any, signature: Any, background: Raw | None, precision: str | None, kind: str | None = None
) -> Subject:
    """The subject behind a bundle, a bundle's folder, a run, a Keras model or a predict function.

    Args:
        model: what is explained.
        signature: `zoo.data.Signature` of a Keras model.
        background: raw rows that stand for "unknown"; the subject's own if None.
        precision: file of a bundle, its default if None.
        kind: of the inputs, for functions and for Keras models without signature.

    Raises:
        ValueError: a Keras model without signature and kind, or a background that does not fit.
        TypeError: nothing that could be explained.
    """
    if isinstance(model, str | Path):
        from serve.manifest import read

        model = read(model)
    if isinstance(model, Subject):
        given = {"signature": signature, "background": background, "precision": precision, "kind": kind}
        twice = [name for name, value in given.items() if value is not None]
        if twice:
            raise ValueError(f"a Subject has its own {twice[0]}; give {twice[0]}= where it is made")
        return model
    if hasattr(model, "manifest"):
        return _of_kind(_of_bundle(model, background, precision), kind)
    if precision is not None:
        raise ValueError(
            f"a precision is one of a bundle's forms, got precision={precision!r} for {article(type(model).__name__)}; leave it out"
        )
    if hasattr(model, "model") and hasattr(model, "signature"):  # a run
        own = getattr(model, "data", None)
        model, signature = model.model, signature or model.signature
        if background is None and own is not None:
            rows = {name: values[:BACKGROUND] for name, values in own.train.x.items()}
            made = _of_keras(model, signature, rows)
            source = made.background_source.replace("given", "rows of the training split")
            return _of_kind(replace(made, background_source=source), kind)
    if hasattr(model, "predict_on_batch"):
        if signature is None and kind is None:
            raise ValueError(
                f"a {type(model).__name__} can only be explained with its signature; "
                "give signature=, such as a run's or data's, or kind= for its own inputs, or explain its bundle"
            )
        if signature is None:
            return _without_signature(model, background, kind or "")
        return _of_kind(_of_keras(model, signature, background), kind)
    if not callable(model):
        raise TypeError(
            f"{article(type(model).__name__)} cannot be explained; give a bundle, a run, a Keras model with signature= or "
            "a predict function with kind="
        )
    if kind is None:
        raise ValueError(f"a function can only be explained with kind=, one of {', '.join([*KINDS, *ANSWERS])}")
    return of_function(model, kind, background=background)


def _of_kind(subject: Subject, kind: str | None) -> Subject:
    """The subject, if it is of that kind; of a model that embeds, how alike it finds the two sides of a pair."""
    if subject.task == "embedding":
        subject = _pair(subject, ("similarity",))
    if kind not in (None, subject.kind):
        raise ValueError(f"{subject.name!r} takes inputs of kind {subject.kind!r}, got kind={kind!r}; leave it out")
    return subject


def _check_kind(name: str, kind: str, task: str) -> None:
    """Refuse what has no single answer to share out."""
    if kind == "audio":
        raise ValueError(
            f"a transcript is no single figure that could be shared out, so {name!r} is not explained; its probabilities say "
            "when each symbol was heard"
        )
    if task == "text-to-image":
        raise ValueError(
            f"{name!r} paints a picture, and explanations share out one figure; which places of it were not expected is drawn by "
            "zoo evaluate"
        )
    if kind == "captioned":
        raise ValueError(
            f"{name!r} answers with vectors of an image and a text, and explanations share out one answer; make a classifier of it "
            "with zoo zero-shot, whose labels are explained"
        )
    if task == "text-to-text":
        raise ValueError(
            f"{name!r} answers with a text, and explanations share out one figure; which tokens of its text an answer looks at is "
            "drawn for a run: zoo explain RUN, or zoo.explain.crossings"
        )
    if task in _OF_EACH:
        raise ValueError(
            f"{name!r} answers for {_OF_EACH[task]}, and explanations share out one answer; its probabilities say how sure each "
            "is"
        )


def _of_bundle(bundle: Any, background: Raw | None, precision: str | None) -> Subject:
    manifest = bundle.manifest
    _check_kind(manifest.name, manifest.kind, manifest.task)
    ports = {port.name: port for port in manifest.inputs}
    path = bundle.model(precision)
    live = _session(str(path), path.stat().st_mtime_ns)
    outputs = [port.name for port in manifest.outputs if port.name != "activation_map"]
    outputs = outputs if manifest.task == "detection" else outputs[:1]
    text = _tokens_of(bundle)

    def predict(raw: Raw) -> Any:
        if text is not None:
            raw = text(raw)
        wire = {name: values.astype(object) if values.dtype.kind == "U" else values for name, values in raw.items()}
        return _explained(dict(zip(outputs, live.run(outputs, wire), strict=True)), manifest.task)

    def maps(raw: Raw) -> np.ndarray:
        return live.run(["activation_map"], raw)[0]

    source = "given"
    if manifest.kind == "text":  # words are left out, and need nothing in their place
        background, source = {}, "none needed"
    if background is None:
        source = "rows of the training split, in the bundle"
        background = _stored(bundle, "background.npz")
    return finish(
        name=manifest.name,
        kind=manifest.kind,
        task="regression" if manifest.task == "forecasting" else manifest.task,
        labels=manifest.labels,
        gaps=manifest.kind == "series",
        paired="second" in ports,
        shape=next((tuple(ports[name].shape[1:]) for name in ("image", "series") if name in ports), ()),
        numbers=next((ports[name].columns for name in ("numbers", "series") if name in ports), ()),
        categories=ports["categories"].columns if "categories" in ports else (),
        predict=predict,
        background=background,
        background_source=source,
        maps=maps if any(port.name == "activation_map" for port in manifest.outputs) else None,
    )


def _tokens_of(bundle: Any) -> Callable[[Raw], Raw] | None:
    """Texts to what the bundle's file takes, None where it takes raw inputs."""
    name = bundle.manifest.preprocess.get("tokenizer")
    if name is None:
        return None
    from zoo.data import tokens

    tokenizer = tokens.opened((bundle.folder / name).read_text(encoding="utf-8"), name)
    return lambda raw: {"tokens": tokens.numbers(tokenizer, map(str, raw["text"]), map(str, raw.get("second", ())))}


def _explained(answers: dict[str, np.ndarray], task: str) -> Any:
    """What of a model's answers is explained: all of a detector's together, else the first."""
    return answers if task == "detection" else next(iter(answers.values()))


@lru_cache(maxsize=4)
def _session(path: str, _changed: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _of_keras(model: Any, signature: Any, background: Raw | None) -> Subject:
    def predict(raw: Raw) -> Any:
        from zoo import tasks

        raw_outputs = _logits(model, signature.inputs(raw))
        return _explained(tasks.get(signature.task).answers(raw_outputs, signature), signature.task)

    made = subject_with(model.name, signature, predict, background)
    return replace(made, model=model, signature=signature, row_bytes=_row_bytes(model))


def _without_signature(model: Any, background: Raw | None, kind: str) -> Subject:
    """A Keras model explained on its own inputs; several outputs without activation are taken for logits."""
    last = getattr(model.layers[-1], "activation", None)
    bare = getattr(last, "__name__", "linear") == "linear"
    probabilities = bare and len(model.outputs) == 1 and model.outputs[0].shape[-1] > 1

    def predict(raw: Raw) -> Any:
        answers = _logits(model, made.inputs(raw))
        if not probabilities:
            return answers
        powers = np.exp(answers - answers.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    whole = kind == "text" and np.dtype(model.inputs[0].dtype).kind in "iu"
    shape = tuple(model.inputs[0].shape[1:])
    made = of_function(
        predict,
        kind,
        background=background,
        name=model.name,
        shape=() if None in shape else shape,
        gap=0 if whole else None,
        bare=False,
    )
    return replace(made, model=model, row_bytes=_row_bytes(model))


def _logits(model: Any, inputs: Any) -> Any:
    """The model's outputs; on JAX, which compiles for every batch size, rows are filled up to a power of two."""
    import keras

    rows = len(keras.tree.flatten(inputs)[0])
    full = 1 << (rows - 1).bit_length() if keras.backend.backend() == "jax" else rows
    if full == rows:
        return model.predict_on_batch(inputs)

    def filled(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.repeat(array[-1:], full - rows, axis=0)])

    outputs = model.predict_on_batch(keras.tree.map_structure(filled, inputs))
    return keras.tree.map_structure(lambda values: values[:rows], outputs)


def _row_bytes(model: Any) -> int:
    """Memory one row takes inside a Keras model, from the sizes of its layers' outputs."""
    largest = 0
    for layer in model.layers:
        try:
            outputs = layer.output
        except AttributeError:  # a layer that was never called on a symbol
            continue
        for tensor in outputs if isinstance(outputs, list | tuple) else [outputs]:
            sizes = [size or 1 for size in getattr(tensor, "shape", ())[1:]]
            largest = max(largest, 4 * int(np.prod(sizes)))
    return ACTIVATIONS * largest


def subject_with(
    name: str, signature: Any, predict: Callable[[Raw], np.ndarray], background: Raw | None = None
) -> Subject:
    """The subject behind a function from raw inputs to answers.

    Args:
        name: what it is called in messages.
        signature: `zoo.data.Signature` of its inputs and answers.
        predict: raw inputs -> answers (batch, outputs).
        background: raw rows that stand for "unknown"; the training mean of the signature if None.

    Raises:
        ValueError: the background does not fit.
    """
    step = signature.preprocess
    _check_kind(name, step.kind, signature.task)
    image = step.kind == "image"
    source = "given"
    if step.kind == "text":  # words are left out, and need nothing in their place
        background, source = {}, "none needed"
    if background is None:
        source = "training mean of the signature"
        if image:
            pixels = np.clip(np.rint(step.mean), 0, 255).astype(np.uint8)
            background = {"image": np.broadcast_to(pixels, (1, *step.shape)).copy()}
        elif step.kind == "series":
            background = {"series": np.broadcast_to(np.asarray(step.mean, np.float32), (1, *step.shape)).copy()}
        else:
            background = {"numbers": np.asarray([step.mean], np.float32)} if step.numbers else {}
            if step.categories:
                background["categories"] = np.full((1, len(step.categories)), "")
    return finish(
        name=name,
        kind=step.kind,
        task="regression" if signature.valued else signature.task,
        labels=signature.labels,
        gaps=step.kind == "series",
        paired=getattr(step, "pair", False),
        shape=step.shape if step.kind in ("image", "series") else (),
        numbers=() if image else step.numbers,
        categories=() if image else tuple(step.categories),
        predict=predict,
        background=background,
        background_source=source,
    )


def of_function(
    predict: Callable[..., Any],
    kind: str,
    *,
    background: Any = None,
    name: str = "function",
    task: str = "",
    labels: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
    shape: tuple[int, ...] = (),
    gap: Any = None,
    padding: int = 0,
    split: Callable[[str], list[str]] | None = None,
    explained: str = "nodes",
    of: str = "image",
    bare: bool = True,
) -> Subject:
    """The subject behind any predict function.

    Args:
        predict: takes one array of rows, or for several inputs the dictionary of them (see `Subject`), and gives
            answers (batch, outputs) or (batch,). A detector gives boxes and scores, a segmentation (batch, height,
            width, classes), a pair's function the embeddings (batch, length) of either side.
        kind: "image", "table", "text", "series", "graph", "pair", "detection" or "segmentation".
        background: raw rows that stand for "unknown". Tables need them. Without them, images and series take the row's
            own mean of each channel, texts their `gap`, and graphs zeros.
        name: what it is called in messages.
        task: meaning of the answers, read from them if empty.
        labels: names of the outputs, numbered if empty.
        columns: names of a table's numbers, or of a series' channels; numbered if empty.
        categories: names of a table's text columns.
        shape: of one row of an image, series, row of tokens or graph's nodes; any if empty.
        gap: in place of a word that is left out, such as "[MASK]"; a number says that the texts are tokens, and is
            the token in place of one that is left out. None leaves words out altogether.
        padding: token that fills short rows; it is never explained.
        split: text -> pieces that joined give the text; words and marks if None.
        explained: of a graph, "nodes" or "edges".
        of: kind of either side of a pair: "image", "text", "series" or "table".
        bare: whether a single input comes as an array, and not in a dictionary.

    Raises:
        ValueError: no such kind, or the background is missing or does not fit.
    """
    known = [*KINDS, *ANSWERS]
    if kind not in known:
        raise ValueError(f"there is no kind {kind!r}; kinds are {', '.join(known)}.{suggest(kind, known)}")
    if explained not in ("nodes", "edges"):
        raise ValueError(f'explained must be "nodes" or "edges", got {explained!r}')
    if kind == "pair":
        side = of_function(predict, of, background=background, name=name, columns=columns, shape=shape, gap=gap,
                           padding=padding, split=split, bare=bare)  # fmt: skip
        return _pair(side, labels or ("similarity",))
    form = ANSWERS.get(kind, kind)
    if background is not None and not isinstance(background, dict):
        background = {"tokens" if gap is not None and kind == "text" else KINDS[form][0][0]: background}
    if form == "table":
        if not background:
            raise ValueError("a table is explained against a background; give background=, such as 100 training rows")
        counts = {part: np.shape(background[part])[-1] for part in background}
        columns = columns or tuple(f"column {place}" for place in range(counts.get("numbers", 0)))
        categories = categories or tuple(f"category {place}" for place in range(counts.get("categories", 0)))

    meaning = task or (kind if kind in ANSWERS else "")

    def ask(raw: Raw) -> Any:
        rows = len(next(iter(raw.values())))
        answers = predict(next(iter(raw.values())) if bare and len(raw) == 1 else raw)
        if meaning == "detection":
            return answers
        return _in_rows(answers, rows, name)

    return finish(
        name=name,
        kind=form,
        task=meaning,
        labels=tuple(labels),
        shape=tuple(shape),
        numbers=tuple(columns),
        categories=tuple(categories),
        predict=ask,
        background=background or {},
        background_source="given" if background else "none given",
        pixels=False,
        gap=gap,
        padding=padding,
        split=split,
        explained=explained,
    )


def _in_rows(answers: Any, rows: int, name: str) -> np.ndarray:
    """Answers as an array with a row for each input."""
    array = np.asarray(answers)
    if array.ndim == 0 or len(array) != rows:
        raise ValueError(f"{name!r} must give one answer for each of {rows} rows, got the shape {array.shape}")
    return array[:, None] if array.ndim == 1 else array


def _pair(side: Subject, labels: tuple[str, ...]) -> Subject:
    """The cosine similarity of the embeddings of two rows, as a subject of its own."""
    if len(side.names) > 1 or side.kind == "graph":
        raise ValueError(f"the sides of a pair have one input each, a {side.kind} has {len(side.names)}")

    def predict(raw: Raw) -> np.ndarray:
        left, right = (side.predict({side.names[0]: raw[name]}) for name in ("left", "right"))
        return similarity(left, right)[:, None]

    return Subject(
        name=side.name,
        kind="pair",
        task="similarity",
        labels=labels,
        shape=(),
        numbers=(),
        categories=(),
        predict=predict,
        background=side.background,
        background_source=side.background_source,
        references=side.references,
        of=side,
        row_bytes=side.row_bytes,
    )


def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of the angle between embeddings, row by row: two (batch, length) -> (batch,), 0 for one of zeros."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return (left * right).sum(axis=-1) / np.where(lengths > 0, lengths, 1)


def finish(**facts: Any) -> Subject:
    """The subject with its background checked, for images averaged to one."""
    subject = Subject(**facts)
    if not subject.background:
        return subject
    try:
        background = subject.check(subject.background)
    except ValueError as error:
        raise ValueError(f"the background does not fit: {error}") from None
    subject = replace(subject, references=background)
    if subject.kind == "series" and len(background["series"]) > 1:
        steps = np.ma.masked_invalid(background["series"].astype(np.float64))
        mean = steps.mean(axis=0).filled(steps.mean(axis=(0, 1)).filled(0.0))  # of a column where no row has a step
        source = f"{subject.background_source}, averaged to one series"
        return replace(subject, background={"series": mean[None].astype(np.float32)}, background_source=source)
    if subject.kind != "image":
        return replace(subject, background=background)
    mean = background["image"].mean(axis=0, keepdims=True)
    if background["image"].dtype == np.uint8:
        mean = np.rint(mean)
    return replace(
        subject,
        background={"image": mean.astype(background["image"].dtype)},
        background_source=f"{subject.background_source}, averaged to one image",
    )


def examples(bundle: Any, image: str | Path | None = None, rows: int = 4) -> Raw:
    """Raw inputs to try an explanation on.

    Args:
        bundle: whose model is to be explained.
        image: picture file, turned upright and brought to the model's size; the bundle's golden rows if None.
        rows: number of golden rows, from the first.

    Raises:
        ValueError: the model takes no image, or the file is none.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got rows={rows}")
    if bundle.manifest.task == "embedding":
        if image is not None:
            raise ValueError(
                f"of {bundle.manifest.name!r} pairs are explained, got one image; give both in Python: "
                'zoo.explain(bundle, {"left": …, "right": …})'
            )
        (values,) = _stored(bundle, "golden.npz").values()
        return {"left": values[:-1][:rows], "right": values[1:][:rows]}
    if image is None:
        return {name: values[:rows] for name, values in _stored(bundle, "golden.npz").items()}
    if bundle.manifest.kind != "image":
        raise ValueError(f"{bundle.manifest.name!r} takes no image but a {bundle.manifest.kind}; leave the image out")
    from zoo.data.images import open_image

    [port] = bundle.manifest.inputs
    return {port.name: open_image(Path(image), tuple(port.shape[1:]))[None]}


def _stored(bundle: Any, file: str) -> Raw:
    """Input rows that a bundle carries.

    Raises:
        ValueError: it carries none.
    """
    path = bundle.folder / file
    if not path.is_file():
        raise ValueError(f"bundle {bundle.manifest.name!r} has no {file}; export it again, or give the rows yourself")
    with np.load(path, allow_pickle=False) as arrays:
        return {name.removeprefix("input/"): arrays[name] for name in arrays.files if name.startswith("input/")}
