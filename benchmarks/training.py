"""Training steps per second of ResNet-50: `zoo.training.fit` against plain compile and fit of keras.applications.

    KERAS_BACKEND=tensorflow python benchmarks/training.py [--size 64] [--batch 16] [--steps 10] [--rounds 5]
    KERAS_BACKEND=jax        python benchmarks/training.py --size 224 --batch 128 --steps 50

Both train on the same random images in the same process, in turns after a first epoch that compiles; the figure is
the ratio of the medians. The peer is as its documentation has it: model, compile("adam", ...), fit on arrays.
"""

import argparse
import statistics
import sys
import time

from record import append


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="steps per epoch")
    parser.add_argument("--rounds", type=int, default=5, help="timed epochs of each")
    parser.add_argument("--device", default="", help="name of the accelerator, for the row")
    given = parser.parse_args()
    import keras
    import numpy as np

    import zoo
    from zoo.data import Rows, from_rows
    from zoo.recipes import Recipe
    from zoo.training import fit

    class Clock(keras.callbacks.Callback):
        """Seconds of the training steps of each epoch, without validation."""

        def __init__(self):
            super().__init__()
            self.seconds = []

        def on_epoch_begin(self, epoch, logs=None):
            self.started = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            if batch == given.steps - 1:
                float(logs["loss"])  # waits for the device
                self.seconds.append(time.perf_counter() - self.started)

    shape = (given.size, given.size, 3)
    rows = given.batch * given.steps
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (rows + 20, *shape), np.uint8)
    labels = np.arange(rows + 20) % 10
    source = Rows("random", "image-classification", {"image": images}, labels, tuple("0123456789"), "random pixels")
    data = from_rows(source, validation=10 / (rows + 20), test=10 / (rows + 20))
    x, y = data.signature.inputs(data.train.x), data.train.y
    assert len(y) == rows

    ours = zoo.get("resnet50", input_shape=shape, classes=10, stem="imagenet")
    theirs = keras.applications.ResNet50(weights=None, input_shape=shape, classes=10)
    theirs.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    recipe = Recipe("resnet50", "random", epochs=2, batch_size=given.batch, optimizer="adam", weight_decay=0.0)
    seconds = {"zoo": [], "keras": []}
    first = {}
    for _ in range(given.rounds):
        for name, measured in seconds.items():
            clock = Clock()
            if name == "zoo":
                fit(ours, data, recipe, callbacks=(clock,), quiet=True)
            else:
                theirs.fit(x, y, batch_size=given.batch, epochs=2, callbacks=[clock], verbose=0)
            first.setdefault(name, clock.seconds[0])
            measured.append(clock.seconds[1])
    steps = {name: given.steps / statistics.median(values) for name, values in seconds.items()}
    row = {
        "backend": keras.backend.backend(),
        "pixels": given.size,
        "batch": given.batch,
        "steps": given.steps,
        "rounds": given.rounds,
        "zoo_steps_per_s": f"{steps['zoo']:.3f}",
        "keras_steps_per_s": f"{steps['keras']:.3f}",
        "ratio": f"{steps['zoo'] / steps['keras']:.3f}",
        "zoo_first_epoch_s": f"{first['zoo']:.1f}",
        "keras_first_epoch_s": f"{first['keras']:.1f}",
    }
    append("training", row, device=given.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
