"""The lecture text's section on SSD and RetinaNet, statement by statement: its lines 892 to 932."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from claim import claim
from shared import notebook_code, objects_of, recorded_mean
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import batched_nms, box_iou

from helpers.lessons import load

# Liu et al. 2016, table 7: mAP on VOC 2007 and images per second on a Titan X, batch 1 and 8.
SSD300 = (74.3, 46, 59)
# Lin et al. 2017b, table 1: COCO AP with a ResNet-101, mining and focal loss.
MINING, FOCAL = 32.8, 36.0


@pytest.fixture(scope="module")
def lesson():
    plt.switch_backend("agg")
    with notebook_code("06_ssd", SEED=0, DEVICE=torch.device("cpu")) as module:
        yield module


@pytest.fixture(scope="module")
def retina():
    return load("04_fpn_retinanet")


def at_224(lesson, base=2.0):
    """The text's default boxes: 224 px, strides 16 and 32, three ratios, two scales."""
    return lesson.default_boxes(224, 224, (16, 32), base=base)


def text_objects(count=400):
    """Squares of 30 to 80 px anywhere in an image of 224."""
    generator = torch.Generator().manual_seed(0)
    size = 30 + 50 * torch.rand(count, 1, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (224 - size)
    return torch.cat([corner, corner + size], dim=1)


# ---------------------------------------------------------------- SSD, lines 896 to 908
@claim(
    "ssd",
    1,
    896,
    says="SSD is fast enough for real time",
    verdict="true",
    paper=f"{SSD300[1]} images per second one by one, {SSD300[2]} in batches, table 7",
)
def test_images_per_second(measure):
    assert SSD300[1] > 30
    measure(f"published: {SSD300[1]} per second on a Titan X")


@claim(
    "ssd",
    2,
    898,
    says="its levels are P3 with stride 16 and P4 with stride 32",
    verdict="contradicts",
    paper="FPN: P_l has stride 2^l",
)
def test_levels_have_other_names(measure):
    strides = {"P3": 16, "P4": 32}
    levels = {name: int(math.log2(stride)) for name, stride in strides.items()}
    assert levels == {"P3": 4, "P4": 5}
    measure("strides of 2⁴ and 2⁵, so P4 and P5 by the text's own line 576")


@claim(
    "ssd",
    3,
    898,
    says="each place of a map corresponds to a region of 16 × 16, or 32 × 32, pixels",
    verdict="imprecise",
)
def test_a_cell_sees_more_than_its_stride(lesson, measure):
    torch.manual_seed(0)
    backbone = lesson.SSDBackbone((8, 8, 8), first_stride=16).eval()
    spans = []
    for level in (0, 1):
        image = torch.rand(1, 3, 448, 448, requires_grad=True)
        m = backbone(image)[level]
        m[0, :, m.shape[2] // 2, m.shape[3] // 2].sum().backward()
        spans.append(int((image.grad.abs().sum(dim=(0, 1, 2)) > 0).sum()))
    assert spans[0] > 2 * 16 and spans[1] > 2 * 32
    measure(f"that is the distance to the next; ours see {spans[0]} and {spans[1]} px")


@claim(
    "ssd",
    4,
    898,
    says="YOLO reads the last map alone, SSD several",
    verdict="true",
    paper="six maps, figure 2",
)
def test_several_maps(lesson, measure):
    with torch.no_grad():
        maps = lesson.SSDBackbone((8, 8, 8, 8)).eval()(torch.zeros(1, 3, 128, 128))
        forms = load("05_yolo").YOLODetector().eval()(torch.zeros(1, 3, 128, 128))
    assert len(maps) == 3 and forms.shape[1:3] == (16, 16)
    measure(f"{len(maps)} maps here, one in lecture 05")


@claim(
    "ssd",
    5,
    900,
    says="three ratios and two scales, 1.0 and 1.6, give six boxes at each place",
    verdict="true",
    paper="4 or 6 per place, 8,732 in SSD300",
)
def test_six_boxes(lesson, measure):
    boxes = at_224(lesson)
    assert [len(b) for b in boxes] == [6 * 14**2, 6 * 7**2]
    generator = DefaultBoxGenerator([[2], [2, 3], [2, 3], [2, 3], [2], [2]])
    maps = zip((38, 19, 10, 5, 3, 1), generator.num_anchors_per_location())
    assert sum(n * n * a for n, a in maps) == 8732
    measure(f"6 per place, {sum(map(len, boxes)):,} at 224 px")


@claim(
    "ssd",
    6,
    902,
    says="boxes from 0.5 on are positive, below 0.4 negative, between ignored",
    verdict="false",
    paper="the best box of each object, then all above 0.5; the rest is negative, section 2.2",
)
def test_ssd_ignores_no_box(lesson, retina, measure):
    overlap = torch.tensor([[0.6], [0.45], [0.3]])
    ours, theirs = lesson.match_boxes(overlap), retina.match_anchors(overlap)
    assert ours.tolist() == [0, -1, -1] and theirs.tolist() == [0, -2, -1]
    measure("0.45 is background for SSD; the ignored band is RetinaNet's")


@claim(
    "ssd",
    7,
    902,
    says="the threshold decides which boxes are responsible for which object",
    verdict="imprecise",
    paper="first the best box of each object, whatever its overlap, section 2.2",
)
def test_objects_without_a_box(lesson, measure):
    objects, shares = text_objects(), {}
    for base in (1.0, 2.0, 4.0):
        overlap = box_iou(torch.cat(at_224(lesson, base)), objects)
        shares[base] = (overlap.amax(dim=0) < 0.5).float().mean().item()
        matches = lesson.match_boxes(overlap[:, :1])
        assert (matches >= 0).any()  # the first half serves it
    assert shares[2.0] < 0.1 < min(shares[1.0], shares[4.0])
    measure(
        "objects without a box by the threshold alone: "
        + ", ".join(f"{s:.1%} (base {b:g} strides)" for b, s in shares.items())
    )


@claim(
    "ssd",
    8,
    904,
    says="mining keeps the three negatives of most loss per positive, so 30 for 10",
    verdict="true",
    paper="“at most 3:1”, section 2.2",
)
def test_thirty_for_ten(lesson, measure):
    loss = torch.rand(1, 200, generator=torch.Generator().manual_seed(0))
    positive = torch.arange(200)[None] < 10
    mined = lesson.mine_hard_negatives(loss, positive, ~positive)
    assert mined.sum() == 30 and not (mined & positive).any()
    assert loss[mined].min() > loss[~mined & ~positive].max()
    measure("10 positives: 30 negatives, all harder than those left out")


@claim(
    "ssd",
    9,
    906,
    says="classes are learnt by cross-entropy on positives and hard negatives alone",
    verdict="true",
    paper="softmax loss over the classes, eq. 3",
)
def test_who_learns_classes(lesson, measure):
    torch.manual_seed(0)
    defaults = torch.cat(lesson.default_boxes(64, 64, (8, 16), base=2.0))
    boxes, labels = objects_of(3)
    logits = torch.randn(1, len(defaults), 4, requires_grad=True)
    loss = lesson.MultiBoxLoss()(logits, torch.zeros(1, len(defaults), 4), defaults, boxes, labels)
    loss["class"].backward()
    learning = int((logits.grad[0] != 0).any(dim=1).sum())
    positive = int((lesson.match_boxes(box_iou(defaults, boxes[0])) >= 0).sum())
    assert learning == 4 * positive
    measure(f"{positive} positives: {learning} boxes learn, the others have no gradient")


@claim(
    "ssd",
    10,
    906,
    says="places are learnt by smooth L1, robust to outliers, on positives alone",
    verdict="true",
    paper="eq. 2",
)
def test_who_learns_places(lesson, measure):
    torch.manual_seed(0)
    defaults = torch.cat(lesson.default_boxes(64, 64, (8, 16), base=2.0))
    boxes, labels = objects_of(3)
    deltas = 100 * torch.randn(1, len(defaults), 4)
    deltas.requires_grad_()
    loss = lesson.MultiBoxLoss()(torch.zeros(1, len(defaults), 4), deltas, defaults, boxes, labels)
    loss["box"].backward()
    positive = lesson.match_boxes(box_iou(defaults, boxes[0])) >= 0
    assert torch.equal((deltas.grad[0] != 0).any(dim=1), positive)
    pull = (deltas.grad.abs() * positive.sum()).max().item()
    assert pull == pytest.approx(1, rel=1e-4)  # of a square it would grow with the error
    measure("no gradient elsewhere; a wild box pulls no harder than 1")


@claim(
    "ssd",
    11,
    908,
    says="at inference a sigmoid makes the class probabilities",
    verdict="contradicts",
    paper="softmax, eq. 3; so does line 924",
)
def test_a_sigmoid_reads_what_was_never_learnt(lesson, measure):
    z = torch.full((1, 4), 5.0)
    losses = [F.cross_entropy(z + shift, torch.tensor([0])).item() for shift in (0, -10)]
    single = [lesson.sigmoid_scores(z + shift)[0, 0].item() for shift in (0, -10)]
    soft = [lesson.softmax_scores(z + shift)[0, 0].item() for shift in (0, -10)]
    assert losses[0] == pytest.approx(losses[1]) and soft[0] == pytest.approx(soft[1])
    assert single[0] > 0.99 and single[1] < 0.01
    measure(f"equal loss, softmax {soft[0]:.2f} twice, sigmoid {single[0]:.3f} and {single[1]:.3f}")


@claim(
    "ssd",
    12,
    908,
    says="after NMS there is one box per object",
    verdict="false",
)
def test_two_boxes_for_one_object(measure):
    pair = torch.tensor([[0.0, 0, 27, 40], [13, 0, 40, 40]])
    both = box_iou(pair, torch.tensor([[0.0, 0, 40, 40]])).flatten()
    kept = batched_nms(pair, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), 0.45)
    assert len(kept) == 2 and both.min() > 0.6
    measure(f"IoU {both[0]:.2f} and {both[1]:.2f} with one object: both are left")


# ---------------------------------------------------------------- RetinaNet, lines 912 to 928
@claim(
    "ssd",
    13,
    914,
    says="SSD takes maps as they are, FPN adds a path from deep to shallow",
    verdict="true",
    paper="Lin et al. 2017a, figure 1",
)
def test_the_way_back(lesson, retina, measure):
    torch.manual_seed(0)
    maps = [torch.randn(1, 8, s, s) for s in (8, 4, 2)]
    fpn = retina.SimpleFPN((8, 8, 8), 8)
    changed = [*maps[:2], maps[2] + 1]
    assert not torch.equal(fpn(maps)[0], fpn(changed)[0])
    model = lesson.SSD().eval()
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        before = model(image)[0]
        for p in model.backbone.stages[2].parameters():
            p.add_(1)
        after = model(image)[0]
    fine = 6 * 32 * 32
    assert torch.equal(before[:, :fine], after[:, :fine])
    measure("a change of the coarse map reaches FPN's fine level, and not SSD's")


@claim(
    "ssd",
    14,
    916,
    says="RetinaNet has subnets of four convolutions, shared by levels; SSD a single convolution",
    verdict="true",
    paper="the same",
)
def test_heads(lesson, measure):
    with torch.device("meta"):
        ssd, retina = lesson.SSD(), lesson.RetinaNetOnShapes()
    assert len(ssd.class_heads) == 3 and all(isinstance(h, nn.Conv2d) for h in ssd.class_heads)
    convs = sum(isinstance(m, nn.Conv2d) for m in retina.class_subnet)
    assert convs == 4 + 1
    sizes = [
        sum(p.numel() for heads in pair for p in heads.parameters())
        for pair in (
            (ssd.class_heads, ssd.box_heads),
            (retina.class_subnet, retina.box_subnet),
        )
    ]
    measure(f"{sizes[0]:,} parameters in SSD's heads, {sizes[1]:,} in the subnets")


@claim(
    "ssd",
    15,
    916,
    says="as they are shared, the network learns features that do not depend on scale",
    verdict="unverifiable",
    paper="FPN, section 4.1: about as good with heads of their own",
)
def test_one_head_sees_two_scales(lesson, measure):
    torch.manual_seed(0)
    net = lesson.subnet(8, 4, depth=1)
    p = torch.randn(1, 8, 6, 6)
    assert torch.equal(net(p), net(p.clone()))
    measure("the same features get the same answer; whether they are the same, sharing only asks")


@claim(
    "ssd",
    16,
    920,
    says="hard examples still contribute fully to the focal loss",
    verdict="imprecise",
    paper="up to 4× less at p_t ≤ 0.5, Lin et al. 2017b, section 3.2",
)
def test_hard_ones_keep_a_part(retina, measure):
    one, said = torch.ones(1), []
    for p in (0.1, 0.5):
        z = torch.tensor([math.log(p / (1 - p))])
        kept = retina.FocalLoss(None, 2.0)(z, one) / retina.FocalLoss(None, 0.0)(z, one)
        said.append(f"{kept.item():.0%} at p_t = {p}")
    assert said == ["81% at p_t = 0.1", "25% at p_t = 0.5"]
    measure(", ".join(said) + "; a quarter of that with α")


@claim(
    "ssd",
    17,
    922,
    says="the focal loss works better, because no negatives are thrown away",
    verdict="imprecise",
    paper=f"AP {FOCAL} against {MINING} with mining, ResNet-101, table 1; the reason is a reading",
)
def test_mining_against_a_focal_factor(measure):
    names = ("cross-entropy, hardest 3 : 1", "cross-entropy", "main")
    mining, everybody, focal = (recorded_mean("04_fpn_retinanet", name) for name in names)
    assert FOCAL > MINING and min(mining, focal, everybody) > 0.4
    measure(
        f"RetinaNet on our shapes: mining {mining:.3f}, all negatives {everybody:.3f}, the focal "
        f"loss {focal:.3f}"
    )


@claim(
    "ssd",
    18,
    924,
    says="RetinaNet has no background class: zeros for negatives, a single one for positives",
    verdict="true",
    paper="Lin et al. 2017b, section 4",
)
def test_rows_of_targets(retina, measure):
    seen = []

    def spy(logits, targets):
        seen.append(targets)
        return logits * 0

    anchors = retina.anchors_of([(16, 16), (8, 8), (4, 4)])
    boxes, labels = objects_of(3)
    logits, deltas = torch.zeros(1, len(anchors), 3), torch.zeros(1, len(anchors), 4)
    retina.DenseLoss(spy)(logits, deltas, anchors, boxes, labels)
    sums = set(seen[0].sum(dim=2).flatten().tolist())
    assert sums == {0.0, 1.0}
    measure("rows of targets sum to 0 or 1")


@claim(
    "ssd",
    19,
    926,
    says="a random start brings confident false positives, which the focal loss turns down as easy",
    verdict="false",
    paper="the sum over all negatives destabilises the first steps, sections 3.3 and 4.1",
)
def test_a_confident_false_positive_is_hard(retina, measure):
    torch.manual_seed(0)
    with torch.no_grad():
        maps, _ = retina.SimpleRetinaNet(3, 3, 16, pi=0.5)([torch.randn(1, 16, 9, 9)])
    p = maps[0].sigmoid()
    z = torch.tensor([math.log(9.0)])
    factor = retina.FocalLoss(None, 2.0)(z, torch.zeros(1)) / F.softplus(z)
    assert p.max() < 0.6 and factor.item() == pytest.approx(0.81, rel=1e-3)
    measure(
        f"p is {p.mean():.2f} everywhere, at most {p.max():.2f}; at 0.9 {factor.item():.2f} stay"
    )


# ---------------------------------------------------------------- both, lines 930 and 932
@claim(
    "ssd",
    20,
    930,
    says="mining's ratio needs careful tuning; the focal loss is more robust, and the standard",
    verdict="imprecise",
    paper="γ and α are tuned together, table 1b; YOLOv3 lost 2 mAP with it; DETR has neither",
)
def test_ratios_with_a_fair_start(measure):
    names = ("mining 1 : 1", "main", "mining 10 : 1")
    ap = [recorded_mean("06_ssd", name) for name in names]
    assert max(ap) - min(ap) < 0.2
    measure("ratios 1, 3 and 10, all with a prior: AP " + ", ".join(f"{value:.3f}" for value in ap))


@claim(
    "ssd",
    21,
    932,
    says="YOLO, SSD, RetinaNet: each builds on the one before",
    verdict="true",
    paper="CVPR 2016, ECCV 2016, ICCV 2017",
)
def test_the_order_of_the_papers(measure):
    published = {"YOLO": (2016, 6), "SSD": (2016, 10), "RetinaNet": (2017, 10)}
    assert list(published.values()) == sorted(published.values())
    measure("June 2016, October 2016, October 2017")
