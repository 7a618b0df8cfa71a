"""Write t5.npz: what T5 of Hugging Face transformers answers, both versions, for weights that a seed gives.

    python tests/golden/make_t5.py        (needs torch and transformers; nothing of this package)

The file holds no weights, see make_resnet.py.
"""

from pathlib import Path

import references
from make_transformer import VOCABULARY, given

PLACE = Path(__file__).with_name("t5.npz")
SIZES = {  # kind -> width, depth, heads, units of all heads, hidden, and whether it is version 1.1
    "plain": (24, 2, 4, 24, 96, False),
    "wide": (20, 3, 3, 36, 28, False),
    "gated": (24, 2, 5, 30, 40, True),
}
BUCKETS, DISTANCE = 8, 10


def model_of(kind):
    transformers = references.transformers()
    width, depth, heads, units, hidden, gated = SIZES[kind]
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=units // heads,
        d_ff=hidden,
        num_layers=depth,
        num_heads=heads,
        relative_attention_num_buckets=BUCKETS,
        relative_attention_max_distance=DISTANCE,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
    )
    config.tie_word_embeddings = not gated  # which the library sets to True; files of version 1.1 hold both matrices
    return transformers.T5ForConditionalGeneration(config)


def weights_of(shapes, seed=0):
    """Weights of a seed, with the same embeddings on both sides."""
    found = references.weights(shapes, seed)
    return {name: found["shared.weight"].copy() if "embed_tokens" in name else found[name] for name in found}


def torch_answers(kind, seed=0):
    """Shapes in the file that the library writes, and logits for `given()` (rows, places, tokens)."""
    import torch

    made = model_of(kind)
    shapes, model = references.rewritten(made, seed, weights_of, config=made.config)
    raw = {name: torch.from_numpy(numbers).long() for name, numbers in given().items()}
    with torch.no_grad():
        found = model(
            input_ids=raw["tokens"], attention_mask=(raw["tokens"] != 0).long(), decoder_input_ids=raw["answer"]
        )
    return shapes, found.logits.numpy()


if __name__ == "__main__":
    references.save(PLACE, SIZES, torch_answers)
