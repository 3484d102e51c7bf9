"""YOLO: who answers, what confidence means, units and weights, the cells, the last layer."""

import torch

from experiments.outcome import Outcome, measured
from helpers import lessons
from helpers.shapes import benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "05_yolo", "YOLO"
lesson = lessons.load(LECTURE)
lesson.SEED, lesson.DEVICE = 0, pick_device()
lesson.train_set, lesson.test_set = benchmark("train"), benchmark("test")
STEPS = budget(cpu=lesson.CPU_STEPS)


class AlwaysBox0(lesson.YOLOLoss):
    """Box 0 of a cell answers for its object, box 1 is told to be silent everywhere."""

    def responsible(self, iou):
        mask = torch.zeros_like(iou, dtype=torch.bool)  # (M, B)
        mask[:, 0] = True
        return mask


class ConfidenceOne(lesson.YOLOLoss):
    """A responsible box should be sure, however well it fits."""

    def confidence_goal(self, iou):
        return torch.ones_like(iou)


class AlwaysBox0ConfidenceOne(AlwaysBox0, ConfidenceOne):
    """Both simplifications."""


class SizesInImages(lesson.YOLOLoss):
    """The paper's units: the root of a size in units of the image, a place in units of the cell."""

    def forward(self, forms, targets):
        parts = super().forward(forms, targets)
        return parts | {"wh": parts["wh"] / forms.shape[1]}


class LinearYOLO(lesson.YOLODetector):
    """The paper's last layer: raw outputs, which begin where the sigmoids do."""

    def __init__(self, **options):
        super().__init__(**options)
        bias = self.head[-1].bias.data
        bias.sigmoid_()
        bias[-self.num_classes :] = 1 / self.num_classes

    def activate(self, cells):
        xy, roots, rest = cells.split([2, 2, 1 + self.num_classes], dim=-1)
        return torch.cat([xy, roots**2, rest], dim=-1)


VARIANTS = {
    "main": {},
    "always box 0": {"criterion": AlwaysBox0},
    "confidence goal 1": {"criterion": ConfidenceOne},
    "always box 0, goal 1": {"criterion": AlwaysBox0ConfidenceOne},
    "twins at the start": {"model": {"starts": (0.22, 0.22)}},
    "sizes in images": {"criterion": SizesInImages},
    "coord 1": {"loss": {"lambda_coord": 1.0}},
    "noobj 1": {"loss": {"lambda_noobj": 1.0}},
    "8 × 8 cells": {"model": {"grid_size": 8}},
    "8 × 8 cells, always box 0": {"model": {"grid_size": 8}, "criterion": AlwaysBox0},
    "4 × 4 cells": {"model": {"grid_size": 4}},
    "4 × 4 cells, always box 0": {"model": {"grid_size": 4}, "criterion": AlwaysBox0},
    "linear outputs": {"network": LinearYOLO},
}


def train(
    seed: int,
    network: type = lesson.YOLODetector,
    criterion: type = lesson.YOLOLoss,
    model: dict | None = None,
    loss: dict | None = None,
) -> Outcome:
    """The lesson's training of one variant, and what it finds on the held-out images."""
    trained, history = lesson.train_yolo(
        STEPS, seed, lambda: network(**(model or {})), criterion(**(loss or {}))
    )
    detect = lesson.detector_of(trained)
    return measured(trained, detect, history, lesson.test_set, lesson.DEVICE)
