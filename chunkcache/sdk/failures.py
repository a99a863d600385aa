"""What went wrong, as the errors of `chunkcache.errors`, and whether to try again.

Three kinds of failure: the server refused and did nothing (429, 503, no connection), it is not
known whether it did something (the connection broke, a gateway gave up), or the answer is final.
The first kind may always be tried again, the second only when doing it twice is as good as once.
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import httpx

from .. import errors
from ..errors import (
    ChunkCacheError,
    Forbidden,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Overloaded,
    RequestTooLarge,
    ServerUnreachable,
    ShuttingDown,
    Unauthorized,
)

if TYPE_CHECKING:
    from ..protocol import Json

_BY_CODE: dict[str, type[ChunkCacheError]] = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, ChunkCacheError)
}
_BY_STATUS: dict[int, type[ChunkCacheError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    413: RequestTooLarge,
    422: InvalidRequest,
    429: Overloaded,
    502: ServerUnreachable,
    503: ShuttingDown,
    504: ServerUnreachable,
}
_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_REFUSED_STATUSES = (429, 503)
_UNKNOWN_STATUSES = (502, 504)
_SHOWN_CHARS = 200
_FIRST_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that failed."""

    error: ChunkCacheError
    kind: Literal["refused", "unknown", "final"]
    retry_after_s: float | None = None
    cause: Exception | None = None

    @classmethod
    def of_transport(cls, error: httpx.RequestError) -> Failure:
        """There was no response, or it did not arrive whole."""
        why = str(error) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            why = f"timed out ({type(error).__name__})"
        kind: Literal["refused", "unknown"] = "unknown"
        if isinstance(error, _NOTHING_SENT):
            kind = "refused"
        message = f"No answer from {error.request.url}: {why}."
        return cls(ServerUnreachable(message), kind, cause=error)

    @classmethod
    def of_response(cls, response: httpx.Response) -> Failure:
        """A response, already read, with a status that is no success."""
        status = response.status_code
        retry_after_s = _retry_after_s(response.headers.get("retry-after"))
        kind: Literal["refused", "unknown", "final"] = "final"
        if status in _REFUSED_STATUSES:
            kind = "refused"
        elif status in _UNKNOWN_STATUSES:
            kind = "unknown"
        return cls(_error_of(response, retry_after_s), kind, retry_after_s)


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How often to try again, and how long to wait at most before each time."""

    retries: int
    max_wait_s: float

    def wait_s(self, failure: Failure, attempt: int, *, repeatable: bool) -> float | None:
        """Seconds to wait before the next try; None: there is none.

        Args:
            attempt: 0 after the first try.
            repeatable: doing it twice is as good as doing it once.
        """
        again = failure.kind == "refused" or (failure.kind == "unknown" and repeatable)
        if not again or attempt >= self.retries:
            return None
        if failure.retry_after_s is not None:
            # To come back earlier than asked would be no help to anybody.
            return failure.retry_after_s if failure.retry_after_s <= self.max_wait_s else None
        longest_s = min(self.max_wait_s, _FIRST_WAIT_S * 2**attempt)
        return random.uniform(longest_s / 2, longest_s)


def error_of_object(
    error: Json, status: int | None = None, retry_after_s: float | None = None
) -> ChunkCacheError:
    """The server's error object as the exception it was made from.

    The class follows from `code`, if that goes with the status, else from the status alone; without
    a status (an error in the middle of a stream) from `code`, else from `type`.
    """
    code = str(error.get("code") or "")
    found = _BY_CODE.get(code)
    if status is not None and (found is None or found.status != status):
        found = _BY_STATUS.get(status)
    if found is None and error.get("type") == "invalid_request_error":
        found = InvalidRequest
    message, param = str(error.get("message") or "no message"), error.get("param")
    made = _made(found or ChunkCacheError, message, retry_after_s)
    made.param = str(param) if param is not None else None
    made.code = code or made.code
    made.status = status or made.status
    return made


def _error_of(response: httpx.Response, retry_after_s: float | None) -> ChunkCacheError:
    status = response.status_code
    try:
        error = response.json()["error"]
        if isinstance(error, dict):
            return error_of_object(error, status, retry_after_s)
    except (ValueError, LookupError, TypeError):
        pass  # a proxy's page, or another kind of server: told from the status below
    found = _BY_STATUS.get(status, ChunkCacheError if status >= 500 else InvalidResponse)
    if found is ShuttingDown:
        found = ServerUnreachable
    shown = response.text[:_SHOWN_CHARS]
    message = f"HTTP {status} from {response.url}, not in the server's own words: {shown!r}"
    made = _made(found, message, retry_after_s)
    made.status = status
    return made


def _made(
    found: type[ChunkCacheError], message: str, retry_after_s: float | None
) -> ChunkCacheError:
    if issubclass(found, Overloaded):
        wait_s = 1 if retry_after_s is None else math.ceil(retry_after_s)
        return found(message, retry_after_s=wait_s)
    return found(message)


def _retry_after_s(header: str | None) -> float | None:
    """RFC 9110 §10.2.3: seconds, or a date. None: absent or neither."""
    if header is None:
        return None
    if header.isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def json_of(response: httpx.Response) -> Json:
    """The JSON object of a successful response. Raises `InvalidResponse`."""
    try:
        data = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        shown = response.text[:_SHOWN_CHARS]
        raise InvalidResponse(f"{response.url} answered with no JSON: {shown!r}") from error
    if not isinstance(data, dict):
        raise InvalidResponse(f"{response.url} answered with no JSON object")
    return data
