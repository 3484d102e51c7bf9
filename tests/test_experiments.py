"""The experiments' runner on a made-up lecture: resumable, nothing lost; resampled AP."""

import types
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import __main__ as command
from experiments import rates, resampling, runner
from experiments.outcome import Outcome
from helpers import lessons, records
from helpers.evaluation import coco_ap
from helpers.shapes import ShapesDataset, benchmark


def answers(seed: int, shift: float = 0.0, share: float = 1.0):
    """The true boxes of the held-out images, moved and thinned out, with random scores."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for target in benchmark("test").targets:
        keep = torch.rand(len(target["labels"]), generator=generator) < share
        boxes = target["boxes"][keep] + shift
        scores = torch.rand(len(boxes), generator=generator)
        found.append({"boxes": boxes, "scores": scores, "labels": target["labels"][keep]})
    return found


@pytest.fixture
def toy():
    """An experiment that trains nothing and counts its trainings."""
    module = types.ModuleType("toy")
    module.LECTURE, module.MODEL, module.trained = "05_yolo", "Toy", []
    module.VARIANTS = {"main": {}, "shifted": {"shift": 4.0}}

    def train(seed, **options):
        module.trained.append((seed, options))
        curve = [{"steps": 1, "seconds": 0.5, "AP": 0.1}]
        return Outcome(answers(seed, share=0.9, **options), 3, 1.5, 10, curve=curve)

    module.train = train
    return module


def test_each_row_is_written_as_it_is_made_and_a_second_call_goes_on(toy, tmp_path, capsys):
    whole = toy.train
    toy.train = lambda seed, **options: whole(seed, **options) if len(toy.trained) < 2 else 1 / 0
    with pytest.raises(ZeroDivisionError):  # killed in the middle
        runner.run(toy, folder=tmp_path)
    rows = runner.recorded(toy, tmp_path)
    assert [(row["variant"], row["seed"]) for row in rows] == [("main", 0), ("shifted", 0)]
    toy.train = whole
    assert runner.run(toy, folder=tmp_path) == 4 and len(toy.trained) == 6
    rows = runner.recorded(toy, tmp_path)
    assert [(r["variant"], r["seed"]) for r in rows] == [
        (v, s) for v in toy.VARIANTS for s in range(3)
    ]
    assert runner.run(toy, folder=tmp_path) == 0 and len(toy.trained) == 6
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("4 of 4: shifted, seed 2: AP 0.") and said[-1].endswith(
        "0 min to go"
    )


def test_a_row_says_how_it_was_made(toy, tmp_path):
    runner.run(toy, ["shifted"], [7], tmp_path)
    (row,) = runner.recorded(toy, tmp_path)
    assert (row["model"], row["variant"], row["seed"], row["steps"]) == ("Toy", "shifted", 7, 3)
    assert row["train_seconds"] == 1.5 and row["threads"] >= 1 and row["versions"]["torchvision"]
    assert len(row["resampled"]) == resampling.DRAWS and row["curve"][0]["AP"] == 0.1
    assert abs(np.mean(row["resampled"]) - row["AP"]) < 0.02


def test_a_record_that_cannot_be_read_is_not_overwritten(toy, tmp_path):
    path = tmp_path / "05_yolo.json"
    for text, said in (("[truncated", "json: left out"), ('[{"notebook": "05_yolo"}]', "is wrong")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            runner.run(toy, folder=tmp_path)
        assert path.read_text() == text and toy.trained == []


def test_rows_of_a_variant_that_is_gone_stay(toy, tmp_path):
    runner.run(toy, seeds=[0], folder=tmp_path)
    toy.VARIANTS = {"new": {}}
    runner.run(toy, seeds=[0], folder=tmp_path)
    rows = runner.recorded(toy, tmp_path)
    assert [row["variant"] for row in rows] == ["new", "main", "shifted"]


def test_an_unknown_variant_or_experiment_is_named(toy, tmp_path):
    with pytest.raises(ValueError, match="no variant 'shift' in 05_yolo; the choices are: 'main'"):
        runner.run(toy, ["shift"], folder=tmp_path)
    (tmp_path / "04_toy.py").write_text("LECTURE = '04_toy'")
    assert (
        runner.load("04", tmp_path).LECTURE == runner.load("04_toy", tmp_path).LECTURE == "04_toy"
    )
    with pytest.raises(ValueError, match="no experiment 'toy'; the choices are: 04_toy"):
        runner.load("toy", tmp_path)


def test_a_row_is_compared_with_its_record(toy, tmp_path):
    with pytest.raises(ValueError, match="no record"):
        runner.compare(toy, 0, tmp_path)
    runner.run(toy, folder=tmp_path)
    turns = [runner.compare(toy, turn, tmp_path) for turn in (0, 5, 6)]
    assert turns[0] == turns[2] and "main, seed 0" in turns[0] and "shifted, seed 2" in turns[1]
    toy.train = lambda seed, **_: Outcome(answers(seed, shift=4.0), 3, 1.5, 10)  # it has become bad
    with pytest.raises(ValueError, match="main, seed 0: AP 0"):
        runner.compare(toy, 0, tmp_path)


def test_the_command_line(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "load", lambda name: toy)
    monkeypatch.setattr(runner, "EXPERIMENTS", tmp_path)
    for function in (runner.run, runner.recorded, runner.compare):
        defaults = tuple(tmp_path if d == records.EXPERIMENTS else d for d in function.__defaults__)
        monkeypatch.setattr(function, "__defaults__", defaults)
    assert command.main(["05", "--seeds", "0", "--variants", "main"]) == 0
    assert "05_yolo: 1 rows made" in capsys.readouterr().out
    assert command.main(["05", "--list"]) == 0
    said = capsys.readouterr().out
    assert "missing: seeds 1, 2" in said and "missing: seeds 0, 1, 2" in said
    assert command.main(["05", "--compare"]) == 0
    assert command.main(["05", "--variants", "none"]) == 1
    assert "no variant 'none'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        command.main(["05", "--seeds", "x"])
    assert stopped.value.code == 2


# ---------------------------------------------------------------- the experiments of the lectures


EXPERIMENTS = {name: runner.load(name) for name in runner.names()}
EVERY_EXPERIMENT = pytest.mark.parametrize("module", EXPERIMENTS.values(), ids=EXPERIMENTS)
OF_THEIR_OWN = ("01_rcnn", "10_your_own_data")  # three ways of training; photographs (test_nb10.py)
BY_STEPS = [name for name in EXPERIMENTS if name not in OF_THEIR_OWN]
VARIANTS = [(name, v) for name in BY_STEPS for v in EXPERIMENTS[name].VARIANTS]


@EVERY_EXPERIMENT
def test_an_experiment_is_that_of_its_lesson(module):
    assert EXPERIMENTS[module.LECTURE] is module
    assert module.LECTURE == Path(module.lesson.__file__).stem
    assert list(module.VARIANTS)[0] == "main"
    assert [variant for variant, options in module.VARIANTS.items() if not options] == ["main"]
    assert module.STEPS == module.lesson.CPU_STEPS  # the full length of the lesson's training


@EVERY_EXPERIMENT
def test_the_page_shows_only_variants_that_there_are(module):
    cells = lessons.read(lessons.find(module.LECTURE)).cells
    shown = set()

    def table(lecture, variants=(), **_):
        shown.update((variants or module.VARIANTS) if lecture == module.LECTURE else ())

    names = {"tables": types.SimpleNamespace(experiment_table=table)}
    for cell in cells:
        if cell.cell_type == "code" and "experiment_table(" in cell.source:
            exec(cell.source, names)  # noqa: S102
    assert "main" in shown and shown - set(module.VARIANTS) == set()


def around(data):
    """Regions of each image: its objects, shifted by some pixels."""
    shifts = torch.tensor([[-3.0], [-2], [-1], [1], [2], [3], [40]])
    return [(t["boxes"][:, None] + shifts).clamp(0, 127).view(-1, 4) for t in data.targets]


def shorten(module, monkeypatch):
    """Two steps, six images to train on, three to test on; objects at the border, one long."""
    train_set, test_set = ShapesDataset(6, seed=3), ShapesDataset(3, seed=4)
    for target in train_set.targets:
        target["boxes"][0] = torch.tensor([0.0, 40, 12, 52])
    train_set.targets[-1]["boxes"][-1] = torch.tensor([20.0, 60, 92, 90])
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(module.lesson, "train_set", train_set)
    monkeypatch.setattr(module.lesson, "test_set", test_set)
    if hasattr(module.lesson, "train_regions"):
        monkeypatch.setattr(module.lesson, "train_regions", around(train_set))
        monkeypatch.setattr(module.lesson, "test_regions", around(test_set))


def outcome_and_histories(module, variant):
    """What the training of a variant returns, and the columns of its histories."""
    kept, fit = [], module.lesson.training.fit

    def watched(*arguments, **options):
        kept.append(fit(*arguments, **options))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.lesson.training, "fit", watched)
        outcome = module.train(0, **module.VARIANTS[variant])
    return outcome, [history.columns() for history in kept]


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_every_variant_trains_and_is_another_one(monkeypatch, name, variant):
    module = EXPERIMENTS[name]
    shorten(module, monkeypatch)
    outcome, histories = outcome_and_histories(module, variant)
    assert sum(len(next(iter(columns.values()))) for columns in histories) == 2
    assert all(np.isfinite(v).all() for columns in histories for v in columns.values())
    assert (outcome.steps, len(outcome.detections)) == (2, 3) and outcome.seconds > 0
    assert outcome.parameters > 1000 and outcome.ms_per_image > 0
    for found in outcome.detections:
        assert all(value.isfinite().all() for value in found.values())
    own, others = outcome_and_histories(module, "main")
    pairs = zip(outcome.detections, own.detections)
    same = histories == others and all(torch.equal(a["boxes"], b["boxes"]) for a, b in pairs)
    assert same == (variant == "main")


def test_learning_rates_are_compared_on_the_validation_images(monkeypatch, capsys):
    module = runner.load("06")
    shorten(module, monkeypatch)
    monkeypatch.setattr(rates, "load", lambda name: module)
    monkeypatch.setattr(rates, "benchmark", lambda split: {"val": ShapesDataset(3, seed=5)}[split])
    rates.main(["06", "--rates", "0.001", "0.01", "--steps", "2"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": AP")[0] for line in said] == ["main, rate 0.001", "main, rate 0.01"]
    assert all(line.endswith("after 2 steps") for line in said)


@pytest.fixture(scope="module")
def rcnn():
    """Lecture 01's experiment on eight images to train on and three to test on, two steps each."""
    module = EXPERIMENTS["01_rcnn"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"STEPS": 2, "HELD_OUT": 3, "READ": 2}.items():
            patch.setattr(module, name, value)
        patch.setattr(module.lesson, "few", lambda count, seed: np.arange(8))
        patch.setattr(module, "milliseconds", lambda detector, own: 1.0)
        yield module
        for part in (module.extractor, module.regions, module.table, module.tuned, module.known):
            part.cache_clear()


@pytest.mark.parametrize("variant", EXPERIMENTS["01_rcnn"].VARIANTS)
def test_every_variant_of_rcnn_answers_and_is_another_one(rcnn, variant):
    main, outcome = (rcnn.train(0, **rcnn.VARIANTS[v]) for v in ("main", variant))
    assert outcome.steps == (0 if "no stage 1" in variant else 2) and outcome.seconds > 0
    assert len(outcome.detections) == 3 and outcome.parameters > 3_000_000
    for found in outcome.detections:
        assert len(found["scores"]) and all(value.isfinite().all() for value in found.values())
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= 128).all()
    pairs = [(a[k], b[k]) for a, b in zip(main.detections, outcome.detections) for k in a]
    same = all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
    assert same == (variant == "main")


def test_the_answers_of_rcnn_are_those_of_its_detections(rcnn):
    kept = rcnn.train(0).weights
    total = int(kept["counts"].sum())
    assert len(kept["counts"]) == 2
    shapes = {name: tuple(kept[name].shape) for name in ("regions", "moved", "scores")}
    assert shapes == {"regions": (total, 4), "moved": (total, 12), "scores": (total, 3)}


def test_labels_for_a_softmax_are_those_of_the_svms(rcnn):
    overlaps = np.array([[1, 0], [0.1, 1], [0.7, 0], [0.2, 0.1], [1.0, 0]])
    table = rcnn.lesson.TrainingTable(None, None, overlaps, None, np.array([1, 1, 0, 0, 0], bool))
    assert rcnn.strict_classes(table).tolist() == [0, 1, -1, 2, -1]
    for c in (0, 1):
        own = rcnn.lesson.svm_labels(table, c) == 1
        assert (own == (rcnn.strict_classes(table) == c)).all()
    assert rcnn.overlap_above(0.5)(table, 0).tolist() == [1, 0, 1, 0, 1]


@pytest.fixture
def yolo():
    return EXPERIMENTS["05_yolo"]


def yolo_forms(cells=4, images=2):
    """Forms of two boxes each and targets, with an object in about half of the cells."""
    forms, targets = torch.rand(images, cells, cells, 2, 8), torch.rand(images, cells, cells, 8)
    targets[..., 4] = (torch.rand(images, cells, cells) < 0.5).float()
    return forms.requires_grad_(), targets * targets[..., 4:5]


def test_always_box_0_trains_box_0_alone(yolo):
    forms, targets = yolo_forms()
    has = targets[..., 4] == 1
    sum(yolo.AlwaysBox0()(forms, targets).values()).backward()
    assert (forms.grad[has][:, 0, :4] != 0).all() and not forms.grad[..., 1, :4].any()
    assert not forms.grad[~has][..., :4].any()
    assert (forms.grad[..., 1, 4] > 0).all()  # box 1 is told to be silent everywhere
    assert yolo.AlwaysBox0().responsible(torch.zeros(0, 2)).shape == (0, 2)


@pytest.mark.parametrize("name, goal", [("ConfidenceOne", 1.0), ("AlwaysBox0ConfidenceOne", 1.0)])
def test_a_responsible_box_should_be_sure(yolo, name, goal):
    criterion, (forms, targets) = getattr(yolo, name)(), yolo_forms()
    has = targets[..., 4] == 1
    parts = criterion(forms, targets)
    parts["conf_obj"].backward()
    pulled = forms.grad[..., 4] != 0
    assert torch.equal(pulled.sum(dim=-1), has.long())
    assert parts["conf_obj"].item() == pytest.approx(
        ((forms[..., 4][pulled] - goal) ** 2).sum().item() / len(forms), rel=1e-4
    )
    assert "Box0" not in name or not pulled[..., 1].any()


def test_the_linear_network_begins_where_the_sigmoids_do(yolo):
    images = torch.randn(2, 3, 128, 128)
    nets = yolo.LinearYOLO().eval(), yolo.lesson.YOLODetector().eval()
    with torch.no_grad():
        for net in nets:
            net.head[-1].weight.zero_()
        linear, bent = (net(images) for net in nets)
    torch.testing.assert_close(linear, bent)


def test_the_linear_network_is_linear(yolo):
    net, raw = yolo.LinearYOLO(), 5 * torch.randn(2, 4, 4, 2, 8)
    forms = net.activate(raw)
    assert torch.equal(forms[..., [0, 1, 4, 5, 6, 7]], raw[..., [0, 1, 4, 5, 6, 7]])
    assert torch.equal(forms[..., 2:4], raw[..., 2:4] ** 2)  # its root is what it puts out


@pytest.mark.parametrize("cells", [8, 4])
def test_coarser_grids_have_coarser_forms(yolo, cells):
    net = yolo.lesson.YOLODetector(**yolo.VARIANTS[f"{cells} × {cells} cells"]["model"]).eval()
    images = torch.zeros(2, 3, 128, 128)
    assert net(images).shape == (2, cells, cells, 2, 8)
    boxes, labels = [torch.tensor([[60.0, 60, 70, 70]])] * 2, [torch.tensor([1])] * 2
    _, targets = yolo.lesson.forms_of(net, images, boxes, labels)
    assert targets.shape == (2, cells, cells, 8) and targets[..., 4].sum() == 2


def test_sizes_in_images_count_less_by_the_cells(yolo):
    torch.manual_seed(0)
    forms, targets = torch.rand(2, 4, 4, 2, 8), torch.rand(2, 4, 4, 8).round()
    ours, theirs = (loss()(forms, targets) for loss in (yolo.lesson.YOLOLoss, yolo.SizesInImages))
    assert theirs.pop("wh").item() == pytest.approx(ours.pop("wh").item() / 4) and theirs == ours


# ---------------------------------------------------------------- resampling


@pytest.mark.parametrize("shift, share", [(0.0, 1.0), (3.0, 0.8), (60.0, 0.9)])
def test_images_counted_once_give_the_official_ap(shift, share):
    found, targets = answers(3, shift, share), benchmark("test").targets
    found[0]["labels"] = (found[0]["labels"] + 1) % 3  # some wrong classes
    found[1] = {k: torch.cat([v, v]) for k, v in found[1].items()}  # and duplicates
    ones = np.ones((2, len(targets)), int)
    ap = resampling.weighted_ap(found, targets, ones)
    assert ap == pytest.approx(coco_ap(found, targets)["AP"], abs=1e-9)


def test_an_image_drawn_twice_is_an_image_twice():
    found, targets = answers(4, 3.0, 0.7)[:40], benchmark("test").targets[:40]
    weights = np.bincount([0, 0, *range(5, 40), 7, 7], minlength=40)
    # Twins of equal scores: COCO's order among equals is that of the images.
    twins = [i for i, weight in enumerate(weights) for _ in range(weight)]
    official = coco_ap([found[i] for i in twins], [targets[i] for i in twins])["AP"]
    (ap,) = resampling.weighted_ap(found, targets, weights[None])
    assert ap == pytest.approx(official, abs=2e-3)


def test_draws_are_the_same_for_all_and_spread_as_they_should():
    found, targets = answers(5, 3.0, 0.8), benchmark("test").targets
    first, again = (resampling.resampled_ap(found, targets, draws=50) for _ in range(2))
    assert (first == again).all() and 0.001 < first.std() < 0.05
    better = resampling.resampled_ap(answers(5, 2.0, 0.8), targets, draws=50)
    unpaired = np.hypot(better.std(), first.std())
    assert (better - first).std() < 0.5 * unpaired  # the same images are hard for both


def test_a_detector_that_says_nothing_has_no_ap():
    targets = benchmark("test").targets
    nothing = [
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    ]
    assert (resampling.resampled_ap(nothing * len(targets), targets, draws=3) == 0).all()


def test_one_box_given_twice_is_no_pair_of_twins():
    module = EXPERIMENTS["08_detr"]
    a, b = torch.tensor([[10.0, 10, 40, 40], [16, 10, 46, 40]]).split(1)
    target = [{"boxes": torch.cat([a, b]), "labels": torch.tensor([1, 1])}]

    def share(*boxes, score=0.9, label=1):
        count = len(boxes)
        boxes = torch.cat(boxes) if count else torch.zeros(0, 4)
        found = {"boxes": boxes, "scores": torch.full((count,), score)}
        return module.pairs_found([found | {"labels": torch.full((count,), label)}], target)

    assert share(a, b) == share(b, a, a) == 1
    assert share() == share(a) == share(a, a) == share(b, b) == 0
    assert share(a, b, score=0.4) == share(a, b, label=0) == 0
    assert share(a, b + 100) == 0


def test_of_twins_each_gets_the_locations_nearer_to_its_middle():
    module = EXPERIMENTS["08_detr"]
    at, stride = module.other.all_locations(128, 128)
    boxes = torch.tensor([[40.0, 40, 60, 60], [46, 40, 66, 60]])
    match = module.nearest_first(at, stride, boxes)
    alone = [module.other.assign(at, stride, box[None]) >= 0 for box in boxes]
    nearer = torch.cdist(at, (boxes[:, :2] + boxes[:, 2:]) / 2).argmin(dim=1)
    contested = alone[0] & alone[1]
    assert contested.any() and torch.equal(match[contested], nearer[contested])
    assert torch.equal(match >= 0, alone[0] | alone[1])
    assert match[match >= 0].bincount(minlength=2).min() >= 4
    uneven = torch.tensor([[40.0, 40, 60, 60], [46, 40, 67, 60]])  # then the smaller one is first
    plain = module.other.assign(at, stride, uneven)
    assert torch.equal(module.nearest_first(at, stride, uneven), plain)
