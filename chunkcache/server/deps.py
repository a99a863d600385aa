"""What route functions ask for: the service and its models' names, the tenant, what is kept."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from chunkcache.server.assets import Asset
from chunkcache.server.auth import ApiKeys
from chunkcache.server.backend import Service
from chunkcache.server.files import FileShelf
from chunkcache.server.model_names import ModelNames
from chunkcache.server.response_store import ResponseStore


async def _service(request: Request) -> Service:
    return cast("Service", request.app.state.service)


async def _shelf(request: Request) -> FileShelf:
    return cast("FileShelf", request.app.state.shelf)


async def _models(service: Annotated[Service, Depends(_service)]) -> ModelNames:
    return ModelNames.of(service)


async def _assets(request: Request) -> dict[str, Asset]:
    return cast("dict[str, Asset]", request.app.state.assets)


async def _tenant(request: Request) -> str:
    return cast("str", request.state.tenant)  # set by Authenticate, before any body is read


async def _keys(request: Request) -> ApiKeys:
    return cast("ApiKeys", request.app.state.keys)


async def _responses(request: Request) -> ResponseStore:
    return cast("ResponseStore", request.app.state.responses)


ServiceDep = Annotated[Service, Depends(_service)]
AssetsDep = Annotated[dict[str, Asset], Depends(_assets)]
KeysDep = Annotated[ApiKeys, Depends(_keys)]
ModelsDep = Annotated[ModelNames, Depends(_models)]
ResponsesDep = Annotated[ResponseStore, Depends(_responses)]
ShelfDep = Annotated[FileShelf, Depends(_shelf)]
TenantDep = Annotated[str, Depends(_tenant)]
