"""Execute a lecture from top to bottom and write it back in canonical form."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from helpers.lessons import find, read
from helpers.records import write_atomic
from tools.canonical import canonicalise, named_cells, to_text

# For what hangs, not for what is slow: the longest training takes three minutes on a laptop.
CELL_TIMEOUT = 3600  # seconds


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
