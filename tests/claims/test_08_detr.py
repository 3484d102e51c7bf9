"""The lecture text's section on DETR, statement by statement: its lines 1136 to 1214."""

import itertools

import matplotlib.pyplot as plt
import pytest
import torch
from claim import claim
from scipy.optimize import linear_sum_assignment
from shared import notebook_code, recorded_mean
from torch import nn
from torchvision.models import resnet50
from torchvision.ops import box_iou, generalized_box_iou

TINY = {"channels": (8, 8, 8), "dim": 16, "heads": 2, "hidden": 24, "depths": (1, 2)}
# Carion et al. 2020: table 1 (AP, AP of small and of large objects), sections 4.2 and 5.
TABLE_1 = {"DETR": (42.0, 20.5, 61.1), "Faster R-CNN-FPN+": (42.0, 26.6, 53.4)}
WITHOUT = {"encoder": 3.9, "feed-forward networks": 2.3, "spatial positions": 7.8}
PARAMETERS = {"all": 41.3, "backbone": 23.5}  # millions, ResNet-50


@pytest.fixture(scope="module")
def lesson():
    plt.switch_backend("agg")
    with notebook_code("08_detr", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        yield module


@pytest.fixture
def model(lesson):
    torch.manual_seed(0)
    return lesson.DETR(num_queries=6, **TINY).eval()


def target_of(*boxes):
    return [{"labels": torch.zeros(len(boxes), dtype=torch.long), "boxes": torch.tensor(boxes)}]


# ---------------------------------------------------------------- the big shift, lines 1138 to 1149
@claim(
    "detr",
    1,
    1140,
    says="before DETR every detector relied on local anchors or grids and on NMS, even FCOS",
    verdict="imprecise",
    paper="section 2.3 names set-based and recurrent detectors without NMS",
)
def test_who_did_without(measure):
    without_nms = {"Stewart et al.": 2016, "relation networks": 2018, "CenterNet": 2019}
    assert all(year < 2020 for year in without_nms.values())
    said = ", ".join(f"{name} {year}" for name, year in without_nms.items())
    measure(f"without NMS: {said}; without anchors: FCOS (07)")


@claim(
    "detr",
    2,
    1147,
    says="detection like a translation problem, from an image directly to a set of boxes",
    verdict="imprecise",
    paper="all objects in parallel, not one after the other, section 3.2",
)
def test_all_words_at_once(model, measure):
    x, order = torch.rand(1, 3, 64, 64), torch.randperm(6)
    with torch.no_grad():
        before = model(x)[-1][1]
        model.query_embed.weight.copy_(model.query_embed.weight[order].clone())
        gap = (model(x)[-1][1] - before[:, order]).abs().max().item()
    assert gap < 1e-5
    measure("queries in another order: the same answers in that order; none waits for another")


# ---------------------------------------------------------------- intuition, lines 1151 to 1164
@claim(
    "detr",
    3,
    1154,
    says="2-D positional encodings let the transformer know where each patch came from",
    verdict="true",
    paper=f"without spatial encodings {WITHOUT['spatial positions']} AP less, table 3",
)
def test_without_positions_places_are_unknown(lesson, measure):
    torch.manual_seed(0)
    encoder, x = lesson.TransformerEncoder(16, 2, 24, 2), torch.randn(1, 9, 16)
    order, gaps = torch.randperm(9), []
    with torch.no_grad():
        for position in (torch.zeros(1, 9, 16), torch.randn(1, 9, 16)):
            shuffled = encoder(x[:, order] + position)
            gaps.append((shuffled - encoder(x + position)[:, order]).abs().max().item())
    assert gaps[0] < 1e-5 < 0.01 < gaps[1]
    measure(f"patches shuffled: tokens change by {gaps[0]:.0e} without, {gaps[1]:.1f} with them")


@claim(
    "detr",
    4,
    1156,
    says="in the encoder each region looks at all others",
    verdict="true",
    paper="global self-attention, section 3.2",
)
def test_every_token_looks_at_every_other(lesson, measure):
    torch.manual_seed(0)
    layer, x = lesson.EncoderLayer(16, 2, 24), torch.randn(1, 49, 16)
    layer.attend.keep = True
    layer(x)
    weights = layer.attend.weights
    assert weights.shape == (1, 2, 49, 49) and (weights > 0).all()
    assert torch.allclose(weights.sum(dim=3), torch.ones(1, 2, 49))
    measure("7 × 7 tokens at 224 px: 49 × 49 weights per head, all above 0")


@claim(
    "detr",
    5,
    1157,
    says="the decoder starts with learnable object queries",
    verdict="imprecise",
    paper="it starts with zeros; queries are added to the input of every attention, section 3.2",
)
def test_the_state_starts_at_zero(model, measure):
    seen = []
    model.decoder.layers[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    with torch.no_grad():
        model.query_embed.weight[:] = model.query_embed.weight[:1]
        boxes = model(torch.rand(1, 3, 64, 64))[-1][1]
    assert not seen[0][0].any() and torch.equal(seen[0][1], model.query_embed.weight)
    gap = (boxes - boxes[:, :1]).abs().max().item()
    assert gap < 1e-6
    measure("the first state is 0; equal queries give equal answers")


@claim(
    "detr",
    6,
    1157,
    says="there are, for example, 100 query vectors",
    verdict="true",
    paper="N = 100",
)
def test_a_hundred_queries(lesson, measure):
    with torch.device("meta"):
        count = lesson.DETR().query_embed.num_embeddings
    assert count == 100
    measure(f"{count}")


@claim(
    "detr",
    7,
    1158,
    says="queries compete, and each comes to stand for one object",
    verdict="imprecise",
    paper="queries come to prefer regions and sizes, figure 7",
)
def test_queries_talk_and_are_not_tied_to_objects(lesson, measure):
    torch.manual_seed(0)
    layer = lesson.DecoderLayer(16, 2, 24)
    asks, memory, x = torch.randn(5, 16), torch.randn(1, 7, 16), torch.randn(1, 5, 16)
    with torch.no_grad():
        before = layer(x, asks, memory)
        x[:, 0] = torch.randn(16)
        after = layer(x, asks, memory)
    moved = (after - before)[:, 1:].abs().max().item()
    assert moved > 1e-3
    measure(
        "queries hear one another (change one, and the others change); in our network each stays "
        "with the region where it was put, section 10"
    )


@claim(
    "detr",
    8,
    1162,
    says="the box head answers normalised [x_c, y_c, w, h]",
    verdict="true",
    paper="a three-layer perceptron, section 3.2, and a sigmoid in the code",
)
def test_boxes_are_shares_of_the_image(model, measure):
    with torch.no_grad():
        boxes = torch.cat([b for _, b in model(100 * torch.randn(4, 3, 64, 64))])
        nn.init.constant_(model.bbox_embed[-1].bias, 4.0)
        large = model(torch.randn(1, 3, 64, 64))[-1][1]
    assert 0 < boxes.min() and boxes.max() < 1 and 0.9 < large.min() and large.max() < 1
    measure(f"between {boxes.min():.2f} and {boxes.max():.2f}, even for wild input")


@claim(
    "detr",
    9,
    1164,
    says="a fixed number of predictions, such as 100, whatever the number of objects",
    verdict="true",
    paper="section 3.1; also the most objects that can be found",
)
def test_always_as_many_answers(lesson, model, measure):
    shapes = {tuple(model(torch.rand(n, 3, 64, 64))[-1][1].shape[1:]) for n in (1, 3)}
    assert shapes == {(6, 4)}
    seven = target_of(*[[0.5, 0.5, 0.1, 0.1]] * 7)
    with pytest.raises(ValueError, match="7"):
        lesson.HungarianMatcher()(*model(torch.rand(1, 3, 64, 64))[-1], seven)
    measure("6 queries: 6 answers for any image, and 7 objects are one too many")


# ---------------------------------------------------------------- training, lines 1166 to 1184
@claim(
    "detr",
    10,
    1168,
    says="Hungarian matching finds the best one-to-one correspondence",
    verdict="true",
    paper="section 3.1",
)
def test_the_matching_is_the_best_there_is(lesson, measure):
    dearer = 0
    for seed in range(100):
        cost = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed))
        least = min(cost[list(p), range(3)].sum() for p in itertools.permutations(range(5), 3))
        assert torch.isclose(cost[linear_sum_assignment(cost)].sum(), least)
        dearer += bool(cost[lesson.greedy_matching(cost)].sum() > least + 1e-6)
    assert dearer > 5
    measure(f"equal to brute force in 100 tables; greed is dearer in {dearer} of them")


@claim(
    "detr",
    11,
    1170,
    says="the loss is cross-entropy plus L1 plus GIoU",
    verdict="true",
    paper="weights 1, 5 and 2, and auxiliary losses, appendix A.4",
)
def test_three_parts(lesson, measure):
    target = target_of([0.3, 0.4, 0.2, 0.2])
    logits, boxes = (
        torch.zeros(1, 2, 4),
        torch.tensor([[[0.3, 0.4, 0.2, 0.2], [0.8, 0.8, 0.1, 0.1]]]),
    )
    perfect = lesson.DETRLoss()([(logits, boxes)], target)
    off = lesson.DETRLoss()([(logits, boxes + 0.1)], target)
    assert perfect["l1"] == 0 and perfect["giou"] < 1e-4 < perfect["class"]
    assert off["l1"].item() == pytest.approx(5 * 0.4, rel=1e-4) and off["giou"] > 0.5
    measure(
        f"a perfect box costs 0, one that is 0.1 off in each number {off['l1'].item():.1f} by L1"
    )


@claim(
    "detr",
    12,
    1170,
    says="GIoU is one of the terms (no reason is given)",
    verdict="true",
    paper="L1 alone depends on the scale, section 3.1",
)
def test_giou_does_not_depend_on_the_scale(lesson, measure):
    losses = {}
    for scale in (1.0, 0.1):
        a, b = (lesson.corners(scale * torch.tensor([[x, 0.5, 0.2, 0.2]])) for x in (0.5, 0.55))
        losses[scale] = (a - b).abs().sum().item(), 1 - generalized_box_iou(a, b).item()
    assert losses[1.0][0] == pytest.approx(10 * losses[0.1][0], rel=1e-3)
    assert losses[1.0][1] == pytest.approx(losses[0.1][1], rel=1e-3)
    slopes = []
    for overlap in (box_iou, generalized_box_iou):
        guess = torch.tensor([[0.2, 0.2, 0.2, 0.2]], requires_grad=True)
        truth = torch.tensor([[0.7, 0.7, 0.2, 0.2]])
        overlap(lesson.corners(guess), lesson.corners(truth)).sum().backward()
        slopes.append(guess.grad.abs().sum().item())
    assert slopes[0] == 0 < slopes[1]
    measure(
        f"a tenth of the size: L1 a tenth, 1 - GIoU {losses[0.1][1]:.2f} as before; far apart, "
        f"IoU has no gradient, GIoU {slopes[1]:.2f}"
    )


@claim(
    "detr",
    13,
    1179,
    says="unmatched queries are trained as no object",
    verdict="true",
    paper="with weight 0.1, section 4",
)
def test_the_others_learn_to_say_nothing(lesson, measure):
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2]] + [[0.1, 0.1, 0.1, 0.1]] * 3])
    target = target_of([0.5, 0.5, 0.2, 0.2])
    sum(lesson.DETRLoss()([(logits, boxes)], target).values()).backward()
    wanted = (-logits.grad[0]).argmax(dim=1).tolist()
    assert wanted == [0, 3, 3, 3]
    share = [98 * w / (98 * w + 2) for w in (1.0, 0.1)]
    measure(
        f"with 2 objects and 100 queries they have {share[0]:.0%} of the class loss's weight, "
        f"{share[1]:.0%} with the paper's 0.1"
    )


@claim(
    "detr",
    14,
    1184,
    says="each object is predicted once, duplicates never arise and no NMS is needed",
    verdict="false",
    paper="NMS helps the first decoder layer, figure 4",
)
def test_duplicates_arise(measure):
    share = {layer: recorded_extra(f"repeated{layer}") for layer in (", layer 1", "")}
    assert share[""] > 0
    gain = recorded_extra("AP with NMS") - recorded_mean("08_detr", "main")
    measure(
        f"of the sure boxes {share[', layer 1']:.1%} repeat a surer one after the first layer, "
        f"{share['']:.1%} after the last; NMS changes the AP by {gain:+.3f}"
    )


def recorded_extra(key, variant="main"):
    """A measure that only lecture 08's experiments have, the mean of its seeds."""
    from helpers.records import EXPERIMENTS, read_records

    rows, problems = read_records(EXPERIMENTS, ["08_detr"])
    assert not problems, problems
    values = [row["extra"][key] for row in rows if row["variant"] == variant]
    assert len(values) >= 3
    return sum(values) / len(values)


# ---------------------------------------------------------------- revolutionary, lines 1186 to 1192
@claim(
    "detr",
    15,
    1189,
    says="thousands of anchors before, a fixed set of learnt queries now",
    verdict="true",
    paper="100 queries",
)
def test_anchors_against_queries(measure):
    anchors = {"RPN at 224 px": 9 * 14 * 14, "SSD300": 8732}
    assert anchors["RPN at 224 px"] == 1764 and all(n > 100 for n in anchors.values())
    measure(", ".join(f"{name} {n:,}" for name, n in anchors.items()) + "; here 100")


@claim(
    "detr",
    16,
    1190,
    says="local receptive fields before, global attention now",
    verdict="imprecise",
    paper="what is new is that the weights depend on the content",
)
def test_receptive_fields_are_not_small(measure):
    with torch.device("meta"):
        layers = [m for m in resnet50(weights=None).modules() if isinstance(m, nn.Conv2d)]
    span, step = 1, 1
    for conv in [c for c in layers if c.kernel_size != (1, 1)]:
        span, step = span + (conv.kernel_size[0] - 1) * step, step * conv.stride[0]
        if conv.kernel_size == (7, 7):
            span, step = span + 2 * step, step * 2  # the maximum pooling after it
    assert span > 224
    measure(
        f"in principle a cell of a ResNet-50's last map sees {span} px, more than an image of 224; "
        "how much of it counts is another question"
    )


@claim(
    "detr",
    17,
    1191,
    says="heuristic NMS before, optimal matching by the Hungarian algorithm now",
    verdict="imprecise",
    paper="matching is for training; NMS is replaced by attention and “no object”, section 4.2",
)
def test_nobody_matches_when_the_network_is_used(lesson, model, monkeypatch, measure):
    def called(*_):
        raise AssertionError("matched")

    monkeypatch.setattr(lesson.HungarianMatcher, "__call__", called)
    with torch.no_grad():
        assert len(model.detect(torch.rand(2, 3, 64, 64))) == 2
    measure("two moments: no matcher is called when the network is used")


@claim(
    "detr",
    18,
    1192,
    says="training is end-to-end differentiable",
    verdict="imprecise",
    paper="the matching is computed without a gradient",
)
def test_the_slope_jumps_with_the_matching(lesson, measure):
    walk = [0.201 + 0.598 * k / 119 for k in range(120)]
    values, slopes, given = zip(*(lesson.loss_along(x) for x in walk))
    switch = given.index(1)
    assert slopes[switch - 1] > 1 and slopes[switch] < -1
    measure(
        f"given the matching; where it changes, the slope turns from {slopes[switch - 1]:+.1f} to "
        f"{slopes[switch]:+.1f} and the loss jumps by {values[switch] - values[switch - 1]:+.2f}"
    )


@claim(
    "detr",
    19,
    1192,
    says="a complex pipeline before, simple end-to-end training now",
    verdict="imprecise",
    paper="500 epochs, Faster R-CNN 109; small objects 20.5 against 26.6, table 1",
)
def test_simple_to_write_hard_to_train(measure):
    ours, theirs = TABLE_1["DETR"], TABLE_1["Faster R-CNN-FPN+"]
    assert ours[0] == theirs[0] and ours[1] < theirs[1] and ours[2] > theirs[2]
    main, plain = (recorded_mean("08_detr", name) for name in ("main", "plain"))
    assert main > plain + 0.1
    measure(
        f"on our shapes the plain one reaches {plain:.3f}, with places, weights and rates "
        f"{main:.3f} in the same steps"
    )


# ---------------------------------------------------------------- takeaway, line 1214
@claim(
    "detr",
    20,
    1214,
    says="before DETR no detector was trained end to end",
    verdict="contradicts",
    paper="Stewart et al. 2016 trained people detection with a matching loss, section 2",
)
def test_who_was_first(measure):
    years = {"Stewart et al.": 2016, "DETR": 2020}
    assert years["Stewart et al."] < years["DETR"]
    measure("line 386 gives that title to Faster R-CNN; Stewart et al. (2016) had no NMS")


@claim(
    "detr",
    21,
    1214,
    says="attention alone: neither anchors nor proposals nor NMS",
    verdict="false",
    paper=f"without feed-forward networks {WITHOUT['feed-forward networks']} AP less, without the "
    f"encoder {WITHOUT['encoder']}; {PARAMETERS['backbone']} of {PARAMETERS['all']} million "
    "weights are the CNN's",
)
def test_what_the_weights_are(lesson, measure):
    with torch.device("meta"):
        named = list(lesson.DETR().named_parameters())
    total = sum(p.numel() for _, p in named)
    share = {
        what: sum(p.numel() for name, p in named if key in name) / total
        for what, key in (
            ("CNN", "backbone."),
            ("feed-forward", ".think."),
            ("attention", "attend."),
        )
    }
    assert share["attention"] < 0.5 < share["CNN"] + share["feed-forward"]
    measure("of our plain one: " + ", ".join(f"{what} {part:.0%}" for what, part in share.items()))
