"""Write transformer.npz: what nn.Transformer of PyTorch answers between embeddings, for weights that a seed gives.

    python tests/golden/make_transformer.py        (needs torch; nothing of this package)

The file holds no weights, see make_resnet.py. nn.Transformer normalises once more behind either stack, which the paper does not;
here it is made of stacks that do not.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("transformer.npz")
VOCABULARY = 30
SIZES = {"even": (24, 2, 4, 96), "odd": (21, 3, 3, 40)}  # width, depth, heads, hidden


def tokens(length, ends):
    """Whole numbers (rows, length); rows end early and are filled up with 0."""
    found = np.random.RandomState(length).randint(1, VOCABULARY, (len(ends), length)).astype(np.int32)
    for row, end in enumerate(ends):
        found[row, end:] = 0
    return found


def given():
    """Texts of 11 tokens and answers of 8 places, whose first token is 0; padding in both."""
    answer = tokens(8, (8, 5, 8, 2))
    answer[:, 0] = 0
    return {"tokens": tokens(11, (11, 4, 1, 7)), "answer": answer}


def waves(length, width):
    """Section 3.5 of the paper, float32 (length, width)."""
    value = np.arange(width)
    angle = np.arange(length)[:, None] / 10000 ** (2 * (value // 2) / width)
    return np.where(value % 2, np.cos(angle), np.sin(angle)).astype(np.float32)


def torch_answers(kind, seed=0):
    """Shapes of the module's weights, and its logits for `given()` (rows, places, tokens)."""
    import torch
    from torch import nn

    width, depth, heads, hidden = SIZES[kind]
    settings = dict(dim_feedforward=hidden, dropout=0.0, batch_first=True)
    layer = nn.TransformerEncoderLayer(width, heads, **settings)
    encoder = nn.TransformerEncoder(layer, depth, norm=None, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, heads, **settings), depth, norm=None)
    stacks = nn.Transformer(width, heads, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    module = nn.ModuleDict({"words": nn.Embedding(VOCABULARY, width), "stacks": stacks})
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    weights = references.weights(shapes, seed)
    module.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    raw = given()

    def embedded(numbers):
        vectors = module["words"](torch.from_numpy(numbers).long()) * width**0.5
        return vectors + torch.from_numpy(waves(numbers.shape[1], width))

    away = torch.from_numpy(raw["tokens"] == 0)
    ahead = torch.triu(torch.ones(8, 8, dtype=torch.bool), 1)
    module.train()  # without dropout the same; in evaluation PyTorch takes another way, which leaves padding out
    with torch.no_grad():
        found = stacks(
            embedded(raw["tokens"]),
            embedded(raw["answer"]),
            tgt_mask=ahead,
            src_key_padding_mask=away,
            memory_key_padding_mask=away,
        )
        return shapes, (found @ module["words"].weight.T).numpy()


if __name__ == "__main__":
    references.save(PLACE, SIZES, torch_answers)
