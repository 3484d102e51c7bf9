"""Input, batches, detections and milliseconds, with detectors that only pretend."""

import pytest
import torch

from helpers import detectors
from helpers.detectors import (
    augmented_batches,
    detect_all,
    evaluate,
    ms_per_image,
    now,
    to_input,
)
from helpers.evaluation import coco_ap
from helpers.shapes import ShapesDataset

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quiet_and_the_same_numbers(monkeypatch):
    monkeypatch.setenv("LECTURE_QUIET", "1")
    torch.manual_seed(0)


def noise(count, height=6, width=8):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


# ---------------------------------------------------------------- to_input


def test_the_input_has_mean_0_and_spread_1():
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    before, pixels = images.clone(), to_input(images, CPU)
    expected = (images.double() - 127.5) / 63.75
    torch.testing.assert_close(pixels.double(), expected, atol=1e-5, rtol=0)
    assert pixels.dtype == torch.float32 and torch.equal(images, before)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_input_keeps_its_shape(count):
    pixels = to_input(noise(count), CPU)
    assert pixels.shape == (count, 3, 6, 8)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("height, width", [(1, 9), (30, 4)])
def test_the_input_of_an_oblong_image_is_not_turned(height, width):
    images = noise(2, height, width)
    expected = (images.double() - 127.5) / 63.75
    torch.testing.assert_close(to_input(images, CPU).double(), expected, atol=1e-5, rtol=0)


BAD_IMAGES = {
    "an array": noise(1).numpy(),
    "a list": [],
    "no images of another type": torch.zeros(0, 3, 6, 8),
    "floats": torch.rand(1, 3, 6, 8),
    "whole numbers of another type": torch.zeros(1, 3, 6, 8, dtype=torch.int16),
    "no batch": noise(1)[0],
    "grey": noise(1)[:, :1],
    "channels last": noise(1).permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("images", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_refused(images):
    for use in (to_input, lambda *a: detect_all(Pretender(), *a)):
        with pytest.raises(ValueError, match="^images must be (uint8|a torch tensor)"):
            use(images, CPU)


# ---------------------------------------------------------------- augmented_batches


@pytest.fixture(scope="module")
def few_images():
    return ShapesDataset(5, seed=3)


def test_boxes_and_labels_stay_with_their_image(few_images):
    before = few_images.images.clone(), [t["boxes"].clone() for t in few_images.targets]
    bags = few_images.images.sort(dim=1).values  # (N, 3, H, W), whatever the order of colours
    mirrored = 0
    for images, boxes, labels in augmented_batches(few_images, 6, 0, CPU, batch_size=2):
        assert images.shape == (2, 3, 128, 128) and len(boxes) == len(labels) == 2
        pixels = ((images * 0.25 + 0.5) * 255).round().to(torch.uint8).sort(dim=1).values
        for image, box, label in zip(pixels, boxes, labels):
            same = [torch.equal(image, bag) for bag in bags]
            flip = [torch.equal(image.flip(2), bag) for bag in bags]
            assert sum(same) + sum(flip) == 1
            target = few_images.targets[(same if any(same) else flip).index(True)]
            x1, y1, x2, y2 = target["boxes"].unbind(1)
            expected = (
                target["boxes"] if any(same) else torch.stack([128 - x2, y1, 128 - x1, y2], 1)
            )
            torch.testing.assert_close(box, expected)
            assert torch.equal(label, target["labels"]) and label.dtype == torch.int64
            mirrored += any(flip)
    assert 0 < mirrored < 12
    assert torch.equal(few_images.images, before[0])  # nothing was changed in place
    assert all(torch.equal(t["boxes"], b) for t, b in zip(few_images.targets, before[1]))


def test_batches_repeat_with_the_seed(few_images):
    def drawn(seed):
        torch.manual_seed(7)
        return torch.stack([b[0] for b in augmented_batches(few_images, 3, seed, CPU, 2)])

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))


def test_there_are_as_many_batches_as_steps(few_images):
    for steps in (0, 1, 4):
        sizes = [len(b[0]) for b in augmented_batches(few_images, steps, 0, CPU)]
        assert sizes == [5] * steps  # sixteen are not there


class NoObjects:
    images = noise(3)
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}] * 3

    def __len__(self):
        return 3


def test_images_without_objects():
    for _, boxes, labels in augmented_batches(NoObjects(), 4, 0, CPU, 2):
        assert [b.shape for b in boxes] == [(0, 4)] * 2 and [len(n) for n in labels] == [0, 0]


def few(targets, classes=None, height=6, width=8):
    """A data set with these targets."""
    data = type("Data", (), {"__len__": lambda self: len(targets)})()
    data.images, data.targets = noise(len(targets), height, width), targets
    if classes is not None:
        data.classes = classes
    return data


@pytest.mark.parametrize("labels", [torch.int32, torch.uint8, torch.int64])
@pytest.mark.parametrize("boxes", [torch.float64, torch.float16, torch.bfloat16, torch.int16])
def test_targets_of_any_type_train_as_those_of_float32_and_int64(boxes, labels):
    def drawn(box_type, label_type):
        torch.manual_seed(7)
        rows = [torch.tensor([[1, 2, 5, 4], [0, 0, 8, 6]]), torch.zeros(0, 4)]
        names = [torch.tensor([2, 0]), torch.zeros(0)]
        pairs = [(b.to(box_type), n.to(label_type)) for b, n in zip(rows, names)]
        data = few([{"boxes": b, "labels": n} for b, n in pairs])
        return list(augmented_batches(data, 3, 0, CPU, 2))

    for got, want in zip(drawn(boxes, labels), drawn(torch.float32, torch.int64), strict=True):
        assert torch.equal(got[0], want[0])
        for mine, right in zip(got[1] + got[2], want[1] + want[2], strict=True):
            assert mine.dtype == right.dtype and torch.equal(mine, right)


def test_oblong_images_are_mirrored_by_their_width():
    target = {"boxes": torch.tensor([[1.0, 2, 5, 4]]), "labels": torch.tensor([0])}
    seen = set()
    for images, boxes, _ in augmented_batches(few([target] * 4), 8, 0, CPU):
        assert images.shape == (4, 3, 6, 8)
        seen |= {tuple(rows[0].tolist()) for rows in boxes}
    assert seen == {(1.0, 2.0, 5.0, 4.0), (3.0, 2.0, 7.0, 4.0)}


GOOD = {"boxes": torch.tensor([[1.0, 2, 5, 4]]), "labels": torch.tensor([2])}
BAD_TARGETS = {
    "no area": ({"boxes": torch.tensor([[1.0, 2, 1, 4]])}, r"\['boxes'\] must have positive width"),
    "float labels": ({"labels": torch.tensor([2.0])}, r"\['labels'\] must be integers"),
    "no class": ({"labels": torch.tensor([3])}, r"\['labels'\] must lie in 0..2, got \[3\]"),
    "a crowd": ({"iscrowd": torch.tensor([1])}, r"\['iscrowd'\] must not be set"),
}


@pytest.mark.parametrize("bad", BAD_TARGETS)
def test_bad_targets_are_named_before_the_first_batch(bad):
    change, message = BAD_TARGETS[bad]
    data = few([GOOD] * 7 + [GOOD | change], classes=("a", "b", "c"))
    with pytest.raises(ValueError, match=rf"^targets\[7\]{message}"):
        next(augmented_batches(data, 1, 0, CPU, 1))


def test_a_data_set_that_names_no_classes_may_have_any():
    data = few([GOOD | {"labels": torch.tensor([90])}])
    ((_, _, (labels,)),) = augmented_batches(data, 1, 0, CPU)
    assert labels.tolist() == [90]


def test_no_images_are_refused():
    with pytest.raises(ValueError):
        next(augmented_batches(ShapesDataset(0), 1, 0, CPU))


# ---------------------------------------------------------------- detect_all and the clock


class Pretender:
    """Finds in each image one box as wide as its mean, and remembers what it was shown."""

    def __init__(self):
        self.shown, self.weight = [], torch.ones(1, requires_grad=True)

    def __call__(self, images):
        self.shown.append(images)
        assert images.dtype == torch.float32
        means = images.mean(dim=(1, 2, 3)) * self.weight
        return [{"boxes": m.view(1, 1).expand(1, 4), "scores": m.view(1)} for m in means]


@pytest.mark.parametrize("count, sizes", [(120, [50, 50, 20]), (50, [50]), (1, [1])])
def test_every_image_has_its_detections_in_order(count, sizes):
    detect, images = Pretender(), noise(count, 2, 2)
    found = detect_all(detect, images, CPU)
    assert [len(shown) for shown in detect.shown] == sizes
    expected = to_input(images, CPU).mean(dim=(1, 2, 3))
    torch.testing.assert_close(torch.cat([f["scores"] for f in found]), expected)
    assert all(list(f) == ["boxes", "scores"] and f["boxes"].shape == (1, 4) for f in found)
    assert not any(value.requires_grad for f in found for value in f.values())


def test_no_images_have_no_detections():
    detect = Pretender()
    assert detect_all(detect, noise(0), CPU) == [] and detect.shown == []


def answers(dataset, shift=0.0, turn=0):
    """A detector that knows the objects of each image, and moves and renames them."""
    keys = [to_input(image[None], CPU) for image in dataset.images]

    def detect(images):
        found = [next(i for i, k in enumerate(keys) if torch.equal(k[0], one)) for one in images]
        targets = [dataset.targets[i] for i in found]
        return [
            {
                "boxes": t["boxes"] + shift,
                "scores": torch.linspace(1, 0.5, len(t["labels"])),
                "labels": (t["labels"] + turn) % 3,
            }
            for t in targets
        ]

    return detect


def test_evaluate_gives_the_ap_and_the_detections_that_it_is_of(few_images):
    ap, found = evaluate(answers(few_images), few_images, CPU)
    assert ap["AP"] == ap["AP50"] == pytest.approx(1)
    assert all(torch.equal(f["boxes"], t["boxes"]) for f, t in zip(found, few_images.targets))
    ap, found = evaluate(answers(few_images, shift=2.0), few_images, CPU)
    assert ap == pytest.approx(coco_ap(found, few_images.targets), nan_ok=True)
    assert 0.2 < ap["AP"] < 0.95
    assert evaluate(answers(few_images, turn=1), few_images, CPU)[0]["AP50"] < 0.1


def test_evaluate_keeps_no_graph_and_counts_the_classes_of_the_data():
    weight = torch.ones(1, requires_grad=True)
    found = {"boxes": torch.tensor([[1.0, 2, 5, 4]]), "labels": torch.tensor([2])}
    data = few([GOOD] * 3, classes=("a", "b", "c"))
    detect = lambda images: [found | {"scores": weight * 0.5}] * len(images)  # noqa: E731
    ap, detections = evaluate(detect, data, CPU)
    assert ap["AP"] == pytest.approx(1)
    assert not any(d["scores"].requires_grad for d in detections)
    with pytest.raises(ValueError, match=r"must lie in 0..1, got \[2\]"):
        evaluate(detect, few([GOOD] * 3, classes=("a", "b")), CPU)


def test_the_clock_waits_for_a_gpu_only(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert now(CPU) <= now(CPU) and waited == []
    now(torch.device("cuda"))
    assert waited == [torch.device("cuda")]


def test_milliseconds_are_those_of_the_best_round(monkeypatch):
    clock = iter([0.0, 9.0, 100.0, 100.4, 200.0, 201.0])
    monkeypatch.setattr(detectors, "now", lambda device: next(clock))
    detect = Pretender()
    assert ms_per_image(detect, noise(4), CPU, rounds=3) == pytest.approx(100.0)
    assert [tuple(shown.shape) for shown in detect.shown] == [(1, 3, 6, 8)] * 12


def test_nothing_is_recorded_for_gradients_while_the_clock_runs():
    seen = []
    assert ms_per_image(lambda x: seen.append(torch.is_grad_enabled()), noise(2), CPU) >= 0
    assert seen == [False] * 4


def test_regions_come_last_and_are_mirrored_with_the_objects(few_images):
    regions = [t["boxes"].clone() for t in few_images.targets]
    for images, boxes, labels, moved in augmented_batches(few_images, 6, 0, CPU, 2, regions):
        assert len(images) == len(boxes) == len(labels) == len(moved)
        assert all(torch.equal(a, b.float()) for a, b in zip(boxes, moved))
