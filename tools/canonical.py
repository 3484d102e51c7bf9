"""One form for every notebook, whatever machine and front end it comes from."""

import base64
import copy
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from helpers.records import ROOT

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
HEAVY = 75_000  # bytes of a picture
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# Folders of one machine: they mean nothing to a reader and give away who ran the notebook.
_MACHINE_PATH = re.compile(
    r"(?:(?<![\w.:/-])|(?<=file://))(?:/(?:home|Users|root|content|tmp)/\S+)|\b[A-Z]:\\Users\\\S+"
)


def named_cells(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Every cell with a name for messages: "cell [3]" for code, its first words for text."""
    number = 0
    for cell in notebook.cells:
        number += cell.cell_type == "code"
        first_line = cell.source.strip().split("\n")[0]
        yield f"cell [{number}]" if cell.cell_type == "code" else f"text {first_line[:40]!r}", cell


def canonicalise(notebook: NotebookNode) -> NotebookNode:
    """A tidy copy of an executed notebook, the same for every machine and front end.

    Execution counts are 1..N; ids are kept and made where they miss; metadata is reduced to kernel,
    tags, slides, alt text and folding; widgets leave no output; blank cells go; printed text is
    joined, a progress line shows its last state, and figures get a palette of 256 colours. Raises
    ValueError naming the cell if one was not executed, or if an output is an error, is on stderr
    or shows a path of this machine.
    """
    result = nbformat.v4.new_notebook(metadata=copy.deepcopy(METADATA))
    result.nbformat_minor = 5
    taken: set[str] = set()
    number = 0
    for name, original in named_cells(notebook):
        if not original.source.strip():
            continue
        cell = copy.deepcopy(original)
        cell.id = _fresh_id(cell, len(result.cells), taken)
        cell.metadata = _cell_metadata(cell.metadata)
        if cell.cell_type == "code":
            number += 1
            for problem in output_problems(name, cell):
                raise ValueError(problem)
            cell.execution_count = number
            cell.outputs = _tidy_outputs(cell.outputs, number)
        result.cells.append(cell)
    return result


def to_text(notebook: NotebookNode) -> str:
    """The notebook as the text of its file: JSON with indent 1, not escaped, a final newline."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def _fresh_id(cell: NotebookNode, position: int, taken: set[str]) -> str:
    identifier = cell.get("id")
    if not identifier or identifier in taken:
        seed = f"{position}\n{cell.source}"
        identifier = hashlib.sha256(seed.encode()).hexdigest()[:12]
    taken.add(identifier)
    return identifier


def _cell_metadata(metadata: NotebookNode) -> NotebookNode:
    kept = {
        key: metadata[key] for key in ("alt", "cellView", "slideshow", "tags") if metadata.get(key)
    }
    if metadata.get("jupyter", {}).get("source_hidden"):
        kept["jupyter"] = {"source_hidden": True}
    return nbformat.from_dict(kept)


def output_problems(name: str, cell: NotebookNode) -> Iterator[str]:
    """What an executed code cell must not show; one sentence each, which names the cell."""
    if cell.execution_count is None:
        yield f"{name} was not executed"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"{name} has an error output: {output.ename}: {output.evalue}"
        if output.get("name") == "stderr":
            yield f"{name} writes to stderr: {output.text.strip()[:200]!r}; mend the cause"
        if WIDGET_VIEW in output.get("data", {}):
            continue  # its text is dropped together with it
        texts = [output.get("text", "")]
        texts += [str(v) for k, v in output.get("data", {}).items() if not k.startswith("image/")]
        for found in filter(None, map(_machine_path, texts)):
            yield f"{name} shows a path of this machine: {found}"


def _machine_path(text: str) -> str | None:
    for folder in (ROOT, Path.home()):
        if len(folder.parts) > 2 and str(folder) in text:
            return str(folder)
    match = _MACHINE_PATH.search(text)
    return match[0] if match else None


def _tidy_outputs(outputs: list[NotebookNode], number: int) -> list[NotebookNode]:
    tidy: list[NotebookNode] = []
    for output in outputs:
        if WIDGET_VIEW in output.get("data", {}):
            continue
        if output.output_type == "stream" and tidy and tidy[-1].output_type == "stream":
            tidy[-1].text += output.text
            continue
        if output.output_type == "execute_result":
            output.execution_count = number
        tidy.append(output)
    for output in tidy:
        if output.output_type == "stream":
            output.text = _last_states(output.text)
        elif "image/png" in output.data:
            output.data["image/png"] = _light_png(output.data["image/png"])
    return [output for output in tidy if output.get("text") != ""]


def _light_png(encoded: str) -> str:
    """A base64 PNG reduced to a palette of 256 colours, which photographs and noise need most.

    If it is heavy even so, to 24: a photograph of leaves hides it well. A picture that has a
    palette already, or would not get smaller, stays as it is.
    """
    original = base64.b64decode(encoded)
    picture = Image.open(io.BytesIO(original))
    if picture.mode == "P":
        return encoded
    light = _with_palette(picture, 256)
    light = _with_palette(picture, 24) if len(light) > HEAVY else light
    if len(light) >= len(original):
        return encoded
    return base64.b64encode(light).decode("ascii") + "\n"


def _with_palette(picture: Image.Image, colours: int) -> bytes:
    buffer = io.BytesIO()
    palette = picture.convert("RGB").quantize(colours, kmeans=1, dither=Image.Dither.NONE)
    palette.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _last_states(text: str) -> str:
    """`text` as a terminal leaves it: what follows a carriage return overwrites the line."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
