"""Your own retriever: passages go into the request, their KV is reused from then on.

python examples/03_documents_in_the_request.py http://127.0.0.1:8321
"""

from __future__ import annotations

import sys

from chunkcache import Client

PASSAGES = [
    {"id": "door", "title": "The house", "text": "The door of the house is painted red."},
    {"id": "roof", "title": "The house", "text": "The roof was mended in spring."},
    {"id": "cat", "title": "The cat", "text": "The cat sleeps on the roof when it is warm."},
]


def main() -> None:
    with Client(sys.argv[1]) as client:
        for order in (PASSAGES, PASSAGES[::-1]):
            answer = client.ask("What colour is the door?", documents=order, max_tokens=16)
            spans = [(s.title, s.rung.value, s.tier) for s in answer.report.spans if s.title]
            print(answer.text, spans)


if __name__ == "__main__":
    main()
