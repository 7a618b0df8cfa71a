"""Run by test_export_backends.py in a process of its own: exports every builder and every layer kind on one backend."""

import dataclasses
import json
import sys
from pathlib import Path

import keras
from kinds import KINDS

import export
import export.convert
from export import parity
from zoo import registry
from zoo.training import fit
from zoo.training.run import untrained

# rounding says which boxes go on where they score alike, as after one epoch, and which codes stand for a picture
CHOOSING = ("faster_rcnn", "dalle")
# what follows from the data and is no setting of a run
FOLLOWS = ("input_shape", "classes", "vocabulary", "places", "length", "pad", "separator", "end", "rate")


def builders(folder):
    """Largest difference of each builder's file from Keras, by policy, for each unit; and the forms in its bundle."""
    found = {}
    names = {entry.family: name for name, entry in reversed(registry.entries().items())}.values()
    for name in names:
        entry = registry.entry(name)
        given = {key: value for key, value in entry.tiny.items() if key not in FOLLOWS}
        splits, found[name] = None, {}
        for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
            run = untrained(name, splits or entry.data, precision=policy, **given)
            splits, model = splits or few(run.data), run.model
            rows = run.signature.fed({key: values[:32] for key, values in splits.test.x.items()})
            if policy == "float32":
                if name not in CHOOSING:
                    fit(model, splits, run.recipe.override(epochs=1, batch_size=16), quiet=True)
                options = dict(data=splits, float16=True, ort=True, max_drop=100.0)
                bundle = export.to_bundle(model, folder / name / "1", litert=name == "lenet", **options)
                found[name]["forms"] = [*bundle.manifest.precisions, *bundle.manifest.edge]
                found[name]["versions"] = bundle.manifest.training["versions"]
            path = export.to_onnx(model, folder / "model.onnx", signature=run.signature, tolerance=entry.tolerance[0])
            answers = parity.run(parity.session(path), rows)
            truth = parity.keras_answers(model, run.signature, rows)
            found[name][policy] = max(
                parity.distance(answers[key], values) / max(1.0, float(abs(values).max()))
                for key, values in truth.items()
                if values.dtype.kind == "f"
            )
    return found


def few(splits):
    """At most 128 rows of each split; of identities, which are compared in pairs, more."""
    count = 512 if splits.signature.task == "embedding" else 128
    parts = {
        name: dataclasses.replace(part, x={key: values[:count] for key, values in part.x.items()}, y=part.y[:count])
        for name, part in splits.splits.items()
    }
    return dataclasses.replace(splits, **parts)


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
