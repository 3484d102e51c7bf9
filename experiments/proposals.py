"""Selective search's boxes of the benchmark for data/proposals: two minutes on two cores.

python -m experiments.proposals
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers import proposals
from helpers.records import write_atomic
from helpers.shapes import SPLITS, benchmark


def write(split: str, folder: Path = proposals.COMMITTED) -> Path:
    """Search the images of a split of the benchmark, write its file into `folder`; its path."""
    images = benchmark(split).images
    boxes, buffer = proposals.selective_search(images), io.BytesIO()
    whole, counts = torch.cat(boxes).short().numpy(), [len(b) for b in boxes]
    np.savez_compressed(buffer, key=key(images), counts=counts, boxes=whole)
    return write_atomic(folder / f"selective_search_{split}.npz", buffer.getvalue())


def key(images: Tensor) -> str:
    """What the boxes of `images` (N, 3, H, W) depend on: settings and pixels, as SHA-256."""
    settings = f"{proposals.SCALE} {proposals.SIGMA} {proposals.MIN_SIDE} {tuple(images.shape)}"
    return hashlib.sha256(settings.encode() + images.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    for name in SPLITS:
        print(write(name))
