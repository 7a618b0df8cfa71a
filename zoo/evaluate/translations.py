"""Answers that a text-to-text model writes on its own, the likeliest token after the likeliest, and how near they are to true ones.

The same function writes for a run and for a bundle; the bundle's files keep what they computed for earlier places, a Keras model
computes it again for each token.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.data.signature import Signature
from zoo.tasks import together
from zoo.tasks.translation import right

MOST = 500  # rows that answers are written for
_BATCH = 128


def written(
    model: Any, signature: Signature, texts: Sequence[str], precision: str | None = None, beams: int = 1
) -> list[str]:
    """What a model answers to texts.

    Args:
        model: Keras model, run or bundle.
        signature: with the tokenizer; a bundle has its own.
        texts: to be answered.
        precision: form of a bundle, its default if None.
        beams: answers that a bundle follows at once, see `serve.sampling.Ask`.

    Raises:
        ValueError: the bundle has no files that write texts, or several beams are asked of a run.
    """
    if hasattr(model, "manifest"):
        return _by_files(model, list(map(str, texts)), precision, beams)
    if beams > 1:
        raise ValueError(
            f"a run writes the likeliest token after the likeliest, got beams={beams}; export it and judge the bundle"
        )
    network = getattr(model, "model", model)
    size = together(network, _BATCH)
    return [
        text
        for start in range(0, len(texts), size)
        for text in _by_network(network, signature, texts[start : start + size], size)
    ]


def _by_files(bundle: Any, texts: list[str], precision: str | None, beams: int) -> list[str]:
    from serve.generation import Ask, Running

    if not bundle.manifest.generation:
        raise ValueError(
            f"bundle {bundle.manifest.name!r} has no files that write texts; export the run again, or judge the run"
        )
    running, said = Running(bundle.folder, bundle.manifest, precision), {}
    ask = Ask(most=bundle.manifest.generation["length"] - 1, beams=beams)  # one place is the start's
    size = max(1, _BATCH // beams)
    for start in range(0, len(texts), size):
        own = {running.add(text, ask): start + place for place, text in enumerate(texts[start : start + size])}
        said |= dict.fromkeys(own.values(), "")
        while not running.idle:
            for number, piece in running.step():
                said[own[number]] += piece.text
    return [said[place] for place in range(len(texts))]


def _by_network(network: Any, signature: Signature, texts: Sequence[str], size: int) -> list[str]:
    """One batch; the network reads all places again for each token."""
    step = signature.preprocess
    inputs = step({"text": np.resize(np.asarray(texts), size)})  # one shape for all batches
    answer, over = inputs["answer"], np.zeros(size, bool)
    for place in range(step.answer - 1):
        logits = np.asarray(network.predict_on_batch(inputs))
        answer[:, place + 1] = np.where(over, step.pad, logits[:, place].argmax(axis=-1))
        over |= answer[:, place + 1] == step.end
        if over.all():
            break
    return [step.written(row[1:]) for row in answer[: len(texts)]]


def completed(
    model: Any,
    signature: Signature,
    y: np.ndarray,
    scored: np.ndarray,
    x: dict[str, np.ndarray],
    precision: str | None,
    beams: int = 1,
) -> list[str]:
    """What a model writes for the first 500 rows.

    Where each likeliest token is the true one, that is the true tokens' text; several beams may have found a likelier one.

    Args:
        model, signature, precision, beams: as of `written`.
        y: targets, see `zoo.data.targets.Answers`.
        scored: as `zoo.tasks.translation` scores.
        x: raw inputs.
    """
    exact = right(y[:MOST], scored[:MOST]) & (beams == 1)
    said = [signature.preprocess.written(row[1:]) for row in y[:MOST]]
    wrong = np.flatnonzero(~exact)
    for row, text in zip(
        wrong, written(model, signature, x["text"][wrong], precision, beams) if len(wrong) else [], strict=True
    ):
        said[row] = text
    return said


def scores(said: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """How near written answers are to the true ones, one for each.

    Returns:
        `bleu` and `chrf`, 0 … 100, as sacrebleu counts them (Papineni et al. 2002, Popović 2015; Post 2018, arXiv:1804.08771);
        `exact_match`, the share that are the same but for white space; and `rows`.

    Raises:
        ImportError: sacrebleu is not installed.
        ValueError: not as many of both, or none.
    """
    if len(said) != len(true) or not len(true):
        raise ValueError(f"as many written as true answers are needed, at least one, got {len(said)} and {len(true)}")
    try:
        import sacrebleu
    except ImportError:
        raise ImportError(
            "BLEU and chrF need sacrebleu, which is not installed; run: pip install 'zooroad[train]'"
        ) from None
    said, true = list(map(str, said)), list(map(str, true))
    return {
        "bleu": sacrebleu.corpus_bleu(said, [true]).score,
        "chrf": sacrebleu.corpus_chrf(said, [true]).score,
        "exact_match": float(np.mean([one.split() == other.split() for one, other in zip(said, true, strict=True)])),
        "rows": len(said),
    }
