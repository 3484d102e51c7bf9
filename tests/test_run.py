"""tools.run: a notebook is executed whole and written back, or stays as it was."""

import os

import pytest
from toy_notebooks import write

from helpers.lessons import read
from tools import run as module
from tools.canonical import canonicalise, to_text
from tools.run import run


def test_a_canonical_notebook_is_written_back(tmp_path, capfd):
    source = (
        "import os\nprint(os.environ['LECTURE_QUIET'], os.path.basename(os.getcwd()), os.getpid())"
    )
    path = write(tmp_path / "01_toy.ipynb", "x = 1", source)
    assert run(path)
    assert "01_toy: " in capfd.readouterr().out
    notebook = read(path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    quiet, folder, process = notebook.cells[1].outputs[0].text.split()
    assert (quiet, folder) == ("1", tmp_path.name)
    with pytest.raises(ProcessLookupError):  # the kernel has ended
        os.kill(int(process), 0)
    assert path.read_text() == to_text(canonicalise(notebook))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "01_toy cell [2] failed:\n"),
        ("import os\nos._exit(1)", "01_toy cell [2] failed:\n"),
        ("print('/home/someone/x')", "01_toy output failed:\ncell [2] shows a path"),
    ],
    ids=["an error", "a dead kernel", "what must not be shown"],
)
def test_the_file_stays_after_a_failure(tmp_path, capfd, source, said):
    path = write(tmp_path / "01_toy.ipynb", "x = 1", source)
    before = path.read_bytes()
    assert not run(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert said in capfd.readouterr().err


def test_a_cell_that_hangs_is_a_failure(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(module, "CELL_TIMEOUT", 1)
    path = write(tmp_path / "01_toy.ipynb", "import time\ntime.sleep(600)")
    before = path.read_bytes()
    assert not run(path)
    assert path.read_bytes() == before and "01_toy cell [1] failed" in capfd.readouterr().err


def test_the_limit_is_for_what_hangs():
    assert module.CELL_TIMEOUT >= 3600
