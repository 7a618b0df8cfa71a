"""Training on attacked rows: what it changes rows by, that it makes models robust, and that it resumes exactly."""

import keras
import numpy as np
import pytest
from stopping import Stop

import zoo
from zoo import data as datasets
from zoo import recipes
from zoo.compress import distill_defensively
from zoo.compress.defensive import TemperedLoss
from zoo.data.signature import TablePreprocess
from zoo.evaluate import robustness
from zoo.evaluate.attacks import Region
from zoo.recipes import Perturbation, Recipe
from zoo.training.adversarial import hardened

SETTINGS = dict(epochs=12, width=(48,), dropout=0.0, learning_rate=5e-3, quiet=True)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return zoo.train("mlp", data="digits", out=tmp_path_factory.mktemp("plain") / "run", **SETTINGS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fgsm:8", ("fgsm", "linf", 8.0, 1)),
        ("pgd:0.5", ("pgd", "linf", 0.5, 7)),
        ("pgd-l2:64:10", ("pgd", "l2", 64.0, 10)),
        ("gaussian:32", ("gaussian", "linf", 32.0, 0)),
    ],
)
def test_perturbations_are_read(text, expected):
    assert Perturbation.parse(text) == expected
    assert Recipe("m", "d", adversarial=text).adversarial == text


@pytest.mark.parametrize("text", ["pgd", "pgd:", "pgd:0", "pgd:8:0", "fgsm:8:2", "gaussian-l2:3", "cw:8", "pgd:-8"])
def test_what_is_no_perturbation_is_refused(text):
    with pytest.raises(ValueError, match=f"adversarial must be fgsm:E, .*got '{text}'"):
        Recipe("m", "d").override(adversarial=text)


@pytest.mark.parametrize("text", ["fgsm:16", "pgd:16", "pgd-l2:90:5", "gaussian:16"])
def test_rows_are_changed_within_the_limit_and_against_the_model(text, digits, plain):
    model = hardened(plain.model, digits, Recipe("mlp", "digits", adversarial=text))
    model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    x = digits.signature.inputs(digits.train.x)[:100]
    y = np.eye(10, dtype=np.float32)[digits.train.y[:100]]
    found = keras.ops.convert_to_numpy(model.perturbed(x, y))
    step = digits.signature.preprocess
    pixels = found * step.std[0] + step.mean[0]
    assert pixels.min() > -1e-3 and pixels.max() < 255 + 1e-3
    move = ((found - x) * step.std[0]).reshape(100, -1)
    assert np.abs(move).max() > 8
    if text.startswith("gaussian"):
        inside = (x.reshape(100, -1) * step.std[0] + step.mean[0] > 60) & (x.reshape(100, -1) * step.std[0] < 100)
        assert move[inside].std() == pytest.approx(16, rel=0.1)
        return
    size = np.linalg.norm(move, axis=1).max() if "l2" in text else np.abs(move).max()
    assert size <= (90 if "l2" in text else 16) * (1 + 1e-4)
    loss = model.loss.call(y, model(found)), model.loss.call(y, model(x))
    assert float(keras.ops.mean(loss[0])) > float(keras.ops.mean(loss[1])) + 0.3
    assert not np.array_equal(found, keras.ops.convert_to_numpy(model.perturbed(x, y)))  # another random start


def test_categories_are_not_attacked():
    step = TablePreprocess(("age",), (40.0,), (10.0,), {"sex": ("f", "m")})
    region = Region.of(type("Signature", (), {"preprocess": step}))
    np.testing.assert_array_equal(region.unit, [1, 0, 0])


def test_training_on_attacked_rows_makes_robust(plain, tmp_path):
    hard = zoo.train("mlp", data="digits", out=tmp_path / "hard", adversarial="pgd:24:5", **SETTINGS)
    scores = {}
    for name, run in (("plain", plain), ("hard", hard)):
        found = robustness.attacked(run, epsilons=(24,), methods=("pgd", "margin"), steps=10)
        assert not found.findings
        scores[name] = found.score("worst", 24.0).score
    assert scores["hard"] > scores["plain"] + 0.2
    assert hard.metrics["test"] > plain.metrics["test"] - 0.06
    assert hard.history[-1]["val_accuracy"] < hard.metrics["validation"]  # validation rows are attacked while training
    assert recipes.Recipe.load(hard.folder / "recipe.json").adversarial == "pgd:24:5"
    assert type(zoo.load(hard.folder).model).__name__ == "Functional"


def test_a_killed_adversarial_run_goes_on_exactly(tmp_path):
    settings = {**SETTINGS, "epochs": 2, "width": (16,), "adversarial": "pgd:16:2"}
    whole = zoo.train("mlp", data="digits", out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        zoo.train("mlp", data="digits", out=tmp_path / "killed", save_every=5, callbacks=(Stop(42),), **settings)
    again = zoo.train("mlp", data="digits", out=tmp_path / "killed", resume=True, quiet=True)
    assert whole.history == again.history
    for one, other in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_with_its_own_training_step_is_refused(digits):
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    inputs = keras.Input((8, 8, 1))
    model = Own(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)), name="own")
    with pytest.raises(ValueError, match="replaces the training step, and 'own' has one of its own"):
        hardened(model, digits, Recipe("own", "digits", adversarial="fgsm:8"))


def test_a_student_may_learn_from_a_teacher_on_attacked_rows(plain, tmp_path):
    student = zoo.compress.distill(
        plain, "mlp", out=tmp_path / "student", **{**SETTINGS, "epochs": 4}, adversarial="fgsm:16"
    )
    assert student.metrics["test"] > 0.8
    assert student.history[-1]["loss"] < student.history[0]["loss"]


def test_defensive_distillation_hides_the_gradient_and_does_not_defend(plain, tmp_path):
    settings = {**SETTINGS, "temperature": 100.0, "epochs": 30}
    run = distill_defensively("mlp", "digits", out=tmp_path / "student", **settings)
    assert run.metrics["test"] > 0.9 and (tmp_path / "student-teacher" / "model.keras").is_file()
    options = dict(epsilons=(32,), methods=("fgsm", "pgd", "margin"), steps=10)
    found, before = robustness.attacked(run, **options), robustness.attacked(plain, **options)
    assert found.score("pgd", 32).score > before.score("pgd", 32).score + 0.2
    assert found.score("margin", 32).score < found.score("pgd", 32).score - 0.2
    assert any("the softmax is saturated" in str(finding) for finding in found.findings)


def test_the_tempered_loss_is_the_loss_at_that_temperature():
    y = np.eye(3, dtype=np.float32)
    logits = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32) * 10
    hard = keras.losses.CategoricalCrossentropy(from_logits=True)
    soft = logits / 5
    by_hand = np.log(np.exp(soft).sum(axis=1)) - np.diag(soft)
    np.testing.assert_allclose(float(TemperedLoss(hard, 5.0)(y, logits)), 25 * by_hand.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        distill_defensively("mlp", "digits", out="nowhere", temperature=0)
