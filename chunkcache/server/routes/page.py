"""`/`: the page for who runs chunkcache. Static files; what it shows comes from the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import Response

from chunkcache.errors import NotFound
from chunkcache.server.assets import HEADERS
from chunkcache.server.deps import AssetsDep

if TYPE_CHECKING:
    from chunkcache.server.assets import Asset

router = APIRouter(include_in_schema=False)


@router.get("/", response_model=None)
async def get_page(request: Request, assets: AssetsDep) -> Response:
    """The page: ask, corpus, warm-up, cache, requests."""
    return _response(assets["index.html"], request)


@router.get("/page/{name:path}", response_model=None)
async def get_asset(name: str, request: Request, assets: AssetsDep) -> Response:
    """A script, a style sheet or a licence of the page."""
    asset = assets.get(name)
    if asset is None or name == "index.html":
        raise NotFound(f"No such part of the page: '{name[:80]}'.")
    return _response(asset, request)


def _response(asset: Asset, request: Request) -> Response:
    headers = {**HEADERS, "etag": asset.etag}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.data, media_type=asset.media_type, headers=headers)
