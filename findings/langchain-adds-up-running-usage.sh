#!/usr/bin/env bash
# langchain-openai 1.7.4 with langchain-core 1.8.3: usage in a stream is taken for an increment, and summed over its chunks.
# Servers that give the running totals in every chunk (`stream_options.continuous_usage_stats`, which vLLM has and
# other servers copied) are shown too dear by the number of chunks. haystack and llama-index keep the last value.
# Seen: a prompt of 500 tokens, four words in four chunks and one with usage alone: 2,500 input and 14 output tokens.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "langchain-openai==1.7.4" "langchain-core==1.8.3"
"$work/env/bin/python" - <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from langchain_openai import ChatOpenAI

WORDS = ["owls ", "hunt ", "at ", "night"]
asked = []


class RunningUsage(BaseHTTPRequestHandler):
    def do_POST(self):
        asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number in range(1, len(WORDS) + 2):
            last = number > len(WORDS)
            written = min(number, len(WORDS))
            usage = {"prompt_tokens": 500, "completion_tokens": written, "total_tokens": 500 + written}
            delta = {"role": "assistant", "content": "" if last else WORDS[number - 1]}
            reason = "stop" if written == len(WORDS) else None
            choices = [] if last else [{"index": 0, "delta": delta, "finish_reason": reason}]
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            chunk |= {"usage": usage, "choices": choices}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), RunningUsage)
threading.Thread(target=server.serve_forever, daemon=True).start()
options = {"include_usage": True, "continuous_usage_stats": True}
model = ChatOpenAI(
    base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="-", model="m",
    extra_body={"stream_options": options},
)
whole = None
for chunk in model.stream("When do owls hunt?"):
    whole = chunk if whole is None else whole + chunk
assert asked[-1]["stream_options"] == options and whole.text == "".join(WORDS)
seen = whole.usage_metadata
print("langchain-openai", version("langchain-openai"), "of 500 and 4 tokens:", seen)
assert (seen["input_tokens"], seen["output_tokens"]) == (2500, 14), "running totals are not summed now"
PY
