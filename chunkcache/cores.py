"""Which thread computes on all cores: the engine's, and no second one beside it.

Every thread in which torch runs something in parallel gets an OpenMP team of its own. With more
team members in the process than cores, GNU's runtime puts waiting members to sleep at once, and
every small operation pays for waking them, even if the other team never does anything again: a
prefill then takes 1.8 times as long (docs/log.md, 2026-11-25). So what runs beside the engine runs
on one core, and what wants all of them runs in a thread that ends, and its team with it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_P = ParamSpec("_P")
_T = TypeVar("_T")


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_core() -> Iterator[None]:
    """Torch operations of this thread run on one core inside; other threads are not affected."""
    torch.get_num_threads()  # torch sets a thread's number at first use: after that, ours holds
    with _openmp().limit(limits=1):
        yield


def in_own_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run the function on all cores, in a thread that ends with it. Raises what it raises."""
    with ThreadPoolExecutor(1, thread_name_prefix="chunkcache-compute") as executor:
        return executor.submit(function, *args, **kwargs).result()


def release_team() -> None:
    """Let the team of this thread go; the next parallel operation starts another in 0.1 ms.

    Only with GNU's runtime, whose teams belong to threads and get in each other's way: in others
    the same call pauses the whole process. Does nothing where it cannot (before OpenMP 5.0).
    """
    for runtime in _openmp().lib_controllers:
        pause = getattr(runtime.dynlib, "omp_pause_resource_all", None)
        if runtime.prefix == "libgomp" and pause is not None:
            pause(_PAUSE_SOFT)


_PAUSE_SOFT = 1  # omp_pause_soft: threads end, settings stay


@cache
def _openmp() -> ThreadpoolController:
    """The OpenMP runtimes of this process; looking for them takes a few milliseconds."""
    return ThreadpoolController().select(user_api="openmp")
