"""Our server under test, and the questions it is asked."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.serving import bundles, forms
from benchmarks.serving.load import Question
from serve.keys import SCOPES, KeyFile
from serve.manifest import Manifest, read

READY = "/v2/health/ready"


def command(store: Path, port: int, *extra: object) -> list[object]:
    """Command that serves a store, without a line per request, as its peers do."""
    return [sys.executable, "-m", "serve", store, "--port", port, "--no-access-log", *extra]


def key(folder: Path) -> tuple[Path, str]:
    """A key file, and the token of a key in it that may do everything."""
    path = folder / "keys.json"
    return path, KeyFile(path).make("benchmark", SCOPES)[1]


def link(bundle: Path, store: Path) -> Path:
    """A store with one bundle in it."""
    folder = store / bundle.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / bundle.name).symlink_to(bundle)
    return store


def questions(
    bundle: Path, form: str = "v2", *, count: int | None = None, headers: dict[str, str] | None = None
) -> list[Question]:
    """Rows of a bundle's model with the answers of ONNX Runtime."""
    manifest = read(bundle).manifest
    inputs = bundles.rows(manifest.name, count)
    path = f"/v2/models/{manifest.name}/infer"
    return forms.questions(form, path, manifest, inputs, bundles.expected(bundle, inputs), headers)


def versioned(manifest: Manifest, inputs: np.ndarray, answers: dict[str, np.ndarray], seen: set[str]) -> list[Question]:
    """JSON questions that any of several versions may answer, each with its own numbers.

    Args:
        manifest: of any version.
        inputs: rows to ask.
        answers: right answers by version.
        seen: receives every version that answered.
    """
    path = f"/v2/models/{manifest.name}/infer"
    made = []
    for number, row in enumerate(inputs):
        body, headers = forms.FORMS["v2"].build(manifest, row[None])

        def right(head: bytes, body: bytes, number: int = number) -> bool:
            version = msgspec.json.decode(body)["model_version"]
            seen.add(version)
            expected = answers[version][number]
            return bool(np.abs(forms.FORMS["v2"].read(head, body).ravel() - expected).max() <= forms.TOLERANCE)

        made.append(Question(forms.raw_request(path, body, headers), right))
    return made


def report(failures: Sequence[str]) -> int:
    """Print what was missed; the exit status."""
    print("\n".join(f"MISSED: {line}" for line in failures) or "every target reached", flush=True)
    return 1 if failures else 0
