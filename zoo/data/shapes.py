"""Generated pictures whose every pixel and every box is known: coloured shapes on texture, and grey cells.

A shape is a signed distance, negative inside: the picture blends its edge over one pixel, the mask is where the
distance is negative, and the box is what the mask fills.
"""

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle")
_LEAST_CONTRAST = 70.0  # distance of a shape's colour from the mean of what lies behind it, of 0 … 255 in each channel


@dataclass(frozen=True)
class Drawings:
    """Pictures with what is in them.

    Attributes:
        images: uint8 `(rows, height, width, channels)`.
        masks: uint8 `(rows, height, width)`: 0 for the background, else 1 + the index in `SHAPES`.
        boxes: of each picture, float32 `(count, 4)`: left, top, right, bottom in pixels, the right and lower edge being
            the first column and row outside.
        labels: of each picture, int64 `(count,)`: the index in `SHAPES` of each box.
    """

    images: np.ndarray
    masks: np.ndarray
    boxes: list[np.ndarray]
    labels: list[np.ndarray]


def draw(rows: int, size: int = 64, *, least: int = 1, most: int = 3, seed: int = 0) -> Drawings:
    """Pictures of circles, squares and triangles of any colour and angle on textured background, none over another.

    Args:
        rows: how many pictures.
        size: height and width in pixels, at least 32.
        least, most: shapes in a picture; where there is no room for all, fewer are drawn.
        seed: the same seed draws the same pictures.

    Raises:
        ValueError: the size is below 32, or the numbers of shapes are not 0 <= least <= most.
    """
    if size < 32 or not 0 <= least <= most:
        raise ValueError(
            f"size must be at least 32 and 0 <= least <= most, got size={size}, least={least}, most={most}"
        )
    random = np.random.default_rng(seed)
    images = np.empty((rows, size, size, 3), np.uint8)
    masks = np.zeros((rows, size, size), np.uint8)
    boxes, labels = [], []
    for row in range(rows):
        picture = _texture(random, size, 3)
        found: list[tuple[int, tuple[int, int, int, int]]] = []
        circles: list[tuple[float, float, float]] = []  # around each shape: centre and radius
        for _ in range(int(random.integers(least, most + 1))):
            place = _free_place(random, size, circles)
            if place is None:
                continue
            circles.append(place)
            kind = int(random.integers(len(SHAPES)))
            distance = _distance(SHAPES[kind], size, *place, random.uniform(0, 2 * np.pi))
            inside = distance < 0
            picture = _painted(random, picture, distance)
            masks[row][inside] = kind + 1
            found.append((kind, _extent(inside)))
        images[row] = np.clip(np.rint(picture + random.normal(0, 5, picture.shape)), 0, 255)
        boxes.append(np.array([box for _, box in found], np.float32).reshape(-1, 4))
        labels.append(np.array([kind for kind, _ in found], np.int64))
    return Drawings(images, masks, boxes, labels)


def cells(rows: int, size: int = 64, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures of cell-like blobs under uneven light, which may touch.

    Args:
        rows: how many pictures.
        size: height and width in pixels.
        seed: the same seed draws the same pictures.

    Returns:
        Images uint8 `(rows, size, size, 1)`, and masks uint8 `(rows, size, size)`, 1 inside cells.
    """
    random = np.random.default_rng(seed)
    images = np.empty((rows, size, size, 1), np.uint8)
    masks = np.zeros((rows, size, size), np.uint8)
    for row in range(rows):
        light = 70 + 0.35 * (_texture(random, size, 1)[..., 0] - 128)
        picture = light.copy()
        for _ in range(int(random.integers(4, 9))):
            x, y, radius = random.uniform(0, size), random.uniform(0, size), size * random.uniform(0.07, 0.15)
            across, down = _grid(size, x, y)
            angle, reach = np.arctan2(down, across), np.hypot(across, down)
            wobble = sum(random.normal(0, 0.08) * np.cos(n * angle + random.uniform(0, 2 * np.pi)) for n in (2, 3, 4))
            distance = reach - radius * (1 + wobble)
            shade = random.uniform(45, 90) * (0.75 + 0.25 * np.clip(-distance / radius, 0, 1))
            nucleus = 25 * np.clip(radius / 3 - reach, 0, 1)
            cover = np.clip(0.5 - distance, 0, 1)
            picture = picture * (1 - cover) + (light + shade - nucleus) * cover
            masks[row][distance < 0] = 1
        images[row, ..., 0] = np.clip(np.rint(picture + random.normal(0, 6, picture.shape)), 0, 255)
    return images, masks


def single(
    random: np.random.Generator, size: int, kind: str, colour: np.ndarray, x: float, y: float, radius: float
) -> np.ndarray:
    """One shape of a colour at a place on grey texture, nearly upright.

    Args:
        random: what decides the rest.
        size: height and width in pixels.
        kind: one of `SHAPES`, "ring" or "cross".
        colour: of 0 … 255, `(3,)`.
        x, y, radius: of the circle that the shape is in, in pixels.

    Returns:
        uint8 `(size, size, 3)`.
    """
    grey = 128 + 0.5 * (_texture(random, size, 1) - 128)
    angle = np.pi / 2 + random.uniform(-0.3, 0.3)
    cover = np.clip(0.5 - _distance(kind, size, x, y, radius, angle), 0, 1)[..., None]
    picture = grey * (1 - cover) + colour * cover
    return np.clip(np.rint(picture + random.normal(0, 4, picture.shape)), 0, 255).astype(np.uint8)


def _grid(size: int, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the pixels' centres from a point, to the right and down."""
    places = np.arange(size) + 0.5
    return np.broadcast_to(places - x, (size, size)), np.broadcast_to((places - y)[:, None], (size, size))


def _texture(random: np.random.Generator, size: int, channels: int) -> np.ndarray:
    """Smooth patches of colour with stripes over them, float `(size, size, channels)` around any mean."""
    coarse = random.uniform(-45, 45, (5, 5, channels))
    places = np.linspace(0, 4, size)
    low = np.minimum(places.astype(int), 3)
    share = (places - low)[:, None]
    rows = coarse[low] * (1 - share[..., None]) + coarse[low + 1] * share[..., None]  # (size, 5, channels)
    smooth = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    across, down = _grid(size, 0, 0)
    angle, period = random.uniform(0, np.pi), random.uniform(5, 14)
    stripes = np.sin(2 * np.pi * (across * np.cos(angle) + down * np.sin(angle)) / period)
    return random.uniform(60, 195, channels) + smooth + random.uniform(4, 14) * stripes[..., None]


def _free_place(
    random: np.random.Generator, size: int, taken: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """Centre and radius of a circle inside the picture and clear of others; None where ten tries find none."""
    for _ in range(10):
        radius = size * random.uniform(0.13, 0.23)
        x, y = random.uniform(radius + 1, size - radius - 1, 2)
        if all(np.hypot(x - left, y - top) > radius + other + 2 for left, top, other in taken):
            return float(x), float(y), float(radius)
    return None


def _distance(kind: str, size: int, x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """Signed distance in pixels from a shape inside the circle of that radius, `(size, size)`."""
    across, down = _grid(size, x, y)
    if kind == "circle":
        return np.hypot(across, down) - radius
    if kind == "ring":
        return np.abs(np.hypot(across, down) - 0.74 * radius) - 0.26 * radius
    if kind == "cross":
        along = np.abs(across * np.cos(angle) + down * np.sin(angle))
        beside = np.abs(down * np.cos(angle) - across * np.sin(angle))
        return np.maximum(np.maximum(along, beside) - 0.95 * radius, np.minimum(along, beside) - 0.3 * radius)
    sides = {"square": 4, "triangle": 3}[kind]
    turns = angle + 2 * np.pi * np.arange(sides) / sides
    reach = radius * np.cos(np.pi / sides)  # from the centre to each side
    return np.max([across * np.cos(turn) + down * np.sin(turn) for turn in turns], axis=0) - reach


def _painted(random: np.random.Generator, picture: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The picture with a shape on it, of a colour that stands out."""
    behind = picture[distance < 0].mean(axis=0)
    colour = random.uniform(0, 255, 3)
    while np.linalg.norm(colour - behind) < _LEAST_CONTRAST:
        colour = random.uniform(0, 255, 3)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    return picture * (1 - cover) + colour * cover


def _extent(inside: np.ndarray) -> tuple[int, int, int, int]:
    """Box around the true pixels: left, top, right, bottom."""
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
