"""A script: serves a fake service on a free port, prints its address, notes how it ended.

Arguments: home folder, file of the note, and server settings as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fake_service  # beside this script

from chunkcache.config import Settings
from chunkcache.server.run import serve


def main() -> int:
    home, note = Path(sys.argv[1]), Path(sys.argv[2])
    settings = Settings(home=home, server={"port": 0, **json.loads(sys.argv[3])})
    service = fake_service.FakeService(settings)
    code = serve(service, on_ready=lambda url: print(url, flush=True))
    note.write_text(f"drained={service.drained} closed={service.closed}")
    return code


if __name__ == "__main__":
    sys.exit(main())
