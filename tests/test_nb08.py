"""The code of notebook 08 against its oracles, on random and on nasty input."""

import math
from itertools import permutations, product

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from shared import (
    OTHER_FLOATS,
    WIDE_AND_HIGH,
    add_constants,
    check_stubs_and_solutions,
    finite_gradients,
    iou_by_loops,
    nms_by_loops,
    notebook_code,
    objects_of,
    stretched,
)
from torch import nn, tensor
from torch.testing import assert_close
from torchvision.ops import box_convert

from helpers.detectors import to_input

SEEDS = st.integers(0, 10**6)
TINY = {"channels": (8, 8, 8, 8), "dim": 16, "heads": 2, "hidden": 24, "depths": (1, 2)}
TINY |= {"num_queries": 9, "norm_first": True, "places": True}
PLACES = pytest.mark.parametrize("places", [True, False])
NORM_FIRST = pytest.mark.parametrize("norm_first", [True, False])
BATCHES = pytest.mark.parametrize("counts", [(3, 0, 1, 4), (0, 0), (5,), (0, 5, 0)], ids=str)
MADE = {"LOSS", "PAPER_LOSS", "VARIANTS", "MORE_VARIANTS"}  # they call classes: not loaded


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("08_detr", SEED=0, DEVICE=torch.device("cpu"), SHORT=2) as module:
        add_constants(module, MADE)
        yield module


@pytest.fixture
def tiny(nb, few_images, monkeypatch):
    """Few images and a tiny network for all that trains and evaluates; gives the images."""
    for name, value in {"SLIM": TINY, "train_set": few_images, "test_set": few_images}.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    for name in ("runs", "models", "watches"):
        monkeypatch.setattr(nb, name, {}, raising=False)
    return few_images


def giou_of(a, b):
    """Of two boxes given by centre and size."""
    a, b = box_convert(torch.Tensor([list(a), list(b)]), "cxcywh", "xyxy").tolist()
    overlap = hull = 1.0
    for low, high in ((0, 2), (1, 3)):
        overlap *= max(0.0, min(a[high], b[high]) - max(a[low], b[low]))
        hull *= max(a[high], b[high]) - min(a[low], b[low])
    union = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)) - overlap
    return (overlap / union if union > 0 else 0.0) - ((hull - union) / hull if hull > 0 else 0.0)


def costs_by_loops(logits, boxes, target, weights=(1.0, 5.0, 2.0)):
    """Table [query][object] of one image."""
    table = [[] for _ in boxes]
    for i, (row, box) in enumerate(zip(logits.tolist(), boxes.tolist())):
        exponentials = [math.exp(v) for v in row]
        for label, other in zip(target["labels"].tolist(), target["boxes"].tolist()):
            distance = sum(abs(u - v) for u, v in zip(box, other))
            terms = -exponentials[label] / sum(exponentials), distance, -giou_of(box, other)
            table[i].append(sum(w * term for w, term in zip(weights, terms)))
    return table


def best_by_brute_force(table):
    """The queries of the objects 0, 1, ... in the cheapest pairing, and what it costs."""
    ways = permutations(range(len(table)), len(table[0]))
    return min((sum(table[i][j] for j, i in enumerate(way)), way) for way in ways)[::-1]


# ---------------------------------------------------------------- two slots, and matching
@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_slots_by_gradient_descent(nb, matched, seed):
    found, slots = nb.fit_slots(matched, steps=60, seed=seed), tensor([0.45, 0.5])
    generator = torch.Generator().manual_seed(seed)
    for position in found:
        slots = slots.detach().requires_grad_()
        truths = [tensor([0.2, 0.8])[torch.randperm(2, generator=generator)]]
        truths += [truths[0].flip(0)] * matched
        loss = min(((slots - truth) ** 2).sum() / 2 for truth in truths)
        slots = slots - 0.1 * torch.autograd.grad(loss, slots)[0]
        assert_close(position, slots.detach())
    assert found.shape == (60, 2) and torch.equal(found, nb.fit_slots(matched, 60, seed))
    assert (found[-1, 0] - found[-1, 1]).abs() > 0.59 or not matched


@pytest.mark.parametrize("x, given", [(0.21, 0), (0.4, 0), (0.52, 0), (0.55, 1), (0.79, 1)])
def test_the_slope_along_the_walk_by_differences(nb, x, given):
    before, (_, slope, owner), after = (nb.loss_along(v) for v in (x - 1e-3, x, x + 1e-3))
    assert owner == given and slope == pytest.approx((after[0] - before[0]) / 2e-3, abs=0.05)


@given(seed=SEEDS, rows=st.integers(0, 6), columns=st.integers(0, 6), ties=st.booleans())
def test_greedy_by_sorting_all_pairs(nb, seed, rows, columns, ties):
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 3, (rows, columns)) if ties else rng.normal(size=(rows, columns))
    free, pairs, before = (set(range(rows)), set(range(columns))), [], cost.copy()
    for _, i, j in sorted((cost[i, j], i, j) for i, j in product(range(rows), range(columns))):
        if i in free[0] and j in free[1]:
            pairs.append((i, j))
            free[0].remove(i), free[1].remove(j)
    found = nb.greedy_matching(cost)
    assert list(zip(*found)) == sorted(pairs) and len(pairs) == min(rows, columns)
    assert [len(side) for side in found] == [len(pairs)] * 2 and (cost == before).all()


@given(seed=SEEDS, rows=st.integers(1, 6), columns=st.integers(0, 4), ties=st.booleans())
def test_cheapest_is_scipys_and_never_dearer_than_greedy(nb, seed, rows, columns, ties):
    rng, shape = np.random.default_rng(seed), (rows, min(rows, columns))
    cost = rng.integers(0, 3, shape) if ties else rng.normal(size=shape)
    least = nb.cheapest(cost)
    assert least == pytest.approx(cost[linear_sum_assignment(cost)].sum(), abs=1e-9)
    assert least <= cost[nb.greedy_matching(cost)].sum() + 1e-9


@pytest.mark.parametrize("weights", [(1.0, 5.0, 2.0), (2.0, 0.0, 0.0), (0.0, 3.0, 0.5)], ids=str)
def test_costs_by_loops(nb, weights):
    logits, boxes, (target,) = nb.random_case(7, (5,), seed=1)
    found = nb.HungarianMatcher(weights).costs(
        logits[0], boxes[0], target["labels"], target["boxes"]
    )
    assert_close(found, tensor(costs_by_loops(logits[0], boxes[0], target, weights)))


@given(seed=SEEDS, counts=st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_the_matching_is_the_cheapest_by_brute_force(nb, seed, counts):
    logits, boxes, targets = nb.random_case(4, tuple(counts), seed)
    matches = nb.HungarianMatcher()(logits.requires_grad_(), boxes.requires_grad_(), targets)
    assert len(matches) == len(counts)
    for i, (queries, objects) in enumerate(matches):
        table = costs_by_loops(logits[i], boxes[i], targets[i])
        assert sorted(objects.tolist()) == list(range(counts[i]))
        assert len(set(queries.tolist())) == counts[i] and not queries.requires_grad
        assert queries.dtype == objects.dtype == torch.long
        total = sum(table[q][m] for q, m in zip(queries.tolist(), objects.tolist()))
        assert total == pytest.approx(best_by_brute_force(table)[1], abs=1e-4)


@pytest.mark.parametrize("counts", [(0,), (0, 0, 0)])
def test_no_objects_no_pairs(nb, counts):
    for queries, objects in nb.HungarianMatcher()(*nb.random_case(3, counts)):
        assert len(queries) == len(objects) == 0


@pytest.mark.parametrize(
    "queries, counts, image, count", [(2, (1, 3), 1, 3), (4, (5, 0, 6, 5), 2, 6), (1, (2,), 0, 2)]
)
def test_more_objects_than_queries(nb, queries, counts, image, count):
    case = nb.random_case(queries, counts)
    message = f"image {image} has {count} objects, more than {queries} queries"
    for matcher in (nb.HungarianMatcher(), nb.HungarianMatcher(assign=nb.greedy_matching)):
        with pytest.raises(ValueError, match=message):
            matcher(*case)
    with pytest.raises(ValueError, match=message):
        nb.DETRLoss()([case[:2]], case[2])


def owners(matches):
    """Per image the query of each object."""
    return [queries[objects.argsort()].tolist() for queries, objects in matches]


def turned(targets):
    """The same objects, listed from the last to the first."""
    return [{name: value.flip(0) for name, value in t.items()} for t in targets]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", ["optimal", "greedy"])
def test_the_matching_ignores_all_orders(nb, seed, rule):
    matcher = nb.HungarianMatcher(
        assign=linear_sum_assignment if rule == "optimal" else nb.greedy_matching
    )
    logits, boxes, targets = nb.random_case(6, (3, 0, 6, 1), seed)
    expected = owners(matcher(logits, boxes, targets))
    found = owners(matcher(logits, boxes, turned(targets)))
    assert [queries[::-1] for queries in found] == expected
    found = owners(matcher(logits.flip(0), boxes.flip(0), targets[::-1]))
    assert found[::-1] == expected
    found = owners(matcher(logits.flip(1), boxes.flip(1), targets))
    assert [[5 - q for q in queries] for queries in found] == expected


@pytest.mark.parametrize("count", [1, 3, 5])
def test_ties_still_give_each_object_its_own_query(nb, count):
    logits, boxes, (target,) = nb.random_case(5, (count,))
    same = {name: value[:1].expand(count, *value.shape[1:]) for name, value in target.items()}
    for case in ((logits[:, :1].expand(1, 5, 4), boxes[:, :1].expand(1, 5, 4)), (logits, boxes)):
        for targets in ([target], [same]):
            ((queries, objects),) = nb.HungarianMatcher()(*case, targets)
            assert len(set(queries.tolist())) == count
            assert sorted(objects.tolist()) == list(range(count))


# ---------------------------------------------------------------- the loss of a set
def layers_of(nb, counts, queries=5, depth=3, seed=0):
    """Answers of so many decoder layers that want gradients, and targets."""
    cases = [nb.random_case(queries, counts, seed + i) for i in range(depth)]
    answers = [(logits.requires_grad_(), boxes.requires_grad_()) for logits, boxes, _ in cases]
    return answers, cases[0][2]


def losses_by_loops(logits, boxes, targets, no_object=0.1, costs=(1.0, 5.0, 2.0)):
    """Classes, L1, GIoU of one layer, and the matched (image, query)."""
    weighted, weights, l1, giou, taught = 0.0, 0.0, 0.0, 0.0, set()
    for n, target in enumerate(targets):
        table = costs_by_loops(logits[n], boxes[n], target, costs)
        wanted = dict(zip(best_by_brute_force(table)[0], range(len(target["boxes"]))))
        for q, row in enumerate(logits[n].tolist()):
            label = target["labels"][wanted[q]].item() if q in wanted else 3
            weight = no_object if label == 3 else 1.0
            weighted -= weight * (row[label] - math.log(sum(math.exp(v) for v in row)))
            weights += weight
            if q in wanted:
                box, truth = boxes[n, q].tolist(), target["boxes"][wanted[q]].tolist()
                l1 += sum(abs(u - v) for u, v in zip(box, truth))
                giou += 1 - giou_of(box, truth)
                taught.add((n, q))
    count = max(1, sum(len(t["boxes"]) for t in targets))
    return [weighted / weights, l1 / count, giou / count], taught


OPTIONS = [{}, {"auxiliary": False}, {"no_object": 1.0}, {"weights": (4.0, 0.5, 3.0)}]
OPTIONS += [{"costs": (3.0, 1.0, 0.0), "no_object": 0.3, "weights": (1.0, 1.0, 1.0)}]


@BATCHES
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_by_loops(nb, counts, options):
    options = dict(options)
    switches = {k: options[k] for k in ("no_object", "costs") if k in options}
    if "costs" in options:
        options["matcher"] = nb.HungarianMatcher(options.pop("costs"))
    outputs, targets = layers_of(nb, counts)
    total, parts = nb.DETRLoss(**options)(outputs, targets)
    expected = [losses_by_loops(*o, targets, **switches) for o in outputs]
    assert list(parts) == ["classes", "l1", "giou"]
    assert [p.item() for p in parts.values()] == pytest.approx(expected[-1][0], rel=1e-4)
    taught = expected if options.get("auxiliary", True) else expected[-1:]
    weights = options.get("weights", (1.0, 5.0, 2.0))
    by_layer = [sum(w * v for w, v in zip(weights, losses)) for losses, _ in taught]
    assert total.item() == pytest.approx(sum(by_layer), rel=1e-4)
    total.backward()
    for (logits, boxes), (_, pairs) in zip(outputs[-len(taught) :], taught):
        assert logits.grad.isfinite().all() and (logits.grad != 0).all()
        assert boxes.grad.isfinite().all()  # only those matched learn a box
        assert {tuple(p) for p in (boxes.grad != 0).any(dim=2).nonzero().tolist()} == pairs
    untaught = [t.grad for o in outputs[: -len(taught)] for t in o]
    assert untaught == [None] * 2 * (len(outputs) - len(taught))


@BATCHES
@pytest.mark.parametrize("seed", [0, 10])
def test_the_loss_ignores_all_orders(nb, counts, seed):
    outputs, targets = layers_of(nb, counts, seed=seed)
    criterion = nb.DETRLoss()
    expected = criterion(outputs, targets)
    assert_close(criterion(outputs, turned(targets)), expected)
    for dim in (0, 1):  # images, queries
        flipped = [tuple(t.flip(dim) for t in output) for output in outputs]
        assert_close(criterion(flipped, targets[::-1] if dim == 0 else targets), expected)


def test_perfect_answers_cost_nothing(nb):
    logits, boxes, targets = nb.random_case(6, (3, 0, 2))
    logits = torch.full_like(logits, -40.0)
    logits[..., 3] = 40.0
    for n, t in enumerate(targets):
        at = torch.arange(len(t["labels"]))
        boxes[n, 5 - at], logits[n, 5 - at, 3] = t["boxes"], -40.0
        logits[n, 5 - at, t["labels"]] = 40.0
    total, parts = nb.DETRLoss()([(logits, boxes)] * 2, targets)
    assert [total.item(), *(p.item() for p in parts.values())] == pytest.approx([0] * 4, abs=1e-4)


@pytest.mark.parametrize("side", [8 / 128, 8 / 1333, 1 / 4000])
def test_small_perfect_boxes_cost_nothing(nb, side):
    """In shares of the image their area is 1e-7: an epsilon must be far below."""
    boxes = tensor([[[0.5, 0.5, side, side], [0.2, 0.7, side, 2 * side]]])
    target = {"labels": tensor([0, 1]), "boxes": boxes[0]}
    parts = nb.DETRLoss()([(torch.zeros(1, 2, 4), boxes)], [target])[1]
    assert parts["l1"] == 0 and parts["giou"].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", OTHER_FLOATS, ids=str)
def test_other_types_give_pairs_loss_and_boxes_of_float32(nb, kind):
    logits, boxes, targets = nb.random_case(6, (3, 0, 4))
    half = logits.to(kind), boxes.to(kind)
    single = [t.float() for t in half]
    others = [{"labels": t["labels"].int(), "boxes": t["boxes"].double()} for t in targets]
    matcher = nb.HungarianMatcher()
    assert owners(matcher(*half, others)) == owners(matcher(*single, targets))
    loss = nb.DETRLoss()
    assert_close(loss([half, half], others), loss([single, single], targets))
    assert_close(nb.decode(*half, (96, 160), iou=0.5), nb.decode(*single, (96, 160), iou=0.5))


def test_the_same_object_twice_teaches_two_queries(nb):
    logits, boxes, (target,) = nb.random_case(4, (1,))
    twice = {name: torch.cat([value, value]) for name, value in target.items()}
    _, parts = nb.DETRLoss()([(logits, boxes.requires_grad_())], [twice])
    (parts["l1"] + parts["giou"]).backward()
    taught = (boxes.grad[0] != 0).any(dim=1)
    distances = (boxes[0] - target["boxes"]).abs().sum(dim=1)[taught]
    assert len(distances) == 2
    assert_close(parts["l1"], distances.mean())


NASTY = {
    "no width": [0.5, 0.5, 0.0, 0.2],
    "no area": [0.3, 0.7, 0.0, 0.0],
    "in a corner, no area": [0.0, 1.0, 0.0, 0.0],
    "tiny": [0.4, 0.4, 1e-6, 1e-6],
    "one pixel": [1 / 256, 1 / 256, 1 / 128, 1 / 128],
    "at the border": [0.95, 0.05, 0.1, 0.1],
    "over the border": [0.0, 1.0, 0.5, 0.5],
    "the image": [0.5, 0.5, 1.0, 1.0],
}


@pytest.mark.parametrize("truth, said", list(product(NASTY, repeat=2)))
def test_nasty_boxes_have_finite_losses(nb, truth, said):
    target = {"labels": tensor([1, 2]), "boxes": tensor([NASTY[truth], NASTY["at the border"]])}
    logits, boxes, _ = nb.random_case(3, (0,))
    boxes[0, 1] = tensor(NASTY[said])
    boxes = boxes.requires_grad_()
    total, parts = nb.DETRLoss()([(logits, boxes)], [target])
    total.backward()
    assert all(p.isfinite() and p >= 0 for p in parts.values()) and boxes.grad.isfinite().all()


# ---------------------------------------------------------------- backbone and positions
@pytest.mark.parametrize("channels", [(32, 64, 128, 256, 512), (24, 48, 64, 96), (8,), (4, 5)])
@pytest.mark.parametrize("height, width", [(224, 224), (128, 128), (97, 131), (33, 7), (1, 1)])
def test_strides_and_channels_of_the_backbone(nb, channels, height, width):
    with torch.device("meta"):
        backbone = nb.SimpleBackbone(channels)
        found = backbone(torch.empty(2, 3, height, width))
    stride = 2 ** len(channels)
    expected = 2, channels[-1], math.ceil(height / stride), math.ceil(width / stride)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert tuple(found.shape) == expected and len(convs) == 2 * len(channels) - 1
    assert all(c.kernel_size == (3, 3) and c.bias is None for c in convs)


@pytest.mark.parametrize("dim", [4, 16, 256])
@pytest.mark.parametrize("height, width", [(7, 7), (3, 5), (1, 4), (6, 1)])
def test_positions_by_loops(nb, dim, height, width):
    position, count = nb.PositionalEncoding2D(dim, highest=4.0, lowest=0.2), dim // 4
    grid, x = position.grid(height, width), torch.randn(2, dim, height, width)
    found = position(x)
    assert grid.shape == (height * width, dim) and found.shape == x.shape
    for i, j in product(range(height), range(width)):
        place, row = ((j + 0.5) / width, (i + 0.5) / height), []
        for f in range(count):
            waves = 4.0 * (0.2 / 4.0) ** (f / max(1, count - 1))
            angles = [2 * math.pi * waves * share for share in place]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert_close(grid[i * width + j], tensor(row), atol=1e-4, rtol=0)  # row by row
        assert_close(position.encode(tensor(place)), grid[i * width + j], atol=1e-5, rtol=0)
        assert_close(found[:, :, i, j], x[:, :, i, j] + grid[i * width + j])
    assert_close(grid.norm(dim=1), torch.full((len(grid),), math.sqrt(dim / 2)))


@pytest.mark.parametrize("dim", [1, 6, 130])
def test_the_width_must_be_a_multiple_of_four(nb, dim):
    with pytest.raises(ValueError, match=f"dim must be a multiple of 4, got {dim}"):
        nb.PositionalEncoding2D(dim)


# ---------------------------------------------------------------- attention, encoder, decoder
@pytest.mark.parametrize("heads, n, m", [(1, 3, 5), (2, 1, 4), (4, 6, 6), (8, 2, 1)])
def test_attention_by_loops(nb, heads, n, m):
    q, k, v = (torch.randn(2, length, 8) for length in (n, m, m))
    mixed, weights = nb.attention(q, k, v, heads)
    width = 8 // heads
    for b, h, i in product(range(2), range(heads), range(n)):
        own = slice(h * width, (h + 1) * width)
        dots = [sum(q[b, i, own] * k[b, j, own]).item() / math.sqrt(width) for j in range(m)]
        shares = [math.exp(d) / sum(map(math.exp, dots)) for d in dots]
        assert weights[b, h, i].tolist() == pytest.approx(shares, abs=1e-5)
        expected = sum(share * v[b, j, own] for j, share in enumerate(shares))
        assert_close(mixed[b, i, own], expected, atol=1e-5, rtol=1e-4)


def copied(ours, dim=16):
    """torch's attention with the weights of ours; the biases are made random first."""
    theirs = nn.MultiheadAttention(dim, ours.heads, batch_first=True)
    parts = ours.query, ours.key, ours.value
    for linear in (*parts, ours.output):
        nn.init.normal_(linear.bias)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    return theirs


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("n, m", [(5, 7), (1, 4), (6, 1)])
def test_attention_is_torchs(nb, heads, n, m):
    ours = nb.MultiHeadAttention(16, heads)
    theirs, (q, k, v) = copied(ours), (torch.randn(2, length, 16) for length in (n, m, m))
    expected, weights = theirs(q, k, v, average_attn_weights=False)
    assert_close(ours(q, k, v), expected, atol=1e-5, rtol=1e-4)
    assert ours.weights is None
    ours.keep = True
    assert_close(ours(q, k, v), expected, atol=1e-5, rtol=1e-4)
    assert_close(ours.weights, weights, atol=1e-5, rtol=1e-4)
    assert_close(ours.weights.sum(dim=3), torch.ones(2, heads, n))


@pytest.mark.parametrize("dim, heads", [(16, 3), (10, 4), (2, 4)])
def test_the_heads_must_share_the_width(nb, dim, heads):
    with pytest.raises(ValueError, match=f"dim {dim} is not a multiple of heads {heads}"):
        nb.MultiHeadAttention(dim, heads)


def load_into(theirs, ours, attentions):
    """Copy the weights of our layer into torch's; attentions: {their name: our name}."""
    for name, own in attentions.items():
        if getattr(ours, own) is not None:
            getattr(theirs, name).load_state_dict(copied(getattr(ours, own)).state_dict())
    for name, own in {"linear1": ours.think[0], "linear2": ours.think[2]}.items():
        getattr(theirs, name).load_state_dict(own.state_dict())
    for name, norm in ours.named_children():
        if name.startswith("norm"):
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
            getattr(theirs, name).load_state_dict(norm.state_dict())


def torchs(kind, norm_first):
    return kind(16, 2, 24, dropout=0.0, batch_first=True, norm_first=norm_first)


@NORM_FIRST
def test_encoder_is_torchs(nb, norm_first):
    ours = nb.TransformerEncoder(16, 2, 24, depth=2, norm_first=norm_first)
    norm, x = (nn.LayerNorm(16) if norm_first else None), torch.randn(2, 5, 16)
    theirs = nn.TransformerEncoder(
        torchs(nn.TransformerEncoderLayer, norm_first), 2, norm, enable_nested_tensor=False
    )
    for mine, other in zip(ours.layers, theirs.layers):
        load_into(other, mine, {"self_attn": "attend"})
        assert_close(mine(x), other(x), atol=1e-5, rtol=1e-4)
    assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
    order = torch.randperm(5)  # without positions the order is nothing
    assert_close(ours(x[:, order]), ours(x)[:, order], atol=1e-5, rtol=1e-4)


DECODER = {"self_attn": "self_attend", "multihead_attn": "cross_attend"}


@NORM_FIRST
def test_decoder_without_embeddings_is_torchs(nb, norm_first):
    ours = nb.TransformerDecoder(16, 2, 24, depth=2, norm_first=norm_first)
    theirs = nn.TransformerDecoder(torchs(nn.TransformerDecoderLayer, norm_first), 2, ours.norm)
    memory, x = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    for mine, other in zip(ours.layers, theirs.layers):
        load_into(other, mine, DECODER)
        found = mine(x, torch.zeros(5, 16), memory)
        assert_close(found, other(x, memory), atol=1e-5, rtol=1e-4)
    states = ours(torch.zeros(5, 16), memory)
    assert len(states) == 2  # the state starts at zero
    assert_close(states[-1], theirs(torch.zeros(2, 5, 16), memory), atol=1e-5, rtol=1e-4)


def decode_by_hand(theirs, x, queries, memory, norm_first, self_attention):
    """A decoder layer from the parts of torch's, with embeddings added to queries and keys."""

    def among(y):
        return theirs.self_attn(y + queries, y + queries, y)[0] if self_attention else 0.0

    steps = [
        (theirs.norm1, among),
        (theirs.norm2, lambda y: theirs.multihead_attn(y + queries, memory, memory)[0]),
        (theirs.norm3, lambda y: theirs.linear2(theirs.linear1(y).relu())),
    ]
    for norm, step in steps:
        x = x + step(norm(x)) if norm_first else norm(x + step(x))
    return x


@NORM_FIRST
@pytest.mark.parametrize("self_attention", [True, False])
def test_decoder_with_embeddings_by_hand(nb, norm_first, self_attention):
    ours = nb.TransformerDecoder(16, 2, 24, 2, norm_first, self_attention)
    queries, memory, x = torch.randn(5, 16), torch.randn(2, 7, 16), torch.zeros(2, 5, 16)
    expected = []
    for layer in ours.layers:
        theirs = torchs(nn.TransformerDecoderLayer, norm_first)
        load_into(theirs, layer, DECODER)
        x = decode_by_hand(theirs, x, queries, memory, norm_first, self_attention)
        expected.append(ours.norm(x))
    close = {"atol": 1e-5, "rtol": 1e-4}
    assert_close(ours(queries, memory), expected, **close)
    order = torch.randperm(7)  # the order of the tokens is nothing, and that of the queries ours
    assert_close(ours(queries, memory[:, order]), expected, **close)
    assert_close(ours(queries.flip(0), memory), [state.flip(1) for state in expected], **close)


# ---------------------------------------------------------------- DETR
def tiny_detr(nb, **options):
    return nb.DETR(**TINY | options)


def test_the_network_of_the_paper(nb):
    with torch.device("meta"):
        model = nb.DETR()
        outputs = model(torch.empty(1, 3, 224, 224))
    assert [tuple(t.shape) for o in outputs for t in o] == [(1, 100, 4), (1, 100, 4)] * 6
    assert len(model.encoder.layers) == 6 and model.places is None
    assert not model.encoder.layers[0].norm_first and model.encoder.layers[0].attend.heads == 8


@NORM_FIRST
@PLACES
@pytest.mark.parametrize(
    "images, height, width", [(2, 64, 96), (1, 97, 131), (3, 33, 7), (1, 1, 1)]
)
@torch.no_grad()
def test_always_as_many_answers_as_queries(nb, images, height, width, places, norm_first):
    model = tiny_detr(nb, num_classes=5, num_queries=7, places=places, norm_first=norm_first)
    outputs = model.eval()(torch.randn(images, 3, height, width))
    assert len(outputs) == 2
    for logits, boxes in outputs:
        assert logits.shape == (images, 7, 6) and boxes.shape == (images, 7, 4)
        assert logits.isfinite().all() and 0 < boxes.min() and boxes.max() < 1


@PLACES
@pytest.mark.parametrize("positions", [True, False])
@torch.no_grad()
def test_shuffled_queries_give_shuffled_answers(nb, places, positions):
    model = tiny_detr(nb, places=places, positions=positions).eval()
    x, order = torch.randn(2, 3, 64, 96), torch.randperm(9)
    outputs, alone = model(x), model(x[1:])
    for a, b in zip(outputs, alone):  # an image does not see the others
        assert_close(tuple(t[1:] for t in a), b, atol=1e-5, rtol=1e-4)
    for parameter in (model.query_embed.weight, *([model.places] if places else [])):
        parameter.copy_(parameter[order])
    for a, b in zip(outputs, model(x)):
        assert_close(tuple(t[:, order] for t in a), b, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_only_positions_tell_a_shuffled_picture(nb):
    for positions in (True, False):
        model = tiny_detr(nb, positions=positions).eval()
        model.backbone = nn.Conv2d(3, 8, 1)  # a token per pixel
        x, order = torch.randn(1, 3, 6, 6), torch.randperm(36)
        shuffled = x.flatten(2)[:, :, order].view_as(x)
        (a, _), (b, _) = model(x)[-1], model(shuffled)[-1]
        assert torch.allclose(a, b, atol=1e-5) != positions


@pytest.mark.parametrize("count, side", [(1, 1), (9, 3), (16, 4), (7, 3), (100, 10)])
@torch.no_grad()
def test_answers_start_at_their_places(nb, count, side):
    model = tiny_detr(nb, num_queries=count).eval()
    places = [((i % side + 0.5) / side, (i // side + 0.5) / side) for i in range(count)]
    assert_close(model.places.sigmoid(), tensor(places))
    assert_close(model.query_embed.weight, model.position.encode(tensor(places)))
    for layer in model.decoder.layers:
        for linear in (layer.cross_attend.query, layer.cross_attend.key):
            assert torch.equal(linear.weight, torch.eye(16))
    nn.init.normal_(model.bbox_embed[-1].weight, std=1e-3)
    nn.init.zeros_(model.bbox_embed[-1].bias)
    for _, boxes in model(torch.randn(2, 3, 64, 64)):
        assert_close(boxes[..., :2], tensor(places).expand(2, -1, 2), atol=0.01, rtol=0)
        assert_close(boxes[..., 2:], torch.full((2, count, 2), 0.5), atol=0.01, rtol=0)


@PLACES
@torch.no_grad()
def test_weights_survive_saving(nb, places):
    one, other = (tiny_detr(nb, places=places).eval() for _ in range(2))
    x = torch.randn(2, 3, 64, 96)
    one.query_embed.weight.add_(1.0)
    assert ("places" in one.state_dict()) == places
    assert not torch.equal(one(x)[-1][0], other(x)[-1][0])
    other.load_state_dict(one.state_dict())
    assert_close(one(x), other(x), atol=0, rtol=0)


@NORM_FIRST
@pytest.mark.parametrize("counts", [(2, 0), (0, 0), (9, 1)], ids=str)
def test_gradients_are_finite(nb, norm_first, counts):
    boxes, labels = objects_of(*counts, size=128.0)
    for places in (True, False):
        model = tiny_detr(nb, norm_first=norm_first, places=places).train()
        total, _ = nb.DETRLoss()(model(torch.randn(2, 3, 64, 64)), nb.targets_of(boxes, labels))
        total.backward()
        assert finite_gradients(model) and model.class_embed.weight.grad.any()
        assert model.bbox_embed[0].weight.grad.any() == (sum(counts) > 0)


@PLACES
def test_nothing_is_left_on_the_cpu(nb, pretended_gpu, places):
    outputs = tiny_detr(nb, places=places).to("cuda")(torch.zeros(2, 3, 64, 64, device="cuda"))
    boxes = [torch.tensor([[4.0, 6, 30, 40]] * n, device="cuda").reshape(-1, 4) for n in (2, 0)]
    labels = [torch.zeros(n, dtype=torch.long, device="cuda") for n in (2, 0)]
    targets = nb.targets_of(boxes, labels)
    total, parts = nb.DETRLoss().to("cuda")(outputs, targets)
    logits, raw = outputs[-1]
    costs = nb.HungarianMatcher().costs(logits[0], raw[0], labels[0], targets[0]["boxes"])
    found = [v for d in nb.decode(logits, raw, (64, 64)) for v in d.values()]
    answers = [total, *parts.values(), costs, *found, *(t for o in outputs for t in o)]
    assert [t.device.type for t in answers] == ["cuda"] * (4 + 1 + 6 + 4)


# ---------------------------------------------------------------- reading the answers
@pytest.mark.parametrize("iou, top", [(None, 100), (None, 3), (0.5, 100), (0.3, 4), (0.0, 100)])
@pytest.mark.parametrize("size", [(128, 128), (40, 56)], ids=str)
def test_decoding_by_loops(nb, size, iou, top):
    logits, boxes = torch.randn(3, 12, 4), 0.1 + 0.7 * torch.rand(3, 12, 4)
    boxes[:, 6:] = boxes[:, :6] + 0.03  # many overlap
    logits[:, 6:] = 0.9 * logits[:, :6]
    found = nb.decode(logits, boxes, size, iou, top)
    for n in range(3):
        rows = []
        for row, (x, y, w, h) in zip(logits[n], boxes[n].tolist()):
            probability = row.softmax(dim=0).tolist()[:3]
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            box = [min(max(v, 0), 1) * size[1 - k % 2] for k, v in enumerate(box)]
            rows.append((max(probability), box, probability.index(max(probability))))
        rows.sort(key=lambda row: -row[0])
        scores, corners, labels = (tensor([row[k] for row in rows]) for k in range(3))
        keep = slice(None)
        if iou is not None:
            keep = nms_by_loops(corners, scores, labels, iou)
            assert len(keep) < 12
        expected = {"boxes": corners, "scores": scores, "labels": labels}
        assert_close(found[n], {k: v[keep][:top] for k, v in expected.items()})
        assert (found[n]["boxes"][:, :2] >= 0).all()
        assert (found[n]["boxes"][:, 2:] <= tensor([size[1], size[0]])).all()


@pytest.mark.parametrize("size", [128, 64])
def test_reading_is_the_inverse_of_writing(nb, size):
    boxes, labels = objects_of(3, 0, 7, size=float(size))
    targets = nb.targets_of(boxes, labels, size, size)
    for b, c, t in zip(boxes, labels, targets):
        assert torch.equal(t["labels"], c) and t["boxes"].shape == b.shape
        assert_close(t["boxes"], box_convert(b, "xyxy", "cxcywh") / size)
        sure = nn.functional.one_hot(c, 4)[None] * (9.0 + torch.arange(len(c)))[None, :, None]
        (found,) = nb.decode(sure, t["boxes"][None], (size, size))
        assert_close(found["boxes"].flip(0), b, atol=1e-3, rtol=1e-5)  # the last is the surest
        assert torch.equal(found["labels"].flip(0), c)


@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_reading_is_the_inverse_of_writing_on_images_that_are_not_square(nb, size):
    height, width = size
    boxes, labels = objects_of(3, 0, 7, size=float(width))
    boxes = [b * tensor([1, height / width, 1, height / width]) for b in boxes]
    for b, t in zip(boxes, nb.targets_of(boxes, labels, width, height)):
        sure = torch.zeros(1, len(b), 4) - torch.arange(len(b))[None, :, None] * tensor(
            [1, 0, 0, 0]
        )
        (found,) = nb.decode(sure, t["boxes"][None], size)
        order = torch.cdist(b, found["boxes"]).argmin(dim=1) if len(b) else []
        assert_close(found["boxes"][order], b, atol=1e-3, rtol=1e-5)


def test_no_image_no_detections(nb, tiny):
    assert nb.detector_of(nb.slim_detr())(torch.zeros(0, 3, 64, 96)) == []


@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_every_target_knows_both_sides(nb, tiny, monkeypatch, size):
    seen, write = [], nb.targets_of

    def watched(boxes, labels, width=128, height=128):
        seen.append((height, width))
        return write(boxes, labels, width, height)

    monkeypatch.setattr(nb, "targets_of", watched)
    for name in ("train_set", "test_set"):
        monkeypatch.setattr(nb, name, stretched(tiny, *size))
    nb.learn_by_heart(2, 1)
    nb.by_layer(nb.train_on_benchmark(1, watch=nb.Watch(2))[0])
    assert len(seen) == 3 and set(seen) == {size}


@given(seed=SEEDS, score=st.sampled_from([0.3, 0.5]), iou=st.sampled_from([0.3, 0.5]))
def test_duplicates_by_loops(nb, seed, score, iou):
    generator, detections, count = torch.Generator().manual_seed(seed), [], 0
    for n in (8, 0, 3):
        corner = torch.randint(0, 6, (n, 2), generator=generator).float()
        found = {"boxes": torch.cat([corner, corner + 8], dim=1)}
        found["scores"] = torch.rand(n, generator=generator).sort(descending=True).values
        found["labels"] = torch.randint(0, 2, (n,), generator=generator)
        detections.append(found)
        rows = [r for r in zip(*found.values()) if r[1] > score]
        for i, (box, _, label) in enumerate(rows):
            before = [b for b, _, other in rows[:i] if other == label]
            count += any(iou_by_loops(box[None], b[None]).item() > iou for b in before)
    assert nb.duplicates(detections, score, iou) == pytest.approx(count / 3)


class Says(nn.Module):
    """A model that answers the same to all images."""

    def __init__(self, logits, boxes):
        super().__init__()
        self.answer = logits, boxes

    def forward(self, images):
        return [None, tuple(t[: len(images)] for t in self.answer)]


def test_the_watch_counts_who_kept_his_query(nb, tiny):
    watch, boxes = nb.Watch(3), torch.rand(3, 7, 4)
    logits = 3 * torch.randn(3, 7, 4)
    orders = [torch.arange(7), torch.arange(7), torch.arange(7).flip(0), torch.arange(7).roll(1)]
    orders.append(orders[-1])
    for step, order in enumerate(orders):
        watch(10 * step, Says(logits[:, order], boxes[:, order]))
    steps, repeats, kept = zip(*watch.rows)
    assert steps == (0, 10, 20, 30, 40) and math.isnan(kept[0])
    targets = nb.targets_of(*([t[k] for t in tiny.targets[:3]] for k in ("boxes", "labels")))
    first = sum(owners(nb.HungarianMatcher()(logits, boxes, targets)), [])
    middle = sum(q == 3 for q in first) / len(first)  # the middle query stays when they are turned
    assert kept[1:3] == pytest.approx((1.0, middle)) and kept[4] == 1.0
    expected = nb.duplicates(nb.decode(logits, boxes, (128, 128)))
    assert repeats == pytest.approx([expected] * 5)


@torch.no_grad()
def test_a_model_becomes_a_detector(nb, tiny):
    model, x = nb.slim_detr().train(), torch.randn(2, 3, 97, 131)
    found = nb.detector_of(model, 0, top=4)(x)
    assert not model.training and [len(f["boxes"]) for f in found] == [4, 4]
    assert_close(found, nb.decode(*model(x)[0], (97, 131), top=4))
    metrics, detections = nb.evaluate(model, iou=0.5)
    assert 0 <= metrics["AP"] <= 1 and len(detections) == 4
    rows = nb.by_layer(model)
    assert len(rows) == 2 and all(0 <= value for row in rows for value in row)
    for layer, (count, repeats, ap, with_nms) in enumerate(rows):
        metrics, detections = nb.evaluate(model, layer)
        assert count == sum((d["scores"] > 0.5).sum().item() for d in detections) / 4
        assert (repeats, ap) == (nb.duplicates(detections), metrics["AP"])
        assert with_nms == nb.evaluate(model, layer, iou=0.5)[0]["AP"]


@torch.no_grad()
def test_blind_queries_are_a_copy(nb):
    model, x = tiny_detr(nb).eval(), torch.randn(1, 3, 64, 64)
    before, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    blind = nb.without_self_attention(model)
    said = blind(x)
    assert all(layer.self_attend is None for layer in blind.decoder.layers)
    assert not torch.allclose(said[-1][0], before[-1][0])
    for net, others_change in ((model, True), (blind, False)):
        answers = net(x)[-1][0]
        net.query_embed.weight[0] += 3.0
        changed = (net(x)[-1][0] - answers).abs().amax(dim=2)[0] > 1e-5
        assert changed[0] and bool(changed[1:].any()) == others_change
        net.query_embed.weight[0] -= 3.0
    assert_close(model.state_dict(), state)
    assert_close(model(x), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_looks_of_a_layer(nb, tiny, layer):
    model, image = nb.slim_detr(), tiny.images[1]
    weights, logits, boxes = nb.look(model, image, layer)
    assert weights.shape == (2, 9, 8, 8) and not weights.requires_grad
    assert_close(weights.sum(dim=(2, 3)), torch.ones(2, 9)) and (weights >= 0).all()
    expected = model.eval()(to_input(image[None], torch.device("cpu")))[layer]
    assert_close((logits, boxes), tuple(t[0].detach() for t in expected), atol=1e-5, rtol=1e-4)
    assert not any(m.keep for m in model.modules() if isinstance(m, nb.MultiHeadAttention))
    assert nb.look(model, image[:, :97, :50], layer)[0].shape == (2, 9, 7, 4)


# ---------------------------------------------------------------- training
def test_training_learns_and_repeats(nb, tiny):
    trained = [nb.train_on_benchmark(16, seed) for seed in (None, 0, 1)]
    weights = [model.bbox_embed[-1].weight for model, _ in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for model, history in trained:
        assert list(history.columns()) == ["classes", "l1", "giou"] and not model.training
        totals = [sum(parts) for parts in zip(*history.columns().values())]
        assert len(totals) == 16 and sum(totals[-3:]) < 0.95 * sum(totals[:3])
    assert 0 <= nb.learn_by_heart(count=2, steps=2) <= 1


@pytest.mark.parametrize("steps, expected", [(3, [0, 1, 2]), (24, range(0, 24, 2))])
def test_the_watch_is_called_a_dozen_times(nb, tiny, steps, expected):
    seen, rates = [], {"backbone_rate": 0.0, "net": {"num_queries": 6}}
    model, _ = nb.train_on_benchmark(
        steps, watch=lambda step, model: seen.append((step, model)), **rates
    )
    assert [step for step, _ in seen] == list(expected) and all(m is model for _, m in seen)
    nb.seed_everything(0)
    fresh = nb.slim_detr(num_queries=6)  # at a rate of 0 the backbone keeps its first weights
    both = zip(model.backbone.parameters(), fresh.backbone.parameters())
    assert all(torch.equal(*pair) for pair in both)
    assert not torch.equal(model.class_embed.weight, fresh.class_embed.weight)


def test_every_variant_takes_two_steps(nb, tiny):
    variants = nb.VARIANTS | nb.SIZE_VARIANTS | nb.MORE_VARIANTS
    for name, options in ({"DETR": {}} | variants).items():
        nb.short_run(name, **options)
        run = nb.runs[name, 0]
        assert (
            0 <= run["AP"] <= 1 and run["AP50"] <= run["boxes alone"] + 0.05 and run["seconds"] > 0
        )
        assert (nb.watches[name, 0] is None) == (name not in nb.WATCHED)
    nets = {name: model for (name, _), model in nb.models.items()}
    assert len(nets) == 1 + len(variants) == 12
    assert {n for n, m in nets.items() if m.places is None} == {"no places (paper)", nb.PLAIN}
    last = {n for n, m in nets.items() if not m.decoder.layers[0].norm_first}
    assert last == {"norm last (paper)", nb.PLAIN}
    assert [n for n, m in nets.items() if not m.positions] == ["no positional encoding"]
    assert nets["100 queries (paper)"].query_embed.num_embeddings == 100
    assert [n for n, m in nets.items() if m.decoder.layers[0].self_attend is None] == [nb.BLIND]
    assert nb.PAPER_LOSS["matcher"].weights == nb.PAPER_LOSS["weights"] == (1.0, 5.0, 2.0)
    assert nb.MORE_VARIANTS["greedy matching"]["matcher"].assign is nb.greedy_matching
    weights = [m.class_embed.weight for n, m in nets.items() if n != "greedy matching"]
    assert len({tuple(w.flatten().tolist()) for w in weights}) == 11  # each option does something
    table = nb.runs_table(nb.runs).data
    assert all(f"{name}, seed 0" in table for name in nets)


def test_records_of_the_runs(nb, tiny, monkeypatch):
    monkeypatch.setattr(nb, "latency", 1.5, raising=False)
    nb.short_run("DETR", 1)
    run = nb.runs["DETR", 1]
    rows = [
        nb.record_row(variant, run, 2, run["seconds"], run["parameters"], 1)
        for variant in ("main", "2 steps: DETR")
    ]
    assert [row["ms_per_image"] for row in rows] == [1.5, None]
    assert all(row["AP"] == run["AP"] and row["seed"] == 1 for row in rows)


# ---------------------------------------------------------------- figures and exercises
@pytest.mark.parametrize("x, y, size", [(0.4, 0.4, 0.3), (0.1, 0.9, 0.6), (0.7, 0.35, 0.1)])
def test_the_matching_is_drawn(nb, x, y, size):
    costs = {}
    for rule in ("optimal", "greedy"):
        (ax,) = nb.draw_matching(x, y, size, rule).axes
        assert len(ax.lines) == 3 and len(ax.patches) == 6
        named, costs[rule] = ax.get_title().split(": total cost ")
        assert named == rule
        ends = [tuple(line.get_xydata()[k].round(2)) for line in ax.lines for k in (0, 1)]
        assert len(set(ends[::2])) == len(set(ends[1::2])) == 3
    assert float(costs["optimal"]) <= float(costs["greedy"])


def test_attention_is_drawn(nb, tiny, monkeypatch):
    monkeypatch.setattr(nb, "model", nb.slim_detr(), raising=False)
    titles = [ax.get_title() for ax in nb.draw_query(2, 8).axes]
    assert [title.split(":")[0] for title in titles] == ["layer 1", "layer 2"]
    weights, image = torch.zeros(8, 8), torch.full((3, 128, 128), 200, dtype=torch.uint8)
    weights[2, 5] = 0.5
    _, ax = plt.subplots()
    nb.draw_attention(ax, image, weights, tensor([0.5, 0.25, 0.2, 0.1]), "a title")
    shown = np.asarray(ax.images[0].get_array())
    assert (shown[32:48, 80:96] == 200).all() and (shown == 50).sum() == 3 * (128**2 - 16**2)
    ((x, y), width, height) = [(p.get_xy(), p.get_width(), p.get_height()) for p in ax.patches][0]
    assert (x, y, width, height) == pytest.approx((50.7, 25.1, 25.6, 12.8), abs=1e-3)
    assert ax.get_title() == "a title"


def test_the_surest_right_and_wrong_answer(nb, tiny, monkeypatch):
    targets = nb.targets_of(*([t[k] for t in tiny.targets] for k in ("boxes", "labels")))
    boxes, scores = torch.full((4, 9, 4), 0.01), torch.full((4, 9), 0.1)
    labels = torch.zeros(4, 9, dtype=torch.long)
    boxes[2, 6], labels[2, 6] = targets[2]["boxes"][0], targets[2]["labels"][0]
    boxes[1, 3], labels[1, 3] = targets[1]["boxes"][0], (targets[1]["labels"][0] + 1) % 3
    scores[2, 6], scores[1, 3] = 0.8, 0.9
    for name, value in {"boxes": boxes, "scores": scores, "labels": labels}.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    assert tuple(nb.surest(True)) == (2, 6) and tuple(nb.surest(False)) == (1, 3)


def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    assert all("still to do" in nb.check_costs(stub) for stub in (None, ...))
    checks = {"attend": "check_attend", "wanted": "check_wanted", "pairs": "check_pairs"}
    check_stubs_and_solutions(nb, checks)


def attend_by(scale=6**0.5, softmax=True, mix=None):
    def attend(query, keys, values):
        weights = keys @ query / scale
        return (weights.softmax(dim=0) if softmax else weights) @ values

    return mix or attend


def wanted_by(rest=3, rows=0, label=lambda labels, match: labels[match[1]]):
    def wanted(count, match, labels):
        result = torch.full((count,), rest)
        result[match[rows]] = label(labels, match)
        return result

    return wanted


def pairs_by(softmax=lambda z: z.softmax(dim=1)[:, :-1], largest=True, columns=3):
    def pairs(logits, top):
        probability = softmax(logits)
        scores, place = probability.flatten().topk(top, largest=largest)
        return place // columns, place % columns, scores

    return pairs


def best_of_each(logits):
    """One answer per query: the mistake."""
    scores, labels = logits.softmax(dim=1)[:, :-1].max(dim=1)
    order = scores.argsort(descending=True)
    return order, labels[order], scores[order]


COSTS = [("✓", (12, 15)), ("✓", [12.0, 15.0]), ("the other way round", (15, 12))]
COSTS += [("only once", (9, 15)), ("only once", (7, 15)), ("that is what greedy pays", (15, 15))]
COSTS += [("the first is right", (12, 16)), ("only six pairings", (13, 15))]
COSTS += [("a pair (optimal, greedy) is needed", answer) for answer in (12, (1, 2, 3), "12")]
ATTEND = [("✓", attend_by()), ("by the root of d", attend_by(1)), ("not by d", attend_by(6))]
ATTEND += [("✓", lambda *a: attend_by()(*a).double()), ("✓", lambda *a: attend_by()(*a).numpy())]
ATTEND += [("softmax is missing", attend_by(softmax=False))]
ATTEND += [("not of their number", attend_by(5**0.5))]
ATTEND += [("weights are missing", attend_by(mix=lambda q, k, v: v.mean(dim=0)))]
ATTEND += [("softmax of the products", attend_by(mix=lambda q, k, v: v.sum(dim=0)))]
ATTEND += [("expected shape (3,), got (5,)", attend_by(mix=lambda q, k, v: (k @ q).softmax(0)))]
ATTEND += [("expected shape (3,), got ()", attend_by(mix=lambda q, k, v: 0.5))]
WANTED = [("✓", wanted_by()), ("✓", lambda *a: wanted_by()(*a).tolist())]
WANTED += [("0 is a class", wanted_by(rest=0)), ("cannot take -1", wanted_by(rest=-1))]
WANTED += [("order of the match", wanted_by(label=lambda labels, m: labels[: len(m[0])]))]
WANTED += [("number of the object", wanted_by(label=lambda labels, m: m[1]))]
WANTED += [("are swapped", wanted_by(rows=1)), ("got (3,)", lambda n, m, labels: labels)]
WANTED += [("got [3, 3, 3, 3, 3, 3]", lambda n, m, labels: [3] * n)]
PAIRS = [("✓", pairs_by()), ("softmax over all", pairs_by(lambda z: z[:, :3].softmax(dim=1)))]
PAIRS += [("is no object", pairs_by(lambda z: z.softmax(dim=1), columns=4))]
PAIRS += [("falling order", pairs_by(largest=False)), ("got 2", lambda z, n: [range(2)] * 3)]
PAIRS += [("not the probabilities", pairs_by(lambda z: z[:, :3]))]
PAIRS += [("three tensors", lambda z, top: z)]
PAIRS += [("rank pairs, not queries", lambda z, top: best_of_each(z))]
PAIRS += [("whole numbers", lambda z, top: [part / 1 for part in pairs_by()(z, top)])]
PAIRS += [("got 1", lambda z, top: (1, 2, 0.5))]
ANSWERS = {"costs": COSTS, "attend": ATTEND, "wanted": WANTED, "pairs": PAIRS}


@pytest.mark.parametrize(
    "check, says, answer", [(check, *pair) for check, pairs in ANSWERS.items() for pair in pairs]
)
def test_checks_name_the_mistake(nb, check, says, answer):
    message = getattr(nb, f"check_{check}")(answer)
    assert says in message and message.startswith("✓" if says == "✓" else "✗")
