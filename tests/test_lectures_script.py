"""./lectures with a made-up Python: what it does, what it says, and what it leaves alone."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from helpers.records import ROOT

BASH = shutil.which("bash")
TOOLS = "cat chmod cksum cp dirname id ls mkdir readlink rm".split()
NOBODY = 65534

# Stands in for python3; the files in $STATE switch its faults on, and log what it was asked to do.
PYTHON = """#!{bash}
state={state!r}
wait_for() {{ while [ -e "$state/$1" ]; do read -rt 0.05 <> <(:); done; }}
case "$*" in
  *version_info*) [ ! -e "$state/old" ] ;;
  *ensurepip*) [ ! -e "$state/no-venv" ] ;;
  "-m venv "*)
    echo "venv" >>"$state/log"
    mkdir -p "$3/bin" && echo >"$3/pyvenv.cfg"
    wait_for venv-takes-long
    [ ! -e "$state/venv-killed" ] || {{ kill -9 $PPID && exit; }}
    [ ! -e "$state/venv-fails" ] || exit 3
    cp "$0" "$3/bin/python" ;;
  "-m pip --version") [ ! -e "$state/no-pip" ] ;;
  "-m pip install "*--no-deps*)
    echo "photographs ${{!#}}" >>"$state/log"
    [ ! -e "$state/no-photographs" ] || exit 1 ;;
  "-m pip install "*)
    echo "install" >>"$state/log"
    wait_for pip-takes-long
    [ ! -e "$state/pip-fails" ] || exit 7 ;;
  *cv2*) [ ! -e "$state/no-cv2" ] ;;
  *) echo "$PWD: $*" >>"$state/log"
     echo "${{PYTHONHOME-}}${{PYTHONPATH-}}${{PIP_TARGET-}}|$VIRTUAL_ENV" >"$state/env" ;;
esac
"""


def add_python(path, state):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(PYTHON.format(bash=BASH, state=str(state)))
    path.chmod(0o755)


@pytest.fixture
def course():
    """A copy of the script in a folder with a space, and a PATH with hardly anything on it.

    Not in pytest's own temporary folder, which no other user may enter.
    """
    with tempfile.TemporaryDirectory(prefix="lectures-") as name:
        top = Path(name).resolve()
        top.chmod(0o755)
        (top / "the course").mkdir()
        shutil.copy(ROOT / "lectures", top / "the course")
        (top / "the course" / "requirements.txt").write_text("torch>=2.2\n")
        (top / "bin").mkdir()
        for tool in TOOLS:
            (top / "bin" / tool).symlink_to(shutil.which(tool))
        add_python(top / "bin" / "python3", top)
        yield top


def command(folder, *arguments, cwd=None, script=None, path=(), user=None, **env):
    path = os.pathsep.join(str(part) for part in [folder / "bin", *path])
    return {
        "args": [BASH, str(script or folder / "the course" / "lectures"), *arguments],
        "cwd": cwd or folder,
        "env": {"PATH": path, **env},
        "text": True,
        "user": user,
    }


def run(folder, *arguments, **options):
    return subprocess.run(**command(folder, *arguments, **options), capture_output=True, timeout=30)


def log(folder):
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def change_requirements(folder):
    (folder / "the course" / "requirements.txt").write_text("torch>=2.3\n")


def picture(folder):
    """Everything below a folder: names, kinds, permissions, contents, times of change."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found[str(path)] = (info.st_mode, info.st_uid, info.st_mtime_ns, content)
    return found


def one_sentence(result):
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lectures: "), result.stderr
    return lines[0]


def test_photographs_are_installed_without_what_their_package_requires(course):
    text = "torch>=2.2\n# --no-deps forests==2.1\n# a word\n"
    (course / "the course" / "requirements.txt").write_text(text)
    assert run(course, "setup").returncode == 0
    assert log(course) == ["venv", "install", "photographs forests==2.1"]


def test_without_the_photographs_the_rest_is_ready(course):
    (course / "the course" / "requirements.txt").write_text("# --no-deps forests==2.1\n")
    (course / "no-photographs").touch()
    result = run(course, "setup")
    assert result.returncode == 0 and "pip install --no-deps forests==2.1" in result.stderr
    assert "is ready" in result.stderr


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
    change_requirements(course)
    run(course, "setup")
    assert log(course) == ["venv", "install", "install"]
    names = {path.name for path in (course / "the course" / ".venv").iterdir()}
    assert names == {"bin", "pyvenv.cfg", "share", ".requirements-checksum"}


def test_tests_are_run_from_the_root_with_their_options(course):
    run(course, "test", "-k", "two words", cwd=course / "bin")
    assert log(course)[-1] == f"{course / 'the course'}: -m pytest -k two words"


def test_options_reach_jupyter(course):
    run(course, "open", "--no-browser")
    call = log(course)[-1]
    assert "-m jupyterlab --ServerApp.root_dir=" in call and call.endswith("--no-browser")
    assert ("--allow-root" in call) == (os.geteuid() == 0)


def test_usage(course):
    assert "usage: ./lectures open" in run(course, "help").stdout
    result = run(course, "bake")
    assert result.returncode == 2 and "usage: ./lectures open" in result.stderr
    assert log(course) == []


def test_missing_system_libraries_are_a_remark(course):
    (course / "no-cv2").touch()
    result = run(course, "test")
    assert result.returncode == 0
    assert "selective search is off until" in result.stderr and "libgl1" in result.stderr


def test_jupyterlab_does_not_ask_about_news(course):
    settings = "share/jupyter/lab/settings/overrides.json"
    file = course / "the course" / ".venv" / settings
    assert run(course, "setup").returncode == 0  # by whoever makes it: it may be read-only later
    assert json.loads(file.read_text()) == {
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}
    }
    file.write_text("{}")  # someone's own settings stay
    assert run(course, "open").returncode == 0
    assert file.read_text() == "{}"


# Which folder, called from where


def test_another_folder_can_hold_the_environment(course):
    run(course, "setup", LECTURES_VENV="my env")
    assert (course / "my env" / "bin" / "python").exists()
    assert not (course / "the course" / ".venv").exists()


def test_a_tilde_that_no_shell_expanded_is_the_home_folder(course):
    home = course / "a home"
    run(course, "setup", LECTURES_VENV="~/my env", HOME=str(home))
    assert (home / "my env" / "bin" / "python").exists()
    (home / "thesis.txt").touch()
    result = run(course, "setup", LECTURES_VENV="~", HOME=str(home))
    assert f"{home} exists but is not a Python environment" in one_sentence(result)
    result = run(course, "setup", LECTURES_VENV="~anna/env", HOME=str(home))
    assert result.returncode == 1 and "in full" in one_sentence(result)
    assert not list(course.glob("~*"))


@pytest.mark.parametrize("links", ["absolute", "relative", "chain", "through a linked folder"])
def test_it_may_be_called_through_links(course, links):
    link = course / "home bin" / "lectures"
    link.parent.mkdir()
    if links == "absolute":
        link.symlink_to(course / "the course" / "lectures")
    elif links == "relative":
        link.symlink_to("../the course/lectures")
    elif links == "chain":
        (course / "deep" / "er").mkdir(parents=True)
        (course / "deep" / "er" / "run").symlink_to("../../the course/lectures")
        link.symlink_to("../deep/er/run")
    else:  # "linked/.." is course/deep, not "home bin"
        (course / "deep" / "er").mkdir(parents=True)
        (course / "deep" / "run").symlink_to(course / "the course" / "lectures")
        (link.parent / "linked").symlink_to(course / "deep" / "er")
        link.symlink_to("linked/../run")
    result = run(course, "test", script=link)
    assert result.returncode == 0, result.stderr
    assert log(course)[-1] == f"{course / 'the course'}: -m pytest"


def test_cdpath_does_not_lead_astray(course):
    (course / "elsewhere" / "the course").mkdir(parents=True)
    for cdpath in [f".:{course}", str(course / "elsewhere")]:
        result = run(course, "test", script="the course/lectures", CDPATH=cdpath)
        assert result.returncode == 0, result.stderr
        assert log(course)[-1] == f"{course / 'the course'}: -m pytest"


def test_another_active_environment_does_not_lead_astray(course):
    env = {"PYTHONHOME": "/x", "PYTHONPATH": "/y", "PIP_TARGET": "/z", "VIRTUAL_ENV": "/other"}
    assert run(course, "test", **env, HOME="").returncode == 0
    assert (course / "env").read_text().strip() == f"|{course / 'the course' / '.venv'}"


# Which Python makes it


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
    assert result.returncode == 1 and sentence in one_sentence(result)
    assert log(course) == [] and not (course / "the course" / ".venv").exists()


def test_no_python_at_all(course):
    (course / "bin" / "python3").unlink()
    result = run(course, "test")
    assert result.returncode == 1 and "Python 3.10 or newer is needed" in result.stderr


@pytest.mark.parametrize("fault", ["old", "no-venv"])
@pytest.mark.parametrize("later", ["bin/python3.12", "later bin/python3"])
def test_a_later_python_that_will_do_is_taken(course, fault, later):
    (course / fault).touch()
    add_python(course / later, course / "good")
    (course / "good").mkdir()
    result = run(course, "setup", path=[course / "later bin"])
    assert result.returncode == 0, result.stderr
    assert log(course) == [] and log(course / "good") == ["venv", "install"]


# What it did not make, it leaves alone


def made_on_windows(venv):
    (venv / "Scripts").mkdir(parents=True)
    (venv / "Scripts" / "python.exe").write_bytes(b"MZ")
    (venv / "pyvenv.cfg").write_text("home = C:\\Python312\n")


def python_not_mounted(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to("/Volumes/not mounted/bin/python3")
    (venv / "pyvenv.cfg").write_text("home = /Volumes/not mounted/bin\n")


def made_for_another_processor(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(60))
    (venv / "bin" / "python").chmod(0o755)
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")


def made_by_uv(venv):
    add_python(venv / "bin" / "python", venv.parent)
    (venv / "pyvenv.cfg").write_text("uv = 0.5.0\n")
    (venv.parent / "no-pip").touch()


def whole_python(venv):  # such as /usr
    add_python(venv / "bin" / "python", venv.parent)


def own_folder(venv):
    venv.mkdir()
    (venv / "thesis.txt").write_text("years of work")


def file_of_that_name(venv):  # pyenv and poetry know such a thing
    venv.write_text("/home/anna/envs/course\n")


def link_to_nothing(venv):
    venv.symlink_to("/Volumes/not mounted/env")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (made_on_windows, "another system may have made it"),
        (python_not_mounted, "another system may have made it"),
        (made_for_another_processor, "another system may have made it"),
        (made_by_uv, "-m ensurepip"),
        (whole_python, "is not a Python environment"),
        (own_folder, "is not a Python environment"),
        (file_of_that_name, "is not a Python environment"),
        (link_to_nothing, "is not a Python environment"),
    ],
)
def test_what_others_made_is_left_alone(course, make, sentence):
    venv = course / "env"
    make(venv)
    before = picture(venv)
    result = run(course, "test", LECTURES_VENV=str(venv))
    assert result.returncode == 1 and sentence in one_sentence(result)
    assert "set LECTURES_VENV to a new folder" in result.stderr
    assert picture(venv) == before and log(course) == []


@pytest.mark.parametrize("fault", ["no-pip", "old"])
def test_a_finished_environment_is_not_made_anew(course, fault):
    run(course, "setup")
    (course / fault).touch()
    before = picture(course / "the course")
    result = run(course, "setup")
    assert result.returncode == 1 and "is left alone" in one_sentence(result)
    assert picture(course / "the course") == before


def test_an_environment_of_ones_own_gets_the_requirements(course):
    made_by_uv(course / "env")
    (course / "no-pip").unlink()  # after python -m ensurepip
    assert run(course, "setup", LECTURES_VENV="env").returncode == 0
    assert log(course) == ["install"]


def give_away(folder):
    """Makes everything in a folder another user's, or at least read-only where that needs root."""
    for path in [folder, *folder.rglob("*")]:
        if os.geteuid() == 0:
            path.chmod(0o777)
            os.chown(path, NOBODY, NOBODY)
        else:
            path.chmod(0o555)


def make_read_only(folder):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555)


@pytest.mark.parametrize("reader", ["another user, everything permitted", "read-only"])
def test_a_shared_environment_is_used_and_not_written_to(course, reader):
    shared = course / "shared"
    assert run(course, "setup", LECTURES_VENV=str(shared)).returncode == 0
    user = NOBODY if os.geteuid() == 0 and reader == "read-only" else None
    (give_away if "another" in reader else make_read_only)(shared)
    (course / "log").chmod(0o666)
    (course / "env").touch()
    (course / "env").chmod(0o666)
    before = picture(shared)
    result = run(course, "open", LECTURES_VENV=str(shared), user=user)
    assert result.returncode == 0 and result.stderr == ""
    assert "jupyterlab" in log(course)[-1] and picture(shared) == before

    change_requirements(course)
    result = run(course, "open", LECTURES_VENV=str(shared), user=user)
    assert result.returncode == 0 and "is not of this requirements.txt" in one_sentence(result)
    assert log(course)[:2] == ["venv", "install"] and len(log(course)) == 4
    assert picture(shared) == before
    for folder in [shared, *shared.rglob("*")]:
        folder.chmod(0o755)


def test_a_folder_that_cannot_be_written(course):
    (course / "file").touch()
    result = run(course, "setup", LECTURES_VENV=str(course / "file" / "env"))
    assert result.returncode == 1 and "cannot be written" in one_sentence(result)


# Interrupted, or called twice


def test_a_failed_install_is_passed_on_and_repeated(course):
    (course / "pip-fails").touch()
    result = run(course, "test")
    assert result.returncode == 7 and "pip could not install" in result.stderr
    (course / "pip-fails").unlink()
    assert run(course, "test").returncode == 0
    assert log(course)[:3] == ["venv", "install", "install"]


@pytest.mark.parametrize("how", ["venv-fails", "venv-killed"])
def test_an_interrupted_environment_is_finished_in_its_place(course, how):
    (course / how).touch()
    assert run(course, "setup").returncode != 0
    (course / how).unlink()
    own = course / "the course" / ".venv" / "own file"
    own.touch()
    result = run(course, "setup")
    assert result.returncode == 0, result.stderr
    assert log(course) == ["venv", "venv", "install"] and own.exists()
    assert not list(own.parent.glob(".*lectures*"))  # no mark is left


def test_an_empty_folder_is_used(course):
    (course / "env").mkdir()
    assert run(course, "setup", LECTURES_VENV="env").returncode == 0
    assert log(course) == ["venv", "install"]


@pytest.mark.parametrize("step", ["venv-takes-long", "pip-takes-long"])
def test_two_calls_at_once_do_not_disturb_each_other(course, step):
    (course / step).touch()
    venv = course / "the course" / ".venv"
    with subprocess.Popen(**command(course, "setup"), stderr=subprocess.DEVNULL) as first:
        while len(log(course)) < (1 if step == "venv-takes-long" else 2) and first.poll() is None:
            time.sleep(0.01)
        before = log(course)
        second = run(course, "test")
        (course / step).unlink()
        assert first.wait(timeout=30) == 0
    assert second.returncode == 1 and "another call is making" in one_sentence(second)
    assert len(before) == (1 if step == "venv-takes-long" else 2)
    assert log(course) == ["venv", "install"] and not (venv / ".lectures-queue").exists()
    assert run(course, "test").returncode == 0


def wait_in_the_queue(course, process, host):
    """As if that process were at the head of the queue to install new requirements."""
    run(course, "setup")
    change_requirements(course)
    queue = course / "the course" / ".venv" / ".lectures-queue"
    queue.write_text(f"{process} {host}\n")
    return queue


def host_name():
    return subprocess.run([BASH, "-c", 'echo "$HOSTNAME"'], env={}, capture_output=True, text=True)


def test_a_call_that_was_killed_does_not_block(course):
    with subprocess.Popen([BASH, "-c", ":"]) as ended:
        pass
    queue = wait_in_the_queue(course, ended.pid, host_name().stdout.strip())
    assert run(course, "setup").returncode == 0 and not queue.exists()


def test_a_number_that_another_program_has_now_does_not_block(course):
    queue = wait_in_the_queue(course, os.getpid(), host_name().stdout.strip())
    assert run(course, "setup").returncode == 1  # no ps to tell: it may be ./lectures
    ps = course / "bin" / "ps"
    ps.write_text(f"#!{BASH}\n[ $2 -eq {os.getpid()} ] && echo python3.11\n")
    ps.chmod(0o755)
    assert run(course, "setup").returncode == 0 and not queue.exists()


def test_a_call_on_another_machine_is_respected(course):
    queue = wait_in_the_queue(course, 1, "another-machine")
    result = run(course, "setup")
    assert result.returncode == 1 and f"remove {queue}" in one_sentence(result)
    queue.unlink()
    assert run(course, "setup").returncode == 0


def test_a_real_python_finishes_what_another_python_began(course):
    """No made-up Python here: its links lead elsewhere, and modules of that name lie around."""
    (course / "the course" / "requirements.txt").write_text("")
    (course / "bin" / "python3").unlink()
    (course / "bin" / "python3").symlink_to(sys.executable)
    venv = course / "the course" / ".venv"
    python_not_mounted(venv)
    (venv / "bin" / "python3").symlink_to("/Volumes/not mounted/bin/python3")
    (venv / ".unfinished-by-lectures").touch()
    for name in ["pip", "venv", "random"]:
        (course / "bin" / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    result = run(course, "setup", cwd=course / "bin")
    assert result.returncode == 0 and "is ready" in result.stderr, result.stderr
    for name in ["python", "python3"]:
        subprocess.run([venv / "bin" / name, "-c", "import pip"], check=True)
