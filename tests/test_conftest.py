"""What the root conftest.py does to a session, on two tiny notebooks."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from shared import PATIENCE

from helpers.records import ROOT

LONGEST = "08_detr.ipynb"

# Marks a cell as nbval does after a timeout, and shows what conftest made of the items.
PLUGIN = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        print("item", item.nodeid, getattr(item, "output_timeout", None))
        if "excuse" in item.nodeid:
            item.add_marker(pytest.mark.xfail(True, reason="previous cell timed out"))
"""


def notebook(path, *sources):
    cells = [new_code_cell(s, execution_count=i + 1) for i, s in enumerate(sources)]
    path.write_text(nbformat.writes(new_notebook(cells=cells)))


@pytest.fixture
def session(tmp_path):
    """A function that runs pytest on a folder with conftest.py and the project's options."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "plugin_of_the_test.py").write_text(PLUGIN)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("def test_one(): pass\n")

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-s", "-p", "plugin_of_the_test"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV"))}
        return subprocess.run(
            [*command, "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return run


def test_a_good_session(session, tmp_path):
    threads = "import os\nassert os.environ['OMP_NUM_THREADS'] and os.environ['LECTURE_QUIET']"
    notebook(tmp_path / "notebooks" / "00_good.ipynb", threads, "x = 1", "assert x == 1")
    notebook(tmp_path / "notebooks" / LONGEST, "y = 1")
    result = session("notebooks", "tests", "-n0")  # in this order, and in one process that prints
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    items = [line.split()[1:] for line in lines if line.startswith("item ")]
    assert items[0] == ["tests/test_one.py::test_one", "None"]
    assert items[1] == [f"notebooks/{LONGEST}::Cell", "0", "600"]  # the others' cells, in order
    assert [item[:2] for item in items[2:]] == [
        ["notebooks/00_good.ipynb::Cell", number] for number in "012"
    ]
    assert lines[-1].startswith("lectures: 5 passed, 0 failed, 0 skipped, 0 xfailed in ")
    assert "seconds per notebook" in result.stdout
    assert any(line.endswith("notebooks/00_good.ipynb [3]") for line in lines)


def test_an_excused_cell_fails_the_session(session, tmp_path):
    notebook(tmp_path / "notebooks" / "00_excuse.ipynb", "1 / 0", "x = 1")
    result = session()
    assert result.returncode == 1, result.stdout + result.stderr
    last_two = result.stdout.splitlines()[-2:]
    assert last_two[0] == "lectures: 2 notebook cells were xfailed: a failure"
    assert last_two[1].startswith("lectures: 1 passed, 0 failed, 0 skipped, 2 xfailed in ")


def test_a_timeout_fails_the_session(session, tmp_path):
    sleep = f"import time\ntime.sleep({PATIENCE})"
    notebook(tmp_path / "notebooks" / "00_slow.ipynb", sleep, "x = 1")
    result = session("--nbval-cell-timeout=1", "-n0")
    assert result.returncode == 1
    assert "Timeout of 1 seconds" in result.stdout


def test_a_session_without_notebooks(session):
    result = session("-k", "one", "--color=no", "-n0")
    assert result.returncode == 0 and "seconds per notebook" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("lectures: 1 passed, 0 failed")


def test_the_longest_notebook_is_one_of_ours():
    assert (ROOT / "notebooks" / LONGEST).is_file()
    assert f'LONGEST = "{LONGEST}"' in (ROOT / "conftest.py").read_text()


def test_limits_are_for_what_hangs():
    """A training of three minutes on a laptop may take half an hour on a busy or slow machine."""
    options = (ROOT / "pyproject.toml").read_text()
    assert int(re.search(r"--nbval-cell-timeout=(\d+)", options)[1]) >= 3600
    assert int(re.search(r"--nbval-kernel-startup-timeout=(\d+)", options)[1]) >= 600
