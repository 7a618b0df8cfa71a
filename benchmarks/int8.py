"""INT8 against its peers: latency of ResNet-50, or accuracy on digits.

    python benchmarks/int8.py [--batches 1 8] [--threads 1 2]                     # results/int8.csv
    python benchmarks/int8.py --accuracy [--models mlp lenet ...] [--epochs 30]   # results/int8_accuracy.csv

Needs `pip install ".[bench]"`. Latency: one float file, quantized by us, by ONNX Runtime's `quantize_static` and by NNCF,
all timed in turns in ONNX Runtime; and in OpenVINO the float file, ours, and what NNCF makes for OpenVINO. Accuracy: models
trained on digits, as images and those that learn from tables also from a table of 64 columns, quantized by us and by NNCF
from the same calibration rows, both judged on the same held-out rows. Ends with status 1 when a target is missed.
"""

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from record import append

FASTER = 2.5  # times, than the float file in ONNX Runtime at one thread
EVEN = 1.05  # ratio of two medians up to which neither is called slower
POINTS = 0.3  # of accuracy that may be lost
CALIBRATION = 256  # rows
LARGEST = 12_000_000  # parameters; networks above take too long to train here, unless named
PACKAGES = ("zooroad", "keras", "onnx", "onnxruntime", "nncf", "openvino")
# "float" and "openvino float" are what the others are compared with
ENGINES = {
    "float": "onnxruntime",
    "ours": "onnxruntime",
    "ort": "onnxruntime",
    "nncf": "onnxruntime",
    "openvino float": "openvino",
    "openvino ours": "openvino",
    "openvino nncf": "openvino",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="rows of a request")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5, help="most time for one file in one setting")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--latency", action="store_true", help="latency of ResNet-50, which is the default")
    what.add_argument("--accuracy", action="store_true", help="accuracy on digits")
    parser.add_argument("--models", nargs="+", help=f"for --accuracy; all of up to {LARGEST:,} parameters if not given")
    parser.add_argument("--epochs", type=int, help="for --accuracy; the recipes' own if not given")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        import nncf
        import openvino  # noqa: F401
    except ImportError as error:
        parser.error(f'{error.name} is not installed; run: pip install ".[bench]"')
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        return (accuracy if given.accuracy else latency)(given, Path(folder), nncf)


def latency(given: argparse.Namespace, folder: Path, nncf: Any) -> int:
    """Rows of results/int8.csv for ResNet-50 with random weights and, as a trained one has, biases other than zero.

    OpenVINO drops sums with zeros, so a network fresh from its initializers would time fewer operations than a real one.
    """
    import keras

    import export
    import zoo
    from export import int8
    from serve.session import milliseconds, open_session

    model = zoo.get("resnet50")
    draw = np.random.default_rng(given.seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(draw.normal(scale=0.1, size=layer.beta.shape))
    source = export.to_onnx(model, folder / "float.onnx")
    [name] = [tensor.name for tensor in model.inputs]
    images = draw.normal(size=(16, 224, 224, 3)).astype(np.float32)
    print("quantizing ...", flush=True)
    rows = {name: images}
    int8.quantize(source, folder / "ours.onnx", calibration=rows, validation={name: images[:1]}, score=lambda _: 0.0)
    by_onnxruntime(source, folder / "ort.onnx", name, images)
    by_nncf(nncf, source, folder / "nncf.onnx", rows)
    by_nncf(nncf, source, folder / "openvino nncf.xml", rows)
    files = {
        **{how: folder / f"{how}.onnx" for how in ("float", "ours", "ort", "nncf")},
        "openvino float": folder / "float.onnx",
        "openvino ours": folder / "ours.onnx",
        "openvino nncf": folder / "openvino nncf.xml",
    }
    missed = False
    for threads in given.threads:
        live = {how: open_session(files[how], engine, threads) for how, engine in ENGINES.items()}
        for batch in given.batches:
            request = {name: np.resize(images, (batch, *images.shape[1:]))}
            times = milliseconds(list(live.values()), request, repeats=100, seconds=given.seconds)
            found = dict(zip(live, times, strict=True))
            ratios = {
                "faster_than_float": found["float"] / found["ours"],
                "against_ort": found["ours"] / found["ort"],
                "against_nncf": found["ours"] / found["nncf"],
                "openvino_against_nncf": found["openvino ours"] / found["openvino nncf"],
            }
            append(
                "int8",
                {
                    "model": "resnet50",
                    "batch": batch,
                    "threads": threads,
                    **{f"{how.replace(' ', '_')}_ms": round(ms, 2) for how, ms in found.items()},
                    **{key: round(ratio, 3) for key, ratio in ratios.items()},
                },
                packages=PACKAGES,
            )
            missed |= threads == 1 and ratios["faster_than_float"] < FASTER
            missed |= max(ratios["against_nncf"], ratios["openvino_against_nncf"]) > EVEN
    return int(missed)


def by_onnxruntime(source: Path, path: Path, name: str, images: np.ndarray) -> None:
    """ONNX Runtime's static quantization, prepared as its documentation advises, one scale per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {name: image[None]}

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)  # that one needs sympy
    quantize_static(
        str(prepared),
        str(path),
        Rows(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def by_nncf(nncf: Any, source: Path, path: Path, rows: dict[str, np.ndarray]) -> None:
    """NNCF's own settings, on the ONNX graph or, for an .xml file, on OpenVINO's."""
    import onnx
    import openvino

    from export.parity import wire

    count = len(next(iter(rows.values())))
    single = [{key: wire(values[i : i + 1]) for key, values in rows.items()} for i in range(count)]
    if path.suffix == ".xml":
        graph = openvino.Core().read_model(str(source))
        openvino.save_model(nncf.quantize(graph, nncf.Dataset(single), subset_size=count), path, compress_to_fp16=False)
    else:
        onnx.save(nncf.quantize(onnx.load(str(source)), nncf.Dataset(single), subset_size=count), str(path))


def accuracy(given: argparse.Namespace, folder: Path, nncf: Any) -> int:
    """Rows of results/int8_accuracy.csv: each model trained on digits, by us and by NNCF."""
    import export
    import zoo
    from export import int8, parity
    from zoo import registry, tasks

    forms = {"image-classification": "digits", "classification": as_table()}
    named = given.models or [name for name in registry.names() if registry.entry(name).params <= LARGEST]
    wanted = [(model, task) for model in named for task in forms if task in registry.entry(model).tasks]
    overrides = {"epochs": given.epochs} if given.epochs else {}
    missed = False
    for model, kind in wanted:
        task = tasks.get(kind)
        run = zoo.train(model, forms[kind], out=folder / f"{model}-{kind}", seed=given.seed, quiet=True, **overrides)
        source = export.to_onnx(run.model, folder / f"{model}.onnx", signature=run.signature)
        splits = run.data
        rows = {name: values[:CALIBRATION] for name, values in splits.train.x.items()}
        test = judge(task, splits.test.y)
        before = test(parity.run(parity.session(source), splits.test.x))
        try:
            made = int8.quantize(
                source,
                folder / "ours.onnx",
                calibration=rows,
                validation=splits.validation.x,
                score=judge(task, splits.validation.y),
            )
        except int8.RefusedError as error:  # a bundle then holds the float file alone
            print(f"{model}: {error}", flush=True)
            made = None
            shutil.copy(source, folder / "ours.onnx")
        by_nncf(nncf, source, folder / "nncf.onnx", rows)
        after = {
            how: test(parity.run(parity.session(folder / f"{how}.onnx"), splits.test.x)) for how in ("ours", "nncf")
        }
        drop = {how: round(100 * (before - score), 3) for how, score in after.items()}
        append(
            "int8_accuracy",
            {
                "model": model,
                "data": "digits" if kind == "image-classification" else "digits, table",
                "rows": len(splits.test.y),
                "float": round(before, 4),
                "ours": round(after["ours"], 4),
                "nncf": round(after["nncf"], 4),
                "drop_points": drop["ours"],
                "drop_points_nncf": drop["nncf"],
                "method": made.method if made else "refused",
                "kept_float": len(made.kept_float) if made else "",
                "layers": made.layers if made else "",
            },
            packages=PACKAGES,
        )
        missed |= drop["ours"] > POINTS or drop["ours"] > max(drop["nncf"], 0.0)  # a gain is no drop
    return int(missed)


def judge(task: Any, y: np.ndarray) -> Callable[[dict[str, np.ndarray]], float]:
    """Score of a file's answers against the truth."""
    return lambda answers: task.score(y, answers[task.output])


def as_table() -> Any:
    """Digits as 64 columns of numbers."""
    from zoo import data
    from zoo.data.builtin import digits

    rows = digits()
    pixels = rows.x["image"].reshape(len(rows.y), -1).astype(np.float32)
    columns = tuple(f"pixel{place}" for place in range(pixels.shape[1]))
    return data.from_rows(replace(rows, task="classification", x={"numbers": pixels}, numbers=columns))


if __name__ == "__main__":
    sys.exit(main())
