"""Documents to cited answers in this process, without a server.

python examples/01_in_process.py FOLDER "a question"
"""

from __future__ import annotations

import sys

from chunkcache import ChunkCache


def main() -> None:
    folder, question = sys.argv[1:3]
    with ChunkCache.open() as cache:
        print(cache.ingest([folder]))
        print(cache.warm())
        answer = cache.ask(question, budget=0.15, max_tokens=40)
        print(answer.text)
        for cited in answer.citations:
            print("-", cited.title, cited.start_char, cited.end_char)
        report = answer.report
        print(report.rung, f"{report.timings.ttft_ms:.0f} ms to the first token")
        print(report.reused_tokens, "of", report.prompt_tokens, "prompt tokens were reused")


if __name__ == "__main__":
    main()
