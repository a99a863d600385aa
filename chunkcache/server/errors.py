"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`.

A plain `{"detail": ...}` would leave those clients with nothing but a status number.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from chunkcache.errors import ChunkCacheError, Overloaded, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fastapi import FastAPI
    from starlette.requests import Request

    from chunkcache.protocol import Json

log = structlog.get_logger(__name__)

UNSUPPORTED = "unsupported_parameter"
STATED = "stated"
"""Types of our own validation errors, beside pydantic's; a stated one's message says it all."""
_OBJECTS = ("dict_type", "model_type", "model_attributes_type")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
_SHOWN_CHARS = 80
_PARAM_CHARS = 200
_MESSAGE_CHARS = 1_000


def error_body(status: int, message: str, *, param: str | None, code: str) -> Json:
    """The error object for an HTTP status. A long message or name is cut: requests are quoted."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message = _printable(message, _MESSAGE_CHARS)
    named = param and _printable(param, _PARAM_CHARS)
    return {"error": {"message": message, "type": kind, "param": named, "code": code}}


def _printable(text: str, most_chars: int) -> str:
    """Cut, and in UTF-8: JSON can name half of a surrogate pair, UTF-8 cannot."""
    cut = text if len(text) <= most_chars else text[: most_chars - 3] + "..."
    return cut.encode("utf-8", "backslashreplace").decode()


def body_of(error: ChunkCacheError) -> Json:
    """The error object of a deliberate error."""
    return error_body(error.status, error.message, param=error.param, code=error.code)


def incident_body(error: Exception) -> Json:
    """Log an unexpected error under a fresh incident id; the object names that id and no more."""
    incident = uuid.uuid4().hex[:16]
    log.error("incident", incident=incident, exc_info=error)
    message = f"Internal error, incident {incident}. The server's log has the details."
    return error_body(500, message, param=None, code="internal_error")


def response_of(error: ChunkCacheError) -> JSONResponse:
    """The response for a deliberate error; 429 carries Retry-After."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(error.retry_after_s)
    return JSONResponse(body_of(error), status_code=error.status, headers=headers)


def validation_body(problems: Sequence[Mapping[str, Any]], sent: Any = None) -> Json:
    """The error object for pydantic's findings.

    An unknown or unsupported field is reported before a wrong value, because it is the more
    surprising of the two; the first problem gives `param`, the number of other fields is said.

    Args:
        sent: what they were found in; of a query or a form the names are right as they are.
    """
    first = min(problems, key=lambda p: p["type"] not in {"extra_forbidden", UNSUPPORTED})
    kind = str(first["type"])
    param = _param(first, sent)
    if kind == "extra_forbidden":
        message = f"Unsupported parameter: '{param}' is not supported by this server."
        code = UNSUPPORTED
    elif kind == UNSUPPORTED:
        message, code = f"{param}: {first['msg']}", UNSUPPORTED
    elif kind == STATED:
        message, code = f"{first['msg']}.", "invalid_value"
    elif kind == "missing":
        message = f"Missing required parameter: '{param or 'body'}'."
        code = "missing_required_parameter"
    else:
        got = shown(first.get("input"), _SHOWN_CHARS)
        limit = str(first["msg"]).removeprefix("Value error, ")
        limit = "Input should be an object" if kind in _OBJECTS else limit
        message = f"{param or 'body'}: got {got}. {limit}."
        is_type = kind.endswith("_type") or kind == "int_from_float"
        code = "invalid_type" if is_type else "invalid_value"
    if others := {_param(problem, sent) for problem in problems} - {param}:
        message += f" ({len(others)} more)"
    return error_body(400, message, param=param, code=code)


def _param(problem: Mapping[str, Any], sent: Any) -> str | None:
    """The name of the field, as it was sent: pydantic says, too, which kind of a union it tried."""
    names = list(problem["loc"][1:])
    if isinstance(sent, dict | list):
        is_missing = problem["type"] == "missing"
        missed = names[-1:] if is_missing else []
        names = [*_path(names[:-1] if is_missing else names, sent), *missed]
    return ".".join(str(name)[:_SHOWN_CHARS] for name in names) or None


def _path(names: Sequence[str | int], sent: Any) -> Iterator[str | int]:
    for name in names:
        if isinstance(sent, dict):
            is_in = name in sent
        else:
            is_in = isinstance(sent, list) and isinstance(name, int) and name < len(sent)
        if is_in:
            sent = sent[name]
            yield name


async def _on_deliberate(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ChunkCacheError)
    return response_of(error)


async def _on_validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):  # the framework parses only what is declared as JSON
        kind = request.headers.get("content-type", "none")[:_SHOWN_CHARS]
        message = f"content-type: got {kind!r}, must be application/json."
        body = error_body(400, message, param=None, code="invalid_content_type")
        return JSONResponse(body, status_code=400)
    return JSONResponse(validation_body(error.errors(), error.body), status_code=400)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "invalid_request")
    message = f"{error.detail}: {request.method} {request.url.path}"
    body = error_body(error.status_code, message, param=None, code=code)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def install(app: FastAPI) -> None:
    """Register the handlers. Unexpected errors are caught further out, by `Envelope`."""
    app.add_exception_handler(ChunkCacheError, _on_deliberate)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
