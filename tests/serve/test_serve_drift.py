"""Drift: counts from batches, the tests against scipy, what is said, and what bounds it."""

import json
import re
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from scipy import stats
from small_bundles import LABELS, write_image, write_table, write_value
from small_drift import deciles

from serve import create_app, distributions, drift
from serve.manifest import MANIFEST, Manifest, read, seal
from serve.store import Store

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def same_numbers():
    """Each test draws the same, in whatever order tests run."""
    global RNG  # noqa: PLW0603
    RNG = np.random.default_rng(7)


def outputs_of(answers, labels):
    edges = np.linspace(0, 1, 11)
    rates = np.bincount(answers.argmax(axis=1), minlength=len(labels)) / len(answers)
    shares = np.histogram(answers.max(axis=1), edges)[0] / len(answers)
    return {
        "classes": dict(zip(labels, rates.tolist(), strict=True)),
        "confidence": {"edges": edges.tolist(), "shares": shares.tolist()},
    }


def people(rows, shift=0.0, missing=0.1, blue=0.5):
    """Inputs and answers of the table bundle."""
    numbers = RNG.normal([40 + shift, 70], [10, 15], (rows, 2)).astype(np.float32)
    numbers[RNG.random(rows) < missing, 1] = np.nan
    colours = np.where(RNG.random((rows, 1)) < blue, "blue", "red").astype(object)
    colours[:: max(1, rows // 20)] = ""
    return {"numbers": numbers, "categories": colours}, {"probabilities": RNG.dirichlet([4, 2, 1], rows).astype("f4")}


def table_baseline(rows=1000):
    feed, found = people(rows)
    numbers, colours = feed["numbers"], feed["categories"][:, 0]
    known = [column[~np.isnan(column)] for column in numbers.T]
    return {
        "rows": rows,
        "split": "validation",
        "inputs": {
            "numbers": {
                name: {**deciles(values), "missing": 1 - len(values) / rows}
                for name, values in zip(("age", "weight"), known, strict=True)
            },
            "categories": {
                "colour": {
                    "values": {value: float((colours == value).mean()) for value in ("red", "blue")},
                    "missing": float((colours == "").mean()),
                    "unknown": 0.0,
                }
            },
        },
        "outputs": outputs_of(found["probabilities"], ("matt", "gloss", "silk")),
    }


@pytest.fixture
def table(tmp_path):
    """A table bundle with a baseline; its manifest and what is counted."""
    folder = write_table(tmp_path)
    (folder / drift.FILE).write_text(json.dumps(table_baseline(), sort_keys=True))
    return folder


def watched(folder, **settings):
    return drift.Drift(folder.parents[1], refresh=0, **settings)


def feed_in(watch, folder, feed, found, rows=50):
    """What a worker with batches of `rows` rows would tell."""
    manifest, baseline = json_manifest(folder), drift.read(folder)
    for start in range(0, len(next(iter(feed.values()))), rows):
        part = slice(start, start + rows)
        summary = drift.summarise(
            {k: v[part] for k, v in feed.items()}, {k: v[part] for k, v in found.items()}, manifest, baseline
        )
        watch.add(manifest.name, manifest.version, summary)


def json_manifest(folder):
    """The manifest of a folder that is not sealed."""
    return Manifest.from_json((folder / MANIFEST).read_text())


@pytest.mark.parametrize("x", [0.1, 0.3, 0.5, 0.8, 1.0, 1.4, 2.0, 3.0])
def test_kolmogorovs_distribution_is_scipys(x):
    assert distributions.kolmogorov(x) == pytest.approx(stats.kstwobign.sf(x), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("degrees", [1, 2, 7, 30, 400])
def test_chi_squareds_distribution_is_scipys(degrees):
    for x in (0.01, 0.5, degrees * 0.7, degrees, degrees * 1.2, degrees * 2, degrees * 4):
        assert distributions.upper_gamma(degrees / 2, x / 2) == pytest.approx(
            stats.chi2.sf(x, degrees), rel=1e-8, abs=1e-300
        )


def test_kolmogorov_smirnov_is_scipys_when_every_value_is_a_bin():
    first, second = RNG.integers(0, 400, 300), RNG.integers(30, 420, 450)
    expected = stats.ks_2samp(first, second, method="asymp")
    counts = [np.bincount(values, minlength=420) for values in (first, second)]
    statistic, p = distributions.kolmogorov_smirnov(*counts)
    assert statistic == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, rel=0.2)


def test_chi_squared_is_scipys():
    first, second = np.array([120.0, 60, 20]), np.array([30.0, 40, 20])
    expected = stats.chi2_contingency([first, second])
    assert distributions.chi_squared(first, second) == pytest.approx((expected.statistic, expected.pvalue))


def test_holm_keeps_the_order_and_is_never_below_the_p_values():
    assert distributions.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert distributions.holm([]) == []


def test_false_alarms_are_as_rare_as_stated():
    expected, alarms, indices = np.full(10, 100.0), 0, []
    for _ in range(400):
        first, second = RNG.multinomial(1000, expected / 1000), RNG.multinomial(500, expected / 1000)
        alarms += distributions.kolmogorov_smirnov(first, second)[1] < 0.05
        indices.append(distributions.psi(first.astype(float), second.astype(float)))
    assert alarms <= 0.05 * 400 + 13  # three standard deviations above 5 %
    assert max(indices) < drift.SHIFTED and np.mean(indices) < 0.01


def test_psi_takes_off_what_chance_adds_even_for_a_thousand_classes():
    shares = np.full(1000, 1 / 1000)
    first, second = (RNG.multinomial(n, shares).astype(float) for n in (5000, 500))
    assert distributions.psi(first, second) < drift.SHIFTED
    halved = np.concatenate([np.full(500, 2 / 1000), np.zeros(500)])
    assert (
        distributions.psi(RNG.multinomial(5000, shares).astype(float), RNG.multinomial(5000, halved).astype(float))
        > 0.25
    )


def test_counts_are_those_of_numpy(table):
    baseline, (feed, found) = drift.read(table), people(64)
    summary = drift.summarise(feed, found, json_manifest(table), baseline)
    counts = np.frombuffer(summary["counts"], "<u4")
    assert summary["rows"] == 64
    for feature in baseline.features:
        assert counts[feature.start : feature.stop].sum() == 64, feature.name
    age, weight, colour, confidence, classes = baseline.features
    bins = np.histogram(feed["numbers"][:, 0], [-np.inf, *age.edges, np.inf])[0]
    assert counts[age.start : age.stop].tolist() == [*bins, 0]
    assert counts[weight.stop - 1] == np.isnan(feed["numbers"][:, 1]).sum()
    column = feed["categories"][:, 0]
    assert counts[colour.start : colour.stop].tolist() == [*((column == v).sum() for v in (*colour.labels[:2], "")), 0]
    top = found["probabilities"].max(axis=1)
    assert counts[confidence.start : confidence.stop].tolist() == np.histogram(top, np.linspace(0, 1, 11))[0].tolist()
    assert (
        counts[classes.start : classes.stop].tolist()
        == np.bincount(found["probabilities"].argmax(axis=1), minlength=3).tolist()
    )


def test_unknown_categories_and_missing_outputs_are_counted_as_such(table):
    baseline, (feed, _) = drift.read(table), people(10)
    feed["categories"][:, 0] = "green"
    counts = np.frombuffer(drift.summarise(feed, {}, json_manifest(table), baseline)["counts"], "<u4")
    colour, confidence = baseline.features[2:4]
    assert counts[colour.start : colour.stop].tolist() == [0, 0, 0, 10]
    assert counts[confidence.start :].sum() == 0


def test_a_file_in_another_order_is_the_same_baseline(table):
    def backwards(content):
        return {name: backwards(content[name]) for name in reversed(content)} if isinstance(content, dict) else content

    known, (feed, found) = drift.read(table), people(64)
    path = table / drift.FILE
    path.write_text(json.dumps(backwards(json.loads(path.read_text()))))
    again = drift.read(table)
    assert [feature.name for feature in again.numbers] == ["age", "weight"]
    assert again.classes.labels == known.classes.labels == ("matt", "gloss", "silk")
    first, second = (
        {feature["name"]: feature["psi"] for feature in drift.compare(each, counts)["features"]}
        for each in (known, again)
        for counts in [each.count(feed, found["probabilities"])]
    )
    assert first == second


def test_large_batches_are_sampled_evenly_and_merged(table):
    baseline, (feed, found) = drift.read(table), people(1000)
    feed["numbers"][:, 0] = np.linspace(0, 100, 1000)
    summary = drift.summarise(feed, found, json_manifest(table), baseline)
    assert summary["rows"] == 63  # every 16th
    both = drift.merge(summary, summary)
    assert both["rows"] == 126
    assert (np.frombuffer(both["counts"], "<u4") == 2 * np.frombuffer(summary["counts"], "<u4")).all()


def test_alike_rows_are_stable_and_few_rows_say_nothing(table):
    watch = watched(table)
    assert watch.describe("paints", "1")["state"] == "waiting"
    feed_in(watch, table, *people(200))
    told = watch.describe("paints", "1")
    assert (told["state"], told["rows"]) == ("waiting", 200) and "200 of the 300 rows" in told["verdict"]
    feed_in(watch, table, *people(800))
    told = watch.describe("paints", "1")
    assert (told["state"], told["rows"], len(told["features"])) == ("stable", 1000, 5)
    assert "none of 5 columns has shifted" in told["verdict"]
    json.dumps(told)


@pytest.mark.parametrize(
    ("change", "column", "said"),
    [
        ({"shift": 15}, "age", "the values are mostly higher than they were"),
        ({"shift": -15}, "age", "the values are mostly lower than they were"),
        ({"missing": 0.7}, "weight", "% of the values were missing, now "),
        ({"blue": 0.95}, "colour", "'blue' was "),
    ],
)
def test_a_change_is_found_named_and_nothing_else_is(table, change, column, said):
    watch = watched(table)
    feed_in(watch, table, *people(1000, **change))
    told = watch.describe("paints", "1")
    moved = [feature["name"] for feature in told["features"] if feature["state"] != "stable"]
    assert moved == [column] and told["state"] == "drifted"
    assert said in told["verdict"] and f"{column} has drifted" in told["verdict"]
    assert told["features"][0]["psi"] > drift.DRIFTED and told["features"][0]["p"] < 1e-6


def test_answers_drift_too(table):
    watch = watched(table)
    feed, _ = people(600)
    sure = np.zeros((600, 3), np.float32)
    sure[:, 2] = 1
    feed_in(watch, table, feed, {"probabilities": sure})
    states = {feature["part"]: feature["state"] for feature in watch.describe("paints", "1")["features"]}
    assert states == {"inputs": "stable", "classes": "drifted", "confidence": "drifted"}


def test_old_rows_leave_the_window_and_memory_is_bounded(table):
    watch = watched(table, window=1000)
    feed_in(watch, table, *people(1000, shift=40))
    assert watch.describe("paints", "1")["state"] == "drifted"
    feed_in(watch, table, *people(1200))
    told = watch.describe("paints", "1")
    assert told["state"] == "stable" and 1000 <= told["rows"] <= 1100
    window = watch._windows["paints", "1"]
    assert len(window.blocks) <= 12 and window.rows == sum(rows for rows, _, _ in window.blocks)
    assert (window.counts == sum(counts for _, counts, _ in window.blocks)).all()


def test_a_version_starts_anew_when_it_is_forgotten_or_replaced(table):
    watch = watched(table)
    feed_in(watch, table, *people(400))
    watch.forget("paints", "1")
    assert watch.describe("paints", "1")["rows"] == 0
    feed_in(watch, table, *people(400))
    raw = table_baseline()
    del raw["inputs"]["categories"]
    (table / drift.FILE).write_text(json.dumps(raw))
    feed_in(watch, table, *people(50))
    assert watch.describe("paints", "1")["rows"] == 50


def test_pictures_are_judged_by_light_contrast_and_sharpness(tmp_path):
    folder = write_image(tmp_path)
    images = RNG.integers(0, 256, (500, 4, 4, 1), dtype=np.uint8)
    found = RNG.dirichlet([1, 1, 1], 500).astype("f4")
    pixels = {
        "edges": list(range(0, 257, 16)),
        "shares": (np.histogram(images, np.arange(0, 257, 16))[0] / 8000).tolist(),
    }
    summaries = {name: deciles(values) for name, values in drift.image_summaries(images).items()}
    raw = {"rows": 500, "inputs": {"image": {"channel0": pixels, **summaries}}, "outputs": outputs_of(found, LABELS)}
    (folder / drift.FILE).write_text(json.dumps(raw))
    watch = watched(folder)
    feed_in(watch, folder, {"image": images}, {"probabilities": found})
    assert watch.describe("sides", "1")["state"] == "stable"
    dark = watched(folder)
    feed_in(dark, folder, {"image": images // 3}, {"probabilities": found})
    told = {feature["name"]: feature for feature in dark.describe("sides", "1")["features"]}
    assert {name for name in told if told[name]["state"] == "drifted"} == {"channel0", *drift.SUMMARIES}
    assert told["brightness"]["said"] == "the values are mostly lower than they were"
    assert told["channel0"]["p"] is None and told["classes"]["state"] == "stable"


def test_image_summaries_are_what_they_say():
    image = np.zeros((1, 2, 2, 1), np.uint8)
    image[0, :, 1] = 100
    found = drift.image_summaries(image)
    assert {name: values.tolist() for name, values in found.items()} == {
        "brightness": [50.0], "contrast": [50.0], "sharpness": [50.0],
    }  # fmt: skip


def test_regression_watches_its_value(tmp_path):
    folder = write_value(tmp_path)
    values = RNG.normal(0, 1, (400, 1)).astype("f4")
    numbers = RNG.normal(0, 1, (400, 2)).astype("f4")
    columns = {name: {**deciles(numbers[:, i]), "missing": 0.0} for i, name in enumerate(("age", "weight"))}
    raw = {"rows": 400, "inputs": {"numbers": columns}, "outputs": {"value": deciles(values[:, 0])}}
    (folder / drift.FILE).write_text(json.dumps(raw))
    watch = watched(folder)
    feed_in(watch, folder, {"numbers": numbers}, {"value": values + 2})
    assert watch.describe("dose", "1")["verdict"].startswith(
        "1 of 3 columns differ from the validation split. value has drifted"
    )


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 1}', '{"rows": 5, "inputs": {"numbers": {"a": 3}}, "outputs": {}}',
                                     '{"rows": 5, "inputs": {"numbers": {"a": {"edges": [2, 1], "shares": [1, 0, 0], "missing": 0}}}, "outputs": {}}'])  # fmt: skip
def test_a_file_that_cannot_be_used_is_logged_and_nothing_fails(table, content, caplog):
    (table / drift.FILE).write_text(content)
    watch = watched(table)
    assert watch.describe("paints", "1")["state"] == "unknown"
    assert "paints/1: drift.json cannot be used" in caplog.text
    watch.add("paints", "1", {"rows": 1, "counts": bytes(4)})


def test_without_a_baseline_or_with_a_small_one_nothing_is_judged(tmp_path):
    folder = write_table(tmp_path)
    assert "no drift.json" in watched(folder).describe("paints", "1")["verdict"]
    (folder / drift.FILE).write_text(json.dumps(table_baseline(rows=40)))
    watch = watched(folder)
    feed_in(watch, folder, *people(500))
    assert "rests on 40 rows of the validation split, at least 50" in watch.describe("paints", "1")["verdict"]


def test_few_rows_of_a_table_are_enough_to_find_a_change(tmp_path):
    folder = write_table(tmp_path)
    (folder / drift.FILE).write_text(json.dumps(table_baseline(rows=drift.BASELINE)))
    for shift, state in ((0, "stable"), (60, "drifted")):
        watch = watched(folder)
        feed_in(watch, folder, *people(500, shift=shift))
        told = {feature["name"]: feature["state"] for feature in watch.describe("paints", "1")["features"]}
        assert (told["age"], told["weight"]) == (state, "stable")


def test_pixel_values_of_few_pictures_are_not_compared(tmp_path):
    folder = write_image(tmp_path)
    shares = [1.0] + [0.0] * 15
    raw = {
        "rows": drift.BASELINE,
        "inputs": {"image": {"channel0": {"edges": list(range(0, 257, 16)), "shares": shares}}},
    }
    for rows, features in ((drift.BASELINE, []), (drift.PICTURES, ["channel0"])):
        (folder / drift.FILE).write_text(json.dumps({**raw, "rows": rows, "outputs": {}}))
        watch = watched(folder)
        images = np.full((500, 4, 4, 1), 200, np.uint8)
        feed_in(watch, folder, {"image": images}, {"probabilities": np.full((500, 3), 1 / 3, "f4")})
        assert [feature["name"] for feature in watch.describe("sides", "1")["features"]] == features


def test_a_sampler_rests_in_proportion_to_its_cost(table):
    told, (feed, found) = [], people(64)
    sampler = drift.Sampler(json_manifest(table), drift.read(table), told.append, share=1e-6)
    for _ in range(50):
        sampler(feed, found)
    assert len(told) == 1
    eager = drift.Sampler(json_manifest(table), drift.read(table), told.append, share=1.0)
    for _ in range(50):
        eager(feed, found)
    assert len(told) == 51


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"minimum must lie in 1 … window, got minimum=500, window=100"):
        drift.Drift(tmp_path, window=100, minimum=500)


def test_sealed_bundles_keep_their_baseline(table):
    seal(table)
    assert read(table).manifest.name == "paints" and drift.read(table).rows == 1000


def test_a_store_in_this_process_is_watched_from_its_first_answer(table):
    seal(table)
    client = create_app(Store(table.parents[1], threads=1)).test_client()
    for _ in range(3):
        assert client.post("/predict/paints", json=[{"age": 40, "weight": 70, "colour": "red"}] * 5).status_code == 200
    told = client.get("/metrics").text
    rows = float(re.search(r'zoo_drift_rows\{model="paints",version="1"\} (\S+)', told)[1])
    assert rows in (5, 10, 15)  # as many batches as its share of the time allowed
    assert 'zoo_drift_state{model="paints",version="1"} -1.0' in told


@pytest.mark.parametrize("shift", [0, 40])
def test_workers_tell_the_front_what_they_saw(table, shift):
    """Rows go through HTTP, the front and a worker process; the verdict comes back."""
    seal(table)
    feed, _ = people(600, shift=shift)
    server = subprocess.Popen(
        [sys.executable, "-m", "serve", str(table.parents[1]), "--port", "0", "--workers", "1", "--no-access-log"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(line for line in server.stdout if line.startswith("serving")).split()[-1]

        def send(rows):
            inputs = [
                {"name": "numbers", "datatype": "FP32", "shape": [len(rows), 2], "data": [[None if np.isnan(x) else float(x) for x in row] for row in feed["numbers"][rows]]},
                {"name": "categories", "datatype": "BYTES", "shape": [len(rows), 1], "data": feed["categories"][rows].tolist()},
            ]  # fmt: skip
            body = json.dumps({"inputs": inputs}).encode()
            with urllib.request.urlopen(f"{url}/v2/models/paints/infer", body, timeout=10) as answer:
                assert answer.status == 200

        def told():
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            found = re.search(r'zoo_drift_state\{model="paints",version="1"\} (\S+)', text)
            return text, float(found[1]) if found else None

        end, state, sent = time.monotonic() + 20, -1.0, 0
        while state in (-1.0, None) and time.monotonic() < end:
            send(range(sent % 600, sent % 600 + 60))
            sent += 60
            time.sleep(0.02)
            text, state = told()
        age = float(re.search(r'zoo_drift_psi\{column="age".*?\} (\S+)', text)[1])
        assert age > drift.DRIFTED if shift else age < drift.SHIFTED
        rows = float(re.search(r'zoo_drift_rows\{model="paints",version="1"\} (\S+)', text)[1])
        assert drift.MINIMUM <= rows <= sent
        assert f'zoo_rows_total{{model="paints",version="1"}} {float(sent)}' in text
        assert float(re.search(r'zoo_batch_rows_sum\{model="paints",version="1"\} (\S+)', text)[1]) == sent
        assert 'zoo_workers{state="ready"} 1.0' in text and 'zoo_resident_memory_bytes{process="worker 0"}' in text
    finally:
        server.terminate()
        assert server.wait(20) == 0
        server.stdout.close()
