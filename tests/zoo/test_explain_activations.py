import explain_check
import keras
import numpy as np
import pytest
from keras import layers

from zoo import registry
from zoo.explain.activations import attention_rollout, cam, enlarged, grad_cam, head_of
from zoo.explain.clock import Clock
from zoo.explain.sources import subject_of


def images(model, x):
    subject = subject_of(model, None, None, None, kind="image")
    return subject, subject.check(x)


def pooling(width=5, classes=3, kernel=3):
    image = keras.Input((12, 8, 2), name="image")
    x = layers.Conv2D(4, kernel, padding="same", activation="relu", name="first")(image)
    x = layers.Conv2D(width, kernel, padding="same", strides=2, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dropout(0.3, name="drop")(x)
    return explain_check.weighted(keras.Model(image, layers.Dense(classes, name="logits")(x), name="pooling"))


def test_cam_is_the_weighted_sum_of_maps_and_grad_cam_its_positive_part():
    model = pooling()
    subject, raw = images(model, np.random.default_rng(0).normal(size=(4, 12, 8, 2)).astype("float32"))
    targets = np.array([0, 1, 2, 1])
    found, gradient = (method(subject, raw, targets, clock=Clock()) for method in (cam, grad_cam))
    inner = keras.Model(model.inputs[0], model.get_layer("second").output)
    maps = keras.ops.convert_to_numpy(inner(raw["image"]))
    kernel, bias = model.get_layer("logits").get_weights()
    coarse = np.stack([maps[row] @ kernel[:, target] for row, target in enumerate(targets)])
    np.testing.assert_allclose(found.values, enlarged(coarse, (12, 8)), atol=1e-5)
    np.testing.assert_allclose(gradient.values, enlarged(np.maximum(coarse, 0), (12, 8)) / 24, atol=1e-6)
    logits = keras.ops.convert_to_numpy(model(raw["image"]))[range(4), targets]
    np.testing.assert_allclose(coarse.mean(axis=(1, 2)) + bias[targets], logits, atol=1e-5)
    assert found.settings["head_error"] < 1e-5 and found.settings["layer"] == gradient.settings["layer"] == "second"
    assert found.base is None and found.values.min() < 0 <= gradient.values.min()


def test_grad_cam_weighs_maps_by_their_mean_gradient():
    inputs = keras.Input((4, 4, 1), name="image")
    maps = layers.Conv2D(2, 1, use_bias=False, name="maps")(inputs)
    model = keras.Model(inputs, layers.Dense(1, use_bias=False, name="logits")(layers.Flatten()(maps)))
    random = np.random.default_rng(0)
    kernel, last = random.normal(size=(1, 1, 1, 2)), random.normal(size=(32, 1))
    model.set_weights([kernel, last])
    x = random.normal(size=(1, 4, 4, 1)).astype("float32")
    subject, raw = images(model, x)
    found = grad_cam(subject, raw, np.array([0]), clock=Clock())
    slopes = last.reshape(4, 4, 2)
    expected = np.maximum((slopes.mean(axis=(0, 1)) * x[0] * kernel[0, 0, 0]).sum(axis=-1), 0)
    np.testing.assert_allclose(found.values[0], expected, atol=1e-6)


def test_a_planted_spot_is_where_the_maps_are_largest():
    model = pooling(width=1, classes=2)
    first = np.zeros((3, 3, 2, 4), np.float32)
    first[1, 1, 0, 0] = 1  # one channel passes the first colour on
    second = np.zeros((3, 3, 4, 1), np.float32)
    second[:, :, 0] = 1 / 9
    model.set_weights([first, np.zeros(4), second, np.zeros(1), np.array([[4.0, -4.0]]), np.zeros(2)])
    x = np.full((2, 12, 8, 2), 0.02, np.float32)
    x[0, 8:10, 2:4, 0] = 5
    x[1, 2:4, 5:7, 0] = 5
    subject, raw = images(model, x)
    for method in (cam, grad_cam):
        values = method(subject, raw, np.array([0, 0]), clock=Clock()).values
        for row, (rows, columns) in enumerate(((slice(6, 12), slice(0, 6)), (slice(0, 6), slice(3, 8)))):
            place = np.unravel_index(values[row].argmax(), (12, 8))
            assert place[0] in range(12)[rows] and place[1] in range(8)[columns]
            assert values[row, rows, columns].sum() > 0.8 * values[row].sum()


def test_grad_cam_takes_any_layer_by_name_and_the_last_with_places_by_itself():
    model = registry.get("lenet", input_shape=(8, 8, 1), width=(2, 3, 6, 5), classes=3)
    subject, raw = images(model, np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype("float32"))
    found = grad_cam(subject, raw, np.array([1]), clock=Clock())
    assert found.values.shape == (1, 8, 8)
    assert found.settings["layer"] == "stage1_conv" and found.settings["cells"] == [4, 4]
    other = grad_cam(subject, raw, np.array([1]), clock=Clock(), layer="stage0_pool")
    assert other.settings["layer"] == "stage0_pool"
    with pytest.raises(ValueError, match=r"'lenet' has no layer 'stage9_conv'\. Did you mean"):
        grad_cam(subject, raw, np.array([1]), clock=Clock(), layer="stage9_conv")
    with pytest.raises(ValueError, match="layer 'hidden0' of 'lenet' gives no maps"):
        grad_cam(subject, raw, np.array([1]), clock=Clock(), layer="hidden0")


def test_models_without_maps_are_refused():
    model = registry.get("logistic_regression", input_shape=(8, 8, 1), classes=3)
    subject, raw = images(model, np.zeros((1, 8, 8, 1), "float32"))
    with pytest.raises(ValueError, match="needs a layer that gives maps of more than one place, and 'logistic_reg"):
        grad_cam(subject, raw, np.array([0]), clock=Clock())
    with pytest.raises(ValueError, match=r"'logistic_regression' ends in 'logits' behind 'flatten' \(Flatten\)"):
        cam(subject, raw, np.array([0]), clock=Clock())
    with pytest.raises(ValueError, match="attention_rollout needs attention layers that give their scores"):
        attention_rollout(subject, raw, np.array([0]), clock=Clock())


def test_the_head_is_found_inside_other_models_and_without_a_dense_layer():
    inner = pooling()
    outer_input = keras.Input((12, 8, 2))
    nested = keras.Model(outer_input, layers.Softmax()(inner(outer_input)))
    head = head_of(nested)
    assert head.path == "pooling/" and head.pool.name == "features" and head.dense.name == "logits"
    image = keras.Input((6, 6, 1))
    bare = keras.Model(image, layers.GlobalAveragePooling2D(keepdims=True)(layers.Conv2D(3, 3, name="scores")(image)))
    flat = keras.Model(image, layers.Flatten()(bare.output), name="bare")
    explain_check.weighted(flat)
    subject, raw = images(flat, np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype("float32"))
    found = cam(subject, raw, np.array([0, 2]), clock=Clock())
    assert head_of(flat).dense is None and found.settings["head_error"] < 1e-6
    two = keras.Model(
        image, layers.Dense(2)(layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D()(image)))
    )
    with pytest.raises(ValueError, match="global average pooling and one dense layer at the end"):
        head_of(two)


def test_a_series_has_a_map_over_time():
    series = keras.Input((10, 3), name="series")
    x = layers.Conv1D(4, 3, padding="same", activation="relu", name="conv")(series)
    model = explain_check.weighted(keras.Model(series, layers.Dense(2)(layers.GlobalAveragePooling1D()(x))))
    subject = subject_of(model, None, None, None, kind="series")
    raw = subject.check(np.random.default_rng(0).normal(size=(2, 10, 3)).astype("float32"))
    found = [method(subject, raw, np.array([0, 1]), clock=Clock()).values for method in (cam, grad_cam)]
    assert found[0].shape == (2, 10)
    np.testing.assert_allclose(np.maximum(found[0], 0) / 10, found[1], atol=1e-6)


def transformer(read, length=6, depth=2):
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = layers.Embedding(11, 4, name="embedding")(tokens)
    for place in range(depth):
        x = layers.Add()([x, layers.MultiHeadAttention(2, 3, name=f"attention{place}")(x, x)])
        x = layers.LayerNormalization()(x)
    x = read(x)
    return explain_check.weighted(keras.Model(tokens, layers.Dense(3, name="logits")(x)), scale=3)


def scores_of(model, tokens):
    """Mean scores over the heads of each attention layer, by calling the layers one after the other."""
    x = model.get_layer("embedding")(tokens)
    found = []
    sums = [layer for layer in model.layers if isinstance(layer, layers.Add)]
    norms = [layer for layer in model.layers if isinstance(layer, layers.LayerNormalization)]
    for place, (add, norm) in enumerate(zip(sums, norms, strict=True)):
        made, scores = model.get_layer(f"attention{place}")(x, x, return_attention_scores=True)
        found.append(keras.ops.convert_to_numpy(scores).mean(axis=1))
        x = norm(add([x, made]))
    return found


@pytest.mark.parametrize("first", [True, False])
def test_rollout_multiplies_mixed_scores_and_reads_what_the_answer_reads(first):
    model = transformer((lambda x: x[:, 0]) if first else layers.GlobalAveragePooling1D())
    subject = subject_of(model, None, None, None, kind="text")
    raw = subject.check(np.random.default_rng(0).integers(0, 11, (3, 6)).astype("int32"))
    found = attention_rollout(subject, raw, np.array([0, 1, 2]), clock=Clock())
    one, two = (0.5 * scores + 0.5 * np.eye(6) for scores in scores_of(model, raw["tokens"]))
    product = two @ one
    np.testing.assert_allclose(found.values, product[:, 0] if first else product.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.values.sum(axis=1), 1, atol=1e-6)
    assert found.settings["positions_read"] == (1 if first else 6) and found.settings["layers"] == 2
    assert not any("call" in vars(layer) for layer in model.layers)


def test_rollout_gives_nothing_to_padding():
    subject = subject_of(explain_check.token_model(), None, None, None, kind="text")
    raw = subject.check(explain_check.rows()[1])
    found = attention_rollout(subject, raw, np.array([0, 1, 2]), clock=Clock()).values
    assert (found[0, 4:] == 0).all() and (found[0, :4] > 0).all() and (found[1:] > 0).all()


def test_rollout_places_the_patches_of_an_image():
    image = keras.Input((8, 12, 1), name="image")
    x = layers.Reshape((6, 5))(layers.Conv2D(5, 4, strides=4)(image))  # 2 x 3 patches
    x = layers.Add()([x, layers.MultiHeadAttention(1, 4)(x, x)])
    model = explain_check.weighted(keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling1D()(x))), scale=3)
    subject, raw = images(model, np.random.default_rng(0).normal(size=(2, 8, 12, 1)).astype("float32"))
    found = attention_rollout(subject, raw, np.array([0, 1]), clock=Clock())
    assert found.values.shape == (2, 8, 12) and found.values.min() > 0
    assert found.settings["positions"] == 6


def test_rollout_refuses_attention_of_different_lengths():
    series = keras.Input((8, 3), name="series")
    x = layers.MultiHeadAttention(1, 3)(series, series)
    x = layers.MaxPooling1D(2)(x)
    x = layers.MultiHeadAttention(1, 3)(x, x)
    model = keras.Model(series, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)), name="pyramid")
    subject = subject_of(model, None, None, None, kind="series")
    with pytest.raises(ValueError, match="layers of one length, and 'pyramid' has positions of 4, 8"):
        attention_rollout(subject, subject.check(np.zeros((1, 8, 3), "float32")), np.array([0]), clock=Clock())


def test_maps_are_enlarged_between_the_middles_of_their_cells():
    found = enlarged(np.array([[0.0, 1.0]]), (4,))
    np.testing.assert_allclose(found, [[0, 0.25, 0.75, 1]])
    maps = np.random.default_rng(0).random((2, 3, 5))
    np.testing.assert_allclose(enlarged(maps, (3, 5)), maps)
    np.testing.assert_allclose(enlarged(np.ones((1, 2, 2)), (7, 9)), np.ones((1, 7, 9)))
