"""The curve as SVG: hit rate by size of memory, one line for each policy. No library, no script."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

from chunkcache.evaluate.hitrate.amounts import shown_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Line = Sequence[tuple[int, float]]


WIDTH: Final = 640
HEIGHT: Final = 400
LEFT: Final = 56
RIGHT: Final = 16
TOP: Final = 40
BOTTOM: Final = 46
_COLORS: Final = ("#0b62c4", "#b3400b", "#4b7d17", "#7a3fa8", "#7c6a00", "#00798a")
_DASHES: Final = ("none", "6 3", "2 3", "8 3 2 3", "1 4", "10 4")
_LEGEND_STEP: Final = 17


class Axes:
    """Where a size and a rate are drawn: logarithm of bytes to the right, 0 to 1 upwards."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.least, self.most = max(1, min(sizes)), max(1, *sizes)

    def x(self, size_bytes: int) -> float:
        """Pixels from the left."""
        span = math.log(self.most / self.least) or 1.0
        share = math.log(max(size_bytes, self.least) / self.least) / span
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        """Pixels from the top."""
        return TOP + (1.0 - rate) * (HEIGHT - TOP - BOTTOM)

    def ticks(self) -> list[int]:
        """Sizes of one significant digit, at most eight of them."""
        digits = (1, 2, 5)
        found = [
            digit * 10**power
            for power in range(len(str(self.most)))
            for digit in digits
            if self.least <= digit * 10**power <= self.most
        ]
        return found[:: -(-len(found) // 8)] if found else [self.least, self.most]


def draw_curve(
    lines: Mapping[str, Line],
    *,
    title: str,
    limits: Mapping[str, float] | None = None,
) -> str:
    """An SVG document. Every point says its figures when it is pointed at.

    Args:
        lines: sizes of memory and the hit rates they give, by policy.
        title: what was replayed.
        limits: hit rates that hold for every size, drawn across: an infinite cache, for one.
    """
    axes = Axes([size for line in lines.values() for size, _ in line])
    words = "; ".join(
        f"{policy}: {', '.join(f'{rate:.0%}' for _, rate in line)}"
        for policy, line in lines.items()
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"Hit rate by memory. {words}")}" font-family="system-ui, sans-serif"'
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" fill="#1a1a1a">{escape(title)}</text>',
        *_grid(axes),
    ]
    for name, rate in (limits or {}).items():
        y = axes.y(rate)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}" stroke="#666666" '
            f'stroke-dasharray="3 3"/><text x="{LEFT + 4}" y="{y - 4:.2f}" fill="#555555">'
            f"{escape(name)} {rate:.1%}</text>"
        )
    for index, (policy, line) in enumerate(lines.items()):
        parts += _line(axes, policy, line, index)
    return "\n".join([*parts, "</svg>", ""])


def _grid(axes: Axes) -> list[str]:
    parts = []
    for percent in range(0, 101, 20):
        y = axes.y(percent / 100)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}" stroke="#e2e2e2"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.2f}" text-anchor="end" fill="#555555">'
            f"{percent} %</text>"
        )
    for size in axes.ticks():
        x = axes.x(size)
        parts.append(
            f'<line x1="{x:.2f}" x2="{x:.2f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}" '
            f'stroke="#888888"/><text x="{x:.2f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" '
            f'fill="#555555">{shown_bytes(size)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle" fill="#1a1a1a">'
        "memory for chunk KV; upwards: passage tokens from the cache</text>"
    )
    return parts


def _line(axes: Axes, policy: str, line: Line, index: int) -> list[str]:
    color, dash = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
    places = [(axes.x(size), axes.y(rate)) for size, rate in line]
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
    parts = [
        f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/>'
    ]
    for (x, y), (size, rate) in zip(places, line, strict=True):
        said = f"{policy}, {shown_bytes(size)}: {rate:.4f}"
        parts.append(
            f'<circle cx="{x:.2f}" cy="{y:.2f}" r="3.5" fill="{color}">'
            f"<title>{escape(said)}</title></circle>"
        )
    y = HEIGHT - BOTTOM - 12 - _LEGEND_STEP * index
    parts.append(
        f'<line x1="{WIDTH - 150}" x2="{WIDTH - 122}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" '
        f'stroke-width="2" stroke-dasharray="{dash}"/>'
        f'<text x="{WIDTH - 116}" y="{y}" fill="#1a1a1a">{escape(policy)}</text>'
    )
    return parts
