from openai import OpenAI
from pydantic import BaseModel
from report import BASE_URL, EMBEDDER, KEY, MODEL, QUESTION, tried

client = OpenAI(base_url=BASE_URL, api_key=KEY)
messages = [{"role": "user", "content": QUESTION}]
tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


class Place(BaseModel):
    room: str


with tried("chat"):
    assert client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content
with tried("chat, streamed"):
    assert [*client.chat.completions.create(model=MODEL, messages=messages, stream=True)]
with (
    tried("stream helper"),
    client.chat.completions.stream(model=MODEL, messages=messages) as events,
):
    assert [*events] and events.get_final_completion().choices[0].message.content
with tried("tools"):
    client.chat.completions.create(model=MODEL, messages=messages, tools=[tool])
with tried("parse into a model"):
    client.chat.completions.parse(
        model=MODEL, messages=messages, response_format=Place, max_tokens=60
    )
with tried("responses"):
    assert client.responses.create(model=MODEL, input=QUESTION).output_text
with tried("completions"):
    assert client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=4).choices
with tried("embeddings"):
    assert client.embeddings.create(model=EMBEDDER, input=[QUESTION]).data[0].embedding
with tried("files and vector stores"):
    store = client.vector_stores.create(name="tried")
    file = client.files.create(
        file=("cat.txt", b"The cat is in the kitchen."), purpose="assistants"
    )
    assert client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id)
    assert client.vector_stores.search(store.id, query=QUESTION).data
    client.vector_stores.delete(store.id)
