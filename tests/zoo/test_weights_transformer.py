"""The transformer gives the answers of nn.Transformer of PyTorch with the same weights, on both backends."""

import re
from functools import partial

import keras
import make_transformer
import numpy as np
import pytest
import references

import zoo

golden = partial(references.golden, make_transformer.PLACE)  # weights of the reference, and what it answers
PARTS = {"self_attn": "_self", "multihead_attn": "_cross"}
NORMS = {"encoder": ("_self", ""), "decoder": ("_self", "_cross", "")}
DENSE = {"linear1": "hidden", "linear2": "output"}


def ours(weights):
    """The same by the names of our variables."""
    found = {"words/embeddings": weights["words.weight"]}
    for name, tensor in weights.items():
        block = re.fullmatch(r"stacks\.(encoder|decoder)\.layers\.(\d+)\.(\w+)\.(.+)", name)
        if not block:
            continue
        side, number, layer, rest = block.groups()
        place = f"{side}_block{number}"
        kind = "kernel" if rest.endswith("weight") else "bias"
        if layer in DENSE:
            found[f"{place}_{DENSE[layer]}/{kind}"] = tensor.T
        elif layer in PARTS and rest.startswith("in_proj"):
            for part, own in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                found[f"{place}{PARTS[layer]}_{part}/{kind}"] = own.T
        elif layer in PARTS:
            found[f"{place}{PARTS[layer]}_mixed/{kind}"] = tensor.T
        else:
            part = NORMS[side][int(layer.removeprefix("norm")) - 1]
            found[f"{place}{part}_norm/{'gamma' if kind == 'kernel' else 'beta'}"] = tensor
    return found


def loaded(kind, weights, **more):
    width, depth, heads, hidden = make_transformer.SIZES[kind]
    sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "epsilon": 1e-5, "dropout": 0.0}
    sizes |= {"vocabulary": make_transformer.VOCABULARY, "input_shape": (11,), "places": 8}
    model = zoo.get("transformer", **{**sizes, **more})
    given = ours(weights)
    variables = {variable.path: variable for layer in model.layers for variable in layer.weights}
    assert set(variables) == set(given)
    for name, variable in variables.items():
        variable.assign(given[name])
    return model


def answers(model):
    return keras.ops.convert_to_numpy(model(make_transformer.given(), training=False))


def compare(kind, weights, expected):
    assert np.abs(expected).max() > 0.5
    assert np.abs(answers(loaded(kind, weights)) - expected).max() <= 1e-5


@pytest.mark.also_jax
@pytest.mark.parametrize("kind", list(make_transformer.SIZES))
def test_answers_are_those_of_the_reference(kind):
    compare(kind, *golden(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_transformer.SIZES))
def test_answers_are_those_of_the_reference_live(kind):
    if not references.installed("torch"):
        pytest.skip("compares with torch itself, which is not installed")
    shapes, expected = make_transformer.torch_answers(kind, seed=5)
    compare(kind, references.weights(shapes, seed=5), expected)


@pytest.mark.parametrize("change", [{"epsilon": 1e-2}, {"pad": 29}])
def test_the_comparison_would_notice_another_network(change):
    weights, expected = golden("even")
    assert np.abs(answers(loaded("even", weights, **change)) - expected).max() > 1e-3


def test_padding_and_what_comes_later_have_no_influence():
    model = loaded("odd", golden("odd")[0], input_shape=(None,), places=None)
    given = make_transformer.given()
    whole = answers(model)
    begun = model({"tokens": given["tokens"][1:2, :4], "answer": given["answer"][1:2, :3]})
    np.testing.assert_allclose(begun[0], whole[1, :3], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 10, "heads": 3}, "width must be a multiple of heads, got width=10, heads=3"),
        ({"depth": 0}, "depth and heads must be at least 1 and hidden at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("transformer", **given)
