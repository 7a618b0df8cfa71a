import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import small_explanations as small
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from zoo.explain.explanation import Explanation
from zoo.explain.pictures import of
from zoo.explain.pictures.graphs import layout
from zoo.explain.pictures.theme import DARK, LIGHT

STYLES = [(name, style) for name, made in small.ALL.items() for style in of(made().kind).STYLES]


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def redness(colour):
    """Above 0 for red, below for blue."""
    red, _, blue = to_rgb(colour)[:3]
    return red - blue


@pytest.mark.parametrize(("name", "style"), STYLES)
def test_every_kind_is_drawn_in_every_style(name, style):
    found = small.ALL[name]()
    picture = io.BytesIO()
    figure = found.plot(picture, style=style)
    assert picture.getvalue().startswith(b"\x89PNG")
    shown = " ".join(texts(figure)).replace("\n", " ")
    assert found.answer(0) in shown or (style == "map" and name != "images_pair")
    assert "red" in shown or style in ("bar", "waterfall")
    assert "additivity error 2.0e-09" in shown and "deletion 0.210 (random order 0.520)" in shown


def test_pixels_that_speak_for_the_answer_are_red_and_those_that_do_nothing_are_clear():
    figure = small.image().plot(style="overlay")
    shares = figure.findobj(lambda artist: getattr(artist, "_cmapped", False) or hasattr(artist, "get_interpolation"))
    drawn = next(image for image in shares if isinstance(image.get_alpha(), np.ndarray))
    strength, colours = drawn.get_alpha(), drawn.to_rgba(drawn.get_array())
    assert strength[0, 0] == 0 and strength[4, 9] > 0.2 and strength[10, 1] == 1
    assert redness(colours[4, 9]) > 0.1 and redness(colours[10, 1]) < -0.1


def test_a_coarse_map_covers_the_whole_image():
    fine = small.image()
    coarse = np.zeros((1, 3, 4))
    coarse[0, 0, 3] = 1
    found = replace(fine, attributions=coarse, axes=("batch", "height", "width"), base=None, additivity_error=None)
    drawn = [i for i in found.plot(style="map").findobj() if isinstance(getattr(i, "get_alpha", str)(), np.ndarray)]
    assert drawn[0].get_array().shape == (12, 16)
    assert (np.asarray(drawn[0].get_array())[:4, 12:] == 1).all() and drawn[0].get_array().sum() == 16


def test_the_box_and_the_region_are_marked():
    boxes = [p for p in small.detection().plot().findobj(Rectangle) if p.get_width() == 4 and p.get_height() == 3]
    assert [(box.get_x(), box.get_y()) for box in boxes].count((7.5, 2.5)) == 4  # bright under green, on both pictures
    outlines = small.segmentation().plot()
    assert len(outlines.findobj(lambda artist: type(artist).__name__ == "QuadContourSet")) == 4
    assert not small.image().plot().findobj(lambda artist: type(artist).__name__ == "QuadContourSet")


def test_a_waterfall_leads_from_the_base_to_the_answer():
    found = small.table()
    figure = found.plot(style="waterfall")
    bars = [bar for bar in figure.findobj(Rectangle) if bar.get_height() == pytest.approx(0.64)]
    ends = sorted((bar.get_y(), bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
    assert len(ends) == 4 and ends[0][1] == pytest.approx(0.25)
    for (_, _, end), (_, start, _) in pairwise(ends):
        assert start == pytest.approx(end)
    assert ends[-1][2] == pytest.approx(found.prediction[0]) == pytest.approx(0.5)
    names = [text.get_text() for text in figure.get_axes()[0].get_yticklabels()][1:-1]
    assert names == ["<i>noise</i> = missing", "colour = red", "weight = missing", "age = 61"]


def test_many_columns_are_added_up_in_a_last_bar():
    values = np.linspace(0.2, 0.01, 20)[None]
    columns = tuple(f"c{place}" for place in range(20))
    inputs = {"numbers": np.zeros((1, 20), np.float32)}
    found = small.make("table", inputs, values, ("batch", "columns"), columns=columns)
    shown = texts(found.plot())
    assert "8 other columns together" in shown and f"+{values[0, 12:].sum():.3g}" in shown and "c12 = 0" not in shown


def test_words_stand_on_their_colour_in_reading_order():
    figure = small.text().plot()
    boxed = [text for text in figure.findobj(lambda a: hasattr(a, "get_bbox_patch")) if text.get_bbox_patch()]
    read = [text.get_text().replace(r"\$", "$") for text in boxed]
    assert read == [*small.WORDS, "fine"]
    shades = dict(zip(read, [redness(text.get_bbox_patch().get_facecolor()) for text in boxed], strict=True))
    assert shades["good"] > 0.5 and shades["not"] < -0.2 and abs(shades["more"]) < 0.01


def test_rounding_is_not_drawn_as_a_contribution():
    inputs = {"text": np.array(["a b"])}
    found = small.make("text", inputs, [[3e-16, 0.0]], ("batch", "tokens"), names=(("a", "b"),))
    boxed = [text for text in found.plot().findobj(Text) if text.get_bbox_patch()]
    assert all(abs(redness(text.get_bbox_patch().get_facecolor())) < 0.01 for text in boxed)
    assert 'style="--s:0.00"' in found.to_html() and "strong" not in re.sub(
        r"<style>.*</style>", "", found.to_html(), flags=re.S
    )


def test_long_texts_are_broken_into_lines_that_fit():
    words = tuple(f"word{place}" for place in range(80))
    texts_given = {"text": np.array([" ".join(words)])}
    found = small.make("text", texts_given, np.zeros((1, 80)), ("batch", "tokens"), names=(words,))
    figure = found.plot()
    figure.draw_without_rendering()
    boxed = [text for text in figure.findobj(lambda a: hasattr(a, "get_bbox_patch")) if text.get_bbox_patch()]
    places = [text.get_window_extent() for text in boxed]
    assert len({round(place.y0) for place in places}) > 4
    assert max(place.x1 for place in places) < 0.9 * figure.bbox.x1
    for one, other in pairwise(places):
        assert other.x0 > one.x1 or other.y0 < one.y0


def test_tokens_without_names_are_numbers():
    inputs = {"tokens": np.array([[5, 17, 0]])}
    found = small.make("text", inputs, [[0.1, 0.2, 0.0]], ("batch", "tokens"))
    assert {"5", "17", "0"} <= set(texts(found.plot()))


def test_a_series_shows_the_channels_that_count_most():
    figure = small.series(12).plot()
    lines = [line for line in figure.findobj(lambda a: type(a).__name__ == "Line2D") if len(line.get_xdata()) == 40]
    assert len(lines) == 8 and "lead 0" in texts(figure) and "lead 1" in texts(figure)
    np.testing.assert_array_equal(lines[0].get_ydata(), small.series(12).inputs["series"][0, :, 0])
    assert "4 lesser channels left out" in " ".join(texts(figure))
    times = {"times": np.arange(40)[None] / 100}
    assert "time, seconds" in texts(small.series(about=times).plot()) and "time, steps" in texts(figure)


def test_nodes_and_edges_have_their_colours():
    [points] = small.nodes().plot().findobj(PathCollection)
    shades = [redness(colour) for colour in points.get_facecolors()]
    assert shades[1] > 0.5 and shades[2] < -0.05 and abs(shades[0]) < 0.01
    assert {"C", "N", "O", "Cl"} <= set(texts(small.nodes().plot()))
    lines = max(small.edges().plot().findobj(LineCollection), key=lambda each: len(each.get_linewidths()))
    widest = int(np.argmax(lines.get_linewidths()))
    assert redness(lines.get_colors()[widest]) > 0.5 and len(lines.get_segments()) == len(small.EDGES)


def test_the_layout_is_repeatable_and_sets_neighbours_near_each_other():
    ring = np.array([(at, (at + 1) % 16) for at in range(16)])
    places = layout(16, ring)
    np.testing.assert_array_equal(places, layout(16, ring))
    assert places.min() >= 0 and places.max() <= 1
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(gaps, np.nan)
    near = gaps[ring[:, 0], ring[:, 1]].mean()
    assert near < 0.6 * np.nanmean(gaps) and np.nanmin(gaps) > 0.02
    for lonely in (0, 1, 3):
        assert np.isfinite(layout(lonely, np.zeros((0, 2), int))).all()


def test_both_sides_of_a_pair_share_one_scale():
    found = small.texts_pair()
    np.testing.assert_allclose(found.side(0).attributions, [[0, 0.3, 0]])
    np.testing.assert_allclose(found.side(1).attributions, [[-0.05, 0.2]])
    figure = found.plot()
    assert [mesh.norm.vmax for mesh in figure.findobj(QuadMesh)] == pytest.approx([0.3, 0.3], rel=0.01)
    assert {"dog", "dogs", "runs", "two"} <= set(texts(figure))
    image = small.images_pair()
    assert image.side(1).attributions.shape == (1, 12, 16, 3)


def test_errors_that_are_not_known_are_not_shown():
    known = small.table()
    unknown = replace(known, standard_error=np.full(known.attributions.shape, np.nan))
    axes = [found.plot().subfigs[0].axes[0] for found in (replace(known, standard_error=None), unknown)]
    assert axes[0].get_xlim() == axes[1].get_xlim() and len(axes[0].texts) == len(axes[1].texts) == 4
    told = re.sub('base64,[^"]*', "", unknown.to_html()) + str(unknown)
    assert "± nan" not in told and "unknown, too little was evaluated" in told and "±" in known.to_html()


def test_dark_pictures_are_dark():
    for dark, theme in ((False, LIGHT), (True, DARK)):
        figure = small.table().plot(dark=dark)
        assert to_rgb(figure.get_facecolor()) == to_rgb(theme.ground)


@pytest.mark.parametrize("width", [4.0, 8.4])
@pytest.mark.parametrize(("name", "style"), STYLES)
def test_no_text_is_cut_however_narrow_the_picture(name, style, width):
    figure = small.ALL[name]().plot(style=style, width=width)
    figure.draw_without_rendering()
    assert figure.bbox.x1 == pytest.approx(100 * width)
    for text in figure.findobj(Text):
        if re.search("[a-zA-Z]", text.get_text()):  # ticks beyond an axis are there and not drawn
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, text
            assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, text


def test_a_narrow_picture_breaks_long_names_and_has_as_many_pixels():
    columns = ("od280/od315_of_diluted_wines", "worst_concave_points", "age")
    inputs = {"numbers": np.array([[1.33, 0.01111, 30]], np.float32)}
    found = small.make("table", inputs, [[0.2, -0.1, 0.05]], ("batch", "columns"), columns=columns)
    wide, narrow = texts(found.plot()), texts(found.plot(width=4.5))
    assert "worst_concave_points = 0.01111" in wide and "od280/od315_of_diluted_wines = 1.33" in wide
    assert {"worst_concave_points\n= 0.01111", "od280/od315_of_diluted…\n= 1.33", "age = 30"} <= set(narrow)
    sizes = []
    for width in (4.5, 8.4):
        file = io.BytesIO()
        found.plot(file, width=width)
        sizes.append(Image.open(file).size[0])
    assert sizes == [1008, 1008]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "pie"}, "no style 'pie' for table inputs; styles are bar, waterfall"),
        ({"rows": 0}, r"rows must be 1 … 64, got rows=0"),
        ({"rows": 65}, r"rows must be 1 … 64"),
        ({"width": 3.9}, r"width must be 4 … 20 inches, got width=3.9"),
    ],
)
def test_wrong_options_of_a_picture(options, message):
    with pytest.raises(ValueError, match=message):
        small.table().plot(**options)


def test_files_are_written_by_their_suffix(tmp_path):
    found = small.table(3)
    starts = {"a.png": b"\x89PNG", "a.pdf": b"%PDF", "a.svg": b"<?xml", "a.json": b"{", "a.html": b"<!doctype html>"}
    for name, start in starts.items():
        assert found.save(tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"cannot tell from 'a.gif' what to write; end it in .json, .html"):
        found.save(tmp_path / "a.gif")


@pytest.mark.parametrize("name", small.ALL)
def test_json_gives_the_same_explanation_back(name):
    found = small.ALL[name]()
    text = found.to_json()
    assert "NaN" not in text
    again = Explanation.from_json(text)
    assert again.to_json() == text and str(again) == str(found) and again.sides == found.sides
    np.testing.assert_array_equal(again.attributions, found.attributions)
    for key, values in found.inputs.items():
        np.testing.assert_array_equal(again.inputs[key], values)
        assert again.inputs[key].dtype.kind == values.dtype.kind
    pictures = [io.BytesIO(), io.BytesIO()]
    for file, each in zip(pictures, (found, again), strict=True):
        each.plot(file)
    assert pictures[0].getvalue() == pictures[1].getvalue()


def test_figures_alone_can_be_read_but_not_drawn():
    found = Explanation.from_json(small.table().to_json(inputs=False))
    np.testing.assert_allclose(found.attributions.sum(), 0.25)
    for show in (found.plot, found.to_html):
        with pytest.raises(ValueError, match="read without its inputs"):
            show()
    settings = json.loads(small.table().to_json())["settings"]
    assert settings == {"evaluations": 200, "orders": 4, "rate": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "this is no JSON"),
        ("[]", "no explanation of format 1, got 'list'"),
        ('{"format": 9}', "of format 1, got 9"),
        ('{"format": 1}', "this is no explanation: KeyError"),
    ],
)
def test_what_is_no_explanation_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Explanation.from_json(text)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="need as many axes, the first 'batch'"):
        replace(small.table(), axes=("columns",))
    with pytest.raises(ValueError, match="prediction of 3"):
        replace(small.table(), prediction=np.zeros(3))
    with pytest.raises(ValueError, match=r"standard_error must be \(1, 4\)"):
        replace(small.table(), standard_error=np.zeros(4))


def test_text_tells_what_can_be_trusted():
    told = str(small.table(complete=False))
    assert "row 0: yes 0.5000 = base 0.2500 +0.2500, most by age +0.3000, weight -0.1000, colour +0.0500" in told
    assert "stopped by the time budget" in told and "standard error 1.0e-02 at most" in told
    unsure = replace(small.image(), base=None, additivity_error=None, faithfulness=None, stability=None)
    assert "additivity" not in str(unsure) and "base" not in str(unsure)


def test_contributions_to_the_networks_own_output_are_told_apart_from_the_answer():
    found = small.table(settings={"unit": "model output"}, base=np.array([-2.0]), prediction=np.array([0.9]))
    assert (found.unit, found.answer_unit) == ("model output", "probability")
    assert "row 0: yes 0.9000, model output -1.7500 = base -2.0000 +0.2500" in str(found)
    assert "model says “yes” 90.0%, model output −1.75, from −2 for the background" in texts(found.plot())
    assert "−2 with everything left out" in found.to_html()
    assert small.table(settings={"unit": "answer"}).unit == "probability"


class Reader(HTMLParser):
    """Collects texts, attributes, and whether tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.found, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("name", small.ALL)
def test_the_page_stands_alone_and_tells_its_figures_in_text(name):
    found = small.ALL[name]()
    page = found.to_html()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert not re.search(r"https?:|url\(|@import", page) and "default-src 'none'" in page
    for tag, attributes in reader.found:
        assert tag not in ("script", "link", "iframe")
        source = attributes.get("src") or attributes.get("srcset") or "data:"
        assert source.startswith("data:")
        if tag == "img":
            assert found.answer(0) in attributes["alt"]
    words = " ".join(reader.words)
    assert found.answer(0) in words and "0.210 on average" in words and "2.0e-09" in words
    assert "+0.4" in words or "+0.3" in words or "+0.5" in words or "+0.25" in words or "+0.04" in words


def test_the_page_escapes_what_comes_from_data():
    for found in (small.text(), small.table(), small.table(labels=("no", "<script>"))):
        page = found.to_html()
        assert "<b>film" not in page and "<i>noise" not in page and "<script>" not in page
    assert "&lt;b&gt;film&lt;/b&gt;" in small.text().to_html()


def test_the_page_says_how_rows_were_cut_and_which_are_missing():
    page = small.table(6, complete=False).to_html(rows=2)
    assert page.count("<article") == 2 and "4 more rows are explained" in page
    assert "The time budget ended it" in page and "The time budget" not in small.table().to_html()
    with pytest.raises(ValueError, match="rows must be at least 1, got rows=0"):
        small.table().to_html(0)


def test_words_on_the_page_are_coloured_and_the_strong_ones_underlined():
    page = small.text().to_html()
    assert '<span class="f strong" style="--s:1.00" title="+0.4">good</span>' in page
    assert '<span class="a strong" style="--s:0.50" title="−0.2">not</span>' in page
