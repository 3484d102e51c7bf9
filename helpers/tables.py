"""Tables that read the same in JupyterLab, on GitHub and on paper: Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from IPython.display import Markdown
from scipy.stats import ttest_ind

from helpers.records import EXPERIMENTS, METRICS, read_records

_CLAIMS_HEADER = ("The lecture says", "The paper says", "We measured")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table as IPython Markdown; as the last line of a cell it is shown."""
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {i} must have {len(header)} cells, got {len(row)}: {list(row)}")
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))


def _cell(value: object) -> str:
    # A bar or a line break inside a cell would end it.
    return " ".join(str(value).replace("|", r"\|").splitlines())


def ap_table(runs: Mapping[str, Mapping[str, float]], first: str = "") -> Markdown:
    """One row of AP values per named run, as `helpers.evaluation.coco_ap` returns them."""
    for name, ap in runs.items():
        missing = [key for key in METRICS if key not in ap]
        if missing:
            raise ValueError(f"the run {name!r} lacks {', '.join(missing)}")
    header = [first, *(name.replace("_", " ") for name in METRICS)]
    rows = [[name, *(f"{ap[key]:.3f}" for key in METRICS)] for name, ap in runs.items()]
    return markdown_table(header, rows)


def claims_table(rows: Sequence[tuple[str, str, str]]) -> Markdown:
    """What a lecture says, what the paper says, what was measured, each statement once.

    A cell that ran twice has measured twice: the last counts.
    """
    return markdown_table(_CLAIMS_HEADER, list({row[:2]: row for row in rows}.values()))


def experiment_table(
    lecture: str,
    variants: Sequence[str] = (),
    folder: Path = EXPERIMENTS,
    columns: Sequence[str] = ("AP50", "AP75"),
) -> Markdown:
    """A recorded experiment: means over seeds, and whether a variant differs from the first one.

    columns: keys of the record, or of its "extra", to show the means of, beside the AP.
    Beyond the seeds: Welch's t-test over the seeds gives p < 0.05. Beyond the images: the middle
    95 % of the difference over resampled held-out sets (paired, lecture 09) leave out 0.
    """
    groups = _recorded(lecture, folder)
    names = list(variants or groups)
    missing = [name for name in names if name not in groups]
    if missing:
        raise ValueError(f"no variant {missing[0]!r}; {lecture} has {', '.join(groups)}")
    for key in columns:
        if key not in (row := groups[names[0]][0]):
            raise ValueError(f"no column {key!r}; a row has {', '.join(row)}")
    more = ("seeds", "difference", "beyond seeds", "beyond images")
    rows = [_experiment_row(name, groups, names[0], columns) for name in names]
    return markdown_table((lecture, "AP", *columns, *more), rows)


def recorded_ap(lecture: str, folder: Path = EXPERIMENTS) -> dict[str, float]:
    """The mean AP over seeds of every variant of a recorded experiment."""
    groups = _recorded(lecture, folder)
    return {name: mean(row["AP"] for row in rows) for name, rows in groups.items()}


def _recorded(lecture: str, folder: Path) -> dict[str, list]:
    rows, problems = read_records(folder, [lecture])
    if problems:
        raise ValueError(f"{folder.name}/{problems[0]}")
    names = dict.fromkeys(row["variant"] for row in rows)
    return {name: [r | r.get("extra", {}) for r in rows if r["variant"] == name] for name in names}


def _experiment_row(
    name: str, groups: Mapping[str, list], first: str, columns: Sequence[str]
) -> list[str]:
    """Means of one variant, and its difference from the variant `first`."""
    own, base = groups[name], groups[first]
    ap, others = ([row["AP"] for row in rows] for rows in (own, base))
    spread = f" ± {stdev(ap):.3f}" if len(ap) > 1 else ""
    means = [f"{mean(row[key] for row in own):.3f}" for key in columns]
    cells = [name, f"{mean(ap):.3f}{spread}", *means, str(len(own))]
    if name == first:
        return [*cells, "", "", ""]
    few = min(len(ap), len(others)) < 2  # a single training has no spread to be beyond
    by_seeds = few or ttest_ind(ap, others, equal_var=False).pvalue < 0.05
    draws = [np.mean([row["resampled"] for row in rows], axis=0) for rows in (own, base)]
    low, high = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    by_images = f"{'no' if low <= 0 <= high else 'yes'} ({low:+.3f} to {high:+.3f})"
    said = "–" if few else "yes" if by_seeds else "no"
    return [*cells, f"{mean(ap) - mean(others):+.3f}", said, by_images]


def gathered_claims(notebook: Path) -> list[tuple[str, str, str]]:
    """The rows of the claims tables in a notebook's outputs; ValueError if the file is none."""
    from helpers.lessons import read

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
