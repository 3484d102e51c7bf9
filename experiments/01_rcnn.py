"""R-CNN: fine-tuning, the SVMs' labels, SVM or softmax, the regressors, suppression, context.

A seed draws the fifty training images, the batches and the start of the last layer. The variants of
one seed share all that they do not change; their seconds count it nevertheless.
"""

import copy
import functools
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torchvision.ops import box_convert

from experiments.outcome import Outcome
from helpers import lessons
from helpers.proposals import benchmark_proposals
from helpers.shapes import benchmark
from helpers.training import budget, pick_device

LECTURE, MODEL = "01_rcnn", "R-CNN"
lesson = lessons.load(LECTURE)
lesson.DEVICE = pick_device()
STEPS = budget(cpu=lesson.CPU_STEPS)
HELD_OUT = 300  # images to measure on
READ = 100  # validation images whose regions are kept for the exercises
CONTEXT = lesson.OURS["context"]
CHANNELS = 320  # of a grid: EfficientNet-Lite0 before its last layer


class Known:
    """Proposals and features that are computed already: an image is its number, a map its row."""

    def __init__(self, extractor, maps):
        self.vectors, self.grids = extractor.features(maps)

    def features(self, rows):
        return self.vectors[rows], self.grids[rows]


@dataclass
class Regions:
    """What the trunk sees in the proposals of many images."""

    boxes_xywh: list[np.ndarray]  # per image (n, 4)
    maps: torch.Tensor  # (sum of n, C, h, w)
    rows: list[np.ndarray] = field(init=False)  # per image the numbers of its maps (n,)

    def __post_init__(self):
        ends = np.cumsum([len(boxes) for boxes in self.boxes_xywh])
        self.rows = np.split(np.arange(ends[-1]), ends[:-1])


class Listed:
    """A generator whose boxes are known: those of one image of the benchmark after another."""

    def __init__(self, boxes):
        self.boxes = iter(boxes)

    def generate_proposals(self, image):
        return next(self.boxes)


@functools.cache
def proposals(split):
    """Per image of a split the boxes that the page's generator gives, in its order."""
    found = [box_convert(b, "xyxy", "xywh").int().numpy() for b in benchmark_proposals(split)]
    return [lesson.shuffled(boxes, seed=0) for boxes in found]


def pixels(data, index):
    return data.images[index].permute(1, 2, 0).numpy()  # (H, W, 3)


@functools.lru_cache(maxsize=2)
def extractor(context):
    return lesson.CNNFeatureExtractor(**{**lesson.OURS, "context": context}, device=lesson.DEVICE)


@functools.lru_cache(maxsize=3)
def regions(split, context, count):
    boxes, data = proposals(split)[:count], benchmark(split)
    maps = [extractor(context).extract_maps(pixels(data, i), b) for i, b in enumerate(boxes)]
    return Regions(boxes, torch.cat(maps))


@functools.lru_cache(maxsize=2)
def table(seed, context):
    """The training regions of one seed, and the seconds that their features took."""
    data, start = benchmark("train"), time.perf_counter()
    chosen = lesson.few(len(data), seed)
    lesson.SelectiveSearchProposals().generate_proposals(pixels(data, 0))  # once, for the clock
    searching = (time.perf_counter() - start) * len(chosen)
    start = time.perf_counter()
    images, targets = [pixels(data, i) for i in chosen], [data.targets[i] for i in chosen]
    listed = Listed([proposals("train")[i] for i in chosen])
    made = lesson.training_table(listed, extractor(context), images, targets, len(lesson.CLASSES))
    return made, searching + time.perf_counter() - start


def as_objectness(full):
    """Object or not, and what overlaps an object by 0.1 to 0.5 is left out."""
    best = full.overlaps.max(axis=1)
    use = (best >= 0.5) | (best < 0.1)
    return np.where(best >= 0.5, 0, 1)[use], full.maps[use]


@functools.lru_cache(maxsize=4)
def tuned(seed, tuning, context):
    """Stage 1: an extractor, its last layer, the seconds."""
    full, _ = table(seed, context)
    own = copy.deepcopy(extractor(context))
    if tuning == "none":
        return own, None, 0.0
    if tuning == "objectness":
        labels, maps = as_objectness(full)
        head, history = lesson.finetune(own, maps, labels, 1, STEPS, seed)
    else:
        labels = lesson.stage1_labels(full)
        head, history = lesson.finetune(own, full.maps, labels, len(lesson.CLASSES), STEPS, seed)
    return own, head, history.seconds


@functools.lru_cache(maxsize=3)
def known(seed, tuning, context):
    """Features of the training and of the held-out regions; the seconds of the former."""
    own, _, _ = tuned(seed, tuning, context)
    start = time.perf_counter()
    training = Known(own, table(seed, context)[0].maps)
    seconds = time.perf_counter() - start
    return training, Known(own, regions("test", context, HELD_OUT).maps), seconds


# ---------------------------------------------------------------- what is exchanged


def overlap_above(limit):
    """The loose rule: what overlaps an object of the class so much is positive, all else not."""
    return lambda table, c: (table.overlaps[:, c] >= limit).astype(int)


def negatives_below(limit):
    return functools.partial(lesson.svm_labels, negative_below=limit)


def strict_classes(table):
    """The SVMs' rule for a softmax: true boxes, and background below 0.3; the rest is ignored."""
    num_classes = table.overlaps.shape[1]
    own = table.is_truth & (table.overlaps.max(axis=1) > 0.999)
    background = table.overlaps.max(axis=1) < 0.3
    labels = np.where(background, num_classes, -1)
    return np.where(own, table.overlaps.argmax(axis=1), labels)


def examples_of_the_softmax(table, c):
    """`strict_classes` for the SVM of class c: other classes' true boxes are negative, too."""
    classes = strict_classes(table)
    return np.where(classes < 0, -1, classes == c)


class Softmax:
    """Logistic regression over the classes and background, trained as the SVMs are."""

    def __init__(self, vectors, labels, seed, C):
        used = labels >= 0
        self.scaler = lesson.preprocessing.StandardScaler().fit(vectors[used])
        self.model = LogisticRegression(C=C, max_iter=500, random_state=seed)
        self.model.fit(self.scaler.transform(vectors[used]), labels[used])

    def scores(self, vectors):
        probabilities = self.model.predict_proba(self.scaler.transform(vectors))
        return probabilities[:, :-1]  # the last is background


@dataclass(frozen=True)
class Variant:
    """What a row changes."""

    tuning: str = "classes"  # or "none", "objectness"
    context: float = CONTEXT
    labels: object = lesson.svm_labels  # of the SVMs
    C: float = 0.01
    classifier: str = "svm"  # or "head", the layer of stage 1, or "softmax", with these labels:
    classes: object = strict_classes
    regressor: str = "grids"  # or "vectors", "averaged grids", "none"
    alpha: float = 1000.0
    nms: float = 0.3
    order: str = "move, suppress"


ALPHAS = {"10": 10.0, "100": 100.0, "1,000": 1e3, "10,000": 1e4, "100,000": 1e5}
SWEEP = {
    f"{what}, α = {name}": {"regressor": what, "alpha": value}
    for what in ("grids", "vectors")
    for name, value in ALPHAS.items()
    if (what, name) != ("grids", "1,000")  # which is main
}
VARIANTS = {
    "main": {},
    "no stage 1": {"tuning": "none"},
    "stage 1: object or not": {"tuning": "objectness"},
    "SVM, positives from 0.3": {"labels": overlap_above(0.3)},
    "SVM, positives from 0.5": {"labels": overlap_above(0.5)},
    "SVM, negatives below 0.5": {"labels": negatives_below(0.5)},
    "SVM, negatives below 0.1": {"labels": negatives_below(0.1)},
    "SVM, the softmax's examples": {"labels": examples_of_the_softmax},
    "SVM, C = 0.001": {"C": 0.001},
    "SVM, C = 0.0001": {"C": 0.0001},
    "softmax, true boxes": {"classifier": "softmax"},
    "softmax, C = 0.1": {"classifier": "softmax", "C": 0.1},
    "softmax, C = 0.001": {"classifier": "softmax", "C": 0.001},
    "softmax, no stage 1": {"classifier": "softmax", "tuning": "none"},
    "softmax, positives from 0.5": {"classifier": "softmax", "classes": lesson.stage1_labels},
    "softmax of stage 1": {"classifier": "head"},
    "no regressor": {"regressor": "none"},
    **SWEEP,
    "averaged grids, α = 100": {"regressor": "averaged grids", "alpha": 100.0},
    "averaged grids, α = 1,000": {"regressor": "averaged grids"},
    "NMS at 0.1": {"nms": 0.1},
    "NMS at 0.5": {"nms": 0.5},
    "no NMS": {"nms": 1.0},
    "NMS before moving": {"order": "suppress, move"},
    "no context": {"context": 0.0},
}


def of_regressor(regressor, vectors, grids):
    """What a regressor sees of N regions: vectors (N, 1280), grids (N, G), or the grids' means."""
    if regressor == "averaged grids":
        return grids.reshape(len(grids), CHANNELS, -1).mean(axis=2)
    return vectors if regressor == "vectors" else grids


class Detector(lesson.RCNN):
    """The lesson's class, with what a variant exchanges."""

    def __init__(self, variant, seed):
        training, held_out, _ = known(seed, variant.tuning, variant.context)
        super().__init__(len(lesson.CLASSES), Listed([]), training)
        self.variant, self.held_out = variant, held_out
        self.full, _ = table(seed, variant.context)
        self.bbox_regressors.alpha = variant.alpha
        self._fit(seed)
        self.extractor = held_out

    def _fit(self, seed):
        variant, vectors = self.variant, self.extractor.vectors
        if variant.classifier == "svm":
            self.scalers, self.svms = lesson.fit_svms(
                vectors, self.full, variant.labels, variant.C, seed
            )
        elif variant.classifier == "softmax":
            self.softmax = Softmax(vectors, variant.classes(self.full), seed, variant.C)
        else:
            self.head = tuned(seed, variant.tuning, variant.context)[1].cpu()
        if variant.regressor != "none":
            features = of_regressor(variant.regressor, vectors, self.extractor.grids)
            lesson.fit_regressors(self.bbox_regressors, features, self.full)

    def scores(self, vectors):
        if self.variant.classifier == "softmax":
            return self.softmax.scores(vectors)
        if self.variant.classifier == "head":
            with torch.no_grad():
                probabilities = self.head(torch.from_numpy(vectors)).softmax(dim=1)
            return probabilities[:, :-1].numpy()
        return lesson.svm_scores(self.svms, self.scalers, vectors, self.num_classes)

    def read(self, boxes_xywh, rows, size=(128, 128)):
        """Detections in one image, every score included."""
        vectors, grids = self.extractor.features(rows)
        features = of_regressor(self.variant.regressor, vectors, grids)
        scores = self.scores(vectors)
        region, label = np.nonzero(scores > -np.inf)
        boxes, score = boxes_xywh[region].astype(float), scores[region, label]
        if self.variant.order == "suppress, move":
            keep = lesson.apply_nms(boxes, score, label, self.variant.nms)
            boxes, score, label, region = boxes[keep], score[keep], label[keep], region[keep]
            moved = lesson.move_regions(self.bbox_regressors, boxes, features[region], label)
            return lesson.as_detections(moved, score, label, size, 1.0)
        moved = lesson.move_regions(self.bbox_regressors, boxes, features[region], label)
        return lesson.as_detections(moved, score, label, size, self.variant.nms)


def train(seed: int, **changes) -> Outcome:
    """One variant, from the fifty images of this seed to the held-out ones."""
    variant = replace(Variant(), **changes)
    own, _, tuning = tuned(seed, variant.tuning, variant.context)
    features = known(seed, variant.tuning, variant.context)[2]
    start = time.perf_counter()
    detector = Detector(variant, seed)
    fitting = time.perf_counter() - start
    held_out = regions("test", variant.context, HELD_OUT)
    found = [detector.read(b, rows) for b, rows in zip(held_out.boxes_xywh, held_out.rows)]
    models = [*detector.svms.values(), *detector.bbox_regressors.ridges.values()]
    parameters = sum(m.coef_.size + m.intercept_.size for m in models)
    is_main = variant == Variant()
    return Outcome(
        detections=found,
        steps=0 if variant.tuning == "none" else STEPS,
        seconds=table(seed, variant.context)[1] + tuning + features + fitting,
        parameters=sum(p.numel() for p in own.network.body.parameters()) + parameters,
        weights=answers(detector, own) if is_main and seed == 0 else None,
        ms_per_image=milliseconds(detector, own) if is_main else None,
    )


def milliseconds(detector, own, count=20):
    """Of the lesson's own class on one image after another, selective search included."""
    model = lesson.RCNN(detector.num_classes, lesson.SelectiveSearchProposals(), own)
    model.scalers, model.svms = detector.scalers, detector.svms
    model.bbox_regressors = detector.bbox_regressors
    images = [pixels(benchmark("test"), i) for i in range(count)]
    model.detect(images[0])
    start = time.perf_counter()
    for image in images:
        model.detect(image, threshold=-np.inf)
    return 1000 * (time.perf_counter() - start) / count


def answers(detector, own):
    """For the exercises: what each class says of every region of some validation images."""
    data = regions("val", detector.variant.context, READ)
    boxes = np.concatenate(data.boxes_xywh)  # (R, 4)
    vectors, grids = own.features(data.maps)
    moved = [detector.bbox_regressors.predict(grids, boxes, c) for c in range(detector.num_classes)]
    return {
        "counts": torch.tensor([len(b) for b in data.boxes_xywh]),
        "regions": torch.from_numpy(boxes).float(),
        "moved": torch.from_numpy(np.concatenate(moved, axis=1)).float(),  # (R, 4 K)
        "scores": torch.from_numpy(detector.scores(vectors)).float(),  # (R, K)
    }
