#!/usr/bin/env bash
# py-lmdb 3.0.0: with `buffers=True` a value is a memoryview of LMDB's map, which copies nothing. One would take it to
# read nothing either until somebody looks; but `Transaction.get` (and `Cursor.value`) first touches every page of the value,
# so that asking how long a large value is, or where it begins, reads all of it from the disk. `Cursor.set_key` does not.
# Seen: get of a value of 64 MiB, of which only the length is asked, takes over 1,000 page faults; set_key a few.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "lmdb==3.0.0"
"$work/env/bin/python" - "$work/store" <<'PY'
import resource
import sys

import lmdb

SIZE = 64 << 20


def opened():
    return lmdb.open(sys.argv[1], map_size=1 << 30)


def faults(look):
    """Page faults of a first look into the map."""
    with opened() as env, env.begin(buffers=True) as txn:
        txn.get(b"small")  # the tree's own pages
        before = resource.getrusage(resource.RUSAGE_SELF)
        look(txn)
        after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt


with opened() as env, env.begin(write=True) as txn:
    txn.put(b"large", bytes(SIZE))
    txn.put(b"small", b"1")

lengths = []
whole = faults(lambda txn: lengths.append(len(txn.get(b"large"))))
there = faults(lambda txn: txn.cursor().set_key(b"large") or sys.exit("it has gone"))
print(f"py-lmdb {lmdb.__version__}: the length of {lengths[0] >> 20} MiB takes {whole} page faults, "
      f"whether it is there {there}")
assert lengths == [SIZE]
assert there < 50, "finding a key reads its value now"
assert whole > 200, "a value is read when it is looked at now"
PY
