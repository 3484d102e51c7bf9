"""The code of notebook 04 against its oracles, on random and on nasty input."""

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
    check_stubs_and_solutions,
    finite_gradients,
    notebook_code,
    objects_of,
    random_boxes,
)
from torch import nn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import FeaturePyramidNetwork, sigmoid_focal_loss

from helpers import boxes as reference
from helpers import nms as nms_reference
from helpers.anchors import grid_anchors
from helpers.detectors import to_input

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def nb():
    with notebook_code("04_fpn_retinanet", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        yield module


TINY = {"channels": (8, 8, 16, 16), "width": 8}


def tiny_model(nb, **options):
    """The complete detector of three classes with few channels."""
    return nb.RetinaNet(3, **TINY | options)


def convolutions(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


# ---------------------------------------------------------------- the backbone


@pytest.mark.parametrize("options, first", [({}, 8), ({"layer2_stride": 1}, 4)], ids=str)
@pytest.mark.parametrize("height, width", [(224, 224), (96, 160)])
def test_the_maps_are_halved_as_their_names_say(nb, options, first, height, width):
    with torch.device("meta"):
        maps = nb.SimpleBackbone(**options)(torch.empty(2, 3, height, width))
    assert list(maps) == ["C3", "C4", "C5"]
    for i, (c, channels) in enumerate(zip(maps.values(), (512, 1024, 2048))):
        stride = first * 2**i
        assert c.shape == (2, channels, height // stride, width // stride)


@pytest.mark.parametrize("height, width", [(97, 131), (33, 64), (40, 56), (100, 75)])
def test_sizes_are_rounded_up(nb, height, width):
    def sizes(n):
        return [math.ceil(n / 2**level) for level in (3, 4, 5)]

    maps = nb.SimpleBackbone((4, 4, 4, 4))(torch.randn(2, 3, height, width))
    assert [tuple(c.shape[2:]) for c in maps.values()] == list(zip(sizes(height), sizes(width)))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_is_the_number_of_convolutions_per_stage(nb, depth):
    backbone = nb.SimpleBackbone((4, 5, 6, 7), depth)
    convs = convolutions(backbone)
    widths = [w for w in (4, 5, 6, 7) for _ in range(depth)]
    assert [c.out_channels for c in convs] == widths and all(c.bias is None for c in convs)
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert [tuple(c.shape[1:]) for c in maps.values()] == [(5, 8, 12), (6, 4, 6), (7, 2, 3)]


# ---------------------------------------------------------------- the pyramid


def random_maps(*sizes, channels=(5, 6, 7), images=2):
    return [torch.randn(images, c, *size) for c, size in zip(channels, sizes)]


def even_maps():
    return random_maps((8, 12), (4, 6), (2, 3))


def tiny_pyramid(nb, **options):
    fpn = nb.SimpleFPN((5, 6, 7), 4, **options)
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
    for expected in (theirs, nb.torchvision_pyramid(fpn, maps)):
        torch.testing.assert_close(fpn(maps), expected, atol=1e-5, rtol=1e-4)


def test_the_default_pyramid_is_the_papers(nb):
    with torch.device("meta"):
        fpn = nb.SimpleFPN()
    assert fpn.out_channels == 256 and fpn.top_down and nb.count_parameters(fpn) == 2_688_512
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
    mixed = {"C5": maps[2], "other": None, "C3": maps[0], "C4": maps[1]}
    torch.testing.assert_close(fpn(mixed), fpn(maps), atol=0, rtol=0)
    for bad, error in (({"C3": maps[0], "C4": maps[1]}, KeyError), (maps[:2], ValueError)):
        with pytest.raises(error):
            fpn(bad)


@pytest.mark.parametrize("top_down", [True, False])
def test_only_the_top_down_path_joins_the_levels(nb, top_down):
    fpn, maps = tiny_pyramid(nb, top_down=top_down), even_maps()
    before = fpn(maps)
    for changed in range(3):
        after = fpn([c + 1 if i == changed else c for i, c in enumerate(maps)])
        heard = [not torch.equal(a, b) for a, b in zip(after, before)]
        assert heard == [i <= changed if top_down else i == changed for i in range(3)]


def test_the_log_hears_of_four_stages(nb, capsys):
    fpn, maps, heard = tiny_pyramid(nb), even_maps(), []
    pyramid = fpn(maps, log=lambda *stage: heard.append(stage))
    assert [stage[:1] + letter for stage, letter, _ in heard] == ["iC", "1lat_", "2P", "3P"]
    shapes = [[tuple(m.shape) for m in stage[2]] for stage in heard]
    own, fused = ([tuple(m.shape) for m in level] for level in (maps, pyramid))
    assert shapes == [own, fused, fused, fused]
    assert all(map(torch.equal, heard[3][2], pyramid))
    nb.print_stage(*heard[2])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("semantics: ")[1] for line in lines[1:]] == ["own and deeper"] * 2 + ["own"]


@torch.no_grad()
def test_the_pyramid_is_affine_and_a_relu_is_not(nb):
    fpn, a, b = tiny_pyramid(nb), even_maps(), even_maps()
    assert nb.affine_error(fpn, a, b) < 1e-4
    assert nb.affine_error(lambda maps: [p.relu() for p in fpn(maps)], a, b) > 0.1


def test_the_texts_tours(nb, capsys, monkeypatch):
    with torch.device("meta"):  # shapes alone
        pyramid = nb.demonstrate_fpn_features()
        assert [tuple(p.shape) for p in pyramid] == [(1, 256, s, s) for s in (28, 14, 7)]
        monkeypatch.setattr(nb, "demo_focal_loss_effect", lambda: None)
        nb.demo_retinanet_complete(figure=False)
    out = capsys.readouterr().out
    assert "P3 is 28 x 28" in out and "(720, 7, 7), boxes (36, 7, 7)" in out


def test_costs_by_hand(nb):
    layer, x = nn.Conv2d(4, 8, 3, padding=1), torch.empty(1, 4, 5, 6)
    assert nb.gmacs(layer, x) == pytest.approx(5 * 6 * 9 * 4 * 8 / 1e9)
    assert nb.count_parameters(layer) == 9 * 4 * 8 + 8


# ---------------------------------------------------------------- levels


@given(side=st.floats(1, 2000))
def test_a_level_is_a_doubling_in_fpns_rule(nb, side):
    assert 3 <= nb.fpn_level(side) <= 5
    free = {"lowest": -99, "highest": 99}
    level = nb.fpn_level(side, **free)
    assert 224 * 2.0 ** (level - 4) <= side * (1 + 1e-9)
    assert side <= 224 * 2.0 ** (level - 3) * (1 + 1e-9)
    assert nb.fpn_level(2 * side, **free) == level + 1


def centred(side):
    return torch.tensor([[-side, -side, side, side]], dtype=torch.double) / 2


@pytest.mark.parametrize("side", [4, 20, 57, 58, 90, 115, 130, 300, 2000])
def test_retinanets_level_has_the_best_anchor(nb, side):
    best = {
        level: max(
            reference.box_iou(centred(side), centred(2.0 ** (level + 2 + k / 3))).item()
            for k in range(3)
        )
        for level in (3, 4, 5)
    }
    assert best[nb.retinanet_level(side)] == max(best.values())


def test_ranges_of_the_text_and_of_fcos(nb):
    assert [nb.text_level(s) for s in (8, 63.9, 64, 127, 128)] == [3, 3, 4, 4, 5]
    assert [nb.fcos_level(s) for s in (8, 128, 129, 256, 257)] == [3, 3, 4, 4, 5]


def test_best_overlap_is_per_object(nb):
    anchors, objects = random_boxes(30), random_boxes(4, 1)
    expected = reference.box_iou(objects, anchors).amax(dim=1)
    torch.testing.assert_close(nb.best_overlap(anchors, objects), expected)
    assert nb.best_overlap(anchors, NO_BOXES).shape == (0,)


# ---------------------------------------------------------------- the focal loss

SHARES = st.floats(0, 1)
GAMMAS = st.floats(0, 5)


@given(alpha=SHARES, gamma=GAMMAS, logits=st.lists(st.floats(-15, 15), min_size=1, max_size=9))
def test_the_focal_loss_is_torchvisions_and_the_formula(nb, alpha, gamma, logits):
    z = torch.tensor(logits, dtype=torch.double).repeat(2, 1)
    y = torch.stack([torch.zeros(len(logits)), torch.ones(len(logits))]).double()
    ours = nb.FocalLoss(alpha, gamma, "none")(z, y)
    torch.testing.assert_close(ours, sigmoid_focal_loss(z, y, alpha, gamma), atol=1e-9, rtol=1e-6)
    right = 1 / (1 + np.exp(-np.array([[-v for v in logits], logits])))
    weight = np.array([[1 - alpha], [alpha]])
    expected = -weight * (1 - right) ** gamma * np.log(right)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-9)


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
    with pytest.raises(ValueError, match="shapes must be equal"):
        nb.FocalLoss()(torch.zeros(5, 3), torch.zeros(shape))


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.75, 0.5), (0.5, 0.0)])
def test_a_crowd_without_spread_by_pencil(nb, alpha, gamma):
    easy, hard = 99_900 * math.log1p(math.exp(-3)), 100 * math.log1p(math.e)
    wrong = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-1))
    crowd = nb.crowd_losses(alpha, gamma)
    assert crowd["CE"] == pytest.approx((easy, hard)) and round(easy / hard) == 37
    focal = (1 - alpha) * wrong[0] ** gamma * easy, alpha * wrong[1] ** gamma * hard
    assert crowd["FL"] == pytest.approx(focal)


def test_a_crowd_has_its_size_and_its_spread(nb):
    small = nb.crowd_losses(easy=999, hard=7)["CE"]
    whole = nb.crowd_losses()["CE"]
    assert small == pytest.approx((whole[0] * 999 / 99_900, whole[1] * 7 / 100))
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
    assert "100,000 anchors, 100 positive" in out
    assert "easy : hard = 36.96" in out and "easy : hard = 0.47" in out
    assert nb.demo_focal_loss_effect(1000, 10, spread=1.0) == nb.crowd_losses(
        spread=1.0, easy=990, hard=10
    )


def test_figures_show_computed_numbers(nb):
    figures = [nb.visualize_fpn_architecture(), nb.visualize_fpn_architecture(c5_on_top=True)]
    figures += [nb.visualize_focal_loss(), nb.draw_crowd(1.0, 0.0, 0.5)]
    words = []
    for figure in figures:
        figure.canvas.draw()
        words.append("\n".join(t.get_text() for ax in figure.axes for t in ax.texts))
        plt.close(figure)
    assert "512 channels\n28 × 28, stride 8" in words[0] and plt.get_fignums() == []
    easy, hard = nb.crowd_losses()["CE"]
    assert f"{easy:,.1f}" in words[2] and f"{hard:,.1f}" in words[2]
    assert f"{nb.crowd_losses(0.5, 0.0, 1.0)['FL'][0]:,.1f}" in words[3]


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
    head = nb.SimpleRetinaNet(5, 3, 16, depth=2, norm=nb.group_norm, he_init=True)
    assert sum(isinstance(m, nn.GroupNorm) for m in head.modules()) == 4
    p, other = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 2, 3)
    classes, boxes = head([p, other, p])
    assert [tuple(m.shape) for m in classes] == [(2, 15, 4, 6), (2, 15, 2, 3), (2, 15, 4, 6)]
    assert [tuple(m.shape) for m in boxes] == [(2, 12, 4, 6), (2, 12, 2, 3), (2, 12, 4, 6)]
    assert torch.equal(classes[0], classes[2]) and torch.equal(boxes[0], boxes[2])
    before = classes[0].clone()
    head.box_subnet[0].weight.add_(1)
    assert torch.equal(head([p])[0][0], before) and not torch.equal(head([p])[1][0], boxes[0])


def test_anchors_are_counted_with_sizes_rounded_up(nb):
    assert nb.count_anchors(224, 224, (3, 4, 5)) == 9261
    assert nb.count_anchors(100, 70, (4, 6), per_cell=2) == 2 * (7 * 5 + 2 * 2)
    with torch.device("meta"):
        assert nb.count_anchors(128, 64, (3, 4, 5), 6) == len(
            nb.by_anchor([torch.empty(1, 6, 16 >> i, 8 >> i) for i in range(3)], 1)[0]
        )


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


@pytest.mark.parametrize("best_anchor", [False, True])
@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
@given(seed=SEEDS, count=st.integers(1, 9), ties=st.booleans())
def test_matches_are_torchvisions(nb, thresholds, best_anchor, seed, count, ties):
    g = torch.Generator().manual_seed(seed)
    overlap = torch.rand(40, count, generator=g).clamp(min=1e-3)
    overlap = overlap.mul(10).ceil().div(10) if ties else overlap
    matcher = Matcher(*thresholds, allow_low_quality_matches=best_anchor)
    matches = nb.match_anchors(overlap, *thresholds, best_anchor)
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
    assert nb.match_anchors(overlap, best_anchor=False).tolist() == [-1, -1]


# ---------------------------------------------------------------- the detector

IMAGES = {"square": (2, 64, 64), "wide": (1, 96, 120), "high": (2, 128, 64), "odd": (1, 97, 131)}
LEVELS = {
    "all": None,
    "C5 only": {5: (14.0, 19.0, 26.0, 36.0, 46.0, 63.0)},
    "two, coarse first": {4: (26.0,), 3: (16.0,)},
}


@pytest.mark.parametrize("sizes", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("images, height, width", IMAGES.values(), ids=IMAGES)
@torch.no_grad()
def test_there_is_one_answer_per_anchor(nb, sizes, images, height, width):
    model, pixels = tiny_model(nb, sizes=sizes).eval(), torch.randn(images, 3, height, width)
    logits, deltas, anchors = model(pixels)
    sizes = sizes or {3: (16.0, 22.0), 4: (26.0, 36.0), 5: (46.0, 63.0)}
    pyramid = dict(zip((3, 4, 5), model.fpn(model.backbone(pixels))))
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
    assert model.head.num_classes == 3 and model.head.num_anchors == 6 and model.fpn.top_down
    assert sum(isinstance(m, nn.GroupNorm) for m in model.head.modules()) == 4
    plain = tiny_model(nb, norm=None, pi=0.2, top_down=False, depth=1)
    assert not any(isinstance(m, nn.GroupNorm) for m in plain.modules())
    assert plain.head.pi == 0.2 and not plain.fpn.top_down and len(plain.head.box_subnet) == 3
    norm = nb.group_norm(24)
    assert (norm.num_groups, norm.num_channels) == (3, 24)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("images, height, width", IMAGES.values(), ids=IMAGES)
@torch.no_grad()
def test_detections_have_their_form(nb, images, height, width, training):
    model = tiny_model(nb, pi=0.4).train(training)
    nn.init.normal_(model.head.box_subnet[-1].bias, std=4)  # wild boxes
    for options, limit in (({}, 100), ({"top": 7}, 7), ({"score_threshold": 0.41}, 100)):
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
        boxes = reference.clip_boxes(reference.decode_boxes(t, anchors, WEIGHTS), 64, 80)
        expected = []
        for label in range(3):
            score = z[:, label].sigmoid()
            rows = torch.where(score > 0.3)[0]
            rows = rows[nms_reference.nms(boxes[rows], score[rows], iou)]
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
    hardest = nb.DenseLoss(mining=3).hardest(loss, loss > 0, loss <= 0)
    answers = (images, logits, deltas, anchors, none, loss, hardest)
    assert [t.device.type for t in answers] == ["cuda"] * 7


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
        overlap = reference.box_iou(anchors, objects)
        for n, row in enumerate(overlap):
            target, value = torch.zeros(3), max(row.tolist(), default=0.0)
            best = value > 0 and any(row[m] == overlap[:, m].max() > 0 for m in range(len(row)))
            if value >= high or best:
                m = int(row.argmax())
                target[names[m]], positives = 1, positives + 1
                goal = reference.encode_boxes(objects[m : m + 1], anchors[n : n + 1], WEIGHTS)[0]
                distance = (t[n] - goal).abs()
                box += torch.where(distance < 1, distance**2 / 2, distance - 0.5).mean()
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


@pytest.mark.parametrize("names", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
def test_objects_of_any_type_give_the_same_loss(nb, dtype, names):
    answers = *random_answers(2, small_anchors()), small_anchors()
    boxes, labels = objects_of(3, 4)
    boxes = [b.round() for b in boxes]
    expected = nb.DenseLoss()(*answers, boxes, labels)
    odd = [b.to(dtype) for b in boxes], [c.to(names) for c in labels]
    ours = nb.DenseLoss()(*answers, *odd)
    torch.testing.assert_close(ours, expected, check_dtype=False)


def test_the_loss_of_half_precision_answers_is_computed_in_float32(nb):
    anchors, objects = small_anchors(), objects_of(3, 0)
    answers = [(t.detach() * 50).half() for t in random_answers(2, anchors)]
    losses = nb.DenseLoss()(*answers, anchors, *objects)
    assert losses == nb.DenseLoss()(*(t.float() for t in answers), anchors, *objects)


def test_the_loss_refuses_objects_that_are_none(nb):
    answers = *random_answers(1, small_anchors()), small_anchors()
    for box in ([30.0, 8, 8, 30], [8.0, 8, math.nan, 30], [8.0, 8, 30, math.inf]):
        with pytest.raises(ValueError, match=r"^targets\[0\]\['boxes'\] must "):
            nb.DenseLoss()(*answers, [torch.tensor([box])], [torch.tensor([1])])
    for label in (3, -1, 0.5):
        with pytest.raises(ValueError, match=r"^targets\[0\]\['labels'\] must "):
            nb.DenseLoss()(*answers, [torch.tensor([[8.0, 8, 30, 30]])], [torch.tensor([label])])


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


@pytest.mark.parametrize("mining", [None, 3])
@pytest.mark.parametrize("objects", NASTY.values(), ids=NASTY)
def test_nasty_objects_leave_the_model_a_step(nb, objects, mining):
    model = tiny_model(nb).train()
    labels = torch.arange(len(objects)) % 3
    answers = model(torch.randn(2, 3, 96, 120))
    losses = nb.DenseLoss(mining=mining)(*answers, [objects.float(), NO_BOXES], [labels, NO_LABELS])
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert finite_gradients(model)


def learning(nb, counts, mining, logits=None):
    """Which anchors (B, N) learn their class, the matches (B, N), and the losses (B, N)."""
    anchors, (boxes, labels) = small_anchors(), objects_of(*counts)
    logits, deltas = random_answers(len(counts), anchors) if logits is None else logits
    each = nb.FocalLoss(None, 0.0, "none")
    nb.DenseLoss(each, mining=mining)(logits, deltas, anchors, boxes, labels)["class"].backward()
    matches = torch.stack([nb.match_anchors(reference.box_iou(anchors, b)) for b in boxes])
    values = each(logits, torch.zeros_like(logits)).sum(dim=2).detach()
    return (logits.grad != 0).any(dim=2), matches, values


@pytest.mark.parametrize("mining", [1, 3])
@pytest.mark.parametrize("counts", [(1,), (2, 3), (0, 4), (0, 0)], ids=str)
def test_mining_takes_the_hardest_and_no_more(nb, counts, mining):
    for learns, matches, values in zip(*learning(nb, counts, mining)):
        positive, negative = matches >= 0, matches == -1
        assert learns[positive].all() and not learns[matches == -2].any()
        wanted = mining * int(positive.sum())
        assert int(learns[negative].sum()) == wanted < int(negative.sum())
        if wanted:
            assert values[negative & learns].min() >= values[negative & ~learns].max()


def test_mining_more_than_there_are_takes_all(nb):
    learns, matches, _ = learning(nb, (2, 0), mining=10**6)
    assert torch.equal(learns[0], matches[0] != -2) and not learns[1].any()
    learns, matches, _ = learning(nb, (2, 0), mining=None)
    assert torch.equal(learns, matches != -2)


# ---------------------------------------------------------------- training and evaluation


@pytest.fixture
def on_few_images(nb, few_images, monkeypatch):
    """The notebook with a benchmark of four images, a step per short run, and tiny networks."""
    small = {"SHORT": 1, "runs": {}, "histories": {}, "main_ap": {"AP": 0, "AP_small": 0}}
    for name, value in (small | {"train_set": few_images, "test_set": few_images}).items():
        monkeypatch.setattr(nb, name, value, raising=False)
    monkeypatch.setattr(nb, "NETS", {name: net | TINY for name, net in NETS.items()})
    return nb


NETS = {
    "C5 only": {"sizes": LEVELS["C5 only"]},
    "three levels": {"top_down": False},
    "pyramid": {},
}


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_a_few_steps_reduce_the_loss(nb, options):
    model = tiny_model(nb, **options).train()
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
    trained = [nb.train_retinanet(2, seed, net=TINY) for seed in (None, 0, 1)]
    weights = [model.head.cls_subnet[0].weight for model, _ in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for model, history in trained:
        assert not model.training and list(history.columns()) == ["class", "box"]
        assert len(history["box"]) == 2


def test_options_reach_training(on_few_images, monkeypatch):
    nb, seen = on_few_images, []
    original = nb.DenseLoss
    monkeypatch.setattr(nb, "DenseLoss", lambda **o: seen.append(original(**o)) or seen[-1])
    nb.train_retinanet(1, net=TINY)
    nb.train_retinanet(1, net=TINY, mining=3, high=0.6)
    assert [(s.high, s.low, s.mining) for s in seen] == [(0.4, 0.3, None), (0.6, 0.3, 3)]
    assert all((s.classification.alpha, s.classification.gamma) == (0.25, 1.0) for s in seen)


def test_the_experiments_run_on_any_dataset(on_few_images, capsys):
    nb = on_few_images
    found = nb.compare_with_without_fpn((0, 1))
    assert list(found) == list(NETS) and list(nb.runs) == list(nb.histories)
    seeds = {"C5 only": (0,), "three levels": (0, 1), "pyramid": (0, 1)}
    assert list(nb.runs) == [("FPN", name, seed) for name in NETS for seed in seeds[name]]
    assert all(len(v) == len(seeds[name]) for name in NETS for v in found[name].values())
    metrics = nb.short_run("loss", "no norm", net=TINY | {"norm": None})
    assert nb.runs["loss", "no norm", 0] is metrics and metrics["parameters"] > 0
    assert nb.mean_and_spread([0.1, 0.2, 0.6]) == "0.300 ± 0.250"


def test_the_levels_of_objects(on_few_images, few_images):
    nb = on_few_images
    model = tiny_model(nb).eval()
    anchors = model(torch.zeros(1, 3, 128, 128))[2]
    model.forward = lambda images: (torch.zeros(1, len(anchors), 3), anchors[None] * 0, anchors)
    sides, levels = nb.level_of_objects(model)  # of anchors where they stand
    boxes = torch.cat([t["boxes"] for t in few_images.targets])
    best = reference.box_iou(boxes, anchors) >= 0.5
    assert len(sides) == len(levels) == int(best.any(dim=1).sum()) > 0
    ends = torch.tensor([16, 8, 4]).square().mul(6).cumsum(0)
    first = [3 + int((int(row.int().argmax()) >= ends).sum()) for row in best if row.any()]
    assert levels.tolist() == first  # all score the same: the first counts
    torch.testing.assert_close(sides, reference.box_area(boxes).sqrt()[best.any(dim=1)])


@pytest.mark.parametrize("high, low, best_anchor", [(0.4, 0.3, "yes"), (0.8, 0.8, "no")])
def test_levels_are_drawn(on_few_images, few_images, monkeypatch, high, low, best_anchor):
    nb = on_few_images
    anchors = tiny_model(nb)(torch.zeros(2, 3, 128, 128))[2]
    monkeypatch.setattr(nb, "anchors", anchors, raising=False)
    figure = nb.draw_levels(2, high, low, best_anchor)
    titles = [ax.get_title() for ax in figure.axes]
    plt.close(figure)
    overlap = reference.box_iou(anchors, few_images.targets[2]["boxes"])
    matches = nb.match_anchors(overlap, high, low, best_anchor == "yes")
    assert sum(int(title.split()[1]) for title in titles) == int((matches >= 0).sum())
    assert sum(int(title.split()[3]) for title in titles) == int((matches == -2).sum())


# ---------------------------------------------------------------- the exercises


def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    for stub in (None, ...):
        assert "still to do" in nb.check_count(stub)
    assert nb.check_count(sum((512 // s) * (768 // s) for s in (8, 16, 32, 64)) * 9)[0] == "✓"
    check_stubs_and_solutions(nb, {"focal": "check_focal", "normalise": "check_normalise"})
    assert "still to do" in nb.check_extra(nb.ExtraLevels)
    assert nb.check_extra(nb.ExtraLevels_solution).startswith("✓")


@pytest.mark.parametrize(
    "answer, says",
    [
        (8160, "nine anchors"),
        (72576, "P6 is missing"),
        (73656, "P7 is not"),
        (55296, "P3 alone"),
        (221184.0, "not equally large"),
        (0, "0?"),
        (math.nan, "nan?"),
        ("73,440", "73,440?"),
        ([73440], "cells down"),
        (torch.zeros(2, 2), "cells down"),
        (True, "cells down"),
    ],
    ids=str,
)
def test_check_count_names_the_mistake(nb, answer, says):
    message = nb.check_count(answer)
    assert message.startswith("✗") and says in message


def focal_with(p_t=lambda p, y: p if y else 1 - p, alpha=lambda a, y: a if y else 1 - a, **options):
    """A focal loss, some part of which may be wrong."""
    factor, sign = options.get("factor", lambda q, g: (1 - q) ** g), options.get("sign", -1)

    def focal(p, target, a, gamma):
        q = p_t(p, target)
        return sign * alpha(a, target) * factor(q, gamma) * math.log(q)

    return focal


FOCAL = {
    "✓": focal_with(),
    "the truth has the probability 1 - p": focal_with(lambda p, y: p),
    "weighted by 1 - alpha": focal_with(alpha=lambda a, y: a),
    "swapped": focal_with(alpha=lambda a, y: 1 - a if y else a),
    "alpha is missing": focal_with(alpha=lambda a, y: 1),
    "you took p_t ** gamma": focal_with(factor=lambda q, g: q**g),
    "minus the logarithm": focal_with(sign=1),
    "that is cross-entropy": focal_with(factor=lambda q, g: 1),
    "expected 0.2575 and 0.0067": lambda *_: 0.0,
    "one number per call": lambda *_: "0.26",
}


@pytest.mark.parametrize("says, answer", FOCAL.items(), ids=FOCAL)
def test_check_focal_names_the_mistake(nb, says, answer):
    message = nb.check_focal(answer)
    assert says in message and message.startswith("✓" if says == "✓" else "✗")


def normalised(kept=lambda m: m != -2, count=lambda m: max(1, int((m >= 0).sum()))):
    return lambda losses, matches: losses[kept(matches)].sum() / count(matches)


NORMALISED = {
    "✓": normalised(),
    "ignored anchors (-2) must not count": normalised(lambda m: m > -3),
    "positives, not by all anchors": normalised(count=len),
    "positives, not by all that count": normalised(count=lambda m: int((m != -2).sum())),
    "background counts as well": normalised(lambda m: m >= 0),
    "divide the sum by the number": normalised(count=lambda m: 1),
    "must stay finite and count": normalised(count=lambda m: (m >= 0).sum()),
    "divides by zero": lambda v, m: float(v[m != -2].sum()) / int((m >= 0).sum()),
    "✗ expected": lambda v, m: 0.0,
    "one number is needed": lambda v, m: v,
    "one number is needed, got": lambda v, m: "much",
}


@pytest.mark.parametrize("says, answer", NORMALISED.items(), ids=NORMALISED)
def test_check_normalise_names_the_mistake(nb, says, answer):
    message = nb.check_normalise(answer)
    assert says in message and message.startswith("✓" if says == "✓" else "✗")


def extra(padding=1, between=F.relu, own=True, p6_out=lambda p: p, p7_out=lambda p: p, **p7):
    """A class of extra levels, some part of which may be wrong."""

    class Levels(nn.Module):
        def __init__(self, c_in, c_out):
            super().__init__()
            self.p6 = nn.Conv2d(c_in, c_out, 3, stride=2, padding=padding)
            self.p7 = nn.Conv2d(c_out if own else c_in, c_out, 3, p7.get("stride", 2), padding)
            self.more = nn.Conv2d(1, 1, 1) if p7.get("more") else None

        def forward(self, c5):
            p6 = self.p6(c5)
            return [p6_out(p6), p7_out(self.p7(between(p6) if own else c5))]

    return Levels


EXTRA = {
    "✓": extra(),
    "without padding": extra(padding=0),
    "expected (2, 4, 7, 4)": extra(stride=1),
    "found 3": extra(more=True),
    "P6 itself has no ReLU": extra(p6_out=F.relu),
    "the ReLU between": extra(between=lambda p: p),
    "P7 is a ReLU and a convolution on P6": extra(p7_out=F.relu, between=lambda p: p),
    "a convolution on P6": extra(own=False, stride=4),
    "two maps": lambda *_: lambda c5: [c5],
}


@pytest.mark.parametrize("says, answer", EXTRA.items(), ids=EXTRA)
def test_check_extra_names_the_mistake(nb, says, answer):
    message = nb.check_extra(answer)
    assert says in message and message.startswith("✓" if says == "✓" else "✗")
