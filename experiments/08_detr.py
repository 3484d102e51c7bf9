"""DETR: each brake back on, queries, matching, attention among queries, twins, what came after."""

import itertools
import time

import torch
from torch import nn
from torchvision.ops import box_iou

from experiments.outcome import Outcome
from experiments.splits import Split
from helpers import detectors, lessons
from helpers.evaluation import coco_ap
from helpers.shapes import CLASSES, benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "08_detr", "DETR"
lesson, other = lessons.load(LECTURE), lessons.load("07_fcos")
for module in (lesson, other):
    module.SEED, module.DEVICE = 0, pick_device()
    module.train_set, module.test_set = benchmark("train"), benchmark("test")
STEPS = budget(cpu=lesson.CPU_STEPS)
LOOKS = 12  # on the way, and one at the end


class Plain(lesson.DETR):
    """The plain class in the size of the slim one, with as many queries."""

    def __init__(self, **options):
        super().__init__(num_queries=16, **options)


class NoNearness(lesson.PlacedDETR):
    """Places alone: nothing is added to the scores."""

    def nearness(self, box, places, allowed):
        return allowed


class Blind(lesson.PlacedDETR):
    """Each query sees only itself."""

    def decode(self, memory, places, allowed=None, queries=None, among=None):
        itself = torch.eye(len(self.places), dtype=torch.bool, device=memory.device)
        return super().decode(memory, places, allowed, queries, itself)


class GreedyMatcher(lesson.HungarianMatcher):
    """The cheapest free pair first."""

    def assign(self, cost):
        return lesson.greedy_matching(cost)


class OnlyTheLast(lesson.DETRLoss):
    """No auxiliary losses: the last decoder layer alone is taught."""

    def __call__(self, answers, targets):
        return super().__call__(answers[-1:], targets)


def loss(kind=lesson.DETRLoss, matcher=lesson.HungarianMatcher, **options):
    """The lesson's loss, of another kind or with other options."""
    slim = lesson.slim_loss()
    options = {"no_object": slim.no_object, "weights": slim.weights} | options
    return kind(matcher(slim.matcher.weights), **options)


PAPER = lesson.DETRLoss()  # class weight 1, no object 0.1, in the matching 1, too
SLOW = {"rate": 0.0003, "backbone_rate": 1.0}  # a fifth of main's rate
VARIANTS = {
    "main": {},
    "plain": {"network": Plain, "criterion": PAPER, "backbone_rate": 1.0},
    "plain, slower": {"network": Plain, "criterion": PAPER, **SLOW},
    "plain, with places": {"criterion": PAPER, "backbone_rate": 1.0},
    "no places": {"network": Plain},
    "no nearness": {"network": NoNearness},
    "paper's class weights": {"criterion": lesson.DETRLoss(weights=(1.0, 5.0, 4.0))},
    "one rate": {"backbone_rate": 1.0},
    "no auxiliary losses": {"criterion": loss(OnlyTheLast)},
    "greedy matching": {"criterion": loss(matcher=GreedyMatcher)},
    "8 queries, 2 × 4": {"model": {"grid": (2, 4)}},
    "no encoder": {"model": {"depths": (0, 3)}},
    "blind queries": {"network": Blind},
    "twins": {"twins": True},
    "twins, FCOS": {"twins": True, "fcos": True},
    "denoising": {"network": lesson.DenoisingDETR, "length": 0.91},
    "groups": {"network": lesson.GroupDETR, "length": 0.63},
    "taught tokens": {"network": lesson.DenseDETR, "length": 0.95},
}


def train(
    seed: int,
    network: type = lesson.PlacedDETR,
    criterion: lesson.DETRLoss | None = None,
    model: dict | None = None,
    rate: float = 0.0015,
    backbone_rate: float = 3.0,
    length: float = 1.0,
    twins: bool = False,
    fcos: bool = False,
) -> Outcome:
    """The lesson's training of one variant, and what it finds on the held-out images.

    length: times as many steps, for equal seconds; twins: on scenes with twins, trained and tested;
    fcos: lecture 07's detector in the place of DETR.
    """
    data, held_out = lesson.train_set, lesson.test_set
    if twins:
        data, held_out = twinned(data), twinned(held_out)
    steps = max(2, round(length * STEPS))
    if fcos:
        return with_fcos(seed, data, held_out)
    watch, options = Watch(steps, held_out), lesson.SLIM | (model or {})
    trained, history = lesson.train_detr(
        steps, seed, lambda: watch.over(network(**options)), criterion, data, rate, backbone_rate
    )
    seconds = history.seconds - watch.seconds
    watch(steps, trained)  # the last look
    found = detectors.detect_all(trained.detect, held_out.images, lesson.DEVICE)
    return Outcome(
        detections=found,
        targets=held_out.targets if twins else None,
        steps=len(next(iter(history.values()))),
        seconds=seconds,
        parameters=sum(p.numel() for p in trained.parameters()),
        weights=trained.state_dict(),
        ms_per_image=detectors.ms_per_image(trained.detect, held_out.images[:30], lesson.DEVICE),
        curve=watch.points,
        extra=measures(found, held_out, twins) | readings(trained, held_out, twins),
    )


def with_fcos(seed: int, data, held_out) -> Outcome:
    """Lecture 07's detector on scenes with twins; it reads its answers with NMS at 0.5."""
    other.train_set = data
    trained, history = other.train_fcos(min(STEPS, other.CPU_STEPS), seed, rule=nearest_first)
    detect = other.detector_of(trained)
    everything = other.detector_of(trained, iou=1.0, top=1000)
    raw = detectors.detect_all(everything, held_out.images, other.DEVICE)
    found = [{k: v[:100] for k, v in d.items()} for d in lesson.with_nms(raw, 0.5)]
    return Outcome(
        detections=found,
        targets=held_out.targets,
        steps=len(next(iter(history.values()))),
        seconds=history.seconds,
        parameters=sum(p.numel() for p in trained.parameters()),
        ms_per_image=detectors.ms_per_image(detect, held_out.images[:30], other.DEVICE),
        extra=measures(raw, held_out, twins=True),
    )


class Watch:
    """Looks at a DETR during its training: AP, and which objects keep their query."""

    def __init__(self, steps: int, data):
        self.every, self.data = max(1, steps // LOOKS), data
        self.points, self.owners = [], None
        self.seconds, self.began = 0.0, time.perf_counter()  # of the looks; of the training

    def over(self, model: nn.Module) -> nn.Module:
        """The same model, looked at before every so many of its steps."""
        losses, count = model.losses, itertools.count()

        def watched(*batch):
            step = next(count)
            if step == 0:
                self.began = time.perf_counter()
            elif step % self.every == 0:
                self(step, model)
            return losses(*batch)

        model.losses = watched
        return model

    @torch.no_grad()
    def __call__(self, step: int, model: nn.Module) -> None:
        start, was_training = time.perf_counter(), model.training
        found = detectors.detect_all(model.eval().detect, self.data.images, lesson.DEVICE)
        ap = coco_ap(found, self.data.targets)["AP"]
        some = detectors.to_input(self.data.images[:100], lesson.DEVICE)
        columns = ([t[key] for t in self.data.targets[:100]] for key in ("boxes", "labels"))
        targets = lesson.targets_of(*columns, some.shape[2:])
        answers = (side.cpu() for side in model(some)[-1])
        pairs = lesson.slim_loss().matcher(*answers, targets)
        owners = torch.cat([queries[objects.argsort()] for queries, objects in pairs])
        point = {"steps": step, "seconds": start - self.began - self.seconds, "AP": ap}
        if self.owners is not None:
            point["kept"] = (owners == self.owners).float().mean().item()
        self.points.append({name: round(value, 4) for name, value in point.items()})
        self.owners = owners
        model.train(was_training)
        self.seconds += time.perf_counter() - start


def twinned(data) -> Split:
    """A split in which the last object of each image has a twin."""
    images, targets = lesson.with_twins(data)
    return Split(images=images, targets=targets, classes=CLASSES)


def measures(raw, data, twins: bool) -> dict[str, float]:
    """Of detections before any suppression: how many repeat, and what NMS would do."""
    count, again = lesson.repeats(raw)
    values = {"sure boxes": count, "repeated": again}
    for name, found in (
        ("AP without NMS", raw),
        ("AP with NMS", lesson.with_nms(raw, 0.5)),
        ("AP, NMS at 0.7", lesson.with_nms(raw, 0.7)),
    ):
        values[name] = coco_ap(found, data.targets)["AP"]
        if twins:
            values[name.replace("AP", "pairs", 1)] = pairs_found(found, data.targets)
    return {name: round(float(value), 4) for name, value in values.items()}


def pairs_found(found, targets) -> float:
    """Share of the twins, the last two objects of each image, of which both are found.

    Each needs a box of its own, of its class, above 0.5, that overlaps it by more than a half and
    more than it overlaps the other twin: twins overlap, so one box given twice would do otherwise.
    """
    both = 0
    for d, t in zip(found, targets):
        sure = (d["scores"] > 0.5) & (d["labels"] == t["labels"][-1])
        overlap = box_iou(t["boxes"][-2:], d["boxes"][sure])  # (2, n)
        own = torch.where(overlap > overlap.flip(0), overlap, 0.0)  # nearer to which twin?
        best = own.amax(dim=1) if own.shape[1] else torch.zeros(2)
        both += bool((best > 0.5).all())
    return both / len(targets)


def nearest_first(at, stride, boxes):
    """Lecture 07's rule, but of objects of equal area the one whose centre is nearest."""
    match = other.assign(at, stride, boxes)
    if len(boxes) < 2:
        return match
    twins = boxes[-2:]
    sides = twins[:, 2:] - twins[:, :2]
    may = torch.stack([other.assign(at, stride, box[None]) >= 0 for box in twins], dim=1)  # (L, 2)
    if not torch.equal(sides[0], sides[1]):
        return match
    away = torch.cdist(at, (twins[:, :2] + twins[:, 2:]) / 2)
    contested = may.all(dim=1) & (match >= len(boxes) - 2)
    return torch.where(contested, len(boxes) - 2 + away.argmin(dim=1), match)


def readings(trained: lesson.DETR, data, twins: bool) -> dict[str, float]:
    """What else a trained DETR says of itself.

    Of the first decoder layer, and of the last one if no query sees another any more (*cut*):
    sure boxes, how many repeat, AP without and with NMS. And the AP on scenes with twins.
    """

    def cut(images):
        itself = torch.eye(len(trained.places), dtype=torch.bool, device=images.device)
        answers = trained.decode(*trained.encode(images), among=itself)
        return lesson.read_answers(*answers[-1], lesson.sizes_of(images[:, 0] == images[:, 0]))

    values, ways = {}, {"layer 1": lambda images: trained.detect(images, layer=0)}
    if isinstance(trained, lesson.PlacedDETR):
        ways["cut"] = cut
    for name, detect in ways.items():
        found = detectors.detect_all(detect, data.images, lesson.DEVICE)
        values |= {f"{key}, {name}": v for key, v in measures(found, data, twins=False).items()}
    if not twins:
        scenes = twinned(data)
        found = detectors.detect_all(trained.detect, scenes.images, lesson.DEVICE)
        values["AP on twins"] = round(coco_ap(found, scenes.targets)["AP"], 4)
    return values
