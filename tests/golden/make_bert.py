"""Write bert.npz: what BERT of Hugging Face transformers answers, alone and with each head, for weights that a seed gives.

    python tests/golden/make_bert.py        (needs torch and transformers; nothing of this package)

The file holds no weights, see make_resnet.py.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("bert.npz")
VOCABULARY, POSITIONS, CLASSES, SEPARATOR = 50, 20, 5, 3
SIZES = {  # kind -> class, width, depth, heads, hidden, and what is read
    "encoder": ("BertModel", 24, 2, 3, 96, "last_hidden_state"),
    "classification": ("BertForSequenceClassification", 20, 3, 5, 36, "logits"),
    "tokens": ("BertForTokenClassification", 28, 1, 7, 64, "logits"),
    "vocabulary": ("BertForMaskedLM", 24, 2, 3, 96, "logits"),
    "pretraining": ("BertForPreTraining", 32, 1, 1, 20, "prediction_logits"),
}


def tokens(rows=5, length=14):
    """Whole numbers (rows, length): one or two texts in each row, each with a separator behind it, then 0."""
    random = np.random.RandomState(3)
    found = random.randint(4, VOCABULARY, (rows, length)).astype(np.int32)
    for row, (middle, end) in enumerate([(5, 13), (0, 13), (3, 8), (2, 6), (0, 1)]):
        found[row, end], found[row, end + 1 :] = SEPARATOR, 0
        if middle:
            found[row, middle] = SEPARATOR
    return found


def segments(given):
    """0 up to the first separator, then 1; 0 in padding, as tokenizers have it."""
    found = np.zeros_like(given)
    for row, own in enumerate(given.tolist()):
        if own.count(SEPARATOR) > 1:
            first = own.index(SEPARATOR)
            found[row, first + 1 : first + 2 + own[first + 1 :].index(SEPARATOR)] = 1
    return found


def model_of(kind):
    transformers = references.transformers()
    name, width, depth, heads, hidden, _ = SIZES[kind]
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        max_position_embeddings=POSITIONS,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    return getattr(transformers, name)(config)


def torch_answers(kind, seed=0):
    """Shapes in the file that the library writes, and answers to `tokens()`, 0 where there is no token."""
    import torch

    shapes, model = references.rewritten(model_of(kind), seed, attn_implementation="eager")
    given = tokens()
    present = given != 0
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(given).long(),
            attention_mask=torch.from_numpy(present).long(),
            token_type_ids=torch.from_numpy(segments(given)).long(),
        )
    answers = getattr(found, SIZES[kind][-1]).numpy()
    return shapes, answers * present[..., None] if answers.ndim == 3 else answers


if __name__ == "__main__":
    references.save(PLACE, SIZES, torch_answers)
