"""Launches that are compiled for a GPU that is not there, as they would be, and not run."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pytest


class _Absent:
    """What Triton asks its driver when it compiles."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability  # what was compiled for another is not taken for this one

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@dataclass
class Launches:
    """Compiled kernels by name, in the order of their launches."""

    done: list[tuple[str, Any]] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
        """Let launches of Triton's kernels come here."""
        from triton.runtime.driver import driver
        from triton.runtime.jit import JITFunction

        compile_only = JITFunction.run

        def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            made = compile_only(kernel, *args, grid=grid, warmup=True, **kwargs)
            self.done.append((kernel.fn.__name__, made))

        monkeypatch.setattr(JITFunction, "run", run)
        monkeypatch.setattr(driver, "_active", _Absent(capability))


@dataclass(frozen=True)
class Resources:
    """What one program takes: registers and bytes of stack a thread, bytes of shared memory."""

    registers: int
    stack: int
    shared: int
    warps: int

    @classmethod
    def of(cls, compiled: Any, folder: Path) -> Resources:
        """As the assembler has written it into what it made."""
        said = _told(compiled, folder, "cuobjdump", "-res-usage")
        found = re.search(r"REG:(\d+) STACK:(\d+)", said)
        assert found is not None, said
        about = compiled.metadata
        return cls(int(found[1]), int(found[2]), about.shared, about.num_warps)

    def programs(self, shared_bytes: int) -> int:
        """How many a processor with so many bytes of shared memory runs at a time: 65,536
        registers, 64 warps; 1 KiB more of shared memory is taken for each.
        """
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        of_shared = (shared_bytes + 1024) // (self.shared + 1024)
        return min(65536 // registers, of_shared, 64 // self.warps)


@dataclass(frozen=True)
class Loop:
    """The loop that loads and multiplies tiles: what one warp does for a tile."""

    instructions: int
    barriers: int
    spills: int  # to memory and back, of what finds no register
    ahead: int  # groups of loads that may be on their way while it multiplies

    @classmethod
    def of(cls, compiled: Any, folder: Path) -> list[Loop]:
        """Of each arena, in the order they are laid."""
        labels: dict[str, int] = {}
        code: list[str] = []
        for line in _told(compiled, folder, "nvdisasm", "-c").splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                labels[label[1]] = len(code)
            elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
                code.append(line)
        found = []
        for end, line in enumerate(code):
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            begin = labels.get(jump[1], end) if jump else end
            inside = "\n".join(code[begin : end + 1])
            if begin < end and "LDGSTS" in inside and re.search("HMMA|HGMMA|FFMA", inside):
                found.append((begin, end, inside))
        inner = [
            a for a in found if not any(a[0] <= b[0] and b[1] <= a[1] and a != b for b in found)
        ]
        return [
            cls(
                end - begin + 1, inside.count("BAR.SYNC"), len(re.findall(r"\bLDL|\bSTL", inside)),
                max(int(n, 16) for n in re.findall(r"DEPBAR.LE SB0, (0x[0-9a-f]+)", inside)),
            )
            for begin, end, inside in inner
        ]  # fmt: skip


def _told(compiled: Any, folder: Path, tool: str, flag: str) -> str:
    """What a tool that comes with Triton says of a kernel."""
    import triton

    folder.mkdir(exist_ok=True)
    made = folder / "kernel.cubin"
    made.write_bytes(compiled.asm["cubin"])
    where = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([where, flag, made], capture_output=True, text=True, check=True).stdout
