"""Log lines on stderr: for people by default, JSON lines for collectors.

A collector reads line by line, and a line that is not JSON is lost to it, just when something has
gone wrong. So with JSON everything that Python writes to stderr becomes JSON: structlog's lines,
those of libraries through the standard logging, warnings, tracebacks, and what is merely printed.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import structlog

from chunkcache.cli import interrupting, read_by_nobody

if TYPE_CHECKING:
    from types import TracebackType

_CHATTY: Final = {
    **dict.fromkeys(("httpx", "urllib3", "filelock"), logging.WARNING),
    "python_multipart": logging.ERROR,  # a line per broken form, of which its sender is told
}
"""Libraries held back, and to which level; some set levels of their own."""
_STAMP: Final = structlog.processors.TimeStamper(fmt="iso")
_AS_JSON: Final = structlog.processors.JSONRenderer()


class LogLevel(StrEnum):
    """Severity of log lines."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure_logging(level: LogLevel, *, as_json: bool) -> None:
    """Set up logging for this process; third-party loggers are held to the same level.

    With `as_json`, whatever is written to `sys.stderr` from here on becomes a JSON line, and so do
    warnings and the tracebacks of what nobody catches.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    stream = sys.stderr.beneath if isinstance(sys.stderr, _PrintedLines) else sys.stderr
    render: structlog.typing.Processor = (
        _AS_JSON if as_json else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    opening: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _STAMP,
    ]
    structlog.configure(
        processors=[*opening, structlog.processors.format_exc_info, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    _configure_standard(number, stream, opening, render)
    for name, least in _CHATTY.items():
        _hold_back(logging.getLogger(name), max(number, least))
    if as_json:
        sys.stderr = cast("TextIO", _PrintedLines(stream))
        logging.captureWarnings(True)
        sys.excepthook = _log_crash
        threading.excepthook = _log_thread_crash
        sys.unraisablehook = interrupting(_log_unraisable)


def _configure_standard(
    number: int,
    stream: TextIO,
    opening: list[structlog.typing.Processor],
    render: structlog.typing.Processor,
) -> None:
    """The root logger writes what others log there as our own lines look."""
    handler = _Lines(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*opening, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render,
            ],
        )
    )
    root = logging.getLogger()
    for known in [h for h in root.handlers if isinstance(h, _Lines)]:
        root.removeHandler(known)
    root.addHandler(handler)
    root.setLevel(number)


class _Lines(logging.StreamHandler[TextIO]):
    """Our handler at the root, known by its class when logging is configured again."""


class _PrintedLines(io.TextIOBase):
    """Stands in for stderr: a line printed past every logger becomes a JSON line, of any level."""

    def __init__(self, beneath: TextIO) -> None:
        self.beneath = beneath
        self._lock = threading.Lock()
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there
        """That of the stream beneath."""
        return self.beneath.encoding

    def write(self, text: str) -> int:
        """Emit the lines that `text` completes."""
        with self._lock:
            *lines, self._begun = (self._begun + text).replace("\r", "\n").split("\n")
            for line in lines:
                self._emit(line)
        return len(text)

    def flush(self) -> None:
        """Nothing to do for a line that has only begun."""
        self.beneath.flush()

    def close(self) -> None:
        """Emit what has begun. The stream beneath stays open."""
        with self._lock:
            rest, self._begun = self._begun, ""
            self._emit(rest)

    def fileno(self) -> int:
        """That of the stream beneath, for child processes."""
        return self.beneath.fileno()

    def writable(self) -> bool:
        """Always."""
        return True

    def say(self, line: str) -> None:
        """Emit a line that is no warning."""
        with self._lock:
            self._emit(line, "info", "progress")

    def _emit(self, line: str, level: str = "warning", logger: str = "stderr") -> None:
        if line.strip():
            event = _STAMP(None, "", {"event": line, "level": level, "logger": logger})
            self.beneath.write(f"{_AS_JSON(None, '', event)!s}\n")
            self.beneath.flush()


def say(line: str) -> None:
    """A line on stderr that is shown at every level; as JSON where lines are that."""
    try:
        if isinstance(sys.stderr, _PrintedLines):
            sys.stderr.say(line)
        else:
            print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        read_by_nobody(sys.stderr)  # what the line tells of goes on all the same


def _log_crash(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    structlog.get_logger(__name__).critical("crashed", exc_info=(kind, error, traceback))


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    error: Any = (crash.exc_type, crash.exc_value, crash.exc_traceback)
    name = crash.thread.name if crash.thread else None
    structlog.get_logger(__name__).error("thread_crashed", thread=name, exc_info=error)


def _log_unraisable(crash: sys.UnraisableHookArgs) -> None:
    error: Any = (crash.exc_type, crash.exc_value, crash.exc_traceback)
    structlog.get_logger(__name__).error(
        "exception_ignored", note=crash.err_msg, of=repr(crash.object), exc_info=error
    )


def _hold_back(logger: logging.Logger, least: int) -> None:
    for known in [f for f in logger.filters if isinstance(f, _AtLeast)]:
        logger.removeFilter(known)
    logger.setLevel(least)
    logger.addFilter(_AtLeast(least))  # a library may set its level when it is imported: after this


class _AtLeast(logging.Filter):
    """Lets records of a level and above pass, whatever level the logger is set to later."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level
