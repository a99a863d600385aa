"""`BoundedRoute`: a route whose body is bounded, and parsed and validated before FastAPI sees it.

FastAPI parses and validates on the event loop, and collects every error there is: a body of many
wrong values blocks everybody for as long as it takes to word a million errors. Here a body is
looked over first (`json_bounds`), and a big one is worked on in a thread. FastAPI then is given the
finished object, which costs it nothing. Of a GET the same holds for its query, which FastAPI passes
over where it knows none of it.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.routing import APIRoute

from chunkcache.errors import InvalidRequest, StoreError
from chunkcache.server.json_bounds import JsonBounds, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi._compat import ModelField
    from starlette._utils import AwaitableOrContextManager
    from starlette.datastructures import FormData
    from starlette.responses import Response

_ON_LOOP_BYTES: Final = 32 * 1024
"""A body up to here is parsed where it is: a millisecond, and no hop to a thread and back."""
_MOST_NAMES: Final = 16  # of a query's unknown ones; the others are not counted


class BoundedRoute(APIRoute):
    """A route of the API: JSON bodies within bounds, and never parsed twice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind our own reading of the body.

        Raises (the handler): StoreError: a form's file cannot be put aside.
        """
        handle = super().get_route_handler()
        field = self.body_field
        if field is None:
            return handle if self.dependant.query_params else _without_query(handle)
        is_form = isinstance(field.field_info, Form)

        async def handle_form(request: Request) -> Response:
            sent = _FormRequest(request.scope, request.receive)
            try:
                await sent.form()  # is kept: FastAPI would call whatever goes wrong the client's
            except OSError as error:
                raise StoreError(
                    f"upload: no room for it in {tempfile.gettempdir()}: {error.strerror}. Hint: "
                    "check free space there, or start the server with another TMPDIR"
                ) from error
            return await handle(sent)

        async def handle_json(request: Request) -> Response:
            coding = request.headers.get("content-encoding", "identity")
            if coding.lower() != "identity":
                raise InvalidRequest.of(
                    "content-encoding", coding, "left out", "send the body as it is, not compressed"
                )
            data = await _read(request)
            value = None  # of another content type: FastAPI refuses it, unparsed
            if data and _is_json(request.headers.get("content-type", "")):
                value = await _validated(field, data)
            return await handle(_ReadRequest(request, data, value))

        return handle_form if is_form else handle_json


def _without_query(
    handle: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """A handler of a route that knows no query: one that asks for something is refused by name."""

    async def handle_bare(request: Request) -> Response:
        names = list(request.query_params)[:_MOST_NAMES] if request.method == "GET" else []
        if names:
            unknown = [{"type": "extra_forbidden", "loc": ("query", name)} for name in names]
            raise RequestValidationError(unknown)
        return await handle(request)

    return handle_bare


class _FormRequest(Request):
    """A request with a form: of its parts only a file goes to disk, the others are held in memory.

    Whatever the framework would allow, a form of ours has a file and a few short fields.
    """

    def form(self, **_limits: Any) -> AwaitableOrContextManager[FormData]:
        """The form. Raises HTTPException: it has more parts, or longer ones, than any of ours."""
        return super().form(max_files=4, max_fields=32, max_part_size=64 * 1024)


class _ReadRequest(Request):
    """A request whose body has been read, and has become an object if it was JSON."""

    def __init__(self, request: Request, data: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._data = data
        self._value = value

    async def body(self) -> bytes:
        """The bytes."""
        return self._data

    async def json(self) -> Any:
        """The object."""
        return self._value


async def _read(request: Request) -> bytes:
    # Not `request.body()`, which keeps every piece: of a body sent byte by byte, forty times it.
    data = bytearray()
    async for piece in request.stream():
        data += piece
    return bytes(data)


async def _validated(field: ModelField, data: bytes) -> Any:
    """The body as the object that the route asks for.

    Raises:
        InvalidRequest: it is no JSON within bounds.
        RequestValidationError: it is not what the route asks for.
    """
    if len(data) > _ON_LOOP_BYTES:
        return await anyio.to_thread.run_sync(_validate, field, data)
    return _validate(field, data)


def _validate(field: ModelField, data: bytes) -> Any:
    parsed = parse_json(data, JsonBounds())
    value, errors = field.validate(parsed, {}, loc=("body",))
    if errors:
        raise RequestValidationError(errors, body=parsed)
    return value


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
