"""Forms of answers as grammars: which tokens may come next so that the answer will have its form.

llguidance compiles them and walks over the vocabulary (docs/decisions/0016). A schema comes from
outside: its size, its depth and the work done on it are bounded, in compiling and at every token
(near the end of an answer's tokens, when ends are looked for, to what 64 tokens may cost).
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
import torch

from chunkcache.engine.closing import Closing, Place
from chunkcache.engine.unions import told_apart
from chunkcache.errors import InvalidRequest
from chunkcache.forms import CallForm, JsonForm

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.engine.vocabulary import Vocabulary
    from chunkcache.protocol import Json

MAX_SCHEMA_CHARS = 1 << 16
MAX_SCHEMA_DEPTH = 48
_KEPT = 32  # compiled grammars
_LONGEST_WAY = 512  # to an end, in tokens
_WATCHED = 32  # tokens more than the way from the beginning has: ends are looked for from there on
# One way to write a value, the one models know best. Where white space is free, a small model
# may write nothing else until it runs out of tokens.
_STYLE: Json = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ONE_OF = (
    "an answer could fit two options of a oneOf, and a grammar cannot say 'not both'. Hint: write "
    "anyOf, or give every option a required property with a const of its own"
)


class Grammars:
    """Compiles forms for one vocabulary and keeps the last ones. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # guards what is kept, not the compiling
        self._kept: OrderedDict[str, Compiled] = OrderedDict()

    def compile(self, form: JsonForm | CallForm) -> Callable[[], FormMatcher]:
        """What makes a matcher for every choice of an answer.

        Blocks while the grammar is compiled, without holding Python's lock.

        Raises:
            InvalidRequest: the schema is too large, is none, or asks for what no grammar can say.
        """
        source, field = _source(form)
        with self._lock:
            compiled = self._kept.pop(source, None)
        if compiled is None:
            closing = self._vocabulary.closing
            matcher = llguidance.LLMatcher(
                self._vocabulary.trie, source, log_level=0, limits=_limits()
            )
            try:
                _check_followed(matcher.deep_copy(), field)
                way = closing.way(matcher.deep_copy(), Place(), _LONGEST_WAY)
                compiled = Compiled(matcher, closing, len(way) if way is not None else None)
            except InvalidRequest:
                if isinstance(form, CallForm) and len(form.functions) > 1:
                    for function in form.functions:  # the one whose schema it is says so
                        self.compile(CallForm(functions=(function,)))
                raise
        with self._lock:
            self._kept[source] = compiled
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return partial(FormMatcher, compiled, field)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar where it begins. `way`: tokens of a short answer; None: no short one was found."""

    matcher: llguidance.LLMatcher
    closing: Closing
    way: int | None


class FormMatcher:
    """Follows one choice. `compiled` is copied, so that several choices can follow one grammar."""

    def __init__(self, compiled: Compiled, field: str) -> None:
        self._matcher = compiled.matcher.deep_copy()
        self._closing = compiled.closing
        self._watched = -1 if compiled.way is None else compiled.way + _WATCHED
        self._place = Place()
        self._way: list[int] | None = None  # from here to an end, while one is looked for
        self._field = field
        self.was_closed = False

    def allowed(self, vocab: int) -> torch.Tensor:
        """bool `[vocab]`: tokens that may come next; an end-of-sequence token where it may end.

        Raises:
            InvalidRequest: following the grammar takes more work than a token may cost.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        _check(self._matcher, self._field)
        allowed = torch.zeros(vocab, dtype=torch.bool)
        known = np.unpackbits(bits, bitorder="little")[:vocab]
        allowed[: len(known)] = torch.from_numpy(known).bool()
        return allowed

    def within(self, token: int, left: int) -> int:
        """The token, or the next one on the way to an end where `left` more would not reach one.

        Cost: nothing before ends are looked for; from there on nothing where the token is the next
        one on the way, else a walk of at most 64 masks.
        """
        if left > self._watched:
            return token
        if self._way is None:
            self._way = self._closing.way(self._matcher.deep_copy(), self._place, left + 1)
        if self._way and token == self._way[0]:
            self._way = self._way[1:]
            return token
        after = self._matcher.deep_copy()
        after.consume_token(token)
        place = self._place.after(self._closing.token_bytes(token))
        way = self._closing.way(after, place, left)
        if way is None and self._way is not None:
            token, *way = self._way or [self._closing.end_token]
            self.was_closed = True
        if way is None:  # there is no room for an end, nor will there be
            self._watched = -1
        self._way = way
        return token

    def accept(self, token: int) -> bool:
        """The token comes next. False: the answer is complete, and nothing can follow."""
        self._place = self._place.after(self._closing.token_bytes(token))
        self._matcher.consume_token(token)
        _check(self._matcher, self._field)
        return not self._matcher.is_stopped()


def _check_followed(matcher: llguidance.LLMatcher, field: str) -> None:
    """Find out what only shows at the first token, as circles of references and wide objects."""
    _check(matcher, field)
    matcher.compute_bitmask()
    _check(matcher, field)


def _check(matcher: llguidance.LLMatcher, field: str) -> None:
    if matcher.is_error():
        raise _refused(field, matcher.get_error())


def _limits() -> llguidance.LLParserLimits:
    return llguidance.LLParserLimits(
        max_grammar_size=200_000, initial_lexer_fuel=500_000, max_lexer_states=50_000,
        step_lexer_fuel=200_000, step_max_items=50_000, verbose_errors=False,
    )  # fmt: skip


def _source(form: JsonForm | CallForm) -> tuple[str, str]:
    """The grammar's text, and the field that its schema comes from."""
    if isinstance(form, JsonForm):
        return llguidance.grammar_from(
            "json_schema", _schema(form.json_schema, form.field)
        ), form.field
    # a name, a line break, the arguments: what `service/calls.py` reads
    lines = ["start: " + " | ".join(f"call_{i}" for i in range(len(form.functions)))]
    for i, function in enumerate(form.functions):
        arguments = {"type": "object", **function.parameters}
        lines.append(f'call_{i}: "{function.name}\\n" arguments_{i}')
        lines.append(f"arguments_{i}: %json {_schema(arguments, function.field)}")
    if (size := sum(map(len, lines))) > MAX_SCHEMA_CHARS:
        raise _refused("tools", f"all have {size} characters, at most {MAX_SCHEMA_CHARS} are read")
    return llguidance.grammar_from("lark", "\n".join(lines)), form.functions[0].field


def _schema(schema: Json, field: str) -> str:
    """The schema as text, within bounds, and in our style whatever it says itself."""
    if _is_deeper(schema, MAX_SCHEMA_DEPTH):
        raise _refused(field, f"it is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    if (size := len(json.dumps(schema))) > MAX_SCHEMA_CHARS:
        raise _refused(field, f"it has {size} characters, at most {MAX_SCHEMA_CHARS} are read")
    return json.dumps({**told_apart(schema), "x-guidance": _STYLE})


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        inside = [
            v.values() if isinstance(v, dict) else v for v in layer if isinstance(v, (dict, list))
        ]
        layer = [item for items in inside for item in items]
    return bool(layer)


def _refused(field: str, reason: str) -> InvalidRequest:
    if reason.startswith("oneOf"):
        reason = _ONE_OF  # of llguidance's words half are about its own options
    said = " ".join(reason.replace("<non-verbose/>", "").split())[:300].rstrip(".")
    return InvalidRequest(f"{field}: the schema cannot be followed: {said}.", param=field)
