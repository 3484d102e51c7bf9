"""Photographs that ship with scikit-image and scikit-learn: real input without a download."""

from collections.abc import Callable

import numpy as np


def _skimage(name: str) -> np.ndarray:
    from skimage import data

    photo = getattr(data, name)()
    return photo[0] if isinstance(photo, tuple) else photo  # the stereo pair: its left image


def _sklearn(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


_SOURCES: dict[str, tuple[Callable[[str], np.ndarray], str]] = {
    "motorcycle": (_skimage, "stereo_motorcycle"),
    "astronaut": (_skimage, "astronaut"),
    "cat": (_skimage, "chelsea"),
    "coffee": (_skimage, "coffee"),
    "rocket": (_skimage, "rocket"),
    "china": (_sklearn, "china.jpg"),
    "flower": (_sklearn, "flower.jpg"),
}
PHOTOS = tuple(_SOURCES)


def photo(name: str) -> np.ndarray:
    """The photograph `name`, one of `PHOTOS`, as (H, W, 3) uint8 RGB; sources in data/README.md."""
    if name not in _SOURCES:
        raise ValueError(f"name must be one of {list(PHOTOS)}, got {name!r}")
    load, source = _SOURCES[name]
    return np.array(load(source)[..., :3])  # a copy: the caller may draw on it


def as_rgb(image: np.ndarray, name: str = "image") -> np.ndarray:
    """Return `image` as (H, W, 3) uint8 RGB.

    Accepts a NumPy array or PIL image: grey (H, W) or (H, W, 1), RGB, and RGBA (alpha is blended
    onto white), as uint8, as bool, or as float in 0..1. The result is a copy.

    Raises:
        ValueError: anything else, and an image without pixels.
    """
    if not hasattr(image, "__array_interface__"):  # arrays and PIL images have it
        raise ValueError(f"{name} must be a NumPy array or a PIL image, got {type(image).__name__}")
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"{name} must be an image (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with at least one "
            f"pixel, got shape {image.shape}"
        )
    image = _as_bytes(image, name)
    if image.shape[2] == 4:
        alpha = image[..., 3:] / 255
        image = np.rint(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:2], 3)).copy()  # writable, unlike the view


def _as_bytes(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == bool:
        return image.astype(np.uint8) * 255
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"{name} must hold uint8, bool or float values, got {image.dtype}")
    if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"{name} holds floats and they must lie in 0..1, got {image.min():g}..{image.max():g}"
        )
    return np.rint(image * 255).astype(np.uint8)
