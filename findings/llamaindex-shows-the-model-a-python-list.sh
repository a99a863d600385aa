#!/usr/bin/env bash
# llama-index-core 0.14.25: the response mode `simple_summarize` puts the joined passages into the prompt as the repr of a
# Python list of one: brackets and quotes around it, every line break as a backslash and an n. `compact`, the default,
# joins them as text. Tables and code reach the model as one escaped line, and neither a prefix cache nor one that
# knows passages by their text finds them again in the prompt.
# Seen: "['alpha\\nbeta\\ngamma']" between the rules of the template; with `compact` the lines as they are.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "llama-index-core==0.14.25"
"$work/env/bin/python" - <<'PY'
from importlib.metadata import version

from llama_index.core.llms import MockLLM
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode

prompts = []


class Listening(MockLLM):
    def complete(self, prompt, **kwargs):
        prompts.append(prompt)
        return super().complete(prompt, **kwargs)


def prompt_of(mode):
    passages = [NodeWithScore(node=TextNode(text=text), score=1.0) for text in ("alpha\nbeta", "gamma")]
    get_response_synthesizer(llm=Listening(), response_mode=mode).synthesize("Which letter?", passages)
    return prompts.pop()


simple, compact = prompt_of("simple_summarize"), prompt_of("compact")
print("llama-index-core", version("llama-index-core"), "simple_summarize:", simple.splitlines()[2])
assert "alpha\nbeta" in compact, "compact does not keep the lines any more"
assert "['alpha\\nbeta\\ngamma']" in simple, "simple_summarize shows the model text now"
PY
