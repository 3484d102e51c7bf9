"""The benchmark for other detectors: PNG images and COCO JSON."""

import json
from pathlib import Path

from PIL import Image

from helpers import shapes


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
        ground_truth = shapes.coco_dict(dataset.targets, dataset.image_size)
        for entry, image in zip(ground_truth["images"], dataset.images):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.save(directory / split / entry["file_name"])
        (directory / f"{split}.json").write_text(json.dumps(ground_truth), encoding="utf-8")
