"""Class-agnostic boxes made without learning: selective search (OpenCV)."""

import os
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from helpers.datasets import check_images
from helpers.records import ROOT
from helpers.shapes import SPLITS

COMMITTED = ROOT / "data" / "proposals"  # made by experiments/proposals.py
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


def benchmark_proposals(split: str) -> list[Tensor]:
    """What `selective_search` finds in the images of `benchmark(split)`, from data/proposals.

    OpenCV's versions differ in a few boxes: these are OpenCV 5.1's.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}")
    with np.load(COMMITTED / f"selective_search_{split}.npz", allow_pickle=False) as file:
        boxes = torch.from_numpy(file["boxes"]).float()  # (sum of counts, 4)
        return list(boxes.split(file["counts"].tolist()))
