"""Folders of models that write, with random weights and without a training: files, tokenizer and manifest."""

from dataclasses import replace

import keras
import numpy as np

import zoo
from export import continuing
from zoo.data import Signature
from zoo.data.texts import TextPreprocess

TEXTS = ["the cat sat on the mat", "a naïve café, 3 € each", "dogs and cats", "x = [1, 2, 3]"]
PLACES = 24


def step(kind="bpe:300"):
    return TextPreprocess.fit(TEXTS, kind, PLACES)


def language_model(preprocess, seed=0, places=PLACES):
    """A small GPT that says something else at every place."""
    keras.utils.set_random_seed(seed)
    sizes = {"width": 24, "depth": 2, "heads": 3, "length": places, "input_shape": (places,), "dropout": 0.0}
    model = zoo.get("gpt_nano", vocabulary=preprocess.vocabulary, **sizes)
    random = np.random.default_rng(seed)
    model.set_weights([w + random.normal(scale=0.25, size=w.shape).astype("float32") for w in model.get_weights()])
    return model


def folder_of(model, preprocess, folder, precisions=("fp32",), end=None):
    """What `serve.generation.Running` reads; the manifest is given back."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = continuing.alone(model, Signature("language-modelling", ("a",), preprocess), folder, precisions)
    if end is not None:
        manifest.generation["end"] = end
    return manifest


def pair_of(model, preprocess, folder):
    """The same of an encoder and a decoder, whose answers start with token 1."""
    places = next(tensor.shape[1] for tensor in model.inputs if tensor.name == "answer")
    signature = Signature("text-to-text", ("a",), replace(preprocess, answer=places))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = continuing.alone(model, signature, folder)
    manifest.generation["start"] = [1]
    return manifest


def greedy(model, tokens, most, end=-1, others=None):
    """The likeliest token after the likeliest token, the whole text being read each time."""
    tokens, made = list(tokens), []
    (name,) = [t.name for t in model.inputs if t.name not in (others or {})]
    places = next(t.shape[1] for t in model.inputs if t.name == name)
    while len(made) < most and len(tokens) <= places:
        row = np.zeros((1, places), np.int32)
        row[0, : len(tokens)] = tokens
        given = {name: row, **others} if others else row
        logits = keras.ops.convert_to_numpy(model(given, training=False))[0, len(tokens) - 1]
        made.append(int(logits.argmax()))
        if made[-1] == end:
            break
        tokens.append(made[-1])
    return made
