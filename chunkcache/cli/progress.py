"""How far a long command is, on stderr: bars on a terminal, a line now and then anywhere else.

What CI, cron and `docker logs` keep is read later and by nobody who could have watched a bar. So
there is a line when work begins, one after each tenth of it or half a minute, and one at its end.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from chunkcache.cli.logging import say
from chunkcache.cli.screen import PlainConsole, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

_EVERY_S = 30.0
_EVERY_SHARE = 0.1  # of all there is to do
_NOT_SOONER_S = 1.0  # what takes no longer has a line at its begin and one at its end


class Step(Protocol):
    """One of the things that a command does, one after the other."""

    def __call__(self, done: int, *, total: int | None = None, note: str = "") -> None:
        """So many are done now; `total`: of so many, where that was not known before."""
        ...


class Progress(Protocol):
    """What a command tells how far it is."""

    def step(self, name: str, total: int | None = None) -> Step:
        """Something begins; `total` None: nobody knows yet how much there is of it."""
        ...


@contextmanager
def progress(unit: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Bars where stderr is a terminal, else lines; with `quiet` neither. stdout stays clean."""
    if quiet:
        yield Silence()
    elif sys.stderr.isatty():
        with _rich(unit) as bars:
            yield Bars(bars)
    else:
        lines = Lines(unit)
        try:
            yield lines
        finally:
            lines.end()


class Silence:
    """Says nothing."""

    def step(self, name: str, total: int | None = None) -> Step:
        """See `Progress`."""
        return lambda done, *, total=None, note="": None


class Bars:
    """A bar for each step."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    def step(self, name: str, total: int | None = None) -> Step:
        """See `Progress`."""
        task = self._bars.add_task(name, total=total, note="")
        return _BarStep(self._bars, task)


class _BarStep:
    def __init__(self, bars: RichProgress, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def __call__(self, done: int, *, total: int | None = None, note: str = "") -> None:
        self._bars.update(self._task, completed=done, total=total, note=note)


class Lines:
    """Plain lines, few of them.

    Args:
        unit: of what is counted.
        tell: writes a line.
        clock: seconds.
    """

    def __init__(
        self,
        unit: str,
        *,
        tell: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._unit = unit
        self._tell = tell
        self._clock = clock
        self._last: _LineStep | None = None

    def step(self, name: str, total: int | None = None) -> Step:
        """See `Progress`. The step before it has ended."""
        self.end()
        self._last = _LineStep(name, self._unit, total, self._tell, self._clock)
        return self._last

    def end(self) -> None:
        """The last step has ended, whether it came to its end or not."""
        if self._last is not None:
            self._last.end()
            self._last = None


class _LineStep:
    def __init__(
        self, name: str, unit: str, total: int | None, tell: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._name, self._unit, self._total = name, unit, total
        self._tell, self._clock = tell, clock
        self._began_s = self._told_s = clock()
        self._done = self._told = 0
        self._note = ""
        tell(f"{name}: begins" if total is None else f"{name}: {total} {unit}")

    def __call__(self, done: int, *, total: int | None = None, note: str = "") -> None:
        self._done, self._note = done, note
        self._total = self._total if total is None else total
        now_s = self._clock()
        whole = self._total or 0
        since_s = now_s - self._told_s
        is_due = since_s >= _EVERY_S
        is_far = whole and done - self._told >= whole * _EVERY_SHARE and since_s >= _NOT_SOONER_S
        if done != whole and (is_due or is_far):  # at the whole of it, `end` has its line
            self._told, self._told_s = done, now_s
            self._say(note)

    def end(self) -> None:
        """Say how far it came, and how long that took."""
        self._say(f"in {self._clock() - self._began_s:.1f} s")

    def _say(self, more: str) -> None:
        of = "" if self._total is None else f" of {self._total}"
        line = f"{self._name}: {self._done}{of} {self._unit}"
        self._tell(visible(f"{line}, {more}" if more else line))


def _rich(unit: str) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=PlainConsole(sys.stderr),
    )
