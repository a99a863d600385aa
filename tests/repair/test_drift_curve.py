"""The drift curve: isotonic, least squares, and honest about what it cannot promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.repair.drift_curve import DriftCurve, fit_drift_curve

shares = st.floats(0.0, 1.0, allow_subnormal=False)
levels = st.floats(0.0, 10.0, allow_subnormal=False)


@given(points=st.lists(st.tuples(shares, levels), min_size=1, max_size=40))
@settings(deadline=None)
def test_a_fit_never_falls_and_keeps_the_mean(points: list[tuple[float, float]]) -> None:
    curve = fit_drift_curve(*zip(*points, strict=True))
    assert list(curve.drifts) == sorted(curve.drifts)
    fitted = [curve.drifts[_block(curve, r)] for r, _ in points]
    assert np.mean(fitted) == pytest.approx(np.mean([d for _, d in points]), abs=1e-9)


def _block(curve: DriftCurve, residual: float) -> int:
    return max(i for i, start in enumerate(curve.residuals) if start <= residual)


def test_a_fit_is_the_best_of_all_rising_step_functions() -> None:
    """Brute force over a grid of levels."""
    drifts = [0.3, 0.1, 0.4, 0.2]
    curve = fit_drift_curve([0.1, 0.2, 0.3, 0.4], drifts)
    fitted = [curve.drift_at(r) for r in (0.1, 0.2, 0.3, 0.4)]
    grid = np.linspace(0, 0.5, 26)
    best = min(
        (sum((a - b) ** 2 for a, b in zip(levels, drifts, strict=True)), levels)
        for levels in itertools.combinations_with_replacement(grid, 4)
    )
    assert sum((a - b) ** 2 for a, b in zip(fitted, drifts, strict=True)) <= best[0] + 1e-12


@given(
    points=st.lists(st.tuples(shares, levels), min_size=1, max_size=40),
    target=st.floats(0.0, 12.0),
)
@settings(deadline=None)
def test_the_residual_for_a_target_keeps_the_promise(
    points: list[tuple[float, float]], target: float
) -> None:
    curve = fit_drift_curve(*zip(*points, strict=True))
    residual = curve.residual_for(target)
    assert 0.0 <= residual <= 1.0
    assert curve.drift_at(residual) <= target
    assert residual == 1.0 or curve.drift_at(1.0) > target


def test_nothing_left_is_no_drift_and_less_than_measured_is_the_first_level() -> None:
    curve = DriftCurve((0.2, 0.6), (0.05, 0.3))
    assert curve.drift_at(0.0) == 0.0
    assert curve.drift_at(0.1) == 0.05  # nothing smaller was ever seen
    assert curve.drift_at(0.6) == 0.3 and curve.drift_at(0.59) == 0.05
    assert curve.residual_for(0.01) == 0.0 and curve.residual_for(1.0) == 1.0


@pytest.mark.parametrize(
    ("residuals", "drifts"),
    [((), ()), ((0.1,), ()), ((0.2, 0.1), (0.0, 0.1)), ((0.1, 0.2), (0.3, 0.1)),
     ((0.1,), (float("nan"),)), ((0.1,), (-1.0,))],
)  # fmt: skip
def test_what_is_no_curve_is_refused(
    residuals: tuple[float, ...], drifts: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="drift curve"):
        DriftCurve(residuals, drifts)
