"""Replies held to a grammar: always valid, ended in time, cheap, and an error that names its cause where none can be.

Most run on random weights with the embedded model's tokenizer: what holds for them holds for any weights.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path

import jsonschema
import pytest

from karakuri_integrations.conversation import Grammar, Prompt, Sampling
from karakuri_integrations.engines import LocalEngine, grammars, registry
from karakuri_integrations.engines.grammars import Constraint, Grammars
from karakuri_integrations.engines.schema_words import prepared
from karakuri_integrations.errors import (
    DeadlineError,
    EngineError,
    MissingDependencyError,
    NumericalError,
    UnsupportedSchemaError,
)
from karakuri_integrations.generation import astream, fold, stream
from karakuri_integrations.provider import EngineFields, Provider
from karakuri_integrations.templates import FAMILIES
from karakuri_integrations.tools import SYNTAXES

from .conftest import loaded_model, make_model, prompt_of
from .test_concurrency import TurningLoop
from .test_faults import failing, needs_fork, poisoned, run

DEMO = Path(sys.modules[LocalEngine.__module__].__file__ or "").parents[1] / "demo"
OPENER = SYNTAXES["brackets"].form.opener


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A tiny Llama with random weights, in the embedded model's vocabulary."""
    return random_checkpoint(tmp_path_factory.mktemp("random") / "random", 4096)


def random_checkpoint(folder: Path, vocabulary: int) -> Path:
    make_model(folder, vocab_size=vocabulary)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    return folder


@pytest.fixture
def engine(random_weights):
    found = LocalEngine(random_weights, device="cpu", quantization="fp32", prompt_lookup=False, prefix_cache_mib=0)
    yield found
    found.close()


def tool(schema: object, name: str = "f") -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def prepare(engine: LocalEngine, question: str = "東京の天気は?", **options: object):
    provider = Provider(EngineFields(engine=engine), sampling=Sampling(temperature=1, max_tokens=200, seed=0))
    return provider.prepare([provider.user(question, {}, 0)], options)


def ask(engine: LocalEngine, question: str = "東京の天気は?", **options: object):
    return fold(prepare(engine, question, **options).stream())


def forced(engine: LocalEngine, schema: object, **options: object):
    """The reply of a forced call of one tool."""
    return ask(engine, **{"tools": [tool(schema)], "tool_choice": "f", "parallel_tool_calls": False, **options})


def object_of(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties)}


TREE = {
    **object_of(root={"$ref": "#/$defs/Node"}),
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
}
SCHEMAS = {
    "no arguments": {},
    "nested": object_of(a=object_of(b=object_of(c={"type": "array", "items": {"type": "boolean"}, "maxItems": 3}))),
    "reference": {**object_of(x={"$ref": "#/$defs/住所"}), "$defs": {"住所": object_of(市={"type": "string"})}},
    "recursive": TREE,
    "enum": object_of(unit={"enum": ["摂氏", "華氏", "\\\"'", "line\nfeed", 3, None, {"k": ["値"]}]}),
    "names": object_of(**{"名前": {"type": "string"}, "x y": {"type": "null"}, "naïve": {"const": "🍣"}, "𠮷": {"const": 1}}),
    "any of": object_of(x={"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}, TREE["$defs"]["Node"]["properties"]["value"]]}),
    "discriminated": object_of(
        pet={
            "oneOf": [object_of(kind={"const": "cat"}, lives={"type": "integer"}), object_of(kind={"const": "犬"})],
            "discriminator": {"propertyName": "kind"},
        }
    ),
    "bounds": object_of(
        s={"type": "string", "minLength": 3, "maxLength": 5},
        n={"type": "integer", "minimum": -3, "exclusiveMaximum": 40, "multipleOf": 7},
        f={"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.75},
        a={"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 2, "maxItems": 4},
    ),
    "patterns": object_of(
        phone={"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"},
        kana={"type": "string", "pattern": "^[ぁ-ん]{2,4}$"},
        open={"type": "string", "pattern": "[A-Z][a-z]+"},
    ),
    "formats": object_of(a={"type": "string", "format": "date-time"}, b={"type": "string", "format": "password", "maxLength": 5}),
    "list-like": object_of(x={"type": "array", "prefixItems": [{"type": "null"}, {"const": "a"}], "items": False, "minItems": 2}),
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
    "sets": object_of(
        tags={"type": "array", "items": {"type": "string", "maxLength": 2}, "uniqueItems": True, "minItems": 3},
        units={"type": "array", "items": {"enum": ["摂氏", "華氏", 3]}, "uniqueItems": True, "minItems": 2},
    ),
    "counts": {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in "abcd"},
        "minProperties": 2,
        "maxProperties": 3,
        "dependentRequired": {"a": ["d"]},
        "not": {"required": ["b", "c"]},
    },
    "conditions": object_of(
        kind={"enum": ["x", "y"]},
        x={"if": {"type": "string"}, "then": {"enum": ["a", "b"]}, "else": {"type": "integer", "minimum": 0, "maximum": 9}},
        y={"oneOf": [{"type": "string", "maxLength": 4}, {"enum": ["a", 7]}]},
        z={"type": "array", "items": {"type": ["null", "boolean"]}, "contains": {"const": True}, "maxItems": 4},
        u={"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 2},
        s={"type": "string", "pattern": '^[^"]{1,3}$'},
    ),
    "all of": object_of(x={"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 4}]}),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SCHEMAS)
def test_forced_calls_fit_their_schema_whatever_the_weights(engine, name, seed):
    reply = forced(engine, SCHEMAS[name], seed=seed, max_tokens=300)
    (call,) = reply.calls
    assert call.error is None
    assert call.name == "f"
    assert reply.text == ""
    jsonschema.validate(json.loads(call.arguments), SCHEMAS[name] or {"type": "object"})


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_replies_fit_their_schema(engine, name):
    schema = SCHEMAS[name] or {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = ask(engine, response_format=wanted, max_tokens=300)
    assert reply.calls == ()
    jsonschema.validate(json.loads(reply.text), schema)


def test_a_json_object_without_a_schema(engine):
    reply = ask(engine, response_format={"type": "json_object"}, max_tokens=60)
    assert isinstance(json.loads(reply.text), dict)


def test_the_embedded_model_calls_each_of_several_tools():
    demo = LocalEngine()
    tools = [tool(object_of(city={"enum": ["東京", "大阪"]}), "天気"), tool({}, "now"), tool(TREE, "tree")]
    for choice in ("天気", "now", "tree"):
        reply = ask(demo, tools=tools, tool_choice=choice, temperature=0, max_tokens=150)
        assert {call.name for call in reply.calls} == {choice}
        assert all(call.error is None for call in reply.calls)
    reply = ask(demo, tools=tools, tool_choice="required", temperature=0, max_tokens=150)
    assert reply.calls and all(call.error is None for call in reply.calls)


def test_parallel_calls_may_be_forbidden(engine):
    several = [len(ask(engine, tools=[tool({})], tool_choice="any", seed=seed).calls) for seed in range(8)]
    assert max(several) > 1
    assert all(len(forced(engine, {}, seed=seed).calls) == 1 for seed in range(4))


# Text or calls


def writing(engine: LocalEngine, text: str):
    """Make the model want to write this text first, token by token; what follows is its own."""
    wanted = iter(engine.token_ids(text))
    model = loaded_model(engine)

    def hook(_module, _given, output):
        token = next(wanted, None)
        if token is not None:
            output.logits[0, -1, token] += 1000

    return model.register_forward_hook(hook)


def test_auto_gives_text_where_no_call_is_opened(engine):
    tools = [tool(object_of(x={"type": "integer"}))]
    reply = ask(engine, tools=tools, max_tokens=30)
    assert reply.calls == ()
    assert reply.text
    assert reply.finish_reason == "length"
    assert reply.usage.output_tokens == 30  # text may be cut anywhere: nothing ends it early


@pytest.mark.parametrize("before", ["", "調べます。", "a [TOOL_CALLS] b\n"])
def test_auto_is_held_to_the_schema_once_the_opener_is_written(engine, before):
    hook = writing(engine, before + OPENER)
    reply = ask(engine, tools=[tool(object_of(x={"type": "integer", "maximum": 99}))], max_tokens=120)
    hook.remove()
    assert reply.text == before.strip()
    assert reply.calls
    for call in reply.calls:
        jsonschema.validate(json.loads(call.arguments), object_of(x={"type": "integer", "maximum": 99}))


def test_a_prompt_that_was_continued_with_the_opener_is_held_to_the_json(engine):
    call = prepare(engine, tools=[tool(TREE)])
    prompt = call.prompt.continued(OPENER)
    text = "".join(piece.text for piece in engine.stream(prompt, call.sampling))
    for one in json.loads(text):
        jsonschema.validate(one["arguments"], TREE)


@pytest.mark.parametrize("opens", [True, False])
def test_text_with_a_schema_of_its_own_beside_calls(engine, opens):
    schema = object_of(answer={"type": "boolean"})
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    hook = writing(engine, OPENER if opens else "{")
    reply = ask(engine, tools=[tool({})], response_format=wanted, max_tokens=80)
    hook.remove()
    assert bool(reply.calls) is opens
    if not opens:
        jsonschema.validate(json.loads(reply.text), schema)


def test_the_other_syntax_has_a_closer(random_weights):
    other = LocalEngine(
        random_weights,
        device="cpu",
        quantization="fp32",
        template="karakuri-lm-8x7b-instruct-v0.1",
        prompt_lookup=False,
    )
    form = SYNTAXES["command_r"].form
    hook = writing(other, form.opener)
    call = prepare(other, tools=[tool(object_of(x={"type": "boolean"}))], parallel_tool_calls=False)
    text = "".join(piece.text for piece in other.stream(call.prompt, call.sampling))
    hook.remove()
    assert text.lstrip().startswith(form.opener)
    body = text.lstrip().removeprefix(form.opener)
    listed = json.loads(body.removesuffix(form.closer))
    assert [list(one) for one in listed] == [["tool_name", "parameters"]]
    forced_reply = ask(other, tools=[tool({})], tool_choice="f")
    assert all(one.error is None for one in forced_reply.calls)


def test_a_leading_space_is_allowed_where_the_prompt_ends_without_one(engine):
    entry = engine._shared
    schema = '{"type": "object"}'
    with_lead = entry.grammars(2).constraint(Grammar(schema, lead=" "), 50).allowed()
    without = entry.grammars(2).constraint(Grammar(schema), 50).allowed()
    (space,) = [one for one in range(300, 4096) if entry.tokens.bytes_of(one) == b" "]
    assert with_lead[space] and not without[space]


# Ends


WEATHER = object_of(city={"type": "string"}, days={"type": "integer"})
LEAST = '[{"name": "f", "arguments": {"city": "", "days": 0}}]'


def test_a_reply_ends_in_time_whenever_it_can(engine):
    """From as many tokens on as the shortest call takes, each limit gives a whole call; below it, its text."""
    needed = len(engine.token_ids(LEAST))
    whole = {}
    for limit in [*range(8, 60), 80, 120, 200]:
        reply = forced(engine, WEATHER, max_tokens=limit, seed=limit)
        (call,) = reply.calls
        assert reply.usage.output_tokens <= limit
        whole[limit] = call.error is None
        if call.error is None:
            jsonschema.validate(json.loads(call.arguments), WEATHER)
        else:
            assert reply.finish_reason == "length"
            assert call.arguments in LEAST or call.name == "f"
    assert all(good for limit, good in whole.items() if limit >= needed)
    assert not all(whole.values())
    assert list(whole.values()) == sorted(whole.values())  # once it fits, every larger limit fits


def test_a_choice_that_leaves_no_room_is_not_taken(engine):
    """One branch needs many tokens, the other few; with few left the model's wish for the long one is overruled."""
    long = object_of(**{f"a_rather_long_name_{n}": {"const": "and a rather long value"} for n in range(12)})
    schema = object_of(x={"anyOf": [{"type": "null"}, long]})
    room = len(engine.token_ids('[{"name": "f", "arguments": {"x": null}}]'))
    for limit in range(room, room + 40, 3):
        (call,) = forced(engine, schema, max_tokens=limit, seed=limit).calls
        assert call.error is None, limit


def test_the_reason_is_length_where_the_end_was_led_to_and_not_where_it_came_by_itself(engine):
    led = forced(engine, object_of(s={"type": "string"}), max_tokens=40)
    assert (led.finish_reason, led.calls[0].error) == ("length", None)
    free = forced(engine, object_of(s={"const": "a"}), max_tokens=200)
    assert free.finish_reason == "tool_calls"
    exact = forced(engine, object_of(s={"const": "a"}), max_tokens=free.usage.output_tokens - 1)  # no room for </s>
    assert (exact.finish_reason, exact.calls[0].error) == ("tool_calls", None)
    assert exact.calls[0].arguments == free.calls[0].arguments


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "pattern": "[A-Z][a-z]+"},
        {"type": "string", "pattern": "z$"},
        {"type": "string", "pattern": "^(foo|bar|baz)+$"},
        {"type": "string", "format": "email"},
        {"type": "string", "format": "uri"},
        {"type": "string", "format": "ipv6"},
        {"type": "string", "minLength": 300},
        {"type": "number", "exclusiveMinimum": 0.5},
        {"type": "number", "exclusiveMaximum": -1000000},
        {"type": "integer", "minimum": 1000000, "multipleOf": 13},
        {"type": "array", "items": {"enum": ["値"]}, "minItems": 5},
        {"allOf": [TREE["$defs"]["Node"]["properties"]["value"]]},
        {},
    ],
)
def test_an_end_is_found_in_and_behind_every_kind_of_value(engine, value):
    schema = object_of(first={"type": "boolean"}, value=value, last={"type": "null"})
    found = engine._shared.grammars(2)
    tokens = engine._shared.tokens
    at = found.constraint(Grammar(json.dumps(schema)), 500)
    path = found.endings.shortest(at._matcher, 500)
    assert path is not None
    jsonschema.validate(json.loads(b"".join(map(tokens.bytes_of, path))), schema)


# Cost


def test_forced_tokens_cost_no_forward_pass(engine):
    schema = object_of(a_long_property_name={"const": "a long constant value"}, x={"type": "boolean"})
    engine.report()
    before = engine.steps
    reply = forced(engine, schema)
    steps = engine.steps - before
    assert steps <= 4  # the prompt's and its last token's, and the two choices: the value of x and of its token
    assert reply.usage.output_tokens > 20


def test_an_end_that_was_led_to_costs_no_forward_pass_either(engine):
    engine.report()
    before = engine.steps
    reply = forced(engine, object_of(s={"type": "string", "minLength": 200}, t={"const": "a" * 40}), max_tokens=100)
    assert reply.finish_reason == "length"
    assert engine.steps - before < reply.usage.output_tokens - 10


def test_masks_are_computed_beside_the_model(engine, monkeypatch):
    names = set()
    allowed = Constraint.allowed

    def noted(self):
        names.add(threading.current_thread().name.rpartition("_")[0])
        return allowed(self)

    monkeypatch.setattr(Constraint, "allowed", noted)
    forced(engine, WEATHER, max_tokens=60)
    assert names == {"karakuri-grammar"}


def test_engines_of_one_model_share_what_was_compiled(random_weights, monkeypatch):
    compiled = []
    compile_ = Grammars._compile
    monkeypatch.setattr(Grammars, "_compile", lambda self, grammar: compiled.append(1) or compile_(self, grammar))
    schema = object_of(only_here={"type": "boolean"})
    one, two = (LocalEngine(random_weights, device="cpu", quantization="fp32") for _ in range(2))
    assert forced(one, schema).calls[0].arguments == forced(two, schema).calls[0].arguments
    assert compiled == [1]
    one.close()


def test_what_was_compiled_is_forgotten_in_turn(engine, monkeypatch):
    monkeypatch.setattr(grammars, "_KEPT", 2)
    found = engine._shared.grammars(2)
    made = [Grammar(json.dumps(object_of(**{name: {"type": "null"}}))) for name in "abc"]
    for one in made:
        found.constraint(one, 50)
    assert [one in found for one in made] == [False, True, True]


def test_threads_that_want_the_same_grammar_compile_it_once(engine, monkeypatch):
    found, compiled = engine._shared.grammars(2), []
    compile_ = Grammars._compile

    def slow(self, grammar):
        compiled.append(grammar)
        time.sleep(0.05)
        return compile_(self, grammar)

    monkeypatch.setattr(Grammars, "_compile", slow)
    grammar = Grammar(json.dumps(object_of(wanted_by_all={"enum": ["x", "y"]})))
    begin, masks = threading.Barrier(8), []

    def want():
        begin.wait()
        for _ in range(20):
            masks.append(found.constraint(grammar, 50).allowed().tobytes())
            assert grammar in found

    threads = [threading.Thread(target=want) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert compiled == [grammar]
    assert len(masks) == 160
    assert len(set(masks)) == 1


def test_what_is_refused_takes_no_place(engine, monkeypatch):
    monkeypatch.setattr(grammars, "_KEPT", 2)
    found = engine._shared.grammars(2)
    good = Grammar(json.dumps(object_of(good={"type": "null"})))
    found.constraint(good, 50)
    for word in "abc":
        with pytest.raises(UnsupportedSchemaError):
            found.constraint(Grammar(json.dumps({"$ref": f"#/$defs/{word}"})), 50)
    assert good in found
    assert len(found._compiled) == 1


# Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 5.0},
        {"top_p": 0.1},
        {"top_k": 1},
        {"min_p": 0.9},
        {"repetition_penalty": 3.0},
        {"temperature": 0, "repetition_penalty": 0.2},
    ],
)
def test_every_way_of_sampling_keeps_to_the_grammar(engine, sampling):
    (call,) = forced(engine, SCHEMAS["bounds"], **sampling).calls
    jsonschema.validate(json.loads(call.arguments), SCHEMAS["bounds"])


def test_a_seed_gives_the_same_call_again(engine):
    first, again, other = (forced(engine, WEATHER, max_tokens=60, seed=seed).calls[0].arguments for seed in (1, 1, 2))
    assert first == again != other


# Ends from outside, and errors


def test_a_call_that_is_left_stops_the_compute(engine):
    call = prepare(
        engine, tools=[tool(object_of(s={"type": "string", "minLength": 5000}))], tool_choice="f", max_tokens=3000
    )
    before = engine.steps
    pieces = engine.stream(call.prompt, call.sampling)
    for _ in range(30):
        next(pieces)
    pieces.close()
    loaded_model(engine)  # waits behind it
    assert engine.steps - before < 2000
    assert forced(engine, {}).calls[0].error is None


def test_the_deadline_holds(engine):
    forced(engine, {})
    with pytest.raises(DeadlineError):
        forced(engine, object_of(s={"type": "string", "minLength": 5000}), max_tokens=3500, timeout=0.3)


def test_logits_that_are_no_numbers_are_an_error_under_a_grammar_too(engine):
    hook = failing(loaded_model(engine), 3, poisoned(float("nan")))
    with pytest.raises(NumericalError):
        forced(engine, WEATHER)
    hook.remove()
    assert forced(engine, {}).calls[0].error is None


def test_many_threads_each_with_a_grammar_of_its_own(engine):
    names = list(SCHEMAS) * 2
    right = {name: forced(engine, SCHEMAS[name], max_tokens=150).calls[0].arguments for name in SCHEMAS}
    got = []

    def call(name: str) -> None:
        got.append((name, forced(engine, SCHEMAS[name], max_tokens=150).calls[0].arguments))

    threads = [threading.Thread(target=call, args=(name,)) for name in names]
    for one in threads:
        one.start()
    for one in threads:
        one.join(120)
    assert sorted(got) == sorted((name, right[name]) for name in names)


async def test_async_calls_give_the_same(engine):
    call = prepare(engine, tools=[tool(WEATHER)], tool_choice="f", max_tokens=60)
    right = fold(stream(engine, call.prompt, call.sampling))
    deltas = [[one async for one in astream(engine, call.prompt, call.sampling)] for _ in range(2)]
    assert [fold(one).calls[0].arguments for one in deltas] == [right.calls[0].arguments] * 2


async def test_compiling_does_not_block_the_event_loop(engine, monkeypatch):
    await asyncio.to_thread(forced, engine, {})
    call = prepare(engine, tools=[tool(object_of(slow_one={"type": "null"}))], tool_choice="f")
    async with TurningLoop() as loop:
        monkeypatch.setattr(Grammars, "_compile", loop.slow(Grammars._compile))
        assert [one async for one in call.astream()]
    assert loop.seen == [True] * 10


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ({"not": {"pattern": "a"}}, "not"),
        ({"if": {"type": "array"}, "then": {"uniqueItems": True}}, "uniqueItems"),
        ({"type": "array", "contains": {"type": "null"}, "maxContains": 2}, "contains"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "object", "properties": dict.fromkeys("abcdefghij", True), "maxProperties": 5}, "maxProperties"),
        ({"if": {"pattern": "a"}, "then": {"minLength": 2}}, "if"),
        ({"type": "object", "propertyNames": {"maxLength": 3, "pattern": "^a"}}, "propertyNames"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "required"),
        ({"$ref": "https://example.org/schema"}, "$ref"),
        ({"$ref": "#/$defs/nowhere"}, "$ref"),
        ({"anyOf": [{"properties": {"a": {}}}, {}], "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"type": "array", "contains": {"type": "null"}, "unevaluatedItems": False}, "contains"),
    ],
)
def test_what_no_grammar_can_hold_is_named_before_anything_is_loaded(random_weights, monkeypatch, value, word):
    monkeypatch.setattr(registry, "load", lambda *_: pytest.fail("weights were loaded"))
    engine = LocalEngine(random_weights, device="cpu", quantization="bf16")
    with pytest.raises(UnsupportedSchemaError, match="no grammar") as caught:
        forced(engine, object_of(x=value))
    assert caught.value.keyword == word
    with pytest.raises(UnsupportedSchemaError):
        asyncio.run(anext(prepare(engine, tools=[tool(object_of(x=value))]).astream()))


#: Parameters that nothing fits, each in a way of its own, and where the cause stands.
NEVER = [
    (object_of(a={"type": "integer", "minimum": 5, "maximum": 3}), "at 'a'"),
    (object_of(a=False), ""),
    (object_of(a={"anyOf": [{"enum": []}, {"type": "string", "pattern": "^a$", "minLength": 3}]}), "at 'a'"),
    (object_of(a=object_of(b={"type": "array", "items": {"const": 1, "type": "string"}, "minItems": 1})), "at 'a.b'"),
    ({**object_of(a={"$ref": "#/$defs/N"}), "$defs": {"N": object_of(b={"enum": []})}}, "at 'a.b'"),
    ({**object_of(n={"$ref": "#/$defs/N"}), "$defs": {"N": object_of(n={"$ref": "#/$defs/N"})}}, "at 'n.n'"),
    ({"type": "object", "additionalProperties": False, "required": ["a"]}, ""),
    ({"type": "object", "not": {}}, ""),
    (object_of(a=object_of(b={"type": "string", "pattern": "(?=a)b"})), "at 'a.b'"),
]


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("place", [None, 0, 1, 2])
@pytest.mark.parametrize(("never", "where"), NEVER)
def test_a_tool_that_could_never_be_called_is_named_also_among_others(engine, never, where, place, choice):
    others = [] if place is None else [tool(object_of(a={"type": "integer"}), "good"), tool({}, "bare")]
    tools = [*others[: place or 0], tool(never, "悪い"), *others[place or 0 :]]
    with pytest.raises(UnsupportedSchemaError, match=f"the parameters of tool '悪い'.*{where}") as caught:
        ask(engine, tools=tools, tool_choice=choice)
    assert "good" not in str(caught.value)


def test_bounds_that_contradict_each_other_are_not_blamed_on_the_word_that_asks_for_them(engine):
    never, _ = NEVER[0]
    with pytest.raises(UnsupportedSchemaError, match="no value fits that property: let its words agree$") as caught:
        ask(engine, tools=[tool(never)])
    assert "leave" not in str(caught.value)


def test_the_place_in_an_answers_schema_is_named(engine):
    schema = object_of(days={"type": "array", "items": object_of(day={"type": "string", "pattern": "(?=a)b"})})
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for more in ({}, {"tools": [tool({})]}):
        with pytest.raises(UnsupportedSchemaError, match="this JSON schema, at 'days.day'"):
            ask(engine, response_format=form, **more)


@pytest.mark.parametrize(
    "endless",
    [
        {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}, "required": ["next"]},
        {"$ref": "#/$defs/N"},
        {"allOf": [{"$ref": "#/$defs/N"}]},
        {"type": "array", "items": {"$ref": "#/$defs/N"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"$ref": "#/$defs/N"}], "minItems": 1},
        {
            "anyOf": [
                {"$ref": "#/$defs/N"},
                {"type": "object", "properties": {"a": {"$ref": "#/$defs/N"}}, "required": ["a"]},
            ]
        },
    ],
)
def test_a_value_that_would_have_to_hold_itself_for_ever_is_refused_or_left_out(endless):
    one = {"type": "object", "properties": {"maybe": {"$ref": "#/$defs/N"}}}
    for whole in ({**one, "required": ["maybe"]}, {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/N"}, {}]}}):
        with pytest.raises(UnsupportedSchemaError, match="without end") as caught:
            prepared({**whole, "$defs": {"N": endless}})
        assert caught.value.keyword == "$ref"
    assert prepared({**one, "$defs": {"N": endless}})["properties"] == {"maybe": False}


@pytest.mark.parametrize(
    "ends",
    [
        {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}},
        {"type": "array", "items": {"$ref": "#/$defs/N"}},
        {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]},
        {"type": ["object", "null"], "properties": {"next": {"$ref": "#/$defs/N"}}, "required": ["next"]},
        {"properties": {"next": {"$ref": "#/$defs/N"}}, "required": ["next"]},
    ],
)
def test_a_value_that_may_hold_itself_is_not(ends):
    schema = {"$ref": "#/$defs/N", "$defs": {"N": ends}}
    assert prepared(schema) == schema


def test_what_decides_nothing_is_left_out():
    schema = {
        "type": "object",
        "properties": {
            "format": {"type": "string", "format": "no-such-format"},
            "uniqueItems": {"type": "array", "uniqueItems": False, "minContains": 2, "items": {"if": {}, "not": False}},
            "date": {"type": "string", "format": "date"},
            "set": {"type": "array", "uniqueItems": True, "maxItems": 1.0},
            "data": {"enum": [{"format": "no-such-format"}]},
            "any": True,
        },
        "dependentRequired": {},
        "then": {"minProperties": 3},
    }
    assert prepared(schema) == {
        "type": "object",
        "properties": {
            "format": {"type": "string"},
            "uniqueItems": {"type": "array", "items": {}},
            "date": {"type": "string", "format": "date"},
            "set": {"type": "array", "maxItems": 1},
            "data": {"enum": [{"format": "no-such-format"}]},
            "any": True,
        },
    }
    assert prepared(True) == {}


def test_a_grammar_that_gets_stuck_is_a_typed_error_without_the_text(engine):
    call = prepare(engine, tools=[tool(WEATHER)], tool_choice="f")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammars, "allowed_tokens", lambda _matcher, width: __import__("numpy").zeros(width, bool))
        with pytest.raises(EngineError, match="cannot go on") as caught:
            fold(call.stream())
    assert "東京" not in str(caught.value)
    assert forced(engine, {}).calls[0].error is None


def test_without_llguidance_the_pip_command_is_named(random_weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    engine = LocalEngine(random_weights, device="cpu", quantization="fp16")
    with pytest.raises(MissingDependencyError, match="llguidance.*pip install"):
        forced(engine, {})


# Vocabularies


@pytest.mark.parametrize("vocabulary", [4090, 4160])
def test_a_model_whose_vocabulary_is_not_its_tokenizers(tmp_path, vocabulary):
    engine = LocalEngine(random_checkpoint(tmp_path / "other", vocabulary), device="cpu", quantization="fp32")
    prompt = prompt_of("hi")
    grammar = Grammar(json.dumps(SCHEMAS["bounds"]))
    held = Prompt(prompt.segments, grammar=grammar)
    for seed in range(3):
        text = "".join(one.text for one in engine.stream(held, Sampling(temperature=1, max_tokens=150, seed=seed)))
        jsonschema.validate(json.loads(text), SCHEMAS["bounds"])
    engine.close()


def test_every_family_has_a_syntax_that_can_be_forced(random_weights):
    for name in FAMILIES:
        engine = LocalEngine(random_weights, device="cpu", quantization="fp32", template=name)
        (call,) = forced(engine, object_of(x={"type": "boolean"})).calls
        assert json.loads(call.arguments)["x"] in (True, False)
    engine.close()


# Processes

PRELUDE = """
import os, sys
from karakuri_integrations.conversation import Control, Grammar, Prompt, Sampling
from karakuri_integrations.engines import LocalEngine
engine = LocalEngine(sys.argv[1], device="cpu", quantization="fp32")
grammar = Grammar('{"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}')
prompt = Prompt((Control("<s>"), "[INST] hello [/INST]"), grammar=grammar)
def ask():
    return "".join(piece.text for piece in engine.stream(prompt, Sampling(max_tokens=20)))
"""


@needs_fork
def test_grammars_and_fork(random_weights):
    """A child of a process that used one is refused at once; one that forked before works, pool of threads and all."""
    done = run(
        PRELUDE
        + """
from karakuri_integrations.errors import ForkedProcessError
def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        except BaseException:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def works():
    return 0 if '"x": ' in ask() else 1
def refused():
    try:
        ask()
    except ForkedProcessError:
        return 0
    return 1
assert in_child(works) == 0
assert works() == 0
assert in_child(refused) == 0
assert works() == 0
""",
        str(random_weights),
    )
    assert done.returncode == 0, done.stderr


def test_the_interpreter_ends_quietly_in_the_middle_of_a_held_reply(random_weights):
    done = run(
        PRELUDE
        + """
grammar = Grammar('{"type": "object", "properties": {"x": {"type": "string", "minLength": 9000}}, "required": ["x"]}')
pieces = engine.stream(Prompt(prompt.segments, grammar=grammar), Sampling(max_tokens=3000))
for _ in range(20):
    next(pieces)
""",
        str(random_weights),
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
