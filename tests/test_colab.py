"""Colab for real: a fork's address in every notebook, one of them downloaded, a clone, a kernel.

Only the network is missing: git takes the address to a local repository, pip a local wheel. What
pip installs goes into a small environment of the test's own, in which everything that is installed
here is there, too.
"""

import os
import re
import shutil
import subprocess
import sys
import types
import venv
import zipfile
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell
from shared import PATIENCE

from helpers import lessons as tool
from helpers.records import ROOT
from helpers.setup import FOR_MAINTAINERS
from tools.canonical import to_text
from tools.check import SETUP_CELL
from tools.publish import present_address

URL = "https://github.com/some-one/detection"
NAME = "00_boxes_and_ap.ipynb"  # no training in it
WHERE = """
from pathlib import Path
import helpers, lecture_extra
print("google.colab" in sys.modules, lecture_extra.INSTALLED)
print(Path(helpers.__file__).resolve().relative_to(Path.cwd().resolve()).as_posix())
"""


def command(folder: Path, *words: str) -> str:
    """What a command prints; nothing of the user's git configuration counts."""
    who = [f"GIT_{role}_{what}" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PYTHONPATH": ""}
    env = {**os.environ, **dict.fromkeys(who, "a@b.c"), **plain}
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of the course, its address stamped by the command, and what the command said."""
    root = tmp_path_factory.mktemp("fork")
    for name in ("helpers", "tools", "notebooks", "data"):
        left = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, root / name, ignore=left)
    for name in ("README.md", "requirements.txt"):
        shutil.copy(ROOT / name, root)
    said = command(root, sys.executable, "-m", "tools", "publish", URL)
    return types.SimpleNamespace(root=root, said=said)


def test_one_command_stamps_badges_and_setup_cells_of_all_notebooks(fork):
    names = [f"notebooks/{path.name}" for path in tool.notebooks()]
    assert fork.said.split() == [*names, "README.md", "tools/setup_cell.py"]
    before = present_address(SETUP_CELL)
    pages = {f: f.read_bytes() for f in map(fork.root.joinpath, fork.said.split())}
    assert not [f.name for f, text in pages.items() if f"/{before}".encode() in text]
    # The rules ask for one set-up cell, and for badges with its address.
    checked = command(fork.root, sys.executable, "-m", "tools", "check")
    assert checked.endswith("\nno problems\n"), checked
    again = command(fork.root, sys.executable, "-m", "tools", "publish", URL)
    assert again == "nothing to change\n" and pages == {f: f.read_bytes() for f in pages}


def remote(fork, folder: Path) -> Path:
    """A bare repository of the fork, whose requirements this machine meets but for three.

    One is a torch that must not be touched, one a package that pip has to find, and one is for
    maintainers only.
    """
    work, bare = folder / "work", folder / "remote.git"
    shutil.copytree(fork.root, work, ignore=shutil.ignore_patterns("__pycache__"))
    path = work / "requirements.txt"
    text, count = re.subn(r"^torch>=.*$", "torch>=99", path.read_text(), flags=re.MULTILINE)
    assert count == 1
    text = text.replace(FOR_MAINTAINERS, f"lecture-extra>=1.0\n{FOR_MAINTAINERS}")
    path.write_text(text + "nowhere-to-be-found>=1.0\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "The course"]):
        command(work, "git", *words)
    command(folder, "git", "clone", "-q", "--bare", str(work), str(bare))
    return bare


def wheel(folder: Path) -> None:
    """The smallest package that pip installs."""
    about = "lecture_extra-1.0.dist-info"
    files = {
        "lecture_extra.py": "INSTALLED = True\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: lecture-extra\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(folder / "lecture_extra-1.0-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def colab(folder: Path, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give kernels Colab's module, pip one wheel, git the remote."""
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    stand_in = 'import sys, types\nsys.modules["google.colab"] = types.ModuleType("google.colab")\n'
    (startup / "colab.py").write_text(stand_in)
    wheel(folder)
    for variable, value in {
        "IPYTHONDIR": folder / "ipython",
        "PIP_FIND_LINKS": folder,
        "PIP_NO_INDEX": 1,
        "PIP_CONFIG_FILE": os.devnull,
        "GIT_CONFIG_COUNT": 1,
        "GIT_CONFIG_KEY_0": f"url.{bare.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": URL,
    }.items():
        monkeypatch.setenv(variable, str(value))


def environment(folder: Path) -> tuple[str, Path]:
    """A new environment that sees all that is installed here: its Python, and its own packages.

    Python and pip find what the running environment has, and install beside it.
    """
    venv.create(folder, with_pip=False)
    scripts, name = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    python = str(folder / scripts / name)
    own = Path(
        command(folder, python, "-c", "import site; print(site.getsitepackages()[-1])").strip()
    )
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "all_that_is_here.pth").write_text("\n".join(seen))
    return python, own


def compared(notebook) -> list:
    """The outputs that the tests compare."""
    cells = [c for c in notebook.cells if "nbval-check-output" in c.metadata.get("tags", [])]
    return [output.get("text", output.get("data")) for cell in cells for output in cell.outputs]


def test_a_downloaded_notebook_runs_on_colab(fork, tmp_path, monkeypatch):
    colab(tmp_path, remote(fork, tmp_path), monkeypatch)
    python, packages = environment(tmp_path / "environment")
    before = {path.name for path in packages.iterdir()}
    path = tmp_path / "downloads" / NAME
    path.parent.mkdir()
    notebook = tool.read(fork.root / "notebooks" / NAME)
    committed = compared(notebook)
    notebook.cells.append(new_code_cell(WHERE.strip()))
    path.write_text(to_text(notebook), encoding="utf-8")

    command(fork.root, python, "-m", "tools", "run", str(path))

    result, clone = tool.read(path), URL.split("/")[-1]
    assert sorted(p.name for p in path.parent.iterdir()) == [NAME, clone]
    assert result.cells[-1].outputs[0].text == f"True True\n{clone}/helpers/__init__.py\n"
    names = {"lecture_extra.py", "lecture_extra-1.0.dist-info"}  # and no torch
    assert {p.name for p in packages.iterdir()} - before - {"__pycache__"} == names
    assert compared(result) == committed != []
