#!/usr/bin/env bash
# highspy 1.16.0: making the first `Highs()` of a process writes two lines (version, copyright) to standard output,
# before `silent()` or `output_flag` can be called; later ones are quiet. A command whose output is JSON has them
# in front of it, and Python cannot catch them: they are written to the file descriptor.
# Seen: two lines from a process that makes two solvers and silences both at once.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "highspy==1.16.0"
"$work/env/bin/python" - > "$work/out" <<'PY'
import contextlib
import io
import sys

import highspy

with contextlib.redirect_stdout(io.StringIO()) as caught:
    for _ in range(2):
        highspy.Highs().silent()
print(f"caught by Python: {caught.getvalue()!r}", file=sys.stderr)
assert caught.getvalue() == ""
PY
cat "$work/out"
[ "$(grep -c "Running HiGHS" "$work/out")" = 1 ] && [ "$(wc -l < "$work/out")" = 2 ]
