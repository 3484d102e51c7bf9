"""Boxes: what is refused of them, and the deltas that regressors learn.

Boxes are tensors (N, 4) in pixels, `xyxy` (left, top, right, bottom). Half precision and whole
numbers are computed, and come back, in float32; two arguments in the higher of their precisions.
"""

import math
from collections.abc import Sized

import torch
from torch import Tensor
from torchvision.ops import box_convert

# exp() of a size delta is capped as in Detectron: no box grows more than 1000/16 times.
MAX_SIZE_DELTA = math.log(1000 / 16)

Weights = tuple[float, float, float, float]


def check_boxes(boxes: Tensor, name: str = "boxes") -> Tensor:
    """Return finite, ordered `boxes` (N, 4) in float32 or float64."""
    boxes = _check_rows(boxes, name)
    refuse_rows(boxes[:, 2:] < boxes[:, :2], boxes, f"{name} must have x1 <= x2 and y1 <= y2")
    return boxes


def _check_rows(boxes: Tensor, name: str) -> Tensor:
    check_numbers(boxes, name, "N", 4)
    if boxes.dtype == torch.bool:
        raise ValueError(f"{name} must hold real numbers (pixels), got {boxes.dtype}")
    # In half precision 256 x 256 is infinite.
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def check_numbers(values: Tensor, name: str, *shape: int | str) -> None:
    """Raise ValueError unless `values` is a tensor of finite real numbers; "N" is any length."""
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(values).__name__}")
    same = [n in ("N", size) for n, size in zip(shape, values.shape)]
    if values.ndim != len(shape) or not all(same):
        wanted = str(shape).replace("'", "")
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(values.shape)}")
    if values.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {values.dtype}")
    refuse_rows(~torch.isfinite(values), values, f"{name} must be finite")


def check_count(things: Sized, count: int, message: str) -> None:
    """Raise ValueError with `message`, what was expected and what it got, unless they agree."""
    if len(things) != count:
        raise ValueError(f"{message} ({count}), got {len(things)}")


def refuse_rows(bad: Tensor, values: Tensor, message: str) -> None:
    """Raise ValueError with `message` and the first row of `values` (N, ...) that is `bad`."""
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"{message}, row {row} is {values[row].tolist()}")


def check_sides(boxes: Tensor, name: str, purpose: str) -> None:
    """Raise ValueError if a box of `boxes` (N, 4) xyxy has no width or no height."""
    flat = boxes[:, 2:] <= boxes[:, :2]  # (N, 2)
    refuse_rows(flat, boxes, f"{name} must have positive width and height to be {purpose}")


def _with_anchors(values: Tensor, name: str, anchors: Tensor, weights: Weights) -> list[Tensor]:
    """`values` (N, 4), which were checked, `anchors` and `weights` (4,), in one precision."""
    anchors = check_boxes(anchors, "anchors")
    check_count(values, len(anchors), f"{name} must be as many as the anchors")
    if len(weights) != 4 or not all(weight > 0 for weight in weights):
        raise ValueError(f"weights must be four positive numbers, got {tuple(weights)}")
    dtype = torch.promote_types(values.dtype, anchors.dtype)
    return [values.to(dtype), anchors.to(dtype), values.new_tensor(weights, dtype=dtype)]


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: Weights = (1, 1, 1, 1)) -> Tensor:
    """Deltas (N, 4) = (tx, ty, tw, th) that turn `anchors` (N, 4) into `boxes` (N, 4).

    Centres move in units of the anchor's size, sizes scale by exp(t) and are not 0: R-CNN (Girshick
    et al. 2014, appendix C). `weights` multiply the deltas (10, 10, 5, 5 in later detectors).
    """
    boxes, anchors, weights = _with_anchors(check_boxes(boxes), "boxes", anchors, weights)
    check_sides(boxes, "boxes", "encoded")
    check_sides(anchors, "anchors", "encoded")
    target, anchor = (box_convert(b, "xyxy", "cxcywh") for b in (boxes, anchors))
    shift = (target[:, :2] - anchor[:, :2]) / anchor[:, 2:]  # (N, 2)
    scale = torch.log(target[:, 2:] / anchor[:, 2:])  # (N, 2)
    return torch.cat([shift, scale], dim=1) * weights  # (N, 4)


def decode_boxes(deltas: Tensor, anchors: Tensor, weights: Weights = (1, 1, 1, 1)) -> Tensor:
    """Boxes (N, 4) that `deltas` (N, 4) make of `anchors` (N, 4); inverts `encode_boxes`."""
    deltas = _check_rows(deltas, "deltas")
    deltas, anchors, weights = _with_anchors(deltas, "deltas", anchors, weights)
    anchor, t = box_convert(anchors, "xyxy", "cxcywh"), deltas / weights  # (N, 4) each
    centre = anchor[:, :2] + t[:, :2] * anchor[:, 2:]  # (N, 2)
    size = anchor[:, 2:] * torch.exp(t[:, 2:].clamp(max=MAX_SIZE_DELTA))  # (N, 2)
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)  # (N, 4)
