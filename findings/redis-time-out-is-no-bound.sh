#!/usr/bin/env bash
# redis-py 8.1.0: `socket_timeout` bounds one wait of one try. A client with no other setting tries a command that
# timed out ten times more, on a new connection each, so a server that has stopped answering holds a look-up for
# some 25 times the time that was set. `retry=None` is one try.
# Seen: socket_timeout=0.2, GET: 5.4 s and 11 connections; with retry=None 0.2 s and one.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "redis==8.1.0"
"$work/env/bin/python" - <<'PY'
import socket
import threading
import time

import redis

listener = socket.create_server(("127.0.0.1", 0))
connections = []


def accept_and_say_nothing():
    while True:
        connections.append(listener.accept()[0])


threading.Thread(target=accept_and_say_nothing, daemon=True).start()


def tries(**settings):
    before, began = len(connections), time.perf_counter()
    client = redis.Redis(port=listener.getsockname()[1], socket_timeout=0.2, **settings)
    try:
        client.get("key")
    except redis.TimeoutError:
        return len(connections) - before, time.perf_counter() - began
    raise AssertionError("a server that says nothing was understood")


many, one = tries(), tries(retry=None)
print(f"redis {redis.__version__}: {many[0]} tries in {many[1]:.1f} s; with retry=None {one[0]} in {one[1]:.1f} s")
assert many[0] == 11 and many[1] > 1.0, "the default has other tries now"
assert one[0] == 1
PY
