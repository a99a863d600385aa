import litellm
from report import BASE_URL, EMBEDDER, KEY, MODEL, QUESTION, tried

messages = [{"role": "user", "content": QUESTION}]
common = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY}
with tried("completion"):
    answer = litellm.completion(messages=messages, **common)
    assert answer.choices[0].message.content and answer.usage.prompt_tokens
with tried("completion, streamed"):
    assert [*litellm.completion(messages=messages, stream=True, **common)]
with tried("responses"):
    assert litellm.responses(input=QUESTION, **common)
with tried("embedding"):
    assert litellm.embedding(**{**common, "model": f"openai/{EMBEDDER}"}, input=[QUESTION]).data
