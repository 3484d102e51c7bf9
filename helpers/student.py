"""The student edition: a course of its own, without the solutions of the exercises.

Command line: python -m helpers.notebooks student OUT
"""

import shutil
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.notebooks import canonicalise, notebooks, read, to_text
from helpers.records import ROOT

# All that a notebook needs, so that its first cell finds this edition wherever the folder lies, and
# a relative link leads to what it leads to in the course. tests/ would give the answers away.
CARRIED = (
    ".gitattributes",
    ".gitignore",
    "LICENSE",
    "conftest.py",
    "data",
    "environment.yml",
    "helpers",
    "lectures",
    "pyproject.toml",
    "requirements.txt",
)
FOLDED = " Solutions are folded below each exercise."
README = """# Object-detection lectures, student edition

The notebooks of the course, without the solutions of their exercises. Replace the stub of an
exercise and run its cell: the check says what is wrong, until it answers ✓.

On Linux, open the notebooks with `./lectures open`. Elsewhere, and in an environment of your own:

```bash
python -m pip install -r requirements.txt
python -m jupyterlab
```

{lectures}

Code and text: [MIT](LICENSE). Photographs and weights: see the [data card](data/README.md).
"""


def write_student_edition(out: str | Path, root: Path = ROOT) -> list[Path]:
    """Write the student edition into the new or empty folder `out` and return its notebooks.

    Raises ValueError, before anything is written, if `out` is a file or holds something, or if a
    notebook is not as it should be.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is not a new or empty folder; nothing was written")
    editions = {path.name: _edition(path) for path in notebooks(root / "notebooks")}
    # Listed before the folder exists: it may lie inside one of those that are copied.
    for file in _carried(root):
        target = out / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)  # with its mode: ./lectures remains a command
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    for name, edition in editions.items():
        _write(out / "notebooks" / name, to_text(edition))
    _write(out / "README.md", README.format(lectures=_contents(editions)))
    return notebooks(out / "notebooks")


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """A canonical copy of an executed notebook without the cells that have the tag `solution`.

    Outputs stay: an exercise shows what its check says of the stub. Cells are counted anew. Checks
    are folded, since they know the answers. Raises ValueError naming the cell if one cannot be made
    canonical.
    """
    kept = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])]
    edition = canonicalise(nbformat.v4.new_notebook(cells=kept))
    for cell in edition.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(FOLDED, "")
        elif "check" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = nbformat.from_dict({"source_hidden": True})
    return edition


def _edition(path: Path) -> NotebookNode:
    notebook = read(path)
    try:
        return without_solutions(notebook)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _carried(root: Path) -> list[Path]:
    found = [f for name in CARRIED for f in (root / name, *(root / name).rglob("*"))]
    return [f for f in found if f.is_file() and "__pycache__" not in f.relative_to(root).parts]


def _contents(editions: dict[str, NotebookNode]) -> str:
    """A list of links to the notebooks, under the titles in their first cells."""
    titles = {name: e.cells[0].source.split("\n")[0] for name, e in editions.items()}
    return "\n".join(f"* [{t.lstrip('# ')}](notebooks/{name})" for name, t in titles.items())


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on every system
