import instructor
from openai import OpenAI
from pydantic import BaseModel
from report import BASE_URL, KEY, MODEL, QUESTION, tried


class Place(BaseModel):
    room: str


messages = [{"role": "user", "content": QUESTION}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
    with tried(f"mode {mode.name}"):
        client = instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=KEY), mode=mode)
        assert client.chat.completions.create(
            model=MODEL, messages=messages, response_model=Place, max_retries=1
        ).room
