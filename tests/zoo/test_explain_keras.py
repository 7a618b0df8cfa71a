import numpy as np
import pytest

from zoo import registry
from zoo.data.signature import ImagePreprocess, Signature, TablePreprocess
from zoo.explain import explain


def test_keras_model_through_its_signature():
    step = TablePreprocess(("a", "b"), (1.0, 2.0), (2.0, 4.0))
    signature = Signature("regression", ("price",), step, target_mean=100.0, target_std=10.0)
    model = registry.get("logistic_regression", input_shape=(2,), classes=1)
    model.set_weights([np.array([[3.0], [-1.0]]), np.array([0.5])])
    found = explain(model, np.array([[5, 6], [np.nan, 2]], np.float32), signature=signature)
    np.testing.assert_allclose(found.attributions, [[60, -10], [0, 0]], atol=1e-3)  # 10 * weight * (x - mean) / std
    np.testing.assert_allclose(found.base, [105, 105], atol=1e-3)
    assert found.settings["background"] == "training mean of the signature"


def test_keras_image_model_and_its_mean_colour():
    signature = Signature("image-classification", ("a", "b"), ImagePreprocess(8, 8, (100.0,), (50.0,)))
    model = registry.get("logistic_regression", input_shape=(8, 8, 1), classes=2)
    kernel = np.zeros((64, 2))
    kernel[9, 0], kernel[9, 1] = -1, 1
    model.set_weights([kernel, np.zeros(2)])
    image = np.full((1, 8, 8, 1), 130, np.uint8)
    found = explain(model, image, signature=signature, target="b")
    expected = 1 / (1 + np.exp(-2 * 30 / 50)) - 0.5
    assert found.attributions[0, 1, 1, 0] == pytest.approx(expected, abs=1e-5)
    assert np.delete(found.attributions.ravel(), 9) == pytest.approx(0, abs=1e-6)
    assert found.additivity_error < 1e-5


def test_an_exported_model_is_explained_alike_from_its_bundle(tmp_path):
    import export
    from zoo.data import load

    data = load("diabetes")
    model = registry.get("mlp", input_shape=(10,), classes=1, width=(6,))
    with pytest.warns(UserWarning, match="no better than always the same answer"):  # it was never trained
        bundle = export.to_bundle(model, tmp_path / "store" / "diabetes" / "1", data=data, int8=False)
    rows = {"numbers": data.test.x["numbers"][:2]}
    background = {"numbers": data.train.x["numbers"][:100]}
    ours = explain(bundle, rows)
    keras = explain(model, rows, signature=data.signature, background=background)
    np.testing.assert_allclose(ours.attributions, keras.attributions, atol=1e-2)
    assert np.abs(ours.attributions).max() > 1 and ours.additivity_error <= 1e-3
    assert ours.background_sha256 == keras.background_sha256


def small(*names, **settings):
    """A model whose weights are drawn from a seed: an input, then the layers given as functions."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input(settings.pop("shape"), dtype=settings.pop("dtype", "float32"), name="inputs")
    x = inputs
    for layer in names:
        x = layer(x)
    return keras.Model(inputs, x, name="small")


def test_tokens_of_a_model_without_signature():
    from keras import layers

    model = small(layers.Embedding(20, 4), layers.GlobalAveragePooling1D(), layers.Dense(3), shape=(9,), dtype="int32")
    tokens = np.random.default_rng(0).integers(1, 20, (2, 9)).astype(np.int32)
    tokens[:, 7:] = 0
    exactly = explain(model, tokens, kind="text")
    assert exactly.method == "exact" and exactly.axes == ("batch", "tokens") and "7 tokens" in exactly.why
    assert exactly.task == "classification" and exactly.labels == ("0", "1", "2")
    logits = model.predict_on_batch(tokens)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(exactly.prediction, expected.max(axis=1), rtol=1e-5)
    assert (exactly.attributions[:, 7:] == 0).all()
    fast = explain(model, tokens, "integrated_gradients", kind="text", quality=False)
    np.testing.assert_allclose(fast.attributions, exactly.attributions, atol=2e-3)


def test_a_series_model_and_its_gradients_agree_where_it_is_linear():
    from keras import layers

    model = small(layers.Flatten(), layers.Dense(1), shape=(12, 2))
    series = np.random.default_rng(0).normal(size=(2, 12, 2)).astype(np.float32)
    background = np.zeros((1, 12, 2), np.float32)
    weights = model.get_weights()[0].reshape(12, 2)
    for method in ("auto", "integrated_gradients", "deep", "expected_gradients"):
        found = explain(model, series, method, kind="series", background=background, quality=False)
        np.testing.assert_allclose(found.attributions, weights * series, atol=1e-5)
        assert found.axes == ("batch", "time", "channels") and found.task == "regression"


def test_a_graph_model_takes_nodes_and_adjacency():
    import keras
    from keras import layers, ops

    nodes, adjacency = keras.Input((5, 2), name="nodes"), keras.Input((5, 5), name="adjacency")
    keras.utils.set_random_seed(1)
    mixed = layers.Dense(4, activation="relu")(ops.matmul(adjacency, nodes))
    model = keras.Model([nodes, adjacency], layers.Dense(2)(ops.mean(mixed, axis=1)), name="graph")
    links = np.zeros((1, 5, 5), np.float32)
    links[0, [0, 1, 2, 3], [1, 0, 3, 2]] = 1  # node 4 is alone
    raw = {"nodes": np.random.default_rng(0).normal(size=(1, 5, 2)).astype(np.float32), "adjacency": links}
    found = explain(model, raw, kind="graph")
    assert found.axes == ("batch", "nodes") and found.additivity_error < 1e-6
    assert found.attributions[0, 4] == pytest.approx(0, abs=1e-7) and np.abs(found.attributions[0, :4]).min() > 1e-4
    fast = explain(model, raw, "integrated_gradients", kind="graph")
    assert fast.axes == ("batch", "nodes") and fast.attributions.shape == (1, 5)
    assert fast.faithfulness["deletion"] <= fast.faithfulness["deletion_random"]


def test_a_model_that_ends_in_a_softmax_is_read_as_it_is():
    from keras import layers

    model = small(layers.Flatten(), layers.Dense(3, activation="softmax"), shape=(2, 2, 1))
    image = np.random.default_rng(0).normal(size=(1, 2, 2, 1)).astype(np.float32)
    found = explain(model, image, kind="image", background=np.zeros((1, 2, 2, 1)))
    assert found.prediction[0] == pytest.approx(model.predict_on_batch(image).max(), rel=1e-6)


def test_large_image_models_are_explained_by_gradients(monkeypatch):
    from zoo.explain import methods

    signature = Signature("image-classification", ("a", "b", "c"), ImagePreprocess(12, 12, (100.0,), (50.0,)))
    model = registry.get("lenet", input_shape=(12, 12, 1), width=(2, 3, 6, 5), classes=3)
    images = np.random.default_rng(0).integers(0, 255, (2, 12, 12, 1), dtype=np.uint8)
    assert explain(model, images, signature=signature, quality=False).method == "partition"
    monkeypatch.setattr(methods, "HEAVY", 100)
    found = explain(model, images, signature=signature)
    assert found.method == "expected_gradients" and "make hundreds of predictions slow" in found.why
    assert found.additivity_error < 1e-3 and found.faithfulness is not None


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("attention_rollout", "attention_rollout needs attention layers, and 'logistic_regression' has none"),
        ("grad_cam", "grad_cam needs convolutions, and 'logistic_regression' has none; methods for .* are auto, exact"),
    ],
)
def test_methods_that_need_other_layers(method, message):
    signature = Signature("image-classification", ("a", "b"), ImagePreprocess(4, 4, (100.0,), (50.0,)))
    model = registry.get("logistic_regression", input_shape=(4, 4, 1), classes=2)
    with pytest.raises(ValueError, match=message):
        explain(model, np.zeros((1, 4, 4, 1), np.uint8), method, signature=signature)


@pytest.mark.parametrize(
    "method", ["integrated_gradients", "expected_gradients", "gradient_times_input", "deep", "exact"]
)
def test_a_background_that_the_model_cannot_judge_is_refused(method):
    from keras import layers

    model = small(layers.Dense(3), shape=(2,))
    unknown = np.full((4, 2), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"NaN or infinity .*; give a background that (it|the model) can judge"):
        explain(model, np.ones((1, 2)), method, kind="table", background=unknown)


def test_a_fixed_number_of_evaluations_is_not_set():
    signature = Signature("regression", ("y",), TablePreprocess(("a", "b"), (0.0, 0.0), (1.0, 1.0)))
    model = registry.get("logistic_regression", input_shape=(2,), classes=1)
    with pytest.raises(ValueError, match="gradient_times_input takes no max_evals"):
        explain(model, np.ones((1, 2)), "gradient_times_input", signature=signature, max_evals=5)
    assert explain(model, np.ones((1, 2)), "expected_gradients", signature=signature, max_evals=8).calls < 40


def squeezed(x):
    """Squeeze and excitation: each channel times a weight that all places decide together."""
    from keras import layers

    weights = layers.Dense(x.shape[-1], activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    return layers.Multiply()([x, layers.Reshape((1, 1, x.shape[-1]))(weights)])


def attended(x):
    from keras import layers

    tokens = layers.Reshape((-1, x.shape[-1]))(x)
    return layers.MultiHeadAttention(1, 3)(tokens, tokens)


@pytest.mark.parametrize("block", ["depthwise", "relu6", "gelu", "swish", "squeezed", "attended", "recurrent"])
@pytest.mark.parametrize("heavy", [False, True])
def test_auto_answers_where_the_usual_gradient_explainers_fail(block, heavy, monkeypatch):
    from keras import layers

    from zoo.explain import methods

    blocks = {
        "depthwise": layers.DepthwiseConv2D(3, activation="relu"),
        "relu6": layers.ReLU(6),
        "gelu": layers.Activation("gelu"),
        "swish": layers.Activation("swish"),
        "squeezed": squeezed,
        "attended": attended,
        "recurrent": lambda x: layers.LSTM(3)(layers.Reshape((-1, x.shape[-1]))(x)),
    }
    model = small(layers.Conv2D(3, 3, strides=2), blocks[block], layers.Flatten(), layers.Dense(2), shape=(12, 12, 1))
    images = np.random.default_rng(0).normal(size=(1, 12, 12, 1)).astype(np.float32)
    monkeypatch.setattr(methods, "HEAVY", 0 if heavy else 1_000_000)
    found = explain(model, images, kind="image", background=np.zeros((2, 12, 12, 1), np.float32), quality=False)
    assert found.method == ("expected_gradients" if heavy else "partition")
    assert found.additivity_error <= 1e-3 and np.isfinite(found.attributions).all()
    assert np.abs(found.attributions).max() > 0


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients", "deep"])
def test_gradients_without_time_say_that_they_are_incomplete(method):
    from keras import layers

    model = small(layers.Conv2D(2, 3, activation="tanh"), layers.Flatten(), layers.Dense(2), shape=(9, 9, 1))
    random = np.random.default_rng(0)
    images, background = (random.normal(0, 3, (rows, 9, 9, 1)).astype(np.float32) for rows in (2, 60))
    found = explain(model, images, method, kind="image", background=background, seconds=0)
    missed = np.abs(found.base + found.attributions.sum(axis=(1, 2, 3)) - found.prediction).max()
    assert found.additivity_error == pytest.approx(missed, abs=1e-6) and np.isfinite(found.attributions).all()
    assert found.faithfulness is None and found.stability is None


def test_a_subject_brings_its_own_background_and_kind():
    from zoo.explain import Subject

    subject = Subject.of_function(lambda x: x.sum(axis=1), "table", background=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="a Subject has its own background; give background= where it is made"):
        explain(subject, np.ones((1, 2)), background=np.zeros((1, 2)))
    signature = Signature("regression", ("y",), TablePreprocess(("a", "b"), (0.0, 0.0), (1.0, 1.0)))
    model = registry.get("logistic_regression", input_shape=(2,), classes=1)
    with pytest.raises(ValueError, match="takes inputs of kind 'table', got kind='image'; leave it out"):
        explain(model, np.ones((1, 2)), signature=signature, kind="image")


def test_a_run_is_explained_against_its_training_rows():
    from types import SimpleNamespace

    from zoo.data import load

    data = load("diabetes")
    model = registry.get("logistic_regression", input_shape=(10,), classes=1)
    run = SimpleNamespace(model=model, signature=data.signature, data=data)
    found = explain(run, data.test.x["numbers"][:1], quality=False)
    rows = data.train.x["numbers"][:100]
    assert found.base[0] == pytest.approx(explain(run, rows, "occlusion", quality=False).prediction.mean(), rel=1e-4)
    assert found.settings["background"] == "rows of the training split"
    bare = SimpleNamespace(model=model, signature=data.signature, data=None)
    assert explain(bare, rows[:1], quality=False).settings["background"] == "training mean of the signature"
