"""The code of notebook 03 against its oracles, on random and on nasty input."""

import io
import math

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from shared import (
    NASTY_BOXES,
    NOT_IN_THE_IMAGE,
    OTHER_FLOATS,
    WIDE_AND_HIGH,
    finite_gradients,
    nms_by_loops,
    notebook_code,
    objects_of,
    random_boxes,
)
from torch import nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, clip_boxes_to_image, roi_align

from helpers import boxes as reference

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
EVERYTHING = {"batch_size": 10**6}  # a sample that leaves no anchor out
TWO_SQUARES, TWO_LABELS = torch.tensor([[8.0, 8, 40, 40], [36, 20, 60, 44]]), torch.tensor([0, 2])
SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def nb():
    with notebook_code("03_faster_rcnn", SEED=0, DEVICE=torch.device("cpu")) as module:
        yield module


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def objects_inside(count, seed=0, size=64.0):
    """Boxes (count, 4) that lie in an image of `size` x `size` pixels, all with an area."""
    generator = torch.Generator().manual_seed(seed)
    side = 1 + torch.rand(count, 2, generator=generator) * (size - 2)
    corner = torch.rand(count, 2, generator=generator) * (size - side)
    return torch.cat([corner, corner + side], dim=1)


# ---------------------------------------------------------------- finding objects


def test_found_and_recall_by_hand(nb):
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    assert nb.found(torch.tensor([[0.0, 0, 10, 5]]), boxes).tolist() == [True, False]
    assert nb.found(NO_BOXES, boxes).tolist() == [False, False]
    assert nb.found(boxes, NO_BOXES).tolist() == []
    targets = [{"boxes": boxes}, {"boxes": NO_BOXES}, {"boxes": boxes[:1]}]
    assert nb.recall([boxes[:1], boxes, boxes[1:]], targets) == pytest.approx(1 / 3)
    assert nb.recall([boxes * 1.1] * 3, targets, 0.9) == 0


# ---------------------------------------------------------------- anchors

SCALES = st.lists(st.floats(0.1, 64) | st.integers(1, 32), min_size=1, max_size=4)
RATIOS = st.lists(st.floats(0.1, 10) | st.integers(1, 4), min_size=1, max_size=4)
STRIDES, SIDES = st.integers(1, 64), st.integers(1, 6)
BOTH = pytest.mark.parametrize("name", ["AnchorGenerator", "AnchorGeneratorTorch"])


@BOTH
def test_the_default_anchors_are_the_papers(nb, name):
    anchors = getattr(nb, name)()
    assert tuple(anchors.scales) == (8, 16, 32) and anchors.stride == 16
    assert tuple(anchors.aspect_ratios) == (0.5, 1.0, 2.0) and anchors.num_anchors == 9


@given(scales=SCALES, ratios=RATIOS, stride=STRIDES)
def test_templates_have_their_area_and_ratio(nb, scales, ratios, stride):
    boxes = nb.AnchorGeneratorTorch(scales, ratios, stride).base_anchors.double().numpy()
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    areas = np.repeat([(s * stride) ** 2 for s in scales], len(ratios))
    np.testing.assert_allclose(w * h, areas, rtol=1e-4)
    np.testing.assert_allclose(h / w, np.tile(ratios, len(scales)), rtol=1e-4)
    np.testing.assert_array_equal(boxes[:, :2], -boxes[:, 2:])


BAD = [{"stride": 0}, {"stride": -16}, {"scales": (0,)}, {"scales": (8, -1, 32)}, {"scales": ()}]
BAD += [{"scales": (math.nan,)}, {"aspect_ratios": (1.0, 0.0)}, {"aspect_ratios": ()}]


@pytest.mark.parametrize("options", BAD, ids=str)
@BOTH
def test_bad_anchors_are_refused(nb, name, options):
    with pytest.raises(ValueError):
        getattr(nb, name)(**options)


@given(scales=SCALES, ratios=RATIOS, stride=STRIDES, rows=SIDES, columns=SIDES)
def test_the_vectorised_anchors_are_the_loops(nb, scales, ratios, stride, rows, columns):
    loops = nb.AnchorGenerator(scales, ratios, stride)
    size = rows * stride + 1, columns * stride + 2
    anchors = nb.AnchorGeneratorTorch(scales, ratios, stride)((rows, columns))
    expected = torch.from_numpy(loops.generate_anchors((rows, columns), size)).float()
    torch.testing.assert_close(anchors, expected, atol=4e-3, rtol=1e-4)
    clipped = torch.from_numpy(loops.generate_anchors((rows, columns), size, clip=True))
    expected = clip_boxes_to_image(expected, size).double()
    torch.testing.assert_close(clipped, expected, atol=4e-3, rtol=1e-4)


@pytest.mark.parametrize("rows, columns", [(2, 3), (3, 2), (1, 5), (5, 1), (1, 1)])
def test_anchors_go_by_row_column_and_template(nb, rows, columns):
    generator = nb.AnchorGeneratorTorch((2, 4), (0.5, 1.0, 2.0), 8)
    grid = generator((rows, columns)).view(rows, columns, 6, 4)
    for i in range(rows):
        for j in range(columns):
            x, y = 8 * j + 4, 8 * i + 4
            moved = generator.base_anchors + torch.tensor([x, y, x, y])
            torch.testing.assert_close(grid[i, j], moved)


@pytest.mark.parametrize("rows, columns", [(14, 14), (3, 5), (1, 1)])
def test_anchors_are_torchvisions(nb, rows, columns):
    oracle = AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),))
    grid = oracle.grid_anchors([(rows, columns)], [(torch.tensor(16), torch.tensor(16))])[0]
    grid = grid.view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4) + 8  # ratio by ratio, at corners
    anchors = nb.AnchorGeneratorTorch()((rows, columns))
    assert (anchors - grid).abs().max() <= 0.5 + 1e-3  # torchvision rounds its templates
    torch.testing.assert_close(anchors[1::3], grid[1::3])


def test_templates_are_a_buffer_that_one_may_replace(nb):
    layer = nb.AnchorGeneratorTorch(stride=10)
    assert not list(layer.parameters()) and set(layer.state_dict()) == {"base_anchors"}
    assert not layer((1, 1)).requires_grad and layer((0, 5)).shape == (0, 4)
    layer.base_anchors = torch.tensor([[-4.0, -8, 4, 8], [-9, -1, 9, 1]])
    expected = layer.base_anchors + torch.tensor([25.0, 15, 25, 15])
    assert torch.equal(layer((2, 3))[-2:], expected)


def test_anchors_follow_the_device(nb, pretended_gpu):
    anchors = nb.AnchorGeneratorTorch().to("cuda")((3, 5))
    assert anchors.device.type == "cuda" and anchors.shape == (135, 4)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_kmeans_finds_the_sizes_that_there_are(nb, count):
    sides = 2.0 ** torch.arange(count).repeat_interleave(5) + 4
    boxes = torch.stack([sides * 0, sides * 0, sides, 2 * sides], dim=1)
    templates = nb.kmeans_templates(boxes, count)
    w, h = (templates[:, 2:] - templates[:, :2]).T
    torch.testing.assert_close(w, 2.0 ** torch.arange(count) + 4)
    torch.testing.assert_close(h, 2 * w)


def test_anchors_are_drawn(nb, capsys, monkeypatch):
    for name in ("visualize_base_anchors", "visualize_anchors_on_image"):  # as the page's cell does
        monkeypatch.setattr(nb.AnchorGenerator, name, getattr(nb, name), raising=False)
    image = torch.zeros(3, 48, 80, dtype=torch.uint8)
    generator = nb.demo_anchor_properties(image, scales=(1, 2), stride=16)
    said = capsys.readouterr().out
    assert generator.num_anchors == 6 and "map 3 x 5, 6 anchors per cell, 90 in all" in said
    rows = np.array([line.split() for line in said.splitlines()[1:7]], float)
    np.testing.assert_allclose(rows[:, 2] * rows[:, 3], rows[:, 4], rtol=2e-2)
    plt.close("all")


# ---------------------------------------------------------------- labels of anchors


@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5), (0.6, 0.1), (0.9, 0.4)], ids=str)
@given(seed=SEEDS, count=st.integers(1, 9))
def test_labels_are_torchvisions(nb, thresholds, seed, count):
    anchors = nb.AnchorGeneratorTorch((2, 4, 7), stride=8)((8, 8))
    objects = objects_inside(count, seed)
    labels, match = nb.match_anchors(anchors, objects, *thresholds)
    theirs = Matcher(*thresholds, allow_low_quality_matches=True)(box_iou(objects, anchors))
    assert torch.equal(labels, torch.where(theirs >= 0, 1, torch.where(theirs == -1, 0, -1)))
    assert torch.equal(match[labels == 1], theirs[theirs >= 0])
    assert labels.dtype == match.dtype == torch.int64 and (labels == 1).any()


@pytest.mark.parametrize("anchors, objects", [(20, 0), (0, 3), (0, 0)])
def test_no_object_means_background(nb, anchors, objects):
    labels, match = nb.match_anchors(random_boxes(anchors), random_boxes(objects))
    assert labels.tolist() == match.tolist() == [0] * anchors
    assert labels.dtype == match.dtype == torch.int64


def test_an_object_that_no_anchor_touches_has_none(nb):
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    far = torch.tensor([[100.0, 100, 120, 120]])
    assert nb.match_anchors(anchors, far)[0].tolist() == [0, 0]


def test_all_anchors_that_are_equally_good_are_positive(nb):
    anchors = torch.tensor([[0.0, 0, 10, 4], [0, 6, 10, 10], [0, 0, 4, 10], [0, 0, 3, 10]])
    labels, _ = nb.match_anchors(anchors, torch.tensor([[0.0, 0, 10, 10]]))
    assert labels.tolist() == [1, 1, 1, -1]


@pytest.mark.parametrize("height, label", [(7.0, 1), (6.99, -1), (3.0, -1), (2.99, 0)])
def test_thresholds_hit_exactly(nb, height, label):
    anchors = torch.tensor([[0.0, 0, 10, height], [0, 0, 10, 10]])
    labels, _ = nb.match_anchors(anchors, torch.tensor([[0.0, 0, 10, 10]]))
    assert labels.tolist() == [label, 1]


@pytest.mark.parametrize("height, width", WIDE_AND_HIGH)
def test_anchors_inside_an_image_that_is_not_square(nb, height, width):
    boxes = [[0, 0, width, height], [-1, 0, 9, 9], [0, -1, 9, 9], [0, 0, width + 1, 9]]
    boxes += [[0, 0, 9, height + 1], [3, 4, 5, 6]]
    inside = nb.inside_image(torch.tensor(boxes).float(), (height, width))
    assert inside.tolist() == [True, False, False, False, False, True]


@given(seed=SEEDS, count=st.integers(1, 6))
def test_anchors_across_the_border_go_before_the_best_is_asked(nb, seed, count):
    anchors, objects = (
        nb.AnchorGeneratorTorch((2, 4, 7), stride=8)((8, 8)),
        objects_inside(count, seed),
    )
    inside = nb.inside_image(anchors, (64, 64))
    labels, match = nb.RPNLoss().assign_anchors(anchors, objects, (64, 64))
    assert (labels[~inside] == -1).all() and inside.any() and not inside.all()
    expected = nb.match_anchors(anchors[inside], objects)
    assert torch.equal(labels[inside], expected[0]) and torch.equal(match[inside], expected[1])
    best = box_iou(anchors[inside], objects).amax(dim=0)
    served = (box_iou(anchors[inside], objects) == best)[labels[inside] == 1].any(dim=0)
    assert served[best > 0].all()  # every object that any of them touches has one


@given(seed=SEEDS, count=st.integers(0, 20))
def test_deltas_are_lecture_00s_and_come_back(nb, seed, count):
    anchors, objects = random_boxes(count, seed), random_boxes(count, seed + 1)
    deltas = nb.compute_bbox_targets(anchors, objects)
    torch.testing.assert_close(
        deltas, reference.encode_boxes(objects, anchors), atol=1e-4, rtol=1e-4
    )
    tame = deltas[:, 2:].amax(dim=1) < 4  # the decoder caps the others
    back = nb.apply_deltas(anchors, deltas)
    torch.testing.assert_close(back[tame], objects[tame], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_applying_deltas_is_lecture_00s(nb, spread):
    anchors, deltas = random_boxes(50), spread * torch.randn(50, 4)
    expected = reference.decode_boxes(deltas.clamp(max=4), anchors)
    torch.testing.assert_close(
        nb.apply_deltas(anchors, deltas.clamp(max=4)), expected, atol=1e-3, rtol=1e-5
    )


@pytest.mark.parametrize("huge", [100.0, -100.0, 1e6, -1e6, 1e30, -1e30])
def test_huge_deltas_stay_finite(nb, huge):
    assert nb.apply_deltas(random_boxes(5), torch.full((5, 4), huge)).isfinite().all()


# ---------------------------------------------------------------- the network and its loss


def test_the_default_sizes_are_the_papers(nb):
    with torch.device("meta"):
        rpn = nb.RPN()
    shapes = {name: tuple(p.shape) for name, p in rpn.named_parameters() if "weight" in name}
    assert shapes == {
        "conv.weight": (512, 512, 3, 3),
        "cls_logits.weight": (9, 512, 1, 1),
        "bbox_pred.weight": (36, 512, 1, 1),
    }
    loss = nb.RPNLoss()
    assert (loss.pos_iou_threshold, loss.neg_iou_threshold) == (0.7, 0.3)
    assert (loss.batch_size, loss.pos_fraction, loss.weight) == (256, 0.5, 1.0)


@pytest.mark.parametrize("i, j, a", [(0, 0, 0), (2, 4, 1), (1, 3, 2), (0, 4, 2), (2, 0, 0)])
def test_flattened_answers_go_with_the_anchors(nb, i, j, a):
    """One bright cell and a network that copies it into the answers for template `a`."""
    rpn, generator = nb.RPN(1, 3, 1), nb.AnchorGeneratorTorch((2,), (0.5, 1.0, 2.0), 8)
    with torch.no_grad():
        for p in rpn.parameters():
            p.zero_()
        rpn.conv.weight[0, 0, 1, 1] = 1
        rpn.cls_logits.weight[a] = 1
        rpn.bbox_pred.weight[4 * a : 4 * a + 4, 0, 0, 0] = torch.tensor([1.0, 2, 3, 4])
        features = torch.zeros(1, 1, 3, 5)
        features[0, 0, i, j] = 1
        objectness, deltas = rpn(features)
    assert objectness.shape == (1, 3, 5, 3) and deltas.shape == (1, 3, 5, 12)
    anchor = generator((3, 5))[objectness.flatten(1)[0].argmax()]
    x, y = 8 * j + 4, 8 * i + 4
    torch.testing.assert_close(anchor, generator.base_anchors[a] + torch.tensor([x, y, x, y]))
    moved = deltas.reshape(1, -1, 4)[0, objectness.flatten().argmax()]
    assert moved.tolist() == [1, 2, 3, 4] and deltas.abs().sum() == 10


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (65, 79), (1, 1)])
def test_the_backbone_has_stride_8(nb, height, width):
    features = nb.SmallBackbone().eval()(torch.rand(2, 3, height, width))
    assert features.shape == (2, 96, math.ceil(height / 8), math.ceil(width / 8))


def anchor_labels(positive, negative, ignored):
    labels = torch.tensor([1, 0, -1]).repeat_interleave(torch.tensor([positive, negative, ignored]))
    return labels[torch.randperm(len(labels))]


@pytest.mark.parametrize("positive", [0, 1, 128, 300])
@pytest.mark.parametrize("negative", [0, 10, 1000])
def test_a_sample_has_its_counts_and_no_ignored_anchor(nb, positive, negative):
    labels = anchor_labels(positive, negative, 50)
    for size, fraction in ((256, 0.5), (64, 0.25), (7, 0.5), (1, 0.5)):
        chosen = nb.RPNLoss(batch_size=size, pos_fraction=fraction).sample(labels)
        yes = min(int(size * fraction), positive)
        assert [len(part) for part in chosen] == [yes, min(size - yes, negative)]
        for part, label in zip(chosen, (1, 0)):
            assert (labels[part] == label).all() and len(part.unique()) == len(part)


def loss_by_hand(labels, scores, deltas, goals, beta=1 / 9):
    """Both losses of one image from labels, scores and (deltas, goals) of each anchor."""
    used = [n for n, label in enumerate(labels) if label >= 0]
    cls_loss = sum(math.log1p(math.exp(-scores[n] if labels[n] else scores[n])) for n in used)
    far = [abs(t - v) for n in used if labels[n] for t, v in zip(deltas[n], goals[n])]
    reg_loss = sum(d * d / (2 * beta) if d < beta else d - beta / 2 for d in far)
    return cls_loss / len(used), reg_loss / len(used)


def random_answers(images, height=4, width=5, count=9):
    objectness = torch.randn(images, height, width, count)
    deltas = torch.randn(images, height, width, 4 * count)
    return objectness.requires_grad_(), deltas.requires_grad_()


def small_anchors(nb, height=4, width=5):
    return nb.AnchorGeneratorTorch((1, 2, 3), stride=8)((height, width))


@pytest.mark.parametrize("counts", [[1], [2, 3], [0, 4], [0, 0], [1, 0, 5]], ids=str)
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_the_loss_is_the_formula(nb, counts, weight):
    objects = [objects_inside(n, seed, size=32.0) for seed, n in enumerate(counts)]
    objectness, deltas = random_answers(len(counts))
    anchors, rule = small_anchors(nb), nb.RPNLoss(**EVERYTHING, pos_fraction=1.0, weight=weight)
    losses = rule(objectness, deltas, anchors, objects, (32, 40))
    expected = np.zeros(2)
    for i, boxes in enumerate(objects):
        labels, match = rule.assign_anchors(anchors, boxes, (32, 40))
        goals = reference.encode_boxes(boxes[match], anchors) if len(boxes) else anchors
        answers = objectness[i].flatten(), deltas[i].view(-1, 4)
        expected += loss_by_hand(*(t.tolist() for t in (labels, *answers, goals)))
    expected *= np.array([1, weight]) / len(counts)
    np.testing.assert_allclose(losses.tolist(), expected, rtol=1e-4)


def test_only_the_sample_learns(nb):
    rule, anchors, objects = nb.RPNLoss(), small_anchors(nb), objects_inside(4, size=32.0)
    labels, _ = rule.assign_anchors(anchors, objects, (32, 40))
    positive, negative = (torch.where(labels == value)[0][:3] for value in (1, 0))
    rule.sample = lambda labels: (positive, negative)
    objectness, deltas = random_answers(1)
    rule(objectness, deltas, anchors, [objects], (32, 40)).sum().backward()
    touched = (objectness.grad.flatten() != 0).nonzero().flatten().tolist()
    assert touched == sorted([*positive.tolist(), *negative.tolist()])
    moved = (deltas.grad.view(-1, 4) != 0).any(dim=1).nonzero().flatten()
    assert moved.tolist() == sorted(positive.tolist())


@pytest.mark.parametrize("size", [(32, 40), (4, 4)], ids=str)  # no anchor lies in the smaller one
@pytest.mark.parametrize("objects", [[NO_BOXES], [NO_BOXES, TWO_SQUARES]], ids=len)
def test_images_without_objects_or_anchors_cost_finite_losses(nb, objects, size):
    objectness, deltas = random_answers(len(objects))
    losses = nb.RPNLoss()(objectness, deltas, small_anchors(nb), objects, size)
    losses.sum().backward()
    assert losses.isfinite().all() and objectness.grad.isfinite().all()
    assert size == (32, 40) or not losses.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_answers(nb, dtype):
    low = [(t.detach() - 2000).to(dtype) for t in random_answers(1)]  # their sum overflows
    rule, anchors = nb.RPNLoss(**EVERYTHING), small_anchors(nb)
    halves, exact = (
        rule(*answers, anchors, [TWO_SQUARES], (32, 40))
        for answers in (low, [t.float() for t in low])
    )
    assert halves.isfinite().all() and torch.equal(halves, exact)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_objects_of_another_number_of_images_are_refused(nb, count):
    with pytest.raises(ValueError):
        nb.RPNLoss()(*random_answers(2), small_anchors(nb), [TWO_SQUARES] * count, (32, 40))


# ---------------------------------------------------------------- proposals

LIMITS = {
    "more than there are": {"k": 2000, "top": 300, "iou": 0.7},
    "few": {"k": 20, "top": 300, "iou": 0.7},
    "no suppression": {"k": 30, "top": 7, "iou": 1.0},
    "strict": {"k": 100, "top": 300, "iou": 0.2},
    "the best": {"k": 50, "top": 1, "iou": 0.5},
    "none": {"k": 50, "top": 0, "iou": 0.5},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@torch.no_grad()
def test_proposals_by_hand(nb, limits):
    anchors, (objectness, deltas) = small_anchors(nb), random_answers(3)
    proposals = nb.decode_proposals(objectness, deltas, anchors, (32, 40), **limits)
    for i, found in enumerate(proposals):
        scores, moves = objectness[i].flatten(), deltas[i].view(-1, 4)
        order = scores.argsort(descending=True)[: limits["k"]]
        boxes = reference.decode_boxes(moves[order], anchors[order]).clamp(min=0)
        boxes = boxes.minimum(torch.tensor([40, 32, 40, 32]))
        large = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
        one_class = torch.zeros(len(boxes[large]))
        keep = nms_by_loops(boxes[large], scores[order][large], one_class, limits["iou"])
        torch.testing.assert_close(found, boxes[large][keep][: limits["top"]], atol=1e-4, rtol=1e-5)
        assert (found >= 0).all() and (found[:, 2] <= 40).all() and (found[:, 3] <= 32).all()


def test_boxes_that_shrink_to_nothing_are_no_proposals(nb):
    objectness, _ = random_answers(2)
    for change in (torch.tensor([0.0, 0, -100, 0]), torch.tensor([500.0, 0, 0, 0])):
        answers = objectness, change.repeat(2, 4, 5, 9)
        proposals = nb.decode_proposals(*answers, small_anchors(nb), (32, 40))
        assert [p.shape for p in proposals] == [(0, 4)] * 2


def test_no_image_gives_nothing(nb):
    first, nothing = nb.FirstStage().eval(), torch.zeros(0, 3, 64, 96)
    with torch.no_grad():
        _, anchors, *answers = first(nothing)
        assert nb.decode_proposals(*answers, anchors, (64, 96)) == []
        assert nb.FasterRCNN()(nothing) == []
    assert nb.proposals_of(first, nothing.byte()) == []


# ---------------------------------------------------------------- RoIAlign


def rois_around(count, width, height, images=1, seed=0):
    """RoIs (count, 5) in, around and outside images, image by image; some without area."""
    g = torch.Generator().manual_seed(seed)
    corners = (torch.rand(count, 2, 2, generator=g) * 3 - 1) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    flat = torch.rand(count, generator=g) < 0.2
    boxes[flat, 2:] = boxes[flat, :2]
    numbers = torch.randint(0, images, (count, 1), generator=g).sort(dim=0).values
    return torch.cat([numbers.float(), boxes], dim=1)


@given(seed=SEEDS, images=st.integers(1, 3), rows=SIDES, columns=SIDES, count=st.integers(0, 9))
def test_roi_align_is_torchvisions(nb, seed, images, rows, columns, count):
    stride, bins = (1, 5, 8, 16)[seed % 4], (7, 1, 2, 5)[seed % 3]
    features = torch.randn(images, 2, rows, columns)
    rois = rois_around(count, stride * columns, stride * rows, images, seed)
    pooled = nb.RoIAlign(bins, 1 / stride)(features, rois)
    expected = roi_align(features, rois, bins, 1 / stride, 2, aligned=True)
    assert pooled.shape == (count, 2, bins, bins)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)


NASTY_ROIS = NASTY_BOXES | {"far away": [1e6, 1e6, 2e6, 3e6]}


@pytest.mark.parametrize("kind", NASTY_ROIS)
def test_roi_align_of_nasty_boxes_on_a_wide_map(nb, kind):
    features = torch.randn(2, 3, 8, 20) - 9  # away from 0, the value of a point outside
    rois = torch.tensor([[0, *NASTY_ROIS[kind]], [1, *NASTY_ROIS[kind]]])
    pooled = nb.RoIAlign(spatial_scale=1 / 16)(features, rois)
    expected = roi_align(features, rois, 7, 1 / 16, 2, aligned=True)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)
    assert (pooled == 0).all() == (kind in NOT_IN_THE_IMAGE | {"far away"})


def test_pooled_regions_keep_the_order_of_the_rois(nb):
    """Every cell holds 100 times its image's number, and its column."""
    numbers, columns = torch.arange(4.0).view(4, 1, 1, 1), torch.arange(8.0)
    features = 100 * numbers + columns.expand(4, 1, 8, 8)
    rois = torch.tensor(
        [[n, 8 * x, 8, 8 * x + 8, 40] for n, x in ((0.0, 4), (0, 1), (2, 3), (2, 0), (3, 2))]
    )
    read = nb.RoIAlign(1)(features, rois).flatten()
    assert read.tolist() == pytest.approx([4, 1, 203, 200.125, 302])
    assert nb.with_index([TWO_SQUARES, NO_BOXES, TWO_SQUARES[:1]])[:, 0].tolist() == [0, 0, 2]


@pytest.mark.parametrize("numbers", [(1, 0), (0, 1, 0), (0, 2, 1), (2, 2, 0)], ids=str)
def test_rois_must_stand_image_by_image(nb, numbers):
    features, rois = torch.randn(3, 2, 8, 8), torch.tensor([[n, 8.0, 8, 40, 40] for n in numbers])
    with pytest.raises(ValueError, match="rois must stand image by image"):
        nb.RoIAlign()(features, rois)
    rois = rois[rois[:, 0].argsort()]
    assert len(nb.RoIAlign()(features, rois)) == len(rois)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_one_image_is_the_equation(nb, count):
    """P = A_y F A_x^T for every region and every channel, on a map that is not square."""
    feature, a_y, a_x = torch.randn(3, 5, 7), torch.randn(count, 2, 5), torch.randn(count, 2, 7)
    pooled = nb.RoIAlign(2).one_image(feature, a_y, a_x)
    assert pooled.shape == (count, 3, 2, 2)
    for region, of_y, of_x in zip(pooled, a_y, a_x):
        for found, channel in zip(region, feature):
            torch.testing.assert_close(found, of_y @ channel @ of_x.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", OTHER_FLOATS, ids=str)
def test_roi_align_of_any_precision_is_that_of_float32(nb, dtype):
    features, rois = torch.randn(2, 3, 12, 20).to(dtype), rois_around(9, 160, 96, 2)
    torch.testing.assert_close(nb.RoIAlign()(features, rois), nb.RoIAlign()(features.float(), rois))


def test_gradients_of_roi_align_are_torchvisions(nb):
    rois, gradients = rois_around(9, 80, 64, 2), []
    for pool in (nb.RoIAlign(), lambda f, r: roi_align(f, r, 7, 1 / 8, 2, aligned=True)):
        features = torch.linspace(-1, 1, 480).view(2, 3, 8, 10).requires_grad_()
        pooled = pool(features, rois)
        (pooled * torch.linspace(0, 1, pooled.numel()).view_as(pooled)).sum().backward()
        gradients.append(features.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_roi_align_has_a_gradient_to_the_boxes(nb):
    features = torch.randn(1, 2, 5, 6)
    rois = torch.tensor([[0, 7.3, 9.1, 30.2, 27.7], [0, 3.3, 2.9, 12.1, 20.3]]).requires_grad_()
    (gradient,) = torch.autograd.grad(nb.RoIAlign(2)(features, rois).square().sum(), rois)
    assert (gradient[:, 1:] != 0).all()


@given(seed=SEEDS, cells=st.integers(1, 12), bins=st.integers(1, 8))
def test_weights_inside_the_map_read_a_ramp(nb, seed, cells, bins):
    g = torch.Generator().manual_seed(seed)
    low, high = (torch.rand(5, 2, generator=g) * cells).sort(dim=1).values.unbind(dim=1)
    weights = nb.interpolation(low, high, cells, bins, samples=1)
    assert weights.shape == (5, bins, cells) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(5, bins))
    point = low[:, None] + (torch.arange(bins) + 0.5) * ((high - low) / bins)[:, None]
    ramp = weights @ (torch.arange(cells) + 0.5)
    torch.testing.assert_close(ramp, point.clamp(0.5, cells - 0.5), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- the second stage


@pytest.mark.parametrize("count", [0, 5, 100])
def test_without_objects_all_regions_are_background(nb, count):
    regions, classes, deltas = nb.sample_regions(random_boxes(count), NO_BOXES, NO_LABELS)
    assert len(regions) == len(classes) == min(count, 32) and deltas.shape == regions.shape
    assert not classes.any() and classes.dtype == torch.int64 and not deltas.any()


def test_without_proposals_the_objects_are_the_regions(nb):
    regions, classes, deltas = nb.sample_regions(NO_BOXES, TWO_SQUARES, TWO_LABELS)
    order = classes.argsort()
    assert classes[order].tolist() == [1, 3]
    assert torch.equal(regions[order], TWO_SQUARES) and not deltas.any()


@pytest.mark.parametrize("good", [0, 3, 100])
@pytest.mark.parametrize("bad", [0, 100])
def test_a_sample_of_regions_has_its_share_of_objects(nb, good, bad):
    proposals = torch.cat([TWO_SQUARES[:1].expand(good, 4), random_boxes(bad) + 100])
    _, classes, _ = nb.sample_regions(proposals, TWO_SQUARES, TWO_LABELS)
    objects = min(16, good + 2)
    assert int((classes > 0).sum()) == objects
    assert int((classes == 0).sum()) == min(32 - objects, bad)


@pytest.mark.parametrize("seed", range(4))
def test_region_targets_are_a_loop(nb, seed, monkeypatch):
    monkeypatch.setattr(nb, "REGIONS", 10**6)
    monkeypatch.setattr(nb, "MOST_OBJECTS", 10**6)
    objects, labels = objects_inside(3, seed), torch.tensor([2, 0, 1])
    proposals = (objects[:, None] + 4 * torch.randn(3, 20, 1)).flatten(0, 1)
    sample = nb.sample_regions(proposals, objects, labels)
    assert len(sample[0]) == 63 and 3 <= int((sample[1] > 0).sum()) <= 63
    for region, label, delta in zip(*sample):
        overlap = box_iou(region[None], objects)[0]
        best = int(overlap.argmax())
        is_object = bool(overlap[best] >= 0.5)
        assert label == (labels[best] + 1 if is_object else 0)
        if is_object:
            goal = reference.encode_boxes(objects[best : best + 1], region[None], nb.DELTA_WEIGHTS)
            torch.testing.assert_close(delta, goal[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("height, label", [(20.0, 2), (20.5, 0), (19.5, 2)])
def test_an_overlap_of_exactly_one_half_is_an_object(nb, height, label):
    region, target = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, height]])
    regions, classes, _ = nb.sample_regions(region, target, torch.tensor([1]))
    assert classes[(regions == region).all(dim=1)].tolist() == [label]


APART = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 30, 10, 40]])


def read(nb, columns, regions=APART, deltas=None, height=9.0, **options):
    """What comes of a head that is sure of one column per region."""
    scores = height * F.one_hot(torch.tensor(columns), 4).float()
    deltas = torch.zeros(len(columns), 4, 4) if deltas is None else deltas
    options = {"score_threshold": 0.5} | options
    return nb.decode_detections(regions, scores, deltas, (64, 64), **options)


def test_known_scores_give_known_labels(nb):
    found = read(nb, [1, 2, 3, 0])
    order = found["labels"].argsort()
    assert found["labels"][order].tolist() == [0, 1, 2]  # and the background is no detection
    assert torch.equal(found["boxes"][order], APART[:3])
    probability = math.exp(9) / (math.exp(9) + 3)
    torch.testing.assert_close(found["scores"], torch.full((3,), probability))


def test_a_detection_moves_by_the_deltas_of_its_class(nb):
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 2] = torch.tensor([10 * 0.5, 0.0, 0.0, 5 * math.log(2)])  # class 1, weighted
    deltas[0, 1] = deltas[0, 3] = 7.0
    found = read(nb, [2, 1], APART[[1, 3]], deltas)
    moved = found["boxes"][found["labels"] == 1]
    torch.testing.assert_close(moved, torch.tensor([[25.0, 0, 35, 15]]))  # cut at the top
    assert found["boxes"][found["labels"] == 0].tolist() == [[0.0, 30, 10, 40]]


def test_duplicates_of_a_class_are_suppressed(nb):
    regions = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11], [0, 4, 10, 14]])
    found = read(nb, [1, 1, 2, 1], regions)
    assert sorted(found["labels"].tolist()) == [0, 0, 1]  # IoU 0.82 goes; 0.37, another class stay
    assert len(read(nb, [1, 1, 2, 1], regions, iou=0.2)["boxes"]) == 2


def test_the_best_detections_are_kept_in_order(nb):
    for top in (0, 1, 3, 100):
        found = read(nb, [1, 2, 3, 1], top=top, score_threshold=0.0)
        assert len(found["scores"]) == min(top, 12)
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    assert {k: v.shape[0] for k, v in read(nb, [0] * 4).items()} == dict(
        boxes=0, scores=0, labels=0
    )


# ---------------------------------------------------------------- the whole detector

LOSSES = ["rpn_cls", "rpn_reg", "head_cls", "head_box"]


@pytest.mark.parametrize("counts", [(1,), (0,), (7,), (0, 2), (0, 0), (40, 1, 0)], ids=str)
@pytest.mark.parametrize("height, width", [(64, 64), *WIDE_AND_HIGH])
def test_four_finite_losses(nb, counts, height, width):
    model = nb.FasterRCNN().train()
    boxes, labels = objects_of(*counts)
    losses = model(torch.randn(len(counts), 3, height, width), boxes, labels)
    assert list(losses) == LOSSES
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert finite_gradients(model)


def test_the_second_losses_are_the_formulas(nb, monkeypatch):
    model, samples = nb.FasterRCNN(), []
    for layer in (model.head.cls_score, model.head.bbox_pred):
        nn.init.normal_(layer.bias)
    original = nb.sample_regions
    monkeypatch.setattr(
        nb, "sample_regions", lambda *a: samples.append(original(*a)) or samples[-1]
    )
    features, (boxes, labels) = torch.randn(2, 96, 8, 8), objects_of(2, 3)
    losses = model.second_losses(features, [random_boxes(40), random_boxes(3, 1)], boxes, labels)
    regions, classes, goals = zip(*samples)
    pooled = roi_align(features, list(regions), 7, 1 / 8, 2, aligned=True)
    scores, deltas = model.head(pooled)
    classes, goals, rows = torch.cat(classes), torch.cat(goals), range(len(torch.cat(classes)))
    expected = -scores.log_softmax(dim=1)[rows, classes].mean()
    torch.testing.assert_close(losses["head_cls"], expected, atol=1e-4, rtol=1e-4)
    far = (deltas[rows, classes] - goals).abs()[classes > 0]
    each = torch.where(far < 1, far**2 / 2, far - 0.5)
    expected = 2 * each.sum() / len(classes)  # the head's boxes count twice
    torch.testing.assert_close(losses["head_box"], expected, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(nb, "LAMBDA", 0.0)
    again = model.second_losses(features, [random_boxes(40), random_boxes(3, 1)], boxes, labels)
    assert again["head_box"] == 0 < again["head_cls"]


def test_proposals_carry_no_gradient(nb):
    model = nb.FasterRCNN()
    losses = model(torch.randn(2, 3, 64, 64), *objects_of(2, 3))
    (losses["head_cls"] + losses["head_box"]).backward()
    assert all(p.grad is None for p in model.first.rpn.parameters())
    assert model.first.backbone[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("images, height, width", [(2, 64, 64), (1, 96, 120), (1, 65, 79)])
@torch.no_grad()
def test_detections_have_their_form(nb, images, height, width, training):
    model = nb.FasterRCNN().train(training)
    nn.init.normal_(model.head.bbox_pred.bias, std=4)  # wild boxes
    found = model(torch.randn(images, 3, height, width))
    assert len(found) == images
    for detections in found:
        assert list(detections) == ["boxes", "scores", "labels"]
        boxes, scores, labels = detections.values()
        assert 0 < len(scores) <= 100 and boxes.shape == (len(scores), 4)
        assert labels.dtype == torch.int64 and set(labels.tolist()) <= {0, 1, 2}
        assert (scores[:-1] >= scores[1:]).all() and (scores > 0.02).all()
        assert (boxes >= 0).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


@torch.no_grad()
def test_no_proposals_mean_no_detections(nb):
    model = nb.FasterRCNN().eval()
    found = model.detect(torch.randn(2, 96, 8, 8), [NO_BOXES, TWO_SQUARES], (64, 64))
    assert len(found[0]["boxes"]) == 0 and found[0]["labels"].dtype == torch.int64
    nothing = model.detect(torch.randn(2, 96, 8, 8), [NO_BOXES] * 2, (64, 64))
    assert [len(f["scores"]) for f in nothing] == [0, 0]


@torch.no_grad()
def test_a_saved_detector_finds_the_same(nb):
    models, file = [nb.FasterRCNN().eval() for _ in range(2)], io.BytesIO()
    torch.save(models[0].state_dict(), file)
    models[1].load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    (first,), (second,) = (model(torch.ones(1, 3, 64, 64)) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- looking inside


def test_nameless_changes_labels_only(nb):
    (entry,) = nb.nameless([{"boxes": TWO_SQUARES, "labels": TWO_LABELS}])
    assert torch.equal(entry["boxes"], TWO_SQUARES) and entry["labels"].tolist() == [0, 0]


def test_stages_and_scored_proposals_have_their_form(nb, monkeypatch):
    monkeypatch.setattr(nb, "model", nb.FasterRCNN().eval(), raising=False)
    images = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
    stages = nb.boxes_by_stage(images[0])
    assert list(stages) == ["anchors", "proposals", "moved"] and len(stages["anchors"]) == 2304
    assert len(stages["moved"]) == len(stages["proposals"]) <= 50
    for found in nb.scored_proposals(images):
        assert 0 < len(found["boxes"]) <= 50 and not found["labels"].any()
        assert (found["scores"][:-1] >= found["scores"][1:]).all()


def test_receptive_fields_grow_with_the_layers(nb):
    low, high = nb.seen_by(nb.FirstStage().eval(), cell=16)
    assert high - low + 1 == 15 + 8 * 2 * 4  # three strided layers, three plain ones and the RPN's


def test_the_tour_of_random_images(nb, capsys):
    net = nb.demo_faster_rcnn(epochs=2)
    said = capsys.readouterr().out
    assert [name for name, _ in net.named_children()] == ["backbone", "anchor_generator", "rpn"]
    assert "step 2: rpn_cls" in said and "proposals: [" in said


def test_figures_of_a_few_images(nb, monkeypatch, few_images):
    for name in ("train_set", "test_set"):
        monkeypatch.setattr(nb, name, few_images, raising=False)
    anchors = nb.AnchorGeneratorTorch((2, 4, 7), (0.5, 1.0, 2.0), 8)((16, 16))
    inside = nb.inside_image(anchors, (128, 128))
    first = nb.FirstStage().eval()
    for name, value in {"anchors": anchors, "inside": inside, "first": first}.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    for border in ("left out first", "kept"):
        assert "positive anchors" in nb.show_positives(1, 0.6, border).axes[1].get_title()
    for count in (1, 20):
        assert nb.show_proposals(2, count).axes[0].get_title() == f"{count} best anchors"
    plt.close("all")
