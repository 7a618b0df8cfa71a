"""How well texts fit images, as people read it."""

from typing import Any

import numpy as np

from serve.errors import RequestError
from serve.manifest import Manifest
from serve.tensors import to_array

NEEDED = ("image_embedding", "text_embedding", "logit")  # outputs of the model that are asked for
FORMS = ("similarity", "embeddings")


def read(body: Any, manifest: Manifest) -> dict[str, np.ndarray]:
    """Raw inputs of one object `{"image": pixels, "text": "…"}` or a list of them; pixels (height, width[, channels]).

    Raises:
        RequestError: it is none, or pixels are of another shape than others.
    """
    images, texts = [], []
    for each in body if isinstance(body, list) else [body]:
        if not isinstance(each, dict) or set(each) != {"image", "text"} or not isinstance(each["text"], str):
            raise RequestError("bad_request", 'send {"image": [[pixel, …], …], "text": "what it may show"}', 400)
        image = to_array(each["image"], "UINT8", "'image'")
        images.append(image[..., None] if image.ndim == 2 else image)
        texts.append(each["text"])
    if not images or len({image.shape for image in images}) > 1:
        raise RequestError("bad_shape", "images of one request must be of one size, at least one; resize them")
    return {"image": np.stack(images), "text": np.array(texts, object)}


def answers(outputs: dict[str, np.ndarray], manifest: Manifest, form: str = "similarity") -> list[dict[str, Any]]:
    """How well the text of each row fits its image.

    Args:
        outputs: those of `NEEDED`.
        manifest: the model's.
        form: "similarity", or "embeddings" for the vectors, too.

    Returns:
        `{"cosine", "logit"}`: the softmax of the logits of one image with several texts is how likely each of them is
        beside the others. "embeddings" adds `image_embedding` and `text_embedding`.
    """
    images, texts = outputs["image_embedding"], outputs["text_embedding"]
    cosines = (images * texts).sum(axis=-1)
    found = []
    for row, (cosine, logit) in enumerate(zip(cosines.tolist(), outputs["logit"].tolist(), strict=True)):
        vectors = {"image_embedding": images[row].tolist(), "text_embedding": texts[row].tolist()}
        found.append({"cosine": cosine, "logit": logit, **(vectors if form == "embeddings" else {})})
    return found


def table(predictions: list[dict[str, Any]], manifest: Manifest) -> list[list[Any]]:
    """Predictions as lines of a table, the first being the header."""
    return [["cosine", "logit"], *([row["cosine"], row["logit"]] for row in predictions)]
