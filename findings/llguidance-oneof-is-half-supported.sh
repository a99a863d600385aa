#!/usr/bin/env bash
# llguidance 1.9.1: its error says "oneOf constraints are not supported" and offers to read oneOf as anyOf, but
# a oneOf whose options it can tell apart is followed as it is. It can by types, by constants, by closed objects
# and by one constant of a required property; not by a property with two possible texts, as a class with a
# field `Literal["cat", "lion"]` has, nor where the field has a default and so is not required. Unions written
# by one and the same library are therefore followed or refused by how many texts their tags have.
# Seen: followed with one text each, refused with two texts in one option, refused where it is not required.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "llguidance==1.9.1" "pydantic==2.14.4"
"$work/env/bin/python" - <<'PY'
import json
from importlib.metadata import version
from typing import Annotated, Literal

import llguidance
from pydantic import BaseModel, Field


class Cat(BaseModel):
    kind: Literal["cat"]


class Felid(BaseModel):
    kind: Literal["cat", "lion"]


class Tame(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"]


class TameDog(BaseModel):
    kind: Literal["dog"] = "dog"


def verdict(one, other):
    class Owner(BaseModel):
        pet: Annotated[one | other, Field(discriminator="kind")]

    schema = json.dumps(Owner.model_json_schema())
    assert '"oneOf"' in schema
    grammar = llguidance.grammar_from("json_schema", schema)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    return matcher.get_error().splitlines()[0][:40] if matcher.is_error() else "followed"


found = {
    "one text each": verdict(Cat, Dog),
    "two texts": verdict(Felid, Dog),
    "a default": verdict(Tame, TameDog),
}
print(f"llguidance {version('llguidance')}, unions of pydantic {version('pydantic')}: {found}")
assert found["one text each"] == "followed"
assert found["two texts"].startswith("oneOf constraints are not supported")
assert found["a default"].startswith("oneOf constraints are not supported")
PY
