"""`python -m chunkcache` is the `chunkcache` command."""

from __future__ import annotations

from chunkcache.cli import main

if __name__ == "__main__":
    main()
