"""Distances between answers' logits: right, or an error."""

from __future__ import annotations

import math

import pytest
import torch

from chunkcache.errors import NotFinite
from chunkcache.evaluate.drift import drift_between


def test_a_distance_is_what_the_definition_says() -> None:
    half = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    found = drift_between(half, torch.tensor([[math.log(3.0), 0.0], [1.0, 0.0]]))
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert (found.first_kl, found.mean_kl) == (pytest.approx(first), pytest.approx(first / 2))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_are_no_numbers_has_no_distance(which: int, wrong: float) -> None:
    both = [torch.randn(2, 5), torch.randn(2, 5)]
    both[which][1, 3] = wrong
    with pytest.raises(NotFinite, match="logits that are not finite"):
        drift_between(*both)
