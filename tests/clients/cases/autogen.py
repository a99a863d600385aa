import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ModelInfo, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from report import BASE_URL, KEY, MODEL, QUESTION, tried

info = ModelInfo(
    vision=False, function_calling=True, json_output=True, family="unknown", structured_output=True
)
client = OpenAIChatCompletionClient(model=MODEL, base_url=BASE_URL, api_key=KEY, model_info=info)
messages = [UserMessage(content=QUESTION, source="user")]


async def main() -> None:
    with tried("create"):
        assert (await client.create(messages)).content
    with tried("create_stream"):
        assert [piece async for piece in client.create_stream(messages)]
    with tried("AssistantAgent"):
        assert (await AssistantAgent("a", client).run(task=QUESTION)).messages


asyncio.run(main())
