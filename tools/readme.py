"""The table of results in README.md, made from the records in data/reference."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from helpers.records import METRICS, ROOT, read_records
from helpers.tables import markdown_table

BEGIN = "<!-- results: written by python -m tools readme -->"
END = "<!-- end of results -->"
NOTHING = "*No results yet: `data/reference/` holds no record of a main detector.*"
# Notebooks whose AP was not measured as data/README.md describes, and how it was.
OWN_PROTOCOL = {
    "01_rcnn": "R-CNN has its own protocol, since it needs a CNN pass per region: trained on 50 of "
    "the training images, drawn by the seed; its CNN has learnt from ImageNet before."
}
HEADER = (
    "Lecture",
    "Model",
    *(name.replace("_", " ") for name in METRICS),
    "Parameters",
    "Training, s",
    "ms / image",
    "Device",
    "Seeds",
)

Row = Mapping[str, Any]


def results(root: str | Path = ROOT) -> tuple[str, list[str]]:
    """The table as Markdown, and one sentence for each record that was left out of it."""
    root = Path(root)
    folder = root / "data" / "reference"
    names = [path.stem for path in sorted(folder.glob("[0-9][0-9]_*.json"))]
    rows, problems = read_records(folder, names) if names else ([], [])
    groups: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in (row for row in rows if row["variant"] == "main"):
        # Times on a GPU and on a CPU have no mean that means anything.
        seeds = groups.setdefault((row["notebook"], row["model"], row["device"]), {})
        if row["seed"] in seeds:
            problems.append(
                f"{row['notebook']}.json: a second row of {row['model']}, seed {row['seed']}, "
                f"on {row['device']} was left out"
            )
        seeds.setdefault(row["seed"], row)
    without = {row["notebook"] for row in rows} - {notebook for notebook, _, _ in groups}
    problems += [f"{name}.json: it has no row with the variant main" for name in sorted(without)]
    return _markdown([list(seeds.values()) for seeds in groups.values()], root), problems


def updated(readme: str, table: str) -> str:
    """`readme` with `table` between its two markers.

    Raises ValueError unless each marker stands there once, and in this order.
    """
    counts = {readme.count(marker) for marker in (BEGIN, END)}
    if counts != {1} or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README.md must hold once, and in this order: {BEGIN} and {END}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def _markdown(groups: Sequence[Sequence[Row]], root: Path) -> str:
    if not groups:
        return NOTHING
    marks: dict[str, str] = {}
    for rows in groups:
        notebook = rows[0]["notebook"]
        if notebook in OWN_PROTOCOL:
            marks.setdefault(notebook, f"<sup>{len(marks) + 1}</sup>")
    lines = [markdown_table(HEADER, [_cells(rows, marks, root) for rows in groups]).data]
    lines += [f"{mark} {OWN_PROTOCOL[name]}" for name, mark in marks.items()]
    if any(len(rows) > 1 for rows in groups):
        lines.append(
            "Means over seeds, AP ± the sample standard deviation; of ms / image the median."
        )
    return "\n\n".join(lines)


def _cells(rows: Sequence[Row], marks: Mapping[str, str], root: Path) -> list[str]:
    """The table's cells for one model: `rows` differ in their seeds."""
    first = rows[0]
    page = f"notebooks/{first['notebook']}.ipynb"
    number = first["notebook"].split("_")[0]
    devices = _distinct(
        f"{row['device']}, {row['threads']} thread{'s' if row['threads'] != 1 else ''}"
        for row in rows
    )
    return [
        f"[{number}]({page})" if (root / page).exists() else number,
        # A comment in a name could end the table.
        first["model"].replace("<", "&lt;") + marks.get(first["notebook"], ""),
        *(_mean((row[name] for row in rows), 3, spread=True) for name in METRICS),
        _distinct(f"{row['parameters']:,}" for row in rows),
        _mean((row["train_seconds"] for row in rows), 0),
        _median((row["ms_per_image"] for row in rows), 1),
        devices.replace("<", "&lt;"),
        str(len(rows)),
    ]


def _mean(values: Iterable[float | None], digits: int, spread: bool = False) -> str:
    measured = [value for value in values if value is not None]
    if not measured:
        return "–"
    text = f"{mean(measured):,.{digits}f}"
    return f"{text} ± {stdev(measured):.{digits}f}" if spread and len(measured) > 1 else text


def _median(values: Iterable[float | None], digits: int) -> str:
    # A machine that was busy for a moment shows in milliseconds at once, and must not count.
    measured = [value for value in values if value is not None]
    return f"{median(measured):,.{digits}f}" if measured else "–"


def _distinct(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))
