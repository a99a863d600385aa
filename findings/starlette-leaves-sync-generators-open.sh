#!/usr/bin/env bash
# starlette 1.10.0 with uvicorn 0.54.0: when a client leaves a stream, an async generator is told (CancelledError, then its
# `finally`). A plain generator is not: it stays where it was, the response's background task runs, and its `finally`
# (locks, pins, files) waits until Python's garbage collector happens to come by.
# Seen with the collector off: half a second after the background task a plain generator is not closed, and is by
# gc.collect(); an async one is closed before its task. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "starlette==1.10.0" "uvicorn==0.54.0" "httpx==0.28.1"
"$work/env/bin/python" - <<'PY'
import asyncio
import gc
import socket
import threading
import time
from importlib.metadata import version

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse
from starlette.routing import Route

happened = []


def plain():
    try:
        for _ in range(2000):
            yield b"word "
            time.sleep(0.005)
    finally:
        happened.append("plain closed")


async def asynchronous():
    try:
        for _ in range(2000):
            yield b"word "
            await asyncio.sleep(0.005)
    finally:
        happened.append("async closed")


def route(name, generator):
    async def answer(request):
        return StreamingResponse(generator(), background=BackgroundTask(happened.append, f"{name} task"))

    return Route(f"/{name}", answer)


listener = socket.create_server(("127.0.0.1", 0))
app = Starlette(routes=[route("plain", plain), route("async", asynchronous)])
server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
gc.disable()
threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
while not server.started:
    time.sleep(0.01)
seen = {}
for name in ("async", "plain"):
    with httpx.stream("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/{name}") as response:
        next(response.iter_raw())
    while f"{name} task" not in happened:
        time.sleep(0.01)
    time.sleep(0.5)
    seen[name] = [what for what in happened if what.startswith(name)]
gc.collect()
print(f"starlette {version('starlette')}: {seen}; after gc.collect(): {happened[-1]!r}")
assert seen["async"] == ["async closed", "async task"]
assert seen["plain"] == ["plain task"] and happened[-1] == "plain closed", "a plain generator is closed now"
PY
