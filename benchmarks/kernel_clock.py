"""How long an arm takes: on a CPU by the clock, on a GPU by its own events.

A kernel of a GPU takes less time than its launch from Python. So the calls of an arm are captured
in a CUDA graph and replayed; arms that say they cannot be are launched call by call. An arm that
is no kernel of ours and fails is left out, and the result says why.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from kernel_cases import Case

CALLS = 10  # of an arm that one graph holds: it goes through other layers, as in a model
WARM_UPS = 3  # compile what is compiled at first use


class Clock:
    """Times the arms of one case."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self._arms, self._device = dict(case.arms), device
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self.left_out: dict[str, str] = {}  # why
        for name in case.arms if device.type == "cuda" else ():
            try:
                self._prepare(name, is_captured=case.is_captured)
            except Exception as error:  # another's way must not cost us our own figure
                if name == "ours":
                    raise
                del self._arms[name]
                self.left_out[name] = f"{type(error).__name__}: {error}"[:500]

    @property
    def names(self) -> list[str]:
        """Of the arms that run."""
        return list(self._arms)

    def seconds(self, name: str) -> float:
        """Of one call."""
        if self._device.type != "cuda":
            start = time.perf_counter()
            self._arms[name]()
            return time.perf_counter() - start
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        if name in self._graphs:
            self._graphs[name].replay()
        else:
            for _ in range(CALLS):
                self._arms[name]()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1000 / CALLS

    def _prepare(self, name: str, *, is_captured: bool) -> None:
        arm: Any = self._arms[name]
        for _ in range(WARM_UPS):
            arm()
        torch.cuda.synchronize(self._device)
        if is_captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(CALLS):
                    arm()
            self._graphs[name] = graph
