"""One ONNX file as a callable, on ONNX Runtime or, where it is installed, on OpenVINO.

Both read the same file. OpenVINO is often faster on processors of Intel and AMD, but is never required. Either is
imported when the first file is opened, so that a process which only looks at a store stays small.
"""

import json
import os
import platform
import queue
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serve import settings
from serve.manifest import BundleError

ENGINES = settings.ENGINES
GAIN = 0.95  # "auto" leaves ONNX Runtime only for an engine that takes less than this share of its time
ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_OPENVINO_TYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
    "string": "BYTES",
}


def check_engine(engine: str) -> str:
    """The name of an engine, if there is such a one.

    Raises:
        ValueError: there is none.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    return engine


class Session(Protocol):
    """A loaded ONNX file.

    Attributes:
        engine: "onnxruntime" or "openvino".
        inputs, outputs: protocol datatypes by tensor name.
    """

    engine: str
    inputs: dict[str, str]
    outputs: dict[str, str]

    def run(self, wanted: Sequence[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs asked for, in that order; may be called from several threads."""
        ...


def open_session(path: Path, engine: str, threads: int) -> Session:
    """Load an ONNX file on one engine.

    Args:
        path: ONNX file.
        engine: "onnxruntime" or "openvino".
        threads: threads one request may use.

    Raises:
        BundleError: the engine cannot load the file, or is not installed.
        ValueError: no such engine.
    """
    if engine == "onnxruntime":
        return _OnnxRuntime(path, threads)
    if engine == "openvino":
        return _OpenVino(path, threads)
    raise ValueError(f"a session is of 'onnxruntime' or 'openvino', got engine {engine!r}")


class _OnnxRuntime:
    engine = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # At 100 requests a second to a small model, spinning kept 0.4 to 0.7 cores busy against 0.01 to 0.03 without,
        # for at most 0.1 ms less per request (benchmarks/results/serve_start.csv).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # its messages may quote what a client sent
        try:
            self._live = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own types, which share no public base
            raise BundleError(f"{path.name} does not load in ONNX Runtime: {error}") from error
        self.inputs = {port.name: ONNX_TYPES.get(port.type, port.type) for port in self._live.get_inputs()}
        self.outputs = {port.name: ONNX_TYPES.get(port.type, port.type) for port in self._live.get_outputs()}

    def run(self, wanted: Sequence[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._live.run(list(wanted), feed)


class _OpenVino:
    engine = "openvino"

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise BundleError("engine 'openvino' is not installed; run: pip install openvino") from error
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 where the processor can
            "ENABLE_CPU_PINNING": False,  # several models share the cores
        }
        try:
            core = openvino.Core()
            network = core.read_model(str(path))
            _sum_in_convolutions(network)
            self._compiled = core.compile_model(network, "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError of its own text
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise BundleError(
                f"{path.name} does not load in OpenVINO: {reason[0]}; use engine 'onnxruntime'"
            ) from error
        self.inputs = {port.get_any_name(): _openvino_type(port) for port in self._compiled.inputs}
        self.outputs = {port.get_any_name(): _openvino_type(port) for port in self._compiled.outputs}
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()  # a request object may run in one thread at a time

    def run(self, wanted: Sequence[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        found = request.infer(feed, share_inputs=True)
        answers = [np.array(found[name]) for name in wanted]
        self._idle.put(request)
        return answers


def _sum_in_convolutions(network: Any) -> None:
    """Leave out the rounding between a convolution and the sum that alone reads it, at one input of each sum.

    ONNX Runtime adds two 8-bit values; OpenVINO adds inside the convolution, before anything is rounded.
    """
    for add in network.get_ops():
        if add.get_type_name() != "Add":
            continue
        for port in reversed(add.inputs()):
            source = _before_rounding(port.get_source_output())
            if source is not None and _is_convolution(source.get_node()):
                port.replace_source_output(source)
                break


def _before_rounding(output: Any) -> Any:
    """What was rounded to give this output; None if it is no rounded value, or has another reader on the way."""
    for kind in ("Multiply", "Subtract", "Convert", "Convert", "FakeQuantize"):
        node = output.get_node()
        if node.get_type_name() != kind or len(output.get_target_inputs()) != 1:
            return None
        output = node.input_value(0)
    return output if len(output.get_target_inputs()) == 1 else None


def _is_convolution(node: Any) -> bool:
    """Whether a node is a convolution, or the sum with its bias."""
    nodes = [node, *(port.get_source_output().get_node() for port in node.inputs())]
    kinds = {each.get_type_name() for each in (nodes if node.get_type_name() == "Add" else nodes[:1])}
    return bool(kinds & {"Convolution", "GroupConvolution"})


def _openvino_type(port: Any) -> str:
    kind = port.get_element_type().get_type_name()
    return _OPENVINO_TYPES.get(kind, kind)


def installed(engine: str) -> bool:
    """Whether an engine can be imported here."""
    return find_spec(engine) is not None


def milliseconds(
    sessions: Sequence[Session], feed: dict[str, np.ndarray], *, repeats: int = 15, seconds: float = 0.5
) -> list[float]:
    """Median time of one answer from each session, taken in turns.

    Before each answer that is timed comes one that is not: the processor's caches then hold what a server of that
    session alone would find there, whichever session ran before.

    Args:
        sessions: what to compare.
        feed: inputs by name.
        repeats: timed answers per session, at least 3.
        seconds: most time for the timed answers of a session, past which 3 of them must do.
    """
    times: list[list[float]] = [[] for _ in sessions]
    outputs = [list(session.outputs) for session in sessions]
    for turn in range(repeats):
        for taken, session, wanted in zip(times, sessions, outputs, strict=True):
            session.run(wanted, feed)
            start = time.perf_counter()
            session.run(wanted, feed)
            taken.append(1000 * (time.perf_counter() - start))
        if turn >= 2 and max(map(sum, times)) > 1000 * seconds:
            break
    return [statistics.median(taken) for taken in times]


def remembered(key: str) -> str | None:
    """Engine chosen earlier on this machine, None if none was."""
    try:
        engine = json.loads(_memory().read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError, RuntimeError):  # no such file, a damaged one, or a user without a home
        return None
    return engine if engine in ENGINES else None


def remember(key: str, engine: str) -> None:
    """Keep a choice for the next start; a folder that cannot be written to is no error."""
    try:
        place = _memory()
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = dict(json.loads(place.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            known = {}
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as draft:
            json.dump({**known, key: engine}, draft, indent=1)
        Path(draft.name).replace(place)
    except (OSError, RuntimeError):
        return


def key(digest: str, threads: int) -> str:
    """What a choice of engine depends on: the file, the threads, the processor and the engines' versions."""
    parts = [digest, f"{threads} threads", _processor()]
    for package in ("onnxruntime", "openvino"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} x {len(names)}"


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zooroad" / "engines.json"
