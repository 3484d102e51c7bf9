"""The measure of a page: a lecture of fifty minutes has so many cells, lines, figures and slides.

What stands under the heading *Further* or is tagged so does not count, nor do the exercises, but
for their slides.
"""

import base64
import re
import statistics
import struct
from collections.abc import Iterator, Mapping

from nbformat import NotebookNode

# Lectures that are not rewritten yet. Each leaves this list with its second edition.
EXCUSED = frozenset("09".split())

# Of each measure its name in the table, the least and the most.
LIMITS: dict[str, tuple[str, float | None, float | None]] = {
    "cells": ("code cells", None, 60),
    "lines": ("lines of code", None, 650),
    "median": ("lines per cell, median", None, 8),
    "p90": ("lines per cell, 90 %", None, 18),
    "most": ("lines per cell, most", None, 40),
    "words": ("words per line", 4, None),
    "figures": ("figures", 10, None),
    "narrow": ("of them narrow, %", None, 34),
    "slides": ("slides", None, 50),
}
WIDE = 1000  # pixels, of a picture that fills the page
EXERCISES = {"check", "exercise", "solution"}
_FURTHER = re.compile(r"#{1,2} (?:\d+ )?Further *(?:\n|:|$)")
_SECTION = re.compile(r"#{1,2} ")


def measure(notebook: NotebookNode) -> dict[str, float]:
    """The measures of a lecture, by the names of LIMITS."""
    counted = list(for_the_room(notebook))
    taught = [c for c in counted if not EXERCISES & set(c.metadata.get("tags", []))]
    lesson = [cell for cell in taught if cell.cell_type == "code"]
    lines = sorted(sum(bool(line.strip()) for line in c.source.splitlines()) for c in lesson) or [0]
    words = sum(len(c.source.split()) for c in taught if c.cell_type == "markdown")
    widths = [width for cell in lesson for width in _widths(cell)]
    kinds = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in counted]
    return {
        "cells": len(lesson),
        "lines": sum(lines),
        "median": statistics.median(lines),
        "p90": lines[int(0.9 * len(lines))],
        "most": lines[-1],
        "words": round(words / max(1, sum(lines)), 1),
        "figures": len(widths),
        "narrow": round(100 * sum(w < WIDE for w in widths) / max(1, len(widths))),
        "slides": sum(kind in ("slide", "subslide") for kind in kinds),
    }


def problems(measures: Mapping[str, float]) -> Iterator[str]:
    """One sentence per measure that is out of its limits."""
    for key, (name, least, most) in LIMITS.items():
        if least is not None and measures[key] < least:
            yield f"{name}: {measures[key]:g}, and {least:g} is the least"
        if most is not None and measures[key] > most:
            yield f"{name}: {measures[key]:g}, and {most:g} is the most"


def table(pages: Mapping[str, Mapping[str, float]]) -> str:
    """The measures of several lectures as aligned text; what is out of its limits has a star."""
    width = max((len(page) for page in pages), default=0)
    head = [" " * width + "".join(f"{key:>9}" for key in LIMITS)]
    bounds = [
        f"{'' if a is None else f'>={a:g}'}{'' if b is None else f'<={b:g}'}"
        for _, a, b in LIMITS.values()
    ]
    rows = [f"{page:{width}}{_row(measures)}" for page, measures in pages.items()]
    return "\n".join([*head, " " * width + "".join(f"{bound:>9}" for bound in bounds), *rows])


def _row(measures: Mapping[str, float]) -> str:
    stars = {sentence.split(":")[0] for sentence in problems(measures)}
    cells = [f"{measures[k]:g}{'*' if name in stars else ''}" for k, (name, _, _) in LIMITS.items()]
    return "".join(f"{cell:>9}" for cell in cells)


def for_the_room(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """The cells that are neither under the heading *Further* nor tagged so."""
    further = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and _SECTION.match(cell.source):
            further = bool(_FURTHER.match(cell.source))
        if not further and "further" not in cell.metadata.get("tags", []):
            yield cell


def _widths(cell: NotebookNode) -> Iterator[int]:
    """Widths in pixels of the figures that a code cell shows."""
    for output in cell.get("outputs", []):
        picture = output.get("data", {}).get("image/png")
        if picture:
            yield struct.unpack(">I", base64.b64decode(picture)[16:20])[0]
