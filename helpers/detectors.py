"""What is asked of every detector: its input, its detections on a data set, its milliseconds."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from helpers.augmentation import flip_and_recolour
from helpers.boxes import check_count
from helpers.datasets import check_images, checked_targets
from helpers.evaluation import coco_ap
from helpers.shapes import ShapesDataset
from helpers.training import batches, progress

Found = list[dict[str, Tensor]]  # one dictionary per image
Detect = Callable[[Tensor], Found]  # of input (B, 3, H, W)


def to_input(images: Tensor, device: torch.device) -> Tensor:
    """uint8 images (B, 3, H, W) as floats with mean about 0 and spread about 1, on `device`."""
    check_images(images)
    centred = (images.to(device).float() / 255 - 0.5) / 0.25
    return centred.contiguous(memory_format=torch.channels_last)


def augmented_batches(
    dataset: ShapesDataset, steps: int, seed: int, device: torch.device, batch_size=16, regions=None
) -> Iterator[tuple]:
    """Yield `steps` batches, mirrored and recoloured: input (B, 3, H, W), boxes and labels.

    Boxes (M, 4) float32 xyxy, labels (M,) int64 and, if given, `regions` (n, 4) are lists with one
    tensor per image, on `device`. All targets are checked before the first batch.
    """
    targets = checked_targets(dataset.targets, len(getattr(dataset, "classes", ())) or None)
    for index in progress(batches(len(dataset), batch_size, steps, seed), "training", steps):
        chosen = [targets[i] for i in index.tolist()]
        more = [] if regions is None else [[regions[i] for i in index.tolist()]]
        boxes = [t["boxes"] for t in chosen]
        images, *lists = flip_and_recolour(dataset.images[index], boxes, *more)
        lists[1:1] = [[t["labels"] for t in chosen]]
        yield to_input(images, device), *([v.to(device) for v in column] for column in lists)


@torch.no_grad()
def detect_all(detect: Detect, images: Tensor, device: torch.device) -> Found:
    """Detections, on the CPU, for all uint8 images (N, 3, H, W), seen 50 at a time."""
    check_images(images)
    parts = images.split(50) if len(images) else ()
    found = [d for part in parts for d in detect(to_input(part, device))]
    check_count(found, len(images), "detect must return one dictionary per image")
    return [{name: value.cpu() for name, value in detection.items()} for detection in found]


def evaluate(detect: Detect, dataset: ShapesDataset, device: torch.device) -> tuple[dict, Found]:
    """Official COCO AP on all images of `dataset`, and the detections it was computed from."""
    detections = detect_all(detect, dataset.images, device)
    return coco_ap(detections, dataset.targets, len(dataset.classes)), detections


def now(device: torch.device) -> float:
    """Seconds, after `device` has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def ms_per_image(detect: Detect, images: Tensor, device: torch.device, rounds: int = 2) -> float:
    """Milliseconds per image, one at a time as a camera delivers them; the best of `rounds`."""
    if len(images) == 0 or rounds < 1:
        raise ValueError(f"needs images and rounds >= 1, got {len(images)} images, {rounds} rounds")
    means = []
    for _ in range(rounds):
        start = now(device)
        for image in images:
            detect(to_input(image[None], device))
        means.append(1000 * (now(device) - start) / len(images))
    return min(means)
