import json
from dataclasses import replace

import numpy as np
import pytest
import small_explanations as small
from matplotlib.collections import PathCollection
from matplotlib.text import Text

from zoo.explain.pictures.summaries import _swarm
from zoo.explain.summary import Summary, summarise


def table(rows, seed=0):
    """Column 0 speaks as its value does, column 1 is half as strong, column 2 is a text."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, 2)).astype(np.float32)
    shares = np.stack([values[:, 0], -values[:, 1] / 2, np.full(rows, 0.01)], axis=1)
    inputs = {"numbers": values, "categories": np.full((rows, 1), "red")}
    return small.make("table", inputs, shares, ("batch", "columns"), columns=("a", "b", "colour"))


def test_importance_is_the_mean_size_with_its_interval():
    one = table(400)
    found = summarise(one)
    sizes = np.abs(one.attributions)
    np.testing.assert_allclose(found.importance, sizes.mean(axis=0))
    np.testing.assert_allclose(found.direction, one.attributions.mean(axis=0))
    known = 2 * 1.96 * sizes.std(axis=0) / 20  # width of a normal interval
    np.testing.assert_allclose(found.high - found.low, known, rtol=0.15, atol=1e-12)
    assert (found.low[:2] < found.importance[:2]).all() and (found.importance[:2] < found.high[:2]).all()
    assert [found.names[at] for at in found.order()] == ["a", "b", "colour"]
    assert found.rows == 400 and found.faithfulness == small.FAITHFUL and found.calls == 4321


def test_the_order_of_batches_does_not_matter_to_the_importance():
    whole = table(30)
    parts = [
        replace(
            whole,
            inputs={name: values[start : start + 10] for name, values in whole.inputs.items()},
            attributions=whole.attributions[start : start + 10],
            base=whole.base[:10],
            prediction=whole.prediction[start : start + 10],
            target=whole.target[:10],
            complete=start != 10,
        )
        for start in (20, 0, 10)
    ]
    found = summarise(parts)
    np.testing.assert_allclose(found.importance, summarise(whole).importance)
    assert found.rows == 30 and found.seconds == 3 * 1.25 and not found.complete
    assert "cut by the time budget" in str(found)


def test_values_are_ranked_within_their_column():
    one = table(5)
    one.inputs["numbers"][:, 0] = [3, 1, 1, np.nan, 9]
    found = summarise(one)
    np.testing.assert_allclose(found.cells[:, 0], [2 / 3, 1 / 6, 1 / 6, np.nan, 1])
    assert np.isnan(found.cells[:, 2]).all()


def test_words_are_pooled_over_the_texts_that_have_them():
    names = (("Good", "good", "film"), ("good", "day"), ("bad",))
    values = np.array([[0.1, 0.2, -0.1], [0.5, 0.0, 0], [-0.3, 0, 0]])
    texts = {"text": np.array(["x"] * 3)}
    found = summarise(small.make("text", texts, values, ("batch", "tokens"), names=names))
    at = dict(zip(found.names, range(len(found.names)), strict=True))
    assert set(at) == {"good", "film", "day", "bad"} and found.axes == ("words",)
    assert found.importance[at["good"]] == pytest.approx((0.3 + 0.5) / 2) and found.counts[at["good"]] == 2
    assert found.importance[at["bad"]] == pytest.approx(0.3) and found.direction[at["bad"]] == pytest.approx(-0.3)
    assert np.isnan(found.low[at["bad"]]) and found.low[at["good"]] == pytest.approx(0.3)
    assert found.names[found.order()[0]] == "good"  # the only one with an interval comes first
    assert "bad   0.3 (one row), mean -0.3" in str(found)


def test_images_have_a_mean_picture_for_each_class():
    one = small.image(3)
    one.inputs["image"][0] = 200
    one.attributions[0] *= 3
    found = summarise(replace(one, target=np.array([0, 1, 0])))
    assert list(found.classes) == ["no", "yes"] and found.classes["no"].rows == 2
    flat = one.attributions.sum(axis=-1)
    np.testing.assert_allclose(found.classes["no"].attributions, flat[[0, 2]].mean(axis=0))
    np.testing.assert_allclose(found.classes["no"].image, one.inputs["image"][[0, 2]].mean(axis=0))
    np.testing.assert_allclose(found.importance, np.abs(flat).mean(axis=0))
    assert "“yes”: 1 rows, strongest at row 10, column 1 of the image" in str(found)


def test_series_are_summed_up_over_time():
    times = {"times": np.arange(40)[None] / 100}
    found = summarise([small.series(about=times), small.series(about=times)])
    assert found.importance.shape == (40, 2) and found.axes == ("time", "channels")
    np.testing.assert_allclose(found.times, np.arange(40) / 100)
    assert "strongest at time 10, channel 0: 0.1 (0.1 … 0.1), mean +0.1" in str(found)


SUMMARIES = {
    "table": lambda: summarise(table(50)),
    "image": lambda: summarise(replace(small.image(3), target=np.array([0, 1, 0]))),
    "text": lambda: summarise(small.text()),
    "tokens": lambda: summarise(
        small.make("text", {"tokens": np.array([[1, 2], [3, 4]])}, [[0.1, 0.2], [0, 0.1]], ("batch", "tokens"))
    ),
    "series": lambda: summarise([small.series(12)] * 3),
    "nodes": lambda: summarise([small.nodes()] * 2),
    "one row": lambda: summarise(small.table()),
}


@pytest.mark.parametrize("name", SUMMARIES)
@pytest.mark.parametrize("dark", [False, True])
def test_every_summary_is_drawn(name, dark, tmp_path):
    found = SUMMARIES[name]()
    path = tmp_path / "what.png"
    figure = found.plot(path, dark)
    assert path.read_bytes().startswith(b"\x89PNG")
    shown = " ".join(text.get_text() for text in figure.findobj(Text))
    assert f"{found.rows} rows" in shown and ("importance" in shown or "speaks for the answer" in shown)


def test_a_beeswarm_has_a_point_for_each_row():
    found = summarise(table(50))
    swarm = found.plot().axes[0]
    points = swarm.findobj(PathCollection)
    assert [len(each.get_offsets()) for each in points] == [50, 50, 50]
    np.testing.assert_allclose(points[0].get_offsets()[:, 0], found.points[:, 0])
    offsets = _swarm(np.r_[np.zeros(500), 1.0], 1.0)
    assert np.abs(offsets).max() <= 0.41 and len(np.unique(offsets)) == 500


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_is_written_by_suffix(name, tmp_path):
    found = SUMMARIES[name]()
    told = json.loads(found.save(tmp_path / "a.json").read_text())
    assert told["rows"] == found.rows and np.shape(told["importance"]) == found.importance.shape
    assert "NaN" not in found.to_json()
    again = Summary.from_json(found.to_json())
    assert again.to_dict() == found.to_dict() and again.order().tolist() == found.order().tolist()
    assert again.importance.dtype == float and str(again) == str(found)
    assert again.save(tmp_path / "again.html").read_text() == found.save(tmp_path / "a.html").read_text()
    page = found.save(tmp_path / "a.html").read_text()
    assert page.count("data:image/png") == 2 and "http" not in page.replace("http-equiv", "")
    for part in found.names[:1]:
        assert part.replace("<", "&lt;").replace(">", "&gt;") in page
    with pytest.raises(ValueError, match=r"cannot tell from 'a\.gif' what to write"):
        found.save(tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "no JSON: .*; give what Summary.to_json wrote"),
        ("[1]", "no summary of format 1, got 'list'"),
        (small.table().to_json(), "no summary: KeyError"),
    ],
)
def test_what_is_no_summary_is_not_read(text, message):
    with pytest.raises(ValueError, match=message):
        Summary.from_json(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: [], "at least one explanation, got none"),
        (small.texts_pair, "summary of pairs would mix both sides"),
        (lambda: [small.table(), replace(small.table(), name="other")], "got name 'small' and 'other'"),
        (lambda: [small.table(), small.nodes()], "got kind 'table' and 'graph'"),
        (
            lambda: [
                small.image(),
                small.make("image", {}, np.zeros((1, 3, 3, 1)), ("batch", "height", "width", "channels")),
            ],
            r"rows of one size, got \(3, 3, 1\) and \(12, 16, 3\)",
        ),
    ],
)
def test_what_cannot_be_summed_up_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        summarise(given())


def test_a_side_of_a_pair_can_be_summed_up():
    found = summarise([small.texts_pair().side(0)] * 2)
    assert found.names == ("a", "dog", "runs") and found.importance[1] == pytest.approx(0.3)
