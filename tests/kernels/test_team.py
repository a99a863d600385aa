"""Threads that share work: every part once, whoever they are; what ends stays ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chunkcache_kernels.compiled import Team
from chunkcache_kernels.structs import TYPES, WeightC


def weight(rows: int, cols: int) -> tuple[torch.Tensor, WeightC]:
    made = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows))
    return made, WeightC(made.data_ptr(), None, None, TYPES[made.dtype], rows, cols, 0)


@pytest.mark.parametrize("own", [False, True], ids=["openmp", "own threads"])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_all_members_together_do_every_part_once(
    open_team: Callable[..., Team], members: int, own: bool
) -> None:
    team = open_team(8, members, own_threads=own)
    assert team.members == members
    numbers, described = weight(1000, 33)
    x = torch.randn(2, 33)
    exact = x @ numbers.t()
    for in_use in [*range(members + 2), members]:  # less than one counts as one, more as all
        team.use(in_use)
        for _ in range(20):
            torch.testing.assert_close(team.product(described, x), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("own", [False, True], ids=["openmp", "own threads"])
def test_teams_may_be_called_from_any_thread_one_at_a_time(
    open_team: Callable[..., Team], own: bool
) -> None:
    team = open_team(8, 2, own_threads=own)
    numbers, described = weight(200, 16)
    x, answers = torch.randn(3, 16), []
    for _ in range(4):
        caller = threading.Thread(target=lambda: answers.append(team.product(described, x)))
        caller.start()
        caller.join(30)
        assert not caller.is_alive()
    for answer in answers:
        torch.testing.assert_close(answer, x @ numbers.t(), rtol=1e-5, atol=1e-5)
    assert len(answers) == 4


def test_own_threads_end_with_the_team(
    open_team: Callable[..., Team], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from chunkcache_kernels import compiled

    open_team(8, 1)  # skips without a compiler
    monkeypatch.setattr(compiled, "_openmp", lambda: (None, None))
    monkeypatch.setattr(compiled, "build_library", lambda *_: open_team(8, 1).library._name)
    before = num_threads()
    team = Team(tmp_path, 8, 4)
    assert num_threads() == before + 3
    team.close()
    team.close()
    assert num_threads() == before
    with pytest.raises(ValueError, match="the team was closed"):
        team.use(1)
    with pytest.raises(ValueError, match="the team was closed"):
        team.silu(torch.zeros(1, 8))


def num_threads() -> int:
    from pathlib import Path

    return len(list(Path("/proc/self/task").iterdir()))
