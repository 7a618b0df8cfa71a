"""Low-rank adapters: what learns and what stands still, merging, and the file beside the run."""

import sys
from dataclasses import replace

import keras
import numpy as np
import pytest

import zoo
from zoo import data
from zoo.data import Split
from zoo.recipes import Recipe
from zoo.training import lora

SIZES = {"width": 8, "depth": 2, "heads": 2, "dropout": 0.0}
RECIPE = Recipe("bert_tiny", "spam", lora=2, lora_alpha=6.0)


def network(**more):
    keras.utils.set_random_seed(1)
    return zoo.get("bert_tiny", vocabulary=30, length=9, input_shape=(9,), classes=2, **SIZES, **more)


def tokens(rows=4):
    found = np.random.RandomState(0).randint(1, 30, (rows, 9)).astype("int32")
    found[1, 5:] = 0
    return found


def begun(model, recipe=RECIPE):
    """Adapters that are not 0 any more."""
    method = lora.Adapters()
    method.check(model, None, recipe)
    stand_in = method.begin(model, None, recipe)
    random = np.random.RandomState(2)
    for variable in stand_in.trainable_variables:
        variable.assign(random.normal(0, 0.3, variable.shape))
    return method, stand_in


def test_a_network_begins_as_it_was_and_only_adapters_and_head_learn():
    model = network()
    method = lora.Adapters()
    method.check(model, None, RECIPE)
    stand_in = method.begin(model, None, RECIPE)
    np.testing.assert_allclose(stand_in(tokens()), model(tokens()), atol=1e-6)
    names = {variable.path for variable in stand_in.trainable_variables}
    adapters = {f"block{b}_{part}/lora_kernel_{end}" for b in (0, 1) for part in ("query", "value") for end in "ab"}
    assert names == adapters | {f"{layer}/{own}" for layer in ("features", "logits") for own in ("kernel", "bias")}
    small = 4 * 2 * (8 + 8)
    head = 8 * 8 + 8 + 8 * 2 + 2
    assert f"{small:,} parameters of adapters and {head:,} of features, logits learn" in method.told[0]
    assert f"{8 * (small + head) / 2**20:.2f} MiB and not {8 * model.count_params() / 2**20:.2f}" in method.told[0]


def test_merged_and_unmerged_answer_alike():
    model = network()
    before = {layer.name: layer.get_weights() for layer in model.layers}
    method, stand_in = begun(model)
    answers = keras.ops.convert_to_numpy(stand_in(tokens()))
    assert np.abs(answers - keras.ops.convert_to_numpy(model(tokens()))).max() > 0.01
    method.finish()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(tokens())), answers, atol=1e-5)
    assert all(weight.trainable for weight in model.weights if "seed" not in weight.path)
    for layer in model.layers:
        assert [weight.shape for weight in layer.get_weights()] == [weight.shape for weight in before[layer.name]]
        changed = [not np.array_equal(a, b) for a, b in zip(layer.get_weights(), before[layer.name], strict=True)]
        if layer.name.endswith(("query", "value")):
            assert changed == [True, False]
            assert np.linalg.matrix_rank(layer.get_weights()[0] - before[layer.name][0], tol=1e-5) == 2
        else:
            assert all(changed) == (layer.name in ("features", "logits")) or not changed


def test_what_was_learnt_is_a_file_that_goes_onto_the_same_weights(tmp_path):
    model, again = network(), network()
    method, _ = begun(model)
    method.finish()
    method.save(tmp_path)
    lora.apply(again, tmp_path)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(again(tokens())), keras.ops.convert_to_numpy(model(tokens())), atol=1e-6
    )
    with pytest.raises(ValueError, match="hold 'block0_query/down'"):
        lora.apply(zoo.get("mlp", input_shape=(4,), classes=2), tmp_path / lora.FILE)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as adapters"):
        lora.apply(again, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_layers": ("*_nothing",)}, r"fits no dense layer of 'bert'; its dense layers are block0_hidden"),
        ({"lora": 9}, "more than the smaller side of 'block0_query', 8; take less"),
        ({"freeze": "block0"}, "lora keeps all but its adapters still, and freeze='block0'"),
    ],
)
def test_what_cannot_be_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        lora.Adapters().check(network(), None, replace(RECIPE, **settings))
    with pytest.raises(ValueError, match="lora must be at least 1, or 0"):
        replace(RECIPE, lora=-1)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
def test_a_run_learns_by_adapters_and_is_a_plain_run_after(tmp_path, capsys):
    import tensorflow as tf

    splits = data.load("spam", tokenizer="wordpiece:120", tokens=10)
    parts = {name: Split({"text": part.x["text"][:48]}, part.y[:48]) for name, part in splits.splits.items()}
    splits = replace(splits, **parts)
    tf.config.run_functions_eagerly(True)
    try:
        base = zoo.train("bert_tiny", splits, out=tmp_path / "base", epochs=1, quiet=True, **SIZES)
        run = zoo.train(
            "bert_tiny", splits, out=tmp_path / "small", weights=str(tmp_path / "base" / "model.keras"), epochs=1, lora=2,
            lora_layers="*query,*_mixed", **SIZES,
        )  # fmt: skip
    finally:
        tf.config.run_functions_eagerly(False)
    assert "LoRA of rank 2 beside 4 kernels" in capsys.readouterr().out
    assert run.recipe.lora_layers == ("*query", "*_mixed") and zoo.load(run.folder).recipe == run.recipe
    moved = {
        layer.name
        for layer, other in zip(run.model.layers, base.model.layers, strict=True)
        if any(not np.array_equal(a, b) for a, b in zip(layer.get_weights(), other.get_weights(), strict=True))
    }
    assert moved == {"block0_query", "block0_mixed", "block1_query", "block1_mixed", "features", "logits"}
    lora.apply(base.model, run.folder)
    rows = splits.signature.inputs({"text": splits.test.x["text"][:4]})
    np.testing.assert_allclose(base.model.predict_on_batch(rows), run.model.predict_on_batch(rows), atol=1e-6)


@pytest.mark.slow
def test_adapters_answer_as_peft_has_them(monkeypatch):
    """The same kernels and adapters in Hugging Face's library give the same answers, beside the kernels and in them."""
    monkeypatch.setitem(sys.modules, "torchvision", None)  # which they need not, and which may be of another torch
    torch = pytest.importorskip("torch", reason="pip install torch")
    pytest.importorskip("transformers", reason="pip install transformers")
    peft = pytest.importorskip("peft", reason="pip install peft")

    model = network(separator=-1)
    method, stand_in = begun(model)
    rows = tokens()

    class Block(torch.nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.parts = torch.nn.ModuleDict()
            for layer in layers:
                kernel, bias = layer.get_weights()
                own = torch.nn.Linear(*kernel.shape)
                own.weight.data, own.bias.data = torch.tensor(kernel.T), torch.tensor(bias)
                self.parts[layer.name] = own

        def forward(self, x):
            return {name: part(x) for name, part in self.parts.items()}

    layers = [layer for layer in model.layers if layer.name in ("block0_query", "block0_key", "block0_value")]
    torch_model = peft.get_peft_model(
        Block(layers),
        peft.LoraConfig(r=2, lora_alpha=6, target_modules=["block0_query", "block0_value"], lora_dropout=0.0),
    )
    for name in ("block0_query", "block0_value"):
        own = next(module for key, module in torch_model.named_modules() if key.endswith(name))
        layer = stand_in.get_layer(name)
        own.lora_A["default"].weight.data = torch.tensor(keras.ops.convert_to_numpy(layer.lora_kernel_a).T)
        own.lora_B["default"].weight.data = torch.tensor(keras.ops.convert_to_numpy(layer.lora_kernel_b).T)
    inputs = np.random.RandomState(3).normal(size=(5, 8)).astype("float32")
    with torch.no_grad():
        theirs = {name: value.numpy() for name, value in torch_model(torch.tensor(inputs)).items()}
        merged = {name: value.numpy() for name, value in torch_model.merge_and_unload()(torch.tensor(inputs)).items()}
    beside = {name: keras.ops.convert_to_numpy(stand_in.get_layer(name)(inputs)) for name in theirs}
    method.finish()
    inside = {name: keras.ops.convert_to_numpy(model.get_layer(name)(inputs)) for name in theirs}
    for name, own in theirs.items():
        np.testing.assert_allclose(beside[name], own, atol=1e-5)
        np.testing.assert_allclose(inside[name], merged[name], atol=1e-5)
        np.testing.assert_allclose(inside[name], own, atol=1e-5)
    assert np.isfinite(keras.ops.convert_to_numpy(model(rows))).all()
