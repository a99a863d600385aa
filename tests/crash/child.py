"""The process that is killed: `python child.py SETTINGS_JSON TASK ARGUMENTS…`.

Says `ready` when the work begins, `written NAME` of each document, and `done` when it ended by
itself; the parent kills it somewhere in between.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from chunkcache import ChunkCache
from chunkcache.config import load_settings
from chunkcache.server.run import serve


def main() -> None:
    settings = load_settings(**json.loads(sys.argv[1]))
    task, *arguments = sys.argv[2:]
    cache = ChunkCache(settings)
    if task == "ingest":
        cache.ingest([])  # opens the catalog and loads tokenizer and embedder
        say("ready")
        cache.ingest([Path(arguments[0])], on_progress=lambda _, __, name: say(f"written {name}"))
    elif task == "warm":
        cache.load()
        say("ready")
        cache.warm()
    elif task == "serve":
        cache.load()
        cache.keep_level()
        serve(cache, port=0, on_ready=lambda url: say(f"ready {url}"))
    say("done")


def say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    main()
