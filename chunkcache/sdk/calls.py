"""One HTTP request, as data, and how its parts are written."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ..errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..protocol import Json
    from .sources import Source

DEFAULT_URL: Final = "http://127.0.0.1:8321"


@dataclass(frozen=True, slots=True)
class Call:
    """A request. `repeatable`: sending it twice is as good as once.

    `accepts` is a status beside the successes that comes with a result too.
    """

    method: str
    path: str
    body: Json | None = None
    query: Mapping[str, str | int] | None = None
    upload: Source | None = None
    repeatable: bool = True
    accepts: int | None = None

    def has_result(self, status: int) -> bool:
        """Whether a response with this status carries what was asked for."""
        return 200 <= status < 300 or status == self.accepts

    @contextmanager
    def arguments(self) -> Iterator[dict[str, Any]]:
        """The keyword arguments of httpx's `build_request`; the upload is open meanwhile.

        Raises:
            InvalidRequest: the body cannot be written as JSON (NaN, half a surrogate pair).
            OSError: the upload cannot be read.
        """
        arguments: dict[str, Any] = {"method": self.method, "url": self.path, "params": self.query}
        if self.body is not None:
            arguments["content"] = _encoded(self.body)
            arguments["headers"] = {"content-type": "application/json"}
        if self.upload is None:
            yield arguments
            return
        with self.upload.open() as stream:
            arguments["data"] = {"purpose": "assistants"}
            arguments["files"] = {"file": (self.upload.name, stream)}
            yield arguments


def segment(name: str, value: str) -> str:
    """An id as one segment of a path, whatever is in it.

    Raises:
        InvalidRequest: it is empty or dots, which would be another path.
    """
    if value in ("", ".", ".."):
        raise InvalidRequest.of(name, value, "an id", "take it from a list the server gave")
    return quote(value, safe="")


def client_options(base_url: str, api_key: str | None, timeout_s: float | None) -> dict[str, Any]:
    """The keyword arguments that httpx's clients share.

    Raises:
        InvalidRequest: the address or the key cannot be one.
    """
    if not base_url.startswith(("http://", "https://")):
        raise InvalidRequest.of(
            "base_url", base_url, "an http:// or https:// address", f"for example {DEFAULT_URL}"
        )
    headers = {}
    if api_key is not None:
        if not api_key.isascii() or not api_key.isprintable() or not api_key.strip():
            # The key itself is a secret and not shown.
            raise InvalidRequest.of("api_key", "…", "printable ASCII", "leave it out if none")
        headers["authorization"] = f"Bearer {api_key.strip()}"
    # People paste the address that they gave to an OpenAI client.
    base = base_url.rstrip("/").removesuffix("/v1")
    return {"base_url": base, "headers": headers, "timeout": timeout_s}


def _encoded(body: Json) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # UnicodeEncodeError is one
        raise InvalidRequest(f"The request cannot be written as JSON: {error}.") from error
