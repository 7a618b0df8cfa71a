"""Models that compute their loss themselves, or are trained with something behind them, in every tool that needs a loss."""

import logging

import keras
import numpy as np
import pytest

import zoo
from zoo import data as datasets
from zoo.compress import distill
from zoo.compress.identities import Identities
from zoo.compress.ranking import scores
from zoo.data import Rows, from_rows, shapes
from zoo.data.targets import Boxes
from zoo.evaluate.debugging import check_gradients, flow, overfit
from zoo.training import find_learning_rate, fit
from zoo.training.adversarial import hardened
from zoo.training.callbacks import GradientHealth
from zoo.training.gradients import gradients
from zoo.training.learners import alike, computes_loss, loss_of
from zoo.training.run import untrained

STAGES = dict(
    width=4, depth=(1,), stem="small", pyramid=4, hidden=8, anchors=(12, 24), proposals=12, candidates=20, bottleneck=False
)  # fmt: skip
CAPSULES = dict(input_shape=(12, 12, 1), width=8, capsules=2, length=(4, 6), hidden=(8,), kernel=3)
FACES = dict(depth=(1, 1), width=8, latent=16, loss="arcface:0.5:16")


@pytest.fixture(scope="module")
def boxes():
    drawn = shapes.draw(24, 32, least=0, most=1, seed=5)
    y = Boxes.padded(drawn.boxes, [np.zeros_like(labels) for labels in drawn.labels])
    return from_rows(Rows("drawn", "detection", {"image": drawn.images}, y, ("shape",), "drawn here", generated=True))


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", input_shape=CAPSULES["input_shape"])


@pytest.fixture(scope="module")
def detector(boxes):
    keras.utils.set_random_seed(0)
    return untrained("faster_rcnn", boxes, **STAGES)


def few(run, rows=6):
    part, signature = run.data.train, run.signature
    x = signature.inputs({name: values[:rows] for name, values in part.x.items()})
    return x, zoo.tasks.get(signature.task).encode(signature.targets(part.y[:rows]), signature.outputs)


def test_the_loss_outside_of_a_step_is_that_of_the_step(detector, digits):
    for run in (detector, untrained("capsnet", digits, **CAPSULES)):
        model = run.model
        task = zoo.tasks.get(run.signature.task)
        model.compile(keras.optimizers.SGD(0.0), task.loss_for(model, "", 0.0), jit_compile=False)
        x, y = few(run)
        assert computes_loss(model)
        found = float(loss_of(model, None, x, y))
        assert found == pytest.approx(model.test_on_batch(x, y, return_dict=True)["loss"], rel=1e-4)
        before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables if "optimizer" not in v.path]
        value, slopes = gradients(model, None, x, y, training=True)
        after = [keras.ops.convert_to_numpy(v) for v in model.variables if "optimizer" not in v.path]
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)
        assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)
        assert sum(bool(np.any(slope)) for slope in slopes) > 0.8 * len(slopes)


def test_health_sees_the_gradient_of_a_decoder(digits, caplog):
    run = untrained("capsnet", digits, epochs=1, batch_size=256, **CAPSULES)
    health = []
    with caplog.at_level(logging.WARNING, "zoo.training"):
        fit(run.model, run.data, run.recipe, quiet=True, diagnose=health)
    assert "vanishes" not in caplog.text
    decoder = [row["norm"] for row in health[0].rows if "decoder" in row["weight"] and "kernel" in row["weight"]]
    assert len(decoder) == 2 and min(decoder) > 0


def test_health_of_a_detector_is_measured(boxes):
    run = untrained("faster_rcnn", boxes, **STAGES)
    run.model.compile("sgd", None, run_eagerly=True)
    health = GradientHealth(*few(run))
    health.set_model(run.model)
    health.on_epoch_end(0)
    rows = {row["weight"]: row["norm"] for row in health.rows}
    assert rows["anchors_conv/kernel"] > 0 and rows["head_deltas/kernel"] > 0 and rows["stem_conv/kernel"] > 0


def test_rates_are_found_for_models_with_more_than_a_loss(detector):
    faces = untrained("face_embedding", "digit_identities", **FACES)
    for run in (detector, faces):
        before = run.model.get_weights()
        found = find_learning_rate(run.model, run.data, run.recipe, low=1e-3, high=1.0, steps=12)
        assert 1e-3 <= found.suggested <= 1 and np.isfinite(found.losses).all()
        for one, other in zip(before, run.model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_attacked_rows_are_worse_for_a_detector_and_it_learns_from_them(boxes):
    run = untrained("faster_rcnn", boxes, epochs=1, batch_size=12, adversarial="fgsm:8", **STAGES)
    model = hardened(run.model, run.data, run.recipe)
    model.compile("sgd", None, run_eagerly=True)
    x, y = few(run, 12)
    moved = keras.ops.convert_to_numpy(model.perturbed(x, y))
    assert np.abs(moved - x).max() > 0
    assert float(loss_of(model, None, moved, y)) > float(loss_of(model, None, x, y))
    before = run.model.get_weights()
    model.train_on_batch(x, y)
    moved = [not np.array_equal(one, other) for one, other in zip(before, run.model.get_weights(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_a_decoder_is_trained_on_attacked_rows_and_beside_a_teacher(digits, tmp_path):
    run = untrained("capsnet", digits, epochs=1, batch_size=256, adversarial="fgsm:8", **CAPSULES)
    before = run.model.decoder.get_weights()
    fit(run.model, run.data, run.recipe, quiet=True)
    assert not np.array_equal(before[0], run.model.decoder.get_weights()[0])

    teacher = zoo.train(
        "mlp", digits, out=tmp_path / "teacher", width=(16,), epochs=3, learning_rate=5e-3, quiet=True
    )  # fmt: skip
    start = untrained("capsnet", digits, **CAPSULES)
    student = distill(
        teacher, start, digits, out=tmp_path / "student", features=True, epochs=1, batch_size=256, quiet=True
    )  # fmt: skip
    assert type(student.model) is type(start.model)
    assert not np.array_equal(start.model.decoder.get_weights()[0], student.model.decoder.get_weights()[0])


def test_what_stands_in_for_a_model_shares_all_its_weights(digits):
    network = untrained("capsnet", digits, **CAPSULES).model
    model = alike(network, [network.output, network.get_layer("features").output])
    assert {id(weight) for weight in model.weights} == {id(weight) for weight in network.weights}
    assert isinstance(model, type(network)) and model.decoder is network.decoder


def test_a_detector_learns_a_batch_by_heart_judged_by_its_score(boxes):
    settings = {**STAGES, "width": 8, "pyramid": 16, "hidden": 32}
    found = overfit("faster_rcnn", boxes, rows=4, steps=150, rates=(5e-3,), **settings)
    assert found.metric == "map_50" and found.reached and found.score >= 0.95 and not found.findings
    assert "the loss at the start" in str(found)
    stopped = overfit("faster_rcnn", boxes, rows=4, steps=10, rates=(1e-6,), **settings)
    assert not stopped.reached and stopped.findings
    with pytest.raises(ValueError, match="'faster_rcnn' computes its loss itself, so it cannot learn by another"):
        overfit("faster_rcnn", boxes, rows=4, steps=10, loss=keras.losses.MeanSquaredError(), **settings)


def test_the_flow_of_models_with_more_than_a_loss_is_measured(boxes, digits):
    def kernels(found):
        return {row.weight: np.median(row.norms) for row in found.weights if row.kernel}

    assert kernels(flow("faster_rcnn", boxes, steps=2, **STAGES))["head_deltas/kernel"] > 0
    drawn = kernels(flow("capsnet", digits, steps=2, batch_size=256, **CAPSULES))
    assert all(norm > 0 for name, norm in drawn.items() if "decoder" in name)
    centred = [row.weight for row in flow("face_embedding", "digit_identities", steps=2, **FACES).weights]
    assert any("class_centres" in name for name in centred)


def test_what_makes_no_sense_for_a_detector_is_refused(detector, tmp_path):
    with pytest.raises(ValueError, match=r"finite differences say nothing of 'faster_rcnn': .* see zoo debug flow"):
        check_gradients(detector)
    with pytest.raises(
        ValueError, match="a teacher's answers are one label or value for each row, and the task is detec"
    ):
        distill(detector, "yolo_nano", detector.data, out=tmp_path / "student", quiet=True)


def test_channels_of_a_detector_are_ranked_by_what_the_loss_would_lose(detector):
    found = scores(Identities(detector.model, ("logits",)), "taylor", detector.data)
    assert len(found) and np.isfinite(list(found.values())).all() and len(set(found.values())) > 10
