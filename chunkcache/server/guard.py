"""What keeps web pages of strangers off an open server on this machine.

A server on 127.0.0.1 without keys trusts whoever can reach it, and so does its user's browser, on
behalf of any page that is open in it. Two ways lead here: a form that posts across sites, and a
name of the attacker's that resolves to 127.0.0.1 after the page was loaded (DNS rebinding), which
makes the page same-site. JSON from another site is stopped already, because the browser asks first
and nobody here answers.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from chunkcache.server.errors import error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from chunkcache.config import ServerSettings

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".test", ".home.arpa", ".lan")


class BrowserGuard:
    """Refuses writes that a browser sends from another site, and strangers' host names.

    Host names are looked at only where they are the hole: bound to a loopback address, without
    keys. There, an address, a name without a dot, and names that public DNS does not have are
    taken, and the host of `server.public_url`.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, host: str) -> None:
        self._app = app
        self._checks_host = settings.api_keys_file is None and _is_loopback(host)
        self._public_host = (urlsplit(settings.public_url).hostname or "").lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        body = error_body(403, refusal, param=None, code="forbidden")
        await JSONResponse(body, status_code=403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        crosses = headers.get("sec-fetch-site") == "cross-site"
        if crosses and scope["method"] not in _SAFE_METHODS:
            return "Requests from pages of other sites are refused."
        host = headers.get("host", "")
        if self._checks_host and not self._is_ours(host):
            return (
                f"host: got {host[:80]!r}, must be an address or a local name of this machine. "
                "Hint: set server.public_url to the address in use, or ask for API keys."
            )
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
        except ValueError:
            return False
        if not name or "." not in name or name == self._public_host:
            return True
        return name.endswith(_PRIVATE_SUFFIXES) or _is_address(name)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
