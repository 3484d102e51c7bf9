"""Run records: one row of measurements per trained model, one JSON file per notebook."""

import contextlib
import functools
import io
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "data" / "reference"  # committed copies of run records
WEIGHTS = ROOT / "data" / "weights"  # and of weights, in half precision
EXPERIMENTS = ROOT / "data" / "experiments"

Row = Mapping[str, Any]
Folder = str | Path | None
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def runs_folder(directory: Folder = None) -> Path:
    """`directory`, else the folder LECTURE_RUNS (relative to the repository's root), else runs/."""
    return Path(directory or ROOT / Path(os.environ.get("LECTURE_RUNS") or "runs").expanduser())


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Write `data` so that a reader sees the old file or the new one, never a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is atomic only there; tempfile's are for one reader.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_records(directory: Folder, notebooks: Iterable[str]) -> tuple[list[dict], list[str]]:
    """All rows of `notebooks` ("05_yolo", ...) in `directory`, and a sentence per file left out."""
    folder = runs_folder(directory)
    rows, problems = [], [] if folder.is_dir() else [f"{folder}: no such folder"]
    for path in [file_of(name, ".json", folder) for name in notebooks]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
                raise ValueError("it holds no list of rows")
            strangers = {str(row.get("notebook")) for row in content} - {path.stem}
            if strangers:
                raise ValueError(f"it holds rows of {', '.join(sorted(strangers))}")
            rows += content
        except FileNotFoundError:
            problems.append(f"{path.name}: missing; run notebook {path.stem} to make it")
        except (OSError, ValueError) as error:
            problems.append(f"{path.name}: left out, {error}")
    return rows, problems


def load_weights(notebook: str, directory: Folder = None) -> dict[str, Any]:
    """The state dict that `save_weights` wrote, on the CPU; FileNotFoundError if it has not."""
    import torch

    path = file_of(notebook, ".pt", directory)
    return torch.load(path, map_location="cpu", weights_only=True)  # unpickles only tensors


def file_of(notebook: str, suffix: str, directory: Folder = None) -> Path:
    """Where a notebook's record (suffix ".json") or weights (".pt") lie in `directory`."""
    if not re.fullmatch(r"\w+", notebook):
        raise ValueError(f"notebook must be a name such as '05_yolo', got {notebook!r}")
    return runs_folder(directory) / f"{notebook}{suffix}"


# What writes them.

_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_REAL = {"type": ["number", "null"], "minimum": 0}
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
COLUMNS = {  # of a row, as JSON schema; null where nothing was measured
    **dict.fromkeys(("notebook", "model", "variant"), _TEXT),
    **dict.fromkeys(METRICS, _REAL | {"maximum": 1}),
    **dict.fromkeys(("parameters", "steps"), _COUNT),
    **dict.fromkeys(("train_seconds", "ms_per_image"), _REAL),
    "device": _TEXT,
    "threads": _COUNT,
    "seed": _COUNT,
    "torch": _TEXT,
}
MORE_COLUMNS = {  # only the rows of experiments have these
    "versions": {"type": "object", "additionalProperties": _TEXT},
    "resampled": {"type": "array", "items": _REAL},  # AP of resampled test sets, paired by place
    "curve": {"type": "array", "items": _NUMBERS},  # AP on the way, with steps and seconds
    "extra": _NUMBERS,
}
_SCHEMA = {
    "type": "object",
    "properties": COLUMNS | MORE_COLUMNS,
    "required": list(COLUMNS),
    "additionalProperties": False,
}


def make_row(
    notebook: str,
    model: str,
    variant: str,
    metrics: Mapping[str, float | None],
    *,
    parameters: int,
    steps: int,
    train_seconds: float | None,
    ms_per_image: float | None,
    device: Any = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """One row for `write_records`.

    Of `metrics` those in METRICS are taken, 0..1; a missing one, NaN and pycocotools' -1 ("no such
    objects") become None. `variant` is "main" for the notebook's detector, a short name for an
    experiment. `device` defaults to CUDA where there is one, `seed` to LECTURE_SEED, else 0.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seed = int(os.environ.get("LECTURE_SEED") or 0) if seed is None else seed
    measured = [_measured(metrics.get(name)) for name in METRICS]
    measured += [parameters, steps, train_seconds, ms_per_image]
    machine = [str(device), torch.get_num_threads(), seed, str(torch.__version__)]
    values = [notebook, model, variant, *measured, *machine]
    return checked_row(dict(zip(COLUMNS, values, strict=True)))


def _measured(value: float | None) -> float | None:
    return None if value is None or value == -1 or value != value else value


def write_records(notebook: str, rows: Iterable[Row], directory: Folder = None) -> Path:
    """Replace `<directory>/<notebook>.json` by `rows`, if all are right, and return its path."""
    checked, keys = [checked_row(row) for row in rows], set()
    for row in checked:
        if row["notebook"] != notebook:
            raise ValueError(f"a row of notebook {row['notebook']!r} among those of {notebook!r}")
        if row_key(row) in keys:
            raise ValueError(f"two rows for (model, variant, seed) = {row_key(row)}")
        keys.add(row_key(row))
    text = json.dumps(checked, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_atomic(file_of(notebook, ".json", directory), text.encode())


def checked_row(row: Row) -> dict[str, Any]:
    """`row` with plain Python values; ValueError if it does not keep to the schema of COLUMNS."""
    try:
        plain = json.loads(json.dumps(row, default=lambda value: value.tolist()))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"a row must hold numbers and texts: {error}") from None
    for error in _validator().iter_errors(plain):
        where = "".join(f"{step}: " for step in error.absolute_path)
        raise ValueError(f"a row is wrong, {where}{error.message}")
    return plain


@functools.cache
def _validator() -> Any:
    """Of draft 4, for which 3.0 is no integer; NaN and infinity are no numbers, either."""
    import jsonschema

    def is_number(_: Any, value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    types = jsonschema.Draft4Validator.TYPE_CHECKER.redefine("number", is_number)
    return jsonschema.validators.extend(jsonschema.Draft4Validator, type_checker=types)(_SCHEMA)


def row_key(row: Row) -> tuple[str, str, int]:
    """What tells the rows of a notebook apart: model, variant and seed."""
    return row["model"], row["variant"], row["seed"]


def save_weights(
    notebook: str, state_dict: Mapping[str, Any], directory: Folder = None, half: bool = False
) -> Path:
    """Save a model's `state_dict()` as `<directory>/<notebook>.pt` and return the path.

    half: matrices and kernels in half precision; vectors are small, and need their range.
    """
    import torch

    kept, buffer = {}, io.BytesIO()
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"state_dict must hold tensors, {name!r} is {type(value).__name__}")
        short = half and value.is_floating_point() and value.ndim > 1
        kept[name] = (value.half() if short else value).detach().cpu()
    torch.save(kept, buffer)
    return write_atomic(file_of(notebook, ".pt", directory), buffer.getvalue())


def latest_records(
    notebooks: Iterable[str],
    runs: Folder = None,
    reference: str | Path = RECORDS,
) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows of `notebooks`, each with a key "source" more, and a sentence per problem.

    A notebook's rows come from `runs` (source "runs") where it has a record there, else from
    `reference`. Of the latter, seeds and variants that the fresh record lacks are added if they
    were measured on the same kind of device with as many threads.
    """
    rows, problems = [], []
    for name in notebooks:
        fresh, wrong = _right_records(runs_folder(runs), name)
        # No file in runs/ is no problem: most readers have not run everything.
        problems += [f"runs/{s}" for s in wrong if "left out" in s]
        committed, wrong = _right_records(reference, name)
        problems += [f"data/reference/{s}" for s in wrong if s.startswith(f"{name}.json")]
        have = {row_key(row) for row in fresh}
        machines = {(row["device"], row["threads"]) for row in fresh}
        kept = [
            row
            for row in committed
            if row_key(row) not in have
            and (not machines or (row["device"], row["threads"]) in machines)
        ]
        rows += [row | {"source": "runs"} for row in fresh]
        rows += [row | {"source": "reference"} for row in kept]
    return rows, problems


def _right_records(folder: Folder, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one notebook, if they keep to the schema, and a sentence per problem."""
    rows, problems = read_records(folder, [name])
    try:
        return [checked_row(row) for row in rows], problems
    except ValueError as error:
        return [], [f"{name}.json: left out, {error}"]


def latest_weights(
    notebook: str, runs: Folder = None, committed: str | Path = WEIGHTS
) -> tuple[dict[str, Any], str]:
    """A notebook's state dict as float32 on the CPU, and its source: "runs" or "reference".

    A damaged file in `runs` is passed over. Raises FileNotFoundError if there is no readable one.
    """
    for source, folder in (("runs", runs_folder(runs)), ("reference", committed)):
        with contextlib.suppress(Exception):  # no file, or damage: zip, pickle and torch differ
            weights = load_weights(notebook, folder).items()
            return {k: v.float() if v.is_floating_point() else v for k, v in weights}, source
    raise FileNotFoundError(f"no readable weights of {notebook}; run that notebook to make them")
