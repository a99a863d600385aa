"""The integrations, and the environments that they are tried in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Integration:
    """One package under `integrations/`: what its environment is made of, and its example."""

    folder: str
    packages: tuple[str, ...]
    """The framework's core first; all are pinned, or pip tries one version after another."""
    example: str

    @property
    def over(self) -> str:
        """What of the framework is installed."""
        own = [package for package in self.packages if package not in _PYTEST]
        return ", ".join(package.replace("==", " ") for package in own)


_PYTEST = ("pytest==9.2.0", "pytest-asyncio==1.5.0", "httpx==0.28.1", "pydantic==2.14.4")
INTEGRATIONS = (
    Integration(
        "langchain", ("langchain-core==1.8.3", "langchain-tests==1.1.9", *_PYTEST),
        "04_langchain.py",
    ),
    Integration("llamaindex", ("llama-index-core==0.14.25", *_PYTEST), "05_llamaindex.py"),
    Integration("haystack", ("haystack-ai==3.4.1", *_PYTEST), "06_haystack.py"),
)  # fmt: skip
