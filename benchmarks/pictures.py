"""Pictures read per second and the memory that takes: decoded once into an array, against left in their files.

Each way runs in a process of its own: it loads a folder of generated JPEG files and reads all training rows in shuffled
batches, as training does, once for the array and twice for the files, of which the first time is that of a fresh folder
and the second that of one whose hashes are kept.

python benchmarks/pictures.py [--pictures 3000] [--side 256] [--batch 64] [--keep]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import append

TARGET = 0.5  # of the array's memory above that of the bare process, which files may take at most


def write(folder: Path, count: int, side: int) -> None:
    """JPEG files in two class folders: smooth noise, which fills a file as a photograph does."""
    from PIL import Image

    random = np.random.default_rng(0)
    for place in range(count):
        own = folder / ("odd" if place % 2 else "even")
        own.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(picture + random.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(own / f"{place}.jpg", quality=90)


def measure(folder: str, share: float, side: int, batch: int) -> dict[str, float]:
    """Seconds to load, pictures read per second, and the peak of memory in MB above that of the bare process."""
    from PIL import Image

    import zoo.data
    from zoo.data import lazy

    Image.init()
    lazy.SHARE = share
    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    data = zoo.data.load(folder, input_shape=(side, side, 3))
    loaded = time.perf_counter() - started
    order = np.random.default_rng(0).permutation(len(data.train))
    started, total = time.perf_counter(), 0
    for start in range(0, len(order), batch):
        total += int(data.train.x["image"][order[start : start + batch]].astype(np.float32).shape[0])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"load_s": loaded, "read_per_s": total / seconds, "memory_mb": (peak - bare) / 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--keep", action="store_true", help="append a row to the results")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "SHARE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], float(options.one[1]), options.side, options.batch)))
        return 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "tiles"
        write(folder, options.pictures, options.side)
        size = sum(file.stat().st_size for file in folder.rglob("*.jpg"))
        found = {}
        for name, share in (("array", 1.0), ("files", 0.0), ("files_again", 0.0)):
            command = [sys.executable, __file__, "--one", str(folder), str(share), "--side", str(options.side)]
            told = subprocess.run(
                [*command, "--batch", str(options.batch)],
                env={**os.environ, "ZOO_CACHE": place},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[name] = json.loads(told.stdout)
    row = {
        "pictures": options.pictures,
        "side": options.side,
        "batch": options.batch,
        "files_mb": f"{size / 2**20:.0f}",
    }
    row |= {f"{name}_{key}": f"{value:.1f}" for name, own in found.items() for key, value in own.items()}
    if options.keep:
        append("pictures", row, packages=("zooroad", "numpy", "pillow"))
    else:
        print("\n".join(f"{key:<24}{value}" for key, value in row.items()))
    return 0 if found["files"]["memory_mb"] < TARGET * found["array"]["memory_mb"] else 1


if __name__ == "__main__":
    sys.exit(main())
