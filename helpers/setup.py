"""What a notebook's first cell does once it has found the helpers."""

import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"

# Never installed from a notebook: another torch would break the machine's own CUDA set-up, and the
# rest is Jupyter itself or serves only whoever edits the course.
KEPT = frozenset(
    "torch torchvision jupyterlab ipywidgets nbval "
    "pytest pytest-xdist hypothesis selenium ruff".split()
)


def start() -> None:
    """Set up threads and plots and print one line with the versions and the device.

    The number of CPU threads is torch's own or the environment variable LECTURE_THREADS, whichever
    is less; another value raises ValueError.
    """
    import torch
    import torchvision

    from helpers.plotting import use_lecture_style

    torch.set_num_threads(_threads(torch.get_num_threads()))
    _keep_freed_memory()
    use_lecture_style()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    print(
        f"Python {'.'.join(platform.python_version_tuple()[:2])}",
        f"torch {torch.__version__}",
        f"torchvision {torchvision.__version__}",
        f"{device}, {threads} thread{'s' if threads != 1 else ''}",
        sep=" · ",
    )


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of giving it back to the system.

    Otherwise every layer's output is mapped, zeroed page by page and unmapped again, which takes
    about a third of the time of a convolutional network on a CPU. Other systems are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    import ctypes

    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def missing_requirements(text: str, installed: Mapping[str, str]) -> list[str]:
    """The requirements of `text` that `installed` (name to version) lacks or has too old.

    `text` is a requirements.txt; those of its packages that are in KEPT are never named. Raises
    ValueError for a line that is no requirement.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    versions = {canonicalize_name(name): version for name, version in installed.items()}
    missing = []
    for line in (line.split("#")[0].strip() for line in text.splitlines()):
        if not line:
            continue
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise ValueError(f"not a requirement: {line!r} ({error})") from None
        name = canonicalize_name(requirement.name)
        version = versions.get(name)
        if name not in KEPT and (
            version is None or not requirement.specifier.contains(version, prereleases=True)
        ):
            missing.append(line)
    return missing


def install_missing() -> None:
    """Install what requirements.txt asks for and this Python lacks, never torch or torchvision.

    Raises RuntimeError naming the packages if pip fails.
    """
    installed = {d.name: d.version for d in metadata.distributions() if d.name}
    missing = missing_requirements(REQUIREMENTS.read_text(encoding="utf-8"), installed)
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", *missing]
    if subprocess.run(command, check=False).returncode != 0:
        raise RuntimeError(f"pip could not install {', '.join(missing)}; see its message above")
    importlib.invalidate_caches()  # else the new packages may stay unseen in this session


def _threads(current: int) -> int:
    wanted = os.environ.get("LECTURE_THREADS") or str(current)
    if not wanted.isdigit() or int(wanted) < 1:
        raise ValueError(f"LECTURE_THREADS must be an integer >= 1, got {wanted!r}")
    return min(current, int(wanted))
