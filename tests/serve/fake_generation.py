"""A generator without a model: each token tells its number and how many rows its step had; words of a text misbehave."""

import os
import time
from pathlib import Path

import numpy as np
from small_bundles import PROBABILITIES, TEXT, softmax, text_graph, write_bundle

from serve.generation import Piece
from serve.manifest import Port

FAKE = "fake_generation:Running"
LENGTH = 500  # tokens that there is room for
LARGE = 2**16  # characters of a token of a large text
BLOCK = {
    "files": {"fp32": {"decoder": "model.onnx", "decoder_weights": "", "encoder": "", "encoder_weights": ""}},
    "length": LENGTH,
    "source": "",
    "start": [],
    "end": 0,
    "caches": [],
    "states": [],
    "crossing": [],
}


class Running:
    """As `serve.generation.Running`.

    What words of a text do: "slow" takes 10 ms a step, "large" has large tokens, "end" ends behind two, "cut" has a note,
    "refuse" and "fail" raise, "hang" never returns, "die" ends the process, and if it names a file, only once. What says
    "later" fails behind two tokens. "painted" ends behind two with a picture.
    """

    def __init__(self, folder, manifest, precision, threads=0):
        self._texts = {}  # row -> text, what is asked, tokens
        self._count = 0

    @property
    def idle(self):
        return not self._texts

    def add(self, text, ask):
        if "refuse" in text:
            raise ValueError("the text has nothing to go on from")
        self._count += 1
        self._texts[self._count] = [text, ask, 0]
        return self._count

    def drop(self, row):
        self._texts.pop(row, None)

    def step(self):
        pieces, rows = [], len(self._texts)
        for row, entry in list(self._texts.items()):
            text, ask, made = entry
            self._misbehave(text, made)
            entry[2] = made = made + 1
            said = "x" * LARGE if "large" in text else f"{made}/{rows} "
            done = "stop" if any(stop in said for stop in ask.stop) else "length" if made == ask.most else ""
            done = "end" if ("end" in text or "painted" in text) and made == 2 else done
            note = "only the end of it was read" if "cut" in text and made == 1 else ""
            drawn = np.full((4, 4, 3), 100 * ask.temperature, np.uint8) if done and "painted" in text else None
            pieces.append((row, Piece("" if done == "stop" else said, made, done, note, drawn)))
            if done:
                del self._texts[row]
        return pieces

    def _misbehave(self, text, made):
        if "slow" in text:
            time.sleep(0.01)
        if "fail" in text and made >= (2 if "later" in text else 0):
            raise ZeroDivisionError(text)
        if "hang" in text:
            time.sleep(1000)
        if "die" in text and made >= (2 if "later" in text else 0):
            last = Path(text.split()[-1])
            if not last.is_absolute():
                os._exit(3)
            if not last.exists():
                last.touch()
                os._exit(3)


def write_teller(store, version="1", name="teller"):
    """The bundle of a model of texts that continues them too."""
    return write_bundle(
        store, name, version, text_graph,
        ({"text": np.array([["good"], ["bad"]])}, {"probabilities": softmax([[0, 1, 4], [4, 1, 0]])}),
        task="language-modelling", kind="text", inputs=(TEXT,), outputs=(PROBABILITIES,),
        labels=("negative", "neutral", "positive"), generation=BLOCK,
    )  # fmt: skip


def write_painter(store, name="painter"):
    """The bundle of a model that paints."""
    picture = Port("image", "UINT8", (-1, 4, 4, 3), ("batch", "height", "width", "channels"), (0, 255), "pixel value")
    files = {"fp32": {**BLOCK["files"]["fp32"], "drawer": "model.onnx", "drawer_weights": ""}}
    numbers = {"text": 5, "padding": 9, "pad": 0, "places": 2}
    return write_bundle(
        store, name, "1", text_graph,
        ({"text": np.array(["painted"])}, {"image": np.zeros((1, 4, 4, 3), np.uint8)}),
        task="text-to-image", kind="text", inputs=(Port("text", "BYTES", (-1,), ("batch",)),), outputs=(picture,),
        labels=(), generation={**BLOCK, "files": files, "picture": numbers},
    )  # fmt: skip
