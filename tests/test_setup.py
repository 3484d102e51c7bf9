"""helpers.setup, and the notebooks' first cell in every place where it may be run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch
from shared import PATIENCE

from helpers import setup
from helpers.records import ROOT
from tools.check import SETUP_CELL
from tools.publish import present_address

# ---------------------------------------------------------------- what is installed


@pytest.fixture
def pip(monkeypatch):
    """What pip is asked to install; a call that is asked for "broken" fails."""
    asked = []

    def run(command, check):
        assert command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"] and not check
        asked.append(command[5:])
        return types.SimpleNamespace(returncode=int("broken" in command))

    monkeypatch.setattr(setup.subprocess, "run", run)
    return asked


def ask_for(monkeypatch, tmp_path, *lines):
    path = tmp_path / "requirements.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(setup, "REQUIREMENTS", path)


def test_torch_stays_as_it_is_and_tools_are_not_installed(pip, monkeypatch, tmp_path):
    lesson = ["# Über", "", "torch>=99", "torchvision>=99", "# --- data", "scikit-image>=0.21"]
    ask_for(monkeypatch, tmp_path, *lesson, "# --- development", "pytest>=8", "ruff>=0.9")
    setup.install_missing()
    kept = [f"{name}=={metadata.version(name)}" for name in ("torch", "torchvision")]
    assert pip == [[*kept, "scikit-image>=0.21"]]


def test_a_machine_without_torch_gets_it(pip, monkeypatch, tmp_path):
    ask_for(monkeypatch, tmp_path, "torch>=2.4", "numpy>=1.26")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    setup.install_missing()
    assert pip == [["torch>=2.4", "numpy>=1.26"]]


def test_pip_may_fail(pip, monkeypatch, tmp_path):
    ask_for(monkeypatch, tmp_path, "broken")
    with pytest.raises(RuntimeError, match="pip could not install the course's requirements"):
        setup.install_missing()


def test_photographs_come_without_what_their_package_requires(pip, monkeypatch, tmp_path):
    ask_for(monkeypatch, tmp_path, "torch>=2.4", "# --no-deps torch==1", "# --no-deps forests==2.1")
    setup.install_missing()
    assert pip[1:] == [["--no-deps", "forests==2.1"]]  # torch is there


def test_lessons_need_nothing_that_is_for_maintainers(pip):
    setup.install_missing()
    names = {re.split("[>=]=", line)[0] for line in pip[0]}
    assert {"torch", "pycocotools", "scikit-image", "jsonschema", "ipywidgets"} <= names
    assert not {"pytest", "nbval", "ruff", "selenium", "hypothesis"} & names


# ---------------------------------------------------------------- start


@pytest.fixture
def plotting(monkeypatch):
    stub = types.ModuleType("helpers.plotting")
    stub.styled = 0

    def use_lecture_style():
        stub.styled += 1

    stub.use_lecture_style = use_lecture_style
    monkeypatch.setitem(sys.modules, "helpers.plotting", stub)
    return stub


def test_start_prints_one_line_and_limits_the_threads(plotting, monkeypatch, capfd):
    before = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LECTURE_THREADS", "1")
    try:
        setup.start()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    out, err = capfd.readouterr()
    version = rf"Python 3\.\d+ · torch {re.escape(torch.__version__)} · torchvision \S+"
    assert re.fullmatch(version + r" · cpu, 1 thread\n", out) and err == ""
    assert plotting.styled == 1


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_start_refuses_another_number_of_threads(plotting, monkeypatch, value):
    monkeypatch.setenv("LECTURE_THREADS", value)
    with pytest.raises(ValueError, match="LECTURE_THREADS must be an integer >= 1"):
        setup.start()


@pytest.mark.parametrize(
    ("place", "colab", "calls"),
    [
        (ROOT / "notebooks", False, 0),
        (ROOT, False, 0),
        (ROOT.parent, False, 1),  # where the set-up cell fetches the course
        (ROOT / "notebooks", True, 1),
    ],
)
def test_start_installs_on_colab_and_where_the_course_was_fetched(
    plotting, pip, monkeypatch, place, colab, calls
):
    monkeypatch.chdir(place)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    setup.start()
    assert len(pip) == calls


# ---------------------------------------------------------------- the set-up cell

ADDRESS = f"https://github.com/{present_address(SETUP_CELL)}"
NAME = ADDRESS.rpartition("/")[2]
STUB = "def start(): print(__file__)\n"


def course(folder: Path) -> Path:
    """A repository whose helpers/setup.py only prints where it is."""
    (folder / "helpers").mkdir(parents=True)
    (folder / "helpers" / "setup.py").write_text(STUB)
    (folder / "notebooks").mkdir(parents=True)
    return folder


def run_cell(cwd: Path, origin: Path, times: int = 1) -> subprocess.CompletedProcess:
    """Run the set-up cell so many times in one session; git takes the address to `origin`."""
    redirect = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
    }
    return subprocess.run(
        [sys.executable, "-c", SETUP_CELL.read_text(encoding="utf-8") * times],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", **redirect},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("place", [".", "notebooks"])
def test_the_cell_finds_the_course_from_its_root_and_its_notebooks(tmp_path, place, times):
    root = course(tmp_path / "a course")
    before = sorted(root.rglob("*"))
    result = run_cell(root / place, tmp_path / "nowhere", times)
    found = str((root / "helpers" / "setup.py").resolve())
    assert result.stdout.splitlines() == [found] * times, result.stderr
    assert result.stderr == "" and sorted(root.rglob("*")) == before


def test_the_cell_clones_the_course_once(tmp_path):
    origin = course(tmp_path / "origin")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=origin, check=True, timeout=PATIENCE)
    cwd = tmp_path / "downloads"
    cwd.mkdir()
    found = str(cwd.resolve() / NAME / "helpers" / "setup.py")
    result = run_cell(cwd, origin, times=2)
    assert result.stdout.splitlines() == [found, found] and result.stderr == "", result.stderr
    shutil.rmtree(origin)  # from now on there is nothing to clone
    assert run_cell(cwd, origin).stdout.splitlines() == [found]
    assert [path.name for path in cwd.iterdir()] == [NAME]


def test_a_course_that_cannot_be_fetched_leaves_nothing(tmp_path):
    cwd = tmp_path / "downloads"
    cwd.mkdir()
    result = run_cell(cwd, tmp_path / "nowhere")
    assert result.returncode == 1 and list(cwd.iterdir()) == []
    assert "nowhere" in result.stderr and "No module named 'helpers'" in result.stderr
