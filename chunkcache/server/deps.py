"""What route functions ask for: the service, the tenant, the file shelf."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from chunkcache.errors import NotFound
from chunkcache.server.backend import Service
from chunkcache.server.files import FileShelf


async def _service(request: Request) -> Service:
    return cast("Service", request.app.state.service)


async def _shelf(request: Request) -> FileShelf:
    return cast("FileShelf", request.app.state.shelf)


async def _tenant(request: Request) -> str:
    return cast("str", request.state.tenant)  # set by Authenticate, before any body is read


ServiceDep = Annotated[Service, Depends(_service)]
ShelfDep = Annotated[FileShelf, Depends(_shelf)]
TenantDep = Annotated[str, Depends(_tenant)]


def require_model(asked: str | None, served: str) -> None:
    """Raises NotFound with OpenAI's code `model_not_found` unless it is the one served, or none."""
    if asked is not None and asked != served:
        raise unknown_model(asked, served)


def unknown_model(asked: str, served: str) -> NotFound:
    """The error for a model id that is not served."""
    error = NotFound(f"The model '{asked[:80]}' does not exist; it is '{served}'.", param="model")
    error.code = "model_not_found"
    return error
