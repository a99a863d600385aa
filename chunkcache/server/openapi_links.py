"""Which operation's answer has the ids that another one asks for, as OpenAPI's links.

Tools that try routes one after another find what to ask by them, and readers what belongs together.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chunkcache.protocol import Json

_ID = "$response.body#/id"
_STORE = {"store_id": "$request.path.store_id"}
_MAKERS: Final = {
    ("get", "/v1/models"): {"model_id": "$response.body#/data/0/id"},
    ("post", "/v1/files"): {"file_id": _ID},
    ("post", "/v1/responses"): {"response_id": _ID},
    ("post", "/v1/vector_stores"): {"store_id": _ID},
    ("post", "/v1/vector_stores/{store_id}/files"): {**_STORE, "file_id": _ID},
    ("post", "/v1/vector_stores/{store_id}/file_batches"): {**_STORE, "batch_id": _ID},
}
"""What is known after an operation, by the name of the parameter in paths."""
_PARAMETER = re.compile(r"\{(\w+)\}")


def add_links(paths: Json) -> None:
    """Add them to the operations of a description, which name the operations that they lead to."""
    for (method, path), known in _MAKERS.items():
        links = paths[path][method]["responses"]["200"].setdefault("links", {})
        for other, operations in paths.items():
            if set(_PARAMETER.findall(other)) == set(known):
                for operation in operations.values():
                    name = operation["operationId"]
                    links[name] = {"operationId": name, "parameters": known}
    attach = paths["/v1/vector_stores/{store_id}/files"]["post"]["operationId"]
    paths["/v1/files"]["post"]["responses"]["200"]["links"][attach] = {
        "operationId": attach,
        "parameters": {"store_id": "default"},
        "requestBody": {"file_id": _ID},
    }
