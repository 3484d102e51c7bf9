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
from shared import OTHER_FLOATS, checksum, finite_gradients, iou_by_loops, notebook_code, objects_of
from torch import nn, tensor
from torch.testing import assert_close
from torchvision.ops import box_convert, box_iou

from helpers.detectors import to_input
from helpers.records import EXPERIMENTS, read_records
from helpers.shapes import benchmark, shape_mask

SEEDS = st.integers(0, 10**6)
TINY = {"channels": (8, 8, 8), "dim": 16, "heads": 2, "hidden": 24, "depths": (1, 2)}
BATCHES = pytest.mark.parametrize("counts", [(3, 0, 1, 4), (0, 0), (5,), (0, 5, 0)], ids=str)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("08_detr", SEED=0, DEVICE=torch.device("cpu"), K=3) as module:
        yield module


@pytest.fixture
def tiny(nb, few_images, monkeypatch):
    """Few images and a tiny network for all that trains and evaluates; gives the images."""
    for name, value in {"SLIM": TINY, "train_set": few_images, "test_set": few_images}.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    return few_images


def random_case(queries, counts, seed=0):
    """Random logits (N, Q, 4), boxes (N, Q, 4) and targets with counts[i] objects."""
    g = torch.Generator().manual_seed(seed)

    def draw(n):
        spread, low = tensor([0.6, 0.6, 0.3, 0.3]), tensor([0.2, 0.2, 0.05, 0.05])
        return torch.rand(n, 4, generator=g) * spread + low

    targets = [{"labels": torch.randint(3, (n,), generator=g), "boxes": draw(n)} for n in counts]
    boxes = draw(len(counts) * queries).view(len(counts), queries, 4)
    return torch.randn(len(counts), queries, 4, generator=g), boxes, targets


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
    assert list(zip(*found)) == pairs and len(pairs) == min(rows, columns)
    assert [len(side) for side in found] == [len(pairs)] * 2 and (cost == before).all()
    if rows >= columns > 0:
        optimal = cost[linear_sum_assignment(cost)].sum()
        assert optimal <= cost[found].sum() + 1e-9


@pytest.mark.parametrize("weights", [(1.0, 5.0, 2.0), (2.0, 0.0, 0.0), (0.0, 3.0, 0.5)], ids=str)
def test_costs_by_loops(nb, weights):
    logits, boxes, (target,) = random_case(7, (5,), seed=1)
    found = nb.HungarianMatcher(weights).costs(
        logits[0], boxes[0], target["labels"], target["boxes"]
    )
    assert_close(found, tensor(costs_by_loops(logits[0], boxes[0], target, weights)))


@given(seed=SEEDS, counts=st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_the_matching_is_the_cheapest_by_brute_force(nb, seed, counts):
    logits, boxes, targets = random_case(4, tuple(counts), seed)
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
    for queries, objects in nb.HungarianMatcher()(*random_case(3, counts)):
        assert len(queries) == len(objects) == 0


@pytest.mark.parametrize("queries, counts", [(2, (1, 3)), (4, (5, 0, 6, 5)), (1, (2,))])
def test_more_objects_than_queries(nb, queries, counts):
    logits, boxes, targets = random_case(queries, counts)
    message = rf"{len(counts)} images with {queries} queries each, got \[{counts[0]}"
    with pytest.raises(ValueError, match=message):
        nb.HungarianMatcher()(logits, boxes, targets)
    with pytest.raises(ValueError, match=message):
        nb.DETRLoss()([(logits, boxes)], targets)


def owners(matches):
    """Per image the query of each object."""
    return [queries[objects.argsort()].tolist() for queries, objects in matches]


def turned(targets):
    """The same objects, listed from the last to the first."""
    return [{name: value.flip(0) for name, value in t.items()} for t in targets]


@pytest.mark.parametrize("seed", range(5))
def test_the_matching_ignores_all_orders(nb, seed):
    matcher = nb.HungarianMatcher()
    logits, boxes, targets = random_case(6, (3, 0, 6, 1), seed)
    expected = owners(matcher(logits, boxes, targets))
    found = owners(matcher(logits, boxes, turned(targets)))
    assert [queries[::-1] for queries in found] == expected
    found = owners(matcher(logits.flip(0), boxes.flip(0), targets[::-1]))
    assert found[::-1] == expected
    found = owners(matcher(logits.flip(1), boxes.flip(1), targets))
    assert [[5 - q for q in queries] for queries in found] == expected


@pytest.mark.parametrize("count", [1, 3, 5])
def test_ties_still_give_each_object_its_own_query(nb, count):
    logits, boxes, (target,) = random_case(5, (count,))
    same = {name: value[:1].expand(count, *value.shape[1:]) for name, value in target.items()}
    for case in ((logits[:, :1].expand(1, 5, 4), boxes[:, :1].expand(1, 5, 4)), (logits, boxes)):
        for targets in ([target], [same]):
            ((queries, objects),) = nb.HungarianMatcher()(*case, targets)
            assert len(set(queries.tolist())) == count
            assert sorted(objects.tolist()) == list(range(count))


# ---------------------------------------------------------------- the loss of a set


def layers_of(counts, queries=5, depth=3, seed=0):
    """Answers of so many decoder layers that want gradients, and targets."""
    cases = [random_case(queries, counts, seed + i) for i in range(depth)]
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


OPTIONS = [{}, {"no_object": 1.0}, {"weights": (4.0, 0.5, 3.0)}]
OPTIONS += [{"costs": (3.0, 1.0, 0.0), "no_object": 0.3, "weights": (1.0, 1.0, 1.0)}]
PARTS = ("class", "l1", "giou")


@BATCHES
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_is_the_sum_over_layers_by_loops(nb, counts, options):
    options = dict(options)
    switches = {k: options[k] for k in ("no_object", "costs") if k in options}
    if "costs" in options:
        options["matcher"] = nb.HungarianMatcher(options.pop("costs"))
    answers, targets = layers_of(counts)
    parts = nb.DETRLoss(**options)(answers, targets)
    expected = [losses_by_loops(*o, targets, **switches) for o in answers]
    weights = options.get("weights", (1.0, 5.0, 2.0))
    assert tuple(parts) == PARTS
    for i, name in enumerate(PARTS):
        total = sum(weights[i] * losses[i] for losses, _ in expected)
        assert parts[name].item() == pytest.approx(total, rel=1e-4, abs=1e-6)
    sum(parts.values()).backward()
    for (logits, boxes), (_, pairs) in zip(answers, expected):
        assert logits.grad.isfinite().all() and (logits.grad != 0).all()
        assert boxes.grad.isfinite().all()  # only those matched learn a box
        assert {tuple(p) for p in (boxes.grad != 0).any(dim=2).nonzero().tolist()} == pairs


@BATCHES
@pytest.mark.parametrize("seed", [0, 10])
def test_the_loss_ignores_all_orders(nb, counts, seed):
    answers, targets = layers_of(counts, seed=seed)
    criterion = nb.DETRLoss()
    expected = criterion(answers, targets)
    assert_close(criterion(answers, turned(targets)), expected)
    for dim in (0, 1):  # images, queries
        flipped = [tuple(t.flip(dim) for t in answer) for answer in answers]
        assert_close(criterion(flipped, targets[::-1] if dim == 0 else targets), expected)


def test_perfect_answers_cost_nothing(nb):
    logits, boxes, targets = random_case(6, (3, 0, 2))
    logits = torch.full_like(logits, -40.0)
    logits[..., 3] = 40.0
    for n, t in enumerate(targets):
        at = torch.arange(len(t["labels"]))
        boxes[n, 5 - at], logits[n, 5 - at, 3] = t["boxes"], -40.0
        logits[n, 5 - at, t["labels"]] = 40.0
    parts = nb.DETRLoss()([(logits, boxes)] * 2, targets)
    assert [p.item() for p in parts.values()] == pytest.approx([0] * 3, abs=1e-4)


@pytest.mark.parametrize("side", [8 / 128, 8 / 1333, 1 / 4000])
def test_small_perfect_boxes_cost_nothing(nb, side):
    """In shares of the image their area is 1e-7: an epsilon must be far below."""
    boxes = tensor([[[0.5, 0.5, side, side], [0.2, 0.7, side, 2 * side]]])
    target = {"labels": tensor([0, 1]), "boxes": boxes[0]}
    parts = nb.DETRLoss()([(torch.zeros(1, 2, 4), boxes)], [target])
    assert parts["l1"] == 0 and parts["giou"].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", OTHER_FLOATS, ids=str)
def test_other_types_give_pairs_loss_and_boxes_of_float32(nb, kind):
    logits, boxes, targets = random_case(6, (3, 0, 4))
    half = logits.to(kind), boxes.to(kind)
    single = [t.float() for t in half]
    others = [{"labels": t["labels"].int(), "boxes": t["boxes"].double()} for t in targets]
    matcher = nb.HungarianMatcher()
    assert owners(matcher(*half, others)) == owners(matcher(*single, targets))
    loss = nb.DETRLoss()
    assert_close(loss([half, half], others), loss([single, single], targets))
    sizes = tensor([[160, 96]] * 3)
    assert_close(nb.read_answers(*half, sizes), nb.read_answers(*single, sizes))


def test_the_same_object_twice_teaches_two_queries(nb):
    logits, boxes, (target,) = random_case(4, (1,))
    twice = {name: torch.cat([value, value]) for name, value in target.items()}
    parts = nb.DETRLoss(weights=(1.0, 1.0, 1.0))([(logits, boxes.requires_grad_())], [twice])
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
    logits, boxes, _ = random_case(3, (0,))
    boxes[0, 1] = tensor(NASTY[said])
    boxes = boxes.requires_grad_()
    parts = nb.DETRLoss()([(logits, boxes)], [target])
    sum(parts.values()).backward()
    assert all(p.isfinite() and p >= 0 for p in parts.values()) and boxes.grad.isfinite().all()


# ---------------------------------------------------------------- backbone and positions


@pytest.mark.parametrize("channels", [(32, 64, 128, 256, 512), (24, 48, 96), (8,), (4, 5)])
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
    assert backbone.stride == stride


@pytest.mark.parametrize("dim", [4, 16, 96])
@pytest.mark.parametrize("height, width", [(7, 7), (3, 5), (1, 4), (6, 1)])
def test_positions_by_loops(nb, dim, height, width):
    position, count = nb.PositionalEncoding2D(dim, highest=4.0, lowest=0.2), dim // 4
    grid = position(torch.zeros(2, 5, height, width))
    assert grid.shape == (1, height * width, dim)
    for i, j in product(range(height), range(width)):
        place, row = ((j + 0.5) / width, (i + 0.5) / height), []
        for f in range(count):
            waves = 4.0 * (0.2 / 4.0) ** (f / max(1, count - 1))
            angles = [2 * math.pi * waves * share for share in place]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert_close(grid[0, i * width + j], tensor(row), atol=1e-4, rtol=0)  # row by row
        encoded = position.encode(tensor(place))
        assert_close(encoded, grid[0, i * width + j], atol=1e-5, rtol=0)
    assert_close(grid.norm(dim=2), torch.full((1, height * width), math.sqrt(dim / 2)))


def test_places_are_shares_of_each_image(nb):
    sizes = tensor([[6.0, 4.0], [4.5, 2.25]])  # in cells: 48 x 32 and 36 x 18 pixels of stride 8
    places = nb.token_places(torch.zeros(2, 1, 4, 6), sizes).view(2, 4, 6, 2)
    assert_close(places[0, 0, 0], tensor([0.5 / 6, 0.5 / 4]))
    assert_close(places[1, 2, 4], tensor([4.5 / 4.5, 2.5 / 2.25]))  # a cell across the border
    position = nb.PositionalEncoding2D(16)
    assert_close(position(torch.zeros(2, 1, 4, 6))[0], position.encode(places[0].flatten(0, 1)))


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


@pytest.mark.parametrize("shape", [(3, 7), (2, 1, 1, 7), (2, 2, 3, 7)], ids=str)
def test_what_is_masked_has_no_weight(nb, shape):
    q, k, v = (torch.randn(2, length, 8) for length in (3, 7, 7))
    allowed = torch.rand(shape) < 0.5
    allowed[..., 2] = True  # somebody must be left
    mixed, weights = nb.attention(q, k, v, 2, allowed)
    full = allowed.expand(2, 2, 3, 7)
    assert (weights[~full] == 0).all() and (weights[full] > 0).all()
    assert_close(weights.sum(dim=3), torch.ones(2, 2, 3))
    torch.manual_seed(0)
    layer = nb.MultiHeadAttention(8, 2)
    fused = layer(q, k, v, allowed)
    layer.keep = True
    assert_close(layer(q, k, v, allowed), fused, **CLOSE)
    changed = k.clone()
    changed[:, ~full.any(dim=(0, 1, 2))] += 5.0  # nobody looks there
    assert_close(layer(q, changed, v, allowed), fused, **CLOSE)


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


def load_into(theirs, ours, attentions):
    """Copy the weights of our layer into torch's; attentions: {their name: our name}."""
    for name, own in attentions.items():
        getattr(theirs, name).load_state_dict(copied(getattr(ours, own)).state_dict())
    for name, own in {"linear1": ours.think[0], "linear2": ours.think[2]}.items():
        getattr(theirs, name).load_state_dict(own.state_dict())
    for name, norm in ours.named_children():
        if name.startswith("norm"):
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
            getattr(theirs, name).load_state_dict(norm.state_dict())


def torchs(kind):
    return kind(16, 2, 24, dropout=0.0, batch_first=True, norm_first=True)


def test_the_encoder_is_torchs(nb):
    ours, x = nb.TransformerEncoder(16, 2, 24, depth=2), torch.randn(2, 5, 16)
    layer = torchs(nn.TransformerEncoderLayer)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
    for mine, their in zip(ours.layers, theirs.layers):
        load_into(their, mine, {"self_attn": "attend"})
        assert_close(mine(x), their(x), **CLOSE)
    assert_close(ours(x), theirs(x), **CLOSE)
    order = torch.randperm(5)  # without positions the order is nothing
    assert_close(ours(x[:, order]), ours(x)[:, order], **CLOSE)


DECODER = {"self_attn": "self_attend", "multihead_attn": "cross_attend"}


def test_the_decoder_without_embeddings_is_torchs(nb):
    ours = nb.TransformerDecoder(16, 2, 24, depth=2)
    theirs = nn.TransformerDecoder(torchs(nn.TransformerDecoderLayer), 2, ours.norm)
    memory, x = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    for mine, their in zip(ours.layers, theirs.layers):
        load_into(their, mine, DECODER)
        found = mine(x, torch.zeros(5, 16), memory)
        assert_close(found, their(x, memory), **CLOSE)
    states = ours(torch.zeros(5, 16), memory)
    assert len(states) == 2  # the state starts at zero
    assert_close(states[-1], theirs(torch.zeros(2, 5, 16), memory), **CLOSE)


@pytest.mark.parametrize("blind", [False, True])
def test_a_decoder_layer_with_embeddings_by_hand(nb, blind):
    layer, theirs = nb.DecoderLayer(16, 2, 24), torchs(nn.TransformerDecoderLayer)
    load_into(theirs, layer, DECODER)
    asks, memory = torch.randn(5, 16), torch.randn(2, 7, 16)
    x, among = torch.randn(2, 5, 16), torch.eye(5, dtype=torch.bool) if blind else None
    y = theirs.norm1(x)
    mask = None if among is None else ~among  # torch masks what must *not* be seen
    z = x + theirs.self_attn(y + asks, y + asks, y, attn_mask=mask)[0]
    y = theirs.norm2(z)
    z = z + theirs.multihead_attn(y + asks, memory, memory)[0]
    expected = z + theirs.linear2(theirs.linear1(theirs.norm3(z)).relu())
    assert_close(layer(x, asks, memory, among=among), expected, **CLOSE)
    if blind:  # then no query changes another's answer
        x[:, 3] += 1.0
        found = layer(x, asks, memory, among=among)
        assert_close(found[:, :3], expected[:, :3], **CLOSE)


# ---------------------------------------------------------------- DETR


def plain(nb, **options):
    return nb.DETR(**{"num_queries": 9} | TINY | options)


def placed(nb, **options):
    return nb.PlacedDETR(**{"grid": (3, 3)} | TINY | options)


BOTH = pytest.mark.parametrize("build", [plain, placed])
EVERY = pytest.mark.parametrize("kind", ["PlacedDETR", "GroupDETR", "DenoisingDETR", "DenseDETR"])


def test_the_network_of_the_paper(nb):
    with torch.device("meta"):
        model = nb.DETR()
        answers = model(torch.empty(1, 3, 224, 224))
        tokens = model.encode(torch.empty(1, 3, 224, 224))[0]
    assert [tuple(t.shape) for o in answers for t in o] == [(1, 100, 4), (1, 100, 4)] * 6
    assert tokens.shape == (1, 49, 256) and len(model.encoder.layers) == 6
    assert model.encoder.layers[0].attend.heads == 8


@BOTH
@pytest.mark.parametrize(
    "images, height, width", [(2, 64, 96), (1, 97, 131), (3, 33, 7), (1, 1, 1)]
)
@torch.no_grad()
def test_always_as_many_answers_as_queries(nb, build, images, height, width):
    model = build(nb).eval()
    answers = model(torch.randn(images, 3, height, width))
    assert len(answers) == 2
    for logits, boxes in answers:
        assert logits.shape == (images, 9, 4) and boxes.shape == (images, 9, 4)
        assert logits.isfinite().all() and 0 < boxes.min() and boxes.max() < 1


@BOTH
@torch.no_grad()
def test_shuffled_queries_give_shuffled_answers(nb, build):
    model = build(nb).eval()
    x, order = torch.randn(2, 3, 64, 96), torch.randperm(9)
    answers, alone = model(x), model(x[1:])
    for a, b in zip(answers, alone):  # an image does not see the others
        assert_close(tuple(t[1:] for t in a), b, **CLOSE)
    parameters = [model.query_embed.weight, *([model.places] if build is placed else [])]
    for parameter in parameters:
        parameter.copy_(parameter[order].clone())
    for a, b in zip(answers, model(x)):
        assert_close(tuple(t[:, order] for t in a), b, **CLOSE)


@torch.no_grad()
def test_only_positions_tell_a_shuffled_picture(nb):
    for positions in (True, False):
        model = plain(nb).eval()
        model.backbone = nn.Conv2d(3, 8, 1)  # a token per pixel
        model.backbone.forward = lambda x, inside, f=model.backbone.forward: f(x)
        model.backbone.stride = 1
        if not positions:
            model.position.waves.zero_()  # everywhere the same
        x, order = torch.randn(1, 3, 6, 6), torch.randperm(36)
        shuffled = x.flatten(2)[:, :, order].view_as(x)
        (a, _), (b, _) = model(x)[-1], model(shuffled)[-1]
        assert torch.allclose(a, b, atol=1e-5) != positions


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 3), (2, 4), (5, 2)])
@torch.no_grad()
def test_answers_start_at_their_places(nb, rows, columns):
    model = placed(nb, grid=(rows, columns)).eval()
    expected = [
        ((j + 0.5) / columns, (i + 0.5) / rows, 0.25, 0.25)
        for i, j in product(range(rows), range(columns))
    ]
    assert_close(model.places.sigmoid(), tensor(expected))
    for layer in model.decoder.layers:
        for linear in (layer.cross_attend.query, layer.cross_attend.key):
            assert torch.equal(linear.weight, torch.eye(16))
    for _, boxes in model(torch.randn(2, 3, 64, 64)):
        assert_close(boxes, tensor(expected).expand(2, -1, 4), **CLOSE)


@torch.no_grad()
def test_boxes_are_offsets_from_the_places_of_their_queries(nb):
    model = placed(nb).eval()
    nn.init.normal_(model.bbox_embed[-1].bias)  # the same offset in each layer
    expected = (model.places + model.bbox_embed[-1].bias).expand(2, -1, 4)
    for _, boxes in model(torch.randn(2, 3, 64, 64)):
        assert_close(boxes.logit(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("height, width", [(64, 64), (75, 100), (33, 18)])
@torch.no_grad()
def test_tokens_lie_where_their_pixels_are(nb, height, width):
    model = placed(nb).eval()
    _, places, _ = model.encode(torch.rand(1, 3, height, width))
    stride = model.backbone.stride
    columns = [(j * stride + stride / 2) / width for j in range(math.ceil(width / stride))]
    rows = [(i * stride + stride / 2) / height for i in range(math.ceil(height / stride))]
    assert_close(places[0], tensor([(x, y) for y in rows for x in columns]))


@torch.no_grad()
def test_nearness_by_loops(nb):
    model = placed(nb)
    model.narrow.copy_(torch.rand_like(model.narrow) - 0.5)  # its sign does not count
    box = torch.rand(2, 4, 4) * 0.8 + 0.1
    box[0, 0, 2:] = 0.01  # a tiny one looks at its neighbours, too
    places = nb.token_places(torch.empty(2, 1, 3, 5))
    allowed = torch.rand(2, 1, 1, 15) < 0.7
    found = model.nearness(box, places, allowed)
    heads = len(model.narrow)
    assert found.shape == (2, heads, 4, 15)
    for n, h, q, token in product(range(2), range(heads), range(4), range(15)):
        x, y, w, d = box[n, q].tolist()
        at_x, at_y = (token % 5 + 0.5) / 5, (token // 5 + 0.5) / 3
        away = ((at_x - x) / max(w / 2, 0.06)) ** 2 + ((at_y - y) / max(d / 2, 0.06)) ** 2
        expected = -abs(model.narrow[h].item()) * away / 2
        expected = expected if allowed[n, 0, 0, token] else -math.inf
        assert found[n, h, q, token].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_where_to_look_has_no_gradient_but_how_narrowly_has(nb):
    model = placed(nb).train()
    boxes = model(torch.randn(2, 3, 64, 64))[-1][1]
    boxes.sum().backward()
    assert model.places.grad.abs().max() > 0  # by the offset
    nn.init.normal_(model.bbox_embed[-1].weight)
    model(torch.randn(2, 3, 64, 64))[-1][1].sum().backward()
    assert model.narrow.grad.abs().max() > 0


@torch.no_grad()
def test_a_placed_query_looks_around_its_place_before_any_training(nb):
    image = benchmark("val").images[0]
    torch.manual_seed(0)
    distances = {}
    for name, network in (("plain", nb.DETR(16, **nb.SLIM)), ("placed", nb.PlacedDETR(**nb.SLIM))):
        weights, _, _ = nb.looks(network, image, layer=0)
        assert weights.shape == (16, 16, 16)
        assert_close(weights.sum(dim=(1, 2)), torch.ones(16))
        cells = (torch.arange(16) + 0.5) / 16
        at = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), dim=-1)  # (16, 16, 2)
        far = (at - nb.grid_of_places(4, 4)[:, None, None, :2]).norm(dim=3)
        distances[name] = (weights * far).sum(dim=(1, 2)).mean().item()
    assert distances["placed"] < 0.85 * distances["plain"]


@EVERY
@torch.no_grad()
def test_weights_survive_saving(nb, kind):
    one, other = (getattr(nb, kind)(**TINY).eval() for _ in range(2))
    x = torch.randn(2, 3, 64, 96)
    one.query_embed.weight.add_(1.0)
    assert not torch.equal(one(x)[-1][0], other(x)[-1][0])
    other.load_state_dict(one.state_dict())
    assert_close(one(x), other(x), atol=0, rtol=0)


@EVERY
@pytest.mark.parametrize("counts", [(2, 0), (0, 0), (9, 1)], ids=str)
def test_gradients_are_finite(nb, kind, counts):
    boxes, labels = objects_of(*counts, size=64.0)
    model = getattr(nb, kind)(**TINY).train()
    targets = nb.targets_of(boxes, labels, (64, 64))
    parts = model.losses(nb.slim_loss(), torch.randn(2, 3, 64, 64), targets)
    assert tuple(parts) == PARTS and all(p.isfinite() for p in parts.values())
    sum(parts.values()).backward()
    assert finite_gradients(model) and model.class_embed.weight.grad.any()
    assert model.bbox_embed[-1].weight.grad.any() == (sum(counts) > 0)


@EVERY
def test_nothing_is_left_on_the_cpu(nb, pretended_gpu, kind):
    model = getattr(nb, kind)(**TINY).to("cuda")
    boxes = [torch.tensor([[4.0, 6, 30, 40]] * n, device="cuda").reshape(-1, 4) for n in (2, 0)]
    labels = [torch.zeros(n, dtype=torch.long, device="cuda") for n in (2, 0)]
    images = torch.zeros(2, 3, 64, 64, device="cuda")
    parts = model.losses(nb.slim_loss(), images, nb.targets_of(boxes, labels, (64, 64)))
    found = [v for d in model.detect(images) for v in d.values()]
    assert {t.device.type for t in [*parts.values(), *found]} == {"cuda"}


# ---------------------------------------------------------------- groups and noise


def test_each_group_is_matched_for_itself(nb):
    torch.manual_seed(0)
    model, (boxes, labels) = nb.GroupDETR(2, grid=(3, 3), **TINY).eval(), objects_of(2, 3)
    targets = nb.targets_of(boxes, labels, (64, 64))
    images, criterion = torch.randn(2, 3, 64, 64), nb.slim_loss()
    parts = model.losses(criterion, images, targets)
    seen = model.encode(images)
    first = model.decode(*seen)  # as at test time
    second = model.decode(*seen, (model.more_content.weight, model.more_places))
    each = [criterion(answers, targets) for answers in (first, second)]
    for name in PARTS:  # as many objects and queries in both: the mean
        assert_close(parts[name], (each[0][name] + each[1][name]) / 2, **CLOSE)


def test_a_noisy_query_is_near_its_object_and_seldom_misnamed(nb):
    torch.manual_seed(0)
    model = nb.DenoisingDETR(noise=0.4, misnamed=0.2, **TINY)
    labels = torch.randint(3, (50, 40))
    boxes = tensor([0.5, 0.5, 0.2, 0.3]).expand(50, 40, 4)
    content, moved = model.spoil(labels, boxes)
    by = moved.sigmoid() - boxes
    assert (by[..., 0].abs() <= 0.4 * 0.1 + 1e-5).all() and by[..., 0].abs().max() > 0.035
    assert (by[..., 3].abs() <= 0.4 * 0.3 + 1e-5).all() and by[..., 3].abs().max() > 0.11
    right = (content == model.names.weight[labels]).all(dim=2).float().mean()
    assert right.item() == pytest.approx(1 - 0.2 * 2 / 3, abs=0.03)  # a wrong name may be right


def test_noisy_queries_do_not_disturb_the_others(nb):
    torch.manual_seed(0)
    model, (boxes, labels) = nb.DenoisingDETR(noisy=4, **TINY).eval(), objects_of(2, 1)
    targets, images = nb.targets_of(boxes, labels, (64, 64)), torch.randn(2, 3, 64, 64)
    kept = []

    class Spy(nb.DETRLoss):
        def __call__(self, answers, targets):
            kept.append(answers)
            return super().__call__(answers, targets)

    model.losses(Spy(), images, targets)
    for own, expected in zip(kept[0], model(images), strict=True):
        assert_close(own, expected, **CLOSE)


def test_tokens_learn_from_the_smallest_object_that_they_lie_in(nb):
    model, centres = nb.DenseDETR(**TINY), nb.grid_of_places(8, 6)[:, :2]
    boxes = tensor([[0.5, 0.5, 0.8, 0.6], [0.4, 0.5, 0.3, 0.3], [0.02, 0.02, 0.01, 0.01]])
    tokens, objects = model.owners(centres, {"boxes": boxes})
    found = dict(zip(tokens.tolist(), objects.tolist()))
    for token, (x, y) in enumerate(centres.tolist()):
        around = [
            (w * h, i)
            for i, (cx, cy, w, h) in enumerate(boxes.tolist())
            if abs(x - cx) <= w / 2 and abs(y - cy) <= h / 2
        ]
        assert found.get(token) == (min(around)[1] if around else None)
    tokens, objects = model.owners(centres, {"boxes": boxes[:0]})
    assert len(tokens) == len(objects) == 0


# ---------------------------------------------------------------- images of different sizes

SIZES = [(64, 64), (33, 57), (40, 24), (7, 64), (64, 1), (15, 16)]


@BOTH
@torch.no_grad()
def test_padded_images_answer_as_if_they_were_alone(nb, build):
    torch.manual_seed(0)
    model = build(nb)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias), norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    if build is placed:
        nn.init.normal_(model.bbox_embed[-1].weight, std=0.1)
    model.eval()
    pieces = [torch.randn(3, *size) for size in SIZES]
    batch, inside = nb.pad_batch(pieces)
    assert batch.shape == (6, 3, 64, 64) and inside.sum(dim=(1, 2)).tolist() == [
        height * width for height, width in SIZES
    ]
    found, careless = model.detect(batch, inside), model.detect(batch)
    for i, piece in enumerate(pieces):
        (alone,) = model.detect(piece[None])
        for logits_and_boxes, single in zip(model(batch, inside), model(piece[None]), strict=True):
            for many, one in zip(logits_and_boxes, single):
                assert_close(many[i], one[0], atol=1e-4, rtol=0)
        assert_close(found[i]["boxes"], alone["boxes"], atol=1e-2, rtol=0)
        assert_close(found[i]["scores"], alone["scores"], atol=1e-4, rtol=0)
        height, width = piece.shape[1:]
        assert found[i]["boxes"][:, 2].max() <= width and found[i]["boxes"][:, 3].max() <= height
        same = torch.allclose(careless[i]["scores"], alone["scores"], atol=1e-4)
        assert same == (piece.shape[1:] == (64, 64))


# ---------------------------------------------------------------- reading the answers


@pytest.mark.parametrize("size", [(128, 128), (56, 40)], ids=str)
def test_reading_by_loops(nb, size):
    width, height = size
    logits, boxes = torch.randn(3, 12, 4), 0.1 + 0.9 * torch.rand(3, 12, 4)
    found = nb.read_answers(logits, boxes, tensor([size] * 3))
    for n in range(3):
        rows = []
        for row, (x, y, w, h) in zip(logits[n], boxes[n].tolist()):
            probability = row.softmax(dim=0).tolist()[:3]
            box = [(x - w / 2) * width, (y - h / 2) * height]
            box += [(x + w / 2) * width, (y + h / 2) * height]
            limits = (width, height) * 2
            box = [min(max(v, 0), limit) for v, limit in zip(box, limits)]
            rows.append((max(probability), probability.index(max(probability)), box))
        rows.sort(key=lambda row: -row[0])
        for key, column in zip(("scores", "labels", "boxes"), zip(*rows)):
            assert_close(found[n][key], torch.tensor(column), atol=1e-3, rtol=1e-4)


def test_targets_and_answers_are_inverse(nb):
    data = benchmark("val")
    for t in data.targets[:40]:
        (target,) = nb.targets_of([t["boxes"]], [t["labels"]], (128, 128))
        logits = nn.functional.one_hot(target["labels"], 4)[None] * 20.0
        (found,) = nb.read_answers(logits, target["boxes"][None], tensor([[128, 128]]))
        overlap, own = box_iou(t["boxes"], found["boxes"]).max(dim=1)
        assert (overlap > 0.999).all() and torch.equal(found["labels"][own], t["labels"])
    (wide,) = nb.targets_of([tensor([[0.0, 0, 20, 10]])], [tensor([1])], (40, 80))
    assert_close(wide["boxes"], tensor([[0.125, 0.125, 0.25, 0.25]]))


# ---------------------------------------------------------------- training, repetitions, twins


@EVERY
def test_training_is_repeatable_and_learns(nb, tiny, kind):
    def build():
        return getattr(nb, kind)(**TINY)

    trained = [nb.train_detr(16, seed, build) for seed in (0, 0, 1)]
    weights = [model.class_embed.weight for model, _ in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for model, history in trained:
        assert tuple(history.columns()) == PARTS and not model.training
        totals = [sum(parts) for parts in zip(*history.columns().values())]
        assert len(totals) == 16 and sum(totals[-3:]) < 0.95 * sum(totals[:3])


def test_the_backbone_has_a_rate_of_its_own(nb, tiny):
    model, _ = nb.train_detr(3, 0, backbone_rate=0.0)
    nb.training.seed_everything(0)
    fresh = nb.slim_detr()  # at a rate of 0 the backbone keeps its first weights
    both = zip(model.backbone.parameters(), fresh.backbone.parameters())
    assert all(torch.equal(*pair) for pair in both)
    assert not torch.equal(model.class_embed.weight, fresh.class_embed.weight)


def test_repetitions_by_loops(nb):
    generator, found, count, again = torch.Generator().manual_seed(0), [], 0, 0
    for _ in range(6):
        corner = torch.rand(8, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 20 + corner.flip(0)], dim=1)
        scores = torch.rand(8, generator=generator).sort(descending=True).values
        labels = torch.randint(2, (8,), generator=generator)
        found.append({"boxes": boxes, "scores": scores, "labels": labels})
        overlap, sure = iou_by_loops(boxes, boxes), (scores > 0.4).sum().item()
        count += sure
        for j in range(sure):
            again += any(overlap[i, j] > 0.3 and labels[i] == labels[j] for i in range(j))
    assert nb.repeats(found, 0.4, 0.3) == (count / 6, again / count) and again
    assert nb.repeats([{k: v[:0] for k, v in found[0].items()}]) == (0, 0)
    rest = nb.with_nms(found, 0.3)
    assert nb.repeats(rest, 0.4, 0.3)[1] == 0 and nb.repeats(rest, 0.4, 0.3)[0] < count / 6


CHECKSUMS = {
    "train": "4ac22c52e2d70acdce00c043f148820ed7398eb891686dc4d1f80c72e667b9f4",
    "val": "bf2e5af7b92f9418ca99d56be2af26e2c2dca10afbb56509b1b1fc3f4462da81",
    "test": "fea5386b2bb0182c2bb07f300cd8e5d2e7b571a881470c52298a0674a15616fa",
}


@pytest.mark.parametrize("split", CHECKSUMS)
def test_twins_are_frozen_and_nms_cannot_keep_both(nb, split):
    data = benchmark(split)
    before = data.images.clone()
    images, targets = nb.with_twins(data)
    assert torch.equal(data.images, before) and images.shape == before.shape
    assert checksum(images, targets) == CHECKSUMS[split]
    for t, old in zip(targets, data.targets, strict=True):
        assert all(torch.equal(t[key][:-1], old[key]) for key in ("boxes", "labels"))
        first, twin = t["boxes"][-2:]
        assert torch.equal(first[2:] - first[:2], twin[2:] - twin[:2])
        assert t["labels"][-1] == t["labels"][-2]
        assert 0.53 < box_iou(first[None], twin[None]).item() < 0.9
        assert twin.min() >= 0 and twin.max() <= 128


def test_a_twin_is_another_colour_and_lies_on_top(nb):
    data = benchmark("val")
    images, targets = nb.with_twins(data)
    for i in range(20):
        t = targets[i]
        masks = [
            torch.from_numpy(nb.shape_mask(int(t["labels"][-1]), b.int().tolist(), 128))
            for b in t["boxes"][-2:]
        ]
        here = [images[i][:, mask].float().mean(dim=1) for mask in (masks[0] & ~masks[1], masks[1])]
        assert (here[0] - here[1]).abs().max() > 60
        assert (masks[0] & ~masks[1]).sum() > 0.08 * masks[0].sum()  # some of the first is seen
        outside = ~masks[1]
        assert torch.equal(images[i][:, outside], data.images[i][:, outside])


# ---------------------------------------------------------------- figures


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
        plt.close("all")
    assert float(costs["optimal"]) <= float(costs["greedy"])


@pytest.mark.parametrize("part, layer, shape", [("attend", -1, 64), ("cross_attend", 0, 9)])
def test_looking_changes_nothing(nb, tiny, part, layer, shape):
    network, image = placed(nb).eval(), benchmark("val").images[0][:, :64, :64]
    x = to_input(image[None], torch.device("cpu"))
    before = network(x)[layer]
    weights, logits, boxes = nb.looks(network, image, layer, part)
    assert weights.shape == (shape, 8, 8)
    assert_close((logits[None], boxes[None]), before, **CLOSE)
    assert not any(getattr(m, "keep", False) for m in network.modules())
    assert_close(network(x)[layer], before, **CLOSE)


# ---------------------------------------------------------------- numbers of the prose
def test_objects_measure_8_to_72_pixels():
    boxes = torch.cat([t["boxes"] for split in ("train", "test") for t in benchmark(split).targets])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (int(sides.min()), int(sides.max())) == (8, 72)


def test_the_cost_of_a_fine_map_on_a_photograph():
    tokens = (800 // 8) * (1200 // 8)
    assert tokens == 15_000 and tokens**2 == 225_000_000


def test_how_many_images_each_has_seen(nb):
    assert round(300 * 118_000 / 1e6) == 35 and nb.CPU_STEPS * nb.BATCH == 20_000


def test_half_of_the_lower_twins_show_a_quarter_or_less(nb):
    images, targets = nb.with_twins(benchmark("test"))
    size, seen = images.shape[3], []
    for t in targets:
        label = int(t["labels"][-1])
        under, over = (shape_mask(label, box.int().tolist(), size) for box in t["boxes"][-2:])
        seen.append((under & ~over).sum() / under.sum())
    assert 0.2 < np.median(seen) < 0.26


def test_lengths_of_what_came_after():
    rows, _ = read_records(EXPERIMENTS, ["08_detr"])
    lengths = {"main": 2500, "denoising": 2275, "groups": 1575, "taught tokens": 2375}
    assert {row["variant"]: row["steps"] for row in rows if row["variant"] in lengths} == lengths
    shares = [lengths[name] / 2500 for name in ("denoising", "groups", "taught tokens")]
    assert shares == [0.91, 0.63, 0.95]


def test_fcos_without_twins_is_ahead_by_as_much_as_the_page_says():
    rows, _ = read_records(EXPERIMENTS, ["07_fcos", "08_detr"])
    aps = {
        lecture: [r["AP"] for r in rows if (r["notebook"], r["variant"]) == (lecture, "main")]
        for lecture in ("07_fcos", "08_detr")
    }
    assert [round(float(np.mean(ap)), 2) for ap in aps.values()] == [0.74, 0.61]


def test_every_seed_with_taught_tokens_is_above_every_one_without():
    rows, _ = read_records(EXPERIMENTS, ["08_detr"])
    taught, main = ([r["AP"] for r in rows if r["variant"] == v] for v in ("taught tokens", "main"))
    assert min(taught) > max(main)


def test_groups_are_no_better_than_the_main_model_on_its_way():
    rows, _ = read_records(EXPERIMENTS, ["08_detr"])
    on_the_way = [
        np.interp(1575, *zip(*((p["steps"], p["AP"]) for p in r["curve"])))
        for r in rows
        if r["variant"] == "main"
    ]
    groups = [r["AP"] for r in rows if r["variant"] == "groups"]
    assert abs(np.mean(on_the_way) - np.mean(groups)) < 0.02
