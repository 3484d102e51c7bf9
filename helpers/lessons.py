"""The lecture notebooks as code: find them, read them, load their definitions.

A code cell is named by its number among the code cells, the one that Jupyter shows beside it.
"""

import ast
import builtins
import linecache
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from nbformat import NotebookNode

from helpers.records import ROOT

FOLDER = ROOT / "notebooks"
LECTURE = re.compile(r"\d\d_[a-z0-9_]+\.ipynb")  # else it is somebody's own: Untitled.ipynb, ...

# Calls that a constant's value may make: cheap, and without effect on anything else.
_SAFE_CALLS = frozenset(
    "abs bool dict enumerate float frozenset int len list max min pow range reversed round set "
    "sorted str sum tuple zip Path Fraction np.arange np.array np.linspace np.log np.sqrt "
    "torch.arange torch.device torch.tensor torch.zeros torch.ones".split()
)


def notebooks(folder: Path = FOLDER) -> list[Path]:
    """The lectures in `folder`, in the order of their names (NN_name.ipynb)."""
    return sorted(path for path in folder.glob("*.ipynb") if LECTURE.fullmatch(path.name))


def find(name: str | Path) -> Path:
    """The notebook given by a path, a name ("05_yolo") or a number ("05").

    Raises ValueError naming the choices if there is none.
    """
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    for choice in notebooks():
        if str(name) in (choice.name, choice.stem, choice.stem.split("_")[0]):
            return choice
    choices = ", ".join(p.stem for p in notebooks()) or "none, the folder is empty"
    raise ValueError(f"no notebook {str(name)!r}; the choices are: {choices}")


def read(path: Path) -> NotebookNode:
    """The notebook at `path`, as it is. Raises ValueError if the file is no notebook."""
    data = path.read_bytes()
    try:
        notebook = nbformat.reads(data.decode(), as_version=nbformat.NO_CONVERT)
        if notebook.get("nbformat") != 4:
            raise ValueError(f"its nbformat must be 4, got {notebook.get('nbformat')}")
    except Exception as error:  # nbformat has one of its own for each kind of damage
        raise ValueError(f"{path.name} is not a notebook: {error}") from None
    return notebook


def load(name: str | Path) -> ModuleType:
    """A module with a notebook's imports, UPPER_CASE constants, functions and classes.

    Nothing else of the notebook is executed: no training, no figure. A constant is left out if its
    value calls anything but a few cheap functions or uses what was left out. The module is not
    registered in `sys.modules`. Raises ValueError if there is no such notebook, if a cell is not
    plain Python, or if a definition does not work without the cells that were left out.
    """
    path = find(name)
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    number = 0
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        number += 1
        filename = f"{path.name}[cell {number}]"
        tree = _parse(cell.source, filename)
        # Lets tracebacks and inspect.getsource find the lines; None: there is no file to re-read.
        lines = cell.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(cell.source), None, lines, filename)
        for node in tree.body:
            if _is_definition(node, vars(module)):
                _execute(node, filename, module)
    return module


def _parse(source: str, filename: str) -> ast.Module:
    try:
        return ast.parse(source, filename)
    except SyntaxError as error:
        raise ValueError(
            f"{filename} is not plain Python (magics and ! lines are not allowed), "
            f"line {error.lineno}: {error.msg}"
        ) from None


def _is_definition(node: ast.stmt, names: dict[str, Any]) -> bool:
    imports = (ast.Import, ast.ImportFrom)
    if isinstance(node, (*imports, ast.FunctionDef, ast.ClassDef)):
        return True
    if isinstance(node, ast.Try):  # an optional import
        return all(isinstance(child, imports) for child in node.body)
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value:
        targets = [node.target]
    else:
        return False
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return all(isinstance(e, ast.Name) and e.id.isupper() for e in flat) and _is_safe(
        node.value, names
    )


def _is_safe(value: ast.expr, names: dict[str, Any]) -> bool:
    nodes = list(ast.walk(value))
    own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    used = {n.id for n in nodes if isinstance(n, ast.Name)} - own
    calls = [ast.unparse(n.func) for n in nodes if isinstance(n, ast.Call)]
    effects = (ast.Lambda, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
    return (
        all(name in names or hasattr(builtins, name) for name in used)
        and all(call in _SAFE_CALLS or call.startswith("math.") for call in calls)
        and not any(isinstance(n, effects) for n in nodes)
    )


def _execute(node: ast.stmt, filename: str, module: ModuleType) -> None:
    try:
        exec(compile(ast.Module([node], []), filename, "exec", dont_inherit=True), vars(module))
    except Exception as error:
        raise ValueError(
            f"{filename}, line {node.lineno}, does not load by itself: {type(error).__name__}: "
            f"{error}. It may use imports, UPPER_CASE constants and other definitions."
        ) from error
