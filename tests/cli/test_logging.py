"""Libraries that log too much are held back, also those that set their level when imported."""

from __future__ import annotations

import logging

import pytest
import structlog

from chunkcache.cli.logging import LogLevel, configure_logging


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        (LogLevel.INFO, ["warning", "error"]),
        (LogLevel.DEBUG, ["warning", "error"]),
        (LogLevel.ERROR, ["error"]),
    ],
)
def test_a_library_that_sets_its_level_later_stays_quiet(level: LogLevel, seen: list[str]) -> None:
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logger, keep = logging.getLogger("filelock"), Keep()
    logger.addHandler(keep)
    try:
        for _ in range(2):  # configured twice, filtered once
            configure_logging(level, as_json=False)
        logger.setLevel(logging.DEBUG)  # as bm25s did
        for name in ("debug", "info", "warning", "error"):
            getattr(logger, name)(name)
    finally:
        logger.removeHandler(keep)
        structlog.reset_defaults()
    assert records == seen
    assert len(logger.filters) == 1
