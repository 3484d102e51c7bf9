"""The code of notebook 02 against its oracles, on random and on nasty input."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from shared import NASTY_BOXES, NOT_IN_THE_IMAGE, notebook_code, random_boxes
from torchvision import ops

from helpers.boxes import decode_boxes

SEEDS = st.integers(0, 10**6)
NARROW = (4, 4, 4, 4, 8, 8)


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("02_fast_rcnn", SEED=0, DEVICE=torch.device("cpu")) as module:
        yield module


def tiny(nb, **options):
    return nb.FastRCNN(backbone=nb.SmallBackbone(NARROW), hidden_dim=8, **options)


# ---------------------------------------------------------------- crops and maps


def test_a_crop_is_the_region_stretched(nb):
    image = torch.rand(1, 3, 40, 60)
    crops = nb.warp(image, torch.tensor([[0.0, 0, 60, 40], [10, 5, 24, 19]]), 7)
    assert crops.shape == (2, 3, 7, 7)
    flat = nb.warp(torch.full((1, 3, 40, 60), 0.25), torch.tensor([[3.3, 4.2, 50, 39]]), 5)
    assert torch.allclose(flat, torch.full((1, 3, 5, 5), 0.25))


@pytest.mark.parametrize("size", [(128, 128), (64, 200), (8, 8)])
def test_one_cell_for_eight_pixels(nb, size):
    backbone = nb.SmallBackbone().eval()
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, *size))
    assert features.shape == (2, 96, size[0] // 8, size[1] // 8)
    assert backbone.out_channels == 96 and features.min() >= 0


def test_how_far_the_padding_reaches(nb):
    """Zeros around an image change four cells from the left and three from the right."""
    backbone = nb.SmallBackbone().double().eval()
    image = torch.rand(1, 3, 128, 192, dtype=torch.double)
    with torch.no_grad():
        inside = backbone(image)[..., 4:-4]  # cells 4 .. 19 of 24
        cut = backbone(image[..., 32:160])  # cells 0 .. 15: the same pixels, with a border
    same = torch.isclose(inside, cut, atol=1e-9).all(dim=1)[0]  # (16, 16)
    columns = same.all(dim=0)
    assert columns.tolist() == [False] * 4 + [True] * 9 + [False] * 3
    assert nb.RIM == 4


# ---------------------------------------------------------------- RoI pooling


@st.composite
def scenes(draw):
    """Maps (2, 3, H, W), regions (R, 5) in pixels, bins and scale."""
    torch.manual_seed(draw(SEEDS))
    height, width = draw(st.tuples(*[st.integers(1, 20)] * 2))
    scale = draw(st.sampled_from([1 / 4, 1 / 8, 1 / 16]))
    corner = torch.rand(6, 2) * torch.tensor([width, height]) / scale
    sides = torch.rand(6, 2) * torch.tensor([width, height]) / scale
    rois = torch.cat([torch.randint(2, (6, 1)), corner - sides / 2, corner + sides / 2], dim=1)
    return torch.randn(2, 3, height, width), rois, draw(st.sampled_from([1, 2, 7])), scale


@given(scenes())
def test_pooling_by_hand_is_torchvisions(nb, scene):
    features, rois, bins, scale = scene
    expected = ops.roi_pool(features, rois, bins, scale)
    assert torch.equal(nb.roi_pool_by_hand(features, rois, bins, scale), expected)
    assert torch.equal(nb.RoIPooling(bins, scale)(features, rois), expected)


@given(scenes())
def test_the_way_back_by_hand_is_torchvisions(nb, scene):
    features, rois, bins, scale = scene
    back = torch.randn(len(rois), 3, bins, bins)
    gradients = []
    for pool in (nb.RoIPooling(bins, scale), lambda *a: nb.roi_pool_by_hand(*a, bins, scale)):
        leaf = features.clone().requires_grad_()
        pool(leaf, rois).backward(back)
        gradients.append(leaf.grad)
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("name", NASTY_BOXES)
def test_nasty_regions_are_pooled(nb, name):
    features = torch.rand(1, 2, 16, 40) + 1
    rois = torch.tensor([[0.0, *NASTY_BOXES[name]]])
    pooled = nb.RoIPooling()(features, rois)
    assert torch.equal(pooled, nb.roi_pool_by_hand(features, rois))
    assert pooled.shape == (1, 2, 7, 7) and pooled.isfinite().all()
    nothing = NOT_IN_THE_IMAGE | {"the last pixel"}  # rounded, it begins behind the map
    assert (pooled == 0).all() == (name in nothing)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 9))
def test_no_cell_of_the_rounded_region_is_missed(nb, first, length, bins):
    low, high = torch.tensor(float(first)), torch.tensor(float(first + length))
    starts, ends = nb.bin_edges(low, high, cells=100, bins=bins)
    read = [cell for a, b in zip(starts, ends) for cell in range(a, b)]
    assert set(read) == set(range(first, first + length + 1))
    assert all(b > a for a, b in zip(starts, ends))


def test_no_region_and_wrong_regions(nb):
    features = torch.rand(1, 4, 8, 8)
    assert nb.RoIPooling()(features, torch.zeros(0, 5)).shape == (0, 4, 7, 7)
    with pytest.raises(ValueError, match=r"rois must have shape \(R, 5\), got \(2, 4\)"):
        nb.RoIPooling()(features, torch.zeros(2, 4))


def test_the_gradient_of_all_bins_goes_to_winners(nb):
    feature = torch.randn(10, 12)
    a, b = torch.tensor([[0, 1.0, 1, 6, 7]]), torch.tensor([[0, 4.0, 2, 10, 8]])
    sent = nb.routed(feature, a)
    assert sent.sum() == 49 and (sent[:, 7:] == 0).all()
    assert torch.equal(nb.routed(feature, torch.cat([a, b])), sent + nb.routed(feature, b))
    cell = torch.tensor([[0, 3.0, 3, 3, 3]] * 2)
    assert nb.routed(feature, cell)[3, 3] == 98  # exercise 1


def test_the_picture_of_a_region(nb):
    figure = nb.show_pooling(torch.rand(16, 16), [20.0, 30.0, 80.0, 128.0], 1 / 8)
    figure.canvas.draw()
    assert len(figure.axes) == 3
    plt.close(figure)


# ---------------------------------------------------------------- head and detector


def test_the_head_at_its_start(nb):
    head = nb.FastRCNNHead(96 * 49, 3, hidden_dim=256, dropout=0.0)
    scores, deltas = head(torch.rand(50, 96, 7, 7))
    assert scores.shape == (50, 4) and deltas.shape == (50, 16)
    assert (scores.softmax(dim=1) - 0.25).abs().max() < 0.1 and deltas.abs().max() < 0.1
    with torch.device("meta"):
        usual = nb.FastRCNNHead(2048 * 49, 20)
    assert usual.fc6.out_features == usual.fc7.out_features == 4096 and usual.dropout.p == 0.5


def test_dropout_sleeps_outside_of_training(nb):
    head, x = nb.FastRCNNHead(20, 3, hidden_dim=64), torch.rand(5, 20)
    assert torch.equal(head.eval()(x)[0], head(x)[0])
    assert not torch.equal(head.train()(x)[0], head(x)[0])


class MeanPooling(torch.nn.Module):
    def forward(self, features, rois):
        return ops.roi_align(features, rois, 3, 1 / 8)


def test_any_pool_and_any_backbone(nb):
    model = tiny(nb, num_classes=5, pool=MeanPooling()).eval()
    scores, deltas = model(torch.rand(2, 3, 64, 96), torch.tensor([[1, 3.0, 4, 50, 60]]))
    assert scores.shape == (1, 6) and deltas.shape == (1, 24)
    assert model.head.fc6.in_features == 8 * 9


def test_each_image_passes_once(nb):
    model, passed = tiny(nb).eval(), []
    model.backbone.register_forward_hook(lambda *all: passed.append(len(all[2])))
    rois = torch.cat([F.pad(random_boxes(300), (1, 0), value=i) for i in range(3)])
    scores, _ = model(torch.rand(3, 3, 64, 64), rois)
    assert passed == [3] and len(scores) == 900


def test_a_region_is_answered_for_by_its_own_image(nb):
    model, images = tiny(nb).eval(), torch.rand(2, 3, 64, 64)
    box = torch.tensor([10.0, 10, 50, 40])
    rois = torch.stack([F.pad(box, (1, 0), value=i) for i in (0, 1)])
    together = model(images, rois)[0]
    alone = [model(images[i : i + 1], rois[:1])[0][0] for i in (0, 1)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)


# ---------------------------------------------------------------- the loss


@given(SEEDS, st.sampled_from([0.1, 1.0, 2.0]))
def test_smooth_l1_is_torchs(nb, seed, beta):
    torch.manual_seed(seed)
    a, b = torch.randn(2, 20, 4) * 3
    oracle = F.smooth_l1_loss(a, b, beta=beta, reduction="sum")
    assert torch.allclose(nb.smooth_l1_loss(a, b, beta), oracle, rtol=1e-4)


@given(SEEDS, st.integers(0, 8))
def test_the_loss_by_a_loop(nb, seed, n):
    torch.manual_seed(seed)
    scores, deltas = torch.randn(n, 4), torch.randn(n, 16, requires_grad=True)
    labels, targets = torch.randint(4, (n,)), torch.randn(n, 4)
    parts = nb.FastRCNNLoss(3, lambda_bbox=2.0)(scores, deltas, labels, targets)
    box = what = 0.0
    for s, d, label, target in zip(scores, deltas.detach().view(n, 4, 4), labels.tolist(), targets):
        what = what - s.log_softmax(dim=0)[label] / n
        if label:
            box = box + 2 * F.smooth_l1_loss(d[label], target, reduction="sum") / n
    assert parts["class"].item() == pytest.approx(float(what), abs=1e-4)
    assert parts["box"].item() == pytest.approx(float(box), abs=1e-4)
    sum(parts.values()).backward()
    touched = deltas.grad.view(n, 4, 4).abs().sum(dim=2) > 0
    expected = F.one_hot(labels, 4).bool() & (labels > 0)[:, None] if n else touched
    assert torch.equal(touched, expected)


# ---------------------------------------------------------------- samples


@given(SEEDS, st.integers(0, 4), st.integers(0, 40), st.integers(1, 30))
def test_samples(nb, seed, objects, regions, count):
    torch.manual_seed(seed)
    boxes, labels = random_boxes(objects, seed), torch.arange(objects) % 3
    regions = random_boxes(regions, seed + 1)
    drawn, answers, targets = nb.sample_regions(regions, boxes, labels, count)
    assert len(drawn) == len(answers) == len(targets) <= count
    assert (answers > 0).sum() <= int(count * 0.5) and answers.dtype == torch.long
    assert targets.isfinite().all() and not targets[answers == 0].any()
    if objects == 0:
        assert not answers.any() and len(drawn) == min(count, len(regions))
        return
    overlap, match = ops.box_iou(drawn, boxes).max(dim=1)
    assert torch.equal(answers > 0, overlap >= 0.5)
    moved = decode_boxes(targets, drawn, nb.DELTA_WEIGHTS)[answers > 0]
    assert torch.allclose(moved, boxes[match][answers > 0], atol=1e-2)
    assert torch.equal(labels[match][answers > 0] + 1, answers[answers > 0])


def test_the_objects_are_among_the_regions(nb):
    boxes, labels = random_boxes(3), torch.tensor([2, 0, 1])
    drawn, answers, targets = nb.sample_regions(torch.zeros(0, 4), boxes, labels)
    assert sorted(answers.tolist()) == [1, 2, 3] and targets.abs().max() < 1e-5


def test_numbers_of_images(nb):
    rois = nb.as_rois([random_boxes(2), torch.zeros(0, 4), random_boxes(1)])
    assert rois.shape == (3, 5) and rois[:, 0].tolist() == [0, 0, 2]
    assert torch.equal(rois[:2, 1:], random_boxes(2))


# ---------------------------------------------------------------- reading


def test_reading_moves_each_region_by_its_own_class(nb):
    regions = torch.tensor([[10.0, 10, 50, 50], [60, 60, 100, 90]])
    scores = torch.tensor([[0.0, 9, 0, 0], [0, 0, 0, 9]])
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 1] = torch.tensor([1.0, 0, 0, 0])  # a tenth of the width to the right
    deltas[1, 1] = 50.0  # of another class: must not matter
    found = nb.read_detections(scores, deltas.flatten(1), regions, (128, 128))
    expected = torch.tensor([[14.0, 10, 54, 50], [60, 60, 100, 90]])
    assert torch.allclose(found["boxes"], expected, atol=1e-3)
    assert found["labels"].tolist() == [0, 2] and (found["scores"] > 0.99).all()


@given(SEEDS, st.integers(0, 60))
def test_detections_are_sorted_and_inside(nb, seed, count):
    torch.manual_seed(seed)
    regions = random_boxes(count, seed)
    found = nb.read_detections(
        torch.randn(count, 4) * 3, torch.randn(count, 16) * 30, regions, (50, 70), top=10
    )
    assert len(found["scores"]) <= 10
    assert torch.equal(found["scores"], found["scores"].sort(descending=True).values)
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= torch.tensor([70, 50, 70, 50])).all()
    for k in range(3):
        boxes = found["boxes"][found["labels"] == k]
        overlap = ops.box_iou(boxes, boxes).nan_to_num().fill_diagonal_(0)
        assert (overlap <= 0.5 + 1e-4).all()


def test_background_is_no_detection(nb):
    found = nb.read_detections(
        torch.tensor([[9.0, 0, 0, 0]]), torch.zeros(1, 16), random_boxes(1), (128, 128)
    )
    assert len(found["boxes"]) == 0


def test_images_without_regions(nb):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = nb.detect(tiny(nb).eval(), images, [torch.zeros(0, 4), random_boxes(5)])
    assert len(found) == 2 and len(found[0]["boxes"]) == 0
    assert nb.detect(tiny(nb).eval(), images[:0], []) == []


# ---------------------------------------------------------------- looking inside


def test_random_boxes_are_inside_and_as_asked(nb):
    boxes = torch.stack(nb.random_boxes(500, 4))
    sides = boxes[..., 2:] - boxes[..., :2]
    assert boxes.shape == (4, 500, 4) and boxes.min() >= 0 and boxes.max() <= 128
    assert sides.min() >= 8 - 1e-3 and sides.max() <= 72 + 1e-3
    assert torch.equal(boxes, torch.stack(nb.random_boxes(500, 4)))


def test_evidence_lies_in_the_region(nb):
    image = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)
    weight = nb.evidence(tiny(nb).eval(), image, torch.tensor([16.0, 16, 63, 63]), 1)
    assert weight.shape == (16, 16) and (weight >= 0).all()
    weight[2:9, 2:9] = 0
    assert not weight.any()


def test_found_objects(nb):
    target = {"boxes": random_boxes(3), "labels": torch.tensor([0, 1, 2])}
    detection = {"boxes": random_boxes(3), "labels": torch.tensor([0, 2, 2])}
    assert nb.is_found(detection, target).tolist() == [True, False, True]


# ---------------------------------------------------------------- further


def test_resnet_maps_and_frozen_tensors(nb):
    with torch.device("meta"):
        body = nb.ResNetBackbone(freeze=30)
        assert body(torch.empty(1, 3, 64, 96)).shape == (1, 2048, 2, 3)
    still = [not p.requires_grad for p in body.parameters()]
    assert still == [True] * 30 + [False] * (len(still) - 30)


def test_a_narrow_start(nb):
    head = nb.narrow_start(nb.FastRCNNHead(400, 3, hidden_dim=300))
    for layer in (head.fc6, head.fc7, head.cls_score, head.bbox_pred):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1) and not layer.bias.any()


def test_random_proposals_of_further(nb):
    boxes = nb.SimplifiedProposalGenerator(3000).generate_proposals(height=150, width=224)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.shape == (3000, 4) and boxes.min() >= 0
    assert boxes[:, 2].max() <= 224 and boxes[:, 3].max() <= 150
    assert sides.min() >= 20 and sides.max() <= 100
    with pytest.raises(ValueError, match="must have 20 pixels or more, got 19"):
        nb.SimplifiedProposalGenerator().generate_proposals(19, 100)


def test_rectangles_have_the_colour_of_their_class(nb):
    images, targets = nb.create_synthetic_dataset(6, size=100, seed=3)
    assert images.shape == (6, 3, 100, 100) and images.dtype == torch.uint8
    for image, target in zip(images, targets):
        assert 2 <= len(target["labels"]) <= 3 == len({0, 1, 2})
        assert len(target["labels"].unique()) == len(target["labels"])
        assert target["boxes"].min() >= 0 and target["boxes"].max() <= 100
        x1, y1, x2, y2 = target["boxes"][-1].int().tolist()  # painted last, covered by none
        expected = torch.zeros(3)
        expected[target["labels"][-1]] = 230
        assert torch.equal(image[:, (y1 + y2) // 2, (x1 + x2) // 2].float(), expected)


def test_the_trainer_takes_every_region_and_learns(nb):
    torch.manual_seed(0)
    trainer = nb.FastRCNNTrainer(tiny(nb))
    images, targets = nb.create_synthetic_dataset(2, size=64 + 64)
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.001, 0.9, 0.0005)
    regions = [random_boxes(7), random_boxes(4)]
    rois, labels, goals, weights = trainer.prepare_training_data(regions, targets)
    count = 11 + sum(len(t["labels"]) for t in targets)
    assert rois.shape == (count, 5) and goals.shape == weights.shape == (count, 4)
    assert torch.equal(weights[:, 0] > 0, labels > 0)
    losses = [trainer.train_epoch(images, targets) for _ in range(2)]
    for total, what, where in losses:
        assert math.isfinite(total) and total == pytest.approx(what + where, abs=1e-4)
