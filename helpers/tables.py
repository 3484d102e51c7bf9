"""Tables that read the same in JupyterLab, on GitHub and on paper: Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from IPython.display import Markdown

_CLAIMS_HEADER = ("The lecture says", "The paper says", "We measured")
_AP_COLUMNS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table as IPython Markdown; as the last line of a cell it is shown.

    Raises:
        ValueError: a row has another number of cells than the header.
    """
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {i} must have {len(header)} cells, got {len(row)}: {list(row)}")
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))


def _cell(value: object) -> str:
    # A bar or a line break inside a cell would end it.
    return str(value).replace("|", r"\|").replace("\n", " ")


def ap_table(runs: Mapping[str, Mapping[str, float]], first: str = "") -> Markdown:
    """One row of AP values per named run, as `helpers.evaluation.coco_ap` returns them.

    Raises:
        ValueError: a run lacks one of the six values.
    """
    for name, ap in runs.items():
        missing = [key for key in _AP_COLUMNS if key not in ap]
        if missing:
            raise ValueError(f"the run {name!r} lacks {', '.join(missing)}")
    header = [first, *(name.replace("_", " ") for name in _AP_COLUMNS)]
    return markdown_table(
        header, [[name, *(f"{ap[key]:.3f}" for key in _AP_COLUMNS)] for name, ap in runs.items()]
    )


def claims_table(rows: Sequence[tuple[str, str, str]]) -> Markdown:
    """The table that closes every lecture: what it says, what the paper says, what was measured."""
    return markdown_table(_CLAIMS_HEADER, rows)


def gathered_claims(notebook: Path) -> list[tuple[str, str, str]]:
    """The rows of the claims tables in the outputs that a notebook was committed with.

    Raises ValueError if the file is no notebook.
    """
    from helpers.notebooks import read

    rows = []
    for cell in read(notebook).get("cells", []):
        for output in cell.get("outputs", []):
            lines = str(output.get("data", {}).get("text/markdown", "")).splitlines()
            if lines and tuple(_cells(lines[0])) == _CLAIMS_HEADER:
                rows += [tuple(_cells(line)) for line in lines[2:]]
    return rows


def _cells(line: str) -> list[str]:
    """The cells of one line that `markdown_table` wrote."""
    inner = line.strip().removeprefix("| ").removesuffix(" |")
    return [cell.replace(r"\|", "|") for cell in inner.split(" | ")]
