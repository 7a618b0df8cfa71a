import csv
import json
import logging

import keras
import numpy as np
import pytest

import zoo
from zoo import recipes, registry
from zoo.tasks import Interval
from zoo.training import optimisers
from zoo.training.callbacks import GradientHealth, Keeper, NaNGuard
from zoo.training.gradients import gradients
from zoo.training.run import _verdict, load_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return zoo.train(
        "mlp", data="digits", out=tmp_path_factory.mktemp("runs") / "mlp", epochs=4, quiet=True, diagnose=True
    )


def test_run_folder_is_complete(run):
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "model.keras", "signature.json", "recipe.json", "history.csv", "metrics.json", "environment.json",
        "learning_curve.png", "confusion.png", "gradients.png", "report.md",
    }  # fmt: skip
    report = (run.folder / "report.md").read_text()
    for part in ("baseline, logistic regression", "generalisation gap", "![confusion matrix]", "precision"):
        assert part in report
    rows = list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["data"]["name"] == "digits" and environment["packages"]["keras"] == keras.__version__


def test_metrics_are_those_of_an_evaluation(run):
    report = zoo.evaluate(run)
    assert zoo.evaluate(run.folder).score == report.score
    assert report.score.score == run.metrics["test"]
    assert report.score.low < report.score.score <= report.score.high
    assert report.confusion.sum() == report.rows == len(run.data.test)
    assert run.metrics["gap"] == pytest.approx(run.metrics["train"] - run.metrics["test"])
    assert zoo.evaluate(run.model, "digits").score == report.score


def test_loaded_run_answers_alike(run):
    loaded = zoo.load(run.folder)
    x = run.signature.inputs(run.data.test.x)
    np.testing.assert_array_equal(loaded.model.predict(x, verbose=0), run.model.predict(x, verbose=0))
    assert loaded.recipe == run.recipe and loaded.signature == run.signature and loaded.history == run.history


def test_same_seed_same_weights(run, tmp_path):
    again = zoo.train("mlp", data="digits", out=tmp_path / "again", epochs=4, quiet=True)
    for one, other in zip(run.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    different = zoo.train("mlp", data="digits", out=tmp_path / "different", epochs=4, quiet=True, seed=1)
    assert not np.array_equal(run.model.get_weights()[0], different.model.get_weights()[0])


def test_a_finished_run_is_not_overwritten_unasked(run, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite it"):
        zoo.train("mlp", data="digits", out=run.folder, quiet=True)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="choose another folder"):
        zoo.train("mlp", data="digits", out=tmp_path, overwrite=True, quiet=True)
    assert (tmp_path / "mine.txt").exists()


def test_regression_in_the_targets_unit(tmp_path):
    run = zoo.train(
        "mlp", data="diabetes", out=tmp_path / "run", epochs=40, learning_rate=3e-3, width=(16,), quiet=True
    )
    report = zoo.evaluate(run)
    assert report.metric == "r2" and report.score.score > 0.2
    assert 30 < next(iter(report.per_class.values()))["rmse"] < 80  # the target runs from 25 to 346
    assert (run.folder / "confusion.png").stat().st_size > 5_000


def test_values_whose_squares_are_beyond_float32_are_judged(tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 3))
    np.savez(tmp_path / "large.npz", x=x, y=(x @ [1, 2, 3] + 10) * 1e30)
    run = zoo.train("mlp", tmp_path / "large.npz", task="regression", out=tmp_path / "run", epochs=1, quiet=True)
    assert 0.9 < run.metrics["baseline"] <= 1
    report = zoo.evaluate(run)
    assert np.isclose(report.per_class[report.labels[0]]["rmse"], report.metrics["rmse"].score)


def test_a_score_that_is_no_number_is_null_in_json(tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 3))
    parts = dict(
        x_train=x[:60], y_train=x[:60, 0], x_test=x[60:], y_test=np.ones(20)
    )  # which have no spread to explain
    np.savez(tmp_path / "flat.npz", **parts)
    run = zoo.train("mlp", tmp_path / "flat.npz", task="regression", out=tmp_path / "run", epochs=1, quiet=True)
    assert np.isnan(run.metrics["baseline"])
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["baseline"] is None and isinstance(written["validation"], float)
    assert np.isnan(zoo.load(tmp_path / "run").metrics["baseline"])


def test_perceptron_rule_adds_and_subtracts_the_example():
    from zoo.tasks.losses import PerceptronCriterion

    model = zoo.get("perceptron", input_shape=(3,), classes=3)
    model.compile(keras.optimizers.SGD(1.0), PerceptronCriterion())
    x, first, last = np.array([[1.0, 2.0, 3.0]], "float32"), np.eye(3)[[0]], np.eye(3)[[2]]
    kernel = np.arange(9, dtype="float32").reshape(3, 3)  # scores 24, 30, 36: class 2 wins
    model.set_weights([kernel, np.zeros(3, "float32")])
    model.train_on_batch(x, last)
    np.testing.assert_allclose(model.get_weights()[0], kernel)  # right answers change nothing
    model.train_on_batch(x, first)
    np.testing.assert_allclose(model.get_weights()[0], kernel + np.outer(x[0], [1, 0, -1]))
    np.testing.assert_allclose(model.get_weights()[1], [1, 0, -1])


def test_perceptron_matches_scikit_learn(tmp_path):
    from sklearn.linear_model import Perceptron

    run = zoo.train("perceptron", data="breast_cancer", out=tmp_path / "run", epochs=5, quiet=True)
    x = {part: run.signature.inputs(getattr(run.data, part).x) for part in ("train", "test")}
    theirs = Perceptron().fit(x["train"], run.data.train.y).score(x["test"], run.data.test.y)
    assert run.metrics["test"] >= theirs - 0.03


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_logistic_regression_matches_scikit_learn(name):
    from zoo import data
    from zoo.evaluate.report import answers
    from zoo.training import fit
    from zoo.training.run import baseline

    splits = data.load(name)
    entry = registry.entry("logistic_regression")
    model = entry.build(input_shape=splits.signature.preprocess.shape, classes=splits.signature.outputs)
    fit(model, splits, recipes.find(entry.name, name, entry.recipe), quiet=True, keep="last")
    found = answers(model, splits.signature, splits.test.x).argmax(axis=-1)
    assert abs(np.mean(found == splits.test.y) - baseline(splits)) <= 0.03


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learning_rat": 0.1},
            "'learning_rat' is neither a training setting nor an argument of 'mlp'. Did you mean 'learning_rate'",
        ),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": "many"}, "epochs takes a whole number, got 'many'"),
        ({"optimizer": "adma"}, "optimizer must be one of sgd"),
        ({"augment": ("twist",)}, "augment must be among resized_crop"),
        ({"classes": 3}, "classes follows from the data"),
        ({"width": (0,)}, "width must hold at least one positive"),
    ],
)
def test_bad_settings(settings, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        zoo.train("mlp", data="digits", out=tmp_path / "run", quiet=True, **settings)


def test_wrong_task_names_fitting_models(tmp_path):
    with pytest.raises(ValueError, match="'lenet' is for image-classification, data 'wine' is classification; try"):
        zoo.train("lenet", data="wine", out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("schedule", recipes.SCHEDULES)
def test_schedules_start_end_and_warm_up(schedule):
    recipe = recipes.Recipe("m", "d", epochs=10, schedule=schedule, learning_rate=0.5)
    rate = optimisers.optimiser(recipe, 100).learning_rate
    if schedule in ("constant", "plateau"):
        assert float(rate) == 0.5
        return
    optimiser = optimisers.optimiser(recipe, 100)
    values = [float(optimiser._learning_rate(step)) for step in range(0, 1000)]
    assert max(values) == pytest.approx(0.5, rel=1e-3)
    assert values[-1] < 0.01
    if schedule == "step":
        assert [values[0], values[400], values[800]] == pytest.approx([0.5, 0.05, 0.005])
    if schedule == "warm_restarts":
        starts = [step for step in range(1, 1000) if values[step] > 10 * values[step - 1]]
        assert starts == [143, 429]  # after 1/7 and 3/7 of the steps
    warm = optimisers.optimiser(recipe.override(warmup=0.1), 100)
    assert float(warm._learning_rate(49)) == pytest.approx(0.25)


@pytest.mark.parametrize("name", recipes.OPTIMIZERS)
def test_every_optimiser_lowers_the_loss(name):
    variable = keras.Variable(np.array([3.0, -2.0], "float32"))
    optimiser = optimisers.optimiser(
        recipes.Recipe("m", "d", optimizer=name, learning_rate=0.1, schedule="constant", clip_norm=1.0), 10
    )
    start = float(np.sum(np.square(variable.numpy())))
    for _ in range(20):
        optimiser.apply([2 * np.asarray(variable)], [variable])
    assert float(np.sum(np.square(variable.numpy()))) < start


NOT_SCALED = ("mosaic", "resized_crop", "randaugment")  # for boxes, and for pixels before they are scaled


@pytest.mark.parametrize("name", [name for name in recipes.AUGMENTATIONS if name not in NOT_SCALED])
def test_augmentation_keeps_shape_range_and_mass_of_targets(name):
    from zoo.training import augment

    generator = np.random.default_rng(0)
    images = generator.standard_normal((6, 8, 10, 3)).astype("float32")
    targets = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2]]
    before = images.copy()
    changed, mixed = augment.apply((name,), images, targets, np.random.default_rng(1))
    np.testing.assert_array_equal(images, before)
    assert changed.shape == images.shape and changed.dtype == np.float32
    assert not np.array_equal(changed, images)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)
    again, _ = augment.apply((name,), images, targets, np.random.default_rng(1))
    np.testing.assert_array_equal(changed, again)


def test_penalties_and_class_weights_change_the_training(run, tmp_path):
    def norm(**settings):
        trained = zoo.train("mlp", data="digits", out=tmp_path / str(settings), epochs=2, quiet=True, **settings)
        return float(np.abs(trained.model.get_weights()[0]).sum())

    plain = norm()
    assert norm(l1=1e-3) < plain
    assert norm(l2=1e-2) < plain
    assert norm(class_weights=True) != plain


def test_early_stopping_restores_the_best_epoch(tmp_path):
    run = zoo.train("mlp", data="digits", out=tmp_path / "run", epochs=30, learning_rate=0.02, patience=2, quiet=True)
    scores = [row["val_accuracy"] for row in run.history]
    assert len(scores) < 30
    assert len(scores) - 1 - int(np.argmax(scores)) == 2
    assert run.metrics["validation"] == pytest.approx(max(scores), abs=1e-6)


def test_nan_loss_ends_the_run_with_advice(tmp_path):
    with pytest.raises(FloatingPointError, match="lower learning_rate, set clip_norm"):
        zoo.train(
            "mlp",
            data="digits",
            out=tmp_path / "run",
            learning_rate=1e20,
            optimizer="sgd",
            schedule="constant",
            quiet=True,
        )


def test_mixed_precision_ends_in_float32(tmp_path):
    run = zoo.train("mlp", data="digits", out=tmp_path / "run", epochs=2, precision="mixed_bfloat16", quiet=True)
    assert {layer.compute_dtype for layer in run.model.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    assert run.metrics["test"] > 0.8


def test_weight_averaging_gives_other_weights(run, tmp_path):
    averaged = zoo.train("mlp", data="digits", out=tmp_path / "run", epochs=4, averaging=0.9, quiet=True)
    assert not np.array_equal(averaged.model.get_weights()[0], run.model.get_weights()[0])
    assert averaged.metrics["test"] > 0.85


def test_gradients_agree_with_finite_differences():
    keras.utils.set_random_seed(0)
    model = zoo.get("mlp", input_shape=(3,), width=(4,), classes=2)
    x, y = (
        np.random.default_rng(0).standard_normal((5, 3)).astype("float32"),
        np.eye(2, dtype="float32")[[0, 1, 0, 1, 1]],
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    _, slopes = gradients(model, loss, x, y)
    kernel = model.trainable_variables[0]
    values, step = np.array(kernel), 1e-2

    def at(change):
        moved = values.copy()
        moved[1, 2] += change
        kernel.assign(moved)
        return float(loss(y, model(x)))

    assert (at(step) - at(-step)) / (2 * step) == pytest.approx(float(slopes[0][1, 2]), rel=0.02, abs=1e-4)


def test_gradient_health_warns_of_vanishing_gradients(caplog):
    model = zoo.get("mlp", input_shape=(3,), width=(4,), classes=2)
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    model.get_layer("hidden0").kernel.assign(np.zeros((3, 4)))
    model.get_layer("logits").kernel.assign(np.zeros((4, 2)))
    health = GradientHealth(np.ones((4, 3), "float32"), np.eye(2, dtype="float32")[[0, 1, 0, 1]])
    health.set_model(model)
    with caplog.at_level(logging.WARNING, "zoo.training"):
        health.on_epoch_end(0)
    assert "vanishes" in caplog.text
    assert health.dead["features"] == 1.0


def test_state_of_another_model_is_refused(tmp_path):
    def compiled(units):
        model = zoo.get("mlp", input_shape=(3,), width=(units,), classes=2)
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        keeper = Keeper(tmp_path, "val_loss", "min")
        keeper.set_model(model)
        return keeper

    compiled(4)._save(1, 0)
    with pytest.raises(ValueError, match="does not fit this model"):
        compiled(5).resume()


def test_a_killed_run_keeps_its_split(tmp_path):
    recipe = recipes.find("mlp", "digits").override(seed=2)
    assert recipe.data_options == {"target": None, "seed": 2}
    recipe.override(split_seed=1).save(tmp_path / "recipe.json")
    (tmp_path / "state.npz").touch()
    with pytest.raises(ValueError, match="holds a run on the split of seed=1, got 4; resume it without that"):
        zoo.train("mlp", data="digits", out=tmp_path, resume=True, quiet=True, split_seed=4)


def test_resume_without_a_killed_run_says_so(run, tmp_path):
    with pytest.raises(ValueError, match=r"no run to resume in .*no state\.npz"):
        zoo.train("mlp", data="digits", out=tmp_path, resume=True, quiet=True)
    with pytest.raises(ValueError, match="is finished, there is nothing to resume"):
        zoo.train("mlp", data="digits", out=run.folder, resume=True, quiet=True)


def test_a_run_that_never_began_is_in_nobodys_way(tmp_path):
    settings = dict(data="wine", out=tmp_path / "run", epochs=1, quiet=True)
    with pytest.raises(ValueError, match="there is no loss 'foo'"):
        zoo.train("mlp", loss="foo", **settings)
    assert (tmp_path / "run" / "recipe.json").exists()
    assert zoo.train("mlp", **settings).metrics["train"] > 0
    with pytest.raises(FileExistsError, match=r"is not empty; overwrite it, or choose another folder .*--overwrite"):
        zoo.train("mlp", **settings)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; choose another folder"):
        zoo.train("mlp", data="wine", out=tmp_path / "file", quiet=True)


def test_a_mixed_precision_run_can_be_pruned(tmp_path):
    run = zoo.train(
        "mlp", data="wine", out=tmp_path / "run", epochs=2, width=(8,), precision="mixed_bfloat16", quiet=True
    )
    small = zoo.compress.shrink(run, tmp_path / "small", channels=0.5, epochs=1, quiet=True)
    assert small.model.count_params() < run.model.count_params() and small.recipe.precision == "float32"
    with pytest.raises(ValueError, match="tuned in float32, got precision='mixed_bfloat16'"):
        zoo.compress.shrink(run, tmp_path / "no", channels=0.5, epochs=1, quiet=True, precision="mixed_bfloat16")


def test_unknown_settings_list_the_known_ones(tmp_path):
    with pytest.raises(TypeError, match=r"nor an argument of 'mlp'; it takes .*width.*, settings are .*batch_size"):
        zoo.train("mlp", data="wine", out=tmp_path, zzz=3)


def test_moved_data_is_found_again_and_other_data_refused(tmp_path, monkeypatch):
    rows = [f"{i % 17},{i % 5},{'yes' if i % 17 > 8 else 'no'}" for i in range(80)]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "people.csv").write_text("age,weight,ill\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path / "a")
    zoo.train("mlp", data="people.csv", target="ill", out=tmp_path / "run", epochs=1, quiet=True)
    monkeypatch.chdir(tmp_path)
    run = zoo.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"was trained on 'people\.csv', which is not in this folder"):
        load_data(run)
    assert load_data(run, "a/people.csv").signature == run.signature
    assert zoo.evaluate(run, "a/people.csv").score.score == run.metrics["test"]  # the run knows its target
    with pytest.raises(ValueError, match="trained for the labels no, yes, data 'wine' has class_0"):
        zoo.evaluate(run, "wine")
    (tmp_path / "other.csv").write_text("age,height,ill\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="trained for the columns age, weight, data 'other' has age, height"):
        zoo.evaluate(run, "other.csv")


def test_what_is_no_run_and_no_data_is_named(run, tmp_path):
    with pytest.raises(TypeError, match=r"shrink takes a run, got a str; read one .* zoo\.load"):
        zoo.compress.shrink(str(run.folder), tmp_path / "small", channels=0.5)
    with pytest.raises(TypeError, match=r"data must be a name, a path or a .*, got a int"):
        zoo.train("mlp", data=5, out=tmp_path / "run", quiet=True)


def test_a_run_is_explained_with_its_own_signature(run):
    found = zoo.explain(run, run.data.test.x["image"][:1], max_evals=200)
    assert found.additivity_error < 1e-3 and found.attributions.shape == (1, 8, 8, 1)


def test_the_verdict_minds_the_interval():
    scores = {"test": 0.96, "baseline": 0.95, "gap": 0.0}
    assert "not clearly better" in _verdict(scores, Interval(0.96, 0.94, 0.98))
    assert "beats the baseline" in _verdict(scores, Interval(0.96, 0.955, 0.98))
    assert "The baseline is better" in _verdict({**scores, "baseline": 0.97}, Interval(0.96, 0.94, 0.98))


def test_nan_guard_lets_good_losses_pass():
    NaNGuard().on_train_batch_end(0, {"loss": 1.0})


def test_recipes_round_trip_and_parse_text(tmp_path):
    recipe = recipes.Recipe("mlp", "digits", arguments={"width": (8,)}).override(
        augment="shift,noise", clip_norm="1.5", class_weights="true", epochs="3"
    )
    assert (recipe.augment, recipe.clip_norm, recipe.class_weights, recipe.epochs) == (("shift", "noise"), 1.5, True, 3)
    recipe.save(tmp_path / "recipe.json")
    assert recipes.Recipe.load(tmp_path / "recipe.json") == recipe
    assert recipe.override(clip_norm="none").clip_norm is None


def test_range_test_suggests_a_rate_that_trains_and_leaves_the_model_alone(tmp_path):
    from zoo import data
    from zoo.training import find_learning_rate, fit

    digits = data.load("digits")
    model = zoo.get("mlp", input_shape=(8, 8, 1))
    before = model.get_weights()
    recipe = recipes.Recipe("mlp", "digits", optimizer="momentum", schedule="constant", epochs=1)
    found = find_learning_rate(model, digits, recipe)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 1e-4 < found.suggested < found.rates[-1] <= 10
    assert found.plot(tmp_path / "rates.png").stat().st_size > 5_000
    good = fit(model, digits, recipe.override(learning_rate=found.suggested), quiet=True)[-1]["val_accuracy"]
    model.set_weights(before)
    slow = fit(model, digits, recipe.override(learning_rate=1e-5), quiet=True)[-1]["val_accuracy"]
    assert good > 0.7 > slow
    with pytest.raises(ValueError, match="0 < low < high"):
        find_learning_rate(model, digits, recipe, low=1.0, high=0.1)


def test_tensorboard_logs_are_written(tmp_path):
    run = zoo.train("logistic_regression", data="iris", out=tmp_path / "run", epochs=1, tensorboard=True, quiet=True)
    assert list((run.folder / "tensorboard").rglob("events.out.tfevents.*"))


def test_a_convolutional_run_is_repeatable(tmp_path):
    settings = dict(data="digits", epochs=1, batch_size=128, depth=(1, 1), width=8, quiet=True)
    one, other = (zoo.train("resnet18", out=tmp_path / name, **settings) for name in ("one", "other"))
    for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
