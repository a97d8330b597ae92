"""Lists that must hold each item once: whatever is chosen, no item comes twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import karakuri_integrations
from karakuri_integrations.conversation import Grammar
from karakuri_integrations.engines.grammars import Constraint, Grammars, fitting
from karakuri_integrations.engines.tokens import Tokens

np = pytest.importorskip("numpy")
pytest.importorskip("llguidance")
tokenizers = pytest.importorskip("tokenizers")

END, LIMIT = 2, 300
TOKENIZER = Path(karakuri_integrations.__file__).parent / "demo" / "tokenizer.json"
#: What a reply is made of most of the time, so that items come again and again.
FEW = (b"a", b'"', b",", b", ", b"1", b"0", b" ", b"]", b'"]', b'",', b"}", b".", b"true", b"t", b"n", b' "', b"-")


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    raw = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    size = raw.get_vocab_size()
    return Grammars(raw.to_str(), size, size, END, Tokens(raw).bytes_of)


def once(items: Any, **more: Any) -> dict[str, Any]:
    bounds = {"minItems": 4, "maxItems": 8}
    return {"type": "array", "items": items, "uniqueItems": True, **bounds, **more}


def few_of(grammars: Grammars) -> Any:
    texts = [grammars.tokenizer.decode_bytes([token]) for token in range(grammars.width)]
    return np.array([text in FEW for text in texts])


def drawn(constraint: Constraint, few: Any, seed: int, limit: int = LIMIT) -> list[int]:
    """Tokens of a reply, most often of the few."""
    choice, made = np.random.default_rng(seed), list[int]()
    while len(made) < limit and not constraint.finished and END not in made[-1:]:
        allowed = constraint.allowed()
        near = allowed & few
        of = near if near.any() and choice.random() < 0.95 else allowed
        made += constraint.take(int(choice.choice(np.flatnonzero(of))))
    return [token for token in made if token != END]


PAIR = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 1}, "b": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
SCHEMAS = {
    "strings": once({"type": "string"}),
    "characters": once({"type": "string", "maxLength": 1}),
    "whole numbers": once({"type": "integer"}),
    "numbers": once({"type": "number"}),
    "anything": once({}),
    "booleans": once({"type": "boolean"}, minItems=2),
    "enum": once({"enum": ["ab", "ac", "b", "東京", "東西", 1, 12, None]}),
    "range": once({"type": "integer", "minimum": 1, "maximum": 12}),
    "literals": once({"anyOf": [{"type": "boolean"}, {"type": "null"}, {"type": "string", "maxLength": 2}]}),
    "objects": once(PAIR),
    "dates": once({"type": "string", "format": "date"}),
    "of another": {"$ref": "#/$defs/T", "$defs": {"T": once({"type": "string"})}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_item_comes_twice_whatever_is_chosen(grammars: Grammars, name: str) -> None:
    grammar, few = Grammar(json.dumps(SCHEMAS[name])), few_of(grammars)
    for seed in range(8):
        text = grammars.tokenizer.decode_bytes(drawn(grammars.constraint(grammar, LIMIT), few, seed)).decode()
        assert Draft202012Validator(SCHEMAS[name]).is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    "items",
    [
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False},
        {"type": "string", "pattern": "^[ab]{1,2}$"},
    ],
)
def test_where_nothing_else_is_left_the_reply_is_cut_and_says_so(grammars: Grammars, items: Any) -> None:
    schema, few, cut = once(items, minItems=2, maxItems=20), few_of(grammars), 0
    for seed in range(8):
        constraint = grammars.constraint(Grammar(json.dumps(schema)), LIMIT)
        text = grammars.tokenizer.decode_bytes(drawn(constraint, few, seed)).decode()
        try:
            assert Draft202012Validator(schema).is_valid(json.loads(text))
        except ValueError:
            assert constraint.ended_early
            cut += 1
    assert cut


def test_a_reply_that_runs_out_of_tokens_ends_without_a_repetition(grammars: Grammars) -> None:
    schema, few = once({"type": "string"}, maxItems=1000), few_of(grammars)
    for seed in range(8):
        constraint = grammars.constraint(Grammar(json.dumps(schema)), 40)
        made = drawn(constraint, few, seed, 40)
        text = grammars.tokenizer.decode_bytes(made).decode()
        assert constraint.ended_early or len(made) < 40
        assert Draft202012Validator(schema).is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    ("fields", "before"),
    [
        ({"opener": "[TOOL_CALLS]\n", "lead": " "}, 'text, text ["a", "a"] [TOOL_CALLS]\n'),
        ({"opener": "[TOOL_CALLS]\n", "text_schema": '{"type": "integer"}'}, "[TOOL_CALLS]\n"),
        ({"opener": "[TOOL_CALLS]\n", "schema": "true", "text_schema": json.dumps(once({"type": "string"}))}, ""),
        ({"closer": "\n```"}, ""),
    ],
)
def test_the_list_is_found_behind_what_stands_before_it(fields: dict[str, str], before: str) -> None:
    grammar = Grammar(**{"schema": json.dumps(once({"type": "string"})), **fields})
    assert fitting(grammar, f'{before}["a", "b", "c", "d"]{fields.get("closer", "")}') is None
    assert fitting(grammar, f'{before}["a", "b", "c", "a"') == len(f'{before}["a", "b", "c", "a')
