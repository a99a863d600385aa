"""Reading a binary file in a process of its own, which has little memory and time.

What is compressed may unfold without end, and readers of binary formats have faults that end a
process. Here it is another process that ends: the file is refused, the service goes on. The child
starts anew for every file (some 0.1 s): it imports no torch, and what a file leaves behind is gone.

Memory, processor time and the size of the answer are limited by the operating system, where Python
has `resource` for it (Linux; macOS does not hold to the limit of memory). Elsewhere the clock alone
is, and a warning says so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import structlog

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval import binary_reader

if TYPE_CHECKING:
    from collections.abc import Sequence

log = structlog.get_logger(__name__)

_CHILD = binary_reader.__name__
_CLOCK_FACTOR = 4  # the child may wait for a core that others use
_COMPLAINT_CHARS = 2000
_HAS_RESOURCE = find_spec("resource") is not None


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What reading one binary file may take."""

    memory_bytes: int = 2 << 30  # of address space
    cpu_s: int = 60
    text_bytes: int = 64 << 20  # of what is read from it


def read_confined(suffix: str, data: bytes, limits: ReadLimits) -> dict[str, Any]:
    """What `binary_reader` finds in a file of that suffix.

    Thread-safe; each call has a process of its own.

    Raises:
        InvalidRequest: the file cannot be read, or not within the limits.
    """
    if not _HAS_RESOURCE:
        _warn_of_missing_limits()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as answer:
        given.write(data)
        given.seek(0)
        with tempfile.TemporaryFile() as complaint:
            code = _run([suffix, json.dumps(asdict(limits))], given, answer, complaint, limits)
            if code != 0:
                raise _failure(code, _tail(complaint), limits)
        answer.seek(0)
        found: dict[str, Any] = json.loads(answer.read())
    if "refused" in found:
        raise InvalidRequest(str(found["refused"]), param="file")
    return found


def _run(
    arguments: Sequence[str],
    given: IO[bytes],
    answer: IO[bytes],
    complaint: IO[bytes],
    limits: ReadLimits,
) -> int:
    """The child's exit code; the number of a signal that ended it is negative."""
    # -P: a file in the current folder must not be taken for a module.
    command = [sys.executable, "-P", "-m", _CHILD, *arguments]
    with subprocess.Popen(
        command, stdin=given, stdout=answer, stderr=complaint, env=_environment(),
        start_new_session=True,  # an interrupt from the keyboard is ours to handle
    ) as process:  # fmt: skip
        try:
            return process.wait(_CLOCK_FACTOR * limits.cpu_s)
        except subprocess.TimeoutExpired:
            raise _refused(
                f"reading it takes more than {_CLOCK_FACTOR * limits.cpu_s} s. "
                "Hint: raise retrieval.read_cpu_s, or convert it to text first"
            ) from None
        finally:
            process.kill()  # does nothing where it has ended


def _environment() -> dict[str, str]:
    """Ours, in which the child finds the modules that this process would find."""
    own = str(Path(__file__).parents[2])
    found = [own, *(os.path.abspath(entry) for entry in sys.path if os.path.isdir(entry))]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # stacks are memory
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(dict.fromkeys(found))}


def _failure(code: int, complaint: str, limits: ReadLimits) -> InvalidRequest:
    if code == -getattr(signal, "SIGXCPU", 0):
        return _refused(
            f"reading it takes more than {limits.cpu_s} s of processor time. "
            "Hint: raise retrieval.read_cpu_s, or convert it to text first"
        )
    log.warning("file_reader_failed", code=code, said=complaint)
    ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return _refused(
        f"its reader broke off ({ended}): the file is damaged, or takes more than "
        f"{limits.memory_bytes} bytes of memory. Hint: raise retrieval.read_memory_bytes, or "
        "convert it to text first"
    )


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(reason, param="file")


def _tail(complaint: IO[bytes]) -> str:
    size_bytes = complaint.seek(0, os.SEEK_END)
    complaint.seek(max(0, size_bytes - _COMPLAINT_CHARS))
    return complaint.read().decode(errors="backslashreplace")


@cache  # once is enough
def _warn_of_missing_limits() -> None:
    log.warning(
        "binary_files_without_limits",
        platform=sys.platform,
        hint="this platform has no resource limits: a hostile pdf or office file can take all "
        "memory; ingest only what you trust",
    )
