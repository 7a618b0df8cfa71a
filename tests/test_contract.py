"""What every entry promises; the tests name no model, so a new file in `zoo/architectures` is tested by being there."""

import math
from dataclasses import replace

import keras
import numpy as np
import pytest

from zoo import registry, tasks

NAMES = registry.names()
BUILDERS = sorted({entry.family: name for name, entry in reversed(registry.entries().items())}.values())


TOKENS = [name for name in BUILDERS if "tokens" in registry.entry(name).alternatives]


@pytest.fixture(scope="module", params=[*BUILDERS, *(f"{name} of tokens" for name in TOKENS)])
def built(request):
    """Entry and tiny model, once per builder, and once more for those that take tokens too."""
    name, _, form = request.param.partition(" ")
    entry = registry.entry(name)
    if form:
        own = {**entry.tiny, "input_shape": (6,), "vocabulary": 11}
        entry = replace(entry, tiny=own, inputs=entry.alternatives, tasks=("text-classification",))
    keras.utils.set_random_seed(0)
    return entry, entry.build(**entry.tiny)


def inputs_for(model, rows=4):
    """Numbers at random; of tokens such as every vocabulary has, with padding (0) behind the end of every other row.

    Of a model of several inputs a dictionary of these.
    """
    if len(model.inputs) > 1:
        return {tensor.name: values_for(tensor, model, rows) for tensor in model.inputs}
    return values_for(model.inputs[0], model, rows)


def values_for(tensor, model, rows):
    random = np.random.default_rng(0)
    shape = (rows, *tensor.shape[1:])
    if "int" not in tensor.dtype:
        return random.standard_normal(shape).astype("float32")
    sizes = [layer.input_dim for layer in model.layers if isinstance(layer, keras.layers.Embedding)]
    tokens = random.integers(1, max(sizes), shape).astype("int32")
    tokens[1::2, shape[1] // 2 :] = 0
    return tokens


def task_for(entry):
    return tasks.get(entry.tasks[0])


def targets_for(entry, model, rows=4):
    if entry.tasks[0] == "embedding":
        return task_for(entry).encode(np.arange(rows) // 2, 0)
    if entry.tasks[0] == "language-modelling":
        return task_for(entry).encode(np.roll(inputs_for(model, rows), -1, axis=1), entry.tiny["vocabulary"])
    if entry.tasks[0] == "text-to-text":
        return task_for(entry).encode(np.roll(inputs_for(model, rows)["answer"], -1, axis=1), entry.tiny["vocabulary"])
    if entry.tasks[0] in ("image-text", "text-to-image"):
        return task_for(entry).encode(np.repeat(np.arange(rows)[:, None], 2, axis=1), 0)
    classes = entry.tiny["classes"]
    if entry.tasks[0] == "detection":  # a small, a middling and a large thing in each image of 32 pixels a side
        things = [(3, 5, 13, 12, 0), (9, 6, 26, 23, 1), (1, 0, 30, 31, classes - 1)]
        return task_for(entry).encode(np.array([things] * rows, "float32"), classes)
    if entry.tasks[0] == "speech-recognition":  # a text may have a symbol twice in a row
        return task_for(entry).encode(np.array([[1 + row % 2, 2, 2, classes - 1] for row in range(rows)]), classes)
    if entry.tasks[0] == "segmentation":
        masks = np.random.default_rng(1).integers(0, classes, (rows, *model.output_shape[1:3]))
        return task_for(entry).encode(masks.astype("uint8"), classes)
    return task_for(entry).encode(np.arange(rows) % classes, classes)


def shape_of_output(entry, shape, classes, places=None):
    """Of one row; a segmentation answers for every pixel, a detection at places, an embedding has a length, no classes."""
    if entry.tasks[0] == "detection":
        return (places, 5 + classes)
    if entry.tasks[0] == "embedding":
        return (entry.tiny["latent"],)
    if entry.tasks[0] == "image-text":
        return (2, entry.tiny["latent"])
    if entry.tasks[0] == "text-to-image":
        image = math.prod(size // 2 ** entry.tiny["poolings"] for size in shape[:2])
        return (entry.tiny["length"] - 1 + 2 * image + 3,)
    if entry.tasks[0] == "speech-recognition":
        return (places, classes)
    if entry.tasks[0] == "text-to-text":
        return (entry.tiny["places"], entry.tiny["vocabulary"])
    if entry.tasks[0] == "language-modelling":
        return (*shape, entry.tiny["vocabulary"])
    return (*shape[:2], classes) if entry.tasks[0] == "segmentation" else (classes,)


def test_inputs_are_as_declared(built):
    entry, model = built
    assert sorted(tensor.name for tensor in model.inputs) == sorted(entry.inputs)
    for tensor in model.inputs:
        declared = entry.inputs[tensor.name]
        assert tensor.dtype == declared.dtype
        assert len(tensor.shape) == 1 + len(declared.axes)


def test_image_models_take_any_size_channels_and_classes():
    seen = 0
    for name in BUILDERS:
        entry = registry.entry(name)
        if "height" not in next(iter(entry.inputs.values())).axes:
            continue
        seen += 1
        for shape in ((17, 23, 1), (33, 20, 4), (70, 70, 13)):
            asked = {"input_shape": shape, "dropout": 0.2, "classes": 7}
            asked = {argument: value for argument, value in asked.items() if argument in entry.signature}
            assert "dropout" in asked or entry.tasks[0] == "detection", name
            model = entry.build(**{**entry.tiny, **asked})
            found = np.asarray(model(inputs_for(model, 2))).shape
            assert found == (2, *shape_of_output(entry, shape, 7, model.output_shape[1])), (name, shape)
    assert seen >= 3


def test_output_is_finite_and_of_the_tasks_shape(built):
    entry, model = built
    out = np.asarray(model(inputs_for(model)))
    shape = shape_of_output(entry, entry.tiny["input_shape"], entry.tiny.get("classes"), model.output_shape[1])
    assert out.shape == (4, *shape)
    assert np.isfinite(out).all()


def test_one_step_moves_every_trainable_weight(built):
    entry, model = built
    model.compile("sgd", task_for(entry).loss_for(model, entry.recipe.get("loss", ""), 0.0), run_eagerly=True)
    before = [np.array(weight) for weight in model.trainable_weights]
    model.train_on_batch(inputs_for(model), targets_for(entry, model))
    still = [
        weight.path
        for weight, old in zip(model.trainable_weights, before, strict=True)
        if np.array_equal(np.array(weight), old)
    ]
    assert not still


def test_save_and_load_keep_the_outputs(built, tmp_path):
    _, model = built
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    x = inputs_for(model)
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
    assert loaded.name == model.name


def test_landmark_logits_gives_the_output(built):
    entry, model = built
    landmark = {"embedding": "embedding", "image-text": "pairs", "text-to-image": "figures"}.get(
        entry.tasks[0], "logits"
    )
    assert model.get_layer(landmark).output is model.output


def test_onnx_agrees(built, tmp_path):
    entry, model = built
    if "onnx" in entry.skip:
        pytest.skip(entry.skip["onnx"])
    import export

    tolerance = entry.tolerance[0]
    export.to_onnx(model, tmp_path / "model.onnx", tolerance=tolerance)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 4):
        x = inputs_for(model, rows)
        found = session.run(None, x if isinstance(x, dict) else {session.get_inputs()[0].name: x})[0]
        truth = np.asarray(model(x))
        np.testing.assert_allclose(found, truth, atol=tolerance * max(1.0, float(np.abs(truth).max())))


@pytest.mark.parametrize("name", NAMES)
def test_declared_parameters_are_true(name):
    with keras.StatelessScope(initialize_variables=False):  # a count needs no values: the largest take gigabytes
        model = registry.entry(name).build()
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == registry.entry(name).params
    del model
    keras.utils.clear_session()  # forgets the variables that wait for their values


@pytest.mark.parametrize("name", NAMES)
def test_declaration_is_complete(name):
    import importlib

    entry = registry.entry(name)
    module = importlib.import_module(entry.module)
    builder = getattr(module, entry.family)
    surname = entry.paper.split()[0].strip(",")
    assert surname in module.__doc__, f"the docstring of {entry.module} does not name its paper"
    assert entry.summary and builder.__doc__.startswith(entry.summary)
    assert set(entry.tiny) <= set(entry.signature)
    assert set(entry.arguments) <= set(entry.signature)
    assert registry.show(name).count("\n") >= 6
    for task in entry.tasks:
        assert tasks.get(task)
