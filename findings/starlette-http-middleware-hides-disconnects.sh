#!/usr/bin/env bash
# starlette 1.10.0 with uvicorn 0.54.0: behind one `@app.middleware("http")` (BaseHTTPMiddleware) that only passes on,
# `request.is_disconnected()` stays false for good in an endpoint whose client has left, so that work that asks
# it goes on to its end for nobody. Without that middleware, or with one in plain ASGI, it is true at once.
# Seen: client gone after 0.2 s; asked for 3 s: true without, never true with the middleware.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "starlette==1.10.0" "uvicorn==0.54.0" "httpx==0.28.1"
"$work/env/bin/python" - <<'PY'
import asyncio
import socket
import threading
import time
from importlib.metadata import version

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response
from starlette.routing import Route

seen = []


async def work(request):
    for _ in range(150):
        if await request.is_disconnected():
            seen.append(True)
            break
        await asyncio.sleep(0.02)
    else:
        seen.append(False)
    return Response("done")


async def pass_on(request, call_next):
    return await call_next(request)


class PlainPassOn:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


def notices(*middleware):
    listener = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/", work, methods=["POST"])], middleware=list(middleware))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    before = len(seen)
    try:
        httpx.post(f"http://127.0.0.1:{listener.getsockname()[1]}/", json={"ask": 1}, timeout=0.2)
    except httpx.ReadTimeout:
        pass
    while len(seen) == before:
        time.sleep(0.02)
    return seen[-1]


none, plain = notices(), notices(Middleware(PlainPassOn))
http = notices(Middleware(BaseHTTPMiddleware, dispatch=pass_on))
print(f"starlette {version('starlette')}, a client that left is noticed: without {none}, in plain ASGI {plain}, "
      f"behind an http middleware {http}")
assert none and plain
assert not http, "an http middleware lets an endpoint see that its client has left now"
PY
