import os

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from report import BASE_URL, KEY, MODEL, QUESTION, tried

os.environ["OPENAI_BASE_URL"] = BASE_URL
model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY))


class Place(BaseModel):
    room: str


with tried("OpenAIChatModel"):
    assert Agent(model).run_sync(QUESTION).output
with tried("openai: shorthand"):
    assert Agent(f"openai:{MODEL}").run_sync(QUESTION).output
with tried("output_type"):
    assert Agent(model, output_type=Place).run_sync(QUESTION).output
