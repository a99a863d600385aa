"""Programs of a launch by turns; Triton's interpreter ends each before it begins the next."""

from __future__ import annotations

import inspect
import threading
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

# what one program does that others may see, or sees of others
_MEMORY = "create_masked_load", "create_masked_store", "create_atomic_rmw"
_IN_A_ROW = 6  # accesses of one program, on average: some overtake others
_MOST_TURNS = 500_000  # programs that wait for one that is not resident would go on for ever


class Interleaved:
    """Runs the programs of every launch by turns, some accesses to memory at a time.

    Args:
        resident: programs that have begun and not ended, at most: a GPU with fewer processors.
        seed: of who is next and which programs begin first.
    """

    def __init__(self, resident: int, seed: int) -> None:
        self._resident = resident
        self._draw = np.random.default_rng(seed)
        self._now: _Program | None = None
        self.turns = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let Triton's interpreter launch so."""
        from triton.runtime import interpreter

        builder = interpreter.InterpreterBuilder
        for name in _MEMORY:
            monkeypatch.setattr(builder, name, self._yielding(getattr(builder, name)))

        def call(executor: Any, *args: Any, **kwargs: Any) -> None:
            known = inspect.getfullargspec(executor.fn).args
            kwargs = {name: value for name, value in kwargs.items() if name in known}
            scope = interpreter._patch_lang(executor.fn)
            try:
                given = {
                    name: value if name in executor.constexprs else interpreter._implicit_cvt(value)
                    for name, value in inspect.getcallargs(executor.fn, *args, **kwargs).items()
                }
                grid = (*executor.grid, 1, 1)[:3]
                interpreter.interpreter_builder.set_grid_dim(*grid)
                self._run(interpreter.interpreter_builder, lambda: executor.fn(**given), grid)
            finally:
                scope.restore()

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", call)

    def _yielding(self, access: Callable[..., Any]) -> Callable[..., Any]:
        def later(builder: Any, *args: Any, **kwargs: Any) -> Any:
            if self._now is not None:
                self._now.pause()
            return access(builder, *args, **kwargs)

        return later

    def _run(self, builder: Any, run: Callable[[], None], grid: tuple[int, ...]) -> None:
        places = list(product(*map(range, grid)))
        waiting = [_Program(run, places[n]) for n in self._draw.permutation(len(places))]
        begun: list[_Program] = []
        while waiting or begun:
            while waiting and len(begun) < self._resident:
                begun.append(waiting.pop())
            self._now = begun[int(self._draw.integers(len(begun)))]
            builder.set_grid_idx(*self._now.place)
            for _ in range(self._draw.geometric(1 / _IN_A_ROW)):
                if not self._now.is_over:
                    self._now.go_on()
            if self._now.is_over:
                begun.remove(self._now)
            self.turns += 1
            assert self.turns < _MOST_TURNS, "a program waits for one that has not begun"
        self._now = None


class _Program:
    """One program in a thread of its own, which runs only when it is told to."""

    def __init__(self, run: Callable[[], None], place: tuple[int, ...]) -> None:
        self.place, self.is_over = place, False
        self._run, self._fault = run, None
        self._may_run, self._has_paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._whole, daemon=True)

    def _whole(self) -> None:
        self._may_run.acquire()
        try:
            self._run()
        except BaseException as fault:  # raised where the launch was made
            self._fault = fault
        self.is_over = True
        self._has_paused.release()

    def pause(self) -> None:
        """Let others run. Called by the program."""
        self._has_paused.release()
        self._may_run.acquire()

    def go_on(self) -> None:
        """Run up to the next pause, or to the end. Called by who launches."""
        if not self._thread.ident:
            self._thread.start()
        self._may_run.release()
        self._has_paused.acquire()
        if self._fault is not None:
            raise self._fault
