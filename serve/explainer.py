"""Explanations in a process of their own: slow, hung or crashed, they never touch predictions.

`Explainer` lives in the server and starts `python -m serve.explainer`, which loads `zoo.explain` once and answers over
its standard input and output. A frame is its length (8 bytes, little endian) and then a NumPy archive without pickle.
The process gets most of the time limit as a budget and then answers with the best it has; only one that ignores its
budget is stopped.
"""

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
from importlib import import_module
from typing import IO, Any

import msgspec
import numpy as np

from serve import manifest as bundles
from serve.errors import RequestError
from serve.manifest import Bundle, BundleError
from serve.pictures import url

TARGET = "zoo.explain:explain"
REQUEST = "request"  # member of a frame that holds the JSON; the others are arrays
RESERVE = 2.0  # seconds of the time limit, or 30 % if that is more, for the picture and a last call of the model
WAITING = 2  # explanations running or waiting; more would take the server's threads from predictions


class Explainer:
    """A worker process that is started on first use, bounded in time, and replaced after a hang or crash."""

    def __init__(self, *, target: str = TARGET, timeout: float = 30.0) -> None:
        """Remember what to run; starts nothing.

        Args:
            target: "module:function", called as `function(bundle, inputs, precision=..., method=..., target=...,
                quality=..., seconds=...)`.
            timeout: seconds that one explanation may take, loading included, and as many again to wait for its
                turn.
        """
        self.target = target
        self.timeout = timeout
        self._worker: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(WAITING)

    def explain(
        self,
        bundle: Bundle,
        inputs: dict[str, np.ndarray],
        *,
        precision: str,
        method: str = "auto",
        label: int | None = None,
        quality: bool = True,
        picture: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Explain the answer to one row.

        Args:
            bundle: the model's.
            inputs: raw inputs that passed the model's checks.
            precision: stored form of the model that answered.
            method: explainer by name, "auto" for the one that suits the model.
            label: index of the output to explain; the predicted one if None.
            quality: whether to measure how far it can be trusted, which takes about as long again.
            picture: how to draw it, as `Explanation.plot` takes it: `dark`, and `width` in inches; None for no picture.

        Returns:
            What `Explanation.to_json` gives without the inputs, and `picture`, a PNG data URL, if asked for. `complete`
            is false where the time limit ended it.

        Raises:
            RequestError: 501, explanations are not installed; 504, too slow; 503, too many at once; 422, an unknown method; 500,
                the explainer failed.
        """
        if not self._places.acquire(blocking=False):
            busy = "the explainer is busy with other requests; try again soon"
            raise RequestError("explainer_busy", busy, 503, {"Retry-After": "5"})
        try:
            if not self._turn.acquire(timeout=self.timeout):
                busy = f"the explainer was busy for {self.timeout:g} seconds; try again soon"
                raise RequestError("explainer_busy", busy, 503, {"Retry-After": "5"})
            try:
                request = {
                    "folder": str(bundle.folder),
                    "digest": bundle.digest,
                    "precision": precision,
                    "method": method,
                    "target": label,
                    "quality": quality,
                    "picture": picture,
                    "deadline": time.monotonic() + self.timeout,
                }
                answer = self._ask(_pack(request, inputs))
            finally:
                self._turn.release()
        finally:
            self._places.release()
        if "error" in answer:
            raise RequestError(answer["code"], answer["error"], answer["status"])
        return answer

    def _ask(self, frame: bytes) -> dict[str, Any]:
        """Send a frame and wait for the answer; kills the worker at the time limit."""
        worker = self._start()
        assert worker.stdin is not None and worker.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            worker.kill()

        timer = threading.Timer(self.timeout, stop)
        timer.start()
        try:
            worker.stdin.write(frame)
            worker.stdin.flush()
            answer = _receive(worker.stdout)
        except OSError:  # the worker died while it was written to
            answer = None
        finally:
            timer.cancel()
        if answer is not None and not late.is_set():
            return msgspec.json.decode(answer)
        self.close()
        if late.is_set():
            message = f"the explanation took longer than {self.timeout:g} seconds and was stopped; predictions go on"
            raise RequestError("explain_timeout", message, 504)
        message = "the explainer process died and will be started again at the next request; predictions go on"
        raise RequestError("explainer_died", message, 500)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            self.close()
            self._worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "serve.explainer", self.target],  # -P: see `_path`
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": _path(), "MPLBACKEND": "Agg"},
            )
        return self._worker

    def close(self) -> None:
        """End the worker, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
                    pipe.close()


def _path() -> str:
    """Where this process finds modules, so that the worker finds the same and none by chance in the working folder."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _pack(request: dict[str, Any], inputs: dict[str, np.ndarray]) -> bytes:
    """A frame; text arrays become fixed-width, since an archive without pickle holds no objects."""
    arrays = {f"input/{k}": v.astype(np.str_) if v.dtype == object else v for k, v in inputs.items()}
    archive = io.BytesIO()
    told = {REQUEST: np.frombuffer(msgspec.json.encode(request), np.uint8)}
    np.savez(archive, **told, **arrays)  # type: ignore[arg-type]  # its stub takes no names of unknown number
    return _framed(archive.getvalue())


def _framed(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + body


def _receive(pipe: IO[bytes]) -> bytes | None:
    """The next frame's body, or None at the end of the stream."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    body = pipe.read(length)
    return body if len(body) == length else None


def _answer(frame: bytes, target: str, opened: dict[str, Bundle]) -> dict[str, Any]:
    """Explain one frame inside the worker; failures become an answer with a status."""
    with np.load(io.BytesIO(frame), allow_pickle=False) as archive:
        request = msgspec.json.decode(archive[REQUEST].tobytes())
        inputs = {name.removeprefix("input/"): archive[name] for name in archive.files if name != REQUEST}
    module, _, function = target.partition(":")
    drawn, deadline = request.pop("picture"), request.pop("deadline")
    try:
        explain = getattr(import_module(module), function)
        bundle = _opened(request.pop("folder"), request.pop("digest"), opened)
        left = max(0.0, deadline - time.monotonic())
        explanation = explain(bundle, inputs, **request, seconds=max(0.1 * left, left - max(RESERVE, 0.3 * left)))
        told = msgspec.json.decode(explanation.to_json(inputs=False))
        if drawn is not None:
            picture = io.BytesIO()
            explanation.plot(picture, **drawn)
            told["picture"] = url(picture.getvalue())
        return told
    except ImportError as error:
        cure = f"explanations are not installed on this server ({error}); run: pip install 'zooroad[explain]'"
        return {"code": "explain_missing", "status": 501, "error": cure}
    except (BundleError, FileNotFoundError):
        message = "the version was replaced or removed while it was being explained; ask again"
        return {"code": "version_gone", "status": 503, "error": message}
    except ValueError as error:
        return {"code": "cannot_explain", "status": 422, "error": str(error)}
    except Exception as error:  # whatever an explainer raises, the worker lives on and the client gets a reason
        message = f"the explainer failed with {type(error).__name__}: {error}"[:500]
        return {"code": "explain_failed", "status": 500, "error": message}


def _opened(folder: str, digest: str, opened: dict[str, Bundle]) -> Bundle:
    """The bundle that the server verified, read once; what lies in its folder by now may be another one."""
    if folder not in opened or opened[folder].digest != digest:
        opened[folder] = bundles.read(folder)
    if digest and opened[folder].digest != digest:
        raise ValueError("the model's files changed since the server loaded them; load the model again to explain it")
    return opened[folder]


def work(target: str) -> None:
    """Answer frames until standard input ends: the worker's main loop."""
    if hasattr(os, "nice"):
        os.nice(19)  # predictions come first
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not land among the frames
    opened: dict[str, Bundle] = {}
    while (frame := _receive(sys.stdin.buffer)) is not None:
        answers.write(_framed(msgspec.json.encode(_answer(frame, target, opened))))
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # Ctrl-C reaches the whole process group
        work(sys.argv[1])
