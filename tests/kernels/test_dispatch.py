"""Which backend runs, and what happens when it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import chunkcache_kernels as kernels
from chunkcache_kernels import dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_cpu_tensors_run_on_torch() -> None:
    assert dispatch.choose_backend(CPU, 64) == "torch"


def test_cuda_tensors_run_on_triton_where_heads_have_a_width_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    assert dispatch.choose_backend(CUDA, 80) == "triton"
    assert dispatch.choose_backend(CUDA, 72) == "torch"
    assert dispatch.choose_backend(CUDA, 80, "torch") == "torch"
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    assert dispatch.choose_backend(CUDA, 80) == "torch"


def test_asking_for_triton_without_triton_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    with pytest.raises(ValueError, match="backend: got 'triton', but triton is not installed"):
        kernels.rotate(torch.ones(1, 1, 16), *torch.ones(2, 1, 16), backend="triton")


def test_asking_for_triton_at_a_width_it_does_not_know_names_those_it_does() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=r"head_dim: got 72, .* 16, 32, 64, 80, 96, 128"):
        dispatch.choose_backend(CUDA, 72, "triton")


def test_asking_for_triton_on_cpu_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from chunkcache_kernels import rope

    monkeypatch.setattr(rope, "interpreted", lambda: False)
    with pytest.raises(ValueError, match=r"got 'triton' for tensors on 'cpu'.*TRITON_INTERPRET=1"):
        dispatch.choose_backend(CPU, 64, "triton")


def test_importing_and_using_the_kernels_on_cpu_does_not_import_triton() -> None:
    program = (
        "import sys, torch, chunkcache_kernels as kernels\n"
        "x = torch.ones(2, 1, 16)\n"
        "kernels.rotate(x, x[:, 0], x[:, 0])\n"
        "kernels.rows_attention(x, x, x, torch.arange(2), 1.0)\n"
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_exported_names_are_sorted_and_exist() -> None:
    assert kernels.__all__ == sorted(kernels.__all__)
    assert all(hasattr(kernels, name) for name in kernels.__all__)
