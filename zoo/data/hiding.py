"""Hidden words: which tokens of a text a model is not shown, so that it learns to find them from those around.

Devlin, Chang, Lee & Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019 (arXiv:1810.04805),
section 3.1 and appendix A.1, which the shares below are from.
"""

from dataclasses import replace

import numpy as np

from zoo.data import corpus
from zoo.data.rows import Rows
from zoo.data.targets import NOTHING
from zoo.data.texts import TextPreprocess

TASK = "masked-language-modelling"
SHARE = 0.15  # of the tokens of a text that are asked for
_MASKED, _OTHER = 0.8, 0.1  # of these, shown as the mask, and as any other token; the rest is shown as it is


def without_labels(rows: Rows, task: str = TASK) -> Rows:
    """The texts of any data set, to learn from without its labels.

    Args:
        rows: what was read.
        task: this one, or language modelling.

    Raises:
        ValueError: it has no texts.
    """
    if "text" not in getattr(rows, "x", {}):
        raise ValueError(f"{task} is learned from texts, and {rows.name!r} has none; leave the task out")
    pieces = rows.task == corpus.TASK  # which say what they are of
    y = rows.y if pieces else np.zeros((len(rows.y), 1), np.int32)
    return replace(rows, task=task, x={"text": rows.x["text"]}, y=y, labels=())


def hidden(step: TextPreprocess, whole: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Texts with some tokens hidden, and which ones these are.

    Of each text 15 % of the tokens are asked for, at least one, special tokens never. Of these 80 % are shown as `[MASK]`, 10 %
    as any token and 10 % as they are.

    Args:
        step: tokenizer, which has a token for what is hidden.
        whole: tokens int32 (rows, length).
        generator: that draws.

    Returns:
        What is shown, int32 (rows, length), and the true tokens of the places that are asked for, `NOTHING` elsewhere.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    if step.mask is None:
        raise ValueError(
            f"{TASK} needs a tokenizer with a token for what is hidden, [MASK]; make one with tokenizer=wordpiece:8000, or give "
            "a tokenizer.json that has it"
        )
    special = np.array(step.special, np.int32)
    draw = generator.random(whole.shape)
    draw[np.isin(whole, special)] = 2.0
    there = (draw < 2).sum(axis=1)
    count = np.where(there, np.maximum(1, np.rint(SHARE * there)), 0)  # as the authors' program counts them
    asked = draw.argsort(axis=1).argsort(axis=1) < count[:, None]
    how = generator.random(whole.shape)
    any_other = np.setdiff1d(np.arange(step.vocabulary, dtype=np.int32), special)[
        generator.integers(0, step.vocabulary - len(np.unique(special)), whole.shape)
    ]
    shown = np.where(asked & (how < _MASKED), np.int32(step.mask), whole)
    shown = np.where(asked & (how >= _MASKED) & (how < _MASKED + _OTHER), any_other, shown)
    return shown.astype(np.int32), np.where(asked, whole, NOTHING).astype(np.int32)


def of_split(
    step: TextPreprocess, x: dict[str, np.ndarray], generator: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Raw inputs of texts with what is shown of them as `tokens`, and the targets, see `zoo.data.targets.Hidden`."""
    shown, asked = hidden(step, step({"text": x["text"]}), generator)
    return {"text": x["text"], "tokens": shown}, asked
