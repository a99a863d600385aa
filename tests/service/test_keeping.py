"""Terms that users ask for: pinned, preferred, expiring; texts that are warm ahead; quotas."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from chunkcache import ChunkCache
from chunkcache.errors import ConfigError, InvalidRequest, NotFound, StoreError
from chunkcache.keep import DEFAULT_LIMIT, Keep
from chunkcache.protocol import GivenDocument
from chunkcache.service.quotas import Quotas
from chunkcache.service.warm import WarmProgress
from chunkcache.store.disk import DiskTier

TEXT = "Owls hunt at night, turning the head to find where a sound is from."
ONE_TOKEN = {"max_tokens": 1}


def misses(answer: Any) -> list[str | None]:
    return [span.miss for span in answer.report.spans if span.kind == "chunk"]


def terms(cache: ChunkCache, tenant: str = "public") -> list[tuple[str, int, bool]]:
    cache.runtime.store.flush()
    listed = cache.holdings.records(tenant, after=None, limit=1000)
    return [(one.retention, one.priority, one.expires_at is not None) for one in listed]


def test_texts_that_were_warmed_are_there_when_a_request_brings_them(cache: ChunkCache) -> None:
    texts = [GivenDocument(text=TEXT), GivenDocument(title="Cats", text="Cats purr.")]
    report = cache.warm(texts=texts)
    assert (report.chunks, report.computed, report.kept) == (2, 2, 2) and report.is_complete
    assert terms(cache) == [("warmed", 0, False)] * 2
    answer = cache.ask("why?", documents=[text.model_dump() for text in texts], **ONE_TOKEN)
    assert misses(answer) == [None, None]
    assert cache.warm(texts=texts, keep=Keep(priority=2)).already_warm == 2
    assert terms(cache) == [("normal", 2, False)] * 2, "the terms are those that were said"


def test_terms_are_set_outlive_a_restart_and_are_taken_back(
    open_cache: Callable[..., ChunkCache], pages: Path
) -> None:
    cache = open_cache()
    cache.ingest([pages])
    warmed = cache.warm().chunks
    ids = [document.document_id for document in cache.documents()]
    wish = Keep(retention="pinned", priority=3, expires_after_s=60.0)
    kept = cache.keeping.keep(wish, tenant="public", collection="default", document_ids=ids[:1])
    assert kept.stored == kept.chunks > 0
    cache.close()
    again = open_cache()
    assert terms(again).count(("pinned", 3, True)) == kept.chunks
    assert terms(again).count(("warmed", 0, False)) == warmed - kept.chunks
    with pytest.raises(NotFound, match="doc-none"):
        again.keeping.keep(
            Keep(), tenant="public", collection="default", document_ids=[ids[0], "doc-none"]
        )
    assert terms(again).count(("pinned", 3, True)) == kept.chunks, "nothing has changed"
    assert again.keeping.keep(Keep(), tenant="public", collection="default").stored == warmed
    assert terms(again) == [("normal", 0, False)] * warmed
    with pytest.raises(NotFound, match="No such vector store: 'vs_none'"):
        again.keeping.keep(wish, tenant="public", collection="vs_none", texts=[
            GivenDocument(text=TEXT)
        ])  # fmt: skip
    with pytest.raises(NotFound, match="No such vector store: 'vs_none'"):
        again.warm(collection="vs_none", texts=[GivenDocument(text=TEXT)])
    nobody = again.keeping.keep(wish, tenant="two", collection="default", texts=[
        GivenDocument(text=TEXT)
    ])  # fmt: skip
    assert (nobody.chunks, nobody.stored) == (1, 0), "another tenant's KV is not theirs to pin"


def test_who_pins_more_than_pins_may_take_is_told(
    open_cache: Callable[..., ChunkCache],
) -> None:
    texts = [GivenDocument(text=f"{number}: owls hunt.") for number in range(4)]
    cache = open_cache()
    assert cache.warm(texts=texts).computed == 4
    size_bytes = cache.holdings.disk_bytes("public")
    cache.close()
    again = open_cache(store={"disk_capacity_bytes": size_bytes})
    kept = again.keeping.keep(
        Keep(retention="pinned"), tenant="public", collection="default", texts=texts
    )
    assert (kept.chunks, kept.stored, kept.warmed_only) == (4, 4, 2)
    assert sorted(terms(again)) == [("pinned", 0, False)] * 2 + [("warmed", 0, False)] * 2


def test_a_warm_up_tells_what_it_could_not_pin(
    open_cache: Callable[..., ChunkCache],
) -> None:
    texts = [GivenDocument(text=f"{number}: owls hunt.") for number in range(6)]
    cache = open_cache()
    assert cache.warm(texts=texts).warmed_only == 0
    size_bytes = cache.holdings.disk_bytes("public")
    cache.close()
    again = open_cache(store={"disk_capacity_bytes": size_bytes + size_bytes // 12})
    pinned = Keep(retention="pinned")
    report = again.warm(texts=texts[:2], keep=pinned)
    assert (report.already_warm, report.warmed_only) == (2, 0)
    again.holdings.clear("public")
    report = again.warm(texts=texts, keep=pinned)
    assert (report.computed, report.already_warm, report.warmed_only) == (6, 0, 3)
    report = again.warm(texts=texts, keep=pinned)
    assert (report.computed, report.already_warm, report.warmed_only) == (0, 6, 3)
    assert sorted(terms(again)) == [("pinned", 0, False)] * 3 + [("warmed", 0, False)] * 3


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(Keep(retention="pinned", priority=3), ("pinned", 3, False)), (None, ("warmed", 0, False))],
)
def test_what_a_request_stores_while_it_is_to_be_warmed_is_on_the_terms_of_the_warm_up(
    cache: ChunkCache, monkeypatch: pytest.MonkeyPatch, keep: Keep | None,
    expected: tuple[str, int, bool],
) -> None:  # fmt: skip
    texts = [f"{number}: owls hunt at night." for number in range(3)]
    runtime, kept = cache.runtime, cache.runtime.keep

    def after_a_request(record: Any) -> bool:
        cache.ask("why?", documents=texts, **ONE_TOKEN)
        runtime.store.flush()
        return kept(record)

    monkeypatch.setattr(runtime, "keep", after_a_request)
    report = cache.warm(texts=[GivenDocument(text=text) for text in texts], keep=keep)
    assert (report.computed, report.failed, report.warmed_only) == (3, 0, 0)
    assert terms(cache) == [expected] * 3


def test_what_is_not_put_on_its_terms_is_not_said_to_be(
    cache: ChunkCache, pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.ingest([pages])
    whole = {"tenant": "public", "collection": "default"}
    store, flushed = cache.runtime.store, list[dict[str, bool]]()
    with monkeypatch.context() as patch:
        patch.setattr(store, "contains", lambda _: "far")  # a tier on another machine has all
        patch.setattr(store, "flush", lambda **which: flushed.append(which))
        kept = cache.keeping.keep(Keep(retention="pinned"), **whole)
    assert kept.chunks > 0 and kept.stored == 0, "it keeps no terms"
    assert flushed == [{"remote": False}], "and what is on its way to it is not waited for"
    cache.warm()

    def full(*_: object, **__: object) -> bool:
        raise StoreError("store: the disk is full")

    monkeypatch.setattr(DiskTier, "retain", full)
    with pytest.raises(StoreError, match="disk is full"):
        cache.keeping.keep(Keep(retention="pinned"), **whole)
    with pytest.raises(StoreError, match="disk is full"):
        cache.warm(keep=Keep(retention="pinned"))
    assert cache.warm().already_warm == kept.chunks, "nobody said on what terms"
    late = cache.warm(texts=[GivenDocument(text=TEXT)], keep=Keep(retention="pinned"))
    assert (late.computed, late.kept, late.failed) == (1, 0, 1) and "disk is full" in str(
        late.stopped_reason
    )


def test_documents_are_looked_for_in_the_catalog_and_in_no_tier(
    cache: ChunkCache, pages: Path
) -> None:
    cache.ingest([pages])
    ids = [document.document_id for document in cache.documents()]
    cache.keeping.check_documents("public", "default", ids)
    with pytest.raises(NotFound, match="doc-none") as caught:
        cache.keeping.check_documents("public", "default", [*ids, "doc-none"])
    assert caught.value.param == "document_ids"
    with pytest.raises(NotFound):
        cache.keeping.check_documents("public", "none", ids)
    assert cache.health()["loaded"] is False


def test_a_request_says_how_what_it_leaves_behind_is_kept(cache: ChunkCache) -> None:
    cache.ask("why?", documents=[TEXT], keep={"priority": -2, "expires_after_s": 9.0}, **ONE_TOKEN)
    assert terms(cache) == [("normal", -2, True)]
    cache.ask("why?", documents=["Cats purr."], **ONE_TOKEN)
    assert sorted(terms(cache)) == [("normal", -2, True), ("passing", 0, False)]
    with pytest.raises(InvalidRequest, match=r"chunkcache\.keep\.retention: got 'pinned'"):
        cache.ask("why?", documents=["Dogs bark."], keep={"retention": "pinned"}, **ONE_TOKEN)
    assert len(terms(cache)) == 2


def test_a_quota_holds_at_once_and_after_a_restart(open_cache: Callable[..., ChunkCache]) -> None:
    cache = open_cache(store={"quota_bytes": ("two=123",)})
    texts = [GivenDocument(text=f"{number}: owls hunt.") for number in range(7)]
    cache.warm(tenant="one", texts=texts[:5])
    assert len(terms(cache, "one")) == 5
    size_bytes = cache.holdings.disk_bytes("one") // 5
    cache.set_quota("one", 3 * size_bytes)
    assert cache.warm(tenant="one", texts=texts[5:6]).computed == 1
    assert len(terms(cache, "one")) == 3
    cache.set_quota("two", None)
    cache.close()
    again = open_cache(store={"quota_bytes": ("two=123", "three=5")})
    assert again.quotas.all() == {"one": 3 * size_bytes, "three": 5}
    assert again.warm(tenant="one", texts=texts[6:]).computed == 1
    assert len(terms(again, "one")) == 3


def test_a_warm_up_says_what_the_store_let_go_again_though_it_was_warm(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache()
    texts = [GivenDocument(text=f"{number}: owls hunt.") for number in range(4)]
    assert cache.warm(texts=texts[:2]).kept == 2
    cache.set_quota("public", 1 << 30)

    def others_push_out(now: WarmProgress) -> None:
        if now.done == 3:
            cache.holdings.clear("public")

    report = cache.warm(texts=texts, on_progress=others_push_out)
    assert (report.already_warm, report.computed, report.evicted) == (2, 2, 3)
    assert report.kept == report.warm == len(terms(cache)) == 1 and not report.is_complete
    assert "tenant 'public' may hold" in str(report.not_kept_reason)


def test_in_memory_alone_a_warm_up_names_the_memory_that_is_full(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache(store={"disk_capacity_bytes": 0, "host_capacity_bytes": 1 << 16})
    texts = [GivenDocument(text=f"{number}: owls hunt at night.") for number in range(80)]
    cache.set_quota("two", 1)
    report = cache.warm(tenant="two", texts=texts[:1])
    assert (report.computed, report.left_out, report.warm) == (0, 1, 0)
    assert "the quota of tenant 'two', 1 bytes, has no room" in str(report.not_kept_reason)
    report = cache.warm(texts=texts)
    assert "raise store.host_capacity_bytes" in str(report.not_kept_reason)
    assert 0 < report.kept == report.computed == 80 - report.left_out < 80


def test_quotas_that_cannot_be_read_or_written_are_said(tmp_path: Path) -> None:
    file = tmp_path / "quotas.json"
    quotas = Quotas(file, {"one": 5})
    quotas.put("two", 7)
    (tmp_path / "readable.json").write_text(file.read_text())
    file.unlink()
    file.mkdir()
    told: list[str] = []
    quotas.listen(lambda tenant, _: told.append(tenant), known=quotas.all())
    with pytest.raises(StoreError, match=r"cannot read .*quotas\.json"):
        quotas.put("one", 9)
    assert quotas.all() == {"one": 5, "two": 7} and told == []
    assert [path.name for path in tmp_path.iterdir()] in (
        [["quotas.json", "readable.json"], ["readable.json", "quotas.json"]]
    )
    assert Quotas(tmp_path / "readable.json", {}).all() == {"two": 7}
    for wrong in ("[]", "{", '{"one": -1}', '{"one": true}', '{"one": "5"}'):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(ConfigError, match="cannot read"):
            Quotas(tmp_path / "wrong.json", {})


def test_quotas_of_two_processes_on_one_home_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "quotas.json"
    one, other = Quotas(file, {"c": 1, "d": 4}), Quotas(file, {"c": 1, "d": 4})
    one.put("a", 5)
    one.put("d", None)
    told: list[tuple[str, int | None]] = []
    other.listen(lambda tenant, limit: told.append((tenant, limit)), known={"c": 1, "d": 4})
    other.put("b", 7)
    assert told == [("a", 5), ("b", 7), ("d", None)], "the tiers go by the others' limits, too"
    assert other.all() == Quotas(file, {"c": 1, "d": 4}).all() == {"a": 5, "b": 7, "c": 1}
    one.put("a", None)
    assert one.all() == {"b": 7, "c": 1}
    (tmp_path / "gone").mkdir()
    lost = Quotas(tmp_path / "gone" / "quotas.json", {})
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreError, match="cannot write"):
        lost.put("a", 1)


def test_what_another_process_sets_is_gone_by_without_a_restart(tmp_path: Path) -> None:
    file, told = tmp_path / "quotas.json", list[tuple[str, int | None]]()
    here, there = Quotas(file, {"a": 1}), Quotas(file, {"a": 1})
    here.listen(lambda tenant, limit: told.append((tenant, limit)), known={"a": 1})
    there.put("a", 5)
    here.follow()
    here.follow()
    there.put("b", 7)
    assert here.limit_bytes("b") == 7 and told == [("a", 5), ("b", 7)]
    with capture_logs() as logs:
        for wrong in ("[", "[ "):
            file.write_text(wrong)
            assert here.all() == here.all() == {"a": 5, "b": 7}, "as before"
    assert [line["event"] for line in logs] == ["quotas_unreadable"] * 2
    file.unlink()
    assert here.all() == {"a": 1} and told[2:] == [("a", 1), ("b", None)]


def test_a_running_service_goes_by_what_the_command_sets(cache: ChunkCache) -> None:
    texts = [f"{number}: owls hunt." for number in range(5)]
    elsewhere = Quotas(cache.settings.home / "quotas.json", {})
    cache.ask("why?", documents=texts[:3], **ONE_TOKEN)
    assert len(terms(cache)) == 3
    elsewhere.put("public", 2 * cache.holdings.disk_bytes("public") // 3)
    cache.ask("why?", documents=texts[3:4], **ONE_TOKEN)
    assert len(terms(cache)) == 2
    elsewhere.put("public", cache.holdings.disk_bytes("public") // 2)
    cache.warm(texts=[GivenDocument(text=texts[4])])
    assert len(terms(cache)) == 1


def test_what_was_set_is_taken_back_and_the_settings_go_again(tmp_path: Path) -> None:
    file, told = tmp_path / "quotas.json", list[tuple[str, int | None]]()
    quotas = Quotas(file, {"one": 5})

    def tell(tenant: str, limit_bytes: int | None) -> None:
        told.append((tenant, limit_bytes))

    quotas.listen(tell, known={})
    for limit in (None, DEFAULT_LIMIT, 9, DEFAULT_LIMIT, DEFAULT_LIMIT):
        quotas.put("one", limit)
    assert told == [("one", 5), ("one", None), ("one", 5), ("one", 9), ("one", 5)]
    assert quotas.all() == {"one": 5} and Quotas(file, {"one": 6}).limit_bytes("one") == 6
    quotas.put("nobody", DEFAULT_LIMIT)
    assert len(told) == 5 and file.read_text() == "{}"


def test_a_quota_is_told_when_its_file_and_its_name_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = tmp_path / "quotas.json", list[tuple[bool, bool]]()

    def fsync(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), file.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    seen: list[list[tuple[bool, bool]]] = []
    quotas = Quotas(file, {})
    quotas.listen(lambda *_: seen.append(list(synced)), known={})
    quotas.put("one", 5)
    assert seen == [[(False, False), (True, True)]], "the content, renamed, and then the folder"


def test_a_quota_whose_name_cannot_be_synced_holds_and_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")

    file, told = tmp_path / "quotas.json", list[tuple[str, int | None]]()
    quotas = Quotas(file, {})
    quotas.listen(lambda tenant, limit: told.append((tenant, limit)), known={})
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="the limit is set, but"):
        patch.setattr(os, "fsync", fsync)
        quotas.put("one", 5)
    assert told == [("one", 5)], "at once, not only when somebody asks"
    assert quotas.all() == Quotas(file, {}).all() == {"one": 5} and told == [("one", 5)]


def test_terms_and_a_basis_are_of_the_chunks_that_will_be_asked_for(
    open_cache: Callable[..., ChunkCache], pages: Path
) -> None:
    """What another chunk size split is wanted by nobody: pinned, it would only take room."""
    cache = open_cache()
    cache.ingest([pages])
    before = cache.warm().chunks
    cache.close()
    with open_cache(retrieval={"chunk_tokens": 32}) as again:
        kept = again.keeping.keep(Keep(retention="pinned"), tenant="public", collection="default")
        held = [retention for retention, *_ in terms(again)]
        assert 0 < kept.stored < before < kept.chunks, "those that both sizes split alike"
        assert (held.count("pinned"), len(held)) == (kept.stored, before)
    with open_cache(retrieval={"chunk_tokens": 24}) as again:
        again.fit_basis()
        assert all(len(c.token_ids) <= 24 for c in again.catalog.chunks("public", "default"))
