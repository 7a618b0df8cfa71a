"""A model of recordings on the page: a file is drawn, played and read; what cannot be heard is said."""

import numpy as np
import pytest
from browsing import NEEDED, playwright, problem, running, verdict
from test_serve_audio import sound, write_heard

from serve.app import create_app
from serve.store import Store

expect = playwright.expect
pytestmark = NEEDED


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = write_heard(tmp_path_factory.mktemp("page"))
    with running(create_app(Store(folder.parents[1], threads=1), explain_target="fake_explainers:echo")) as found:
        yield found


def test_a_recording_is_drawn_played_and_read(visit):
    tab = visit("heard")
    wave = {"name": "said.wav", "mimeType": "audio/wav", "buffer": sound(np.sin(np.arange(5600) / 4), 8000)}
    tab.set_input_files("input[type=file]", wave)
    verdict(tab, "a b understood, 80.0 % sure")
    expect(tab.locator("#bars li")).to_have_text(["a at 0.00 s90.0 %", "b at 0.40 s80.0 %"])
    expect(tab.get_by_role("img", name="Amplitude of the recording over time")).to_be_visible()
    expect(tab.locator("audio")).to_be_visible()
    expect(tab.locator("#notes")).to_have_text("converted from 8000 to 1000 samples per second")
    expect(tab.get_by_role("button", name="Explain this answer")).to_be_hidden()


def test_an_example_is_read_and_what_is_no_sound_refused(visit):
    tab = visit("heard", allowed="422")
    tab.get_by_role("button", name="Use an example").click()
    verdict(tab, "a b understood")
    tab.set_input_files("input[type=file]", {"name": "said.wav", "mimeType": "audio/wav", "buffer": b"no sound"})
    problem(tab, "The body is not a sound file that can be read; send 16-bit WAV or FLAC.")
