"""Selective search where it can be had, and one plain sentence where it cannot."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from helpers.proposals import selective_search_module
from helpers.records import ROOT


class Missing:
    """An import hook: OpenCV is installed, but a system library that it needs is not."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file")


def sentence() -> str:
    with pytest.raises(RuntimeError) as error:
        selective_search_module()
    assert error.value.__suppress_context__  # the reader sees no second stack trace
    message = str(error.value)
    assert message.startswith("Selective search needs OpenCV") and "\n" not in message
    return message


def test_the_module_segments_an_image():
    search = selective_search_module().createSelectiveSearchSegmentation()
    image = np.full((40, 60, 3), 255, np.uint8)
    image[10:30, 20:50] = 0
    search.setBaseImage(image)
    search.switchToSelectiveSearchFast(150, 150, 0.8)
    assert [20, 10, 30, 20] in search.process().tolist()


def test_opencv_is_imported_only_when_it_is_asked_for():
    code = "import sys, helpers.proposals; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pip install opencv-contrib-python" in sentence()


def test_without_the_system_libraries(monkeypatch):
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    message = sentence()
    assert "libGL.so.1" in message and "apt-get install libgl1 libglib2.0-0" in message
    assert "pip" not in message


@pytest.mark.parametrize("has_ximgproc", [False, True])
def test_without_the_contrib_module(monkeypatch, has_ximgproc):
    plain = ModuleType("cv2")
    if has_ximgproc:  # but without `segmentation`
        plain.ximgproc = ModuleType("cv2.ximgproc")
    monkeypatch.setitem(sys.modules, "cv2", plain)
    message = sentence()
    assert "contrib module" in message
    assert "pip uninstall opencv-python" in message and "opencv-contrib-python" in message
