"""The page in a real browser, where one is installed."""

import base64
import gzip
import io
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import small_bundles
from browsing import NEEDED, playwright, problem, running, verdict
from PIL import Image
from small_bundles import write_bundle, write_image, write_table, write_text, write_value

import serve
from serve.app import create_app
from serve.guard import Guard
from serve.keys import KeyFile
from serve.manifest import Port
from serve.store import Store

pytestmark = NEEDED

PAGE = Path(serve.__file__).parent / "page"
FILES = (
    "index.html",
    "style.css",
    "app.js",
    "boxes.js",
    "common.js",
    "drawing.js",
    "inputs.js",
    "identities.js",
    "live.js",
    "masks.js",
    "writing.js",
)
READBACK = "willReadFrequently"  # a hint about the reading of pixels that the test does
PICTURE = Port("image", "UINT8", (-1, 4, 4, 3), ("batch", "height", "width", "channels"), (0, 255), "pixel value")
COLOURS = ("red", "green", "blue")


def colour_graph(path):
    """Softmax of the mean of each channel, times 8."""
    from onnx import TensorProto, helper

    weight = np.tile(np.eye(3, dtype=np.float32) * 8 / 16 / 255, (16, 1))
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    small_bundles.write_onnx(path, nodes, {"weight": weight}, (PICTURE,), (small_bundles.PROBABILITIES,))


def write_colours(store):
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[..., 2] = 255
    golden = ({"image": image}, {"probabilities": small_bundles.softmax([[0, 0, 8]])})
    write_bundle(
        store, "hues", "1", colour_graph, golden,
        task="image-classification", kind="image", inputs=(PICTURE,), outputs=(small_bundles.PROBABILITIES,),
        labels=COLOURS,
    )  # fmt: skip


def picture(colour="green"):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "store"
    for version in ("2", "9", "10"):
        write_image(folder, version)
    for write in (write_table, write_value, write_text, write_colours):
        write(folder)
    (write_image(folder, name="damaged") / "model.onnx").write_bytes(b"changed")
    return Store(folder, threads=1)


@pytest.fixture(scope="module")
def app(store):
    return create_app(store, explain_target="fake_explainers:echo")


@pytest.fixture(scope="module")
def address(app):
    with running(app) as found:
        yield found


def share(tab):
    """Bars as {label: text}."""
    return dict(zip(tab.locator(".label").all_inner_texts(), tab.locator(".share").all_inner_texts(), strict=True))


def test_a_table_shows_its_example_row_answered(visit):
    tab = visit("paints")
    verdict(tab, "silk with 84.4 %")
    assert share(tab) == {"silk": "84.4 %", "matt": "11.4 %", "gloss": "4.2 %"}
    widths = [bar.bounding_box()["width"] for bar in tab.locator(".track div").all()]
    assert widths[0] > 5 * widths[1] > 5 * widths[2]
    tab.get_by_text("The same request from a terminal").click()
    assert """-d '{"age":30,"weight":20,"colour":"blue"}'""" in tab.locator("#command").inner_text()


def test_a_row_is_filled_in_with_the_keyboard(visit):
    tab = visit("paints")
    verdict(tab, "silk")
    tab.get_by_label("age").fill("30")
    tab.keyboard.press("Tab")
    tab.keyboard.type("200")
    tab.keyboard.press("Enter")
    verdict(tab, "gloss")
    tab.get_by_label("colour").select_option("")
    tab.get_by_role("button", name="Predict").press("Enter")
    playwright.expect(tab.locator("#notes")).to_have_text("not sent, so taken as missing: colour")


def test_a_regression_shows_its_value(visit):
    tab = visit("dose")
    verdict(tab, "80 milligram")
    assert share(tab) == {}


def test_a_text_is_typed(visit):
    tab = visit("mood")
    tab.get_by_label("Text").fill("good")
    tab.get_by_label("Text").press("Control+Enter")
    verdict(tab, "positive")


def inked(tab):
    """Share of the pixels of what the model sees that are not dark."""
    script = "canvas => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
    script += "return d.filter((value, at) => at % 4 === 0 && value > 40).length / (d.length / 4); }"
    return tab.locator(".seen").evaluate(script)


def test_something_is_drawn_with_the_mouse(visit):
    tab = visit("sides", allowed=READBACK)
    board = tab.get_by_role("application", name="Drawing board")
    box = board.bounding_box()
    assert inked(tab) == 0
    tab.mouse.move(box["x"] + 50, box["y"] + 50)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 200, box["y"] + 200, steps=5)
    tab.mouse.up()
    verdict(tab, "with")
    assert 0.2 < inked(tab) < 0.9
    tab.get_by_role("button", name="Undo").click()
    verdict(tab, "Draw something")
    assert inked(tab) == 0 and tab.get_by_role("button", name="Explain").count() == 0


def test_something_is_drawn_with_a_finger(visit):
    tab = visit("sides", allowed=READBACK, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    box = tab.get_by_role("application", name="Drawing board").bounding_box()
    fingers = tab.context.new_cdp_session(tab)
    for kind, along in (("Start", 0.2), ("Move", 0.5), ("Move", 0.8)):
        at = {"x": box["x"] + along * box["width"], "y": box["y"] + along * box["height"]}
        fingers.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [at]})
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    verdict(tab, "with")
    assert inked(tab) > 0


def test_something_is_drawn_with_the_keyboard(visit):
    tab = visit("sides", allowed=READBACK)
    board = tab.get_by_role("application", name="Drawing board")
    hint = tab.get_by_text("With a keyboard: arrows move the pen")
    assert not hint.is_visible()
    playwright.expect(board).to_be_visible()  # it comes after the versions, with the examples
    tab.get_by_label("Version").focus()
    tab.keyboard.press("Tab")
    playwright.expect(board).to_be_focused()
    assert hint.is_visible()
    for key in (" ", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", " "):
        tab.keyboard.press(key)
    verdict(tab, "with")
    assert inked(tab) > 0
    tab.keyboard.press("Delete")
    verdict(tab, "Draw something")


def test_an_example_is_shown_and_its_version_chosen(visit):
    tab = visit("sides")
    assert tab.get_by_label("Version").locator("option").all_inner_texts() == ["chosen by the server", "10", "9", "2"]
    tab.get_by_role("button", name="Use an example").dblclick()
    verdict(tab, "right")
    assert "answered by version 10" in tab.locator("#timing").inner_text()
    tab.get_by_label("Version").select_option("2")
    playwright.expect(tab.locator("#timing")).to_contain_text("answered by version 2 ")


def test_a_picture_is_chosen(visit):
    tab = visit("hues")
    with tab.expect_file_chooser() as chooser:
        tab.get_by_text("Choose a picture").click()
    chooser.value.set_files({"name": "meadow.png", "mimeType": "image/png", "buffer": picture("lime")})
    verdict(tab, "green")
    assert tab.get_by_alt_text("Your picture meadow.png").bounding_box()["width"] >= 40


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(visit, way):
    tab = visit("hues")
    playwright.expect(tab.get_by_text("Drop or paste a picture")).to_be_visible()
    script = """([encoded, way]) => {
        const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
        const held = new DataTransfer();
        held.items.add(new File([bytes], "sky.png", { type: "image/png" }));
        const place = document.querySelector(".drop");
        if (way === "drop") place.dispatchEvent(new DragEvent("drop", { dataTransfer: held, bubbles: true, cancelable: true }));
        else document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: held, bubbles: true }));
    }"""
    tab.evaluate(script, [base64.b64encode(picture("blue")).decode(), way])
    verdict(tab, "blue")


def test_the_camera_takes_a_picture(visit):
    tab = visit("hues", permissions=["camera"])
    tab.get_by_role("button", name="Use the camera").click()
    tab.get_by_role("button", name="Take the picture").click()
    verdict(tab, "green")  # the browser's make-believe camera shows green
    assert tab.locator("video").count() == 0


def test_a_camera_that_is_not_allowed_is_told(visit):
    tab = visit("hues")
    refuse = "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError')); }"
    tab.evaluate(refuse)
    tab.get_by_role("button", name="Use the camera").click()
    problem(tab, "The camera cannot be used: the browser does not allow it. Choose a picture instead.")


def choose_rows(tab, text, name="rows.csv"):
    with tab.expect_file_chooser() as chooser:
        tab.get_by_text("Choose a CSV file").click()
    chooser.value.set_files({"name": name, "mimeType": "text/csv", "buffer": text.encode()})


def test_a_file_of_rows_is_answered_and_downloaded(visit, tmp_path):
    tab = visit("paints")
    verdict(tab, "silk")
    choose_rows(tab, "age;weight;colour;number\n" + "30;20;blue;1\n" * 1500 + "30;200;red;2\n" * 500)
    verdict(tab, "2,000 rows answered")
    assert share(tab) == {"silk": "1,500", "gloss": "500"}
    assert "not used, since the model has no such columns: number" in tab.locator("#notes").inner_text()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download the answers").click()
    assert download.value.suggested_filename == "rows-answers.csv"
    download.value.save_as(tmp_path / "answers.csv")
    lines = (tmp_path / "answers.csv").read_text().split()
    assert lines[0].startswith("label,probability,label_2")
    assert [line.partition(",")[0] for line in lines[1:]] == ["silk"] * 1500 + ["gloss"] * 500


def test_the_template_for_rows_can_be_sent_back(visit, tmp_path):
    tab = visit("paints")
    verdict(tab, "silk")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Get a template").click()
    download.value.save_as(tmp_path / "template.csv")
    text = (tmp_path / "template.csv").read_text()
    assert text == "age,weight,colour\n30,20,blue\n,80,\n"
    choose_rows(tab, text)
    verdict(tab, "2 rows answered")


def test_a_long_job_is_cancelled(visit, app, monkeypatch):
    jobs = app.extensions["jobs"]
    busy = threading.Event()
    busy.set()
    monkeypatch.setattr(jobs, "busy", busy.is_set)
    tab = visit("dose")
    verdict(tab, "80")
    choose_rows(tab, "age\n" + "1\n" * 5000)
    playwright.expect(tab.get_by_role("progressbar", name="Rows answered")).to_be_visible()
    with tab.expect_response(lambda response: response.request.method == "DELETE") as deleted:
        tab.get_by_role("button", name="Cancel").click()
    busy.clear()
    assert deleted.value.status == 204
    verdict(tab, "Cancelled.")


def test_mistakes_are_told_in_words(visit):
    tab = visit("paints", allowed="status of 422")
    verdict(tab, "silk")
    choose_rows(tab, "age,weight\n30,heavy\n")
    problem(tab, "Line 2, column 'weight' must be a number or empty, got 'heavy'.")
    verdict(tab, "No answer.")
    assert tab.get_by_role("button", name="Explain").count() == 0
    tab.get_by_role("button", name="Predict").click()
    verdict(tab, "silk")
    playwright.expect(tab.get_by_role("alert")).to_have_count(0)  # gone with the next answer
    tab.get_by_label("age").press_sequentially("e")
    tab.get_by_role("button", name="Predict").click()
    problem(tab, "Column “age” is not a number")
    assert tab.get_by_label("age").get_attribute("aria-invalid") == "true"


def test_a_server_that_is_gone_is_told_in_words(visit):
    tab = visit("dose", allowed="Failed to load resource")
    verdict(tab, "80")
    tab.route("**/*", lambda route: route.abort())
    tab.get_by_role("button", name="Predict").click()
    problem(tab, "The server cannot be reached. Is it still running?")


def test_a_refused_model_says_why(visit):
    tab = visit("damaged")
    playwright.expect(tab.locator("#refused")).to_contain_text(
        "Version 1 is not served: damaged/1: 'model.onnx' does not match its hash"
    )
    assert not tab.locator("#input").is_visible() and not tab.locator("#live").is_visible()


def test_the_answer_to_a_long_form_comes_into_view(visit):
    tab = visit("paints", viewport={"width": 360, "height": 420}, has_touch=True, is_mobile=True)
    verdict(tab, "silk")
    tab.wait_for_timeout(100)
    assert tab.evaluate("scrollY") == 0  # the example that the page begins with moves nothing
    tab.get_by_role("button", name="Predict").click()
    playwright.expect(tab.locator("#verdict")).to_be_in_viewport()


def test_versions_rules_and_figures_are_shown(visit, app):
    traffic = app.extensions["traffic"]
    traffic.see("sides", ["2", "9", "10"])
    traffic.canary("sides", "10", 0.25)
    try:
        tab = visit("sides")
        tab.get_by_role("button", name="Use an example").click()
        playwright.expect(tab.locator("#rate")).to_contain_text(re.compile(r"\d+ requests? in the last minute"))
        rows = {row.locator("th").inner_text().split()[0]: row for row in tab.locator("#versions tr").all()}
        assert list(rows) == ["10", "9", "2"]
        playwright.expect(rows["10"]).to_contain_text("canary")
        playwright.expect(rows["10"].locator("td").first).to_have_text("25.0 %")
        playwright.expect(rows["9"].locator("td").first).to_have_text("75.0 %")
        playwright.expect(rows["9"].locator("td").last).to_have_text(
            "not judgedthe bundle has no drift.json to compare with"
        )
        playwright.expect(tab.locator("#versions")).to_contain_text(re.compile(r"[\d.]+ ms"))
    finally:
        traffic.clear("sides")


def test_a_key_is_asked_for_and_kept_in_the_tab_only(visit, store, tmp_path):
    _, token = KeyFile(tmp_path / "keys.json").make("someone", ("predict", "explain"))
    guard = Guard(keys=tmp_path / "keys.json")
    with running(create_app(store, guard=guard)) as at:
        tab = visit("paints", at=at, allowed="status of 401")
        problem(tab, "This needs a credential")
        tab.get_by_label("API key").fill("wrong")
        tab.get_by_label("API key").press("Enter")
        problem(tab, "The credential is not accepted")
        tab.get_by_label("API key").fill(token)
        tab.get_by_role("button", name="Use this key").click()
        verdict(tab, "silk")
        assert not tab.get_by_label("API key").is_visible()
        assert "Bearer <key>" in tab.locator("#command").text_content()
        assert token not in tab.content()
        assert tab.evaluate("[localStorage.length, document.cookie, location.href.includes('zk_')]") == [0, "", False]
        tab.reload()
        verdict(tab, "silk")
        tab.get_by_role("button", name="Forget my key").click()
        problem(tab, "This needs a credential")
        assert tab.evaluate("sessionStorage.length") == 0
        tab.close()  # before its server


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if ((!own && !element.matches("input, select, textarea")) || !element.checkVisibility() || element.disabled) continue;
    const [one, other] = [luminance(numbers(getComputedStyle(element).color)), luminance(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName} ${element.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(visit, scheme):
    tab = visit("paints", color_scheme=scheme, allowed="status of 422")
    verdict(tab, "silk")
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 384) == (scheme == "dark")
    assert tab.evaluate(CONTRAST) == []
    choose_rows(tab, "age\nx\n")
    problem(tab, "Line 2")
    assert tab.evaluate(CONTRAST) == []
    tab.evaluate("document.querySelector('#problem').style.color = 'gray'")
    assert tab.evaluate(CONTRAST) != []  # the measure itself can tell


@pytest.mark.parametrize("model", ["paints", "sides", "hues", "mood", "damaged"])
def test_a_phone_shows_everything_without_scrolling_sideways(visit, model):
    tab = visit(model, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    playwright.expect(tab.locator("#name")).to_have_text(model)
    tab.wait_for_timeout(200)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    small = "[...document.querySelectorAll('button, select, .file')].filter((e) => e.checkVisibility() && e.offsetHeight < 40)"
    assert tab.evaluate(f"{small}.map((e) => e.textContent)") == []


def test_everything_can_be_reached_and_has_a_name(visit):
    for model in ("paints", "sides", "hues", "mood"):
        tab = visit(model)
        playwright.expect(tab.locator("#input button").first).to_be_visible()
        visible = "input, select, textarea, button, canvas, img, svg, table, nav, section, progress"
        nameless = """(selector) => [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility() && e.ariaHidden !== "true"
            && !(e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby") || e.alt || e.caption || e.textContent.trim()))
            .map((e) => e.outerHTML)"""
        assert tab.evaluate(nameless, visible) == []
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))
        pointers = "[...document.querySelectorAll('[for],[aria-labelledby],[aria-describedby]')].flatMap((e) => [e.htmlFor, e.getAttribute('aria-labelledby'), e.getAttribute('aria-describedby')]).filter(Boolean)"
        assert set(tab.evaluate(pointers)) <= set(ids)
        assert tab.get_by_role("heading", level=1).count() == tab.get_by_role("heading", level=2).count() == 1
        wanted = tab.evaluate(
            "[...document.querySelectorAll('button, input, select, textarea, .board')].filter((e) => e.checkVisibility() && !e.disabled).length"
        )
        tab.locator("body").press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "Skip to the input"
        seen = set()
        for _ in range(wanted + 6):
            tab.keyboard.press("Tab")
            seen.add(tab.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        assert len(seen) >= wanted
    live = tab.evaluate("[...document.querySelectorAll('[aria-live=polite], [role=alert]')].map((e) => e.id)")
    assert live == ["problem", "verdict", "explanation"]


def test_nothing_moves_for_those_who_asked_for_it(visit):
    moving = "getComputedStyle(document.querySelector('.track div')).transitionDuration"
    for motion, duration in (("reduce", "0s"), ("no-preference", "0.2s")):
        tab = visit("paints", reduced_motion=motion)
        verdict(tab, "silk")
        assert tab.evaluate(moving) == duration


def test_many_models_are_chosen_from_a_list(visit, tmp_path):
    for number in range(9):
        write_image(tmp_path / "store", name=f"model{number}")
    with running(create_app(Store(tmp_path / "store", threads=1))) as at:
        tab = visit("model4", at=at)
        playwright.expect(tab.get_by_role("combobox", name="Model")).to_have_value("model4")
        tab.get_by_role("combobox", name="Model").select_option("model7")
        playwright.expect(tab.get_by_role("heading", level=2)).to_have_text("model7")
        assert tab.url.endswith("#model7")
        tab.close()


def test_the_page_is_small():
    sizes = {name: len(gzip.compress((PAGE / name).read_bytes())) for name in FILES}
    assert sum(sizes.values()) < 26_500, sizes
    assert sum((PAGE / name).stat().st_size for name in FILES) < 75_000
