#!/usr/bin/env bash
# llguidance 1.9.1 follows a oneOf whose options it can tell apart, though its error says that it supports none.
# The same options behind `$ref`, as every library writes them that makes schemas of classes, are refused, however
# plain: a number and a text. With a keyword beside oneOf that llguidance does not know, as OpenAPI's
# `discriminator` or any other word, they are followed: so unions of pydantic's are with a discriminator named, and
# hand-written ones are not.
# Seen: followed in the schema itself; refused behind references; followed there with an unknown keyword.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "llguidance==1.9.1"
"$work/env/bin/python" - <<'PY'
import json
from importlib.metadata import version

import llguidance


def verdict(schema):
    grammar = llguidance.grammar_from("json_schema", json.dumps(schema))
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    return matcher.get_error().splitlines()[0][:36] if matcher.is_error() else "followed"


def a_class(tag):
    return {"type": "object", "properties": {"kind": {"const": tag}}, "required": ["kind"]}


found = {}
for what, options in {
    "types": [{"type": "integer"}, {"type": "string"}],
    "classes": [a_class("cat"), a_class("dog")],
}.items():
    names = dict(zip("ab", options))
    references = [{"$ref": f"#/$defs/{name}"} for name in names]
    found[what] = [
        verdict({"oneOf": options}),
        verdict({"$defs": names, "oneOf": references}),
        verdict({"$defs": names, "oneOf": references, "unknown": 1}),
    ]
print(f"llguidance {version('llguidance')}, in place, behind $ref, with an unknown keyword: {found}")
refused = "oneOf constraints are not supported."
assert set(map(tuple, found.values())) == {("followed", refused, "followed")}
PY
