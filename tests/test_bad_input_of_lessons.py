"""Bad input to the classes and functions of the lectures: an error, and never a wrong number.

Broadcasting would make many of these calls return something. Each message is the lesson's own, or
PyTorch's where that says what is wrong.
"""

import contextlib
import functools

import matplotlib.pyplot as plt
import pytest
import torch
from shared import notebook_code
from torch import tensor

CPU = torch.device("cpu")
BOXES, LABELS = tensor([[4.0, 4, 20, 20], [8, 8, 30, 30]]), tensor([0, 1])
TARGET = {"boxes": torch.full((1, 4), 0.5), "labels": tensor([0])}
NARROW = (4, 4, 8, 8)


def z(*shape):
    return torch.zeros(shape)


def fast_rcnn(nb):
    return nb.FastRCNN(3, hidden_dim=8)


def fast_rcnn_loss(nb, labels, classes=4, deltas=16):
    return nb.FastRCNNLoss(3)(z(2, classes), z(2, deltas), labels, z(2, 4))


def yolo(nb):
    return nb.YOLODetector(grid_size=7, backbone=nb.SimpleBackbone(NARROW), hidden=8)


def yolo_loss(nb, forms, targets):
    return nb.YOLOLoss()(torch.full(forms, 0.5), torch.full(targets, 0.5))


def detr(nb, dim=16, heads=2):
    return nb.DETR(5, NARROW, dim, heads, 16, (1, 1))


def bad_targets(call):
    """What no lesson can learn from, to `call(nb, boxes, labels)`."""
    wrong = {
        "label too large": (BOXES, LABELS + 5, r"\['labels'\] must lie in 0..2, got \[5, 6\]"),
        "negative label": (BOXES, LABELS - 1, r"\['labels'\] must lie in 0..2, got \[-1, 0\]"),
        "labels of floats": (BOXES, LABELS.float(), r"\['labels'\] must be integers, got torch.fl"),
        "boxes of NaN": (BOXES * torch.nan, LABELS, r"\['boxes'\] must be finite"),
        "boxes of infinity": (BOXES * torch.inf, LABELS, r"\['boxes'\] must be finite"),
        "reversed boxes": (BOXES.flip(1), LABELS, r"\['boxes'\] must have x1 <= x2"),
    }
    return {
        what: (functools.partial(call, boxes=boxes, labels=labels), message)
        for what, (boxes, labels, message) in wrong.items()
    }


# lesson: {what is wrong: (call, message)}
CASES = {
    "02_fast_rcnn": {
        "RoIs without image": (
            lambda nb: nb.RoIPooling()(z(1, 4, 8, 8), z(2, 4)),
            r"rois must have shape \(R, 5\), got \(2, 4\)",
        ),
        "an image that is not there": (
            lambda nb: nb.roi_pool_by_hand(z(1, 4, 8, 8), tensor([[3.0, 0, 0, 20, 20]])),
            "index 3 is out of bounds",
        ),
        "one image without its axis": (lambda nb: fast_rcnn(nb)(z(3, 64, 64), z(1, 5)), "4D input"),
        "four channels": (lambda nb: fast_rcnn(nb)(z(1, 4, 64, 64), z(1, 5)), "to have 3 channels"),
        "features of another width": (
            lambda nb: nb.FastRCNNHead(16, 3)(z(2, 15)),
            "shapes cannot be multiplied",
        ),
        "label too large": (lambda nb: fast_rcnn_loss(nb, tensor([0, 7])), "out of bounds"),
        "float labels": (lambda nb: fast_rcnn_loss(nb, LABELS.float()), "must be long, int, byte"),
        "one label for two": (lambda nb: fast_rcnn_loss(nb, LABELS[:1]), "batch_size"),
        "deltas of two classes": (
            lambda nb: fast_rcnn_loss(nb, LABELS, deltas=6),
            "is invalid for input of size 12",
        ),
        "an image that is too small": (
            lambda nb: nb.SimplifiedProposalGenerator().generate_proposals(19, 100),
            "must have 20 pixels or more, got 19",
        ),
    },
    "03_faster_rcnn": {
        "negative stride": (lambda nb: nb.AnchorGeneratorTorch(stride=-1), "all must be positive"),
        "no scale": (lambda nb: nb.AnchorGeneratorTorch(scales=()), "empty"),
        "channels": (lambda nb: nb.RPN(8, 9, 8)(z(1, 7, 4, 4)), "to have 8 channels"),
        "one image without its axis": (lambda nb: nb.FasterRCNN()(z(3, 64, 64)), "unpack|4D|dim"),
        "boxes without image": (
            lambda nb: nb.RoIAlign()(z(1, 4, 8, 8), BOXES),
            "not enough values to unpack",
        ),
        "boxes of five numbers": (lambda nb: nb.match_anchors(BOXES, z(2, 5)), "shape|size"),
        "objects of one image for two": (
            lambda nb: nb.RPNLoss()(z(2, 5), z(2, 5, 4), z(5, 4), [BOXES], (64, 64)),
            "argument 3 is shorter",
        ),
        "deltas of other anchors": (lambda nb: nb.apply_deltas(BOXES, z(3, 4)), "must match"),
        "a label that is no class": (
            lambda nb: nb.FasterRCNN()(z(1, 3, 64, 64), [BOXES], [LABELS + 5]),
            "out of bounds",
        ),
    },
    "04_fpn_retinanet": {
        "two maps for three levels": (
            lambda nb: nb.SimpleFPN((4, 8, 16), 8)([z(1, 4, 16, 16), z(1, 8, 8, 8)]),
            "argument 2 is shorter",
        ),
        "class indices": (
            lambda nb: nb.FocalLoss()(z(5, 3), LABELS),
            r"must have equal shapes, got \(5, 3\) and \(2,\)",
        ),
        "reduction": (lambda nb: nb.FocalLoss(reduction="avg"), "must be mean, sum or none"),
        "certainty": (lambda nb: nb.prior_bias(1.0), "pi must lie between 0 and 1, got 1.0"),
        "label too large": (
            lambda nb: nb.DenseLoss()(z(1, 2, 3), z(1, 2, 4), BOXES, [BOXES], [LABELS + 5]),
            "index 5 is out of bounds",
        ),
        "anchors of another map": (
            lambda nb: nb.DenseLoss()(z(1, 5, 3), z(1, 5, 4), z(6, 4), [BOXES], [LABELS]),
            "does not match",
        ),
    },
    "05_yolo": {
        "one image without its axis": (lambda nb: yolo(nb)(z(3, 64, 64)), "4D input"),
        "grey images": (lambda nb: yolo(nb)(z(1, 1, 64, 64)), "to have 3 channels"),
        "features of another width": (
            lambda nb: yolo(nb).head(z(1, 7, 4, 4)),
            "to have 8 channels, but got 7",
        ),
        "a form of another length": (lambda nb: nb.split_cell(z(1, 7, 7, 12), 2, 3), "size"),
        "one target for two images": (
            lambda nb: yolo_loss(nb, (2, 7, 7, 2, 8), (1, 7, 7, 8)),
            r"shape of the mask \[1, 7, 7\]",
        ),
        "another grid": (
            lambda nb: yolo_loss(nb, (1, 7, 7, 2, 8), (1, 8, 8, 8)),
            r"shape of the mask \[1, 8, 8\]",
        ),
        "other classes": (
            lambda nb: yolo_loss(nb, (1, 7, 7, 2, 8), (1, 7, 7, 9)),
            r"size of tensor a \(3\) must match",
        ),
        "forms of one image without its axis": (
            lambda nb: nb.decode_predictions(z(7, 7, 2, 8), (64, 64)),
            "too many values to unpack",
        ),
        "index": (lambda nb: nb.SyntheticObjectDataset(2)[5], "index 5 of 2 samples"),
        "label too large": (
            lambda nb: nb.encode_target(BOXES, LABELS + 5, (64, 64)),
            "must be smaller than num_classes",
        ),
        "negative label": (
            lambda nb: nb.encode_target(BOXES, LABELS - 1, (64, 64)),
            "must be non-negative",
        ),
        "one label for two": (
            lambda nb: nb.encode_target(BOXES, LABELS[:1], (64, 64)),
            "Sizes of tensors must match",
        ),
        "boxes of five numbers": (
            lambda nb: nb.encode_target(z(2, 5), LABELS, (64, 64)),
            "too many values to unpack",
        ),
        "three sides": (
            lambda nb: nb.encode_target(BOXES, LABELS, (3, 64, 64)),
            "too many values to unpack",
        ),
    },
    "06_ssd": {
        "a stride that no map has": (
            lambda nb: nb.SSD(3, strides=(4, 32)),
            "32 is not in list",
        ),
        "deltas of other boxes": (
            lambda nb: nb.MultiBoxLoss()(z(1, 2, 4), z(1, 1, 4), BOXES, [BOXES], [LABELS]),
            "out of bounds",
        ),
        "objects of one image for two": (
            lambda nb: nb.MultiBoxLoss()(z(2, 2, 4), z(2, 2, 4), BOXES, [BOXES], [LABELS]),
            "batch_size",
        ),
    },
    "07_fcos": {
        "distances of other locations": (lambda nb: nb.boxes_of(z(5, 2), z(3, 4)), "must match"),
        "boxes of five numbers": (lambda nb: nb.ltrb_of(z(3, 2), z(3, 5)), "must match"),
        "boxes of five numbers, assigned": (
            lambda nb: nb.assign(*nb.all_locations(32, 32), z(1, 5)),
            "must match",
        ),
        "labels of one image for two": (
            lambda nb: nb.targets_of([BOXES, BOXES], [LABELS], (64, 64)),
            "argument 2 is shorter",
        ),
        "label too large": (
            lambda nb: nb.FCOSLoss()(
                [[z(1, 3, 2, 2)], [z(1, 4, 2, 2)], [z(1, 1, 2, 2)]],
                torch.full((1, 4), 5),
                z(1, 4, 4),
            ),
            "index 5 is out of bounds",
        ),
        "targets of another map": (
            lambda nb: nb.FCOSLoss()(
                [[z(1, 3, 2, 2)], [z(1, 4, 2, 2)], [z(1, 1, 2, 2)]],
                torch.zeros(1, 5, dtype=torch.long),
                z(1, 5, 4),
            ),
            "does not match",
        ),
        "two features for three levels": (
            lambda nb: nb.FPN((4, 8, 16), 8)({"C3": z(1, 4, 8, 8), "C4": z(1, 8, 4, 4)}),
            "not enough values to unpack",
        ),
        "groups that do not divide": (
            lambda nb: nb.FCOSHead(10, 3, depth=1, groups=4),
            "must be divisible by num_groups",
        ),
    },
    "08_detr": {
        "width": (lambda nb: detr(nb, dim=6)(z(1, 3, 64, 64)), "must match the size of tensor b"),
        "heads": (lambda nb: detr(nb, heads=3)(z(1, 3, 64, 64)), "don't multiply up"),
        "tokens of another width": (
            lambda nb: nb.MultiHeadAttention(8, 2)(z(1, 3, 7), z(1, 3, 8), z(1, 3, 8)),
            "shapes cannot be multiplied",
        ),
        "too few queries": (
            lambda nb: nb.HungarianMatcher()(z(1, 0, 4), z(1, 0, 4), [TARGET]),
            r"1 images with 0 queries each, got \[1\] objects",
        ),
        "one target for two images": (
            lambda nb: nb.HungarianMatcher()(z(2, 5, 4), z(2, 5, 4), [TARGET]),
            "2 images .* 1 targets",
        ),
        "the loss of two images": (
            lambda nb: nb.DETRLoss()([(z(2, 5, 4), z(2, 5, 4) + 0.5)], [TARGET]),
            "2 images .* 1 targets",
        ),
        "label too large": (
            lambda nb: nb.DETRLoss()(
                [(z(1, 5, 4), z(1, 5, 4) + 0.5)], [TARGET | {"labels": tensor([7])}]
            ),
            "out of bounds",
        ),
        "NaN": (
            lambda nb: nb.HungarianMatcher()(
                torch.full((1, 5, 4), torch.nan), z(1, 5, 4) + 0.5, [TARGET]
            ),
            "invalid numeric entries",
        ),
        "one image without its axis": (lambda nb: detr(nb)(z(3, 64, 64)), "4D input"),
    },
}
EVERY_CASE = [(lesson, case) for lesson, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def lessons():
    """The code of each lesson, loaded when first asked for."""
    plt.switch_backend("agg")
    with contextlib.ExitStack() as stack:
        load = functools.partial(notebook_code, SEED=0, K=3, C=3, DEVICE=CPU)
        yield functools.cache(lambda name: stack.enter_context(load(name)))


@pytest.mark.parametrize("name, case", EVERY_CASE, ids=lambda value: value.replace(" ", "-"))
def test_a_lesson_refuses(lessons, name, case):
    call, message = CASES[name][case]
    with pytest.raises((ValueError, RuntimeError, IndexError), match=message):
        call(lessons(name))
