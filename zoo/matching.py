"""What a model of pictures and texts is used for: a classifier whose classes are words, and search of either by the other."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.data import Data, ImagePreprocess, Signature, TextPreprocess
from zoo.data.signature import CaptionedPreprocess

TEMPLATE = "a picture of a {}"
_BATCH = 128


class Found(NamedTuple):
    """What is nearest to one row.

    Attributes:
        places: of the candidates, nearest first.
        cosines: of each with the row.
    """

    places: list[int]
    cosines: list[float]


def zero_shot(
    model: Any,
    labels: Sequence[str] | None = None,
    template: str | Sequence[str] = TEMPLATE,
    *,
    data: Any = None,
    tokenizer: str | Path = "",
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Any:
    """Make a classifier of pictures whose classes are texts, from a model that was never trained on these classes.

    Its head is the texts' vectors times the learned factor, without a bias, so it is a model for "image-classification" as
    any other: it is judged, explained, exported, rounded and served in the same way.

    Args:
        model: run, or folder of a run, of a model for "image-text"; or such a Keras model with pretrained weights.
        labels: what a picture may show, in the order of the logits; those of the data if None.
        template: sentence in which each label stands in place of `{}`, or several, whose vectors are averaged.
        data: pictures with these labels to judge it by, a name, a path or `zoo.data.Data`; an export needs them.
        tokenizer: `tokenizer.json` of a Keras model; a run has its own.
        out: folder to write it to as a run; needs data.
        overwrite: replace a run that is there.

    Returns:
        `zoo.training.Run` with a functional Keras model, pictures `(batch, height, width, channels)` -> `(batch, labels)`
        logits, that shares its layers with `model`; its scores are those on the data.

    Raises:
        ValueError: the model is of another kind, fewer than two labels are given or a label twice, a template has no place for
            the label, or the data have other labels.

    Source: Radford et al. 2021 (arXiv:2103.00020), sections 3.1.2 and 3.1.4.
    """
    import keras

    from zoo.training import Run, check_folder

    run = _opened(model)
    network, steps = _network(run), _steps(run, tokenizer)
    image = ImagePreprocess.declared(steps.image.declaration, steps.image.shape)  # it does not follow from the data
    splits = None if data is None else _pictures(data, image)
    labels = tuple(splits.signature.labels) if labels is None and splits is not None else tuple(labels or ())
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(
            f"labels must be at least two different texts, got {list(labels)!r}; give labels=, or data= with them"
        )
    if splits is not None and labels != splits.signature.labels:
        raise ValueError(
            f"data {splits.name!r} has the labels {', '.join(splits.signature.labels)}, got {', '.join(labels)}; give the same"
        )
    if out is not None:
        if splits is None:
            raise ValueError("a run is written with its scores, which need data; give data=, or leave out= away")
        check_folder(out, overwrite=overwrite, source=run if isinstance(run, Run) else None)
    templates = (template,) if isinstance(template, str) else tuple(template)
    for each in templates:
        if "{}" not in each:
            raise ValueError(f"template must have {{}} where the label stands, such as {TEMPLATE!r}, got {each!r}")
    vectors = np.mean(
        [_texts(network, steps, [each.replace("{}", label) for label in labels]) for each in templates], axis=0
    )
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    head = keras.layers.Dense(len(labels), use_bias=False, name="logits")
    inputs = {tensor.name: tensor for tensor in network.inputs}
    found = keras.Model(
        inputs["image"], head(network.get_layer("image_embedding").output), name=f"{network.name}_zero_shot"
    )
    factor = float(np.exp(keras.ops.convert_to_numpy(network.get_layer("pairs").scale)))
    head.set_weights([factor * vectors.T])
    signature = Signature("image-classification", labels, image)
    source = data if isinstance(data, str | Path) or splits is None else splits.name
    recipe = _recipe(run, network, image, str(source or ""), splits)
    classifier = Run(found, signature, recipe, None, [], {}, splits)
    if splits is not None:
        classifier.metrics.update(_scores(classifier))
    return classifier if out is None else _written(classifier, Path(out))


def search(
    model: Any,
    asked: Sequence[str] | np.ndarray,
    among: Sequence[str] | np.ndarray,
    most: int = 5,
    *,
    tokenizer: str = "",
) -> list[Found]:
    """Find the texts that are nearest to each picture, or the pictures that are nearest to each text.

    Args:
        model: as of `zero_shot`.
        asked: texts, or pictures uint8 `(rows, height, width, channels)` of the model's size.
        among: candidates of either form; both may be of the same.
        most: candidates wanted for each.
        tokenizer: as of `zero_shot`.

    Returns:
        One `Found` for each that is asked, with at most `most` candidates.

    Raises:
        ValueError: the model is of another kind, or `most` below 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got most={most!r}")
    run = _opened(model)
    network, steps = _network(run), _steps(run, tokenizer)
    left, right = (_vectors(network, steps, side) for side in (asked, among))
    cosines = left @ right.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :most]
    return [Found(places.tolist(), row[places].tolist()) for row, places in zip(cosines, order, strict=True)]


def _opened(model: Any) -> Any:
    if not isinstance(model, str | Path):
        return model
    from zoo.training import load

    return load(model)


def _network(run: Any) -> Any:
    """The Keras model of a run, or the model itself."""
    network = getattr(run, "model", run)
    names = {layer.name for layer in getattr(network, "layers", ())}
    if not {"image_embedding", "text_embedding", "pairs"} <= names:
        raise ValueError(
            f"zero-shot classification and search need a model of pictures and texts such as 'clip', got "
            f"{getattr(network, 'name', type(network).__name__)!r}; train one, such as with `zoo train clip_nano`"
        )
    return network


def _steps(run: Any, tokenizer: str | Path) -> CaptionedPreprocess:
    """What makes inputs of pictures and texts."""
    if hasattr(run, "signature"):
        if tokenizer:
            raise ValueError(f"a run has its own tokenizer, got tokenizer={str(tokenizer)!r}; leave it out")
        return run.signature.preprocess
    scaling = getattr(getattr(run, "pretrained", None), "scaling", "")
    if not scaling or not tokenizer:
        raise ValueError(
            "a Keras model needs pretrained weights, which say how pictures are scaled, and tokenizer=, the tokenizer.json that "
            "came with them; or give the run that it comes from"
        )
    shapes = {tensor.name: tuple(tensor.shape[1:]) for tensor in run.inputs}
    text = TextPreprocess.fit([], str(tokenizer), shapes["tokens"][0])
    return CaptionedPreprocess(ImagePreprocess.declared(scaling, shapes["image"]), text)


def _pictures(data: Any, image: ImagePreprocess) -> Data:
    """Splits to judge by, scaled as the model takes pictures."""
    from zoo.data import load, scaled

    splits = load(data, input_shape=image.shape)
    if splits.signature.task != "image-classification":
        raise ValueError(
            f"data to judge a zero-shot classifier by are for image-classification, {splits.name!r} is for "
            f"{splits.signature.task}; give a folder of images per label, or the like"
        )
    return scaled(splits, image.scaling)


def _vectors(network: Any, steps: CaptionedPreprocess, side: Any) -> np.ndarray:
    """Unit vectors of texts or pictures, (rows, length)."""
    if isinstance(side, np.ndarray) and side.ndim == 4:
        return _tower(network, "image", steps.image({"image": side}))
    return _texts(network, steps, [str(text) for text in side])


def _texts(network: Any, steps: CaptionedPreprocess, texts: list[str]) -> np.ndarray:
    return _tower(network, "tokens", steps.text({"text": np.array(texts, np.str_)}))


def _tower(network: Any, name: str, values: np.ndarray) -> np.ndarray:
    """What one tower answers."""
    import keras

    inputs = {tensor.name: tensor for tensor in network.inputs}
    layer = "image_embedding" if name == "image" else "text_embedding"
    tower = keras.Model(inputs[name], network.get_layer(layer).output)
    parts = []
    for start in range(0, len(values), _BATCH):
        parts.append(keras.ops.convert_to_numpy(tower(values[start : start + _BATCH], training=False)))
    return np.concatenate(parts)


def _recipe(run: Any, network: Any, image: ImagePreprocess, source: str, splits: Data | None) -> Any:
    """Settings that read the classifier's data again."""
    from zoo.recipes import Recipe

    known = getattr(run, "recipe", None)
    name, weights = (known.model, known.weights) if known else (network.name, "")
    seed = None if splits is None else splits.seed
    return Recipe(name, source, weights=weights, scaling=image.scaling, seed=seed or 0, split_seed=seed)


def _scores(classifier: Any) -> dict[str, float]:
    """Accuracy on each split; and what guessing has, which is all that one can do without having seen a row."""
    from zoo.evaluate.report import answers
    from zoo.tasks import get

    task, scores = get(classifier.signature.task), {}
    for name, part in classifier.data.splits.items():
        if len(part):
            scores[name] = float(task.score(part.y, answers(classifier.model, classifier.signature, part.x)))
    return {**scores, "baseline": 1 / len(classifier.signature.labels)}


def _written(classifier: Any, folder: Path) -> Any:
    """The classifier as a run folder."""
    import shutil

    from zoo.training.run import environment

    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    classifier.model.save(folder / "model.keras")
    classifier.signature.save(folder / "signature.json")
    classifier.recipe.save(folder / "recipe.json")
    for name, content in (("environment", environment(classifier.data)), ("metrics", classifier.metrics)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(["epoch"])  # of which there are none
    return replace(classifier, folder=folder)
