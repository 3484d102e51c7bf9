"""Targets of any origin, made ready for a training or refused by name."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.boxes import encode_boxes
from helpers.datasets import checked_objects, checked_targets, refuse_crowds
from helpers.shapes import ShapesDataset

BOXES = torch.tensor([[0.0, 0, 10, 10], [-5, 50, 80, 80.5]])
LABELS = torch.tensor([0, 2])
GOOD = {"boxes": BOXES, "labels": LABELS}
NAN, INF = float("nan"), float("inf")


def rows(*values, dtype=torch.float32):
    return torch.tensor([[0, 0, 10, 10], values], dtype=dtype)


def test_good_targets_are_not_even_copied():
    targets = ShapesDataset(5).targets
    for checked, target in zip(checked_targets(targets, 3), targets, strict=True):
        assert list(checked) == ["boxes", "labels"] and checked is not target
        assert checked["boxes"] is target["boxes"] and checked["labels"] is target["labels"]


BOX_TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LABEL_TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@given(
    st.lists(st.tuples(*[st.integers(-300, 300)] * 2, *[st.integers(1, 300)] * 2), max_size=4),
    st.sampled_from([*BOX_TYPES, torch.int16, torch.int32, torch.int64]),
    st.sampled_from(LABEL_TYPES),
)
def test_boxes_and_labels_of_any_type_keep_their_values(sides, box_type, label_type):
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in sides]).reshape(-1, 4)
    boxes = boxes.to(box_type)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]  # rounding may have closed some
    labels = torch.arange(len(boxes)).to(label_type)
    (target,) = checked_targets([{"boxes": boxes, "labels": labels}], 4)
    assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
    assert torch.equal(target["boxes"].double(), boxes.double())
    assert target["labels"].tolist() == list(range(len(boxes)))
    assert encode_boxes(target["boxes"], target["boxes"]).isfinite().all()  # can be learnt


def test_arrays_of_numpy_pass_through_from_numpy():
    boxes, labels = np.array([[1.5, 2, 3, 4]]), np.array([1], np.int32)  # as on Windows
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}
    (checked,) = checked_targets([target], 2)
    assert checked["boxes"].tolist() == [[1.5, 2, 3, 4]] and checked["labels"].tolist() == [1]
    assert boxes.dtype == np.float64 and labels.dtype == np.int32


def test_an_image_without_objects():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.tensor([])}  # which is float32
    (target,) = checked_targets([nothing], 3)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,) and target["labels"].dtype == torch.int64
    assert checked_targets([], 3) == []


def test_small_boxes_and_boxes_over_the_border_are_kept():
    boxes = torch.tensor([[0.0, 0, 0.25, 128], [-9, -9, 500, 500], [127, 127, 128, 128]])
    (target,) = checked_targets([{"boxes": boxes, "labels": torch.zeros(3).long()}])
    assert torch.equal(target["boxes"], boxes)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool, torch.float32])
def test_what_torchvision_adds_is_left_out(kind):
    extra = {"iscrowd": torch.zeros(2, dtype=kind), "area": torch.ones(2), "image_id": 7}
    (target,) = checked_targets([GOOD | extra], 3)
    assert list(target) == ["boxes", "labels"]


BAD = {
    "no labels": ({"labels": None}, " must have ['boxes', 'labels'], got ['boxes']"),
    "no boxes": ({"boxes": None}, " must have ['boxes', 'labels'], got ['labels']"),
    "boxes: array": (
        {"boxes": BOXES.numpy()},
        "['boxes'] must be a torch tensor, got ndarray",
    ),
    "labels: list": ({"labels": [0, 2]}, "['labels'] must be a torch tensor, got list"),
    "one box": ({"boxes": BOXES[0]}, "['boxes'] must have shape (N, 4), got (4,)"),
    "none of no shape": ({"boxes": torch.zeros(0)}, "['boxes'] must have shape (N, 4), got (0,)"),
    "columns": ({"labels": LABELS[:, None]}, "['labels'] must have shape (2,), got (2, 1)"),
    "one label": ({"labels": torch.tensor(1)}, "['labels'] must have shape (2,), got ()"),
    "lengths": ({"labels": LABELS[:1]}, "['labels'] must have shape (2,), got (1,)"),
    "no boxes, two labels": (
        {"boxes": torch.zeros(0, 4)},
        "['labels'] must have shape (0,), got (2,)",
    ),
    "reversed x": (
        {"boxes": rows(9, 0, 5, 5)},
        "['boxes'] must have x1 <= x2 and y1 <= y2, row 1 is [9.0, 0.0, 5.0, 5.0]",
    ),
    "reversed y": (
        {"boxes": rows(0, 9, 5, 5)},
        "['boxes'] must have x1 <= x2 and y1 <= y2, row 1 is [0.0, 9.0, 5.0, 5.0]",
    ),
    "xywh": ({"boxes": rows(60, 60, 9, 9)}, "['boxes'] must have x1 <= x2 and y1 <= y2, row 1"),
    "NaN": ({"boxes": rows(0, 0, NAN, 5)}, "['boxes'] must be finite, row 1 is [0.0, 0.0, nan, 5"),
    "infinite": ({"boxes": rows(0, 0, INF, 5)}, "['boxes'] must be finite, row 1 is"),
    "infinite in float32": (
        {"boxes": rows(0, 0, 1e300, 5, dtype=torch.float64)},
        "['boxes'] must be finite, row 1 is [0.0, 0.0, inf, 5.0]",
    ),
    "no width": (
        {"boxes": rows(5, 0, 5, 5)},
        "['boxes'] must have positive width and height to be trained on, row 1 is [5.0, 0.0, 5.0",
    ),
    "no height": ({"boxes": rows(0, 5, 5, 5)}, "['boxes'] must have positive width and height"),
    "no width in float32": (
        {"boxes": rows(5, 0, 5 + 1e-9, 5, dtype=torch.float64)},
        "['boxes'] must have positive width and height to be trained on, row 1",
    ),
    "true boxes": ({"boxes": BOXES > 0}, "['boxes'] must hold real numbers (pixels), got torch.b"),
    "complex": ({"boxes": BOXES + 0j}, "['boxes'] must hold real numbers, got torch.c"),
    "float labels": (
        {"labels": LABELS.double()},
        "['labels'] must be integers, got torch.float64",
    ),
    "true labels": ({"labels": LABELS > 0}, "['labels'] must be integers, got torch.bool"),
    "complex labels": ({"labels": LABELS + 0j}, "['labels'] must hold real numbers, got torch.c"),
    "negative": (
        {"labels": torch.tensor([0, -1])},
        "['labels'] must lie in 0..2, got [0, -1], row 1 is -1",
    ),
    "no class": (
        {"labels": torch.tensor([3, 2], dtype=torch.uint8)},
        "['labels'] must lie in 0..2, got [3, 2], row 0 is 3",
    ),
    "a crowd": (
        {"iscrowd": torch.tensor([0, 1])},
        "['iscrowd'] must not be set: leave crowds out, box and label, row 1 is 1",
    ),
    "a true crowd": ({"iscrowd": LABELS > 0}, "['iscrowd'] must not be set"),
    "crowds: list": ({"iscrowd": [0, 0]}, "['iscrowd'] must be a torch tensor, got list"),
    "crowds: length": ({"iscrowd": LABELS[:1]}, "['iscrowd'] must have shape (2,), got (1,)"),
    "crowds: NaN": ({"iscrowd": LABELS * NAN}, "['iscrowd'] must be finite, row 0 is nan"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_target_is_named_with_its_row(bad):
    change, message = BAD[bad]
    target = {key: value for key, value in (GOOD | change).items() if value is not None}
    with pytest.raises(ValueError) as caught:
        checked_targets([GOOD, GOOD, target, GOOD], 3)
    assert str(caught.value).startswith(f"targets[2]{message}")


@pytest.mark.parametrize("thing", [None, 3, "boxes, labels", [BOXES, LABELS], {BOXES}])
def test_what_is_no_target_at_all_is_named(thing):
    kind = type(thing).__name__
    with pytest.raises(ValueError, match=rf"^targets\[1\] must have .*, got {kind}$"):
        checked_targets([GOOD, thing])


def test_without_a_number_of_classes_only_negative_labels_are_refused():
    (target,) = checked_targets([GOOD | {"labels": torch.tensor([90, 0])}])
    assert target["labels"].tolist() == [90, 0]
    with pytest.raises(ValueError, match=r"'labels'\] must lie in 0.., got \[0, -2\], row 1 is -2"):
        checked_targets([GOOD | {"labels": -LABELS}])


def test_targets_on_the_gpu_stay_there(pretended_gpu):
    there = {"boxes": BOXES.half().to("cuda"), "labels": LABELS.int().to("cuda")}
    (target,) = checked_targets([there], 3)
    assert {value.device.type for value in target.values()} == {"cuda"}
    with pytest.raises(ValueError, match="row 1 is 2"):
        checked_targets([there], 2)


def test_the_benchmark_is_checked_in_a_moment():
    targets = ShapesDataset(20).targets * 100
    start = time.process_time()
    assert len(checked_targets(targets, 3)) == 2000
    assert time.process_time() - start < 1.5  # about 0.15 s where nothing else runs


def test_objects_keep_what_was_asked_for_and_the_crowds():
    entry = GOOD | {"scores": torch.tensor([1, 2]), "iscrowd": LABELS > 0, "area": None}
    objects = checked_objects(entry, "found", 3, ("boxes", "scores", "labels"))
    assert sorted(objects) == ["boxes", "iscrowd", "labels", "scores"]
    with pytest.raises(ValueError, match=r"^found must have \['boxes', 'scores', 'labels'\], got"):
        checked_objects(GOOD, "found", 3, ("boxes", "scores", "labels"))
    with pytest.raises(ValueError, match=r"^found\['scores'\] must be finite, row 1 is inf"):
        scores = torch.tensor([1.0, INF])
        checked_objects(GOOD | {"scores": scores}, "found", 3, ("boxes", "scores", "labels"))


def test_crowds_are_refused_only_where_they_are_set():
    refuse_crowds([GOOD, GOOD | {"iscrowd": torch.zeros(2)}])
    with pytest.raises(ValueError, match=r"^targets\[1\]\['iscrowd'\] must not be set"):
        refuse_crowds([GOOD, GOOD | {"iscrowd": torch.ones(2)}])
