"""Renew what is committed of the trainings: records in data/reference, weights in data/weights."""

from pathlib import Path

from helpers.records import (
    COLUMNS,
    EXPERIMENTS,
    RECORDS,
    WEIGHTS,
    load_weights,
    read_records,
    row_key,
    runs_folder,
    save_weights,
    write_records,
)


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
    have = {row_key(row) for row in new}
    kept = [
        row for row in old if row_key(row) not in have and (seed != 0 or row["variant"] == "main")
    ]
    order = sorted(new + kept, key=lambda row: row["variant"] == "main" and row["seed"])
    done = [f"{len(new)} rows of seed {seed}, {len(kept)} older ones kept"]
    write_records(notebook, order, reference)
    if seed == 0 and (runs_folder(runs) / f"{notebook}.pt").is_file():
        save_weights(notebook, load_weights(notebook, runs), committed, half=True)
        done.append("weights in half precision")
    return done


def adopt_experiment(
    notebook: str, experiments: str | Path = EXPERIMENTS, reference: str | Path = RECORDS
) -> list[str]:
    """Renew the committed record's rows named main from a lecture's experiment; what was done.

    Its weights were committed as they were trained. Raises ValueError if either cannot be read.
    """
    fresh, problems = read_records(experiments, [notebook])
    old, more = read_records(reference, [notebook])
    problems += [sentence for sentence in more if "left out" in sentence]
    new = [{key: row[key] for key in COLUMNS} for row in fresh if row["variant"] == "main"]
    if problems or not new:
        wrong = "; ".join(problems) or "its experiment has no row named main"
        raise ValueError(f"{notebook} cannot be adopted: {wrong}")
    kept = [row for row in old if row["variant"] != "main"]
    write_records(notebook, new + kept, reference)
    return [f"{len(new)} rows of its experiment, {len(kept)} older ones kept"]
