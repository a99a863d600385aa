from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from report import BASE_URL, EMBEDDER, KEY, MODEL, QUESTION, tried

KEYS = 'Answer in JSON with the key "room".'  # in json_mode nothing else tells the model
chat = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model=MODEL)


class Place(BaseModel):
    """A place."""

    room: str


def look(room: str) -> str:
    """Look into a room."""
    return room


with tried("invoke"):
    assert chat.invoke(QUESTION).content
with tried("stream"):
    assert [*chat.stream(QUESTION)]
with tried("bind_tools"):
    chat.bind_tools([look]).invoke(QUESTION)
for method in ("json_schema", "json_mode", "function_calling"):
    with tried(f"with_structured_output, {method}"):
        chat.with_structured_output(Place, method=method).invoke(f"{QUESTION} {KEYS}")
with tried("OpenAIEmbeddings, check_embedding_ctx_length=False"):
    assert OpenAIEmbeddings(
        base_url=BASE_URL, api_key=KEY, model=EMBEDDER, check_embedding_ctx_length=False
    ).embed_query(QUESTION)
