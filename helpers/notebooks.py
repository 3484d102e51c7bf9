"""Load, execute, tidy and check the lecture notebooks.

Command line: python -m helpers.notebooks run 05 [06 ...] | check [05 ...] | list | student OUT

A code cell is named by its number among the code cells, the one that Jupyter shows beside it.
"""

import ast
import builtins
import copy
import hashlib
import linecache
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from nbformat import NotebookNode

from helpers.records import ROOT, write_atomic

FOLDER = ROOT / "notebooks"
SETUP_CELL = ROOT / "helpers" / "setup_cell.py"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 600  # seconds

# Calls that a constant's value may make: cheap, and without effect on anything else.
_SAFE_CALLS = frozenset(
    "abs bool dict enumerate float frozenset int len list max min pow range reversed round set "
    "sorted str sum tuple zip Path Fraction np.arange np.array np.linspace np.log np.sqrt "
    "torch.arange torch.device torch.tensor torch.zeros torch.ones".split()
)
# Folders of one machine: they mean nothing to a reader and give away who ran the notebook.
_MACHINE_PATH = re.compile(
    r"(?:(?<![\w.:/-])|(?<=file://))(?:/(?:home|Users|root|content|tmp)/\S+)|\b[A-Z]:\\Users\\\S+"
)


def notebooks(folder: Path = FOLDER) -> list[Path]:
    """The notebooks in `folder`, in the order of their names."""
    return sorted(folder.glob("*.ipynb"))


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
    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=nbformat.NO_CONVERT)
    except (nbformat.reader.NotJSONError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not a notebook: {error}") from None


def named_cells(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Every cell with a name for messages: "cell [3]" for code, its first words for text."""
    number = 0
    for cell in notebook.cells:
        number += cell.cell_type == "code"
        first_line = cell.source.strip().split("\n")[0]
        yield f"cell [{number}]" if cell.cell_type == "code" else f"text {first_line[:40]!r}", cell


# ---------------------------------------------------------------- load


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


# ---------------------------------------------------------------- canonicalise


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
    kept = {key: metadata[key] for key in ("alt", "slideshow", "tags") if metadata.get(key)}
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

    A picture that has a palette already, or would not get smaller, stays as it is.
    """
    import base64
    import io

    from PIL import Image

    original = base64.b64decode(encoded)
    picture = Image.open(io.BytesIO(original))
    if picture.mode == "P":
        return encoded
    light = io.BytesIO()
    palette = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(light, format="PNG", optimize=True)
    if light.tell() >= len(original):
        return encoded
    return base64.b64encode(light.getvalue()).decode("ascii") + "\n"


def _last_states(text: str) -> str:
    """`text` as a terminal leaves it: what follows a carriage return overwrites the line."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


# ---------------------------------------------------------------- run and check


def run(name: str | Path) -> bool:
    """Execute a notebook and write it back canonically; True if every cell succeeded.

    The kernel is this Python, the working directory the notebook's folder, the limit
    `CELL_TIMEOUT` seconds per cell. Cells slower than 2 s are reported as they end. After a failure
    the cell and its traceback are printed and the file stays as it was.
    """
    # The same kernel as the tests: a "python3" kernel of the user's could be another Python.
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbval.kernel import CURRENT_ENV_KERNEL_NAME, NbvalKernelspecManager

    path = find(name)
    notebook = read(path)
    names = [name for name, _ in named_cells(notebook)]
    began = {}

    def on_start(cell: NotebookNode, cell_index: int) -> None:
        began[cell_index] = time.perf_counter()

    def on_end(cell: NotebookNode, cell_index: int, execute_reply: Any) -> None:
        seconds = time.perf_counter() - began[cell_index]
        if seconds > 2:
            print(f"{path.stem} {names[cell_index]}: {seconds:.1f} s", flush=True)

    manager = AsyncKernelManager(
        kernel_name=CURRENT_ENV_KERNEL_NAME, kernel_spec_manager=NbvalKernelspecManager()
    )
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=CELL_TIMEOUT,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=on_start,
        on_cell_executed=on_end,
    )
    start = time.perf_counter()
    try:
        # No progress bars: they would be committed. A kernel of our own must be ended by us.
        client.execute(env={**os.environ, "LECTURE_QUIET": "1"}, cleanup_kc=True)
        text = to_text(canonicalise(notebook))
    except (CellExecutionError, CellTimeoutError, DeadKernelError, ValueError) as error:
        where = names[max(began)] if began and not isinstance(error, ValueError) else "output"
        print(f"{path.stem} {where} failed:\n{error}", file=sys.stderr)
        return False
    write_atomic(path, text.encode())
    print(f"{path.stem}: {time.perf_counter() - start:.1f} s in all, written")
    return True


def check(name: str | Path) -> list[str]:
    """What is wrong with a notebook, one sentence per problem; empty if nothing is."""
    from helpers.hygiene import problems

    path = find(name)
    return list(problems(path, read(path)))


USAGE = __doc__.split("\n")[2]


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status: 0 good, 1 a notebook is not, 2 usage."""
    command, names = (arguments or [""])[0], arguments[1:]
    try:
        if command == "list" and not names:
            print("\n".join(path.stem for path in notebooks()))
            return 0
        if command == "run" and names:
            return 0 if all(run(path) for path in [find(name) for name in names]) else 1
        if command == "check":
            found = [(p.stem, s) for p in map(find, names or notebooks()) for s in check(p)]
            print("\n".join(f"{stem}: {sentence}" for stem, sentence in found) or "no problems")
            return 1 if found else 0
        if command == "student" and len(names) == 1 and names[0]:
            from helpers.student import write_student_edition

            print(f"{len(write_student_edition(names[0]))} notebooks are in {names[0]}")
            return 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
