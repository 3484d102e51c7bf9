"""Class-agnostic boxes made without learning: selective search (OpenCV)."""

import contextlib
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from helpers.datasets import check_images
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
        missing, cure = "OpenCV's contrib module", "pip uninstall opencv-python "
        cure += "opencv-python-headless, then pip install --force-reinstall opencv-contrib-python"
    except ImportError as error:
        missing, cure = f"OpenCV ({error})", "pip install opencv-contrib-python"
        if ".so" in str(error):
            cure = "sudo apt-get install libgl1 libglib2.0-0"
    raise RuntimeError(f"Selective search needs {missing}; try: {cure}") from None


def selective_search(images: Tensor) -> list[Tensor]:
    """Boxes (n, 4) float xyxy of each of `images` (N, 3, H, W) uint8, with lecture 01's settings.

    Each list is sorted, as OpenCV's order differs from call to call; sides are 6 pixels or more.
    """
    check_images(images)
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

    The file lies in runs/ (or `directory`) or data/proposals, and its key covers pixels and
    settings. (OpenCV's versions differ in a few boxes: these are OpenCV 5.1's.) Where none has it,
    the boxes are computed (two minutes) and kept in runs/.
    """
    images = benchmark(split).images
    selective_search_module()  # a missing OpenCV is said before a file is looked for
    path = runs_folder(directory) / f"selective_search_{split}.npz"
    key = _key(images)
    for file in (path, COMMITTED / path.name):
        # There may be no such file, or a damaged one, or one of other images or settings.
        with contextlib.suppress(Exception), np.load(file, allow_pickle=False) as kept:
            if str(kept["key"]) == key:
                boxes = torch.from_numpy(kept["boxes"]).float()  # (sum of counts, 4)
                return list(boxes.split(kept["counts"].tolist()))
    boxes = selective_search(images)
    buffer, whole = io.BytesIO(), torch.cat(boxes).short().numpy()
    np.savez_compressed(buffer, key=key, counts=[len(b) for b in boxes], boxes=whole)
    write_atomic(path, buffer.getvalue())
    return boxes


def _key(images: Tensor) -> str:
    settings = f"{SCALE} {SIGMA} {MIN_SIDE} {tuple(images.shape)}"
    return hashlib.sha256(settings.encode() + images.numpy().tobytes()).hexdigest()
