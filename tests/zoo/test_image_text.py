"""Pictures and texts: the loss, the figures, the data, and the road of a small model from training to a zero-shot run."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import data as datasets
from zoo import tasks
from zoo.data import CaptionedPreprocess, Data, Signature, Split, captions, from_rows
from zoo.data.rows import TEST, TRAIN, VALIDATION, Rows
from zoo.data.targets import Captions
from zoo.evaluate.report import answers, judge
from zoo.matching import search, zero_shot
from zoo.tasks.image_text import contrastive_loss, ranks
from zoo.training import load, load_data

TASK = tasks.get("image-text")
TINY = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "latent": 8,
    "patch": 8,
    "text_width": 16,
    "text_depth": 1,
    "text_heads": 2,
}


def small(name="small", seed=0):
    pictures, texts, y, part = captions.captioned(96, 24, 40, seed=seed)
    x = {"image": pictures, "text": texts}
    return from_rows(Rows(name, "image-text", x, y, (), name, part=part, generated=True), tokenizer="wordpiece")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "clip"
    return zoo.train("clip", small(), out=folder, epochs=2, batch_size=32, quiet=True, **TINY)


def unit(rows, length=4, seed=0):
    found = np.random.default_rng(seed).standard_normal((rows, length)).astype(np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def by_hand(y, pairs):
    """The same loss with loops."""
    logits = pairs[:, 0] @ pairs[:, 1].T
    found = np.zeros(len(y))
    for row in range(len(y)):
        for scores in (logits[row], logits[:, row]):
            likely = np.exp(scores) / np.exp(scores).sum()
            right = [other for other in range(len(y)) if (y[row] == y[other]).any()]
            found[row] -= np.mean([np.log(likely[other]) for other in right]) / 2
    return found


@pytest.mark.parametrize("texts", [[0, 1, 2, 3, 4], [0, 1, 0, 0, 4]])
def test_the_loss_is_that_of_the_paper_and_shares_equal_texts(texts):
    y = Captions.packed(np.array([0, 1, 2, 3, 1]), np.array(texts))
    pairs = np.stack([3 * unit(5), unit(5, seed=1)], axis=1)
    found = keras.ops.convert_to_numpy(contrastive_loss(y.astype(np.float32), pairs))
    np.testing.assert_allclose(found, by_hand(y, pairs), rtol=1e-5)
    apart = Captions.packed(np.arange(5), np.arange(5))
    logits = pairs[:, 0] @ pairs[:, 1].T
    plain = [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)(np.arange(5), each) for each in (logits, logits.T)
    ]
    found = keras.ops.convert_to_numpy(contrastive_loss(apart.astype(np.float32), pairs))
    assert found.mean() == pytest.approx(float(sum(map(float, plain))) / 2, rel=1e-5)


def test_equal_texts_are_one_candidate_and_right_for_each_of_their_pictures():
    y = Captions.packed(np.array([0, 1, 2, 3]), np.array([7, 7, 8, 9]))
    images = np.eye(4, 3, dtype=np.float32)[[0, 0, 1, 2]]
    texts = np.eye(4, 3, dtype=np.float32)[[0, 0, 1, 1]]  # the last text is taken for the third picture's
    to_text, to_image = ranks(y, np.stack([images, texts], axis=1))
    assert to_text.tolist() == [0, 0, 1, 2]  # a tie counts against it
    assert to_image.tolist() == [0, 0, 0, 3]
    figures = {name: float(f(np.ones((1, 4)))[0]) for name, f in TASK.measures(y, np.stack([images, texts], 1)).items()}
    assert figures["image_to_text_at_1"] == 0.5 and figures["text_to_image_at_1"] == 0.75
    assert figures["recall_at_1"] == 0.625 and figures["image_to_text_at_5"] == 1


def test_several_texts_of_one_picture_are_all_right():
    y = Captions.packed(np.array([0, 0, 1, 1]), np.arange(4))
    images = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    texts = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]  # the second text of the first picture is wrong
    to_text, to_image = ranks(y, np.stack([images, texts], axis=1))
    assert to_text.tolist() == [0, 0, 1, 1]  # the wrong one is as near to them
    assert to_image.tolist() == [0, 1, 0, 0]


def test_an_answer_that_never_changes_finds_nothing_and_chance_is_the_share_of_right_candidates():
    data = small()
    assert tasks.idle(data.signature, data.train.y, data.test.y) == 0
    right = np.random.default_rng(0).standard_normal
    random = np.mean([TASK.score(data.test.y, right((len(data.test), 2, 64)).astype(np.float32)) for _ in range(40)])
    assert TASK.baseline(data) == pytest.approx(random, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "triplet"}, "have the loss 'contrastive' without label_smoothing, got loss='triplet'"),
        ({"label_smoothing": 0.1}, "without label_smoothing, got loss='', label_smoothing=0.1"),
        ({"augment": ("shift",)}, "augment 'shift' changes pictures, and what their texts tell"),
    ],
)
def test_what_does_not_suit_pictures_and_texts_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        zoo.train("clip", small(), out=tmp_path / "run", epochs=1, quiet=True, **TINY, **settings)


def test_generated_pictures_keep_pairs_for_the_test_and_number_what_is_said():
    pictures, texts, y, part = captions.captioned(60, 20, 200, seed=3)
    again = captions.captioned(60, 20, 200, seed=3)
    np.testing.assert_array_equal(pictures, again[0])
    assert pictures.dtype == np.uint8 and pictures.shape == (280, 32, 32, 3)
    told = [
        {word for word in text.replace(",", "").split() if word in {*captions.COLOURS, *captions.KINDS}}
        for text in texts
    ]
    new = [any(captions.unseen(label) for label in captions.LABELS if words == set(label.split())) for words in told]
    assert not any(np.array(new)[part != TEST]) and 0.08 < np.mean(np.array(new)[part == TEST]) < 0.25
    assert (part == TRAIN).sum() == 60 and (part == VALIDATION).sum() == 20
    said = {}
    for text, number in zip(texts, y[:, 1], strict=True):
        words = frozenset(text.replace(",", "").split()) & {"small", "large", *captions.COLOURS, *captions.KINDS}
        place = next((place for place in captions.PLACES if place in text), "")
        assert said.setdefault(number, (words, place)) == (words, place)
    assert len(set(said.values())) == len(said)


def test_labelled_pictures_have_every_label_equally_often():
    pictures, y = captions.labelled(80)
    assert pictures.shape == (80, 32, 32, 3) and (np.bincount(y) == 2).all() and len(captions.LABELS) == 40
    red = pictures[captions.LABELS.index("red circle")].astype(int)
    assert (red[..., 0] - red[..., 1]).max() > 100


def test_a_table_of_pictures_and_captions_is_read(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for number in range(24):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
        rows += [
            (f"{number}.png", f"picture {number % 5} of many"),
            (f"{number}.png", f"Picture  {number % 5} OF many"),
        ]
    path = tmp_path / "pictures.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    data = datasets.load(path, seed=1)
    assert data.signature.task == "image-text" and isinstance(data.signature.preprocess, CaptionedPreprocess)
    assert sum(len(split) for split in data.splits.values()) == 48
    pictures = [set(split.y[:, 0].tolist()) for split in data.splits.values()]
    assert not pictures[0] & pictures[1] and not pictures[0] & pictures[2]  # both rows of a picture are together
    assert len({*map(int, np.concatenate([split.y[:, 1] for split in data.splits.values()]))}) == 5
    assert "24" not in data.summary().splitlines()[1] and "pictures" in data.summary()
    resized = datasets.load(path, input_shape=(16, 12, 1))
    assert resized.signature.preprocess.shape == (16, 12, 1)
    (tmp_path / "3.png").unlink()
    with pytest.raises(
        ValueError, match=r"row 7 names the image '3\.png', and there is no such file; correct the name"
    ):
        datasets.load(path)
    path.write_text("image,text\na.png,b\n")
    with pytest.raises(
        ValueError, match="needs a column 'image' of image files and a column 'caption' of what they show"
    ):
        datasets.load(path, task="image-text")


def test_a_signature_of_pictures_and_texts_is_read_back(tmp_path):
    data = small()
    data.signature.save(tmp_path / "signature.json")
    assert Signature.load(tmp_path / "signature.json") == data.signature
    assert "tokenizer.json" in (tmp_path / "signature.json").read_text()
    rows = {name: values[:3] for name, values in data.train.x.items()}
    found = data.signature.inputs(rows)
    assert found["image"].dtype == np.float32 and found["tokens"].dtype == np.int32
    np.testing.assert_array_equal(data.signature.fed(rows)["tokens"], found["tokens"])
    assert datasets.scaled(data, "tf").signature.preprocess.image.mean == (127.5,) * 3


def test_training_judges_draws_and_is_read_back(run):
    assert run.metrics.keys() >= {"train", "validation", "test", "baseline"}
    for name in ("report.md", "confusion.png", "tokenizer.json"):
        assert (run.folder / name).stat().st_size
    again = load(run.folder)
    rows = {name: values[:5] for name, values in run.data.test.x.items()}
    expected = answers(run.model, run.signature, rows)
    np.testing.assert_allclose(answers(again.model, again.signature, rows), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=-1), 1, atol=1e-5)
    assert run.recipe.arguments["end"] == run.signature.text.separator
    assert run.recipe.arguments["length"] == run.signature.text.length
    loss = [row["loss"] for row in run.history]
    assert loss[-1] < loss[0]


def test_a_report_shows_pictures_with_their_nearest_texts(run, tmp_path):
    report = zoo.evaluate(run)
    assert report.metric == "recall_at_1" and 0 <= report.score.low <= report.score.score <= report.score.high <= 1
    report.save(tmp_path)
    assert (tmp_path / "examples.png").stat().st_size and (tmp_path / "worst.png").stat().st_size
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["per_class"]["image to text"]["candidates"] == len(np.unique(run.data.test.y[:, 1]))
    worst = report.worst_rows(3)
    assert worst[0]["true"] != worst[0]["answer"] and worst[0]["place"] >= worst[-1]["place"]
    assert "text to image" in str(report)


def pictures_of(rows=160):
    images, y = captions.labelled(rows, seed=5)
    source = Rows("labelled", "image-classification", {"image": images}, y, captions.LABELS, "labelled", generated=True)
    return from_rows(source, validation=0.25, test=0.25)


def test_a_zero_shot_classifier_answers_by_the_texts_vectors(run):
    labels = ("red circle", "blue ring", "green square")
    found = zero_shot(run, labels, "the picture shows a {}")
    images = run.data.test.x["image"][:6]
    texts = {"text": np.array([f"the picture shows a {label}" for label in labels])}
    both = {"image": images, "text": np.resize(texts["text"], 6)}
    pairs = run.model.predict_on_batch(run.signature.inputs(both))
    expected = pairs[:, 0] @ pairs[:3, 1].T
    np.testing.assert_allclose(
        found.model.predict_on_batch(found.signature.inputs({"image": images})), expected, atol=1e-4
    )
    assert found.signature.labels == labels and found.signature.task == "image-classification"
    several = zero_shot(run, labels, ["a {}", "one {}"])
    kernels = [zero_shot(run, labels, each).model.get_layer("logits").get_weights()[0] for each in ("a {}", "one {}")]
    mean = (kernels[0] + kernels[1]) / 2
    factor = np.linalg.norm(kernels[0], axis=0)
    np.testing.assert_allclose(
        several.model.get_layer("logits").get_weights()[0],
        factor * mean / np.linalg.norm(mean, axis=0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_zero_shot_classifier_is_judged_and_kept_as_a_run(run, tmp_path):
    data = pictures_of()
    found = zero_shot(run, data=data, out=tmp_path / "zero")
    report = zoo.evaluate(found)
    assert report.score.score == pytest.approx(found.metrics["test"]) and found.metrics["baseline"] == 1 / 40
    again = load(tmp_path / "zero")
    np.testing.assert_allclose(
        again.model.predict_on_batch(np.zeros((2, 32, 32, 3))),
        found.model.predict_on_batch(np.zeros((2, 32, 32, 3))),
        atol=1e-5,
    )
    assert again.signature == found.signature == found.data.signature
    with pytest.raises(FileExistsError, match="is not empty; overwrite it"):
        zero_shot(run, data=data, out=tmp_path / "zero")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ["one"]}, r"labels must be at least two different texts, got \['one'\]"),
        ({"labels": ["one", "one"]}, "at least two different texts"),
        ({"labels": ["one", "two"], "template": "a picture"}, "must have {} where the label stands.* got 'a picture'"),
        ({"labels": ["one", "two"], "out": "somewhere"}, "a run is written with its scores, which need data"),
        ({"labels": ["one", "two"], "tokenizer": "t.json"}, "a run has its own tokenizer, got tokenizer='t.json'"),
    ],
)
def test_what_makes_no_classifier_is_refused(run, given, message):
    with pytest.raises(ValueError, match=message):
        zero_shot(run, **given)


def test_zero_shot_needs_a_model_of_pictures_and_texts(run):
    lenet = zoo.get("lenet", input_shape=(28, 28, 1))
    with pytest.raises(ValueError, match="need a model of pictures and texts such as 'clip', got 'lenet'"):
        zero_shot(lenet, ["a", "b"])
    with pytest.raises(ValueError, match="a Keras model needs pretrained weights"):
        zero_shot(run.model, ["a", "b"])
    with pytest.raises(ValueError, match=r"data 'labelled' has the labels red circle, .*, got a, b; give the same"):
        zero_shot(run, ["a", "b"], data=pictures_of())
    with pytest.raises(ValueError, match="are for image-classification, 'small' is for image-text"):
        zero_shot(run, data=small())


def test_search_finds_texts_of_pictures_and_pictures_of_texts(run):
    part = run.data.test
    texts, pictures = part.x["text"][:8].tolist(), part.x["image"][:8]
    scored = answers(run.model, run.signature, {"image": pictures, "text": part.x["text"][:8]})
    cosines = scored[:, 0] @ scored[:, 1].T
    found = search(run, pictures, texts, 3)
    assert [each.places[0] for each in found] == cosines.argmax(axis=1).tolist()
    other = search(run.folder, texts[:2], pictures, 3)
    assert [each.places[0] for each in other] == cosines[:, :2].argmax(axis=0).tolist()
    assert [len(each.cosines) for each in other] == [3, 3] and other[0].cosines[0] >= other[0].cosines[1]
    assert search(run, texts[:1], texts)[0].places[0] == 0
    with pytest.raises(ValueError, match="most must be at least 1, got most=0"):
        search(run, texts, pictures, 0)


def test_a_run_reads_its_data_again_only_if_they_are_the_same(run):
    other = replace(run, recipe=replace(run.recipe, data="captioned_shapes"))
    with pytest.raises(ValueError, match=r"differs from what .* was trained on"):
        load_data(other)


def test_judging_a_subset_is_judging_its_rows(run):
    part: Split = run.data.test
    data: Data = run.data
    scored = answers(run.model, run.signature, part.x)
    report = judge(data.signature, part.y[:20], scored[:20], "test")
    assert report.rows == 20 and report.per_class["text to image"]["candidates"] == 20


UNTAUGHT = "ignore:the model scores .* no better than always the same answer"  # it was trained for seconds


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    import export

    return export.to_bundle(run, tmp_path_factory.mktemp("store") / "pairs" / "1")


@pytest.mark.filterwarnings(UNTAUGHT)
def test_the_bundle_of_both_towers_answers_as_keras_does(run, bundle):
    from serve.runtime import Model

    manifest = bundle.manifest
    assert manifest.kind == "captioned" and [port.name for port in manifest.inputs] == ["image", "text"]
    assert [(port.name, port.shape) for port in manifest.outputs] == [
        ("image_embedding", (-1, 8)),
        ("text_embedding", (-1, 8)),
        ("logit", (-1,)),
    ]
    model = Model(bundle)
    rows = {name: values[:6] for name, values in run.data.test.x.items()}
    found = model.predict(rows)
    pairs = run.model.predict_on_batch(run.signature.inputs(rows))
    np.testing.assert_allclose(found["logit"], (pairs[:, 0] * pairs[:, 1]).sum(axis=-1), atol=1e-4)
    expected = answers(run.model, run.signature, rows)
    np.testing.assert_allclose(np.stack([found["image_embedding"], found["text_embedding"]], 1), expected, atol=1e-5)
    report = zoo.evaluate(bundle.folder, run.data)
    assert report.score.score == pytest.approx(zoo.evaluate(run).score.score)


@pytest.mark.filterwarnings(UNTAUGHT)
def test_the_bundles_own_runner_takes_images_with_texts(run, bundle, tmp_path):
    rows = {name: values[:2] for name, values in run.data.test.x.items()}
    np.savez(tmp_path / "rows.npz", **rows)
    command = [sys.executable, str(bundle.folder / "run.py"), str(tmp_path / "rows.npz"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(done.stdout)
    expected = answers(run.model, run.signature, rows).prod(axis=1).sum(axis=-1)
    assert [answer["cosine"] for answer in report["answers"]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert report["replay"]["rows"] == 16


@pytest.mark.filterwarnings(UNTAUGHT)
def test_a_server_takes_images_with_texts_on_the_infer_route(run, bundle):
    from serve import create_app

    client = create_app(bundle.folder.parent.parent).test_client()
    rows = {name: values[:2] for name, values in run.data.test.x.items()}
    inputs = [
        {"name": "image", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": rows["image"].ravel().tolist()},
        {"name": "text", "datatype": "BYTES", "shape": [2], "data": rows["text"].tolist()},
    ]
    answer = client.post("/v2/models/pairs/infer", json={"inputs": inputs})
    assert answer.status_code == 200, answer.json
    found = {output["name"]: output["data"] for output in answer.json["outputs"]}
    pairs = run.model.predict_on_batch(run.signature.inputs(rows))
    np.testing.assert_allclose(found["logit"], (pairs[:, 0] * pairs[:, 1]).sum(axis=-1), atol=1e-3)
    inputs[1]["data"] = ["  ", "a"]
    refused = client.post("/v2/models/pairs/infer", json={"inputs": inputs})
    assert refused.status_code == 422 and "row 1 of 'text' is empty" in refused.json["error"]
    row = {"image": rows["image"][1].tolist(), "text": str(rows["text"][1])}
    (told,) = client.post("/predict/pairs", json=row).json["predictions"]
    cosine = answers(run.model, run.signature, rows)[1].prod(axis=0).sum()
    assert told["cosine"] == pytest.approx(cosine, abs=1e-4) and told["logit"] == pytest.approx(
        found["logit"][1], abs=1e-3
    )
    (more,) = client.post("/predict/pairs?form=embeddings", json=row).json["predictions"]
    assert len(more["image_embedding"]) == len(more["text_embedding"]) == 8
    assert client.get("/models/pairs/examples").json[0].keys() == {"image", "text"}
    other = client.post("/predict/pairs", json={"text": "a red ring"})
    assert other.status_code == 400 and 'send {"image": [[pixel' in other.json["error"]["message"]
    sent = client.post("/predict/pairs", data=b"a red ring", headers={"Content-Type": "text/plain"})
    assert sent.status_code == 415 and "or use the v2 infer route" in sent.json["error"]["message"]
    assert client.get("/openapi.json").status_code == 200


@pytest.mark.filterwarnings(UNTAUGHT)
def test_a_zero_shot_classifier_goes_the_road_of_any_other(run, tmp_path):
    import export
    from serve.runtime import Model

    found = zero_shot(run, data=pictures_of())
    made = export.to_bundle(found, tmp_path / "shapes" / "1", runner=False)
    assert made.manifest.kind == "image" and made.manifest.labels == captions.LABELS
    assert "int8" in made.manifest.precisions or "int8" in made.manifest.refused
    rows = {"image": found.data.test.x["image"][:5]}
    np.testing.assert_allclose(
        Model(made).predict(rows)["probabilities"], answers(found.model, found.signature, rows), atol=1e-4
    )


@pytest.mark.filterwarnings(UNTAUGHT)
def test_pictures_go_bad_and_their_texts_stay(run, bundle):
    from zoo.evaluate.corruptions import CORRUPTIONS
    from zoo.evaluate.robustness import attacked, corrupted

    x = {name: values[:40] for name, values in run.data.test.x.items()}
    bad = CORRUPTIONS["captioned"]["noise"].apply(x, 96, run.signature)
    assert (bad["image"] != x["image"]).mean() > 0.9 and np.array_equal(bad["text"], x["text"])
    for subject in (run, bundle):
        found = corrupted(subject, run.data, kinds=["brightness"], strengths=[0, 255], rows=40)
        assert found.score("brightness", 0) == found.clean and found.metric == "recall_at_1"
        assert found.score("brightness", 255).score <= found.clean.score  # all pictures are white
    with pytest.raises(ValueError, match="attacks are for images and tables, got captioned inputs"):
        attacked(run)


def test_explanations_of_both_towers_are_refused_in_words(run, bundle):
    with pytest.raises(
        ValueError, match=r"answers with vectors of an image and a text.* make a classifier of it with zoo"
    ):
        zoo.explain(bundle, run.data.test.x)
    with pytest.raises(ValueError, match="make a classifier of it with zoo zero-shot"):
        zoo.explain(run, run.data.test.x)


def test_a_file_for_devices_is_refused_in_words(run, tmp_path):
    import export

    with pytest.raises(
        export.ExportError, match="takes images with texts, which has no file for devices; make a class"
    ):
        export.to_litert(run.model, tmp_path / "model.tflite", signature=run.signature)
