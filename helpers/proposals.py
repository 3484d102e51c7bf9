"""Class-agnostic boxes made without learning: selective search (OpenCV) and sliding windows.

OpenCV is imported only when it is asked for: where it, a system library of it or its contrib module
is missing, the reader gets one sentence that says what to do, not a stack trace.
"""

import contextlib
import hashlib
import io
import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from helpers.records import ROOT, runs_folder, write_atomic
from helpers.shapes import benchmark

COMMITTED = ROOT / "data" / "proposals"
SCALE, SIGMA, MIN_SIDE = 150, 0.8, 6  # lecture 01's settings: granularity, blur, pixels


def selective_search_module() -> ModuleType:
    """OpenCV's `cv2.ximgproc.segmentation`; RuntimeError, with a cure, if it cannot be had."""
    try:
        import cv2

        return cv2.ximgproc.segmentation
    except AttributeError:
        missing = "OpenCV's contrib module"
        cure = (
            "pip uninstall opencv-python opencv-python-headless, then "
            "pip install --force-reinstall opencv-contrib-python"
        )
    except ImportError as error:
        missing, cure = f"OpenCV ({error})", "pip install opencv-contrib-python"
        if ".so" in str(error):
            cure = "sudo apt-get install libgl1 libglib2.0-0"
    raise RuntimeError(f"Selective search needs {missing}; try: {cure}") from None


def selective_search(images: Tensor) -> list[Tensor]:
    """Boxes (n, 4) float xyxy of each of `images` (N, 3, H, W) uint8, with lecture 01's settings.

    Each list is sorted, because OpenCV's own order differs from call to call; boxes with a side
    under 6 pixels are left out. One thread per CPU core. Raises ValueError if `images` is no such
    tensor, and what `selective_search_module` raises.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a uint8 tensor, got {got}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must have shape (N, 3, H, W), got {tuple(images.shape)}")
    segmentation = selective_search_module()

    def search(image: np.ndarray) -> Tensor:
        run = segmentation.createSelectiveSearchSegmentation()
        run.setBaseImage(np.ascontiguousarray(image[..., ::-1]))  # OpenCV reads BGR
        run.switchToSelectiveSearchFast(SCALE, SCALE, SIGMA)
        found = np.unique(run.process(), axis=0)  # (n, 4) xywh
        found = found[found[:, 2:].min(axis=1) >= MIN_SIDE].astype(np.float32)
        found[:, 2:] += found[:, :2]
        return torch.from_numpy(found)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(search, images.permute(0, 2, 3, 1).cpu().numpy()))


def benchmark_proposals(split: str, directory: str | Path | None = None) -> list[Tensor]:
    """`selective_search` on the images of `benchmark(split)`, from a file if it was done before.

    The file is `selective_search_<split>.npz` in runs/ (or `directory`), or else the committed one
    in data/proposals. Its key covers pixels, settings and OpenCV's version; where no file has it,
    the boxes are computed and kept in runs/.
    """
    images = benchmark(split).images
    selective_search_module()  # a missing OpenCV is said before a file is looked for
    path = runs_folder(directory) / f"selective_search_{split}.npz"
    key = _key(images)
    for file in (path, COMMITTED / path.name):
        with contextlib.suppress(Exception):  # no such file, another's, or a damaged one
            return _read(file, key)
    boxes = selective_search(images)
    buffer = io.BytesIO()
    counts = [len(b) for b in boxes]
    np.savez_compressed(buffer, key=key, counts=counts, boxes=torch.cat(boxes).short().numpy())
    write_atomic(path, buffer.getvalue())
    return boxes


def _key(images: Tensor) -> str:
    import cv2

    settings = f"{cv2.__version__} {SCALE} {SIGMA} {MIN_SIDE} {tuple(images.shape)}"
    return hashlib.sha256(settings.encode() + images.numpy().tobytes()).hexdigest()


def _read(path: Path, key: str) -> list[Tensor]:
    with np.load(path, allow_pickle=False) as file:
        if str(file["key"]) != key:
            raise ValueError(f"{path} holds the boxes of other images or settings")
        boxes = torch.from_numpy(file["boxes"]).float()  # (sum of counts, 4)
        return list(boxes.split(file["counts"].tolist()))


def sliding_windows(
    height: int,
    width: int,
    sides: tuple[float, ...] = (24, 40, 60),
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    step: float = 0.5,
) -> Tensor:
    """Windows (N, 4) float xyxy inside an image of `height` x `width` pixels.

    One window per side (the root of its area, in pixels), aspect ratio (height / width) and
    position; `step` is a share of the window. Windows that do not fit are left out.
    """
    numbers = (height, width, step, *sides, *aspect_ratios)
    if 0 in (len(sides), len(aspect_ratios)) or not all(0 < n < math.inf for n in numbers):
        raise ValueError(
            f"height, width, sides, aspect_ratios and step must be positive, got {height}, "
            f"{width}, {sides}, {aspect_ratios} and {step}"
        )
    windows = []
    for side, ratio in itertools.product(sides, aspect_ratios):
        w, h = side / ratio**0.5, side * ratio**0.5
        xs = np.arange(0, width - w + 1e-6, step * w)
        ys = np.arange(0, height - h + 1e-6, step * h)
        windows += [(x, y, x + w, y + h) for y in ys for x in xs]
    return torch.tensor(windows, dtype=torch.float32).reshape(-1, 4)
