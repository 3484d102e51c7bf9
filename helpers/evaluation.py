"""The official COCO AP through `pycocotools`, and where a detector errs."""

import contextlib
import io

import numpy as np
import torch
from torch import Tensor

from helpers.boxes import box_iou
from helpers.datasets import checked_objects, refuse_crowds
from helpers.shapes import CLASSES

# COCO's bounds, 32 and 96 px, are meant for photographs of about 640 px. On the benchmark's 128 px
# the square root of an object's box area runs from 10 to 72 px; 18 and 32 px split the objects
# roughly in thirds.
SMALL, MEDIUM = 18, 32
AREA_RANGES = {
    "all": (0, 1e10),
    "small": (0, SMALL**2),
    "medium": (SMALL**2, MEDIUM**2),
    "large": (MEDIUM**2, 1e10),
}
MAX_DETECTIONS = 100  # per image and class (pycocotools counts so), the best first

Target = dict[str, Tensor]


def _checked(
    detections: list[Target], targets: list[Target], classes: int | None = None
) -> tuple[list[Target], list[Target]]:
    if len(detections) != len(targets):
        raise ValueError(
            "detections and targets must have one entry per image, "
            f"got {len(detections)} and {len(targets)}"
        )
    keys = ("boxes", "scores", "labels")
    found = [
        checked_objects(d, f"detections[{i}]", classes, keys) for i, d in enumerate(detections)
    ]
    return found, [checked_objects(t, f"targets[{i}]", classes) for i, t in enumerate(targets)]


def _annotations(entries: list[Target]) -> list[dict]:
    rows = []
    for image_id, entry in enumerate(entries):
        labels = entry["labels"].tolist()
        crowds, scores = (
            entry[key].tolist() if key in entry else [0] * len(labels)
            for key in ("iscrowd", "scores")
        )
        for box, label, crowd, score in zip(entry["boxes"].tolist(), labels, crowds, scores):
            x1, y1, x2, y2 = box
            row = {"id": len(rows) + 1, "image_id": image_id, "category_id": label, "score": score}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            rows.append(row | {"iscrowd": int(crowd != 0)})
    return rows


def _coco(images: int, classes: int, annotations: list[dict]):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": c} for c in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def coco_eval(
    detections: list[Target],
    targets: list[Target],
    num_classes: int = len(CLASSES),
    area_ranges: dict[str, tuple[float, float]] = AREA_RANGES,
    max_detections: int = MAX_DETECTIONS,
):
    """Run pycocotools' `COCOeval` and return it, accumulated.

    Its `eval["precision"]` has shape (T, R, K, A, 1): IoU thresholds, recall levels,
    classes, areas.

    Args:
        detections: one dict per image: `boxes` (N, 4) xyxy pixels, `scores` (N,), `labels` (N,).
        targets: one dict per image: `boxes` (M, 4), `labels` (M,); labels run 0..C-1. A box whose
            `iscrowd` (M,) is set need not be found, and detections inside it are not wrong.
        area_ranges: name to (from, to) in square pixels, both ends included.
        max_detections: detections per image *and class* that count, the best first.
    """
    from pycocotools.cocoeval import COCOeval

    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")
    detections, targets = _checked(detections, targets, num_classes)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every step
        truth = _coco(len(targets), num_classes, _annotations(targets))
        found = _coco(len(targets), num_classes, _annotations(detections))
        result = COCOeval(truth, found, "bbox")
        result.params.maxDets = [max_detections]
        result.params.areaRng = [list(bounds) for bounds in area_ranges.values()]
        result.params.areaRngLbl = list(area_ranges)
        result.evaluate()
        result.accumulate()
    return result


def coco_ap(
    detections: list[Target], targets: list[Target], num_classes: int = len(CLASSES)
) -> dict[str, float]:
    """Official COCO AP: `AP` (IoU 0.50:0.95), `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`.

    The size bounds are the squares of 18 and 32 px. A value without any object to find is NaN.
    Arguments as in `coco_eval`.
    """
    precision = coco_eval(detections, targets, num_classes).eval["precision"]  # (T, R, K, A, 1)

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else float("nan")

    sizes = {f"AP_{name}": mean(precision[..., i, 0]) for i, name in enumerate(AREA_RANGES)}
    return {
        "AP": sizes.pop("AP_all"),
        "AP50": mean(precision[0, :, :, 0, 0]),
        "AP75": mean(precision[5, :, :, 0, 0]),
        **sizes,
    }


def error_counts(detection: Target, target: Target, score_threshold: float = 0.5) -> dict[str, int]:
    """What went right and wrong in one image, at IoU 0.5, best score first.

    `correct`; `classification` (right place, wrong class); `localisation` (right class, IoU
    0.1-0.5); `duplicate` (the object was found already); `background` (all else); `missed`:
    objects that no correct detection found, also where another error lies on them. After Hoiem et
    al. 2012 and TIDE (Bolya et al. 2020), simplified. Crowds are refused.
    """
    counts = dict.fromkeys(
        ("correct", "classification", "localisation", "duplicate", "background", "missed"), 0
    )
    found, truth = _checked([detection], [target])
    refuse_crowds(truth)
    detection, target = ({k: v.detach().cpu() for k, v in e.items()} for e in (*found, *truth))
    order = torch.argsort(detection["scores"], descending=True, stable=True)
    order = order[detection["scores"][order] >= score_threshold]
    overlaps = box_iou(detection["boxes"], target["boxes"])  # (N, M)
    found = torch.zeros(len(target["boxes"]), dtype=torch.bool)
    for i in order.tolist():
        same = target["labels"] == detection["labels"][i]  # (M,)
        free = overlaps[i] * (same & ~found)  # (M,)
        if len(free) and free.max() >= 0.5:
            found[free.argmax()] = True
            counts["correct"] += 1
        elif (overlaps[i][same] >= 0.5).any():
            counts["duplicate"] += 1
        elif (overlaps[i][~same] >= 0.5).any():
            counts["classification"] += 1
        elif (overlaps[i][same] >= 0.1).any():
            counts["localisation"] += 1
        else:
            counts["background"] += 1
    counts["missed"] = int((~found).sum())
    return counts


def worst_images(
    detections: list[Target], targets: list[Target], count: int, score_threshold: float = 0.5
) -> list[int]:
    """Indices of the `count` images with most errors (see `error_counts`), the worst first."""
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    refuse_crowds(_checked(detections, targets)[1])
    errors = []
    for detection, target in zip(detections, targets):
        counts = error_counts(detection, target, score_threshold)
        errors.append(sum(counts.values()) - counts["correct"])
    return sorted(range(len(errors)), key=lambda i: -errors[i])[:count]
