"""Building the C kernels for this very machine, once, with the system's compiler.

The library is kept in a cache directory under a digest of everything it depends on: sources, flags,
compiler, processor. It is written whole or not at all, and nothing is built where the digest is
known. Without a compiler there are no C kernels, and torch does their work (`portable.py`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).parent / "native"
# what one library is made of
ENGINE = ("team.c", "attend.c", "weights.c", "rows.c", "place.c", "engine.c")
ENCODER = ("encoder.c",)
SLABS = ("slabs.c",)
CODES = ("codes.c", "coefficients.c")
_FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-pthread",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
_LIMIT_S = 300.0


class NoCompiler(Exception):
    """The C kernels cannot be built here; the message says why."""


def find_compiler() -> str:
    """The compiler `$CC` names, or the system's.

    Raises:
        NoCompiler: there is none.
    """
    wanted = os.environ.get("CC", "")
    for name in (wanted,) if wanted else ("cc", "gcc", "clang"):
        if (path := shutil.which(name)) is not None:
            return path
    raise NoCompiler(
        f"no C compiler ({wanted or 'cc, gcc or clang'}) on the PATH. Hint: install gcc; without "
        "one, torch does what the compiled kernels would do, several times slower."
    )


def build_library(cache: Path, page_tokens: int, sources: tuple[str, ...] = ENGINE) -> Path:
    """The shared library for pages of `page_tokens` tokens; built if it is not in the cache.

    Cost: some seconds the first time on a machine, a hash of the sources afterwards.

    Raises:
        NoCompiler: no compiler, or it failed; its first words are in the message.
    """
    if platform.system() != "Linux":
        raise NoCompiler(f"the C kernels are written for Linux, this is {platform.system()}")
    compiler = find_compiler()
    # the twins of codes round each product and each sum
    contract = ("-ffp-contract=off",) if sources == CODES else ()
    flags = (*_FLAGS, *contract, f"-DPAGE={page_tokens}")
    path = cache / "native" / f"chunkcache-{_digest(compiler, (*flags, *sources))}.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / "made.so"
            paths = [str(_FOLDER / name) for name in sources]
            command = [compiler, *flags, *paths, "-o", str(made), "-lm"]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
            )
            if done.returncode:
                raise NoCompiler(f"{compiler} failed: {done.stderr.strip()[:300]}")
            made.rename(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"the C kernels could not be built in {path.parent}: {error}") from error
    return path


def _digest(compiler: str, options: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    hasher = hashlib.sha256(version)
    hasher.update("\x00".join([compiler, *options, platform.machine(), _processor()]).encode())
    for source in sorted(_FOLDER.glob("*.[ch]")):
        hasher.update(source.name.encode() + b"\x00" + source.read_bytes())
    return hasher.hexdigest()[:32]


def _processor() -> str:
    """What `-march=native` looks at, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))
