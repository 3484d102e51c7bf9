"""What the tests of several notebooks share."""

import ast
import copy
import hashlib
import importlib.util
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.nn import functional

from helpers.lessons import load, read
from helpers.records import EXPERIMENTS, read_records
from helpers.shapes import ShapesDataset

# Seconds that a program may take: for what hangs, not for a machine that is slow or busy.
PATIENCE = 600

# Boxes xyxy on an image 320 wide and 128 high that a pooling layer must survive.
NASTY_BOXES = {
    "outside": [300.0, 300, 400, 500],
    "outside, above and left": [-90.0, -90, -40, -30],
    "half outside": [-30.0, 100, 40, 400],
    "around the image": [-100.0, -100, 500, 400],
    "the image": [0.0, 0, 320, 128],
    "no area": [64.0, 64, 64, 64],
    "no width": [64.0, 16, 64, 100],
    "one pixel": [17.0, 33, 18, 34],
    "the last pixel": [319.0, 127, 320, 128],
    "one cell": [16.0, 16, 31, 31],
    "a fraction of a cell": [64.3, 16.2, 70.1, 19.9],
}
NOT_IN_THE_IMAGE = {"outside", "outside, above and left"}  # pooled, they must give zeros


@contextmanager
def notebook_code(name: str, **variables: Any) -> Iterator[Any]:
    """The definitions of a notebook, with `variables` set, on one thread.

    On tensors as small as those of the tests, more threads only wait for one another.
    """
    module = load(name)
    for variable, value in variables.items():
        setattr(module, variable, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


def random_boxes(count: int, seed: int = 0, size: float = 60.0) -> torch.Tensor:
    """Boxes (count, 4) xyxy with sides of 1 pixel or more."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * size
    boxes[:, 2:] += boxes[:, :2] + 1
    return boxes


def iou_by_loops(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU (N, M) of every box of `a` with every box of `b`, xyxy; 0 of two without area."""
    values = []
    for p, q in product(a.tolist(), b.tolist()):
        w, h = (max(0, min(p[k + 2], q[k + 2]) - max(p[k], q[k])) for k in (0, 1))
        union = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (p, q)) - w * h
        values.append(w * h / union if union > 0 else 0.0)
    return torch.tensor(values).view(len(a), len(b))


def nms_by_loops(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, iou: float
) -> torch.Tensor:
    """Indices of the boxes that no better one of their label overlaps by more, best first."""
    overlap, names, kept = iou_by_loops(boxes, boxes).tolist(), labels.tolist(), []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(names[i] != names[k] or overlap[i][k] <= iou for k in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


def objects_of(
    *counts: int, size: float = 64.0, smallest: float = 10.0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """For each image that many boxes that lie in it, and labels 0, 1, 2, 0, ..."""
    boxes = []
    for seed, count in enumerate(counts):
        generator = torch.Generator().manual_seed(seed)
        side = smallest + torch.rand(count, 2, generator=generator) * (size - smallest - 2)
        corner = torch.rand(count, 2, generator=generator) * (size - side)
        boxes.append(torch.cat([corner, corner + side], dim=1))
    return boxes, [torch.arange(count) % 3 for count in counts]


def stretched(data: ShapesDataset, height: int, width: int) -> ShapesDataset:
    """A copy of a data set, its images and boxes scaled to a size that need not be square."""
    data, (rows, columns) = copy.copy(data), data.images.shape[2:]
    scale = torch.tensor([width / columns, height / rows] * 2)
    data.images = functional.interpolate(data.images, (height, width))
    data.targets = [t | {"boxes": t["boxes"] * scale} for t in data.targets]
    return data


def checksum(images: torch.Tensor, targets: list[dict[str, torch.Tensor]]) -> str:
    """SHA-256 of all pixels, boxes and labels, as data/README.md states it."""
    digest = hashlib.sha256(images.numpy().tobytes())
    for column in [target[key] for target in targets for key in ("boxes", "labels")]:
        digest.update(column.numpy().tobytes())
    return digest.hexdigest()


def finite_gradients(model: torch.nn.Module) -> bool:
    """Some parameter has a gradient, and none has one that is not finite."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return len(gradients) > 0 and all(bool(g.isfinite().all()) for g in gradients)


def check_stubs_and_solutions(notebook: Any, checks: dict[str, str]) -> None:
    """Each function to write is still to do, and its solution right; {exercise: its check}."""
    for exercise, check in checks.items():
        verdict = getattr(notebook, check)
        for answer in (None, ...):
            assert "still to do" in verdict(lambda *_, answer=answer: answer)
        assert "still to do" in verdict(getattr(notebook, exercise))
        assert verdict(getattr(notebook, f"{exercise}_solution")).startswith("✓")


# Answers to an exercise that no check may stumble over.
NONSENSE = ["text", [], {}, object(), -1, math.nan, math.inf, True, (1, 2), (None, 1), ([1], 2)]
NONSENSE += [torch.zeros(2, 3)]


def raising(*_: Any) -> Any:
    """A function to write that has a mistake."""
    return [][7]


def imported_exercises(path: Path) -> dict[str, list[str]]:
    """The names (q1, q2, ...) that a notebook takes from each module of helpers.exercises."""
    found: dict[str, list[str]] = {}
    for cell in read(path).cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.ImportFrom):
                package, _, module = (node.module or "").rpartition(".")
                if package == "helpers.exercises":
                    found.setdefault(module, []).extend(alias.name for alias in node.names)
    return found


WIDE_AND_HIGH = [(96, 160), (160, 96)]
# What a network or a data set may come in; float32 is what all of it is computed in.
OTHER_FLOATS = [torch.float16, torch.bfloat16, torch.float64]


def browser_programs() -> tuple[str, str]:
    """The paths of Chromium and of its driver.

    Raises LookupError naming the first of what the browser test needs and this machine lacks.
    """
    if importlib.util.find_spec("selenium") is None:
        raise LookupError("the package selenium is not installed")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    for name, path in (("chromium", browser), ("chromedriver", driver)):
        if path is None:
            raise LookupError(f"there is no {name} on the PATH")
    return browser, driver


def recorded_mean(lecture: str, variant: str, key: str = "AP") -> float:
    """A measure of a lecture's full training, the mean of its seeds in data/experiments."""
    rows, problems = read_records(EXPERIMENTS, [lecture])
    assert not problems, problems
    values = [row[key] for row in rows if row["variant"] == variant]
    assert len(values) >= 3, f"{variant} needs three seeds, the record has {len(values)}"
    return mean(values)


def cpu_seconds(function, calls: int = 2) -> float:
    """Seconds that a call keeps the processor busy, the least of some calls."""
    spent = []
    for _ in range(calls):
        start = time.process_time()
        with torch.no_grad():
            function()
        spent.append(time.process_time() - start)
    return min(spent)
