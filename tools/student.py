"""The student edition: a course of its own, without the solutions of the exercises."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nbformat
from nbconvert.preprocessors import TagRemovePreprocessor
from nbformat import NotebookNode

from helpers.lessons import LECTURE, read
from helpers.records import ROOT
from tools.canonical import canonicalise, to_text

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
    "tools",
)
LEFT_OUT = ("helpers/exercises/solutions",)
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

    It is written whole or not at all, and holds only what belongs to the course: in a clone, what
    git knows of. Raises ValueError if `out` is a file or holds something, if a notebook is not as
    it should be, or if git cannot read the clone.
    """
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is not a new or empty folder; nothing was written")
    files = _own_files(root)
    lectures = [f for f in files if f.parent == Path("notebooks") and LECTURE.fullmatch(f.name)]
    if not lectures:
        raise ValueError(f"{root / 'notebooks'} holds no lecture; nothing was written")
    editions = {path.name: _edition(root / path) for path in lectures}
    # In the folder that will hold it, or hold its parents, so that one step puts it in place.
    near = next(folder for folder in out.parents if folder.exists())
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=near) as folder:
        half = Path(folder) / "edition"
        for file in (f for f in files if _is_carried(f)):
            (half / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, half / file)  # with its mode: ./lectures remains a command
        (half / "notebooks").mkdir(parents=True)
        for name, edition in editions.items():
            _write(half / "notebooks" / name, to_text(edition))
        _write(half / "README.md", README.format(lectures=_contents(editions)))
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()  # it is empty; Windows renames onto nothing
        half.rename(out)
    return [out / path for path in lectures]


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """A canonical copy of an executed notebook without the cells that have the tag `solution`.

    Outputs stay: an exercise shows what its check says of the stub. Cells are counted anew. Checks
    are folded, since they know the answers. Raises ValueError naming the cell if one cannot be made
    canonical.
    """
    remover = TagRemovePreprocessor(enabled=True, remove_cell_tags={"solution"})
    kept, _ = remover.preprocess(nbformat.from_dict(notebook), {})
    edition = canonicalise(kept)
    for cell in edition.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(FOLDED, "")
        elif "check" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = nbformat.from_dict({"source_hidden": True})
    return edition


def _own_files(root: Path) -> list[Path]:
    """The course's files, as seen from `root`: what git knows of in a clone, else all there are."""
    # A folder inside somebody's repository is no clone of the course.
    if not (root / ".git").exists():
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return sorted(path for path in found if "__pycache__" not in path.parts)
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True)
    if listed.returncode != 0:
        said = listed.stderr.decode(errors="replace").strip()
        raise ValueError(f"git cannot say what belongs to {root}: {said}; nothing was written")
    names = (Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name)
    return sorted(name for name in names if (root / name).is_file())


def _is_carried(file: Path) -> bool:
    left_out = any(file.is_relative_to(folder) for folder in LEFT_OUT)
    return file.parts[0] in CARRIED and not left_out


def _edition(path: Path) -> NotebookNode:
    try:
        return without_solutions(read(path))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}; nothing was written") from None


def _contents(editions: dict[str, NotebookNode]) -> str:
    """A list of links to the notebooks, under the titles in their first cells."""
    titles = {name: e.cells[0].source.split("\n")[0] for name, e in editions.items()}
    return "\n".join(f"* [{t.lstrip('# ')}](notebooks/{name})" for name, t in titles.items())


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on every system
