"""The code of notebook 06 against its oracles, on random and on nasty input."""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import (
    NASTY_BOXES,
    OTHER_FLOATS,
    WIDE_AND_HIGH,
    check_stubs_and_solutions,
    notebook_code,
    objects_of,
    random_boxes,
    stretched,
)
from torch import nn
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import batched_nms, sigmoid_focal_loss

from helpers import boxes as reference
from helpers import nms as nms_reference
from helpers.detectors import to_input
from helpers.shapes import ShapesDataset

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SEEDS = st.integers(0, 10**6)
TINY = {"channels": (8, 8, 16)}


@pytest.fixture(scope="module")
def nb():
    with notebook_code("06_ssd", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        module.torchvision_matcher, module.ssd300, module.runs = SSDMatcher(0.5), 8732, {}
        yield module


def tiny_ssd(nb):
    return nb.SSD(3, **TINY)


def tiny_retina(nb, **options):
    return nb.RetinaNetOnShapes(3, **TINY, width=8, **options)


MODELS = pytest.mark.parametrize("make", [tiny_ssd, tiny_retina])
CASES = [("MultiBoxLoss", tiny_ssd), ("RetinaLoss", tiny_retina)]
TRAINED = [("train_ssd", "SSD"), ("train_retinanet", "RetinaNetOnShapes")]
LOSSES = pytest.mark.parametrize("name, make", CASES)


def small_defaults(nb):
    return torch.cat(nb.default_boxes(64, 64, (8, 16)))  # (480, 4)


def random_answers(images, outputs=4):
    logits, deltas = torch.randn(images, 480, outputs), torch.randn(images, 480, 4)
    return logits.requires_grad_(), deltas.requires_grad_()


def targets_of(*lists):
    return [{"boxes": torch.as_tensor(boxes, dtype=torch.float).view(-1, 4)} for boxes in lists]


# ---------------------------------------------------------------- lost objects, default boxes


def lost_by_loops(places):
    """Share of objects that come second to a place, from one list of places per image."""
    return sum(len(p) - len(set(p)) for p in places) / sum(map(len, places))


@pytest.mark.parametrize("cells", [1, 4, 7, 16])
def test_lost_objects_by_loops(nb, cells):
    lists = [random_boxes(n, n).mul(2).round().div(2) for n in (0, 1, 9, 30)]
    places, best, defaults = [], [], random_boxes(15, 7)
    for boxes in lists:
        centres = [((a + c) / 2, (b + d) / 2) for a, b, c, d in boxes.tolist()]
        places.append([(int(x * cells / 128), int(y * cells / 128)) for x, y in centres])
        best.append(reference.box_iou(boxes, defaults).argmax(dim=1).tolist())
    found = nb.lost_in_cells(targets_of(*lists), cells)
    assert found == pytest.approx(lost_by_loops(places)) and found > 0
    found = nb.lost_in_boxes(targets_of(*lists), defaults)
    assert found == pytest.approx(lost_by_loops(best)) and found > 0


def test_nasty_centres(nb):
    lying, upright = [20, 30, 60, 50], [30, 20, 50, 60]  # one centre, two shapes
    assert nb.lost_in_cells(targets_of([lying, upright]), 7) == 1 / 2
    assert nb.lost_in_cells(targets_of([lying], [upright], []), 7) == 0
    templates = torch.tensor([lying, upright], dtype=torch.float)
    assert nb.lost_in_boxes(targets_of([lying, upright]), templates) == 0
    assert nb.lost_in_boxes(targets_of([lying, lying, upright]), templates) == 1 / 3
    corner, last = [118, 118, 138, 138], [122, 122, 126, 126]  # both in the last cell
    assert nb.lost_in_cells(targets_of([corner, last]), 16) == 1 / 2
    left, right = [54, 0, 73, 9], [55, 0, 73, 9]  # centres at 63.5 and, on the border, 64
    assert nb.lost_in_cells(targets_of([left, right]), 2) == 0
    assert nb.lost_in_cells(targets_of([left, right]), 2, size=256) == 1 / 2


@pytest.mark.parametrize("strides, base", [((16, 32), 2.0), ((8, 16), 0.5), ((8,), 3.0)], ids=str)
@pytest.mark.parametrize("height, width", [(64, 96), (33, 70), (1, 1), (97, 131)])
def test_default_boxes_by_loops(nb, height, width, strides, base):
    levels = nb.default_boxes(height, width, strides, base)
    for stride, boxes in zip(strides, levels, strict=True):
        expected = []
        rows, columns = (range(math.ceil(n / stride)) for n in (height, width))
        sizes = (base * stride, 1.6 * base * stride)
        for row, column, size, ratio in product(rows, columns, sizes, (0.5, 1, 2)):
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
            expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        torch.testing.assert_close(boxes, torch.tensor(expected), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("height, width", [(224, 224), (96, 160), (97, 131), (33, 70)])
def test_strides_and_the_cells_of_the_default_boxes(nb, stride, height, width):
    with torch.device("meta"):
        maps = nb.SSDBackbone(first_stride=stride)(torch.empty(2, 3, height, width))
        answers = nb.SSD(3, first_stride=stride)(torch.empty(2, 3, height, width))
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in (stride, 2 * stride)]
    assert [tuple(m.shape) for m in maps] == [(2, c, *s) for c, s in zip((64, 96), sizes)]
    boxes = nb.default_boxes(height, width, (stride, 2 * stride))
    assert [len(b) for b in boxes] == [6 * h * w for h, w in sizes]
    assert [t.shape[-2] for t in answers] == [sum(map(len, boxes))] * 3
    assert height < 224 or stride < 16 or sum(map(len, boxes)) == 1470
    with pytest.raises(ValueError, match="must be 8 or 16"):
        nb.SSDBackbone(first_stride=4 * stride)


CONV, HALVING_CONV, POOL = (3, 1, 1), (3, 2, 1), (2, 2, 0)  # kernel, stride, padding
FINE, COARSE = [HALVING_CONV, CONV, POOL, HALVING_CONV], [POOL, CONV, CONV]


@pytest.mark.parametrize("stride, fine", [(8, [*FINE, CONV]), (16, [*FINE, POOL, CONV])])
@pytest.mark.parametrize("level", [0, 1])
def test_a_cell_sees_its_receptive_field(nb, stride, fine, level):
    cell = 224 // (stride * 2**level) // 2
    low = high = cell
    for kernel, step, padding in reversed(fine + COARSE * level):
        low, high = low * step - padding, high * step - padding + kernel - 1
    assert 0 < low < high < 223  # the whole field lies in the image
    backbone = nb.SSDBackbone((8, 16, 16), stride)
    modules = [m for _, m in backbone.named_modules(remove_duplicate=False)]
    layers = [m for m in modules if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]
    assert nb.receptive_field(layers[: len(fine) + 3 * level]) == high - low + 1
    sees = nb.seen_by(backbone, level)
    for seen in (sees.sum(dim=0).nonzero(), sees.sum(dim=1).nonzero()):
        assert low <= seen.min() < low + 8 and high - 8 < seen.max() <= high


# ---------------------------------------------------------------- matching


def matches_by_loops(overlap, high=0.5, low=0.5, best_box=True):
    matches = []
    for row in overlap.tolist():
        best = max(row)
        matches.append(row.index(best) if best >= high else -2 if best >= low else -1)
    for m, column in enumerate(overlap.T.tolist()):
        if best_box and max(column) > 0:
            matches[column.index(max(column))] = m
    return matches


@given(seed=SEEDS, boxes=st.integers(1, 30), objects=st.integers(1, 9))
def test_the_matchers_of_torchvision(nb, seed, boxes, objects):
    overlap = torch.rand(boxes, objects, generator=torch.Generator().manual_seed(seed))
    for high, low in ((0.5, 0.4), (0.9, 0.9), (0.7, 0.2)):
        ours = nb.match_boxes(overlap, high, low, best_box=False)
        assert torch.equal(ours, Matcher(high, low)(overlap.T))
        assert torch.equal(nb.match_boxes(overlap, high, high), SSDMatcher(high)(overlap.T))


@given(seed=SEEDS, low=st.sampled_from([0.25, 0.5]), best_box=st.booleans())
def test_ties_and_thresholds_by_loops(nb, seed, low, best_box):
    """Eighths: many ties, many values on a threshold, and whole columns of zeros."""
    g = torch.Generator().manual_seed(seed)
    overlap = torch.randint(0, 7, (6, 4), generator=g) / 8 * torch.randint(0, 2, (4,), generator=g)
    ours = nb.match_boxes(overlap, 0.5, low, best_box)
    assert ours.tolist() == matches_by_loops(overlap, 0.5, low, best_box)


MATCHES = {
    "one object": ([[0.1], [0.3], [0.2]], [-1, 0, -1]),
    "its best box overlaps another more": ([[0.9, 0.4], [0.8, 0.1]], [1, 0]),
    "two want one box": ([[0.3, 0.2], [0.1, 0.1]], [1, -1]),
    "two want one, and one finds another": ([[0.9, 0.8], [0.6, 0.1]], [1, 0]),
    "no overlap": ([[0.0, 0.6], [0.0, 0.1]], [1, -1]),
    "on the threshold": ([[0.5], [0.7]], [0, 0]),
}


@pytest.mark.parametrize("overlap, expected", MATCHES.values(), ids=MATCHES)
def test_matches_by_pencil(nb, overlap, expected):
    overlap, before = torch.tensor(overlap), torch.tensor(overlap)
    assert nb.match_boxes(overlap).tolist() == expected and torch.equal(overlap, before)


@pytest.mark.parametrize("rule", [{}, {"high": 0.7, "low": 0.4, "best_box": False}], ids=str)
def test_objects_without_a_box_by_loops(nb, rule):
    defaults, (lists, _) = small_defaults(nb), objects_of(0, 1, 8, 40)
    lists.append(torch.tensor([[900.0, 900, 950, 950]]))  # overlaps nothing
    lonely = 0
    for boxes in lists[1:]:
        matches = matches_by_loops(reference.box_iou(defaults, boxes), **rule)
        lonely += len(set(range(len(boxes))) - set(matches))
    found = nb.without_box(targets_of(*lists), defaults, **rule)
    assert found == pytest.approx(lonely / 50) and found >= 1 / 50


# ---------------------------------------------------------------- networks, detections


def test_rows_are_in_the_order_of_the_default_boxes(nb):
    maps = [torch.randn(2, 30, 3, 4), torch.randn(2, 30, 2, 1)]
    expected = []
    for m in maps:
        for row, column in product(range(m.shape[2]), range(m.shape[3])):
            expected += [m[:, 5 * k : 5 * k + 5, row, column] for k in range(6)]
    assert torch.equal(nb.DenseDetector.by_box(maps, 5), torch.stack(expected, dim=1))


def test_the_coarse_map_reaches_the_fine_one_and_not_back(nb):
    model, image = tiny_retina(nb).eval(), torch.randn(1, 3, 60, 44)
    for changed, expected in ((0, [True, False]), (1, [True, True])):
        before = model.answers(image)[0]
        nn.init.normal_(model.lateral[changed].bias)
        heard = [not torch.equal(a, b) for a, b in zip(model.answers(image)[0], before)]
        assert heard == expected


@pytest.mark.parametrize("shared, options, pi", [(True, {}, 0.01), (False, {"pi": 0.2}, 0.2)])
def test_subnets_are_shared_and_begin_by_saying_no(nb, shared, options, pi):
    model, called = tiny_retina(nb, shared=shared, **options).eval(), []
    subnets = [*model.class_subnets, *model.box_subnets]
    for net in subnets:
        net.register_forward_hook(lambda net, *_: called.append(net))
    scores = model.class_scores(model(torch.randn(2, 3, 64, 64))[0])
    assert len(set(subnets)) == (2 if shared else 4)
    assert called == [net for net in subnets for _ in range(2 if shared else 1)]
    convolutions = [layer for layer in subnets[0] if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [8] * 4 + [18]
    for net in model.class_subnets:
        assert net[-1].bias.sigmoid().tolist() == pytest.approx([pi] * 18)
    assert all((net[-1].bias == 0).all() for net in model.box_subnets)
    assert scores.mean().item() == pytest.approx(pi, rel=0.3)


@pytest.mark.parametrize("pi, expected", [(None, 0.75), (0.01, 0.01), (0.3, 0.3)])
def test_ssd_begins_with_so_many_objects(nb, pi, expected):
    model = nb.SSD(3, **TINY, pi=pi).eval()
    scores = model.class_scores(model(torch.randn(2, 3, 64, 64))[0])
    assert scores.sum(dim=2).mean().item() == pytest.approx(expected, rel=0.05)


def test_scores_of_a_softmax_and_of_sigmoids(nb):
    z = 3 * torch.randn(2, 7, 4)
    soft, hard = nb.SSD.class_scores(z), nb.sigmoid_scores(z)
    torch.testing.assert_close(soft, (z.exp() / z.exp().sum(dim=2, keepdim=True))[..., 1:])
    torch.testing.assert_close(hard, (1 / (1 + (-z).exp()))[..., 1:])
    torch.testing.assert_close(nb.SSD.class_scores(z - 10), soft)
    assert (nb.sigmoid_scores(z - 10) < hard / 2).all()
    no = torch.tensor([80.0, 0, 0, 0])
    assert nb.SSD.class_scores(no).max() < 1e-6 and nb.sigmoid_scores(no).tolist() == [0.5] * 3


@pytest.mark.parametrize("make, scores_of", [(tiny_ssd, None), (tiny_ssd, 1), (tiny_retina, None)])
@pytest.mark.parametrize("iou, top", [(0.45, 200), (0.2, 200), (0.9, 5), (0.5, 0)])
def test_detections_by_hand(nb, make, scores_of, iou, top):
    model, defaults = make(nb), random_boxes(60)
    logits, deltas = 2 * torch.randn(2, 60, model.outputs), torch.randn(2, 60, 4)
    scores_of = nb.sigmoid_scores if scores_of else None
    model.forward = lambda images: (logits, deltas, defaults)
    found = model.detect(torch.empty(2, 3, 64, 80), scores_of, 0.3, iou, top)
    for detection, z, t in zip(found, logits, deltas):
        scores = z.softmax(dim=1) if make is tiny_ssd and not scores_of else z.sigmoid()
        scores = scores[:, 1:] if make is tiny_ssd else scores
        boxes = reference.clip_boxes(reference.decode_boxes(t, defaults, WEIGHTS), 64, 80)
        expected = []
        for label, score in enumerate(scores.T):
            rows = torch.where(score > 0.3)[0]
            rows = rows[nms_reference.nms(boxes[rows], score[rows], iou)]
            expected += [(score[r].item(), label, boxes[r].tolist()) for r in rows]
        expected = sorted(expected, reverse=True)[:top]
        assert detection["labels"].tolist() == [label for _, label, _ in expected]
        assert detection["scores"].tolist() == pytest.approx([s for s, _, _ in expected])
        expected = np.reshape([b for _, _, b in expected], (-1, 4))
        np.testing.assert_allclose(detection["boxes"], expected, atol=1e-3)


@MODELS
@pytest.mark.parametrize("images, height, width, top", [(1, 128, 128, 7), (2, 97, 131, 200)])
@torch.no_grad()
def test_answers_and_detections_of_any_size(nb, make, images, height, width, top):
    model, pictures = make(nb).eval(), torch.randn(images, 3, height, width)
    logits, deltas, defaults = model(pictures)
    assert torch.equal(defaults, torch.cat(nb.default_boxes(height, width, (8, 16))))
    assert logits.shape == (images, len(defaults), 4 if make is tiny_ssd else 3)
    assert deltas.shape == (images, len(defaults), 4)
    found = model.detect(pictures, None, 0.001, top=top)
    for boxes, scores, labels in (detection.values() for detection in found):
        assert len(boxes) == len(scores) == len(labels) == top
        assert (scores.diff() <= 0).all() and 0.001 < scores.min() and scores.max() <= 1
        assert boxes.min() >= 0 and (boxes <= torch.tensor([width, height] * 2)).all()
        assert set(labels.tolist()) <= {0, 1, 2} and labels.dtype == torch.int64


@given(seed=SEEDS, classes=st.integers(1, 5), iou=st.sampled_from([0.1, 0.45, 0.77]))
def test_nms_per_class_is_torchvisions(nb, seed, classes, iou):
    boxes, g = random_boxes(40, seed), torch.Generator().manual_seed(seed)
    labels, scores = torch.randint(0, classes, (40,), generator=g), torch.rand(40, generator=g)
    for same_order, columns in ((True, scores), (False, (scores * 4).round() / 4)):
        ours = nb.nms_per_class(boxes, columns, labels, iou)
        theirs = batched_nms(boxes, columns, labels, iou)
        assert torch.equal(ours, theirs) or not same_order  # equal scores have no order
        assert sorted(ours.tolist()) == sorted(theirs.tolist())
        assert (columns[ours].diff() <= 0).all()
    none = nb.nms_per_class(NO_BOXES, scores[:0], NO_LABELS)
    assert none.shape == (0,) and none.dtype == torch.int64


@MODELS
def test_nothing_is_left_on_the_cpu(nb, pretended_gpu, make):
    images = to_input(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.device("cuda"))
    logits, deltas, boxes = make(nb).to("cuda")(images)
    none = nb.match_boxes(logits.new_zeros(len(boxes), 0))
    mined = nb.mine_hard_negatives(logits[..., 0], deltas[..., 0] > 0, deltas[..., 0] <= 0)
    assert {t.device.type for t in (images, logits, deltas, boxes, none, mined)} == {"cuda"}


# ---------------------------------------------------------------- mining and losses


@given(seed=SEEDS, ratio=st.integers(0, 4), share=st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_mining_by_loops(nb, seed, ratio, share):
    g = torch.Generator().manual_seed(seed)
    loss, kind = torch.rand(3, 20, generator=g), torch.rand(3, 20, generator=g)
    positive, ignored = kind < share, kind > 0.9
    negative = ~positive & ~ignored
    mined = nb.mine_hard_negatives(loss, positive, negative, ratio)
    for values, found, pos, neg in zip(loss.tolist(), mined, positive, negative):
        rows = sorted(neg.nonzero().flatten().tolist(), key=lambda i: -values[i])
        assert sorted(rows[: ratio * int(pos.sum())]) == found.nonzero().flatten().tolist()


def losses_by_loops(nb, answers, objects, ratio=3, gamma=0.0, alpha=1.0, **rule):
    defaults, classes, box, count = small_defaults(nb), 0.0, 0.0, 0
    for z, t, boxes, labels in zip(*(a.detach() for a in answers), *objects):
        log_p, negatives, positives = z.log_softmax(dim=1).tolist(), [], 0
        matches = nb.match_boxes(reference.box_iou(defaults, boxes), **rule).tolist()
        for i, m in enumerate(matches):
            right = log_p[i][int(labels[m]) + 1 if m >= 0 else 0]
            value = -((1 - math.exp(right)) ** gamma) * right
            if m == -1:
                negatives.append(value)
            if m >= 0:
                positives += 1
                classes += value
                goal = reference.encode_boxes(boxes[m : m + 1], defaults[i : i + 1], WEIGHTS)
                error = (t[i] - goal[0]).abs()
                box += torch.where(error < 1, error**2 / 2, error - 0.5).sum().item()
        limit = None if ratio is None else ratio * positives
        classes += sum(sorted(negatives, reverse=True)[:limit])
        count += positives
    return {"class": classes / max(1, count), "box": alpha * box / max(1, count)}


OPTIONS = [{}, {"ratio": 0}, {"ratio": None}, {"ratio": 10**6}, {"low": 0.3}, {"high": 0.7}]
OPTIONS += [{"ratio": None, "low": 0.3, "best_box": False}, {"ratio": None, "gamma": 2.0}]
OPTIONS += [{"gamma": 0.5, "alpha": 0.3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("counts", [(3, 5), (1, 7, 4), (3, 0, 6), (0, 0), (90, 1)], ids=str)
def test_the_loss_by_loops_and_torchvisions(nb, options, counts):
    defaults, objects = small_defaults(nb), objects_of(*counts)
    answers = random_answers(len(counts))
    losses = nb.MultiBoxLoss(**options)(*answers, defaults, *objects)
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == pytest.approx(losses_by_loops(nb, answers, objects, **options), 1e-4)
    if options == {} and counts in ((3, 5), (1, 7, 4)):  # torchvision wants a few objects
        theirs = nb.torchvision_loss(*answers, defaults, *objects)
        assert list(found.values()) == pytest.approx(theirs, 1e-4)
    sum(losses.values()).backward()
    assert all(a.grad.isfinite().all() for a in answers)


@LOSSES
@pytest.mark.parametrize("kind", OTHER_FLOATS, ids=str)
def test_other_types_give_the_loss_of_float32(nb, name, make, kind):
    outputs = make(nb).outputs
    logits, deltas = (a.detach().to(kind) for a in random_answers(3, outputs))
    boxes, labels = objects_of(3, 0, 5)
    loss, defaults = getattr(nb, name)(), small_defaults(nb)
    expected = loss(logits.float(), deltas.float(), defaults, boxes, labels)
    others = [b.double() for b in boxes], [c.int() for c in labels]
    found = loss(logits, deltas, defaults, *others)
    torch.testing.assert_close(found, expected, check_dtype=False)


@MODELS
def test_detections_of_half_precision_and_of_no_image(nb, make, monkeypatch):
    model, x = make(nb).eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits, deltas, defaults = model(x)
        half = logits.bfloat16(), deltas.bfloat16(), defaults
        assert model.detect(x[:0], score_threshold=0.0) == []
    found = []
    for answers in (half, (half[0].float(), half[1].float(), defaults)):
        monkeypatch.setattr(model, "forward", lambda _, answers=answers: answers)
        found.append(model.detect(x, score_threshold=0.0, top=20))
    torch.testing.assert_close(*found)
    assert len(found[0][0]["boxes"]) == 20


@LOSSES
@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_a_step_on_images_that_are_not_square(nb, name, make, size, monkeypatch):
    data = stretched(ShapesDataset(4, seed=3), *size)
    for variable in ("train_set", "test_set"):
        monkeypatch.setattr(nb, variable, data, raising=False)
    model, _ = nb.train(make(nb), getattr(nb, name)(), 1, 0)
    detected = model.detect(torch.randn(1, 3, *size), score_threshold=0.0, top=10**6)
    corners = detected[0]["boxes"].amax(dim=0)
    assert corners.tolist()[2:] == [size[1], size[0]]
    lost = nb.lost_in_cells(ShapesDataset(4, seed=3).targets, 4)  # the same cells, stretched
    assert nb.lost_in_cells(data.targets, 4, size) == pytest.approx(lost)
    assert len(nb.draw_matching(1).axes) == 2


@LOSSES
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [17.0, 30.0, 120.0, 1e4])
def test_extreme_logits_have_finite_gradients(nb, name, make, gamma, size):
    logits = (size * torch.randn(2, 480, make(nb).outputs).sign()).requires_grad_()
    criterion = getattr(nb, name)(gamma=gamma)
    criterion.ratio = None
    answers = logits, torch.zeros(2, 480, 4), small_defaults(nb)
    loss = criterion(*answers, *objects_of(3, 0))["class"]
    loss.backward()
    assert loss.isfinite() and loss > 1
    assert logits.grad.isfinite().all() and (logits.grad != 0).any()


@LOSSES
def test_the_order_of_objects_and_images_does_not_matter(nb, name, make):
    defaults, (boxes, labels) = small_defaults(nb), objects_of(6, 5)
    logits, deltas = random_answers(2, make(nb).outputs)
    loss = getattr(nb, name)()
    first = loss(logits, deltas, defaults, boxes, labels)
    turned = [[v.flip(0) for v in column] for column in (boxes, labels)]
    torch.testing.assert_close(loss(logits, deltas, defaults, *turned), first)
    flipped = logits.flip(0), deltas.flip(0), defaults, boxes[::-1], labels[::-1]
    torch.testing.assert_close(loss(*flipped), first)


@pytest.mark.parametrize("rule", [{}, {"low": 0.3}], ids=str)
@pytest.mark.parametrize("counts", [(2, 0, 3, 1), (0, 0), (0, 5)], ids=str)
def test_matches_are_counted_through_the_batch(nb, counts, rule):
    defaults, (boxes, _) = small_defaults(nb), objects_of(*counts)
    matches, first = nb.MultiBoxLoss(**rule).match(defaults, boxes), 0
    for found, b in zip(matches.tolist(), boxes):
        own = nb.match_boxes(reference.box_iou(defaults, b), **rule).tolist()
        assert found == [m + first if m >= 0 else m for m in own]
        first += len(b)


CROWD = torch.tensor([[x, y, x + 12.0, y + 12] for x in range(0, 52, 2) for y in range(0, 52, 2)])
NASTY = {
    "more objects than boxes": CROWD,
    "twice the same": torch.tensor([[8.0, 8, 30, 30]] * 2),
    "a point and a line": torch.tensor([[9.0, 9, 9, 9], [4, 9, 20, 9], [20, 20, 40, 44]]),
} | {name: torch.tensor([box]) for name, box in NASTY_BOXES.items()}


@pytest.mark.parametrize("objects", NASTY.values(), ids=NASTY)
@LOSSES
def test_nasty_objects_leave_the_model_a_step(nb, name, make, objects):
    model, labels = make(nb).train(), torch.arange(len(objects)) % 3
    answers = model(torch.randn(2, 3, 64, 64))
    losses = getattr(nb, name)()(*answers, [objects, NO_BOXES], [labels, NO_LABELS])
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("alpha, gamma, low", [(0.25, 2.0, 0.4), (0.6, 0.5, 0.4), (0.25, 2, 0.5)])
@pytest.mark.parametrize("counts", [(3, 0, 6), (0, 0)], ids=str)
def test_retinanets_loss_by_loops(nb, alpha, gamma, low, counts):
    defaults, (boxes, labels) = small_defaults(nb), objects_of(*counts)
    logits, deltas = random_answers(len(counts), 3)
    total, kinds = 0.0, []
    for z, b, c in zip(logits.detach(), boxes, labels):
        matches = nb.match_boxes(reference.box_iou(defaults, b), low=low).tolist()
        for row, m in zip(z, matches):
            target = torch.zeros(3)
            if m >= 0:
                target[c[m]] = 1
            if m != -2:
                total += sigmoid_focal_loss(row, target, alpha, gamma, "sum").item()
        kinds += [min(m, 0) for m in matches]
    options = {} if (alpha, gamma, low) == (0.25, 2.0, 0.4) else {"focal_alpha": alpha, "low": low}
    found = nb.RetinaLoss(gamma, **options)(logits, deltas, defaults, boxes, labels)
    assert found["class"].item() == pytest.approx(total / max(1, kinds.count(0)), rel=1e-4)
    assert (-2 in kinds) == (sum(counts) > 0 and low < 0.5)


@LOSSES
def test_a_few_steps_reduce_the_loss(nb, name, make):
    model, criterion = make(nb).train(), getattr(nb, name)()
    images, objects = torch.randn(2, 3, 64, 64), objects_of(1, 2)
    optimizer, totals = torch.optim.AdamW(model.parameters(), lr=0.01), []
    for _ in range(15):
        total = sum(criterion(*model(images), *objects).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert np.mean(totals[-3:]) < 0.8 * np.mean(totals[:2])


@pytest.mark.parametrize("name, net", TRAINED)
def test_training_repeats_with_the_seed(nb, name, net, monkeypatch):
    original, images = getattr(nb, net), ShapesDataset(4, seed=3)
    tiny = {net: lambda **options: original(3, **TINY, **options)}
    for key, value in (tiny | {"train_set": images, "test_set": images}).items():
        monkeypatch.setattr(nb, key, value, raising=False)
    trained = [getattr(nb, name)(2, seed, gamma=1.0) for seed in (None, 0, 1)]
    weights = [model.backbone.stem[0][0].weight for model, _ in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for model, history in trained:
        assert not model.training and isinstance(model, original)
        assert list(history.columns()) == ["class", "box"] and len(history["box"]) == 2
    nb.keep(name, 0, trained[0])
    assert nb.runs[name, 0]["parameters"] == nb.count_parameters(model)


# ---------------------------------------------------------------- the exercises


def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    assert all("still to do" in nb.check_count(stub) for stub in (None, ...))
    checks = {"match": "check_match", "mined_sum": "check_mining", "sizes": "check_sizes"}
    check_stubs_and_solutions(nb, checks)


COUNTS = {
    "✓": 24564,
    "these are the cells": 5461,
    "the last two have only 4": 32766,
    "in the middle have 6": 21844,
    "64 × 64 cells": 628,
    "that is SSD300": 8732,
    "then add": [24564],
}


MATCH = [
    ("✓", matches_by_loops),
    ("object 1 has no box", partial(matches_by_loops, best_box=False)),
    ("comes on top of those above", partial(matches_by_loops, high=2, low=2)),
    ("no ignored band", partial(matches_by_loops, low=0.4)),
    ("only boxes above 0.5", partial(matches_by_loops, high=0, low=0)),
    ("expected [0, 1, -1, -1, 0], got [0.0", lambda overlap: torch.zeros(5)),
    ("five numbers are needed", lambda overlap: overlap.max(dim=1)),
    ("five numbers are needed", lambda overlap: [0, 1, None, None, 0]),
]


def hard(v, p, count=None):
    return v[~p].sort(descending=True).values[:count].sum()


MINED = [  # v: losses, p: mask of the positives, of which there is one, r: ratio
    ("✓", lambda v, p, r: v[p].sum() + hard(v, p, r)),
    ("the easiest negatives", lambda v, p, r: v[p].sum() - hard(-v, p, r)),
    ("positives count, too", lambda v, p, r: hard(v, p, r)),
    ("every negative counts", lambda v, p, r: v.sum()),
    ("took the place of a negative", lambda v, p, r: hard(v, p & ~p, r)),
    ("the positive twice", lambda v, p, r: v[p].sum() + hard(v, p & ~p, r)),
    (
        "the number of negatives is ratio × positives",
        lambda v, p, r: v[p].sum() + hard(v, p, r + 1),
    ),
    ("take those there are", lambda v, p, r: v[p].sum() + v[~p].topk(r).values.sum()),
    ("expected 8.1", lambda v, p, r: v[p].sum() + (hard(v, p, r) if r < 9 else 0)),
    ("expected 15.0", lambda v, p, r: 1.0),
    ("one number is needed", lambda v, p, r: v),
]


def spaced(steps=lambda m: m - 1, first=0, extra=lambda a, b: math.sqrt(a * b), last=True):
    def sizes(low, high, m):
        s = [low + (high - low) / steps(m) * (k + first) for k in range(m + 1)]
        return [(s[k], extra(s[k], s[k + 1 if last or k < m - 1 else k])) for k in range(m)]

    return sizes


SIZES = [
    ("✓", spaced()),
    ("divide by m - 1", spaced(steps=lambda m: m)),
    ("k begins at 1", spaced(first=1)),
    ("not the arithmetic one", spaced(extra=lambda a, b: (a + b) / 2)),
    ("needs a square root", spaced(extra=lambda a, b: a * b)),
    ("goes beyond the largest", spaced(last=False)),
    ("should be (0.2, 0.261)", spaced(first=2)),
    ("six pairs of numbers", lambda *_: [(1, 2), (3,)]),
]


ANSWERS = {"count": COUNTS.items(), "match": MATCH, "mining": MINED, "sizes": SIZES}


@pytest.mark.parametrize(
    "check, says, answer", [(check, *pair) for check, pairs in ANSWERS.items() for pair in pairs]
)
def test_checks_name_the_mistake(nb, check, says, answer):
    message = getattr(nb, f"check_{check}")(answer)
    assert says in message and message.startswith("✓" if says == "✓" else "✗")
