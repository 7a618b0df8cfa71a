"""Data sets that are downloaded once: MNIST, Fashion-MNIST and CIFAR-10, in the formats their authors publish."""

import gzip
import math
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoo.data import cache
from zoo.data.rows import OPEN, TEST, Rows

_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

# sha256 of each file, as TensorFlow Datasets records them
_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def mnist() -> Rows:
    """70,000 handwritten digits of 28x28 pixels, with the authors' test split of 10,000."""
    return _idx_set(
        "mnist",
        _MNIST,
        _MNIST_FILES,
        tuple("0123456789"),
        "LeCun, Cortes & Burges 1998, The MNIST database of handwritten digits",
        "CC BY-SA 3.0",
    )


def fashion_mnist() -> Rows:
    """70,000 pictures of clothes of 28x28 pixels, with the authors' test split of 10,000."""
    return _idx_set(
        "fashion_mnist",
        _FASHION,
        _FASHION_FILES,
        _CLOTHES,
        "Xiao, Rasul & Vollgraf 2017, Fashion-MNIST (arXiv:1708.07747)",
        "MIT",
    )


def cifar10() -> Rows:
    """60,000 colour photographs of 32x32 pixels in ten classes, with the authors' test split of 10,000."""
    path = cache.fetch(_CIFAR, f"sha256:{_CIFAR_SHA256}", cache.folder("data", "cifar10"))
    parts = cifar_batches(path)
    images, labels = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    return Rows(
        name="cifar10",
        task="image-classification",
        x={"image": images},
        y=labels,
        labels=_THINGS,
        source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        licence="not stated by the source; the authors ask for a citation",
        part=np.repeat(np.array([OPEN, TEST], np.int8), [len(labels) - len(parts[-1][1]), len(parts[-1][1])]),
    )


ONLINE: dict[str, Callable[[], Rows]] = {reader.__name__: reader for reader in (cifar10, fashion_mnist, mnist)}


def _idx_set(name: str, base: str, files: dict[str, str], labels: tuple[str, ...], source: str, licence: str) -> Rows:
    found = [
        read_idx(cache.fetch(base + file, f"sha256:{digest}", cache.folder("data", name)))
        for file, digest in files.items()
    ]
    images, targets = np.concatenate(found[0::2]), np.concatenate(found[1::2])
    part = np.repeat(np.array([OPEN, TEST], np.int8), [len(found[1]), len(found[3])])
    return Rows(
        name=name,
        task="image-classification",
        x={"image": images[..., None]},
        y=targets.astype(np.int64),
        labels=labels,
        source=source,
        licence=licence,
        part=part,
    )


def read_idx(path: Path) -> np.ndarray:
    """Array of bytes in a gzipped IDX file: two zero bytes, type 8, the number of axes, their sizes, the values.

    Raises:
        ValueError: the file is damaged or of another format.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}; delete it, and it is fetched again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path} is not an IDX file of bytes, it starts with {raw[:4]!r}; delete it, and it is fetched again"
        )
    start = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:start], ">u4").tolist())
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} declares shape {shape} but holds {len(raw) - start} values; delete it, and it is fetched again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def cifar_batches(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 `(rows, 32, 32, 3)` and labels int64 of the five training batches and the test batch, in this order.

    Each record is a label byte and three colour planes. The archive is read in place, nothing is unpacked to disk.

    Raises:
        ValueError: the archive is damaged, or a batch is missing.
    """
    batches = {
        f"cifar-10-batches-bin/{name}.bin": None for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    }
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in batches and member.isfile():
                    records = np.frombuffer(archive.extractfile(member).read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                    batches[member.name] = (np.ascontiguousarray(images), records[:, 0].astype(np.int64))
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; delete it, and it is fetched again") from error
    absent = [name for name, found in batches.items() if found is None]
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}; delete it, and it is fetched again")
    return list(batches.values())
