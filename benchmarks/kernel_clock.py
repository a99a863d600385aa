"""How long an arm takes: on a CPU by the clock, on a GPU by its own events.

A kernel of a GPU takes less time than its launch from Python. So the calls of an arm are captured
in a CUDA graph and replayed; what cannot be captured is launched call by call, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

CALLS = 10  # of an arm that one graph holds: it goes through other layers, as in a model
WARM_UPS = 3  # compile what is compiled at first use


class Clock:
    """Times the arms of one case."""

    def __init__(self, arms: dict[str, Callable[[], Any]], device: torch.device) -> None:
        self._arms, self._device = arms, device
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self.not_captured: dict[str, str] = {}  # why
        if device.type == "cuda":
            for name, arm in arms.items():
                for _ in range(WARM_UPS):
                    arm()
                torch.cuda.synchronize(device)
                self._capture(name, arm)

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

    def _capture(self, name: str, arm: Callable[[], Any]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for _ in range(CALLS):
                    arm()
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            self.not_captured[name] = str(error).splitlines()[0]
            return
        self._graphs[name] = graph
