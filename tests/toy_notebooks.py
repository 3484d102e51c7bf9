"""Small notebooks for the tests of what reads, runs, tidies and checks notebooks."""

import base64
import io
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

SLIDE = {"slideshow": {"slide_type": "slide"}}


def write(path: Path, *cells: NotebookNode | str) -> Path:
    """A notebook of `cells`; a string is the source of a code cell."""
    made = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    path.write_text(nbformat.writes(new_notebook(cells=made)))
    return path


def executed(*outputs: NotebookNode, source: str = "1", **metadata: Any) -> NotebookNode:
    """A code cell that was run, with what it put out."""
    return new_code_cell(source, execution_count=7, outputs=list(outputs), metadata=metadata)


def printed(text: str, name: str = "stdout") -> NotebookNode:
    """An output of text."""
    return new_output("stream", name=name, text=text)


def figure(width: int = 1, height: int = 1) -> NotebookNode:
    """An output of a picture, black and already as light as it gets."""
    buffer = io.BytesIO()
    Image.new("P", (width, height)).save(buffer, format="PNG", optimize=True)
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    return new_output("display_data", data)
