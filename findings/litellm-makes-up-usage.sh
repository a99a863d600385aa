#!/usr/bin/env bash
# litellm 1.110.2: where the server of a stream reports no usage, litellm puts numbers of its own into the last
# chunk, counted with a tokenizer that need not be the model's over what the client sent. Nothing tells them
# from reported ones: a server that adds a system text or documents is shown too cheap by all of these.
# Seen: asked for usage (`include_usage`), served by one that sends none: 12 prompt tokens, 3 of completion.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "litellm==1.110.2"
LITELLM_LOCAL_MODEL_COST_MAP=True "$work/env/bin/python" - <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import litellm

asked = []
PIECES = [{"delta": {"content": "in the kitchen"}}, {"delta": {}, "finish_reason": "stop"}]


class WithoutUsage(BaseHTTPRequestHandler):
    def do_POST(self):
        asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for piece in PIECES:
            choice = {"index": 0, "finish_reason": None, **piece}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            self.wfile.write(f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), WithoutUsage)
threading.Thread(target=server.serve_forever, daemon=True).start()
stream = litellm.completion(
    model="openai/m", api_base=f"http://127.0.0.1:{server.server_port}/v1", api_key="unused",
    messages=[{"role": "user", "content": "Where is the cat?"}], stream=True,
    stream_options={"include_usage": True},
)
*_, last = stream
assert asked[0]["stream_options"] == {"include_usage": True}
usage = last.usage
print(f"litellm {version('litellm')}, the server said nothing of usage: {usage.prompt_tokens} prompt tokens, "
      f"{usage.completion_tokens} of completion, {usage.total_tokens} in all")
assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, "nothing is made up now"
PY
