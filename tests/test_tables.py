"""Markdown tables: every cell stays in its column, every number is the one that was given."""

import math
import re

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.display import Markdown

from helpers.tables import ap_table, claims_table, gathered_claims, markdown_table

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
