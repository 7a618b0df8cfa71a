"""Write clip.npz: what CLIP of Hugging Face transformers answers, for weights that a seed gives.

    python tests/golden/make_clip.py        (needs torch and transformers; nothing of this package)

The file holds no weights, see make_resnet.py.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("clip.npz")
VOCABULARY, POSITIONS, ROWS = 40, 12, 4
SIZES = {  # kind -> side of a picture, patch, latent, then width, depth, heads and hidden of either tower
    "small": (12, 4, 10, (24, 2, 3, 40), (20, 2, 5, 36)),
    "deep": (16, 8, 6, (14, 3, 7, 56), (12, 1, 1, 48)),
    "one_patch": (6, 6, 16, (16, 1, 1, 20), (18, 3, 3, 72)),
}


def inputs(kind):
    """Pictures (rows, side, side, 3), and tokens (rows, length) that end with the last of the vocabulary, then 0."""
    found = np.random.RandomState(3).randint(1, VOCABULARY - 1, (ROWS, POSITIONS)).astype(np.int32)
    for row, end in enumerate((POSITIONS - 1, 5, 1, 8)):
        found[row, end], found[row, end + 1 :] = VOCABULARY - 1, 0
    return references.images(SIZES[kind][0], ROWS), found


def model_of(kind):
    transformers = references.transformers()

    def tower(width, depth, heads, hidden):
        return {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": hidden,
        }

    side, patch, latent, image, text = SIZES[kind]
    words = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "eos_token_id": VOCABULARY - 1}
    config = transformers.CLIPConfig(
        vision_config={**tower(*image), "image_size": side, "patch_size": patch},
        text_config={**tower(*text), **words, "bos_token_id": 0, "pad_token_id": 0},
        projection_dim=latent,
        attn_implementation="eager",
    )
    return transformers.CLIPModel(config)


def torch_answers(kind, seed=0):
    """Shapes in the file that the library writes; and vectors of pictures and texts, and logits beside them.

    The answer is (rows, latent + latent + rows).
    """
    import torch

    shapes, model = references.rewritten(model_of(kind), seed, attn_implementation="eager")
    pictures, tokens = inputs(kind)
    with torch.no_grad():
        found = model(
            pixel_values=torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(tokens != 0).long(),
        )
    answers = (found.image_embeds, found.text_embeds, found.logits_per_image)
    return shapes, np.concatenate([answer.numpy() for answer in answers], axis=1)


if __name__ == "__main__":
    references.save(PLACE, SIZES, torch_answers)
