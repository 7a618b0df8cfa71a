import logging

import numpy as np
import pytest

import export
from export import ExportError, int8, parity


@pytest.fixture(scope="module")
def files(lenet, digits, tmp_path_factory):
    """LeNet as float and INT8 ONNX files."""
    folder = tmp_path_factory.mktemp("onnx")
    source = export.to_onnx(lenet, folder / "model.onnx", signature=digits.signature)
    int8.quantize(
        source, folder / "model.int8.onnx", calibration=digits.train.x, validation=digits.validation.x,
        score=lambda answers: float((answers["probabilities"].argmax(-1) == digits.validation.y).mean()), max_drop=0.02,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(("name", "allowed"), [("model", 1e-5), ("model.int8", 1e-2)])
def test_ort_files_answer_as_their_source(files, digits, tmp_path, name, allowed):
    before = logging.getLogger().handlers[:]
    config = tmp_path / "operators.config"
    golden = {"image": digits.test.x["image"][:16]}
    path = export.to_ort(files / f"{name}.onnx", tmp_path / f"{name}.ort", golden=golden, operators=config)
    assert path.read_bytes()[4:8] == b"ORTM"  # flatbuffer file identifier
    found, truth = (
        parity.run(parity.session(file), digits.test.x)["probabilities"] for file in (path, files / f"{name}.onnx")
    )
    assert np.abs(found - truth).max() <= allowed
    lines = config.read_text().splitlines()
    assert lines[0] == f"# operators and types of {name}.ort" and any("Softmax" in line for line in lines)
    assert ("QLinearConv" in config.read_text()) == (name == "model.int8")
    assert logging.getLogger().handlers == before


def test_refusals_leave_the_older_file(files, digits, tmp_path):
    golden = {"image": digits.test.x["image"][:4]}
    path = tmp_path / "model.ort"
    path.write_bytes(b"older")
    with pytest.raises(ExportError, match=r"differs from model.onnx by .*, allowed is -1"):
        export.to_ort(files / "model.onnx", path, golden=golden, tolerance=-1)
    with pytest.raises(ExportError, match="needs rows to be compared on"):
        export.to_ort(files / "model.onnx", path, golden={})
    with pytest.raises(ExportError, match="does not run on the golden rows"):
        export.to_ort(files / "model.onnx", path, golden={"image": golden["image"][:, :4]})
    with pytest.raises(ExportError, match=r"got 'model.bin'; call it model.ort"):
        export.to_ort(files / "model.onnx", tmp_path / "model.bin", golden=golden)
    with pytest.raises(FileNotFoundError, match="no ONNX file at"):
        export.to_ort(files / "missing.onnx", path, golden=golden)
    assert path.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["model.ort"]
