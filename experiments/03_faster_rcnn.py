"""Faster R-CNN: what the RPN is worth and what RoIAlign is, and which rules it needs."""

import functools
from itertools import cycle

import torch
from torch import nn
from torchvision.ops import box_iou, roi_align

from experiments.outcome import Outcome
from helpers import detectors, lessons
from helpers.proposals import benchmark_proposals, selective_search
from helpers.shapes import benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "03_faster_rcnn", "Faster R-CNN"
lesson, fast = lessons.load(LECTURE), lessons.load("02_fast_rcnn")
for module in (lesson, fast):
    module.SEED, module.DEVICE = 0, pick_device()
    module.train_set, module.test_set = benchmark("train"), benchmark("test")
STEPS = budget(cpu=lesson.CPU_STEPS)


class BorderKept(lesson.RPNLoss):
    """Anchors across the border are judged like all others."""

    def assign_anchors(self, anchors, gt_boxes, image_size):
        return lesson.match_anchors(anchors, gt_boxes)


class BorderAfter(lesson.RPNLoss):
    """They are struck after the best-anchor rule, which may have chosen one of them."""

    def assign_anchors(self, anchors, gt_boxes, image_size):
        labels, match = lesson.match_anchors(anchors, gt_boxes)
        labels[~lesson.inside_image(anchors, image_size)] = -1
        return labels, match


class ThresholdAlone(lesson.RPNLoss):
    """No best-anchor rule."""

    def assign_anchors(self, anchors, gt_boxes, image_size):
        labels, match = super().assign_anchors(anchors, gt_boxes, image_size)
        if len(gt_boxes):
            weak = box_iou(anchors, gt_boxes).amax(dim=1) < self.pos_iou_threshold
            labels[(labels == 1) & weak] = -1
        return labels, match


class CropsRCNN(fast.FastRCNN):
    """R-CNN's way to features: each region cut from the image, 56 x 56 pixels, through the CNN."""

    def forward(self, images, rois):
        crops = roi_align(images.float(), rois.float(), 56, sampling_ratio=1)  # (R, 3, 56, 56)
        crops = crops.contiguous(memory_format=torch.channels_last)
        return self.head(self.backbone(crops))  # of (R, 96, 7, 7)


def kmeans_anchors():
    """The lesson's generator with nine templates from the training boxes."""
    anchors = lesson.AnchorGeneratorTorch(lesson.SCALES, lesson.RATIOS, lesson.STRIDE)
    boxes = torch.cat([target["boxes"] for target in lesson.train_set.targets])
    anchors.base_anchors = lesson.kmeans_templates(boxes)
    return anchors


VARIANTS = {
    "main": {},
    "RPN, RoI pooling": {"pool": fast.RoIPooling},
    "selective search, RoIAlign": {"pool": lesson.RoIAlign, "searched": fast.FastRCNN},
    "selective search, RoI pooling": {"pool": fast.RoIPooling, "searched": fast.FastRCNN},
    "R-CNN's crops": {"searched": CropsRCNN},
    "border anchors kept": {"loss": BorderKept},
    "border anchors struck after": {"loss": BorderAfter},
    "no best-anchor rule": {"loss": ThresholdAlone},
    "k-means anchors": {"anchors": kmeans_anchors},
}


def train(seed: int, pool=None, searched=None, loss=None, anchors=None):
    """The lesson's training of one variant, and what it finds on the held-out images."""
    if searched:
        return on_selective_search(seed, searched, pool and pool())

    def make():
        rules = loss and loss(batch_size=64, weight=3.0)
        first = lesson.FirstStage(anchor_generator=anchors and anchors(), rpn_loss=rules)
        return lesson.FasterRCNN(first=first, pool=pool and pool())

    model, history = lesson.train_faster_rcnn(STEPS, seed, make)
    _, found = detectors.evaluate(model, lesson.test_set, lesson.DEVICE)
    ms = detectors.ms_per_image(model, lesson.test_set.images[:30], lesson.DEVICE)
    return outcome(model, found, history.seconds, ms)


def outcome(model: nn.Module, found, seconds: float, ms: float) -> Outcome:
    return Outcome(
        detections=found,
        steps=STEPS,
        seconds=seconds,
        parameters=sum(p.numel() for p in model.parameters()),
        weights=model.state_dict(),
        ms_per_image=ms,
    )


def on_selective_search(seed: int, network: type, pool: nn.Module | None) -> Outcome:
    """Lecture 02's Fast R-CNN on selective search's boxes: the one place that knows lecture 02.

    It learns from as many regions per image as the second stage of this lecture.
    """
    fast.train_regions, fast.test_regions = map(benchmark_proposals, ("train", "test"))
    whole, share = fast.sample_regions, lesson.MOST_OBJECTS / lesson.REGIONS
    fast.sample_regions = functools.partial(whole, foreground=share)
    try:
        model, history = fast.train_fast_rcnn(
            STEPS, seed, pool, network=network, count=lesson.REGIONS
        )
    finally:
        fast.sample_regions = whole
    images = lesson.test_set.images
    number = cycle(range(min(30, len(images))))

    def search_and_detect(_):
        image = images[next(number)][None]
        return fast.detect(model, image, selective_search(image))

    found = fast.detect(model, images, fast.test_regions)
    ms = detectors.ms_per_image(search_and_detect, images[:30], lesson.DEVICE)
    return outcome(model, found, history.seconds, ms)
