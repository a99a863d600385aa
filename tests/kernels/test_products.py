"""The bf16 products: what makes them as good as attention in one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache_kernels import products
from chunkcache_kernels.plan import cut_rows

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")


@given(
    st.lists(
        st.floats(-300, 300, width=32) | st.sampled_from([0.0, -0.0, -torch.inf, 1e-40, -1e-40]),
        min_size=1,
        max_size=20,
    )
)
@settings(deadline=None, max_examples=80)
def test_the_integer_maximum_is_the_maximum(numbers: list[float]) -> None:
    scores = torch.tensor([numbers, [-abs(x) for x in numbers]]).bfloat16()
    # equal as numbers: of 0.0 and -0.0 either may come out
    assert torch.equal(products.row_max(scores), scores.amax(-1, keepdim=True))


def _attend(problem: Any) -> torch.Tensor:
    blocks = cut_rows(problem.positions, dtype=torch.bfloat16, device=CPU)
    return products.rows_attention(problem.q, problem.k, problem.v, blocks, problem.scale)


@pytest.mark.parametrize("bias", [0.0, 30.0, 300.0])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_a_bias_shared_by_all_keys_does_not_cost_accuracy(
    bias: float, sharpness: float, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem(
        [*range(5, 500, 9)], dtype=torch.bfloat16, sharpness=sharpness, bias=bias
    )
    problem.check(_attend(problem))


def test_the_second_product_is_what_keeps_the_accuracy(make_problem: Callable[..., Any]) -> None:
    """Rounding the scores themselves to bf16 breaks the rule that `check` states."""
    problem = make_problem([*range(5, 500, 9)], dtype=torch.bfloat16, bias=300.0)
    group = 3
    q = problem.q.view(-1, 3, group, 64).permute(1, 2, 0, 3).reshape(3, -1, 64)
    scores = torch.bmm(q * problem.scale, problem.k.permute(1, 2, 0))
    hidden = torch.arange(problem.k.shape[0])[None] > problem.positions.repeat(group)[:, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    rounded = torch.bmm(weights, problem.v.transpose(0, 1))
    rounded = rounded.view(3, group, -1, 64).permute(2, 0, 1, 3).reshape(problem.q.shape)
    with pytest.raises(AssertionError, match="torch's own"):
        problem.check(rounded)


def test_products_are_used_for_bf16_on_cpu_when_there_is_enough_to_multiply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "has_bf16_products", lambda: True)
    assert products.pay(CPU, torch.bfloat16, 384, 3000)
    assert not products.pay(CPU, torch.bfloat16, 3, 3000)
    assert not products.pay(CPU, torch.float32, 384, 3000)
    assert not products.pay(CPU, torch.float16, 384, 3000)
    assert not products.pay(torch.device("cuda"), torch.bfloat16, 384, 3000)
    monkeypatch.setattr(products, "has_bf16_products", lambda: False)
    assert not products.pay(CPU, torch.bfloat16, 384, 3000)


def test_a_key_that_is_not_a_number_shows_in_the_rows_that_see_it(
    make_problem: Callable[..., Any],
) -> None:
    problem = make_problem([4, 9], dtype=torch.bfloat16)
    problem.k[7] = float("nan")
    assert bool(_attend(problem)[1].isnan().all())
