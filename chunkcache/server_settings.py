"""Settings of the HTTP endpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chunkcache.section import MIB, Section, UserPath


class ServerSettings(Section):
    """The HTTP endpoint."""

    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(8321, ge=0, le=65535, description="port to bind; 0 picks a free one")
    api_keys_file: UserPath | None = Field(
        None, description="lines of `key tenant`; none means one open tenant"
    )
    operators: tuple[str, ...] = Field(
        (), description="tenants whose keys may set the quotas of all; without keys everybody may"
    )
    public_url: str = Field(
        "",
        pattern=r"^(https?://[^/?#\s]+(/[^?#\s]*)?)?$",
        description="address that browsers reach the server by, for links; empty: the request's",
    )
    citations: Literal["annotations", "text"] = Field(
        "annotations",
        description="text: sources are also listed after each answer, for clients that drop "
        "annotations",
    )
    responses_bytes: int = Field(
        64 * MIB, ge=0, description="answers of /v1/responses kept on disk; 0: none"
    )
    responses_ttl_s: float = Field(
        86_400.0, gt=0, description="how long they are kept, for GET and previous_response_id"
    )
    allowed_hosts: str = Field(
        "",
        pattern=r"^[^/\s]*(\s*,\s*[^/\s]+)*$",
        description="names that a server without keys may be reached by, separated by commas, "
        "besides addresses, local names and that of public_url; * takes any",
    )
    link_lifetime_s: float = Field(
        30 * 86_400.0,
        gt=0,
        description="how long a link to a cited passage works, and how long the passages that an "
        "update of their document replaced are kept for it",
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="time running requests get on SIGTERM")
    max_body_bytes: int = Field(
        4 * MIB, ge=1024, description="largest request body, uploads excepted"
    )
    max_upload_bytes: int = Field(
        65 * MIB, ge=1024, description="largest body of an upload: a file and the form around it"
    )
    max_bodies_bytes: int = Field(
        256 * MIB, ge=1024, description="all request bodies in memory together; then 429"
    )
    head_timeout_s: float = Field(
        20.0, gt=0, description="line and headers of a request must be there by then, or it ends"
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="a body may take so long, and a second more for each KiB of it"
    )
    stalled_timeout_s: float = Field(
        60.0, gt=0, description="a client that takes nothing of its answer is let go after this"
    )
    working_limit: int = Field(
        16,
        ge=1,
        le=32,
        description="requests that ingest, embed or search at once; others wait in order",
    )
