"""./lectures with a made-up Python: what it does, in which order, and what it says."""

import json
import os
import shutil
import subprocess

import pytest

from helpers.records import ROOT

BASH = shutil.which("bash")
TOOLS = "cat chmod cksum cp dirname id ls mkdir rm".split()

# Stands in for python3; the files in $STATE switch its faults on, and log what it was asked to do.
PYTHON = """#!{bash}
state={state!r}
case "$*" in
  *version_info*) [ ! -e "$state/old" ] ;;
  *ensurepip*) [ ! -e "$state/no-venv" ] ;;
  "-m venv "*)
    echo "venv" >>"$state/log"
    mkdir -p "$3/bin" && echo >"$3/pyvenv.cfg" && cp "$0" "$3/bin/python" ;;
  "-m pip --version") [ ! -e "$state/no-pip" ] || {{ rm "$state/no-pip"; exit 1; }} ;;
  "-m pip install "*)
    echo "install" >>"$state/log"
    [ ! -e "$state/pip-fails" ] || exit 7 ;;
  *cv2*) [ ! -e "$state/no-cv2" ] ;;
  *) echo "$PWD: $*" >>"$state/log" ;;
esac
"""


@pytest.fixture
def course(tmp_path):
    """A copy of the script in a folder with a space, and a PATH with hardly anything on it."""
    root = tmp_path / "the course"
    root.mkdir()
    shutil.copy(ROOT / "lectures", root)
    (root / "requirements.txt").write_text("torch>=2.2\n")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for tool in TOOLS:
        (bin_folder / tool).symlink_to(shutil.which(tool))
    python = bin_folder / "python3"
    python.write_text(PYTHON.format(bash=BASH, state=str(tmp_path)))
    python.chmod(0o755)
    return tmp_path


def run(folder, *arguments, cwd=None, **env):
    return subprocess.run(
        [BASH, str(folder / "the course" / "lectures"), *arguments],
        cwd=cwd or folder,
        env={"PATH": str(folder / "bin"), **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


def log(folder):
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("name", ["lectures", ".ci/run"])
def test_the_scripts_parse_and_can_be_executed(name):
    subprocess.run([BASH, "-n", str(ROOT / name)], check=True)
    assert os.access(ROOT / name, os.X_OK)


def test_the_environment_is_made_once(course):
    result = run(course, "setup")
    assert result.returncode == 0 and "is ready" in result.stderr, result.stderr
    assert log(course) == ["venv", "install"]
    run(course, "setup")
    assert log(course) == ["venv", "install"]
    (course / "the course" / "requirements.txt").write_text("torch>=2.3\n")
    run(course, "setup")
    assert log(course) == ["venv", "install", "install"]


def test_tests_are_run_from_the_root_with_their_options(course):
    run(course, "test", "-k", "two words", cwd=course / "bin")
    assert log(course)[-1] == f"{course / 'the course'}: -m pytest -k two words"


def test_options_reach_jupyter(course):
    run(course, "open", "--no-browser")
    call = log(course)[-1]
    assert "-m jupyterlab --ServerApp.root_dir=" in call and call.endswith("--no-browser")
    assert ("--allow-root" in call) == (os.geteuid() == 0)


def test_another_folder_can_hold_the_environment(course):
    run(course, "setup", LECTURES_VENV="my env")
    assert (course / "my env" / "bin" / "python").exists()
    assert not (course / "the course" / ".venv").exists()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("old", "Python 3.10 or newer is needed"),
        ("no-venv", "sudo apt-get install python3-venv"),
    ],
)
def test_a_python_that_will_not_do(course, fault, sentence):
    (course / fault).touch()
    result = run(course, "test")
    assert result.returncode == 1 and sentence in result.stderr
    assert result.stderr.count("\n") == 1 and log(course) == []


def test_no_python_at_all(course):
    (course / "bin" / "python3").unlink()
    result = run(course, "test")
    assert result.returncode == 1 and "Python 3.10 or newer is needed" in result.stderr


def test_a_failed_install_is_passed_on_and_repeated(course):
    (course / "pip-fails").touch()
    result = run(course, "test")
    assert result.returncode == 7 and "pip could not install" in result.stderr
    (course / "pip-fails").unlink()
    assert run(course, "test").returncode == 0
    assert log(course)[:3] == ["venv", "install", "install"]


def test_an_unfinished_environment_is_made_anew(course):
    run(course, "setup")
    (course / "no-pip").touch()
    result = run(course, "setup")
    assert result.returncode == 0 and "removing the unfinished environment" in result.stderr
    assert log(course) == ["venv", "install", "venv", "install"]


def test_a_folder_that_is_no_environment_is_left_alone(course):
    precious = course / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    result = run(course, "setup", LECTURES_VENV=str(precious))
    assert result.returncode == 1 and "is not a Python environment" in result.stderr
    assert (precious / "thesis.txt").exists()


def test_missing_system_libraries_are_a_remark(course):
    (course / "no-cv2").touch()
    result = run(course, "test")
    assert result.returncode == 0
    assert "selective search is off until" in result.stderr and "libgl1" in result.stderr


def test_usage(course):
    assert "usage: ./lectures open" in run(course, "help").stdout
    result = run(course, "bake")
    assert result.returncode == 2 and "usage: ./lectures open" in result.stderr
    assert log(course) == []


def test_jupyterlab_does_not_ask_about_news(course):
    settings = "share/jupyter/lab/settings/overrides.json"
    file = course / "the course" / ".venv" / settings
    assert run(course, "open").returncode == 0
    assert json.loads(file.read_text()) == {
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}
    }
    file.write_text("{}")  # someone's own settings stay
    assert run(course, "open").returncode == 0
    assert file.read_text() == "{}"
