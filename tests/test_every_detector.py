"""What must hold for every detector: on a GPU, on nasty images, and on wrong or odd targets."""

import contextlib
import functools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from pretend_cuda import CPU, CUDA, OnCuda, pretend_cuda
from shared import notebook_code
from torch import nn

from helpers import shapes
from helpers.detectors import detect_all, to_input
from helpers.shapes import benchmark

CLASSES = 3


def fast_rcnn(nb, steps):
    model, history = nb.train_fast_rcnn(steps, nb.SEED, regions=nb.SOME_REGIONS)
    return model, history, nb.detect(model, nb.test_set.images, nb.SOME_REGIONS)


def faster_rcnn(nb, steps):
    model, history = nb.train_faster_rcnn(steps, nb.SEED)
    return model, history, detect_all(model, nb.test_set.images, nb.DEVICE)


def first_stage(nb, steps):
    """The first stage of lecture 03 alone; its proposals as detections without a name."""
    first, history = nb.train_first_stage(steps, nb.SEED)
    boxes = nb.proposals_of(first, nb.test_set.images)
    named = {"scores": torch.ones(0), "labels": torch.ones(0, dtype=torch.long)}
    return first, history, [{"boxes": b, **named} for b in boxes]


def all_boxes(nb, detect, **reading):
    """Detections of all images, whatever their scores."""
    reading = {"score_threshold": 0.0} | reading
    return detect_all(lambda images: detect(images, **reading), nb.test_set.images, nb.DEVICE)


def retinanet(nb, steps):
    model, history = nb.train_retinanet(steps, nb.SEED)
    return model, history, all_boxes(nb, model.detect)


def ssd(nb, steps):
    model, history = nb.train_ssd(steps, nb.SEED, augment=nb.zoom)
    detect = nb.detector_of(model, score_threshold=0.0)
    return model, history, detect_all(detect, nb.test_set.images, nb.DEVICE)


def retinanet_of_06(nb, steps):
    model, history = nb.train_ssd(steps, nb.SEED, nb.RetinaNetOnShapes, nb.RetinaLoss())
    detect = nb.detector_of(model, score_threshold=0.0, scores_of=nb.each_class)
    return model, history, detect_all(detect, nb.test_set.images, nb.DEVICE)


def detr(nb, steps):
    model, history = nb.train_detr(steps, nb.SEED)
    return model, history, detect_all(model.detect, nb.test_set.images, nb.DEVICE)


def yolo(nb, steps):
    model, history = nb.train_yolo(steps, nb.SEED)

    def detect(images):
        return nb.decode_predictions(model(images), images.shape[2:], threshold=0.0)

    return model, history, detect_all(detect, nb.test_set.images, nb.DEVICE)


def fcos(nb, steps):
    model, history = nb.train_fcos(steps, nb.SEED)
    detect = nb.detector_of(model, threshold=0.0)
    return model, history, detect_all(detect, nb.test_set.images, nb.DEVICE)


DETECTORS = {
    "Fast R-CNN": ("02_fast_rcnn", fast_rcnn),
    "RPN": ("03_faster_rcnn", first_stage),
    "Faster R-CNN": ("03_faster_rcnn", faster_rcnn),
    "RetinaNet": ("04_fpn_retinanet", retinanet),
    "YOLO": ("05_yolo", yolo),
    "SSD": ("06_ssd", ssd),
    "RetinaNet of 06": ("06_ssd", retinanet_of_06),
    "FCOS": ("07_fcos", fcos),
    "DETR": ("08_detr", detr),
}
EVERY_DETECTOR = pytest.mark.parametrize("name", DETECTORS)


class Few:
    """Images and targets with the face of helpers.shapes.ShapesDataset."""

    classes = shapes.CLASSES

    def __init__(self, images, targets):
        self.images, self.targets = images, targets

    def __len__(self):
        return len(self.targets)


def same_objects(*boxes, count=2):
    """`count` noisy images, each with these boxes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 128, 128), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.arange(len(boxes)) % CLASSES
    return Few(images, [{"boxes": boxes, "labels": labels}] * count)


NASTY = {
    "nothing in any image": same_objects(),
    "a batch of one": same_objects((20, 30, 60, 70), count=1),
    "one pixel": same_objects((17, 33, 18, 34)),
    "the whole image": same_objects((0, 0, 128, 128)),
    "along the border": same_objects((0, 0, 128, 1), (127, 0, 128, 128)),
    "twice the same box": same_objects((20, 30, 60, 70), (20, 30, 60, 70)),
    "a long and thin one": same_objects((0, 60, 128, 62)),
    # as many as DETR has queries
    "sixteen objects": same_objects(*((7 * i, 7 * i, 7 * i + 9, 7 * i + 9) for i in range(16))),
}


@pytest.fixture(scope="module")
def lessons():
    """The code of each notebook, loaded when first asked for."""
    plt.switch_backend("agg")
    with contextlib.ExitStack() as stack:

        @functools.cache
        def lesson(name):
            settings = {"SEED": 0, "K": CLASSES, "C": CLASSES, "DEVICE": CPU}
            module = stack.enter_context(notebook_code(name, **settings))
            return module

        yield lesson


def prepared(lesson, monkeypatch, images, device=CPU):
    """The notebook with these images as its benchmark, on `device`."""
    regions = torch.tensor([[0.0, 0, 128, 128], [10, 20, 40, 60], [64, 64, 65, 65]])
    values = {"DEVICE": device, "train_set": images, "test_set": images}
    values["SOME_REGIONS"] = [regions] * len(images)
    values["pick_device"] = lambda: device
    for name, value in values.items():
        monkeypatch.setattr(lesson, name, value, raising=False)
    return lesson


def check_detections(found, count):
    """One dictionary per image, on the CPU, with finite numbers only."""
    assert len(found) == count
    for detection in found:
        assert all(not isinstance(v, OnCuda) for v in detection.values())
        assert detection["boxes"].isfinite().all() and detection["scores"].isfinite().all()
        assert ((detection["scores"] >= 0) & (detection["scores"] <= 1)).all()
        assert (detection["boxes"][:, 2:] >= detection["boxes"][:, :2]).all()
        assert ((detection["labels"] >= 0) & (detection["labels"] < CLASSES)).all()


# ---------------------------------------------------------------- nasty images


@EVERY_DETECTOR
@pytest.mark.parametrize("images", NASTY)
def test_training_stays_finite(lessons, monkeypatch, name, images):
    notebook, run = DETECTORS[name]
    nb = prepared(lessons(notebook), monkeypatch, NASTY[images])
    model, history, found = run(nb, 3)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())
    if history is not None:
        columns = history.columns().values()
        assert all(len(values) == 3 and np.isfinite(values).all() for values in columns)
    check_detections(found, len(NASTY[images]))


# ---------------------------------------------------------------- wrong and odd targets

GOOD = same_objects((20, 30, 60, 70), (64, 64, 90, 100))
WRONG = {  # a key of the second image's target: its value, and how the message ends
    "reversed": ("boxes", [[60.0, 30, 20, 70]], "x1 <= x2"),
    "upside down": ("boxes", [[20.0, 70, 60, 30]], "y1 <= y2"),
    "NaN": ("boxes", [[20.0, 30, torch.nan, 70]], "finite"),
    "infinite": ("boxes", [[20.0, 30, 60, torch.inf]], "finite"),
    "no width": ("boxes", [[20.0, 30, 20, 70]], "positive width"),
    "a label of no class": ("labels", [CLASSES], r"lie in 0\.\.2"),
    "a negative label": ("labels", [-1], r"lie in 0\.\.2"),
    "half a label": ("labels", [0.5], "integers"),
    "two labels": ("labels", [0, 1], r"shape \(1,\)"),
}


@EVERY_DETECTOR
@pytest.mark.parametrize("kind", WRONG)
def test_no_training_learns_from_a_wrong_target(lessons, monkeypatch, name, kind):
    key, value, message = WRONG[kind]
    right = {"boxes": torch.tensor([[20.0, 30, 60, 70]]), "labels": torch.tensor([1])}
    wrong = right | {key: torch.tensor(value)}
    notebook, run = DETECTORS[name]
    nb = prepared(lessons(notebook), monkeypatch, Few(GOOD.images, [right, wrong]))
    with pytest.raises(ValueError, match=rf"^targets\[1\]\['{key}'\] must .*{message}"):
        run(nb, 1)


ODD = {"NumPy's": (torch.float64, torch.int32), "small": (torch.float16, torch.uint8)}
ODD["whole numbers"] = torch.int32, torch.int16


@EVERY_DETECTOR
def test_the_types_of_targets_do_not_matter(lessons, monkeypatch, name):
    notebook, run = DETECTORS[name]
    weights = []
    for boxes, labels in ((torch.float32, torch.int64), *ODD.values()):
        targets = [
            {"boxes": t["boxes"].to(boxes), "labels": t["labels"].to(labels)} for t in GOOD.targets
        ]
        nb = prepared(lessons(notebook), monkeypatch, Few(GOOD.images, targets))
        weights.append(run(nb, 2)[0].state_dict())
    for kind, odd in zip(ODD, weights[1:]):
        assert all(torch.equal(odd[key], value) for key, value in weights[0].items()), kind


@EVERY_DETECTOR
def test_training_and_reading_in_mixed_precision(lessons, monkeypatch, name):
    notebook, run = DETECTORS[name]
    nb = prepared(lessons(notebook), monkeypatch, GOOD)
    with torch.autocast("cpu", torch.bfloat16):
        model, history, found = run(nb, 2)
    assert all(p.isfinite().all() for p in model.parameters())
    assert history is None or all(
        np.isfinite(values).all() for values in history.columns().values()
    )
    check_detections(found, 2)


# ---------------------------------------------------------------- no image


def small_yolo(nb):
    return nb.YOLODetector(backbone=nb.SimpleBackbone((4, 4, 8, 8)), hidden=8).eval()


def read_as_uint8(nb, images):
    """Lectures 01 and 02 take images as bytes, and regions beside them."""
    return nb.detect(nb.FastRCNN(3, hidden_dim=8).eval(), images.byte(), [])


# lesson, and how its detector reads images (B, 3, H, W)
READERS = {
    "R-CNN": (
        "01_rcnn",
        lambda nb, x: nb.answers(
            nb.RCNN(3, nb.SimplifiedProposals(), nb.CNNFeatureExtractor(size=32)), list(x)
        ),
    ),
    "Fast R-CNN": ("02_fast_rcnn", read_as_uint8),
    "Faster R-CNN": ("03_faster_rcnn", lambda nb, x: nb.FasterRCNN().eval()(x)),
    "RetinaNet": ("04_fpn_retinanet", lambda nb, x: nb.RetinaNet(3).eval().detect(x)),
    "YOLO": ("05_yolo", lambda nb, x: nb.detector_of(small_yolo(nb))(x)),
    "SSD": ("06_ssd", lambda nb, x: nb.detector_of(nb.SSD(3).eval())(x)),
    "FCOS": ("07_fcos", lambda nb, x: nb.detector_of(nb.FCOSDetector(3).eval())(x)),
    "DETR": ("08_detr", lambda nb, x: nb.slim_detr().eval().detect(x)),
}


@pytest.mark.parametrize("name", READERS)
def test_no_image_gives_no_detections(lessons, name):
    lesson, read = READERS[name]
    nothing = to_input(torch.zeros(0, 3, 128, 128, dtype=torch.uint8), CPU)
    with torch.no_grad():
        assert read(lessons(lesson), nothing) == []


# ---------------------------------------------------------------- a GPU that is none


@EVERY_DETECTOR
def test_training_and_reading_on_a_gpu(lessons, monkeypatch, name):
    notebook, run = DETECTORS[name]
    benchmark_images = benchmark("val")
    few = Few(benchmark_images.images[:4], benchmark_images.targets[:4])
    nb = prepared(lessons(notebook), monkeypatch, few, CUDA)
    with pretend_cuda(monkeypatch):
        model, history, found = run(nb, 2)
    assert all(isinstance(value, OnCuda) for value in model.state_dict().values())
    check_detections(found, 4)


def test_the_pretended_gpu_gives_the_same_numbers(lessons, monkeypatch):
    few = Few(benchmark("val").images[:4], benchmark("val").targets[:4])
    nb = prepared(lessons("07_fcos"), monkeypatch, few)
    _, here, _ = fcos(nb, 2)
    prepared(nb, monkeypatch, few, CUDA)
    with pretend_cuda(monkeypatch):
        _, there, _ = fcos(nb, 2)
    assert here.columns() == there.columns()


REFUSED = {
    "sum": lambda x: x + torch.ones(3),
    "concatenation": lambda x: torch.cat([x, torch.ones(2)]),
    "index": lambda x: torch.ones(3)[x.long()],
    "generator": lambda x: torch.rand(3, generator=torch.Generator(), device="cuda"),
    "layer": lambda x: nn.Linear(3, 2)(x),
    "moved layer": lambda x: nn.Linear(3, 2).to("cuda")(x.cpu()),
    "loss": lambda x: nn.functional.smooth_l1_loss(x, torch.zeros(3)),
    "NumPy": lambda x: x.numpy(),
    "array": lambda x: np.asarray(x),
}
ALLOWED = {
    "number": lambda x: x + torch.tensor(1.0),
    "index": lambda x: x[torch.tensor([0, 1])],
    "layer": lambda x: nn.Linear(3, 2).to(CUDA)(x),
    "there and back": lambda x: x.cpu().to("cuda", torch.float64),
    "like another": lambda x: torch.zeros(2).to(x),
    "new": lambda x: torch.zeros_like(x).new_ones(2),
}


@pytest.mark.parametrize("operation", REFUSED)
def test_the_pretended_gpu_refuses_mixtures(monkeypatch, operation):
    with pretend_cuda(monkeypatch), pytest.raises((RuntimeError, TypeError), match="cuda"):
        REFUSED[operation](torch.zeros(3, device="cuda"))


@pytest.mark.parametrize("operation", ALLOWED)
def test_the_pretended_gpu_allows_what_a_gpu_allows(monkeypatch, operation):
    with pretend_cuda(monkeypatch):
        result = ALLOWED[operation](torch.zeros(3, device="cuda"))
    assert result.device == CUDA


def test_a_copy_on_the_gpu_is_a_copy(monkeypatch):
    here = torch.zeros(3)
    with pretend_cuda(monkeypatch):
        there = here.to("cuda").add_(1)
        assert there.cpu().tolist() == [1, 1, 1] and there.to("cuda") is there
    assert here.tolist() == [0, 0, 0]
