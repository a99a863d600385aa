"""A server process on a real port that is told to stop."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from chunkcache.config import Settings
from chunkcache.server.run import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

FAKE = Path(__file__).parent / "serve_fake.py"


class Process:
    """A serving subprocess: its address, and the note it leaves when `serve` has returned."""

    def __init__(self, child: subprocess.Popen[str], note: Path) -> None:
        self.child = child
        self._note = note
        assert child.stdout is not None
        self.url = next(line for line in child.stdout if line.startswith("http")).strip()
        # what it logs must not fill the pipe
        threading.Thread(target=child.stdout.read, daemon=True).start()

    def stopped(self) -> tuple[int, str]:
        """Exit code and note, once it has gone by itself."""
        code = self.child.wait(20)
        return code, self._note.read_text() if self._note.exists() else ""

    def refuses(self) -> httpx.Response:
        """Ask until the answer is that it is shutting down; other clients see that, not a reset."""
        while True:
            response = httpx.post(f"{self.url}/v1/chat/completions", json=asking("hello"))
            if response.status_code != 200:
                return response


def asking(question: str, *, stream: bool = False) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "stream": stream}


@contextmanager
def serving(
    tmp_path: Path, drain_timeout_s: float, stderr: Any = None, **server: float
) -> Iterator[Process]:
    note = tmp_path / "note"
    server["drain_timeout_s"] = drain_timeout_s
    child = subprocess.Popen(
        [sys.executable, str(FAKE), str(tmp_path / "home"), str(note), json.dumps(server)],
        stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip
    with child:
        try:
            yield Process(child, note)
        finally:
            child.kill()


@contextmanager
def streaming(process: Process, question: str) -> Iterator[Iterator[str]]:
    """The lines of a stream whose first one has arrived."""
    url, body = f"{process.url}/v1/chat/completions", asking(question, stream=True)
    with httpx.stream("POST", url, json=body, timeout=20) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        yield lines


def test_sigterm_lets_running_answers_end_and_admits_no_new_ones(tmp_path: Path) -> None:
    with serving(tmp_path, drain_timeout_s=20) as process:
        with streaming(process, "take a nap") as lines:
            process.child.send_signal(signal.SIGTERM)
            refused = process.refuses()
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert process.stopped() == (0, "drained=True closed=True")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_outlasts_the_drain_is_cancelled_and_told_so(
    tmp_path: Path, number: signal.Signals
) -> None:
    with serving(tmp_path, drain_timeout_s=0.2) as process:
        with streaming(process, "hold on") as lines:
            process.child.send_signal(number)
            *_, name, data, blank = lines
        assert (name, blank) == ("event: error", "")
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == "cancelled"
        assert process.stopped() == (0, "drained=True closed=True")


def test_a_second_signal_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    with serving(tmp_path, drain_timeout_s=600) as process:
        with streaming(process, "hold on") as lines:
            process.child.send_signal(signal.SIGTERM)
            process.refuses()
            process.child.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        code, note = process.stopped()
        assert (code, note) == (0, "drained=True closed=True")


def test_bodies_that_do_not_come_are_told_and_make_no_noise(tmp_path: Path) -> None:
    """One is waited for, one has been answered and is read to be thrown away."""
    rest = (
        "HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "content-length: 9\r\n\r\n{"
    )
    with (tmp_path / "stderr").open("w+") as said, ExitStack() as stack:
        process = stack.enter_context(serving(tmp_path, 0, stderr=said))
        url = httpx.URL(process.url)
        answered, waited_for = (
            stack.enter_context(socket.create_connection((url.host, url.port), timeout=20))
            for _ in range(2)
        )
        answered.sendall(f"POST /nothing {rest}".encode())
        assert answered.recv(4096).startswith(b"HTTP/1.1 404 ")
        waited_for.sendall(f"POST /v1/chat/completions {rest}".encode())
        assert httpx.get(f"{process.url}/health").status_code == 200  # so both are being read
        process.child.send_signal(signal.SIGTERM)
        head, _, told = ending(waited_for).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"x-request-id" in head
        assert json.loads(told)["error"]["code"] == "shutting_down"
        assert process.stopped() == (0, "drained=True closed=True")
        said.seek(0)
        assert "Traceback" not in (lines := said.read()), lines


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
def test_a_reader_that_never_reads_is_let_go(tmp_path: Path) -> None:
    """Else its answer never ends, and the drain waits for it as long as it may."""
    with serving(tmp_path, drain_timeout_s=600, stalled_timeout_s=1) as process:
        address = httpx.URL(process.url)
        body = json.dumps(asking("long 500000", stream=True)).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect((address.host, address.port))
            stalled.sendall(head.encode() + body)
            assert stalled.recv(100).startswith(b"HTTP/1.1 200")
            process.child.send_signal(signal.SIGTERM)
            assert process.stopped() == (0, "drained=True closed=True")


def ending(connection: socket.socket, drip: bytes = b"") -> bytes:
    """What comes before the other side ends the connection, to which bytes are sent meanwhile."""
    came = b""
    for _ in range(500):
        if not select.select([connection], [], [], 0.02)[0]:
            connection.send(drip)
            continue
        try:
            part = connection.recv(4096)
        except ConnectionResetError:
            return came
        if not part:
            return came
        came += part
    raise AssertionError("it has not ended")


def test_a_head_that_does_not_come_ends_its_connection(tmp_path: Path) -> None:
    """Else any number of them are held for as long as their clients like."""
    body = json.dumps(asking("where is the cat")).encode()
    with serving(tmp_path, drain_timeout_s=0, head_timeout_s=1.0) as process, ExitStack() as stack:
        url = httpx.URL(process.url)
        silent, dripping, partial, second, slow_body = (
            stack.enter_context(socket.create_connection((url.host, url.port), timeout=20))
            for _ in range(5)
        )
        slow_body.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        second.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        first = second.recv(4096)
        while not first.endswith(b"}"):
            first += second.recv(4096)
        assert first.startswith(b"HTTP/1.1 200")
        for connection in (second, partial):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: loc")
        assert ending(silent) == b""
        ending(dripping, drip=b"x")
        for connection in (second, partial):
            head, _, told = ending(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head
            assert json.loads(told)["error"]["code"] == "request_timeout"
            assert "server.head_timeout_s" in json.loads(told)["error"]["message"]
        slow_body.sendall(body)  # its head was there in time
        assert slow_body.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_taken_port_is_exit_code_1_and_the_service_is_closed(
    fake: Any, tmp_path: Path, logged: list[Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = fake.FakeService(Settings(home=tmp_path / "home"))
        assert serve(service, port=port) == 1
    assert service.closed
    assert {"event": "not_listening", "host": "127.0.0.1", "port": port, "log_level": "error"} in (
        logged
    )


def test_the_default_address_is_this_machine_s_own() -> None:
    assert Settings().server.host == "127.0.0.1"


def test_an_unusable_key_file_closes_the_service(fake: Any, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", server={"api_keys_file": tmp_path / "none"})
    service = fake.FakeService(settings)
    with pytest.raises(Exception, match="api_keys_file"):
        serve(service)
    assert service.closed
