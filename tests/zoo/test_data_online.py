"""Downloads: formats, checksums, the cache, and what is said without a network. No test touches a network."""

import gzip
import hashlib
import io
import struct
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest

from zoo.data import cache, load, online


@pytest.fixture
def web(monkeypatch, tmp_path):
    """Files that stand in for the network, by address; anything else cannot be reached. Returns them, and what was asked for."""
    files, asked = {}, []

    def urlopen(url, timeout):
        asked.append(url)
        if url not in files:
            raise urllib.error.URLError("no route to host")
        return io.BytesIO(files[url])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return files, asked


def _idx(values):
    head = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(head + values.tobytes(), mtime=0)  # without the hour: the bytes are in the name of a test


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_mnist_format_and_split(web, monkeypatch):
    files, asked = web
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 28, 28), np.uint8)
    labels = (np.arange(50) % 10).astype(np.uint8)
    contents = {
        "train-images-idx3-ubyte.gz": _idx(images[:40]),
        "train-labels-idx1-ubyte.gz": _idx(labels[:40]),
        "t10k-images-idx3-ubyte.gz": _idx(images[40:]),
        "t10k-labels-idx1-ubyte.gz": _idx(labels[40:]),
    }
    files.update({online._MNIST + name: content for name, content in contents.items()})
    monkeypatch.setattr(online, "_MNIST_FILES", {name: _sha256(content) for name, content in contents.items()})
    data = load("mnist")
    assert sorted(map(bytes, data.test.x["image"])) == sorted(map(bytes, images[40:]))
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 10)
    for image, label in zip(data.train.x["image"], data.train.y, strict=True):
        assert labels[(images == image[..., 0]).all((1, 2)).argmax()] == label
    assert data.licence == "CC BY-SA 3.0"
    count = len(asked)
    load("mnist")
    assert len(asked) == count == 4  # the second time from the cache


def test_cifar10_format_and_split(web, monkeypatch):
    files, _ = web
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 20, 32, 32, 3), np.uint8)
    labels = np.tile(np.arange(10, dtype=np.uint8), 2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for index, name in enumerate(
            ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]
        ):  # any order in the archive
            planes = images[index].transpose(0, 3, 1, 2).reshape(20, -1)
            content = np.concatenate([labels[:, None], planes], axis=1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    files[online._CIFAR] = buffer.getvalue()
    monkeypatch.setattr(online, "_CIFAR_SHA256", _sha256(buffer.getvalue()))
    data = load("cifar10")
    assert sorted(map(bytes, data.test.x["image"])) == sorted(map(bytes, images[0]))
    assert data.signature.labels[3] == "cat"
    for image, label in zip(data.test.x["image"], data.test.y, strict=True):
        assert labels[(images[0] == image).all((1, 2, 3)).argmax()] == label
    assert (len(data.train), len(data.validation)) == (80, 20)


def test_without_a_network_the_file_and_its_folder_are_named(web, tmp_path):
    message = rf"cannot download {online._MNIST}train-images-idx3-ubyte.gz: no route to host; without a network, put the file "
    with pytest.raises(OSError, match=message) as caught:
        load("mnist")
    assert str(tmp_path / "cache" / "data" / "mnist") in str(caught.value)
    assert list((tmp_path / "cache").rglob("*.part")) == []


def test_a_download_with_another_checksum_is_not_kept(web, tmp_path):
    files, _ = web
    files["https://example.org/a.gz"] = b"other"
    with pytest.raises(ValueError, match=r"sent a file with checksum sha256:\w+, expected sha256:00"):
        cache.fetch("https://example.org/a.gz", "sha256:00", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_placed_by_hand_is_checked_and_used(web, tmp_path):
    _, asked = web
    (tmp_path / "a.gz").write_bytes(b"content")
    assert cache.fetch("https://example.org/a.gz", f"sha256:{_sha256(b'content')}", tmp_path).read_bytes() == b"content"
    assert cache.fetch("https://example.org/a.gz", f"md5:{hashlib.md5(b'content').hexdigest()}", tmp_path)
    with pytest.raises(ValueError, match=r"a\.gz is not the published file.*delete it"):
        cache.fetch("https://example.org/a.gz", "sha256:00", tmp_path)
    assert asked == []


def test_without_a_published_checksum_the_first_file_decides(web, tmp_path, caplog):
    files, asked = web
    address = "https://example.org/model.safetensors"
    files[address] = b"first"
    for _ in range(2):
        assert cache.fetch(address, "", tmp_path).read_bytes() == b"first"
    assert asked == [address]
    told = [record.getMessage() for record in caplog.records if "nobody publishes a checksum" in record.getMessage()]
    assert len(told) == 1 and "another file is refused from now on" in told[0]
    record = tmp_path / "model.safetensors.sha256"
    assert record.read_text(encoding="utf-8") == f"{_sha256(b'first')}  model.safetensors\n"  # as sha256sum writes it
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(
        ValueError, match=rf"is not the file that was first fetched.*{_sha256(b'first')} in .*delete both"
    ):
        cache.fetch(address, "", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    files[address] = b"changed"
    with pytest.raises(ValueError, match=rf"sent a file with checksum sha256:{_sha256(b'changed')}, expected"):
        cache.fetch(address, "", tmp_path)
    record.unlink()
    assert cache.fetch(address, "", tmp_path).read_bytes() == b"changed"


def test_other_schemes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="only http and https"):
        cache.fetch("file:///etc/passwd", "sha256:00", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain", "is not a whole gzip file"),
        (_idx(np.zeros((2, 2), np.uint8))[:-9], "is not a whole gzip file"),
        (gzip.compress(b"\0\0\x0d\1rest", mtime=0), "is not an IDX file of bytes"),
        (gzip.compress(b"\0\0\x08\1\0\0\0\5abc", mtime=0), r"declares shape \(5,\) but holds 3 values"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, content, message):
    file = tmp_path / "images.gz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        online.read_idx(file)


def test_damaged_archives_are_refused(tmp_path):
    file = tmp_path / "cifar.tar.gz"
    file.write_bytes(b"plain")
    with pytest.raises(ValueError, match=r"cifar.tar.gz cannot be read"):
        online.cifar_batches(file)
    with tarfile.open(file, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
    with pytest.raises(ValueError, match=r"lacks cifar-10-batches-bin/data_batch_1.bin"):
        online.cifar_batches(file)
