"""Faster R-CNN: what the RPN is worth and what RoIAlign is, and which rules it needs."""

import functools
import time

import torch
from torch import nn
from torchvision.ops import box_iou, roi_align

from experiments.outcome import Outcome
from helpers import detectors, lessons
from helpers.proposals import benchmark_proposals, selective_search
from helpers.shapes import benchmark
from helpers.training import budget, pick_device, seed_everything

LECTURE, MODEL = "03_faster_rcnn", "Faster R-CNN"
lesson, fast = lessons.load(LECTURE), lessons.load("02_fast_rcnn")
for module in (lesson, fast):
    module.SEED, module.DEVICE = 0, pick_device()
    module.train_set, module.test_set = benchmark("train"), benchmark("test")
STEPS = budget(cpu=lesson.CPU_STEPS)
CROPS = 4  # images per step of R-CNN's crops, which cost so much; all others have 16


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


class Crops(nn.Module):
    """R-CNN's way to features: each region cut from the image, 56 x 56 pixels, through the CNN."""

    def __init__(self):
        super().__init__()
        self.cnn = lesson.SmallBackbone()

    def forward(self, images, rois):
        """(N, 3, H, W) and rois (R, 5) in pixels -> (R, 96, 7, 7)."""
        crops = roi_align(images.float(), rois, 56, 1.0, 1, True)
        return self.cnn(crops.contiguous(memory_format=torch.channels_last))


def kmeans_anchors():
    """The lesson's generator with nine templates from the training boxes."""
    anchors = lesson.AnchorGeneratorTorch(lesson.SCALES, lesson.RATIOS, lesson.STRIDE)
    boxes = torch.cat([target["boxes"] for target in lesson.train_set.targets])
    anchors.base_anchors = lesson.kmeans_templates(boxes)
    return anchors


VARIANTS = {
    "main": {},
    "RPN, RoI pooling": {"pool": fast.RoIPooling},
    "selective search, RoIAlign": {"pool": lesson.RoIAlign, "searched": True},
    "selective search, RoI pooling": {"pool": fast.RoIPooling, "searched": True},
    "R-CNN's crops": {"pool": Crops, "searched": True},
    "border anchors kept": {"loss": BorderKept},
    "border anchors struck after": {"loss": BorderAfter},
    "no best-anchor rule": {"loss": ThresholdAlone},
    "k-means anchors": {"anchors": kmeans_anchors},
    "alternating": {"alternating": True},
}


def train(seed: int, pool=None, searched=False, loss=None, anchors=None, alternating=False):
    """The lesson's training of one variant, and what it finds on the held-out images."""
    if searched:
        return on_selective_search(seed, pool())

    def make():
        rules = loss and loss(batch_size=64, weight=3.0)
        first = lesson.FirstStage(anchor_generator=anchors and anchors(), rpn_loss=rules)
        return lesson.FasterRCNN(first=first, pool=pool and pool())

    how = in_turns if alternating else lesson.train_faster_rcnn
    model, seconds = how(STEPS, seed, make)
    seconds = getattr(seconds, "seconds", seconds)
    _, found = detectors.evaluate(model, lesson.test_set, lesson.DEVICE)
    ms = detectors.ms_per_image(model, lesson.test_set.images[:30], lesson.DEVICE)
    return outcome(model, found, seconds, ms)


def outcome(model: nn.Module, found, seconds: float, ms: float) -> Outcome:
    return Outcome(
        detections=found,
        steps=STEPS,
        seconds=seconds,
        parameters=sum(p.numel() for p in model.parameters()),
        weights=model.state_dict(),
        ms_per_image=ms,
    )


def on_selective_search(seed: int, pool: nn.Module) -> Outcome:
    """ADAPTER to lecture 02: its Fast R-CNN on selective search's boxes, pooled by `pool`.

    Wanted of the lesson: train_fast_rcnn(steps, seed, pool) -> (model, history), which makes a
    FastRCNN(num_classes, backbone, pool), and detector_of(model, proposals), a function from images
    to detections that takes the next images' proposals in their order.
    """
    backbone, augmented = fast.FastRCNN, fast.detectors.augmented_batches
    if isinstance(pool, Crops):  # there is no map: the regions are cut from the image itself
        fast.FastRCNN = functools.partial(backbone, backbone=nn.Identity())
        fast.detectors.augmented_batches = functools.partial(augmented, batch_size=CROPS)
    try:
        model, history = fast.train_fast_rcnn(STEPS, seed, pool)
    finally:
        fast.FastRCNN, fast.detectors.augmented_batches = backbone, augmented
    images = lesson.test_set.images
    detect = fast.detector_of(model, benchmark_proposals("test"))
    found = detectors.detect_all(detect, images, lesson.DEVICE)
    detect = fast.detector_of(model, benchmark_proposals("test")[:30] * 2)  # two rounds
    ms = detectors.ms_per_image(detect, images[:30], lesson.DEVICE) + search_ms(images[:30])
    return outcome(model, found, history.seconds, ms)


def search_ms(images: torch.Tensor) -> float:
    """Milliseconds of selective search per image, one at a time."""
    start = time.perf_counter()
    for image in images:
        selective_search(image[None])
    return 1000 * (time.perf_counter() - start) / len(images)


def in_turns(steps: int, seed: int, make) -> tuple[nn.Module, float]:
    """The paper's four steps, a quarter of `steps` each: RPN, head, RPN's layers, head's layers.

    The second begins with a CNN of its own; from then on the two stages share that.
    """
    seed_everything(seed)
    device = lesson.DEVICE
    proposer, model = (make().to(device).to(memory_format=torch.channels_last) for _ in range(2))

    def propose(net):
        def losses(images, boxes, labels):
            return net.first.losses(images, boxes)

        return losses

    def name(source):
        def losses(images, boxes, labels):
            with torch.no_grad():
                _, anchors, *answers = source.first(images)
                size, limits = images.shape[2:], {"k": 256, "top": 64}
                proposals = lesson.decode_proposals(*answers, anchors, size, **limits)
            return model.second_losses(model.first.backbone(images), proposals, boxes, labels)

        return losses

    turns = (
        (proposer, propose(proposer), [proposer.first]),
        (model, name(proposer), [model.first.backbone, model.pool, model.head]),
        (model, propose(model), [model.first.rpn]),
        (model, name(model), [model.head]),
    )
    seconds = 0.0
    for turn, part in zip(turns, torch.arange(steps).chunk(4)):
        net, losses, learning = turn
        net.requires_grad_(False)
        for module in learning:
            module.requires_grad_(True)
        batch_seed = 4 * seed + int(part[0] > 0)
        data = detectors.augmented_batches(lesson.train_set, len(part), batch_seed, device)
        seconds += lesson.training.fit(net, losses, data, len(part)).seconds
    return model.eval(), seconds
