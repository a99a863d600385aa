"""`create_app`: the ASGI application over a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

from chunkcache.server import errors
from chunkcache.server.assets import load_assets
from chunkcache.server.auth import ApiKeys
from chunkcache.server.body_limit import BodyLimit
from chunkcache.server.files import FileShelf
from chunkcache.server.guard import BrowserGuard
from chunkcache.server.lane import LANE, Lane
from chunkcache.server.linger import Linger
from chunkcache.server.middleware import Authenticate, Envelope, HeadAsGet
from chunkcache.server.model_names import ModelNames
from chunkcache.server.openapi import describe
from chunkcache.server.response_store import ResponseStore
from chunkcache.server.routes import ROUTERS
from chunkcache.version import __version__

if TYPE_CHECKING:
    from chunkcache.server.backend import Service


def create_app(service: Service, host: str | None = None) -> FastAPI:
    """The endpoint over a running service; `service.settings.server` sets keys and limits.

    Args:
        host: the address it will be bound to, if not that of the settings; see `BrowserGuard`.

    Raises:
        ConfigError: the API key file is unusable, or one id stands for two models.
    """
    settings = service.settings
    ModelNames.of(service)  # so that a wrong alias is told now and not by every request
    # No interactive documentation: its pages load scripts from elsewhere. The description has a
    # route of ours (`operations`): the framework would build it on the event loop.
    app = FastAPI(title="chunkcache", version=__version__, openapi_url=None)
    app.state.service = service
    app.state.assets = load_assets()
    app.state.shelf = FileShelf(settings.home / "files")
    limits = settings.server
    app.state.responses = ResponseStore(
        settings.home / "responses.sqlite", limits.responses_bytes, limits.responses_ttl_s
    )
    app.state.keys = ApiKeys.load(limits.api_keys_file)
    app.state.lane = Lane(settings.server.working_limit)
    errors.install(app)
    describe(app)
    for router in ROUTERS:
        app.include_router(router, dependencies=[LANE])
    # The last one added is the outermost.
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, settings=settings.server)
    app.add_middleware(Authenticate, keys=app.state.keys)
    app.add_middleware(BrowserGuard, settings=settings.server, host=host or settings.server.host)
    app.add_middleware(Envelope)
    app.add_middleware(Linger)
    return app
