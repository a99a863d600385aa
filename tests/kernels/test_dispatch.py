"""What importing the kernels brings along, and what they export."""

from __future__ import annotations

import subprocess
import sys

import chunkcache_kernels as kernels


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
