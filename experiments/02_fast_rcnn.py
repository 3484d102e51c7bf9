"""Fast R-CNN: crops or one map, the box loss, the regions."""

from functools import partial
from itertools import cycle

import torch
import torch.nn.functional as F
from torchvision import ops

from experiments.outcome import Outcome
from helpers import detectors, lessons, proposals
from helpers.shapes import benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "02_fast_rcnn", "Fast R-CNN"
lesson = lessons.load(LECTURE)
lesson.SEED, lesson.DEVICE = 0, pick_device()
lesson.train_set, lesson.test_set = benchmark("train"), benchmark("test")
lesson.train_regions, lesson.test_regions = map(proposals.benchmark_proposals, ("train", "test"))
STEPS = budget(cpu=lesson.CPU_STEPS)
SAMPLE = lesson.sample_regions
NORMALISED, RAW = lesson.DELTA_WEIGHTS, (1.0, 1.0, 1.0, 1.0)


class CropsRCNN(lesson.FastRCNN):
    """R-CNN's way: each region is cut out of the picture and goes through the CNN by itself."""

    def forward(self, images, rois):
        crops = ops.roi_align(images.float(), rois.float(), 56, sampling_ratio=1)  # (R, 3, 56, 56)
        crops = crops.contiguous(memory_format=torch.channels_last)
        return self.head(self.backbone(crops))  # of (R, 96, 7, 7)


class LargeFastRCNN(lesson.FastRCNN):
    """The shared map of an image twice as high and wide: twice as many cells for each region."""

    def forward(self, images, rois):
        large = F.interpolate(images, scale_factor=2, mode="bilinear")
        large = large.contiguous(memory_format=torch.channels_last)
        return super().forward(large, torch.cat([rois[:, :1], 2 * rois[:, 1:]], dim=1))


class SquaredLoss(lesson.FastRCNNLoss):
    """Half the squared error of the deltas."""

    def box_loss(self, deltas, targets):
        return 0.5 * F.mse_loss(deltas, targets, reduction="sum")


class StayingFastRCNN(lesson.FastRCNN):
    """Boxes stay where they are proposed. (Deltas that start near 0 would stay there anyway.)"""

    def forward(self, images, rois):
        scores, deltas = super().forward(images, rois)
        return scores, 0 * deltas


class OneBoxFastRCNN(lesson.FastRCNN):
    """The same four deltas for all classes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.head.bbox_pred = torch.nn.Linear(self.head.fc7.out_features, 4)
        torch.nn.init.normal_(self.head.bbox_pred.weight, std=0.001)
        torch.nn.init.zeros_(self.head.bbox_pred.bias)

    def forward(self, images, rois):
        scores, deltas = super().forward(images, rois)
        return scores, deltas.repeat(1, self.num_classes + 1)


VARIANTS = {
    "main": {},
    "R-CNN's crops": {"network": CropsRCNN},
    "images twice as large": {"network": LargeFastRCNN},
    "a quarter objects": {"foreground": 0.25},
    "λ = 1": {"share": 1.0},
    "no box loss": {"network": StayingFastRCNN, "share": 0.0},
    "raw deltas": {"weights": RAW},
    "squared error": {"criterion": SquaredLoss},
    "one box for all classes": {"network": OneBoxFastRCNN},
    "random boxes": {"random": 200},
}


def regions_of(random: int) -> tuple[list, list]:
    """Regions of the training and of the held-out images; random: so many boxes, 0 for search."""
    if not random:
        return lesson.train_regions, lesson.test_regions
    sets = lesson.train_set, lesson.test_set
    train, test = (lesson.random_boxes(random, len(images)) for images in sets)
    return train, test


@torch.no_grad()
def accuracy(model, regions: list) -> dict[str, float]:
    """Share of the held-out regions that get the right class, with and without an object."""
    hits = {"object": [], "background": []}
    everything = {"count": 10**6, "foreground": 1.0}
    for image, boxes, target in zip(lesson.test_set.images, regions, lesson.test_set.targets):
        drawn, labels, _ = lesson.sample_regions(boxes, **target, **everything)
        rois = lesson.as_rois([drawn]).to(lesson.DEVICE)
        scores, _ = model(detectors.to_input(image[None], lesson.DEVICE), rois)
        hit = scores.argmax(dim=1).cpu() == labels
        hits["object"].append(hit[labels > 0])
        hits["background"].append(hit[labels == 0])
    return {f"accuracy {name}": torch.cat(h).float().mean().item() for name, h in hits.items()}


def ms_per_image(model, regions: list | None, count: int = 30) -> float:
    """Milliseconds for one image, with its search; `regions`: where they cost no time."""
    images = lesson.test_set.images[:count]
    number = cycle(range(len(images)))

    def one(_):
        i = next(number)
        boxes = [regions[i]] if regions else proposals.selective_search(images[i : i + 1])
        return lesson.detect(model, images[i : i + 1], boxes)

    return detectors.ms_per_image(one, images, lesson.DEVICE)


def train(
    seed: int,
    network: type = lesson.FastRCNN,
    criterion: type = lesson.FastRCNNLoss,
    share: float = lesson.LAMBDA,
    weights: tuple = NORMALISED,
    random: int = 0,
    foreground: float = 0.5,
    **sampling: int,
) -> Outcome:
    """The lesson's training of one variant, and what it finds on the held-out images."""
    lesson.DELTA_WEIGHTS = weights  # of the targets, and of reading
    lesson.sample_regions = partial(SAMPLE, foreground=foreground)
    train_regions, test_regions = regions_of(random)
    loss = criterion(lambda_bbox=share)
    model, history = lesson.train_fast_rcnn(
        STEPS, seed, None, train_regions, network, loss, **sampling
    )
    return Outcome(
        detections=lesson.detect(model, lesson.test_set.images, test_regions),
        steps=STEPS,
        seconds=history.seconds,
        parameters=sum(p.numel() for p in model.parameters()),
        weights=model.state_dict(),
        ms_per_image=ms_per_image(model, test_regions if random else None),
        extra=accuracy(model, test_regions),
    )
