"""SSD: maps and default boxes, zoom, matching, mining with fair starts, RetinaNet beside it."""

import math

import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD

from experiments.outcome import Outcome, measured
from experiments.peers import AS_OURS, Maps, train_peer
from experiments.splits import Split
from helpers import lessons
from helpers.shapes import CLASSES, benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "06_ssd", "SSD"
lesson, other = lessons.load(LECTURE), lessons.load("04_fpn_retinanet")
for module in (lesson, other):
    module.SEED, module.DEVICE = 0, pick_device()
    module.train_set, module.test_set = benchmark("train"), benchmark("test")
STEPS = budget(cpu=lesson.CPU_STEPS)
NO_PRIOR = {"pi": None}


class WithoutThePromise(lesson.MultiBoxLoss):
    """Only boxes above 0.5: no object's best box is matched for its own sake."""

    def match(self, overlap):
        best, matches = torch.nn.functional.pad(overlap, (0, 1)).max(dim=1)
        return torch.where(best < 0.5, -1, matches)


class AllNegatives(lesson.MultiBoxLoss):
    """Nothing is mined: all boxes count."""

    def weights(self, loss, positive, negative):
        return positive | negative


def torchvision_ssd():
    """torchvision's SSD on the lesson's backbone, with torchvision's own four boxes per cell."""
    ours = lesson.SSDBackbone()
    sizes = [lesson.BASE * 2**level / 128 for level in range(2, 6)]  # in images; one more than maps
    boxes = DefaultBoxGenerator([[2]] * 3, scales=sizes, steps=list(lesson.STRIDES))
    options = AS_OURS | {"score_thresh": 0.03, "nms_thresh": 0.5, "detections_per_img": 100}
    return TorchvisionSSD(
        Maps(ours, list(ours.widths)), boxes, (128, 128), len(CLASSES) + 1, **options
    )


# AP on the validation images, seed 0, with rates of 0.002 and 0.004 (experiments/rates.py):
#   main 0.722 0.731   torchvision 0.677 0.706
VARIANTS = {
    "main": {},
    "two maps": {"model": {"strides": (8, 16), "scales": lesson.DOUBLE}},
    "one map": {"model": {"strides": (8,), "scales": lesson.SIX}},
    "one fine map": {"model": {"strides": (4,), "scales": [2 * scale for scale in lesson.SIX]}},
    "squares only": {"model": {"ratios": (1.0,)}},
    "mining 1 : 1": {"criterion": lesson.MultiBoxLoss(ratio=1)},
    "mining 10 : 1": {"criterion": lesson.MultiBoxLoss(ratio=10)},
    "all negatives": {"criterion": AllNegatives()},
    "no prior": {"model": NO_PRIOR},
    "no prior, all negatives": {"criterion": AllNegatives(), "model": NO_PRIOR},
    "no prior, base 1": {"model": NO_PRIOR | {"base": 1.0}},
    "no prior, base 1, without the promise": {
        "criterion": WithoutThePromise(),
        "model": NO_PRIOR | {"base": 1.0},
    },
    "no prior, with zoom": {"model": NO_PRIOR, "augment": lesson.zoom},
    "no prior, 100 images": {"model": NO_PRIOR, "share": 0.05},
    "no prior, 100 images, with zoom": {
        "model": NO_PRIOR,
        "share": 0.05,
        "augment": lesson.zoom,
    },
    "RetinaNet, equal steps": {"retina": 1.0},
    "RetinaNet, equal seconds": {"retina": 0.76},
    "torchvision": {"theirs": True},
}


def train(
    seed: int,
    criterion: lesson.MultiBoxLoss | None = None,
    model: dict | None = None,
    augment=None,
    rate: float = 0.004,
    share: float = 1.0,
    retina: float | None = None,
    theirs: bool = False,
) -> Outcome:
    """The lesson's training of one variant, and what it finds on the held-out images.

    share: of the training images, the first ones;
    retina: lecture 04's detector in the place of SSD, for so many times as many steps, each of as
    many images; theirs: torchvision's SSD.
    """
    data = first(lesson.train_set, share) if share < 1 else lesson.train_set
    if retina:
        other.train_set, other.BATCH = lesson.train_set, lesson.BATCH
        trained, history = other.train_retinanet(max(2, round(retina * STEPS)), seed)
        detect = trained.detect
    elif theirs:
        trained, detect, history = train_peer(
            torchvision_ssd,
            lesson.train_set,
            STEPS,
            seed,
            lesson.BATCH,
            rate,
            first=1,
        )
    else:
        trained, history = lesson.train_ssd(
            STEPS, seed, lambda: lesson.SSD(**(model or {})), criterion, augment, data, rate
        )
        detect = lesson.detector_of(trained)
    return measured(trained, detect, history, lesson.test_set, lesson.DEVICE)


def first(data, share):
    """The first images of a split."""
    count = math.ceil(share * len(data))
    return Split(images=data.images[:count], targets=data.targets[:count], classes=CLASSES)
