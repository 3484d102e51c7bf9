"""The code of notebook 06 against its oracles, on random and on nasty input."""

import math
from itertools import product
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import (
    NASTY_BOXES,
    WIDE_AND_HIGH,
    finite_gradients,
    iou_by_loops,
    nms_by_loops,
    notebook_code,
    objects_of,
    random_boxes,
)
from torch import nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.ops import batched_nms, box_iou

from helpers import boxes as reference
from helpers.detectors import to_input

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("06_ssd", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        module.defaults = torch.cat(module.default_boxes(128, 128))
        module.LETTERS = list("CST")
        yield module


def small_defaults(nb):
    return torch.cat(nb.default_boxes(64, 64, (8, 16), base=2.0))  # (480, 4)


def random_answers(images, outputs=4):
    logits, deltas = torch.randn(images, 480, outputs), torch.randn(images, 480, 4)
    return logits.requires_grad_(), deltas.requires_grad_()


# ---------------------------------------------------------------- default boxes


@pytest.mark.parametrize("strides, base", [((16, 32), 2.0), ((8, 16), 0.5), ((8,), 3.0)], ids=str)
@pytest.mark.parametrize("scales, ratios", [((1.0, 1.6), (0.5, 1, 2)), ((1.3,), (1, 3))], ids=str)
@pytest.mark.parametrize("height, width", [(64, 96), (33, 70), (1, 1), (97, 131)])
def test_default_boxes_by_loops(nb, height, width, strides, base, scales, ratios):
    levels = nb.default_boxes(height, width, strides, scales, ratios, base)
    for stride, boxes in zip(strides, levels, strict=True):
        expected = []
        rows, columns = (range(math.ceil(n / stride)) for n in (height, width))
        for row, column, scale, ratio in product(rows, columns, scales, ratios):
            x, y, size = (column + 0.5) * stride, (row + 0.5) * stride, base * stride * scale
            w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
            expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        torch.testing.assert_close(boxes, torch.tensor(expected), atol=1e-3, rtol=1e-5)


def test_objects_that_no_box_overlaps_by_half(nb, monkeypatch):
    objects = torch.tensor([[1.0, 1, 5, 5], [40, 40, 64, 64], [2, 60, 126, 66]])
    monkeypatch.setattr(nb, "objects", objects, raising=False)
    every = torch.cat(nb.default_boxes(128, 128))
    expected = (iou_by_loops(objects, every).amax(dim=1) < 0.5).float().mean().item()
    assert nb.unserved(3.0) == pytest.approx(expected) and 0 < expected < 1


# ---------------------------------------------------------------- matching


def matches_by_loops(overlap, threshold=0.5):
    matches = []
    for row in overlap.tolist():
        best = max(row)
        matches.append(row.index(best) if best >= threshold else -1)
    for m, column in enumerate(overlap.T.tolist()):
        if max(column) > 0:
            matches[column.index(max(column))] = m
    return matches


@given(seed=SEEDS, boxes=st.integers(1, 30), objects=st.integers(1, 9))
def test_the_matcher_of_torchvision(nb, seed, boxes, objects):
    overlap = torch.rand(boxes, objects, generator=torch.Generator().manual_seed(seed))
    for threshold in (0.3, 0.5, 0.9):
        theirs = SSDMatcher(threshold)(overlap.T)
        assert torch.equal(nb.match_boxes(overlap, threshold), theirs)


@given(seed=SEEDS)
def test_ties_and_thresholds_by_loops(nb, seed):
    """Eighths: many ties, many values on a threshold, and whole columns of zeros."""
    g = torch.Generator().manual_seed(seed)
    overlap = torch.randint(0, 7, (6, 4), generator=g) / 8 * torch.randint(0, 2, (4,), generator=g)
    assert nb.match_boxes(overlap).tolist() == matches_by_loops(overlap)


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
    assert nb.match_boxes(overlap[:, :0]).tolist() == [-1] * len(overlap)


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("first_stride", [4, 8, 16])
@pytest.mark.parametrize("height, width", [(224, 224), (96, 160), (97, 131), (33, 70)])
def test_the_maps_have_their_strides(nb, first_stride, height, width):
    with torch.device("meta"):
        backbone = nb.SSDBackbone((8, 16, 24), first_stride)
        maps = backbone(torch.empty(2, 3, height, width))
    strides = [first_stride, 2 * first_stride]
    assert backbone.strides == strides and list(backbone.widths) == [16, 24]
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in strides]
    assert [tuple(m.shape) for m in maps] == [(2, c, *s) for c, s in zip((16, 24), sizes)]


BETS = {
    "the page's": {},
    "three scales": {"scales": (0.5, 1.0, 1.6)},
    "one ratio": {"ratios": (1.0,)},
    "one map": {"strides": (8,)},
    "coarse first": {"strides": (16, 4), "base": 2.0},
}


@pytest.mark.parametrize("bet", BETS.values(), ids=BETS)
@pytest.mark.parametrize("height, width", [(128, 128), (97, 131)])
@torch.no_grad()
def test_there_is_one_answer_per_default_box_in_its_order(nb, bet, height, width):
    model, image = nb.SSD(3, **bet).eval(), torch.randn(2, 3, height, width)
    logits, deltas, boxes = model(image)
    expected = nb.default_boxes(height, width, **bet)
    assert torch.equal(boxes, torch.cat(expected))
    maps = [model.backbone(image)[i] for i in model.chosen]
    for heads, answers, numbers in ((model.class_heads, logits, 4), (model.box_heads, deltas, 4)):
        rows = []
        for head, m in zip(heads, maps):
            said = head(m)
            for row, column in product(range(m.shape[2]), range(m.shape[3])):
                rows += said[:, :, row, column].split(numbers, dim=1)
        torch.testing.assert_close(answers, torch.stack(rows, dim=1), atol=1e-5, rtol=1e-4)


def test_answers_that_fit_no_box_are_refused(nb):
    model = nb.SSD(3).eval()
    model.bet["scales"] = (1.0,)
    with pytest.raises(ValueError, match="8064 answers for 4032 default boxes"):
        model(torch.zeros(1, 3, 128, 128))
    with pytest.raises(ValueError, match="32 is not in list"):
        nb.SSD(3, strides=(32,))


@pytest.mark.parametrize("pi, expected", [(None, 0.75), (0.01, 0.01), (0.3, 0.3)])
@torch.no_grad()
def test_ssd_begins_with_so_many_objects(nb, pi, expected):
    model = nb.SSD(3, pi=pi).eval()
    scores = nb.softmax_scores(model(torch.randn(2, 3, 64, 64))[0])
    assert scores.sum(dim=2).mean().item() == pytest.approx(expected, rel=0.05)


def test_scores_of_a_softmax_and_of_sigmoids(nb):
    z = 3 * torch.randn(2, 7, 4)
    soft, single = nb.softmax_scores(z), nb.sigmoid_scores(z)
    torch.testing.assert_close(soft, (z.exp() / z.exp().sum(dim=2, keepdim=True))[..., 1:])
    torch.testing.assert_close(single, (1 / (1 + (-z).exp()))[..., 1:])
    torch.testing.assert_close(nb.softmax_scores(z - 10), soft)
    assert (nb.sigmoid_scores(z - 10) < single / 2).all()
    no = torch.tensor([80.0, 0, 0, 0])
    assert nb.softmax_scores(no).max() < 1e-6 and nb.sigmoid_scores(no).tolist() == [0.5] * 3


@pytest.mark.parametrize("kind", ["softmax_scores", "sigmoid_scores"])
@pytest.mark.parametrize("iou, top", [(0.45, 200), (0.2, 200), (0.9, 5), (0.5, 0)])
def test_detections_by_hand(nb, kind, iou, top):
    boxes, scores_of = random_boxes(60), getattr(nb, kind)
    logits, deltas = 2 * torch.randn(2, 60, 4), torch.randn(2, 60, 4)
    found = nb.decode((logits, deltas, boxes), (64, 80), 0.3, iou, top, scores_of)
    for detection, z, t in zip(found, logits, deltas):
        moved = reference.decode_boxes(t, boxes, WEIGHTS).clamp(min=0)
        moved = moved.minimum(torch.tensor([80, 64, 80, 64]))
        expected = []
        for label, score in enumerate(scores_of(z).T):
            rows = torch.where(score > 0.3)[0]
            rows = rows[nms_by_loops(moved[rows], score[rows], 0 * rows, iou)]
            expected += [(score[r].item(), label, moved[r].tolist()) for r in rows]
        expected = sorted(expected, reverse=True)[:top]
        assert detection["labels"].tolist() == [label for _, label, _ in expected]
        assert detection["scores"].tolist() == pytest.approx([s for s, _, _ in expected])
        expected = np.reshape([b for _, _, b in expected], (-1, 4))
        np.testing.assert_allclose(detection["boxes"], expected, atol=1e-3)


@pytest.mark.parametrize("size", [(128, 128), *WIDE_AND_HIGH])
@torch.no_grad()
def test_detections_of_any_size(nb, size):
    detect = nb.detector_of(nb.SSD(3).eval(), score_threshold=0.001, top=50)
    for detection in detect(torch.randn(2, 3, *size)):
        boxes, scores, labels = detection.values()
        assert len(boxes) == len(scores) == len(labels) == 50
        assert (scores.diff() <= 0).all() and scores.max() <= 1
        assert boxes.min() >= 0 and (boxes <= torch.tensor([size[1], size[0]] * 2)).all()
    assert detect(torch.zeros(0, 3, *size)) == []


@given(seed=SEEDS, classes=st.integers(1, 5), iou=st.sampled_from([0.1, 0.45, 0.77]))
def test_nms_per_class_is_torchvisions(nb, seed, classes, iou):
    boxes, g = random_boxes(40, seed), torch.Generator().manual_seed(seed)
    labels, scores = torch.randint(0, classes, (40,), generator=g), torch.rand(40, generator=g)
    theirs = batched_nms(boxes, scores, labels, iou)
    assert torch.equal(nb.nms_per_class(boxes, scores, labels, iou), theirs)
    none = nb.nms_per_class(NO_BOXES, scores[:0], NO_LABELS)
    assert none.shape == (0,) and none.dtype == torch.int64


def test_nothing_is_left_on_the_cpu(nb, pretended_gpu):
    images = to_input(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.device("cuda"))
    logits, deltas, boxes = nb.SSD(3).to("cuda")(images)
    none = nb.match_boxes(logits.new_zeros(len(boxes), 0))
    mined = nb.mine_hard_negatives(logits[..., 0], deltas[..., 0] > 0, deltas[..., 0] <= 0)
    zoomed, moved, _ = nb.zoom(images, [boxes[:3]] * 2, [none[:3]] * 2)
    everything = (images, logits, deltas, boxes, none, mined, zoomed, *moved)
    assert {t.device.type for t in everything} == {"cuda"}


# ---------------------------------------------------------------- mining and the loss


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


def losses_by_loops(nb, answers, objects, ratio=3, alpha=1.0):
    defaults, classes, box, count = small_defaults(nb), 0.0, 0.0, 0
    for z, t, boxes, labels in zip(*(a.detach() for a in answers), *objects):
        log_p, negatives, positives = z.log_softmax(dim=1).tolist(), [], 0
        for i, m in enumerate(nb.match_boxes(box_iou(defaults, boxes)).tolist()):
            value = -log_p[i][int(labels[m]) + 1 if m >= 0 else 0]
            if m == -1:
                negatives.append(value)
                continue
            positives, classes = positives + 1, classes + value
            goal = reference.encode_boxes(boxes[m : m + 1], defaults[i : i + 1], WEIGHTS)
            error = (t[i] - goal[0]).abs()
            box += torch.where(error < 1, error**2 / 2, error - 0.5).sum().item()
        classes += sum(sorted(negatives, reverse=True)[: ratio * positives])
        count += positives
    return {"class": classes / max(1, count), "box": alpha * box / max(1, count)}


def torchvision_loss(logits, deltas, defaults, boxes, labels):
    """Class and box loss of torchvision's SSD; there, labels begin at 1."""
    parts = SimpleNamespace(box_coder=BoxCoder(weights=WEIGHTS), neg_to_pos_ratio=3)
    matches = [SSDMatcher(0.5)(box_iou(b, defaults)) for b in boxes]
    targets = [{"boxes": b, "labels": c + 1} for b, c in zip(boxes, labels)]
    answers = {"bbox_regression": deltas, "cls_logits": logits}
    losses = TorchvisionSSD.compute_loss(parts, targets, answers, [defaults] * len(boxes), matches)
    return [losses["classification"].item(), losses["bbox_regression"].item()]


@pytest.mark.parametrize("options", [{}, {"ratio": 0}, {"ratio": 10**6}, {"alpha": 0.3}], ids=str)
@pytest.mark.parametrize("counts", [(3, 5), (1, 7, 4), (3, 0, 6), (0, 0), (90, 1)], ids=str)
def test_the_loss_by_loops_and_torchvisions(nb, options, counts):
    defaults, objects = small_defaults(nb), objects_of(*counts)
    answers = random_answers(len(counts))
    losses = nb.MultiBoxLoss(**options)(*answers, defaults, *objects)
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == pytest.approx(losses_by_loops(nb, answers, objects, **options), 1e-4)
    if options == {} and counts in ((3, 5), (1, 7, 4)):  # torchvision wants a few objects
        assert [*found.values()] == pytest.approx(
            torchvision_loss(*answers, defaults, *objects), 1e-4
        )
    sum(losses.values()).backward()
    assert all(a.grad.isfinite().all() for a in answers)


NASTY = {
    "900": torch.tensor([[x, y, x + 12, y + 12] for x in range(0, 90, 3) for y in range(0, 90, 3)]),
    "twice the same": torch.tensor([[8.0, 8, 30, 30]] * 2),
    "far outside": torch.tensor([[900.0, 900, 950, 950]]),
} | {name: torch.tensor([box]) for name, box in NASTY_BOXES.items()}


@pytest.mark.parametrize("loss", ["MultiBoxLoss", "RetinaLoss"])
@pytest.mark.parametrize("objects", NASTY.values(), ids=NASTY)
def test_nasty_objects_leave_the_model_a_step(nb, objects, loss):
    model = (nb.SSD if loss == "MultiBoxLoss" else nb.RetinaNetOnShapes)(3).train()
    labels = torch.arange(len(objects)) % 3
    answers = model(torch.randn(2, 3, 64, 96))
    losses = getattr(nb, loss)()(*answers, [objects.float(), NO_BOXES], [labels, NO_LABELS])
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert finite_gradients(model)


def test_the_order_of_objects_and_images_does_not_matter(nb):
    defaults, (boxes, labels) = small_defaults(nb), objects_of(6, 5)
    logits, deltas = random_answers(2)
    first = nb.MultiBoxLoss()(logits, deltas, defaults, boxes, labels)
    turned = nb.MultiBoxLoss()(logits.flip(0), deltas.flip(0), defaults, boxes[::-1], labels[::-1])
    torch.testing.assert_close(first, turned)


def test_the_retinanet_on_two_maps(nb):
    model = nb.RetinaNetOnShapes(3).eval()
    with torch.no_grad():
        logits, deltas, boxes = model(torch.randn(2, 3, 96, 64))
    assert torch.equal(boxes, torch.cat(nb.default_boxes(96, 64, (8, 16))))
    assert logits.shape == (2, len(boxes), 3) and deltas.shape == (2, len(boxes), 4)
    assert nb.each_class(logits).mean().item() == pytest.approx(0.01, rel=0.2)
    convs = [m for m in model.class_subnet if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [64] * 4 + [18]


# ---------------------------------------------------------------- zoom


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0), (0.7, 1.4)])
def test_a_zoomed_object_lies_in_its_box(nb, low, high):
    images, boxes = torch.zeros(8, 3, 64, 64), []
    for i in range(8):
        x, y = 10 + 3 * i, 40 - 2 * i
        images[i, :, y : y + 16, x : x + 12] = 1
        boxes.append(torch.tensor([[x, y, x + 12.0, y + 16.0]]))
    labels = [torch.tensor([i % 3]) for i in range(8)]
    zoomed, moved, kept = nb.zoom(images, boxes, labels, low, high)
    assert zoomed.shape == images.shape
    if low == high == 1:
        torch.testing.assert_close(zoomed, images, atol=1e-4, rtol=0)
    for image, b, k, label in zip(zoomed, moved, kept, labels):
        assert len(b) == len(k) <= 1 and (b >= 0).all() and (b <= 64).all()
        if len(b) == 0:
            continue
        assert torch.equal(k, label)
        rows, columns = torch.where(image[0] > 0.5)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(b[0], torch.stack(seen).float(), atol=1.1, rtol=0)


def test_zoom_drops_what_is_not_in_the_window(nb):
    images = torch.zeros(50, 3, 64, 64)
    boxes = [torch.tensor([[0.0, 0, 8, 8], [56, 56, 64, 64]])] * 50
    _, moved, kept = nb.zoom(images, boxes, [torch.tensor([0, 1])] * 50, 0.5, 0.5)
    assert max(map(len, kept)) == 1 and min(map(len, kept)) == 0  # never both corners
    assert all(len(b) == len(k) for b, k in zip(moved, kept))
    nothing = nb.zoom(images[:2], [NO_BOXES] * 2, [NO_LABELS] * 2)
    assert [b.shape for b in nothing[1]] == [(0, 4)] * 2


# ---------------------------------------------------------------- training and looking


@pytest.fixture
def on_few_images(nb, few_images, monkeypatch):
    """The notebook with a benchmark of four images."""
    for name, value in {"train_set": few_images, "test_set": few_images}.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    return nb


def test_training_repeats_with_the_seed(on_few_images):
    nb = on_few_images
    trained = [nb.train_ssd(2, seed, augment=nb.zoom) for seed in (0, 0, 1)]
    weights = [model.class_heads[0].weight for model, _ in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for model, history in trained:
        assert not model.training and list(history.columns()) == ["class", "box"]
        assert len(history["box"]) == 2


@torch.no_grad()
def test_answers_by_map_and_what_each_finds(on_few_images, few_images, monkeypatch):
    nb = on_few_images
    model = nb.SSD(3).eval()
    monkeypatch.setattr(nb, "model", model, raising=False)
    parts = nb.by_map(few_images.images)
    whole = model(to_input(few_images.images, torch.device("cpu")))
    for i, name in enumerate(("logits", "deltas", "defaults")):
        joined = torch.cat([part[i] for part in parts], dim=1 if i < 2 else 0)
        torch.testing.assert_close(joined, whole[i], msg=name)
    assert len(nb.found_alone(1)) == sum(len(t["boxes"]) for t in few_images.targets)


def test_figures_are_drawn(on_few_images, few_images, monkeypatch):
    nb = on_few_images
    monkeypatch.setattr(nb, "model", nb.SSD(3).eval(), raising=False)
    matching = nb.draw_matching(1)
    titles = [ax.get_title() for ax in matching.axes]
    matches = nb.match_boxes(box_iou(nb.defaults, few_images.targets[1]["boxes"]))
    assert sum(int(title.split()[-2]) for title in titles) == int((matches >= 0).sum())
    mining = [ax.get_title() for ax in nb.draw_mining(1, ratio=2).axes]
    positive, hard = (int(title.split()[0]) for title in mining)
    assert positive == int((matches >= 0).sum()) and hard == 2 * positive
    templates = [ax.get_title() for ax in nb.draw_templates(few_images.images[0]).axes]
    assert "6,144 boxes" in templates[0]
    plt.close("all")
