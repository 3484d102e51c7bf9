"""The code of notebook 04 against its oracles, on random and on nasty input."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from shared import (
    NASTY_BOXES,
    checksum,
    finite_gradients,
    iou_by_loops,
    nms_by_loops,
    notebook_code,
    objects_of,
    random_boxes,
)
from torch import nn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import FeaturePyramidNetwork, box_iou, sigmoid_focal_loss

from helpers import boxes as reference
from helpers.anchors import grid_anchors
from helpers.detectors import to_input
from helpers.shapes import benchmark

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("04_fpn_retinanet", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        module.anchors = module.anchors_of([(32, 32), (16, 16), (8, 8)])
        module.LETTERS = list("CST")
        yield module


def tiny_model(nb, **options):
    """The complete detector of three classes with few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nb, "CHANNELS", (8, 8, 16, 16))
        return nb.RetinaNet(3, **{"width": 8} | options)


def convolutions(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


# ---------------------------------------------------------------- the backbone


@pytest.mark.parametrize("first", [2, 3, 4])
@pytest.mark.parametrize("height, width", [(224, 224), (96, 160)])
def test_the_maps_are_halved_as_their_names_say(nb, first, height, width):
    with torch.device("meta"):
        maps = nb.SimpleBackbone(first=first)(torch.empty(2, 3, height, width))
    assert list(maps) == [f"C{level}" for level in (first, first + 1, first + 2)]
    for (name, c), channels in zip(maps.items(), (512, 1024, 2048)):
        stride = 2 ** int(name[1])
        assert c.shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))


@pytest.mark.parametrize("first", [2, 3])
@pytest.mark.parametrize("height, width", [(97, 131), (33, 64), (40, 56), (100, 75)])
def test_sizes_are_rounded_up(nb, first, height, width):
    def sizes(n):
        return [math.ceil(n / 2**level) for level in range(first, first + 3)]

    maps = nb.SimpleBackbone((4, 4, 4, 4), first)(torch.randn(2, 3, height, width))
    assert [tuple(c.shape[2:]) for c in maps.values()] == list(zip(sizes(height), sizes(width)))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_is_the_number_of_convolutions_per_stage(nb, depth):
    backbone = nb.SimpleBackbone((4, 5, 6, 7), depth=depth)
    convs = convolutions(backbone)
    widths = [4] + [w for w in (5, 6, 7) for _ in range(depth)]
    assert [c.out_channels for c in convs] == widths and all(c.bias is None for c in convs)
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert [tuple(c.shape[1:]) for c in maps.values()] == [(5, 8, 12), (6, 4, 6), (7, 2, 3)]
    assert len(set(map(id, convs))) == len(convs)  # each with weights of its own


@pytest.mark.parametrize("depth, first", [(1, 2), (2, 2), (2, 3)])
def test_what_a_cell_sees_by_pencil(nb, depth, first):
    span, distance, expected = 1, 1, []
    layers = [(3, 2)] + [(2, 2)] * (first - 2)  # kernel and stride of the stem
    for _ in range(3):
        layers += [(3, 2)] + [(3, 1)] * (depth - 1)
        expected.append(len(layers))
    spans = []
    for kernel, stride in layers:
        span, distance = span + (kernel - 1) * distance, distance * stride
        spans.append(span)
    backbone = nb.SimpleBackbone((8, 8, 8, 8), first, depth).eval()
    seen = nb.seen(lambda image: backbone(image).values(), size=320)
    assert seen == [spans[i - 1] for i in expected]


def test_the_pyramid_sees_what_the_coarsest_map_sees(nb):
    backbone = nb.SimpleBackbone((8, 8, 8, 8), 2).eval()
    alone = nb.seen(lambda image: backbone(image).values(), size=256)
    pyramid = nb.seen(nn.Sequential(backbone, nb.SimpleFPN((8, 8, 8), 8)), size=256)
    assert min(pyramid) > max(alone) > 3 * alone[0]


# ---------------------------------------------------------------- the pyramid


def random_maps(*sizes, channels=(5, 6, 7), images=2):
    return [torch.randn(images, c, *size) for c, size in zip(channels, sizes)]


def even_maps():
    return random_maps((8, 12), (4, 6), (2, 3))


def tiny_pyramid(nb):
    fpn = nb.SimpleFPN((5, 6, 7), 4)
    for conv in convolutions(fpn):
        nn.init.normal_(conv.bias)  # zero at first: that would hide a mistake
    return fpn


SIZES_OF_MAPS = {
    "even": ((8, 12), (4, 6), (2, 3)),
    "odd, rounded up": ((25, 19), (13, 10), (7, 5)),
    "odd, rounded down": ((25, 19), (12, 9), (6, 4)),
    "one cell": ((3, 2), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("sizes", SIZES_OF_MAPS.values(), ids=SIZES_OF_MAPS)
@torch.no_grad()
def test_the_pyramid_is_torchvisions(nb, sizes):
    fpn, maps = tiny_pyramid(nb), random_maps(*sizes)
    oracle = FeaturePyramidNetwork([5, 6, 7], 4)
    parts = {"lateral": "inner_blocks.{}.0", "output": "layer_blocks.{}.0"}
    state = {}
    for name, value in fpn.state_dict().items():
        part, level, kind = name.split(".")
        state[f"{parts[part].format(level)}.{kind}"] = value
    oracle.load_state_dict(state)
    theirs = list(oracle({str(i): c for i, c in enumerate(maps)}).values())
    torch.testing.assert_close(fpn(maps), theirs, atol=1e-5, rtol=1e-4)


def test_the_default_pyramid_is_the_papers(nb):
    with torch.device("meta"):
        fpn = nb.SimpleFPN()
    assert fpn.out_channels == 256
    assert sum(p.numel() for p in fpn.parameters()) == 2_688_512
    shapes = [tuple(c.weight.shape) for c in convolutions(fpn)]
    assert shapes[:3] == [(256, c, 1, 1) for c in (512, 1024, 2048)]
    assert shapes[3:] == [(256, 256, 3, 3)] * 3


def test_the_pyramid_starts_as_in_the_authors_code(nb):
    for conv in convolutions(nb.SimpleFPN((64, 32, 64), 64)):
        bound = math.sqrt(3 / conv.weight[0].numel())
        assert 0.98 * bound < conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert (conv.bias == 0).all()


def test_names_decide_and_not_the_order(nb):
    fpn, maps = tiny_pyramid(nb), even_maps()
    for names in ((3, 4, 5), (2, 3, 4)):
        by_name = {f"C{level}": m for level, m in zip(names, maps)}
        mixed = dict(reversed(by_name.items()))
        torch.testing.assert_close(fpn(mixed), fpn(maps), atol=0, rtol=0)
    for bad in ({"C3": maps[0], "C4": maps[1]}, maps[:2], [*maps, maps[2]]):
        with pytest.raises(ValueError):
            fpn(bad)


@pytest.mark.parametrize("top_down", [True, False])
def test_only_the_top_down_path_joins_the_levels(nb, monkeypatch, top_down):
    fpn, maps = tiny_pyramid(nb), even_maps()
    if not top_down:
        monkeypatch.setattr(fpn, "top_down", lambda lateral: lateral)
    before = fpn(maps)
    for changed in range(3):
        after = fpn([c + 1 if i == changed else c for i, c in enumerate(maps)])
        heard = [not torch.equal(a, b) for a, b in zip(after, before)]
        assert heard == [i <= changed if top_down else i == changed for i in range(3)]


@torch.no_grad()
def test_the_pyramid_is_affine_and_a_relu_is_not(nb):
    fpn, a, b = tiny_pyramid(nb), even_maps(), even_maps()
    mixed = [2 * x - 3 * y for x, y in zip(a, b)]
    nothing = [0 * x for x in a]
    for bend, affine in ((lambda p: p, True), (torch.relu, False)):
        values = ([bend(p) for p in fpn(maps)] for maps in (mixed, a, b, nothing))
        errors = [(m - (2 * fa - 3 * fb + 2 * f0)).abs().max() for m, fa, fb, f0 in zip(*values)]
        assert (max(errors) < 1e-4) == affine


def test_the_tours(nb, capsys):
    with torch.device("meta"):  # shapes alone
        pyramid = nb.demonstrate_fpn_features()
        assert [tuple(p.shape) for p in pyramid] == [(1, 256, s, s) for s in (28, 14, 7)]
        nb.compare_with_without_fpn(pyramid)
        nb.demo_retinanet_complete()
    out = capsys.readouterr().out
    assert "P3 has 28 x 28" in out and "(720, 7, 7) and (36, 7, 7)" in out
    assert "C5 alone: 7 x 7" in out and out.count("own and deeper") == 4
    assert "39.1 AP" in out and "36.2 AP" in out


def test_costs_by_hand(nb):
    layer, x = nn.Conv2d(4, 8, 3, padding=1), torch.empty(1, 4, 5, 6)
    assert nb.gmacs(layer, x) == pytest.approx(5 * 6 * 9 * 4 * 8 / 1e9)


# ---------------------------------------------------------------- levels


def centred(side):
    return torch.tensor([[-side, -side, side, side]], dtype=torch.double) / 2


@pytest.mark.parametrize("side", [4, 20, 57, 58, 90, 115, 130, 300, 2000])
def test_retinanets_level_has_the_best_anchor(nb, side):
    best = {
        level: max(
            box_iou(centred(side), centred(2.0 ** (level + 2 + k / 3))).item() for k in range(3)
        )
        for level in (3, 4, 5)
    }
    assert best[nb.retinanet_level(side)] == max(best.values())


def test_ranges_of_fcos(nb):
    assert [nb.fcos_level(s) for s in (8, 128, 129, 256, 257)] == [3, 3, 4, 4, 5]


def test_the_best_fit_is_per_object(nb, monkeypatch):
    objects = random_boxes(4, 1)
    monkeypatch.setattr(nb, "objects", objects, raising=False)
    every = grid_anchors((8, 8), 16, [12, 17, 24, 34, 48, 68])
    expected = iou_by_loops(objects, every).amax(dim=1)
    torch.testing.assert_close(nb.best_fit(16), expected)


def test_a_row_of_the_table_of_levels(nb):
    row = nb.table_row("ours", 3, (24.0, 34.0), (100, 128), 6)
    assert row == ("ours", "P3", 8, "13 × 16", "24, 34", "3 – 4.25", "1,248")


# ---------------------------------------------------------------- the focal loss

SHARES = st.floats(0, 1)
GAMMAS = st.floats(0, 5)


@given(alpha=SHARES, gamma=GAMMAS, logits=st.lists(st.floats(-15, 15), min_size=1, max_size=9))
def test_the_focal_loss_is_torchvisions_and_the_formula(nb, alpha, gamma, logits):
    z = torch.tensor(logits).repeat(2, 1)
    y = torch.stack([torch.zeros(len(logits)), torch.ones(len(logits))])
    ours = nb.FocalLoss(alpha, gamma, "none")(z, y)
    theirs = sigmoid_focal_loss(z.double(), y.double(), alpha, gamma).float()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    right = 1 / (1 + np.exp(-np.array([[-v for v in logits], logits])))
    weight = np.array([[1 - alpha], [alpha]])
    expected = -weight * (1 - right) ** gamma * np.log(right)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def logits_and_targets(*shape):
    return 4 * torch.randn(shape), (torch.rand(shape) < 0.3).float()


def test_the_texts_settings_are_the_default(nb):
    loss = nb.FocalLoss()
    assert (loss.alpha, loss.gamma, loss.reduction) == (0.25, 2.0, "mean")


def test_reductions(nb):
    z, y = logits_and_targets(5, 3)
    each = nb.FocalLoss(reduction="none")(z, y)
    assert each.shape == (5, 3)
    torch.testing.assert_close(nb.FocalLoss()(z, y), each.sum() / 15)
    torch.testing.assert_close(nb.FocalLoss(reduction="sum")(z, y), each.sum())


def test_without_weight_and_focus_it_is_cross_entropy(nb):
    z, y = logits_and_targets(50, 3)
    expected = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    torch.testing.assert_close(nb.FocalLoss(None, 0.0, "none")(z, y), expected)
    torch.testing.assert_close(nb.FocalLoss(0.5, 0.0, "none")(z, y), expected / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("size", [17.0, 30.0, 95.0, 120.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(nb, gamma, size):
    z = torch.tensor([size, -size, size, -size], requires_grad=True)
    loss = nb.FocalLoss(0.25, gamma, "none")(z, torch.tensor([1.0, 0, 0, 1]))
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([0, 0, 0.75, 0.25]) * size, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(z.grad, torch.tensor([0, 0, 0.75, -0.25]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.int32, torch.int64, torch.float16]
)
def test_targets_of_any_type_give_the_same_loss(nb, dtype):
    z, y = logits_and_targets(50, 3)
    assert torch.equal(nb.FocalLoss()(z, y.to(dtype)), nb.FocalLoss()(z, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_logits_is_computed_in_float32(nb, dtype):
    z = torch.full((200_000,), 3.0, dtype=dtype)
    loss = nb.FocalLoss(reduction="sum")(z, torch.zeros_like(z))  # above 65,504
    expected = nb.FocalLoss(reduction="sum")(z.float(), torch.zeros(200_000))
    assert loss.dtype == torch.float32 and loss == expected and loss.isfinite()


@pytest.mark.parametrize("name", ["avg", "", None, "Mean"])
def test_another_reduction_is_refused(nb, name):
    with pytest.raises(ValueError, match="mean, sum or none"):
        nb.FocalLoss(reduction=name)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (3, 5), (1, 5, 3)], ids=str)
def test_shapes_that_only_broadcast_are_refused(nb, shape):
    with pytest.raises(ValueError, match="must have equal shapes"):
        nb.FocalLoss()(torch.zeros(5, 3), torch.zeros(shape))


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.75, 0.5), (0.5, 0.0)])
def test_a_crowd_without_spread_by_pencil(nb, alpha, gamma):
    easy, hard = 99_900 * math.log1p(math.exp(-3)), 100 * math.log1p(math.e)
    wrong = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-1))
    crowd = nb.crowd_losses(alpha, gamma)
    assert crowd["CE"] == pytest.approx((easy, hard), rel=1e-4) and round(easy / hard) == 37
    focal = (1 - alpha) * wrong[0] ** gamma * easy, alpha * wrong[1] ** gamma * hard
    assert crowd["FL"] == pytest.approx(focal, rel=1e-4)


def test_a_crowd_has_its_size_and_its_spread(nb):
    small = nb.crowd_losses(easy=999, hard=7)["CE"]
    whole = nb.crowd_losses()["CE"]
    assert small == pytest.approx((whole[0] * 999 / 99_900, whole[1] * 7 / 100), rel=1e-4)
    assert nb.crowd_losses(spread=2.0) == nb.crowd_losses(spread=2.0)
    rng = np.random.RandomState(0)  # quantiles in place of draws: the same sums, without luck
    drawn = np.logaddexp(0, -3 - 2 * rng.randn(999_000)).mean() * 99_900
    assert nb.crowd_losses(spread=2.0)["CE"][0] == pytest.approx(drawn, rel=0.02)
    ratios = [np.divide(*nb.crowd_losses(spread=s)["FL"]) for s in (0.0, 1.0, 2.0)]
    assert ratios[0] < 1 < ratios[1] < ratios[2]


def test_the_demonstration_prints_its_ratios(nb, capsys):
    parts = nb.demo_focal_loss_effect()
    assert parts == nb.crowd_losses()
    out = capsys.readouterr().out
    assert "100,000 anchors, 100 of them positive" in out
    assert "easy : hard   36.96" in out and "easy : hard    0.47" in out
    assert nb.demo_focal_loss_effect(0.5, spread=1.0) == nb.crowd_losses(0.5, spread=1.0)


def test_figures_show_computed_numbers(nb):
    figures = [nb.visualize_fpn_architecture(), nb.visualize_fpn_architecture(c5_on_top=True)]
    figures += [nb.visualize_focal_loss(), nb.figures.crowd_figure(nb.crowd_losses())]
    words = []
    for figure in figures:
        figure.canvas.draw()
        words.append("\n".join(t.get_text() for ax in figure.axes for t in ax.texts))
        plt.close(figure)
    assert "512 channels\n28 × 28, stride 8" in words[0] and plt.get_fignums() == []
    easy, hard = nb.crowd_losses()["CE"]
    assert f"{easy:,.1f}" in words[3] and f"{hard:,.1f}" in words[3]
    assert "γ = 2 leaves 1%" in words[2]


# ---------------------------------------------------------------- the subnets


@given(pi=st.floats(1e-6, 1 - 1e-6))
def test_the_prior_bias_is_the_logit(nb, pi):
    assert 1 / (1 + math.exp(-nb.prior_bias(pi))) == pytest.approx(pi, rel=1e-6)


@pytest.mark.parametrize("pi", [0, 1, -0.1, 1.5, math.nan])
def test_a_prior_that_is_no_probability_is_refused(nb, pi):
    for use in (nb.prior_bias, lambda pi: nb.SimpleRetinaNet(3, 2, 8, pi=pi)):
        with pytest.raises(ValueError, match="pi must lie"):
            use(pi)


def test_the_default_subnets_are_the_papers(nb):
    with torch.device("meta"):
        head = nb.SimpleRetinaNet()
    assert (head.num_classes, head.num_anchors, head.pi) == (80, 9, 0.01)
    for subnet, outputs in ((head.cls_subnet, 720), (head.box_subnet, 36)):
        assert [c.out_channels for c in convolutions(subnet)] == [256] * 4 + [outputs]
        assert all(c.kernel_size == (3, 3) and c.in_channels == 256 for c in convolutions(subnet))
        kinds = [type(layer) for layer in subnet]
        assert kinds == [nn.Conv2d, nn.ReLU] * 4 + [nn.Conv2d]


@pytest.mark.parametrize("he_init", [False, True])
def test_the_weights_at_the_start(nb, he_init):
    head = nb.SimpleRetinaNet(5, 9, channels=48, he_init=he_init)
    for subnet in (head.cls_subnet, head.box_subnet):
        *hidden, last = convolutions(subnet)
        for conv in (*hidden, last):
            std = math.sqrt(2 / (9 * 48)) if he_init and conv is not last else 0.01
            assert conv.weight.std().item() == pytest.approx(std, rel=0.05)
            bias = -math.log(99) if conv is head.cls_subnet[-1] else 0.0
            torch.testing.assert_close(conv.bias, torch.full_like(conv.bias, bias))


@pytest.mark.parametrize("pi", [0.01, 0.3])
@torch.no_grad()
def test_the_untrained_network_says_pi(nb, pi):
    p = nb.SimpleRetinaNet(5, 3, 16, pi=pi)([torch.randn(2, 16, 9, 7)])[0][0].sigmoid()
    torch.testing.assert_close(p, torch.full_like(p, pi), atol=0, rtol=0.05)


@torch.no_grad()
def test_subnets_are_shared_by_levels_and_not_by_tasks(nb):
    head = nb.SimpleRetinaNet(5, 3, 16, depth=2, he_init=True)
    p, other = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 2, 3)
    classes, boxes = head([p, other, p])
    assert [tuple(m.shape) for m in classes] == [(2, 15, 4, 6), (2, 15, 2, 3), (2, 15, 4, 6)]
    assert [tuple(m.shape) for m in boxes] == [(2, 12, 4, 6), (2, 12, 2, 3), (2, 12, 4, 6)]
    assert torch.equal(classes[0], classes[2]) and torch.equal(boxes[0], boxes[2])
    before = classes[0].clone()
    head.box_subnet[0].weight.add_(1)
    assert torch.equal(head([p])[0][0], before) and not torch.equal(head([p])[1][0], boxes[0])


# ---------------------------------------------------------------- order and match


@pytest.mark.parametrize("numbers", [1, 3, 4])
@pytest.mark.parametrize("templates", [1, 6])
def test_answers_are_in_the_order_of_anchors(nb, numbers, templates):
    maps = [torch.randn(2, templates * numbers, *size) for size in ((3, 5), (2, 1), (1, 1))]
    expected = [
        [
            m[image, a * numbers : (a + 1) * numbers, y, x]
            for m in maps
            for y in range(m.shape[2])
            for x in range(m.shape[3])
            for a in range(templates)
        ]
        for image in range(2)
    ]
    expected = torch.stack([torch.stack(rows) for rows in expected])
    assert torch.equal(nb.by_anchor(maps, numbers), expected)


THRESHOLDS = [(0.5, 0.4), (0.4, 0.3), (0.7, 0.3), (0.5, 0.5)]


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
@given(seed=SEEDS, count=st.integers(1, 9), ties=st.booleans())
def test_matches_are_torchvisions(nb, thresholds, seed, count, ties):
    g = torch.Generator().manual_seed(seed)
    overlap = torch.rand(40, count, generator=g).clamp(min=1e-3)
    overlap = overlap.mul(10).ceil().div(10) if ties else overlap
    matcher = Matcher(*thresholds, allow_low_quality_matches=True)
    matches = nb.match_anchors(overlap, *thresholds)
    assert torch.equal(matches, matcher(overlap.T)) and matches.dtype == torch.int64


def test_no_object_means_background(nb):
    matches = nb.match_anchors(torch.zeros(7, 0))
    assert matches.tolist() == [-1] * 7 and matches.dtype == torch.int64


def test_an_object_that_nothing_touches_has_no_anchor(nb):
    """Here torchvision would make every anchor positive that does not touch it."""
    overlap = torch.tensor([[0.6, 0.0], [0.45, 0.0], [0.0, 0.0]])
    assert nb.match_anchors(overlap).tolist() == [0, -2, -1]
    assert nb.match_anchors(overlap[:, 1:]).tolist() == [-1] * 3


@pytest.mark.parametrize("value, match", [(0.5, 0), (0.49, -2), (0.4, -2), (0.39, -1)])
def test_thresholds_hit_exactly(nb, value, match):
    overlap = torch.tensor([[value], [0.9]])
    assert nb.match_anchors(overlap).tolist() == [match, 0]


def test_a_best_anchor_keeps_the_object_it_overlaps_most(nb):
    overlap = torch.tensor([[0.35, 0.2], [0.1, 0.1]])  # best for both, and the first one's
    assert nb.match_anchors(overlap).tolist() == [0, -1]


# ---------------------------------------------------------------- the detector

IMAGES = {"square": (2, 64, 64), "wide": (1, 96, 120), "high": (2, 128, 64), "odd": (1, 97, 131)}
LEVELS = {
    "2 to 4": None,
    "3 to 5": {3: (16.0, 22.0), 4: (26.0, 36.0), 5: (46.0, 63.0)},
    "one size each": {2: (12.0,), 3: (24.0,), 4: (48.0,)},
}


@pytest.mark.parametrize("sizes", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("images, height, width", IMAGES.values(), ids=IMAGES)
@torch.no_grad()
def test_there_is_one_answer_per_anchor(nb, sizes, images, height, width):
    options = {"sizes": sizes} if sizes else {}
    model, pixels = tiny_model(nb, **options).eval(), torch.randn(images, 3, height, width)
    logits, deltas, anchors = model(pixels)
    sizes = sizes or {2: (12.0, 17.0), 3: (24.0, 34.0), 4: (48.0, 68.0)}
    pyramid = dict(zip(sizes, model.fpn(model.backbone(pixels))))
    cells = [pyramid[level].shape[2:] for level in sizes]
    expected = [grid_anchors(c, 2**level, s) for c, (level, s) in zip(cells, sizes.items())]
    assert torch.equal(anchors, torch.cat(expected))
    start = 0  # every level's answers stand where its anchors do
    for level, part in zip(sizes, expected):
        classes, boxes = model.head([pyramid[level]])
        rows = slice(start, start := start + len(part))
        torch.testing.assert_close(logits[:, rows], nb.by_anchor(classes, 3))
        torch.testing.assert_close(deltas[:, rows], nb.by_anchor(boxes, 4))
    assert start == logits.shape[1] == deltas.shape[1]


def test_the_default_detector_is_slim(nb):
    with torch.device("meta"):
        model = nb.RetinaNet()
    assert model.head.num_classes == 3 and model.head.num_anchors == 6 and model.head.pi == 0.01
    assert sum(p.numel() for p in model.parameters()) < 500_000
    other = tiny_model(nb, pi=0.2, depth=3)
    assert other.head.pi == 0.2 and len(other.head.box_subnet) == 7


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("images, height, width", IMAGES.values(), ids=IMAGES)
@torch.no_grad()
def test_detections_have_their_form(nb, images, height, width, training):
    model = tiny_model(nb, pi=0.4).train(training)
    nn.init.normal_(model.head.box_subnet[-1].bias, std=4)  # wild boxes
    for options, limit in (({}, 100), ({"top": 7}, 7), ({"score_threshold": 0.401}, 100)):
        found = model.detect(torch.randn(images, 3, height, width), **options)
        assert len(found) == images
        for detection in found:
            boxes, scores, labels = (detection[name] for name in ("boxes", "scores", "labels"))
            assert 0 < len(scores) <= limit and boxes.shape == (len(scores), 4)
            assert labels.shape == scores.shape and set(labels.tolist()) <= {0, 1, 2}
            assert (scores[:-1] >= scores[1:]).all()
            assert (scores > options.get("score_threshold", 0.03)).all()
            assert (boxes >= 0).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
            assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


@torch.no_grad()
def test_boxes_are_cut_at_the_borders_of_a_wide_image(nb):
    model = tiny_model(nb, pi=0.4).eval()
    nn.init.normal_(model.head.box_subnet[-1].bias, std=9)  # wild boxes
    (found,) = model.detect(torch.randn(1, 3, 96, 160))
    assert found["boxes"][:, 2:].amax(dim=0).tolist() == [160, 96]


@torch.no_grad()
def test_no_image_has_no_detections(nb):
    model = tiny_model(nb).eval()
    assert model.detect(torch.zeros(0, 3, 64, 96)) == []
    logits, deltas, anchors = model(torch.zeros(0, 3, 64, 96))
    assert logits.shape == (0, len(anchors), 3) and deltas.shape == (0, len(anchors), 4)


def told(nb, logits, deltas, anchors):
    """A detector that gives these answers."""
    model = tiny_model(nb)
    model.forward = lambda images: (logits, deltas, anchors)
    return model


@pytest.mark.parametrize("iou, top", [(0.5, 100), (0.2, 100), (0.9, 5), (0.5, 0)])
def test_detections_by_hand(nb, iou, top):
    anchors = random_boxes(60)
    logits, deltas = torch.randn(2, 60, 3), torch.randn(2, 60, 4)
    found = told(nb, logits, deltas, anchors).detect(torch.empty(2, 3, 64, 80), 0.3, iou, top)
    for detection, z, t in zip(found, logits, deltas):
        boxes = reference.decode_boxes(t, anchors, WEIGHTS).clamp(min=0)
        boxes = boxes.minimum(torch.tensor([80, 64, 80, 64]))
        expected = []
        for label in range(3):
            score = z[:, label].sigmoid()
            rows = torch.where(score > 0.3)[0]
            rows = rows[nms_by_loops(boxes[rows], score[rows], 0 * rows, iou)]
            expected += [(score[r].item(), label, boxes[r].tolist()) for r in rows]
        expected = sorted(expected, reverse=True)[:top]
        assert detection["labels"].tolist() == [label for _, label, _ in expected]
        assert detection["scores"].tolist() == pytest.approx([s for s, _, _ in expected])
        if expected:
            np.testing.assert_allclose(detection["boxes"], [b for _, _, b in expected], atol=1e-3)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
@pytest.mark.parametrize("delta", [-1e6, 0.0, 1e6])
def test_extreme_answers_are_survived(nb, logit, delta):
    answers = torch.full((1, 30, 3), logit), torch.full((1, 30, 4), delta), random_boxes(30)
    (found,) = told(nb, *answers).detect(torch.empty(1, 3, 64, 80))
    assert found["boxes"].isfinite().all() and found["boxes"].shape == (len(found["scores"]), 4)
    assert (len(found["labels"]) > 0) == (logit > 0) and found["labels"].dtype == torch.int64


def test_nothing_is_left_on_the_cpu(nb, pretended_gpu):
    images = to_input(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.device("cuda"))
    logits, deltas, anchors = tiny_model(nb).to("cuda")(images)
    none = nb.match_anchors(logits.new_zeros(len(anchors), 0))
    loss = nb.FocalLoss(reduction="none")(logits, torch.zeros_like(logits)).sum(dim=2)
    answers = (images, logits, deltas, anchors, none, loss)
    assert [t.device.type for t in answers] == ["cuda"] * 6


# ---------------------------------------------------------------- the loss


def small_anchors():
    return torch.cat([grid_anchors((8, 8), 8, (12, 18)), grid_anchors((4, 4), 16, (28, 40))])


def random_answers(images, anchors, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, len(anchors), 3, generator=g)
    deltas = torch.randn(images, len(anchors), 4, generator=g)
    return logits.requires_grad_(), deltas.requires_grad_()


def loss_by_loops(logits, deltas, anchors, boxes, labels, high=0.5, low=0.4):
    """Both losses anchor by anchor; a match is the best object, or the object's best anchor."""
    classes, box, positives = 0.0, 0.0, 0
    for z, t, objects, names in zip(logits, deltas, boxes, labels):
        overlap = box_iou(anchors, objects)
        for n, row in enumerate(overlap):
            target, value = torch.zeros(3), max(row.tolist(), default=0.0)
            best = value > 0 and any(row[m] == overlap[:, m].max() > 0 for m in range(len(row)))
            if value >= high or best:
                m = int(row.argmax())
                target[names[m]], positives = 1, positives + 1
                goal = reference.encode_boxes(objects[m : m + 1], anchors[n : n + 1], WEIGHTS)[0]
                distance = (t[n] - goal).abs()
                box += torch.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
            elif value >= low:
                continue
            classes += sigmoid_focal_loss(z[n], target, 0.25, 2.0).sum()
    return torch.stack([torch.as_tensor(v) / max(1, positives) for v in (classes, box)]).detach()


COUNTS = [(1,), (0,), (7,), (2, 3), (0, 4), (4, 0), (0, 0), (3, 0, 5)]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_loss_is_the_loop(nb, counts):
    anchors, (boxes, labels) = small_anchors(), objects_of(*counts)
    logits, deltas = random_answers(len(counts), anchors)
    losses = nb.DenseLoss()(logits, deltas, anchors, boxes, labels)
    assert list(losses) == ["class", "box"]
    expected = loss_by_loops(logits, deltas, anchors, boxes, labels)
    torch.testing.assert_close(torch.stack([*losses.values()]).detach(), expected)
    assert (losses["box"] > 0) == (sum(counts) > 0) and losses["class"] > 0
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all() and deltas.grad.isfinite().all()


def test_the_loss_of_half_precision_answers_is_computed_in_float32(nb):
    anchors, objects = small_anchors(), objects_of(3, 0)
    answers = [(t.detach() * 50).half() for t in random_answers(2, anchors)]
    losses = nb.DenseLoss()(*answers, anchors, *objects)
    assert losses == nb.DenseLoss()(*(t.float() for t in answers), anchors, *objects)


def test_options_reach_the_loss(nb):
    anchors, (boxes, labels) = small_anchors(), objects_of(3, 2)
    logits, deltas = random_answers(2, anchors)
    answers = logits, deltas, anchors, boxes, labels
    losses = nb.DenseLoss(high=0.3, low=0.2)(*answers)
    expected = loss_by_loops(*answers, 0.3, 0.2)
    torch.testing.assert_close(torch.stack([*losses.values()]).detach(), expected)
    plain = nb.DenseLoss(lambda z, y: y + 0 * z)(*answers)  # counts the targets that are 1
    torch.testing.assert_close(plain["class"].detach(), torch.tensor(1.0))


def test_the_order_of_objects_does_not_matter(nb):
    anchors, (boxes, labels) = small_anchors(), objects_of(6, 5)
    answers = *random_answers(2, anchors), anchors
    first = nb.DenseLoss()(*answers, boxes, labels)
    order = [torch.randperm(len(b)) for b in boxes]
    mixed = [[v[o] for v, o in zip(column, order)] for column in (boxes, labels)]
    torch.testing.assert_close(nb.DenseLoss()(*answers, *mixed), first)
    images = [v.flip(0) for v in answers[:2]]
    torch.testing.assert_close(nb.DenseLoss()(*images, anchors, boxes[::-1], labels[::-1]), first)


NASTY = {
    "1,200": torch.tensor(
        [[x, y, x + 12, y + 12] for x in range(0, 120, 3) for y in range(0, 90, 3)]
    ),
    "twice the same": torch.tensor([[8.0, 8, 30, 30]] * 2),
    "far outside": torch.tensor([[900.0, 900, 950, 950]]),
    "a point and a line": torch.tensor([[9.0, 9, 9, 9], [4, 9, 20, 9], [20, 20, 40, 44]]),
} | {name: torch.tensor([box]) for name, box in NASTY_BOXES.items()}


@pytest.mark.parametrize("objects", NASTY.values(), ids=NASTY)
def test_nasty_objects_leave_the_model_a_step(nb, objects):
    model = tiny_model(nb).train()
    labels = torch.arange(len(objects)) % 3
    answers = model(torch.randn(2, 3, 96, 120))
    losses = nb.DenseLoss()(*answers, [objects.float(), NO_BOXES], [labels, NO_LABELS])
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert finite_gradients(model)


def test_ignored_anchors_learn_nothing(nb):
    anchors, (boxes, labels) = small_anchors(), objects_of(2, 0)
    logits, deltas = random_answers(2, anchors)
    nb.DenseLoss()(logits, deltas, anchors, boxes, labels)["class"].backward()
    matches = torch.stack([nb.match_anchors(box_iou(anchors, b)) for b in boxes])
    assert (matches == -2).any()
    assert torch.equal((logits.grad != 0).any(dim=2), matches != -2)


# ---------------------------------------------------------------- training and evaluation


@pytest.fixture
def on_few_images(nb, few_images, monkeypatch):
    """The notebook with a benchmark of four images and few channels."""
    for name, value in {"train_set": few_images, "test_set": few_images}.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    monkeypatch.setattr(nb, "CHANNELS", (8, 8, 16, 16))
    return nb


@pytest.mark.parametrize("sizes", [LEVELS["3 to 5"], LEVELS["one size each"]], ids=str)
def test_a_few_steps_reduce_the_loss(nb, sizes):
    model = tiny_model(nb, sizes=sizes).train()
    images, (boxes, labels) = torch.randn(2, 3, 64, 64), objects_of(1, 2)
    optimizer, totals = torch.optim.AdamW(model.parameters(), lr=0.01), []
    for _ in range(12):
        total = sum(nb.DenseLoss()(*model(images), boxes, labels).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert finite_gradients(model) and np.mean(totals[-3:]) < 0.8 * np.mean(totals[:2])


def test_training_repeats_with_the_seed(on_few_images):
    nb = on_few_images
    trained = [nb.train_retinanet(2, seed) for seed in (0, 0, 1)]
    weights = [model.head.cls_subnet[0].weight for model, _ in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for model, history in trained:
        assert not model.training and list(history.columns()) == ["class", "box"]
        assert len(history["box"]) == 2


def test_frames_change_the_border_and_the_classes_and_nothing_else(nb, few_images):
    before = few_images.images.clone()
    images, targets = nb.framed(few_images)
    assert torch.equal(few_images.images, before)
    assert torch.equal(images[0::2], before[0::2]) and not torch.equal(images[1], before[1])
    assert torch.equal(images[1::2, :, 3:-3, 3:-3], before[1::2, :, 3:-3, 3:-3])
    border = images[1].clone()
    border[:, 3:-3, 3:-3] = 0
    assert not border.any()
    for i, (new, old) in enumerate(zip(targets, few_images.targets)):
        assert torch.equal(new["boxes"], old["boxes"])
        assert torch.equal(new["labels"], old["labels"] + 3 * (i % 2))


FRAMED = {  # SHA-256 of pixels, boxes and labels
    "val": "1d367e37a2d5336db19d5e95db0e31ae5a9460e8294013dc482d37bf128b2426",
    "test": "43d71f03a85c82a8ff5633dcbda788f479d06879beb3c3f514caae8d3d8d1c4e",
}


@pytest.mark.parametrize("split", FRAMED)
def test_the_framed_benchmark_is_frozen(nb, split):
    assert checksum(*nb.framed(benchmark(split))) == FRAMED[split]


def test_score_maps_and_the_surest_level(on_few_images, few_images, monkeypatch):
    nb = on_few_images
    monkeypatch.setattr(nb, "model", nb.RetinaNet().eval(), raising=False)
    maps = nb.score_maps(few_images.images)
    assert [tuple(m.shape) for m in maps] == [(4, 32, 32), (4, 16, 16), (4, 8, 8)]
    first, *others = few_images.targets[0]["boxes"].tolist()
    middle, finest = maps[1][0] * 0 + 0.5, maps[0][0] * 0  # the middle level is surest everywhere
    x, y = (first[0] + first[2]) / 2, (first[1] + first[3]) / 2
    finest[int(y // 4), int(x // 4)] = 0.9  # ... but at the centre of the first object
    levels = nb.surest_level(few_images.targets[0], [finest, middle, maps[2][0] * 0])
    assert levels.tolist() == [2, *[3] * len(others)]


def test_losses_of_negatives(on_few_images, few_images):
    nb = on_few_images
    model = nb.RetinaNet().eval()
    values = nb.negative_losses(model, nb.FocalLoss(None, 0.0, "none"), count=3)
    grid = nb.anchors_of([(32, 32), (16, 16), (8, 8)])
    overlaps = [box_iou(grid, t["boxes"]) for t in few_images.targets[:3]]
    assert len(values) == sum(int((nb.match_anchors(o) == -1).sum()) for o in overlaps)
    assert (values[:-1] >= values[1:]).all()
    assert values.mean().item() == pytest.approx(-3 * math.log(0.99), rel=0.3)


@pytest.mark.parametrize("high, low", [(0.5, 0.4), (0.8, 0.8), (0.3, 0.6)])
def test_levels_are_drawn(on_few_images, few_images, high, low):
    figure = on_few_images.show_levels(2, high, low)
    titles = [ax.get_title() for ax in figure.axes]
    plt.close(figure)
    overlap = box_iou(on_few_images.anchors, few_images.targets[2]["boxes"])
    matches = on_few_images.match_anchors(overlap, high, min(low, high))
    assert sum(int(title.split()[1]) for title in titles) == int((matches >= 0).sum())
