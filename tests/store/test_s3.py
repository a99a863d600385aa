"""An object store that speaks S3, as a tier. Skips where there is none to try.

pip install 'moto[server]' in an environment of its own, moto_server -p 5555 there, and
AWS_ENDPOINT_URL=http://127.0.0.1:5555 AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b pytest ...
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.codec import codec_named
from chunkcache.store.frame import frame_of
from chunkcache.store.remote.objects import ObjectBlobs
from chunkcache.store.remote.tier import RemoteTier

pytestmark = pytest.mark.skipif("AWS_ENDPOINT_URL" not in os.environ, reason="no S3 server named")
RAW = codec_named("raw")


@pytest.fixture
def bucket() -> Iterator[str]:
    s3fs = pytest.importorskip("s3fs")
    files = s3fs.S3FileSystem()
    name = f"kv-{secrets.token_hex(4)}"
    files.mkdir(name)
    yield name
    files.rm(name, recursive=True)


@pytest.fixture
def tier(bucket: str, records: ModuleType) -> RemoteTier:
    blobs = ObjectBlobs(f"s3://{bucket}/folder", "1/raw")
    return RemoteTier("object", blobs, RAW, fingerprint=records.FINGERPRINT, timeout_s=20.0)


def test_records_come_back_bit_for_bit_and_are_listed(
    tier: RemoteTier, records: ModuleType
) -> None:
    assert list(tier.scan()) == [] and tier.usage().records == 0
    small, large = records.make_record(1), records.make_record(2, num_tokens=6000, num_priors=900)
    other = records.colliding_with(small, 7)
    for record in (small, large):
        assert tier.get(record.key) is None and not tier.contains(record.key)
        assert tier.put(record) and tier.put(record)
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
    assert tier.get(other.key) is None and not tier.delete(other.key)
    nowhere = records.make_record(9)
    asked = [nowhere.key, small.key, other.key, large.key]
    assert tier.contains_many(asked) == [False, True, False, True]
    assert set(tier.scan()) == {small.key.digest, large.key.digest}
    assert tier.delete(small.key) and not tier.delete(small.key)
    assert list(tier.scan()) == [large.key.digest]


def test_an_object_that_is_cut_or_empty_is_dropped(tier: RemoteTier, records: ModuleType) -> None:
    record = records.make_record(1, num_tokens=40)
    frame = frame_of(record, RAW, records.FINGERPRINT)
    whole = b"".join([frame.header, *frame.slabs])
    for cut in (len(frame.header), len(whole) - 1, 9):
        tier._blobs.write(record.key.hex, [whole[:cut]])
        with pytest.raises(CorruptRecord):
            tier.get(record.key)
        assert tier.get(record.key) is None
    tier._blobs.write(record.key.hex, [b""])
    assert tier.get(record.key) is None and not tier.contains(record.key)
    assert tier.contains_many([record.key]) == [False]
    assert tier.put(record) and tier.contains_many([record.key]) == [True]


def test_a_bucket_that_is_not_there_is_an_error_of_the_store(records: ModuleType) -> None:
    blobs = ObjectBlobs("s3://no-such-bucket-anywhere/folder", "1/raw")
    tier: Any = RemoteTier("object", blobs, RAW, fingerprint=b"m", timeout_s=20.0)
    assert tier.get(records.make_record(1).key) is None
    with pytest.raises(StoreError, match="object: "):
        tier.put(records.make_record(1))
