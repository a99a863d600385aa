"""Log lines on stderr: for people by default, JSON lines for collectors."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

import structlog

_CHATTY = ("bm25s", "httpx", "urllib3", "filelock")  # they set levels of their own


class LogLevel(StrEnum):
    """Severity of log lines."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure_logging(level: LogLevel, *, as_json: bool) -> None:
    """Set up structlog for this process; third-party loggers are held to the same level."""
    number = logging.getLevelNamesMapping()[level.upper()]
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=number, stream=sys.stderr)
    for name in _CHATTY:
        logger = logging.getLogger(name)
        for known in [f for f in logger.filters if isinstance(f, _AtLeast)]:
            logger.removeFilter(known)
        least = max(number, logging.WARNING)
        logger.setLevel(least)
        logger.addFilter(_AtLeast(least))  # bm25s sets its level when it is imported: after this


class _AtLeast(logging.Filter):
    """Lets records of a level and above pass, whatever level the logger is set to later."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level
