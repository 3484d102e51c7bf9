"""Train what a record lacks, one row at a time, and write each row as it is made."""

import importlib.util
import math
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any

from experiments.outcome import Outcome
from experiments.resampling import resampled_ap
from helpers.evaluation import coco_ap
from helpers.records import (
    EXPERIMENTS,
    checked_row,
    make_row,
    read_records,
    save_weights,
    write_records,
)
from helpers.shapes import CLASSES, benchmark
from helpers.training import pick_device, seed_everything

FOLDER = Path(__file__).parent
SEEDS = (0, 1, 2)
Row = dict[str, Any]


def names(folder: Path = FOLDER) -> list[str]:
    """The experiments in `folder`: NN_name of each module of a lecture."""
    return sorted(path.stem for path in folder.glob("[0-9][0-9]_*.py"))


def load(name: str, folder: Path = FOLDER) -> ModuleType:
    """The module of an experiment, given by its number or its name.

    Raises ValueError naming the choices if there is none.
    """
    found = [n for n in names(folder) if name in (n, n.split("_")[0])]
    if not found:
        choices = ", ".join(names(folder)) or "none yet"
        raise ValueError(f"no experiment {name!r}; the choices are: {choices}")
    spec = importlib.util.spec_from_file_location(
        f"experiment_{found[0]}", folder / f"{found[0]}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing(
    module: ModuleType, rows: Sequence[Row], variants: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, int]]:
    """The (variant, seed) that `rows` lack, seed by seed, so that each seed's rows are complete.

    Raises ValueError for a variant that the experiment does not have.
    """
    unknown = [name for name in variants if name not in module.VARIANTS]
    if unknown:
        choices = ", ".join(map(repr, module.VARIANTS))
        raise ValueError(
            f"no variant {unknown[0]!r} in {module.LECTURE}; the choices are: {choices}"
        )
    have = {(row["variant"], row["seed"]) for row in rows}
    wanted = [(v, s) for s in seeds for v in (variants or module.VARIANTS)]
    return [pair for pair in wanted if pair not in have]


def run(
    module: ModuleType,
    variants: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS,
    folder: Path = EXPERIMENTS,
) -> int:
    """Train the rows that the record in `folder` lacks and return their number.

    A row is written as soon as it is measured: after an interruption the next call goes on. Raises
    ValueError if the record that is there cannot be read: it would be lost.
    """
    rows = recorded(module, folder)
    todo = missing(module, rows, variants, seeds)
    start = time.perf_counter()
    for number, (variant, seed) in enumerate(todo, 1):
        outcome = train(module, variant, seed)
        row = measured(module, variant, seed, outcome)
        rows = [*recorded(module, folder), row]  # another call may have added one
        order = {name: i for i, name in enumerate(module.VARIANTS)}
        rows.sort(key=lambda row: (order.get(row["variant"], len(order)), row["seed"]))
        write_records(module.LECTURE, rows, folder)
        if outcome.weights and seed == 0 and variant == next(iter(module.VARIANTS)):
            save_weights(module.LECTURE, outcome.weights, folder.parent / "weights", half=True)
        left = (time.perf_counter() - start) / number * (len(todo) - number)
        print(
            f"{number} of {len(todo)}: {variant}, seed {seed}: AP {row['AP']:.3f},",
            f"{row['train_seconds']:.0f} s; {math.ceil(left / 60)} min to go",
            flush=True,
        )
    return len(todo)


def recorded(module: ModuleType, folder: Path = EXPERIMENTS) -> list[Row]:
    """The rows that are there. Raises ValueError if the file is there but cannot be read.

    A row that does not keep to the schema cannot be read, either: it could not be written again.
    """
    if not (folder / f"{module.LECTURE}.json").exists():
        return []
    rows, problems = read_records(folder, [module.LECTURE])
    if problems:
        raise ValueError(f"{folder.name}/{problems[0]}")
    return [checked_row(row) for row in rows]


def train(module: ModuleType, variant: str, seed: int) -> Outcome:
    """Train one variant with one seed."""
    seed_everything(seed)
    return module.train(seed, **module.VARIANTS[variant])


def measured(module: ModuleType, variant: str, seed: int, outcome: Outcome) -> Row:
    """The row of a training: AP on the held-out images, and how it was made."""
    targets = outcome.targets or benchmark("test").targets
    labels = [int(label) for target in targets for label in target["labels"]]
    classes = max(len(CLASSES), 1 + max(labels))
    row = make_row(
        module.LECTURE,
        module.MODEL,
        variant,
        coco_ap(outcome.detections, targets, classes),
        parameters=outcome.parameters,
        steps=outcome.steps,
        train_seconds=round(outcome.seconds, 2),
        ms_per_image=outcome.ms_per_image,
        device=pick_device().type,
        seed=seed,
    )
    more = {
        "versions": versions(),
        "resampled": [
            round(float(value), 4) for value in resampled_ap(outcome.detections, targets, classes)
        ],
    }
    if outcome.curve:
        more["curve"] = [dict(point) for point in outcome.curve]
    if outcome.extra:
        more["extra"] = dict(outcome.extra)
    return row | more


def versions() -> dict[str, str]:
    """The versions on which a measurement may depend."""
    packages = ("torchvision", "numpy", "pycocotools")
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def compare(module: ModuleType, turn: int, folder: Path = EXPERIMENTS) -> str:
    """Train one recorded row again and hold it against the record; `turn` says which one.

    Returns a sentence. Raises ValueError if the AP is further from the record than four times the
    spread of that variant's seeds (at least 0.02), or if there is no record.
    """
    rows = recorded(module, folder)
    if not rows:
        raise ValueError(f"{module.LECTURE} has no record to compare with")
    old = rows[turn % len(rows)]
    outcome = train(module, old["variant"], old["seed"])
    new = measured(module, old["variant"], old["seed"], outcome)
    others = [row["AP"] for row in rows if row["variant"] == old["variant"]]
    allowed = max(0.02, 4 * stdev(others) if len(others) > 1 else 0.0)
    said = f"{module.LECTURE}, {old['variant']}, seed {old['seed']}: AP {new['AP']:.3f}, "
    said += f"recorded {old['AP']:.3f} (mean {mean(others):.3f}), allowed ± {allowed:.3f}"
    if abs(new["AP"] - old["AP"]) > allowed:
        raise ValueError(said)
    return said
