"""A decoder run row by row: which rows run through which layers together, over which pages.

The model definition stays transformers'. Its layers run as its own modules with an identity rotary
(`layers.py`) or, where we know them, with fewer and larger operations (`packed.py`); the real
angles are kept aside in fp32, because angles in bf16 are garbage beyond a few hundred tokens
(docs/decisions/0002).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import torch

from chunkcache.engine.attention import Logits, StepRows
from chunkcache.engine.facts import config_of
from chunkcache.engine.pool import KVPool
from chunkcache.errors import ConfigError
from chunkcache_kernels import Arena, SequenceLayout, fours, lay_out
from chunkcache_kernels.sending import index_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from chunkcache.chunk import KVGeometry
    from chunkcache.config import EngineSettings
    from chunkcache.engine.attention import SequenceRows
    from chunkcache.engine.facts import ModelFacts
    from chunkcache.engine.layers import LayerRunner
    from chunkcache_kernels.compiled import Team

ROUNDED_PAGES = {"int8": torch.int8, "int4": fours.PAGE_TYPE}
FEWEST_DROPPED = 16  # rows that are spared most of a layer, to be worth a second look at the pages

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class DecoderModel:
    """A loaded model, its tokenizer, and what a cache must know about it."""

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    geometry: KVGeometry
    fingerprint: bytes
    facts: ModelFacts  # how each layer attends
    runner: LayerRunner
    context_tokens: int
    eos_ids: frozenset[int]
    device: torch.device
    dtype: torch.dtype
    name: str
    kernel_cache: Path  # where kernels compiled for this machine are kept

    @property
    def config(self) -> Any:
        """Of the part that reads text."""
        return config_of(self.hf)

    @property
    def runs_ahead(self) -> bool:
        """Whether steps are queued on a device: the next one can be before tokens are read."""
        return self.device.type == "cuda"

    @property
    def num_tokens(self) -> int:
        """Length of its logits."""
        return int(self.config.vocab_size)

    def new_pool(
        self, own_pages: int, chunk_bytes: int, settings: EngineSettings, team: Team | None
    ) -> KVPool:
        """Empty pages for requests and, in `chunk_bytes`, for chunks; for all layers.

        Raises:
            ConfigError: the device has no room for them, or the model's heads do not fit them.
        """
        geometry = self.geometry

        def arena(num_pages: int, dtype: torch.dtype) -> Arena:
            return Arena.empty(
                geometry.num_layers, num_pages, geometry.num_kv_heads, geometry.head_dim,
                settings.page_tokens, dtype=dtype, device=self.device,
            )  # fmt: skip

        chunk_type = ROUNDED_PAGES.get(settings.chunk_pages, self.dtype)
        if chunk_type is fours.PAGE_TYPE and geometry.head_dim % fours.IN_WORD:
            raise ConfigError(
                f"engine.chunk_pages: got 'int4', where eight numbers share a word, and heads of "
                f"{geometry.head_dim}. Hint: int8, or raw"
            )
        chunk_pages = chunk_bytes // arena(1, chunk_type).page_bytes
        try:
            pool = KVPool(arena(own_pages, self.dtype), arena(chunk_pages, chunk_type), team)
        except torch.OutOfMemoryError as error:
            own_bytes = own_pages * arena(1, self.dtype).page_bytes
            raise ConfigError(
                f"engine.kv_capacity_bytes: got {own_bytes}, and engine.chunk_capacity_bytes "
                f"{chunk_bytes}, must fit on the device beside the model ({error}). Hint: smaller."
            ) from error
        if not pool.is_fast:
            log.warning(
                "chunk_pages_read_by_torch", pages=settings.chunk_pages,
                hint="the kernels for this device do not know such pages; int8 is read by all",
            )  # fmt: skip
        return pool

    def run_by(self, runner: LayerRunner) -> DecoderModel:
        """The same model, its layers run in another way."""
        return replace(self, runner=runner)

    @torch.inference_mode()
    def forward(self, groups: Sequence[SequenceRows], pool: KVPool) -> list[torch.Tensor | None]:
        """Run rows of several sequences; write their KV; return fp32 logits per group.

        `[vocab]` where the last row's are wanted, `[rows, vocab]` where all are, else None. Groups
        of rows may enter and leave at different layers (`SequenceRows`): between two such layers
        all that are under way run together. In the last layer rows whose logits nobody wants get
        their K and V and no more. Cost: one pass of the layers over all rows together.

        Raises:
            NotArrived: a layer of a chunk that rows look at is not there; they must all run again.
        """
        states = self._entering(groups)
        ends = [self._end_layer(rows) for rows in groups]
        step: StepRows | None = None
        drops = self._drops_rows(groups)
        for first, end in pairwise(self._edges(groups, drops)):
            under_way = [i for i, rows in enumerate(groups) if rows.first_layer <= first < ends[i]]
            if not under_way:
                continue
            step = self._step([groups[i] for i in under_way], end, pool)
            hidden = torch.cat([states[i] for i in under_way])
            if drops and end == self.geometry.num_layers:
                self.runner.store(first, hidden, step)
                left = {i: _wanted(groups[i], states[i]) for i in under_way}
                under_way = [i for i in under_way if len(left[i][1])]
                states = [left[i][1] if i in left else state for i, state in enumerate(states)]
                if not under_way:
                    break
                step = self._step([left[i][0] for i in under_way], end, pool)
                hidden = torch.cat([states[i] for i in under_way])
            hidden = self.runner.run(first, end, hidden, step)
            parts = torch.split(hidden, [len(rows) for rows in step.groups])
            for i, part in zip(under_way, parts, strict=True):
                states[i] = part
                keep = groups[i].keep
                if keep is not None and keep.layer == end:
                    keep.parts.append(part.clone())  # not a view of the whole step
        assert step is not None, "a step without rows"
        return self._logits(states, groups, step)

    def _step(self, groups: list[SequenceRows], end: int, pool: KVPool) -> StepRows:
        """The rows of some groups laid out over what they see in the layers below `end`."""
        sequences = [SequenceLayout(rows.positions, rows.kv.segments(end)) for rows in groups]
        kinds = self.facts.kinds
        group = kinds[0].heads.heads // kinds[0].heads.kv_heads
        layout = lay_out(sequences, page_tokens=pool.own.page_tokens, group=group)
        rotaries = [kind.angles.table(layout.longest_turn + 1) for kind in kinds]
        slots = np.concatenate([rows.slots for rows in groups])
        return StepRows(groups, sequences, layout, slots, pool, self.facts, rotaries)

    def _entering(self, groups: Sequence[SequenceRows]) -> list[torch.Tensor]:
        """Where each group begins: its hidden states, or its tokens' embeddings."""
        starting = [rows for rows in groups if rows.hidden is None]
        if not starting:
            return [rows.hidden for rows in groups if rows.hidden is not None]
        embedded = self.runner.embed(self._token_ids(starting))
        parts = iter(torch.split(embedded, [len(rows) for rows in starting]))
        return [next(parts) if rows.hidden is None else rows.hidden for rows in groups]

    def _token_ids(self, starting: Sequence[SequenceRows]) -> torch.Tensor:
        """Those of all rows, on the device; what the host knows of them goes there in one copy."""
        known = [rows for rows in starting if rows.token_ids.device.type != self.device.type]
        if not known:
            return torch.cat([rows.token_ids for rows in starting])
        ids = np.concatenate([rows.token_ids.numpy() for rows in known])
        moved = iter(torch.split(index_of(ids, self.device), [len(rows) for rows in known]))
        return torch.cat([
            next(moved) if rows.token_ids.device.type != self.device.type else rows.token_ids
            for rows in starting
        ])  # fmt: skip

    def _end_layer(self, rows: SequenceRows) -> int:
        return self.geometry.num_layers if rows.end_layer is None else rows.end_layer

    def _drops_rows(self, groups: Sequence[SequenceRows]) -> bool:
        """Whether so many rows need no more than K and V of the last layer that it is run alone."""
        end = self.geometry.num_layers
        ending = [rows for rows in groups if self._end_layer(rows) == end]
        return sum(len(rows) - _num_wanted(rows) for rows in ending) >= FEWEST_DROPPED

    def _edges(self, groups: Sequence[SequenceRows], drops: bool) -> list[int]:
        """Layers where rows enter, leave, are kept or dropped, or where other keys are seen from
        there on; the first and the last layer included.
        """
        edges = {0, self.geometry.num_layers}
        if drops:
            edges.add(self.geometry.num_layers - 1)
        for rows in groups:
            edges |= {rows.first_layer, self._end_layer(rows)} | rows.kv.edges()
            if rows.keep is not None:
                edges.add(rows.keep.layer)
        return sorted(edges)

    def _logits(
        self, states: Sequence[torch.Tensor], groups: Sequence[SequenceRows], step: StepRows
    ) -> list[torch.Tensor | None]:
        wanted = [
            {Logits.NONE: 0, Logits.LAST: 1, Logits.ALL: len(rows)}[rows.logits] for rows in groups
        ]
        if not any(wanted):
            return [None] * len(groups)
        hidden = torch.cat(
            [part[len(part) - count :] for part, count in zip(states, wanted, strict=True)]
        )
        logits = self.runner.logits(hidden, step)
        return [
            {Logits.NONE: None, Logits.LAST: part.flatten(), Logits.ALL: part}[rows.logits]
            for rows, part in zip(groups, torch.split(logits, wanted), strict=True)
        ]


def _num_wanted(rows: SequenceRows) -> int:
    """Of how many rows, the last ones, the state behind the last layer matters."""
    if rows.observer is not None or rows.keep is not None:
        return len(rows)
    return {Logits.NONE: 0, Logits.LAST: 1, Logits.ALL: len(rows)}[rows.logits]


def _wanted(rows: SequenceRows, state: torch.Tensor) -> tuple[SequenceRows, torch.Tensor]:
    """The rows, and their states, that still run through the last layer."""
    first = len(rows) - _num_wanted(rows)
    if not first:
        return rows, state
    some = replace(
        rows, token_ids=rows.token_ids[first:], positions=rows.positions[first:],
        slots=rows.slots[first:],
    )  # fmt: skip
    return some, state[first:]
