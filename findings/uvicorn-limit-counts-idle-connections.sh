#!/usr/bin/env bash
# uvicorn 0.54.0: `limit_concurrency` counts open connections, and the one that asks among them, not requests at work. A
# limit of 1 refuses every request there is; with a limit of 4, three clients that asked once and keep their
# connection, as pools do, shut all others out with 503 from a server that does nothing, health checks too.
# Seen: limit 1: 503 at once; limit 4: three clients 200, a fourth 503, and 200 when one has closed.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "uvicorn==0.54.0" "httpx==0.28.1"
"$work/env/bin/python" - <<'PY'
import socket
import threading
import time

import httpx
import uvicorn


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def serve(limit):
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", limit_concurrency=limit))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return f"http://127.0.0.1:{listener.getsockname()[1]}", server


url, _ = serve(1)
alone = httpx.get(url).status_code
url, server = serve(4)
pools = [httpx.Client() for _ in range(3)]
served = [pool.get(url).status_code for pool in pools]
fourth = httpx.get(url).status_code
pools[0].close()
while len(server.server_state.connections) > 2:
    time.sleep(0.01)
again = httpx.get(url).status_code
print(f"uvicorn {uvicorn.__version__}: limit 1: {alone}; limit 4: idle clients {served}, another {fourth}, "
      f"with one client less {again}")
assert served == [200] * 3 and again == 200
assert (alone, fourth) == (503, 503), "idle connections are not counted now"
PY
