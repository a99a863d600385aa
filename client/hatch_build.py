"""Build hook: the client's modules, which stand in ../chunkcache, as parts of chunkcache_client.

They import one another relatively, so they work under both names. A source distribution holds them
already, and then there is nothing to do.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ClientModules(BuildHookInterface):
    """Named to hatchling by the tables `hooks.custom` of pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the modules to what is built.

        Raises:
            FileNotFoundError: one of them is not there.
        """
        root = Path(self.root)
        if (root / "PKG-INFO").is_file():
            return
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        for module in settings["tool"]["chunkcache-client"]["modules"]:
            for path in _files(root.parent / "chunkcache" / module):
                inside = path.relative_to(root.parent / "chunkcache").as_posix()
                build_data["force_include"][str(path)] = f"chunkcache_client/{inside}"


def _files(module: Path) -> list[Path]:
    if module.is_dir():
        return sorted(module.rglob("*.py"))
    if not module.is_file():
        raise FileNotFoundError(f"{module}: pyproject.toml names it as a module of the client")
    return [module]
