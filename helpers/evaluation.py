"""The official COCO AP through `pycocotools`, and where a detector errs."""

import contextlib
import io

import numpy as np
import torch
from torchvision.ops import box_iou

from helpers.boxes import check_count
from helpers.datasets import Target, checked_objects, coco_annotations, refuse_crowds
from helpers.shapes import CLASSES

# COCO's bounds, 32 and 96 px, are for photographs of about 640 px. Here the square root of a box's
# area runs from 10 to 72 px, and 18 and 32 px split the objects roughly in thirds.
SMALL, MEDIUM = 18, 32
AREA_RANGES = {"all": (0, 1e10), "small": (0, SMALL**2), "medium": (SMALL**2, MEDIUM**2)}
AREA_RANGES["large"] = (MEDIUM**2, 1e10)


def _checked(
    detections: list[Target], targets: list[Target], classes: int | None = None
) -> tuple[list[Target], list[Target]]:
    check_count(detections, len(targets), "detections must be as many as the targets")
    keys = ("boxes", "scores", "labels")
    found = [
        checked_objects(d, f"detections[{i}]", classes, keys) for i, d in enumerate(detections)
    ]
    return found, [checked_objects(t, f"targets[{i}]", classes) for i, t in enumerate(targets)]


def _coco(images: int, classes: int, annotations: list[dict]):
    from pycocotools.coco import COCO

    coco = COCO()
    ids = {"images": range(images), "categories": range(classes)}
    coco.dataset = {key: [{"id": i} for i in numbers] for key, numbers in ids.items()}
    coco.dataset["annotations"] = annotations
    coco.createIndex()
    return coco


def coco_eval(
    detections: list[Target],
    targets: list[Target],
    num_classes: int = len(CLASSES),
    area_ranges: dict[str, tuple[float, float]] = AREA_RANGES,
    max_detections: int = 100,
):
    """pycocotools' `COCOeval`, accumulated.

    Its `eval["precision"]` has shape (T, R, K, A, 1): IoU thresholds, recalls, classes, areas.

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
        truth = _coco(len(targets), num_classes, coco_annotations(targets))
        found = _coco(len(targets), num_classes, coco_annotations(detections))
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

    A value without any object to find is NaN. Arguments and sizes as in `coco_eval`.
    """
    precision = coco_eval(detections, targets, num_classes).eval["precision"]  # (T, R, K, A, 1)

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else float("nan")

    sizes = {f"AP_{name}": mean(precision[..., i, 0]) for i, name in enumerate(AREA_RANGES)}
    at_50, at_75 = (mean(precision[i, :, :, 0, 0]) for i in (0, 5))
    return {"AP": sizes.pop("AP_all"), "AP50": at_50, "AP75": at_75, **sizes}


def error_counts(detection: Target, target: Target, score_threshold: float = 0.5) -> dict[str, int]:
    """What went right and wrong in one image, at IoU 0.5, best score first; no crowds.

    `correct`; `classification` (right place, wrong class); `localisation` (right class, IoU
    0.1-0.5); `duplicate` (the object was found already); `background` (all else); `missed`:
    objects that no correct detection found. After Hoiem et al. 2012 and TIDE (Bolya et al. 2020).
    """
    kinds = ("correct", "classification", "localisation", "duplicate", "background", "missed")
    counts = dict.fromkeys(kinds, 0)
    found, truth = _checked([detection], [target])
    refuse_crowds(truth)
    detection, target = ({k: v.detach().cpu() for k, v in e.items()} for e in (*found, *truth))
    order = torch.argsort(detection["scores"], descending=True, stable=True)
    order = order[detection["scores"][order] >= score_threshold]
    overlaps = box_iou(detection["boxes"], target["boxes"]).nan_to_num()  # (N, M); 0/0 is 0
    found = torch.zeros(len(target["boxes"]), dtype=torch.bool)
    for i in order.tolist():
        same = target["labels"] == detection["labels"][i]  # (M,)
        free = overlaps[i] * (same & ~found)  # (M,)
        if len(free) and free.max() >= 0.5:
            found[free.argmax()] = True
            kind = "correct"
        elif (overlaps[i][same] >= 0.5).any():
            kind = "duplicate"
        elif (overlaps[i][~same] >= 0.5).any():
            kind = "classification"
        else:
            kind = "localisation" if (overlaps[i][same] >= 0.1).any() else "background"
        counts[kind] += 1
    counts["missed"] = int((~found).sum())
    return counts
