"""FCOS: who is taught, centre-ness where it may help, scales and units, ATSS, torchvision's."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import detection as torchvision_detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import (
    FCOSClassificationHead,
    FCOSHead,
    FCOSRegressionHead,
)
from torchvision.ops import box_iou

from experiments.outcome import Outcome, measured
from experiments.peers import AS_OURS, Maps, train_peer
from helpers import lessons
from helpers.shapes import CLASSES, benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "07_fcos", "FCOS"
lesson = lessons.load(LECTURE)
lesson.SEED, lesson.DEVICE = 0, pick_device()
lesson.train_set, lesson.test_set = benchmark("train"), benchmark("test")
STEPS = budget(cpu=lesson.CPU_STEPS)
WIDE = {"ranges": lesson.WIDE}
INSIDE = {"radius": math.inf}  # no centre sampling
every_level = partial(lesson.assign, **lesson.EVERY_LEVEL)


def iou_with_a_square(at, stride, boxes, side=3.0):
    """The anchors' rule: a location's square overlaps by half, or is an object's best one."""
    if len(boxes) == 0:
        return torch.full_like(stride, -1)
    overlap = box_iou(lesson.squares(at, stride, side), boxes)  # (L, M)
    inside = lesson.ltrb_of(at[:, None], boxes).amin(dim=2) > 0  # a distance must be positive
    overlap = torch.where(inside, overlap, 0.0)
    best, match = overlap.max(dim=1)
    match = torch.where(best >= 0.5, match, -1)
    highest, own = overlap.max(dim=0)
    for m in torch.where(highest > 0)[0].tolist():
        match[own[m]] = m
    return match


class AveragedByLevel(lesson.FCOSLoss):
    """Each level divides by its own positives; the three losses are the means over levels."""

    def forward(self, predictions, classes, goals):
        counts = [m.shape[2] * m.shape[3] for m in predictions[0]]
        targets = zip(*(part.split(counts, dim=1) for part in (classes, goals)))
        levels = []
        for i, own in enumerate(targets):
            levels.append(super().forward([[maps[i]] for maps in predictions], *own))
        return {name: sum(part[name] for part in levels) / len(levels) for name in levels[0]}


class NoCenterness(lesson.FCOSLoss):
    """The centre-ness is not learnt."""

    def forward(self, *answers):
        parts = super().forward(*answers)
        return parts | {"centerness": 0 * parts["centerness"]}


class IoUInItsPlace(lesson.FCOSLoss):
    """What stands for centre-ness learns the IoU of the location's own box instead."""

    def forward(self, predictions, classes, goals):
        parts = super().forward(predictions, classes, goals)
        _, ltrb, said = (lesson.flatten(maps)[classes >= 0] for maps in predictions)
        iou = self.iou.iou(ltrb.detach(), goals[classes >= 0])
        loss = F.binary_cross_entropy_with_logits(said[:, 0], iou, reduction="sum")
        return parts | {"centerness": loss / max(1, len(iou))}


class ScalesFixed(lesson.FCOSDetector):
    """The scales of the levels stay 1."""

    def __init__(self, **options):
        super().__init__(**options)
        self.head.scales.requires_grad_(False)


class InPixelsFixed(lesson.InPixels, ScalesFixed):
    """Both."""


def with_relu(network):
    """`network` with a ReLU in the place of the exponential."""
    head = {"num_classes": len(CLASSES), "depth": 1, "groups": 8, "he_init": True}
    return lambda: network(head=lesson.ReLUHead(48, **head))


def torchvision_fcos():
    """torchvision's FCOS on the lesson's backbone and pyramid, with towers as deep as ours.

    Its levels answer for 4 to 8 sides of a location's square, and its radius counts these sides:
    with squares of half a stride ranges and radius are the lesson's.
    """
    ours = lesson.FCOSDetector()
    width, norm = ours.fpn.output[0].out_channels, partial(nn.GroupNorm, 8)
    head = FCOSHead(32, 1, len(CLASSES), num_convs=1)  # its towers want multiples of 32 channels
    head.classification_head = FCOSClassificationHead(width, 1, len(CLASSES), 1, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(width, 1, 1, norm)
    sides = tuple((stride / 2,) for stride in lesson.STRIDES)
    options = {"anchor_generator": AnchorGenerator(sides, ((1.0,),) * len(sides)), "head": head}
    options |= {"center_sampling_radius": 2 * lesson.RADIUS, "nms_thresh": 0.5}
    options |= AS_OURS | {"min_size": 128, "max_size": 128, "score_thresh": 0.05}  # as ours reads
    body = Maps(nn.Sequential(ours.backbone, ours.fpn), width)
    return torchvision_detection.FCOS(body, len(CLASSES), **options)


VARIANTS = {
    "main": {},
    "no centre sampling": {"rule": partial(lesson.assign, **INSIDE)},
    "wide ranges": {"rule": partial(lesson.assign, **WIDE)},
    "wide ranges, no centre sampling": {"rule": partial(lesson.assign, **WIDE | INSIDE)},
    "every level": {"rule": every_level},
    "every level, last wins": {"rule": lesson.last_wins},
    "no centre-ness": {"criterion": NoCenterness(), "reading": {"use_centerness": False}},
    "IoU in its place": {"criterion": IoUInItsPlace()},
    "wide ranges, neither": {
        "rule": partial(lesson.assign, **WIDE | INSIDE),
        "criterion": NoCenterness(),
        "reading": {"use_centerness": False},
    },
    "wide ranges, no centre-ness": {
        "rule": partial(lesson.assign, **WIDE),
        "criterion": NoCenterness(),
        "reading": {"use_centerness": False},
    },
    "every level, no centre-ness": {
        "rule": every_level,
        "criterion": NoCenterness(),
        "reading": {"use_centerness": False},
    },
    "scales fixed": {"network": ScalesFixed},
    "pixels": {"network": lesson.InPixels},
    "pixels, scales fixed": {"network": InPixelsFixed},
    "ReLU": {"network": with_relu(lesson.FCOSDetector)},
    "averaged by level": {"criterion": AveragedByLevel()},
    "every level, last wins, averaged": {
        "rule": lesson.last_wins,
        "criterion": AveragedByLevel(),
    },
    "every level, last wins, averaged, ReLU in pixels": {
        "rule": lesson.last_wins,
        "criterion": AveragedByLevel(),
        "network": with_relu(lesson.InPixels),
    },
    "ATSS": {"rule": lesson.atss},
    "ATSS, no centre-ness": {
        "rule": lesson.atss,
        "criterion": NoCenterness(),
        "reading": {"use_centerness": False},
    },
    "IoU with a square": {"rule": iou_with_a_square},
    "torchvision, equal steps": {"theirs": 1.0},
    "torchvision, equal seconds": {"theirs": 0.83},
}


def train(
    seed: int,
    network: type = lesson.FCOSDetector,
    criterion: lesson.FCOSLoss | None = None,
    rule=lesson.assign,
    reading: dict | None = None,
    rate: float = 0.004,
    theirs: float | None = None,
) -> Outcome:
    """The lesson's training of one variant, and what it finds on the held-out images.

    reading: options of decode_predictions; theirs: torchvision's FCOS, for so many times the steps.
    """
    if theirs:
        steps = max(2, round(theirs * STEPS))
        trained, detect, history = train_peer(
            torchvision_fcos, lesson.train_set, steps, seed, lesson.BATCH, rate
        )
    else:
        trained, history = lesson.train_fcos(STEPS, seed, network, criterion, rule, rate)
        detect = lesson.detector_of(trained, **(reading or {}))
    extra = {}
    if not theirs:
        extra = {f"scale of P{2 + i}": s.scale.item() for i, s in enumerate(trained.head.scales)}
    return measured(trained, detect, history, lesson.test_set, lesson.DEVICE, extra=extra)
