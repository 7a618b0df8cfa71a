"""ONNX file to ONNX Runtime's own format (`.ort`), which minimal builds for devices read and which loads fastest."""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from export import ExportError, files, parity


def to_ort(
    source: str | Path,
    path: str | Path,
    *,
    golden: parity.Arrays,
    operators: str | Path | None = None,
    tolerance: float = parity.TOLERANCE,
) -> Path:
    """Write the `.ort` form of an ONNX file, float or INT8, that has been run and gives the same answers.

    The graph is optimised as far as holds on every processor ("extended"); weights are inside the file.

    Args:
        source: ONNX file, such as `export.to_onnx` or `export.int8.quantize` wrote.
        path: file to write, ending in ".ort"; it appears only when it answers as the source does.
        golden: inputs by name, batch first, on which both files are run.
        operators: also write the operators and types that the model needs, in the form that ONNX Runtime's build takes
            with `--include_ops_by_config` for a build of its own that holds nothing else.
        tolerance: largest difference of a float file, relative to the largest answer where that is above 1. In 8 bits a
            sum may fall on the other side of a rounding, so that a quantised file may differ by 100 times as much.

    Returns:
        The path written.

    Raises:
        ExportError: the source does not load, or the answers differ.
    """
    source, path = Path(source), Path(path)
    if path.suffix != ".ort":
        raise ExportError(f"ONNX Runtime knows its own format by the ending .ort, got {path.name!r}; call it model.ort")
    if not source.is_file():
        raise FileNotFoundError(f"no ONNX file at {source}; write one with export.to_onnx")
    if not golden:
        raise ExportError(
            "an .ort file needs rows to be compared on, got none; give golden=data.test.x or a part of it"
        )
    try:
        expected = parity.run(parity.session(source), golden)
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise ExportError(f"{source.name} does not run on the golden rows: {error}") from error
    with files.draft(path) as draft:
        _convert(source, draft)
        gap = parity.difference(parity.session(draft), golden, expected)
        largest = max(1.0, *(float(abs(values).max()) for values in expected.values()))
        allowed = tolerance * largest * (100 if _quantised(source) else 1)
        if not gap <= allowed:
            raise ExportError(f"{path.name} differs from {source.name} by {gap:.3g}, allowed is {allowed:.3g}")
        if operators is not None:
            write_operators([draft], Path(operators))
    return path


def _convert(source: Path, path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise ExportError(f"cannot write {source.name} in ONNX Runtime's format: {error}") from error


def _quantised(source: Path) -> bool:
    """Whether a file computes or stores anything in 8 bits or less."""
    import onnx

    nodes = onnx.load(str(source), load_external_data=False).graph.node
    return any("Quantize" in node.op_type or node.op_type in ("MatMulInteger", "MatMulNBits") for node in nodes)


def write_operators(paths: Sequence[Path], config: Path) -> None:
    """Write the operators and types that `.ort` files need, as ONNX Runtime's build reads them."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    from onnxruntime.tools.ort_format_model import create_config_from_models, utils

    root.handlers[:] = handlers  # the import sets up logging for the whole process
    utils.log.setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "operators.config"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves the closing of files to Python
            create_config_from_models(list(paths), draft, enable_type_reduction=True)
        lines = [line for line in draft.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    names = ", ".join(path.name for path in paths)  # its own comments name folders of this machine
    config.write_text("\n".join([f"# operators and types of {names}", *lines, ""]), encoding="utf-8")
