"""Vectors that look like embeddings: unit length, in clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def clustered() -> Callable[..., np.ndarray]:
    """`clustered(count, dim, seed)`: float32 unit vectors around 20 centres."""

    def make(count: int, dim: int, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        centres = np.random.default_rng(99).normal(size=(20, dim))
        vectors = centres[random.integers(0, 20, count)] + 0.6 * random.normal(size=(count, dim))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    return make
