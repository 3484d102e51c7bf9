"""tools.pages: the measure of a page, on small notebooks."""

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from toy_notebooks import SLIDE, executed, figure

from helpers.lessons import notebooks
from tools import pages

TEXT = new_markdown_cell("one two three four five six", metadata=SLIDE)


def of_lines(count, *outputs, **metadata):
    """A code cell of so many lines, with blank ones between them that do not count."""
    return executed(*outputs, source="\n\n".join(["x = 1"] * count), **metadata)


def measured(*cells):
    return pages.measure(NotebookNode(cells=cells))


def test_every_measure_is_taken():
    cells = [of_lines(i, figure(1200 if i % 2 else 600)) for i in range(1, 11)]
    sub = new_markdown_cell("### seven", metadata={"slideshow": {"slide_type": "subslide"}})
    skip = new_markdown_cell("eight", metadata={"slideshow": {"slide_type": "skip"}})
    assert measured(TEXT, *cells, sub, skip) == {
        "cells": 10,
        "lines": 55,
        "median": 5.5,
        "p90": 10,
        "most": 10,
        "words": 0.2,  # nine of them: ### is one
        "figures": 10,
        "narrow": 50,
        "slides": 2,
    }


def test_an_empty_notebook_can_be_measured():
    assert set(measured().values()) == {0}
    assert set(measured().keys()) == set(pages.LIMITS)


FURTHER = [of_lines(9, figure()), TEXT]


@pytest.mark.parametrize(
    "heading", ["## Further", "## 12 Further \nA demo.", "# Further", "## Further: more"]
)
def test_what_stands_under_further_does_not_count(heading):
    section = new_markdown_cell(heading, metadata=SLIDE)
    deeper = new_markdown_cell("### A demo")
    assert measured(TEXT, of_lines(2), section, *FURTHER, deeper, *FURTHER) == measured(
        TEXT, of_lines(2)
    )
    summary = new_markdown_cell("## 13 Summary", metadata=SLIDE)
    after = measured(TEXT, section, *FURTHER, summary, of_lines(3))
    assert after == measured(TEXT, summary, of_lines(3)) != measured(TEXT)


@pytest.mark.parametrize("heading", ["## 3 Further away", "## Two steps further", "### Further"])
def test_another_heading_counts(heading):
    assert measured(new_markdown_cell(heading), of_lines(3))["lines"] == 3


def test_what_is_tagged_further_does_not_count():
    tagged = [of_lines(9, figure(), tags=["further"])]
    tagged += [new_markdown_cell("a b c", metadata={"tags": ["further"], **SLIDE})]
    assert measured(TEXT, *tagged, of_lines(2)) == measured(TEXT, of_lines(2))


@pytest.mark.parametrize("tag", sorted(pages.EXERCISES))
def test_exercises_do_not_count(tag):
    exercise = [of_lines(9, figure(), tags=[tag])]
    exercise += [new_markdown_cell("a b c", metadata={"tags": [tag]})]
    assert measured(TEXT, *exercise, of_lines(2)) == measured(TEXT, of_lines(2))


GOOD = {
    "cells": 45,
    "lines": 450,
    "median": 6,
    "p90": 15,
    "most": 30,
    "words": 6,
    "figures": 14,
    "narrow": 20,
    "slides": 40,
}
WRONG = [
    ("cells", 61, "code cells: 61, and 60 is the most"),
    ("lines", 651, "lines of code: 651, and 650 is the most"),
    ("median", 8.5, "lines per cell, median: 8.5, and 8 is the most"),
    ("p90", 19, "lines per cell, 90 %: 19, and 18 is the most"),
    ("most", 41, "lines per cell, most: 41, and 40 is the most"),
    ("words", 3.9, "words per line: 3.9, and 4 is the least"),
    ("figures", 9, "figures: 9, and 10 is the least"),
    ("narrow", 35, "of them narrow, %: 35, and 34 is the most"),
    ("slides", 51, "slides: 51, and 50 is the most"),
]


def test_the_aims_are_within_the_limits():
    assert list(pages.problems(GOOD)) == []
    assert [key for key, *_ in WRONG] == list(pages.LIMITS)


@pytest.mark.parametrize(("key", "value", "sentence"), WRONG)
def test_each_limit_is_named(key, value, sentence):
    assert list(pages.problems(GOOD | {key: value})) == [sentence]
    _, least, most = pages.LIMITS[key]
    assert list(pages.problems(GOOD | {key: most if least is None else least})) == []


def test_the_table_marks_what_is_out_of_its_limits():
    head, bounds, good, bad = pages.table({"00": GOOD, "01_x": GOOD | {"cells": 61}}).splitlines()
    assert head.split() == list(pages.LIMITS)
    assert bounds.split() == [
        f">={least}" if most is None else f"<={most}" for _, least, most in pages.LIMITS.values()
    ]
    assert good.split() == ["00", *(str(GOOD[key]) for key in pages.LIMITS)]
    assert bad.split()[:3] == ["01_x", "61*", "450"] and bad.count("*") == 1
    assert len({len(line) for line in (head, bounds, good)}) == 1
    assert pages.table({}).split() == [*head.split(), *bounds.split()]


def test_only_lectures_that_are_there_are_excused():
    """A lecture leaves the list with its second edition; none is excused that does not exist."""
    assert pages.EXCUSED <= {path.stem.split("_")[0] for path in notebooks()}


def test_a_cell_without_outputs_has_no_figures():
    assert measured(new_code_cell("1"))["figures"] == 0
