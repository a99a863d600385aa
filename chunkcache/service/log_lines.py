"""Where log lines of a program go that uses `ChunkCache` and has not set up structlog itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict

_HELD_BACK = {"debug", "info"}


def log_warnings_to_stderr() -> None:
    """Warnings and worse on stderr, unless structlog is configured; it may be at any later time.

    Its own default is every line on stdout, which is the program's.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[_only_warnings, *structlog.get_config()["processors"]],
        logger_factory=_on_stderr,
    )


def _only_warnings(_: Any, method: str, event: EventDict) -> EventDict:
    if method in _HELD_BACK:
        raise structlog.DropEvent
    return event


def _on_stderr(*_: Any) -> structlog.PrintLogger:
    """What stderr is when a line is written: it may be redirected."""
    return structlog.PrintLogger(sys.stderr)
