#!/usr/bin/env bash
# openai (Python) 3.57.0: of a plain chat that ended at its token limit, with nothing to parse, `create` gives the
# text and `finish_reason: length`. The helper `chat.completions.stream()` gives all events up to `content.done`
# without a complaint, and then its `get_final_completion()` raises LengthFinishReasonError ("Could not parse
# response content"), with the usage in the message and the text only in `error.completion`. So a server whose
# answers are often cut is a failing server to whoever uses the helper as its own example does.
# Seen: events end with `content.done` (text "in the"), get_final_completion raises. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "openai==3.57.0"
"$work/env/bin/python" - <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai

PIECES = [{"delta": {"role": "assistant", "content": "in the"}}, {"delta": {}, "finish_reason": "length"}]
HEAD = {"id": "1", "created": 1, "model": "m"}


class Cut(BaseHTTPRequestHandler):
    def do_POST(self):
        wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert not {"response_format", "tools"} & set(wanted), wanted
        message = {"role": "assistant", "content": "in the"}
        whole = {**HEAD, "object": "chat.completion",
                 "choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
        chunks = [{**HEAD, "object": "chat.completion.chunk",
                   "choices": [{"index": 0, "finish_reason": None, **piece}]} for piece in PIECES]
        lines = [*map(json.dumps, chunks), "[DONE]"]
        body = "".join(f"data: {line}\n\n" for line in lines) if wanted.get("stream") else json.dumps(whole)
        kind = "text/event-stream" if wanted.get("stream") else "application/json"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Cut)
threading.Thread(target=server.serve_forever, daemon=True).start()
chat = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="unused").chat
asked = {"model": "m", "messages": [{"role": "user", "content": "Where is the cat?"}]}
whole = chat.completions.create(**asked)
assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("in the", "length")
with chat.completions.stream(**asked) as stream:
    events = [event.type for event in stream]
    try:
        stream.get_final_completion()
    except openai.LengthFinishReasonError as error:
        print(f"openai {openai.__version__}: create gives {whole.choices[0].message.content!r}; "
              f"events end with {events[-1]!r}; get_final_completion: {str(error)[:60]}...")
        assert events[-1] == "content.done" and error.completion.choices[0].message.content == "in the"
    else:
        raise SystemExit("get_final_completion gives the cut answer now")
PY
