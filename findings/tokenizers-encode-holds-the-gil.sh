#!/usr/bin/env bash
# tokenizers 0.23.3: `Tokenizer.encode` keeps Python's global lock for as long as it takes, while
# `encode_batch` of the very same single text lets other threads run. A server that encodes one long
# text in a thread of its own therefore stops answering everything else meanwhile.
# Seen: during `encode` of 4 MB a second thread that wakes every millisecond is not run once for most of the
# time; during `encode_batch([text])` it never waits for more than a small part of it.
# Fails when either changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "tokenizers==0.23.3"
"$work/env/bin/python" - <<'PY'
import threading
import time

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers

alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(alphabet))}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
text = "a chunk of text, as long as a book. " * 110_000


def longest_gap(work):
    """Share of the work's time for which a thread that wakes every millisecond did not run."""
    ticks, stop = [time.perf_counter()], threading.Event()

    def tick():
        while not stop.is_set():
            time.sleep(0.001)
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    found = work()
    took = time.perf_counter() - began
    stop.set()
    thread.join()
    return found, max(b - a for a, b in zip(ticks, ticks[1:])) / took


one, alone = longest_gap(lambda: tokenizer.encode(text).ids[:50])
many, batched = longest_gap(lambda: tokenizer.encode_batch([text])[0].ids[:50])
print(f"tokenizers {tokenizers.__version__}: encode stops others for {alone:.0%} of its time, "
      f"encode_batch of the same text for {batched:.0%}")
assert one == many
assert alone > 0.6, "encode lets other threads run now"
assert batched < 0.5, "encode_batch stops other threads now"
PY
