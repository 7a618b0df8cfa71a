"""Ranges: extremes and means against numpy, and the three ways of cutting a range against their definitions."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export import ExportError, calibration
from export.calibration import IMAGES, clip, observe


def doubled(shape=("batch", 3, 4, 5)):
    """`y` = 2 `x`, and `z` the root of `y`."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"], "twice/Add"),
        helper.make_node("Sqrt", ["y"], ["z"], "root/Sqrt"),
    ]
    edges = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in "xz"]
    return helper.make_model(
        helper.make_graph(nodes, "graph", *edges), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )


def histogram(values, limits):
    return np.histogram(values[values != 0], calibration.BINS, limits)[0]


def squared_error(values, low, high):
    step = (high - low) / 255
    zero = round(-low / step)
    return np.square((np.clip(np.round(values / step) + zero, 0, 255) - zero) * step - values).mean()


@pytest.mark.parametrize("opset", [13, 18])
def test_extremes_and_means_are_those_of_all_rows(opset):
    x = np.random.default_rng(0).uniform(1, 3, (70, 3, 4, 5)).astype(np.float32)  # three batches, the last one short
    x[69, 1, 2, 3] = 7
    model = doubled()
    model.opset_import[0].version = opset
    found = observe(model, {"x": IMAGES, "y": None}, {"x": x})["minmax"]
    assert found["y"].mean is None
    assert (found["x"].low, found["x"].high) == (0, 7)  # a range holds 0
    assert (found["y"].low, found["y"].high) == (0, 14)
    np.testing.assert_allclose(found["x"].mean, x.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)


def test_every_method_reads_the_same_rows():
    x = np.random.default_rng(0).laplace(size=(40, 3, 4, 5)).astype(np.float32)
    found = observe(doubled(), {"x": None}, {"x": x}, methods=("minmax", "percentile", "mse", "entropy"))
    limits = (found["minmax"]["x"].low, found["minmax"]["x"].high)
    np.testing.assert_allclose(limits, (x.min(), x.max()))
    for method in ("percentile", "mse", "entropy"):
        seen = found[method]["x"]
        np.testing.assert_allclose((seen.low, seen.high), clip(histogram(x, limits), limits, method), rtol=1e-5)


@pytest.mark.parametrize("positive", [True, False])
def test_percentile_is_that_of_the_values_that_are_not_zero(positive):
    values = np.random.default_rng(0).standard_normal(400_000)
    values = np.maximum(values, 0) if positive else values
    limits = (min(0.0, float(values.min())), float(values.max()))
    low, high = clip(histogram(values, limits), limits, "percentile")
    used = values[values != 0]
    wanted = (0.0, np.percentile(used, 99.99)) if positive else np.percentile(used, [0.005, 99.995])
    np.testing.assert_allclose((low, high), wanted, atol=2 * (limits[1] - limits[0]) / calibration.BINS)


@pytest.mark.parametrize("positive", [True, False])
def test_mse_is_the_least_of_all_ranges(positive):
    values = np.random.default_rng(0).standard_normal(1_000_000)
    values[0] = 10  # alone out there
    values = np.abs(values) if positive else values
    limits = (min(0.0, float(values.min())), float(values.max()))
    chosen = squared_error(values, *clip(histogram(values, limits), limits, "mse"))
    reach = np.linspace(0.1, 1, 60) * max(np.abs(limits))
    best = min(squared_error(values, max(limits[0], -r), min(limits[1], r)) for r in reach)
    assert chosen <= 1.02 * best
    assert chosen < 0.7 * squared_error(values, *limits)


def test_nothing_is_cut_where_256_levels_hold_every_value():
    values = np.tile(np.arange(-100, 156), 100).astype(np.float64)
    limits = (-100.0, 155.0)
    assert clip(histogram(values, limits), limits, "mse") == limits


def test_entropy_cuts_outliers_and_keeps_a_uniform_range():
    random = np.random.default_rng(0)
    values = np.abs(random.standard_normal(200_000))
    values[:20] = 60
    low, high = clip(histogram(values, (0.0, 60.0)), (0.0, 60.0), "entropy")
    assert low == 0 and 3 < high < 12
    even = random.uniform(0, 1, 200_000)
    assert clip(histogram(even, (0.0, 1.0)), (0.0, 1.0), "entropy") == (0, 1)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_a_tensor_of_zeros_keeps_its_empty_range(method):
    assert clip(np.zeros(calibration.BINS, np.int64), (0.0, 0.0), method) == (0, 0)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="'mse', got 'median'"):
        clip(np.ones(8, np.int64), (0.0, 1.0), "median")


def test_values_that_are_no_numbers_are_named():
    rows = {"x": np.ones((3, 3, 4, 5), np.float32)}
    rows["x"][2, 0, 0, 0] = -1  # whose root is none
    with pytest.raises(ExportError, match="NaN or infinity in 'z'"):
        observe(doubled(), {"y": IMAGES, "z": None}, rows)


def test_the_model_that_is_calibrated_stays_as_it_was():
    model = doubled()
    before = model.SerializeToString()
    observe(model, {"y": IMAGES}, {"x": np.ones((1, 3, 4, 5), np.float32)}, methods=("mse",))
    assert model.SerializeToString() == before
    onnx.checker.check_model(model)
