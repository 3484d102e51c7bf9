"""What a notebook's first cell does once it has found the helpers."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements.txt"
FOR_MAINTAINERS = "# --- development"  # the heading from which a lecture needs nothing


def start() -> None:
    """Set up threads and plots and print one line with the versions and the device.

    On Colab, and where the set-up cell has fetched the course, missing packages are installed.
    CPU threads are torch's own number or LECTURE_THREADS, whichever is less.
    """
    if "google.colab" in sys.modules or ROOT.parent == Path.cwd():
        install_missing()
    import torch
    import torchvision

    from helpers.plotting import use_lecture_style

    torch.set_num_threads(_threads(torch.get_num_threads()))
    _keep_freed_memory()
    use_lecture_style()
    said = [f"Python {'.'.join(platform.python_version_tuple()[:2])}"]
    said += [f"{package.__name__} {package.__version__}" for package in (torch, torchvision)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    print(*said, f"{device}, {threads} thread{'s' if threads != 1 else ''}", sep=" · ")


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors: to map it anew takes a third of all the time."""
    if platform.libc_ver()[0] != "glibc":
        return
    import ctypes

    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    for parameter, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1)):
        ctypes.CDLL(None).mallopt(parameter, value)


def install_missing() -> None:
    """Let pip install what requirements.txt asks for and this Python lacks, never another torch."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").split(FOR_MAINTAINERS)[0].splitlines()
    wanted = [_kept(line) for line in lines if line and not line.startswith("#")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *wanted]
    if subprocess.run(command, check=False).returncode != 0:
        raise RuntimeError("pip could not install the course's requirements; see its message above")
    bare = re.findall(r"^# --no-deps ((\w+)\S*)", REQUIREMENTS.read_text("utf-8"), re.MULTILINE)
    for package, name in bare:  # photographs: without them one lecture says what to type
        if importlib.util.find_spec(name) is None:
            subprocess.run([*command[:5], "--no-deps", package], check=False)
    importlib.invalidate_caches()  # else the new packages may stay unseen in this session


def _kept(requirement: str) -> str:
    name = requirement.split(">")[0]
    if name.startswith("torch") and importlib.util.find_spec(name):
        return f"{name}=={metadata.version(name)}"
    return requirement


def _threads(current: int) -> int:
    wanted = os.environ.get("LECTURE_THREADS") or str(current)
    if not wanted.isdigit() or int(wanted) < 1:
        raise ValueError(f"LECTURE_THREADS must be an integer >= 1, got {wanted!r}")
    return min(current, int(wanted))
