"""The code of notebook 07 against its oracles, on random and on nasty input."""

import math
from functools import partial
from itertools import product

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from shared import (
    NASTY_BOXES,
    OTHER_FLOATS,
    WIDE_AND_HIGH,
    finite_gradients,
    iou_by_loops,
    nms_by_loops,
    notebook_code,
    objects_of,
    random_boxes,
    stretched,
)
from torch import nn, tensor
from torch.testing import assert_close
from torchvision import ops
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS

from helpers.anchors import grid_anchors
from helpers.shapes import ShapesDataset, benchmark, shape_mask

SEEDS = st.integers(0, 10**6)
NO_BOXES = torch.zeros(0, 4)
RULES = [
    "every level",
    "wide ranges, no centre sampling",
    "wide ranges",
    "no centre sampling",
    "main",
]
EVERY_RULE = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("07_fcos", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        module.LETTERS = list("CST")
        yield module


@pytest.fixture
def few(few_images, nb, monkeypatch):
    """The notebook with a benchmark of four images."""
    for name in ("train_set", "test_set"):
        monkeypatch.setattr(nb, name, few_images, raising=False)
    return few_images


def tiny_model(nb, pi=0.01, **backbone):
    """The complete detector with few channels."""
    options = {"channels": (4, 8, 8, 8), "blocks": (0, 1, 1, 1), "first": 2, "kernel": 3}
    head = nb.FCOSHead(8, 3, depth=1, groups=2, pi=pi, he_init=True)
    return nb.FCOSDetector(3, nb.SimpleBackbone(**options | backbone), head, width=8)


def around(ltrb):
    """The boxes that distances (N, 4) span around the origin."""
    return torch.cat([-ltrb[:, :2], ltrb[:, 2:]], dim=1)


def centerness_by_pencil(left, top, right, bottom):
    x, y = sorted([left, right]), sorted([top, bottom])
    return math.sqrt(x[0] / x[1] * y[0] / y[1])


# ---------------------------------------------------------------- templates, section 1
def test_a_set_of_anchors_serves_by_loops(nb):
    boxes = random_boxes(9)
    for name, base in product(nb.SETS, (1.0, 3.0)):
        strides, scales, ratios = nb.SETS[name]
        anchors = [
            grid_anchors((128 // s, 128 // s), s, (base * s * k,), (r,))
            for s, k, r in product(strides, scales, ratios)
        ]
        best = torch.stack([ops.box_iou(boxes, a).amax(dim=1) for a in anchors]).amax(dim=0)
        assert nb.served(boxes, name, base) == pytest.approx((best >= 0.5).float().mean().item())


@given(seed=SEEDS, factor=st.sampled_from([0.25, 1.0, 4.0]))
def test_stretched_boxes_keep_centre_and_area(nb, seed, factor):
    boxes = random_boxes(7, seed)
    other = nb.stretched(boxes, factor)
    assert_close(other[:, :2] + other[:, 2:], boxes[:, :2] + boxes[:, 2:], rtol=1e-4, atol=1e-3)
    old, new = (b[:, 2:] - b[:, :2] for b in (boxes, other))
    assert_close(new.prod(dim=1), old.prod(dim=1), rtol=1e-3, atol=1e-3)
    assert_close(new[:, 0] / new[:, 1], factor * old[:, 0] / old[:, 1], rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- locations, distances, centre-ness
@pytest.mark.parametrize("stride", [1, 8, 32])
@pytest.mark.parametrize("height, width", [(96, 160), (128, 128), (97, 131), (33, 7), (1, 1)])
def test_locations_are_the_centres_of_the_anchors(nb, height, width, stride):
    cells = math.ceil(height / stride), math.ceil(width / stride)
    anchors = grid_anchors(cells, stride, (16.0,), (1.0,))
    assert_close(nb.locations(height, width, stride), (anchors[:, :2] + anchors[:, 2:]) / 2)


@pytest.mark.parametrize("strides", [(4, 8, 16), (8, 16, 32), (8,)])
def test_all_locations_stand_level_by_level(nb, strides):
    at, stride = nb.all_locations(97, 131, strides)
    levels = [nb.locations(97, 131, s) for s in strides]
    assert torch.equal(at, torch.cat(levels))
    assert stride.tolist() == [s for s, level in zip(strides, levels) for _ in level]


@given(seed=SEEDS, count=st.integers(0, 20), others=st.integers(1, 9))
def test_distances_and_boxes_are_inverse(nb, seed, count, others):
    boxes, at = random_boxes(others, seed), random_boxes(count, seed + 1)[:, :2]
    ltrb = nb.ltrb_of(at[:, None], boxes)
    assert ltrb.shape == (count, others, 4)
    assert nb.ltrb_of(at[:, None], boxes[:0]).shape == (count, 0, 4)
    for m, (box, (x1, y1, x2, y2)) in enumerate(zip(boxes, boxes.tolist())):
        assert_close(nb.boxes_of(at, ltrb[:, m]), box.expand(count, 4), atol=1e-4, rtol=0)
        expected = [[x - x1, y - y1, x2 - x, y2 - y] for x, y in at.tolist()]
        assert_close(ltrb[:, m], torch.Tensor(expected).view(-1, 4), atol=1e-4, rtol=0)


@given(seed=SEEDS, scale=st.sampled_from([0.01, 1.0, 1000.0]), count=st.integers(0, 20))
def test_centerness_by_the_formula(nb, seed, scale, count):
    ltrb = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * scale + 1e-4
    found = nb.centerness_of(ltrb)
    expected = [centerness_by_pencil(*row) for row in ltrb.tolist()]
    assert found.tolist() == pytest.approx(expected, rel=1e-4) and max(expected, default=0) <= 1
    for order in ([2, 1, 0, 3], [0, 3, 2, 1], [1, 0, 3, 2]):  # mirrored, and transposed
        assert_close(nb.centerness_of(ltrb[:, order]), found)
    assert torch.equal(nb.FCOSLoss().compute_centerness_targets(ltrb), found)
    nasty = tensor([[7.0, 3, 7, 3], [0, 0, 0, 0], [0, 10, 20, 10], [0, 0, 20, 20], [0, 9, 0, 9]])
    assert nb.centerness_of(nasty).tolist() == [1, 0, 0, 0, 0]  # centre, point, edge, corner, line


# ---------------------------------------------------------------- who answers for whom
def assign_by_brute_force(at, stride, boxes, ranges, radius):
    answers = []
    for (x, y), s in zip(at.tolist(), stride.tolist()):
        may, (low, high) = [], ranges[s]
        for m, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            off = max(abs(2 * x - x1 - x2), abs(2 * y - y1 - y2)) / 2
            reach = max(x - x1, y - y1, x2 - x, y2 - y)
            if x1 < x < x2 and y1 < y < y2 and low <= reach < high and off < radius * s:
                may.append(((x2 - x1) * (y2 - y1), m))
        answers.append(min(may)[1] if may else -1)
    return answers


NASTY = {
    "no objects": [],
    "a point and a line": [[36, 36, 36, 36], [44, 10, 44, 90]],
    "one centre": [[20, 30, 84, 70], [30, 20, 74, 80], [40, 40, 64, 60]],
    "equal areas": [[8, 8, 56, 40], [20, 4, 52, 52], [8, 8, 56, 40]],
    "on the border": [[0, 0, 40, 30], [100, 80, 160, 96]],
    "edges on locations": [[12, 12, 44, 44], [8, 8, 88, 88], [16, 16, 80, 80]],
    "at the limits of ranges": [[20, 20, 44, 44], [16, 16, 64, 64], [0, 0, 88, 88]],
    "too small for a location": [[5, 5, 5.5, 5.5], [61, 61, 61.9, 61.9]],
    "many": random_boxes(30, 5).tolist(),
} | {name: [box] for name, box in NASTY_BOXES.items()}
EVERY_NASTY = pytest.mark.parametrize("objects", NASTY.values(), ids=NASTY)


def quarters(objects):
    """Boxes on quarters of a pixel, so that areas and distances are exact."""
    return torch.Tensor(objects).view(-1, 4).mul(4).round().div(4)


@EVERY_RULE
@EVERY_NASTY
def test_assignment_by_brute_force(nb, rule, objects):
    boxes, (at, stride) = quarters(objects), nb.all_locations(96, 160)
    options = {"ranges": nb.RANGES, "radius": nb.RADIUS} | nb.RULES[rule]
    found = nb.assign(at, stride, boxes, **nb.RULES[rule])
    assert found.dtype == torch.int64
    assert found.tolist() == assign_by_brute_force(at, stride, boxes, **options)


def test_assignment_by_pencil(nb):
    at, s = tensor([[12.0, 28], [44, 28], [28, 12], [28, 44], [28, 28], [12.5, 28]]), 8
    stride, box = torch.full((6,), s), tensor([[12.0, 12, 44, 44]])
    everywhere = partial(nb.assign, at, stride, radius=math.inf)
    assert everywhere(box, {s: (0, math.inf)}).tolist() == [-1, -1, -1, -1, 0, 0]  # not on an edge
    assert everywhere(box, {s: (16.0, 20.0)}).tolist()[4] == 0  # its longest distance is 16
    assert everywhere(box, {s: (9.0, 16.0)}).tolist()[4] == -1
    for radius, answer in ((2.0, 0), (15.5 / s, -1)):  # at 15.5 pixels: below the radius
        assert nb.assign(at, stride, box, {s: (0, 99)}, radius).tolist()[5] == answer
    pair = tensor([[0.0, 0, 50, 50], [20, 20, 36, 36], [20, 20, 36, 36]])
    assert everywhere(pair, {s: (0, 99)}).tolist()[4:] == [1, 0]  # the smallest, of equal the first


@pytest.mark.parametrize("objects", [random_boxes(6, seed).tolist() for seed in range(4)])
def test_the_last_wins(nb, objects):
    boxes, (at, stride) = quarters(objects), nb.all_locations(64, 96)
    inside = nb.ltrb_of(at[:, None], boxes).amin(dim=2) > 0
    expected = [max((m for m in range(6) if row[m]), default=-1) for row in inside.tolist()]
    assert nb.last_wins(at, stride, boxes).tolist() == expected
    assert (nb.last_wins(at, stride, NO_BOXES) == -1).all()


def torchvisions_matches(boxes, size):
    """Which object each location of torchvision's FCOS answers for: strides 8, 16, 32."""
    generator, kept = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3), []

    class Watched(nn.Module):
        def forward(self, maps):
            shapes = [m.shape for m in maps]
            total = sum(s[2] * s[3] for s in shapes)
            return {name: torch.zeros(1, total, n) for name, n in ANSWERS.items()}

        def compute_loss(self, targets, answers, anchors, matches):
            kept.append((anchors[0], matches[0]))
            return {}

    class Maps(nn.Module):
        out_channels = 1

        def forward(self, images):
            cells = [[math.ceil(n / s) for n in size] for s in (8, 16, 32)]
            return {str(i): images.new_zeros(1, 1, *c) for i, c in enumerate(cells)}

    options = {"head": Watched(), "min_size": min(size), "max_size": max(size)}
    net = FCOS(Maps(), 3, anchor_generator=generator, **options)
    labels = torch.zeros(len(boxes), dtype=torch.long)
    net.train()([torch.rand(3, *size)], [{"boxes": boxes, "labels": labels}])
    return kept[0]


ANSWERS = {"cls_logits": 3, "bbox_regression": 4, "bbox_ctrness": 1}


def test_assignment_is_torchvisions(nb):
    """Its locations are the corners of the cells; its ranges 4 to 8 strides, a radius of 1.5."""
    boxes = random_boxes(9, 3, size=150.0)
    anchors, expected = torchvisions_matches(boxes, (256, 320))
    at = (anchors[:, :2] + anchors[:, 2:]) / 2
    stride = (anchors[:, 2] - anchors[:, 0]).long()
    ranges = {8: (0.0, 64.0), 16: (64.0, 128.0), 32: (128.0, math.inf)}
    found = nb.assign(at, stride, boxes, ranges, 1.5)
    assert (found >= 0).sum() > 20 and torch.equal(found, expected)


# ---------------------------------------------------------------- ATSS
def atss_by_loops(at, stride, boxes, k, side):
    """Algorithm 1 of Zhang et al. 2020, object by object."""
    squares = [[x - side / 2 * s, y - side / 2 * s, x + side / 2 * s, y + side / 2 * s]
               for (x, y), s in zip(at.tolist(), stride.tolist())]  # fmt: skip
    overlap = iou_by_loops(torch.tensor(squares), boxes).tolist()
    wants = [[] for _ in at]
    for m, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        middle, chosen = ((x1 + x2) / 2, (y1 + y2) / 2), []
        for s in sorted(set(stride.tolist())):
            own = [n for n in range(len(at)) if stride[n] == s]
            chosen += sorted(own, key=lambda n: math.dist(at[n].tolist(), middle))[:k]
        values = tensor([overlap[n][m] for n in chosen])
        threshold = (values.mean() + values.std()).item()
        for n in chosen:
            x, y = at[n].tolist()
            if overlap[n][m] >= threshold - 1e-7 and x1 < x < x2 and y1 < y < y2:
                wants[n].append((-overlap[n][m], m))
    return [min(w)[1] if w else -1 for w in wants]


@pytest.mark.parametrize("k, side", [(9, 3.0), (4, 8.0), (1, 5.0)])
@pytest.mark.parametrize("seed", range(3))
def test_atss_by_loops(nb, k, side, seed):
    at, stride = nb.all_locations(64, 96)
    boxes = random_boxes(5, seed) + tensor([0.013, 0.027, 0.041, 0.059])  # no two alike
    found = nb.atss(at, stride, boxes, k, side)
    assert found.tolist() == atss_by_loops(at, stride, boxes, k, side) and (found >= 0).any()


def test_atss_of_nothing_and_of_few_places(nb):
    at, stride = nb.all_locations(32, 32)  # four locations on the coarsest level: fewer than k
    assert (nb.atss(at, stride, NO_BOXES) == -1).all()
    match = nb.atss(at, stride, tensor([[2.0, 2, 30, 30]]))
    assert set(stride[match == 0].tolist()) == {8} and (match >= -1).all()
    assert nb.candidates(at, stride, tensor([[2.0, 2, 30, 30]]), 9).sum() == 9 + 9 + 4


@EVERY_NASTY
@pytest.mark.parametrize("rule", ["atss", "last_wins", "assign"])
def test_every_rule_names_objects_around(nb, rule, objects):
    boxes, (at, stride) = quarters(objects), nb.all_locations(96, 160)
    match = getattr(nb, rule)(at, stride, boxes)
    assert match.shape == (len(at),) and match.dtype == torch.int64
    mine = match >= 0
    assert (match < max(1, len(boxes))).all() and (match >= -1).all()
    assert (nb.ltrb_of(at[mine], boxes[match[mine]]) > 0).all()


# ---------------------------------------------------------------- targets of a batch
@EVERY_RULE
@pytest.mark.parametrize("counts", [(3, 0, 1), (0, 0), (7, 12)], ids=str)
def test_targets_of_a_batch(nb, rule, counts):
    boxes, labels = objects_of(*counts)
    rule = partial(nb.assign, **nb.RULES[rule])
    classes, goals = nb.targets_of(boxes, labels, (96, 128), rule)
    at, stride = nb.all_locations(96, 128)
    assert classes.shape == (len(counts), len(at)) and goals.shape == (len(counts), len(at), 4)
    assert classes.dtype == torch.int64
    for b, k, said, ltrb in zip(boxes, labels, classes, goals):
        match = rule(at, stride, b)
        assert said.tolist() == [int(k[m]) if m >= 0 else -1 for m in match.tolist()]
        mine = match >= 0
        assert_close(nb.boxes_of(at, ltrb)[mine], b[match[mine]])
    assert (classes >= 0).any() == (sum(counts) > 0) and goals.isfinite().all()


def test_as_many_labels_as_boxes(nb):
    boxes, labels = objects_of(2, 3)
    with pytest.raises(ValueError, match="shorter"):
        nb.targets_of(boxes, labels[:1], (64, 64))


def test_the_plain_data_and_its_batches(nb):
    data, shapes = nb.SyntheticObjectDataset(3, seed=5), ShapesDataset(3, 5, "lecture")
    samples = [data[i] for i in range(len(data))]
    images, levels = nb.collate_fn(samples)  # [image][level] -> [level][image]
    assert torch.equal(images, shapes.images) and len(levels) == 3
    for (i, target), level in product(enumerate(shapes.targets), range(3)):
        _, targets, boxes, classes = samples[i]
        assert_close({"boxes": boxes, "labels": classes}, target)
        labels, ltrb = (part[i] for part in levels[level])
        assert torch.equal(labels, targets[level][0]) and torch.equal(ltrb, targets[level][1])
        assert (ltrb[labels < 0] == 0).all()
        at = nb.locations(224, 224, data.strides[level])
        found = nb.boxes_of(at, ltrb)[labels >= 0]
        distance, own = (found[:, None] - boxes).abs().amax(dim=2).min(dim=1)
        assert (distance < 1e-3).all() and torch.equal(classes[own], labels[labels >= 0])
    assert sum((labels >= 0).any(dim=1) for labels, _ in levels).min() > 0
    labels, ltrb = data.encode_targets(NO_BOXES, torch.zeros(0, dtype=torch.long))[0]
    assert (labels == -1).all() and not ltrb.any()


@EVERY_RULE
def test_the_census_by_loops(nb, rule):
    boxes, _ = objects_of(3, 1, 9)
    options, targets = nb.RULES[rule], [{"boxes": b} for b in boxes]
    at, stride = nb.all_locations(128, 128)
    levels, answered, choices = [], set(), 0
    for i, b in enumerate(boxes):
        alone = [nb.assign(at, stride, box[None], **options).tolist() for box in b]
        for n, m in enumerate(nb.assign(at, stride, b, **options).tolist()):
            if m >= 0:
                levels.append(stride[n].item())
                answered.add((i, m))
                choices += sum(column[n] == 0 for column in alone) > 1
    per_object, *shares, without, choice = nb.census(targets, **options)
    assert per_object == f"{len(levels) / 13:.1f}" and without == f"{1 - len(answered) / 13:.1%}"
    assert shares == [f"{levels.count(s) / len(levels):.0%}" for s in nb.STRIDES]
    assert choice == f"{choices / len(levels):.1%}"


# ---------------------------------------------------------------- backbone, pyramid, head, detector
@pytest.mark.parametrize("first", [2, 3])
@pytest.mark.parametrize("height, width", [(224, 224), (96, 160), (97, 131), (33, 70), (1, 1)])
def test_strides_and_channels_of_the_backbone(nb, first, height, width):
    with torch.device("meta"):
        maps = nb.SimpleBackbone(first=first)(torch.empty(2, 3, height, width))
    assert list(maps) == [f"C{level}" for level in range(first, first + 3)]
    for (name, c), channels in zip(maps.items(), (128, 256, 512)):
        s = 2 ** int(name[1])
        assert c.shape == (2, channels, math.ceil(height / s), math.ceil(width / s))


def test_layers_of_the_backbone(nb):
    with torch.device("meta"):
        backbone, ours = nb.SimpleBackbone(), nb.SimpleBackbone(**nb.OURS)
        layer = backbone._make_layer(5, 7, 3, 2)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size[0] for c in convs] == [7] + [3] * 8
    assert [c.stride[0] for c in convs] == [2, 1, 1, 2, 1, 2, 1, 2, 1]
    assert sum(isinstance(m, nn.MaxPool2d) for m in backbone.modules()) == 1
    assert [type(m) for block in layer for m in block] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    assert [(b[0].in_channels, b[0].out_channels, b[0].stride) for b in layer] == [
        (5, 7, (2, 2)),
        (7, 7, (1, 1)),
        (7, 7, (1, 1)),
    ]
    assert len(ours.layer1) == 0 and [len(ours.layer2), len(ours.layer4)] == [2, 2]
    assert not any(isinstance(m, nn.MaxPool2d) for m in ours.modules())


@pytest.mark.parametrize("height, width", [(12, 20), (13, 17), (1, 9)])
def test_the_pyramid_is_torchvisions(nb, height, width):
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in (1, 2, 4)]
    ours, theirs = nb.FPN((3, 5, 7), 8), ops.FeaturePyramidNetwork([3, 5, 7], 8)
    assert all((conv.bias == 0).all() for conv in (*ours.lateral, *ours.output))
    others = (*theirs.inner_blocks, *theirs.layer_blocks)
    for mine, other in zip((*ours.lateral, *ours.output), others):
        nn.init.normal_(mine.bias)
        other[0].load_state_dict(mine.state_dict())
    features = {f"C{3 + i}": torch.randn(2, 3 + 2 * i, *size) for i, size in enumerate(sizes)}
    for p, expected, size in zip(ours(features), theirs(features).values(), sizes):
        assert p.shape == (2, 8, *size)
        assert_close(p, expected, atol=1e-4, rtol=1e-4)


def test_the_head_as_in_the_paper(nb):
    head, other = nb.FCOSHead(), nb.FCOSHead(64, 3, levels=5, pi=0.1, groups=8, he_init=True)
    for tower in (head.cls_tower, head.reg_tower):
        assert [type(m) for m in tower] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 4
        assert all(m.num_groups == 32 and m.num_channels == 256 for m in tower[1::3])
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(c.out_channels for c in convs) == [1, 4, 80] + [256] * 8
    assert all((c.in_channels, c.kernel_size, c.padding) == (256, (3, 3), (1, 1)) for c in convs)
    assert all(c.weight.std().item() == pytest.approx(0.01, rel=0.1) for c in convs)
    assert all((c.bias == 0).all() for c in convs if c is not head.cls_logits)
    for h, pi, levels in ((head, 0.01, 3), (other, 0.1, 5)):
        assert_close(h.cls_logits.bias.sigmoid(), torch.full_like(h.cls_logits.bias, pi))
        assert [s.scale.item() for s in h.scales] == [1.0] * levels
    for conv in (*other.cls_tower[::3], *other.reg_tower[::3]):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)


@pytest.mark.parametrize("kind", ["FCOSHead", "ReLUHead"])
def test_the_head_scales_each_level(nb, kind):
    head, x = getattr(nb, kind)(8, 3, depth=1, groups=2), torch.randn(2, 8, 3, 5)
    nn.init.normal_(head.reg_pred.weight)
    for level, factor in enumerate((0.5, 2.0, -3.0, 1e6)):
        nn.init.constant_(head.scales[level % 3].scale, factor)
        logits, ltrb, centerness = head(x, level % 3)
        raw = factor * head.reg_pred(head.reg_tower(x))
        assert_close(ltrb, raw.clamp(max=8).exp() if kind == "FCOSHead" else raw.clamp(min=0))
        assert torch.equal(logits, head.cls_logits(head.cls_tower(x)))
        assert torch.equal(centerness, head.centerness(head.reg_tower(x)))
        assert [m.shape for m in (logits, ltrb, centerness)] == [(2, c, 3, 5) for c in (3, 4, 1)]
    ltrb.sum().backward()
    gradients = [s.scale.grad for s in head.scales]
    assert gradients[0].isfinite() and gradients[1:] == [None, None]


@pytest.mark.parametrize("images, height, width", [(2, 224, 224), (1, 96, 160), (1, 97, 131)])
@pytest.mark.parametrize("first", [2, 3])
@torch.no_grad()
def test_three_lists_of_any_size(nb, first, images, height, width):
    model, x = tiny_model(nb, first=first).eval(), torch.randn(images, 3, height, width)
    strides = [2**first, 2 ** (first + 1), 2 ** (first + 2)]
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in strides]
    lists = model(x)
    assert model.strides == strides
    for maps, channels in zip(lists, (3, 4, 1)):
        assert [tuple(m.shape) for m in maps] == [(images, channels, *size) for size in sizes]
    cells = [len(nb.locations(height, width, s)) for s in strides]
    assert cells == [math.prod(size) for size in sizes] and all((m > 0).all() for m in lists[1])
    model.strides = [1, 1, 1]  # the same numbers, in pixels
    for before, after in zip(lists, model(x)):
        factors = strides if before is lists[1] else (1, 1, 1)
        assert all(torch.equal(b, k * a) for k, b, a in zip(factors, before, after))
    flat = nb.flatten(lists[1])
    assert flat.shape == (images, sum(cells), 4)
    row, column = sizes[1][0] - 1, sizes[1][1] // 2
    place = cells[0] + row * sizes[1][1] + column
    assert torch.equal(flat[:, place], lists[1][1][:, :, row, column])


def test_the_default_detector_is_slim(nb):
    with torch.device("meta"):
        model, pixels = nb.FCOSDetector(), nb.InPixels()
    assert model.strides == list(nb.STRIDES) and pixels.strides == [1, 1, 1]
    assert sum(p.numel() for p in model.parameters()) < 500_000


def test_nothing_is_left_on_the_cpu(nb, pretended_gpu):
    model = tiny_model(nb).to("cuda")
    lists = model(torch.zeros(2, 3, 64, 64, device="cuda"))
    boxes = [torch.tensor([[4.0, 6, 30, 40]] * n, device="cuda").reshape(-1, 4) for n in (2, 0)]
    labels = [torch.zeros(n, dtype=torch.long, device="cuda") for n in (2, 0)]
    targets = nb.targets_of(boxes, labels, (64, 64))
    losses = nb.FCOSLoss()(lists, *targets)
    (found, _) = nb.decode_predictions(lists, (64, 64), threshold=0.0)
    answers = (*sum(lists, []), *targets, *losses.values(), *found.values())
    assert [t.device.type for t in answers] == ["cuda"] * (9 + 2 + 3 + 3)


# ---------------------------------------------------------------- focal and IoU loss
@given(seed=SEEDS, alpha=st.sampled_from([0.25, 0.7]), gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_focal_loss_is_torchvisions(nb, seed, alpha, gamma):
    g = torch.Generator().manual_seed(seed)
    z, y = 4 * torch.randn(30, 3, generator=g), torch.randint(0, 2, (30, 3), generator=g).float()
    expected = ops.sigmoid_focal_loss(z, y, alpha, gamma, reduction="sum")
    assert_close(nb.FocalLoss(alpha, gamma)(z, y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [17.0, 120.0, 1e4, -17.0, -120.0, -1e4])
def test_extreme_logits_have_finite_gradients(nb, gamma, size):
    y = tensor([1.0, 0, 1, 0])  # weights 0.25, 0.75, 0.25, 0.75
    z = (size * (2 * y - 1)).requires_grad_()
    loss = nb.FocalLoss(0.25, gamma)(z, y)
    loss.backward()
    assert z.grad.isfinite().all() and loss.item() == pytest.approx(max(0, -2 * size), 1e-4, 1e-2)


@given(seed=SEEDS, scale=st.sampled_from([0.1, 1.0, 100.0]))
def test_iou_of_distances_is_torchvisions(nb, seed, scale):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(20, 4, generator=g) * 50 + 0.5 for _ in range(2))
    expected = ops.box_iou(around(a), around(b)).diagonal()
    assert_close(nb.IoULoss.iou(scale * a, scale * b), expected, atol=1e-4, rtol=0)
    assert_close(nb.IoULoss()(a, b), (1 - expected).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", [1 / 128, 1 / 4000, 1e-3])
def test_iou_of_distances_in_any_unit(nb, unit):
    a, b = tensor([[3.0, 1, 2, 4]]), tensor([[2.0, 2, 2, 3]])
    assert_close(nb.IoULoss.iou(a * unit, b * unit), nb.IoULoss.iou(a, b), atol=1e-3, rtol=0)
    assert_close(nb.IoULoss.iou(a * unit, a * unit), torch.ones(1), atol=1e-3, rtol=0)


def test_distances_of_zero_are_survived(nb):
    nothing, line, box = torch.zeros(1, 4), tensor([[0.0, 3, 0, 3]]), torch.full((1, 4), 5.0)
    for pred, target in product((nothing, line, box), repeat=2):
        said = pred.clone().requires_grad_()
        loss = nb.IoULoss()(said, target)
        loss.backward()
        assert loss.item() == pytest.approx(0 if pred is target is box else 1)
        assert said.grad.isfinite().all()
    assert nb.IoULoss()(nothing[:0], nothing[:0]) == 0


# ---------------------------------------------------------------- the loss over all levels
SHAPES = ((3, 4), (2, 3), (1, 2))  # cells of three levels


def random_batch(share, images=2):
    """Answers and targets in which about that share of the locations is positive."""
    lists = ([], [], [])
    for rows, columns in SHAPES:
        for maps, channels in zip(lists, (3, 4, 1)):
            values = torch.randn(images, channels, rows, columns)
            maps.append((20 * values.abs() + 1 if channels == 4 else values).requires_grad_())
    count = sum(rows * columns for rows, columns in SHAPES)
    classes = torch.randint(0, 3, (images, count))
    classes[torch.rand(classes.shape) >= share] = -1
    return lists, classes, torch.rand(*classes.shape, 4) * 30 + 1


def losses_by_loops(lists, classes, goals, alpha=0.25, gamma=1.0):
    focal = box = centre = 0.0
    for image in range(len(classes)):
        place = 0
        for logits, ltrb, quality in zip(*lists):
            for i, j in product(*map(range, logits.shape[2:])):
                label, goal = int(classes[image, place]), goals[image, place]
                truth = tensor([float(k == label) for k in range(3)])
                z = logits[image, :, i, j].detach()
                focal += ops.sigmoid_focal_loss(z, truth, alpha, gamma, "sum").item()
                if label >= 0:
                    said = ltrb[image, :, i, j].detach()
                    box += 1 - ops.box_iou(around(said[None]), around(goal[None])).item()
                    target = centerness_by_pencil(*goal.tolist())
                    p = 1 / (1 + math.exp(-quality[image, 0, i, j].item()))
                    centre -= target * math.log(p) + (1 - target) * math.log(1 - p)
                place += 1
    return [part / max(1, int((classes >= 0).sum())) for part in (focal, box, centre)]


@pytest.mark.parametrize("share", [0.4, 0.05, 1.0, 0.0])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "gamma": 2.0}], ids=str)
def test_the_loss_by_loops(nb, options, share):
    lists, classes, goals = random_batch(share)
    parts = nb.FCOSLoss(**options)(lists, classes, goals)
    assert list(parts) == ["focal", "iou", "centerness"]
    found = [part.item() for part in parts.values()]
    assert found == pytest.approx(losses_by_loops(lists, classes, goals, **options), rel=1e-4)
    some = bool((classes >= 0).any())
    assert [v > 0 for v in found] == [True, some, some]
    turned = [[m.flip(0) for m in maps] for maps in lists], classes.flip(0), goals.flip(0)
    assert_close(nb.FCOSLoss(**options)(*turned), parts)  # the order of the images is no matter
    sum(parts.values()).backward()
    logits, ltrb, centerness = (nb.flatten([m.grad for m in maps]) for maps in lists)
    assert (logits != 0).all() and all(g.isfinite().all() for g in (logits, ltrb, centerness))
    assert torch.equal((ltrb != 0).any(dim=2), classes >= 0)  # only positives hear
    assert (centerness[classes < 0] == 0).all()


def test_the_sum_of_the_parts_has_no_other_divisor(nb):
    """Each positive weighs the same, whatever its level."""
    lists, classes, goals = random_batch(0.5)
    nb.FCOSLoss()(lists, classes, goals)["centerness"].backward()
    slopes = nb.flatten([m.grad for m in lists[2]])[..., 0][classes >= 0]
    said = nb.flatten(lists[2])[..., 0][classes >= 0].sigmoid()
    expected = (said - nb.centerness_of(goals[classes >= 0])) / (classes >= 0).sum()
    assert_close(slopes, expected)


@pytest.mark.parametrize("kind", OTHER_FLOATS, ids=str)
def test_other_floats_give_the_loss_and_boxes_of_float32(nb, kind):
    lists, classes, goals = random_batch(0.5)
    halves = [[m.detach().to(kind) for m in maps] for maps in lists]
    floats = [[m.float() for m in maps] for maps in halves]
    assert_close(*(nb.FCOSLoss()(maps, classes, goals) for maps in (halves, floats)))
    strides = (8, 12, 24)  # of maps of 3 x 4, 2 x 3 and 1 x 2 cells
    answers = [
        nb.decode_predictions(maps, (24, 32), strides, threshold=0.0) for maps in (halves, floats)
    ]
    assert_close(*answers)
    assert len(answers[0][0]["boxes"]) > 0


def test_centerness_and_reach_of_the_positives(nb, few, few_images):
    at, stride = nb.all_locations(128, 128)
    for options in nb.RULES.values():
        places, reach = [], []
        for target in few_images.targets:
            match = nb.assign(at, stride, target["boxes"], **options)
            mine = match >= 0
            ltrb = nb.ltrb_of(at[mine], target["boxes"][match[mine]])
            places += [centerness_by_pencil(*row) for row in ltrb.tolist()]
            reach += (ltrb.amax(dim=1) / stride[mine]).tolist()
        found = nb.of_positives(options)
        assert found[0].tolist() == pytest.approx(places, 1e-4)
        assert found[1].tolist() == pytest.approx(reach, 1e-4)


def test_shares_below(nb):
    values, grid = tensor([3.0, 1, 2, 2]), tensor([0.0, 1, 1.5, 2, 2.5, 9])
    assert nb.shares_below(values, grid).tolist() == [0, 0, 0.25, 0.25, 0.75, 1]


# ---------------------------------------------------------------- from distances to boxes
def perfect(nb, boxes, labels, size, rule):
    """What a perfect network answers for one image: three lists of maps."""
    classes, goals = nb.targets_of([boxes], [labels], size, rule)
    logits = 40.0 * F.one_hot(classes + 1, 4)[..., 1:] - 20.0
    quality = nb.centerness_of(goals.clamp(min=0))[..., None].logit(eps=1e-6)
    cells = [[math.ceil(n / s) for n in size] for s in nb.STRIDES]
    lists = []
    for flat in (logits, goals.clamp(min=0), quality):
        parts = flat.split([math.prod(c) for c in cells], dim=1)
        lists.append([p.transpose(1, 2).unflatten(2, c) for p, c in zip(parts, cells)])
    return lists


@pytest.mark.parametrize("rule", ["assign", "atss", "last_wins"])
@pytest.mark.parametrize("size", [(96, 160), (97, 131), (128, 128)], ids=str)
def test_reading_is_the_inverse_of_writing(nb, rule, size):
    boxes = tensor([[10.0, 10, 40, 34], [50, 20, 120, 90], [4, 60, 20, 92]])
    lists = perfect(nb, boxes, tensor([2, 0, 1]), size, getattr(nb, rule))
    (found,) = nb.decode_predictions(lists, size)
    overlap, own = ops.box_iou(boxes, found["boxes"]).max(dim=1)
    assert (overlap > 0.999).all() and found["labels"][own].tolist() == [2, 0, 1] and len(own) == 3


@pytest.mark.parametrize("use, iou", [(True, 0.3), (False, 0.5), (True, 1.0)])
@pytest.mark.parametrize("threshold, top", [(0.05, 1000), (0.4, 100), (0.1, 5), (1.0, 100)])
@pytest.mark.parametrize("size", [(40, 56), (33, 70)], ids=str)
def test_decoding_by_loops(nb, size, use, iou, threshold, top):
    shapes = [[math.ceil(n / s) for n in size] for s in (8, 16, 32)]
    lists = [[torch.randn(2, c, *s) for s in shapes] for c in (3, 4, 1)]
    lists[1] = [20 * m.abs() for m in lists[1]]
    found = nb.decode_predictions(lists, size, (8, 16, 32), threshold, iou, top, use)
    for n in range(2):
        rows = []
        for stride, logits, ltrb, quality in zip((8, 16, 32), *lists):
            for i, j in product(*map(range, logits.shape[2:])):
                p = logits[n, :, i, j].sigmoid()
                p = (p * quality[n, 0, i, j].sigmoid()).sqrt() if use else p
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                box = tensor([x, y, x, y]) + ltrb[n, :, i, j] * tensor([-1, -1, 1, 1])
                box = [min(max(v, 0), size[1 - k % 2]) for k, v in enumerate(box.tolist())]
                rows.append((p.max().item(), box, p.argmax().item()))
        rows = sorted((r for r in rows if r[0] > threshold), key=lambda r: -r[0])
        scores, boxes = tensor([r[0] for r in rows]), tensor([r[1] for r in rows]).view(-1, 4)
        labels = tensor([r[2] for r in rows], dtype=torch.long)
        keep = nms_by_loops(boxes, scores, labels, iou)
        expected = [column[keep][:top] for column in (boxes, scores, labels)]
        assert_close([*found[n].values()], expected)
        assert (len(found[n]["boxes"]) > 0) == (threshold < 1)


@torch.no_grad()
def test_no_image_no_detections(nb):
    assert nb.detector_of(tiny_model(nb))(torch.zeros(0, 3, 64, 96)) == []


@torch.no_grad()
def test_a_model_becomes_a_detector(nb):
    model, x = tiny_model(nb, pi=0.4).eval(), torch.randn(2, 3, 97, 131)
    found = nb.detector_of(model, threshold=0.1, top=7)(x)
    assert [len(f["boxes"]) for f in found] == [7, 7]
    assert_close(found, nb.decode_predictions(model(x), (97, 131), threshold=0.1, top=7))


# ---------------------------------------------------------------- training
@EVERY_NASTY
def test_nasty_objects_leave_the_model_a_step(nb, objects):
    model, boxes = tiny_model(nb).train(), torch.Tensor(objects).view(-1, 4)
    labels = torch.arange(len(boxes)) % 3
    for rule in (nb.assign, nb.atss, nb.last_wins):
        targets = nb.targets_of([boxes, NO_BOXES], [labels, labels[:0]], (96, 160), rule)
        losses = nb.FCOSLoss()(model(torch.randn(2, 3, 96, 160)), *targets)
        assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
        sum(losses.values()).backward()
    assert finite_gradients(model)


def test_training_learns_and_repeats(nb, few):
    trained = [nb.train_fcos(10, seed, lambda: tiny_model(nb)) for seed in (0, 0, 1)]
    weights = [model.head.reg_pred.weight for model, _ in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for model, history in trained:
        assert not model.training and list(history.columns()) == ["focal", "iou", "centerness"]
        totals = [sum(parts) for parts in zip(*history.columns().values())]
        assert len(totals) == 10 and sum(totals[-3:]) < 0.97 * sum(totals[:3])


def test_the_rule_and_the_loss_reach_the_training(nb, few):
    asked = []

    def nobody(at, stride, boxes):
        asked.append(len(boxes))
        return torch.full_like(stride, -1)

    _, history = nb.train_fcos(1, 0, lambda: tiny_model(nb), nb.FCOSLoss(0.25, 2.0), nobody)
    assert len(asked) == 4 and history["iou"] == history["centerness"] == [0.0]


@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_images_that_are_not_square(nb, few_images, monkeypatch, size):
    for name in ("train_set", "test_set"):
        monkeypatch.setattr(nb, name, stretched(few_images, *size), raising=False)
    model, history = nb.train_fcos(1, 0, lambda: tiny_model(nb))
    assert all(math.isfinite(v[0]) for v in history.columns().values())
    monkeypatch.setattr(nb, "model", model, raising=False)
    assert len(nb.box_quality()[0]) > 0
    extents = [ax.images[-1].get_extent() for ax in nb.show_maps(1).axes[1:4]]
    assert extents == [[-0.5, size[1] - 0.5, size[0] - 0.5, -0.5]] * 3


def test_training_on_the_plain_shapes(nb, monkeypatch, capsys):
    model, history = nb.train_on_shapes(1, num_samples=4)
    assert list(history) == ["total", "focal", "iou", "centerness"] and not model.training
    assert all(len(h) == 1 and 0 < h[0] < math.inf for h in history.values())
    assert "epoch 1: total" in capsys.readouterr().out and model.strides == [8, 16, 32]


# ---------------------------------------------------------------- looking inside
@pytest.mark.parametrize("factor, quality", [(1.0, 1.0), (0.5, 0.25)])
def test_quality_of_known_boxes(nb, few, few_images, monkeypatch, factor, quality):
    rule, answers, positives = partial(nb.assign, radius=math.inf), [], 0
    for t in few_images.targets:
        lists = perfect(nb, t["boxes"], t["labels"], (128, 128), rule)
        answers.append((lists[0], [factor * m for m in lists[1]], lists[2]))
        classes, _ = nb.targets_of([t["boxes"]], [t["labels"]], (128, 128), rule)
        positives += int((classes >= 0).sum())
    monkeypatch.setattr(nb, "model", lambda _: answers.pop(0), raising=False)
    found, true, claimed = nb.box_quality()
    assert_close(found, torch.full_like(found, quality), atol=1e-4, rtol=0)
    assert len(found) == len(true) == len(claimed) == positives
    assert_close(claimed, true, atol=1e-4, rtol=0)


@torch.no_grad()
def test_first_boxes(nb, few):
    empty, iou = nb.first_boxes(nb.FCOSDetector, nb.FCOSHead, 0)
    assert empty == 0 and 0.1 < iou < 0.9
    assert nb.first_boxes(nb.InPixels, nb.FCOSHead, 0)[1] < iou  # boxes of two pixels
    assert nb.first_boxes(nb.InPixels, nb.ReLUHead, 0)[0] > 0


def test_locations_are_explained(nb):
    places = {(64, 64): "1.00; longest 35 px: P4", (44, 64): "P4", (0, 0): "outside"}
    places |= {(29, 64): "outside", (64, 89): "outside", (97, 64): "nobody would answer"}
    for (x, y), said in places.items():
        ax, _ = nb.show_location(x, y).axes
        assert said in ax.get_title(), (x, y, ax.get_title())
        assert len(ax.texts) == (0 if said == "outside" else 4)
        plt.close("all")
    ax, right = nb.show_location(64, 64, 20, 18).axes
    assert "P2 would answer" in ax.get_title()
    counts = [int(t.get_text().split()[1]) for t in right.get_legend().get_texts()]
    match = nb.assign(*nb.all_locations(128, 128), tensor([[54.0, 55, 74, 73]]))
    assert sum(counts) == int((match == 0).sum()) > 0


def test_rules_maps_and_candidates_are_drawn(nb, few, few_images, monkeypatch):
    titles = [ax.get_title() for ax in nb.show_rules(0).axes]
    assert [title[:2] for title in titles] == ["P2", "P3", "P4"] * 2
    at, stride = nb.all_locations(128, 128)
    match = nb.assign(at, stride, few_images.targets[0]["boxes"])
    assert sum(int(t.split()[1]) for t in titles[3:]) == int((match >= 0).sum())
    monkeypatch.setattr(nb, "model", tiny_model(nb, pi=0.4).eval(), raising=False)
    assert len(nb.show_maps(1).axes) == 8
    many = max(range(4), key=lambda i: len(few_images.targets[i]["boxes"]))
    count = min(3, len(few_images.targets[many]["boxes"]))
    assert len(nb.show_atss(many).axes) == 1 + count


# ---------------------------------------------------------------- what the page says of its data
def positives(nb, **options):
    """Positives of the first 300 training images under options of `assign`."""
    at, stride = nb.all_locations(128, 128)
    return sum(
        (nb.assign(at, stride, t["boxes"], **options) >= 0).sum().item()
        for t in benchmark("train").targets[:300]
    )


def test_what_centre_sampling_takes_away(nb):
    inside = {"radius": math.inf}
    assert positives(nb) / positives(nb, **inside) == pytest.approx(6 / 7, abs=0.01)
    wide = {"ranges": nb.WIDE}
    assert positives(nb, **wide) / positives(nb, **wide, **inside) == pytest.approx(0.3, abs=0.02)


def test_very_wide_objects_mostly_keep_a_positive(nb):
    at, stride = nb.all_locations(128, 128)
    boxes = torch.cat([t["boxes"] for t in benchmark("train").targets[:300]])
    wide = nb.stretched(boxes, 6.0)
    kept = [(nb.assign(at, stride, box[None]) >= 0).any() for box in wide]
    assert 0.85 < torch.stack(kept).float().mean() < 0.9


def test_a_quarter_of_the_locations_inside_is_not_on_the_object(nb):
    at, on = nb.locations(128, 128, 4), []
    x, y = at.long().T
    for t in benchmark("train").targets[:80]:
        for box, label in zip(t["boxes"], t["labels"].tolist()):
            mask = torch.from_numpy(shape_mask(label, box.int().tolist(), 128))
            on.append(mask[y, x][nb.ltrb_of(at, box).amin(dim=1) > 0])
    assert 0.75 < torch.cat(on).float().mean() < 0.8


def test_mean_distances_by_level(nb):
    targets = benchmark("train").targets[:300]
    columns = ([t[key] for t in targets] for key in ("boxes", "labels"))
    classes, goals = nb.targets_of(*columns, (128, 128))
    _, stride = nb.all_locations(128, 128)
    at = stride.expand(len(classes), -1)
    means = [goals[(classes >= 0) & (at == s)].mean().item() for s in nb.STRIDES]
    assert means == pytest.approx([8, 15, 24], abs=0.5)


def answers_of(nb, rule, images=300):
    """Per training image who answers (L,), by `rule`, and the boxes."""
    at, stride = nb.all_locations(128, 128)
    targets = benchmark("train").targets[:images]
    return [(rule(at, stride, t["boxes"]), t["boxes"]) for t in targets]


def test_how_many_positives_lie_near_an_edge(nb):
    at, _ = nb.all_locations(128, 128)
    rules = [partial(nb.assign, **nb.RULES[name]) for name in ("main", "wide ranges")]
    rules += [partial(nb.assign, **nb.RULES["wide ranges, no centre sampling"])]
    rules += [partial(nb.assign, **nb.EVERY_LEVEL), nb.atss]
    shares = []
    for rule in rules:
        central = [
            nb.centerness_of(nb.ltrb_of(at[match >= 0], boxes[match[match >= 0]]))
            for match, boxes in answers_of(nb, rule)
        ]
        shares.append(100 * (torch.cat(central) < 0.3).float().mean().item())
    assert shares == pytest.approx([30, 9, 42, 48, 4], abs=0.9)


def test_an_object_in_four_has_two_levels_under_atss(nb):
    _, stride = nb.all_locations(128, 128)
    levels = [
        len(stride[match == m].unique())
        for match, boxes in answers_of(nb, nb.atss)
        for m in range(len(boxes))
    ]
    assert torch.tensor(levels).gt(1).float().mean() == pytest.approx(0.25, abs=0.03)


def test_smallest_and_last_disagree_at_one_positive_in_fifty(nb):
    pairs = zip(answers_of(nb, partial(nb.assign, **nb.EVERY_LEVEL)), answers_of(nb, nb.last_wins))
    smallest, last = (torch.cat(side) for side in zip(*((a[0], b[0]) for a, b in pairs)))
    assert torch.equal(smallest >= 0, last >= 0)
    assert (smallest != last).sum() / (smallest >= 0).sum() == pytest.approx(0.02, abs=0.003)
