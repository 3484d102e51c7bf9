"""Run records: one row of measurements per trained model, one JSON file per notebook."""

import contextlib
import glob
import io
import json
import math
import numbers
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")

# What each column of a row must be: `real` columns may be None where nothing was measured.
COLUMNS = {
    "notebook": "text",
    "model": "text",
    "variant": "text",
    **dict.fromkeys(METRICS, "real"),
    "parameters": "count",
    "steps": "count",
    "train_seconds": "real",
    "ms_per_image": "real",
    "device": "text",
    "threads": "count",
    "seed": "count",
    "torch": "text",
}


def runs_folder(directory: str | Path | None = None) -> Path:
    """`directory` if given, else the folder named by LECTURE_RUNS, else runs/ in the repository."""
    return Path(directory or os.environ.get("LECTURE_RUNS") or ROOT / "runs")


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
    return _checked(row)


def write_records(
    notebook: str, rows: Iterable[Mapping[str, Any]], directory: str | Path | None = None
) -> Path:
    """Replace `<directory>/<notebook>.json` by `rows` and return its path.

    Raises ValueError for a row with other columns, a value of the wrong kind or not finite, a row
    of another notebook, or two rows of the same model, variant and seed.
    """
    checked = [_checked(row) for row in rows]
    keys = set()
    for row in checked:
        if row["notebook"] != notebook:
            raise ValueError(f"a row of notebook {row['notebook']!r} among those of {notebook!r}")
        key = (row["model"], row["variant"], row["seed"])
        if key in keys:
            raise ValueError(f"two rows for (model, variant, seed) = {key}")
        keys.add(key)
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
    if value is None or math.isnan(value) or value == -1:
        return None
    return float(value)


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` in the order of COLUMNS with plain Python values; ValueError if it breaks a rule."""
    if not isinstance(row, Mapping) or set(row) != set(COLUMNS):
        wrong = set(row) ^ set(COLUMNS) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(f"a row must have exactly the columns of COLUMNS; differs in {wrong}")
    checked = {name: _value(name, row[name]) for name in COLUMNS}
    for name in METRICS:
        if checked[name] is not None and not 0 <= checked[name] <= 1:
            raise ValueError(f"{name} must lie in 0..1, got {checked[name]}")
    return checked


def _value(name: str, value: Any) -> Any:
    kind = COLUMNS[name]
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind == "text" and isinstance(value, str) and value:
        return value
    if kind == "count" and isinstance(value, numbers.Integral) and is_number and value >= 0:
        return int(value)
    if kind == "real" and (value is None or is_number and math.isfinite(value) and value >= 0):
        return None if value is None else float(value)
    wanted = {"text": "a non-empty string", "count": "an integer >= 0"}
    raise ValueError(
        f"{name} must be {wanted.get(kind, 'a finite number >= 0 or None')}, got {value!r}"
    )


def _read(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError("it holds no list of rows")
    rows = [_checked(row) for row in content]
    strangers = {row["notebook"] for row in rows} - {path.stem}
    if strangers:
        raise ValueError(f"it holds rows of {', '.join(sorted(strangers))}")
    return rows
