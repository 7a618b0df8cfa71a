"""Every kind of input on functions whose true contributions are known."""

from itertools import permutations

import numpy as np
import pytest

from zoo.explain import Subject, explain, players
from zoo.explain.methods import METHODS
from zoo.explain.subject import BATCH_BYTES, KINDS, LEAST_ROWS
from zoo.explain.targets import overlap


def test_a_planted_watermark_pixel_is_found():
    def bright(images):
        return 1 / (1 + np.exp(-(images[:, 7, 5, 0] - 100.0) / 10))

    images = np.random.default_rng(0).integers(0, 60, (2, 28, 28, 3)).astype(np.uint8)
    images[:, 7, 5, 0] = 255
    found = explain(bright, images, kind="image", background=np.zeros((3, 28, 28, 3), np.uint8))
    assert found.method == "partition" and "784 pixels" in found.why
    shares = found.attributions.sum(axis=-1)
    for row in range(2):
        assert np.unravel_index(shares[row].argmax(), (28, 28)) == (7, 5)
        assert shares[row, 7, 5] > 0.9 and shares[row].sum() == pytest.approx(1, abs=1e-4)
    assert found.faithfulness["deletion"] < found.faithfulness["deletion_random"] < 0.9
    assert found.faithfulness["insertion"] > found.faithfulness["insertion_random"]


WEIGHTS = {"good": 2.0, "bad": -3.0, "not": -0.5, "!": 0.25}


def scorer(texts):
    return np.array([sum(WEIGHTS.get(word.strip(), 0.0) for word in players.WORDS.findall(text)) for text in texts])


@pytest.mark.parametrize("method", ["exact", "permutation", "partition"])
def test_an_additive_text_scorer_gives_its_weights(method):
    found = explain(scorer, ["A good, good film!", "not bad"], method, kind="text")
    assert found.names == (("A", "good", ",", "good", "film", "!"), ("not", "bad"))
    np.testing.assert_allclose(found.parts(0), [0, 2, 0, 2, 0, 0.25], atol=1e-9)
    np.testing.assert_allclose(found.parts(1), [-0.5, -3], atol=1e-9)
    assert found.axes == ("batch", "tokens") and found.attributions.shape == (2, 6)
    assert found.additivity_error < 1e-9 and found.task == "regression"
    assert found.stability is None and found.settings["quality"]["stability"] == "a text has no small noise"


def test_words_are_left_out_or_replaced_and_the_text_comes_back():
    asked = []

    def listen(texts):
        asked.extend(texts.tolist())
        return np.array([float("no" in text) for text in texts])

    explain(listen, "Well, don't  say no", "exact", kind="text", quality=False)
    assert "Well, don't  say no" in asked and "don't no" in asked and "" in asked
    asked.clear()
    masked = Subject.of_function(listen, "text", gap="[MASK]", split=lambda text: text.split(" "))
    with pytest.raises(ValueError, match="must join to the text"):
        explain(masked, "say no", "exact")
    masked = Subject.of_function(listen, "text", gap="[MASK]")
    found = explain(masked, "say no", "exact", quality=False)
    assert {"say [MASK]", "[MASK] no", "[MASK] [MASK]"} <= set(asked)
    np.testing.assert_allclose(found.attributions, [[0, 1]])
    assert found.settings["left_out"] == "'[MASK]' in its place"


def test_marks_and_scripts_without_spaces_are_words_of_their_own():
    assert [w.strip() for w in players.WORDS.findall("It's state-of-the-art (2024).")] == [
        "It's", "state-of-the-art", "(", "2024", ")", "."
    ]  # fmt: skip
    assert players.WORDS.findall("好电影") == ["好", "电", "影"]


def test_tokens_keep_their_places_and_padding_gets_nothing():
    weights = np.array([0.0, 0.0, 1.5, -2.0, 4.0])

    def sums(tokens):
        return weights[tokens].sum(axis=1)

    subject = Subject.of_function(sums, "text", gap=1, padding=0)
    found = explain(subject, np.array([[2, 3, 4, 0, 0], [4, 4, 1, 2, 0]]), "exact")
    np.testing.assert_allclose(found.attributions, [[1.5, -2, 4, 0, 0], [4, 4, 0, 1.5, 0]], atol=1e-9)
    assert found.base.tolist() == [0, 0] and found.settings["left_out"] == "token 1 in its place"
    with pytest.raises(ValueError, match="must be whole numbers, got float64"):
        explain(subject, np.zeros((1, 5)))


def test_a_series_points_at_the_stretch_and_channel_that_decide():
    def peak(series):
        return series[:, 40:48, 1].mean(axis=1)

    random = np.random.default_rng(1)
    series = random.normal(0, 0.1, (2, 128, 3)).astype(np.float32)
    series[:, 40:48, 1] += 5
    found = explain(peak, series, kind="series", background=np.zeros((4, 128, 3)))
    assert found.axes == ("batch", "time", "channels") and found.attributions.shape == (2, 128, 3)
    inside = found.attributions[:, 40:48, 1].sum(axis=1)
    np.testing.assert_allclose(inside, found.prediction, rtol=0.1)
    assert found.additivity_error < 1e-5 * found.prediction.max()
    assert found.stability > 0.9


def test_without_background_a_series_is_compared_with_its_own_mean():
    found = explain(lambda series: series[:, 0, 0], np.array([[[4.0], [0], [2]]]), "exact", kind="series")
    np.testing.assert_allclose(found.attributions.ravel(), [2, 0, 0], atol=1e-6)
    assert found.base.tolist() == [2] and "row's own mean" in found.settings["left_out"]


def ring(nodes, *extra):
    adjacency = np.zeros((nodes, nodes), np.float32)
    for start, end in [*((n, (n + 1) % nodes) for n in range(nodes)), *extra]:
        adjacency[start, end] = adjacency[end, start] = 1
    return adjacency


def graph(adjacency, features=2):
    nodes = np.random.default_rng(2).normal(size=(len(adjacency), features)).astype(np.float32)
    return {"nodes": nodes[None], "adjacency": adjacency[None]}


def test_the_deciding_edge_of_a_graph_is_found():
    def linked(raw):
        return np.stack([1 - 0.8 * raw["adjacency"][:, 1, 4], 0.8 * raw["adjacency"][:, 4, 1]], axis=1)

    subject = Subject.of_function(linked, "graph", explained="edges", labels=("open", "linked"))
    found = explain(subject, graph(ring(6, (1, 4))), target="linked")
    assert found.method == "exact" and found.axes == ("batch", "edges")
    assert found.names[0][int(found.attributions[0].argmax())] == "1–4"
    assert found.about["edges"][0, found.attributions[0].argmax()].tolist() == [1, 4]
    np.testing.assert_allclose(np.sort(found.attributions[0]), [0] * 6 + [0.8], atol=1e-9)


def test_directed_edges_are_told_apart():
    adjacency = np.zeros((3, 3), np.float32)
    adjacency[0, 1] = adjacency[1, 0] = adjacency[1, 2] = 1
    edges, both = players.edges_of(adjacency)
    assert not both and edges.tolist() == [[0, 1], [1, 0], [1, 2]]
    subject = Subject.of_function(lambda raw: raw["adjacency"][:, 1, 2] * 3.0, "graph", explained="edges")
    found = explain(subject, graph(adjacency), quality=False)
    assert found.names == (("0→1", "1→0", "1→2"),) and found.attributions.tolist() == [[0, 0, 3]]


def test_nodes_of_a_graph_go_with_their_edges():
    def reached(raw):
        """Each node's sum over itself and its neighbours, of feature 0."""
        linked = raw["adjacency"] + np.eye(raw["adjacency"].shape[1])
        return (linked @ raw["nodes"][..., :1]).repeat(2, axis=2)

    raw = graph(ring(5))
    found = explain(Subject.of_function(reached, "graph"), raw, "exact", {"node": 2, "label": 0})
    value = raw["nodes"][0, :, 0].astype(float)
    # a neighbour's share is halved: its value arrives only if both it and node 2 with its edge are there
    np.testing.assert_allclose(
        found.attributions[0], [0, value[1] / 2, value[2] + (value[1] + value[3]) / 2, value[3] / 2, 0], atol=1e-6
    )
    with pytest.raises(ValueError, match="answers for each node; say which"):
        explain(Subject.of_function(reached, "graph"), raw)
    with pytest.raises(ValueError, match="index from 0 to 4, got 5"):
        explain(Subject.of_function(reached, "graph"), raw, target={"node": 5})


def test_a_pair_of_texts_shares_its_similarity_among_the_words_of_both_sides():
    vocabulary = ["red", "blue", "car", "boat"]

    def embed(texts):
        return np.array([[float(word in text.split()) for word in vocabulary] for text in texts])

    texts = {"left": ["red car"], "right": ["a blue car"]}
    found = explain(Subject.of_function(embed, "pair", of="text"), texts, "exact")
    assert found.prediction[0] == pytest.approx(0.5) and found.base[0] == 0
    left, right = found.side(0), found.side(1)
    assert left.names == (("red", "car"),) and right.names == (("a", "blue", "car"),)
    assert left.parts(0)[1] == left.parts(0).max() > 0 > left.parts(0)[0]
    assert right.parts(0)[2] == right.parts(0).max() and right.parts(0)[0] == pytest.approx(0)
    assert found.attributions.sum() == pytest.approx(0.5) and found.additivity_error < 1e-9
    assert found.axes == ("batch", "features") and found.task == "similarity"


def test_a_pair_of_images_points_at_what_both_show():
    def embed(images):
        return images[:, ::4, ::4, 0].reshape(len(images), -1) / 255.0

    left, right = np.zeros((2, 1, 16, 16, 1), np.uint8)
    left[:, 4, 4] = right[:, 4, 4] = left[:, 0, 8] = right[:, 12, 0] = 255
    subject = Subject.of_function(embed, "pair", of="image", background=np.zeros((1, 16, 16, 1), np.uint8))
    found = explain(subject, {"left": left, "right": right})
    assert found.prediction[0] == pytest.approx(0.5)
    for side in (found.side(0), found.side(1)):
        assert side.attributions.shape == (1, 16, 16, 1)
        assert np.unravel_index(side.attributions[0, ..., 0].argmax(), (16, 16)) == (4, 4)
    with pytest.raises(ValueError, match=r"the right side does not fit: .*must be \(batch, height, width, channels\)"):
        explain(subject, {"left": left, "right": np.zeros((1, 16), np.uint8)})


def detector(images):
    """Two fixed boxes, as sure of their classes as their upper left corners are bright."""
    boxes = np.tile(np.array([[2, 2, 8, 8], [10, 10, 18, 18]], np.float32), (len(images), 1, 1))
    first, second = images[:, 2:5, 2:5, 0].mean(axis=(1, 2)) / 255, images[:, 10:13, 10:13, 0].mean(axis=(1, 2)) / 255
    scores = np.zeros((len(images), 2, 2))
    scores[:, 0, 1], scores[:, 1, 0] = first, second
    return {"boxes": boxes, "scores": scores}


@pytest.mark.parametrize("suppressed", [False, True])
def test_the_score_of_a_detected_box_is_explained(suppressed):
    def predict(images):
        found = detector(images)
        if not suppressed:
            return found
        scores = found["scores"]
        valid = np.ones(scores.shape[:2], bool)
        return found["boxes"], scores.max(axis=2), scores.argmax(axis=2).astype(np.int32), valid

    image = np.zeros((1, 20, 20, 1), np.uint8)
    image[:, 2:5, 2:5], image[:, 10:13, 10:13] = 255, 153
    subject = Subject.of_function(
        predict, "detection", labels=("dog", "cat"), background=np.zeros((1, 20, 20, 1), np.uint8)
    )
    found = explain(subject, image)
    assert found.kind == "detection" and found.label(0) == "cat" and found.prediction[0] == pytest.approx(1)
    assert found.about["box"].tolist() == [[2, 2, 8, 8]]
    assert found.attributions[0, 2:5, 2:5].sum() == pytest.approx(1, abs=1e-6)
    assert np.abs(found.attributions).sum() == pytest.approx(1, abs=1e-3)
    shifted = explain(subject, image, target={"box": (10, 10, 18, 14), "label": "dog"})
    assert shifted.prediction[0] == pytest.approx(0.6 / 2) and shifted.label(0) == "dog"
    assert shifted.attributions[0, 10:13, 10:13].sum() == pytest.approx(0.3, abs=1e-6)
    with pytest.raises(ValueError, match="a box is left, top, right, bottom in pixels"):
        explain(subject, image, target={"box": (8, 8, 2, 2)})
    with pytest.raises(ValueError, match=r"a target of 'function' has no 'region'; it may have label, box"):
        explain(subject, image, target={"region": np.ones((20, 20), bool)})


def test_overlap_of_boxes():
    np.testing.assert_allclose(overlap([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]], (0, 0, 2, 2)), [1, 1 / 3, 0])


def test_a_region_of_a_segmentation_is_explained_by_its_own_pixels():
    def segment(images):
        sky = images[..., 0] / 255.0
        return np.stack([1 - sky, sky], axis=-1)

    image = np.zeros((1, 16, 16, 1), np.uint8)
    image[:, :5] = 255
    black = np.zeros((1, 16, 16, 1), np.uint8)
    subject = Subject.of_function(segment, "segmentation", labels=("background", "sky"), background=black)
    found = explain(subject, image)
    assert found.kind == "segmentation" and found.label(0) == "sky" and found.prediction[0] == pytest.approx(1)
    assert found.about["region"].sum() == 5 * 16
    np.testing.assert_allclose(found.attributions[0, :5].sum(), 1, atol=0.1)
    one = np.zeros((16, 16), bool)
    one[3, 7] = True
    found = explain(subject, image, target={"region": one, "label": "sky"})
    assert found.attributions[0, 3, 7, 0] > 0.9
    with pytest.raises(ValueError, match=r"region of 'function' must be bool \(16, 16\) with a True in it"):
        explain(subject, image, target={"region": np.zeros((16, 16), bool)})
    with pytest.raises(ValueError, match="sees no 'sky'"):
        explain(subject, black, target="sky")


def test_interactions_are_shared_as_by_the_definition():
    random = np.random.default_rng(5)
    background, row = random.normal(size=(7, 4)), random.normal(size=(1, 4))

    def product(x):
        return x[:, 0] * x[:, 1] + x[:, 2] * x[:, 0] * x[:, 3] + np.maximum(x[:, 1], x[:, 3])

    expected, orders = np.zeros(4), list(permutations(range(4)))
    for order in orders:
        mixed, before = background.copy(), product(background).mean()
        for column in order:
            mixed[:, column] = row[0, column]
            expected[column] += product(mixed).mean() - before
            before = product(mixed).mean()
    found = explain(product, row, kind="table", background=background)
    assert found.method == "exact" and found.columns == ("column 0", "column 1", "column 2", "column 3")
    np.testing.assert_allclose(found.attributions[0], expected / len(orders), atol=1e-5)


def test_rows_of_one_batch_may_have_their_own_targets():
    def shares(x):
        return np.stack([x[:, 0], 1 - x[:, 0]], axis=1)

    found = explain(shares, [[0.25], [0.25]], kind="table", background=np.zeros((1, 1)), target=[0, 1])
    np.testing.assert_allclose(found.attributions, [[0.25], [-0.25]])
    assert found.task == "classification" and found.labels == ("0", "1")
    with pytest.raises(ValueError, match="target has 1 entries for 2 rows"):
        explain(shares, [[0.25], [0.25]], kind="table", background=np.zeros((1, 1)), target=[0])


@pytest.mark.parametrize(
    ("model", "kind", "error", "message"),
    [
        (len, None, ValueError, "a function can only be explained with kind=, one of image, table"),
        (len, "txt", ValueError, "there is no kind 'txt'; .*Did you mean 'text'"),
        (7, "image", TypeError, "an int cannot be explained; give a bundle"),
        (len, "table", ValueError, "a table is explained against a background"),
        (lambda x: np.zeros(3), "series", ValueError, r"must give one answer for each of 1 rows, got the shape \(3,\)"),
        (lambda x: np.zeros((1, 2, 2)), "series", ValueError, r"must answer \(batch, outputs\), got \(1, 2, 2\)"),
        (lambda x: np.full(len(x), np.nan), "series", ValueError, "answers NaN or infinity for row 0"),
        (lambda x: x, "detection", ValueError, r"must answer boxes \(batch, count, 4\) and scores"),
    ],
)
def test_what_cannot_be_explained_says_so(model, kind, error, message):
    x = np.zeros((1, 8, 8, 1) if kind in ("image", "detection") else (1, 8, 1), np.float32)
    with pytest.raises(error, match=message):
        explain(model, x, kind=kind)


@pytest.mark.parametrize(
    ("kind", "x", "message"),
    [
        ("series", np.array([[[np.nan]]]), "'series' of 'function' holds NaN or infinity in row 0; fill the gaps first"),
        ("image", np.full((1, 2, 2, 1), np.inf), "'image' of 'function' holds NaN or infinity"),
        ("series", np.zeros((2, 3, 4, 5)), r"must be \(batch, time, channels\), got \(2, 3, 4, 5\)"),
        ("text", [1, 2], "must be text, got int64"),
        ("graph", np.zeros((1, 2, 2)), 'takes nodes and adjacency; give {"nodes": …, "adjacency": …}, got a bare array'),
        ("graph", {"nodes": np.zeros((1, 3, 2)), "adjacency": np.zeros((1, 2, 2))}, r"must be \(batch, 3, 3\) for 3 nodes"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_say_so(kind, x, message):
    with pytest.raises(ValueError, match=message):
        explain(lambda raw: np.zeros(1), x, kind=kind)


def test_every_kind_has_players():
    assert set(KINDS) == {"image", "table", "text", "series", "graph", "pair"}


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if each.needs == "predict"])
def test_no_part_and_a_single_part(method):
    def length(texts):
        return np.array([float(len(text)) for text in texts])

    found = explain(length, ["", "word"], method, kind="text")
    assert found.attributions.tolist() == [[0], [4]] and found.names == ((), ("word",))
    if method != "partition":
        alone = {"nodes": np.ones((1, 3, 2)), "adjacency": np.zeros((1, 3, 3))}
        edges = Subject.of_function(lambda raw: raw["nodes"].sum(axis=(1, 2)), "graph", explained="edges")
        found = explain(edges, alone, method)
        assert found.attributions.shape == (1, 0) and found.prediction.tolist() == [6]
        assert (found.base is None) == (not METHODS[method].additive)


@pytest.mark.parametrize("side", [16, 300])
def test_batches_are_as_large_as_memory_allows(side):
    asked = []

    def listen(images):
        asked.append(len(images))
        return images[:, 0, 0, 0] / 255.0

    subject = Subject.of_function(listen, "image", background=np.zeros((1, side, side, 3), np.uint8))
    image = np.full((1, side, side, 3), 255, np.uint8)
    explain(subject, image, "partition", max_evals=100, quality=False)
    most = subject.batch({"image": image})
    assert max(asked) <= most and most * image.nbytes <= BATCH_BYTES and most >= LEAST_ROWS
    assert len(asked) < 30
