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
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from shared import (
    NASTY_BOXES,
    NOT_IN_THE_IMAGE,
    check_stubs_and_solutions,
    finite_gradients,
    notebook_code,
    random_boxes,
)
from torch import nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import roi_align, roi_pool

from helpers import boxes as reference
from helpers import nms as nms_reference

NO_BOXES = torch.zeros(0, 4)
NO_LABELS = torch.zeros(0, dtype=torch.long)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
EVERYTHING = {"batch_size": 10**6}  # a sample that leaves no anchor out
TWO_SQUARES = torch.tensor([[8.0, 8, 40, 40], [36, 20, 60, 44]])


@pytest.fixture(scope="module")
def nb():
    with notebook_code("03_faster_rcnn", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        yield module


def tiny_parts(nb, **options):
    """A backbone of stride 8 and 8 channels, 9 anchors of 16 to 56 pixels."""
    backbone = nb.conv_backbone((4, 8, 8), (2, 2, 2))
    anchors = nb.AnchorGeneratorTorch((2, 4, 7), stride=8)
    parts = {"backbone": backbone, "channels": 8, "anchor_generator": anchors, "he_init": True}
    return parts | options


def tiny_model(nb, **options):
    """A complete detector of three classes."""
    return nb.CompleteFasterRCNN(3, **tiny_parts(nb, **options))


def objects_inside(count, seed=0, size=64.0):
    """Boxes (count, 4) that lie in an image of `size` x `size` pixels, all with an area."""
    generator = torch.Generator().manual_seed(seed)
    side = 1 + torch.rand(count, 2, generator=generator) * (size - 2)
    corner = torch.rand(count, 2, generator=generator) * (size - side)
    return torch.cat([corner, corner + side], dim=1)


# ---------------------------------------------------------------- anchors, by loops

SCALES = st.lists(st.floats(0.1, 64) | st.integers(1, 32), min_size=1, max_size=4)
RATIOS = st.lists(st.floats(0.1, 10) | st.integers(1, 4), min_size=1, max_size=4)
STRIDES = st.integers(1, 64)
SIDES = st.integers(1, 6)


def sides_of(boxes):
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


@pytest.mark.parametrize("name", ["BaseAnchors", "AnchorGenerator", "AnchorGeneratorTorch"])
def test_the_default_anchors_are_the_texts(nb, name):
    anchors = getattr(nb, name)()
    assert tuple(anchors.scales) == (8, 16, 32) and anchors.stride == 16
    assert tuple(anchors.aspect_ratios) == (0.5, 1.0, 2.0) and anchors.num_anchors == 9


@given(scales=SCALES, ratios=RATIOS, stride=STRIDES)
def test_templates_have_their_area_and_ratio(nb, scales, ratios, stride):
    base = nb.BaseAnchors(scales, ratios, stride)
    boxes = base.generate_base_anchors()
    assert boxes.shape == (base.num_anchors, 4) and base.num_anchors == len(scales) * len(ratios)
    w, h = sides_of(boxes)
    np.testing.assert_allclose(w * h, np.repeat([(s * stride) ** 2 for s in scales], len(ratios)))
    np.testing.assert_allclose(h / w, np.tile(ratios, len(scales)))
    np.testing.assert_array_equal(boxes[:, :2], -boxes[:, 2:])


BAD = [
    {"stride": 0},
    {"stride": -16},
    {"scales": (0,)},
    {"scales": (8, -1, 32)},
    {"scales": ()},
    {"scales": (math.nan,)},
    {"aspect_ratios": (1.0, 0.0)},
    {"aspect_ratios": (-0.5,)},
    {"aspect_ratios": ()},
]


@pytest.mark.parametrize("options", BAD, ids=str)
@pytest.mark.parametrize("name", ["BaseAnchors", "AnchorGenerator"])
def test_bad_anchors_are_refused(nb, name, options):
    with pytest.raises(ValueError):
        getattr(nb, name)(**options)


@pytest.mark.parametrize("rows, columns", [(2, 3), (3, 2), (1, 5), (5, 1), (1, 1)])
def test_anchors_go_by_row_column_and_template(nb, rows, columns):
    generator = nb.AnchorGenerator((2, 4), (0.5, 1.0, 2.0), 8)
    base = generator.generate_base_anchors()
    anchors = generator.generate_anchors((rows, columns), (8 * rows, 8 * columns))
    assert anchors.shape == (rows * columns * 6, 4)
    for i in range(rows):
        for j in range(columns):
            x, y = 8 * j + 4, 8 * i + 4
            start = 6 * (i * columns + j)
            np.testing.assert_allclose(anchors[start : start + 6], base + [x, y, x, y])


def test_the_texts_number_of_anchors(nb):
    assert nb.AnchorGenerator().generate_anchors((14, 14), (224, 224)).shape == (1764, 4)
    for empty in ((0, 5), (5, 0)):
        assert nb.AnchorGenerator().generate_anchors(empty, (80, 80), clip=True).shape == (0, 4)
        assert nb.AnchorGeneratorTorch()(empty, (80, 80)).shape == (0, 4)


def test_clipping_is_lecture_00s(nb):
    generator = nb.AnchorGenerator()
    anchors = generator.generate_anchors((3, 5), (48, 80))
    clipped = generator.generate_anchors((3, 5), (48, 80), clip=True)
    expected = reference.clip_boxes(torch.from_numpy(anchors), 48, 80)
    np.testing.assert_array_equal(clipped, expected.numpy())
    assert clipped[:, 2].max() == 80 and clipped[:, 3].max() == 48 and clipped.min() == 0
    assert anchors.min() < 0  # and not by default


def grid_of_torchvision(rows, columns, rounded=True):
    """Its anchors in our order; they sit on the corners of cells, not on the centres."""
    oracle = AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),))
    if not rounded:
        size, ratio = torch.tensor([128.0, 256, 512]), torch.tensor([0.5, 1, 2])[:, None]
        half = torch.stack([size / ratio.sqrt(), size * ratio.sqrt()], dim=2).view(9, 2) / 2
        oracle.cell_anchors = [torch.cat([-half, half], dim=1)]
    steps = [(torch.tensor(16), torch.tensor(16))]
    grid = oracle.grid_anchors([(rows, columns)], steps)[0]
    return grid.view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4).numpy() + 8


@pytest.mark.parametrize("rows, columns", [(14, 14), (3, 5), (1, 1)])
def test_anchors_are_torchvisions(nb, rows, columns):
    anchors = nb.AnchorGenerator().generate_anchors((rows, columns), (224, 224))
    rounded = grid_of_torchvision(rows, columns)
    assert np.abs(anchors - rounded).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(anchors[1::3], rounded[1::3])  # squares need no rounding
    exact = grid_of_torchvision(rows, columns, rounded=False)
    np.testing.assert_allclose(anchors, exact, atol=1e-3)


def test_the_templates_are_drawn(nb):
    generator = nb.AnchorGenerator((2, 5), (0.5, 3.0), 8)
    figure = generator.visualize_base_anchors()
    figure.canvas.draw()
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["S=2, R=0.5", "S=2, R=3.0", "S=5, R=0.5", "S=5, R=3.0"]
    plt.close(figure)
    assert plt.get_fignums() == []


DRAWN = {
    "the text's": ({}, (14, 14), 512),
    "one cell": ({"scales": (2,), "aspect_ratios": (1.0,), "stride": 8}, (1, 1), 16),
    "another order": ({"scales": (4, 1), "aspect_ratios": (2.0, 0.5, 1.0)}, (3, 5), 64),
}


@pytest.mark.parametrize("options, size, side", DRAWN.values(), ids=DRAWN)
def test_anchors_on_an_image_are_drawn(nb, capsys, options, size, side):
    generator = nb.AnchorGenerator(**options)
    image = torch.randint(0, 256, (3, *(generator.stride * n for n in size)), dtype=torch.uint8)
    figure = generator.visualize_anchors_on_image(image, size)
    left, right = figure.axes
    assert len(left.patches) == generator.num_anchors
    assert {(round(p.get_width()), round(p.get_height())) for p in right.patches} == {(side, side)}
    plt.close(figure)
    assert f"{size[0] * size[1] * generator.num_anchors:,} in all" in capsys.readouterr().out


def test_the_tour_prints_a_row_per_template(nb, capsys):
    generator = nb.demo_anchor_properties(stride=8)
    assert isinstance(generator, nb.AnchorGenerator) and generator.stride == 8
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:10]]
    sizes = np.array(rows, float)  # scale, ratio, width, height, area
    np.testing.assert_allclose(sizes[:, 2] * sizes[:, 3], sizes[:, 4], rtol=2e-3)
    np.testing.assert_allclose(sizes[:, 4], (8 * sizes[:, 0]) ** 2)


# ---------------------------------------------------------------- anchors, vectorised


@given(scales=SCALES, ratios=RATIOS, stride=STRIDES, rows=SIDES, columns=SIDES)
def test_the_vectorised_anchors_are_the_loops(nb, scales, ratios, stride, rows, columns):
    loops, layer = (
        make(scales, ratios, stride) for make in (nb.AnchorGenerator, nb.AnchorGeneratorTorch)
    )
    size, image_size = (rows, columns), (rows * stride - 1, columns * stride + 2)
    assert layer.num_anchors == loops.num_anchors
    for clip in (False, True):
        expected = torch.from_numpy(loops.generate_anchors(size, image_size, clip)).float()
        anchors = layer(size, image_size if clip else None)
        torch.testing.assert_close(anchors, expected, atol=4e-3, rtol=1e-5)


OWN = [[-4.0, -8, 4, 8], [-9, -1, 9, 1]]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_anchors_from_templates_of_ones_own(nb, kind):
    layer = nb.AnchorGeneratorTorch(stride=10, base_anchors=kind(OWN))
    assert layer.num_anchors == 2 and layer.base_anchors.dtype == torch.float32
    anchors = layer((2, 3))
    assert anchors.shape == (12, 4)
    expected = torch.tensor(OWN) + torch.tensor([25.0, 15, 25, 15])
    assert torch.equal(anchors[-2:], expected)


def test_templates_are_a_buffer(nb):
    layer = nb.AnchorGeneratorTorch()
    assert not list(layer.parameters()) and set(layer.state_dict()) == {"base_anchors"}
    before = layer.base_anchors.clone()
    anchors = layer((1, 1), (16, 16))
    assert not anchors.requires_grad and anchors.tolist() == [[0.0, 0, 16, 16]] * 9
    assert torch.equal(layer.base_anchors, before)  # clipping is in place, elsewhere


def test_anchors_follow_the_device(nb, pretended_gpu):
    layer = nb.AnchorGeneratorTorch().to("cuda")
    for arguments in (((3, 5),), ((3, 5), (48, 80))):
        anchors = layer(*arguments)
        assert anchors.device.type == "cuda" and anchors.shape == (135, 4)


# ---------------------------------------------------------------- the network


def test_the_default_sizes_are_the_papers(nb):
    with torch.device("meta"):
        rpn = nb.RPN()
    shapes = {name: tuple(p.shape) for name, p in rpn.named_parameters()}
    assert shapes == {
        "conv.weight": (512, 512, 3, 3),
        "conv.bias": (512,),
        "cls_logits.weight": (9, 512, 1, 1),
        "cls_logits.bias": (9,),
        "bbox_pred.weight": (36, 512, 1, 1),
        "bbox_pred.bias": (36,),
    }


@pytest.mark.parametrize("he_init", [False, True])
def test_the_weights_at_the_start(nb, he_init):
    rpn = nb.RPN(60, 10, 100, he_init=he_init)
    stds = {"conv": math.sqrt(2 / 540) if he_init else 0.01, "cls_logits": 0.01, "bbox_pred": 0.01}
    for name, std in stds.items():
        layer = getattr(rpn, name)
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("height, width", [(4, 6), (6, 4), (1, 1)])
@pytest.mark.parametrize("images", [1, 3])
def test_the_rpn_answers_every_anchor(nb, images, height, width):
    objectness, deltas = nb.RPN(5, 3, 7)(torch.randn(images, 5, height, width))
    assert objectness.shape == (images, height, width, 3)
    assert deltas.shape == (images, height, width, 12)
    anchors = nb.AnchorGeneratorTorch((1,), (1, 2, 3))((height, width))
    assert objectness[0].numel() == len(anchors) and deltas[0].numel() == anchors.numel()


def test_the_rpn_is_a_convolution_and_two_answers(nb):
    rpn, features = nb.RPN(5, 3, 7, he_init=True), torch.randn(2, 5, 4, 6)
    shared = F.conv2d(features, rpn.conv.weight, padding=1).clamp(min=0)  # biases are 0
    objectness, deltas = rpn(features)
    for answer, layer in ((objectness, rpn.cls_logits), (deltas, rpn.bbox_pred)):
        expected = torch.einsum("bchw,oc->bhwo", shared, layer.weight.flatten(1))
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-4)


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
    anchor = generator((3, 5))[objectness.flatten(1)[0].argmax()]
    x, y = 8 * j + 4, 8 * i + 4
    expected = generator.base_anchors[a] + torch.tensor([x, y, x, y])
    torch.testing.assert_close(anchor, expected)
    moved = deltas.reshape(1, -1, 4)[0, objectness.flatten().argmax()]
    assert moved.tolist() == [1, 2, 3, 4] and deltas.abs().sum() == 10


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (65, 79)])
def test_the_backbones_strides_multiply(nb, height, width):
    features = nb.conv_backbone((4, 8, 6), (2, 2, 2))(torch.rand(2, 3, height, width))
    assert features.shape == (2, 6, math.ceil(height / 8), math.ceil(width / 8))


def test_a_cell_of_the_rpn_sees_its_neighbours(nb):
    backbone = nn.Conv2d(3, 4, 3, padding=1)
    alone, through = (nb.seen_by(backbone, 4, 12, through_rpn=flag) for flag in (False, True))
    for seen, reach in ((alone, 1), (through, 2)):
        expected = torch.zeros(12, 12, dtype=torch.bool)
        expected[4 - reach : 5 + reach, 4 - reach : 5 + reach] = True
        assert torch.equal(seen, expected)


# ---------------------------------------------------------------- labels of anchors

COORDINATES = st.integers(0, 12).map(float) | st.floats(0, 12, width=16)


@st.composite
def box_lists(draw, least=0):
    """Boxes (N, 4) float32, some without area; sides of 0.0001 pixels are rounding, no boxes."""
    rows = draw(st.lists(st.tuples(*[COORDINATES] * 4), min_size=least, max_size=6))
    corners = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 2)
    low, high = corners.amin(1), corners.amax(1)
    return torch.cat([low, torch.where(high - low > 0.01, high, low)], dim=1)


@given(a=box_lists(), b=box_lists())
def test_iou_is_torchvisions(nb, a, b):
    overlap = nb.AnchorTargets.compute_iou(a, b)
    assert overlap.shape == (len(a), len(b)) and overlap.isfinite().all()
    expected = torchvision.ops.box_iou(a, b).nan_to_num(0)  # 0 / 0 for two boxes without area
    torch.testing.assert_close(overlap, expected)


def labels_by_hand(overlap, high, low, best_anchor):
    high, low = torch.tensor([high, low]).tolist()  # in 32 bits, as the overlaps are
    rows = overlap.tolist()
    best = [max(column) for column in zip(*rows)]
    labels = []
    for row in rows:
        is_best = best_anchor and any(v == b > 0 for v, b in zip(row, best))
        positive = is_best or max(row) >= high
        labels.append(1 if positive else 0 if max(row) < low else -1)
    return labels


@given(anchors=box_lists(1), objects=box_lists(1), best_anchor=st.booleans())
def test_labels_by_hand(nb, anchors, objects, best_anchor):
    rule = nb.AnchorTargets(best_anchor=best_anchor)
    labels, match = rule.assign_anchors(anchors, objects)
    overlap = rule.compute_iou(anchors, objects)
    assert labels.tolist() == labels_by_hand(overlap, 0.7, 0.3, best_anchor)
    chosen = overlap[torch.arange(len(anchors)), match]
    assert torch.equal(chosen, overlap.amax(dim=1))
    assert labels.dtype == match.dtype == torch.int64


def signs_of(matches):
    return torch.where(matches >= 0, 1, torch.where(matches == -1, 0, -1))


@pytest.mark.parametrize("best_anchor", [False, True])
@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5), (0.6, 0.1), (0.9, 0.4)], ids=str)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 9))
def test_labels_are_torchvisions(nb, thresholds, best_anchor, seed, count):
    anchors = nb.AnchorGeneratorTorch((2, 4, 7), stride=8)((8, 8))
    objects = objects_inside(count, seed)
    labels, match = nb.AnchorTargets(*thresholds, best_anchor).assign_anchors(anchors, objects)
    matcher = Matcher(*thresholds, allow_low_quality_matches=best_anchor)
    theirs = matcher(nb.AnchorTargets.compute_iou(objects, anchors))
    assert torch.equal(labels, signs_of(theirs))
    assert torch.equal(match[labels == 1], theirs[theirs >= 0])
    if best_anchor:
        assert (labels == 1).any()


def test_no_object_means_background(nb):
    anchors = random_boxes(20)
    labels, match = nb.AnchorTargets().assign_anchors(anchors, NO_BOXES)
    assert labels.tolist() == match.tolist() == [0] * 20
    assert labels.dtype == match.dtype == torch.int64


def test_an_object_without_area_has_no_anchor(nb):
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5], [20, 20, 30, 30]])
    for flat in ([5.0, 5, 5, 5], [2.0, 2, 8, 2], [25.0, 20, 25, 30]):
        labels, _ = nb.AnchorTargets().assign_anchors(anchors, torch.tensor([flat]))
        assert labels.tolist() == [0, 0, 0]
        both = torch.tensor([flat, [0, 0, 10, 9]])
        labels, match = nb.AnchorTargets().assign_anchors(anchors, both)
        assert labels.tolist() == [1, 0, 0] and match[0] == 1


def test_an_object_that_no_anchor_touches_has_none(nb):
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    far = torch.tensor([[100.0, 100, 120, 120]])
    assert nb.AnchorTargets().assign_anchors(anchors, far)[0].tolist() == [0, 0]


def test_two_objects_at_the_same_place_share_their_anchors(nb):
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]])
    once, twice = torch.tensor([[0.0, 0, 10, 9]]), torch.tensor([[0.0, 0, 10, 9]] * 2)
    for best_anchor in (False, True):
        rule = nb.AnchorTargets(best_anchor=best_anchor)
        labels = [rule.assign_anchors(anchors, objects)[0].tolist() for objects in (once, twice)]
        assert labels == [[1, -1, 0]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.float64])
def test_overlaps_of_any_precision(nb, dtype):
    boxes = torch.tensor([[0, 0, 512, 400], [600, 8, 900, 508], [0, 0, 256, 256], [4, 4, 4, 4]])
    exact = boxes.to(dtype).double()
    overlaps = nb.AnchorTargets.compute_iou(boxes.to(dtype), boxes.to(dtype))
    assert overlaps.dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(overlaps.double(), reference.box_iou(exact, exact))


def test_all_anchors_that_are_equally_good_are_positive(nb):
    anchors = torch.tensor([[0.0, 0, 10, 4], [0, 6, 10, 10], [0, 0, 4, 10], [0, 0, 3, 10]])
    labels, _ = nb.AnchorTargets().assign_anchors(anchors, torch.tensor([[0.0, 0, 10, 10]]))
    assert labels.tolist() == [1, 1, 1, -1]


@pytest.mark.parametrize("height, label", [(7.0, 1), (6.99, -1), (3.0, -1), (2.99, 0)])
def test_thresholds_hit_exactly(nb, height, label):
    anchors = torch.tensor([[0.0, 0, 10, height], [0, 0, 10, 10]])
    objects = torch.tensor([[0.0, 0, 10, 10]])
    for best_anchor in (False, True):
        labels, _ = nb.AnchorTargets(best_anchor=best_anchor).assign_anchors(anchors, objects)
        assert labels.tolist() == [label, 1]


@given(seed=st.integers(0, 10**6), count=st.integers(0, 20))
def test_box_targets_are_lecture_00s(nb, seed, count):
    anchors, objects = random_boxes(count, seed), random_boxes(count, seed + 1)
    deltas = nb.AnchorTargets.compute_bbox_targets(anchors, objects)
    assert deltas.shape == (count, 4)
    expected = reference.encode_boxes(objects, anchors)
    torch.testing.assert_close(deltas, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- the loss of the RPN


def test_the_default_loss_is_the_papers(nb):
    loss = nb.RPNLoss()
    assert isinstance(loss, nb.AnchorTargets)
    assert (loss.pos_iou_threshold, loss.neg_iou_threshold) == (0.7, 0.3)
    assert (loss.batch_size, loss.pos_fraction) == (256, 0.5)
    assert loss.best_anchor and loss.pad and loss.reg_weight == 1
    other = nb.RPNLoss(64, pos_iou_threshold=0.6, best_anchor=False)
    assert (other.batch_size, other.pos_iou_threshold, other.best_anchor) == (64, 0.6, False)


def anchor_labels(positive, negative, ignored):
    counts = torch.tensor([positive, negative, ignored])
    labels = torch.tensor([1, 0, -1]).repeat_interleave(counts)
    return labels[torch.randperm(len(labels))]


@pytest.mark.parametrize("positive", [0, 1, 128, 300])
@pytest.mark.parametrize("negative", [0, 10, 1000])
@pytest.mark.parametrize("pad", [False, True])
def test_a_sample_has_its_counts_and_no_ignored_anchor(nb, positive, negative, pad):
    labels = anchor_labels(positive, negative, 50)
    for batch_size, fraction in ((256, 0.5), (64, 0.25), (7, 0.5), (1, 0.5)):
        chosen = nb.RPNLoss(batch_size, fraction, pad).sample(labels)
        half = int(batch_size * fraction)
        room = batch_size - (min(half, positive) if pad else half)
        assert [len(part) for part in chosen] == [min(half, positive), min(room, negative)]
        for part, label in zip(chosen, (1, 0)):
            assert (labels[part] == label).all() and len(part.unique()) == len(part)


def test_a_sample_is_random(nb):
    labels = anchor_labels(40, 400, 10)
    drawn = [nb.RPNLoss(16).sample(labels) for _ in range(40)]
    assert [len(torch.cat(parts).unique()) > 30 for parts in zip(*drawn)] == [True, True]


def loss_by_hand(labels, scores, deltas, goals, beta=1 / 9):
    """Both losses of one image from labels, scores and (deltas, goals) of each anchor."""
    used = [n for n, label in enumerate(labels) if label >= 0]
    cls_loss = sum(math.log1p(math.exp(-scores[n] if labels[n] else scores[n])) for n in used)
    distances = [abs(t - v) for n in used if labels[n] for t, v in zip(deltas[n], goals[n])]
    reg_loss = sum(d * d / (2 * beta) if d < beta else d - beta / 2 for d in distances)
    return cls_loss / len(used), reg_loss / len(used)


def random_answers(images, height=4, width=5, count=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    objectness = torch.randn(images, height, width, count, generator=g)
    deltas = torch.randn(images, height, width, 4 * count, generator=g)
    return objectness.requires_grad_(), deltas.requires_grad_()


def small_anchors(nb, height=4, width=5):
    return nb.AnchorGeneratorTorch((1, 2, 3), stride=8)((height, width))


@pytest.mark.parametrize("counts", [[1], [2, 3], [0, 4], [0, 0], [1, 0, 5]], ids=str)
@pytest.mark.parametrize("reg_weight", [0.0, 1.0, 2.5])
def test_the_loss_is_the_formula(nb, counts, reg_weight):
    for seed in range(3):
        objects = [objects_inside(n, 10 * seed + n, size=32.0) for n in counts]
        objectness, deltas = random_answers(len(counts), seed=seed)
        anchors = small_anchors(nb)
        rule = nb.RPNLoss(**EVERYTHING, reg_weight=reg_weight)
        cls_loss, reg_loss = rule(objectness, deltas, anchors, objects)
        expected = np.zeros(2)
        for i, boxes in enumerate(objects):
            labels, match = rule.assign_anchors(anchors, boxes)
            goals = reference.encode_boxes(boxes[match], anchors) if len(boxes) else anchors
            answers = objectness[i].flatten(), deltas[i].view(-1, 4)
            expected += loss_by_hand(*(t.tolist() for t in (labels, *answers, goals)))
        expected *= np.array([1, reg_weight]) / len(counts)
        np.testing.assert_allclose([cls_loss.item(), reg_loss.item()], expected, rtol=1e-4)


def test_only_the_sample_learns(nb):
    rule, anchors = nb.RPNLoss(), small_anchors(nb)
    labels, _ = rule.assign_anchors(anchors, objects_inside(4, size=32.0))
    positive, negative = (torch.where(labels == value)[0][:3] for value in (1, 0))
    rule.sample = lambda labels: (positive, negative)
    objectness, deltas = random_answers(1)
    cls_loss, reg_loss = rule(objectness, deltas, anchors, [objects_inside(4, size=32.0)])
    (cls_loss + reg_loss).backward()
    touched = objectness.grad.flatten() != 0
    assert touched.nonzero().flatten().tolist() == sorted([*positive.tolist(), *negative.tolist()])
    moved = (deltas.grad.view(-1, 4) != 0).any(dim=1)
    assert moved.nonzero().flatten().tolist() == positive.tolist()


@pytest.mark.parametrize("objects", [[NO_BOXES], [NO_BOXES, NO_BOXES]], ids=len)
def test_no_object_in_the_batch(nb, objects):
    objectness, deltas = random_answers(len(objects))
    losses = nb.RPNLoss()(objectness, deltas, small_anchors(nb), objects)
    assert losses[0] > 0 and losses[1] == 0
    sum(losses).backward()  # a training step must survive it
    assert (objectness.grad > 0).any() and objectness.grad.isfinite().all()


def test_no_positive_anchor(nb):
    tiny = torch.tensor([[10.0, 10, 11, 11], [20, 20, 20, 20]])
    objectness, deltas = random_answers(1)
    losses = nb.RPNLoss(best_anchor=False)(objectness, deltas, small_anchors(nb), [tiny])
    assert losses[0].isfinite() and losses[1] == 0
    sum(losses).backward()
    assert objectness.grad.isfinite().all()


def test_objects_without_area_do_not_spoil_the_loss(nb):
    objects = torch.cat([torch.tensor([[9.0, 9, 9, 9], [4, 9, 20, 9]]), TWO_SQUARES])
    objectness, deltas = random_answers(1)
    losses = nb.RPNLoss(**EVERYTHING)(objectness, deltas, small_anchors(nb), [objects])
    sum(losses).backward()
    assert losses[1] > 0 and deltas.grad.isfinite().all()


def test_an_image_all_of_whose_anchors_are_ignored(nb):
    objectness, deltas = random_answers(1, 1, 1, 1)
    anchors, objects = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 5]])
    losses = nb.RPNLoss(best_anchor=False)(objectness, deltas, anchors, [objects])
    assert [loss.item() for loss in losses] == [0, 0]
    sum(losses).backward()
    assert (objectness.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
def test_objects_of_any_type_give_the_same_loss(nb, dtype):
    objectness, deltas = random_answers(1)
    anchors, objects = small_anchors(nb), TWO_SQUARES
    losses = [
        nb.RPNLoss(**EVERYTHING)(objectness, deltas, anchors, [boxes])
        for boxes in (objects, objects.to(dtype))
    ]
    torch.testing.assert_close(losses[1], losses[0])
    assert losses[0][1] > 0


def test_the_loss_of_half_precision_answers(nb):
    objectness, deltas = random_answers(1)
    low = [(t.detach() - 2000).half() for t in (objectness, deltas)]  # their sum is below -65,504
    rule, anchors = nb.RPNLoss(**EVERYTHING), small_anchors(nb)
    losses, exact = (
        torch.stack(rule(*answers, anchors, [TWO_SQUARES]))
        for answers in (low, [t.float() for t in low])
    )
    assert losses.isfinite().all() and torch.equal(losses, exact)


@pytest.mark.parametrize("box", [[40.0, 8, 8, 40], [8.0, 8, math.nan, 40], [8.0, 8, 40, math.inf]])
def test_losses_refuse_objects_that_are_none(nb, box):
    wrong, labels = [TWO_SQUARES[:1], torch.tensor([box])], [torch.tensor([1])] * 2
    for model in (nb.FasterRCNN(**tiny_parts(nb)), tiny_model(nb)):
        with pytest.raises(ValueError, match="^gt_boxes must "):
            model(torch.randn(2, 3, 64, 64), wrong, *([labels] if hasattr(model, "head") else []))
    with pytest.raises(ValueError, match=r"^the target\['boxes'\] must "):
        nb.label_proposals(TWO_SQUARES, wrong[1], labels[1], UNIT)


def test_no_image_costs_nothing(nb):
    losses = nb.RPNLoss()(*random_answers(0), small_anchors(nb), [])
    assert [loss.item() for loss in losses] == [0, 0]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_objects_of_another_number_of_images_are_refused(nb, count):
    objectness, deltas = random_answers(2)
    with pytest.raises(ValueError):
        nb.RPNLoss()(objectness, deltas, small_anchors(nb), [TWO_SQUARES] * count)


# ---------------------------------------------------------------- proposals


def test_the_parts_have_the_texts_names(nb):
    with torch.device("meta"):
        model = nb.FasterRCNN()
    assert [name for name, _ in model.named_children()] == ["backbone", "anchor_generator", "rpn"]
    assert model.rpn.conv.weight.shape == (512, 512, 3, 3)
    assert model.rpn.cls_logits.out_channels == 9
    assert type(model.rpn_loss) is nb.RPNLoss


@given(seed=st.integers(0, 10**6), count=st.integers(0, 20))
def test_applying_deltas_inverts_the_targets(nb, seed, count):
    anchors, objects = random_boxes(count, seed), random_boxes(count, seed + 1)
    deltas = nb.AnchorTargets.compute_bbox_targets(anchors, objects)
    boxes = nb.FasterRCNN.apply_deltas(anchors, deltas)
    wild = deltas[:, 2:].amax(dim=1) > reference.MAX_SIZE_DELTA  # the decoder caps these
    torch.testing.assert_close(boxes[~wild], objects[~wild], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 1e4])
def test_applying_deltas_is_lecture_00s(nb, spread):
    anchors, deltas = random_boxes(50), spread * torch.randn(50, 4)
    boxes = nb.FasterRCNN.apply_deltas(anchors, deltas)
    torch.testing.assert_close(boxes, reference.decode_boxes(deltas, anchors), atol=1e-3, rtol=1e-5)
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


@pytest.mark.parametrize("huge", [100.0, -100.0, 1e6, -1e6, 1e30, -1e30])
def test_huge_deltas_stay_finite(nb, huge):
    anchors = random_boxes(5)
    assert nb.FasterRCNN.apply_deltas(anchors, torch.full((5, 4), huge)).isfinite().all()


def proposals_by_hand(scores, deltas, anchors, image_size, k, top, iou):
    order = scores.argsort(descending=True)[:k]
    boxes = reference.decode_boxes(deltas[order], anchors[order])
    boxes, scores = reference.clip_boxes(boxes, *image_size), scores[order]
    large = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
    boxes, scores = boxes[large], scores[large]
    keep = slice(None) if iou is None else nms_reference.nms(boxes, scores, iou)
    return boxes[keep][:top]


LIMITS = {
    "the defaults, more than there are": {"k": 2000, "top": 300, "iou": 0.7},
    "few": {"k": 20, "top": 300, "iou": 0.7},
    "no suppression": {"k": 2000, "top": 300, "iou": None},
    "no suppression, few": {"k": 30, "top": 7, "iou": None},
    "strict": {"k": 100, "top": 300, "iou": 0.2},
    "the best": {"k": 50, "top": 1, "iou": 0.5},
    "none": {"k": 50, "top": 0, "iou": 0.5},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_proposals_by_hand(nb, limits):
    model, anchors = nb.FasterRCNN(**tiny_parts(nb)), small_anchors(nb)
    with torch.no_grad():
        objectness, deltas = random_answers(3)
        proposals = model.decode_proposals(objectness, deltas, anchors, (32, 40), **limits)
        for i, boxes in enumerate(proposals):
            answers = objectness[i].flatten(), deltas[i].view(-1, 4)
            expected = proposals_by_hand(*answers, anchors, (32, 40), **limits)
            torch.testing.assert_close(boxes, expected, atol=1e-4, rtol=1e-5)
            assert (boxes >= 0).all() and (boxes[:, 2] <= 40).all() and (boxes[:, 3] <= 32).all()


def test_proposals_are_sorted_and_bounded_by_default(nb):
    model = nb.FasterRCNN(**tiny_parts(nb))
    anchors = nb.AnchorGeneratorTorch((1, 2), stride=4)((20, 30))  # 3,600
    objectness, deltas = torch.randn(1, 20, 30, 6), torch.zeros(1, 20, 30, 24)
    (boxes,) = model.decode_proposals(objectness, deltas, anchors, (80, 120))
    assert len(boxes) == 300
    ranks = objectness.flatten().argsort(descending=True).argsort()
    places = [torch.where((anchors == box).all(dim=1))[0] for box in boxes]  # none if clipped
    seen = ranks[torch.cat(places)].tolist()
    assert len(seen) > 50 and seen == sorted(seen) and max(seen) < 2000


def test_boxes_that_shrink_to_nothing_are_no_proposals(nb):
    model, anchors = nb.FasterRCNN(**tiny_parts(nb)), small_anchors(nb)
    objectness, deltas = random_answers(2)
    for change in (torch.tensor([0.0, 0, -100, 0]), torch.tensor([500.0, 0, 0, 0])):
        answers = objectness, change.repeat(2, 4, 5, 9)
        proposals = model.decode_proposals(*answers, anchors, (32, 40))
        assert [p.shape for p in proposals] == [(0, 4)] * 2


IMAGES = {"square": (2, 64, 64), "wide": (1, 96, 120), "high": (2, 120, 96), "odd": (1, 65, 79)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("images, height, width", IMAGES.values(), ids=IMAGES)
def test_forward_gives_losses_or_proposals(nb, images, height, width, training):
    model = nb.FasterRCNN(**tiny_parts(nb)).train(training)
    pixels = torch.randn(images, 3, height, width)
    for objects in ([TWO_SQUARES] * images, [NO_BOXES] * images):
        losses = model(pixels, objects)
        assert list(losses) == ["rpn_cls", "rpn_reg"]
        assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
        assert (losses["rpn_reg"] > 0) == (len(objects[0]) > 0)
        model.zero_grad()
        sum(losses.values()).backward()
        assert finite_gradients(model)
    proposals = model(pixels)
    assert len(proposals) == images
    for boxes in proposals:
        assert 0 < len(boxes) <= 300 and boxes.isfinite().all() and (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()


def test_the_loss_is_taken_at_the_anchors_of_the_map(nb):
    model = nb.FasterRCNN(**tiny_parts(nb), rpn_loss=nb.RPNLoss(**EVERYTHING)).eval()
    images = torch.randn(1, 3, 96, 120)
    losses = model(images, [TWO_SQUARES])
    features = model.backbone(images)
    anchors = nb.AnchorGeneratorTorch((2, 4, 7), stride=8)((12, 15))
    expected = model.rpn_loss(*model.rpn(features), anchors, [TWO_SQUARES])
    torch.testing.assert_close(tuple(losses.values()), expected)


# ---------------------------------------------------------------- RoIAlign


def rois_around(count, width, height, seed=0):
    """Boxes (count, 4) in, around and outside an image; some without area."""
    g = torch.Generator().manual_seed(seed)
    corners = (torch.rand(count, 2, 2, generator=g) * 3 - 1) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    flat = torch.rand(count, generator=g) < 0.2
    boxes[flat, 2:] = boxes[flat, :2]
    return boxes


@st.composite
def pooling_cases(draw):
    """Map, boxes per image, stride, output size, samples."""
    images, height, width = draw(st.integers(1, 3)), draw(SIDES), draw(SIDES)
    stride, seed = draw(st.sampled_from([1, 5, 8, 16])), draw(st.integers(0, 10**6))
    counts = [draw(st.integers(0, 6)) for _ in range(images)]
    size = stride * width, stride * height
    boxes = [rois_around(n, *size, seed + i) for i, n in enumerate(counts)]
    g = torch.Generator().manual_seed(seed)
    feature_map = torch.randn(images, draw(st.integers(1, 3)), height, width, generator=g)
    return feature_map, boxes, stride, draw(st.sampled_from([7, 1, 2, 5])), draw(st.integers(1, 3))


@given(case=pooling_cases())
def test_roi_align_is_torchvisions(nb, case):
    feature_map, boxes, stride, bins, samples = case
    image_size = tuple(stride * side for side in feature_map.shape[2:])
    pooled = nb.RoIAlign(bins, samples)(feature_map, boxes, image_size)
    expected = roi_align(feature_map, boxes, bins, 1 / stride, samples, aligned=True)
    assert pooled.shape == (sum(map(len, boxes)), feature_map.shape[1], bins, bins)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)


NASTY_ROIS = NASTY_BOXES | {"far away": [1e6, 1e6, 2e6, 3e6]}


@pytest.mark.parametrize("kind", NASTY_ROIS)
def test_roi_align_of_nasty_boxes_on_a_wide_map(nb, kind):
    feature_map = torch.randn(2, 3, 8, 20) - 9  # away from 0, the value of a point outside
    boxes = [torch.tensor([NASTY_ROIS[kind]])] * 2
    pooled = nb.RoIAlign()(feature_map, boxes, (128, 320))
    expected = roi_align(feature_map, boxes, 7, 1 / 16, 2, aligned=True)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)
    assert (pooled == 0).all() == (kind in NOT_IN_THE_IMAGE | {"far away"})


@pytest.mark.parametrize("name", ["RoIAlign", "RoIPool"])
@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_pooling_of_no_boxes(nb, name, counts):
    feature_map = torch.randn(2, 4, 8, 6, requires_grad=True)
    pooled = getattr(nb, name)()(feature_map, [random_boxes(n) for n in counts], (64, 48))
    assert pooled.shape == (sum(counts), 4, 7, 7)
    pooled.sum().backward()
    assert feature_map.grad.isfinite().all()


@pytest.mark.parametrize("boxes_dtype", [torch.float32, torch.float64, torch.int64, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_pooling_of_any_precision_is_that_of_float32(nb, dtype, boxes_dtype):
    feature_map = torch.randn(2, 3, 12, 20).to(dtype)
    boxes = [rois_around(9, 160, 96, seed).round() for seed in (1, 2)]
    odd = [b.to(boxes_dtype) for b in boxes]
    for layer in (nb.RoIAlign(), nb.RoIPool()):
        pooled = layer(feature_map, odd, (96, 160))
        expected = layer(feature_map.float(), boxes, (96, 160)).to(dtype)
        assert pooled.dtype == dtype
        torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)


def test_pooling_with_another_scale_down_than_across(nb):
    feature_map, boxes = torch.randn(2, 3, 9, 10), [rois_around(20, 79, 65, i) for i in (1, 2)]
    in_cells = [b * torch.tensor([10 / 79, 9 / 65, 10 / 79, 9 / 65]) for b in boxes]
    assert torch.equal(
        nb.RoIPool()(feature_map, boxes, (65, 79)), roi_pool(feature_map, in_cells, 7)
    )
    expected = roi_align(feature_map, in_cells, 7, 1.0, 2, aligned=True)
    pooled = nb.RoIAlign()(feature_map, boxes, (65, 79))
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_no_image_gives_nothing(nb):
    for layer in (nb.RoIAlign(), nb.RoIPool()):
        assert layer(torch.zeros(0, 3, 8, 8), [], (64, 64)).shape == (0, 3, 7, 7)
        model = tiny_model(nb, pooling=layer).eval()
        assert model(torch.zeros(0, 3, 64, 96)) == []
    assert nb.FasterRCNN(**tiny_parts(nb)).eval()(torch.zeros(0, 3, 64, 96)) == []
    assert nb.proposals_of(model, torch.zeros(0, 3, 64, 96, dtype=torch.uint8)) == []


def test_boxes_of_another_number_of_images_are_refused(nb):
    for boxes in ([], [NO_BOXES], [NO_BOXES] * 3):
        with pytest.raises(ValueError):
            nb.RoIAlign()(torch.randn(2, 4, 8, 8), boxes, (64, 64))


def test_pooling_keeps_the_order_of_images_and_boxes(nb):
    feature_map = torch.tensor([1.0, 2, 3]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    boxes = [objects_inside(n) for n in (2, 0, 3)]
    for layer in (nb.RoIAlign(), nb.RoIPool()):
        pooled = layer(feature_map, boxes, (64, 64))
        assert pooled.amax(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 3, 3, 3])


def test_gradients_of_roi_align_are_torchvisions(nb):
    boxes, gradients = [rois_around(9, 80, 64, seed) for seed in (1, 2)], []
    layer = nb.RoIAlign()
    for pool in (
        lambda f: layer(f, boxes, (64, 80)),
        lambda f: roi_align(f, boxes, 7, 1 / 8, 2, aligned=True),
    ):
        torch.manual_seed(3)
        feature_map = torch.randn(2, 3, 8, 10, requires_grad=True)
        pooled = pool(feature_map)
        (pooled * torch.linspace(0, 1, pooled.numel()).view_as(pooled)).sum().backward()
        gradients.append(feature_map.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_roi_align_has_a_gradient_to_the_boxes(nb):
    feature_map = torch.randn(1, 2, 5, 6, dtype=torch.double)
    boxes = torch.tensor([[7.3, 9.1, 30.2, 27.7], [3.3, 2.9, 12.1, 20.3]], dtype=torch.double)

    def pooled(boxes):
        return nb.RoIAlign(2)(feature_map, [boxes], (40, 48))

    assert torch.autograd.gradcheck(pooled, boxes.requires_grad_())
    (gradient,) = torch.autograd.grad(pooled(boxes).square().sum(), boxes)
    assert (gradient != 0).all()


@given(seed=st.integers(0, 10**6), cells=st.integers(1, 12), bins=st.integers(1, 8))
def test_weights_inside_the_map_read_a_ramp(nb, seed, cells, bins):
    g = torch.Generator().manual_seed(seed)
    low, high = (torch.rand(5, 2, generator=g) * cells).sort(dim=1).values.unbind(dim=1)
    weights = nb.interpolation_matrix(low, high, cells, bins, samples=1)
    assert weights.shape == (5, bins, cells) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(5, bins))
    point = low[:, None] + (torch.arange(bins) + 0.5) * ((high - low) / bins)[:, None]
    ramp = weights @ (torch.arange(cells) + 0.5)
    torch.testing.assert_close(ramp, point.clamp(0.5, cells - 0.5), atol=1e-4, rtol=1e-4)


def test_weights_by_hand(nb):
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([4.0, 3.0])
    weights = nb.interpolation_matrix(low, high, 4, bins=2, samples=1)  # points 1, 3; 1.5, 2.5
    assert weights[0].tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert weights[1].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    nothing = torch.zeros(0)
    assert nb.interpolation_matrix(nothing, nothing, 4).shape == (0, 7, 4)


@given(case=pooling_cases())
def test_roi_pool_is_torchvisions(nb, case):
    feature_map, boxes, stride, _, _ = case
    image_size = tuple(stride * side for side in feature_map.shape[2:])
    pooled = nb.RoIPool()(feature_map, tuple(boxes), image_size)
    rois = [F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)]
    assert torch.equal(pooled, roi_pool(feature_map, torch.cat(rois), 7, 1 / stride))


def test_only_roi_align_feels_half_a_pixel(nb, monkeypatch):
    monkeypatch.setattr(nb, "maps", torch.randn(2, 8, 16, 24), raising=False)
    assert nb.output_change(0.0) == (0, 0)
    smooth, rounded = nb.output_change(0.5)
    assert smooth > 0 and rounded == 0
    assert nb.output_change(8.0)[1] > 0


# ---------------------------------------------------------------- the head and its targets


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_head_answers_every_region(nb, count):
    scores, deltas = nb.FastRCNNHead(12, 2, hidden_dim=8)(torch.rand(count, 12))
    assert scores.shape == (count, 3) and deltas.shape == (count, 3, 4)


def test_the_head_is_two_hidden_layers(nb):
    head, x = nb.FastRCNNHead(30, 3, hidden_dim=20), torch.randn(5, 30)
    with torch.no_grad():
        for p in head.parameters():
            p.normal_()
        hidden = (x @ head.fc6.weight.T + head.fc6.bias).clamp(min=0)
        hidden = (hidden @ head.fc7.weight.T + head.fc7.bias).clamp(min=0)
        scores, deltas = head(x)
        expected = hidden @ head.cls_score.weight.T + head.cls_score.bias
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
        expected = hidden @ head.bbox_pred.weight.T + head.bbox_pred.bias
        torch.testing.assert_close(deltas.flatten(1), expected, atol=1e-4, rtol=1e-4)


TWO_LABELS = torch.tensor([0, 2])
UNIT = torch.ones(4)


@pytest.mark.parametrize("count", [0, 5, 100])
def test_without_objects_all_regions_are_background(nb, count):
    proposals = random_boxes(count)
    regions, classes, targets = nb.label_proposals(proposals, NO_BOXES, NO_LABELS, UNIT)
    assert len(regions) == min(count, 32) and targets.shape == regions.shape
    assert classes.tolist() == [0] * len(regions) and classes.dtype == torch.int64
    assert (targets == 0).all() and len(regions.unique(dim=0)) == len(regions)
    assert all((proposals == region).all(dim=1).any() for region in regions)


def test_without_proposals_the_objects_are_the_regions(nb):
    regions, classes, targets = nb.label_proposals(NO_BOXES, TWO_SQUARES, TWO_LABELS, UNIT)
    order = classes.argsort()
    assert classes[order].tolist() == [1, 3]
    assert torch.equal(regions[order], TWO_SQUARES) and (targets == 0).all()


@pytest.mark.parametrize("count, fraction", [(32, 0.5), (16, 0.25), (10, 0.0), (8, 1.0)])
@pytest.mark.parametrize("good", [0, 3, 100])
@pytest.mark.parametrize("bad", [0, 100])
def test_a_sample_of_regions_has_its_share_of_objects(nb, count, fraction, good, bad):
    proposals = torch.cat([TWO_SQUARES[:1].expand(good, 4), random_boxes(bad) + 100])
    sample = nb.label_proposals(proposals, TWO_SQUARES, TWO_LABELS, UNIT, count, fraction)
    classes = sample[1]
    foreground = min(int(count * fraction), good + 2)
    assert int((classes > 0).sum()) == foreground
    assert int((classes == 0).sum()) == min(count - foreground, bad)
    assert {len(part) for part in sample} == {len(classes)}


@pytest.mark.parametrize("seed", range(4))
def test_region_targets_are_a_loop(nb, seed):
    objects, labels = objects_inside(3, seed), torch.tensor([2, 0, 1])
    proposals = (objects[:, None] + 4 * torch.randn(3, 20, 1)).flatten(0, 1)
    weights, all_of_them = torch.tensor(WEIGHTS), {"count": 10**6, "fraction": 1.0}
    sample = nb.label_proposals(proposals, objects, labels, weights, **all_of_them)
    assert len(sample[0]) == 63
    for region, label, target in zip(*sample):
        overlap = reference.box_iou(region[None], objects)[0]
        best = int(overlap.argmax())
        is_object = bool(overlap[best] >= 0.5)
        assert label == (labels[best] + 1 if is_object else 0)
        if is_object:
            expected = reference.encode_boxes(objects[best : best + 1], region[None], WEIGHTS)[0]
            torch.testing.assert_close(target, expected, atol=1e-4, rtol=1e-4)
    assert 3 < int((sample[1] > 0).sum()) < 63


@pytest.mark.parametrize("labels", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("boxes", [torch.float64, torch.float16, torch.int32])
def test_region_targets_of_any_type_are_the_same(nb, boxes, labels):
    odd = TWO_SQUARES.to(boxes), TWO_LABELS.to(labels)
    samples = []
    for target in ((TWO_SQUARES, TWO_LABELS), odd):
        torch.manual_seed(0)
        samples.append(nb.label_proposals(TWO_SQUARES + 1, *target, torch.tensor(WEIGHTS)))
    for ours, theirs in zip(*samples):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    with pytest.raises(ValueError, match=r"^the target\['labels'\] must be integers"):
        nb.label_proposals(TWO_SQUARES, TWO_SQUARES, TWO_LABELS.float(), UNIT)


@pytest.mark.parametrize("height, label", [(20.0, 2), (20.5, 0), (19.5, 2)])
def test_an_overlap_of_exactly_one_half_is_an_object(nb, height, label):
    region, target = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, height]])
    regions, classes, _ = nb.label_proposals(region, target, torch.tensor([1]), UNIT)
    row = (regions == region).all(dim=1).nonzero()[0]
    assert classes[row].tolist() == [label]


# ---------------------------------------------------------------- both stages, training


def targets_of(*counts):
    boxes = [objects_inside(n, seed=5 + n) for n in counts]
    return boxes, [torch.arange(n) % 3 for n in counts]


LOSSES = ["rpn_cls", "rpn_reg", "head_cls", "head_box"]


@pytest.mark.parametrize("counts", [(1,), (0,), (7,), (0, 2), (0, 0), (40, 1, 0)], ids=str)
def test_four_finite_losses(nb, counts):
    model = tiny_model(nb).train()
    losses = model(torch.randn(len(counts), 3, 64, 64), *targets_of(*counts))
    assert list(losses) == LOSSES
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    assert (losses["rpn_reg"] > 0) == (losses["head_box"] > 0) == (sum(counts) > 0)
    sum(losses.values()).backward()
    assert finite_gradients(model)


def test_losses_of_a_wide_image_and_of_flat_objects(nb):
    model = tiny_model(nb).train()
    flat = torch.cat([TWO_SQUARES, torch.tensor([[50.0, 50, 50, 50], [9, 9, 30, 9]])])
    losses = model(torch.randn(1, 3, 96, 120), [flat], [torch.tensor([0, 1, 2, 2])])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert finite_gradients(model)


def without_proposals(model):
    """The same model, whose RPN shrinks every anchor to nothing."""
    with torch.no_grad():
        model.rpn.bbox_pred.bias.fill_(-100)
    return model


@pytest.mark.parametrize("counts", [(2,), (2, 0), (0,), (0, 0)], ids=str)
def test_losses_without_any_proposal(nb, counts):
    model = without_proposals(tiny_model(nb)).train()
    losses = model(torch.randn(len(counts), 3, 64, 64), *targets_of(*counts))
    assert {name: loss.isfinite().item() for name, loss in losses.items()} == dict.fromkeys(
        LOSSES, True
    )
    sum(losses.values()).backward()
    assert finite_gradients(model)


def test_the_class_and_box_losses_are_the_formulas(nb, monkeypatch):
    model = tiny_model(nb)
    nn.init.normal_(model.head.cls_score.bias)
    nn.init.normal_(model.head.bbox_pred.bias)
    samples = []
    original = nb.label_proposals
    monkeypatch.setattr(
        nb, "label_proposals", lambda *a: samples.append(original(*a)) or samples[-1]
    )
    features, (boxes, labels) = torch.randn(2, 8, 8, 8), targets_of(2, 3)
    proposals = [random_boxes(40), random_boxes(3, 1)]
    answers = model.head_losses(features, proposals, boxes, labels, (64, 64))
    regions, classes, targets = zip(*samples)
    pooled = roi_align(features, list(regions), 7, 1 / 8, 2, aligned=True).flatten(1)
    scores, deltas = model.head(pooled)
    classes, targets = torch.cat(classes), torch.cat(targets)
    expected = -scores.log_softmax(dim=1)[range(len(classes)), classes].mean()
    torch.testing.assert_close(answers[0], expected, atol=1e-4, rtol=1e-4)
    distance = (deltas[range(len(classes)), classes] - targets).abs()[classes > 0]
    each = torch.where(distance < 1, distance**2 / 2, distance - 0.5)
    torch.testing.assert_close(answers[1], each.sum() / len(classes), atol=1e-4, rtol=1e-4)


def test_proposals_carry_no_gradient(nb, monkeypatch):
    model, seen = tiny_model(nb), []
    original = model.head_losses
    monkeypatch.setattr(model, "head_losses", lambda *a: seen.append(a[1]) or original(*a))
    losses = model(torch.randn(2, 3, 64, 64), *targets_of(2, 3))
    assert len(seen[0]) == 2 and not any(p.requires_grad for p in seen[0])
    (losses["head_cls"] + losses["head_box"]).backward()
    assert all(p.grad is None for p in model.rpn.parameters())
    assert model.backbone[0].weight.grad.abs().sum() > 0


def test_training_uses_its_own_number_of_proposals(nb, monkeypatch):
    model, seen = tiny_model(nb, k_train=30, top_train=5), []
    original = model.head_losses
    monkeypatch.setattr(model, "head_losses", lambda *a: seen.append(a[1]) or original(*a))
    model(torch.randn(2, 3, 64, 64), *targets_of(2, 3))
    assert all(0 < len(p) <= 5 for p in seen[0])
    assert (nb.JointLosses(3, **tiny_parts(nb)).k_train, tiny_model(nb).top_train) == (256, 64)


def test_lists_of_other_lengths_are_refused(nb):
    model, images = tiny_model(nb), torch.randn(2, 3, 64, 64)
    boxes, labels = targets_of(1, 2)
    for few, names in ((boxes[:1], labels), (boxes, labels[:1])):
        with pytest.raises(ValueError):
            model(images, few, names)


def test_a_few_steps_reduce_the_loss(nb):
    model = tiny_model(nb).train()
    images = torch.randn(2, 3, 64, 64)
    boxes, labels = targets_of(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(15):
        total = sum(model(images, boxes, labels).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert np.mean(totals[-3:]) < 0.8 * np.mean(totals[:2])


def test_a_detector_of_the_default_parts(nb):
    with torch.device("meta"):
        model = nb.CompleteFasterRCNN(20)
    assert model.head.fc6.in_features == 512 * 49
    assert model.head.cls_score.out_features == 21


# ---------------------------------------------------------------- both stages, detections


class Told(nn.Module):
    """A head that says what it was told to, by default without moving any box."""

    def __init__(self, scores, deltas=None):
        super().__init__()
        self.scores = scores
        self.deltas = torch.zeros(*scores.shape, 4) if deltas is None else deltas

    def forward(self, features):
        assert len(features) == len(self.scores)
        return self.scores, self.deltas


APART = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 30, 10, 40]])


def one_hot_scores(columns, height=9.0):
    return height * F.one_hot(torch.tensor(columns), 4).float()


def detected(nb, scores, regions, deltas=None, **options):
    """What a detector with these head outputs finds in images of 64 x 64 pixels."""
    model = tiny_model(nb)
    model.head = Told(scores, deltas)
    options = {"score_threshold": 0.5} | options
    with torch.no_grad():
        return model.detections(torch.randn(len(regions), 8, 8, 8), regions, (64, 64), **options)


def test_known_scores_give_known_labels(nb):
    (found,) = detected(nb, one_hot_scores([1, 2, 3, 0]), [APART])
    order = found["labels"].argsort()
    assert found["labels"][order].tolist() == [0, 1, 2]  # and the background is no detection
    assert torch.equal(found["boxes"][order], APART[:3])
    probability = math.exp(9) / (math.exp(9) + 3)
    torch.testing.assert_close(found["scores"], torch.full((3,), probability))


def test_each_image_gets_its_own_detections(nb):
    regions = [APART[:1], NO_BOXES, APART[1:]]
    found = detected(nb, one_hot_scores([1, 2, 3, 1]), regions)
    assert [sorted(f["labels"].tolist()) for f in found] == [[0], [], [0, 1, 2]]
    assert torch.equal(found[0]["boxes"], APART[:1])


def test_a_detection_moves_by_the_deltas_of_its_class(nb):
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 2] = torch.tensor([10 * 0.5, 0.0, 0.0, 5 * math.log(2)])  # class 1, weighted
    deltas[0, 1] = deltas[0, 3] = 7.0
    (found,) = detected(nb, one_hot_scores([2, 1]), [APART[[1, 3]]], deltas)
    moved = found["boxes"][found["labels"] == 1]
    torch.testing.assert_close(moved, torch.tensor([[25.0, 0, 35, 15]]))  # cut at the top
    assert found["boxes"][found["labels"] == 0].tolist() == [[0.0, 30, 10, 40]]


def test_duplicates_of_a_class_are_suppressed(nb):
    regions = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11], [0, 4, 10, 14]])
    scores = one_hot_scores([1, 1, 2, 1])
    scores[1, 1], scores[2, 2] = 11, 10  # the best of class 0, then the only one of class 1
    (found,) = detected(nb, scores, [regions])
    assert found["labels"].tolist() == [0, 1, 0]  # IoU 0.82: gone; 0.37 and another class: kept
    assert torch.equal(found["boxes"], regions[1:])
    (strict,) = detected(nb, scores, [regions], iou=0.2)
    assert len(strict["boxes"]) == 2


def test_the_best_detections_are_kept_in_order(nb):
    scores = torch.tensor([[0.0, 1, 0, 0], [0, 4, 0, 0], [0, 2, 0, 0], [0, 3, 0, 0]])
    for top in (0, 1, 3, 100):
        (found,) = detected(nb, scores, [APART], score_threshold=0.3, top=top)
        assert torch.equal(found["boxes"], APART[[1, 3, 2, 0]][:top])
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


def is_empty(found):
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert found["labels"].dtype == torch.int64
    return shapes == {"boxes": (0, 4), "scores": (0,), "labels": (0,)}


def test_nothing_found_is_empty_tensors(nb):
    for columns, threshold in (([0, 0, 0, 0], 0.5), ([1, 2, 3, 1], 1.0)):
        (found,) = detected(nb, one_hot_scores(columns), [APART], score_threshold=threshold)
        assert is_empty(found)


@torch.no_grad()
def test_no_proposals_mean_no_detections(nb):
    model = without_proposals(tiny_model(nb)).eval()
    found = model(torch.randn(2, 3, 64, 96))
    assert len(found) == 2 and all(map(is_empty, found))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("images, height, width", IMAGES.values(), ids=IMAGES)
@torch.no_grad()
def test_detections_have_their_form(nb, images, height, width, training):
    model = tiny_model(nb).train(training)
    nn.init.normal_(model.head.bbox_pred.bias, std=2)  # wild boxes
    found = model(torch.randn(images, 3, height, width))
    assert len(found) == images
    for detections in found:
        assert list(detections) == ["boxes", "scores", "labels"]
        boxes, scores, labels = detections.values()
        assert 0 < len(scores) <= 100 and boxes.shape == (len(scores), 4)
        assert labels.shape == scores.shape and set(labels.tolist()) <= {0, 1, 2}
        assert labels.dtype == torch.int64 and (scores[:-1] >= scores[1:]).all()
        assert (scores > 0.02).all() and (scores < 1).all()
        assert (boxes >= 0).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


@torch.no_grad()
def test_boxes_are_cut_at_the_borders_of_a_wide_image(nb):
    model = tiny_model(nb).eval()
    nn.init.normal_(model.head.bbox_pred.bias, std=4)  # wild boxes
    nn.init.normal_(model.rpn.bbox_pred.bias, std=4)
    images = torch.randn(1, 3, 96, 160)
    (found,), (proposals,) = model(images), nb.FasterRCNN.forward(model, images)
    for boxes in (found["boxes"], proposals):
        assert boxes[:, 2:].amax(dim=0).tolist() == [160, 96]


@pytest.mark.parametrize("pooling", ["RoIAlign", "RoIPool"])
@torch.no_grad()
def test_a_saved_detector_finds_the_same(nb, pooling):
    models = [tiny_model(nb, pooling=getattr(nb, pooling)()).eval() for _ in range(2)]
    file = io.BytesIO()
    torch.save(models[0].state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert state["box_weights"].tolist() == list(WEIGHTS)
    assert state["anchor_generator.base_anchors"].shape == (9, 4)
    models[1].load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    (first,), (second,) = (model(images) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_nothing_is_left_on_the_cpu(nb, monkeypatch, pretended_gpu):
    monkeypatch.setattr(nb, "DEVICE", torch.device("cuda"))
    model = tiny_model(nb).to("cuda")
    images = nb.to_input(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    boxes = [torch.tensor([[4.0, 6, 30, 40]] * 5, device="cuda")] * 2
    features = model.backbone(images)
    anchors = model.anchor_generator(features.shape[2:], (64, 96))
    answers = model.rpn(features)
    pooled = model.pooling(features, boxes, (64, 96)).flatten(1)
    labels = nb.AnchorTargets().assign_anchors(anchors, boxes[0])
    sampled = nb.label_proposals(anchors, boxes[0][:0], labels[0][:0], anchors[0])
    moved = nb.FasterRCNN.apply_deltas(anchors, answers[1].view(2, -1, 4)[0])
    found = (anchors, *answers, pooled, *labels, *sampled, moved, *model.head(pooled))
    assert {t.device.type for t in (images, *found)} == {"cuda"}


# ---------------------------------------------------------------- training and evaluation


def test_the_input_has_mean_0_and_spread_1(nb):
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    pixels = nb.to_input(images)
    expected = (images.double() - 127.5) / 63.75
    torch.testing.assert_close(pixels.double(), expected, atol=1e-5, rtol=0)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_the_slim_network_has_stride_8(nb):
    parts = nb.slim_parts()
    assert parts["channels"] == 96 and parts["anchor_generator"].num_anchors == 9
    assert parts["anchor_generator"].stride == 8
    assert parts["backbone"](torch.rand(2, 3, 64, 80)).shape == (2, 96, 8, 10)
    own = nb.slim_parts(np.array(OWN))
    assert own["anchor_generator"].base_anchors.tolist() == OWN
    assert nb.FasterRCNN(**own).rpn.cls_logits.out_channels == 2


@pytest.fixture
def on_few_images(nb, few_images, monkeypatch):
    """The notebook, with a benchmark of four images."""
    monkeypatch.setattr(nb, "train_set", few_images, raising=False)
    monkeypatch.setattr(nb, "test_set", few_images, raising=False)
    return nb


def test_batches_keep_things_together(on_few_images, few_images):
    before = few_images.images.clone(), [t["boxes"].clone() for t in few_images.targets]
    sums = before[0].sum(dim=(1, 2, 3)).tolist()  # the same whatever was flipped or recoloured
    drawn = list(on_few_images.augmented_batches(3, 0))
    assert len(drawn) == 3
    for images, boxes, labels in drawn:
        assert images.shape == (4, 3, 128, 128) and len(boxes) == len(labels) == 4
        for image, box, label in zip(images, boxes, labels):
            i = sums.index(int(image.sum()))
            assert torch.equal(label, few_images.targets[i]["labels"])
            assert torch.equal(box[:, 1::2], before[1][i][:, 1::2])  # y does not move
    assert torch.equal(few_images.images, before[0])  # nothing was changed in place
    assert all(torch.equal(t["boxes"], b) for t, b in zip(few_images.targets, before[1]))


def test_the_rpns_training_repeats_with_the_seed(on_few_images, few_images):
    nb = on_few_images
    models = [nb.train_rpn(2, seed=seed) for seed in (0, 0, 1)]
    weights = [model.rpn.conv.weight for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert (models[0].rpn_loss.batch_size, models[0].rpn_loss.reg_weight) == (64, 3.0)
    proposals = nb.proposals_of(models[0], few_images.images)
    assert len(proposals) == 4 and not models[0].training
    assert all(0 < len(p) <= 300 and not p.requires_grad for p in proposals)
    recalls = nb.three_recalls(models[0])
    assert len(recalls) == len(nb.LIMITS) and all(0 <= value <= 1 for value in recalls)


def test_options_reach_the_rpns_loss(on_few_images):
    model = on_few_images.train_rpn(
        1, parts=on_few_images.slim_parts(OWN), pad=False, best_anchor=False
    )
    assert not (model.rpn_loss.pad or model.rpn_loss.best_anchor)
    assert model.rpn_loss.batch_size == 64 and model.anchor_generator.num_anchors == 2


def test_the_whole_pipeline_runs_on_any_dataset(on_few_images, few_images, monkeypatch):
    nb = on_few_images
    model, history = nb.train_faster_rcnn(2, nb.RoIPool())
    assert list(history.columns()) == LOSSES and len(history["rpn_cls"]) == 2
    metrics, detections = nb.evaluate(model)
    assert 0 <= metrics["AP"] <= 1 and len(detections) == 4 and not model.training
    stages = nb.boxes_by_stage(model, few_images[0][0])
    assert len(stages["anchors"]) == 2304 and 0 < len(stages["proposals"]) <= 50
    assert len(stages["moved"]) == len(stages["proposals"])
    assert len(stages["final"]) == len(stages["labels"])
    for found in nb.scored_proposals(model, few_images.images):
        boxes, scores, labels = found.values()
        assert 0 < len(boxes) <= 50 and len(labels) == len(boxes) and not labels.any()
        assert (scores[:-1] >= scores[1:]).all()
    monkeypatch.setattr(nb, "model", model, raising=False)
    monkeypatch.setattr(nb, "LETTERS", ["C", "S", "T"], raising=False)
    figure = nb.draw_pipeline(proposals=3)
    assert len(figure.axes) == 3
    plt.close(figure)
    monkeypatch.setattr(nb, "HAS_SELECTIVE_SEARCH", False, raising=False)
    monkeypatch.setattr(nb, "search_regions", [APART] * 4, raising=False)
    for way in ("R-CNN", "Fast R-CNN", "Faster R-CNN"):
        seconds = nb.seconds_of(way, 1)
        assert len(seconds) == 3 and min(seconds) >= 0
        assert (seconds[0] > 0) == (way == "Faster R-CNN")


@pytest.mark.parametrize("threshold, best_anchor", [(0.4, "no"), (0.9, "no"), (0.9, "yes")])
def test_positives_are_drawn(on_few_images, few_images, monkeypatch, threshold, best_anchor):
    nb = on_few_images
    anchors = nb.AnchorGeneratorTorch((2, 4, 7), stride=8)((16, 16))
    monkeypatch.setattr(nb, "slim_anchors", anchors, raising=False)
    figure = nb.draw_positives(2, threshold, best_anchor)
    title = figure.axes[0].get_title()
    plt.close(figure)
    count = len(few_images.targets[2]["boxes"])
    assert f"of {count} objects served" in title
    assert best_anchor == "no" or f"{count} of {count}" in title


# ---------------------------------------------------------------- small things

TWO = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), "labels": torch.tensor([0, 1])}
NOTHING = {"boxes": NO_BOXES, "labels": NO_LABELS}
HALF = torch.tensor([[0.0, 0, 10, 5]])  # IoU of exactly 0.5 with the first of the two


def test_found_and_recall_by_hand(nb):
    hits = nb.found([HALF, NO_BOXES, HALF, NO_BOXES], [TWO, TWO, NOTHING, NOTHING])
    assert [hit.tolist() for hit in hits] == [[True, False], [False, False], [], []]
    assert nb.recall([HALF], [TWO]) == 0.5
    assert nb.recall([HALF], [TWO], iou=0.51) == 0.0
    assert nb.recall([NO_BOXES, TWO["boxes"]], [TWO, TWO]) == 0.5
    assert nb.recall([HALF, HALF], [NOTHING, TWO]) == 0.5  # no object, none missed


def test_the_first_regions(nb):
    regions = [random_boxes(20), NO_BOXES, random_boxes(2, 1)]
    plain = nb.first(regions, 5, shuffle=False)
    assert torch.equal(plain[0], regions[0][:5]) and torch.equal(plain[2], regions[2])
    mixed = nb.first(regions, 20, shuffle=True)
    assert not torch.equal(mixed[0], regions[0])
    assert torch.equal(mixed[0].unique(dim=0), regions[0].unique(dim=0))
    assert [len(r) for r in nb.first(regions, 5, shuffle=True)] == [5, 0, 2]
    again = nb.first(regions, 20, shuffle=True)
    assert all(torch.equal(a, b) for a, b in zip(mixed, again))


def test_best_overlap_takes_arrays_and_tensors(nb):
    objects = torch.cat([TWO["boxes"], torch.tensor([[90.0, 90, 99, 99]])])
    for anchors in (HALF, HALF.numpy(), HALF.double().numpy()):
        assert nb.best_overlap(anchors, objects).tolist() == [0.5, 0, 0]
    assert nb.best_overlap(HALF, NO_BOXES).shape == (0,)


def test_square_objects_lie_in_the_image(nb):
    boxes = nb.square_objects(30, 80, 200)
    w, h = sides_of(boxes)
    torch.testing.assert_close(w, h, atol=1e-3, rtol=0)
    assert boxes.shape == (200, 4) and boxes.min() >= 0 and boxes.max() <= 224
    assert 30 - 1e-3 <= w.min() < 33 and 77 < w.max() <= 80 + 1e-3


def test_kmeans_finds_the_sizes_that_there_are(nb):
    sizes = torch.tensor([[12.0, 30], [40, 20], [10, 10], [64, 64]])
    g = torch.Generator().manual_seed(0)
    jitter = 1 + 0.04 * (torch.rand(4, 50, 2, generator=g) - 0.5)
    corner = torch.rand(200, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + (sizes[:, None] * jitter).flatten(0, 1)], dim=1)
    templates = nb.kmeans_anchors(boxes, 4)
    np.testing.assert_allclose(templates[:, :2], -templates[:, 2:])
    found = np.stack(sides_of(templates), axis=1)
    np.testing.assert_allclose(found, sizes[[2, 0, 1, 3]], rtol=0.02)  # small to large
    np.testing.assert_array_equal(templates, nb.kmeans_anchors(boxes, 4))


@pytest.mark.parametrize("count", [1, 9])
def test_kmeans_gives_as_many_templates_as_asked(nb, count):
    templates = nb.kmeans_anchors(objects_inside(60), count)
    w, h = sides_of(templates)
    assert templates.shape == (count, 4) and (np.diff(w * h) >= 0).all() and w.min() > 0


def test_coverage_by_hand(nb):
    base = np.array([[-8.0, -8, 8, 8]])
    boxes = torch.tensor([[4.0, 12, 20, 28], [8, 8, 24, 24], [100, 100, 101, 101], [0, 0, 12, 12]])
    overlap = nb.coverage_by_size(base, boxes)
    assert overlap.shape == (4,)
    assert overlap.tolist() == pytest.approx([1, 144 / 368, 1 / 256, 144 / 256])
    assert nb.coverage_by_size(base, boxes, cells=4, stride=8)[2] == 0


def test_coverage_is_that_of_the_anchors(nb):
    layer, boxes = nb.AnchorGeneratorTorch((2, 4, 7), stride=8), objects_inside(30, size=128.0)
    overlap = nb.coverage_by_size(layer.base_anchors.numpy(), boxes)
    expected = reference.box_iou(boxes, layer((16, 16))).amax(dim=1)
    torch.testing.assert_close(overlap, expected, atol=1e-5, rtol=1e-4)


def test_positives_per_object_by_hand(nb):
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 6], [90, 90, 99, 99]])
    objects = [TWO["boxes"], NO_BOXES, TWO["boxes"][:1]]
    plain, with_best = (nb.AnchorTargets(best_anchor=flag) for flag in (False, True))
    assert nb.positives_per_object(plain, anchors, objects) == pytest.approx((4 / 3, 1 / 3))
    assert nb.positives_per_object(with_best, anchors, objects) == pytest.approx((5 / 3, 0))


def test_nameless_changes_labels_only(nb):
    detections = [TWO | {"scores": torch.tensor([0.2, 0.1])}, NOTHING]
    bare = nb.nameless(detections)
    assert [d["labels"].tolist() for d in bare] == [[0, 0], []]
    assert bare[0]["boxes"] is TWO["boxes"] and bare[0]["scores"].tolist() == pytest.approx(
        [0.2, 0.1]
    )
    assert TWO["labels"].tolist() == [0, 1]


def test_named_objects_by_hand(nb):
    def stage(boxes, labels):
        return {"final": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels).long()}

    both = [[0.0, 0, 10, 5], [20, 0, 30, 4]]  # IoU 0.5 and 0.4
    assert nb.named(TWO, stage(both, [0, 1])).tolist() == [True, False]
    assert nb.named(TWO, stage(both, [1, 1])).tolist() == [False, False]
    assert nb.named(TWO, stage([both[0]] * 2, [2, 0])).tolist() == [True, False]
    assert nb.named(TWO, stage([], [])).tolist() == [False, False]
    assert nb.named(NOTHING, stage(both, [0, 1])).shape == (0,)
    assert nb.named(NOTHING, stage([], [])).shape == (0,)


def test_gmacs_of_one_layer(nb):
    assert nb.gmacs(nn.Linear(300, 200), 7, 300) == pytest.approx(7 * 300 * 200 / 1e9)
    with torch.device("meta"):
        layer = nn.Conv2d(4, 8, 3, padding=1)
    assert nb.gmacs(layer, 1, 4, 5, 6) == pytest.approx(5 * 6 * 9 * 4 * 8 / 1e9)


# ---------------------------------------------------------------- the exercises


def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    for stub in (None, ...):
        assert "still to do" in nb.check_count(stub)
    assert nb.check_count((640 // 16) * (960 // 16) * 3 * 4).startswith("✓")
    written = {"template": "check_template", "label_anchors": "check_labels"}
    check_stubs_and_solutions(nb, written | {"reading_weights": "check_weights"})


@pytest.mark.parametrize("right", [28800, 28800.0, np.prod((40, 60, 3, 4))], ids=repr)
def test_check_count_takes_any_number(nb, right):
    assert nb.check_count(right).startswith("✓")


@pytest.mark.parametrize(
    "answer, says",
    [
        (2400, "number of cells"),
        (16800, "multiply"),
        (21600, "four aspect ratios"),
        (640 * 960 * 12, "per pixel"),
        (12, "number of templates"),
        (0, "0?"),
        (math.nan, "nan?"),
        (-28800, "-28800?"),
        ("28,800", "28,800?"),
        ((40, 60, 12), "Cells down"),
        ([], "Cells down"),
        (torch.zeros(2, 2), "Cells down"),
        (np.zeros(3), "Cells down"),
        (True, "Cells down"),
    ],
    ids=str,
)
def test_check_count_names_the_mistake(nb, answer, says):
    message = nb.check_count(answer)
    assert message.startswith("✗") and says in message


def template_with(width, height):
    """A template of `width` and `height`, functions of the side and the ratio."""
    return lambda scale, ratio, stride: tuple(f(scale * stride, ratio) for f in (width, height))


@pytest.mark.parametrize(
    "wrong, says",
    [
        (template_with(lambda s, r: s * r**0.5, lambda s, r: s / r**0.5), "swapped"),
        (lambda scale, ratio, stride: (scale / ratio**0.5, scale * ratio**0.5), "stride"),
        (template_with(lambda s, r: s, lambda s, r: s * r), "square root"),
        (template_with(lambda s, r: s / r, lambda s, r: s * r), "both sides"),
        (template_with(lambda s, r: s, lambda s, r: s), "expected 181.0 × 90.5"),
        (template_with(lambda s, r: math.nan, lambda s, r: math.nan), "expected"),
    ],
)
def test_check_template_names_the_mistake(nb, wrong, says):
    message = nb.check_template(wrong)
    assert message.startswith("✗") and says in message


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_check_template_takes_any_pair(nb, kind):
    assert nb.check_template(lambda *a: kind(nb.template_solution(*a))).startswith("✓")


@pytest.mark.parametrize(
    "answer", [181.0, (181.0,), (-90.5, -45.3, 90.5, 45.3), (181.0, 90.5, 2.0), (), "181"], ids=str
)
def test_check_template_names_an_answer_that_is_no_pair(nb, answer):
    assert nb.check_template(lambda *_: answer).startswith("✗")


@pytest.mark.parametrize(
    "labels, says",
    [
        ([1, -1, -1, 0, 1], "best anchor of the second object"),
        ([1, 1, 0, 0, 1], "ignored, not background"),
        ([1, 1, -1, 0, -1], "on top"),
        ([1, 0, 0, 0, 1], "two rules are missing"),
        ([1, 1, -1, -1, 1], "below 0.3"),
        ([0, 0, 0, 0, 0], "expected [1, 1, -1, 0, 1]"),
        ([True, True, False, False, True], "ignored, not background"),
        ([1, 1, -1, 0], "expected"),
        ([], "expected"),
        ([[1], [1], [-1], [0], [1]], "expected"),
        (1, "expected"),
    ],
    ids=str,
)
def test_check_labels_names_the_mistake(nb, labels, says):
    for answer in (labels, torch.tensor(labels)):
        message = nb.check_labels(lambda overlap, answer=answer: answer)
        assert message.startswith("✗") and says in message


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, torch.Tensor])
def test_check_labels_takes_lists_and_tensors(nb, kind):
    assert nb.check_labels(lambda overlap: kind([1, 1, -1, 0, 1])).startswith("✓")


def test_check_labels_knows_the_lessons_own_rule(nb):
    def with_rule(overlap, **options):
        rule = nb.AnchorTargets(**options)
        rule.compute_iou = lambda anchors, objects: overlap
        return rule.assign_anchors(overlap, overlap.T)

    assert nb.check_labels(lambda overlap: with_rule(overlap)[0]).startswith("✓")
    forgot = nb.check_labels(lambda overlap: with_rule(overlap, best_anchor=False)[0])
    assert "best anchor" in forgot
    assert nb.check_labels(with_rule).startswith("✗")  # labels and matches, both


def test_check_labels_names_an_answer_that_is_no_list_of_numbers(nb):
    assert nb.check_labels(lambda overlap: "1, 1, -1, 0, 1").startswith("✗")
    assert nb.check_labels(lambda overlap: ["object"] * 5).startswith("✗")


def weights_with(at=0.5, clamp=True, rounded=False):
    def reading_weights(x, cells):
        point = x - at
        point = np.round(point) if rounded else point
        point = np.clip(point, 0, cells - 1) if clamp else point
        return np.clip(1 - np.abs(point - np.arange(cells)), 0, None)

    return reading_weights


@pytest.mark.parametrize(
    "wrong, says",
    [
        (weights_with(at=0.0), "swapped, or the centres"),
        (lambda x, cells: np.zeros(4), "expected"),
        (lambda x, cells: [0, 0.25, 0.75, 0], "swapped, or the centres"),
        (weights_with(rounded=True), "nearest"),
        (weights_with(clamp=False), "add up to 1"),
        (lambda x, cells: [0, 1, 1, 0], "expected [0, 0.75, 0.25, 0]"),
        (lambda x, cells: [math.nan] * 4, "expected"),
        (lambda x, cells: [0.75, 0.25], "shape (2,)"),
        (lambda x, cells: [[0, 0.75, 0.25, 0]], "shape (1, 4)"),
        (lambda x, cells: 0.75, "shape ()"),
        (lambda x, cells: [], "shape (0,)"),
    ],
)
def test_check_weights_names_the_mistake(nb, wrong, says):
    message = nb.check_weights(wrong)
    assert message.startswith("✗") and says in message


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_check_weights_takes_lists_and_tensors(nb, kind):
    assert nb.check_weights(lambda *a: kind(nb.reading_weights_solution(*a))).startswith("✓")


def test_check_weights_names_an_answer_that_is_no_list_of_numbers(nb):
    assert nb.check_weights(lambda x, cells: "0, 0.75, 0.25, 0").startswith("✗")
    assert nb.check_weights(lambda x, cells: {1: 0.75, 2: 0.25}).startswith("✗")


def test_the_solution_reads_as_the_layer_does(nb):
    for x in (0.2, 0.5, 1.75, 3.0, 3.9):
        point = torch.tensor([x])
        (expected,) = nb.interpolation_matrix(point, point, 4, bins=1, samples=1)[:, 0]
        np.testing.assert_allclose(nb.reading_weights_solution(x, 4), expected, atol=1e-6)


def test_anchors_across_the_border_can_be_ignored(nb):
    anchors = nb.AnchorGeneratorTorch((2, 4), stride=8)((4, 6))  # some cross the border of 32 x 48
    inside = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2] <= 48) & (anchors[:, 3] <= 32)
    assert inside.any() and not inside.all()
    objects = torch.tensor([[4.0, 4, 20, 20]])
    plain, match = nb.AnchorTargets().assign_anchors(anchors, objects)
    labels, same = nb.AnchorTargets(image_size=(32, 48)).assign_anchors(anchors, objects)
    assert torch.equal(labels, torch.where(inside, plain, -1)) and torch.equal(match, same)
    none, _ = nb.AnchorTargets(image_size=(32, 48)).assign_anchors(anchors, torch.zeros(0, 4))
    assert torch.equal(none, torch.where(inside, 0, -1))


def test_clipped_anchors_stay_in_the_image(nb):
    clipped = nb.slim_parts(generator=nb.ClippedAnchors)["anchor_generator"]((16, 16))
    whole = nb.slim_parts()["anchor_generator"]((16, 16))
    assert torch.equal(clipped, whole.clamp(0, 128)) and not torch.equal(clipped, whole)
