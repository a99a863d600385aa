"""Forms of answers: whatever is drawn fits the schema, and no schema does harm."""

from __future__ import annotations

import json
import threading
from typing import Any

import jsonschema
import pytest
import torch

from chunkcache.engine import grammar
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.grammar import Grammars
from chunkcache.engine.unions import told_apart
from chunkcache.engine.vocabulary import Vocabulary
from chunkcache.errors import InvalidRequest
from chunkcache.forms import CallForm, Function, JsonForm
from chunkcache.protocol import Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", "œil"]},
        "code": {"type": "string", "pattern": "^[A-C]{2}-\\d{3}$"},
    },
    "required": ["name", "age", "kind", "code"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
                "next": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["v", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.fixture(scope="module")
def grammars(tiny: DecoderModel) -> Grammars:
    return Grammars(Vocabulary(tiny.tokenizer, tiny.eos_ids))


def random_answer(grammars: Grammars, form: Any, model: DecoderModel, seed: int) -> str | None:
    """What a model without any idea writes; None where it did not come to an end."""
    matcher, ids = grammars.compile(form)(), list[int]()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(400):
        allowed = matcher.allowed(model.num_tokens)
        weights = allowed.double()
        for end in model.eos_ids:
            weights[end] *= 50  # or free strings never end
        weights[model.tokenizer.convert_tokens_to_ids('"')] *= 20
        token = int(torch.multinomial(weights, 1, generator=generator))
        goes_on = matcher.accept(token)
        if token in model.eos_ids:
            break
        ids.append(token)
        if not goes_on:
            break
    else:
        return None
    return str(model.tokenizer.decode(ids))


@pytest.mark.parametrize("schema", [{"type": "object"}, PERSON, TREE, {"enum": ["x", 1, None]}])
def test_whatever_is_drawn_is_json_of_the_schema(
    grammars: Grammars, tiny: DecoderModel, schema: Any
) -> None:
    form = JsonForm(json_schema=schema)
    answers = [random_answer(grammars, form, tiny, seed) for seed in range(25)]
    ended = [json.loads(answer) for answer in answers if answer is not None]
    assert len(ended) >= 5
    for answer in ended:
        jsonschema.validate(answer, schema)


def test_a_call_is_a_name_a_line_break_and_arguments(
    grammars: Grammars, tiny: DecoderModel
) -> None:
    functions = (
        Function(name="add-1", parameters=PERSON),
        Function(name="no_arguments"),
        Function(name="b", parameters={"properties": {"x": {"const": 1}}, "required": ["x"],
                                       "additionalProperties": False}),
    )  # fmt: skip
    seen = set()
    for seed in range(25):
        answer = random_answer(grammars, CallForm(functions=functions), tiny, seed)
        if answer is not None:
            name, _, arguments = answer.partition("\n")
            schema = {f.name: f.parameters for f in functions}[name]
            jsonschema.validate(json.loads(arguments), {"type": "object", **schema})
            seen.add(name)
    assert seen == {"add-1", "no_arguments", "b"}


def test_the_end_is_allowed_only_where_the_grammar_ends(
    bench: Any, grammars: Grammars, tiny: DecoderModel
) -> None:
    (end,) = tiny.eos_ids
    wish = Sampling(logit_bias={end: 100.0})
    form = JsonForm(json_schema=PERSON)

    def answer(max_new_tokens: int) -> Any:
        request = bench.submit(
            bench.prompt([]), {}, exact_only=True, sampling=wish, max_new_tokens=max_new_tokens,
            new_matcher=grammars.compile(form), salt=b"%d" % max_new_tokens,
        )  # fmt: skip
        return list(request.events())[-1]

    whole = answer(400)
    assert whole.finish_reason == "stop"
    jsonschema.validate(json.loads(whole.text), PERSON)
    cut = answer(5)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 5)
    assert whole.text.startswith(cut.text)


def test_choices_follow_one_grammar_each_at_its_own_place(bench: Any, grammars: Grammars) -> None:
    request = bench.submit(
        bench.prompt([]), {}, exact_only=True, sampling=Sampling(temperature=1.5, n=3, seed=1),
        max_new_tokens=200, new_matcher=grammars.compile(JsonForm(json_schema=PERSON)),
    )  # fmt: skip
    texts = [choice.text for choice in list(request.events())[-1].choices]
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE: dict[str, Any] = {
    "deep": nested(2000),
    "long": {"enum": ["x" * 70_000]},
    "no type": {"type": "quark"},
    "no schema": {"properties": 3},
    "elsewhere": {"$ref": "https://example.org/schema.json"},
    "nowhere": {"$ref": "#/$defs/none"},
    "impossible": {"type": "integer", "minimum": 3, "maximum": 2},
    "no regex": {"type": "string", "pattern": "(["},
    "repeats": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
    "ambiguous": {"type": "string", "pattern": "^(a|a?)+(b|b?)+(a|b|ab|ba)*(.*a.{900})$"},
    "lookahead": {"type": "string", "pattern": "(?=x)y"},
    "endless": {"type": "string", "minLength": 10**9},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**8},
    "doubling": {
        "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
                  for i in range(30)} | {"d30": {"type": "object"}},
        "$ref": "#/$defs/d0",
    },
    "forking": {
        "$defs": {f"d{i}": {"type": "object", "properties": {
            "a": {"$ref": f"#/$defs/d{i + 1}"}, "b": {"$ref": f"#/$defs/d{i + 1}"}}}
                  for i in range(30)} | {"d30": {"type": "object"}},
        "$ref": "#/$defs/d0",
    },
    "circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
               "$ref": "#/$defs/a"},
    "options": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}},
    "unique": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "either": {"anyOf": [{"type": "object", "properties": {f"p{i}": {"enum": [i]}}}
                         for i in range(1500)]},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_no_schema_hangs_or_takes_all_memory(
    grammars: Grammars, tiny: DecoderModel, name: str
) -> None:
    """Either it is refused with the field and a reason, now or at a token, or it is followed."""
    form = JsonForm(json_schema=HOSTILE[name], field="the.field")
    try:
        matcher = grammars.compile(form)()
        for _ in range(40):
            token = int(matcher.allowed(tiny.num_tokens).int().argmax())
            if not matcher.accept(token):
                break
    except InvalidRequest as error:
        assert error.param == "the.field" and len(error.message) < 500
        assert error.message.startswith("the.field: the schema cannot be followed: ")


@pytest.mark.parametrize(
    "name",
    ["deep", "long", "no type", "no schema", "elsewhere", "nowhere", "impossible", "no regex",
     "lookahead", "circle", "unique"],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_before_anything_is_drawn(
    grammars: Grammars, name: str
) -> None:
    with pytest.raises(InvalidRequest):
        grammars.compile(JsonForm(json_schema=HOSTILE[name]))


def test_functions_that_are_too_many_together_are_refused(grammars: Grammars) -> None:
    wide = {"properties": {"x": {"enum": ["y" * 30_000]}}}
    functions = [Function(name=f"f{i}", parameters=wide) for i in range(3)]
    grammars.compile(CallForm(functions=tuple(functions[:2])))
    with pytest.raises(InvalidRequest, match=r"tools: the schema .* all have 9") as caught:
        grammars.compile(CallForm(functions=tuple(functions)))
    assert caught.value.param == "tools"


def test_the_function_whose_schema_it_is_is_named(grammars: Grammars) -> None:
    functions = tuple(
        Function(name=f"f{i}", parameters={"properties": {"x": {"type": kind}}}, field=f"tools.{i}")
        for i, kind in enumerate(["string", "integer", "quark"])
    )
    with pytest.raises(InvalidRequest, match="quark") as caught:
        grammars.compile(CallForm(functions=functions))
    assert caught.value.param == "tools.2"


def test_a_union_of_classes_is_followed(grammars: Grammars, tiny: DecoderModel) -> None:
    union = {"oneOf": [{"type": "object", "properties": {"kind": {"const": kind}},
                        "required": ["kind"], "additionalProperties": False} for kind in "ab"],
             "discriminator": {"propertyName": "kind"}}  # fmt: skip
    form = JsonForm(json_schema=union)
    answers = {random_answer(grammars, form, tiny, seed) for seed in range(20)}
    assert answers == {'{"kind": "a"}', '{"kind": "b"}'}


def a_class(kinds: list[str], **more: Any) -> dict[str, Any]:
    """As clients write a class whose field says which of a union it is."""
    kind = {"const": kinds[0]} if len(kinds) == 1 else {"enum": kinds}
    number = {"type": "integer", "minimum": 0, "maximum": 9}
    return {"type": "object", "properties": {"kind": kind, "n": number}, "required": ["kind", "n"],
            "additionalProperties": False, **more}  # fmt: skip


UNIONS = {
    "types": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}]},
    "one of each": {"oneOf": [a_class(["a"]), a_class(["b"])]},
    "several kinds": {"oneOf": [a_class(["a", "b"]), a_class(["c"])]},
    "a default": {  # which a class may leave out, but not in a union
        "oneOf": [a_class(["a"], required=["n"]), a_class(["b"], required=["n"])],
        "discriminator": {"propertyName": "kind"},
    },
    "references to types": {
        "$defs": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "null"}},
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
    },
    "references": {
        "$defs": {"x/y": a_class(["a", "b"]), "z": {"$ref": "#/$defs/z2"}, "z2": a_class(["c"])},
        "type": "array", "minItems": 1, "maxItems": 2,
        "items": {"oneOf": [{"$ref": "#/$defs/x~1y"}, {"$ref": "#/$defs/z"}]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(UNIONS))
def test_one_of_several_is_one_and_no_other(
    grammars: Grammars, tiny: DecoderModel, name: str
) -> None:
    form = JsonForm(json_schema=UNIONS[name])
    written = [random_answer(grammars, form, tiny, seed) for seed in range(12)]
    answers = [json.loads(answer) for answer in written if answer is not None]
    assert len({json.dumps(answer) for answer in answers}) > 1
    for answer in answers:
        jsonschema.validate(answer, UNIONS[name])  # which tells oneOf from anyOf


@pytest.mark.parametrize(
    "options",
    [
        [{"type": "integer"}, {"type": "number"}],
        [a_class(["a", "b"]), a_class(["b", "c"])],
        [a_class(["a"], required=["n"]), a_class(["b"], required=["n"])],
        [a_class(["a", "b"], type=["object", "null"]), a_class(["c"], type=["object", "null"])],
        [{"$ref": "#/oneOf/1"}, {"$ref": "#/oneOf/0"}],
    ],
)
def test_where_two_could_be_meant_it_is_refused(grammars: Grammars, options: Any) -> None:
    form = JsonForm(json_schema={"oneOf": options}, field="the.field")
    with pytest.raises(InvalidRequest, match=r"the\.field: .*") as caught:
        grammars.compile(form)
    if "$ref" not in options[0]:
        assert "oneOf" in caught.value.message and "write anyOf" in caught.value.message


def test_what_only_looks_like_a_union_stays_as_it_is() -> None:
    value = {"oneOf": [a_class(["a"]), a_class(["b"])]}
    schema = {"type": "object", "properties": {"oneOf": {"const": value}, "x": {"enum": [value]}}}
    assert told_apart(schema) == schema
    assert told_apart(value) == {"anyOf": value["oneOf"]} and "oneOf" in value


def test_a_schema_cannot_choose_its_own_limits_or_style(
    grammars: Grammars, tiny: DecoderModel
) -> None:
    schema = {"const": {"a": 1}, "x-guidance": {"item_separator": ";", "key_separator": "="}}
    answer = random_answer(grammars, JsonForm(json_schema=schema), tiny, 1)
    assert answer == '{"a": 1}'


def test_grammars_are_kept_within_a_bound_and_made_by_several_at_once(
    tiny: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "_KEPT", 3)
    grammars = Grammars(Vocabulary(tiny.tokenizer, tiny.eos_ids))
    made: list[str] = []
    true = grammar.llguidance.LLMatcher

    def matcher(trie: Any, source: str, **options: Any) -> Any:
        made.append(source)
        return true(trie, source, **options)

    monkeypatch.setattr(grammar.llguidance, "LLMatcher", matcher)

    def compile_all(numbers: Any) -> None:
        for number in numbers:
            grammars.compile(JsonForm(json_schema={"const": number}))

    compile_all([1, 2, 3, 1, 2, 3])
    assert len(made) == 3
    compile_all([4, 1])  # the fourth pushes out the one not asked for the longest
    assert len(made) == 5 and len(grammars._kept) == 3
    threads = [threading.Thread(target=compile_all, args=(range(6),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(grammars._kept) == 3
