"""`zoo matrix`: every entry of the registry through every stage, with the figure that each stage gave.

Each entry runs in a process of its own, so that one that crashes or hangs takes no other along. After each stage the
process writes what it found; a stage without a figure is either failed, or has the reason why it does not apply.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo import registry

STAGES = ("build", "train", "save", "prune", "onnx", "int8", "edge", "explain", "serve")
DONE, NONE, FAILED = "done", "does not apply", "failed"
ROWS = 4  # explained
EPOCHS = 5  # of a small model
SECONDS = {False: 900.0, True: 7200.0}  # for one entry, tiny and by its proven recipe
_FOUND = "cells.json"


@dataclass(frozen=True)
class Cell:
    """What one stage gave for one entry.

    Attributes:
        state: "done", "does not apply" or "failed".
        text: the figure in short, or the reason.
        figures: all figures, by name.
        seconds: that the stage took.
    """

    state: str
    text: str
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


Row = dict[str, Cell]


class NotApplicable(Exception):
    """A stage has no meaning for an entry; the message says why."""


def matrix(
    names: list[str], *, proven: bool = False, epochs: int | None = None, seconds: float | None = None
) -> Iterator[tuple[str, Row]]:
    """Run entries through all stages, one after the other.

    Args:
        names: public names.
        proven: train at full size by the proven recipe, which takes minutes for each; otherwise with the entry's tiny
            arguments, which shows that a stage works and not how good a model can be.
        epochs: of training; those of the recipe, or `EPOCHS` for a tiny model, if None.
        seconds: limit for one entry, past which its process is ended; of `SECONDS` if None.

    Yields:
        Name and cells by stage, as soon as an entry is done.

    Raises:
        KeyError: no such model.
    """
    for name in [registry.entry(name).name for name in names]:
        with tempfile.TemporaryDirectory() as folder:
            yield name, _apart(name, Path(folder), proven, epochs, seconds or SECONDS[proven])


def _apart(name: str, folder: Path, proven: bool, epochs: int | None, seconds: float) -> Row:
    """The cells of one entry, from a process of its own."""
    # wider kernels of oneDNN as TensorFlow 2.21 has it can corrupt memory where convolutions have four or eight channels
    quiet = {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "zoo.matrix", name, str(folder), str(int(proven)), str(epochs or 0)]
    try:
        ended = subprocess.run(
            command,
            check=False,
            env=os.environ | quiet,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
        told = (ended.stderr.strip().splitlines() or ["nothing"])[-1][:200]
        end = f"its process ended with {ended.returncode}; it said: {told}"
    except subprocess.TimeoutExpired:
        end = f"it took more than {seconds:g} s"
    written = folder / _FOUND
    found = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    cells = {stage: Cell(**cell) for stage, cell in found.items()}
    missing = [stage for stage in STAGES if stage not in cells]
    return cells | {
        stage: Cell(NONE, f"{missing[0]} failed") if number else Cell(FAILED, end)
        for number, stage in enumerate(missing)
    }


def walk(name: str, folder: Path, *, proven: bool = False, epochs: int | None = None) -> Row:
    """Run one entry through all stages in this process, and write what each gave to `folder`.

    Args:
        name: public name.
        folder: empty folder for the run, the bundle and the cells.
        proven, epochs: as of `matrix`.
    """
    entry, cells, road = registry.entry(name), {}, _Road(name, folder, proven, epochs)
    for stage in STAGES:
        started = time.perf_counter()
        try:
            if stage in entry.skip:
                raise NotApplicable(entry.skip[stage])
            text, figures = getattr(road, stage)()
            state = DONE
        except NotApplicable as reason:
            state, text, figures = NONE, str(reason), {}
        except Exception as error:  # of any kind: the table shows it
            if os.environ.get("ZOO_DEBUG"):
                raise
            state, text, figures = FAILED, f"{type(error).__name__}: {error}", {}
        cells[stage] = Cell(state, text, figures, round(time.perf_counter() - started, 2))
        (folder / _FOUND).write_text(json.dumps({key: asdict(cell) for key, cell in cells.items()}), encoding="utf-8")
    return cells


class _Road:
    """The stages of one entry; each takes what those before it left."""

    def __init__(self, name: str, folder: Path, proven: bool, epochs: int | None) -> None:
        self._entry, self._folder, self._proven, self._epochs = registry.entry(name), folder, proven, epochs
        self._run: Any = None
        self._bundle: Any = None

    def build(self) -> tuple[str, dict[str, Any]]:
        model = self._entry.build(**({} if self._proven else self._entry.tiny))
        count = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        if self._proven and count != self._entry.params:
            raise ValueError(f"it has {count:,} trainable parameters, its entry says {self._entry.params:,}")
        return f"{count:,} parameters", {"parameters": count, "declared": self._entry.params}

    def train(self) -> tuple[str, dict[str, Any]]:
        from zoo import recipes
        from zoo.training import train

        settings: dict[str, Any] = {}
        if not self._proven:
            tiny = {key: value for key, value in self._entry.tiny.items() if key not in recipes.FOLLOWING}
            shape = self._entry.tiny.get("input_shape", ())
            settings = {**tiny, "epochs": EPOCHS, **({"input_shape": shape} if len(shape) == 3 else {})}
            if "tokens" in self._entry.inputs and "length" in tiny:  # positions that there are
                settings["tokens"] = tiny["length"]
        if self._epochs:
            settings["epochs"] = self._epochs
        self._run = run = train(self._entry.name, out=self._folder / "run", quiet=True, **settings)
        metric, score, baseline = self._task.metric, run.metrics["test"], run.metrics["baseline"]
        expected = recipes.find(self._entry.name, run.recipe.data).expected if self._proven else None
        told = f"{metric} {score:.4f} (baseline {baseline:.4f})"
        return told, {"metric": metric, "score": score, "baseline": baseline, "expected": expected}

    def save(self) -> tuple[str, dict[str, Any]]:
        from zoo.training import load

        loaded = load(self._need_run().folder)
        inputs = self._run.signature.inputs(self._rows(ROWS))
        one, two = self._run.model.predict_on_batch(inputs), loaded.model.predict_on_batch(inputs)
        difference = 0.0
        for own, read in zip(_leaves(one), _leaves(two), strict=True):
            size = max(1.0, float(np.abs(own).max()))  # boxes are in pixels
            difference = max(difference, float(np.abs(own - read).max()) / size)
        if not difference <= 1e-5:
            raise ValueError(f"the loaded model's answers differ by {difference:.3g} of the largest")
        return f"differs by {difference:.0e}", {"difference": difference}

    def prune(self) -> tuple[str, dict[str, Any]]:
        from zoo.compress import channel_groups, shrink

        run = self._need_run()
        if not channel_groups(run.model):
            raise NotApplicable("it has no channels between its inputs and its outputs")
        epochs = max(1, run.recipe.epochs // 2)
        small = shrink(run, self._folder / "small", channels=0.5, epochs=epochs, quiet=True)
        share = small.model.count_params() / run.model.count_params()
        told = f"{share:.0%} of the parameters, {self._task.metric} {small.metrics['test']:.4f}"
        return told, {"share": share, "score": small.metrics["test"]}

    def onnx(self) -> tuple[str, dict[str, Any]]:
        import export

        place = self._folder / "store" / self._entry.name.replace("_", "-") / "1"
        self._bundle = export.to_bundle(self._need_run(), place, int8="int8" not in self._entry.skip)
        stored = self._bundle.manifest.precisions["fp32"]
        figures = {"parity": stored.parity, "score": stored.score, "bytes": stored.bytes}
        return f"parity {stored.parity:.0e}, {self._task.metric} {stored.score:.4f}", figures

    def int8(self) -> tuple[str, dict[str, Any]]:
        manifest = self._need_bundle().manifest
        if "int8" not in manifest.precisions:
            raise NotApplicable(f"refused by its gate: {manifest.refused.get('int8', 'no reason was given')}")
        whole, small = manifest.precisions["fp32"], manifest.precisions["int8"]
        figures = {"score": small.score, "drop": whole.score - small.score, "share": small.bytes / whole.bytes}
        told = f"{self._task.metric} {small.score:.4f} ({-figures['drop']:+.4f}), {figures['share']:.0%} of the bytes"
        return told, {**figures, "kept_float": list(small.kept_float)}

    def edge(self) -> tuple[str, dict[str, Any]]:
        import export
        from export.litert import compare

        run = self._need_run()
        rows = self._rows(64)
        path = export.to_litert(
            run.model, self._folder / "model.tflite", signature=run.signature, calibration=rows, validation=rows
        )
        found = compare(run.model, run.signature, path, rows)
        figures = {"difference": found.difference, "agreement": found.agreement, "bytes": found.bytes, "ms": found.ms}
        return f"LiteRT differs by {found.difference:.0e}, {found.bytes / 1024:,.0f} KB", figures

    def explain(self) -> tuple[str, dict[str, Any]]:
        from zoo.explain import explain

        found = explain(self._need_bundle(), self._explainable())
        faithful = found.faithfulness or {}
        figures = {"method": found.method, "additivity": found.additivity_error, "rows": len(found), **faithful}
        told = found.method
        if found.additivity_error is not None:
            told += f", adds up to {found.additivity_error:.0e}"
        if "deletion" in faithful:
            told += f", deletion {faithful['deletion']:.2f} (random {faithful['deletion_random']:.2f})"
        return told, figures

    def serve(self) -> tuple[str, dict[str, Any]]:
        """A server process, the model's own golden rows, their expected answers, and the form that people use."""
        from zoo.demo import post, server

        bundle = self._need_bundle()
        with np.load(bundle.folder / "golden.npz", allow_pickle=False) as stored:
            golden = dict(stored)
        name = bundle.manifest.name
        from serve import protocol

        inputs = {key.removeprefix("input/"): value[:1] for key, value in golden.items() if key.startswith("input/")}
        generation = bundle.manifest.generation
        body, length = protocol.pack(inputs, None, {"temperature": 0} if generation else {})
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(length)}
        with server(self._folder / "store") as (url, _):
            times = []
            for _ in range(20):
                answer, head, seconds = post(f"{url}/v2/models/{name}/infer", body, headers)
                times.append(seconds)
            given = protocol.unpack(answer, int(head["Inference-Header-Content-Length"]))
            examples = json.loads(post(f"{url}/models/{name}/examples")[0])
            row = json.dumps(examples[0]).encode()
            told = json.loads(post(f"{url}/predict/{name}", row, {"Content-Type": "application/json"})[0])
            written = ""
            if "picture" in generation:
                written = f", paints {told['predictions'][0]['tokens']} codes"
            elif generation:
                most = min(8, generation["length"] or 8)
                ask = json.dumps({"text_input": str(inputs["text"][0]), "max_tokens": most}).encode()
                answer = post(f"{url}/v2/models/{name}/generate", ask, {"Content-Type": "application/json"})[0]
                written = f", writes {json.loads(answer)['tokens']} tokens"
        difference = 0.0
        for key, values in golden.items():
            if key.startswith("output/"):
                own = given[key.removeprefix("output/")]
                truth = values[:1].reshape(own.shape)
                if truth.dtype.kind in "bU":  # names of things, or texts
                    gap = np.mean(own.astype(truth.dtype) != truth)
                else:
                    gap = np.abs(own - truth).max() / max(1.0, float(np.abs(truth).max()))
                difference = max(difference, float(gap))
        if difference > max(registry.tolerance(self._entry.name), 1e-4):
            raise ValueError(f"the server's answer differs from the expected one by {difference:.3g}")
        if len(told["predictions"]) != 1:
            raise ValueError(f"/predict gave {len(told['predictions'])} answers to one row")
        median = 1000 * float(np.median(times))
        return f"{median:.1f} ms over HTTP, differs by {difference:.0e}{written}", {
            "ms": median,
            "difference": difference,
        }

    @property
    def _task(self) -> Any:
        from zoo import tasks

        return tasks.get(self._run.signature.task)

    def _need_run(self) -> Any:
        if self._run is None:
            raise NotApplicable("there is no trained model")
        return self._run

    def _need_bundle(self) -> Any:
        if self._bundle is None:
            raise NotApplicable("there is no bundle")
        return self._bundle

    def _explainable(self) -> dict[str, np.ndarray]:
        """The first rows; as pairs where these are explained; of a detector, the first in which it finds something."""
        if self._run.signature.task == "embedding":
            (rows,) = self._rows(2 * ROWS).values()
            return {"left": rows[:ROWS], "right": rows[ROWS:]}
        if self._run.signature.task != "detection":
            return self._rows(ROWS)
        from zoo.evaluate.report import answers

        rows = self._rows(64)
        found = answers(self._run.model, self._run.signature, rows)[..., 4].max(axis=1) > 0
        if not found.any():
            raise NotApplicable("it finds no box whose score could be explained")
        return {name: values[found][:ROWS] for name, values in rows.items()}

    def _rows(self, count: int) -> dict[str, np.ndarray]:
        return {name: values[:count] for name, values in self._need_run().data.test.x.items()}


def _leaves(answers: Any) -> list[np.ndarray]:
    if isinstance(answers, dict):
        answers = list(answers.values())
    return list(answers) if isinstance(answers, list | tuple) else [answers]


@dataclass
class Page:
    """The table as files: a page to read, and beside it the JSON from which later calls go on.

    Attributes:
        path: of the page, such as docs/matrix.md.
        proven: whether its models are those of the proven recipes.
        rows: cells by name.
        measured: day, processor and versions by name.
    """

    path: Path
    proven: bool
    rows: dict[str, Row] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, *, proven: bool) -> "Page":
        """What the files hold, without models that are no longer registered; an empty page if there are none.

        Raises:
            ValueError: the page has models of the other size.
        """
        page = cls(path, proven)
        if not page.beside.exists():
            return page
        stored = json.loads(page.beside.read_text(encoding="utf-8"))
        if stored["proven"] != proven:
            kind = "proven recipes" if stored["proven"] else "tiny models"
            raise ValueError(f"{path} is a page of {kind}; name another one with --out")
        for name in sorted(set(stored["models"]) & set(registry.names())):
            page.measured[name] = stored["models"][name]["measured"]
            page.rows[name] = {stage: Cell(**cell) for stage, cell in stored["models"][name]["stages"].items()}
        return page

    @property
    def beside(self) -> Path:
        """The JSON file."""
        return self.path.with_suffix(".json")

    def add(self, name: str, row: Row, measured: str) -> None:
        """Put in a model's row, or replace it, and write both files."""
        self.rows = dict(sorted({**self.rows, name: row}.items()))
        self.measured[name] = measured
        self.path.parent.mkdir(parents=True, exist_ok=True)
        models = {
            key: {"measured": self.measured[key], "stages": {stage: asdict(cell) for stage, cell in cells.items()}}
            for key, cells in self.rows.items()
        }
        content = json.dumps({"proven": self.proven, "models": models}, indent=1, default=_plain)
        for file, text in ((self.path, str(self)), (self.beside, content + "\n")):
            partial = file.with_name(f".{file.name}.partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(file)

    def __str__(self) -> str:
        """The page: a line for each model, and below the reasons and when it was measured."""
        size = "by its proven recipe" if self.proven else "with its tiny arguments, which shows that a stage works"
        lines = [
            "# Every model through every stage",
            "",
            f"Made by `zoo matrix{' --proven' if self.proven else ''}`; each model was trained {size}.",
            "A cell holds the figure that was measured, or says that the stage does not apply or failed; why stands below.",
            "",
            f"| model | {' | '.join(STAGES)} |",
            f"|---|{'---|' * len(STAGES)}",
        ]
        reasons, measured = [], {}
        for name, row in self.rows.items():
            lines.append(f"| `{name}` | {' | '.join(_shown(row[stage]) for stage in STAGES)} |")
            reasons += [
                f"- `{name}`, {stage}: {_one_line(cell.text)}" for stage, cell in row.items() if cell.state != DONE
            ]
            measured.setdefault(self.measured[name], []).append(f"`{name}`")
        lines += ["", "## Where there is no figure", "", *reasons] if reasons else []
        lines += ["", "## Measured", "", *(f"- {when}: {', '.join(names)}" for when, names in measured.items())]
        return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    return cell.text.replace("|", "\\|") if cell.state == DONE else f"*{cell.state}*"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


if __name__ == "__main__":
    walk(sys.argv[1], Path(sys.argv[2]), proven=sys.argv[3] == "1", epochs=int(sys.argv[4]) or None)
