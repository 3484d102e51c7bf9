"""helpers.setup, and the notebooks' first cell in every place where it may be run."""

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from helpers import setup
from helpers.records import ROOT
from tools.check import SETUP_CELL

STUB = """
def start(): print("start")
def install_missing(): print("install")
"""


def test_missing_names_only_what_is_missing_or_too_old():
    text = "# lesson\nnumpy>=1.26\nscikit_image>=0.21  # photos\n\ntqdm\nscipy>=1.11\n"
    installed = {"NumPy": "2.0.0", "scikit-image": "0.20", "scipy": "1.12rc1"}
    assert setup.missing_requirements(text, installed) == ["scikit_image>=0.21", "tqdm"]


def test_missing_never_names_torch_or_what_only_jupyter_needs():
    text = (ROOT / "requirements.txt").read_text()
    names = {re.split("[>=<]", line)[0] for line in setup.missing_requirements(text, {})}
    assert not names & setup.KEPT
    assert {"pycocotools", "scikit-image", "efficientnet-lite-pytorch"} <= names


def test_missing_refuses_another_line():
    with pytest.raises(ValueError, match="not a requirement: '-r other.txt'"):
        setup.missing_requirements("-r other.txt", {})


def test_install_missing_runs_pip_only_where_needed(monkeypatch):
    calls = []

    def record(command, check):
        calls.append(command)
        return types.SimpleNamespace(returncode=len(calls) - 1)

    monkeypatch.setattr(setup.subprocess, "run", record)
    monkeypatch.setattr(setup, "missing_requirements", lambda *_: [])
    setup.install_missing()
    assert calls == []
    monkeypatch.setattr(setup, "missing_requirements", lambda *_: ["tqdm>=4"])
    setup.install_missing()
    assert calls == [[sys.executable, "-m", "pip", "install", "--quiet", "tqdm>=4"]]
    with pytest.raises(RuntimeError, match="pip could not install tqdm>=4"):
        setup.install_missing()


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


# ---------------------------------------------------------------- the set-up cell


def course(folder: Path) -> Path:
    """A repository whose helpers/setup.py only prints what it is asked to do."""
    (folder / "helpers").mkdir(parents=True)
    (folder / "helpers" / "setup.py").write_text(STUB)
    (folder / "notebooks" / "deep").mkdir(parents=True)
    return folder


def run_cell(cwd: Path, source: str | None = None, before: str = "", **env):
    code = before + (source or SETUP_CELL.read_text()) + "\nprint(root)"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/deep"])
def test_the_cell_finds_the_course_from_any_folder_in_it(tmp_path, place):
    root = course(tmp_path / "a course")
    result = run_cell(root / place)
    assert result.stdout.splitlines() == ["start", str(root.resolve())], result.stderr


def test_the_cell_clones_the_course_once_and_installs(tmp_path):
    origin = course(tmp_path / "origin")
    (origin / "notebooks" / "deep" / "keep").touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=origin, check=True)
    source = re.sub(r'"https://.*"', repr(origin.as_uri()), SETUP_CELL.read_text())
    cwd = tmp_path / "downloads"
    cwd.mkdir()
    for _ in range(2):
        result = run_cell(cwd, source)
        clone = cwd.resolve() / "object-detection-lectures"
        assert result.stdout.splitlines() == ["install", "start", str(clone)], result.stderr
        shutil.rmtree(origin, ignore_errors=True)  # the second time there is nothing to clone


def test_the_cell_installs_on_colab(tmp_path):
    pretend = "import sys\nsys.modules['google.colab'] = sys\n"
    result = run_cell(course(tmp_path / "course"), before=pretend)
    assert result.stdout.splitlines()[:2] == ["install", "start"]


def test_an_unpublished_copy_says_so(tmp_path):
    source = re.sub(r"github\.com/[^/]+/", "github.com/_owner_/", SETUP_CELL.read_text())
    result = run_cell(tmp_path, source)
    assert result.returncode == 1 and list(tmp_path.iterdir()) == []
    assert "This copy has no published address: open it in a clone" in result.stderr


def test_the_cell_is_short():
    lines = SETUP_CELL.read_text().splitlines()
    assert len(lines) <= 22 and not any(line.lstrip().startswith(("!", "%")) for line in lines)
