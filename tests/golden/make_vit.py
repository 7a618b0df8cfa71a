"""Write vit.npz: what vision transformers of timm, Hugging Face and torchvision answer, for weights that a seed gives.

    python tests/golden/make_vit.py        (needs torch, torchvision, timm and transformers; nothing of this package)

The file holds no weights, see make_resnet.py. It also holds positions that timm has resampled.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("vit.npz")
SHAPE = {"width": 24, "depth": 2, "heads": 3, "patch": 8}
CLASSES = 5
SIDE = 32
GRIDS = ((4, (7, 7)), (4, (4, 5)), (6, (3, 9)))  # side of a square grid, and what it is resampled to
WIDTH = 5  # of the positions that are


def timm_model(**arguments):
    return references.timm().models.VisionTransformer(
        SIDE,
        SHAPE["patch"],
        num_classes=CLASSES,
        embed_dim=SHAPE["width"],
        depth=SHAPE["depth"],
        num_heads=SHAPE["heads"],
        **arguments,
    )


def hugging_face_model(head=True):
    transformers = references.transformers()
    config = transformers.ViTConfig(
        hidden_size=SHAPE["width"],
        num_hidden_layers=SHAPE["depth"],
        num_attention_heads=SHAPE["heads"],
        intermediate_size=4 * SHAPE["width"],
        image_size=SIDE,
        patch_size=SHAPE["patch"],
        num_labels=CLASSES,
    )
    return transformers.ViTForImageClassification(config) if head else transformers.ViTModel(config)


def torchvision_model():
    return references.torchvision().models.VisionTransformer(
        SIDE,
        SHAPE["patch"],
        SHAPE["depth"],
        SHAPE["heads"],
        SHAPE["width"],
        4 * SHAPE["width"],
        num_classes=CLASSES,
    )


MODELS = {
    "timm": (timm_model, lambda found: found),
    "timm_mean": (lambda: timm_model(class_token=False, global_pool="avg"), lambda found: found),
    "hugging_face": (hugging_face_model, lambda found: found.logits),
    "hugging_face_backbone": (lambda: hugging_face_model(False), lambda found: found.last_hidden_state[:, 0]),
    "torchvision": (torchvision_model, lambda found: found),
}


def torch_answers(kind, seed=0):
    """Shapes in the file that the library writes, and answers (batch, values) for `references.images(SIDE)`."""
    import torch

    build, read = MODELS[kind]
    if not kind.startswith("hugging_face"):
        return references.answers(build(), SIDE, seed)
    shapes, model = references.rewritten(build(), seed)  # its names in files are not those in memory
    with torch.no_grad():
        return shapes, read(model(torch.from_numpy(references.images(SIDE).transpose(0, 3, 1, 2).copy()))).numpy()


def positions(side):
    """Positions (side, side, WIDTH) that a seed gives."""
    return np.random.RandomState(side).standard_normal((side, side, WIDTH)).astype(np.float32)


if __name__ == "__main__":
    import torch

    resampled = {}
    for side, size in GRIDS:
        grid = torch.from_numpy(positions(side).reshape(1, -1, WIDTH))
        found = references.timm().layers.resample_abs_pos_embed(grid, list(size), num_prefix_tokens=0)
        resampled[f"resampled/{side}/{size}"] = found.numpy().reshape(*size, WIDTH)
    references.save(PLACE, MODELS, torch_answers, **resampled)
