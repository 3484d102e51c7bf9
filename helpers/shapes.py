"""Synthetic data: circles, squares and triangles with exact boxes, and the frozen benchmark.

Every AP of the lectures is reported on the 300 images of `benchmark("test")`, hyper-parameters are
chosen on those of "val". All random numbers come from `numpy.random.RandomState`, whose stream is
frozen, and pixels are made of integers, sums and products: every machine draws the same images.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

CLASSES = ("circle", "square", "triangle")
LECTURE_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115))  # Okabe-Ito, one per class
SPLITS = {"train": (2000, 0), "val": (300, 1), "test": (300, 2)}  # images, seed
MIN_SIDE = 8  # pixels, of the short side
MIN_VISIBLE = 0.5  # share of an object's pixels that later objects leave visible

Box = tuple[int, int, int, int]


class Style(NamedTuple):
    """How images of a style look; sizes in pixels."""

    image_size: int
    max_objects: int
    min_side: int  # of the long side
    max_side: int
    max_aspect: int  # height / width lies between 1 / max_aspect and max_aspect
    max_iou: float  # between two objects of an image
    textured: bool  # random background, noise and colours; else plain, one colour per class


STYLES = {
    "lecture": Style(224, 3, 30, 80, 1, 0.0, textured=False),
    "benchmark": Style(128, 6, 12, 72, 2, 0.3, textured=True),
}


class Scene(NamedTuple):
    """One image with its exact answer."""

    image: np.ndarray  # (H, W, 3) uint8
    boxes: np.ndarray  # (M, 4) float32 xyxy: the tight bounds of each object's mask
    labels: np.ndarray  # (M,) int64, 0..2
    masks: np.ndarray  # (M, H, W) bool: all pixels of an object, also those covered later


def shape_mask(label: int, box: Box, image_size: int) -> np.ndarray:
    """Pixels (H, W) bool whose centres lie in the shape that fills the integer box `xyxy`."""
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must lie in 0..{len(CLASSES) - 1}, got {label}")
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"box must have x1 < x2 and y1 < y2, got {tuple(box)}")
    centre = np.arange(image_size) + 0.5
    u = ((centre - x1) / (x2 - x1))[None, :]  # (1, W): 0..1 inside the box
    v = ((centre - y1) / (y2 - y1))[:, None]  # (H, 1)
    if CLASSES[label] == "circle":
        return (u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25
    inside = (u > 0) & (u < 1) & (v > 0) & (v < 1)
    if CLASSES[label] == "square":
        return inside
    half_pixel = 0.5 / (x2 - x1)  # so that the apex, too, gets a pixel and the box is tight
    return inside & (np.abs(u - 0.5) <= v / 2 + half_pixel)


def _smooth_field(rng: np.random.RandomState, size: int, cells: int = 4) -> np.ndarray:
    """Smooth random field (size, size, 3) in -1..1: random knots, smoothstep between them."""
    knots = rng.randint(-100, 101, (cells + 1, cells + 1, 3)) / 100.0
    position = (np.arange(size) + 0.5) * cells / size
    left = position.astype(int)
    t = position - left
    t = t * t * (3 - 2 * t)
    rows = knots[left] * (1 - t)[:, None, None] + knots[left + 1] * t[:, None, None]
    return rows[:, left] * (1 - t)[None, :, None] + rows[:, left + 1] * t[None, :, None]


def _noise(rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """Integer noise -15..15, the sum of two dice: standard deviation 6.5 grey levels."""
    dice = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape)
    return (dice & 15).astype(int) + (dice >> 4) - 15


def _background(rng: np.random.RandomState, style: Style) -> np.ndarray:
    size = style.image_size
    if not style.textured:
        return np.full((size, size, 3), 242)  # 0.95 of 255
    base = rng.randint(90, 241, 3)
    return np.rint(base + 35 * _smooth_field(rng, size)).astype(int) + _noise(rng, (size, size, 3))


def _random_box(rng: np.random.RandomState, style: Style) -> Box:
    long_side = round(style.min_side * (style.max_side / style.min_side) ** rng.uniform())
    short_side = round(long_side / style.max_aspect ** rng.uniform())
    short_side = max(MIN_SIDE, short_side, -(-long_side // style.max_aspect))
    width, height = (short_side, long_side) if rng.randint(2) else (long_side, short_side)
    x = rng.randint(0, style.image_size - width + 1)
    y = rng.randint(0, style.image_size - height + 1)
    return x, y, x + width, y + height


def _iou(a: Box, b: Box) -> float:
    width, height = (max(0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _place(
    rng: np.random.RandomState, label: int, style: Style, boxes: list[Box], masks: list[np.ndarray]
) -> tuple[Box, np.ndarray] | None:
    """A box and mask for a new object that hides no earlier one; None if there is no room."""
    for _attempt in range(30):
        box = _random_box(rng, style)
        if any(_iou(box, other) > style.max_iou for other in boxes):
            continue
        mask = shape_mask(label, box, style.image_size)
        covered, hidden = mask.copy(), False
        for other in reversed(masks):  # the latest object lies on top
            hidden |= (other & ~covered).sum() < MIN_VISIBLE * other.sum()
            covered |= other
        if not hidden:
            return box, mask
    return None


def _colour(rng: np.random.RandomState, under: np.ndarray) -> np.ndarray:
    """A random colour that differs from what lies `under` (P, 3) by over 60 in some channel."""
    mean = under.mean(0)
    while True:
        colour = rng.randint(0, 256, 3)
        if np.abs(colour - mean).max() > 60:
            return colour


def make_scene(
    rng: np.random.RandomState, style: str = "benchmark", objects: int | None = None
) -> Scene:
    """Draw one scene and try to place `objects`, by default 1 to the style's maximum."""
    if style not in STYLES:
        raise ValueError(f"style must be one of {sorted(STYLES)}, got {style!r}")
    if objects is not None and objects < 0:
        raise ValueError(f"objects must not be negative, got {objects}")
    look = STYLES[style]
    image = _background(rng, look)
    boxes, masks, labels = [], [], []
    for _ in range(rng.randint(1, look.max_objects + 1) if objects is None else objects):
        label = int(rng.randint(len(CLASSES)))
        placed = _place(rng, label, look, boxes, masks)
        if placed is None:
            continue  # the image keeps the objects it has
        box, mask = placed
        colour = np.array(LECTURE_COLOURS[label])
        if look.textured:
            colour = _colour(rng, image[mask]) + _noise(rng, (int(mask.sum()), 3))
        image[mask] = colour
        for column, value in ((boxes, box), (masks, mask), (labels, label)):
            column.append(value)
    return Scene(
        image=image.clip(0, 255).astype(np.uint8),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        masks=np.array(masks, bool).reshape(-1, look.image_size, look.image_size),
    )


class ShapesDataset(Dataset):
    """Images of shapes, made once and kept in memory: `dataset[i]` is `(image, target)`.

    `image` is (3, H, W) uint8, `target` has `boxes` (M, 4) float32 xyxy pixels and `labels` (M,)
    int64; `dataset.images` is (N, 3, H, W). Image `i` of a seed and style is always the same.
    """

    classes = CLASSES

    def __init__(self, count: int, seed: int = 0, style: str = "benchmark") -> None:
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in 0..2**32 - 1, got {seed}")
        if style not in STYLES:
            raise ValueError(f"style must be one of {sorted(STYLES)}, got {style!r}")
        self.seed, self.style, self.image_size = seed, style, STYLES[style].image_size
        images = np.empty((count, 3, self.image_size, self.image_size), np.uint8)
        self.images, self.targets = torch.from_numpy(images), []  # the same memory
        for i in range(count):
            scene = self.scene(i)
            images[i] = scene.image.transpose(2, 0, 1)  # (3, H, W)
            boxes, labels = torch.from_numpy(scene.boxes), torch.from_numpy(scene.labels)
            self.targets.append({"boxes": boxes, "labels": labels})

    def scene(self, index: int) -> Scene:
        """Draw image `index` again, with the masks of its objects."""
        return make_scene(np.random.RandomState([self.seed, index]), self.style)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[index], self.targets[index]


@functools.cache
def benchmark(split: str) -> ShapesDataset:
    """The frozen benchmark's "train", "val" or "test" (data/README.md), always the same object."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}")
    return ShapesDataset(*SPLITS[split])
