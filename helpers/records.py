"""Run records: one row of measurements per trained model, one JSON file per notebook."""

import contextlib
import functools
import glob
import io
import json
import math
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "data" / "reference"  # committed copies of run records
WEIGHTS = ROOT / "data" / "weights"  # and of weights, in half precision
EXPERIMENTS = ROOT / "data" / "experiments"

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")

_TEXT, _COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
_REAL = {"type": ["number", "null"], "minimum": 0}
_CURVE = {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "number"}}}
# The columns of a row, as JSON schema; null where nothing was measured.
COLUMNS = {
    "notebook": _TEXT,
    "model": _TEXT,
    "variant": _TEXT,
    **dict.fromkeys(METRICS, _REAL | {"maximum": 1}),
    "parameters": _COUNT,
    "steps": _COUNT,
    "train_seconds": _REAL,
    "ms_per_image": _REAL,
    "device": _TEXT,
    "threads": _COUNT,
    "seed": _COUNT,
    "torch": _TEXT,
}
# Only the rows of experiments have these.
MORE_COLUMNS = {
    "versions": {"type": "object", "additionalProperties": _TEXT},
    "resampled": {"type": "array", "items": _REAL},  # AP of resampled test sets, paired by place
    "curve": _CURVE,  # AP on the way, with steps and seconds
    "extra": {"type": "object", "additionalProperties": {"type": "number"}},
}
_SCHEMA = {
    "type": "object",
    "properties": COLUMNS | MORE_COLUMNS,
    "required": list(COLUMNS),
    "additionalProperties": False,
}


def runs_folder(directory: str | Path | None = None) -> Path:
    """`directory` if given, else the folder named by LECTURE_RUNS, else runs/ in the repository.

    In LECTURE_RUNS a tilde is the home folder, and a relative path is one from the repository's
    root: the same folder for a kernel, the tests and the tools.
    """
    return Path(directory or ROOT / Path(os.environ.get("LECTURE_RUNS") or "runs").expanduser())


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the new one, never a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of our own in the same folder: os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    _remove_leftovers(path)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` left that were killed in the middle, an hour ago or more."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # another writer may be tidying up, too
            if time.time() - old.stat().st_mtime > 3600:
                old.unlink()


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

    `metrics` maps AP, AP50, AP75, AP_small, AP_medium and AP_large to values in 0..1; a missing
    one, NaN or pycocotools' -1 ("no such objects") becomes None, and other keys are ignored.
    `variant` is "main" for the notebook's detector and a short name for each experiment.
    `device` defaults to CUDA where there is one, `seed` to the environment variable LECTURE_SEED,
    else 0; the number of threads and torch's version are filled in. Raises ValueError if the row
    breaks a rule of the records.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    row = {
        "notebook": notebook,
        "model": model,
        "variant": variant,
        **{name: _measured(metrics.get(name)) for name in METRICS},
        "parameters": parameters,
        "steps": steps,
        "train_seconds": train_seconds,
        "ms_per_image": ms_per_image,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seed": int(os.environ.get("LECTURE_SEED") or 0) if seed is None else seed,
        "torch": str(torch.__version__),
    }
    return checked_row(row)


def write_records(
    notebook: str, rows: Iterable[Mapping[str, Any]], directory: str | Path | None = None
) -> Path:
    """Replace `<directory>/<notebook>.json` by `rows` and return its path.

    Raises ValueError for a row with other columns, a value of the wrong kind or not finite, a row
    of another notebook, or two rows of the same model, variant and seed.
    """
    checked = [checked_row(row) for row in rows]
    keys = set()
    for row in checked:
        if row["notebook"] != notebook:
            raise ValueError(f"a row of notebook {row['notebook']!r} among those of {notebook!r}")
        if row_key(row) in keys:
            raise ValueError(f"two rows for (model, variant, seed) = {row_key(row)}")
        keys.add(row_key(row))
    path = _path(notebook, ".json", directory)
    text = json.dumps(checked, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, text.encode())
    return path


def read_records(
    directory: str | Path | None = None, notebooks: Iterable[str] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows found in `directory`, and one sentence for each file that was left out.

    With `notebooks` (names such as "05_yolo") just those files are read, and a missing one is among
    the problems; otherwise every .json file is, in the order of the names.
    """
    folder = runs_folder(directory)
    if notebooks is None:
        paths = sorted(folder.glob("*.json"))
    else:
        paths = [_path(name, ".json", folder) for name in notebooks]
    rows, problems = [], []
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
    for path in paths:
        try:
            rows += _read(path)
        except FileNotFoundError:
            problems.append(f"{path.name}: missing; run notebook {path.stem} to make it")
        except (OSError, ValueError) as error:
            problems.append(f"{path.name}: left out, {error}")
    return rows, problems


def save_weights(
    notebook: str, state_dict: Mapping[str, Any], directory: str | Path | None = None
) -> Path:
    """Save a model's `state_dict()` as `<directory>/<notebook>.pt` and return the path.

    Raises ValueError for a value that is no tensor, and for a name that is none.
    """
    import torch

    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"state_dict must hold tensors, {name!r} is {type(value).__name__}")
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in state_dict.items()}, buffer)
    path = _path(notebook, ".pt", directory)
    write_atomic(path, buffer.getvalue())
    return path


def load_weights(notebook: str, directory: str | Path | None = None) -> dict[str, Any]:
    """The state dict that `save_weights` wrote, on the CPU.

    Raises FileNotFoundError if the notebook has not saved one. Nothing but tensors is unpickled.
    """
    import torch

    path = _path(notebook, ".pt", directory)
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing; run notebook {notebook} to make it")
    return torch.load(path, map_location="cpu", weights_only=True)


def _path(notebook: str, suffix: str, directory: str | Path | None) -> Path:
    if not re.fullmatch(r"\w+", notebook):
        raise ValueError(f"notebook must be a name such as '05_yolo', got {notebook!r}")
    return runs_folder(directory) / f"{notebook}{suffix}"


def _measured(value: float | None) -> float | None:
    return None if value is None or value == -1 or value != value else value


def checked_row(row: Mapping[str, Any]) -> dict[str, Any]:
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


def _read(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError("it holds no list of rows")
    rows = [checked_row(row) for row in content]
    strangers = {row["notebook"] for row in rows} - {path.stem}
    if strangers:
        raise ValueError(f"it holds rows of {', '.join(sorted(strangers))}")
    return rows


# ---------------------------------------------------------------- fresh before committed


def latest_records(
    notebooks: Iterable[str],
    runs: str | Path | None = None,
    reference: str | Path = RECORDS,
) -> tuple[list[dict[str, Any]], list[str]]:
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
        return {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}, source
    raise FileNotFoundError(f"no readable weights of {notebook}; run that notebook to make them")


def row_key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    """What tells the rows of a notebook apart: model, variant and seed."""
    return row["model"], row["variant"], row["seed"]
