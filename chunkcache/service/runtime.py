"""The model side of the service: engine, tiers, prompt builder, and the look-up of chunk KV."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from chunkcache.chunk import USUAL_TERMS, ChunkKey
from chunkcache.codec_spec import lossy_places
from chunkcache.cores import in_own_thread, one_core
from chunkcache.engine.core import Engine
from chunkcache.engine.gate import Verdict, run_gate, store_verdict, stored_verdict
from chunkcache.engine.grammar import Grammars
from chunkcache.engine.loading import load_model
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.engine.prompt import PromptBuilder
from chunkcache.engine.vocabulary import Vocabulary
from chunkcache.errors import Cancelled, ChunkCacheError, GateFailed
from chunkcache.service.announcement import Announcement
from chunkcache.service.calibration import load_calibration
from chunkcache.service.finder import Finder, Found
from chunkcache.service.headroom import Headroom, foreseeing
from chunkcache.service.order import OrderBook
from chunkcache.store import open_store, slab_reader
from chunkcache.store.codec import read_through
from chunkcache.store.cost import Planned, Rows
from chunkcache.store.popularity import Popularity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from chunkcache.chunk import ChunkKV, Terms
    from chunkcache.config import Settings
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.metrics import Metrics
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.policy import Refusal

log = structlog.get_logger(__name__)

_WINDOW = 4  # chunks of one caller in the engine at a time: enough to fill a step, few to lose


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """The chunks of a prompt; what it takes as planned, None before all is known.

    `from_memory`: it waits for no tier and for no chunk to be computed; `is_stored`: for no chunk
    to be computed.
    """

    found: list[Found]
    planned: Planned | None
    from_memory: bool
    is_stored: bool


class Runtime:
    """A loaded model with its engine and its store. Thread-safe.

    Args:
        quotas: bytes that tenants may hold in each tier; unlimited for those not named.
        recompresses: see `open_store`.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, quotas: Mapping[str, int], *, recompresses: bool
    ) -> None:
        self.model = in_own_thread(load_model, settings)
        self.verdict = in_own_thread(_gate, self.model, settings)
        self.prompts = PromptBuilder(self.model.tokenizer, settings.prompt)
        self.vocabulary = Vocabulary(self.model.tokenizer, self.model.eos_ids)
        self.grammars = Grammars(self.vocabulary)
        # on a CPU the pages of chunks are the tier in host memory
        # a chunk that never leaves the device is no stranger to the disk
        popularity = Popularity(also=partial(lossy_places, codecs=settings.store.codecs))
        self.store = open_store(
            settings, self.model.fingerprint, metrics,
            with_host=self.model.device.type != "cpu", popularity=popularity,
            geometry=self.model.geometry, quotas=quotas, recompresses=recompresses,
            reader=slab_reader(self.model.kernel_cache),
        )  # fmt: skip
        on_cpu = self.model.device.type == "cpu"
        room = settings.store.host_capacity_bytes if on_cpu else settings.engine.kv_capacity_bytes
        self.engine = Engine(
            self.model, settings.engine, metrics,
            on_prefill=self.store.cost.observe_prefill,
            chunk_capacity_bytes=settings.engine.chunk_capacity_bytes or room,
            chunk_quotas=quotas, popularity=popularity,
        )  # fmt: skip
        self.capacity_knob = _capacity_knob(settings, on_cpu=on_cpu)
        self.finder = Finder(self.engine, self.store, metrics, len(self.prompts.born_prefix))
        used = metrics.tier_bytes.labels(self.engine.chunk_tier)
        used.set_function(lambda: self.engine.chunks.usage().size_bytes)
        held = metrics.tier_records.labels(self.engine.chunk_tier)
        held.set_function(lambda: self.engine.chunks.usage().records)
        self.calibration = load_calibration(settings, self.model.fingerprint)
        self.orders = OrderBook()
        self._lock = threading.Lock()
        self._in_flight: dict[ChunkKey, ChunkPrefill] = {}

    @property
    def reuses(self) -> bool:
        """Whether the gate allows chunk KV to be reused."""
        return self.verdict.reuses

    def key(self, token_ids: Sequence[int], salt: bytes) -> ChunkKey:
        """The key of a chunk's canonical record: born after the head, or the born passages."""
        return ChunkKey.of(
            token_ids,
            fingerprint=self.model.fingerprint,
            born_prefix=self.prompts.born_prefix,
            salt=salt,
        )

    def find(
        self,
        keys: Sequence[ChunkKey],
        salt: bytes,
        gone: threading.Event | None = None,
        terms: Terms = USUAL_TERMS,
        codec: Codec | None = None,
        always: Rows = Rows(),  # noqa: B008 (it is frozen)
    ) -> Finding:
        """Every chunk, leased; computed where no tier has it, and offered to the tiers then.

        What is computed is kept on `terms`; what is there stays on those it came in on. With
        `codec`, it is held as it would come back through it (to measure that). `always` are the
        rows that the prompt runs whatever is found.

        What a tier has may still be on its way up. Misses run together, batched by the engine.
        Raises what `compute` raises, with no lease left behind; what was computed until then has
        been offered.
        """
        chunks = self.engine.chunks
        with chunks.leases() as leases:
            found, plan = self.finder.find(list(dict.fromkeys(keys)), always, leases)
            missing = {
                key: hit.miss
                for key, hit in found.items()
                if hit.resident is None and hit.miss != "no_room"
            }
            for record in self.compute(list(missing), salt, gone):
                record = replace(record, terms=terms)
                self.store.offer(record)
                record = record if codec is None else read_through(codec, record)
                with one_core():  # beside the engine
                    resident = chunks.hold(record)
                if resident is not None:
                    leases.add(resident)
                miss = missing[record.key] if resident else "no_room"
                found[record.key] = Found(resident, None, miss)
            seen = set[ChunkKey]()
            for key in keys:  # a passage that stands twice in a prompt is leased twice
                again = found[key].resident if key in seen else None
                if again is not None:
                    chunks.lease_again(again)
                    leases.add(again)
                seen.add(key)
            leases.pass_on()
            hits = [found[key] for key in keys]
            return Finding(
                hits, plan.planned,
                from_memory=all(hit.tier == self.engine.chunk_tier for hit in hits),
                is_stored=all(hit.tier is not None for hit in hits),
            )  # fmt: skip

    def announcement(self) -> Announcement:
        """Tells every tier what a request that waits will want; empty so far."""
        return Announcement((self.engine.chunks, self.store))

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """A tenant may hold so much of each tier from now on; None: no limit."""
        self.engine.chunks.on_quota(tenant, limit_bytes)
        self.store.on_quota(tenant, limit_bytes)

    def foresee(self, passages: Sequence[Sequence[int]], salt: bytes) -> None:
        """Begin to bring up passages that a request may be about to ask for (see `Finder`)."""
        self.finder.foresee([self.key(ids, salt) for ids in passages])

    def holds(self, token_ids: Sequence[int], salt: bytes) -> bool:
        """Whether any tier has the canonical record of these tokens. Does not count as a use."""
        return self.tiers_of([self.key(token_ids, salt)]) != [None]

    def tiers_of(self, keys: Sequence[ChunkKey]) -> list[str | None]:
        """The highest tier that has each chunk; None: there is none. Does not count as a use."""
        here = self.engine.chunks.contains_many(keys)
        below = [key for key, is_here in zip(keys, here, strict=True) if not is_here]
        sources = iter(self.store.locate_many(below))
        found: list[str | None] = []
        for is_here in here:
            source = None if is_here else next(sources)
            found.append(self.engine.chunk_tier if is_here else source and source[0])
        return found

    def are_warm(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """Whether a durable tier holds each chunk; then those that lack it and have room get it."""
        if self.store.is_empty:
            return self.engine.chunks.contains_many(keys)
        return self.store.spread(keys)

    def headroom(self, tenant: str) -> Headroom:
        """What the lowest tier will still keep for a tenant.

        Raises:
            StoreError: the disk tier cannot be read.
        """
        tier = self.engine.chunks if self.store.is_empty else foreseeing(self.store.tiers)
        return Headroom(tier, tenant, self.model.geometry.bytes_per_token)

    def why_full(self, limit: Refusal) -> str:
        """What keeps more from being stored, and what to set against it."""
        return f"{limit.reason}. Hint: raise {limit.knob or self.capacity_knob}"

    @contextmanager
    def wanted(self, digests: Iterable[bytes]) -> Iterator[None]:
        """Where records are kept, these leave last meanwhile, and never for one another."""
        tiers = self.engine.chunks if self.store.is_empty else self.store
        keys = [ChunkKey(digest, ()) for digest in digests]
        tiers.on_wait(keys)
        try:
            yield
        finally:
            tiers.on_wait_over(keys)

    def are_kept(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """Whether a durable tier holds each chunk; nothing is copied, and nothing counts as use."""
        if self.store.is_empty:
            return [self.engine.chunks.contains(key) for key in keys]
        return self.store.are_durable(keys)

    def why_not(self, record: ChunkKV) -> str:
        """Why `keep` has just said no, and what to set against it."""
        tier = self.engine.chunks if self.store.is_empty else self.store
        return self.why_full(tier.why_not(record))

    def doubt(self, keys: Sequence[ChunkKey]) -> None:
        """What read these chunks made numbers that are not finite: what is damaged of them goes.

        Nothing is kept so, but memory and disks of long ago may hold it, with a right checksum.
        """
        doubted = set(keys)
        self.engine.chunks.forget(doubted.__contains__)
        self.store.forget_not_finite(keys)

    def keep(self, record: ChunkKV) -> bool:
        """Put a record into the durable tiers and wait until it is there. False: it is in none.

        Raises:
            StoreError: none of them could write it.
        """
        if not self.store.is_empty:
            return self.store.offer(record, wait=True)
        resident = self.engine.chunks.hold(record)
        self.engine.chunks.release([resident] if resident else [])
        return resident is not None

    def compute(
        self, keys: Iterable[ChunkKey], salt: bytes, gone: threading.Event | None = None
    ) -> Iterator[ChunkKV]:
        """Canonical records in order; a few chunks are kept in the engine at a time.

        A key is taken when there is a place for it.

        A chunk another request is computing right now is waited for, not computed twice. After a
        failure no more are begun, and those in the engine are still given before it is raised.

        Raises:
            Cancelled: `gone` was set; what nobody else waits for is not computed any further.
            ShuttingDown, ChunkCacheError: what the engine raises.
        """
        gone = gone or threading.Event()
        window: deque[ChunkPrefill] = deque()
        left = iter(keys)
        key = next(left, None)
        failure: ChunkCacheError | None = None
        while window or (key is not None and failure is None):
            if gone.is_set() and failure is None:
                failure = Cancelled("nobody waits for the answer any more")
            try:
                while key is not None and len(window) < _WINDOW and failure is None:
                    window.append(self._prefill(key, salt, gone))
                    key = next(left, None)
                if not window:
                    break
                record = window.popleft().future.result()
            except ChunkCacheError as error:
                failure = failure or error
                continue
            yield record
        if failure is not None:
            raise failure

    def _prefill(self, key: ChunkKey, salt: bytes, gone: threading.Event) -> ChunkPrefill:
        with self._lock:
            running = self._in_flight.get(key)
            if running is not None and running.wait_for(gone):
                return running
            request = ChunkPrefill(
                key,
                head=self.prompts.canonical_head,
                prior=self.prompts.born_passages,
                salt=salt,
                lowers=self.engine.lowering,
            )
            request.wait_for(gone)
            self.engine.submit(request)
            self._in_flight[key] = request
        request.future.add_done_callback(lambda _: self._forget(request))
        return request

    def _forget(self, request: ChunkPrefill) -> None:
        with self._lock:
            if self._in_flight.get(request.key) is request:  # else one that was given up
                del self._in_flight[request.key]

    def drain(self, timeout_s: float) -> None:
        """Wait until nothing runs, at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.engine.unfinished and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self) -> None:
        """End the engine, then flush and close the tiers."""
        self.engine.close()
        self.store.close()


def _capacity_knob(settings: Settings, *, on_cpu: bool) -> str:
    """The setting that says how large the lowest tier of this machine is."""
    store = settings.store
    if store.disk_capacity_bytes or store.shared or store.object:
        return "store.disk_capacity_bytes"
    if on_cpu and settings.engine.chunk_capacity_bytes:
        return "engine.chunk_capacity_bytes"
    return "store.host_capacity_bytes"


def _gate(model: DecoderModel, settings: Settings) -> Verdict:
    """The stored verdict, or a fresh one.

    Raises:
        GateFailed: our full prefill is not transformers': such a model is not served at all.
    """
    if settings.model.gate == "off":
        log.warning("gate_off", effect="every prompt is computed in full, no chunk KV is reused")
        return Verdict(True, False, {}, {}, ("the gate is switched off (model.gate)",))
    verdict = stored_verdict(model, settings.cache)
    if verdict is None:
        # shown by default: who waits for a first answer should know what for
        log.warning(
            "gate_run", model=model.name,
            note="once per model, machine and version; half a minute, or minutes for a large model",
        )  # fmt: skip
        verdict = run_gate(model)
        store_verdict(verdict, model, settings.cache)
    if not verdict.serves:
        raise GateFailed(
            f"model.name: {model.name} does not pass the gate: {'; '.join(verdict.problems)}. "
            "Hint: chunkcache doctor prints the figures; this architecture is not supported."
        )
    if not verdict.reuses:
        log.warning(
            "gate_failed", model=model.name, problems=list(verdict.problems),
            effect="every prompt is computed in full, no chunk KV is reused",
        )  # fmt: skip
    return verdict
