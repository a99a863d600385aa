"""Requests as clients made them, recorded from their own code and sent again on the wire.

A line of `recorded.jsonl` has a client and its version, a path, and the body sent at its defaults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = (Path(__file__).parent / "recorded.jsonl").read_text(encoding="utf-8").splitlines()
RECORDED = [json.loads(line) for line in LINES]


def last_of(response: httpx.Response) -> Any:
    """The object that ends an answer, streamed or whole: it has the usage."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return response.json()
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    last = json.loads(lines[-1].removeprefix("data: "))
    return last.get("response", last)


@pytest.mark.parametrize("case", RECORDED, ids=[f"{r['client']}{r['path']}" for r in RECORDED])
def test_what_clients_send_is_answered(
    serve_with: Callable[..., Any], case: dict[str, Any]
) -> None:
    served = serve_with(model={"name": "/models/tiny", "alias": "tiny-chat"})
    response = httpx.post(f"{served.url}{case['path']}", json=case["body"])
    assert response.status_code == 200, response.text
    last = last_of(response)
    usage = last["usage"]
    counted = usage.get("completion_tokens", usage.get("output_tokens"))
    assert counted > 0 and last["chunkcache"]["prompt_tokens"] == 20
    assert last["model"] == case["body"]["model"]
    (request,) = served.service.requests
    assert (request.top_k == 0) == case["body"]["model"].endswith(":plain")
