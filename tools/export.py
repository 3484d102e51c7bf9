"""The benchmark for other detectors: PNG images and COCO JSON."""

import json
from pathlib import Path

from PIL import Image
from torch import Tensor

from helpers import shapes
from helpers.datasets import checked_targets, coco_annotations


def export(directory: str | Path) -> None:
    """Write every split as `SPLIT/*.png` and `SPLIT.json` (COCO) into a new or empty directory.

    Raises:
        FileExistsError: the directory holds something; nothing is ever overwritten.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} is not an empty directory; choose a new one")
    for split in shapes.SPLITS:
        dataset = shapes.benchmark(split)
        (directory / split).mkdir(parents=True)
        ground_truth = coco_dict(dataset.targets, dataset.image_size)
        for entry, image in zip(ground_truth["images"], dataset.images):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.save(directory / split / entry["file_name"])
        (directory / f"{split}.json").write_text(json.dumps(ground_truth), encoding="utf-8")


def coco_dict(targets: list[dict[str, Tensor]], image_size: int) -> dict:
    """COCO ground truth of `targets`; image i has id i and file `0000i.png`, class c id c + 1."""
    rows = coco_annotations(checked_targets(targets, len(shapes.CLASSES)))
    size = {"width": image_size, "height": image_size}
    return {
        "info": {
            "description": "Shapes benchmark of the object-detection lectures",
            "version": "1",
        },
        "images": [{"id": i, "file_name": f"{i:05d}.png"} | size for i in range(len(targets))],
        "annotations": [row | {"category_id": row["category_id"] + 1} for row in rows],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(shapes.CLASSES)],
    }
