"""Markdown → its blocks (markdown-it-py): where each begins and ends, and which are headings.

Only block structure is parsed, never what stands inside a line. A text that is no Markdown is one
block after another too, so nothing is refused.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markdown_it.token import Token

_HEADING_LIMIT_CHARS = 100
_HTML_HEADING_CHARS = 20_000  # of a block of HTML: a heading further on is none of the block
_HEADING_SOURCE_CHARS = 2000  # of a heading with its links and pictures
_HTML_HEADING = re.compile(r"<h([1-6])\b[^<>]{0,500}>(.{0,2000}?)</h\1\s*>", re.I | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\([^()\s]*(?:\s\"[^\"]*\")?\)")
_FENCE = re.compile(r"^ {0,3}(?:`{3}|~{3})", re.M)
_BELOW_HEADER = re.compile(r"^[|:\- \t]*$", re.M)  # of a table, or nothing of the kind
_LONE_HEADING = re.compile(r"(?:\A|\n[ \t\r]*\n)#{1,6}[ \t][^\n]*(?:\Z|\n[ \t\r]*(?:\n|\Z))")
_ANCHOR = re.compile(r"\s*\{[#.:][^{}]*\}$")  # of Pandoc, Python-Markdown and others


class Kind(Enum):
    """What a block is, as far as it matters where it may be cut."""

    HEADING = "heading"
    CODE = "code"
    TABLE = "table"
    TEXT = "text"
    GROUP = "group"  # a list, an item, a quotation: blocks inside a block
    SECTION = "section"  # a heading and all below it


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a text, at `[start, end)`, without blank lines around them."""

    kind: Kind
    start: int
    end: int
    level: int = 0  # of a heading, and of its section; 0 for what is none
    heading: str = ""  # its words
    body: int = 0  # of a table: where its rows begin; of a code block: its first line of code
    children: tuple[Block, ...] = ()


def blocks_of(text: str) -> list[Block]:
    """The outermost blocks of a text, in order; all but white space is in one of them."""
    lines = _Lines(text)
    # without references, whose cost grows with the square of their number; they are text here
    parser = MarkdownIt("commonmark").enable("table").disable("reference")
    parser.core.ruler.enableOnly(["normalize", "block"])
    # one character for one, so that lines stay where they are; only "\n" ends a line
    tokens = parser.parse(text.replace("\r", " "))
    return list(_tiled(lines, tokens, 0, len(lines)))


def sections_of(blocks: Sequence[Block]) -> list[Block]:
    """Blocks with every heading and what stands below it put into a section, sections nested."""
    root: list[Block] = []
    place = 0
    while place < len(blocks):
        block = blocks[place]
        place += 1
        end = place
        while block.level and end < len(blocks) and not 0 < blocks[end].level <= block.level:
            end += 1
        if end == place:  # no heading, or one with nothing below it
            root.append(block)
            continue
        children = (block, *sections_of(blocks[place:end]))
        last = children[-1].end
        root.append(Block(Kind.SECTION, block.start, last, level=block.level, children=children))
        place = end
    return root


class Outline:
    """Under which headings each place of a text stands."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._starts = [block.start for block in blocks]
        self._above: list[tuple[str, ...]] = []  # of each block, its own heading left out
        stack: list[tuple[int, str]] = []
        for block in blocks:
            if block.level:
                stack = [above for above in stack if above[0] < block.level]
            self._above.append(tuple(words for _, words in stack))
            if block.level:
                stack.append((block.level, block.heading))

    def above(self, position: int) -> tuple[str, ...]:
        """Headings of the sections that a text from `position` on is in, outermost first.

        A heading that begins right there is not among them: the text opens with it.
        """
        place = bisect_right(self._starts, position) - 1
        if place < 0:
            return ()
        block = self._blocks[place]
        inside = block.level and block.start < position
        return (*self._above[place], block.heading) if inside else self._above[place]

    def prose_before(self, position: int) -> int:
        """Where the prose or list begins that ends before `position`; `position` if none does."""
        place = bisect_left(self._starts, position) - 1
        prose = place >= 0 and self._blocks[place].kind in (Kind.TEXT, Kind.GROUP)
        return self._starts[place] if prose and not self._blocks[place].level else position


def first_heading(text: str) -> str:
    """The words of the first heading, or ''. One inside code or a comment is none."""
    return next((block.heading for block in blocks_of(text) if block.heading), "")


def looks_like_markdown(text: str) -> bool:
    """Whether a text of unknown kind is Markdown: it has a table, a fence, or a heading on its own.

    `# words` right above or below other lines may be a comment of a program's as well.
    """
    if _FENCE.search(text) or _LONE_HEADING.search(text):
        return True
    ruled = (line[0] for line in _BELOW_HEADER.finditer(text.replace("\r", "")))
    return any("|" in line and "-" in line for line in ruled)


class _Lines:
    """Where lines begin, and which are blank."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def line(self, number: int) -> str:
        return self.text[self.starts[number] : self.starts[number + 1] - 1]

    def without_blank(self, first: int, end: int) -> tuple[int, int]:
        while first < end and not self.line(first).strip():
            first += 1
        while end > first and not self.line(end - 1).strip():
            end -= 1
        return first, end

    def span(self, first: int, end: int) -> tuple[int, int]:
        return self.starts[first], self.starts[end] - 1


def _tiled(lines: _Lines, tokens: Sequence[Token], first: int, end: int) -> Iterator[Block]:
    """Blocks of `tokens`, and of the lines between them, which the parser has no token for."""
    for token, inner in _outermost(tokens):
        begin, stop = token.map or (first, first)
        begin, stop = lines.without_blank(max(begin, first), min(stop, end))
        if begin >= stop:
            continue
        yield from _rest(lines, first, begin)
        yield _block(lines, token, inner, begin, stop)
        first = stop
    yield from _rest(lines, first, end)


def _rest(lines: _Lines, first: int, end: int) -> Iterator[Block]:
    for blank, run in groupby(range(first, end), lambda number: not lines.line(number).strip()):
        if not blank:
            numbers = list(run)
            yield Block(Kind.TEXT, *lines.span(numbers[0], numbers[-1] + 1))


def _outermost(tokens: Sequence[Token]) -> Iterator[tuple[Token, Sequence[Token]]]:
    """Each outermost token with those between it and its end."""
    place = 0
    while place < len(tokens):
        start, depth = place, int(tokens[place].nesting)
        place += 1
        while depth > 0 and place < len(tokens):
            depth += tokens[place].nesting
            place += 1
        yield tokens[start], tokens[start + 1 : place - 1]


def _block(lines: _Lines, token: Token, inner: Sequence[Token], first: int, end: int) -> Block:
    start, stop = lines.span(first, end)
    match token.type:
        case "heading_open":
            words = heading_words(" ".join(part.content for part in inner))
            level = int(token.tag[1]) if words else 0
            return Block(Kind.HEADING, start, stop, level=level, heading=words)
        case "fence":
            return Block(Kind.CODE, start, stop, body=lines.starts[min(first + 1, end)])
        case "code_block":
            return Block(Kind.CODE, start, stop, body=start)
        case "table_open":
            return Block(Kind.TABLE, start, stop, body=lines.starts[min(first + 2, end)])
        case "html_block":
            return _html_block(lines.text, start, stop)
        case "bullet_list_open" | "ordered_list_open" | "list_item_open" | "blockquote_open":
            children = tuple(map(_inside, _tiled(lines, inner, first, end)))
            return Block(Kind.GROUP, start, stop, children=children)
    return Block(Kind.TEXT, start, stop)


def _inside(block: Block) -> Block:
    """A block inside another; a heading there opens no section."""
    return Block(Kind.TEXT, block.start, block.end) if block.level else block


def _html_block(text: str, start: int, stop: int) -> Block:
    html = without_comments(text[start:stop])
    found = _HTML_HEADING.search(html[:_HTML_HEADING_CHARS])
    words = heading_words(found[2]) if found else ""
    if not found or not words:
        return Block(Kind.TEXT, start, stop)
    alone = not _TAG.sub("", html[: found.start()] + html[found.end() :]).strip()
    kind = Kind.HEADING if alone else Kind.TEXT
    return Block(kind, start, stop, level=int(found[1]), heading=words)


def heading_words(content: str) -> str:
    """A heading's content as words on one line: pictures, links, tags and anchors left out."""
    words = _TAG.sub("", content[:_HEADING_SOURCE_CHARS])
    for _ in range(2):  # a picture may be a link
        bare = _LINK.sub(lambda found: "" if found[1] else found[2], words)
        words = bare if bare.strip() else _LINK.sub(r"\2", words)  # a picture alone has its words
    words = " ".join(_ANCHOR.sub("", words).split())
    if len(words) > _HEADING_LIMIT_CHARS:
        words = f"{words[:_HEADING_LIMIT_CHARS].rstrip()}…"
    return words


def without_comments(text: str) -> str:
    """The text without HTML comments that begin a line."""
    parts, last, seen, begins = [], 0, 0, True
    start = text.find("<!--")
    while start >= 0:
        end = text.find("-->", start + 4)
        if end < 0:
            break
        line = text.rfind("\n", seen, start) + 1
        begins = (line > 0 or begins) and not text[line or seen : start].strip()
        seen = end + 3
        if begins:
            parts.append(text[last:start])
            last = seen
        start = text.find("<!--", seen)
    return "".join([*parts, text[last:]])
