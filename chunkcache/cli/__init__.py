"""The `chunkcache` command."""

from __future__ import annotations

import io
import os
import sys

from chunkcache.errors import ChunkCacheError, ConfigError, InvalidRequest, NotFound

_LOG_JSON = "--log-json"
_USAGE = 2  # what the shell calls a usage error: something the caller can mend


def main() -> None:
    """Run the command; errors of ours become one line on stderr and an exit code.

    Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # silences a warning on fork
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own bars say more
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no title is beyond a terminal's letters
    from chunkcache.cli.logging import LogLevel, configure_logging

    if _LOG_JSON in sys.argv:
        # before anything else: what goes wrong from here on is said in JSON
        configure_logging(LogLevel.WARNING, as_json=True)
    from chunkcache.cli.app import app
    from chunkcache.cli.screen import visible

    try:
        app()
    except ChunkCacheError as error:
        print(f"error: {visible(error.message)}", file=sys.stderr)
        usage = isinstance(error, (InvalidRequest, ConfigError, NotFound))
        sys.exit(_USAGE if usage else 1)
    except KeyboardInterrupt:
        print("interrupted; what was stored stays, run it again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # `chunkcache ls | head` is no fault
        sys.exit(0)
    except OSError as error:
        if error.filename is None:
            raise  # of no file that the user could look at
        problem = f"{os.fsdecode(error.filename)}: {error.strerror}"
        print(f"error: {visible(problem)}. Hint: check free space and permissions", file=sys.stderr)
        sys.exit(1)
