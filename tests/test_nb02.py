"""The code of notebook 02 against its oracles, on random and on nasty input."""

import math
from types import SimpleNamespace

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
    notebook_code,
    random_boxes,
)
from torch import nn
from torchvision.ops import roi_pool

from helpers import boxes as reference
from helpers.shapes import ShapesDataset

LAYERS = ("RoIPooling", "VectorisedRoIPooling", "TorchvisionRoIPooling")
NO_BOXES = torch.zeros(0, 4)
NO_ROIS = torch.zeros(0, 5)
NOTHING = {"boxes": NO_BOXES, "labels": torch.zeros(0, dtype=torch.long)}
SQUARE = {"boxes": torch.tensor([[8.0, 8, 48, 48]]), "labels": torch.tensor([1])}
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def nb():
    with notebook_code("02_fast_rcnn", SEED=0, DEVICE=torch.device("cpu")) as module:
        yield module


def tiny_model(nb, **options):
    """A Fast R-CNN of three classes with 8 channels and 16 units."""
    slim = {"channels": 8, "hidden_dim": 16, "dropout": 0.0, "he_init": True}
    return nb.FastRCNN(3, nb.small_backbone(8), **(slim | options))


def one_hot_scores(columns, width=4, height=9.0):
    return height * F.one_hot(torch.tensor(columns), width).float()


# ---------------------------------------------------------------- backbone and input


@pytest.mark.parametrize("height, width", [(64, 64), (128, 64), (65, 79), (8, 8)])
def test_the_backbone_has_stride_8(nb, height, width):
    backbone = nb.small_backbone(5).eval()
    shape = backbone(torch.zeros(2, 3, height, width)).shape
    assert shape == (2, 5, math.ceil(height / 8), math.ceil(width / 8))
    convolutions = [layer for layer in backbone if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 6
    assert nb.small_backbone()(torch.zeros(2, 3, 32, 32)).shape[1] == 96


def test_the_input_is_about_minus_two_to_two(nb):
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    pixels = nb.to_input(images)
    expected = (images.double() - 127.5) / 63.75
    torch.testing.assert_close(pixels.double(), expected, atol=1e-5, rtol=0)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_warped_regions_are_crops_resized(nb):
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    regions = torch.tensor([[0.0, 0, 50, 40], [10, 5, 26, 21], [49, 39, 50, 40]])
    crops = nb.warped(image, regions, 16)
    assert crops.shape == (3, 3, 16, 16) and crops.dtype == torch.uint8
    assert torch.equal(crops[1], image[:, 5:21, 10:26])  # of the right size already
    assert torch.equal(crops[2], image[:, 39:, 49:].expand(3, 16, 16))


# ---------------------------------------------------------------- RoI pooling

AT = st.floats(-1.5, 2.5, width=32, allow_subnormal=False)  # in units of the image's side
SIDES = st.integers(1, 9)


@st.composite
def pooling_cases(draw):
    """Feature map, RoIs, output size and stride; boxes of every kind, also reversed ones."""
    images, height, width = draw(st.integers(1, 3)), draw(SIDES), draw(SIDES)
    stride = draw(st.sampled_from([1, 5, 8, 16, 32]))
    rows = draw(st.lists(st.tuples(st.integers(0, images - 1), AT, AT, AT, AT), max_size=6))
    rois = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    rois[:, 1:] *= stride * torch.tensor([width, height, width, height])
    if draw(st.booleans()):
        rois = rois.round()  # whole pixels, and halves of cells among them
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    feature_map = torch.randn(images, draw(st.integers(1, 3)), height, width, generator=generator)
    return feature_map, rois, (draw(st.integers(1, 8)), draw(st.integers(1, 8))), stride


@pytest.mark.parametrize("name", LAYERS)
@given(case=pooling_cases())
def test_pooling_is_torchvisions(nb, name, case):
    feature_map, rois, output_size, stride = case
    image_size = tuple(stride * side for side in feature_map.shape[2:])
    pooled = getattr(nb, name)(output_size)(feature_map, rois, image_size)
    expected = roi_pool(feature_map, rois, output_size, 1 / stride)
    assert pooled.shape == (len(rois), feature_map.shape[1], *output_size)
    assert torch.equal(pooled, expected)


NASTY_ROIS = NASTY_BOXES | {
    "reversed": [100.0, 90, 20, 10],
    "on halves": [8.0, 24, 40, 56],
    "on negative halves": [-8.0, -24, 40, 56],
    "a whole cell outside": [-24.0, -24, -8.5, -8.5],
}
# 319 / 16 is rounded to cell 20, and the map ends with cell 19: such a box reads nothing either.
READS_NOTHING = NOT_IN_THE_IMAGE | {"a whole cell outside", "the last pixel"}


@pytest.mark.parametrize("kind", NASTY_ROIS)
@pytest.mark.parametrize("name", LAYERS)
def test_pooling_of_nasty_boxes_on_a_wide_map(nb, name, kind):
    feature_map = torch.randn(2, 3, 8, 20) - 9  # all negative: a zero would be the largest
    rois = torch.tensor([[image, *NASTY_ROIS[kind]] for image in (1.0, 0.0)])
    pooled = getattr(nb, name)()(feature_map, rois, (128, 320))
    assert torch.equal(pooled, roi_pool(feature_map, rois, 7, 1 / 16))
    assert (pooled == 0).all() == (kind in READS_NOTHING)


@pytest.mark.parametrize("name", LAYERS)
def test_pooling_of_boxes_a_hair_from_half_a_cell(nb, name):
    feature_map = torch.arange(64.0).view(1, 1, 1, 64)
    halves = torch.arange(8.0, 300, 16)  # pixels; half a cell each
    for towards in (-math.inf, math.inf):
        left = torch.nextafter(halves, torch.tensor(towards))
        zeros = torch.zeros_like(left)
        rois = torch.stack([zeros, left, zeros, left + 37, zeros + 16], dim=1)
        pooled = getattr(nb, name)((1, 7))(feature_map, rois, (16, 1024))
        assert torch.equal(pooled, roi_pool(feature_map, rois, (1, 7), 1 / 16))


@pytest.mark.parametrize("name", LAYERS)
def test_pooling_of_no_boxes(nb, name):
    pooled = getattr(nb, name)((3, 5))(torch.randn(1, 4, 6, 7), NO_ROIS, (48, 56))
    assert pooled.shape == (0, 4, 3, 5)


@pytest.mark.parametrize("shape", [(5,), (4,), (2, 4), (0, 4), (2, 6), (1, 2, 5)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_rois_of_another_shape_are_named(nb, name, shape):
    with pytest.raises(ValueError, match=r"^rois must have shape \(R, 5\), got \("):
        getattr(nb, name)()(torch.zeros(1, 2, 8, 8), torch.zeros(shape), (64, 64))


@pytest.mark.parametrize("name", LAYERS)
def test_pooling_reads_channels_last(nb, name):
    feature_map = torch.randn(2, 8, 6, 9)
    rois = torch.tensor([[0, 3.0, 4, 60, 40], [1, 20, 1, 70, 45]])
    layer = getattr(nb, name)()
    last = feature_map.contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(last, rois, (48, 72)), layer(feature_map, rois, (48, 72)))


def test_pooling_with_another_scale_down_than_across(nb):
    feature_map = torch.randn(1, 2, 9, 10)
    rois = torch.cat([torch.zeros(40, 1), random_boxes(40)], dim=1)
    layers = [getattr(nb, name)((4, 3)) for name in LAYERS]
    loop, masks, compiled = (layer(feature_map, rois, (65, 79)) for layer in layers)
    assert torch.equal(loop, masks) and torch.equal(loop, compiled)
    in_cells = rois * torch.tensor([1, 10 / 79, 9 / 65, 10 / 79, 9 / 65])
    assert torch.equal(loop, roi_pool(feature_map, in_cells, (4, 3), 1.0))


@pytest.mark.parametrize("rois_dtype", [torch.float32, torch.float64, torch.int64, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_pooling_of_any_precision_is_that_of_float32(nb, dtype, rois_dtype):
    feature_map = torch.randn(2, 3, 12, 20).to(dtype)
    rois = torch.cat([torch.randint(2, (30, 1)), random_boxes(30, size=90).round()], dim=1)
    for name in LAYERS:
        pooled = getattr(nb, name)()(feature_map, rois.to(rois_dtype), (96, 160))
        expected = roi_pool(feature_map.float(), rois, 7, 1 / 8)
        assert pooled.dtype == dtype and torch.equal(pooled, expected.to(dtype))


def test_gradients_of_pooling_are_torchvisions(nb):
    rois = torch.cat([torch.randint(2, (12, 1)), random_boxes(12, size=90) - 20], dim=1)
    gradients = []
    for name in LAYERS:
        torch.manual_seed(3)
        feature_map = torch.randn(2, 3, 8, 8, requires_grad=True)
        pooled = getattr(nb, name)()(feature_map, rois, (64, 64))
        (pooled * torch.linspace(0, 1, pooled.numel()).view_as(pooled)).sum().backward()
        gradients.append(feature_map.grad)
    for gradient in gradients[:2]:
        torch.testing.assert_close(gradient, gradients[2])


def test_rounding_is_c_rounding(nb):
    x = torch.arange(-40, 41) / 8
    expected = [math.copysign(math.floor(abs(v) + 0.5), v) for v in x.tolist()]
    assert nb.round_half_up(x).tolist() == expected


@given(first=st.integers(-20, 20), count=st.integers(1, 40), cells=SIDES, bins=st.integers(1, 14))
def test_the_papers_bins_are_the_formulas(nb, first, count, cells, bins):
    low, high = torch.tensor([float(first)]), torch.tensor([first + count - 1.0])
    start, end = nb.paper_edges(low, high, 1.0, 10**6, bins)
    if first >= 0 and (count, bins) != (29, 11):  # 11 * (29 / 11) > 29 in 32 bits
        exact = [(k * count // bins, -(-(k + 1) * count // bins)) for k in range(bins)]
        assert list(zip((start - first)[0].tolist(), (end - first)[0].tolist())) == exact
    start, end = nb.paper_edges(low, high, 1.0, cells, bins)
    read = {c for a, b in zip(start[0].tolist(), end[0].tolist()) for c in range(a, b)}
    assert read >= set(range(first, first + count)) & set(range(cells))  # no cell is missed
    assert read <= set(range(cells))


@given(
    low=st.lists(st.floats(-100, 500, width=32), min_size=1, max_size=8),
    length=st.floats(0, 400, width=32),
    cells=st.integers(1, 30),
    bins=st.integers(1, 14),
)
def test_the_texts_bins_are_never_empty(nb, low, length, cells, bins):
    low = torch.tensor(low)
    start, end = nb.text_edges(low, low + length, 1 / 16, cells, bins)
    assert start.shape == end.shape == (len(low), bins)
    assert (start >= 0).all() and (start < end).all() and (end <= cells).all()


def test_the_texts_rule_truncates(nb):
    low, high = torch.tensor([50.0]), torch.tensor([180.0])  # cells 3.1 to 11.2
    start, end = nb.text_edges(low, high, 1 / 16, 14, 4)
    assert start.tolist() == [[3, 5, 7, 9]] and end.tolist() == [[5, 7, 9, 11]]
    start, end = nb.paper_edges(low, high, 1 / 16, 14, 3)
    assert start.tolist() == [[3, 6, 9]] and end.tolist() == [[6, 9, 12]]


def test_masked_max_is_a_loop(nb):
    values = torch.randn(4, 2, 3, 6)
    inside = torch.rand(4, 5, 6) < 0.4
    inside[0, 0] = False
    largest = nb.masked_max(values, inside)
    assert largest.shape == (4, 2, 3, 5)
    for r in range(4):
        for b in range(5):
            chosen = values[r][:, :, inside[r, b]]
            expected = chosen.amax(dim=2) if chosen.numel() else torch.tensor(-torch.inf)
            assert (largest[r, :, :, b] == expected).all()


def test_random_rois_belong_to_their_images(nb):
    for images in (1, 2, 5):
        rois = nb.random_rois(50, images)
        assert rois.shape == (50, 5)
        assert set(rois[:, 0].tolist()) <= set(range(images))


@pytest.mark.parametrize(
    "box, empty, text, authors",
    [
        ([0.0, 0, 112, 112], 0, 49, 64),  # a cell per bin; the authors' rule adds one each way
        ([0.0, 0, 16, 112], 42, 7, 16),  # one column: one of seven bins would hold it
        ([0.0, 0, 1, 1], 48, 1, 1),
        ([10.0, 10, 60, 60], 49 - 9, 9, 16),
        ([200.0, 200, 224, 224], 49 - 4, 4, 1),  # cells 12.5 to 14: 12 and 13, or 13 alone
    ],
)
def test_cells_that_bins_read_by_hand(nb, box, empty, text, authors):
    assert nb.empty_without_guard(box) == empty
    assert nb.cells_read(box, nb.text_edges) == text
    assert nb.cells_read(box, nb.paper_edges) == authors


ODD_ROIS = [[-40.0, -40, 60, 60], [300.0, 300, 400, 400], [64.0, 64, 64, 64], [-9.0, 0, 999, 3]]


@pytest.mark.parametrize("roi", ODD_ROIS, ids=str)
@pytest.mark.parametrize("rule", ["paper_edges", "text_edges"])
def test_the_picture_of_pooling_is_drawn(nb, roi, rule):
    figure = nb.show_roi_pooling(torch.randn(1, 3, 14, 14), roi, getattr(nb, rule))
    figure.canvas.draw()
    plt.close(figure)
    assert plt.get_fignums() == []


# ---------------------------------------------------------------- the head


def test_the_heads_default_sizes_are_the_papers(nb):
    with torch.device("meta"):
        head = nb.FastRCNNHead(2048 * 49, num_classes=20)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "fc6.weight": (4096, 2048 * 49),
        "fc6.bias": (4096,),
        "fc7.weight": (4096, 4096),
        "fc7.bias": (4096,),
        "cls_score.weight": (21, 4096),
        "cls_score.bias": (21,),
        "bbox_pred.weight": (84, 4096),
        "bbox_pred.bias": (84,),
    }
    assert head.dropout.p == 0.5
    scores, deltas = head(torch.empty(3, 2048 * 49, device="meta"))
    assert scores.shape == (3, 21) and deltas.shape == (3, 84)


@pytest.mark.parametrize("he_init", [False, True])
def test_the_heads_weights_at_the_start(nb, he_init):
    head = nb.FastRCNNHead(800, 5, hidden_dim=300, he_init=he_init)
    expected = {"fc6": math.sqrt(2 / 800), "fc7": math.sqrt(2 / 300)} if he_init else {}
    for name in ("fc6", "fc7", "cls_score", "bbox_pred"):
        layer = getattr(head, name)
        assert layer.weight.std().item() == pytest.approx(expected.get(name, 0.01), rel=0.06)
        assert abs(layer.weight.mean().item()) < 0.1 * layer.weight.std().item()
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_head_answers_every_region(nb, count):
    scores, deltas = nb.FastRCNNHead(12, 2, hidden_dim=8)(torch.rand(count, 12))
    assert scores.shape == (count, 3) and deltas.shape == (count, 12)


def test_dropout_works_in_training_only(nb):
    head, features = nb.FastRCNNHead(200, 3, hidden_dim=64, he_init=True), torch.rand(4, 200)
    asleep = [head.eval()(features) for _ in range(2)]
    assert torch.equal(asleep[0][0], asleep[1][0]) and torch.equal(asleep[0][1], asleep[1][1])
    awake = [head.train()(features) for _ in range(2)]
    assert not torch.equal(awake[0][0], awake[1][0])
    without = nb.FastRCNNHead(200, 3, hidden_dim=64, dropout=0.0).train()
    assert torch.equal(without(features)[0], without(features)[0])


@pytest.mark.parametrize("layer", ["fc7", "cls_score", "bbox_pred"])
def test_dropout_lies_behind_both_hidden_layers(nb, layer):
    head, seen = nb.FastRCNNHead(30, 3, hidden_dim=20, dropout=1.0), []
    nn.init.ones_(head.fc6.bias)
    nn.init.ones_(head.fc7.bias)
    getattr(head, layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head.train()(torch.rand(4, 30))
    head.eval()(torch.rand(4, 30))
    assert (seen[0] == 0).all() and (seen[1] > 0).any()


def test_the_head_is_two_hidden_layers(nb):
    head, x = nb.FastRCNNHead(30, 3, hidden_dim=20, he_init=True).eval(), torch.randn(5, 30)
    hidden = (head.fc7.weight @ (head.fc6.weight @ x.T).clamp(min=0)).clamp(min=0)
    scores, deltas = head(x)
    torch.testing.assert_close(scores, (head.cls_score.weight @ hidden).T)
    torch.testing.assert_close(deltas, (head.bbox_pred.weight @ hidden).T)


# ---------------------------------------------------------------- the detector


def test_the_default_detector_is_resnet50(nb):
    with torch.device("meta"):
        model = nb.FastRCNN(20)
        classifier = torchvision.models.resnet50(weights=None)
        feature_map = model.backbone(torch.empty(1, 3, 224, 224))
        scores, deltas = model(torch.empty(2, 3, 224, 320), torch.empty(6, 5))
    assert feature_map.shape == (1, 2048, 7, 7)
    assert scores.shape == (6, 21) and deltas.shape == (6, 84)
    ours, theirs, fc = (
        sum(p.numel() for p in m.parameters()) for m in (model.backbone, classifier, classifier.fc)
    )
    assert ours == theirs - fc


def test_forward_is_backbone_pooling_head(nb):
    model = tiny_model(nb, output_size=(3, 2)).eval()
    images = torch.randn(2, 3, 64, 96)
    rois = torch.cat([torch.randint(2, (9, 1)), random_boxes(9)], dim=1)
    scores, deltas = model(images, rois)
    pooled = roi_pool(model.backbone(images), rois, (3, 2), 1 / 8)
    expected = model.head(pooled.flatten(1))
    assert torch.equal(scores, expected[0]) and torch.equal(deltas, expected[1])


@pytest.mark.parametrize("per_image", [0, 1, 400])
@pytest.mark.parametrize("images", [1, 5])
def test_one_pass_per_image_however_many_regions(nb, images, per_image):
    calls = []
    model = tiny_model(nb)
    hook = model.backbone.register_forward_hook(lambda *_: calls.append(1))
    rois = [torch.full((per_image, 5), float(i)) for i in range(images)]
    pixels = torch.rand(images, 3, 64, 64)
    assert nb.passes_of(model, pixels, torch.cat(rois)) == images
    assert len(calls) == 1
    hook.remove()
    assert not model.backbone._forward_hooks  # passes_of took its own away


@pytest.mark.parametrize("freeze", [0, 1, 4, 1000])
def test_freeze_stops_the_first_parameters(nb, freeze):
    model = tiny_model(nb, freeze=freeze)
    frozen = [not p.requires_grad for p in model.backbone.parameters()]
    assert frozen == [i < freeze for i in range(len(frozen))]
    assert all(p.requires_grad for p in model.head.parameters())
    before = [p.clone() for p in model.backbone.parameters()]
    trainer = nb.FastRCNNTrainer(model, lr=0.1)
    trainer.train_epoch(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), [SQUARE] * 2)
    moved = [not torch.equal(a, b) for a, b in zip(before, model.backbone.parameters())]
    assert moved == [not f for f in frozen]


def test_delta_weights_travel_with_the_model(nb):
    model = tiny_model(nb, delta_weights=WEIGHTS)
    assert model.state_dict()["delta_weights"].tolist() == list(WEIGHTS)
    assert tiny_model(nb).delta_weights.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_left_on_the_cpu(nb, monkeypatch, pretended_gpu, name, training):
    model = tiny_model(nb, dropout=0.5).train(training)
    model.roi_pooling = getattr(nb, name)()
    model = model.to("cuda")
    monkeypatch.setattr(nb, "DEVICE", torch.device("cuda"))
    images = nb.to_input(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    rois = torch.tensor([[0.0, 1, 2, 40, 50]] * 5, device="cuda")
    scores, deltas = model(images, rois)
    labels = torch.arange(5, device="cuda") % 4
    goals = torch.zeros(5, 4, device="cuda")
    losses = nb.FastRCNNLoss(3)(scores, deltas, labels, goals, goals)
    assert {t.device.type for t in (images, scores, deltas, *losses)} == {"cuda"}


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 2.0, 7.5])
def test_smooth_l1_is_torchs(nb, beta):
    a, b = 3 * torch.randn(50, 4), torch.randn(50, 4)
    a[0] = b[0]
    a[1], b[1] = beta, 0.0  # where the two pieces meet
    ours = nb.smooth_l1_loss(a, b, beta)
    torch.testing.assert_close(ours, F.smooth_l1_loss(a, b, beta=beta, reduction="sum"))
    torch.testing.assert_close(beta * ours, F.huber_loss(a, b, delta=beta, reduction="sum"))
    assert nb.smooth_l1_loss(NO_BOXES, NO_BOXES, beta) == 0


def test_smooth_l1_without_a_quadratic_piece_is_l1(nb):
    gradients = []
    for loss in (nb.smooth_l1_loss, lambda a, b, beta: F.l1_loss(a, b, reduction="sum")):
        x = torch.tensor([0.0, 1, -2, 1e-30], requires_grad=True)
        loss(x, torch.zeros(4), 0.0).backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("beta", [-0.1, -math.inf, math.nan])
def test_smooth_l1_refuses_a_negative_beta(nb, beta):
    with pytest.raises(ValueError, match="^beta must be 0 or more, got "):
        nb.smooth_l1_loss(torch.zeros(2), torch.zeros(2), beta)


def test_smooth_l1_has_torchs_gradient(nb):
    gradients = []
    for loss in (nb.smooth_l1_loss, lambda a, b: F.smooth_l1_loss(a, b, reduction="sum")):
        x = torch.linspace(-3, 3, 61, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(x, torch.zeros(61)), x)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def loss_case(count, num_classes, seed=0):
    """Scores, deltas, labels, targets and weights of `count` regions."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, num_classes + 1, generator=g, requires_grad=True)
    deltas = 2 * torch.randn(count, 4 * (num_classes + 1), generator=g)
    labels = torch.randint(num_classes + 1, (count,), generator=g)
    inside = (labels > 0).float()[:, None].expand(count, 4)
    goals = torch.randn(count, 4, generator=g)
    return scores, deltas.requires_grad_(), labels, goals, inside


def loss_by_hand(scores, deltas, labels, goals, lambda_bbox):
    cls_loss, bbox_loss = 0.0, 0.0
    for p, t, c, v in zip(scores.tolist(), deltas.tolist(), labels.tolist(), goals.tolist()):
        cls_loss += math.log(sum(map(math.exp, p))) - p[c]
        for delta, goal in zip(t[4 * c : 4 * c + 4], v):
            x = abs(delta - goal)
            bbox_loss += (x * x / 2 if x < 1 else x - 0.5) if c else 0.0
    n = len(labels)
    return cls_loss / n + lambda_bbox * bbox_loss / n, cls_loss / n, bbox_loss / n


@pytest.mark.parametrize("num_classes", [1, 3, 20])
@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize("lambda_bbox", [0.0, 1.0, 2.5])
def test_the_loss_is_the_formula(nb, count, num_classes, lambda_bbox):
    for seed in range(5):
        case = loss_case(count, num_classes, seed)
        losses = nb.FastRCNNLoss(num_classes, lambda_bbox)(*case)
        by_hand = loss_by_hand(*case[:4], lambda_bbox)
        assert [loss.item() for loss in losses] == pytest.approx(by_hand, rel=1e-5)


def test_only_the_true_class_of_foreground_learns_its_box(nb):
    scores, deltas, labels, goals, inside = loss_case(30, 3)
    nb.FastRCNNLoss(3)(scores, deltas, labels, goals, inside)[2].backward()
    touched = (deltas.grad.view(30, 4, 4) != 0).all(dim=2)
    reached = (deltas.grad.view(30, 4, 4) != 0).any(dim=2)
    own = F.one_hot(labels, 4).bool() & (labels > 0)[:, None]
    assert torch.equal(touched, own) and torch.equal(reached, own)
    assert scores.grad is None


def test_background_only_has_no_box_loss(nb):
    scores, deltas, _, goals, _ = loss_case(6, 3)
    labels = torch.zeros(6, dtype=torch.long)
    total, cls_loss, bbox_loss = nb.FastRCNNLoss(3)(scores, deltas, labels, goals, NO_BOXES.sum())
    assert bbox_loss == 0 and total == cls_loss
    torch.testing.assert_close(cls_loss, F.cross_entropy(scores, labels))
    total.backward()
    assert (deltas.grad == 0).all()


def test_no_region_gives_a_loss_of_zero(nb):
    scores, deltas, labels, goals, inside = loss_case(0, 3)
    losses = nb.FastRCNNLoss(3)(scores, deltas, labels, goals, inside)
    assert [loss.item() for loss in losses] == [0.0, 0.0, 0.0]
    losses[0].backward()  # a training step must survive it
    assert deltas.grad.shape == (0, 16)


@pytest.mark.parametrize("labels", [[4, 0], [-1, 2], [0, 100]])
def test_labels_out_of_range_are_named(nb, labels):
    scores, deltas, _, goals, inside = loss_case(2, 3)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3, got \["):
        nb.FastRCNNLoss(3)(scores, deltas, torch.tensor(labels), goals, inside)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_type_give_the_same_loss(nb, dtype):
    scores, deltas, _, goals, inside = loss_case(4, 3)
    labels = torch.tensor([3, 0, 1, 2])
    losses = [
        nb.FastRCNNLoss(3)(scores, deltas, c, goals, inside) for c in (labels, labels.to(dtype))
    ]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="^labels must be integers, got torch.float32"):
        nb.FastRCNNLoss(3)(scores, deltas, labels.float(), goals, inside)


# ---------------------------------------------------------------- targets


@given(seed=st.integers(0, 10**6), count=st.integers(0, 20))
def test_box_targets_are_lecture_00s(nb, seed, count):
    proposals, truth = random_boxes(count, seed), random_boxes(count, seed + 1)
    deltas = nb.compute_bbox_targets(proposals, truth)
    assert deltas.shape == (count, 4)
    torch.testing.assert_close(
        deltas, reference.encode_boxes(truth, proposals), atol=1e-4, rtol=1e-4
    )
    decoded = reference.decode_boxes(deltas, proposals)
    wild = deltas[:, 2:].amax(dim=1) > reference.MAX_SIZE_DELTA  # the decoder caps these
    torch.testing.assert_close(decoded[~wild], truth[~wild], atol=2e-3, rtol=1e-4)


def test_box_targets_by_hand(nb):
    proposals = torch.tensor([[10.0, 20, 30, 60], [0, 0, 8, 8]])
    truth = torch.tensor([[20.0, 20, 60, 40], [0, 0, 8, 8]])
    expected = [[1.0, -0.25, math.log(2), -math.log(2)], [0.0, 0, 0, 0]]
    torch.testing.assert_close(
        nb.compute_bbox_targets(proposals, truth), torch.tensor(expected, dtype=torch.float32)
    )


COORDINATES = st.integers(0, 12).map(float) | st.floats(0, 12, width=16)


@st.composite
def box_lists(draw):
    """Boxes (N, 4) float32, some without area."""
    rows = draw(st.lists(st.tuples(*[COORDINATES] * 4), max_size=6))
    corners = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 2)
    flat = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    sides = flat[:, 2:] - flat[:, :2]
    return flat[((sides == 0) | (sides > 0.01)).all(1)]


@given(a=box_lists(), b=box_lists())
def test_iou_is_torchvisions(nb, a, b):
    ious = nb.RegionTargets.compute_iou(a, b)
    assert ious.shape == (len(a), len(b)) and torch.isfinite(ious).all()
    expected = torchvision.ops.box_iou(a, b).nan_to_num(0)  # 0 / 0 for two boxes without area
    torch.testing.assert_close(ious, expected)


FOREGROUND = {
    "mixed": [True, False] * 50,
    "few": [True] * 2 + [False] * 98,
    "only foreground": [True] * 30,
    "only background": [False] * 30,
    "one region": [True],
    "none": [],
}


@pytest.mark.parametrize("foreground", FOREGROUND.values(), ids=FOREGROUND)
@pytest.mark.parametrize("rois, fraction", [(16, 0.25), (64, 0.25), (10, 0.5), (4, 0.0), (1, 1.0)])
def test_a_sample_has_at_most_its_share_of_foreground(nb, foreground, rois, fraction):
    foreground = torch.tensor(foreground, dtype=torch.bool)
    targets = nb.RegionTargets(torch.ones(4), rois, fraction)
    positives, negatives = int(foreground.sum()), int((~foreground).sum())
    for _ in range(5):
        chosen = targets.sample(foreground)
        assert len(chosen.unique()) == len(chosen) and chosen.dtype == torch.int64
        taken = int(foreground[chosen].sum())
        assert taken == min(int(rois * fraction), positives)
        assert len(chosen) - taken == min(rois - taken, negatives)


def test_a_sample_is_random_and_none_means_all(nb):
    foreground = torch.arange(100) < 30
    drawn = [nb.RegionTargets(torch.ones(4), 16).sample(foreground) for _ in range(40)]
    assert len(torch.cat(drawn).unique()) > 80
    everything = nb.RegionTargets(torch.ones(4)).sample(foreground)
    assert everything.tolist() == list(range(100))


def targets_of(nb, regions, target, weights=(1.0, 1.0, 1.0, 1.0), **options):
    maker = nb.BatchTargets(torch.tensor(weights), **options)
    return maker.prepare_training_data([regions], [target])


def test_training_data_by_hand(nb):
    regions = [torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50], [21, 20, 31, 30]]), NO_BOXES]
    regions += [torch.tensor([[5.0, 5, 9, 9]])]
    objects = {
        "boxes": torch.tensor([[20.0, 20, 30, 30], [0, 0, 10, 12]]),
        "labels": torch.tensor([0, 2]),
    }
    maker = nb.BatchTargets(torch.tensor(WEIGHTS))
    rois, labels, goals, inside = maker.prepare_training_data(regions, [objects, SQUARE, NOTHING])
    assert rois[:, 0].tolist() == [0, 0, 0, 2]
    assert torch.equal(rois[:, 1:], torch.cat(regions))
    assert labels.tolist() == [3, 0, 1, 0] and labels.dtype == torch.int64
    assert inside.tolist() == [[1.0] * 4, [0.0] * 4, [1.0] * 4, [0.0] * 4]
    expected = [[0, 10 * 0.1, 0, 5 * math.log(1.2)], [0] * 4, [10 * -0.1, 0, 0, 0], [0] * 4]
    torch.testing.assert_close(goals, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_training_data_is_a_loop_over_regions(nb, seed):
    labels = torch.tensor([2, 0, 1])
    targets = [{"boxes": random_boxes(3, 10 * seed + i, 30), "labels": labels} for i in range(2)]
    shifts = 4 * torch.randn(2, 20, 3, 1).expand(2, 20, 3, 4)
    regions = [(t["boxes"] + shift).flatten(0, 1) for t, shift in zip(targets, shifts)]
    rois, labels, goals, inside = nb.BatchTargets(torch.tensor(WEIGHTS)).prepare_training_data(
        regions, targets
    )
    for roi, label, goal, weight in zip(rois, labels, goals, inside):
        target, box = targets[int(roi[0])], roi[None, 1:]
        ious = reference.box_iou(box, target["boxes"])[0]
        best = int(ious.argmax())
        is_object = bool(ious[best] >= 0.5)
        assert label == (target["labels"][best] + 1 if is_object else 0)
        assert weight.tolist() == [float(is_object)] * 4
        deltas = reference.encode_boxes(target["boxes"][best : best + 1], box, WEIGHTS)[0]
        torch.testing.assert_close(goal, deltas * is_object, atol=1e-4, rtol=1e-4)
    assert 0 < int((labels > 0).sum()) < len(labels)


@pytest.mark.parametrize("labels", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("boxes", [torch.float64, torch.float16, torch.int32])
def test_training_data_of_any_type_are_the_same(nb, boxes, labels):
    objects = torch.tensor([[0, 0, 512, 400], [600, 8, 900, 508], [4, 4, 12, 20]])  # exact in half
    regions = torch.cat([objects, objects + 4]).float()
    target = {"boxes": objects.float(), "labels": torch.tensor([0, 2, 1])}
    expected = targets_of(nb, regions, target)
    odd = {"boxes": objects.to(boxes), "labels": target["labels"].to(labels)}
    for ours, theirs in zip(targets_of(nb, regions.to(boxes), odd), expected, strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert (expected[1] > 0).sum() == 5
    overlaps = nb.RegionTargets.compute_iou(regions.to(boxes), objects.to(boxes))
    torch.testing.assert_close(overlaps.float(), reference.box_iou(regions, objects.float()))


@pytest.mark.parametrize("box", [[20.0, 4, 8, 20], [4.0, 4, math.nan, 20], [4.0, 4, math.inf, 20]])
def test_a_training_step_refuses_boxes_that_are_none(nb, box):
    trainer, images = nb.FastRCNNTrainer(tiny_model(nb)), uint8_images(2)
    wrong = torch.tensor([box])
    with pytest.raises(ValueError, match=r"^targets\[1\]\['boxes'\] must "):
        trainer.train_epoch(images, [SQUARE, SQUARE | {"boxes": wrong}])
    with pytest.raises(ValueError, match=r"^proposals\[1\] must "):
        trainer.train_epoch(images, [SQUARE, SQUARE], [SQUARE["boxes"], wrong])
    with pytest.raises(ValueError, match=r"^proposals\[1\] must "):
        nb.detect(trainer.model, images, [SQUARE["boxes"], wrong])


@pytest.mark.parametrize("height, label", [(20.0, 2), (20.5, 0), (19.5, 2)])
def test_an_overlap_of_exactly_one_half_is_foreground(nb, height, label):
    target = {"boxes": torch.tensor([[0.0, 0, 10, height]]), "labels": torch.tensor([1])}
    regions = torch.tensor([[0.0, 0, 10, 10]])
    assert targets_of(nb, regions, target)[1].tolist() == [label]
    assert targets_of(nb, regions, target, iou=0.3)[1].tolist() == [2]


@pytest.mark.parametrize("rois_per_image", [None, 8])
@pytest.mark.parametrize("regions", [NO_BOXES, random_boxes(3)], ids=["no regions", "regions"])
@pytest.mark.parametrize("target", [NOTHING, SQUARE], ids=["no objects", "objects"])
def test_training_data_of_little(nb, rois_per_image, regions, target):
    rois, labels, goals, inside = targets_of(nb, regions, target, rois_per_image=rois_per_image)
    n = len(regions)
    assert rois.shape == (n, 5) and goals.shape == inside.shape == (n, 4)
    assert labels.shape == (n,) and labels.dtype == torch.int64
    assert len(target["boxes"]) or not (labels.any() or goals.any() or inside.any())


def test_targets_of_regions_and_objects_without_area_are_finite(nb):
    flat = torch.tensor([[5.0, 5, 5, 5], [3, 3, 9, 3], [8, 8, 48, 48]])
    target = {"boxes": flat, "labels": torch.tensor([0, 1, 2])}
    _, labels, goals, _ = targets_of(nb, flat, target)
    assert labels.tolist() == [0, 0, 3]
    assert goals.tolist() == [[0.0] * 4] * 3


def test_a_sampled_batch_keeps_rows_together(nb):
    regions = torch.cat([SQUARE["boxes"].expand(30, 4), random_boxes(70) + 100])
    rois, labels, goals, inside = targets_of(nb, regions, SQUARE, rois_per_image=16)
    assert len(rois) == 16 and int((labels > 0).sum()) == 4
    assert torch.equal((rois[:, 1:] == SQUARE["boxes"]).all(dim=1), labels > 0)
    assert torch.equal(inside[:, 0] > 0, labels > 0)


def test_lists_of_other_lengths_are_refused(nb):
    maker = nb.BatchTargets(torch.ones(4))
    for regions, targets in ((2, 1), (1, 2), (0, 1)):
        with pytest.raises(ValueError, match=f"{regions} lists of proposals for {targets} images"):
            maker.prepare_training_data([NO_BOXES] * regions, [SQUARE] * targets)


# ---------------------------------------------------------------- proposals


@given(
    height=st.integers(20, 300), width=st.integers(20, 300), seed=st.integers(0, 1000)
)  # 20 pixels: the smallest image
def test_random_proposals_are_inside_the_image(nb, height, width, seed):
    boxes = nb.SimplifiedProposalGenerator(60, seed=seed).generate_proposals(height, width)
    assert boxes.shape == (60, 4) and boxes.dtype == torch.float32
    assert torch.equal(boxes, boxes.round())
    x1, y1, x2, y2 = boxes.T
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= width).all() and (y2 <= height).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides >= 20).all() and (sides <= 100).all()


def test_random_proposals_reach_every_size_and_border(nb):
    boxes = nb.SimplifiedProposalGenerator(4000).generate_proposals(150, 224)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.amin(0).tolist() == [20, 20] and sides.amax(0).tolist() == [100, 100]
    assert boxes.amin(0).tolist()[:2] == [0, 0] and boxes.amax(0).tolist()[2:] == [224, 150]
    assert boxes[:, 0].max() == 204 and boxes[:, 1].max() == 130


def test_random_proposals_repeat_with_the_seed(nb):
    def drawn(seed):
        generator = nb.SimplifiedProposalGenerator(30, seed=seed)
        return torch.stack([generator.generate_proposals(64, 96) for _ in range(2)])

    torch.manual_seed(1)
    first = drawn(5)
    torch.manual_seed(2)  # the global stream plays no part
    assert torch.equal(first, drawn(5)) and not torch.equal(first, drawn(6))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("height, width", [(19, 64), (64, 19), (1, 1), (0, 64)])
def test_an_image_too_small_for_random_proposals_is_named(nb, height, width):
    with pytest.raises(ValueError, match="20 pixels or more, got"):
        nb.SimplifiedProposalGenerator().generate_proposals(height, width)


def test_random_proposals_of_the_smallest_image(nb):
    boxes = nb.SimplifiedProposalGenerator(9).generate_proposals(20, 20)
    assert boxes.tolist() == [[0.0, 0, 20, 20]] * 9
    assert nb.SimplifiedProposalGenerator(0).generate_proposals(64, 64).shape == (0, 4)
    other = nb.SimplifiedProposalGenerator(50, smallest=1, largest=3).generate_proposals(1, 9)
    assert (other[:, 2] - other[:, 0] <= 3).all() and (other[:, 3] == 1).all()


def test_random_regions_differ_from_image_to_image(nb):
    regions = nb.random_regions(7, 3)
    assert [r.shape for r in regions] == [(7, 4)] * 3
    assert not torch.equal(regions[0], regions[1])
    (small,) = nb.random_regions(50, 1, smallest=8, largest=9)
    assert set((small[:, 2:] - small[:, :2]).flatten().tolist()) == {8, 9}
    again = nb.random_regions(7, 3)
    assert all(torch.equal(a, b) for a, b in zip(regions, again))


TWO = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), "labels": torch.tensor([0, 1])}


def test_recall_by_hand(nb):
    half = torch.tensor([[0.0, 0, 10, 5]])  # IoU of exactly 0.5
    assert nb.recall([half], [TWO]) == 0.5
    assert nb.recall([half], [TWO], iou=0.51) == 0.0
    assert nb.recall([TWO["boxes"]], [TWO]) == 1.0
    assert nb.recall([half, TWO["boxes"]], [TWO, TWO]) == 0.75
    assert nb.recall([half, half], [NOTHING, TWO]) == 0.5  # no object, none missed


def test_recall_without_regions(nb):
    assert nb.recall([NO_BOXES], [TWO]) == 0.0
    assert nb.recall([NO_BOXES, TWO["boxes"]], [TWO, TWO]) == 0.5


def test_foreground_share_by_hand(nb):
    regions = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4], [20, 0, 30, 10], [50, 50, 60, 60]])
    assert nb.foreground_share([regions], [TWO]) == 0.5
    assert nb.foreground_share([regions, regions[:1]], [TWO, SQUARE]) == pytest.approx(0.4)
    assert nb.foreground_share([regions, NO_BOXES], [TWO, TWO]) == 0.5


def test_foreground_share_of_an_image_without_objects(nb):
    assert nb.foreground_share([TWO["boxes"], TWO["boxes"]], [TWO, NOTHING]) == 0.5


# ---------------------------------------------------------------- the trainer


def uint8_images(count, height=64, width=64):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def test_the_default_optimiser_is_the_papers(nb):
    model = tiny_model(nb)
    trainer = nb.FastRCNNTrainer(model)
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.001, 0.9, 0.0005)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    assert trainer.criterion.lambda_bbox == 1.0 and trainer.rois_per_image is None
    own = torch.optim.Adam(model.parameters())
    assert nb.FastRCNNTrainer(model, optimizer=own).optimizer is own


BATCHES = {
    "square": (64, 64, [SQUARE, SQUARE]),
    "wide": (64, 96, [SQUARE, SQUARE]),
    "high": (96, 64, [SQUARE, SQUARE]),
    "no multiple of the stride": (65, 79, [SQUARE, SQUARE]),
    "one image": (64, 64, [SQUARE]),
    "an image without objects": (64, 64, [NOTHING, SQUARE]),
    "no objects at all": (64, 64, [NOTHING]),
}


@pytest.mark.parametrize("height, width, targets", BATCHES.values(), ids=BATCHES)
def test_a_training_step_returns_three_numbers_and_learns(nb, height, width, targets):
    model = tiny_model(nb)
    trainer = nb.FastRCNNTrainer(model.eval())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = trainer.train_epoch(uint8_images(len(targets), height, width), targets)
    assert len(losses) == 3 and all(type(v) is float and math.isfinite(v) for v in losses)
    total, cls_loss, bbox_loss = losses
    assert total == pytest.approx(cls_loss + bbox_loss, rel=1e-5) and cls_loss > 0
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"backbone.0.weight", "head.fc6.weight", "head.cls_score.weight"} <= changed
    assert model.training and not any(p.grad is None for p in model.parameters())


def test_a_training_step_survives_images_without_proposals(nb):
    trainer = nb.FastRCNNTrainer(tiny_model(nb))
    regions = SQUARE["boxes"] + 1
    losses = trainer.train_epoch(uint8_images(2), [SQUARE, NOTHING], [NO_BOXES, regions])
    assert all(map(math.isfinite, losses))
    losses = trainer.train_epoch(uint8_images(2), [SQUARE, NOTHING], [NO_BOXES, NO_BOXES])
    assert losses == (0.0, 0.0, 0.0)


def test_a_training_step_survives_a_proposal_without_area(nb):
    model = tiny_model(nb)
    regions = torch.tensor([[30.0, 30, 30, 30], [9, 9, 47, 47]])
    losses = nb.FastRCNNTrainer(model).train_epoch(uint8_images(1), [SQUARE], [regions])
    assert all(map(math.isfinite, losses))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_training_step_learns_from_the_sample_only(nb):
    seen = []
    trainer = nb.FastRCNNTrainer(tiny_model(nb), rois_per_image=8)
    hook = trainer.model.head.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    trainer.train_epoch(uint8_images(3), [SQUARE] * 3, [random_boxes(50)] * 3)
    hook.remove()
    assert seen == [24]


def test_gradients_do_not_pile_up(nb):
    trainer = nb.FastRCNNTrainer(tiny_model(nb), lr=0.0, momentum=0.0, weight_decay=0.0)
    images, gradients = uint8_images(2), []
    for _ in range(2):
        trainer.train_epoch(images, [SQUARE] * 2, [SQUARE["boxes"] + 2] * 2)
        gradients.append(trainer.model.head.fc6.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_targets_use_the_models_delta_weights(nb):
    trainer = nb.FastRCNNTrainer(tiny_model(nb, delta_weights=WEIGHTS))
    regions = torch.tensor([[12.0, 8, 52, 48]])
    goals = trainer.prepare_training_data([regions], [SQUARE])[2]
    torch.testing.assert_close(goals, reference.encode_boxes(SQUARE["boxes"], regions, WEIGHTS))


def test_the_device_is_the_one_asked_for(nb, monkeypatch):
    monkeypatch.setattr(nb, "DEVICE", torch.device("meta"))  # as a GPU would be: not the CPU
    trainer = nb.FastRCNNTrainer(tiny_model(nb), device=torch.device("cpu"))
    assert all(map(math.isfinite, trainer.train_epoch(uint8_images(1), [SQUARE])))
    (found,) = nb.detect(trainer.model, uint8_images(1), [random_boxes(3)], score_threshold=0.0)
    assert len(found["boxes"])


def test_a_couple_of_images_can_be_learnt_and_found(nb):
    images, targets = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8), []
    for image, (label, at) in zip(images, ((0, 6), (2, 24))):
        image[label, at : at + 30, at : at + 30] = 255
        box = torch.tensor([[at, at, at + 30.0, at + 30]])
        targets.append({"boxes": box, "labels": torch.tensor([label])})
    shifts = torch.tensor([[0.0, 0, 0, 0], [3, 0, 3, 0], [0, -3, 0, -3], [0, 33, -9, 33]])
    regions = [t["boxes"] + shifts for t in targets]
    model = tiny_model(nb, delta_weights=WEIGHTS)
    trainer = nb.FastRCNNTrainer(model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01))
    totals = [trainer.train_epoch(images, targets, regions)[0] for _ in range(20)]
    assert totals[-1] < 0.5 * totals[0]
    with torch.no_grad():  # the norms' running means lag behind after so few steps
        rois = trainer.prepare_training_data(regions, targets)
        scores, _ = model.train()(nb.to_input(images), rois[0])
    assert torch.equal(scores.argmax(dim=1), rois[1])


def test_the_training_loop_runs_on_any_dataset(nb, monkeypatch):
    dataset = ShapesDataset(4, seed=3)
    monkeypatch.setattr(nb, "train_set", dataset, raising=False)
    monkeypatch.setattr(nb, "test_set", dataset, raising=False)
    before = [t["boxes"].clone() for t in dataset.targets], dataset.images.clone()
    regions = nb.random_regions(20, 4)
    runs = [nb.train_fast_rcnn(2, regions, lambda_bbox=2.0)[1].columns() for _ in range(2)]
    assert runs[0] == runs[1] and [len(column) for column in runs[0].values()] == [2, 2, 2]
    assert set(runs[0]) == {"total", "classification", "box"}
    assert torch.equal(dataset.images, before[1])  # the augmentation changes nothing in place
    assert all(torch.equal(t["boxes"], b) for t, b in zip(dataset.targets, before[0]))


def test_training_batches_keep_things_together(nb, monkeypatch):
    dataset = ShapesDataset(20, seed=5)
    monkeypatch.setattr(nb, "train_set", dataset, raising=False)
    objects = [t["boxes"] for t in dataset.targets]
    before = dataset.images.clone(), [b.clone() for b in objects]
    drawn = list(nb.training_batches(3, 0, objects))  # the objects are the regions, too
    assert len(drawn) == 3
    for images, targets, regions in drawn:
        assert images.shape == (16, 3, 128, 128) and len(targets) == len(regions) == 16
        sums = images.sum(dim=(1, 2, 3)).tolist()  # the same whatever was flipped or recoloured
        index = [before[0].sum(dim=(1, 2, 3)).tolist().index(v) for v in sums]
        for i, target, region in zip(index, targets, regions):
            assert torch.equal(target["boxes"], region)
            assert torch.equal(target["labels"], dataset.targets[i]["labels"])
            assert torch.equal(region[:, 1::2], objects[i][:, 1::2])  # y does not move
    assert torch.equal(dataset.images, before[0])
    assert all(torch.equal(a, b) for a, b in zip(objects, before[1]))


def test_evaluation_is_perfect_for_perfect_regions(nb, monkeypatch):
    dataset = ShapesDataset(6, seed=4)
    regions = [F.pad(t["boxes"], (0, 0, 0, 1), value=1.0) for t in dataset.targets]
    columns = [c for t in dataset.targets for c in (*(t["labels"] + 1).tolist(), 0)]
    model = Told(one_hot_scores(columns))
    monkeypatch.setattr(nb, "test_set", dataset, raising=False)
    monkeypatch.setattr(nb, "proposals", {"test": regions}, raising=False)
    metrics, found = nb.evaluate(model, regions)
    assert metrics["AP"] == pytest.approx(1.0) and len(found) == 6
    assert nb.region_accuracy(model) == {"foreground": 1.0, "background": 1.0}


# ---------------------------------------------------------------- detection


class Told(nn.Module):
    """A detector that says what it was told to, by default without moving any box."""

    def __init__(self, scores, deltas=None, weights=(1.0, 1.0, 1.0, 1.0)):
        super().__init__()
        self.register_buffer("delta_weights", torch.tensor(weights))
        self.scores = scores
        self.deltas = torch.zeros(len(scores), 4 * scores.shape[1]) if deltas is None else deltas

    def forward(self, images, rois):
        self.images, self.rois = images, rois
        return self.scores, self.deltas


APART = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 30, 10, 40]])


def test_known_scores_give_known_labels(nb):
    model = Told(one_hot_scores([1, 2, 3, 0]))
    (found,) = nb.detect(model, uint8_images(1), [APART], score_threshold=0.5)
    order = found["labels"].argsort()
    assert found["labels"][order].tolist() == [0, 1, 2]  # and the background is no detection
    assert torch.equal(found["boxes"][order], APART[:3])
    probability = math.exp(9) / (math.exp(9) + 3)
    torch.testing.assert_close(found["scores"], torch.full((3,), probability))
    assert found["labels"].dtype == torch.int64


def test_each_image_gets_its_own_detections(nb):
    regions = [APART[:1], NO_BOXES, APART[1:]]
    model = Told(one_hot_scores([1, 2, 3, 1]))
    found = nb.detect(model, uint8_images(3), regions, score_threshold=0.5)
    assert model.rois[:, 0].tolist() == [0, 2, 2, 2]
    assert torch.equal(model.rois[:, 1:], APART)
    assert [sorted(f["labels"].tolist()) for f in found] == [[0], [], [0, 1, 2]]


def test_a_detection_moves_by_the_deltas_of_its_class(nb):
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 2] = torch.tensor([10 * 0.5, 0.0, 0.0, 5 * math.log(2)])  # class 1, weighted
    deltas[0, 1] = deltas[0, 3] = 7.0
    model = Told(one_hot_scores([2, 1]), deltas.view(2, 16), WEIGHTS)
    (found,) = nb.detect(model, uint8_images(1), [APART[[1, 3]]], score_threshold=0.5)
    moved = found["boxes"][found["labels"] == 1]
    torch.testing.assert_close(moved, torch.tensor([[25.0, 0, 35, 15]]))  # cut at the top
    assert found["boxes"][found["labels"] == 0].tolist() == [[0.0, 30, 10, 40]]


def test_duplicates_of_a_class_are_suppressed(nb):
    regions = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11], [0, 4, 10, 14]])
    scores = one_hot_scores([1, 1, 2, 1])
    scores[1, 1], scores[2, 2] = 11, 10  # the best of class 0, then the only one of class 1
    (found,) = nb.detect(Told(scores), uint8_images(1), [regions], score_threshold=0.5)
    assert found["labels"].tolist() == [0, 1, 0]  # IoU 0.82: gone; 0.37 and another class: kept
    assert torch.equal(found["boxes"], regions[1:])
    (strict,) = nb.detect(Told(scores), uint8_images(1), [regions], 0.5, nms_iou=0.2)
    assert len(strict["boxes"]) == 2


def test_the_best_detections_are_kept_in_order(nb):
    scores = torch.tensor([[0.0, 1, 0, 0], [0, 4, 0, 0], [0, 2, 0, 0], [0, 3, 0, 0]])
    for top in (0, 1, 3, 100):
        (found,) = nb.detect(Told(scores), uint8_images(1), [APART], score_threshold=0.3, top=top)
        assert torch.equal(found["boxes"], APART[[1, 3, 2, 0]][:top])
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


NOTHING_TO_FIND = {
    "no proposals": (NO_BOXES, one_hot_scores([1])[:0], 0.02),
    "only background": (APART, one_hot_scores([0, 0, 0, 0]), 0.5),
    "threshold of one": (APART, one_hot_scores([1, 2, 3, 1]), 1.0),
}


@pytest.mark.parametrize(
    "regions, scores, threshold", NOTHING_TO_FIND.values(), ids=NOTHING_TO_FIND
)
def test_nothing_found_is_empty_tensors(nb, regions, scores, threshold):
    (found,) = nb.detect(Told(scores), uint8_images(1), [regions], score_threshold=threshold)
    assert set(found) == {"boxes", "scores", "labels"}
    assert found["boxes"].shape == (0, 4)
    assert found["scores"].shape == found["labels"].shape == (0,)
    assert found["labels"].dtype == torch.int64


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (65, 79)])
def test_detections_have_their_form(nb, height, width):
    model = tiny_model(nb).train()
    nn.init.normal_(model.head.bbox_pred.bias, std=2)  # wild boxes
    regions = [random_boxes(30, seed=1), NO_BOXES, random_boxes(1, seed=2)]
    found = nb.detect(model, uint8_images(3, height, width), regions, 0.0, top=40)
    assert len(found) == 3 and not model.training
    for detections, count in zip(found, (30, 0, 1)):
        boxes, scores, labels = (detections[name] for name in ("boxes", "scores", "labels"))
        assert boxes.shape == (len(scores), 4) and labels.shape == scores.shape
        assert len(scores) <= min(40, 3 * count)
        assert set(labels.tolist()) <= {0, 1, 2}
        assert (boxes >= 0).all() and (boxes[:, 0::2] <= width).all()
        assert (boxes[:, 1::2] <= height).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
        assert ((scores > 0) & (scores < 1)).all()
        assert not (boxes.requires_grad or scores.requires_grad)
    assert len(found[0]["scores"]) > 0


def test_boxes_are_cut_at_the_borders_of_a_wide_image(nb):
    model = tiny_model(nb)
    nn.init.normal_(model.head.bbox_pred.bias, std=4)
    (found,) = nb.detect(model, uint8_images(1, 96, 160), [random_boxes(30, size=90)], 0.0)
    assert found["boxes"][:, 2:].amax(dim=0).tolist() == [160, 96]


def test_no_image_has_no_detections(nb):
    model = tiny_model(nb).eval()
    assert nb.detect(model, uint8_images(0), []) == []
    scores, deltas = model(torch.zeros(0, 3, 64, 64), NO_ROIS)
    assert scores.shape == (0, 4) and deltas.shape == (0, 16)


def test_detection_without_any_proposal_in_the_batch(nb):
    found = nb.detect(tiny_model(nb), uint8_images(2), [NO_BOXES, NO_BOXES])
    assert [len(f["boxes"]) for f in found] == [0, 0]


def test_a_batch_finds_what_single_images_do(nb):
    model, images = tiny_model(nb), uint8_images(3)
    regions = [random_boxes(9, seed=i) for i in range(3)]
    together = nb.detect(model, images, regions, 0.0)
    for i in range(3):
        (alone,) = nb.detect(model, images[i : i + 1], regions[i : i + 1], 0.0)
        torch.testing.assert_close(alone["boxes"], together[i]["boxes"], atol=1e-3, rtol=1e-4)
        assert torch.equal(alone["labels"], together[i]["labels"])


# ---------------------------------------------------------------- the text's demonstration


def apart(boxes):
    return (reference.box_iou(boxes, boxes).fill_diagonal_(0) == 0).all()


@pytest.mark.parametrize("size", [160, 224])
def test_rectangles_have_tight_boxes(nb, size):
    images, targets = nb.create_synthetic_dataset(30, size, seed=1)
    assert images.shape == (30, 3, size, size) and images.dtype == torch.uint8
    counts, checked = set(), 0
    for image, target in zip(images, targets):
        boxes, labels = target["boxes"], target["labels"]
        counts.add(len(boxes))
        assert boxes.dtype == torch.float32 and labels.dtype == torch.int64
        assert len(labels.unique()) == len(labels) == len(boxes)
        for box, label in zip(boxes, labels.tolist()):
            x1, y1, x2, y2 = box.int().tolist()
            assert 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size
            assert 30 <= x2 - x1 <= 80 and 30 <= y2 - y1 <= 80
            colour = 230 * F.one_hot(torch.tensor(label), 3)[:, None, None]
            mask = (image == colour).all(dim=0)
            if apart(boxes):
                rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
                bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert [int(v) for v in bounds] == [x1, y1, x2, y2]
                assert mask.sum() == (x2 - x1) * (y2 - y1)
                checked += 1
    assert counts == {2, 3} and checked > 0


def test_rectangles_repeat_with_the_seed(nb):
    images, targets = nb.create_synthetic_dataset(seed=3)
    np.random.seed(9)
    again, same = nb.create_synthetic_dataset(seed=3)
    other, _ = nb.create_synthetic_dataset(seed=4)
    assert len(images) == 5 and torch.equal(images, again) and not torch.equal(images, other)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, same))


# ---------------------------------------------------------------- small things


def test_descent_on_a_parabola(nb):
    path = nb.descend(lambda v: 0.5 * v**2, start=4.0, rate=0.5, steps=4)
    assert path == [4.0, 2.0, 1.0, 0.5]
    path = nb.descend(lambda v: v.abs(), start=1.0, rate=0.75, steps=4)
    assert path == [1.0, 0.25, 0.5, 0.25]  # hops over the target for ever


def test_gmacs_of_one_layer(nb):
    layer = nn.Linear(300, 200)
    assert nb.gmacs(layer, torch.zeros(7, 300)) == pytest.approx(7 * 300 * 200 / 1e9)


def test_seconds_by_stage_are_positive(nb):
    model, image = tiny_model(nb).eval(), uint8_images(1)[0]
    regions = random_boxes(5, size=30)
    for each_region in (False, True):
        seconds = nb.seconds_by_stage(model, image, regions, each_region)
        assert len(seconds) == len(nb.STAGES) - 1 and min(seconds) > 0


def test_foreground_targets_are_the_deltas_of_good_regions(nb, monkeypatch):
    regions = [torch.cat([TWO["boxes"] + 1, TWO["boxes"] + 8]), SQUARE["boxes"]]
    train_set = SimpleNamespace(targets=[TWO, SQUARE])
    monkeypatch.setattr(nb, "train_set", train_set, raising=False)
    monkeypatch.setattr(nb, "proposals", {"train": regions}, raising=False)
    expected = torch.tensor([[-0.1, -0.1, 0, 0]] * 2 + [[0.0] * 4])
    torch.testing.assert_close(nb.foreground_targets(2), expected)
    assert len(nb.foreground_targets(1)) == 2


def test_detected_objects_by_hand(nb):
    def found(boxes, labels):
        return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels).long()}

    both = [[0.0, 0, 10, 5], [20, 0, 30, 4]]  # IoU 0.5 and 0.4
    assert nb.detected(found(both, [0, 1]), TWO).tolist() == [True, False]
    assert nb.detected(found(both, [1, 1]), TWO).tolist() == [False, False]
    assert nb.detected(found([both[0]] * 2, [2, 0]), TWO).tolist() == [True, False]
    assert nb.detected(found([], []), TWO).tolist() == [False, False]
    assert nb.detected(found(both, [0, 1]), NOTHING).shape == (0,)


# ---------------------------------------------------------------- the exercises


def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    for stub in (None, ...):
        assert "still to do" in nb.check_columns(stub)
    assert nb.check_columns((round(100 / 32), round(300 / 32))).startswith("✓")
    written = {"my_bins": "check_bins", "my_box_loss": "check_box_loss"}
    check_stubs_and_solutions(nb, written | {"compress": "check_compress"})


@pytest.mark.parametrize(
    "answer, says",
    [
        ((3, 10), "slice"),
        ((6, 19), "stride 16"),
        ((100, 300), "pixels"),
        ((4, 9), "ceiling"),
        ((9, 3), "first the first"),
        ((3.125, 9.375), "then round"),
        ((4, 10), "then round"),
        ((3, 9, 7), "(3, 9, 7)"),
        ("3, 9", "✗"),
        ((), "✗"),
    ],
)
def test_check_columns_names_the_mistake(nb, answer, says):
    message = nb.check_columns(answer)
    assert message.startswith("✗") and says in message


@pytest.mark.parametrize("right", [(3, 9), [3, 9], np.array([3, 9]), (3.0, 9.0)], ids=repr)
def test_check_columns_takes_any_pair(nb, right):
    assert nb.check_columns(right).startswith("✓")


def bins_with(first, cells, bins, start=math.floor, end=math.ceil, at=0, cut=0):
    size = cells / bins
    return [
        (first + at + start(k * size), first + at + end((k + 1) * size) - cut) for k in range(bins)
    ]


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda f, c, b: bins_with(0, c, b), "not at 0"),
        (lambda f, c, b: bins_with(f, c, b, cut=1), "exclusive"),
        (lambda f, c, b: bins_with(f, c, b, end=math.floor), "rounded up"),
        (lambda f, c, b: bins_with(f, c, b, start=math.ceil), "start is rounded down"),
        (lambda f, c, b: bins_with(f, c, b, at=1), "expected"),
        (lambda f, c, b: bins_with(f, c, b, round, round), "expected"),
        (lambda f, c, b: bins_with(f, c, b)[:-1], "as many pairs as bins"),
        (lambda f, c, b: [], "as many pairs as bins"),
        (lambda f, c, b: bins_with(f, c, b) if c > 1 else [(0, 0), (0, 0), (0, 1)], "one cell"),
    ],
)
def test_check_bins_names_the_mistake(nb, wrong, says):
    message = nb.check_bins(wrong)
    assert message.startswith("✗") and says in message


@pytest.mark.parametrize("answer", [[3, 4, 5, 6, 8, 9, 10], 7, [(3, 4, 5)] * 7], ids=str)
def test_check_bins_names_an_answer_that_is_no_list_of_pairs(nb, answer):
    assert nb.check_bins(lambda *_: answer).startswith("✗")


def test_check_bins_takes_lists_and_tensors(nb):
    assert nb.check_bins(lambda *a: [list(p) for p in bins_with(*a)]).startswith("✓")
    assert nb.check_bins(lambda *a: torch.tensor(bins_with(*a)).tolist()).startswith("✓")


def absolute_errors(deltas, labels, targets):
    """Sums (N, K + 1) over each class's four numbers."""
    return (deltas.view(len(labels), -1, 4) - targets[:, None]).abs().sum(dim=2)


def own_errors(deltas, labels, targets, shift=0):
    errors = absolute_errors(deltas, labels, targets)
    return errors[torch.arange(len(labels)), labels + shift]


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda d, c, t: own_errors(d, c, t).sum() / len(c), "leave them out"),
        (lambda d, c, t: own_errors(d, c, t)[c > 0].mean(), "all regions"),
        (lambda d, c, t: own_errors(d, c, t)[c > 0].sum(), "number of regions"),
        (lambda d, c, t: absolute_errors(d, c, t)[c > 0].sum() / len(c), "true class's four"),
        (lambda d, c, t: own_errors(d, c, t, -1)[c > 0].sum() / len(c), "column 0"),
        (lambda d, c, t: own_errors(d, c, t)[c > 0].sum() / len(c) / 4, "expected"),
        (lambda d, c, t: 0.0, "expected"),
        (lambda d, c, t: math.nan, "expected"),
    ],
)
def test_check_box_loss_names_the_mistake(nb, wrong, says):
    message = nb.check_box_loss(wrong)
    assert message.startswith("✗") and says in message


def test_check_box_loss_takes_a_number_made_in_place(nb):
    def in_place(deltas, labels, targets):
        deltas.view(5, 4, 4).sub_(targets[:, None]).abs_()
        own = deltas.view(5, 4, 4)[torch.arange(5), labels]
        return float(own[labels > 0].sum()) / 5

    assert nb.check_box_loss(in_place).startswith("✓")


def test_check_box_loss_names_an_answer_that_is_no_number(nb):
    assert nb.check_box_loss(own_errors).startswith("✗")  # the sum was forgotten


def two_layers(first, second, bias=None, first_bias=None):
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False) for w in (first, second)]
    for layer, weight, b in zip(layers, (first, second), (first_bias, bias)):
        layer.weight = nn.Parameter(weight.detach().clone())
        layer.bias = None if b is None else nn.Parameter(b.detach().clone())
    return nn.Sequential(*layers)


def svd_of(layer, rank):
    u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    return u[:, :rank], s[:rank], v[:rank]


def compress_with(power=1.0, offset=0, bias=True, first_bias=None):
    """Two layers, the first u's, with the singular values to the power of `power`."""

    def compress(layer, rank):
        u, s, v = svd_of(layer, rank + offset)
        return two_layers(s[:, None] ** power * v, u, layer.bias if bias else None, first_bias)

    return compress


def halves(layer, rank):
    u, s, v = svd_of(layer, rank)
    return two_layers(s[:, None].sqrt() * v, u * s.sqrt(), layer.bias, torch.zeros(rank))


def first_rows(layer, rank):
    return two_layers(layer.weight[:rank], layer.weight[:, :rank], layer.bias)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (compress_with(power=0.0), "forgot the singular values"),
        (compress_with(power=2.0), "twice"),
        (compress_with(offset=1), "expected weights (5, 30) and (20, 5)"),
        (compress_with(first_bias=torch.ones(5)), "first layer needs no bias"),
        (compress_with(bias=False), "keeps the bias"),
        (lambda layer, rank: halves(layer, rank)[::-1], "expected weights"),
        (lambda layer, rank: nn.Sequential(layer), "expected weights"),
        (first_rows, "not the best approximation"),
        (lambda layer, rank: nn.Sequential(nn.Linear(30, 5), nn.Linear(5, 20)), "no bias"),
    ],
)
def test_check_compress_names_the_mistake(nb, wrong, says):
    message = nb.check_compress(wrong)
    assert message.startswith("✗") and says in message


def test_check_compress_takes_any_split_of_the_singular_values(nb):
    assert nb.check_compress(halves).startswith("✓")
    assert nb.check_compress(compress_with()).startswith("✓")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda layer, rank: layer,
        lambda layer, rank: nn.Sequential(nn.Linear(30, 5), nn.ReLU(), nn.Linear(5, 20)),
        lambda layer, rank: svd_of(layer, rank),
    ],
    ids=["one layer", "a ReLU between", "tensors"],
)
def test_check_compress_names_an_answer_that_is_no_pair_of_layers(nb, wrong):
    assert nb.check_compress(wrong).startswith("✗")


def test_compressed_layers_answer_alike(nb):
    layer = nn.Linear(40, 24)
    full = nb.compress_solution(layer, 24)
    x = torch.randn(9, 40)
    torch.testing.assert_close(full(x), layer(x), atol=1e-4, rtol=1e-4)
    errors = [(nb.compress_solution(layer, r)(x) - layer(x)).norm().item() for r in (2, 8, 16)]
    assert errors == sorted(errors, reverse=True)
