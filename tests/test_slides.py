"""The slides: where they break, what they leave out, and that nbconvert makes them."""

import json
import subprocess
import sys

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from shared import PATIENCE

from helpers.lessons import find, notebooks, read
from helpers.records import ROOT
from tools import slides

CONFIG = ROOT / "slides" / "nbconvert.json"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_slides_fit(path):
    problems = list(slides.problems(read(path)))
    assert not problems, "\n".join([*problems, f"mend it: python -m tools slides {path.stem}"])


def lines(count):
    return new_code_cell("x = 1\n" * (count - 1) + "x = 1")


@pytest.fixture
def notebook():
    """Title and set-up, a section of two slides, and one of what is not for the hall."""
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("import math"),
        new_markdown_cell("## 1 Section"),
        lines(20),
        new_markdown_cell("The next cell is too much for the slide."),
        lines(20),
        new_markdown_cell("## 2 Claims"),
        new_code_cell("claims += [('a', 'b', 'c')]\nclaims.append(('d', 'e', 'f'))"),
        new_code_cell("claims_table(claims)"),
        new_code_cell("explore(draw, x=(0, 1, 0.1))"),
        new_code_cell("def check_it(): ...", metadata={"tags": ["check"]}),
        new_code_cell("it = ...", metadata={"tags": ["exercise"]}),
        new_code_cell("it = 1", metadata={"tags": ["solution"]}),
    ]
    return new_notebook(cells=cells)


def test_breaks_are_added_once(notebook):
    for _ in range(2):
        slides.add_breaks(notebook)
        types = [slides.slide_type(cell) for cell in notebook.cells]
        assert types[:6] == ["slide", "skip", "slide", "-", "subslide", "-"]
        assert types[6:] == ["slide", "skip", "-", "skip", "skip", "-", "skip"]
        assert [len(cells) for cells in slides.deck(notebook)] == [1, 2, 2, 3]
        assert list(slides.problems(notebook)) == []


def test_breaks_that_are_there_stay(notebook):
    notebook.cells[3].metadata["slideshow"] = {"slide_type": "subslide"}
    slides.add_breaks(notebook)
    assert [len(cells) for cells in slides.deck(notebook)] == [1, 1, 1, 2, 3]


def test_folded_code_is_left_out_unless_it_shows_something(notebook):
    hidden = {"jupyter": {"source_hidden": True}}
    shows = new_code_cell("1", metadata=hidden, outputs=[new_output("stream", text="1")])
    notebook.cells[3:3] = [new_code_cell("def f(): ...", metadata=hidden), shows]
    slides.add_breaks(notebook)
    assert [slides.slide_type(cell) for cell in notebook.cells[3:5]] == ["skip", "-"]
    assert list(slides.problems(notebook)) == []


def test_what_is_further_is_left_out_with_its_heading(notebook):
    further = [new_markdown_cell("## 3 Further"), new_markdown_cell("A demo."), lines(3)]
    tagged = new_code_cell("1", metadata={"tags": ["further"]})
    summary = [new_markdown_cell("## 4 Summary"), new_markdown_cell("That was it.")]
    notebook.cells[3:3] = [tagged]
    notebook.cells += [*further, *summary]
    for _ in range(2):
        slides.add_breaks(notebook)
        types = [slides.slide_type(cell) for cell in notebook.cells]
        assert types[3] == "skip" and types[-5:] == ["skip", "skip", "skip", "slide", "-"]
        assert list(slides.problems(notebook)) == []
    for cell in (tagged, *further):
        cell.metadata["slideshow"] = {"slide_type": "slide"}
    said = list(slides.problems(notebook))
    assert len(said) == 4 and all(s.endswith("must have the slide type skip") for s in said)


@pytest.mark.parametrize(
    "index, kind, problem",
    [
        (2, "subslide", "text '## 1 Section': a heading of level 1 or 2 must begin a slide"),
        (1, "-", "cell [1] must have the slide type skip"),
        (3, "skip", "cell [2] must not have the slide type skip"),
        (4, "-", "the slide of text '## 1 Section' is 1"),
    ],
)
def test_problems_are_named(notebook, index, kind, problem):
    slides.add_breaks(notebook)
    notebook.cells[index].metadata["slideshow"] = {"slide_type": kind}
    (found,) = slides.problems(notebook)
    assert found.startswith(problem)


def test_a_cell_is_as_high_as_what_it_shows():
    text = new_output("stream", name="stdout", text="x\n" * 10)
    table = new_output("display_data", {"text/markdown": "| a |\n| --- |\n" + "| 1 |\n" * 10})
    alone = slides.height(lines(1))
    for output in (text, table):
        cell = new_code_cell("x = 1", outputs=[output])
        assert 200 < slides.height(cell) - alone < 600
    assert slides.height(lines(37)) < slides.ROOM < slides.height(lines(40))
    figures = [
        c for c in read(find("00")).cells if c.cell_type == "code" and "plt.show" in c.source
    ]
    assert all(slides.height(cell) > slides.height(lines(1)) + 200 for cell in figures)


def test_nbconvert_makes_the_slides(tmp_path):
    size = json.loads(CONFIG.read_text())["SlidesExporter"]
    wanted = {"reveal_width": str(slides.WIDTH), "reveal_height": str(slides.HEIGHT)}
    assert wanted.items() <= size.items()
    subprocess.run(
        [
            *(sys.executable, "-m", "nbconvert", "--config", CONFIG, "--to", "slides"),
            *("--output-dir", tmp_path, find("00")),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    (page,) = tmp_path.glob("*.html")
    html = page.read_text(encoding="utf-8")
    # One more for each section, which holds its slides.
    sections = sum(slides.slide_type(cell) == "slide" for cell in read(find("00")).cells)
    assert html.count("<section") == sections + len(slides.deck(read(find("00"))))
    assert f"max-height: {slides.HEIGHT}px" in html and "solution</span>" not in html
