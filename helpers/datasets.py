"""Targets: what the images of a data set say of their objects, checked once before a training.

A target is a dict with `boxes` (M, 4) xyxy pixels and `labels` (M,) 0..C-1, as in torchvision; an
image without objects has M = 0. `iscrowd` (M,) may mark regions that hold many objects; all other
keys are ignored.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from helpers.boxes import check_boxes, check_column, check_sides, refuse_rows

Target = Mapping[str, Tensor]
KEYS = ("boxes", "labels")


def checked_targets(targets: Sequence[Target], num_classes: int | None = None) -> list[Target]:
    """Targets to train on: `boxes` (M, 4) float32, `labels` (M,) int64, and nothing else.

    Boxes may reach over the border of their image and be smaller than a pixel, but each must have
    width and height: no detector can learn the logarithm of 0.

    Args:
        num_classes: the number of classes C; None lets every label of 0 or more pass.
    Raises:
        ValueError: names the target and its row; also for a crowd, which is no single object.
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
    """`keys` of one image's target or detections, and `iscrowd` if it is there.

    Boxes come back as floats, labels as int64. Raises ValueError, which begins with `name`.
    """
    if not isinstance(entry, Mapping) or not set(keys) <= set(entry):
        got = list(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"{name} must have {list(keys)}, got {got}")
    objects = {"boxes": check_boxes(entry["boxes"], f"{name}['boxes']")}
    for key in [*keys[1:], *({"iscrowd"} & set(entry))]:
        check_column(entry[key], f"{name}['{key}']", len(objects["boxes"]))
        if key != "labels" and not torch.isfinite(entry[key]).all():
            raise ValueError(f"{name}['{key}'] must be finite, got {entry[key].tolist()}")
        objects[key] = entry[key]
    objects["labels"] = _checked_labels(entry["labels"], f"{name}['labels']", num_classes)
    return objects


def _checked_labels(labels: Tensor, name: str, num_classes: int | None) -> Tensor:
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if len(labels) and not whole:  # torch.tensor([]) holds no float that could be wrong
        raise ValueError(f"{name} must be integers, got {labels.dtype}")
    labels = labels.long()
    unknown = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    last = "" if num_classes is None else num_classes - 1
    refuse_rows(unknown, labels, f"{name} must lie in 0..{last}, got {labels.tolist()}")
    return labels


def refuse_crowds(targets: Sequence[Target]) -> None:
    """Raise ValueError if the `iscrowd` of a target is set anywhere."""
    for i, target in enumerate(targets):
        if "iscrowd" in target:
            message = f"targets[{i}]['iscrowd'] must not be set: leave crowds out, box and label"
            refuse_rows(target["iscrowd"] != 0, target["iscrowd"], message)
