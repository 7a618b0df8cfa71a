"""Small explanations of every kind with values known by hand."""

import numpy as np

from zoo.explain.explanation import Explanation, Side

FAITHFUL = {"deletion": 0.21, "insertion": 0.83, "deletion_random": 0.52, "insertion_random": 0.55}
WORDS = ("not", "a", "good", "<b>film</b>", "for", "$5", "&", "more")
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (3, 4))


def make(kind, inputs, attributions, axes, **facts):
    """An explanation whose base and attributions add up to the answer."""
    attributions = np.asarray(attributions, np.float64)
    rows = len(attributions)
    given = {
        "name": "small",
        "kind": kind,
        "task": "classification",
        "inputs": inputs,
        "attributions": attributions,
        "axes": axes,
        "columns": (),
        "labels": ("no", "yes"),
        "base": np.full(rows, 0.25),
        "prediction": 0.25 + attributions.reshape(rows, -1).sum(axis=1),
        "target": np.ones(rows, int),
        "method": "permutation",
        "why": "asked for",
        "settings": {"evaluations": 200, "orders": np.int64(4), "rate": np.nan},
        "background_sha256": "ab" * 32,
        "additivity_error": 2e-9,
        "seconds": 1.25,
        "calls": 4321,
        "faithfulness": FAITHFUL,
        "stability": 0.93,
    }
    return Explanation(**{**given, **facts})


def image(rows=1, kind="image", **facts):
    """A bright square that speaks for the answer, and one dark pixel against it."""
    pixels = np.full((rows, 12, 16, 3), 40, np.uint8)
    pixels[:, 3:6, 8:12] = 220
    values = np.zeros((rows, 12, 16, 3))
    values[:, 3:6, 8:12] = 0.5 / 36
    values[:, 10, 1] = -0.1 / 3
    return make(kind, {"image": pixels}, values, ("batch", "height", "width", "channels"), **facts)


def detection():
    others = np.array([[[1, 8, 5, 11], [np.nan] * 4]])
    return image(kind="detection", about={"box": np.array([[8.0, 3, 12, 6]]), "others": others})


def segmentation():
    region = np.zeros((1, 12, 16), bool)
    region[:, 3:6, 8:12] = True
    return image(kind="segmentation", about={"region": region})


def table(rows=1, **facts):
    values = np.tile([0.3, -0.1, 0.05, 0.0], (rows, 1))
    inputs = {
        "numbers": np.tile(np.array([61, np.nan], np.float32), (rows, 1)),
        "categories": np.tile(np.array(["red", ""]), (rows, 1)),
    }
    columns = ("age", "weight", "colour", "<i>noise</i>")
    errors = np.full(values.shape, 0.01)
    return make("table", inputs, values, ("batch", "columns"), columns=columns, standard_error=errors, **facts)


def text(**facts):
    """Two texts of different length."""
    values = np.zeros((2, len(WORDS)))
    values[0, [0, 2]] = -0.2, 0.4
    values[1, 0] = 0.1
    texts = np.array([" ".join(WORDS), "fine"])
    return make("text", {"text": texts}, values, ("batch", "tokens"), names=(WORDS, ("fine",)), **facts)


def series(channels=2, **facts):
    """A pulse in channel 0 that speaks for the answer, one in channel 1 against it."""
    values = np.zeros((1, 40, channels))
    values[:, 10:15, 0] = 0.1
    values[:, 30:32, 1] = -0.05
    signal = np.random.default_rng(0).standard_normal((1, 40, channels)).astype(np.float32)
    columns = tuple(f"lead {place}" for place in range(channels))
    return make("series", {"series": signal}, values, ("batch", "time", "channels"), columns=columns, **facts)


def nodes(**facts):
    adjacency = np.zeros((1, 5, 5), np.float32)
    for one, other in EDGES:
        adjacency[0, one, other] = adjacency[0, other, one] = 1
    inputs = {"nodes": np.zeros((1, 5, 3), np.float32), "adjacency": adjacency}
    names = (("C", "N", "O", "C", "Cl"),)
    return make("graph", inputs, [[0, 0.4, -0.1, 0, 0]], ("batch", "nodes"), names=names, **facts)


def edges():
    inputs = {"nodes": np.zeros((1, 5, 3), np.float32)}
    about = {"edges": np.array([[*EDGES, (-1, -1)]])}
    return make("graph", inputs, [[0, 0.4, -0.1, 0, 0, 0]], ("batch", "edges"), about=about)


def texts_pair():
    left, right = ("a", "dog", "runs"), ("two", "dogs")
    sides = tuple(
        Side("text", {"text": name}, (len(words),), ("tokens",), names=(words,))
        for name, words in (("left", left), ("right", right))
    )
    inputs = {"left": np.array([" ".join(left)]), "right": np.array([" ".join(right)])}
    values = [[0.0, 0.3, 0.0, -0.05, 0.2]]
    return make("pair", inputs, values, ("batch", "features"), sides=sides, task="similarity", labels=("similarity",))


def images_pair():
    one = image()
    shape = one.attributions.shape[1:]
    sides = tuple(Side("image", {"image": name}, shape, one.axes[1:]) for name in ("left", "right"))
    values = np.concatenate([one.attributions.reshape(1, -1) / 2] * 2, axis=1)
    inputs = {"left": one.inputs["image"], "right": one.inputs["image"][:, ::-1]}
    return make("pair", inputs, values, ("batch", "features"), sides=sides, task="similarity", labels=("similarity",))


ALL = {
    "image": image,
    "detection": detection,
    "segmentation": segmentation,
    "table": table,
    "text": text,
    "series": series,
    "nodes": nodes,
    "edges": edges,
    "texts_pair": texts_pair,
    "images_pair": images_pair,
}
