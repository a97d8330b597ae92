"""Whether a value fits its schema; and what nobody can tell, fits."""

from __future__ import annotations

import json
import sys
import warnings
from decimal import Context, Inexact, localcontext
from typing import Any

import pytest

from karakuri_integrations.errors import MissingDependencyError
from karakuri_integrations.tools import validation
from karakuri_integrations.tools.validation import loads, misfit


def fits(text: str, schema: Any) -> bool:
    read = loads(json.dumps(schema))
    return misfit(loads(text), read, read) is None


def test_a_number_is_whole_however_it_is_written() -> None:
    assert all(fits(text, {"type": "integer"}) for text in ("1", "1.0", "2e3", "1e20", "-0.0"))
    assert not any(fits(text, {"type": "integer"}) for text in ("1.5", "1e-1", "true", '"1"'))


def test_it_says_which_word_and_where() -> None:
    schema = {"properties": {"a": {"items": {"maximum": 3}}}}
    assert misfit(loads('{"a": [1, 4]}'), schema, schema) == ("maximum", ("a", 1))
    assert misfit([], {"type": "object"}, True) == ("type", ())


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "("}, '"a"'),
        ({"$ref": "#"}, "1"),
        ({"$ref": "#/$defs/none"}, "1"),
        ({"$ref": "https://example.com/schema"}, "1"),
        ({"oneOf": [{"$dynamicRef": "#a"}, {"type": "integer"}]}, "1"),
        ({"multipleOf": 1e-300}, "1e300"),
        ({"minimum": "1"}, "0"),
        ({"properties": 3}, '{"a": 1}'),
    ],
)
def test_what_cannot_be_told_fits(schema: Any, text: str) -> None:
    assert fits(text, schema)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"multipleOf": 0.01}, "0.001"),
        ({"uniqueItems": True}, "[1, 1.0]"),
        ({"const": True}, "1"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"maximum": 2}}}, "3"),
        ({"not": {"unevaluatedProperties": False}}, "{}"),
        ({"oneOf": [{"minimum": 1}, {"multipleOf": 2}]}, "4"),
        (False, "1"),
    ],
)
def test_what_does_not_fit(schema: Any, text: str) -> None:
    assert not fits(text, schema)


def test_tenths_are_compared_as_they_are_written() -> None:
    assert fits("0.3", {"multipleOf": 0.1})
    assert fits("4.35", {"multipleOf": 0.01, "maximum": 4.35})


def test_the_callers_decimals_decide_nothing() -> None:
    with localcontext(Context(prec=2)):
        assert not fits("4.351", {"multipleOf": 0.01})
        assert fits("1234.01", {"multipleOf": 0.01})
    with localcontext() as own:
        own.traps[Inexact] = True
        assert not fits("0.015", {"multipleOf": 0.01})


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("a reference was fetched")

    monkeypatch.setattr("urllib.request.urlopen", opened)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fits("1", {"$ref": "http://127.0.0.1:9/schema.json"})


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    validation._validators.cache_clear()
    with pytest.raises(
        MissingDependencyError, match=r'needs jsonschema: pip install "karakuri-integrations\[remote\]"'
    ):
        misfit(1, {}, {})


def test_what_is_too_deep_to_be_told_fits() -> None:
    schema = {"properties": {"a": {"$ref": "#"}}, "not": {"required": ["b"]}}
    value: Any = {"b": 1}
    for _ in range(5000):
        value = {"a": value}
    assert misfit(value, schema, schema) is None


def test_what_takes_too_long_to_be_told_fits() -> None:
    branching: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    schema = {"$defs": {**branching, "a40": {"type": "integer"}}, "$ref": "#/$defs/a0"}
    assert misfit(1, schema, schema) is None
    numbers = {"items": {"type": "integer"}, "uniqueItems": True}
    assert misfit([*range(1000), 1], numbers, numbers) == ("uniqueItems", ())
    objects = [{"n": n} for n in range(200)]
    assert misfit([*objects, {"n": 1}], {"uniqueItems": True}, True) == ("uniqueItems", ())
    assert misfit([*objects * 10], {"uniqueItems": True}, True) is None


def test_each_value_has_the_whole_time() -> None:
    schema = {"items": {"type": "integer"}}
    values = [*range(30_000)]
    assert misfit(values, schema, schema) is None
    assert misfit([*values, "x"], schema, schema) == ("type", (30_000,))
