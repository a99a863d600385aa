"""Running one prompt in many ways, below the service: for what changes records or rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench_quality import SUFFIX

from chunkcache.chunk import ChunkKey, ChunkKV
from chunkcache.engine.generation import Generation
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.protocol import AnswerRequest, ChunkCacheOptions, Message, Sampling
from chunkcache.repair import RepairPolicy, RepairTask, Scoring
from chunkcache.repair.select import reusable_positions, top_rows
from chunkcache.service.answer import chunk_spans
from chunkcache.service.asking import Measure

if TYPE_CHECKING:
    import numpy as np

    from chunkcache import ChunkCache
    from chunkcache.engine.prompt import Prompt
    from chunkcache.engine.resident import Resident
    from chunkcache.evaluate.quality import Question

SALT = b"lab"
TOKENS = 16


class Given(RepairPolicy):
    """Repairs the rows with the largest of the weights it was given."""

    name = "given"
    needs = Scoring.NONE

    def __init__(self, weights: np.ndarray) -> None:
        self._weights = weights

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """The heaviest rows."""
        positions = reusable_positions(task)
        return top_rows(positions, self._weights[positions], task.max_rows)


class Lab:
    """Runs one prompt in every way."""

    def __init__(self, cache: ChunkCache) -> None:
        self.runtime = cache.runtime
        self._cache = cache

    def answer(
        self, prompt: Prompt, records: dict[int, ChunkKV], policy: RepairPolicy, budget: float,
        tokens: int = TOKENS, **options: Any,
    ) -> Outcome:  # fmt: skip
        """One generation; nothing is shared between two of them."""
        generation = Generation(
            prompt, self.hold(records), policy=policy, budget=budget, exact_only=not records,
            sampling=Sampling(), max_new_tokens=tokens, salt=SALT, takes_prefix=False,
            gives_prefix=False, **options,
        )  # fmt: skip
        self.runtime.engine.submit(generation)
        return next(event for event in generation.events() if isinstance(event, Outcome))

    def hold(self, records: dict[int, ChunkKV]) -> dict[int, Resident]:
        """The records on the device, by span index, leased for one request that nobody else shares.

        Raises:
            RuntimeError: there is no room for all of them.
        """
        chunks = self.runtime.engine.chunks
        held: dict[int, Resident] = {}
        for index, record in records.items():
            resident = chunks.hold(record, listed=False)
            if resident is None:
                chunks.release(held.values())
                usage = chunks.usage()
                raise RuntimeError(
                    f"engine.chunk_capacity_bytes: got {usage.capacity_bytes}, {usage.size_bytes} "
                    f"of them in use, must hold {len(records)} chunks of one prompt. Hint: more of "
                    "them, or fewer passages."
                )
            held[index] = resident
        return held

    def prompt(self, question: Question) -> Prompt:
        """The prompt of a question with its passages."""
        request = AnswerRequest(
            messages=[Message(role="user", content=question.text + SUFFIX)],
            documents=list(question.contexts or ()),
            sampling=Sampling(max_tokens=1),
            options=ChunkCacheOptions(mode="full"),
        )
        handle = self._cache.start(request, measure=Measure())
        list(handle.events())
        return handle.prompt

    def records(self, prompt: Prompt) -> dict[int, ChunkKV]:
        """Records as the service would make them."""
        spans = chunk_spans(prompt)
        keys = [self.runtime.key(prompt.spans[i].token_ids, SALT) for i in spans]
        return dict(zip(spans, self.runtime.compute(keys, SALT), strict=True))

    def true_records(self, prompt: Prompt, records: dict[int, ChunkKV]) -> dict[int, ChunkKV]:
        """The KV that full prefill makes, as if it were `records`."""
        head, rest = prompt.spans[0].token_ids, prompt.token_ids[len(prompt.spans[0]) :]
        key = ChunkKey.of(
            rest, fingerprint=self.runtime.model.fingerprint, born_prefix=head, salt=SALT
        )
        whole = ChunkPrefill(key, head=head, salt=SALT)
        self.runtime.engine.submit(whole)
        kv = whole.future.result().kv
        exact = {}
        for index, record in records.items():
            span = prompt.spans[index]
            first = span.start - len(head)
            own = kv[:, :, first : first + len(span)].clone()
            exact[index] = ChunkKV(record.key, record.geometry, own, record.stats)
        return exact
