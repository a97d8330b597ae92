"""How each server is told a JSON schema, field by field, against the sources that `engines.servers.schemas` names."""

import json
from typing import Any

import pytest

from karakuri_integrations.conversation import CallForm, Tool, Tooling
from karakuri_integrations.engines.servers import SERVERS, keyword_in, refuses_schema, server_of
from karakuri_integrations.tools.schemas import list_of_calls

OBJECT: dict[str, Any] = {"type": "object", "properties": {"都市": {"enum": ["東京"]}}, "required": ["都市"]}
LIST = json.loads(list_of_calls(Tooling((Tool("a", parameters=json.dumps(OBJECT)),)), CallForm("x")))
STYLE = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}


def told(server: str, schema: Any) -> Any:
    say = server_of(server).grammar
    assert say is not None
    return say(json.dumps(schema))


def test_vllm() -> None:
    assert told("vllm", OBJECT) == {"structured_outputs": {"json": {**OBJECT, **STYLE}}}
    assert told("vllm", LIST) == {"structured_outputs": {"json": {**LIST, **STYLE}}}


def test_sglang_takes_it_as_text() -> None:
    written = told("sglang", OBJECT)
    assert json.loads(written.pop("json_schema")) == {**OBJECT, **STYLE}
    assert written == {}
    assert "東京" in told("sglang", OBJECT)["json_schema"]


def test_llamacpp() -> None:
    assert told("llamacpp", LIST) == {"json_schema": LIST}


@pytest.mark.parametrize("server", ["tgi", "sagemaker"])
def test_tgi_takes_an_object_that_names_its_properties(server: str) -> None:
    assert told(server, OBJECT) == {"parameters": {"grammar": {"type": "json", "value": OBJECT}}}
    assert told(server, LIST) is None
    assert told(server, {"type": "object"}) is None
    assert told(server, True) is None


def test_ollama() -> None:
    assert told("ollama", LIST) == {"format": LIST}
    assert told("ollama", True) is None  # a format that begins otherwise is refused


def test_chat() -> None:
    wanted = {"name": "reply", "schema": OBJECT, "strict": True}
    assert told("chat", OBJECT) == {"response_format": {"type": "json_schema", "json_schema": wanted}}


def test_who_has_none() -> None:
    assert {one.name for one in SERVERS.values() if one.grammar is None} == {"transformers", "openai"}


def test_who_counts_while_it_writes() -> None:
    assert {one.name: one.running_counts for one in SERVERS.values() if one.running_counts} == {
        "vllm": {"stream_options": {"continuous_usage_stats": True}},
        "sglang": {"stream_options": {"continuous_usage_stats": True}},
        "llamacpp": {"timings_per_token": True},
    }


def test_llguidance_reads_the_style_and_a_servers_own_default_does_not_win() -> None:
    """As vLLM and SGLang hand a schema to it (backend_guidance.py, llguidance_backend.py)."""
    llguidance = pytest.importorskip("llguidance")
    schema = json.dumps(told("vllm", LIST)["structured_outputs"]["json"])
    for default in ({"whitespace_flexible": True}, {"whitespace_pattern": None}):
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=default)
        (found,) = json.loads(grammar)["grammars"]
        assert found["json_schema"]["x-guidance"].items() >= STYLE["x-guidance"].items()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("vLLM backend_xgrammar.py", "The provided JSON schema contains features not supported by xgrammar."),
        ("vLLM backend_guidance.py", "Grammar error: Unimplemented keys"),
        ("vLLM sampling_params.py", "Structured outputs are not yet supported for diffusion language models."),
        ("TGI validation.rs", "Input validation error: grammar is not valid: Grammar must have a 'properties' field"),
        ("TGI validation.rs", "Input validation error: cannot compile regex from schema: x"),
        (
            "llama.cpp, observed",
            "Field 'json_schema': \"json_schema\": JSON schema conversion failed:\nunrecognized type",
        ),
        ("Ollama llm/llama_server.go", 'invalid format: "[]"; expected "json" or a valid JSON Schema object'),
    ],
)
def test_refusals_are_recognised(source: str, text: str) -> None:
    assert refuses_schema(text), source


@pytest.mark.parametrize(
    "text", ["temperature must be at most 2", "max_tokens must be at least 1", "no such model", "invalid request"]
)
def test_other_errors_are_not(text: str) -> None:
    assert not refuses_schema(text)


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ('Unimplemented keys: ["uniqueItems"]', "uniqueItems"),
        ("`prefixItems` is not supported", "prefixItems"),
        ("cannot resolve $ref #/a", "$ref"),
        ('"items" and "contains"', ""),
        ("Grammar must have a 'properties' field", ""),
        ("multipleOf", ""),
    ],
)
def test_the_keyword_is_named_where_it_can_be_told(text: str, keyword: str) -> None:
    assert keyword_in(text) == keyword
