"""Forms whose tokens are nearly over are closed: JSON is whole, and the answer says it was cut."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import torch

from chunkcache.engine.closing import Place
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.grammar import Grammars
from chunkcache.engine.sample import Sampler
from chunkcache.engine.vocabulary import Vocabulary
from chunkcache.forms import CallForm, Function, JsonForm
from chunkcache.protocol import Sampling

PLACE = {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]}
DEEP = {
    "type": "object",
    "properties": {
        "rows": {"type": "array", "minItems": 1, "items": {
            "type": "object", "additionalProperties": False, "required": ["at", "kind", "tags"],
            "properties": {"at": {"type": "number"}, "kind": {"enum": ["left", "right"]},
                           "tags": {"type": "array", "items": {"type": "string"}}}}},
        "done": {"type": "boolean"},
    },
    "required": ["rows", "done"],
    "additionalProperties": False,
}  # fmt: skip
OBJECT = {"type": "object"}
DATED = {"type": "string", "pattern": "^\\d{4}-\\d\\d$"}
SCHEMAS = {"place": PLACE, "deep": DEEP, "object": OBJECT, "text": {"type": "string"},
           "dated": DATED, "number": {"type": "number"}}  # fmt: skip


@pytest.fixture(scope="module")
def grammars(tiny: DecoderModel) -> Grammars:
    return Grammars(Vocabulary(tiny.tokenizer, tiny.eos_ids))


def written(
    grammars: Grammars, form: Any, model: DecoderModel, most: int, seed: int
) -> tuple[str, bool]:
    """What a model without any idea writes that would rather go on; whether it was closed."""
    matcher, ids = grammars.compile(form)(), list[int]()
    generator = torch.Generator().manual_seed(seed)
    while len(ids) < most:
        weights = matcher.allowed(model.num_tokens).double()
        for end in model.eos_ids:
            weights[end] *= 1e-6
        token = int(torch.multinomial(weights, 1, generator=generator))
        token = matcher.within(token, most - len(ids) - 1)
        assert matcher.allowed(model.num_tokens)[token]
        goes_on = matcher.accept(token)
        if token in model.eos_ids:
            break
        ids.append(token)
        if not goes_on:
            break
    return str(model.tokenizer.decode(ids)), matcher.was_closed


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_form_is_whole_however_few_its_tokens(
    grammars: Grammars, tiny: DecoderModel, name: str
) -> None:
    form = JsonForm(json_schema=SCHEMAS[name])
    closed = 0
    for seed in range(8):
        text, was_closed = written(grammars, form, tiny, 110 + seed, seed)
        jsonschema.validate(json.loads(text), SCHEMAS[name])
        closed += was_closed
    assert closed > 0 or name in ("dated", "number")


def test_a_call_is_closed_too(grammars: Grammars, tiny: DecoderModel) -> None:
    form = CallForm(functions=(Function(name="look", parameters=PLACE),))
    for seed in range(4):
        text, was_closed = written(grammars, form, tiny, 60, seed)
        name, _, arguments = text.partition("\n")
        assert name == "look" and was_closed
        jsonschema.validate(json.loads(arguments), PLACE)


def test_an_answer_that_was_closed_says_it_is_cut(
    bench: Any, grammars: Grammars, tiny: DecoderModel
) -> None:
    (end,) = tiny.eos_ids
    quote = tiny.tokenizer.convert_tokens_to_ids('"')

    def answer(bias: dict[int, float], most: int) -> Any:
        request = bench.submit(
            bench.prompt([]), {}, exact_only=True, sampling=Sampling(logit_bias=bias),
            max_new_tokens=most, new_matcher=grammars.compile(JsonForm(json_schema=PLACE)),
            salt=b"%d" % most,
        )  # fmt: skip
        return list(request.events())[-1]

    endless = answer({end: -100.0, quote: -50.0}, 48)
    assert endless.finish_reason == "length" and len(endless.token_ids) <= 48
    assert len(json.loads(endless.text)["room"]) > 0
    short = answer({end: 100.0, quote: 100.0, tiny.tokenizer.convert_tokens_to_ids("}"): 99.0}, 48)
    assert short.finish_reason == "stop" and json.loads(short.text)


def test_what_no_end_fits_is_cut_where_its_tokens_are_over(
    grammars: Grammars, tiny: DecoderModel
) -> None:
    text, was_closed = written(grammars, JsonForm(json_schema=PLACE), tiny, 5, 1)
    assert not was_closed
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


@pytest.mark.parametrize(
    ("said", "place"),
    [
        (b"look\n{", Place()), (b'{"a', Place(in_text=True)), (b'{"a": "', Place(in_text=True)),
        (b'{"a": "\\', Place(in_text=True, escaped=True)), (b'{"a": "\\"', Place(in_text=True)),
        (b'{"a\\\\"', Place()), (b'["\\u00e4", 1', Place()),
    ],
)  # fmt: skip
def test_a_place_is_known_from_what_was_written(said: bytes, place: Place) -> None:
    assert Place().after(said) == place
    at = Place()
    for byte in said:  # in pieces as in one
        at = at.after(bytes([byte]))
    assert at == place


@pytest.mark.parametrize("most", range(1, 9))
def test_a_number_never_ends_in_its_middle(
    grammars: Grammars, tiny: DecoderModel, most: int
) -> None:
    form, closed = JsonForm(json_schema={"type": "number"}), 0
    for seed in range(24):
        text, was_closed = written(grammars, form, tiny, most, seed)
        assert isinstance(json.loads(text), int | float)
        closed += was_closed
    assert closed > 0


def test_a_token_on_the_known_way_is_not_looked_behind(
    grammars: Grammars, tiny: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = grammars.compile(JsonForm(json_schema=DEEP))()
    left = 4  # too few for any end but a way that is known
    matcher._way = tiny.tokenizer.encode('{"rows"', add_special_tokens=False)
    monkeypatch.setattr(type(matcher._closing), "way", None)  # looked for no more
    for token in list(matcher._way):
        assert matcher.within(token, left) == token
        assert matcher.accept(token)
    assert matcher._way == [] and not matcher.was_closed


def test_penalties_count_what_was_written() -> None:
    wish = Sampling(frequency_penalty=1.0, repetition_penalty=2.0, temperature=0.0)
    told, plain = Sampler(wish, [1]), Sampler(wish, [1])
    logits = torch.tensor([4.0, 3.0, 2.5, 1.0])
    assert told.pick(logits).read() == (0, True)
    told.written_instead(0, 3)
    plain._history.penalised(logits, wish)
    plain._history.add(torch.tensor(3))
    expected = plain._history.penalised(logits, wish)
    assert told._history.penalised(logits, wish).tolist() == expected.tolist()
    assert told.pick(logits).read() == (0, True)  # as if it had never been drawn
