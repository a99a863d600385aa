import asyncio

from openai import AsyncOpenAI
from report import BASE_URL, KEY, MODEL, QUESTION, tried
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
)
from semantic_kernel.contents import ChatHistory

client = AsyncOpenAI(base_url=BASE_URL, api_key=KEY)
service = OpenAIChatCompletion(ai_model_id=MODEL, async_client=client)
history = ChatHistory()
history.add_user_message(QUESTION)
settings = OpenAIChatPromptExecutionSettings()


async def streamed() -> list[object]:
    return [piece async for piece in service.get_streaming_chat_message_content(history, settings)]


async def main() -> None:
    with tried("get_chat_message_content"):
        assert str(await service.get_chat_message_content(history, settings))
    with tried("get_streaming_chat_message_content"):
        assert await streamed()


asyncio.run(main())
