"""A small store, on disk and opened."""

import pytest
from small_bundles import write_image, write_table, write_value

from serve.runtime import Store


@pytest.fixture
def store_folder(tmp_path):
    """Versions 2, 9 and 10 of an image model, a table model, a regression, and a damaged bundle."""
    folder = tmp_path / "store"
    for version in ("2", "9", "10"):
        write_image(folder, version)
    write_table(folder)
    write_value(folder)
    damaged = write_image(folder, name="damaged")
    (damaged / "model.onnx").write_bytes(b"changed")
    return folder


@pytest.fixture
def store(store_folder):
    return Store(store_folder, threads=1)
