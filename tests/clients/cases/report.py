"""What the scripts of clients share: where the server is, and how a verdict is told."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

BASE_URL = os.environ["BASE_URL"]
MODEL = os.environ["MODEL"]
EMBEDDER = os.environ["EMBEDDER"]
KEY = os.environ["OPENAI_API_KEY"]
QUESTION = "Where is the cat?"


@contextmanager
def tried(what: str) -> Iterator[None]:
    """Say what came of it: any error is a verdict, not the end of the script."""
    try:
        yield
        verdict = "works"
    except Exception as error:
        said = " ".join(str(error).split()) or repr(error)
        verdict = f"fails: {type(error).__name__}: {said[:200]}"
    print("@" + json.dumps({"tried": what, "verdict": verdict}), flush=True)
