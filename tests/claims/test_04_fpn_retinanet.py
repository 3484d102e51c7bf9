"""The lecture text's section on FPN and RetinaNet, statement by statement: its lines 542 to 704."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from claim import claim
from shared import notebook_code, recorded_mean
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.ops import box_iou

from helpers.anchors import grid_anchors
from helpers.lessons import load

# Lin et al. 2017a, on COCO minival with a ResNet-50: AP, and AP of small objects.
FPN_TABLE_2 = {"FPN": 33.9, "no top-down": 24.9}
FPN_TABLE_3 = {"conv4": 13.2, "conv5": 9.6, "FPN": 17.8}
# Lin et al. 2017b, on COCO: table 1 (ResNet-50; mining: ResNet-101), figure 2 (AP, ms, M40).
GAMMAS = {0.0: 31.1, 0.1: 31.4, 0.2: 31.9, 0.5: 32.9, 1.0: 33.7, 2.0: 34.0, 5.0: 32.2}
BEST_ALPHA = {0.0: 0.75, 0.1: 0.75, 0.2: 0.75, 0.5: 0.5, 1.0: 0.25, 2.0: 0.25, 5.0: 0.25}
MINING, FOCAL_101 = 32.8, 36.0
FIGURE_2 = {"Faster R-CNN": (36.2, 172), "600 px": (36.0, 122), "800 px": (37.8, 198)}
# What a crowd of 99,900 easy negatives and 100 hard positives is said to lose: easy, hard.
TEXT_CE, TEXT_FL = (836.0, 1.0), (0.3, 1.2)


@pytest.fixture(scope="module")
def lesson():
    plt.switch_backend("agg")
    with notebook_code("04_fpn_retinanet", SEED=0, DEVICE=torch.device("cpu")) as module:
        yield module


@pytest.fixture(scope="module")
def features(lesson):
    """C3, C4 and C5 of a photograph's size, 224 pixels, with few channels."""
    torch.manual_seed(0)
    with torch.no_grad():
        return lesson.SimpleBackbone((8, 16, 24, 32)).eval()(torch.rand(1, 3, 224, 224))


def gmacs(module, *inputs):
    """Billions of multiply-accumulate operations of one call, on the device "meta"."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(*inputs)
    return counter.get_total_flops() / 2e9


def resnet():
    with torch.device("meta"):
        return nn.Sequential(*list(resnet50(weights=None).children())[:-2])


def resnet_costs():
    """Of a ResNet-50 at 224 pixels, its pyramid, and the ResNet at 224, 448 and 896 pixels."""
    body = resnet()
    with torch.device("meta"):
        maps = [torch.empty(1, c, s, s) for c, s in ((512, 28), (1024, 14), (2048, 7))]
        pyramid = gmacs(load("04_fpn_retinanet").SimpleFPN(), maps)
        sizes = [gmacs(body, torch.empty(1, 3, s, s)) for s in (224, 448, 896)]
    return sizes[0], pyramid, sum(sizes)


def ratio(pair):
    return pair[0] / pair[1]


# ---------------------------------------------------------------- why FPN, lines 548 to 552
@claim(
    "fpn_retinanet",
    1,
    550,
    says="of an image of 224 px C5 is typically 7 × 7 and C3 28 × 28",
    verdict="true",
    paper="strides 32 and 8, section 3",
)
def test_sizes_of_the_maps(lesson, features, measure):
    sides = {name: m.shape[3] for name, m in features.items()}
    assert sides == {"C3": 28, "C4": 14, "C5": 7}
    with torch.device("meta"):
        assert resnet()(torch.empty(1, 3, 224, 224)).shape == (1, 2048, 7, 7)
    measure(f"C3 {sides['C3']}, C5 {sides['C5']}, a ResNet-50 the same")


@claim(
    "fpn_retinanet",
    2,
    552,
    says="image pyramids work but are expensive; FPN has several scales from one pass",
    verdict="true",
    paper="abstract and section 1",
)
def test_enlarged_images_cost_many_passes(measure):
    body, pyramid, enlarged = resnet_costs()
    assert enlarged > 10 * (body + pyramid)
    measure(
        f"steps of 8 px by enlarged images: {enlarged / body:.0f} passes of a ResNet-50; "
        f"by a pyramid {1 + pyramid / body:.2f}"
    )


# ---------------------------------------------------------------- SimpleFPN, lines 554 to 576
@claim(
    "fpn_retinanet",
    3,
    558,
    says="C3, C4 and C5 have 512, 1,024 and 2,048 channels, which 1 × 1 convolutions bring to 256",
    verdict="true",
    paper="d = 256, section 3; the widths are those of a ResNet-50",
)
def test_lateral_convolutions(lesson, measure):
    with torch.device("meta"):
        shapes = [tuple(conv.weight.shape) for conv in lesson.SimpleFPN().lateral]
    assert shapes == [(256, c, 1, 1) for c in (512, 1024, 2048)]
    measure("weights of " + ", ".join(map(str, shapes)))


@claim(
    "fpn_retinanet",
    4,
    560,
    says="nearest-neighbour upsampling leaves blocks, which the 3 × 3 convolutions smooth",
    verdict="true",
    paper="“to reduce the aliasing effect of upsampling”, section 3",
)
def test_a_convolution_can_take_the_edges_off_blocks(measure):
    coarse = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    blocks = F.interpolate(coarse, scale_factor=2, mode="nearest")
    smooth = F.conv2d(blocks, torch.full((1, 1, 3, 3), 1 / 9))[..., 1:-1, 1:-1]

    def at_borders(m):
        """How much of the change from cell to cell happens at the borders of blocks."""
        step = m.diff(dim=3).abs().mean(dim=(0, 1, 2))
        return step[1::2].mean().item(), step[0::2].mean().item()

    inside, outside = sorted(at_borders(blocks))
    even, odd = sorted(at_borders(smooth))
    assert inside == 0 < outside and 0 < even < odd < outside
    measure(
        f"change from cell to cell within blocks and at their borders: {inside:.2f} and "
        f"{outside:.2f}, after a mean of 3 × 3 {even:.2f} and {odd:.2f}"
    )


@claim(
    "fpn_retinanet",
    5,
    574,
    says="the 3 × 3 convolutions also add capacity for non-linear transformations",
    verdict="false",
    paper="“There are no non-linearities in these extra layers”, section 3",
)
def test_the_pyramid_is_affine(lesson, measure):
    torch.manual_seed(0)
    fpn = lesson.SimpleFPN((5, 6, 7), 8)
    for conv in (*fpn.lateral, *fpn.output):
        nn.init.normal_(conv.bias)
    shapes = ((5, 8), (6, 4), (7, 2))
    a, b = ([torch.randn(1, c, s, s) for c, s in shapes] for _ in range(2))
    with torch.no_grad():
        mixed = fpn([2 * x - 3 * y for x, y in zip(a, b)])
        parts = zip(fpn(a), fpn(b), fpn([0 * x for x in a]))
        sums = [2 * fa - 3 * fb + 2 * f0 for fa, fb, f0 in parts]
    gap = max((m - s).abs().max().item() for m, s in zip(mixed, sums))
    assert gap < 1e-4
    measure(f"F(2a - 3b) = 2 F(a) - 3 F(b) + 2 F(0) to {gap:.0e}: an affine map")


@claim(
    "fpn_retinanet",
    6,
    576,
    says="P3 is for objects of about 8 to 64 px, P4 of 64 to 128, P5 of 128 and more",
    verdict="imprecise",
    paper="FPN: 112 to 224 px on P3, eq. 1; RetinaNet: anchors of 32 to 51 px on P3; these are "
    "FCOS's ranges, of distances to the sides",
)
def test_rules_for_levels(lesson, measure):
    by_fpn = min(max(math.floor(4 + math.log2(100 / 224)), 2), 5)
    by_text = 4
    by_retinanet, by_fcos = lesson.retinanet_level(100), lesson.fcos_level(100)
    assert (by_fpn, by_retinanet, by_fcos) == (2, 4, 3) and by_text not in (by_fpn, by_fcos)
    measure(
        f"a square of 100 px: by this rule P{by_text}, FPN P{by_fpn}, RetinaNet P{by_retinanet}, "
        f"FCOS P{by_fcos}"
    )


@claim(
    "fpn_retinanet",
    7,
    576,
    says="every level of the pyramid understands as much as the deepest layer",
    verdict="unverifiable",
    paper=f"AP {FPN_TABLE_2['FPN']}, without the path {FPN_TABLE_2['no top-down']}, table 2",
)
def test_what_the_finest_level_can_hear(lesson, measure):
    torch.manual_seed(0)
    backbone = lesson.SimpleBackbone((8, 8, 8, 8), first=2).eval()
    fpn = lesson.SimpleFPN((8, 8, 8), 8)
    alone = lesson.seen(lambda image: backbone(image).values())
    fused = lesson.seen(nn.Sequential(backbone, fpn))
    assert fused[0] > alone[2] > alone[0]  # it hears of them; how much it understands, who knows
    measure(
        f"what a cell of the finest map sees: {alone[0]} px, in the pyramid {fused[0]}, of the "
        f"coarsest {alone[2]}; understanding has no unit"
    )


# ---------------------------------------------------------------- the backbone, lines 578 to 586
@claim(
    "fpn_retinanet",
    8,
    582,
    says="after stride 4 layer2 keeps the stride, and gives C3 with stride 8",
    verdict="contradicts",
    paper="strides 8, 16 and 32, section 3",
)
def test_a_layer_that_keeps_the_stride(lesson, measure):
    with torch.no_grad():
        stem = nn.Sequential(lesson.conv_block(3, 4, 2), nn.MaxPool2d(2))
        literal = [stem, lesson.conv_block(4, 4), lesson.stage(4, 4, 1), lesson.stage(4, 4, 1)]
        x, strides = torch.rand(1, 3, 224, 224), []
        for part in literal:
            x = part.eval()(x)
            strides.append(224 // x.shape[3])
    assert strides == [4, 4, 8, 16]
    measure(f"strides of C3, C4 and C5 with such a layer2: {strides[1:]}")


@claim(
    "fpn_retinanet",
    9,
    584,
    says="the backbone mirrors the structure of a ResNet",
    verdict="imprecise",
    paper="bottlenecks with shortcuts (He et al. 2016)",
)
def test_what_the_sketch_shares_with_a_resnet(lesson, measure):
    with torch.device("meta"):
        sketch, real = lesson.SimpleBackbone(), resnet()
    convs = [sum(isinstance(m, nn.Conv2d) for m in net.modules()) for net in (sketch, real)]
    millions = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (sketch, real)]
    assert convs[0] == 4 < convs[1] == 53
    measure(
        f"widths and strides, yes; {convs[0]} convolutions and no shortcut against {convs[1]}, "
        f"{millions[0]:.0f} against {millions[1]:.0f} million weights"
    )


# ---------------------------------------------------------------- the diagram, line 596
@claim(
    "fpn_retinanet",
    10,
    596,
    says="the arrows of the upsampling point upwards, which shows that information flows top-down",
    verdict="imprecise",
    paper="figure 3 has C5 on top, and its arrows point down",
)
def test_up_is_where_the_fine_maps_are_drawn(lesson, measure):
    def direction(**options):
        figure = lesson.visualize_fpn_architecture(**options)
        (ax,) = figure.axes
        height = {t.get_text().split("\n")[0]: t.get_position()[1] for t in ax.texts}
        return height["C3"] > height["C5"]

    assert direction() and not direction(c5_on_top=True)
    measure("with C5 at the bottom they point up, with C5 on top down: from coarse to fine")


# ---------------------------------------------------------------- demonstrations, lines 606 to 610
@claim(
    "fpn_retinanet",
    11,
    610,
    says="with the pyramid instead of C5 alone small objects gain 8 % AP",
    verdict="imprecise",
    paper="AP of small objects 9.6 → 17.8, table 3: points, not per cent",
)
def test_points_are_not_per_cent(measure):
    points = FPN_TABLE_3["FPN"] - FPN_TABLE_3["conv5"]
    relative = FPN_TABLE_3["FPN"] / FPN_TABLE_3["conv5"] - 1
    assert points == pytest.approx(8.2) and relative > 0.8
    measure(
        f"{points:.1f} points, {relative:+.0%}; against C4 alone "
        f"{FPN_TABLE_3['FPN'] - FPN_TABLE_3['conv4']:.1f} points"
    )


# ---------------------------------------------------------------- significance, lines 612 to 616
@claim(
    "fpn_retinanet",
    12,
    614,
    says="before FPN one had image pyramids or a single scale",
    verdict="contradicts",
    paper="SSD and MS-CNN predict on several maps, section 2",
)
def test_ssd_is_older(measure):
    years = {"SSD": 2016, "MS-CNN": 2016, "FPN": 2017}
    assert years["SSD"] < years["FPN"]
    measure("SSD (2016, six maps) is lecture 06; the same line says that “people had tried that”")


@claim(
    "fpn_retinanet",
    13,
    614,
    says="the pyramid comes essentially for free",
    verdict="imprecise",
    paper="“marginal extra cost”, abstract",
)
def test_the_price_of_a_pyramid(measure):
    body, pyramid, _ = resnet_costs()
    assert 0.1 < pyramid / body < 0.3
    measure(f"{pyramid / body:+.0%} multiplications on a ResNet-50 at 224 px, before any head")


@claim(
    "fpn_retinanet",
    14,
    616,
    says="Mask R-CNN and RetinaNet were built on FPN",
    verdict="true",
    paper="He et al. 2017, section 3.1; Lin et al. 2017b, section 4",
)
def test_retinanet_has_a_pyramid(lesson, measure):
    with torch.device("meta"):
        assert isinstance(lesson.RetinaNet().fpn, lesson.SimpleFPN)
    measure("the lesson's RetinaNet has one, and torchvision's maskrcnn_resnet50_fpn")


# ---------------------------------------------------------------- the focal loss, lines 618 to 632
@claim(
    "fpn_retinanet",
    15,
    622,
    says="α = 0.25 and γ = 2 were found to be best across datasets",
    verdict="imprecise",
    paper="on COCO, table 1b; no other data set was tried",
)
def test_the_best_setting_on_coco(measure):
    best = max(GAMMAS, key=GAMMAS.get)
    assert best == 2.0 and BEST_ALPHA[best] == 0.25
    near = GAMMAS[2.0] - GAMMAS[1.0]
    measure(f"γ = {best:g} is best on COCO; γ = 1 has {near:.1f} AP less, γ = 5 1.8 less")


@claim(
    "fpn_retinanet",
    16,
    626,
    says="p_t is p where the target is 1 and 1 − p where it is 0",
    verdict="true",
    paper="eq. 2",
)
def test_the_probability_of_the_truth(lesson, measure):
    z, y = torch.tensor([1.5, 1.5]), torch.tensor([1.0, 0.0])
    p = z.sigmoid()
    p_t = torch.stack([p[0], 1 - p[1]])
    loss = lesson.FocalLoss(None, 0.0, "none")(z, y)
    assert torch.allclose(loss, -p_t.log(), atol=1e-6)
    measure(f"p = {p[0]:.2f}: -log p_t = {loss[0]:.2f} for a 1 and {loss[1]:.2f} for a 0")


def kept(lesson, p_t, gamma=2.0, alpha=None):
    """Which part of its cross-entropy a positive with this p_t keeps."""
    z, one = torch.tensor([math.log(p_t / (1 - p_t))]), torch.ones(1)
    return ratio([lesson.FocalLoss(a, g)(z, one).item() for a, g in ((alpha, gamma), (None, 0.0))])


@claim(
    "fpn_retinanet",
    17,
    628,
    says="with γ = 2 an easy example, p_t = 0.9, has its loss reduced by 99 %",
    verdict="true",
    paper="“100× lower loss”, section 3.2",
)
def test_an_easy_example(lesson, measure):
    share = kept(lesson, 0.9)
    assert share == pytest.approx(0.01, rel=1e-3)
    measure(f"{1 - share:.0%}")


@claim(
    "fpn_retinanet",
    18,
    628,
    says="where p_t is low the factor approaches 1 and the full loss is preserved",
    verdict="imprecise",
    paper="at most 4× less for p_t ≤ 0.5 with γ = 2, section 3.2",
)
def test_what_hard_examples_keep(lesson, measure):
    shares = {p: kept(lesson, p) for p in (0.01, 0.1, 0.3, 0.5)}
    assert shares[0.01] > 0.97 and shares[0.5] == pytest.approx(0.25, rel=1e-3)
    measure(
        ", ".join(f"{share:.0%} at p_t = {p}" for p, share in shares.items())
        + f"; with α = 0.25 a quarter of that, {kept(lesson, 0.5, alpha=0.25):.0%} at 0.5"
    )


@claim(
    "fpn_retinanet",
    19,
    630,
    says="α = 0.25 compensates the imbalance, for the negatives are a thousand times as many",
    verdict="false",
    paper="the best α falls with γ, table 1b: 0.75 without focus",
)
def test_alpha_adds_to_the_imbalance(lesson, measure):
    shares = {a: ratio(lesson.crowd_losses(a, 0.0)["FL"]) for a in (0.25, 0.5, 0.75)}
    assert shares[0.25] > shares[0.5] > shares[0.75] and BEST_ALPHA[0.0] == 0.75
    measure(
        "easy negatives : hard positives of the crowd of line 678, without focus: "
        + ", ".join(f"{v:.0f} : 1 with α = {a}" for a, v in shares.items())
    )


@claim(
    "fpn_retinanet",
    20,
    632,
    says="the loss is averaged over all examples",
    verdict="contradicts",
    paper="divided by the number of anchors with an object, not by all, section 4.1",
)
def test_a_mean_over_all_anchors_whispers(lesson, measure):
    z = torch.zeros(1000, 80, dtype=torch.float64, requires_grad=True)  # COCO's classes
    y = torch.zeros(1000, 80)
    y[0, 0] = 1  # one anchor in a thousand
    (by_mean,) = torch.autograd.grad(lesson.FocalLoss()(z, y), z)
    (by_positives,) = torch.autograd.grad(lesson.FocalLoss(reduction="sum")(z, y) / 1, z)
    times = (by_positives.norm() / by_mean.norm()).item()
    assert times == pytest.approx(80 * 1000, rel=1e-3)
    measure(
        "the mean's gradient is smaller by anchors × classes / positives, "
        f"{80 * 1000:,} here; line 1040 sums and divides by the positives, too"
    )


@claim(
    "fpn_retinanet",
    21,
    632,
    says="it takes the inputs of cross-entropy and returns a scalar: a drop-in replacement",
    verdict="imprecise",
    paper="of binary cross-entropy, class by class, section 3",
)
def test_what_it_can_replace(lesson, measure):
    index = torch.tensor([2, 0])
    F.cross_entropy(torch.zeros(2, 3), index)
    with pytest.raises(ValueError, match="equal shapes"):
        lesson.FocalLoss()(torch.zeros(2, 3), index)
    z, y = torch.randn(9, 3), F.one_hot(torch.arange(9) % 3, 3).float()
    half = lesson.FocalLoss(0.5, 0.0)(z, y) / F.binary_cross_entropy_with_logits(z, y)
    assert half.item() == pytest.approx(0.5, rel=1e-4)
    measure("of the binary one, for zeros and ones; it refuses the class indices of cross_entropy")


# ---------------------------------------------------------------- its pictures, lines 634 to 646
@claim(
    "fpn_retinanet",
    22,
    638,
    says="at p = 0.9 cross-entropy is about 0.1 and the focal loss 0.001, a hundredth",
    verdict="true",
)
def test_two_losses_at_nine_tenths(lesson, measure):
    z, one = torch.tensor([math.log(9.0)]), torch.ones(1)
    ce, fl = (lesson.FocalLoss(None, gamma)(z, one).item() for gamma in (0.0, 2.0))
    assert ce == pytest.approx(0.105, abs=1e-3) and ce / fl == pytest.approx(100, rel=1e-3)
    measure(f"{ce:.4f} and {fl:.6f}, {ce / fl:.0f} : 1")


@claim(
    "fpn_retinanet",
    23,
    642,
    says="the factor at p = 0.9 is 1, 0.01 and 0.00001 for γ = 0, 2 and 5",
    verdict="true",
)
def test_three_factors(lesson, measure):
    factors = [kept(lesson, 0.9, gamma) for gamma in (0.0, 2.0, 5.0)]
    assert factors == pytest.approx([1, 1e-2, 1e-5], rel=1e-2)
    measure(", ".join(f"{factor:.5f}" for factor in factors))


@claim(
    "fpn_retinanet",
    24,
    644,
    says="under cross-entropy 99.9 % easy negatives contribute 836 and 0.1 % hard positives 1",
    verdict="false",
)
def test_the_bars_of_cross_entropy(lesson, measure):
    found = {s: ratio(lesson.crowd_losses(spread=s)["CE"]) for s in (0.0, 0.5, 1.0, 3.0)}
    pencil = 99_900 * math.log1p(math.exp(-3)) / (100 * math.log1p(math.e))
    assert found[0.0] == pytest.approx(pencil, rel=1e-3)
    assert max(found.values()) < ratio(TEXT_CE) / 2
    measure(
        "with the logits of line 678 "
        + ", ".join(f"{v:.0f} : 1 (spread {s:g})" for s, v in found.items())
    )


@claim(
    "fpn_retinanet",
    25,
    644,
    says="under the focal loss the easy contribute 0.3 and the hard 1.2, which lead by 4 to 1",
    verdict="false",
)
def test_the_bars_of_the_focal_loss(lesson, measure):
    z, y = torch.randn(5000) * 5, (torch.rand(5000) < 0.5).float()
    parts = [lesson.FocalLoss(a, g, "none")(z, y) for a, g in ((0.25, 2.0), (None, 0.0))]
    assert (parts[0] <= parts[1]).all()  # so 1 cannot become 1.2
    assert TEXT_FL[1] > TEXT_CE[1]
    still, spread = (lesson.crowd_losses(spread=s)["FL"] for s in (0.0, 1.0))
    assert ratio(still) < 1 < ratio(spread)
    measure(
        f"no loss can grow; computed {still[0]:.1f} and {still[1]:.1f}, the hard lead by "
        f"{1 / ratio(still):.1f}; with a spread of 1 the easy lead by {ratio(spread):.1f}"
    )


# ---------------------------------------------------------------- the subnets, lines 648 to 658
@claim(
    "fpn_retinanet",
    26,
    652,
    says="two subnets, shared by all levels: fewer parameters, and patterns recur at all scales",
    verdict="true",
    paper="section 4; FPN's section 4.1 found unshared heads about as good",
)
def test_one_head_for_all_levels(lesson, measure):
    head = lesson.SimpleRetinaNet(5, 3, 8, depth=1)
    p = torch.randn(1, 8, 4, 4)
    classes, boxes = head([p, p])
    assert torch.equal(classes[0], classes[1]) and torch.equal(boxes[0], boxes[1])
    with torch.device("meta"):
        shared = sum(q.numel() for q in lesson.SimpleRetinaNet().parameters()) / 1e6
    measure(f"{shared:.1f} million parameters; one pair for each of five levels {5 * shared:.0f}")


@claim(
    "fpn_retinanet",
    27,
    654,
    says="each subnet: four 3 × 3 convolutions of 256 channels with ReLU, one of A · K or A · 4",
    verdict="true",
    paper="the same, section 4, with A = 9",
)
def test_layers_of_the_subnets(lesson, measure):
    with torch.device("meta"):
        head = lesson.SimpleRetinaNet()
    for subnet, outputs in ((head.cls_subnet, 9 * 80), (head.box_subnet, 9 * 4)):
        convs = [m for m in subnet if isinstance(m, nn.Conv2d)]
        assert [c.out_channels for c in convs] == [256] * 4 + [outputs]
        assert all(c.kernel_size == (3, 3) for c in convs)
    measure("256, 256, 256, 256, then 720 or 36")


# ---------------------------------------------------------------- the start, lines 660 to 664
@claim(
    "fpn_retinanet",
    28,
    662,
    says="weights from N(0, 0.01²), biases 0, and −log((1 − π)/π) for the last of the classes, "
    "π = 0.01",
    verdict="true",
    paper="the same, section 4.1, upon a pretrained backbone",
)
def test_the_first_weights(lesson, measure):
    head = lesson.SimpleRetinaNet(channels=32)
    for subnet in (head.cls_subnet, head.box_subnet):
        for conv in (m for m in subnet if isinstance(m, nn.Conv2d)):
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    bias = head.cls_subnet[-1].bias
    assert torch.allclose(bias, torch.tensor(-math.log(99.0)))
    assert not head.box_subnet[-1].bias.any()
    measure(f"bias {bias[0].item():.3f}, whose sigmoid is {bias[0].sigmoid().item():.2f}")


@claim(
    "fpn_retinanet",
    29,
    664,
    says="the initial 0.01 matches the frequency of the class, 0.1 % by the same line",
    verdict="contradicts",
    paper="results are insensitive to π, section 4.1",
)
def test_one_per_cent_is_not_one_per_mille(lesson, measure):
    bias = lesson.prior_bias(0.001)
    assert 0.01 == 10 * 0.001 and bias == pytest.approx(-6.907, abs=1e-3)
    measure(f"ten times as much; 0.1 % would be a bias of {bias:.2f}")


@claim(
    "fpn_retinanet",
    30,
    664,
    says="without the prior the network says 0.5 everywhere, and the loss is massive",
    verdict="true",
    paper="cross-entropy without it diverges, section 5.1",
)
def test_the_loss_before_the_first_step(lesson, measure):
    said = []
    for name, loss in (("cross-entropy", (None, 0.0)), ("focal loss", (0.25, 2.0))):
        values = [
            lesson.FocalLoss(*loss, "sum")(
                torch.full((100_000,), lesson.prior_bias(pi)), torch.zeros(100_000)
            ).item()
            for pi in (0.5, 0.01)
        ]
        assert values[0] > 60 * values[1]
        said.append(f"{name} {values[0]:,.0f}, with the prior {values[1]:,.2f}")
    measure("100,000 background anchors: " + "; ".join(said))


# ---------------------------------------------------------------- many scales, lines 666 to 672
@claim(
    "fpn_retinanet",
    31,
    668,
    says="the subnets receive a list of P3, P4, P5 and further levels, five in all (line 672)",
    verdict="contradicts",
    paper="P3 to P7, section 4",
)
def test_the_pyramid_has_three_levels(lesson, features, measure):
    with torch.no_grad():
        levels = len(lesson.SimpleFPN((16, 24, 32), 8)(features))
    assert levels == 3
    measure(f"SimpleFPN, as line 556 has it, returns {levels}; P6 and P7 are never built")


def anchors_at(size, levels):
    return 9 * sum(math.prod(math.ceil(n / 2**level) for n in size) for level in levels)


@claim(
    "fpn_retinanet",
    32,
    672,
    says="nine anchors on five levels may be more than 100,000 predictions per image",
    verdict="imprecise",
    paper="about 100k at 600 px, section 4.1",
)
def test_how_many_anchors(measure):
    large = anchors_at((600, 1000), range(3, 8))
    small = [anchors_at((224, 224), range(3, last)) for last in (6, 8)]
    assert large > 100_000 and small == [9261, 9441]
    measure(
        f"{large:,} at 600 × 1000; at the text's 224 px {small[0]:,}, on five levels {small[1]:,}"
    )


@claim(
    "fpn_retinanet",
    33,
    672,
    says="such density is only tractable because of the focal loss",
    verdict="imprecise",
    paper=f"cross-entropy {GAMMAS[0.0]}, focal {GAMMAS[2.0]}; mining {MINING}, focal {FOCAL_101} "
    "(ResNet-101), table 1",
)
def test_cross_entropy_trains_too(measure):
    ce, focal = (recorded_mean("04_fpn_retinanet", name) for name in ("cross-entropy", "main"))
    assert ce > 0.5 and GAMMAS[0.0] > 30
    measure(f"on our shapes cross-entropy with the prior {ce:.3f}, the focal loss {focal:.3f}")


# ---------------------------------------------------------------- its effect, lines 674 to 684
@claim(
    "fpn_retinanet",
    34,
    676,
    says="100,000 anchors with 100 positives, 1000 : 1, are typical",
    verdict="true",
    paper="“e.g., 1:1000”, section 3",
)
def test_a_thousand_to_one(measure):
    exact = (100_000 - 100) / 100
    assert exact == 999
    measure(f"{exact:.0f} : 1")


@claim(
    "fpn_retinanet",
    35,
    678,
    says="easy negatives are logits around +3, sure that they are background",
    verdict="contradicts",
    paper="a logit speaks for the object, eq. 2",
)
def test_a_logit_of_three_is_sure_of_an_object(lesson, measure):
    z = torch.tensor([3.0])
    as_object = lesson.FocalLoss(None, 0.0)(z, torch.zeros(1)).item()
    as_truth = lesson.FocalLoss(None, 0.0)(-z, torch.zeros(1)).item()
    assert as_object > 3 and as_truth < 0.05
    measure(
        f"by line 626 a negative of +3 is a confident false alarm, cross-entropy {as_object:.2f}; "
        f"only as a logit of the truth is it easy, {as_truth:.3f}"
    )


@claim(
    "fpn_retinanet",
    36,
    680,
    says="cross-entropy is never content: even 99 % confidence costs something",
    verdict="true",
)
def test_ninety_nine_per_cent_costs(measure):
    each = -math.log(0.99)
    assert 99_900 * each > 1000
    measure(f"{each:.4f} each, {99_900 * each:,.0f} for 99,900")


@claim(
    "fpn_retinanet",
    37,
    682,
    says="(1 − p)² takes about 99 % off the easy negatives and preserves the hard positives' loss",
    verdict="imprecise",
)
def test_what_each_group_keeps(lesson, measure):
    shares = {}
    for spread in (0.0, 1.0):
        plain, focal = (lesson.crowd_losses(a, 2.0, spread) for a in (0.5, 0.25))
        shares[spread] = [f / c for f, c in zip(focal["FL"], plain["CE"])]
    assert 1 - shares[0.0][0] > 0.99 > 1 - shares[1.0][0] and shares[0.0][1] < 0.2
    without_alpha = 2 * lesson.crowd_losses(0.5)["FL"][1] / lesson.crowd_losses()["CE"][1]
    assert 0.4 < without_alpha < 0.7
    measure(
        f"easy −{1 - shares[0.0][0]:.1%}, with a spread of 1 −{1 - shares[1.0][0]:.1%}; the hard "
        f"keep {without_alpha:.0%}, with α {shares[0.0][1]:.0%}"
    )


@claim(
    "fpn_retinanet",
    38,
    684,
    says="the factor depends exponentially on confidence",
    verdict="false",
    paper="(1 − p_t)^γ, eq. 4",
)
def test_a_power_is_not_an_exponential(lesson, measure):
    p = [0.2, 0.4, 0.6, 0.8]
    logs = [math.log(kept(lesson, q)) for q in p]
    slopes = [(b - a) / 0.2 for a, b in zip(logs, logs[1:])]  # equal if it were exponential
    against = [
        (b - a) / math.log((1 - y) / (1 - x)) for a, b, x, y in zip(logs, logs[1:], p, p[1:])
    ]
    assert max(slopes) - min(slopes) > 1 and against == pytest.approx([2, 2, 2], rel=1e-3)
    measure("a power of 1 − p_t: slope γ on doubly logarithmic axes; exponential only in γ")


# ---------------------------------------------------------------- legacy, lines 686 to 704
@claim(
    "fpn_retinanet",
    39,
    692,
    says="RetinaNet has 39.1 AP and beats Faster R-CNN's 36.2",
    verdict="true",
    paper="COCO test-dev, ResNet-101-FPN, table 2; 39.1 with scale jitter and longer training",
)
def test_the_published_pair(lesson, capsys, measure):
    with torch.device("meta"):
        lesson.demo_retinanet_complete()
    printed = capsys.readouterr().out
    assert "39.1" in printed and "36.2" in printed and FIGURE_2["Faster R-CNN"][0] == 36.2
    measure("published; at 800 px without the longer training 37.8")


@claim(
    "fpn_retinanet",
    40,
    692,
    says="it was the earliest one-stage detector to match two stages",
    verdict="true",
    paper="DSSD513, the best one-stage detector before, 33.2, table 2",
)
def test_the_best_before(measure):
    before, two_stage, now = 33.2, 36.2, 39.1
    assert before < two_stage < now
    measure(f"{before} < {two_stage} < {now}")


@claim(
    "fpn_retinanet",
    41,
    698,
    says="every modern detector uses FPN or a variant",
    verdict="false",
    paper="DETR: one map of stride 32 (Carion et al. 2020, section 3.2)",
)
def test_detectors_with_one_map(measure):
    from_lesson = load("05_yolo")
    with torch.no_grad():
        forms = from_lesson.YOLODetector().eval()(torch.zeros(1, 3, 128, 128))
    assert forms.shape[1:3] == (16, 16)
    measure("YOLO (05) answers from one map, DETR (08) reads one")


@claim(
    "fpn_retinanet",
    42,
    700,
    says="with the right loss one stage is both fast and accurate",
    verdict="imprecise",
    paper="figure 2",
)
def test_fast_or_more_accurate(measure):
    two, fast, good = FIGURE_2.values()
    assert fast[1] < two[1] < good[1] and fast[0] < two[0] < good[0]
    measure(
        f"{fast[1]} ms at {fast[0]} AP, {good[1]} at {good[0]}; Faster R-CNN {two[1]} at {two[0]}"
    )


@claim(
    "fpn_retinanet",
    43,
    702,
    says="DETR uses transformers but still needs features of several scales",
    verdict="contradicts",
    paper="one map; AP of small objects 20.5 against 26.6 (Carion et al. 2020, table 1)",
)
def test_detr_needs_one_map(measure):
    small = {"DETR": 20.5, "Faster R-CNN-FPN+": 26.6}
    assert small["DETR"] < small["Faster R-CNN-FPN+"]
    measure("line 1153 gives it one map, C5; it trains, and is weaker on small objects")


@claim(
    "fpn_retinanet",
    44,
    702,
    says="modern YOLO versions use variants of the focal loss",
    verdict="imprecise",
    paper="YOLOv3, section 4: “It dropped our mAP about 2 points”",
)
def test_yolov3_did_not_want_it(measure):
    measure("v3 tried it and lost about 2 mAP; later versions use other losses, or as an option")


@claim(
    "fpn_retinanet",
    45,
    702,
    says="FCOS builds on both without anchors; EfficientDet makes the pyramid bidirectional",
    verdict="true",
    paper="Tian et al. 2019, section 3; Tan et al. 2020, section 3",
)
def test_fcos_has_a_pyramid(measure):
    assert hasattr(load("07_fcos"), "FPN")
    measure("lecture 07 builds it")


def test_anchors_of_stride_32_fit_badly():
    """What the page says of large objects: the best anchor's IoU on a coarse map."""
    squares = torch.tensor([[x, x, x + 60.0, x + 60] for x in torch.arange(0, 60, 3).tolist()])
    fits = [
        box_iou(squares, grid_anchors((128 // s, 128 // s), s, (48, 68))).amax(dim=1).mean()
        for s in (16, 32)
    ]
    assert fits[0] > fits[1] + 0.05
