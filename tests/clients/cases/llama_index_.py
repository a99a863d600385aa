from llama_index.llms.openai_like import OpenAILike
from report import BASE_URL, KEY, MODEL, QUESTION, tried

with tried("complete, defaults"):
    assert OpenAILike(model=MODEL, api_base=BASE_URL, api_key=KEY).complete(QUESTION).text
chat = OpenAILike(model=MODEL, api_base=BASE_URL, api_key=KEY, is_chat_model=True)
with tried("complete, is_chat_model"):
    assert chat.complete(QUESTION).text
with tried("stream_complete, is_chat_model"):
    assert [*chat.stream_complete(QUESTION)]
