"""Pictures as files, and as text in JSON."""

import base64
import io

import numpy as np


def png(picture: np.ndarray) -> bytes:
    """A picture (height, width, 1 or 3 channels) of uint8 as a PNG."""
    from PIL import Image  # a worker process whose models paint nothing needs none of it

    file = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "PNG")
    return file.getvalue()


def url(file: bytes) -> str:
    """A PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def file_of(url: str) -> bytes:
    """The PNG of what `url` gave."""
    return base64.b64decode(url.partition(",")[2])
