"""The OpenAPI description at `/openapi.json`: what the framework cannot know by itself.

The framework writes down 422 and its own error object, knows nothing of the keys that a layer
around the app asks for, and takes an upload form for a plain one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.openapi.utils import get_openapi

from chunkcache.protocol import AnswerReport
from chunkcache.server.openapi_links import add_links

if TYPE_CHECKING:
    from fastapi import FastAPI

    from chunkcache.protocol import Json

_ERROR_SCHEMA: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MEANINGS = {
    400: "A field is wrong, unknown or refused; `param` names it",
    401: "No API key, or a wrong one",
    403: "From a page of another site, or to a host name that is not this server's",
    404: "No such model, file, vector store or document",
    408: "The body came too slowly",
    413: "The body, or the file in it, is too large",
    429: "Too many requests wait; come back after `Retry-After`",
    500: "An internal error; the message names the incident in the server's log",
    503: "The server is shutting down",
}
_RETRY_AFTER: Json = {
    "description": "Seconds, from how long the requests before took",
    "schema": {"type": "integer", "minimum": 1},
}
_EVENT: Json = {
    "type": "object",
    "description": "one server-sent event; `data` is a JSON object, or [DONE]",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_FORM = "application/x-www-form-urlencoded"
_ANSWERS = {
    "/v1/chat/completions": "chat.completion",
    "/v1/completions": "text_completion",
    "/v1/responses": "response",
}
"""Where answers come from, and what OpenAI calls them."""
_REPORT_REF = {"$ref": "#/components/schemas/AnswerReport"}


def describe(app: FastAPI) -> None:
    """Make `app.openapi` return the corrected description; built on first use."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _description(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the framework's documented way


def _description(app: FastAPI) -> Json:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="Answers from documents, with reused KV and a statement of exactness",
        routes=app.routes,
    )
    components = document["components"]
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = _ERROR_SCHEMA
    report = AnswerReport.model_json_schema(
        mode="serialization", ref_template="#/components/schemas/{model}"
    )
    schemas |= report.pop("$defs")
    schemas["AnswerReport"] = report
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _correct(path, operation)
    add_links(document["paths"])
    for path, kind in _ANSWERS.items():
        answers = document["paths"][path]["post"]["responses"]["200"]["content"]
        answers["application/json"]["schema"] = {
            "type": "object",
            "description": f"OpenAI's {kind}, and how exact it is",
            "properties": {"chunkcache": _REPORT_REF},
        }
        answers["text/event-stream"] = {"schema": _EVENT}
    return document


def _correct(path: str, operation: Json) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    of_a_page = "text/html" in responses["200"].get("content", {})
    statuses = [400, 403, 500]
    if path.startswith("/v1/"):
        # Both: keys are only asked for where there is a key file.
        operation["security"] = [{"key": []}, {}]
        statuses += [401, 404, 429, 503]
    if "requestBody" in operation:
        statuses += [408, 413]
    for status in sorted(statuses):
        responses[str(status)] = _error(_MEANINGS[status])
    if "429" in responses:
        responses["429"]["headers"] = {"Retry-After": _RETRY_AFTER}
    responses["default"] = _error("Error")
    if of_a_page:
        page = {"content": {"text/html": {"schema": {"type": "string"}}}}
        responses["404"] = {"description": "No such passage", **page}
        responses["410"] = {"description": "The document has changed since", **page}
    content = operation.get("requestBody", {}).get("content", {})
    if _FORM in content:
        content["multipart/form-data"] = content.pop(_FORM)


def _error(meaning: str) -> Json:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}
