"""Records of one prompt's chunks made in other ways than the product makes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from lab import SALT, Lab

from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, content_digest
from chunkcache.engine.attention import Logits
from chunkcache.engine.observe import CaptureKV
from chunkcache.engine.planner import make_plan
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.engine.request import Pass, Request
from chunkcache.engine.sequence_kv import PlacedChunk
from chunkcache.repair import ReusedChunk
from chunkcache.repair.cfo import FixOverhead
from chunkcache.service.answer import chunk_spans

if TYPE_CHECKING:
    from chunkcache.engine.attention import LayerView
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.prompt import Prompt
    from chunkcache.engine.resident import Resident
    from chunkcache.errors import ChunkCacheError

Records = dict[int, ChunkKV]
SHIFT_PRIOR = 2.0


class CaptureDocuments(CaptureKV):
    """K, V and attention of all documents of a prompt in one pass, apart by document."""

    def __init__(self, model: DecoderModel, starts: Sequence[int], end: int) -> None:
        super().__init__(model, starts[:1], end - starts[0])
        self._count_between(starts, end - starts[0])

    @property
    def mass(self) -> np.ndarray:
        """`[rows, 1 + documents]`: attention to the head and to each document."""
        return self._mass.cpu().numpy()


class Documents(ChunkPrefill):
    """Full prefill of documents in one order; each of them is a variant of its chunk then."""

    def __init__(
        self, model: DecoderModel, head: Sequence[int], order: Sequence[Sequence[int]]
    ) -> None:
        rest = [t for ids in order for t in ids]
        key = ChunkKey.of(rest, fingerprint=model.fingerprint, born_prefix=head, salt=SALT)
        super().__init__(key, head=head, salt=SALT)
        self._model, self._head, self._order = model, list(head), order
        ends = np.cumsum([len(head), *(len(ids) for ids in order)])
        self._edges = [int(e) for e in ends]

    def begin(self, model: DecoderModel) -> None:
        """As any prefill, with its own observer."""
        super().begin(model)
        self._capture = CaptureDocuments(model, self._edges[:-1], self._edges[-1])
        assert self.current is not None
        self.current.observer = self._capture

    def variants(self) -> list[ChunkKV]:
        """A record for each document, with statistics as Cache-Craft's equations want them."""
        whole, made = self.future.result(), []
        capture = self._capture
        assert isinstance(capture, CaptureDocuments)
        digests = [content_digest(ids) for ids in self._order]
        lengths = [len(ids) for ids in self._order]
        for i, ids in enumerate(self._order):
            rows = slice(self._edges[i] - len(self._head), self._edges[i + 1] - len(self._head))
            mass = capture.mass[rows]
            earlier = mass[:, 1 : i + 1]
            stats = ChunkStats(
                earlier.sum(1), mass[:, 0].copy(), earlier.sum(0), float(mass[:, i + 1].sum()),
                tuple(digests[:i]), tuple(lengths[:i]),
            )  # fmt: skip
            born = [*self._head, *(t for other in self._order[:i] for t in other)]
            key = ChunkKey.of(ids, fingerprint=self._model.fingerprint, born_prefix=born, salt=SALT)
            made.append(ChunkKV(key, whole.geometry, whole.kv[:, :, rows].clone(), stats))
        return made


class CaptureRows:
    """K before RoPE and V of given rows."""

    def __init__(self, model: DecoderModel, positions: np.ndarray) -> None:
        geometry = model.geometry
        self._positions = positions
        shape = (geometry.num_layers, 2, len(positions), geometry.num_kv_heads, geometry.head_dim)
        self.kv = torch.empty(shape)

    def look(self, view: LayerView) -> None:
        """Copy those of the rows that are wanted."""
        positions = view.rows.positions
        wanted = np.flatnonzero(np.isin(positions, self._positions))
        into = torch.from_numpy(np.searchsorted(self._positions, positions[wanted]))
        rows = torch.from_numpy(wanted).to(view.value.device)
        self.kv[view.layer, 0, into] = view.key_before_rope[rows].float().cpu()
        self.kv[view.layer, 1, into] = view.value[rows].float().cpu()


class EvenRows(Request):
    """Recomputes some rows of reused chunks, evenly spaced, and keeps their K and V."""

    def __init__(self, prompt: Prompt, residents: dict[int, Resident], each: int) -> None:
        super().__init__(
            prompt.token_ids, max_new_tokens=0, salt=SALT, takes_prefix=False, gives_prefix=False
        )
        self.repair = make_plan(prompt, 0, residents, exact_only=False, budget=0.0)
        self.done: Future[CaptureRows] = Future()
        self.leases = list(residents.values())
        self._residents = residents
        even = [
            c.start + np.unique(np.linspace(0, c.num_tokens - 1, each).round().astype(np.int64))
            for c in self.repair.task.chunks
        ]
        self.rows = np.concatenate(even)
        missing = [p for p in self.repair.missing if p < self.repair.chunks_end]
        self._run = np.union1d(np.array(missing, np.int64), self.rows)

    def plan(self, model: DecoderModel, prefix_tokens: int) -> int:
        """What no chunk holds below the end of the last one, and the rows."""
        return len(self._run)

    @property
    def chunks(self) -> list[PlacedChunk]:
        """All of them, by position."""
        return [
            PlacedChunk(self._residents[i], p.span.start, 0)
            for i, p in enumerate(self.repair.spans)
            if p.placed
        ]

    def begin(self, model: DecoderModel) -> None:
        """Run them in one pass."""
        self._capture = CaptureRows(model, self.rows)
        self.current = Pass(self._run, observer=self._capture, logits=Logits.NONE)

    def advance(self, model: DecoderModel, logits: torch.Tensor | None) -> None:
        """One pass is all there is."""
        self.current = None
        self.done.set_result(self._capture)

    def fail(self, error: ChunkCacheError) -> None:
        """Hand it on."""
        self.done.set_exception(error)


def shifted(lab: Lab, prompt: Prompt, records: Records, each: int) -> tuple[Records, float]:
    """Records moved by the mean change of their even rows, which are made fresh; and the price."""
    request = EvenRows(prompt, lab.hold(records), each)
    lab.runtime.engine.submit(request)
    fresh, task = request.done.result().kv, request.repair.task
    moved = dict(records)
    for index, plan in enumerate(request.repair.spans):
        if not plan.approximate:
            continue
        inside = (request.rows >= plan.span.start) & (request.rows < plan.span.end)
        rows = torch.from_numpy(request.rows[inside] - plan.span.start)
        new, record = fresh[:, :, torch.from_numpy(inside)], records[index]
        change = (new - record.kv[:, :, rows].float()).mean(dim=2, keepdim=True)
        kv = record.kv.float() + change * len(rows) / (len(rows) + SHIFT_PRIOR)
        kv[:, :, rows] = new
        moved[index] = replace(record, kv=kv.to(record.kv.dtype))
    return moved, len(request.rows) / task.reusable_rows


def sharper(records: Records, factor: float) -> Records:
    """The same records with longer keys."""
    made = {}
    for index, record in records.items():
        kv = record.kv.clone()
        kv[:, 0] *= factor
        made[index] = replace(record, kv=kv)
    return made


def born_after_head(lab: Lab, prompt: Prompt) -> Records:
    """Records as most papers mean them."""
    runtime, made = lab.runtime, {}
    head = runtime.prompts.canonical_head
    for index in chunk_spans(prompt):
        ids = prompt.spans[index].token_ids
        key = ChunkKey.of(ids, fingerprint=runtime.model.fingerprint, born_prefix=head, salt=SALT)
        request = ChunkPrefill(key, head=head, salt=SALT)
        runtime.engine.submit(request)
        made[index] = request.future.result()
    return made


def best_variants(
    lab: Lab, prompt: Prompt, canonical: Records, orders: int, draw: random.Random
) -> Records:
    """Of the canonical record and those of other orders of the same chunks, the least CFO's."""
    spans = chunk_spans(prompt)
    candidates = {index: [canonical[index]] for index in spans}
    for _ in range(orders):
        order = spans[:]
        while order == spans:
            draw.shuffle(order)
        request = Documents(
            lab.runtime.model, prompt.spans[0].token_ids,
            [prompt.spans[i].token_ids for i in order],
        )  # fmt: skip
        lab.runtime.engine.submit(request)
        for index, record in zip(order, request.variants(), strict=True):
            candidates[index].append(record)
    ids = [prompt.spans[i].token_ids for i in spans]
    digests, lengths = [content_digest(x) for x in ids], [len(x) for x in ids]
    policy, best = FixOverhead(), {}
    for place, index in enumerate(spans):
        prior = tuple(digests[:place]), tuple(lengths[:place])
        best[index] = min(
            candidates[index],
            key=lambda r: policy.overhead(ReusedChunk(0, r.num_tokens, r.stats, *prior)),
        )
    return best


def twin(lab: Lab, prompt: Prompt) -> float:
    """Documents run in one pass and apart are the same records; the largest difference of KV."""
    order = [prompt.spans[i].token_ids for i in chunk_spans(prompt)][:2]
    head = prompt.spans[0].token_ids
    together = Documents(lab.runtime.model, head, order)
    lab.runtime.engine.submit(together)
    variant = together.variants()[1]
    apart = ChunkPrefill(variant.key, head=head, salt=SALT, prior=order[:1])
    lab.runtime.engine.submit(apart)
    single = apart.future.result()
    assert single.stats.prior_digests == variant.stats.prior_digests
    np.testing.assert_allclose(single.stats.chunk_inter, variant.stats.chunk_inter, rtol=2e-2)
    np.testing.assert_allclose(single.stats.intra, variant.stats.intra, rtol=2e-2)
    return float((single.kv.float() - variant.kv.float()).abs().max())
