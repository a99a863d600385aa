"""How a codec is named: `int4(group=32)`, `zstd(over=raw,level=3)`. Pure text, no torch.

A name says everything that the bytes depend on. It is a setting, it stands in every record, and a
record that lost something lies under a digest of its own (`stored_under`), so that records of two
codecs never take each other's place.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_LONGEST = 200  # characters
_DIGEST_DIGITS = 32
_PART = re.compile(r"\s*([a-z_][a-z0-9_]*(?=\s*[=(])|[A-Za-z0-9_.+-]+|[(),=])\s*")


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """A codec and all its parameters, none left to a default."""

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        """The one way to write it."""
        said = ",".join(f"{name}={_shown(value)}" for name, value in self.parameters)
        return f"{self.name}({said})" if said else self.name

    @property
    def over(self) -> CodecSpec | None:
        """The codec it codes the bytes of."""
        inner = dict(self.parameters).get("over")
        return inner if isinstance(inner, CodecSpec) else None

    @property
    def is_lossless(self) -> bool:
        """Whether every bit comes back."""
        return self.name == "raw" or (self.over is not None and self.over.is_lossless)

    def number(self, parameter: str) -> float:
        """The value of a parameter that is a number."""
        value = dict(self.parameters)[parameter]
        assert isinstance(value, int | float)
        return value

    def count(self, parameter: str) -> int:
        """The value of a parameter that is a whole number."""
        return int(self.number(parameter))


Value: TypeAlias = int | float | str | CodecSpec


@dataclass(frozen=True, slots=True)
class _Number:
    """A parameter that is a number, of the type of its bounds."""

    default: float
    low: float
    high: float

    def read(self, given: str) -> int | float:
        """Its value, as precise as it is written into names. Raises `ValueError` in words."""
        try:
            value = int(given) if isinstance(self.low, int) else float(f"{float(given):g}")
        except ValueError:
            value = float("nan")
        if not self.low <= value <= self.high:
            kind = "whole number" if isinstance(self.low, int) else "number"
            raise ValueError(f"must be a {kind} from {self.low:g} to {self.high:g}")
        return value


@dataclass(frozen=True, slots=True)
class _FileDigest:
    """A parameter that names a file by its content."""

    default: None = None

    def read(self, given: str) -> str:
        """Its value. Raises `ValueError` in words."""
        if re.fullmatch(rf"[0-9a-f]{{{_DIGEST_DIGITS}}}", given) is None:
            raise ValueError(f"must be {_DIGEST_DIGITS} hexadecimal digits")
        return given


@dataclass(frozen=True, slots=True)
class _Inner:
    """A parameter that is a codec itself."""

    default: CodecSpec = CodecSpec("raw")


_GROUP = _Number(32, 8, 1024)
_BITS = _Number(4, 2, 8)
_PARAMETERS: dict[str, dict[str, _Number | _FileDigest | _Inner]] = {
    "raw": {},
    "int8": {"group": _Number(64, 8, 1024)},
    "int4": {"group": _GROUP},
    "bits": {"k": _Number(3, 2, 8), "v": _BITS, "group": _GROUP},
    "gear": {
        "bits": _BITS, "rank": _Number(4, 0, 64), "sparse": _Number(0.02, 0.0, 0.5),
        "group": _GROUP,
    },
    "mikv": {
        "share": _Number(0.25, 0.0, 1.0), "high": _Number(8, 2, 8), "low": _Number(3, 2, 8),
        "group": _GROUP,
    },
    "basis": {"file": _FileDigest(), "k": _Number(3.0, 0.0, 8.0), "v": _Number(4.7, 0.0, 8.0)},
    "joint": {"file": _FileDigest(), "bits": _Number(1.9, 0.0, 8.0)},
    "zstd": {"over": _Inner(), "level": _Number(3, 1, 19)},
}  # fmt: skip
CODEC_NAMES = tuple(_PARAMETERS)


@lru_cache(maxsize=64)  # every look at a record asks
def parse_codec(text: str) -> CodecSpec:
    """The codec that `text` names, parameters left out at their defaults.

    Raises:
        ValueError: no such codec or parameter, or a value out of bounds; in words.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"A codec must have at most {_LONGEST} characters")
    reader = _Reader(text)
    spec = reader.codec()
    reader.end()
    return spec


def is_lossless(codec: str) -> bool:
    """Whether records of that codec are as they were computed. A name nobody knows: no."""
    try:
        return parse_codec(codec).is_lossless
    except ValueError:
        return False


def is_read(codec: str, codecs: Collection[str]) -> bool:
    """Whether who reads `codecs` reads records of this one: lossless ones are always read."""
    return codec in codecs or is_lossless(codec)


def stored_under(digest: bytes, codec: str) -> bytes:
    """The digest that a chunk's record lies under: the chunk's own, or of it and a lossy codec.

    Lossless codecs share a place: whichever of them wrote a record, it is the same record.
    """
    if is_lossless(codec):
        return digest
    hasher = hashlib.blake2b(digest_size=len(digest), person=b"chunkcache/codec")
    hasher.update(digest)
    hasher.update(codec.encode("utf-8", "surrogatepass"))
    return hasher.digest()


def lossy_places(digest: bytes, codecs: Iterable[str]) -> tuple[bytes, ...]:
    """What a chunk's records lie under that these codecs made, where that is not its own digest."""
    return tuple(stored_under(digest, codec) for codec in codecs if not is_lossless(codec))


class _Reader:
    """Reads `name(parameter=value,…)`, where a value may be a codec again."""

    def __init__(self, text: str) -> None:
        self._parts: list[str] = []
        at = 0
        while at < len(text):
            found = _PART.match(text, at)
            if found is None:
                raise ValueError(f"It cannot be read from {text[at:]!r} on")
            self._parts.append(found[1])
            at = found.end()
        self._at = 0

    def codec(self, *, inside: str | None = None) -> CodecSpec:
        name = self._next()
        allowed = [n for n in CODEC_NAMES if not inside or n not in (inside, "joint")]
        if name not in allowed:
            raise ValueError(
                f"A codec must be one of {', '.join(allowed)}, {name!r} is none; "
                "parameters go in brackets, as in int4(group=32)"
            )
        known = _PARAMETERS[name]
        said: dict[str, Value] = {}
        if self._peek() == "(":
            self._next()
            while self._peek() != ")":
                parameter, value = self._parameter(name)
                if parameter in said:
                    raise ValueError(f"{name}.{parameter} is given twice")
                said[parameter] = value
                if self._peek() != ")":
                    self._expect(",")
            self._next()
        values: list[tuple[str, Value]] = []
        for parameter, kind in known.items():
            chosen = said.get(parameter, kind.default)
            if chosen is None:
                raise ValueError(f"{name}.{parameter} must be given")
            values.append((parameter, chosen))
        return CodecSpec(name, tuple(values))

    def _parameter(self, codec: str) -> tuple[str, Value]:
        name = self._next()
        kind = _PARAMETERS[codec].get(name)
        if kind is None:
            known = ", ".join(_PARAMETERS[codec]) or "none"
            raise ValueError(f"{codec} has no parameter {name!r}, it has {known}")
        self._expect("=")
        if isinstance(kind, _Inner):
            return name, self.codec(inside=codec)
        given = self._next()
        try:
            return name, kind.read(given)
        except ValueError as error:
            raise ValueError(f"{codec}.{name} is {given!r}, it {error}") from error

    def end(self) -> None:
        if self._at < len(self._parts):
            raise ValueError(f"It goes on after its end, with {self._parts[self._at]!r}")

    def _peek(self) -> str:
        return self._parts[self._at] if self._at < len(self._parts) else ""

    def _next(self) -> str:
        part = self._peek()
        self._at += 1
        return part

    def _expect(self, part: str) -> None:
        found = self._next()
        if found != part:
            raise ValueError(f"Expected {part!r}, found {found or 'the end'!r}")


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
