"""Images and targets: what a data set shows and says of its objects, checked before a training.

A target is a dict with `boxes` (M, 4) xyxy pixels and `labels` (M,) 0..C-1, as in torchvision; it
may have none. `iscrowd` (M,) may mark regions of many objects; all other keys are ignored.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from helpers.boxes import check_boxes, check_sides, refuse_rows

Target = Mapping[str, Tensor]
KEYS = ("boxes", "labels")


def check_images(images: Tensor, of_bytes: bool = True) -> None:
    """Raise ValueError unless `images` is a tensor (B, 3, H, W) with pixels, of uint8 if asked."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor, got {type(images).__name__}")
    is_batch = images.ndim == 4 and images.shape[1] == 3 and 0 not in images.shape[2:]
    if not is_batch or (of_bytes and images.dtype != torch.uint8):
        got, kind = f"{images.dtype} {tuple(images.shape)}", "uint8 " if of_bytes else ""
        raise ValueError(f"images must be {kind}(B, 3, H, W), got {got}")


def checked_targets(targets: Sequence[Target], num_classes: int | None = None) -> list[Target]:
    """Targets to train on: `boxes` (M, 4) float32, `labels` (M,) int64, and nothing else.

    Boxes may reach over the border of their image and be smaller than a pixel, but each must have
    width and height: nobody can learn log 0. Crowds are refused, and labels beyond `num_classes`.
    """
    checked = [checked_objects(t, f"targets[{i}]", num_classes) for i, t in enumerate(targets)]
    refuse_crowds(checked)
    for i, target in enumerate(checked):
        name = f"targets[{i}]['boxes']"
        if target["boxes"].dtype == torch.float64:  # 1e300 is infinite in float32
            target["boxes"] = check_boxes(target["boxes"].float(), name)
        check_sides(target["boxes"], name, "trained on")
        target.pop("iscrowd", None)
    return checked


def checked_objects(
    entry: Target, name: str, num_classes: int | None = None, keys: Sequence[str] = KEYS
) -> dict[str, Tensor]:
    """`keys` of an image's target or detections, boxes as floats, labels int64; and `iscrowd`."""
    if not isinstance(entry, Mapping) or not set(keys) <= set(entry):
        got = list(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"{name} must have {list(keys)}, got {got}")
    objects = {"boxes": check_boxes(entry["boxes"], f"{name}['boxes']")}
    for key in [*keys[1:], *({"iscrowd"} & set(entry))]:
        _check_column(entry[key], f"{name}['{key}']", len(objects["boxes"]))
        if key != "labels" and not torch.isfinite(entry[key]).all():
            raise ValueError(f"{name}['{key}'] must be finite, got {entry[key].tolist()}")
        objects[key] = entry[key]
    objects["labels"] = _checked_labels(entry["labels"], f"{name}['labels']", num_classes)
    return objects


def _check_column(values: Tensor, name: str, count: int) -> None:
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(values).__name__}")
    if values.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {tuple(values.shape)}")
    if values.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {values.dtype}")


def _checked_labels(labels: Tensor, name: str, num_classes: int | None) -> Tensor:
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if len(labels) and not whole:  # torch.tensor([]) holds no float that could be wrong
        raise ValueError(f"{name} must be integers, got {labels.dtype}")
    labels = labels.long()
    unknown = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    last = "" if num_classes is None else num_classes - 1
    refuse_rows(unknown, labels, f"{name} must lie in 0..{last}, got {labels.tolist()}")
    return labels


def coco_annotations(entries: Sequence[Target]) -> list[dict]:
    """COCO's row of every box of `entries` (checked, one per image); category_id is the label."""
    rows = []  # ids start at 1: pycocotools takes 0 for "not matched"
    for image_id, entry in enumerate(entries):
        columns = {key: values.tolist() for key, values in entry.items()}
        for i, (x1, y1, x2, y2) in enumerate(columns["boxes"]):
            row = {"id": len(rows) + 1, "image_id": image_id, "category_id": columns["labels"][i]}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            row["iscrowd"] = int("iscrowd" in columns and columns["iscrowd"][i] != 0)
            rows.append(row | ({"score": columns["scores"][i]} if "scores" in columns else {}))
    return rows


def refuse_crowds(targets: Sequence[Target]) -> None:
    """Raise ValueError if the `iscrowd` of a target is set anywhere."""
    for i, target in enumerate(targets):
        if "iscrowd" in target:
            message = f"targets[{i}]['iscrowd'] must not be set: leave crowds out, box and label"
            refuse_rows(target["iscrowd"] != 0, target["iscrowd"], message)
