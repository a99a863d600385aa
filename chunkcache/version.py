"""The version, from the installed distribution: pyproject.toml is its one source."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("chunkcache")
except PackageNotFoundError:  # a checkout that nobody installed, as on a GPU that is lent
    __version__ = "0.0.0+checkout"
