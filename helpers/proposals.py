"""Selective search through OpenCV, imported only when it is asked for.

`opencv-contrib-python` needs the system libraries libGL and glib, and plain `opencv-python` lacks
the module; either way the reader gets one sentence that says what to do, not a stack trace.
"""

from types import ModuleType


def selective_search_module() -> ModuleType:
    """OpenCV's `cv2.ximgproc.segmentation`.

    Raises:
        RuntimeError: it cannot be had here; the message says in one sentence what to install.
    """
    try:
        import cv2
    except ImportError as error:
        cure = (
            "sudo apt-get install libgl1 libglib2.0-0"
            if ".so" in str(error)
            else "pip install opencv-contrib-python"
        )
        raise RuntimeError(f"Selective search needs OpenCV ({error}); try: {cure}") from None
    try:
        return cv2.ximgproc.segmentation
    except AttributeError:
        raise RuntimeError(
            "Selective search needs OpenCV's contrib module; try: "
            "pip uninstall opencv-python opencv-python-headless, then "
            "pip install --force-reinstall opencv-contrib-python"
        ) from None
