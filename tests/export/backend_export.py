"""Run by test_export_backends.py in a process of its own: exports every builder and every layer kind on one backend."""

import dataclasses
import json
import sys
from pathlib import Path

import keras
import numpy as np
from kinds import KINDS

import export
import export.convert
from export import parity
from zoo import data, registry
from zoo.recipes import Recipe
from zoo.training import fit


def builders(folder):
    """Largest difference of each builder's file from Keras, by policy; and the forms in its bundle."""
    found = {}
    names = {entry.family: name for name, entry in reversed(registry.entries().items())}.values()
    for name in names:
        entry = registry.entry(name)
        splits = data.load("digits" if "height" in next(iter(entry.inputs.values())).axes else "wine")
        if entry.tasks[0] == "embedding":  # whose targets no other data have
            splits = data.load(entry.data)
        shape = splits.signature.preprocess.shape
        fitting = {"classes": splits.signature.outputs} if "classes" in entry.signature else {}
        rows = {key: values[:32] for key, values in splits.test.x.items()}
        found[name] = {}
        for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
            keras.utils.set_random_seed(0)
            keras.config.set_dtype_policy(policy)
            model = entry.build(**{**entry.tiny, "input_shape": shape, **fitting})
            keras.config.set_dtype_policy("float32")
            if policy == "float32":
                part = dataclasses.replace(
                    splits.train, x={k: v[:128] for k, v in splits.train.x.items()}, y=splits.train.y[:128]
                )
                recipe = Recipe(name, splits.name, epochs=2, batch_size=16, learning_rate=0.01).override(**entry.recipe)
                fit(model, dataclasses.replace(splits, train=part), recipe, quiet=True)
                options = dict(data=splits, float16=True, ort=True, max_drop=1.0)
                bundle = export.to_bundle(model, folder / name / "1", litert=name == "lenet", **options)
                found[name]["forms"] = [*bundle.manifest.precisions, *bundle.manifest.edge]
                found[name]["versions"] = bundle.manifest.training["versions"]
            path = export.to_onnx(model, folder / "model.onnx", signature=splits.signature)
            answers = parity.run(parity.session(path), rows)
            truth = parity.keras_answers(model, splits.signature, rows)
            found[name][policy] = max(float(np.abs(answers[key] - truth[key]).max()) for key in truth)
    return found


def kinds(path):
    """Layer kinds that Keras runs here and that do not export, with the reason; none goes through TensorFlow."""

    def refuse(*_, **__):
        raise ValueError("needs TensorFlow")

    export.convert.through_tensorflow = refuse
    found = {}
    for name, kind in KINDS.items():
        try:
            export.to_onnx(kind.model(), path, golden=kind.inputs(rows=3, size=8), tolerance=kind.tolerance)
        except Exception as error:
            if not str(error).startswith("Keras cannot run"):
                found[name] = str(error)
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    report = {"backend": keras.config.backend(), "builders": builders(folder), "kinds": kinds(folder / "kind.onnx")}
    (folder / "report.json").write_text(json.dumps(report))
