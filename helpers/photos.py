"""Photographs that ship with scikit-image: real input without a download."""

import numpy as np
from PIL import Image, ImageOps
from skimage import data

PHOTOS = ("motorcycle", "astronaut", "cat", "coffee")
_ELSEWHERE = {"motorcycle": "stereo_motorcycle", "cat": "chelsea"}  # names in scikit-image


def photo(name: str) -> np.ndarray:
    """The photograph `name`, one of `PHOTOS`, as (H, W, 3) uint8 RGB; sources in data/README.md."""
    if name not in PHOTOS:
        raise ValueError(f"name must be one of {list(PHOTOS)}, got {name!r}")
    image = getattr(data, _ELSEWHERE.get(name, name))()
    image = image[0] if isinstance(image, tuple) else image  # of a stereo pair the left one
    return np.array(image)  # a copy: the caller may draw on it


def as_rgb(image: np.ndarray | Image.Image, name: str = "image") -> np.ndarray:
    """A copy of `image` as (H, W, 3) uint8 RGB, with transparent parts blended onto white.

    A PIL image is turned upright as its EXIF data say and may have any mode but I, F and La. A
    NumPy array is grey (H, W) or (H, W, 1), RGB or RGBA, of uint8, uint16, bool or floats in 0..1.
    """
    if isinstance(image, Image.Image):
        image = _from_pil(image, name)
    if not hasattr(image, "__array_interface__"):  # lists and tensors have none
        raise ValueError(f"{name} must be a NumPy array or a PIL image, got {type(image).__name__}")
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        expected = "an image (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with at least one pixel"
        raise ValueError(f"{name} must be {expected}, got shape {image.shape}")
    image = _as_bytes(image, name)
    if image.shape[2] == 4:
        alpha = image[..., 3:] / 255
        image = np.rint(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:2], 3)).copy()  # writable, unlike the view


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    """The image upright, as RGB, RGBA or 16 bits of grey; in other modes numbers mean else."""
    if image.mode in ("I", "F"):  # nobody knows how bright their white is
        raise ValueError(f"{name} must have 8 or 16 bits per channel, got PIL's mode {image.mode}")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # PIL would cut it off at 255
        return np.asarray(image)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _as_bytes(image: np.ndarray, name: str) -> np.ndarray:
    kind = image.dtype.str[1:]  # without the order of the bytes
    if kind == "u1":
        return image
    if kind in ("b1", "u2"):
        return np.rint(image * 255.0 if kind == "b1" else image / 257).astype(np.uint8)
    if kind[0] != "f":
        raise ValueError(f"{name} must hold uint8, uint16, bool or float values, got {image.dtype}")
    low, high = float(image.min()), float(image.max())
    if not (low >= -0.001 and high <= 1.001):  # that much may be rounding; NaN is refused, too
        raise ValueError(f"{name} holds floats and they must lie in 0..1, got {low:g}..{high:g}")
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)
