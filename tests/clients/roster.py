"""Which clients are tried, in which version, with which script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Client:
    """One client: what is installed into its own environment, and the script that tries it."""

    name: str
    packages: tuple[str, ...]
    """The first is the client itself; all are pinned."""
    script: str
    kind: Literal["pip", "npm"] = "pip"

    @property
    def version(self) -> str:
        """The client's own."""
        return self.packages[0].rpartition("@" if self.kind == "npm" else "=")[2]


CLIENTS = (
    Client("openai-python", ("openai==3.57.0",), "openai_python.py"),
    Client("openai (npm)", ("openai@7.59.0",), "openai_node.mjs", "npm"),
    Client("langchain-openai", ("langchain-openai==1.7.4",), "langchain_openai_.py"),
    Client("llama-index OpenAILike", ("llama-index-llms-openai-like==0.8.1",), "llama_index_.py"),
    Client("haystack", ("haystack-ai==3.4.1",), "haystack_.py"),
    Client("litellm", ("litellm==1.110.2",), "litellm_.py"),
    Client("pydantic-ai", ("pydantic-ai-slim[openai]==2.62.0",), "pydantic_ai_.py"),
    Client("openai-agents", ("openai-agents==0.24.0",), "openai_agents.py"),
    Client("dspy", ("dspy==3.4.1",), "dspy_.py"),
    Client("instructor", ("instructor==1.17.0",), "instructor_.py"),
    Client("llm", ("llm==0.36",), "llm_.py"),
    Client("lm-eval", ("lm_eval[api]==0.4.13",), "lm_eval_.py"),
    Client("semantic-kernel", ("semantic-kernel==1.45.0",), "semantic_kernel_.py"),
    Client("autogen-ext", ("autogen-ext[openai]==0.7.5", "autogen-agentchat==0.7.5"), "autogen.py"),
    Client("guidellm", ("guidellm==0.8.1",), "guidellm_.py"),
    Client(
        "lmcache bench", ("lmcache-cli==0.5.7rc3.dev0", "transformers==5.24.0"), "lmcache_.py"
    ),
    Client(
        "Open WebUI", ("open-webui==0.12.4", "playwright==1.65.2"), "open_webui.py"
    ),
    Client(
        "ai SDK", ("ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "zod@4.1.12"), "ai_sdk.mjs",
        "npm",
    ),
)  # fmt: skip
