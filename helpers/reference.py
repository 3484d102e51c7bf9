"""What is committed of the trainings: run records in data/reference, weights in data/weights.

Notebooks write to runs/, which git ignores. `latest_records` and `latest_weights` prefer what was
written there and fall back to the committed copies; `adopt` renews the copies.

Command line: python -m helpers.reference adopt 05 [06 ...]
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.records import (
    ROOT,
    load_weights,
    read_records,
    runs_folder,
    save_weights,
    write_records,
)

RECORDS = ROOT / "data" / "reference"
WEIGHTS = ROOT / "data" / "weights"

Row = dict[str, Any]


def latest_records(
    notebooks: Iterable[str],
    runs: str | Path | None = None,
    reference: str | Path = RECORDS,
) -> tuple[list[Row], list[str]]:
    """All rows of `notebooks`, each with a key "source" more, and a sentence per problem.

    A notebook's rows come from `runs` (source "runs") where it has a record there, else from
    `reference`. Of the latter, seeds and variants that the fresh record lacks are added if they
    were measured on the same kind of device with as many threads.
    """
    rows, problems = [], []
    for name in notebooks:
        fresh, wrong = read_records(runs_folder(runs), [name])
        # No file in runs/ is no problem: most readers have not run everything.
        problems += [f"runs/{s}" for s in wrong if "left out" in s]
        committed, wrong = read_records(reference, [name])
        problems += [f"data/reference/{s}" for s in wrong if s.startswith(f"{name}.json")]
        have = {_key(row) for row in fresh}
        machines = {(row["device"], row["threads"]) for row in fresh}
        kept = [
            row
            for row in committed
            if _key(row) not in have
            and (not machines or (row["device"], row["threads"]) in machines)
        ]
        rows += [row | {"source": "runs"} for row in fresh]
        rows += [row | {"source": "reference"} for row in kept]
    return rows, problems


def latest_weights(
    notebook: str, runs: str | Path | None = None, committed: str | Path = WEIGHTS
) -> tuple[dict[str, Any], str]:
    """A notebook's state dict as float32 on the CPU, and its source: "runs" or "reference".

    A damaged file in `runs` is passed over. Raises FileNotFoundError if there is no readable one.
    """
    for source, folder in (("runs", runs_folder(runs)), ("reference", committed)):
        try:
            weights = load_weights(notebook, folder)
        except Exception:  # no file, or a damaged one: zip, pickle and torch each have their errors
            continue
        return {name: _widened(value) for name, value in weights.items()}, source
    raise FileNotFoundError(f"no readable weights of {notebook}; run that notebook to make them")


def adopt(
    notebook: str,
    runs: str | Path | None = None,
    reference: str | Path = RECORDS,
    committed: str | Path = WEIGHTS,
) -> list[str]:
    """Renew the committed copies from a notebook's last run; returns what was done.

    The record of a run with seed 0 replaces the committed one, of which rows named main with other
    seeds stay; its weights are committed in half precision. Of a run with another seed only the
    rows named main are taken. Raises ValueError if `runs` has no sound record with a row named
    main.
    """
    fresh, problems = read_records(runs_folder(runs), [notebook])
    seeds = {row["seed"] for row in fresh if row["variant"] == "main"}
    if len(seeds) != 1:
        wrong = "; ".join(problems) or f"its rows named main have the seeds {sorted(seeds)}"
        raise ValueError(f"the last run of {notebook} cannot be adopted: {wrong}")
    (seed,) = seeds
    old, problems = read_records(reference, [notebook]) if Path(reference).is_dir() else ([], [])
    if any("left out" in sentence for sentence in problems):
        raise ValueError(f"the committed record would be lost: {'; '.join(problems)}")
    new = [row for row in fresh if seed == 0 or row["variant"] == "main"]
    have = {_key(row) for row in new}
    kept = [row for row in old if _key(row) not in have and (seed != 0 or row["variant"] == "main")]
    order = sorted(new + kept, key=lambda row: row["variant"] == "main" and row["seed"])
    done = [f"{len(new)} rows of seed {seed}, {len(kept)} older ones kept"]
    write_records(notebook, order, reference)
    if seed == 0 and (runs_folder(runs) / f"{notebook}.pt").is_file():
        halves = {k: _narrowed(v) for k, v in load_weights(notebook, runs).items()}
        save_weights(notebook, halves, committed)
        done.append("weights in half precision")
    return done


def _key(row: Row) -> tuple[str, str, int]:
    return row["model"], row["variant"], row["seed"]


def _narrowed(value: Any) -> Any:
    # Vectors (biases, running means and variances) are small, and need their range.
    return value.half() if value.is_floating_point() and value.ndim > 1 else value


def _widened(value: Any) -> Any:
    return value.float() if value.is_floating_point() else value


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status: 0 good, 1 a run is not, 2 usage."""
    from helpers.notebooks import find

    if len(arguments) < 2 or arguments[0] != "adopt":
        print("usage: python -m helpers.reference adopt 05 [06 ...]", file=sys.stderr)
        return 2
    for name in arguments[1:]:
        try:
            stem = find(name).stem
            print(f"{stem}: {'; '.join(adopt(stem))}")
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
    print("now: python -m helpers.readme")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
