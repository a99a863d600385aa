"""A Markdown file → what a reader of it sees: no front matter, comments, or pictures as data."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

import yaml

from chunkcache.retrieval.markdown import Kind, blocks_of, first_heading, without_comments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.retrieval.markdown import Block

_FRONT = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)^(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.M)
_FRONT_LINE = re.compile(r"[\w\"'.-]+[ \t]*[:=]|[ \t#\[\]}-]|\Z")
_FRONT_TITLE = re.compile(r"^title[ \t]*[:=][ \t]*(.+?)[ \t]*$", re.M | re.I)
# None of these looks far ahead for an end that may not come.
_PICTURE = re.compile(r"!\[([^\]\n]{0,300})\]\(\s*<?data:[^)\[\n]*\)", re.IGNORECASE)
_REFERENCE = re.compile(r"^ {0,3}\[[^\]\n]{1,300}\]:[ \t]*\n?[ \t]*<?data:[^\n]*", re.M | re.I)
_ATTRIBUTE = re.compile(
    r"\b(?:src|srcset|href)\s*=\s*(?:\"\s*data:[^\"]*\"|'\s*data:[^']*'|data:[^\s>]*)",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(?:img|source|image)\b[^<>]{0,2000}>", re.IGNORECASE)
_TAG_SOURCE = re.compile(r"\b(?:src|srcset|href)\s*=", re.IGNORECASE)
_TAG_WORDS = re.compile(r"\balt\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", re.IGNORECASE)
_PAYLOAD = re.compile(r"(data:[\w.+-]+/[\w.+-]+(?:;[\w=.-]+)*,)[\w+/=%-]{64,}", re.I)


def read_markdown(source: str) -> tuple[str, str]:
    """Text and title: the front matter's, else the first heading's, else ''.

    Pictures whose bytes stand in the text leave what they are said to show. Code blocks stay as
    they are, but for long data, which is cut.
    """
    title, source = _without_front_matter(source)
    parts, last = [], 0
    for start, end in _code(blocks_of(source)):
        parts += [_prose(source[last:start]), source[start:end]]
        last = end
    text = _PAYLOAD.sub(r"\1…", "".join([*parts, _prose(source[last:])]))
    return text, title or first_heading(text)


def _without_front_matter(source: str) -> tuple[str, str]:
    """The title in it, and what follows it."""
    front = _FRONT.match(source)
    if not front:
        return "", source
    try:
        fields: Any = (yaml.safe_load if front[1] == "---" else tomllib.loads)(front[2])
    except (yaml.YAMLError, tomllib.TOMLDecodeError, ValueError, RecursionError):
        if not all(_FRONT_LINE.match(line) for line in front[2].split("\n")):
            return "", source  # text between two thematic breaks
        named = _FRONT_TITLE.search(front[2])
        fields = {"title": named[1].strip("\"'") if named else ""}
    if not isinstance(fields, dict):
        return ("", source) if fields else ("", source[front.end() :])
    title = fields.get("title")
    return str(title) if isinstance(title, str | int | float) else "", source[front.end() :]


def _code(blocks: Sequence[Block]) -> Iterator[tuple[int, int]]:
    for block in blocks:
        if block.kind is Kind.CODE:
            yield block.start, block.end
        yield from _code(block.children)


def _prose(text: str) -> str:
    text = _PICTURE.sub(r"\1", without_comments(text))
    text = _ATTRIBUTE.sub("", _REFERENCE.sub("", text))
    return _TAG.sub(_without_source, text)


def _without_source(tag: re.Match[str]) -> str:
    """What a picture is said to show, when it is one whose source was data."""
    if _TAG_SOURCE.search(tag[0]):
        return tag[0]
    words = _TAG_WORDS.search(tag[0])
    return (words[1] or words[2] or "") if words else ""
