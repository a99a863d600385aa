"""With `--log-json` every line of a process is JSON, whoever wrote it and whatever went wrong."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

MISBEHAVE = """
import logging, sys, threading, warnings
from chunkcache.cli.logging import LogLevel, configure_logging
configure_logging(LogLevel.INFO, as_json=True)
own = logging.StreamHandler()           # as transformers does: a handler of its own, to stderr
library = logging.getLogger("library"); library.propagate = False; library.addHandler(own)
library.warning("a library's own handler")
logging.getLogger("other").info("a \\u2028 line %s", {"of": "a library"})
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("other").exception("caught")
logging.getLogger("other").warning("%d", "no number")  # logging reports its own fault on stderr
warnings.warn("mind\\nthis")
print("printed", file=sys.stderr)
print("half a", end=" ", file=sys.stderr); print("line", end="\\rthen\\r", file=sys.stderr)
class Dying:
    def __del__(self): raise OSError("while dying")
Dying()
thread = threading.Thread(target=lambda: [][1]); thread.start(); thread.join()
configure_logging(LogLevel.INFO, as_json=True)  # again, as the command line does
print("no end", end="", file=sys.stderr)
raise RuntimeError("nobody\\ncatches this")
"""


def json_lines(text: str) -> list[Any]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(line, dict) and line["event"] for line in lines)
    return lines


def test_whatever_a_process_says_is_json() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MISBEHAVE], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    lines = json_lines(done.stderr)
    events = [line["event"] for line in lines]
    for event in ("a library's own handler", "printed", "half a line", "then", "no end"):
        assert events.count(event) == 1
    by_event = {line["event"]: line for line in lines}
    assert by_event["a \u2028 line {'of': 'a library'}"]["level"] == "info"
    assert by_event["a \u2028 line {'of': 'a library'}"]["logger"] == "other"
    assert "ZeroDivisionError" in by_event["caught"]["exception"]
    assert any("mind\nthis" in event for event in events)
    assert "while dying" in by_event["exception_ignored"]["exception"]
    assert "IndexError" in by_event["thread_crashed"]["exception"]
    assert by_event["crashed"]["level"] == "critical"
    assert "nobody\ncatches this" in by_event["crashed"]["exception"]
    assert all("timestamp" in line for line in lines)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "chunkcache", "--log-json", *arguments]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["serve", "--port", "none"], 2),
        (["--set", "retrieval.top_k=many", "serve"], 2),
        (["--set", "server.api_keys_file=/nowhere", "ls"], 0),
        (["--nonsense"], 2),
        (["--home", "/dev/null/home", "serve", "--port", "0"], 2),
        (["--model", "/nowhere", "serve", "--port", "0"], 1),
    ],
)
def test_a_crash_at_the_start_is_json(arguments: list[str], code: int, tmp_path: Path) -> None:
    home = [] if "--home" in arguments else ["--home", str(tmp_path / "home")]
    done = subprocess.run(
        command(*home, *arguments), capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    lines = json_lines(done.stderr)
    assert (len(lines) > 0) == (code != 0)


def test_everything_a_server_says_from_start_to_end_is_json(options: list[str]) -> None:
    serving = command("--log-level", "info", *options, "serve", "--port", "0")
    child = subprocess.Popen(serving, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdout is not None and child.stderr is not None
            said: list[str] = []
            errors = child.stderr
            reader = threading.Thread(target=lambda: said.extend(errors))
            reader.start()
            first = json.loads(child.stdout.readline())
            assert (first["event"], first["model"]) == ("serving", "tiny")
            provoke(first["url"].removesuffix("/v1"))
            child.send_signal(signal.SIGTERM)
            rest = child.stdout.read()
            assert child.wait(60) == 0
            reader.join(10)
        finally:
            child.kill()
    lines = json_lines("".join(said))
    assert rest == ""
    events = {line["event"] for line in lines}
    assert {"request", "Invalid HTTP request received.", "draining"} <= events


def provoke(url: str) -> None:
    """Requests good and bad, among them what is no HTTP at all."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        connection.recv(1000)
    assert httpx.get(f"{url}/health").status_code == 200
    asked = {"messages": [{"role": "user", "content": "why?"}], "max_tokens": 2}
    assert httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).status_code == 200
    assert httpx.post(f"{url}/v1/chat/completions", content=b"{", timeout=60).status_code == 400


def test_a_taken_port_is_json(options: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        serving = command("--log-level", "info", *options, "serve", "--port", port)
        done = subprocess.run(serving, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = json_lines(done.stderr)  # nothing was loaded for it
    assert (line["event"], line["reason"]) == ("not_listening", "Address already in use")
