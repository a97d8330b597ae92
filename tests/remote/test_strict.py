"""strict=True on llama.cpp and Ollama: a word that their converter does not hold is an error, and nothing is sent.

What is held and what is not was compared with the converter itself: of the grammars that it makes, texts were drawn.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from loopback import Loopback, Reply
from wires import COMPLETION

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")

from karakuri_integrations.engines import RemoteEngine
from karakuri_integrations.engines.servers.converting import llamacpp_gap
from karakuri_integrations.errors import UnsupportedSchemaError

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
CONVERTING = ("llamacpp", "ollama")
CALL = '[{"name": "record", "arguments": {"value": 7}}]'


def of(value: Any, **more: Any) -> dict[str, Any]:
    """A tool's parameters with one argument."""
    return {"type": "object", "properties": {"value": value}, "required": ["value"], **more}


def tool(parameters: dict[str, Any], name: str = "record") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Records it.", "parameters": parameters}}


def objects(*names: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "null"} for name in names}, **more}


TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
CAT = {**objects("a"), "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
DOG = {**objects("b"), "properties": {"kind": {"const": "dog"}}, "required": ["kind"]}

# --- which words -----------------------------------------------------------------------------------------------------

MISSED = [
    # numbers
    (NUMBER | {"minimum": 0.5}, "minimum"),
    (NUMBER | {"minimum": 1}, "minimum"),
    (NUMBER | {"exclusiveMaximum": 9}, "exclusiveMaximum"),
    (WHOLE | {"multipleOf": 5}, "multipleOf"),
    (WHOLE | {"minimum": 100}, "minimum"),  # lets 10 through
    (WHOLE | {"exclusiveMinimum": 204}, "exclusiveMinimum"),
    (WHOLE | {"maximum": -5}, "maximum"),  # lets -07 through
    (WHOLE | {"minimum": 1_111_111_111_111_111}, "minimum"),
    (WHOLE | {"minimum": 10**19, "maximum": 10**19 + 5}, "minimum"),
    (WHOLE | {"minimum": 1, "exclusiveMinimum": 5}, "exclusiveMinimum"),
    (WHOLE | {"minimum": 9, "maximum": 1}, "maximum"),
    ({"minimum": 3}, "minimum"),  # without a type it takes anything
    ({"type": ["number", "null"], "maximum": 1}, "maximum"),
    # strings
    (TEXT | {"pattern": "a+"}, "pattern"),
    (TEXT | {"pattern": "^a"}, "pattern"),
    (TEXT | {"pattern": "^\\d+$"}, "pattern"),
    (TEXT | {"pattern": "^.{2}$"}, "pattern"),  # a quotation mark would end the text
    (TEXT | {"pattern": "^[^a]*$"}, "pattern"),
    (TEXT | {"pattern": "^[A-z]$"}, "pattern"),  # a backslash is between them
    (TEXT | {"pattern": "^a\\.+$"}, "pattern"),  # repeats the a too
    (TEXT | {"pattern": "^京+$"}, "pattern"),  # repeats a byte
    (TEXT | {"pattern": "^a+?$"}, "pattern"),
    (TEXT | {"pattern": "^[\\ud83c\\udf63]$"}, "pattern"),
    (TEXT | {"pattern": "^(?=a)a$"}, "pattern"),
    (TEXT | {"pattern": "^a$", "minLength": 1}, "minLength"),
    (TEXT | {"pattern": "^a$", "format": "date"}, "format"),
    (TEXT | {"format": "email"}, "format"),
    (TEXT | {"minLength": 2, "maxLength": 1}, "maxLength"),
    (TEXT | {"minLength": 1.0}, "minLength"),
    # lists
    ({"type": "array", "items": WHOLE, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": WHOLE}, "contains"),
    ({"type": "array", "items": True}, "items"),
    ({"type": "array", "prefixItems": [WHOLE], "items": TEXT}, "prefixItems"),
    ({"type": "array", "prefixItems": [WHOLE], "minItems": 2}, "minItems"),
    ({"type": "array", "prefixItems": [WHOLE, TEXT], "maxItems": 1}, "maxItems"),
    ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
    # objects
    (objects("a", required=["b"]), "required"),
    (objects("a", additionalProperties=True), "additionalProperties"),
    (objects("a", additionalProperties=WHOLE), "additionalProperties"),
    (objects("a", patternProperties={"^x": WHOLE}), "patternProperties"),
    (objects("a", propertyNames={"maxLength": 1}), "propertyNames"),
    (objects("a", minProperties=1), "minProperties"),
    (objects("a", "b", maxProperties=1), "maxProperties"),
    (objects("a", dependentRequired={"a": ["b"]}), "dependentRequired"),
    (objects("a", dependentSchemas={"a": False}), "dependentSchemas"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "object", "properties": {"a": True}}, "properties"),
    # logic
    ({"not": {"type": "null"}}, "not"),
    ({"if": {"type": "null"}, "then": False}, "if"),
    ({"oneOf": [WHOLE, NUMBER]}, "oneOf"),
    ({"oneOf": [WHOLE], "anyOf": [WHOLE]}, "anyOf"),
    ({"anyOf": [WHOLE, TEXT], "type": "string"}, "type"),
    ({"anyOf": [{"type": "object"}], **objects("a")}, "properties"),
    ({"allOf": [TEXT | {"minLength": 1}]}, "allOf"),  # becomes an empty object
    ({"allOf": [objects("a"), objects("a")]}, "allOf"),
    ({"allOf": [objects("a"), TEXT]}, "allOf"),
    ({"allOf": [objects("a", additionalProperties=False), objects("b")]}, "allOf"),
    ({"allOf": [{"enum": ["a"]}, TEXT | {"minLength": 2}]}, "allOf"),
    ({"allOf": [{"type": ["integer", "string"], "enum": ["a"]}]}, "allOf"),
    ({"enum": ["a", 1], "type": "string"}, "type"),
    ({"enum": ["a", "bc"], "minLength": 2}, "minLength"),
    ({"const": "a", "enum": ["b"]}, "enum"),
    ({"$dynamicRef": "#x"}, "$dynamicRef"),
]


@pytest.mark.parametrize(("schema", "word"), MISSED)
def test_a_word_that_is_not_held(schema: dict[str, Any], word: str) -> None:
    for place in (
        schema,
        {"type": "array", "items": schema},
        {"type": "object", "additionalProperties": schema},
        {"type": "array", "prefixItems": [{"type": "null"}, schema]},
        {"anyOf": [{"type": "null"}, schema]},
        {"$ref": "#/$defs/it", "$defs": {"it": schema}},
        of(schema),
    ):
        gap = llamacpp_gap(place)
        assert gap is not None and gap.word == word


HELD: list[Any] = [
    {},
    {"type": "object"},
    {"type": "array"},
    WHOLE | {"minimum": 0, "maximum": 150},
    WHOLE | {"minimum": 18},
    WHOLE | {"exclusiveMinimum": 0},
    WHOLE | {"minimum": -1000},
    WHOLE | {"maximum": 1000},
    WHOLE | {"minimum": 1900, "maximum": 2100},
    WHOLE | {"minimum": 0.5, "exclusiveMaximum": 9.5},
    WHOLE | {"exclusiveMinimum": 1, "minimum": 2},
    WHOLE | {"multipleOf": 1},
    NUMBER | {"pattern": "a", "minItems": 3},  # says nothing of numbers
    TEXT | {"minLength": 1, "maxLength": 20},
    TEXT | {"pattern": "^[A-Z]{3}_[0-9]{2}(?:_v[0-9])?$"},
    TEXT | {"pattern": "^(foo|bar)+$"},
    TEXT | {"pattern": "^\\+?[0-9]+(\\.[0-9]+)?$"},
    TEXT | {"pattern": "^東京都[ぁ-ん]{1,5}$"},
    TEXT | {"pattern": "^ab+[\\u3041-\\u3096]$"},
    *(TEXT | {"format": one} for one in ("date", "time", "date-time", "uuid", "zip code")),
    {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3, "uniqueItems": False},
    {"type": "array", "items": TEXT, "maxItems": 1, "uniqueItems": True},
    {"type": "array", "prefixItems": [WHOLE, TEXT], "minItems": 2, "maxItems": 2, "unevaluatedItems": False},
    objects("a", "b", required=["a"], minProperties=1, maxProperties=2, additionalProperties=False),
    objects("a", unevaluatedProperties=False, patternProperties={}, propertyNames=True),
    {"type": "object", "additionalProperties": WHOLE},
    {"oneOf": [CAT, DOG]},
    {"anyOf": [TEXT, {"type": "null"}], "type": ["string", "null"]},
    {"type": ["string", "null"], "enum": ["a", None]},
    {"type": "integer", "const": 2.0},
    {"allOf": [CAT], "type": "object", "description": "A cat."},
    {"allOf": [objects("a"), objects("b")]},
    {"if": {"type": "null"}},
    # what looks like a word and is a name or data
    objects("multipleOf", "pattern", "not", "uniqueItems", "properties"),
    {"enum": [{"multipleOf": 5, "not": {}}, {"pattern": "a"}]},
    {"const": {"uniqueItems": True, "minimum": 0.5}},
    NUMBER | {"default": {"multipleOf": 5}, "examples": [{"not": {}}], "title": "minimum", "description": "pattern"},
    {"$ref": "#/$defs/multipleOf", "$defs": {"multipleOf": WHOLE, "unused": NUMBER | {"multipleOf": 5}}},
]


@pytest.mark.parametrize("schema", HELD)
def test_no_word_is_refused_that_is_held(schema: dict[str, Any]) -> None:
    assert llamacpp_gap(schema) is None
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    assert llamacpp_gap(of(schema, **definitions)) is None


@pytest.mark.parametrize(
    ("references", "word"),
    [
        (["#/$defs/Node"], ""),
        (["#/$defs/天気"], ""),
        (["#/$defs/天気", "#/$defs/Node"], ""),
        (["#/$defs/天気", "#/$defs/場所"], "$ref"),  # both are called by no sign that it knows
        (["#/$defs/A_b", "#/$defs/A-b"], "$ref"),
        (["#/$defs/A", "#/$defs/A_b"], "$ref"),  # A's property b is called so too
        (["#/$defs/a%20b"], "$ref"),
        (["#/$defs/a~1b"], "$ref"),
        (["#/$defs/nowhere"], "$ref"),
        (["https://example.org/x"], "$ref"),
        (["other.json/x"], "$ref"),
        (["#//$defs/Node"], "$ref"),
        (["#"], "$ref"),
    ],
)
def test_references(references: list[str], word: str) -> None:
    names = ("Node", "天気", "場所", "A", "A_b", "A-b", "a b", "a/b")
    schema = {
        "type": "object",
        "properties": {f"p{place}": {"$ref": one} for place, one in enumerate(references)},
        "$defs": {name: {"type": "object", "properties": {"b": {"enum": [name]}}} for name in names},
    }
    gap = llamacpp_gap(schema)
    assert (gap.word if gap else "") == word


def test_an_id_within_moves_references() -> None:
    inner = {"$id": "https://example.org/x", "$ref": "#/$defs/n"}
    whole = of(inner, **{"$defs": {"n": WHOLE}, "$id": "https://example.org/y"})
    assert llamacpp_gap(whole) == ("$id", "its converter takes every reference for one into the whole schema")
    del inner["$id"]
    assert llamacpp_gap(whole) is None


def test_a_recursive_schema_is_held() -> None:
    node = objects("value", required=["value"])
    node["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}
    assert llamacpp_gap({"$ref": "#/$defs/Node", "$defs": {"Node": node}}) is None
    node["properties"]["value"] = NUMBER | {"multipleOf": 3}
    gap = llamacpp_gap({"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    assert gap is not None and gap.word == "multipleOf"


# --- through both frameworks -----------------------------------------------------------------------------------------

LIMITED = of(NUMBER | {"multipleOf": 0.5})
NESTED = of({"type": "array", "items": objects("a") | {"properties": {"step": WHOLE | {"multipleOf": 5}}}})


def engine(loopback: Loopback, server: str, text: str = CALL) -> RemoteEngine:
    line = json.dumps({"response": text, "done": True, "done_reason": "stop"}).encode() + b"\n"
    reply = Reply([line]) if server == "ollama" else Reply(COMPLETION.stream(text))
    return RemoteEngine(loopback.script("a", [reply] * 9), MODEL, server=server)


def langchain_asks(one: RemoteEngine, parameters: dict[str, Any], strict: bool | None = True) -> dict[str, Any]:
    module = pytest.importorskip("karakuri_integrations.langchain")
    model = module.ChatKarakuri(engine=one, max_tokens=50)
    free, tools = tool(objects("city"), "weather"), [tool(parameters)]
    titled = {"title": "Record", **parameters}
    return {
        "forced": model.bind_tools(tools, tool_choice="record", strict=strict).invoke,
        "free": model.bind_tools([free, *tools], strict=strict).invoke,
        "call": model.with_structured_output(titled, method="function_calling", strict=strict).invoke,
        "JSON": model.with_structured_output(titled, method="json_schema", strict=strict).invoke,
    }


def llama_index_asks(one: RemoteEngine, parameters: dict[str, Any], strict: bool | None = True) -> dict[str, Any]:
    module = pytest.importorskip("karakuri_integrations.llama_index")
    from llama_index.core.llms import ChatMessage

    model, tools = module.KarakuriLLM(engine=one, max_tokens=50), [tool(objects("city"), "weather"), tool(parameters)]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": parameters}}

    def asks(**options: Any) -> Any:
        return lambda text: model.chat([ChatMessage(text)], strict=bool(strict), **options)

    return {
        "forced": asks(tools=tools, tool_choice="record"),
        "free": asks(tools=tools),
        "JSON": asks(response_format=form),
    }


ASKS = {"LangChain": langchain_asks, "LlamaIndex": llama_index_asks}


@pytest.mark.parametrize("framework", ASKS)
@pytest.mark.parametrize("server", CONVERTING)
@pytest.mark.parametrize(("parameters", "place"), [(LIMITED, "value"), (NESTED, "value.step")])
def test_nothing_is_sent_and_the_error_names_all(
    loopback: Loopback, framework: str, server: str, parameters: dict[str, Any], place: str
) -> None:
    for way, ask in ASKS[framework](engine(loopback, server), parameters).items():
        with pytest.raises(UnsupportedSchemaError) as caught:
            ask("7を記録してください。")
        name = "Record" if way == "call" else "record"
        whole = "this JSON schema" if way == "JSON" else f"the parameters of tool {name!r}"
        assert caught.value.keyword == "multipleOf"
        assert str(caught.value) == (
            f"strict=True: {server} does not hold replies to the word 'multipleOf' of {whole}, at {place!r} (its "
            "converter passes over it there); leave strict out, and the reply is checked when it has come, or use a "
            "local model, or vLLM or SGLang with llguidance"
        )
    assert loopback.exchanges() == []


@pytest.mark.parametrize("server", CONVERTING)
def test_the_schema_of_a_reply_that_is_no_call_counts_too(loopback: Loopback, server: str) -> None:
    langchain = pytest.importorskip("karakuri_integrations.langchain")
    model = langchain.ChatKarakuri(engine=engine(loopback, server), max_tokens=50)
    bound = model.bind_tools([tool(of(WHOLE))], response_format={"title": "Answer", **LIMITED}, strict=True)
    with pytest.raises(UnsupportedSchemaError, match="'multipleOf' of this JSON schema, at 'value'"):
        bound.invoke("7を記録してください。")
    assert loopback.exchanges() == []


@pytest.mark.parametrize("framework", ASKS)
@pytest.mark.parametrize("server", CONVERTING)
def test_what_is_held_is_sent(loopback: Loopback, framework: str, server: str) -> None:
    parameters = of(WHOLE | {"minimum": 0, "maximum": 150}, additionalProperties=False)
    ASKS[framework](engine(loopback, server), parameters)["forced"]("7を記録してください。")
    (exchange,) = loopback.exchanges()
    schema = exchange.request.json["format" if server == "ollama" else "json_schema"]
    assert schema["type"] == "array" and schema["maxItems"] >= 1


@pytest.mark.parametrize("framework", ASKS)
@pytest.mark.parametrize("server", CONVERTING)
def test_without_strict_it_is_sent_and_checked_when_it_came(loopback: Loopback, framework: str, server: str) -> None:
    wrong = CALL.replace("7", "7.25")
    reply = ASKS[framework](engine(loopback, server, wrong), LIMITED, None)["forced"]("7を記録してください。")
    calls = (
        reply.invalid_tool_calls if framework == "LangChain" else reply.message.additional_kwargs["invalid_tool_calls"]
    )
    assert len(loopback.exchanges()) == 1 and len(calls) == 1 and "'multipleOf' at value" in str(calls)


@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_other_servers_are_asked_as_ever(loopback: Loopback, server: str) -> None:
    langchain_asks(engine(loopback, server), LIMITED)["forced"]("7を記録してください。")
    assert len(loopback.exchanges()) == 1
