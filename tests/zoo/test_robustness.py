"""Robustness of models, runs and bundles: corruptions do what they say, and tables, pictures and commands agree."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from processes import python
from scipy import stats
from typer.testing import CliRunner

import export
import zoo
from zoo.cli import app
from zoo.data import Data, Split
from zoo.data.signature import ImagePreprocess, Signature, TablePreprocess
from zoo.evaluate import robustness, transformations
from zoo.evaluate.corruptions import CORRUPTIONS, without_column
from zoo.evaluate.report import Candidate

IMAGES = Signature("image-classification", ("dark", "bright"), ImagePreprocess(10, 20, (128.0,) * 3, (64.0,) * 3))
TABLE = Signature(
    "classification", ("no", "yes"), TablePreprocess(("age", "dose"), (40.0, 3.0), (10.0, 2.0), {"sex": ("f", "m")})
)
PICTURES = CORRUPTIONS["image"]
CELLS = CORRUPTIONS["table"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robust") / "run"
    return zoo.train("mlp", data="digits", out=folder, epochs=6, width=(32,), learning_rate=0.01, quiet=True)


@pytest.fixture(scope="module")
def bundle(run):
    return export.to_bundle(run, run.folder.parent / "store" / "digits" / "1", int8=False)


def pictures(rows=40):
    random = np.random.default_rng(0)
    return {"image": random.integers(60, 196, (rows, 10, 20, 3)).astype(np.uint8)}


def rows_of_table(rows=2000):
    random = np.random.default_rng(1)
    numbers = (random.normal(size=(rows, 2)) * [10, 2] + [40, 3]).astype(np.float32)
    numbers[::10, 0] = np.nan
    return {"numbers": numbers, "categories": random.choice(["f", "m"], (rows, 1))}


def judged_by_age(rows=400):
    """A predict function that reads the age alone, with data on which it is always right."""
    x = rows_of_table(rows)
    y = (np.nan_to_num(x["numbers"][:, 0], nan=40.0) > 40).astype(np.int64)
    data = Data("made", TABLE, *[Split(x, y)] * 3, "test", "none", "")
    return Candidate(
        lambda raw, _: np.eye(2)[(np.nan_to_num(raw["numbers"][:, 0], nan=40.0) > 40).astype(int)], data, "age"
    )


@pytest.mark.parametrize("name", PICTURES)
def test_corrupted_images_are_images_and_depend_on_seed_and_strength_alone(name):
    x, corruption = pictures(), PICTURES[name]
    before = x["image"].copy()
    np.testing.assert_array_equal(corruption.apply(x, corruption.neutral, IMAGES)["image"], before)
    gaps = []
    for strength in corruption.strengths:
        changed = corruption.apply(x, strength, IMAGES, 3)["image"]
        assert changed.dtype == np.uint8 and changed.shape == before.shape
        np.testing.assert_array_equal(changed, corruption.apply(x, strength, IMAGES, 3)["image"])
        gaps.append((abs(strength - corruption.neutral), np.abs(changed - before.astype(float)).mean()))
    np.testing.assert_array_equal(x["image"], before)
    if name in ("noise", "blur", "brightness"):  # one way of going wrong, and ever more of it
        gaps.sort()
        assert all(weak < strong for (_, weak), (_, strong) in zip(gaps, gaps[2:], strict=False))


def test_corruptions_have_the_strength_they_say():
    x = {"image": np.full((30, 10, 20, 3), 120, np.uint8)}
    noisy = PICTURES["noise"].apply(x, 16, IMAGES)["image"].astype(float)
    assert noisy.std() == pytest.approx(16, rel=0.02) and noisy.mean() == pytest.approx(120, abs=0.5)
    assert np.all(PICTURES["brightness"].apply(x, 32, IMAGES)["image"] == 152)
    assert np.all(PICTURES["brightness"].apply(x, -200, IMAGES)["image"] == 0)
    x = pictures()
    flat = PICTURES["contrast"].apply(x, 0.5, IMAGES)["image"].astype(float)
    np.testing.assert_allclose(flat.std(axis=(1, 2)), x["image"].std(axis=(1, 2)) / 2, rtol=0.02)
    np.testing.assert_allclose(flat.mean(axis=(1, 2)), x["image"].mean(axis=(1, 2)), atol=0.5)


def test_turning_and_moving_put_a_dot_where_geometry_says():
    x = {"image": np.zeros((50, 21, 21, 1), np.uint8)}
    x["image"][:, 10, 16] = 255  # 6 pixels to the right of the middle

    def centre(images):
        weights = images[..., 0].astype(float)
        total = weights.sum(axis=(1, 2))
        axes = np.arange(21)
        return (weights.sum(axis=2) @ axes) / total - 10, (weights.sum(axis=1) @ axes) / total - 10

    down, right = centre(PICTURES["rotation"].apply(x, 30, IMAGES)["image"])
    np.testing.assert_allclose(np.hypot(down, right), 6, atol=0.2)
    np.testing.assert_allclose(np.abs(down), 6 * np.sin(np.pi / 6), atol=0.2)
    assert {-1, 1} == set(np.sign(down))  # either way
    down, right = centre(PICTURES["shift"].apply(x, 10, IMAGES)["image"])  # 10 % of 21 pixels
    np.testing.assert_allclose(np.hypot(down, right - 6), 2.1, atol=0.1)


def test_corrupted_tables():
    x = rows_of_table()
    there = ~np.isnan(x["numbers"])
    noisy = CELLS["noise"].apply(x, 0.5, TABLE)
    move = (noisy["numbers"] - x["numbers"]) / [10, 2]
    np.testing.assert_array_equal(np.isnan(noisy["numbers"]), ~there)
    assert np.nanstd(move) == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(noisy["categories"], x["categories"])
    lost = CELLS["missing"].apply(x, 0.25, TABLE)
    assert np.isnan(lost["numbers"][there]).mean() == pytest.approx(0.25, abs=0.03)
    assert (lost["categories"] == "").mean() == pytest.approx(0.25, abs=0.03)
    kept = there & ~np.isnan(lost["numbers"])
    np.testing.assert_array_equal(lost["numbers"][kept], x["numbers"][kept])
    swapped = CELLS["swapped"].apply(x, 1, TABLE)
    np.testing.assert_array_equal(np.sort(swapped["numbers"], axis=0), np.sort(x["numbers"], axis=0))
    assert (swapped["categories"] == "f").sum() == (x["categories"] == "f").sum()
    assert np.mean(swapped["numbers"][there] == x["numbers"][there]) < 0.05
    no_dose, no_sex = (without_column(x, column, TABLE) for column in ("dose", "sex"))
    assert np.isnan(no_dose["numbers"][:, 1]).all() and not np.isnan(no_dose["numbers"][1:10, 0]).any()
    assert (no_sex["categories"] == "").all() and (x["categories"] != "").all()


def test_the_column_that_matters_is_found():
    found = robustness.corrupted(judged_by_age())
    assert found.clean.score == 1
    scores = {point.label: point.score.score for point in found.curve("without")}
    assert scores["dose"] == scores["sex"] == 1 and scores["age"] < 0.6
    missing = [point.score.score for point in found.curve("missing")]
    assert missing == sorted(missing, reverse=True)
    assert "without age" in str(found) and found.kinds == ("noise", "missing", "swapped", "without")
    figures = json.loads(found.to_json())
    assert {row["label"]: row["strength"] for row in figures["points"] if row["kind"] == "without"}["age"] is None


def test_values_have_an_interval_of_the_bootstrap():
    signature = dataclasses.replace(TABLE, task="regression", labels=("dose",))
    x = rows_of_table(300)
    y = x["numbers"][:, 1].copy()
    data = Data("made", signature, *[Split(x, y)] * 3, "test", "none", "")
    candidate = Candidate(lambda raw, _: np.nan_to_num(raw["numbers"][:, 1:], nan=3.0), data, "copy")
    found = robustness.corrupted(candidate, kinds=("noise",))
    assert found.metric == "r2" and found.clean.score == 1
    # noise of 1 standard deviation of 2 on a target of variance 4: R2 = 1 - 4 / 4
    one = found.score("noise", 1.0)
    assert one.low < one.score < one.high and one.score == pytest.approx(1 - 4 / y.var(), abs=0.2)


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (3, 10), (10, 10), (355, 359), (1, 1)])
def test_shares_have_the_interval_of_wilson(hits, rows):
    theirs = stats.binomtest(hits, rows).proportion_ci(method="wilson")
    found = robustness.wilson(hits, rows)
    assert found.score == hits / rows
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_a_bundle_is_as_robust_as_the_run_it_came_from(run, bundle):
    mine, theirs = robustness.corrupted(run), robustness.corrupted(bundle, run.data)
    assert mine.kinds == theirs.kinds == tuple(PICTURES)
    for one, other in zip(mine.points, theirs.points, strict=True):
        assert abs(one.score.score - other.score.score) <= 2 / mine.rows
    assert mine.score("noise", 96.0).score < mine.clean.score - 0.02
    assert mine.score("contrast", 1.0) == mine.score("noise", 0.0) == mine.clean


def test_attacks_on_a_run_carry_over_to_its_bundle(run, bundle):
    options = dict(epsilons=(8, 24), methods=("fgsm", "pgd"), steps=5, rows=150)
    mine = robustness.attacked(run.folder, **options)
    theirs = robustness.attacked(run, against=bundle, **options)
    for one, other in zip(mine.points, theirs.points, strict=True):
        assert abs(one.score.score - other.score.score) <= 2 / 150
    assert mine.score("pgd", 24.0).score < mine.clean.score - 0.3
    blind = robustness.attacked(bundle, run.data, epsilons=(8,), rows=50)
    assert blind.kinds == ("random",)
    assert "give the run of this bundle" in str(blind) and "give the run" not in str(mine)
    with pytest.raises(TypeError, match="gradients need a Keras model or a run, got a Bundle"):
        robustness.attacked(bundle, run.data, methods=("pgd",))


def test_transformations_are_judged_by_both_attackers(run):
    found = robustness.transformed(run, names=("bits:2", "jpeg:50"), rows=120, steps=8, restarts=1, epsilon=12)
    assert found.kinds == ("none", "bits:2", "jpeg:50")
    assert found.score("none", 12, "unaware").score < found.score("none", 12, "unchanged").score
    for name in ("bits:2", "jpeg:50"):
        assert found.score(name, 12, "aware").score <= found.score(name, 12, "unaware").score
    alone = robustness.attacked(
        run, transform="bits:2", epsilons=(12,), methods=("pgd",), rows=120, steps=8, restarts=1
    )
    assert found.score("bits:2", 12, "aware").score <= alone.score("pgd", 12).score


def test_transformations():
    x = pictures()["image"]
    assert set(np.unique(transformations.bits(np.arange(256), 2))) == {0, 85, 170, 255}
    np.testing.assert_array_equal(transformations.bits(x, 8), x)
    dot = np.zeros((1, 9, 9, 2), np.uint8)
    dot[0, 4, 4] = 255
    assert not transformations.median(dot, 3).any()
    smooth = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[:, None], (1, 16, 16))[..., None].copy()
    for images in (smooth, np.repeat(smooth, 3, axis=-1)):
        after = transformations.jpeg(images, 95)
        assert after.shape == images.shape and np.abs(after.astype(int) - images).max() < 10
    rough = np.abs(transformations.jpeg(x, 5).astype(int) - x).mean()
    assert rough > np.abs(transformations.jpeg(x, 90).astype(int) - x).mean() > 0
    for text in ("blur:3", "bits", "bits:9", "jpeg:fine"):
        with pytest.raises(ValueError, match=f"transformation must be one of bits:1 … bits:8.*got '{text}'"):
            transformations.parse(text)


@pytest.mark.parametrize("what", ["corruptions", "columns", "attacks", "transformations", "certificates"])
def test_pictures_show_every_kind(what, run, tmp_path):
    import matplotlib.image

    if what == "corruptions":
        found = robustness.corrupted(run, kinds=("noise", "rotation"), rows=50)
    elif what == "columns":
        found = robustness.corrupted(judged_by_age(50))
    elif what == "attacks":
        found = robustness.attacked(run, epsilons=(8, 16), methods=("random", "pgd"), steps=2, rows=50)
    elif what == "transformations":
        found = robustness.transformed(run, names=("bits:2",), steps=2, restarts=1, rows=50)
    else:
        found = robustness.certified(judged_by_age(10), sigmas=(0.5, 1), draws=100, first=10)
    picture = matplotlib.image.imread(found.plot(tmp_path / "found.png"))
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ("nois",)}, "no corruption of image inputs is called 'nois'.*Did you mean 'noise'"),
        ({"kinds": ("missing",)}, "there are noise, blur, brightness, contrast, rotation, shift"),
        ({"strengths": (1, 2)}, "give one kind with a strength"),
        ({"split": "all"}, "split must be 'train', 'validation' or 'test', got 'all'"),
        ({"rows": 0}, "rows must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, message, run):
    with pytest.raises(ValueError, match=message):
        robustness.corrupted(run, **settings)


def test_a_bundle_needs_no_keras(bundle):
    code = (
        "import sys; from zoo.evaluate import robustness as r\n"
        "found = r.certified(sys.argv[1], 'digits', rows=5, draws=100, first=20)\n"
        "assert found.points[0].score.score > 0.5, found\n"
        "r.corrupted(sys.argv[1], 'digits', kinds=('noise',), rows=20)\n"
        "print(*[m for m in ('keras', 'tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    assert python("-c", code, bundle.folder) == ""


def test_the_command_measures_and_draws(run, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")  # the terminal of the test stays as it is
    short = ("--rows", "30", "-q")
    for arguments, expected in (
        ((str(run.folder), "--kind", "noise", "--strength", "64"), "noise"),
        ((str(run.folder), "attacks", "--epsilon", "16", "--steps", "2", "--kind", "pgd"), "pgd"),
        ((str(run.folder), "transformations", "--kind", "bits:2", "--steps", "2", "--epsilon", "8"), "bits:2 aware"),
        ((str(bundle.folder), "certificates", "--data", "digits", "--draws", "100", "--sigma", "24"), "sigma 24"),
    ):
        picture = tmp_path / f"{expected[:4]}.png"
        done = CliRunner().invoke(app, ["robustness", *arguments, *short, "--picture", str(picture)])
        assert done.exit_code == 0, done.output
        assert f"\n{expected} " in done.stdout and "on 30 test rows" in done.stdout
        assert picture.stat().st_size > 5_000
    done = CliRunner().invoke(app, ["robustness", str(run.folder), "attacks", "--sigma", "3", *short])
    assert isinstance(done.exception, ValueError) and "attacks have no use for --sigma" in str(done.exception)
    done = CliRunner().invoke(app, ["robustness", str(run.folder), "everything"])
    assert "robustness is measured by corruptions, attacks" in str(done.exception)
    done = CliRunner().invoke(app, ["robustness", str(Path(run.folder)), "--kind", "noise", "--json", *short])
    assert json.loads(done.stdout)["what"] == "corruptions"
