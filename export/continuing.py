"""The files of a bundle that write texts, or the codes of pictures: a decoder that takes a step and the encoder in front of it,
in every stored form.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from export import ExportError, files, lowbit, painting, parity, stepwise
from export.forms import GOLDEN
from serve.generation import Ask, Running
from serve.manifest import Manifest, Precision
from serve.painting import Painting, paint
from zoo import tasks
from zoo.data import tokens
from zoo.data.signature import TOKENIZER, Signature
from zoo.data.texts import TextPreprocess

FILES = {  # of the forms in which the weights of a decoder are stored; 8 bits are 8 bits, whatever the scored file has
    "fp32": ("decoder.onnx", "encoder.onnx"),
    "fp16": ("decoder.fp16.onnx", "encoder.fp16.onnx"),
    "w8": ("decoder.w8.onnx", "encoder.w8.onnx"),
    "w4": ("decoder.w4.onnx", "encoder.w4.onnx"),
}
_FORM = {"int8": "w8"}
_VALUES = 2**28  # logits that are compared at most
_TRIED = 24  # tokens of a row that are compared, for time; behind the text where pictures are painted
_END = "<|endoftext|>"  # behind every text that published GPT models have learned from


def write(
    model: Any, signature: Signature, folder: Path, rows: parity.Arrays, precisions: Iterable[str], **options: Any
) -> dict[str, Any]:
    """Write decoder and encoder in each form, compared with the model itself.

    Args:
        model: Keras model that answers for every place, or that paints.
        signature: whose preprocessing holds the tokenizer.
        folder: of the bundle.
        rows: what the exported file takes, by name.
        precisions: forms of the scored file that the bundle has, "fp32" among them.
        options: `opset`, `external_above` and `tolerance`.

    Returns:
        `Manifest.generation`.

    Raises:
        ExportError: the model cannot take steps, or they give other logits than the model.
    """
    tolerance, most, more = options.pop("tolerance", parity.TOLERANCE), _TRIED, {}
    halves = painting.apart(model) if tasks.get(signature.task).paints else None
    if halves is not None:
        more = painting.write_drawer(halves, folder, **options)
        rows = halves.read(signature, {name: values[:GOLDEN] for name, values in rows.items()})
        most, model = most + _texts(signature).length, halves.writer
    steps = stepwise.split(model)
    stepwise.write_steps(steps, folder, FILES["fp32"], **options)
    trial = Trial(model, steps, rows, most)
    try:
        gap = trial.gap(folder, FILES["fp32"])
    except ExportError:
        raise
    except Exception as error:  # ONNX Runtime raises its own types, which share no public base
        raise ExportError(f"{model.name!r} does not run in steps: {' '.join(str(error).split())[:300]}") from error
    allowed = tolerance * max(1.0, trial.largest)
    if not gap <= allowed:
        raise ExportError(
            f"{model.name!r} in steps gives logits that differ by {gap:.3g} from those of the whole text, allowed is "
            f"{allowed:.3g}: a layer looks at other places, and does not say so by Attention or `start`"
        )
    borders = {"start": [], "end": -1, "picture": halves.block} if halves else _borders(signature)
    block: dict[str, Any] = {**steps.block, **borders, "files": {}, "refused": {}}
    for precision in precisions:
        form, gap_of = _FORM.get(precision, precision), gap
        if form != "fp32" and not (folder / FILES[form][0]).exists():
            try:
                _shortened(folder, form, trial)
            except ExportError as error:  # small matrices only, or too much is lost
                block["refused"][precision] = str(error)
        if (folder / FILES[form][0]).exists() and form != "fp32":
            gap_of = trial.gap(folder, FILES[form])
        else:
            form = "fp32"
        block["files"][precision] = _described(folder, FILES[form], gap_of, **more)
    return block


def alone(model: Any, signature: Signature, folder: Path, precisions: Iterable[str] = ("fp32",)) -> Manifest:
    """The least that `serve.generation.Running` needs of a bundle, where nothing else is wanted of one.

    Args:
        model: Keras model that answers for every place.
        signature: with the tokenizer.
        folder: where decoder, encoder and tokenizer go.
        precisions: forms to write.
    """
    precisions = tuple(precisions)
    rows = parity.sample(model, signature)
    block = write(model, signature, folder, rows, precisions)
    (folder / TOKENIZER).write_text(_texts(signature).tokenizer, encoding="utf-8")
    return Manifest(
        name=model.name,
        version="0",
        architecture=model.name,
        task=signature.task,
        kind="text",
        inputs=(),
        outputs=(),
        labels=(),
        metric="",
        precisions={key: Precision(FILES["fp32"][0], 0, 0.0) for key in precisions},
        preprocess={"tokenizer": TOKENIZER},
        generation=block,
    )


def _borders(signature: Signature) -> dict[str, Any]:
    """`start`: tokens in front of what is written, or of a text without any; `end`: the one behind it, -1 for none."""
    step = _texts(signature)
    if step.answer:
        return {"start": [step.start], "end": -1 if step.end is None else step.end}
    around = tokens.borders(step.tokenizer)
    ends = tokens.opened(step.tokenizer).token_to_id(_END) if not around else around[-1]
    return {"start": [] if ends is None else [ends], "end": -1 if ends is None else ends}


def _texts(signature: Signature) -> TextPreprocess:
    """The step of a signature that has a tokenizer.

    Raises:
        ExportError: it has none.
    """
    if signature.text is None:
        kind = signature.preprocess.kind
        raise ExportError(f"a model that writes needs texts and a tokenizer, got inputs of the kind {kind!r}")
    return signature.text


def _shortened(folder: Path, form: str, trial: "Trial") -> None:
    """Both files in another form; a form that loses too much leaves nothing behind."""
    try:
        for name, new, feed in zip(FILES["fp32"], FILES[form], (trial.first(folder), trial.source), strict=True):
            source, path = folder / name, folder / new
            if not source.exists():
                continue
            if form == "fp16":
                lowbit.to_float16(source, path, golden=feed)
            else:  # with a range for each row: one for all at once would let a row change another's answer
                lowbit.to_low_bit(source, path, bits=int(form[1:]), by_row=True, golden=feed)
    except ExportError:
        for name in FILES[form]:
            for left in (folder / name, files.weights_of(folder / name)):
                left.unlink(missing_ok=True)
        raise


def _described(folder: Path, names: tuple[str, str], gap: float, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"parity": gap, "bytes": 0, **more}
    for what, name in zip(("decoder", "encoder"), names, strict=True):
        path, weights = folder / name, files.weights_of(folder / name)
        found[what] = name if path.exists() else ""
        found[f"{what}_weights"] = weights.name if weights.exists() else ""
        found["bytes"] += sum(each.stat().st_size for each in (path, weights) if each.exists())
    return found


class Trial:
    """Rows that are written again step by step, with the tokens they have, and compared with the whole model.

    Attributes:
        source: what the encoder reads, by name; empty without one.
        largest: of the logits, without their sign.
    """

    def __init__(self, model: Any, steps: stepwise.Steps, rows: parity.Arrays, most: int = _TRIED) -> None:
        """Ask the whole model.

        Args:
            model: Keras model.
            steps: of it.
            rows: its inputs by name; every row is read up to its last token that is not the row's commonest end.
            most: tokens of a row that are compared.
        """
        self.steps = steps
        name = next(name for name in stepwise.WRITTEN if name in rows)
        size = rows[name].shape[1] * model.outputs[0].shape[-1]
        count = max(2, min(GOLDEN // 2, _VALUES // size))
        some = {key: values[:count] for key, values in rows.items()}
        self.tokens = some.pop(name)
        self.source = some if steps.encoder is not None else {}
        self.whole = parity.keras_answers(model, None, {name: self.tokens, **some})["logits"]
        self.lengths = [_filled(row, most) for row in self.tokens]
        self.largest = float(np.abs(self.whole).max())

    def _crossed(self, folder: Path, name: str) -> parity.Arrays:
        return parity.run(parity.session(folder / name), self.source) if self.source else {}

    def _begun(self, crossed: parity.Arrays, rows: slice, length: int) -> parity.Arrays:
        """What the decoder takes to read the first tokens of rows."""
        tokens, block = self.tokens[rows, :length], self.steps.block
        feed = {"tokens": tokens, "cached": np.zeros((len(tokens), 1), np.int32)}
        for one in block["caches"]:
            heads, _, size = one["shape"]
            feed[one["name"]] = np.zeros((len(tokens), heads, length, size), np.float32)
        for one in block["states"]:
            first = crossed[one["first"]][rows] if one["first"] else np.zeros((len(tokens), *one["shape"]), np.float32)
            feed[one["name"]] = first
        return feed | {name: crossed[name][rows] for name in block["crossing"]}

    def first(self, folder: Path) -> parity.Arrays:
        """Inputs of a first step of several rows, for those who compare two forms of the decoder."""
        found = self._begun(self._crossed(folder, FILES["fp32"][1]), slice(None), max(1, min(self.lengths)))
        asked = {tensor.name for tensor in self.steps.decoder.inputs}
        return {name: values for name, values in found.items() if name in asked}

    def gap(self, folder: Path, names: tuple[str, str]) -> float:
        """Largest distance of the files' logits from the whole model's, rows of different length being in one batch.

        Args:
            folder: where the files are.
            names: of decoder and encoder.
        """
        live, crossed = parity.session(folder / names[0]), self._crossed(folder, names[1])
        caches = [one["name"] for one in self.steps.block["caches"]]
        states = [one["name"] for one in self.steps.block["states"]]
        rows, largest = len(self.tokens), 0.0
        read = [max(1, length // 2 - row % 3) for row, length in enumerate(self.lengths)]
        feed = self._begun(crossed, slice(None), 1)
        for name in caches:
            feed[name] = np.zeros((rows, feed[name].shape[1], max(self.lengths), feed[name].shape[3]), np.float32)
        for row, length in enumerate(read):
            own = slice(row, row + 1)
            found = _run(live, self._begun(crossed, own, length))
            largest = max(largest, parity.distance(found["logits"][0], self.whole[row, length - 1]))
            for name in caches:
                feed[name][row, :, :length] = found[f"{name}{stepwise.NEW}"][0]
            for name in states:
                feed[name] = np.array(feed[name])
                feed[name][row] = found[f"{name}{stepwise.NEW}"][0]
        while any(at < length for at, length in zip(read, self.lengths, strict=True)):
            at = np.minimum(read, np.array(self.lengths) - 1)
            feed["tokens"], feed["cached"] = self.tokens[np.arange(rows), at][:, None], at[:, None].astype(np.int32)
            found = _run(live, feed)
            for row in range(rows):
                if read[row] >= self.lengths[row]:
                    continue
                largest = max(largest, parity.distance(found["logits"][row], self.whole[row, read[row]]))
                for name in caches:
                    feed[name][row] = found[f"{name}{stepwise.NEW}"][row]
                for name in states:
                    feed[name][row] = found[f"{name}{stepwise.NEW}"][row]
                read[row] += 1
        return largest


def _run(live: Any, feed: parity.Arrays) -> parity.Arrays:
    """Answers of a decoder, which may ask for less than all decoders do."""
    asked = {port.name for port in live.get_inputs()}
    return parity.run(live, {name: values for name, values in feed.items() if name in asked})


def _filled(row: np.ndarray, most: int) -> int:
    """Tokens of a row without those that fill it up, which are all alike."""
    differs = np.flatnonzero(row != row[-1])
    return min(most, int(differs[-1]) + 1 if len(differs) else len(row))


def written(folder: Path, manifest: Manifest, texts: Iterable[str], step: Any) -> np.ndarray:
    """What the float files of a bundle write behind texts, the likeliest token after the likeliest.

    Args:
        folder: of the bundle, whose manifest need not be there yet.
        manifest: which it will be.
        texts: that begin.
        step: preprocessing of texts that are answered by texts.
    """
    running, said = Running(folder, manifest, "fp32"), dict[int, str]()
    for text in texts:
        said[running.add(str(text), Ask(most=step.answer))] = ""
    while not running.idle:
        for number, piece in running.step():
            said[number] += piece.text
    return np.array(list(said.values()), str)


def painted(folder: Path, manifest: Manifest, texts: Iterable[str]) -> np.ndarray:
    """What the float files of a bundle paint of texts, the likeliest code after the likeliest; uint8 (texts, …)."""
    texts = [str(text) for text in texts]
    return paint(Painting(folder, manifest, "fp32"), texts, [Ask()] * len(texts))
