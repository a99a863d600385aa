"""The OpenAPI description at `/openapi.json`: what the framework cannot know by itself.

The framework writes down 422 and its own error object, knows nothing of the keys that a layer
around the app asks for, and takes an upload form for a plain one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.openapi.utils import get_openapi

from chunkcache.protocol import AnswerReport

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
    for path, kind in _ANSWERS.items():
        answers = document["paths"][path]["post"]["responses"]["200"]["content"]
        answers["application/json"]["schema"] = {
            "type": "object",
            "description": f"OpenAI's {kind}, and how exact it is",
            "properties": {"chunkcache": _REPORT_REF},
        }
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    return document


def _correct(path: str, operation: Json) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    responses["default"] = {
        "description": "Error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if path.startswith("/v1/"):
        # Both: keys are only asked for where there is a key file.
        operation["security"] = [{"key": []}, {}]
    content = operation.get("requestBody", {}).get("content", {})
    if _FORM in content:
        content["multipart/form-data"] = content.pop(_FORM)
