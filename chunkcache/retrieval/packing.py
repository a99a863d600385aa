"""Blocks → runs of a text that fit a chunk: whole sections, else whole blocks, else parts of one.

Code and tables are cut only when they do not fit a chunk on their own, and then between lines and
rows; what goes on from an earlier run carries the table's header or the fence's first line as its
opening. A heading never stands alone: where it does not fit with what follows it, it is left to the
path of headings that every chunk carries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chunkcache.retrieval.markdown import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chunkcache.retrieval.markdown import Block

    Prose = Callable[[int, int, int], Sequence[tuple[int, int]]]

_BETWEEN_TOKENS = 2  # of the line ends between two blocks, at most
_SURE_SHARE = 0.8  # of a chunk: so far a sum of sizes is trusted without counting


@dataclass(frozen=True, slots=True)
class Run:
    """Characters `[start, end)` of the text, about `tokens` of them with the opening."""

    start: int
    end: int
    tokens: int
    opening: str = ""
    heading: bool = False  # nothing but a heading


class Packer:
    """Packs the blocks of one text.

    Args:
        size: tokens of a text; of one far beyond `limit`, any number above it.
        prose: `(start, end, limit)` to the runs of text that has no structure to keep.
        limit: tokens a run may have, with its opening.
    """

    def __init__(self, text: str, size: Callable[[str], int], prose: Prose, limit: int) -> None:
        self._text = text
        self._size = size
        self._prose = prose
        self._limit = limit

    def pack(self, sections: Sequence[Block]) -> list[Run]:
        """The runs of a text, in order."""
        if not sections:
            return []
        whole = self._whole(sections[0].start, sections[-1].end)
        runs = [whole] if whole is not None else self._joined(sections)
        return self._without_lone_headings(runs, sections)

    def _runs(self, block: Block) -> list[Run]:
        whole = self._whole(block.start, block.end)
        if whole is not None:
            return [replace(whole, heading=block.kind is Kind.HEADING)]
        if block.children:
            return self._joined(block.children)
        if block.kind is Kind.CODE:
            return self._code(block)
        if block.kind is Kind.TABLE:
            return self._table(block)
        return self._cut(block.start, block.end)

    def _whole(self, start: int, end: int) -> Run | None:
        tokens = self._size(self._text[start:end])
        return Run(start, end, tokens) if tokens <= self._limit else None

    def _joined(self, blocks: Sequence[Block]) -> list[Run]:
        """Runs of blocks side by side, put together where they fit.

        A section that had to be cut is not mixed with its neighbours, except for a heading.
        """
        joined: list[Run] = []
        closed = False
        for block in blocks:
            runs = self._runs(block)
            cut_section = block.kind is Kind.SECTION and len(runs) > 1
            may_join = joined and (joined[-1].heading or not (closed or cut_section))
            both = self._together(joined[-1], runs[0]) if may_join else None
            if both is not None:
                joined[-1] = both
                runs = runs[1:]
            joined += runs
            closed = cut_section
        return joined

    def _together(self, first: Run, second: Run) -> Run | None:
        if second.opening:
            return None
        tokens = first.tokens + second.tokens + _BETWEEN_TOKENS
        if tokens > _SURE_SHARE * self._limit:
            if tokens > self._limit + self._limit // 4:
                return None
            tokens = self._size(f"{first.opening}\n{self._text[first.start : second.end]}")
            if tokens > self._limit:
                return None
        both = first.heading and second.heading
        return Run(first.start, second.end, tokens, first.opening, both)

    def _without_lone_headings(self, runs: list[Run], sections: Sequence[Block]) -> list[Run]:
        """Each heading joined to what follows; else left to the path of that.

        One of an empty section is in no path: it is joined to what is before it, if that has room.
        """
        empty = set(_empty_headings(sections))
        kept: list[Run] = []
        for place, run in enumerate(runs):
            if not run.heading or len(runs) == 1:
                kept.append(run)
                continue
            after = self._together(run, runs[place + 1]) if place + 1 < len(runs) else None
            if after is not None:
                runs[place + 1] = after
            elif run.start in empty:
                beside = kept and not self._text[kept[-1].end : run.start].strip()
                before = self._together(kept[-1], run) if beside else None
                if before is not None:
                    kept[-1] = before
                elif "\n" in self._text[run.start : run.end]:  # many of them
                    kept.append(run)
        return kept or runs

    def _code(self, block: Block) -> list[Run]:
        """A code block cut at line ends. A fence's last line stays with the line before it."""
        lines = self._lines(block.body, block.end)
        opening = self._text[block.start : block.body].strip()
        if len(lines) > 1 and opening and self._text[slice(*lines[-1])].strip()[:3] in _FENCES:
            lines[-2:] = [(lines[-2][0], lines[-1][1])]
        return self._continued(block, lines, opening)

    def _table(self, block: Block) -> list[Run]:
        header = self._text[block.start : block.body].strip()
        if not any(char.isalnum() for char in header):  # it would say nothing again
            return self._filled(self._lines(block.start, block.end), "", 0)
        return self._continued(block, self._lines(block.body, block.end), header)

    def _continued(self, block: Block, lines: list[tuple[int, int]], opening: str) -> list[Run]:
        """Lines filled into runs. The first begins with the opening, the others carry it."""
        before = self._size(opening) + 1 if opening else 0
        if before > self._limit // 2:  # too dear to be repeated
            return self._cut(block.start, block.body) + self._filled(lines, "", 0)
        runs = self._filled(lines, opening, before)
        if runs and opening:
            runs[0] = replace(runs[0], start=block.start, opening="")
        return runs or self._cut(block.start, block.end)

    def _filled(self, lines: Sequence[tuple[int, int]], opening: str, before: int) -> list[Run]:
        runs: list[Run] = []
        for start, end in lines:
            tokens = before + self._size(self._text[start:end])
            if tokens > self._limit:
                pieces = self._prose(start, end, self._limit - before)
                runs += [Run(a, b, self._limit, opening) for a, b in pieces]
                continue
            line = Run(start, end, tokens - before)
            both = self._together(runs[-1], line) if runs else None
            if both is not None:
                runs[-1] = both
            else:
                runs.append(Run(start, end, tokens, opening))
        return runs

    def _cut(self, start: int, end: int) -> list[Run]:
        pieces = self._prose(start, end, self._limit)
        return [Run(a, b, self._size(self._text[a:b])) for a, b in pieces]

    def _lines(self, start: int, end: int) -> list[tuple[int, int]]:
        """Lines that are not blank."""
        lines = []
        while start < end:
            stop = self._text.find("\n", start, end)
            stop = end if stop < 0 else stop
            if self._text[start:stop].strip():
                lines.append((start, stop))
            start = stop + 1
        return lines


_FENCES = ("```", "~~~")


def _empty_headings(blocks: Sequence[Block]) -> Iterator[int]:
    """Where headings begin that have nothing below them."""
    for block in blocks:
        if block.kind is Kind.HEADING:
            yield block.start
        elif block.kind is Kind.SECTION:
            yield from _empty_headings(block.children[1:])
