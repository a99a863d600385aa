"""Shared by the kernels' tests: seeded problems, exact answers, and where Triton's kernels run.

Tests that take `device` run Triton's kernels. In an ordinary session that is a CUDA device, or a
skip. With TRITON_INTERPRET=1 they run on CPU under Triton's interpreter; since that has to be set
before anything imports triton (transformers does), `test_triton_interpreter.py` runs them so in a
process of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chunkcache_kernels.compiled import Team

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests of Triton kernels the one device they can have in this process."""
    if "device" in metafunc.fixturenames:
        cuda = pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)
        interpreter = pytest.param("cpu", id="interpreter")
        metafunc.parametrize("device", [interpreter if INTERPRETED else cuda], indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the Triton kernels of this test run."""
    pytest.importorskip("triton")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; test_triton_interpreter.py runs this test on CPU")
    if request.param == "cpu":
        _mend_interpreter(monkeypatch)
    return torch.device(request.param)


def _mend_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round and multiply bf16 as a GPU does.

    Triton's interpreter (3.9) keeps bf16 as uint16: its casts cut the low bits off instead of
    rounding, and its `dot` multiplies the bit patterns as integers.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    truncate, dot = builder.create_fp_trunc, builder.create_dot

    def to_float(handle: Any) -> Any:
        if handle.get_element_ty() != tl.bfloat16:
            return handle
        wide = torch.from_numpy(handle.data.view("int16")).view(torch.bfloat16).float()
        return interpreter.TensorHandle(wide.numpy(), tl.float32)

    def create_fp_trunc(self: Any, source: Any, target: Any) -> Any:
        if target.scalar != tl.bfloat16 or source.get_element_ty() != tl.float32:
            return truncate(self, source, target)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.int16).numpy()
        return interpreter.TensorHandle(bits.view("uint16"), target.scalar)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, to_float(a), to_float(b), *rest)

    monkeypatch.setattr(builder, "create_fp_trunc", create_fp_trunc)
    monkeypatch.setattr(builder, "create_dot", create_dot)


@pytest.fixture(scope="session")
def open_team() -> Iterator[Callable[..., Team]]:
    """Teams of the C kernels by size of page and number of members, with threads of their own or
    OpenMP's; skips where there is no compiler. The library lies where the engine keeps it.
    """
    import platformdirs

    from chunkcache_kernels import compiled
    from chunkcache_kernels.compiler import NoCompiler

    cache = Path(platformdirs.user_cache_dir("chunkcache", appauthor=False))
    teams: dict[tuple[int, int, bool], Team] = {}

    def opened(page_tokens: int = 8, members: int = 2, *, own_threads: bool = False) -> Team:
        known = (page_tokens, members, own_threads)
        if known not in teams:
            with pytest.MonkeyPatch.context() as patch:
                if own_threads:
                    patch.setattr(compiled, "_openmp", lambda: (None, None))
                try:
                    teams[known] = compiled.Team(cache, page_tokens, members)
                except NoCompiler as reason:
                    pytest.skip(str(reason))
        return teams[known]

    yield opened
    for team in teams.values():
        team.close()


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an output nobody wrote is seen."""

    def poison(owner: Any, name: str) -> None:
        make = getattr(owner, name)

        def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            made: torch.Tensor = make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        monkeypatch.setattr(owner, name, poisoned)

    poison(torch, "empty")
    poison(torch, "empty_like")
    poison(torch.Tensor, "new_empty")


@dataclass(slots=True)
class Problem:
    """Rows over one sequence, and what they must come to."""

    q: torch.Tensor  # [R, Hq, D]
    k: torch.Tensor  # [T, Hkv, D]
    v: torch.Tensor
    positions: torch.Tensor  # int64 [R]
    scale: float

    @property
    def args(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """The arguments of `rows_attention`."""
        return self.q, self.k, self.v, self.positions, self.scale

    def exact(self) -> torch.Tensor:
        """The answer in fp64, by the definition."""
        q, k, v = self.q.double(), self.k.double(), self.v.double()
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = torch.einsum("rhd,thd->hrt", q, k) * self.scale
        hidden = torch.arange(k.shape[0], device=k.device)[None] > self.positions[:, None]
        return torch.einsum("hrt,thd->rhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)

    def by_torch(self) -> torch.Tensor:
        """Torch's own attention at this number type: one call, one mask, no blocks."""
        keys = torch.arange(self.k.shape[0], device=self.k.device)
        q, k, v = (x.transpose(0, 1)[None] for x in (self.q, self.k, self.v))
        sees = keys[None] <= self.positions[:, None]
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=sees, scale=self.scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    def error(self, answer: torch.Tensor) -> float:
        """Root mean square error against the exact answer, relative."""
        exact = self.exact()
        return float((answer.double() - exact).norm() / exact.norm())

    def check(self, answer: torch.Tensor) -> None:
        """Fail unless the answer is as good as torch's own, within a factor of two.

        The rule is flash-attention's (tests/test_flash_attn.py): no tolerance picked by hand. Two
        steps of fp32 are added, because torch's error on one row in fp32 may be a lucky one.
        """
        assert answer.shape == self.q.shape and answer.dtype == self.q.dtype
        ours, torchs = self.error(answer), self.error(self.by_torch())
        limit = 2 * torchs + 2 * torch.finfo(torch.float32).eps
        assert ours <= limit, f"error {ours:.2e}, torch's own {torchs:.2e}"


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """Builds seeded problems: which rows, how many keys, which heads and number type."""

    def make(
        positions: list[int],
        *,
        num_keys: int | None = None,
        heads: tuple[int, int] = (9, 3),
        dim: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        sharpness: float = 1.0,
        bias: float = 0.0,
    ) -> Problem:
        """`bias` adds about that much to every score, which changes no softmax."""
        draw = torch.Generator().manual_seed(len(positions) + dim + 1000 * sum(heads))
        num_keys = positions[-1] + 1 if num_keys is None else num_keys
        common = torch.randn(dim, generator=draw)
        common *= (bias * dim**0.5) ** 0.5 / common.norm()
        q = torch.randn(len(positions), heads[0], dim, generator=draw) * sharpness + common
        k = torch.randn(num_keys, heads[1], dim, generator=draw) + common
        v = torch.randn(num_keys, heads[1], dim, generator=draw)
        q, k, v = (x.to(device=device, dtype=dtype) for x in (q, k, v))
        return Problem(q, k, v, torch.tensor(positions, device=device), dim**-0.5)

    return make


@pytest.fixture
def assert_sees_only_its_past() -> Callable[[Callable[..., torch.Tensor], Problem], None]:
    """The oracle of visibility, for anything with the signature of `rows_attention`."""

    def check(attend: Callable[..., torch.Tensor], problem: Problem) -> None:
        """A changed key moves the rows at or after it, and not one bit of the rows before it."""
        before = attend(*problem.args)
        for key in changed_keys(problem):
            k, v = problem.k.clone(), problem.v.clone()
            k[key], v[key] = k[key] + 3, v[key] - 50
            after = attend(problem.q, k, v, problem.positions, problem.scale)
            later = problem.positions >= key
            assert torch.equal(after[~later], before[~later]), f"rows before key {key} saw it"
            moved = (after[later] != before[later]).flatten(1).any(1)
            assert bool(moved.all()), f"rows after key {key} did not see it"

    def changed_keys(problem: Problem) -> Iterator[int]:
        positions = problem.positions.tolist()
        yield 0
        for low, high in pairwise(positions):
            yield high
            if high - low > 1:
                yield low + 1

    return check


@pytest.fixture
def rotated_exactly() -> Callable[..., torch.Tensor]:
    """RoPE in fp64 as what it is: each pair of numbers turned as one complex number."""

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
        turned = pairs * torch.complex(cos[:, None, :half].double(), sin[:, None, :half].double())
        return torch.cat((turned.real, turned.imag), dim=-1)

    return rotate


@pytest.fixture
def angles() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """fp32 cos and sin [T, D] at positions, by the usual frequencies."""

    def at(positions: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.outer(positions.double().cpu(), frequencies).repeat(1, 2)
        cos, sin = angle.cos().float(), angle.sin().float()
        return cos.to(positions.device), sin.to(positions.device)

    return at
