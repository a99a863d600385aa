"""What is warm, on what terms, and quotas, in each manner."""

from __future__ import annotations

from typing import Any

import pytest

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.sdk import Keep, Kept, Quota


def test_texts_and_documents_are_warmed_and_kept(served: Any, caller: Any) -> None:
    service = served.service
    pinned = Keep(retention="pinned", priority=2)
    assert caller("prefetch", ["Owls hunt.", {"text": "Cats purr."}])["state"] == "running"
    with pytest.raises(InvalidRequest, match="one at a time"):
        caller("prefetch", ["Dogs bark."])
    service.warm_steps.release(100)
    service.console.warm_ups._jobs["public"].join(20)
    assert caller("warm_up")["state"] == "done"
    caller("ingest", ("a.txt", b"the cat"))
    (document,) = caller("documents")
    caller("prefetch", document_ids=[document.document_id], keep=pinned)
    service.console.warm_ups._jobs["public"].join(20)
    assert service.warmed == [["Owls hunt.", "Cats purr."], [document.document_id]]
    assert service.warmed_on == [None, pinned]
    with pytest.raises(NotFound):
        caller("prefetch", document_ids=["doc-none"])
    with pytest.raises(NotFound, match="vs_none"):
        caller("prefetch", ["Owls hunt."], vector_store_id="vs_none")
    assert caller("keep", pinned, ["Owls hunt."]) == Kept(chunks=1, stored=1)
    store = service.create_collection("owls", tenant="public").id
    kept = caller("keep", Keep(), document_ids=["d", "e"], vector_store_id=store)
    assert kept == Kept(chunks=2, stored=2, warmed_only=1)
    (first, _), (second, where) = service.keeping.asked
    assert (first, second) == (pinned, Keep())
    assert (where["document_ids"], where["collection"]) == (["d", "e"], store)
    with pytest.raises(InvalidRequest, match="document_ids or texts"):
        caller("keep", pinned)


def test_wishes_about_what_an_answer_leaves_behind_are_sent(served: Any, caller: Any) -> None:
    caller("ask", "long 1", documents=["Owls hunt."], keep=Keep(priority=4, expires_after_s=9.0))
    (asked,) = served.service.requests
    assert asked.options.keep == Keep(priority=4, expires_after_s=9.0)


def test_quotas(served: Any, caller: Any) -> None:
    assert caller("quota") == Quota("public", None, 250 * 4096)
    assert caller("set_quota", 5000).limit_bytes == 5000
    assert caller("set_quota", 7, tenant="one").tenant == "one"
    assert caller("set_quota", None) == Quota("public", None, None)
    assert caller("set_quota", "default").limit_bytes is None
    assert served.service.quotas.limits == {"one": 7}
