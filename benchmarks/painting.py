"""How many pictures that a model paints show what their text asked for, as a classifier of real pictures sees them.

The classifier, a LeNet, learns colour and kind from `coloured_shapes`, of which the model saw nothing; its accuracy there is the
most that painted pictures could reach. Each of the 40 pairs of colour and kind is painted several times.

python benchmarks/painting.py RUN [--each 5] [--temperature 1.0] [--top-k 0] [--seed 0] [--keep]
"""

import argparse
from pathlib import Path

import numpy as np
from record import append

import zoo
from zoo.data import captions

TARGET = 0.5  # of the pictures, with the right colour and kind; chance is 1 in 40


def main() -> int:
    """Paint, look, print, and append a row if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--each", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60, help="of the classifier")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        judge = zoo.train("lenet", data="coloured_shapes", epochs=given.epochs, out=f"{folder}/judge", quiet=True)
    random = np.random.default_rng(given.seed)
    wanted = np.repeat(np.arange(len(captions.LABELS)), given.each)
    texts = []
    for label in wanted:
        colour, kind = captions.LABELS[label].split()
        size, place = (str(random.choice(list(known))) for known in (captions.SIZES, captions.PLACES))
        texts.append(f"a {size} {colour} {kind} {place}")
    pictures = zoo.paint(given.run, texts, temperature=given.temperature, top_k=given.top_k, seed=given.seed)
    seen = judge.model.predict(judge.signature.inputs({"image": pictures}), verbose=0).argmax(axis=1)
    order = [judge.signature.labels.index(label) for label in captions.LABELS]
    seen = np.argsort(order)[seen]
    kinds = len(captions.KINDS)
    known = np.array([not captions.unseen(captions.LABELS[label]) for label in wanted])
    right = seen == wanted
    found = {
        "pictures": len(texts),
        "classifier": f"{judge.metrics['test']:.3f}",
        "right": f"{right.mean():.3f}",
        "colour": f"{(seen // kinds == wanted // kinds).mean():.3f}",
        "kind": f"{(seen % kinds == wanted % kinds).mean():.3f}",
        "right_of_pairs_seen": f"{right[known].mean():.3f}",
        "right_of_pairs_unseen": f"{right[~known].mean():.3f}",
        "temperature": given.temperature,
        "top_k": given.top_k,
    }
    print(*(f"{name:<24}{value}" for name, value in found.items()), sep="\n")
    print(
        f"{'by chance':<24}{1 / len(captions.LABELS):.3f}, colour {1 / len(captions.COLOURS):.3f}, kind {1 / kinds:.3f}"
    )
    if given.keep:
        append("painting", found, packages=("zooroad", "keras", "tensorflow"))
    return int(right.mean() < TARGET)


if __name__ == "__main__":
    raise SystemExit(main())
