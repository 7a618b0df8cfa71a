"""Forward latency and training steps of image models against keras.applications and timm, in turns in one process.

    python benchmarks/vision.py [--models vgg16 resnet50 …] [--size 224] [--batch 1] [--train-size 96] [--train-batch 8]
    KERAS_BACKEND=jax python benchmarks/vision.py --precision mixed_bfloat16 --device "<name>" --batch 128 --train-batch 128

Each figure is the median of rounds in which every contender takes its turn. Ours and keras.applications run as Keras
compiles them (`predict_on_batch`, `train_on_batch`, SGD with momentum); timm, where torch is installed, in
`inference_mode` and with torch's own SGD, through `torch.compile` if asked. Images are on the device before the clock
starts. `onnx` is our exported file in ONNX Runtime. With `--peak` a row tells what share of it our model's multiplications
and additions took, two for each of the forward pass and three times as many in training.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from record import append
from turns import Runner, in_turns

PEERS = {  # ours -> keras.applications, timm
    "vgg16": ("VGG16", "vgg16"),
    "inception_v3": ("InceptionV3", "inception_v3"),
    "resnet50": ("ResNet50", "resnet50"),
    "resnet50v2": ("ResNet50V2", ""),
    "mobilenet_v2": ("MobileNetV2", "mobilenetv2_100"),
    "vit_base": ("", "vit_base_patch16_224"),
}
CLASSES = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--size", type=int, default=224, help="pixels a side of the forward pass")
    parser.add_argument("--batch", type=int, default=1, help="images of the forward pass")
    parser.add_argument("--train-size", type=int, default=96, help="pixels a side in training; 0 for no training")
    parser.add_argument("--train-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("--compile", action="store_true", help="timm through torch.compile")
    parser.add_argument("--device", default="", help="name of the accelerator, for the row")
    parser.add_argument("--peak", type=float, help="TFLOP/s that the device can reach at most in that precision")
    parser.add_argument("--keep", action="store_true", help="append the rows to benchmarks/results/vision.csv")
    given = parser.parse_args()
    import keras

    keras.config.set_dtype_policy(given.precision)
    for name in given.models:
        cases = [("forward", given.size, given.batch, _forward)]
        if given.train_size:
            cases.append(("training step", given.train_size, given.train_batch, _training))
        for what, size, batch, contenders in cases:
            runners = contenders(name, size, batch, given)
            medians = in_turns(runners, given.rounds)
            del runners
            keras.utils.clear_session()
            rate = batch / medians["zoo"]
            share = _work(name, size, what) * rate / (given.peak * 1e12) if given.peak else None
            told = ", ".join(f"{key} {1000 * value:.1f} ms" for key, value in medians.items())
            ratios = {key: value / medians["zoo"] for key, value in medians.items() if key not in ("zoo", "onnx")}
            print(
                f"{name} {what}, {batch} x {size} px: {told}; "
                + ", ".join(f"{ratio:.2f} times as fast as {key}" for key, ratio in ratios.items())
                + (f"; {rate:,.0f} images/s, {share:.1%} of the peak" if share else ""),
                flush=True,
            )
            if given.keep:
                append(
                    "vision",
                    {
                        "model": name,
                        "what": what,
                        "size": size,
                        "batch": batch,
                        "precision": given.precision,
                        "backend": keras.config.backend(),
                        "device": given.device,
                        "zoo_ms": f"{1000 * medians['zoo']:.2f}",
                        **{
                            f"{peer}_ms": f"{1000 * medians[peer]:.2f}" if peer in medians else ""
                            for peer in ("onnx", "keras_applications", "timm")
                        },
                        **{
                            f"times_{peer}": f"{ratios[peer]:.2f}" if peer in ratios else ""
                            for peer in ("keras_applications", "timm")
                        },
                        "images_per_s": f"{rate:.1f}",
                        "share_of_peak": f"{share:.3f}" if share else "",
                    },
                    packages=("zooroad", "keras", "tensorflow", "jax", "torch", "timm", "onnxruntime"),
                )
    return 0


def _ours(name: str, size: int):
    import zoo
    from zoo import registry

    fixed = {"stem": "imagenet"} if "stem" in registry.entry(name).signature else {}
    return zoo.get(name, input_shape=(size, size, 3), classes=CLASSES, **fixed)


def _work(name: str, size: int, what: str) -> float:
    """Floating-point operations for one image."""
    from zoo import compress

    return 2 * compress.macs(_ours(name, size)) * (3 if what == "training step" else 1)


def _theirs(name: str, size: int):
    import keras

    builder = getattr(keras.applications, PEERS[name][0])
    return builder(weights=None, input_shape=(size, size, 3), classes=CLASSES, classifier_activation=None)


def _torch(name: str, size: int, given: argparse.Namespace):
    """timm's model and images on the device that torch has; None where it is not installed."""
    if not PEERS[name][1] or not _installed():
        return None
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"img_size": size} if name.startswith("vit") else {}
    model = _timm().create_model(PEERS[name][1], num_classes=CLASSES, **options).to(device)
    return (torch.compile(model) if given.compile else model), device


def _installed() -> bool:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
    import references

    return references.installed("torch", "timm")


def _timm():
    import references

    return references.timm()


def _forward(name: str, size: int, batch: int, given: argparse.Namespace) -> dict[str, Runner]:
    import keras
    import numpy as np

    images = np.random.default_rng(0).standard_normal((batch, size, size, 3)).astype("float32")
    placed = keras.ops.convert_to_tensor(images)
    ours = _ours(name, size)
    runners: dict[str, Runner] = {"zoo": lambda: ours.predict_on_batch(placed)}
    if given.precision == "float32" and not given.device:
        runners["onnx"] = _exported(ours, images)
    if PEERS[name][0]:
        theirs = _theirs(name, size)
        runners["keras_applications"] = lambda: theirs.predict_on_batch(placed)
    made = _torch(name, size, given)
    if made is not None:
        import torch

        model, device = made
        tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
        kind = torch.bfloat16 if given.precision != "float32" else torch.float32
        model.eval()

        def run() -> object:
            with torch.inference_mode(), torch.autocast(device, kind, enabled=kind != torch.float32):
                return model(tensor).float().cpu()

        runners["timm"] = run
    return runners


def _exported(model, images) -> Runner:
    import onnxruntime

    import export

    with tempfile.TemporaryDirectory() as folder:
        path = export.to_onnx(model, Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [port] = session.get_inputs()
    return lambda: session.run(None, {port.name: images})


def _training(name: str, size: int, batch: int, given: argparse.Namespace) -> dict[str, Runner]:
    import keras
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch, size, size, 3)).astype("float32")
    labels = generator.integers(0, CLASSES, batch)
    placed = [keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)]

    def step(model) -> Runner:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss, jit_compile=keras.config.backend() == "jax")
        return lambda: float(model.train_on_batch(*placed))

    runners = {"zoo": step(_ours(name, size))}
    if PEERS[name][0]:
        runners["keras_applications"] = step(_theirs(name, size))
    made = _torch(name, size, given)
    if made is not None:
        import torch

        model, device = made
        tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
        wanted = torch.from_numpy(labels).to(device)
        optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        kind = torch.bfloat16 if given.precision != "float32" else torch.float32
        model.train()

        def run() -> object:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(device, kind, enabled=kind != torch.float32):
                found = model(tensor)
                logits = found[0] if isinstance(found, tuple) else found
                loss = torch.nn.functional.cross_entropy(logits.float(), wanted)
            loss.backward()
            optimiser.step()
            return loss.item()

        runners["timm"] = run
    return runners


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
