"""The `chunkcache` command."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, TextIO

from chunkcache.errors import ChunkCacheError, ConfigError, InvalidRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG_JSON = "--log-json"
_AGAIN_AFTER_S = 0.05
_INTERRUPTED = 130
_USAGE = 2  # what the shell calls a usage error: something the caller can mend


def main() -> None:
    """Run the command; errors of ours become one line on stderr and an exit code.

    Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # silences a warning on fork
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own bars say more
    sys.unraisablehook = interrupting(sys.unraisablehook)
    try:
        _run()
    except ChunkCacheError as error:
        print(f"error: {_visible(error.message)}", file=sys.stderr)
        usage = isinstance(error, (InvalidRequest, ConfigError, NotFound))
        sys.exit(_USAGE if usage else 1)
    except (KeyboardInterrupt, SystemExit) as end:
        sys.exit(_code_of(end))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.exit(_code_of(error))
        if error.filename is None:
            raise  # of no file that the user could look at
        problem = f"{os.fsdecode(error.filename)}: {error.strerror}"
        hint = "check free space and permissions"
        print(f"error: {_visible(problem)}. Hint: {hint}", file=sys.stderr)
        sys.exit(1)


def _run() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no title is beyond a terminal's letters
    from chunkcache.cli.logging import LogLevel, configure_logging

    if _LOG_JSON in sys.argv:
        # before anything else: what goes wrong from here on is said in JSON
        configure_logging(LogLevel.WARNING, as_json=True)
    from chunkcache.cli.app import app

    app()


def _visible(text: str) -> str:
    from chunkcache.cli.screen import visible

    return visible(text)


def _code_of(end: BaseException) -> Any:
    """What to exit with. Typer and rich end an interrupted command, and one whose output nobody
    reads any more, with a code of their own and no word; what it was stands behind their exit.
    """
    behind: BaseException | None = end
    while behind is not None:
        if isinstance(behind, KeyboardInterrupt):
            print("interrupted; what was stored stays, run it again to go on", file=sys.stderr)
            return _INTERRUPTED
        if isinstance(behind, BrokenPipeError):
            read_by_nobody(sys.stdout)  # `chunkcache ls | head` is no fault
            return 0
        behind = behind.__cause__ or behind.__context__
    return end.code if isinstance(end, SystemExit) else 1


def interrupting(
    tell: Callable[[sys.UnraisableHookArgs], object],
) -> Callable[[sys.UnraisableHookArgs], None]:
    """What Python is to do with an exception that cannot be raised: `tell`, but Ctrl-C comes again.

    It may fall into a destructor or a callback, as imports have for each module: Python would say
    that it is ignored, and go on.
    """

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            tell(lost)
            return
        again = threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    return hook


def read_by_nobody(stream: TextIO) -> None:
    """What is still to be written there, at the latest when Python ends, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
