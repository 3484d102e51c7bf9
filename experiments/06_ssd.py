"""SSD: maps and default boxes, zoom, matching, mining with fair starts, RetinaNet beside it."""

import torch

from experiments.outcome import Outcome
from helpers import detectors, lessons
from helpers.shapes import benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "06_ssd", "SSD"
lesson, other = lessons.load(LECTURE), lessons.load("04_fpn_retinanet")
for module in (lesson, other):
    module.SEED, module.DEVICE = 0, pick_device()
    module.train_set, module.test_set = benchmark("train"), benchmark("test")
STEPS = budget(cpu=lesson.CPU_STEPS)
PRIOR = {"pi": 0.01}
SIX = (0.5, 0.8, 1.0, 1.6, 2.0, 3.2)  # scales of one map that give all six sizes


class WithoutThePromise(lesson.MultiBoxLoss):
    """Only boxes above 0.5: no object's best box is matched for its own sake."""

    def match(self, overlap):
        best, matches = torch.nn.functional.pad(overlap, (0, 1)).max(dim=1)
        return torch.where(best < 0.5, -1, matches)


class IgnoredBand(lesson.MultiBoxLoss):
    """RetinaNet's band: boxes between 0.4 and 0.5 do not count."""

    def match(self, overlap):
        matches = super().match(overlap)
        near = torch.nn.functional.pad(overlap, (0, 1)).amax(dim=1) >= 0.4
        return torch.where((matches == -1) & near, -2, matches)


class AllNegatives(lesson.MultiBoxLoss):
    """Nothing is mined: all boxes count."""

    def weights(self, loss, positive, negative):
        return positive | negative


class FocalFactor(AllNegatives):
    """All boxes count, each turned down by (1 - p)^2, where p is the probability of its truth."""

    def weights(self, loss, positive, negative):
        return (1 - torch.exp(-loss)).clamp(min=1e-7) ** 2


class BothScales(lesson.SSD):
    """Two maps with all six sizes: the smallest ones stand on the map of stride 8, too."""

    def __init__(self, **options):
        super().__init__(strides=(8, 16), scales=(0.5, 0.8, 1.0, 1.6), base=3.0, **options)


VARIANTS = {
    "main": {},
    "two maps": {"network": BothScales},
    "one map, stride 8": {"model": {"strides": (8,), "scales": SIX}},
    "one map, stride 4": {"model": {"strides": (4,), "scales": tuple(2 * s for s in SIX)}},
    "squares only": {"model": {"ratios": (1.0,)}},
    "one scale": {"model": {"scales": (1.3,)}},
    "without the promise": {"criterion": WithoutThePromise()},
    "ignored band": {"criterion": IgnoredBand()},
    "with zoom": {"augment": lesson.zoom},
    "mining 3 : 1, prior": {"model": PRIOR},
    "mining 1 : 1": {"criterion": lesson.MultiBoxLoss(ratio=1)},
    "mining 1 : 1, prior": {"criterion": lesson.MultiBoxLoss(ratio=1), "model": PRIOR},
    "mining 10 : 1": {"criterion": lesson.MultiBoxLoss(ratio=10)},
    "mining 10 : 1, prior": {"criterion": lesson.MultiBoxLoss(ratio=10), "model": PRIOR},
    "all negatives": {"criterion": AllNegatives()},
    "all negatives, prior": {"criterion": AllNegatives(), "model": PRIOR},
    "focal factor, prior": {"criterion": FocalFactor(), "model": PRIOR},
    "RetinaNet, equal images": {"retina": 1.0},
    "RetinaNet, equal seconds": {"retina": 0.6},
}


def train(
    seed: int,
    network: type = lesson.SSD,
    criterion: lesson.MultiBoxLoss | None = None,
    model: dict | None = None,
    augment=None,
    retina: float | None = None,
) -> Outcome:
    """The lesson's training of one variant, and what it finds on the held-out images.

    retina: lecture 04's detector in the place of SSD, for so many times as many steps, each of as
    many images; 0.6 takes about as many seconds.
    """
    if retina:
        other.train_set, other.BATCH = lesson.train_set, 16
        trained, history = other.train_retinanet(max(2, round(retina * STEPS)), seed)
        detect = trained.detect
    else:
        trained, history = lesson.train_ssd(
            STEPS, seed, lambda: network(**(model or {})), criterion, augment
        )
        detect = lesson.detector_of(trained)
    _, found = detectors.evaluate(detect, lesson.test_set, lesson.DEVICE)
    return Outcome(
        detections=found,
        steps=len(history["box"]),
        seconds=history.seconds,
        parameters=sum(p.numel() for p in trained.parameters()),
        weights=trained.state_dict(),
        ms_per_image=detectors.ms_per_image(detect, lesson.test_set.images[:30], lesson.DEVICE),
    )
