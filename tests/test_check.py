"""tools.check: the rules of the notebooks, on small ones that break them and on the lectures."""

import pytest
from nbformat.v4 import new_markdown_cell, new_notebook
from toy_notebooks import SLIDE, executed, figure, printed, write

from helpers.lessons import notebooks
from helpers.records import ROOT
from tools import check as module
from tools.canonical import canonicalise, to_text

PAGES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()]
ADDRESS = "_owner_/object-detection-lectures"
BADGE = f"https://colab.research.google.com/github/{ADDRESS}/blob/main/notebooks/"
FOLDED = {"jupyter": {"source_hidden": True}}


# ---------------------------------------------------------------- the committed files


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_lecture_keeps_the_rules(path):
    problems = module.check(path)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    assert module.broken_links(path.read_text(encoding="utf-8"), path.parent) == []


# ---------------------------------------------------------------- small notebooks


@pytest.fixture
def good(tmp_path, monkeypatch):
    """The cells of a notebook that keeps every rule, and a function that checks such a list."""
    setup_cell = tmp_path / "setup_cell.py"
    setup_cell.write_text(f'os.system("git clone -q https://github.com/{ADDRESS}")\n')
    monkeypatch.setattr("tools.check.SETUP_CELL", setup_cell)
    monkeypatch.setattr("tools.pages.EXCUSED", {"01"})
    title = f"# Title\n[open in Colab]({BADGE}01_toy.ipynb) [Part](#Part)"
    cells = [
        new_markdown_cell(title, metadata=SLIDE),
        executed(source=setup_cell.read_text().rstrip(), cellView="form", **FOLDED),
        new_markdown_cell("## Part", metadata=SLIDE),
        executed(figure(), source="draw()"),
        new_markdown_cell("The figure shows a box.\n\n```\n# no heading [x](y.md)\n```"),
        executed(printed("3\n"), source="print(3)", tags=["nbval-check-output"]),
        executed(source="def f(): ...", tags=["exercise"]),
        executed(source="f = 1", tags=["solution"], **FOLDED),
    ]

    def check(cells, canonical=True, name="01_toy.ipynb"):
        notebook = new_notebook(cells=cells)
        notebook = canonicalise(notebook) if canonical else notebook
        path = tmp_path / name
        path.write_text(to_text(notebook))
        return module.check(path)

    return cells, check


def test_a_good_notebook_has_no_problems(good):
    cells, check = good
    assert check(cells) == []


def append(*more):
    return lambda cells: cells + list(more)


def unfolded(key):
    """The set-up cell without one of the two marks that fold it, in JupyterLab or on Colab."""

    def change(cells):
        kept = {name: value for name, value in cells[1].metadata.items() if name != key}
        return [cells[0], executed(source=cells[1].source, **kept), *cells[2:]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[1:], "the first cell must be text"),
        (lambda cells: cells[:1] + cells[2:], "must equal tools/setup_cell.py"),
        (unfolded("jupyter"), "the set-up cell must be folded"),
        (unfolded("cellView"), "the set-up cell must be folded"),
        (lambda cells: cells[:3] + cells[-1:], "does not follow its exercise"),
        (append(executed(source="%time f()")), "cell [6] is not plain Python"),
        (append(executed(source="x = 1\n" * 36)), "has 37 lines, more than 35"),
        (append(executed(source="class A:\n" + "    x = 1\n" * 46)), "more than 45"),
        (append(executed(source="from tqdm.notebook import tqdm")), "uses tqdm.notebook"),
        (append(executed(source="clear_output()")), "uses clear_output"),
        (append(executed(source="# NBVAL_SKIP\n1")), "comment marker"),
        (append(executed(tags=["nbval-skip"])), "the tag 'nbval-skip'"),
        (append(executed(tags=["raises-exception"])), "the tag 'raises-exception'"),
        (append(executed(tags=["nbval-check-output"])), "no output to compare"),
        (append(executed(tags=["exercise"]), executed(tags=["solution"])), "solution and must be"),
        (append(executed(tags=["check"])), "cell [6] is a check and must be folded"),
        (append(new_markdown_cell("# Again", metadata=SLIDE)), "second heading of level 1"),
        (append(new_markdown_cell("#### Deep")), "level 4 follows one of level 2"),
        (append(new_markdown_cell("## Part")), "needs a slide type"),
        (append(new_markdown_cell("[next](02_none.ipynb)")), "02_none.ipynb leads nowhere"),
        (append(executed(), executed(figure())), "cell [7] draws a figure"),
        (
            append(executed(), executed(figure()), new_markdown_cell("### A")),
            "cell [7] draws a figure",
        ),
        (append(new_markdown_cell("![ ](https://x.y/z.png)")), "picture without an alt text"),
        (append(new_markdown_cell('<img src="https://x.y/z.png">')), "picture without an alt"),
        (append(new_markdown_cell("## More `code`", metadata=SLIDE)), "differ in More-code"),
        (lambda cells: cells[:2] + cells[4:], "sections differ in Part"),
        (append(executed(printed("x" * module.MAX_BYTES))), f"more than {module.MAX_BYTES:,}"),
        (lambda cells: [new_markdown_cell("# Title", metadata=SLIDE), *cells[1:]], "Colab badge"),
        (lambda cells: [], "the first cell must be text"),
    ],
)
def test_check_names_the_problem(good, change, message):
    cells, check = good
    assert any(message in problem for problem in check(change(cells)))


def test_a_figure_with_an_alt_text_needs_no_sentence_beside_it(good):
    cells, check = good
    assert check([*cells, executed(), executed(figure(), alt="a box"), executed()]) == []


def test_the_contents_keep_the_order(good):
    cells, check = good
    last = new_markdown_cell("## Last", metadata=SLIDE)
    cells[0].source += " [Last](#Last)"
    assert check([*cells, last]) == []
    cells[0].source = cells[0].source.replace("[Part](#Part) [Last](#Last)", "[](#Last) [](#Part)")
    assert ["another order" in problem for problem in check([*cells, last])] == [True]


def test_a_picture_with_an_alt_text_is_no_problem(good):
    cells, check = good
    pictures = '![a box](https://x.y/z.png) <img src="https://x.y/z.png" alt="a box"> `![](x)`'
    assert check([*cells, new_markdown_cell(pictures)]) == []


def test_check_sees_what_canonicalise_would_mend(good):
    cells, check = good
    found = check([*cells, executed(printed("oops", "stderr"))], canonical=False)
    assert "the execution counts are not 1..N: run it from top to bottom" in found
    assert "cell [6] writes to stderr: 'oops'; mend the cause" in found
    assert any("canonical form" in problem for problem in check(cells, canonical=False))


def test_check_asks_for_links_to_the_neighbours(good, tmp_path):
    cells, check = good
    write(tmp_path / "00_before.ipynb", "1")
    write(tmp_path / "02_after.ipynb", "1")
    write(tmp_path / "01b.ipynb", "1")  # somebody's own
    assert check(cells) == [
        "no link to the neighbour 00_before.ipynb",
        "no link to the neighbour 02_after.ipynb",
    ]


def test_somebodys_own_notebook_is_told_its_name(good):
    cells, check = good
    cells[0].source = cells[0].source.replace("01_toy", "Untitled")
    found = check(cells, name="Untitled.ipynb")
    assert found[0] == "a lecture is named NN_name.ipynb, in small letters"
    assert not any("neighbour" in problem for problem in found)


def test_the_measure_of_a_page_is_a_rule_for_those_that_are_not_excused(good, monkeypatch):
    cells, check = good
    assert check(cells) == []  # 01 is excused here
    monkeypatch.setattr("tools.pages.EXCUSED", {"00"})
    found = check(cells)
    assert "figures: 1, and 10 is the least" in found
    assert "of them narrow, %: 100, and 34 is the most" in found and len(found) == 2
    more = [executed(source="1") for _ in range(70)]
    assert "code cells: 73, and 60 is the most" in check([*cells, *more])


def test_broken_links_are_found(tmp_path):
    (tmp_path / "there.md").touch()
    text = "[a](there.md#part) ![b](gone.png) [c](https://x.y) [d](#e)\n```\n[f](code.md)\n```\n"
    text += '<a href="also-gone.md">g</a> `[h](inline.md)` [i](mailto:a@b.c)'
    assert module.broken_links(text, tmp_path) == ["gone.png", "also-gone.md"]


def test_the_set_up_cell_is_short_and_plain():
    lines = module.SETUP_CELL.read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 8
    assert not any(line.lstrip().startswith(("!", "%")) for line in lines)
