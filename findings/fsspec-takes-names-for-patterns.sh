#!/usr/bin/env bash
# fsspec 2026.9.0: `rm(path)` and `cat(path)` take a name with brackets, `*` or `?` in it for a pattern, also where a file of
# that very name exists. Browsers and scanners do give such names ("report[1].txt"). `cat` then gives another
# file's bytes, `rm` removes the other file and leaves the one that was named, and neither says a word. `exists`,
# `cat_file` and `rm_file`, which stand for one file, take names as they are.
# Seen on memory://, with report[1].txt and report1.txt there: cat of the first gives the second's content; rm of the first
# leaves the first alone. On file:// cat does so too. Fails when that changes.
# Known: https://github.com/fsspec/filesystem_spec/issues/838 and https://github.com/fsspec/s3fs/issues/895
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "fsspec==2026.9.0"
"$work/env/bin/python" - "$work" <<'PY'
import sys

import fsspec

found = {}
for kind, folder in (("memory", "/documents"), ("file", f"{sys.argv[1]}/documents")):
    files = fsspec.filesystem(kind)
    files.mkdirs(folder)
    asked, other = f"{folder}/report[1].txt", f"{folder}/report1.txt"
    files.pipe_file(asked, b"asked for")
    files.pipe_file(other, b"another")
    assert files.exists(asked) and files.cat_file(asked) == b"asked for"
    read = b"".join(files.cat(asked).values()) if isinstance(files.cat(asked), dict) else files.cat(asked)
    files.rm(asked)
    found[kind] = read, [path.rpartition("/")[2] for path in files.ls(folder, detail=False)]
print(f"fsspec {fsspec.__version__}: cat of report[1].txt, and what is left when it was removed: {found}")
assert found["memory"] == (b"another", ["report[1].txt"]), "a name is a name to memory:// now"
assert found["file"] == (b"another", ["report1.txt"]), "file:// reads or removes another way now"
PY
