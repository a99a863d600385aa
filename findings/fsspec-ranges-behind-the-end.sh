#!/usr/bin/env bash
# fsspec 2026.9.0 with s3fs 2026.9.0: what `cat_file(path, start, end)` says of a range that begins behind the end of an
# object depends on the store. A local file and memory:// give no bytes; s3:// raises OSError with EINVAL, as for a bad
# argument, so an object that was cut short looks like a caller's fault or a failing store. A range that begins
# inside and ends behind is cut short by all of them.
# Seen: 10 bytes, [20, 30): b"" from file:// and memory://, errno 22 from s3:// (moto's server); [5, 30): 5 bytes.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'kill $server 2>/dev/null || true; rm -rf "$work"' EXIT
server=
for name in client server; do python3 -m venv "$work/$name"; done  # pip does not resolve both in one
"$work/client/bin/pip" install -q --disable-pip-version-check "fsspec==2026.9.0" "s3fs==2026.9.0"
"$work/server/bin/pip" install -q --disable-pip-version-check "moto[server]==5.2.5"
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/server/bin/moto_server" -H 127.0.0.1 -p "$port" >"$work/log" 2>&1 & server=$!
AWS_ACCESS_KEY_ID=some AWS_SECRET_ACCESS_KEY=thing AWS_DEFAULT_REGION=us-east-1 \
  "$work/client/bin/python" - "$port" "$work/object" <<'PY'
import errno
import socket
import sys
import time

import fsspec
import s3fs

port, local = sys.argv[1:]
for _ in range(300):
    try:
        socket.create_connection(("127.0.0.1", int(port))).close()
        break
    except OSError:
        time.sleep(0.1)
stores = {
    "file": (fsspec.filesystem("file"), local),
    "memory": (fsspec.filesystem("memory"), "/object"),
    "s3": (s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{port}"), "bucket/object"),
}
stores["s3"][0].mkdir("bucket")


def read(store, path, start, end):
    try:
        return store.cat_file(path, start=start, end=end)
    except OSError as problem:
        return errno.errorcode.get(problem.errno, type(problem).__name__)


seen = {}
for name, (store, path) in stores.items():
    store.pipe_file(path, b"0123456789")
    seen[name] = (read(store, path, 5, 30), read(store, path, 20, 30))
print(f"fsspec {fsspec.__version__}, s3fs {s3fs.__version__}: [5, 30) and [20, 30) of 10 bytes: {seen}")
assert all(inside == b"56789" for inside, _ in seen.values())
assert seen["file"][1] == seen["memory"][1] == b""
assert seen["s3"][1] == "EINVAL", "s3fs says something else of a range behind the end now"
PY
