"""Tree crowns: what to freeze, which views, and what a shuffled split promises."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn

from experiments.outcome import Outcome, measured
from helpers import detectors, lessons
from helpers.evaluation import coco_ap
from helpers.training import budget, pick_device

LECTURE, MODEL = "10_your_own_data", "FCOS on EfficientNet-Lite0"
DEVICE = pick_device()
lesson = lessons.load(LECTURE, DEVICE=DEVICE)
levels = {"STRIDES": lesson.STRIDES, "RANGES": lesson.RANGES}
lesson.fcos = lessons.load("07_fcos", DEVICE=DEVICE, **levels)
STEPS = budget(cpu=lesson.CPU_STEPS)
ROWS, COLUMNS = 4, 5  # of the blocks that stand for images when the held-out place is drawn anew


class FromScratch(lesson.PretrainedStages):
    """The same stages with random weights, all of them trained, batch normalisation as well."""

    def __init__(self):
        super().__init__(frozen=0)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.reset_parameters()
                layer.momentum = 0.1

    def train(self, mode=True):
        return nn.Module.train(self, mode)


def slope(stages, turns=range(8), change=lambda image, turn: image):
    """The views of the slope's training part, each changed in its own way."""
    image, trees = lesson.place("slope")
    keep = trees[:, 3] <= lesson.BORDER
    views = []
    for turn in turns:
        changed = change(image[:, : lesson.BORDER], turn)
        views += lesson.kept_views(stages, changed, trees[keep], [turn])
    return views


def one_view(stages):
    """The photograph as it is."""
    return slope(stages, turns=[0])


def recoloured(stages):
    """The colour channels in another order from view to view; as they are in views 0 and 6."""
    orders = list(itertools.permutations(range(3)))
    return slope(stages, change=lambda image, turn: image[list(orders[turn % 6])])


def shuffled_tiles(whole: torch.Tensor, trees: torch.Tensor) -> tuple[list, list]:
    """Training and test tiles of the whole slope, drawn at random: images with their trees."""
    rows, columns = (lesson.corners(n, 256, 128) for n in whole.shape[1:])
    spots = [(x, y) for y in rows for x in columns]
    order = torch.randperm(len(spots), generator=torch.Generator().manual_seed(0)).tolist()
    tiles = [
        (whole[:, y : y + 256, x : x + 256], lesson.cut(trees, x, y, 256))
        for x, y in (spots[number] for number in order)
    ]
    return tiles[len(tiles) // 5 :], tiles[: len(tiles) // 5]


def from_shuffled_tiles(stages):
    """All views of the training tiles of a shuffled split, each tile a photograph of its own."""
    tiles, _ = shuffled_tiles(*lesson.place("slope"))
    return [view for tile in tiles for view in lesson.kept_views(stages, *tile)]


# With a share: as many seconds as main, since a step costs more, the more of the backbone is
# trained (data/README.md). Without: as many steps.
VARIANTS = {
    "main": {},
    "one stage frozen": {"stages": lambda: lesson.PretrainedStages(1), "share": 0.61},
    "frozen": {"stages": lambda: lesson.PretrainedStages(3), "share": 1.8},
    "fine-tuned": {"stages": lambda: lesson.PretrainedStages(0), "share": 0.36},
    "from scratch": {"stages": FromScratch, "share": 0.35},
    "from scratch, equal steps": {"stages": FromScratch},
    "one view": {"views": one_view},
    "recoloured": {"views": recoloured},
    "shuffled tiles": {"views": from_shuffled_tiles},
}


def targets_of(trees: torch.Tensor) -> dict:
    return {"boxes": trees, "labels": torch.zeros(len(trees), dtype=torch.long)}


def by_block(objects: dict, size: tuple[int, int], trees: torch.Tensor) -> list[dict]:
    """Detections or trees of a photograph, block by block; a block stands for an image.

    A detection belongs where the tree is that it overlaps most, if there is one.
    """
    boxes = objects["boxes"]
    overlap, nearest = lesson.box_iou(boxes, trees).max(dim=1)
    whose = torch.where((overlap > 0)[:, None], trees[nearest], boxes)
    middle = (whose[:, :2] + whose[:, 2:]) / 2 / torch.tensor([size[1], size[0]])
    column, row = (middle * torch.tensor([COLUMNS, ROWS])).long().T
    place = row.clamp(0, ROWS - 1) * COLUMNS + column.clamp(0, COLUMNS - 1)
    return [{key: v[place == n] for key, v in objects.items()} for n in range(ROWS * COLUMNS)]


ROAD, TREES = lesson.place("road")
TARGETS = by_block(targets_of(TREES), ROAD.shape[1:], TREES)


def held_out(model, views) -> float:
    """AP50 on what the variant's own split holds out: shuffled tiles, or the strip next door."""
    whole, trees = lesson.place("slope")
    if views is not from_shuffled_tiles:
        trees = trees[trees[:, 1] >= lesson.BORDER] - torch.tensor([0, lesson.BORDER] * 2)
        found = lesson.detect(model, whole[:, lesson.BORDER :])
        return lesson.average_precision(found, trees)["AP50"]
    _, tiles = shuffled_tiles(whole, trees)
    found = [lesson.detect(model, image) for image, _ in tiles]
    truth = [targets_of(boxes) for _, boxes in tiles]
    return coco_ap(found, truth, 1)["AP50"]


def train(seed: int, stages=lesson.PretrainedStages, views=slope, share: float = 1.0) -> Outcome:
    """The lesson's training of one variant, and what it finds on the road and elsewhere."""
    start = detectors.now(DEVICE)
    model, history = lesson.train_detector(max(1, round(STEPS * share)), seed, views, stages)
    seconds = detectors.now(DEVICE) - start  # with the maps that are made before the first step
    own = "own tiles" if views is from_shuffled_tiles else "next door"
    extra = {f"AP50 {own}": held_out(model, views)}
    for name in ("Florida", "California"):
        image, trees = lesson.place(name)
        extra[f"AP50 {name}"] = lesson.average_precision(lesson.detect(model, image), trees)["AP50"]
    if views is one_view:  # does it know the light of one hour? The road, in all views
        for turn in range(8):
            image, trees = lesson.turned(ROAD, TREES, turn)
            ap = lesson.average_precision(lesson.detect(model, image), trees)
            extra[f"AP50 road, view {turn}"] = ap["AP50"]
    outcome = measured(
        model,
        lambda _: [lesson.detect(model, ROAD)],  # the whole photograph, in tiles of its own
        history,
        SimpleNamespace(images=ROAD[None]),
        DEVICE,
        targets=TARGETS,
        extra=extra,
    )
    blocks = by_block(outcome.detections[0], ROAD.shape[1:], TREES)
    return replace(outcome, detections=blocks, seconds=seconds)
