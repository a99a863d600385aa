from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from report import BASE_URL, EMBEDDER, KEY, MODEL, QUESTION, tried

key = Secret.from_token(KEY)
messages = [ChatMessage.from_user(QUESTION)]
with tried("OpenAIChatGenerator"):
    generator = OpenAIChatGenerator(api_base_url=BASE_URL, api_key=key, model=MODEL)
    assert generator.run(messages)["replies"][0].text
with tried("OpenAIChatGenerator, streamed"):
    pieces = []
    OpenAIChatGenerator(
        api_base_url=BASE_URL, api_key=key, model=MODEL, streaming_callback=pieces.append
    ).run(messages)
    assert pieces
with tried("OpenAITextEmbedder"):
    embedder = OpenAITextEmbedder(api_base_url=BASE_URL, api_key=key, model=EMBEDDER)
    assert embedder.run(QUESTION)["embedding"]
