"""What a JSON text may hold before anybody parses it: so deep, so many values, so long a number.

Parsing turns a byte into as many as sixty: `[[],[],…]` of 4 MiB is 80 MB of lists, and every one of
them can be an error of its own with a message. So the text is looked over first, token by token,
and given up at the first one too many.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from chunkcache.errors import InvalidRequest

# Possessive, and a string need not end: no text makes it look twice at a character.
_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|[\[\]{}:,]|[^\s\[\]{}:,"]++', re.DOTALL)
_MALFORMED: Final = "invalid_json"


@dataclass(frozen=True, slots=True)
class JsonBounds:
    """Limits of one text. The defaults are far above what any client of ours sends."""

    values: int = 50_000
    fields: int = 1_000
    """Of one object."""
    depth: int = 64
    digits: int = 300
    """Characters of one number; an integer of so many still is a finite float."""

    def check(self, text: str) -> None:
        """Cost: a step per token, at most four per value allowed. Malformed text may pass.

        Raises:
            InvalidRequest: a limit is passed.
        """
        fields: list[int] = []  # of each object or list around the token
        values = 0
        for number, found in enumerate(_TOKEN.finditer(text), start=1):
            token = found[0]
            first = token[0]
            if number > 4 * self.values:  # only in malformed text: a field is four tokens
                raise _too_much(f"more than {self.values} values")
            if first in "[{":
                fields.append(0)
                if len(fields) > self.depth:
                    raise _too_much(f"nested deeper than {self.depth} levels")
            elif first in "]}":
                if fields:
                    fields.pop()
                continue
            elif first == ":":
                if fields:
                    fields[-1] += 1
                    if fields[-1] > self.fields:
                        raise _too_much(f"an object of more than {self.fields} fields")
                continue
            elif first == ",":
                continue
            elif first != '"' and len(token) > self.digits:
                raise _too_much(f"a number of more than {self.digits} digits")
            values += 1
            if values > self.values:
                raise _too_much(f"more than {self.values} values")


def parse_json(data: bytes, bounds: JsonBounds) -> Any:
    """The value of a JSON text in UTF-8, within bounds; every number in it is finite.

    Raises:
        InvalidRequest: it is no JSON (RFC 8259 has no NaN and no Infinity), or passes a limit.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from error
    bounds.check(text)
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at character {error.pos}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidRequest(f"The request body has a number out of range: {text[:80]}.")
    return number


def _too_much(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"The request body has {what}. Hint: send less at once, and text instead of token ids."
    )


def _malformed(why: str) -> InvalidRequest:
    error = InvalidRequest(f"The request body is not valid JSON: {why}.")
    error.code = _MALFORMED
    return error
