"""Markdown tables: every cell stays in its column, every number is the one that was given."""

import json
import math
import re

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.display import Markdown
from scipy.stats import t

from helpers.records import make_row, write_records
from helpers.tables import (
    ap_table,
    claims_table,
    experiment_table,
    gathered_claims,
    markdown_table,
    recorded_ap,
)

AP = {
    "AP": 0.12349,
    "AP50": 1.0,
    "AP75": 0.0,
    "AP_small": math.nan,
    "AP_medium": 0.5,
    "AP_large": 0.99951,
}


def cells(table: Markdown) -> list[list[str]]:
    """The table as a Markdown reader splits it: at the bars that are not escaped."""
    rows = [re.split(r"(?<!\\)\|", line) for line in table.data.split("\n")]
    assert all(row[0] == row[-1] == "" for row in rows)
    return [[cell.strip().replace(r"\|", "|") for cell in row[1:-1]] for row in rows]


def test_a_table_has_a_header_a_rule_and_its_rows():
    table = markdown_table(("a", "b"), [(1, 2.5), (None, "x")])
    assert isinstance(table, Markdown)
    assert cells(table) == [["a", "b"], ["---", "---"], ["1", "2.5"], ["None", "x"]]


def test_a_table_without_rows_is_its_header():
    assert cells(markdown_table(["a"], [])) == [["a"], ["---"]]


def test_bars_and_line_breaks_do_not_end_a_cell():
    table = markdown_table(["|w|", "two\nlines"], [["a|b", "|"], ["x\ny", ""]])
    expected = [["|w|", "two lines"], ["---", "---"], ["a|b", "|"], ["x y", ""]]
    assert cells(table) == expected


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_no_text_breaks_a_table(rows):
    text = markdown_table(["a", "b"], rows).data
    assert len(text.splitlines()) == 2 + len(rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()} == {3}


@pytest.mark.parametrize("row", [[], [1], [1, 2, 3]])
def test_a_row_of_another_length_is_named(row):
    message = rf"row 1 must have 2 cells, got {len(row)}: {re.escape(str(row))}"
    with pytest.raises(ValueError, match=message):
        markdown_table(["a", "b"], [[1, 2], row])


def test_ap_table_has_three_digits_and_says_where_nothing_was_measured():
    table = cells(ap_table({"ours": AP, "a|b": AP}, first="detector"))
    assert table[0] == ["detector", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]
    assert table[2] == ["ours", "0.123", "1.000", "0.000", "nan", "0.500", "1.000"]
    assert [row[0] for row in table] == ["detector", "---", "ours", "a|b"]


def test_ap_table_ignores_other_keys_and_names_a_missing_one():
    assert cells(ap_table({"x": AP | {"AR": 0.3}}))[2][1:] == cells(ap_table({"x": AP}))[2][1:]
    with pytest.raises(ValueError, match="AP75"):
        ap_table({"x": {key: value for key, value in AP.items() if key != "AP75"}})


def test_ap_table_without_runs():
    assert len(cells(ap_table({}))) == 2


def test_claims_table_has_three_columns():
    table = cells(claims_table([("|w| = 1", "–", "0.3")]))
    assert table[0] == ["The lecture says", "The paper says", "We measured"]
    assert table[2] == ["|w| = 1", "–", "0.3"]
    with pytest.raises(ValueError, match="row 0 must have 3 cells, got 2"):
        claims_table([("only", "two")])


def test_a_cell_that_ran_twice_states_each_claim_once():
    first, second = ("a", "–", "0.1"), ("a", "other", "0.2")
    table = cells(claims_table([first, second, ("a", "–", "0.3"), second]))
    assert table[2:] == [["a", "–", "0.3"], ["a", "other", "0.2"]]  # the last measurement counts


def test_claims_are_gathered_from_a_notebooks_outputs(tmp_path):
    rows = [("a | b", "–", "1 \\ 2"), ("", "$x$", "two\nlines")]
    texts = [claims_table(rows).data, markdown_table(("x", "y"), [(1, 2)]).data]
    outputs = [
        nbformat.v4.new_output("display_data", {"text/markdown": text, "text/plain": "<Markdown>"})
        for text in texts
    ]
    cell = nbformat.v4.new_code_cell("claims_table(claims)", outputs=outputs)
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell("| x | y |")])
    path = tmp_path / "01_toy.ipynb"
    nbformat.write(notebook, path)
    expected = [("a | b", "–", "1 \\ 2"), ("", "$x$", "two lines")]
    assert gathered_claims(path) == expected
    path.write_text("no JSON")
    with pytest.raises(ValueError, match="no notebook|not a notebook"):
        gathered_claims(path)


# ---------------------------------------------------------------- experiments

SEEDS = {  # the AP of each seed
    "main": [0.60, 0.62, 0.61],
    "much worse": [0.50, 0.51, 0.49],
    "one lucky seed": [0.60, 0.55, 0.70],
    "one seed": [0.40],
}
RNG = np.random.RandomState(0)
DRAWS = RNG.normal(0, 0.02, 200)  # what the choice of the images does, the same for all variants
OWN = {name: RNG.normal(0, 0.004, 200) for name in SEEDS}


def record(variant, seed, ap):
    metrics = {"AP": ap, "AP50": ap + 0.2, "AP75": ap + 0.1}
    numbers = {"parameters": 1, "steps": 2, "train_seconds": 3.0, "ms_per_image": None}
    row = make_row("05_yolo", "YOLO", variant, metrics, seed=seed, **numbers)
    return row | {"resampled": (ap + DRAWS + OWN[variant]).round(4).tolist()}


@pytest.fixture
def folder(tmp_path):
    """A made-up record of an experiment."""
    rows = [record(name, i, ap) for name, aps in SEEDS.items() for i, ap in enumerate(aps)]
    write_records("05_yolo", rows, tmp_path)
    return tmp_path


def test_an_experiment_has_a_row_per_variant_with_means_and_seeds(folder):
    table = cells(experiment_table("05_yolo", folder=folder))
    header = ["05_yolo", "AP", "AP50", "AP75", "seeds", "difference"]
    assert table[0] == [*header, "beyond seeds", "beyond images"]
    assert [row[0] for row in table[2:]] == list(SEEDS)
    assert table[2][1:] == ["0.610 ± 0.010", "0.810", "0.710", "3", "", "", ""]
    assert table[3][1:6] == ["0.500 ± 0.010", "0.700", "0.600", "3", "-0.110"]
    assert table[5][1:6] == ["0.400", "0.600", "0.500", "1", "-0.210"]


def test_recorded_ap_is_the_mean_over_seeds(folder):
    expected = {name: np.mean(aps) for name, aps in SEEDS.items()}
    assert recorded_ap("05_yolo", folder) == pytest.approx(expected)


def test_variants_are_those_asked_for_and_the_first_is_compared_with(folder):
    table = cells(experiment_table("05_yolo", ["much worse", "main"], folder))
    assert [row[0] for row in table[2:]] == ["much worse", "main"]
    assert table[2][5:] == ["", "", ""] and table[3][5] == "+0.110"


def test_the_columns_are_those_asked_for(folder):
    table = cells(experiment_table("05_yolo", folder=folder, columns=["AP75"]))
    assert table[0][1:4] == ["AP", "AP75", "seeds"] and table[2][2:4] == ["0.710", "3"]
    with pytest.raises(ValueError, match="no column 'AP_tiny'; a row has .*AP_small"):
        experiment_table("05_yolo", folder=folder, columns=["AP_tiny"])


def welch(a, b):
    """The two-sided p of Welch's test, by its formula."""
    parts = [np.var(x, ddof=1) / len(x) for x in (a, b)]
    freedom = sum(parts) ** 2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b)))
    return 2 * t.sf(abs(np.mean(a) - np.mean(b)) / math.sqrt(sum(parts)), freedom)


def test_beyond_the_seeds_is_by_welchs_test(folder):
    table = {row[0]: row for row in cells(experiment_table("05_yolo", folder=folder))}
    for name in ("much worse", "one lucky seed"):
        expected = "yes" if welch(SEEDS["main"], SEEDS[name]) < 0.05 else "no"
        assert table[name][6] == expected
    assert (table["much worse"][6], table["one lucky seed"][6]) == ("yes", "no")
    assert table["one seed"][6] == "–"  # one training has no spread to be beyond


def test_beyond_the_images_is_by_the_paired_draws(folder):
    table = {row[0]: row for row in cells(experiment_table("05_yolo", folder=folder))}
    for name, aps in list(SEEDS.items())[1:]:
        paired = np.sort(np.mean(aps) + OWN[name] - 0.61 - OWN["main"])
        said, low, high = re.fullmatch(r"(\w+) \((\S+) to (\S+)\)", table[name][7]).groups()
        assert float(low) == pytest.approx(paired[4:6].mean(), abs=2e-3)
        assert float(high) == pytest.approx(paired[194:196].mean(), abs=2e-3)
        assert said == ("no" if float(low) <= 0 <= float(high) else "yes")
    # Unpaired, the images' 0.02 would hide a difference of 0.007 far more.
    assert table["much worse"][7].startswith("yes") and table["one lucky seed"][7].startswith("no")


def test_a_variant_or_record_that_is_missing_or_broken_is_named(folder):
    with pytest.raises(ValueError, match="no variant 'other'; 05_yolo has main, much worse, one l"):
        experiment_table("05_yolo", ["main", "other"], folder)
    with pytest.raises(ValueError, match=f"{folder.name}/06_ssd.json: missing; run notebook 06"):
        experiment_table("06_ssd", folder=folder)
    rows = json.loads((folder / "05_yolo.json").read_text())
    (folder / "05_yolo.json").write_text(json.dumps([rows[0] | {"notebook": "06_ssd"}]))
    with pytest.raises(ValueError, match="05_yolo.json: left out, it holds rows of 06_ssd"):
        experiment_table("05_yolo", folder=folder)
