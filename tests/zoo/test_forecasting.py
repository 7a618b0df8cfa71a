"""A forecast from a table of the user's to an answer: trained, judged beside simple forecasts, exported, explained, served."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest

import export
import zoo
from export import edge_runner
from serve import create_app
from serve.manifest import seal
from zoo import data, tasks
from zoo.data.series import Recording, simple
from zoo.evaluate import metrics
from zoo.evaluate.report import judge

TASK = tasks.get("forecasting")


@pytest.fixture(scope="module")
def sales(tmp_path_factory):
    """A file of 160 months with a season of 12, a trend, and a column that tells the next value a little."""
    random, months = np.random.default_rng(0), np.arange(160)
    promo = random.integers(0, 2, 160)
    sold = 100 + 0.3 * months + 20 * np.sin(2 * np.pi * months / 12) + 8 * np.roll(promo, 1) + random.normal(0, 1, 160)
    lines = [f"{2004 + m // 12}-{m % 12 + 1:02d}-01,{s:.2f},{p}" for m, s, p in zip(months, sold, promo, strict=True)]
    path = tmp_path_factory.mktemp("sales") / "sales.csv"
    path.write_text("month,sold,promo\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(sales, tmp_path_factory):
    settings = dict(
        target="sold", task="forecasting", context=12, horizon=3, season=12, width=8, relative=True, epochs=25
    )
    out = tmp_path_factory.mktemp("runs") / "sales"
    return zoo.train("gru", sales, out=out, batch_size=32, learning_rate=0.02, quiet=True, **settings)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return export.to_bundle(run, tmp_path_factory.mktemp("store") / "sales" / "1", int8=False)


def test_figures_are_those_of_plain_numpy():
    random = np.random.default_rng(0)
    y, scored = random.normal(size=(30, 4)), random.normal(size=(30, 4))
    found = {name: measure(np.ones((1, 30)))[0] for name, measure in TASK.measures(y, scored).items()}
    gap = scored - y
    assert np.isclose(found["r2"], 1 - (gap**2).sum() / ((y - y.mean()) ** 2).sum())
    assert np.isclose(found["r2"], TASK.score(y, scored))
    assert np.isclose(found["rmse"], np.sqrt((gap**2).mean())) and np.isclose(found["mae"], np.abs(gap).mean())
    one = metrics.of_values(y[:, 0], scored[:, 0])["bias"](np.ones((1, 30)))[0]
    assert np.isclose(one, gap[:, 0].mean())


def test_values_whose_squares_are_beyond_float32_are_judged():
    rows = Recording("made", np.sin(np.arange(120.0))[:, None].astype(np.float32), ("c",), "c", "made", generated=True)
    small, large = (
        data.from_rows(replace(rows, values=rows.values * np.float32(size)).cut(8, 3, 6, 0.15, 0.2))
        for size in (1, 1e31)
    )
    assert np.isclose(TASK.baseline(large), TASK.baseline(small))
    told = [
        TASK.further(judge(each.signature, each.test.y, each.test.y * 0, "test", x=each.test.x))
        for each in (small, large)
    ]
    for one, two in zip(*(each["all 3 steps"].values() for each in told), strict=True):
        assert np.isclose(one["rmse"] * 1e31, two["rmse"]) and np.isclose(one["mase"], two["mase"])
    assert "std" in large.summary()


def test_the_model_learns_more_than_the_season(run):
    assert run.metrics["test"] > run.metrics["baseline"]
    told = simple(run.data.test.x, run.signature)
    assert run.metrics["baseline"] == max(TASK.score(run.data.test.y, each) for each in told.values())


def test_a_run_reads_its_data_again(run):
    again = zoo.load(run.folder)
    splits = zoo.training.load_data(again)
    assert splits.signature == run.signature
    assert all(np.array_equal(splits.test.x[name], values, equal_nan=True) for name, values in run.data.test.x.items())


def test_a_report_compares_by_step_and_by_origin(run, tmp_path):
    report = zoo.evaluate(run.folder)
    further = TASK.further(report)
    assert list(further) == ["all 3 steps", "by step", "by origin"]
    assert list(further["all 3 steps"]) == ["this model", "naive", "seasonal naive"]
    gap = report.answers - report.y
    scale = run.signature.forecast.scale
    assert np.isclose(further["by step"]["sold+2"]["mase"], np.abs(gap[:, 1]).mean() / scale)
    assert np.isclose(further["by origin"]["0"]["mae"], np.abs(gap[0]).mean())
    assert np.isclose(np.mean([row["mae"] for row in report.per_class.values()]), report.metrics["mae"].score)
    assert "seasonal naive" in str(report) and json.loads(report.to_json())["further"]["by step"]
    page = report.save(tmp_path / "page")
    assert {"confusion.png", "metrics.json", "worst.csv", "report.md"} <= {path.name for path in page.parent.iterdir()}


def test_one_step_moves_every_weight_of_a_forecast():
    splits = data.load("sunspots", context=11, horizon=2)
    model = zoo.get("lstm", input_shape=(11, 1), classes=2, width=4, relative=True)
    model.compile("sgd", TASK.loss_for(model, "", 0.0), run_eagerly=True)
    before = model.get_weights()
    y = TASK.encode(splits.signature.targets(splits.train.y[:8]), 2)
    model.train_on_batch(splits.signature.inputs({"series": splits.train.x["series"][:8]}), y)
    assert not any(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def test_the_bundle_answers_in_the_targets_unit(run, bundle, sales):
    manifest = bundle.manifest
    assert [port.sizes for port in (*manifest.inputs, *manifest.outputs)] == ["(batch, 12, 2)", "(batch, 3)"]
    assert manifest.inputs[0].columns == ("sold", "promo") and manifest.labels == ("sold+1", "sold+2", "sold+3")
    report = zoo.evaluate(bundle, sales)
    assert np.isclose(report.score.score, run.metrics["test"], atol=1e-5)
    assert np.abs(report.answers - zoo.evaluate(run).answers).max() <= 1e-2
    assert "forecasting sold 3 steps ahead" in (bundle.folder / "README.md").read_text(encoding="utf-8")


def test_columns_are_explained_for_a_step(bundle):
    found = zoo.explain(bundle, zoo.explain.examples(bundle, rows=2), target="sold+2")
    assert found.attributions.shape == (2, 12, 2) and found.columns == ("sold", "promo")
    assert found.additivity_error < 1e-3 * 100 and found.answer(0).startswith("sold+2 = ")


def test_people_get_forecasts(bundle):
    client = create_app(bundle.folder.parent.parent).test_client()
    [row] = client.get("/models/sales/examples").json[:1]
    told = client.post("/predict/sales", json=row).json
    assert told["predictions"][0]["target"] == "sold" and len(told["predictions"][0]["forecast"]) == 3
    lines = "sold,promo\n" + "\n".join(f"{s},{p}" for s, p in row["series"])
    same = client.post("/predict/sales", data=lines, content_type="text/csv").json
    assert same["predictions"] == told["predictions"]
    for body, message in (
        ({"series": row["series"][:5]}, "a forecast needs the last 12 steps, got 5"),
        ({"series": [[None, None]] * 12}, "every value of the series is missing"),
        ({"series": [[1, 2, 3]] * 12}, "step 1 must be a list of 2 values"),
    ):
        answer = client.post("/predict/sales", json=body)
        assert answer.status_code == 422 and message in answer.json["error"]["message"]


def test_people_are_told_of_times_that_are_not_those_of_training(bundle, sales):
    client = create_app(bundle.folder.parent.parent).test_client()
    header, *lines = sales.read_text(encoding="utf-8").splitlines()
    for rows, status in ((lines[-12:], 200), (lines[:-13:-1], 422), ([*lines[:-6], *lines[-5:]], 422)):
        answer = client.post("/predict/sales", data="\n".join([header, *rows]), content_type="text/csv")
        assert answer.status_code == status
        assert "not used" not in str(answer.json)


def test_a_bundle_that_knows_no_times_leaves_them_aside(bundle, sales, tmp_path):
    folder = tmp_path / "sales" / "1"
    shutil.copytree(bundle.folder, folder)
    told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert told["preprocess"].pop("time") == {"column": "month", "step": 1, "unit": "months"}
    (folder / "model.json").write_text(json.dumps(told), encoding="utf-8")
    seal(folder)
    header, *lines = sales.read_text(encoding="utf-8").splitlines()
    body = "\n".join([header, *lines[::-1]])
    answer = create_app(tmp_path).test_client().post("/predict/sales", data=body, content_type="text/csv")
    assert answer.status_code == 200 and "not used, since the model has no such columns: month" in str(answer.json)


def test_data_of_another_step_is_not_judged(run, bundle, sales, tmp_path):
    lines = sales.read_text(encoding="utf-8").splitlines()
    days = [f"{np.datetime64('2020-01-01') + place},{line[11:]}" for place, line in enumerate(lines[1:])]
    (tmp_path / "days.csv").write_text("\n".join([lines[0], *days]), encoding="utf-8")
    for model in (run.folder, bundle):
        with pytest.raises(ValueError, match=r"was trained on rows 1 month apart, data 'days' has rows 1 day apart"):
            zoo.evaluate(model, tmp_path / "days.csv")


def test_a_run_from_before_times_were_kept_reads_its_data_again(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "signature.json").read_text(encoding="utf-8"))
    del told["preprocess"]["time"]
    (tmp_path / "run" / "signature.json").write_text(json.dumps(told), encoding="utf-8")
    assert zoo.training.load_data(zoo.load(tmp_path / "run")).signature.preprocess.time


def ran(monkeypatch, folder, *arguments):
    """What `run.py` reports."""
    monkeypatch.setattr("sys.argv", ["run.py", "--bundle", str(folder), *map(str, arguments)])
    return edge_runner.work(edge_runner.arguments())


def test_the_runner_on_a_device_forecasts(bundle, tmp_path, monkeypatch):
    with np.load(bundle.folder / "golden.npz") as stored:
        steps, expected = stored["input/series"][0], stored["output/forecast"][0]
    lines = ["sold,promo", *(f"{sold},{promo}" for sold, promo in steps)]
    (tmp_path / "past.csv").write_text("\n".join(lines))
    report = ran(monkeypatch, bundle.folder, tmp_path / "past.csv")
    np.testing.assert_allclose(report["answers"][0]["forecast"], expected, rtol=1e-4)
    assert edge_runner.text(report).splitlines()[-1].startswith(f"{tmp_path / 'past.csv'}: sold {expected[0]:.6g}"[:-2])
    (tmp_path / "past.csv").write_text("\n".join([lines[0], "1,0", *lines[1:]]))
    (longer,) = ran(monkeypatch, bundle.folder, tmp_path / "past.csv")["answers"]
    np.testing.assert_allclose(longer["forecast"], expected, rtol=1e-4)
    assert longer["note"] == "the forecast is made from the last 12 of 13 steps"
    (tmp_path / "past.csv").write_text("\n".join(lines[:5]))
    with pytest.raises(edge_runner.Refusal, match=r"past\.csv: a forecast needs the last 12 steps, got 4; give more"):
        ran(monkeypatch, bundle.folder, tmp_path / "past.csv")


def test_what_has_no_order_in_time_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="folds of one series would learn from what comes after them"):
        zoo.evaluate.cross_validate("gru", run.data, quiet=True)
    with pytest.raises(
        ValueError, match=r"'gru' takes series or tokens, data .* is table; if its rows follow each other"
    ):
        zoo.train("gru", "diabetes", out=tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"'mlp' is for .*, data 'sunspots' is forecasting"):
        zoo.train("mlp", "sunspots", out=tmp_path, quiet=True)


def test_rows_that_end_early_go_the_whole_road(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    x = random.normal(size=(90, 6, 2)).astype("float32")
    y = np.arange(90) % 2
    x[:, 0, 0] += 3 * y
    for row in range(90):
        x[row, 1 + row % 6 :] = np.nan
    np.savez(tmp_path / "x.npz", x=x, y=y)
    run = zoo.train("gru", tmp_path / "x.npz", out=tmp_path / "run", width=8, epochs=15, learning_rate=0.02, quiet=True)
    assert run.metrics["test"] >= 0.8
    bundle = export.to_bundle(run, tmp_path / "store" / "x" / "1", int8=False)
    report = zoo.evaluate(bundle, run.data)
    assert np.abs(report.answers - zoo.evaluate(run).answers).max() <= 1e-5
    rows = {"series": run.data.test.x["series"][:3]}
    found = zoo.explain(bundle, rows)
    ended = np.isnan(rows["series"])
    assert not found.attributions[ended].any() and np.abs(found.attributions[~ended]).max() > 0
    np.save(tmp_path / "short.npy", rows["series"][1][~ended[1].all(axis=1)])
    told = ran(monkeypatch, bundle.folder, tmp_path / "short.npy", "--top", 2)["answers"][0]
    assert told["probability"] == pytest.approx(report.answers[1].max(), abs=1e-5)
    path = export.to_litert(run.model, tmp_path / "x.tflite", signature=run.signature)
    from export.litert import compare

    assert compare(run.model, run.signature, path, run.data.test.x).difference <= 1e-5


def test_a_network_reads_rows_longer_than_those_it_learned_from():
    model = zoo.get("gru", input_shape=(None, 2), width=3, classes=1)
    rows = np.random.default_rng(0).normal(size=(1, 9, 2)).astype("float32")
    padded = np.pad(rows, ((0, 0), (0, 4), (0, 0)), constant_values=np.nan)
    assert np.allclose(keras.ops.convert_to_numpy(model(rows)), keras.ops.convert_to_numpy(model(padded)), atol=1e-6)
