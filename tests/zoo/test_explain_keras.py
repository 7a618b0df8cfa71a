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
