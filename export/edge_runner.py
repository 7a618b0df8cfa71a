#!/usr/bin/env python3
"""Run the bundle this file lies in: check its hashes, replay its golden rows, predict, and time itself.

It needs Python 3.9 or newer, numpy, and onnxruntime (or ai-edge-litert, for .tflite files); Pillow for pictures,
tokenizers for models of text.

    python run.py                      check, replay, time and report
    python run.py digit.png rows.csv   answers for rows of your own (pictures, .wav, .npy, .npz, .json, .csv, .txt)
    python run.py speech.wav --beams 8     the likeliest of the transcripts that are followed at once
    python run.py --precision int8 --threads 1 --json
    python run.py --continue "def main("   what a model that writes texts puts behind one
    python run.py --paint "a red ring" --out ring.png     a picture, by a model that paints
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FORMATS = (1, 2, 3, 4, 5, 6)  # of model.json
TYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BYTES": "object",
}  # fmt: skip
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SHORTEST = 0.1  # seconds of a recording
QUIET = 1e-3  # largest amplitude up to which a recording is silent
UNKNOWN = 0x7FFF0000  # bytes in the header of a WAV file, or more, whose length was not known when it was written
HOTTEST = 100.0  # temperature
ENGINES = {".onnx": "onnxruntime", ".ort": "onnxruntime", ".tflite": "ai_edge_litert"}


class Refusal(Exception):
    """What a person can mend; the message says how."""


def main() -> int:
    given = arguments()
    try:
        report = work(given)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2, ensure_ascii=False) if given.json else text(report))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="files to answer: pictures, .wav, .npy, .npz, .json, .csv or .txt")
    parser.add_argument("--bundle", help="folder of the bundle (default: where this file is)")
    parser.add_argument("--precision", help="fp32, fp16, int8, w8 or w4 (default: the bundle's)")
    parser.add_argument("--format", choices=("onnx", "ort", "tflite"), default="onnx", help="which of its files to run")
    parser.add_argument(
        "--threads", type=positive, default=cores(), help="threads of one request (default: %(default)s)"
    )
    parser.add_argument("--batch", type=positive, default=16, help="rows of a large request (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="how long to time each batch size (default: %(default)s)"
    )
    parser.add_argument("--top", type=positive, default=3, help="labels to name for each row (default: %(default)s)")
    parser.add_argument(
        "--beams",
        type=positive,
        default=1,
        help="transcripts followed at once, for the likeliest (default: %(default)s)",
    )
    parser.add_argument("--time", action="store_true", help="time itself also when there are rows to answer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--continue", dest="begun", metavar="TEXT", help="a text to go on with, or to answer")
    parser.add_argument("--most", type=positive, default=64, help="tokens to write at most (default: %(default)s)")
    parser.add_argument("--paint", metavar="TEXT", help="what a picture is to show")
    parser.add_argument("--out", default="picture.png", help="file for what is painted (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, help="0 takes the likeliest, 1 draws as the model says (texts: 0, pictures: 1)"
    )
    parser.add_argument("--seed", type=int, help="of the drawing")
    parser.add_argument("--top-k", type=int, default=0, help="draw only of the likeliest so many (default: of all)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw only of the likeliest that together have this probability"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    return parser.parse_args()


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise ValueError(value)
    return number


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, as JSON values."""
    folder = Path(given.bundle) if given.bundle else Path(__file__).resolve().parent
    files = verify(folder)
    manifest = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if manifest.get("format") not in FORMATS:
        raise Refusal(
            f"model.json has format {manifest.get('format')!r}, this file knows {FORMATS}; use the bundle's run.py"
        )
    path, precision, facts = choose(folder, manifest, given.precision, given.format)
    if given.beams > 1 and manifest["task"] != "speech-recognition":
        block = manifest.get("generation") or {}
        cure = "of texts they are for a server or zoo generate; " if block and "picture" not in block else ""
        raise Refusal(f"--beams is for recordings, and this model is for {manifest['task']}; {cure}leave it out")
    if given.paint is not None:
        return painted(folder, manifest, precision, given)
    if given.begun is not None:
        writer = Writer(folder, manifest, precision, given.threads)
        if writer.drawer is not None:
            raise Refusal("the model paints pictures of texts, and continues none; give the text with --paint")
        writer.draws(given.temperature or 0.0, given.seed, given.top_k, given.top_p)
        if not all(given.stop):
            raise Refusal("--stop must be a text that is not empty")
        started = time.perf_counter()
        said, count = writer(given.begun, given.most, given.stop)
        took = time.perf_counter() - started
        noted = {"note": writer.note} if writer.note else {}
        return {"name": manifest["name"], "text": said, "tokens": count, "tokens_a_second": count / took, **noted}
    started = time.perf_counter()
    live: Any = LiteRT if path.suffix == ".tflite" else Onnx
    engine = live.engine()
    imported = time.perf_counter()
    session = live(engine, path, given.threads, manifest)
    if manifest["outputs"][0]["dtype"] == "BYTES" or "picture" in manifest.get("generation", {}):
        session = Writer(folder, manifest, precision, given.threads)
    elif manifest["kind"] in ("text", "captioned"):
        session = Texts(session, folder / manifest["preprocess"]["tokenizer"])
    loaded = time.perf_counter()
    golden = archive(folder / "golden.npz")
    examples = {port["name"]: golden[f"input/{port['name']}"] for port in manifest["inputs"]}
    expected = {port["name"]: golden[f"output/{port['name']}"] for port in manifest["outputs"]}
    started_first = time.perf_counter()
    session({name: values[:1] for name, values in examples.items()})
    answered = time.perf_counter()
    report: dict[str, Any] = {
        "name": manifest["name"],
        "version": manifest["version"],
        "architecture": manifest["architecture"],
        "task": manifest["task"],
        "folder": str(folder),
        "files_verified": files,
        "file": path.name,
        "bytes": facts["bytes"],
        "precision": precision,
        "engine": f"{ENGINES[path.suffix]} {session.version}",
        "threads": given.threads,
        "score": facts.get("score"),
        "metric": manifest["metric"],
        "replay": replay(session, examples, expected, facts, given.batch),
        "import_s": imported - started,
        "load_ms": 1000 * (loaded - imported),
        "first_ms": 1000 * (answered - started_first),
    }
    if given.rows:
        report["answers"] = [
            {"source": name, **answer}
            for name in given.rows
            for answer in noted_answers(session, *read(Path(name), manifest), manifest, given)
        ]
        if manifest["task"] == "embedding":
            compare(report["answers"], manifest.get("verification", {}).get("thresholds", {}).get(precision))
    if given.time or not given.rows:
        report["latency"] = [clock(session, examples, rows, given.seconds) for rows in sorted({1, given.batch})]
    report["peak_mb"] = peak_mb()
    return report


def verify(folder: Path) -> int:
    """Compare every file with SHA256SUMS; how many there are."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        raise Refusal(f"{folder} is not a bundle: it has no SHA256SUMS; give the folder with --bundle")
    listed = {}
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise Refusal(f"{sums} is damaged at {line[:80]!r}; copy the bundle again")
        listed[name] = digest
    beside = (sums, folder / "SIGNATURE")  # signatures are for servers, which know whom to trust
    found = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file() and path not in beside
    }
    for name in sorted(set(listed) - set(found)):
        raise Refusal(f"{name} is missing from {folder}; copy the bundle again")
    for name in sorted(set(found) - set(listed)):
        raise Refusal(f"{name} does not belong to the bundle in {folder}; move it elsewhere")
    for name, path in found.items():
        if digest_of(path) != listed[name]:
            raise Refusal(
                f"{name} was altered: it does not match SHA256SUMS; copy the bundle again from where it was made"
            )
    if "model.json" not in listed or "golden.npz" not in listed:
        raise Refusal(f"{folder} lacks model.json or golden.npz; export the bundle again")
    return len(found)


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def choose(
    folder: Path, manifest: dict[str, Any], precision: str | None, form: str
) -> tuple[Path, str, dict[str, Any]]:
    """The file to run, its precision and what the manifest says of it."""
    if form == "onnx":
        kept = {key: (facts["file"], facts) for key, facts in manifest["precisions"].items()}
    else:
        kept = {
            facts.get("precision", "int8" if ".int8." in name else "fp32"): (name, facts)
            for name, facts in manifest["edge"].items()
            if Path(name).suffix == f".{form}"
        }
    if not kept:
        others = sorted({Path(name).suffix for name in manifest["edge"]} | {".onnx"})
        raise Refusal(f"the bundle has no .{form} file; it has {', '.join(others)}: choose with --format")
    wanted = precision or (manifest["default"] if manifest["default"] in kept else next(iter(kept)))
    if wanted not in kept:
        refused = manifest["refused"].get(wanted)
        reason = f"; {wanted} was not stored: {refused}" if refused else ""
        raise Refusal(f"the bundle has no .{form} file in {wanted!r}, it has {', '.join(kept)}{reason}")
    name, facts = kept[wanted]
    return folder / name, wanted, facts


class Onnx:
    """An .onnx or .ort file in ONNX Runtime."""

    @staticmethod
    def engine() -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise Refusal("onnxruntime is not installed; run: pip install onnxruntime") from None
        return onnxruntime

    def __init__(self, engine: Any, path: Path, threads: int, manifest: dict[str, Any]) -> None:
        options = engine.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = engine.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own types, which share no public base
            raise Refusal(f"{path.name} does not load in ONNX Runtime {engine.__version__}: {error}") from None
        self.version = engine.__version__
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        feed = {name: values.astype(object) if values.dtype.kind == "U" else values for name, values in inputs.items()}
        found = self.session.run(self.names, feed)
        return {name: found[place] for place, name in enumerate(self.names)}


class LiteRT:
    """A .tflite file in LiteRT; scales and zero points are applied."""

    @staticmethod
    def engine() -> Any:
        try:
            import ai_edge_litert.interpreter
        except ImportError:
            raise Refusal("ai-edge-litert is not installed; run: pip install ai-edge-litert") from None
        return ai_edge_litert.interpreter

    def __init__(self, engine: Any, path: Path, threads: int, manifest: dict[str, Any]) -> None:
        from importlib.metadata import version

        self.version = version("ai-edge-litert")
        self.interpreter = engine.Interpreter(str(path), num_threads=threads)
        self.runner = self.interpreter.get_signature_runner()
        self.inputs = self.runner.get_input_details()
        self.outputs = self.runner.get_output_details()
        self.preprocess = manifest.get("preprocess")

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        if "features" in self.inputs:
            inputs = {"features": features(inputs, self.preprocess)}
        feed = {}
        for name, detail in self.inputs.items():
            values, (scale, zero) = inputs[name], detail["quantization"]
            if scale:
                limits = np.iinfo(detail["dtype"])
                values = np.clip(np.rint(values / scale + zero), limits.min, limits.max)
            feed[name] = values.astype(detail["dtype"])
        found = {}
        for name, answer in self.runner(**feed).items():
            scale, zero = self.outputs[name]["quantization"]
            values = answer.astype(np.float32)
            found[name] = (values - np.float32(zero)) * np.float32(scale) if scale else values
        return found


class Texts:
    """A session that takes texts, of which the bundle's tokenizer makes tokens."""

    def __init__(self, session: Any, path: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise Refusal("tokenizers is not installed; run: pip install tokenizers") from None
        self.session, self.version = session, session.version
        self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.tokenizer.encode_special_tokens = True  # as in training: who writes "[PAD]" means these letters

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        others = {name: values for name, values in inputs.items() if values.dtype.kind not in "UO"}
        tokens = [each.ids for each in self.tokenizer.encode_batch(texts_of(inputs))]
        return self.session({"tokens": np.array(tokens, np.int32), **others})

    def sizes(self, inputs: dict[str, Any]) -> list[int]:
        """How many tokens each text has, without those that fill it up."""
        (texts,) = inputs.values()
        return [sum(each.attention_mask) for each in self.tokenizer.encode_batch(texts.tolist())]


def texts_of(inputs: dict[str, Any]) -> list[Any]:
    """Texts, or pairs of them, as a tokenizer takes them."""
    columns = [values.tolist() for values in inputs.values() if values.dtype.kind in "UO"]
    return columns[0] if len(columns) == 1 else list(zip(*columns))  # noqa: B905


class Writer:
    """What a bundle's decoder writes behind a text, or its files paint of one; one text at a time."""

    def __init__(self, folder: Path, manifest: dict[str, Any], precision: str, threads: int) -> None:
        self.block = manifest.get("generation") or {}
        form = self.block.get("files", {}).get(precision)
        if not form:
            raise Refusal(f"the bundle has no decoder in {precision!r}, so it writes no texts")
        engine = Onnx.engine()
        self.decoder = Onnx(engine, folder / form["decoder"], threads, manifest)
        self.asked = {port.name for port in self.decoder.session.get_inputs()}
        self.encoder = Onnx(engine, folder / form["encoder"], threads, manifest) if form["encoder"] else None
        self.drawer = Onnx(engine, folder / form["drawer"], threads, manifest) if form.get("drawer") else None
        self.texts = Texts(self.decoder, folder / manifest["preprocess"]["tokenizer"]).tokenizer
        if self.encoder is None and self.drawer is None:
            self.texts.no_padding()
            self.texts.no_truncation()
        self.version, self.precision = engine.__version__, precision
        self.outputs = [port["name"] for port in manifest["outputs"]]
        self.most = manifest["preprocess"].get("answer") or 64
        self.note = ""
        self.draws(0.0, None)

    def draws(self, temperature: float, seed: int | None, top_k: int = 0, top_p: float = 1.0) -> None:
        """Say how freely tokens are drawn; a temperature of 0 takes the likeliest."""
        import numpy as np

        if not 0 <= temperature <= HOTTEST:
            raise Refusal(f"--temperature must be a number from 0 to {HOTTEST:g}, got {temperature:g}")
        if seed is not None and not 0 <= seed < 2**63:
            raise Refusal(f"--seed must be a whole number from 0 to 2^63 - 1, got {seed}")
        if top_k < 0 or not 0 < top_p <= 1:
            raise Refusal(f"--top-k must be at least 0, --top-p above 0 and up to 1, got {top_k} and {top_p:g}")
        self.temperature, self.random = temperature, np.random.default_rng(seed)
        self.top_k, self.top_p = top_k, top_p

    def drawn(self, logits: Any) -> int:
        """A token by its probability, as a server draws it: of the likeliest `top_k`, and of these of `top_p` together."""
        import numpy as np

        tokens = np.arange(len(logits))
        if 0 < self.top_k < len(logits):  # tokens that are equally likely all stay
            tokens = np.flatnonzero(logits >= np.partition(logits, -self.top_k)[-self.top_k])
        weights = np.exp((logits[tokens] - logits.max()).astype(np.float64) / self.temperature)
        if self.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            count = int(np.searchsorted(np.cumsum(weights[order]), self.top_p * weights.sum())) + 1
            order = np.sort(order[:count])
            tokens, weights = tokens[order], weights[order]
        sums = np.cumsum(weights)
        place = int(np.searchsorted(sums, self.random.random() * sums[-1], side="right"))
        return int(tokens[min(place, len(tokens) - 1)])

    def __call__(self, inputs: Any, most: int = 0, stop: Sequence[str] = ()) -> Any:
        """Text and number of tokens behind a text; or of golden rows the answers as the bundle names them."""
        import numpy as np

        if not isinstance(inputs, str):
            (rows,) = inputs.values()
            texts = [str(one) for one in rows.ravel()]
            if self.drawer is not None:
                return {self.outputs[0]: np.stack([self.picture(one) for one in texts])}
            return {self.outputs[0]: np.array([self(one, self.most)[0] for one in texts], str)}
        block, feed, self.note = self.block, {}, ""
        if self.encoder is None:
            read = self.texts.encode(inputs)
            before = [token for token, special in zip(read.ids, read.special_tokens_mask) if not special]  # noqa: B905
            before = before or block["start"]
            if not before:
                raise Refusal("the text is empty; write how it begins")
            room = min(most, block["length"] // 2) if block["length"] else 0
            tokens = before[-(block["length"] - room) :] if block["length"] else before
            if len(tokens) < len(before):
                self.note = f"only the last {len(tokens)} of the text's {len(before)} tokens were read"
            held: dict[str, Any] = {}
        else:
            before, tokens = [], list(block["start"])
            held = self.encoder({block["source"]: np.array([self.whole(inputs)], np.int32)})
        feed = {name: held[name] for name in block["crossing"]}
        for one in block["states"]:
            zeros = np.zeros((1, *one["shape"]), np.float32)
            feed[one["name"]] = held[one["first"]] if one["first"] else zeros
        most = min(most, block["length"] - len(tokens) + 1) if block["length"] else most
        known = self.texts.decode(before[-8:])
        made: list[int] = []

        def said() -> str:
            return str(self.texts.decode(before[-8:] + made)[len(known) :])

        for token in self.following(tokens, feed, most):
            made.append(token)
            ends = [place for one in stop if (place := said().find(one)) >= 0]
            if ends:
                return said()[: min(ends)], len(made)
        return said(), len(made)

    def picture(self, text: str) -> Any:
        """A picture of a text, uint8 (height, width, channels)."""
        import numpy as np

        block, self.note = self.block["picture"], ""
        tokens = [
            block["padding"] + place if token == block["pad"] else block["text"] + token
            for place, token in enumerate(self.whole(text))
        ]
        codes = np.array(list(self.following(tokens, {}, block["places"])), np.int32)
        shape = self.drawer.session.get_inputs()[0].shape  # type: ignore[union-attr]  # asked for before
        found = self.drawer({"codes": codes.reshape(1, *shape[1:])})["picture"]  # type: ignore[misc]
        return np.rint(found[0]).astype(np.uint8)

    def whole(self, text: str) -> list[int]:
        """Tokens of a text that is read to its end, or cut, which is noted."""
        if not text.strip():
            raise Refusal("the text is blank; write something")
        read = self.texts.encode(text)
        if read.overflowing:
            self.note = cut(read)
        return list(read.ids)

    def following(self, tokens: list[int], feed: dict[str, Any], most: int) -> Iterator[int]:
        """Tokens behind these, up to the one that ends a text."""
        import numpy as np

        block = self.block
        for one in block["caches"]:
            feed[one["name"]] = np.zeros((1, one["shape"][0], len(tokens) + most, one["shape"][2]), np.float32)
        cached = 0
        for _ in range(most):
            given = {"tokens": np.array([tokens], np.int32), "cached": np.array([[cached]], np.int32), **feed}
            found = self.decoder({name: values for name, values in given.items() if name in self.asked})
            for one in block["caches"] + block["states"]:
                feed[one["name"]] = found[one["name"] + "_new"]
            cached += len(tokens)
            logits = found["logits"][0]
            tokens = [self.drawn(logits) if self.temperature else int(logits.argmax())]
            if tokens[0] == block["end"]:
                break
            yield tokens[0]


def painted(folder: Path, manifest: dict[str, Any], precision: str, given: argparse.Namespace) -> dict[str, Any]:
    """Paint a picture, and write it to a file."""
    if "picture" not in manifest.get("generation", {}):
        raise Refusal(f"the model is for {manifest['task']} and paints no pictures; leave --paint out")
    try:
        from PIL import Image
    except ImportError:
        raise Refusal("writing pictures needs Pillow; run: pip install Pillow") from None
    writer = Writer(folder, manifest, precision, given.threads)
    temperature = 1.0 if given.temperature is None else given.temperature
    writer.draws(temperature, given.seed, given.top_k, given.top_p)
    started = time.perf_counter()
    pixels = writer.picture(given.paint)
    took = time.perf_counter() - started
    try:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(given.out)
    except (OSError, ValueError) as error:
        raise Refusal(f"{given.out} cannot be written: {error}") from None
    noted = {"note": writer.note} if writer.note else {}
    return {"name": manifest["name"], "picture": given.out, "ms": 1000 * took, **noted}


def features(inputs: dict[str, Any], preprocess: dict[str, Any] | None) -> Any:
    """A table's columns as the model's own numbers: standardised, then one 0/1 per known category; a series standardised."""
    import numpy as np

    if not preprocess:
        raise Refusal("model.json does not say how columns become features; export the bundle again")
    parts = []
    if "series" in inputs:
        mean, std = np.asarray(preprocess["mean"], np.float32), np.asarray(preprocess["std"], np.float32)
        series = inputs["series"]
        to_end = np.cumsum(~np.isnan(series).all(axis=2)[:, ::-1], axis=1)[:, ::-1] > 0  # before a row's end
        return (np.where(np.isnan(series) & to_end[..., None], mean, series) - mean) / std
    if "numbers" in inputs:
        mean, std = np.asarray(preprocess["mean"], np.float32), np.asarray(preprocess["std"], np.float32)
        numbers = inputs["numbers"]
        parts.append((np.where(np.isnan(numbers), mean, numbers) - mean) / std)
    for place, values in enumerate(preprocess["categories"].values()):
        parts.append((inputs["categories"][:, place, None] == np.asarray(values)[None]).astype(np.float32))
    return np.concatenate(parts, axis=1)


def archive(path: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def in_batches(session: Any, inputs: dict[str, Any], batch: int) -> dict[str, Any]:
    """Answers to any number of rows."""
    import numpy as np

    rows = len(next(iter(inputs.values())))
    parts = [
        session({name: values[start : start + batch] for name, values in inputs.items()})
        for start in range(0, rows, batch)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def replay(
    session: Any, inputs: dict[str, Any], expected: dict[str, Any], facts: dict[str, Any], batch: int
) -> dict[str, Any]:
    """Answer the golden rows and compare with what the model answered where it was made."""
    import numpy as np

    found = in_batches(session, inputs, batch)
    usual = facts["parity"] if "parity" in facts else facts["difference"]
    beside = facts.get("others", {})  # of outputs such as maps, which a LiteRT file has none of
    gaps, limits = [], []
    for place, (name, values) in enumerate(expected.items()):
        if place and name not in found:
            continue
        fits = found[name].shape == values.shape
        if getattr(session, "drawer", None):
            # one other code changes all behind it, and one pixel value more or less is rounding
            apart = np.abs(found[name].astype(int) - values).max(axis=(1, 2, 3)) > 1 if fits else True
            gaps.append(float(np.mean(apart)))
            limits.append(0.5 if session.precision == "fp32" else 1.0)  # rounded weights choose other codes
        elif values.dtype.kind in "bU":  # names of things, or texts, of which one other token changes all behind it
            gaps.append(float(np.mean(found[name] != values)) if fits else float("inf"))
            limits.append(0.5 if values.dtype.kind == "U" else 2 * beside.get(name, usual) + 2e-3)
        else:
            gaps.append(float(np.abs(found[name] - values).max(initial=0.0)) if fits else float("inf"))
            limits.append(2 * beside.get(name, usual) + 1e-3 * max(1.0, float(np.abs(values).max(initial=0.0))))
        if not gaps[-1] <= limits[-1]:
            raise Refusal(
                f"the answers to the golden rows differ by {gaps[-1]:.3g} in {name!r}, at most {limits[-1]:.3g} is expected; "
                "this processor or runtime computes otherwise: run another --precision, or export on a machine like this"
            )
    return {"rows": len(next(iter(inputs.values()))), "difference": max(gaps), "allowed": min(limits)}


def clock(session: Any, examples: dict[str, Any], rows: int, seconds: float) -> dict[str, Any]:
    """Latency of a request of this many rows, in milliseconds, after warm-up."""
    import numpy as np

    feed = {name: np.resize(values, (rows, *values.shape[1:])) for name, values in examples.items()}
    for _ in range(3):
        session(feed)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 10000):
        started = time.perf_counter()
        session(feed)
        times.append(1000 * (time.perf_counter() - started))
    times.sort()
    return {
        "batch": rows,
        "median_ms": times[len(times) // 2],
        "p95_ms": times[int(0.95 * (len(times) - 1))],
        "runs": len(times),
    }


def peak_mb() -> float | None:
    """Largest resident memory of this process in units of 10**6 bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        if line.startswith(
            "VmHWM:"
        ):  # on Linux, where getrusage begins with the peak of the process that started this one
            return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def read(path: Path, manifest: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Raw inputs of the rows in a file, checked against the manifest, and a note on what was left out."""
    if not path.is_file():
        raise Refusal(f"no file called {str(path)!r}")
    kind = path.suffix.lower()
    names = [port["name"] for port in manifest["inputs"]]
    try:
        if kind in PICTURES:
            found = {names[0]: picture(path, manifest)}
        elif kind == ".npz":
            stored = archive(path)
            found = {name: stored[key] for name in names for key in (name, f"input/{name}") if key in stored}
        elif kind == ".wav":
            found = {names[0]: sound(path, manifest)}
        elif kind == ".npy":
            found = {names[0]: array(path)}
        elif kind == ".txt" and manifest["kind"] == "text":
            found = {names[0]: np_texts([path.read_text(encoding="utf-8-sig")])}
        elif kind == ".json":
            found = from_json(json.loads(path.read_text(encoding="utf-8")), manifest)
        elif kind == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                found = table(list(csv.DictReader(file)), manifest)
        else:
            raise Refusal(f"{path.name} is no picture, .wav, .npy, .npz, .json, .csv or .txt file; convert it to one")
    except (ValueError, TypeError, OSError) as error:
        raise Refusal(f"{path.name} cannot be read: {error}") from None
    note = ""
    if manifest["task"] == "forecasting" and names[0] in found:
        found[names[0]], note = latest(path, found[names[0]], manifest["inputs"][0]["shape"][1])
    return {port["name"]: checked(path, port, found, manifest) for port in manifest["inputs"]}, note


def latest(path: Path, steps: Any, most: int) -> tuple[Any, str]:
    """Of one series `(steps, columns)` the last steps, which a forecast is made from, and a note where there are others."""
    count = len(steps) if steps.ndim == 2 else most
    if count < most:
        raise Refusal(f"{path.name}: a forecast needs the last {most} steps, got {count}; give more of the past")
    if count == most:
        return steps, ""
    return steps[-most:], f"the forecast is made from the last {most} of {count} steps"


def np_texts(texts: list[Any]) -> Any:
    """Texts as an array, none of them blank."""
    import numpy as np

    blank = next((row for row, one in enumerate(texts, 1) if not isinstance(one, str) or not one.strip()), None)
    if blank is not None:
        raise Refusal(f"row {blank} has no text; write something")
    return np.asarray(texts, str)


def array(path: Path) -> Any:
    import numpy as np

    return np.load(path, allow_pickle=False)


def picture(path: Path, manifest: dict[str, Any]) -> Any:
    """Pixels of the model's size, read as for training: upright, grey or RGB, resized bilinearly."""
    import numpy as np

    if manifest["kind"] != "image":
        raise Refusal(f"the model takes {taken(manifest)}, not pictures such as {path.name}")
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise Refusal(
            "reading pictures needs Pillow; run: pip install Pillow, or give the pixels as a .npy file"
        ) from None
    _, height, width, channels = manifest["inputs"][0]["shape"]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise Refusal(f"the model takes {channels} channels, which no picture has; give the pixels as a .npy file")
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            raise Refusal(f"{path.name} has pixels of mode {upright.mode!r}; save it with 8 bits per channel")
        if upright.mode == "P":
            upright = upright.convert("RGBA")
        upright = upright.convert(mode)
        size = (upright.width if width < 0 else width, upright.height if height < 0 else height)
        if upright.size != size:
            upright = upright.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(upright, np.uint8).reshape(1, size[1], size[0], channels)


def taken(manifest: dict[str, Any]) -> str:
    """What a model takes, and in which files."""
    return {
        "image": "pictures",
        "audio": "recordings, of .wav files",
        "text": "texts, of .txt, .json or .csv files",
        "captioned": "pictures with texts, of .npz files",
    }.get(manifest["kind"], "columns, of .csv or .json files")


def sound(path: Path, manifest: dict[str, Any]) -> Any:
    """Amplitudes of a 16-bit WAV file at the model's rate, the mean of its channels."""
    import wave

    import numpy as np

    if manifest["kind"] != "audio":
        raise Refusal(f"the model takes {taken(manifest)}, not recordings such as {path.name}")
    try:
        with wave.open(str(path)) as file:
            width, rate, channels = file.getsampwidth(), file.getframerate(), file.getnchannels()
            said = file.getnframes() * width * channels
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise Refusal(
            f"{path.name} cannot be read: {str(error) or 'it ends too early'}; save it as 16-bit WAV"
        ) from None
    if len(frames) < said < UNKNOWN:
        raise Refusal(f"{path.name} is cut off: {len(frames):,} of {said:,} bytes of sound are there; copy it again")
    wanted = int(manifest["preprocess"]["rate"])
    if width != 2 or rate != wanted:
        raise Refusal(
            f"{path.name} has {8 * width} bits and {rate} samples per second; convert it to 16 bits and {wanted}"
        )
    frames = frames[: len(frames) // (2 * channels) * 2 * channels]  # a file may end within a sample
    return (np.frombuffer(frames, "<i2").reshape(-1, channels) / np.float32(32768)).mean(axis=1)


def from_json(body: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """Rows as objects by column; or tensors by input name."""
    import numpy as np

    names = {port["name"] for port in manifest["inputs"]}
    if manifest["kind"] == "text":
        rows = [row for row in (body if isinstance(body, list) else [body]) if isinstance(row, dict)]
        found = {}
        for name in sorted(names):
            given = [row.get(name) for row in rows]
            found[name] = np_texts(given[0] if len(given) == 1 and isinstance(given[0], list) else given)
        return found
    if isinstance(body, dict) and set(body) & names:
        return {name: np.asarray(values) for name, values in body.items()}
    rows = body if isinstance(body, list) else [body]
    if manifest["kind"] != "table" or not rows or not all(isinstance(row, dict) for row in rows):
        raise Refusal(f"JSON must be an object with {', '.join(sorted(names))}, or objects by column for a table")
    return table(rows, manifest)


def table(rows: list[dict[str, Any]], manifest: dict[str, Any]) -> dict[str, Any]:
    """Columns by name; what is absent or empty is missing, and what the model does not know is left out."""
    import numpy as np

    known = [column for port in manifest["inputs"] for column in port["columns"] or [port["name"]]]
    if not rows:
        raise Refusal("the file holds no rows")
    if not set(known) & set(rows[0]):
        raise Refusal(f"no column is one of the model's; it takes {', '.join(known[:20])}")
    if manifest["kind"] == "text":
        return {name: np_texts([row.get(name) for row in rows]) for name in known}
    found = {}
    for port in manifest["inputs"]:
        text_cells = port["dtype"] == "BYTES"
        cells = [[cell(row.get(column), column, text_cells) for column in port["columns"]] for row in rows]
        found[port["name"]] = np.asarray(cells, str if text_cells else np.float32)
    return found


def cell(value: Any, column: str, is_text: bool) -> Any:
    if is_text:
        return "" if value is None else str(value)
    if value is None or value == "":
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Refusal(f"column {column!r} must hold numbers, got {value!r}") from None


def checked(path: Path, port: dict[str, Any], found: dict[str, Any], manifest: dict[str, Any]) -> Any:
    """One input in its type and with a batch axis."""
    import numpy as np

    name, shape = port["name"], tuple(port["shape"])
    if name not in found:
        raise Refusal(
            f"{path.name} has no {name!r}; the model takes {', '.join(p['name'] for p in manifest['inputs'])}"
        )
    values = np.asarray(found[name])
    ends = manifest["kind"] in ("audio", "series") and manifest["task"] != "forecasting"
    single = values.dtype.kind in "buif" and values.ndim == len(shape) - 1
    if ends and single and (len(values) or manifest["kind"] == "audio"):
        room = shape[1] - len(values)
        if room < 0 and manifest["kind"] == "audio":
            rate = int(manifest["preprocess"]["rate"])
            seconds = f"{len(values) / rate:.2f} s, the model takes at most {shape[1] / rate:.2f} s"
            raise Refusal(f"{path.name} has {seconds}; cut it into parts")
        if room < 0:
            raise Refusal(
                f"{path.name} has {len(values)} steps, the model takes at most {shape[1]}; give a part of the series"
            )
        behind = ((0, room), *[(0, 0)] * (values.ndim - 1))  # NaN stands behind a row's end
        values = np.pad(values.astype(np.float32), behind, constant_values=np.nan)
    if (
        manifest["kind"] == "image" and shape[-1] == 1 and values.shape[-1:] != (1,)
    ):  # grey pixels without an axis for it
        values = values[..., None]
    if values.ndim == len(shape) - 1:
        values = values[None]
    if values.ndim != len(shape) or any(want not in (-1, got) for want, got in zip(shape, values.shape)):  # noqa: B905
        sizes = ", ".join(axis if size < 0 else str(size) for axis, size in zip(port["axes"], shape))  # noqa: B905
        raise Refusal(f"{path.name}: {name!r} must be ({sizes}), got {np.asarray(found[name]).shape}")
    if not len(values):
        raise Refusal(f"{path.name} holds no rows")
    if port["dtype"] == "BYTES":
        return values.astype(str)
    target = np.dtype(TYPES[port["dtype"]])
    if values.dtype.kind not in "buif":
        raise Refusal(f"{path.name}: {name!r} must hold numbers, got {values.dtype}")
    low, high = port["range"] or (-np.inf, np.inf)
    if target.kind in "iu" and ((values != np.rint(values)).any() or (values < low).any() or (values > high).any()):
        raise Refusal(f"{path.name}: {name!r} must hold whole numbers in {low:g} ... {high:g}")
    if manifest["kind"] == "audio":
        for wave in values:
            audible(path, wave, int(manifest["preprocess"]["rate"]))
    return values.astype(target)


def audible(path: Path, wave: Any, rate: int) -> None:
    """Refuse amplitudes `(samples,)` that a server would: too short, silent, or not known somewhere before their end."""
    import numpy as np

    known = np.flatnonzero(~np.isnan(wave))
    count = int(known[-1]) + 1 if len(known) else 0
    if not np.isfinite(wave[:count]).all():
        raise Refusal(f"{path.name} has values that are not finite before its end; give finite amplitudes")
    if count < SHORTEST * rate:
        raise Refusal(f"{path.name} has {count / rate:.2f} s, the least is {SHORTEST:g} s; give a longer one")
    if np.abs(wave[:count]).max() <= QUIET:
        raise Refusal(f"{path.name} is silent; check the microphone and record it again")


def noted_answers(
    session: Any, inputs: dict[str, Any], note: str, manifest: dict[str, Any], given: argparse.Namespace
) -> list[dict[str, Any]]:
    """The same as `answers`, with a note, and of each text that the model did not read to its end how far it did."""
    found = answers(session, inputs, manifest, given)
    if note:
        found = [{**one, "note": note} for one in found]
    tokenizer = getattr(session, "tokenizer", None) or getattr(session, "texts", None)
    if tokenizer is None:
        return found
    read = tokenizer.encode_batch(texts_of(inputs))
    return [{**one, "note": cut(each)} if each.overflowing else one for one, each in zip(found, read)]  # noqa: B905


def cut(read: Any) -> str:
    """What is said of a text that has more tokens than the model reads."""
    return f"only the first {len(read.ids)} tokens were read, the rest was cut off"


def answers(
    session: Any, inputs: dict[str, Any], manifest: dict[str, Any], given: argparse.Namespace
) -> list[dict[str, Any]]:
    """What the model answers, as people read it, one entry per row."""
    import numpy as np

    outputs = in_batches(session, inputs, given.batch)
    if manifest["task"] == "segmentation":
        return [covered(mask, manifest["labels"]) for mask in outputs["mask"]]
    if manifest["task"] == "detection":
        rows = zip(outputs["boxes"], outputs["scores"], outputs["classes"].tolist())  # noqa: B905
        return [boxed(*row, manifest["labels"]) for row in rows]
    if manifest["task"] == "image-text":
        cosines = (outputs["image_embedding"] * outputs["text_embedding"]).sum(axis=1)
        return [{"cosine": float(one), "logit": float(other)} for one, other in zip(cosines, outputs["logit"])]  # noqa: B905
    if manifest["task"] == "speech-recognition":
        return [{"text": heard(shares, manifest["labels"], given.beams)} for shares in outputs["probabilities"]]
    if manifest["task"] == "embedding":
        return [{"embedding": row.tolist()} for row in outputs["embedding"]]
    output = outputs[manifest["outputs"][0]["name"]]
    if manifest["task"] == "token-classification":
        texts = inputs[manifest["inputs"][0]["name"]].tolist()
        return [tagged(text, own, session.tokenizer, manifest["labels"]) for text, own in zip(texts, output)]  # noqa: B905
    if manifest["task"] == "text-to-image":
        raise Refusal("a picture is painted of one text; give it with --paint")
    if manifest["task"] == "masked-language-modelling":
        raise Refusal(f"{manifest['task']} has an answer for each place of a row, which nothing is told of here")
    found: list[dict[str, Any]] = []
    if output.dtype.kind == "U":
        return [{"text": str(row)} for row in output]
    if manifest["task"] == "language-modelling":  # a text that is shorter than the row has padding behind it
        sizes = session.sizes(inputs)
        bits = [-float(row[: size - 1].sum()) / math.log(2) for row, size in zip(output, sizes)]  # noqa: B905
        return [{"bits": own, "tokens": size} for own, size in zip(bits, sizes)]  # noqa: B905
    for row in output:
        if manifest["task"] == "forecasting":
            found.append({"target": manifest["labels"][0].rpartition("+")[0], "forecast": row.tolist()})
        elif manifest["task"] == "regression":
            found.append({"target": manifest["labels"][0], "value": float(row[0])})
        else:
            best = np.argsort(-row, kind="stable")[: given.top]
            ranked = [{"label": manifest["labels"][i], "probability": round(float(row[i]), 6)} for i in best]
            found.append({**ranked[0], "top": ranked})
    return found


def heard(shares: Any, labels: list[str], beams: int) -> str:
    """What is said in a recording: along the likeliest symbol of each step, or the likeliest of some texts that are followed.

    Source: Hannun et al. 2014 (arXiv:1408.2873), algorithm 1, without a language model; the first symbol is the blank.
    """
    import numpy as np

    best = shares.argmax(axis=1).tolist()
    said = tuple(one for place, one in enumerate(best) if one and (not place or one != best[place - 1]))
    if beams > 1:
        # text -> probability of its ways that end in a blank, and of the others
        texts: dict[Any, tuple[float, float]] = {(): (1.0, 0.0)}
        for line in shares.astype(np.float64):
            new: dict[Any, list[float]] = {}
            for text, (blank, other) in texts.items():
                for symbol in np.flatnonzero(line >= 1e-6).tolist():
                    again = text[-1:] == (symbol,)  # a symbol twice needs a blank between
                    if symbol:
                        new.setdefault((*text, symbol), [0.0, 0.0])[1] += line[symbol] * (blank + other * (not again))
                    if again or not symbol:
                        new.setdefault(text, [0.0, 0.0])[again] += line[symbol] * (other + blank * (not symbol))
            ranked = sorted(new, key=lambda text: (-sum(new[text]), text))[:beams]
            whole = sum(new[ranked[0]])  # so that no number becomes too small
            texts = {text: (new[text][0] / whole, new[text][1] / whole) for text in ranked}
        said = next(iter(texts))
    return " ".join("".join(labels[symbol] for symbol in said).split())


def compare(told: list[dict[str, Any]], limit: float | None) -> None:
    """Add to each embedding but the first how near it is to that, and whether both are of one identity."""
    for one in told[1:]:
        one["similarity"] = sum(a * b for a, b in zip(told[0]["embedding"], one["embedding"]))  # noqa: B905
        if limit is not None:
            one["same"] = one["similarity"] > limit


def tagged(text: str, shares: Any, tokenizer: Any, labels: list[str]) -> dict[str, Any]:
    """Marked parts of a text: a word's label is that of its first token, and a part begins with B or another kind."""
    one = tokenizer.encode(text)
    spans: list[dict[str, Any]] = []
    last, word = "", None
    for place, (number, (start, end)) in enumerate(zip(one.word_ids, one.offsets)):  # noqa: B905
        if number is None or number == word:
            if spans and number is not None and last:
                spans[-1]["end"] = end
            continue
        word = number
        border, _, kind = labels[int(shares[place].argmax())].partition("-")
        if kind and border == "I" and kind == last:
            spans[-1]["end"] = end
        elif kind:
            blank = len(text[start:end]) - len(text[start:end].lstrip())
            spans.append({"label": kind, "start": start + blank, "end": end})
        last = kind
    return {"spans": [{**span, "text": text[span["start"] : span["end"]]} for span in spans]}


def covered(mask: Any, labels: list[str]) -> dict[str, Any]:
    """How much of a picture each label covers, largest share first."""
    shares = [(label, float((mask == place).mean())) for place, label in enumerate(labels)]
    ranked = sorted((pair for pair in shares if pair[1]), key=lambda pair: -pair[1])
    return {"shares": [{"label": label, "share": round(share, 6)} for label, share in ranked]}


def boxed(boxes: Any, scores: Any, classes: list[int], labels: list[str]) -> dict[str, Any]:
    """Boxes with a score of 0.5 or more: left, top, right, bottom in pixels of the model's input."""
    found = zip(boxes.tolist(), scores.tolist(), classes)  # noqa: B905
    return {
        "boxes": [
            {"label": labels[kind], "score": round(score, 6), "box": [round(place, 3) for place in box]}
            for box, score, kind in found
            if score >= 0.5
        ]
    }


def text(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    noted = f"; {report['note']}" if "note" in report else ""
    if "picture" in report:
        return f"{report['picture']} (painted in {report['ms']:.0f} ms{noted})"
    if "text" in report:
        return f"{report['text']}\n({report['tokens']} tokens, {report['tokens_a_second']:.1f} a second{noted})"
    same = report["replay"]
    score = "" if report["score"] is None else f", {report['metric']} {report['score']:.4f} where it was made"
    peak = "not known on this system" if report["peak_mb"] is None else f"{report['peak_mb']:.0f} MB at most"
    lines = [
        f"{report['name']} {report['version']} ({report['architecture']}, {report['task']})",
        f"hashes   {report['files_verified']} files agree with SHA256SUMS",
        f"file     {report['file']}, {report['precision']}, {report['bytes']:,} bytes{score}",
        f"engine   {report['engine']}, threads: {report['threads']}",
        f"replay   {same['rows']} golden rows agree: largest difference {same['difference']:.2g}, allowed {same['allowed']:.2g}",
        f"start    import {report['import_s']:.2f} s, load {report['load_ms']:.1f} ms, first answer {report['first_ms']:.2f} ms",
    ]
    for timed in report.get("latency", ()):
        lines.append(
            f"latency  {timed['batch']:>4} rows: median {timed['median_ms']:.3f} ms, 95 % within {timed['p95_ms']:.3f} ms "
            f"({timed['runs']} runs)"
        )
    lines.append(f"memory   {peak}")
    for answer in report.get("answers", ()):
        if "text" in answer:
            lines.append(f"{answer['source']}: {answer['text']}")
        elif "bits" in answer:
            lines.append(f"{answer['source']}: {answer['bits']:.1f} bits in {answer['tokens']} tokens")
        elif "cosine" in answer:
            lines.append(f"{answer['source']}: cosine {answer['cosine']:.4f}, logit {answer['logit']:.3f}")
        elif "forecast" in answer:
            values = ", ".join(f"{value:.6g}" for value in answer["forecast"])
            lines.append(f"{answer['source']}: {answer['target']} {values}")
        elif "value" in answer:
            lines.append(f"{answer['source']}: {answer['target']} {answer['value']:.6g}")
        elif "embedding" in answer:
            numbers = ", ".join(f"{number:.4f}" for number in answer["embedding"][:3])
            told = f"{len(answer['embedding'])} numbers, {numbers} ..."
            if "similarity" in answer:
                told += f"; similarity to the first row {answer['similarity']:.4f}"
            if "same" in answer:
                told += ", the same" if answer["same"] else ", another"
            lines.append(f"{answer['source']}: {told}")
        elif "boxes" in answer:
            boxes = ", ".join(f"{each['label']} {each['score']:.2f} {each['box']}" for each in answer["boxes"])
            lines.append(f"{answer['source']}: {boxes or 'nothing'}")
        elif "spans" in answer:
            spans = ", ".join(f"{part['label']} {part['text']!r}" for part in answer["spans"])
            lines.append(f"{answer['source']}: {spans or 'nothing'}")
        elif "shares" in answer:
            shares = ", ".join(f"{part['label']} {part['share']:.1%}" for part in answer["shares"])
            lines.append(f"{answer['source']}: {shares}")
        else:
            ranked = ", ".join(f"{best['label']} {best['probability']:.4f}" for best in answer["top"])
            lines.append(f"{answer['source']}: {ranked}")
        if "note" in answer:
            lines[-1] += f" ({answer['note']})"
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
