"""The process that reads one binary file: its bytes on stdin, what is in it as JSON on stdout.

    python -m chunkcache.retrieval.binary_reader .pdf '{"memory_bytes": …, "cpu_s": …, …}'

`confined.py` starts it. The answer is an object with `text`, `kind`, `title` and `problems`, or
with `refused`, the reason why there is none. Limits are set here, before any reader is loaded: a
child cannot be given them safely from a process that has threads.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from chunkcache.errors import InvalidRequest

_ANSWER_FACTOR = 7  # a character may take twelve bytes of JSON where it takes two of UTF-8
_SLACK_BYTES = 1 << 20


def main() -> None:
    """Read, answer, and exit 0 unless something broke."""
    suffix, limits = sys.argv[1], json.loads(sys.argv[2])
    limit_resources(limits["memory_bytes"], limits["cpu_s"], limits["text_bytes"])
    answer: dict[str, Any]
    try:
        answer = read(suffix, sys.stdin.buffer.read())
        size_bytes = len(answer["text"].encode("utf-8", "surrogatepass"))
        if size_bytes > limits["text_bytes"]:
            answer = refusal(
                f"there are {size_bytes} bytes of text in it, at most {limits['text_bytes']} are "
                "read. Hint: raise retrieval.max_file_bytes"
            )
    except InvalidRequest as error:
        answer = refusal(error.message)
    except MemoryError:
        answer = refusal(
            f"reading it takes more than {limits['memory_bytes']} bytes of memory. "
            "Hint: raise retrieval.read_memory_bytes, or convert it to text first"
        )
    json.dump(answer, sys.stdout)


def read(suffix: str, data: bytes) -> dict[str, Any]:
    """What is in a file of that suffix. Raises `InvalidRequest`."""
    if suffix == ".pdf":
        from chunkcache.retrieval.pdf import read_pdf

        return read_pdf(data)
    from chunkcache.retrieval.office import read_office

    return read_office(suffix, data)


def refusal(reason: str) -> dict[str, Any]:
    """The answer where there is nothing to be had."""
    return {"refused": reason}


def limit_resources(memory_bytes: int, cpu_s: int, text_bytes: int) -> None:
    """Limit this process, as far as the platform can."""
    try:
        import resource
    except ImportError:  # Windows; `confined.py` has said so
        return
    answer_bytes = _ANSWER_FACTOR * text_bytes + _SLACK_BYTES
    wanted = {
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
        resource.RLIMIT_FSIZE: (answer_bytes, answer_bytes),
        resource.RLIMIT_CORE: (0, 0),
    }
    for what, (soft, hard) in wanted.items():
        _, ceiling = resource.getrlimit(what)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        try:
            resource.setrlimit(what, (soft, hard))
        except (ValueError, OSError) as error:  # macOS refuses some
            print(f"no limit {what}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
