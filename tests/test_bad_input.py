"""Bad input to every public function of helpers/: an error that names the argument and what it got.

The modules' own tests try more of it; here no function may be forgotten.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import tensor

import helpers
from helpers import (
    anchors,
    augmentation,
    boxes,
    datasets,
    detectors,
    evaluation,
    explore,
    features,
    figures,
    lessons,
    photos,
    plotting,
    proposals,
    records,
    setup,
    shapes,
    tables,
    training,
)

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")
BOX = tensor([[1.0, 2, 3, 4]])
SCORE, LABEL = tensor([0.5]), tensor([0])
IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
FOUND = {"boxes": BOX, "scores": SCORE, "labels": LABEL}
TRUTH = {"boxes": BOX, "labels": LABEL}
ROW = {
    "notebook": "05_yolo",
    "model": "YOLO",
    "variant": "main",
    "metrics": {},
    "parameters": 1,
    "steps": 1,
    "train_seconds": 1.0,
    "ms_per_image": 1.0,
}
SOME_DATA = shapes.ShapesDataset(2)
NO_DATA = shapes.ShapesDataset(0)
BAD_DATA = shapes.ShapesDataset(1)
BAD_DATA.targets = [{}]
OPTIMIZER = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def draw(size=1):
    return plt.figure()


def ax():
    return plt.figure().add_subplot()


def first(items):
    return next(iter(items))


def with_boxes(function, *others, name="boxes", ordered=True):
    """What every argument of boxes must refuse, `function` being given it first."""
    cases = {
        "list": ([[1.0, 2, 3, 4]], f"{name} must be a torch tensor"),
        "shape": (torch.zeros(4), rf"{name} must have shape \(N, 4\), got \(4,\)"),
        "columns": (torch.zeros(2, 5), rf"{name} must have shape \(N, 4\), got \(2, 5\)"),
        "truth values": (BOX > 0, f"{name} must hold real numbers"),
        "NaN": (tensor([[1.0, 2, NAN, 4]]), f"{name} must be finite, row 0 is"),
        "infinite": (tensor([[1.0, 2, 3, 4], [0, 0, INF, 4]]), f"{name} must be finite, row 1 is"),
    }
    if ordered:
        cases["reversed"] = (tensor([[3.0, 2, 1, 4]]), f"{name} must have x1 <= x2")
    return {
        key: (lambda bad=bad: function(bad, *others), message)
        for key, (bad, message) in cases.items()
    }


def row(**change):
    return records.make_row(**ROW | change)


def finished_row(**change):
    return records.make_row(**ROW) | change


CASES = {
    "anchors.grid_anchors": {
        "empty grid": (lambda: anchors.grid_anchors((0, 4), 8, [16]), "feature_size must be"),
        "one number": (lambda: anchors.grid_anchors((4,), 8, [16]), "feature_size must be"),
        "half a row": (lambda: anchors.grid_anchors((4, 1.5), 8, [16]), "feature_size must be"),
        "stride": (lambda: anchors.grid_anchors((4, 4), 0, [16]), "stride must be positive"),
        "no size": (lambda: anchors.grid_anchors((4, 4), 8, []), "sizes must be positive"),
        "ratio": (lambda: anchors.grid_anchors((4, 4), 8, [16], [-1.0]), "aspect_ratios must be"),
    },
    "augmentation.flip_and_recolour": {
        "shape": (
            lambda: augmentation.flip_and_recolour(torch.zeros(3, 8, 8)),
            r"images must be \(B, 3, H, W\), got torch.float32 \(3, 8, 8\)",
        ),
        "lengths": (
            lambda: augmentation.flip_and_recolour(IMAGES, [BOX]),
            r"boxes\[0\] must have one tensor per image \(2\), got 1",
        ),
        "boxes": (
            lambda: augmentation.flip_and_recolour(IMAGES, [BOX, torch.zeros(4)]),
            r"boxes\[0\]\[1\] must have shape \(N, 4\), got \(4,\)",
        ),
        "array": (lambda: augmentation.flip_and_recolour(IMAGES.numpy()), "images .* got ndarray"),
    },
    "boxes.check_boxes": with_boxes(boxes.check_boxes),
    "boxes.check_numbers": {
        "list": (lambda: boxes.check_numbers([1], "x", 1), "x must be a torch tensor, got list"),
        "rows": (lambda: boxes.check_numbers(SCORE, "x", 2), r"shape \(2,\), got \(1,\)"),
        "columns": (lambda: boxes.check_numbers(BOX, "x", "N", 3), r"shape \(N, 3\), got \(1, 4\)"),
        "complex": (lambda: boxes.check_numbers(SCORE + 0j, "x", 1), "x must hold real numbers"),
        "NaN": (lambda: boxes.check_numbers(SCORE * NAN, "x", 1), "x must be finite, row 0 is nan"),
    },
    "boxes.check_count": {
        "two": (lambda: boxes.check_count([1, 2], 3, "as many"), r"as many \(3\), got 2"),
    },
    "boxes.check_sides": {
        "flat": (
            lambda: boxes.check_sides(tensor([[1.0, 2, 1, 4]]), "boxes", "encoded"),
            "boxes must have positive width and height to be encoded, row 0 is",
        ),
    },
    "boxes.refuse_rows": {
        "one": (lambda: boxes.refuse_rows(LABEL == 0, LABEL, "no zero"), "no zero, row 0 is 0"),
    },
    "boxes.encode_boxes": with_boxes(boxes.encode_boxes, BOX)
    | {
        "lengths": (lambda: boxes.encode_boxes(BOX, BOX[:0]), "must be as many as .* got 1"),
        "flat": (
            lambda: boxes.encode_boxes(BOX, tensor([[1.0, 2, 1, 4]])),
            "anchors must have positive width and height",
        ),
        "weights": (
            lambda: boxes.encode_boxes(BOX, BOX, (1, 1, 0, 1)),
            "weights must be four positive numbers",
        ),
    },
    "boxes.decode_boxes": with_boxes(boxes.decode_boxes, BOX, name="deltas", ordered=False)
    | {"lengths": (lambda: boxes.decode_boxes(BOX, BOX[:0]), "must be as many as .* got 1")},
    "datasets.check_images": {
        "list": (
            lambda: datasets.check_images([IMAGES]),
            "images must be a torch tensor, got list",
        ),
        "floats": (
            lambda: datasets.check_images(IMAGES / 2),
            "images must be uint8 .* got torch.fl",
        ),
        "no pixel": (
            lambda: datasets.check_images(IMAGES[..., :0], False),
            r"got .* \(2, 3, 8, 0\)",
        ),
    },
    "datasets.checked_targets": {
        "keys": (
            lambda: datasets.checked_targets([TRUTH, {"boxes": BOX}]),
            r"targets\[1\] must have \['boxes', 'labels'\], got \['boxes'\]",
        ),
        "label": (
            lambda: datasets.checked_targets([TRUTH | {"labels": LABEL + 3}], 3),
            r"targets\[0\]\['labels'\] must lie in 0..2, got \[3\], row 0 is 3",
        ),
        "flat": (
            lambda: datasets.checked_targets([TRUTH | {"boxes": tensor([[1.0, 2, 1, 4]])}]),
            r"targets\[0\]\['boxes'\] must have positive width and height to be trained on, row 0",
        ),
        "crowd": (
            lambda: datasets.checked_targets([TRUTH | {"iscrowd": LABEL + 1}]),
            r"targets\[0\]\['iscrowd'\] must not be set: leave crowds out.* row 0 is 1",
        ),
    },
    "datasets.checked_objects": {
        "keys": (
            lambda: datasets.checked_objects(TRUTH, "found", 3, ("boxes", "scores", "labels")),
            r"found must have \['boxes', 'scores', 'labels'\], got \['boxes', 'labels'\]",
        ),
    },
    "datasets.read_folder": {  # test_folders.py tries more
        "nowhere": (lambda: datasets.read_folder("nowhere"), "nowhere must hold photographs"),
    },
    "datasets.refuse_crowds": {
        "crowd": (lambda: datasets.refuse_crowds([{"iscrowd": LABEL + 1}]), "must not be set"),
    },
    "detectors.to_input": {
        "floats": (
            lambda: detectors.to_input(IMAGES.float(), CPU),
            r"images must be uint8 \(B, 3, H, W\), got torch.float32 \(2, 3, 8, 8\)",
        ),
        "one image": (lambda: detectors.to_input(IMAGES[0], CPU), r"got torch.uint8 \(3, 8, 8\)"),
        "array": (lambda: detectors.to_input(IMAGES.numpy(), CPU), "images must be .* got ndarray"),
    },
    "detectors.augmented_batches": {
        "no data": (
            lambda: first(detectors.augmented_batches(NO_DATA, 1, 0, CPU)),
            "count and batch_size must be at least 1, got 0 and 16",
        ),
        "batch": (
            lambda: first(detectors.augmented_batches(SOME_DATA, 1, 0, CPU, 0)),
            "count and batch_size must be at least 1, got 2 and 0",
        ),
        "targets": (
            lambda: first(detectors.augmented_batches(BAD_DATA, 1, 0, CPU)),
            r"targets\[0\] must have \['boxes', 'labels'\], got \[\]",
        ),
    },
    "detectors.detect_all": {
        "floats": (lambda: detectors.detect_all(list, IMAGES.float(), CPU), "images must be uint8"),
        "too few": (
            lambda: detectors.detect_all(lambda x: [FOUND], IMAGES, CPU),
            r"detect must return one dictionary per image \(2\), got 1",
        ),
    },
    "detectors.evaluate": {
        "too few": (
            lambda: detectors.evaluate(lambda x: [FOUND], SOME_DATA, CPU),
            r"detect must return one dictionary per image \(2\), got 1",
        ),
        "keys": (
            lambda: detectors.evaluate(lambda x: [TRUTH] * 2, SOME_DATA, CPU),
            r"detections\[0\] must have \['boxes', 'scores', 'labels'\], got",
        ),
        "label": (
            lambda: detectors.evaluate(
                lambda x: [FOUND | {"labels": LABEL + 3}] * 2, SOME_DATA, CPU
            ),
            r"detections\[0\]\['labels'\] must lie in 0..2, got \[3\]",
        ),
    },
    "detectors.ms_per_image": {
        "none": (lambda: detectors.ms_per_image(list, IMAGES[:0], CPU), "got 0 images, 2 rounds"),
        "rounds": (lambda: detectors.ms_per_image(list, IMAGES, CPU, 0), "got 2 images, 0 rounds"),
    },
    "evaluation.coco_ap": {
        "lengths": (
            lambda: evaluation.coco_ap([FOUND], []),
            r"must be as many as the targets \(0\), got 1",
        ),
        "keys": (
            lambda: evaluation.coco_ap([TRUTH], [TRUTH]),
            r"detections\[0\] must have \['boxes', 'scores', 'labels'\], got",
        ),
        "label": (
            lambda: evaluation.coco_ap([FOUND], [TRUTH | {"labels": tensor([3])}]),
            r"targets\[0\]\['labels'\] must lie in 0..2, got \[3\]",
        ),
        "NaN": (
            lambda: evaluation.coco_ap([FOUND | {"scores": tensor([NAN])}], [TRUTH]),
            r"detections\[0\]\['scores'\] must be finite",
        ),
        "box": (
            lambda: evaluation.coco_ap([FOUND | {"boxes": -BOX}], [TRUTH]),
            r"detections\[0\]\['boxes'\] must have x1 <= x2",
        ),
    },
    "evaluation.coco_eval": {
        "shape": (
            lambda: evaluation.coco_eval([FOUND | {"scores": tensor(0.5)}], [TRUTH]),
            r"detections\[0\]\['scores'\] must have shape \(1,\), got \(\)",
        ),
        "limit": (
            lambda: evaluation.coco_eval([FOUND], [TRUTH], max_detections=0),
            "max_detections must be at least 1, got 0",
        ),
    },
    "evaluation.error_counts": {
        "crowd": (
            lambda: evaluation.error_counts(FOUND, TRUTH | {"iscrowd": LABEL + 1}),
            r"targets\[0\]\['iscrowd'\] must not be set: leave crowds out",
        ),
        "labels": (
            lambda: evaluation.error_counts(FOUND | {"labels": SCORE}, TRUTH),
            r"detections\[0\]\['labels'\] must be integers, got torch.float32",
        ),
    },
    "explore.explore": {
        "name": (lambda: explore.explore(draw, sise=(0, 1, 1)), "ranges do not fit the arguments"),
        "reversed": (lambda: explore.explore(draw, size=(2, 1, 1)), "size: min 2 must be less"),
        "no option": (lambda: explore.explore(draw, size=[]), "size: the list of options is empty"),
        "text": (lambda: explore.explore(draw, size="big"), "size must be .* got 'big'"),
    },
    "features.PretrainedCNN": {
        "bytes": (
            lambda: features.load_pretrained()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)),
            r"images must be normalised floats .* got torch.uint8 \(1, 3, 64, 64\)",
        ),
        "small": (
            lambda: features.load_pretrained()(torch.zeros(1, 3, 31, 64)),
            r"at least 32, got torch.float32 \(1, 3, 31, 64\)",
        ),
    },
    "lessons.find": {
        "name": (lambda: lessons.find("yolov9"), "no notebook 'yolov9'; the choices are: 00_"),
    },
    "lessons.load": {"name": (lambda: lessons.load("99"), "no notebook '99'")},
    "lessons.read": {
        "file": (lambda: lessons.read(Path(__file__)), "test_bad_input.py is not a notebook"),
    },
    "photos.photo": {"name": (lambda: photos.photo("dog"), "name must be one of .* got 'dog'")},
    "photos.as_rgb": {
        "text": (lambda: photos.as_rgb("cat.png"), "image must be a NumPy array .* got str"),
        "shape": (lambda: photos.as_rgb(np.zeros((2, 2, 2))), r"got shape \(2, 2, 2\)"),
        "empty": (lambda: photos.as_rgb(np.zeros((0, 2, 3))), "at least one pixel"),
        "bright": (lambda: photos.as_rgb(np.full((2, 2), 255.0)), "must lie in 0..1"),
        "NaN": (lambda: photos.as_rgb(np.full((2, 2), NAN)), "must lie in 0..1"),
    },
    "plotting.as_image": {
        "batch": (lambda: plotting.as_image(IMAGES), r"image must be .* got shape \(2, 3, 8, 8\)"),
        "channels": (lambda: plotting.as_image(np.zeros((4, 4, 2))), r"got shape \(4, 4, 2\)"),
    },
    "plotting.draw_boxes": {
        "shape": (
            lambda: plotting.draw_boxes(ax(), torch.zeros(2, 5)),
            r"boxes must have shape \(N, 4\), got \(2, 5\)",
        ),
        "texts": (
            lambda: plotting.draw_boxes(ax(), BOX, ["a", "b"]),
            r"texts must .* \(1\), got 2",
        ),
    },
    "plotting.show_image": {
        "shape": (lambda: plotting.show_image(ax(), np.zeros(3)), r"got shape \(3,\)"),
    },
    "plotting.show_detections": {
        "keys": (
            lambda: plotting.show_detections(ax(), IMAGES[0], TRUTH),
            r"detection must have .*'scores'.* got \['boxes', 'labels'\]",
        ),
        "label": (
            lambda: plotting.show_detections(ax(), IMAGES[0], FOUND | {"labels": tensor([7])}),
            r"detection\['labels'\] must lie in 0..2, got \[7\]",
        ),
    },
    "plotting.image_grid": {
        "none": (lambda: plotting.image_grid(0), "count and columns must be at least 1, got 0"),
    },
    "plotting.plot_curves": {
        "x": (
            lambda: plotting.plot_curves(ax(), {"loss": [1, 2, 3]}, x=[1, 2]),
            r"x must have one entry per value of 'loss' \(3\), got 2",
        ),
        "smooth": (
            lambda: plotting.plot_curves(ax(), {"loss": [1, 2]}, smooth=0),
            "smooth must be at least 1, got 0",
        ),
    },
    "proposals.selective_search": {
        "array": (lambda: proposals.selective_search(IMAGES.numpy()), "images .* got ndarray"),
        "floats": (lambda: proposals.selective_search(IMAGES.float()), "got torch.float32"),
        "shape": (lambda: proposals.selective_search(IMAGES[0]), r"got torch.uint8 \(3, 8, 8\)"),
    },
    "proposals.benchmark_proposals": {
        "split": (
            lambda: proposals.benchmark_proposals("dev"),
            "split must be one of .* got 'dev'",
        ),
    },
    "records.make_row": {
        "no number": (lambda: row(metrics={"AP": "high"}), "AP: 'high' is not of type 'number'"),
        "metric": (lambda: row(metrics={"AP": 70.4}), "AP: 70.4 is greater than the maximum of 1"),
        "name": (lambda: row(model=""), "a row is wrong, model: ''"),
        "count": (lambda: row(steps=1.5), "steps: 1.5 is not of type 'integer'"),
        "seconds": (lambda: row(train_seconds=NAN), "train_seconds: nan is not of type"),
    },
    "records.write_records": {
        "name": (lambda: records.write_records("../x", []), "notebook must be a name .* '../x'"),
        "columns": (
            lambda: records.write_records("05_yolo", [{"AP": 1}]),
            "'notebook' is a required property",
        ),
        "stranger": (
            lambda: records.write_records("06_ssd", [finished_row()]),
            "a row of notebook '05_yolo' among those of '06_ssd'",
        ),
        "twice": (lambda: records.write_records("05_yolo", [finished_row()] * 2), "two rows for"),
    },
    "records.checked_row": {
        "text": (lambda: records.checked_row("x"), "'x' is not of type 'object'"),
        "object": (lambda: records.checked_row({"AP": CPU}), "must hold numbers and texts"),
    },
    "records.file_of": {
        "name": (lambda: records.file_of("a/b", ".pt"), "notebook must be a name .* got 'a/b'"),
    },
    "records.read_records": {
        "name": (lambda: records.read_records(None, ["a/b"]), "notebook must be a name"),
    },
    "records.save_weights": {
        "name": (lambda: records.save_weights("a/b", {}), "notebook must be a name .* 'a/b'"),
        "value": (
            lambda: records.save_weights("05_yolo", {"weight": 3}),
            "state_dict must hold tensors, 'weight' is int",
        ),
    },
    "records.load_weights": {
        "name": (lambda: records.load_weights("a/b"), "notebook must be a name .* got 'a/b'"),
    },
    "records.latest_records": {
        "name": (lambda: records.latest_records(["a/b"]), "notebook must be a name"),
    },
    "shapes.shape_mask": {
        "label": (lambda: shapes.shape_mask(3, (0, 0, 4, 4), 8), "label must lie in 0..2, got 3"),
        "flat": (lambda: shapes.shape_mask(0, (2, 0, 2, 4), 8), r"box must have .* \(2, 0, 2, 4\)"),
    },
    "shapes.make_scene": {
        "style": (
            lambda: shapes.make_scene(np.random.RandomState(0), "cubist"),
            "style must be one of .* got 'cubist'",
        ),
        "objects": (
            lambda: shapes.make_scene(np.random.RandomState(0), objects=-1),
            "objects must not be negative, got -1",
        ),
    },
    "shapes.ShapesDataset": {
        "count": (lambda: shapes.ShapesDataset(-1), "count must not be negative, got -1"),
        "seed": (lambda: shapes.ShapesDataset(1, seed=-1), "seed must lie in"),
        "style": (lambda: shapes.ShapesDataset(1, style="x"), "style must be one of .* got 'x'"),
    },
    "shapes.benchmark": {
        "split": (lambda: shapes.benchmark("dev"), "split must be one of .* got 'dev'"),
    },
    "tables.markdown_table": {
        "cells": (lambda: tables.markdown_table("ab", [["1"]]), "row 0 must have 2 cells, got 1"),
    },
    "tables.ap_table": {
        "metrics": (
            lambda: tables.ap_table({"YOLO": {"AP": 0.5}}),
            "the run 'YOLO' lacks AP50, AP75, AP_small, AP_medium, AP_large",
        ),
    },
    "tables.claims_table": {
        "cells": (lambda: tables.claims_table([("a", "b")]), "row 0 must have 3 cells, got 2"),
    },
    "tables.experiment_table": {
        "none": (
            lambda: tables.experiment_table("05_yolo", folder=Path("nowhere")),
            "nowhere/nowhere: no such folder",
        ),
        "name": (lambda: tables.experiment_table("a/b"), "notebook must be a name .* got 'a/b'"),
    },
    "tables.recorded_ap": {
        "none": (lambda: tables.recorded_ap("05_yolo", Path("nowhere")), "nowhere: no such folder"),
    },
    "tables.gathered_claims": {
        "file": (lambda: tables.gathered_claims(Path(__file__)), "is not a notebook"),
    },
    "training.seed_everything": {
        "negative": (lambda: training.seed_everything(-1), "seed must lie in 0..2"),
    },
    "training.budget": {
        "none": (lambda: training.budget(0), "cpu must be at least 1 step, got 0"),
    },
    "training.batches": {
        "count": (lambda: first(training.batches(0, 2, 1)), "at least 1, got 0 and 2"),
        "size": (lambda: first(training.batches(2, 0, 1)), "at least 1, got 2 and 0"),
    },
    "training.fit": {
        "steps": (
            lambda: training.fit(torch.nn.Linear(1, 1), dict, [], 0),
            "warmup must lie in 0..steps - 1, got 0 and 0 steps",
        ),
        "rate": (
            lambda: training.fit(torch.nn.Linear(1, 1), dict, [], 1, -1.0),
            "Invalid learning rate: -1.0",
        ),
    },
    "training.warmup_cosine": {
        "steps": (lambda: training.warmup_cosine(OPTIMIZER, 0), "warmup must lie in 0..steps - 1"),
        "warm-up": (lambda: training.warmup_cosine(OPTIMIZER, 5, 5), "got 5 and 5 steps"),
    },
}

# They raise something else than ValueError for a reason.
OTHER = {
    "proposals.selective_search_module": (
        proposals.selective_search_module,
        RuntimeError,
        "Selective search needs OpenCV",
    ),
    "records.latest_weights": (
        lambda: records.latest_weights("05_yolo", "nowhere", "nowhere"),
        FileNotFoundError,
        "no readable weights of 05_yolo",
    ),
    "records.load_weights": (
        lambda: records.load_weights("05_yolo", "nowhere"),
        FileNotFoundError,
        "05_yolo.pt",
    ),
    "training.History": (
        lambda: training.History().add(loss=NAN),
        FloatingPointError,
        "loss is nan at step 0",
    ),
    "setup.install_missing": (setup.install_missing, RuntimeError, "pip could not install"),
}

# Nothing that a reader hands over could be bad.
HARMLESS = {
    "datasets.PhotoDataset": "made by read_folder",
    "datasets.coco_annotations": "entries that were checked",
    "datasets.write_coco": "a data set that was read",
    "detectors.now": "a device",
    "features.load_pretrained": "no argument",
    "exercises.patient": "its very purpose is to survive any answer (test_exercises.py)",
    "lessons.notebooks": "a folder; an empty one has no notebooks",
    "plotting.use_lecture_style": "no argument",
    "records.row_key": "a row that was checked",
    "records.runs_folder": "a folder that need not exist",
    "records.write_atomic": "bytes",
    "setup.start": "no argument; LECTURE_THREADS is tried in test_setup.py",
    "shapes.Scene": "made by make_scene",
    "shapes.Style": "two constants",
    "training.pick_device": "no argument",
    "training.repeat_experiment": "what the command says of it is printed",
    "training.progress": "any iterable",
}
# Diagrams, and what they are made of, compute nothing; they are drawn by the notebooks.
DIAGRAMS = {f"figures.{name}" for name in vars(figures)}


def public_names():
    """module.name of every public function and class that helpers/ defines."""
    for module in pkgutil.iter_modules(helpers.__path__):
        loaded = importlib.import_module(f"helpers.{module.name}")
        for name, value in vars(loaded).items():
            value = getattr(value, "__wrapped__", value)  # benchmark is cached
            own = getattr(value, "__module__", None) == loaded.__name__
            if own and (inspect.isfunction(value) or inspect.isclass(value)) and name[0] != "_":
                yield f"{module.name}.{name}"


def test_no_public_name_is_forgotten():
    known = CASES.keys() | OTHER.keys() | HARMLESS.keys() | DIAGRAMS
    public = set(public_names())
    assert public - known == set(), "without a case of bad input"
    assert (CASES.keys() | OTHER.keys() | HARMLESS.keys()) - public == set(), "no such name"


EVERY_CASE = [(name, case) for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize("name, case", EVERY_CASE, ids=lambda value: value.replace(" ", "-"))
def test_a_value_error_names_what_is_wrong(name, case, tmp_path, monkeypatch):
    monkeypatch.setenv("LECTURE_RUNS", str(tmp_path))
    call, message = CASES[name][case]
    with pytest.raises(ValueError, match=message):
        call()
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.parametrize("name", OTHER)
def test_another_error_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-package-of-anyone>=1")
    monkeypatch.setattr(setup, "REQUIREMENTS", requirements)
    failed = type("Failed", (), {"returncode": 1})
    monkeypatch.setattr(setup.subprocess, "run", lambda *_, **__: failed)
    call, error, message = OTHER[name]
    with pytest.raises(error, match=message) as caught:
        call()
    assert not re.search(r"\n\s*\n", str(caught.value))
