"""Texts under ids of the caller's own: put, list, read, discard. See `flows` for what a flow is.

A text is a document of a vector store. Its id is one of the document's attributes, so that searches
can tell whose passages they found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidRequest
from ..protocol import Passage
from .calls import Call, segment
from .documents import Attributes, Held, files_path, held_in, let_go, upload
from .results import reading
from .sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..protocol import Json
    from .flows import Flow

ID_ATTRIBUTE: Final = "chunkcache.id"
UNTITLED: Final = "text"
_MOST_WHOLE: Final = 2**53  # attributes are JSON numbers: larger ones would not come back the same
_TITLE_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Text:
    """A text to keep. The title is prompted and searched with each of its passages.

    Attributes are texts of up to 512 characters, finite numbers, or truths; 15 at most. Line ends
    of the text come back as `\\n`, whole numbers as `int`.
    """

    id: str
    text: str
    title: str = ""
    attributes: Mapping[str, str | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredText:
    """A document of a vector store, without its text.

    One that was not put as a text goes by its document's id.
    """

    id: str
    title: str
    attributes: Mapping[str, str | float | bool]
    document_id: str  # as citations name it
    file_id: str
    num_chunks: int


class Hit(Passage):
    """A passage that was found, and whose it is. `text_id` is the document's id for other files.

    `num_chunks` is how many passages the document has; None: not known.
    """

    text_id: str
    filename: str
    attributes: dict[str, str | int | float | bool]
    num_chunks: int | None = None


def put(texts: Iterable[Text], vector_store_id: str) -> Flow[list[str]]:
    """Keep texts, in place of those with the same id; what is there already is not sent.

    Raises:
        InvalidRequest: one cannot be kept, or two have one id and differ. Nothing is sent then.
    """
    wanted: dict[str, Text] = {}
    for text in texts:
        known = wanted.setdefault(_checked(text).id, text)
        if known != text or _told_apart(known.attributes) != _told_apart(text.attributes):
            raise InvalidRequest.of(
                "id", text.id, "of one text in a call", "put one after the other to replace it"
            )
    held = (yield from _by_id(vector_store_id)) if wanted else {}
    for text in wanted.values():
        yield from _put_one(text, held.get(text.id), vector_store_id)
    return list(wanted)


def _put_one(text: Text, known: Held | None, vector_store_id: str) -> Flow[None]:
    source = Source(_file_name(text.title), text.text.encode())
    labels = {**text.attributes, ID_ATTRIBUTE: text.id}
    if known is not None and _is_same(known, source):
        if _told_apart(known.attributes) != _told_apart(labels):
            where = f"{files_path(vector_store_id)}/{segment('id', known.file_id)}"
            yield Call("POST", where, {"attributes": labels})
        return
    try:
        yield from upload(source, vector_store_id, labels)
    except InvalidRequest as error:
        raise InvalidRequest(f"text {text.id!r}: {error.message}", param=error.param) from error
    if known is not None:
        yield from let_go(known, vector_store_id)


def _is_same(known: Held, source: Source) -> bool:
    """Whether title and text are what they were."""
    return (known.filename, known.document.sha256) == (source.name, source.sha256())


def _told_apart(attributes: Attributes) -> dict[str, tuple[bool, str | float | bool]]:
    """Attributes such that a truth is not the number that it equals."""
    return {name: (isinstance(value, bool), value) for name, value in attributes.items()}


def stored(vector_store_id: str) -> Flow[list[StoredText]]:
    """Everything in a vector store, oldest first."""
    held = yield from held_in(vector_store_id)
    return [
        StoredText(
            id=_id_of(item),
            title=item.document.title,
            attributes=_labels(item.attributes),
            document_id=item.document.document_id,
            file_id=item.file_id,
            num_chunks=item.document.num_chunks,
        )
        for item in held
    ]


def read(ids: Sequence[str], vector_store_id: str) -> Flow[list[Text]]:
    """The texts with these ids, in this order; those that are not there are left out."""
    held = (yield from _by_id(vector_store_id)) if ids else {}
    found = []
    for item in [held[one] for one in ids if one in held]:
        where = f"{files_path(vector_store_id)}/{segment('id', item.file_id)}/content"
        reply = yield Call("GET", where)
        with reading("the content of a file"):
            text = "".join(str(part["text"]) for part in reply["data"])
        labels = _labels(item.attributes)
        found.append(Text(_id_of(item), text, item.document.title, labels))
    return found


def discard(ids: Iterable[str], vector_store_id: str) -> Flow[int]:
    """Take texts out, with their uploads; how many of them were there."""
    unwanted = set(ids)
    held = (yield from _by_id(vector_store_id)) if unwanted else {}
    mine = [item for one, item in held.items() if one in unwanted]
    for item in mine:
        yield from let_go(item, vector_store_id)
    return len(mine)


def hit_of(found: Json) -> Hit:
    """A passage from an item of the search result. To be used within `reading`."""
    attributes = found["attributes"]
    more = {
        "text_id": attributes.get(ID_ATTRIBUTE, found["chunkcache"]["document_id"]),
        "filename": found["filename"],
        "attributes": _labels(attributes),
    }
    return Hit.model_validate({**found["chunkcache"], **more}, extra="ignore")


def _by_id(vector_store_id: str) -> Flow[dict[str, Held]]:
    held = yield from held_in(vector_store_id)
    return {_id_of(item): item for item in held}


def _id_of(item: Held) -> str:
    return str(item.attributes.get(ID_ATTRIBUTE, item.document.document_id))


def _labels(attributes: Attributes) -> dict[str, str | float | bool]:
    """The caller's own attributes. All numbers are floats to the server."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in attributes.items()
        if name != ID_ATTRIBUTE
    }


def _checked(text: Text) -> Text:
    """The text itself.

    Raises:
        InvalidRequest: it has no id, half a surrogate pair, or an attribute that cannot be kept.
    """
    if not text.id:
        raise InvalidRequest.of("id", text.id, "a text with characters", "give every text an id")
    try:
        text.text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"text {text.id!r}: half a surrogate pair is no Unicode") from error
    for name, value in text.attributes.items():
        _check_attribute(name, value)
    return text


def _check_attribute(name: str, value: Any) -> None:
    if name == ID_ATTRIBUTE:
        raise InvalidRequest.of(f"attributes.{name}", value, "left out", "it holds the text's id")
    finite = isinstance(value, float) and math.isfinite(value)
    whole = isinstance(value, int) and abs(value) <= _MOST_WHOLE
    if not isinstance(value, str) and not finite and not whole:
        raise InvalidRequest.of(
            f"attributes.{name}", value, "a text, a finite number up to 2**53, or a truth",
            "leave it out, or write it as text",
        )  # fmt: skip


def _file_name(title: str) -> str:
    """The name of the upload, which gives the document its title."""
    line = "".join(char if char.isprintable() else " " for char in title)
    name = " ".join(PurePath(line.replace("\\", "/")).name.split())[:_TITLE_CHARS].strip()
    return f"{name or UNTITLED}.txt"
