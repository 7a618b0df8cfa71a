"""Write gpt.npz: what GPT-2 of Hugging Face transformers answers, alone and with its head, for weights that a seed gives.

    python tests/golden/make_gpt.py        (needs torch and transformers; nothing of this package)

The file holds no weights, see make_resnet.py.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("gpt.npz")
VOCABULARY, POSITIONS = 40, 18
SIZES = {  # kind -> class, width, depth, heads, hidden (None for 4 times the width), and what is read
    "bare": ("GPT2Model", 20, 2, 5, None, "last_hidden_state"),
    "language": ("GPT2LMHeadModel", 24, 3, 3, 40, "logits"),
    "one_head": ("GPT2LMHeadModel", 14, 1, 1, None, "logits"),
}


def tokens(rows=4, length=15):
    """Whole numbers (rows, length); some rows end early and are filled up with 0."""
    found = np.random.RandomState(3).randint(1, VOCABULARY, (rows, length)).astype(np.int32)
    for row, end in enumerate((15, 9, 1, 12)):
        found[row, end:] = 0
    return found


def model_of(kind):
    transformers = references.transformers()
    name, width, depth, heads, hidden, _ = SIZES[kind]
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=width,
        n_layer=depth,
        n_head=heads,
        n_inner=hidden,
        n_positions=POSITIONS,
        bos_token_id=1,
        eos_token_id=1,
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
        found = model(input_ids=torch.from_numpy(given).long(), attention_mask=torch.from_numpy(present).long())
    return shapes, getattr(found, SIZES[kind][-1]).numpy() * present[..., None]


if __name__ == "__main__":
    references.save(PLACE, SIZES, torch_answers)
