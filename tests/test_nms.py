"""Non-maximum suppression against torchvision, with ties, empty boxes and many classes."""

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.boxes import box_iou
from helpers.nms import batched_nms, nms

# Halves and quarters are exact in float32, so an IoU that equals them is no question of rounding.
THRESHOLDS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@st.composite
def scored_boxes(draw, max_size=12):
    """Whole-pixel boxes (many equal, some without area), scores with many ties, labels."""
    corner = st.integers(0, 12)
    rows = draw(st.lists(st.tuples(corner, corner, corner, corner), max_size=max_size))
    corners = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    count = len(rows)
    scores = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return boxes, torch.tensor(scores) / 4.0, torch.tensor(labels, dtype=torch.long)


@given(scored_boxes(), THRESHOLDS)
def test_nms_is_torchvisions(sample, threshold):
    boxes, scores, _ = sample
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert nms(boxes, scores, threshold).tolist() == expected.tolist()


@given(scored_boxes(), THRESHOLDS)
def test_batched_nms_is_torchvisions(sample, threshold):
    boxes, scores, labels = sample
    expected = torchvision.ops.batched_nms(boxes, scores, labels, threshold)
    assert batched_nms(boxes, scores, labels, threshold).tolist() == expected.tolist()


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_nms_is_torchvisions_on_fractional_boxes(seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(30, 2, 2, generator=generator) * 20
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    scores = torch.rand(30, generator=generator)
    assume(((box_iou(boxes, boxes) - threshold).abs() > 1e-5).all())
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert nms(boxes, scores, threshold).tolist() == expected.tolist()


@given(scored_boxes(), THRESHOLDS)
def test_what_is_kept_is_apart_and_what_goes_has_a_reason(sample, threshold):
    boxes, scores, _ = sample
    keep = nms(boxes, scores, threshold)
    overlaps = box_iou(boxes, boxes)
    among_kept = overlaps[keep][:, keep].fill_diagonal_(0)
    assert (among_kept <= threshold).all()
    for gone in set(range(len(boxes))) - set(keep.tolist()):
        assert any(overlaps[gone, k] > threshold and scores[k] >= scores[gone] for k in keep)


TYPES = [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int16, torch.int64]


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1))
def test_boxes_and_scores_of_any_type_are_kept_as_torchvision_keeps_them(dtype, seed, threshold):
    """On boxes of up to 10,000 px, whose areas half precision cannot hold."""
    generator = torch.Generator().manual_seed(seed)
    most = 10_000 if dtype.is_floating_point else min(10_000, torch.iinfo(dtype).max)
    corners = (torch.rand(30, 2, 2, generator=generator) * most).to(dtype)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    scores = (torch.rand(30, generator=generator) * 100).to(dtype)  # with ties
    labels = torch.randint(3, (30,), generator=generator, dtype=torch.int32)
    exact = boxes.double()
    overlaps = torchvision.ops.box_iou(exact, exact).nan_to_num(0)
    assume(((overlaps - threshold).abs() > 1e-5).all())
    kept = torchvision.ops.nms(exact, scores.double(), threshold)
    assert nms(boxes, scores, threshold).tolist() == kept.tolist()
    kept = torchvision.ops.batched_nms(exact, scores.double(), labels, threshold)
    assert batched_nms(boxes, scores, labels, threshold).tolist() == kept.tolist()


def test_the_earlier_of_two_equal_boxes_wins():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(3, 1)
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.9]), 0.5).tolist() == [1]


def test_many_equal_scores_keep_their_order():
    x = torch.arange(400.0) * 2
    boxes = torch.stack([x, x * 0, x + 1, x * 0 + 1], dim=1)  # side by side
    scores = (x % 3 == 0).float()
    expected = scores.sort(descending=True, stable=True).indices.tolist()
    assert nms(boxes, scores, 0.5).tolist() == expected
    assert batched_nms(boxes, scores, torch.zeros(400), 0.5).tolist() == expected


def test_only_an_iou_above_the_threshold_suppresses():
    boxes = torch.tensor([[0.0, 0.0, 6.5, 1.0], [3.5, 0.0, 10.0, 1.0]])  # IoU 3 / 10
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.3).tolist() == [0, 1]
    assert nms(boxes, scores, 0.299).tolist() == [0]


def test_classes_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(3, 1)
    scores, labels = torch.tensor([0.7, 0.9, 0.8]), torch.tensor([0, 1, 0])
    assert batched_nms(boxes, scores, labels, 0.5).tolist() == [1, 2]


def test_empty_input_gives_an_empty_index():
    none, no_scores = torch.empty(0, 4), torch.empty(0)
    for keep in (
        nms(none, no_scores, 0.5),
        batched_nms(none, no_scores, torch.empty(0, dtype=torch.long), 0.5),
    ):
        assert keep.shape == (0,) and keep.dtype == torch.long


BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])
SCORES, LABELS = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BOXES[:, :3], SCORES, LABELS, 0.5), r"boxes must have shape \(N, 4\), got \(2, 3\)"),
        ((BOXES.flip(1), SCORES, LABELS, 0.5), "boxes must have x1 <= x2 .* row 0 is"),
        ((BOXES.tolist(), SCORES, LABELS, 0.5), "boxes must be a torch tensor .* got list"),
        ((BOXES, SCORES[:1], LABELS, 0.5), r"scores must have shape \(2,\), got \(1,\)"),
        ((BOXES, SCORES[:, None], LABELS, 0.5), r"scores must have shape \(2,\), got \(2, 1\)"),
        ((BOXES, [0.9, 0.8], LABELS, 0.5), "scores must be a torch tensor, got list"),
        ((BOXES, SCORES * float("nan"), LABELS, 0.5), r"scores must not be NaN, got \[nan, nan\]"),
        ((BOXES, SCORES + 0j, LABELS, 0.5), "scores must hold real numbers, got torch.complex64"),
        ((BOXES > 0, SCORES, LABELS, 0.5), "boxes must hold real numbers .* got torch.bool"),
        ((BOXES, SCORES, LABELS, 1.5), r"iou_threshold must lie in \[0, 1\], got 1.5"),
        ((BOXES, SCORES, LABELS, -0.1), r"iou_threshold must lie in \[0, 1\], got -0.1"),
        ((BOXES, SCORES, LABELS, float("nan")), r"iou_threshold must lie in \[0, 1\], got nan"),
    ],
)
def test_bad_input_is_named(arguments, message):
    boxes, scores, labels, threshold = arguments
    with pytest.raises(ValueError, match=message):
        nms(boxes, scores, threshold)
    with pytest.raises(ValueError, match=message):
        batched_nms(boxes, scores, labels, threshold)


def test_bad_labels_are_named():
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(3,\)"):
        batched_nms(BOXES, SCORES, torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match="labels must be a torch tensor, got list"):
        batched_nms(BOXES, SCORES, [0, 1], 0.5)
