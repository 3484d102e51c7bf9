"""The lecture notebooks as code: find them, read them, load their definitions."""

import ast
import linecache
import re
from pathlib import Path
from types import ModuleType

import nbformat
from nbformat import NotebookNode

from helpers.records import ROOT

FOLDER = ROOT / "notebooks"
LECTURE = re.compile(r"\d\d_[a-z0-9_]+\.ipynb")  # else it is somebody's own: Untitled.ipynb, ...

_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
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
    """The notebook given by a path, a name ("05_yolo") or a number ("05")."""
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    for choice in notebooks():
        if str(name) in (choice.name, choice.stem, choice.stem.split("_")[0]):
            return choice
    choices = ", ".join(p.stem for p in notebooks()) or "none, the folder is empty"
    raise ValueError(f"no notebook {str(name)!r}; the choices are: {choices}")


def read(path: Path) -> NotebookNode:
    """The notebook at `path`, as it is."""
    data = path.read_bytes()
    try:
        notebook = nbformat.reads(data.decode(), as_version=nbformat.NO_CONVERT)
        if notebook.get("nbformat") != 4:
            raise ValueError(f"its nbformat must be 4, got {notebook.get('nbformat')}")
    except Exception as error:  # nbformat has one of its own for each kind of damage
        raise ValueError(f"{path.name} is not a notebook: {error}") from None
    return notebook


def load(name: str | Path, **instead: object) -> ModuleType:
    """A module with a notebook's imports, UPPER_CASE constants, functions and classes.

    Variables named in `instead` have these values, whatever the notebook gives them.

    Nothing else of the notebook is executed: no training, no figure. A constant is left out if its
    value calls anything but a few cheap functions or uses what was left out. A definition that does
    not work by itself raises ValueError. The module is not registered in `sys.modules`.
    """
    path = find(name)
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    vars(module).update(instead)
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, 1):
        filename = f"{path.name}[cell {number}]"  # the number that Jupyter shows beside it
        try:
            tree = ast.parse(cell.source, filename)
        except SyntaxError as error:
            said = f"(magics and ! lines are not allowed), line {error.lineno}: {error.msg}"
            raise ValueError(f"{filename} is not plain Python {said}") from None
        # Lets tracebacks and inspect.getsource find the lines; None: there is no file to re-read.
        lines = cell.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(cell.source), None, lines, filename)
        for node in tree.body:
            if isinstance(node, _DEFINITIONS) or _is_cheap_constant(node):
                _execute(node, filename, module)
                vars(module).update(instead)
    return module


def _is_cheap_constant(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    flat = [e for t in node.targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    inside = list(ast.walk(node.value))
    calls = [ast.unparse(part.func) for part in inside if isinstance(part, ast.Call)]
    named = all(isinstance(target, ast.Name) and target.id.isupper() for target in flat)
    safe = all(call in _SAFE_CALLS or call.startswith("math.") for call in calls)
    return named and safe and not any(isinstance(part, ast.Lambda) for part in inside)


def _execute(node: ast.stmt, filename: str, module: ModuleType) -> None:
    try:
        exec(compile(ast.Module([node], []), filename, "exec", dont_inherit=True), vars(module))
    except Exception as error:
        if isinstance(error, NameError) and isinstance(node, ast.Assign):
            return  # its value uses what was left out
        said = f"{filename}, line {node.lineno}, does not load by itself: {type(error).__name__}"
        may = "It may use imports, UPPER_CASE constants and other definitions."
        raise ValueError(f"{said}: {error}. {may}") from error
