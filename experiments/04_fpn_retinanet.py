"""FPN and RetinaNet: levels, the top-down path, context, and answers to the imbalance."""

import math
from functools import partial

import torch
from torchvision.models import detection as torchvision_detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from experiments.outcome import Outcome, measured
from experiments.peers import AS_OURS, Maps, train_peer
from experiments.splits import Split
from helpers import lessons
from helpers.shapes import CLASSES, benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "04_fpn_retinanet", "RetinaNet"
lesson = lessons.load(LECTURE)
lesson.SEED, lesson.DEVICE = 0, pick_device()
lesson.train_set, lesson.test_set = benchmark("train"), benchmark("test")
STEPS = budget(cpu=lesson.CPU_STEPS)
COARSE = {level + 1: sizes for level, sizes in lesson.SIZES.items()}  # the same anchors, levels 3-5


class NoTopDown(lesson.SimpleFPN):
    """Levels that do not know of one another."""

    def top_down(self, lateral):
        return lateral


class Mining(lesson.DenseLoss):
    """Of the negatives only the hardest count, three for each positive of the image."""

    ratio = 3

    def counts(self, values, positive, negative):
        order = values.detach().masked_fill(~negative, -math.inf).argsort(dim=1, descending=True)
        rank = order.argsort(dim=1)  # (N, anchors)
        return positive | (negative & (rank < self.ratio * positive.sum(dim=1, keepdim=True)))


def focal(alpha, gamma):
    """The loss of the lesson with another classification."""
    return lesson.DenseLoss(lesson.FocalLoss(alpha, gamma, "none"))


def torchvision_retinanet():
    """torchvision's RetinaNet on the lesson's backbone and pyramid, with subnets as deep as ours.

    Its four convolutions without normalisation do not learn in this time from random weights.
    """
    ours = lesson.RetinaNet()
    width, per_cell = ours.fpn.out_channels, ours.head.num_anchors
    head = RetinaNetHead(width, per_cell, len(CLASSES), partial(torch.nn.GroupNorm, 8))
    for subnet in (head.classification_head, head.regression_head):
        del subnet.conv[1:]
    ratios = (lesson.RATIOS,) * len(lesson.SIZES)
    options = {"anchor_generator": AnchorGenerator(tuple(lesson.SIZES.values()), ratios)}
    options |= AS_OURS | {"min_size": 128, "max_size": 128, "head": head}
    options |= {"score_thresh": 0.03, "detections_per_img": 100}  # as the lesson reads
    body = Maps(torch.nn.Sequential(ours.backbone, ours.fpn), width)
    return torchvision_detection.RetinaNet(body, len(CLASSES), **options)


# Each loss has its own learning rate. AP on the validation images after 700 steps, seed 0, with
# rates of 0.001, 0.002 and 0.004 (experiments/rates.py):
#   cross-entropy 0.675 0.720 0.729   no prior 0.661 0.714 0.710   hardest 3 : 1 0.679 0.723 0.733
#   γ = 0.5       –     0.726 0.748   γ = 1    –     0.711 0.727
#   γ = 2         0.629 0.700 0.687   γ = 5    0.446 0.589 0.499   torchvision   –     0.653 0.615
VARIANTS = {
    "main": {},
    "no top-down path": {"model": {"fpn": NoTopDown}},
    "levels 3–5": {"model": {"sizes": COARSE}},
    "framed": {"framed": True},
    "framed, no top-down path": {"framed": True, "model": {"fpn": NoTopDown}},
    "cross-entropy": {"criterion": focal(None, 0.0)},
    "cross-entropy, no prior": {
        "criterion": focal(None, 0.0),
        "model": {"pi": 0.5},
        "rate": 0.002,
    },
    "cross-entropy, hardest 3 : 1": {
        "criterion": Mining(lesson.FocalLoss(None, 0.0, "none")),
    },
    "focal, γ = 2, α = 0.25": {"criterion": focal(0.25, 2.0), "rate": 0.002},
    "focal, γ = 5, α = 0.25": {"criterion": focal(0.25, 5.0), "rate": 0.002},
    "torchvision": {"theirs": True, "rate": 0.002},
}


def train(
    seed: int,
    criterion: lesson.DenseLoss | None = None,
    model: dict | None = None,
    rate: float = 0.004,
    framed: bool = False,
    theirs: bool = False,
) -> Outcome:
    """The lesson's training of one variant, and what it finds on the held-out images.

    framed: with the lesson's frames, and six classes; theirs: torchvision's.
    """
    train_set, test_set, options = lesson.train_set, lesson.test_set, dict(model or {})
    if framed:
        train_set, test_set = in_frames(train_set), in_frames(test_set)
        options["num_classes"] = len(test_set.classes)
    if theirs:
        trained, detect, history = train_peer(
            torchvision_retinanet, train_set, STEPS, seed, lesson.BATCH, rate
        )
    else:
        trained, history = lesson.train_retinanet(
            STEPS, seed, lambda: lesson.RetinaNet(**options), criterion, train_set, rate
        )
        detect = trained.detect
    return measured(
        trained,
        detect,
        history,
        test_set,
        lesson.DEVICE,
        targets=test_set.targets if framed else None,
    )


def in_frames(data):
    """A split with the lesson's frames and six classes."""
    images, targets = lesson.framed(data)
    return Split(images=images, targets=targets, classes=(*CLASSES, *map(str.upper, CLASSES)))
