"""Every error chunkcache raises on purpose, in one tree.

ChunkCacheError
├── InvalidRequest      400  a field, its value, the limit, a hint
│   ├── UnsupportedField     a field we know of and refuse, or do not know
│   ├── PromptTooLong        more tokens than the model's context
│   ├── RequestTooLarge 413  more bytes than the server takes
│   └── RequestTimeout  408  the body did not come in time
├── Unauthorized        401
├── Forbidden           403  the key is known, and is not for this
├── NotFound            404
│   └── LinkExpired     410  a link to a passage whose time is over
├── Overloaded          429  the queue is full; carries retry_after_s
│   └── DeviceMemoryFull 503 no memory on the device for what the request would compute
├── NotFinite           500  the model made numbers that are not finite
├── Cancelled           499  the client went away
├── UnsupportedModel    501  the model's architecture cannot be served from the cache
├── GateFailed          501  the model was loaded, but reuse did not equal full prefill
├── ModelNotFound       500  no weights at that id or path
├── StoreError          500  the store cannot be opened or written
│   └── CorruptRecord        a record failed its checksum or its identity check
├── InvalidResponse     502  the SDK got an answer it cannot read
├── ShuttingDown        503
├── ServerUnreachable   503  the SDK got no answer at all
└── ConfigError         500  a setting is wrong
"""

from __future__ import annotations

import reprlib
import sys


def shown(value: object, most_chars: int = 80) -> str:
    """`repr` of a value, cut at its end; of a large list or object only what is shown is looked at.

    >>> shown(["x"] * 1_000_000, 20)
    "['x', 'x', 'x', '..."
    """
    brief = reprlib.Repr()
    brief.maxlist = brief.maxtuple = brief.maxset = brief.maxfrozenset = most_chars
    brief.maxdict = brief.maxlevel = most_chars
    brief.maxstring = brief.maxlong = brief.maxother = sys.maxsize  # would be cut in the middle
    text = brief.repr(value)
    return text if len(text) <= most_chars else text[: most_chars - 3] + "..."


class ChunkCacheError(Exception):
    """Base of all deliberate errors; `status` is the HTTP status, `code` is OpenAI's code."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(ChunkCacheError):
    """A request field is wrong. `param` names the field."""

    status = 400
    code = "invalid_value"

    @classmethod
    def of(cls, field: str, value: object, limit: str, hint: str) -> InvalidRequest:
        """The one message shape for bad input: field, value, limit, hint.

        >>> print(InvalidRequest.of("top_k", 0, "at least 1", "ask for one passage or more"))
        top_k: got 0, must be at least 1. Hint: ask for one passage or more.
        """
        return cls(f"{field}: got {shown(value)}, must be {limit}. Hint: {hint}.", param=field)


class UnsupportedField(InvalidRequest):
    """A request field that is unknown, or known and not supported; never ignored in silence."""

    code = "unsupported_parameter"


class PromptTooLong(InvalidRequest):
    """The prompt has more tokens than the model's context leaves room for."""

    code = "context_length_exceeded"


class RequestTooLarge(InvalidRequest):
    """The request body, or a file in it, has more bytes than the server takes."""

    status = 413
    code = "request_too_large"


class RequestTimeout(InvalidRequest):
    """The request body came too slowly to wait for it."""

    status = 408
    code = "request_timeout"


class Unauthorized(ChunkCacheError):
    """No API key, or one that is not in the key file."""

    status = 401
    code = "invalid_api_key"


class Forbidden(ChunkCacheError):
    """The API key is known, and may not do this."""

    status = 403
    code = "forbidden"


class NotFound(ChunkCacheError):
    """The named model, file, vector store or document does not exist for this tenant."""

    status = 404
    code = "not_found"


class LinkExpired(NotFound):
    """A link to a passage that we made too long ago."""

    status = 410
    code = "link_expired"


class Overloaded(ChunkCacheError):
    """The request queue is full. `retry_after_s` is an estimate from the queue's own pace."""

    status = 429
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeviceMemoryFull(Overloaded):
    """The device had no memory left to compute the request; its pages were given back."""

    status = 503
    code = "device_memory_full"


class NotFinite(ChunkCacheError):
    """The model made numbers that are not finite; nothing of them is answered or kept."""

    code = "not_finite"

    @classmethod
    def of(cls, what: str) -> NotFinite:
        """The one message: what the model made.

        >>> str(NotFinite.of("logits"))[:42]
        'the model made logits that are not finite,'
        """
        return cls(
            f"the model made {what} that are not finite, so nothing of them is answered or kept. "
            "Hint: try model.dtype = float32; if that changes nothing, the weights are damaged."
        )


class Cancelled(ChunkCacheError):
    """The request was aborted by its caller before it finished."""

    status = 499
    code = "cancelled"


class UnsupportedModel(ChunkCacheError):
    """The architecture (sliding window, MLA, partial rotary, …) cannot be run by this engine."""

    status = 501
    code = "unsupported_model"


class GateFailed(ChunkCacheError):
    """Reuse with every row repaired did not reproduce full prefill on this model."""

    status = 501
    code = "gate_failed"


class ModelNotFound(ChunkCacheError):
    """No weights could be found under the given id or path."""

    code = "model_not_found"


class StoreError(ChunkCacheError):
    """The store cannot be opened, read or written."""

    code = "store_error"


class CorruptRecord(StoreError):
    """A stored record failed its checksum or its identity check; it must be dropped, never used."""

    code = "corrupt_record"


class ShuttingDown(ChunkCacheError):
    """The server is draining and admits nothing new."""

    status = 503
    code = "shutting_down"


class ServerUnreachable(ChunkCacheError):
    """Raised by the SDK: no connection, or the connection broke before an answer was complete."""

    status = 503
    code = "server_unreachable"


class InvalidResponse(ChunkCacheError):
    """Raised by the SDK: what answered does not speak this protocol, or not this version of it."""

    status = 502
    code = "invalid_response"


class ConfigError(ChunkCacheError):
    """A setting is missing, unknown or out of range."""

    code = "config_error"
