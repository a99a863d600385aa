"""Attention over segments against the path it replaces: keys at positions, one softmax.

The twin knows nothing of pages, segments or turned queries: every key is rotated to its position in
the prompt, and a row's weights are one softmax over all of them, in fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages_world import (
    LAYER,
    ROPES,
    Shape,
    Teams,
    World,
)

from chunkcache_kernels import (
    SequenceLayout,
    lay_out,
)
from chunkcache_kernels.compiled import CompiledWeights
from chunkcache_kernels.portable import PortableWeights


@pytest.fixture(scope="session", params=["portable", "compiled", "own threads"])
def teams(request: Any, open_team: Callable[..., Any]) -> Teams:
    members = {"portable": 0, "compiled": 2, "own threads": 3}[request.param]
    return lambda size: open_team(size, members, own_threads=members == 3) if members else None


def check(shape: Shape, teams: Teams) -> None:
    world = World(shape)
    for s, rows, ours in world.run(teams):
        expected = world.expected(s, rows)
        if shape.dtype is torch.float32:
            torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
            continue
        both = (ours, world.torchs(s, rows))
        errors = [float((x.double() - expected).norm() / expected.norm()) for x in both]
        assert errors[0] <= 2 * errors[1] + 2e-7, f"ours, torch's own: {errors}"


SHAPES = st.builds(
    Shape,
    seed=st.integers(0, 10_000),
    group=st.sampled_from([1, 3, 5, 7]),
    kv_heads=st.integers(1, 3),
    dim=st.sampled_from([8, 64, 80, 128]),
    page_tokens=st.sampled_from([8, 32]),
    rope=st.sampled_from(sorted(ROPES)),
    rotary_share=st.sampled_from([1.0, 0.5]),
    turned=st.sampled_from([True, True, False]),
    begin=st.sampled_from([0, 77, 5000, 32_000]),
    sequences=st.integers(1, 4),
    chunks=st.lists(st.sampled_from([1, 2, 8, 13, 32, 41]), max_size=4).map(tuple),
    window=st.sampled_from([0, 0, 1, 9, 50]),
    softcap=st.sampled_from([0.0, 0.0, 0.7, 30.0]),
    has_sinks=st.booleans(),
    block=st.sampled_from([0, 0, 0, 16, 70]),
)
RANDOM = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@given(shape=SHAPES)
@RANDOM
def test_segments_are_keys_at_their_positions(teams: Teams, shape: Shape) -> None:
    check(shape, teams)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("page_tokens", [8, 32])
@pytest.mark.parametrize("begin", [0, 32_000])
def test_half_precision_is_as_good_as_torchs_own(
    teams: Teams, dtype: torch.dtype, dim: int, page_tokens: int, begin: int
) -> None:
    for seed in range(3):
        check(Shape(seed, dim=dim, page_tokens=page_tokens, begin=begin, dtype=dtype), teams)


@pytest.mark.parametrize("fact", [{"window": 7}, {"softcap": 0.7}, {"has_sinks": True},
                                  {"block": 16}])  # fmt: skip
def test_a_fact_of_a_layer_is_seen(teams: Teams, fact: dict[str, Any]) -> None:
    """The other tests hold the kernels to it; this one that it changes something at all."""
    plain, other = World(Shape(3)), World(Shape(3))
    other.shape = replace(plain.shape, **fact)
    other.sinks = other._sinks()
    check(Shape(3, begin=40, chunks=(33, 50), **fact), teams)
    s = plain.sequences[0]
    rows = slice(0, len(s.own))
    assert not torch.allclose(plain.expected(s, rows), other.expected(s, rows), atol=1e-3)


@pytest.mark.parametrize("dim", [8, 80])
@pytest.mark.parametrize("page_tokens", [8, 32])
@pytest.mark.parametrize("is_turned", [True, False])
def test_chunks_in_int8_are_the_keys_they_were_rounded_to(
    teams: Teams, dim: int, page_tokens: int, is_turned: bool
) -> None:
    for seed in range(3):
        shape = Shape(
            seed, dim=dim, page_tokens=page_tokens, turned=is_turned, begin=900,
            chunk_type=torch.int8,
        )  # fmt: skip
        check(shape, teams)


def test_many_rows_over_a_long_chunk(teams: Teams) -> None:
    """More queries than one product takes, more pages than one run of few queries has."""
    for seed in range(2):
        check(Shape(seed, chunks=(150, 90), sequences=3), teams)


def check_weights(shape: Shape, teams: Teams) -> None:
    world = World(shape)
    world.run(lambda _: None)
    for s in world.sequences:
        some = np.flatnonzero(world.draw.random(len(s.own)) < 0.6)
        some = some if len(some) else np.array([len(s.own) - 1])
        query, keys, _, sees = world.placed(s, slice(0, len(s.own)))
        query, sees = query[some], sees[some]
        expected = world.weights(query, keys, sees)
        expected = (expected / expected.sum(-1, keepdim=True)).mean(0)  # as if there were no sinks
        spread = torch.zeros(len(some), int(s.own[some[-1]]) + 1, dtype=torch.float64)
        within = np.array(sorted(s.keys)) < spread.shape[1]
        spread[:, np.array(sorted(s.keys))[within]] = expected[:, within]
        sequence, team = SequenceLayout(s.own[some], s.segments), teams(shape.page_tokens)
        layout = lay_out([sequence], page_tokens=shape.page_tokens, group=shape.group)
        of = (world.arenas, world.heads, world.rotary)
        bound: Any = PortableWeights(sequence, *of)
        if team is not None:
            bound = CompiledWeights.bind(team, layout, *of)
        asked = s.qkv.view(len(s.own), -1, shape.dim)[:, : world.heads.heads][some]
        ours = bound.weights(LAYER, asked, turned=shape.turned)
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours.double(), spread, rtol=0, atol=1e-5)


@given(shape=SHAPES)
@RANDOM
def test_weights_are_the_softmax_of_the_twin(teams: Teams, shape: Shape) -> None:
    check_weights(shape, teams)


def test_weights_over_int8_chunks(teams: Teams) -> None:
    for seed in range(3):
        check_weights(Shape(seed, begin=41, chunk_type=torch.int8), teams)
