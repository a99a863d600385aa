import agents
from openai import AsyncOpenAI
from report import BASE_URL, KEY, MODEL, QUESTION, tried

agents.set_tracing_disabled(True)
client = AsyncOpenAI(base_url=BASE_URL, api_key=KEY)
agents.set_default_openai_client(client, use_for_tracing=False)
with tried("Agent, defaults (responses)"):
    assert agents.Runner.run_sync(agents.Agent(name="a", model=MODEL), QUESTION).final_output
with tried("OpenAIChatCompletionsModel"):
    chat = agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
    assert agents.Runner.run_sync(agents.Agent(name="a", model=chat), QUESTION).final_output
