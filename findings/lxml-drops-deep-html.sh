#!/usr/bin/env bash
# lxml 6.1.3: HTML nested deeper than its parser's limit loses what is inside, without an exception and
# without a sign in the tree; only `parser.error_log` says so. Pages of nested tables and generated
# documentation do nest. `huge_tree=True` keeps the text.
# Seen: text in 200 nested elements is there, in 400 it is gone, and with huge_tree it is there again.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "lxml==6.1.3"
"$work/env/bin/python" - <<'PY'
from lxml import etree, html


def text_of(depth, **options):
    page = "<html><body>" + "<div>" * depth + "the answer" + "</div>" * depth + "</body></html>"
    parser = html.HTMLParser(**options)
    tree = html.document_fromstring(page, parser=parser)
    return "the answer" in tree.text_content(), [entry.message for entry in parser.error_log]


shallow, deep, huge = text_of(200), text_of(400), text_of(400, huge_tree=True)
print(f"lxml {etree.__version__}: 200 levels {shallow[0]}, 400 levels {deep[0]} {deep[1][:1]}, "
      f"400 levels with huge_tree {huge[0]}")
assert shallow == (True, [])
assert not deep[0] and deep[1], "deep text is kept now, or lost without a word in the log"
assert huge[0]
PY
