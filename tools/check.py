"""The rules that every lecture notebook keeps, and the breaches of each."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from helpers.lessons import find, notebooks, read
from helpers.records import ROOT
from tools import pages
from tools.canonical import canonicalise, named_cells, output_problems, to_text
from tools.publish import present_address

SETUP_CELL = ROOT / "tools" / "setup_cell.py"
MAX_BYTES = 1_500_000
MAX_LINES = 35
MAX_CLASS_LINES = 45
TAGS = {"nbval-check-output", "exercise", "check", "solution", "further"}
SLIDE_TYPES = {"slide", "subslide", "fragment", "skip", "notes", "-"}
FORBIDDEN = {
    "tqdm.notebook": "a bar of widgets leaves nothing on paper; use helpers.training",
    "tqdm.auto": "in Jupyter it becomes tqdm.notebook; use helpers.training",
    "clear_output": "nbval cannot follow it; draw once, at the end",
}
_PICTURE_WITHOUT_ALT = re.compile(r"!\[\s*\]\(|<img\b(?![^>]*\balt=[\"'][^\"'])")
_LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:a|img)\b[^>]*?(?:href|src)=[\"']([^\"']+)", re.DOTALL)


def check(name: str | Path) -> list[str]:
    """What is wrong with a notebook, one sentence per problem; empty if nothing is."""
    path = find(name)
    return list(problems(path, read(path)))


def problems(path: Path, notebook: NotebookNode) -> Iterator[str]:
    """What is wrong with the notebook that was read from `path`, one sentence per problem."""
    cells = list(named_cells(notebook))
    yield from _file_problems(path, notebook)
    for name, cell in cells:
        yield from _tag_problems(name, cell)
        if cell.cell_type == "code":
            yield from _code_problems(name, cell)
            yield from output_problems(name, cell)
    yield from _opening_problems(path, notebook)
    yield from _contents_problems(notebook)
    yield from _setup_problems(notebook)
    yield from _heading_problems(cells)
    yield from _order_problems(cells)
    if path.stem.split("_")[0] not in pages.EXCUSED:
        yield from pages.problems(pages.measure(notebook))
    for link in broken_links("\n".join(text_of(notebook)), path.parent):
        yield f"the link {link} leads nowhere"


def broken_links(markdown: str, folder: Path) -> list[str]:
    """The relative links and images of `markdown` that are no file as seen from `folder`."""
    targets = [a or b for a, b in _LINK.findall(_without_code(markdown))]
    local = [t for t in targets if not re.match(r"[a-z]+:|#|//", t)]
    return [t for t in local if not (folder / t.split("#")[0]).exists()]


def text_of(notebook: NotebookNode) -> list[str]:
    """The sources of the markdown cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def is_folded(cell: NotebookNode) -> bool:
    """Whether JupyterLab hides the cell's source."""
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def _file_problems(path: Path, notebook: NotebookNode) -> Iterator[str]:
    text = path.read_bytes().decode()
    if len(text.encode()) > MAX_BYTES:
        yield f"the file has {len(text.encode()):,} bytes, more than {MAX_BYTES:,}"
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) < len(ids):
        yield "a cell id misses or occurs twice"
    if "widgets" in notebook.metadata:
        yield "the metadata hold widget state, which GitHub refuses to show"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield "the execution counts are not 1..N: run it from top to bottom"
    try:
        if to_text(canonicalise(notebook)) != text:
            yield "not in canonical form: write it with python -m tools run"
    except ValueError:
        pass  # the cells' own problems name the cause


def _tag_problems(name: str, cell: NotebookNode) -> Iterator[str]:
    tags = cell.metadata.get("tags", [])
    for tag in sorted(set(tags) - TAGS):
        yield f"{name} has the tag {tag!r}; the known ones are {', '.join(sorted(TAGS))}"
    if cell.cell_type != "code":
        return
    if "nbval-check-output" in tags and not cell.outputs:
        yield f"{name} has the tag nbval-check-output but no output to compare"
    for tag in ("check", "solution"):
        if tag in tags and not is_folded(cell):
            yield f"{name} is a {tag} and must be folded (metadata jupyter.source_hidden)"


def _code_problems(name: str, cell: NotebookNode) -> Iterator[str]:
    try:
        tree = ast.parse(cell.source)
    except SyntaxError as error:
        yield f"{name} is not plain Python (no magics, no ! lines): {error.msg}"
        return
    has_class = any(isinstance(node, ast.ClassDef) for node in tree.body)
    limit = MAX_CLASS_LINES if has_class else MAX_LINES
    lines = cell.source.count("\n") + 1
    if lines > limit:
        yield f"{name} has {lines} lines, more than {limit}"
    for word, reason in FORBIDDEN.items():
        if word in cell.source:
            yield f"{name} uses {word}: {reason}"
    if re.search(r"^\s*# ?(?:NBVAL_|PYTEST_)", cell.source, re.MULTILINE):
        yield f"{name} has a comment marker for nbval; use a tag"


def _opening_problems(path: Path, notebook: NotebookNode) -> Iterator[str]:
    first = notebook.cells[0] if notebook.cells else NotebookNode(cell_type="none", source="")
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell must be text that begins with the title, '# ...'"
    address = present_address(SETUP_CELL)
    badge = f"https://colab.research.google.com/github/{address}/blob/main/notebooks/{path.name}"
    text = "\n".join(text_of(notebook))
    if f"({badge})" not in text and f'"{badge}"' not in text:
        yield f"the Colab badge must link to {badge}"
    others = [other.name for other in notebooks(path.parent)]
    if path.name not in others:
        yield "a lecture is named NN_name.ipynb, in small letters"
        return
    here = others.index(path.name)
    for neighbour in others[max(here - 1, 0) : here] + others[here + 1 : here + 2]:
        if f"({neighbour})" not in text:
            yield f"no link to the neighbour {neighbour}"


def _contents_problems(notebook: NotebookNode) -> Iterator[str]:
    """The first cell must link to every section, in their order, as Jupyter names the anchors."""
    texts = [_without_fences(text) for text in text_of(notebook)]
    sections = [s for text in texts for s in re.findall(r"^## +(.+?) *$", text, re.MULTILINE)]
    anchors = [re.sub(r"[`*]", "", section).replace(" ", "-") for section in sections]
    listed = re.findall(r"\]\(#([^)\s]+)\)", texts[0]) if texts else []
    wrong = [a for a in anchors if a not in listed] + [a for a in listed if a not in anchors]
    if wrong:
        yield f"the contents of the first cell and the sections differ in {', '.join(wrong)}"
    elif listed != anchors:
        yield "the contents of the first cell list the sections in another order, or one twice"


def _setup_problems(notebook: NotebookNode) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not code or code[0].source != SETUP_CELL.read_text(encoding="utf-8").rstrip("\n"):
        yield "the first code cell must equal tools/setup_cell.py"
    elif not (is_folded(code[0]) and code[0].metadata.get("cellView") == "form"):
        yield "the set-up cell must be folded (metadata jupyter.source_hidden and cellView)"


def _heading_problems(cells: list[tuple[str, NotebookNode]]) -> Iterator[str]:
    above = 0
    for position, (name, cell) in enumerate(cells):
        if cell.cell_type != "markdown":
            continue
        for hashes in re.findall(r"^(#{1,6}) ", _without_code(cell.source), re.MULTILINE):
            level = len(hashes)
            if level > above + 1:
                yield f"{name}: a heading of level {level} follows one of level {above}"
            if level == 1 and (position > 0 or above > 0):
                yield f"{name}: a second heading of level 1"
            above = level
        slide = cell.metadata.get("slideshow", {}).get("slide_type")
        if re.match(r"##? ", cell.source) and slide not in SLIDE_TYPES:
            yield f"{name}: a heading of level 1 or 2 needs a slide type (metadata slideshow)"


def _order_problems(cells: list[tuple[str, NotebookNode]]) -> Iterator[str]:
    nothing = ("", NotebookNode(cell_type="none", metadata={}))
    around = zip([nothing, *cells], cells, [*cells[1:], nothing])
    for (_, before), (name, cell), (_, after) in around:
        tags = cell.metadata.get("tags", [])
        previous = set(before.metadata.get("tags", []))
        if "solution" in tags and not previous & {"exercise", "solution"}:
            yield f"{name} is a solution but does not follow its exercise"
        outputs = cell.get("outputs", [])
        has_figure = any("image/png" in output.get("data", {}) for output in outputs)
        described = cell.metadata.get("alt") or _has_sentence(before) or _has_sentence(after)
        if has_figure and not described:
            yield f"{name} draws a figure that no text beside it describes"
        if cell.cell_type == "markdown" and _PICTURE_WITHOUT_ALT.search(_without_code(cell.source)):
            yield f"{name} has a picture without an alt text"


def _has_sentence(cell: NotebookNode) -> bool:
    """Whether `cell` says something: headings, tables and formulas describe no figure."""
    if cell.cell_type != "markdown":
        return False
    lines = _without_fences(cell.source).split("\n")
    prose = (line for line in lines if not re.match(r"\s*(#|\||\$\$)", line))
    return any(len(line.split()) > 3 for line in prose)


def _without_code(markdown: str) -> str:
    """`markdown` without fenced blocks and inline code, where # and ]( mean something else."""
    return re.sub(r"`[^`\n]*`", "", _without_fences(markdown))


def _without_fences(markdown: str) -> str:
    lines, fenced = [], False
    for line in markdown.split("\n"):
        if re.match(r"\s*(```|~~~)", line):
            fenced = not fenced
        elif not fenced:
            lines.append(line)
    return "\n".join(lines)
