"""Reading ahead and embedding beside: what keeps all cores busy while documents are ingested.

Documents are read and split by threads ahead of the embedder, which takes the chunks of many
documents together, while the caller writes those embedded before. Order is kept, and memory is
bounded: by bytes of what is read ahead, and by three batches of chunks (read, embedded, written).
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    import numpy as np

    from chunkcache.retrieval.embedder import Embedder

_READERS = 2  # most of their work holds Python's lock, so more would only wait for it
_AHEAD_ITEMS = 64
_AHEAD_BYTES = 8 << 20  # beyond them, no other document is read ahead
_FIRST_BATCH_TEXTS = 16  # batches double from here, so that a short job is not one long wait
_BATCH_TEXTS = 256  # enough to keep cores busy; few, because a kill loses what is not written yet
_TOGETHER = 32  # items given out at once: one sync for all, and no long wait for other writers

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Embeddable(Protocol):
    """Something with texts to embed."""

    @property
    def texts(self) -> Sequence[str]:
        """What is to be embedded of it; may be empty."""
        ...


_Embeddable = TypeVar("_Embeddable", bound=Embeddable)


def read_ahead(
    read: Callable[[_Item], _Result], items: Iterable[tuple[int, _Item]]
) -> Iterator[_Result]:
    """`read(item)` of each item in order, done by threads ahead of the caller.

    Args:
        items: with their size in bytes: so much is read ahead, but at least one item.

    Raises:
        What `read` raised, in the item's turn; items behind it are not waited for.
    """
    coming = iter(items)
    pending: deque[tuple[int, Future[_Result]]] = deque()
    held_bytes = 0
    with ThreadPoolExecutor(_READERS, thread_name_prefix="chunkcache-read") as readers:
        try:
            while True:
                while held_bytes < _AHEAD_BYTES and len(pending) < _AHEAD_ITEMS:
                    if (following := next(coming, None)) is None:
                        break
                    size_bytes, item = following
                    pending.append((size_bytes, readers.submit(read, item)))
                    held_bytes += size_bytes
                if not pending:
                    return
                size_bytes, future = pending.popleft()
                held_bytes -= size_bytes
                yield future.result()
        finally:
            for _, future in pending:
                future.cancel()


def embed_beside(
    embedder: Embedder, items: Iterable[_Embeddable]
) -> Iterator[tuple[list[_Embeddable], Mapping[str, np.ndarray]]]:
    """All items in order, some at once, with the vectors of their texts (and of others') by text.

    The texts of many items are embedded together, each once, in a thread beside: while one batch
    is embedded, the caller works on the one before and the one behind is gathered.

    Raises:
        What gathering or embedding raised; items of batches before have been given out then.
    """
    beside = ThreadPoolExecutor(1, thread_name_prefix="chunkcache-embed")
    waiting: deque[tuple[list[_Embeddable], Future[Mapping[str, np.ndarray]]]] = deque()
    try:
        for batch in _batches(items):
            texts = list(dict.fromkeys(text for item in batch for text in item.texts))
            waiting.append((batch, beside.submit(_embed, embedder, texts)))
            if len(waiting) > 1:
                yield from _embedded(*waiting.popleft())
        while waiting:
            yield from _embedded(*waiting.popleft())
    finally:
        beside.shutdown(cancel_futures=True)


def _embedded(
    batch: list[_Embeddable], vectors: Future[Mapping[str, np.ndarray]]
) -> Iterator[tuple[list[_Embeddable], Mapping[str, np.ndarray]]]:
    made = vectors.result()
    for start in range(0, len(batch), _TOGETHER):
        yield batch[start : start + _TOGETHER], made


def _batches(items: Iterable[_Embeddable]) -> Iterator[list[_Embeddable]]:
    batch: list[_Embeddable] = []
    texts, limit = 0, _FIRST_BATCH_TEXTS
    for item in items:
        batch.append(item)
        texts += len(item.texts)
        if texts >= limit or len(batch) >= limit:
            yield batch
            batch, texts, limit = [], 0, min(2 * limit, _BATCH_TEXTS)
    if batch:
        yield batch


def _embed(embedder: Embedder, texts: Sequence[str]) -> Mapping[str, np.ndarray]:
    return dict(zip(texts, embedder.embed(texts), strict=True)) if texts else {}
