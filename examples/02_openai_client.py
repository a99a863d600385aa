"""The unmodified OpenAI client against `chunkcache serve`: upload, ask, stream.

python examples/02_openai_client.py http://127.0.0.1:8321/v1 FILE "a question"
"""

from __future__ import annotations

import sys
from pathlib import Path

import openai


def main() -> None:
    url, path, question = sys.argv[1:4]
    with openai.OpenAI(base_url=url, api_key="-") as client:
        store = client.vector_stores.create(name="example")
        uploaded = client.files.create(file=Path(path), purpose="assistants")
        client.vector_stores.files.create(vector_store_id=store.id, file_id=uploaded.id)
        stream = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": question}],
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"chunkcache": {"vector_store_id": store.id, "budget": 0.15}},
        )
        for chunk in stream:
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
            if chunk.usage and chunk.usage.prompt_tokens_details:
                print("\ncached tokens:", chunk.usage.prompt_tokens_details.cached_tokens)


if __name__ == "__main__":
    main()
