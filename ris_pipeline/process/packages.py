"""Which version of a package is installed, under whichever name its build goes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# The same module `cv2`, built with and without windows and the contributed part; a machine has one of them.
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def find_version(name: str) -> str | None:
    """Return the version of the distribution `name`, of any build where it is OpenCV's; None if it is not installed."""
    for build in OPENCV if name in OPENCV else (name,):
        try:
            return version(build)
        except PackageNotFoundError:
            continue
    return None
