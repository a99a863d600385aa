#!/usr/bin/env bash
# openai (Python) 3.57.0: the helper `chat.completions.stream()` puts a message together from deltas by type: texts are joined,
# numbers added, and lists need an `index` in each entry, annotations too, which have none in OpenAI's own format. A
# server that says `role` in every delta, as many do, gives a message of the role "assistantassistant", which no
# server takes back in the next turn; one that sends citations as they arise, in two deltas, raises RuntimeError in
# the loop over the stream, with the answer half read. The plain stream of `create` gives all of them as they are sent.
# Seen: the role doubled; annotations in one delta kept, in two RuntimeError; a number 1, then 2, is 3.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "openai==3.57.0"
"$work/env/bin/python" - <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai


def cited(*numbers):
    return [{"type": "url_citation", "url_citation": {"url": f"https://example.org/{number}", "title": "owls",
             "start_index": 0, "end_index": 4}} for number in numbers]


streams = {
    "role in each": [{"role": "assistant", "content": "owls"}, {"role": "assistant", "content": " hunt"}],
    "cited at once": [{"role": "assistant", "content": "owls"}, {"content": " hunt", "annotations": cited(1, 2)}],
    "cited as they arise": [{"role": "assistant", "content": "owls", "annotations": cited(1)},
                            {"content": " hunt", "annotations": cited(2)}],
    "a number": [{"role": "assistant", "content": "owls", "seen": 1}, {"content": " hunt", "seen": 2}],
}


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        deltas = streams[json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for delta, reason in zip(deltas, (None, "stop")):
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                     "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
chat = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="unused").chat.completions


def helped(name):
    asked = {"model": name, "messages": [{"role": "user", "content": "When?"}]}
    plain = [chunk.choices[0].delta.content for chunk in chat.create(**asked, stream=True)]
    assert plain == ["owls", " hunt"]
    try:
        with chat.stream(**asked) as stream:
            return stream.get_final_completion().choices[0].message
    except RuntimeError as error:
        return str(error)


found = {name: helped(name) for name in streams}
at_once, as_they_arise = found["cited at once"].annotations, found["cited as they arise"]
print(f"openai {openai.__version__}: role {found['role in each'].role!r}, a number {found['a number'].seen}, annotations "
      f"at once {len(at_once)}, in two deltas: {str(as_they_arise)[:50]}...")
assert len(at_once) == 2
assert found["role in each"].role == "assistantassistant", "a role that is said again is not joined now"
assert "index" in as_they_arise and found["a number"].seen == 3, "deltas are put together another way now"
PY
