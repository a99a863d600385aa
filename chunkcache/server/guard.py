"""What keeps web pages of strangers off an open server.

A server without keys trusts whoever can reach it, and so does its user's browser, on behalf of any
page that is open in it. Two ways lead here: a form that posts across sites, and a name of the
attacker's that resolves to this server's address after the page was loaded (DNS rebinding), which
makes the page same-site. JSON from another site is stopped already, because the browser asks first
and nobody here answers. Which address the server is bound to says little: a container binds to all
of its own, and what reaches it is a port of the host's loopback.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from chunkcache.server.errors import error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from chunkcache.server_settings import ServerSettings

ANY_HOST: Final = "*"
_UNREADABLE: Final = "?.?"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".test", ".home.arpa", ".lan")


class BrowserGuard:
    """Refuses writes that a browser sends from another site, and strangers' host names.

    Host names are looked at where no keys are asked for, whatever address is bound: an address, a
    name without a dot, and names that public DNS does not have are taken, and those of
    `server.allowed_hosts`, `server.public_url` and `server.host`. A page is of another site if the
    browser says so; older ones, and all of them over plain HTTP, send no more than `Origin`.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, host: str) -> None:
        self._app = app
        named = {_name_of(allowed.strip()) for allowed in settings.allowed_hosts.split(",")}
        self._checks_host = settings.api_keys_file is None and ANY_HOST not in named
        public = (urlsplit(settings.public_url).hostname or "").lower()
        self._ours = (named | {public, host.lower()}) - {"", ANY_HOST}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        body = error_body(403, refusal, param=None, code="forbidden")
        await JSONResponse(body, status_code=403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if scope["method"] not in _SAFE_METHODS and self._crosses(headers):
            return "Requests from pages of other sites are refused."
        host = headers.get("host", "")
        if self._checks_host and not self._is_ours(_name_of(host)):
            return (
                f"host: got {host[:80]!r}, must be an address or a local name of this machine. "
                "Hint: name it in server.allowed_hosts, or set server.public_url to the address in "
                "use, or ask for API keys."
            )
        return None

    def _crosses(self, headers: Headers) -> bool:
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site == "cross-site"
        origin = headers.get("origin")
        if origin is None:
            return False  # no browser
        if origin == "null":
            return True  # a page that hides where it is from
        page = _name_of(origin.partition("://")[2])
        if not origin.startswith(("http://", "https://")):
            return False  # an extension or an application of the user's own
        if page == _name_of(headers.get("host", "")) or page in self._ours:
            return False
        return not _is_private(page)

    def _is_ours(self, name: str) -> bool:
        return name in self._ours or _is_local(name) or _address(name) is not None


def _name_of(host: str) -> str:
    """The name or address in `host:port`, lower case; `_UNREADABLE` if it is none."""
    if host == ANY_HOST:
        return host
    try:
        return (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
    except ValueError:
        return _UNREADABLE


def _is_private(name: str) -> bool:
    """Whether a page there is of this machine or its own network."""
    address = _address(name)
    return _is_local(name) if address is None else address.is_private


def _is_local(name: str) -> bool:
    """A name that public DNS does not have; none at all is one too."""
    return "." not in name or name.endswith(_PRIVATE_SUFFIXES)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
