import json
from pathlib import Path

from lm_eval.models.openai_completions import LocalChatCompletion
from report import BASE_URL, MODEL, QUESTION, tried

with tried("local-chat-completions, generate_until"):
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr

    model = LocalChatCompletion(base_url=f"{BASE_URL}/chat/completions", model=MODEL)
    asked = JsonChatStr(json.dumps([{"role": "user", "content": QUESTION}]))
    settings = {"until": ["\n\n"], "max_gen_toks": 8}
    request = Instance("generate_until", {}, (asked, settings), 0)
    assert isinstance(model.generate_until([request])[0], str), Path.cwd()
