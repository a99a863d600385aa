#!/usr/bin/env bash
# llguidance 1.9.1 follows a oneOf whose options it can tell apart, though its error says that it supports none.
# Two classes told apart by a tag are followed where they stand in the schema itself. Behind `$ref`, as every
# library that makes schemas of classes writes them, the same two are followed if each tag has one possible text
# and refused if one of them has two.
# Seen: followed in the schema itself, with one text or two; behind references with one text; refused with two.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "llguidance==1.9.1"
"$work/env/bin/python" - <<'PY'
import json
from importlib.metadata import version

import llguidance


def a_class(tags, field):
    tag = {"const": tags[0]} if len(tags) == 1 else {"enum": tags}
    properties = {"kind": {"type": "string", **tag}, field: {"type": "integer"}}
    return {"type": "object", "properties": properties, "required": list(properties)}


def verdict(schema):
    grammar = llguidance.grammar_from("json_schema", json.dumps(schema))
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    return matcher.get_error().splitlines()[0][:36] if matcher.is_error() else "followed"


found = {}
for tags in (["cat"], ["cat", "lion"]):
    options = {"a": a_class(tags, "lives"), "b": a_class(["dog"], "bones")}
    references = [{"$ref": f"#/$defs/{name}"} for name in options]
    found[len(tags), "inside"] = verdict({"oneOf": list(options.values())})
    found[len(tags), "behind $ref"] = verdict({"$defs": options, "oneOf": references})
print(f"llguidance {version('llguidance')}, texts of a tag and where its class is: {found}")
refused = "oneOf constraints are not supported."
assert found.pop((2, "behind $ref")) == refused, "it is followed now"
assert set(found.values()) == {"followed"}
PY
