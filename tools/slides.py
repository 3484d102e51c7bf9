"""Breaks for `jupyter nbconvert --to slides`, so that every slide fits the screen.

`python -m tools slides [05 ...]` writes the missing slide types into the notebooks.

A section goes to the right, its slides downwards. A slide begins at a cell of the type slide or
subslide and shows all cells until the next one, except those of the type skip. A single cell may be
higher than the screen, a class and a table for instance: it can be scrolled (slides/lecture).
"""

import ast
import base64
import math
import re
import struct
from collections.abc import Iterator

from nbformat import NotebookNode

from tools.canonical import named_cells
from tools.pages import for_the_room

# As in slides/nbconvert.json: 100 columns and 37 lines of code fit. A larger slide would have
# smaller letters; these are 1/48 of its height.
WIDTH, HEIGHT = 1440, 920
ROOM = HEIGHT - 40  # reveal.js's padding
BREAKS = ("slide", "subslide")


def deck(notebook: NotebookNode) -> list[list[tuple[str, NotebookNode]]]:
    """The cells of each slide, with their names. The first cell must begin a slide."""
    slides: list[list[tuple[str, NotebookNode]]] = []
    for name, cell in named_cells(notebook):
        if slide_type(cell) in BREAKS:
            slides.append([])
        if slide_type(cell) not in ("skip", "notes"):
            slides[-1].append((name, cell))
    return slides


def slide_type(cell: NotebookNode) -> str:
    """The cell's slide type, "-" if it has none."""
    return cell.metadata.get("slideshow", {}).get("slide_type", "-")


def problems(notebook: NotebookNode) -> Iterator[str]:
    """What is wrong with the slides, one sentence per problem."""
    unseen = not_for_the_hall(notebook)
    for name, cell in named_cells(notebook):
        if _is_title(cell) and cell.id not in unseen and slide_type(cell) != "slide":
            yield f"{name}: a heading of level 1 or 2 must begin a slide"
            return  # there may be no deck to look at
        if (slide_type(cell) == "skip") != (cell.id in unseen):
            yield f"{name} must {'' if cell.id in unseen else 'not '}have the slide type skip"
    for slide in deck(notebook):
        full = sum(height(cell) for _, cell in slide)
        if full > ROOM and len(slide) > 1:
            yield f"the slide of {slide[0][0]} is {full} high, more than {ROOM}: break it"


def add_breaks(notebook: NotebookNode) -> None:
    """Leave out what is not for the hall, and break each slide before the cell that is too much.

    Breaks that are there stay. A text stays with the code below it if both fit on one slide.
    """
    unseen = not_for_the_hall(notebook)
    for cell in notebook.cells:
        if cell.id in unseen:
            cell.metadata["slideshow"] = {"slide_type": "skip"}
        elif _is_title(cell):
            cell.metadata["slideshow"] = {"slide_type": "slide"}
    for slide in deck(notebook):
        room = ROOM
        for (_, cell), (_, below) in zip(slide, [*slide[1:], slide[-1]]):
            need = height(cell)
            both = need + height(below)
            if cell.cell_type == "markdown" and below.cell_type == "code" and both <= ROOM:
                need = both
            if room < ROOM and need > room:
                cell.metadata["slideshow"] = {"slide_type": "subslide"}
                room = ROOM
            room -= height(cell)


def _is_title(cell: NotebookNode) -> bool:
    return cell.cell_type == "markdown" and bool(re.match(r"##? ", cell.source))


def not_for_the_hall(notebook: NotebookNode) -> set[str]:
    """The ids of the cells that only a reader needs.

    They are the set-up before the first section, but not its figure, rows for the table of claims,
    sliders, which are dead on a slide, the checks and solutions of the exercises, folded code that
    shows nothing, and whatever is *Further*.
    """
    found = {cell.id for cell in notebook.cells} - {cell.id for cell in for_the_room(notebook)}
    in_section = False
    for cell in notebook.cells:
        in_section |= cell.cell_type == "markdown" and cell.source.startswith("## ")
        if cell.cell_type == "code":
            tags = {"check", "solution"} & set(cell.metadata.get("tags", []))
            set_up = not in_section and "plt.show()" not in cell.source
            folded = cell.metadata.get("jupyter", {}).get("source_hidden") and not cell.outputs
            if set_up or tags or folded or _is_only_bookkeeping(cell.source):
                found.add(cell.id)
    return found


def _is_only_bookkeeping(source: str) -> bool:
    return all(
        re.match(r"claims (\+=|=) |claims\.(append|extend)\(|explore\(", ast.unparse(statement))
        for statement in ast.parse(source).body
    )


# ---------------------------------------------------------------- how high a cell is, roughly


def height(cell: NotebookNode) -> int:
    """The cell's height on a slide."""
    if cell.cell_type == "markdown":
        return round(_text_height(cell.source))
    return round(_code_height(cell.source) + sum(map(_output_height, cell.outputs)))


# Measured in Chromium: nbconvert's lines of code and text, and what stands around a cell.
CODE_LINE, TEXT_LINE, HEADING, AROUND = 22.7, 26, 76, 40
LETTERS = 122  # of text in a line


def _code_height(source: str) -> float:
    return CODE_LINE * (source.count("\n") + 1) + AROUND / 2


def _text_height(source: str) -> float:
    """Paragraphs, one below the other; a row of a table, a formula or an item is one of its own."""
    total = AROUND
    for block in re.split(r"\n\s*\n|\n(?=[-*|] |\d+\. |\|)|(?<=\|)\n", source):
        heading, _, text = block.partition("\n") if block.startswith("#") else ("", "", block)
        total += HEADING if heading else 0
        total += TEXT_LINE * (math.ceil(len(text) / LETTERS) + (0.5 if text else 0))
    return total


def _output_height(output: NotebookNode) -> float:
    data = output.get("data", {})
    if "image/png" in data:
        width, high = struct.unpack(">II", base64.b64decode(data["image/png"])[16:24])
        return high * min(1, (WIDTH - 130) / width) + 1.3 * AROUND
    if "text/markdown" in data:
        return _text_height(data["text/markdown"])
    text = output.get("text", data.get("text/plain", "")).rstrip("\n")
    return CODE_LINE * (text.count("\n") + 1) + AROUND / 2
