"""What a reader of all notebooks needs: one notation table, an HTML build without dead links."""

import functools
import logging
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from helpers import lessons as tool
from helpers.lessons import FOLDER
from tools.check import text_of

NAMES = [path.name for path in tool.notebooks()]
# nbconvert's template has no place for a cell's alt text; a text beside it describes a figure.
KNOWN = "Alternative text is missing on %s image(s)."


class Page(HTMLParser):
    """Anchors, links and pictures of an HTML page."""

    def __init__(self, html: str):
        super().__init__()
        self.anchors, self.links, self.pictures = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors += [given[key] for key in ("id", "name") if given.get(key)]
        self.links += [given["href"]] if tag == "a" and given.get("href") else []
        self.pictures += [(given.get("src", ""), given.get("alt"))] if tag == "img" else []


def build(notebook: NotebookNode) -> tuple[Page, list[str]]:
    """A notebook as `jupyter nbconvert --to html` makes it, and what the conversion logs."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(str(record.msg))
    log = logging.Logger("nbconvert")
    log.addHandler(handler)
    html, _ = HTMLExporter(log=log).from_notebook_node(notebook)
    return Page(html), said


@functools.cache
def built(name: str) -> tuple[Page, list[str]]:
    return build(tool.read(FOLDER / name))


def inside(address: str) -> bool:
    return not re.match(r"[a-z]+:|//", address)


def dead_links(page: Page) -> list[str]:
    """Relative links that lead to no file beside the notebooks, or to no single place of a page."""
    dead = []
    for link in filter(inside, page.links):
        file, _, anchor = map(unquote, link.partition("#"))
        if file and not (FOLDER / file).exists():
            dead.append(link)
        elif anchor and (not file or file in NAMES):
            anchors = (built(file)[0] if file else page).anchors
            dead += [link] if [unquote(a) for a in anchors].count(anchor) != 1 else []
    return dead


@pytest.mark.parametrize("name", NAMES)
def test_links_of_the_html_build_lead_somewhere(name):
    page, said = built(name)
    assert dead_links(page) == [] and set(said) <= {KNOWN}


@pytest.mark.parametrize("name", NAMES)
def test_the_html_build_is_complete(name):
    page, _ = built(name)
    notebook = tool.read(FOLDER / name)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    sources = [source for source, _ in page.pictures]
    assert sum(source.startswith("data:image/png") for source in sources) == len(figures) > 0
    assert not [s for s in sources if inside(s) and not (FOLDER / s).exists()]
    assert all(alt for _, alt in page.pictures)
    sections = re.findall(r"^## ", "\n".join(text_of(notebook)), re.MULTILINE)
    # Once from the contents, once from the mark beside the heading itself.
    assert len([link for link in page.links if re.match(r"#\d+-", link)]) >= 2 * len(sections) > 10


def test_dead_links_are_found():
    text = "# 1 Title\n[a](#2-There) [b](#gone) [c](gone.ipynb) [d](https://x.y/#z)\n## 2 There\n"
    text += f"[e]({NAMES[0]}) [f]({NAMES[0]}#gone) [g]({NAMES[0]}#12-Summary)\n### Twice\n### Twice"
    page, said = build(
        new_notebook(cells=[new_markdown_cell(text), new_markdown_cell("[](#Twice)")])
    )
    assert set(dead_links(page)) == {"#gone", "gone.ipynb", f"{NAMES[0]}#gone", "#Twice"}
    assert said == []


def test_there_is_one_notation_table_and_every_notebook_leads_to_it():
    first, *others = ["\n".join(text_of(tool.read(path))) for path in tool.notebooks()]
    table = r"^## 2 Notation and data\n\n.+\n\n\| symbol \| meaning \|$"
    assert re.search(table, first, re.MULTILINE)
    for text in others:
        assert not re.search(r"^#+ .*Notation|^\| *symbol *\|", text, re.MULTILINE)
        assert f"notation table in [00]({NAMES[0]})" in text


def test_the_first_cell_leads_to_the_notebooks_before_and_after():
    for before, after in zip(NAMES, NAMES[1:]):
        assert f"({after})" in tool.read(FOLDER / before).cells[0].source
        assert f"({before})" in tool.read(FOLDER / after).cells[0].source
