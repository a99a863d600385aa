#!/usr/bin/env bash
# httpx 0.28.1: `iter_lines()` ends a line wherever Python's `splitlines` does, at U+2028, U+2029 and U+0085 too. In server-sent
# events CR and LF alone end a line, and JSON may hold those three as they are; texts of PDFs and web pages have
# them. A client that reads a stream of chunks by `iter_lines` gets half a chunk's JSON, and fails on a sound
# server once an answer quotes such a passage. Where the server writes them as \u2028, \u2029 and \u0085, which is the
# same JSON, all is read. httpx-sse 0.4.3 has a rule of its own and is right.
# Seen: an event of `a<U+2028>b` is 3 lines, the first no JSON; escaped it is 2; httpx-sse reads both. Fails when that changes.
# httpx-sse's, mended: https://github.com/florimondmanca/httpx-sse/issues/34
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "httpx==0.28.1" "httpx-sse==0.4.3"
"$work/env/bin/python" - <<'PY'
import json
from importlib.metadata import version

import httpx
import httpx_sse

said = {"content": "a\u2028b"}


def answer(request):
    data = json.dumps(said, ensure_ascii=request.url.path == "/escaped")
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=f"data: {data}\n\n".encode())


client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server")
found = {}
for path in ("/escaped", "/plain"):
    with client.stream("GET", path) as response:
        found[path] = list(response.iter_lines())
    with httpx_sse.connect_sse(client, "GET", path) as source:
        assert [event.json() for event in source.iter_sse()] == [said]
print(f"httpx {httpx.__version__}: {found}; httpx-sse {version('httpx-sse')} reads both")
assert len(found["/escaped"]) == 2 and json.loads(found["/escaped"][0].removeprefix("data: ")) == said
assert len(found["/plain"]) == 3 and found["/plain"][0] == 'data: {"content": "a', "httpx ends lines at CR and LF alone now"
PY
