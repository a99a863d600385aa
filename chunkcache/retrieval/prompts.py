"""The words that go before a query and before a passage.

Some embedders are trained with such words and find worse without them. They come from the settings,
else from the model's folder, else from what is known of its family, whose folders often lack them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

_SEARCH = "Represent this sentence for searching relevant passages: "
_INSTRUCT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
)
# By the model's name, the first that fits; from the families' own model cards.
_KNOWN = (
    (r"e5-(mistral-7b|large)-instruct|gte-qwen\d.*-instruct|qwen3-embedding", _INSTRUCT, ""),
    (r"e5-(small|base|large)", "query: ", "passage: "),
    (r"bge-(small|base|large)-en", _SEARCH, ""),
    (r"bge-(small|base|large)-zh", "为这个句子生成表示以用于检索相关文章：", ""),
    (r"nomic-embed-text", "search_query: ", "search_document: "),
    (r"arctic-embed-.*v2", "query: ", ""),
    (r"arctic-embed", _SEARCH, ""),
)  # bge-m3, gte and all-MiniLM want no words
_PASSAGE_NAMES = ("document", "passage", "corpus")


@dataclass(frozen=True, slots=True)
class Prompts:
    """What goes before a query and before a passage; `None` leaves it to the model."""

    query: str | None = None
    passage: str | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The prompts of an opened embedder."""

    query: str
    passage: str
    origin: Literal["settings", "folder", "model family", "none"]


def choose(given: Prompts, stated: Mapping[str, Any], names: tuple[str, ...]) -> Chosen:
    """Each prompt from the first place that has it.

    Args:
        stated: `config_sentence_transformers.json` of the folder. An empty prompt there says
            nothing: sentence-transformers writes them into every folder it saves.
        names: what the model is called, by which its family is known.
    """
    in_folder, known = _in_folder(stated), _known(names)
    query, passage = (
        next((p for p in places if p is not None), "")
        for places in (
            (given.query, in_folder.query, known.query),
            (given.passage, in_folder.passage, known.passage),
        )
    )
    if given != Prompts():
        return Chosen(query, passage, "settings")
    if in_folder != Prompts():
        return Chosen(query, passage, "folder")
    return Chosen(query, passage, "none" if known == Prompts() else "model family")


def _in_folder(stated: Mapping[str, Any]) -> Prompts:
    prompts = stated.get("prompts") or {}
    default = prompts.get(stated.get("default_prompt_name")) or ""
    query = prompts.get("query") or default
    passage = next((prompts[name] for name in _PASSAGE_NAMES if prompts.get(name)), default)
    if not query and not passage:
        return Prompts()
    return Prompts(query, passage)  # that one of them is empty is meant


def _known(names: tuple[str, ...]) -> Prompts:
    for pattern, query, passage in _KNOWN:
        if any(re.search(rf"(^|[-_])(?:{pattern})", _own_name(name)) for name in names):
            return Prompts(query, passage)
    return Prompts()


def _own_name(name: str) -> str:
    """The model's own name, of a hub id, a folder, or a folder of the hub's cache."""
    parts = PurePath(name).parts or ("",)
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2].lower()
    return parts[-1].lower()
