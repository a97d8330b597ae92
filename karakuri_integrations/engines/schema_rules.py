"""Words of JSON Schema that llguidance does not know, said in words that it knows.

Each rule is exact: what fits afterwards is what fitted before. Two allow less: `contains` wants its item among the
first few, and of the keys that `minProperties` counts at most one may be a key that is not listed, since that could be
written twice. What no rule can say stays as it is, and is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, Final, TypeAlias

from ..errors import UnsupportedSchemaError
from ..tools.schema_logic import ANNOTATIONS, TYPES, Schema, disjoint, every, kinds, named, negated, some, values

__all__ = ["Outer", "placed", "refused", "rewritten"]

#: What the error for a schema speaks of, until its cause was looked for.
_WHOLE: Final = "this JSON schema"
#: So many alternatives are written out for one word at most.
_MOST: Final = 100
#: `contains` looks for its item among the first so many.
_FIRST: Final = 8
#: Words whose parts of a schema say which properties or items they have looked at.
_CONDITIONAL: Final = frozenset(
    {"anyOf", "oneOf", "if", "then", "else", "dependentSchemas", "dependencies", "unevaluatedProperties",
     "patternProperties", "additionalProperties", "$dynamicRef"}
)  # fmt: skip


@dataclass(frozen=True)
class _Change:
    """What becomes of a schema: words taken out, words put in, and schemas that must fit besides."""

    out: tuple[str, ...]
    put: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Schema, ...] = ()


@dataclass(frozen=True)
class Outer:
    """What is known of an object's properties where a schema is one of several that it must fit.

    `listed`: names that are said something of; `needed`: those that it must have; `free`: it may have others.
    """

    listed: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset()
    free: bool = True

    def with_(self, schema: Mapping[str, Any]) -> Outer:
        own = schema.get("properties") or {}
        listed = [one for one in (*self.listed, *own) if own.get(one, True) is not False]
        closed = schema.get("additionalProperties", True) is False and not schema.get("patternProperties")
        return Outer(
            tuple(dict.fromkeys(listed)),
            self.needed | set(schema.get("required") or ()),
            self.free and not closed,
        )


def refused(why: str, keyword: str, advice: str = "") -> UnsupportedSchemaError:
    """The error for a schema, without the schema. `advice`: what to do, where leaving the word out is not it."""
    word = f"the word {keyword!r}" if keyword else "that word"
    advice = advice or f"leave {word} out, or describe the rule in words and check the arguments in the tool"
    error = UnsupportedSchemaError(f"no grammar can be made of {_WHOLE} ({why[:200].rstrip(':')}); {advice}")
    error.keyword = keyword
    return error


def placed(refusal: UnsupportedSchemaError, where: str) -> UnsupportedSchemaError:
    """The same error, with the place of its cause."""
    error = UnsupportedSchemaError(str(refusal).replace(_WHOLE, where, 1))
    error.keyword = refusal.keyword
    return error


_Rule: TypeAlias = Callable[[Mapping[str, Any], Schema], _Change | None]


def rewritten(
    schema: Mapping[str, Any], root: Schema, kept: Collection[str] = (), outer: Outer | None = None
) -> dict[str, Any]:
    """The schema in words that llguidance knows, as far as there is a rule. Its parts are left as they are.

    Args:
        schema: one schema.
        root: what its references refer to.
        kept: words that must stay, because a reference leads through them.
        outer: of the schemas that the same value must fit.

    Raises:
        UnsupportedSchemaError: what llguidance would take and not hold.
    """
    found = dict(schema)
    rules: list[_Rule] = [*_RULES, partial(_counted, outer=outer or Outer())]
    for rule in rules:
        if rule not in _FIRST_RULES and any(word in found for word in ("unevaluatedProperties", "unevaluatedItems")):
            break  # it sees what the words beside it look at; so these stay, and it is refused by its name
        change = rule(found, root)
        if change is None or any(word in kept for word in change.out):
            continue
        found = {key: value for key, value in found.items() if key not in change.out} | dict(change.put)
        parts = [one for one in change.parts if one is not True]
        if parts:
            found["allOf"] = [*(found.get("allOf") or ()), *parts]
    return found


# --- objects ---


def _unevaluated_properties(schema: Mapping[str, Any], root: Schema) -> _Change | None:
    """As `additionalProperties`, where every part that looks at properties does so in any case."""
    if "unevaluatedProperties" not in schema:
        return None
    if "additionalProperties" in schema:
        return _Change(("unevaluatedProperties",))
    names = _looked_at(schema, root, own=True)
    if names is None:
        return None
    listed = {**names, **(schema.get("properties") or {})}
    rest = {"additionalProperties": schema["unevaluatedProperties"]}
    return _Change(("unevaluatedProperties",), {"properties": listed, **rest} if listed else rest)


def _looked_at(schema: Schema, root: Schema, *, own: bool = False, depth: int = 0) -> dict[str, bool] | None:
    """The names of properties that a schema and its parts look at; None where that depends on the value."""
    if not isinstance(schema, Mapping) or depth > 8:
        return {}
    allowed = {"unevaluatedProperties", "patternProperties"} if own else set()
    if schema.keys() & _CONDITIONAL - allowed:
        return None
    found = dict.fromkeys(schema.get("properties") or (), True)
    parts = [*(schema.get("allOf") or ()), *([named(root, schema["$ref"])] if "$ref" in schema else ())]
    for part in parts:
        inner = _looked_at(part, root, depth=depth + 1)
        if inner is None:
            return None
        found |= inner
    return found


def _property_names(schema: Mapping[str, Any], root: Schema) -> _Change | None:
    """Listed properties whose name does not fit are left out; other keys are those of a regular expression."""
    rule = schema.get("propertyNames")
    if rule is None or rule is True or "patternProperties" in schema:
        return None
    fits = _name_rule(rule)
    if fits is None:
        return None
    listed = {name: one if fits(name) else False for name, one in (schema.get("properties") or {}).items()}
    further = schema.get("additionalProperties", True)
    put: dict[str, Any] = {"properties": listed, "additionalProperties": False}
    if further is False or rule is False:
        return _Change(("propertyNames",), put)
    names = values(rule)
    if names is not None:
        named_so = {one: further for one in names if isinstance(one, str) and fits(one)}
        return _Change(("propertyNames",), {**put, "properties": {**named_so, **listed}})
    expression = _expression(rule)
    if expression is None or (listed and further not in (True, {})):
        return None
    return _Change(("propertyNames",), {**put, "patternProperties": {expression: further}})


def _name_rule(rule: Schema) -> Callable[[str], bool] | None:
    """Whether a name fits, for rules of the usual words."""
    if rule is False:
        return lambda _: False
    if not isinstance(rule, Mapping) or rule.keys() - {"type", "const", "enum", "minLength", "maxLength", "pattern"}:
        return None
    if rule.get("type", "string") != "string":
        return None
    try:
        pattern = re.compile(rule.get("pattern", ""), re.ASCII)
    except re.error:
        return None
    names = [rule["const"]] if "const" in rule else rule.get("enum")
    low, high = rule.get("minLength", 0), rule.get("maxLength", math.inf)
    return lambda name: bool((names is None or name in names) and low <= len(name) <= high and pattern.search(name))


def _expression(rule: Mapping[str, Any]) -> str | None:
    bounds = {"minLength", "maxLength"} & rule.keys()
    if "pattern" in rule:
        return None if bounds else str(rule["pattern"])
    return f"^[\\s\\S]{{{int(rule.get('minLength', 0))},{int(rule['maxLength']) if 'maxLength' in rule else ''}}}$"


def _dependent(schema: Mapping[str, Any], root: Schema) -> _Change | None:
    """The property is not there, or what it asks for is."""
    words = [word for word in ("dependentRequired", "dependentSchemas", "dependencies") if schema.get(word)]
    if not words:
        return None
    asked = [(name, one) for word in words for name, one in schema[word].items()]
    return _Change(tuple(words), parts=tuple(_if_there(name, one, schema, root) for name, one in asked))


def _if_there(name: str, asked: Any, schema: Mapping[str, Any], root: Schema) -> Schema:
    joined = isinstance(asked, Mapping) and asked.get("type", "object") == "object"
    names = asked if isinstance(asked, list) else (asked.get("required") or ()) if joined else ()
    there: Schema = {"type": "object", "required": list(dict.fromkeys([name, *names]))}
    if joined:  # one schema, so that its counts see the names
        there = {**asked, **there}
    elif not isinstance(asked, list):
        there = every([there, asked])
    return _or_no("object", [{"type": "object", "properties": {name: False}}, there], schema, root)


def _counted(schema: Mapping[str, Any], root: Schema, outer: Outer) -> _Change | None:
    """Of the listed properties that may be left out, each choice of so many as are allowed.

    Raises:
        UnsupportedSchemaError: several keys that are not listed would have to differ; a grammar cannot see that.
    """
    if not {"minProperties", "maxProperties"} & schema.keys():
        return None
    whole = outer.with_(schema)
    optional = [name for name in whole.listed if name not in whole.needed]
    least = math.ceil(schema.get("minProperties", 0)) - len(whole.needed)
    most = math.floor(schema.get("maxProperties", 1 << 30)) - len(whole.needed)
    bound = whole.free or most < len(optional)
    idle = (*(() if least > 0 else ("minProperties",)), *(() if bound else ("maxProperties",)))
    limited = bound and "maxProperties" in schema
    low, high = max(0, least - whole.free), min(len(optional), most)
    if low > len(optional) and whole.free:
        raise refused("several keys that are not listed would have to differ", "minProperties")
    if not optional or (least <= 0 and not limited) or _known(least, limited, most, schema):
        return _Change(idle)
    choices = _chosen(optional, low, high) if limited else _at_least(schema, optional, least, whole.free)
    if choices is None:
        return None
    return _Change(idle if limited else (*idle, "minProperties"), parts=(_or_no("object", choices, schema, root),))


def _chosen(optional: list[str], low: int, high: int) -> list[Schema] | None:
    """Each choice of so many names, the others left out."""
    if sum(math.comb(len(optional), count) for count in range(low, high + 1)) > _MOST:
        return None
    return [
        {"type": "object", "required": list(there), "properties": {one: False for one in optional if one not in there}}
        for count in range(low, high + 1)
        for there in combinations(optional, count)
    ]


def _at_least(schema: Mapping[str, Any], optional: list[str], least: int, free: bool) -> list[Schema] | None:
    """So many of the names and perhaps others; or one fewer, no others, and a key that is not listed."""
    if math.comb(len(optional), least) + math.comb(len(optional), least - 1) > _MOST:
        return None
    found: list[Schema] = [{"type": "object", "required": list(there)} for there in combinations(optional, least)]
    if free:
        rest = _chosen(optional, least - 1, least - 1) or []
        found += [{**one, "minProperties": schema["minProperties"]} for one in rest]
    return found


def _known(least: int, limited: bool, most: int, schema: Mapping[str, Any]) -> bool:
    """Exactly, at least or at most one of the listed properties: llguidance knows that."""
    if "properties" not in schema or schema.get("additionalProperties") is not False or schema.get("patternProperties"):
        return False
    return least <= 1 and (most == 1 if limited else least == 1)


# --- lists ---


def _unevaluated_items(schema: Mapping[str, Any], root: Schema) -> _Change | None:
    if (
        "unevaluatedItems" not in schema
        or {"contains", "allOf", "$ref"} & schema.keys()
        or schema.keys() & _CONDITIONAL
    ):
        return None
    put = {} if "items" in schema else {"items": schema["unevaluatedItems"]}
    return _Change(("unevaluatedItems",), put)


def _contains(schema: Mapping[str, Any], root: Schema) -> _Change | None:
    """One of the first items fits."""
    if "contains" not in schema or "maxContains" in schema or schema.get("minContains", 1) > 1:
        return None
    words = tuple(word for word in ("contains", "minContains") if word in schema)
    if schema.get("minContains") == 0:
        return _Change(words)
    first = range(int(min(_FIRST, schema.get("maxItems", _FIRST))))
    places = [
        {"type": "array", "prefixItems": [*([True] * place), schema["contains"]], "minItems": place + 1}
        for place in first
    ]
    return _Change(words, parts=(_or_no("array", places, schema, root),))


# --- logic ---


def _not(schema: Mapping[str, Any], root: Schema) -> _Change | None:
    opposite = negated(schema["not"], root) if "not" in schema else None
    return None if opposite is None else _Change(("not",), parts=(opposite,))


def _if(schema: Mapping[str, Any], root: Schema) -> _Change | None:
    opposite = negated(schema["if"], root) if "if" in schema else None
    if opposite is None:
        return None
    words = tuple(word for word in ("if", "then", "else") if word in schema)
    both = every([schema["if"], schema.get("then", True)]), every([opposite, schema.get("else", True)])
    return _Change(words, parts=(some(both),))


def _one_of(schema: Mapping[str, Any], root: Schema) -> _Change | None:
    options = schema.get("oneOf")
    if not isinstance(options, list):
        return None
    alone = [_alone(place, options, root) for place in range(len(options))]
    if any(one is None for one in alone):
        return None
    return _Change(("oneOf",), parts=(some(alone),))


def _alone(place: int, options: list[Schema], root: Schema) -> Schema:
    """What fits this option and no other; None where that cannot be said."""
    others = [one for n, option in enumerate(options) if n != place for one in _alternatives(option)]
    found = []
    for own in _alternatives(options[place]):
        near = [one for one in others if not disjoint(own, one, root)]
        opposites = [False] if own in near else [negated(one, root) for one in near]
        if any(one is None for one in opposites):
            return None
        found.append(every([own, *opposites]))
    return some(found)


def _alternatives(schema: Schema) -> list[Schema]:
    """The schemas of which a value must fit one, where that is all that is said."""
    if not isinstance(schema, Mapping) or schema.keys() - ANNOTATIONS != {"anyOf"}:
        return [schema]
    return [inner for one in schema["anyOf"] for inner in _alternatives(one)]


def _or_no(kind: str, options: list[Schema], schema: Mapping[str, Any], root: Schema) -> Schema:
    """One of the options, or a value of another type, where the schema allows one."""
    return some([*options, *_of_other_types(kind, schema, root)])


def _of_other_types(kind: str, schema: Mapping[str, Any], root: Schema) -> Iterator[Schema]:
    others = kinds(schema, root) - {kind}
    if others:
        yield {"type": [one for one in TYPES if one in others]}


#: In this order: what a rule puts in, a later one may have to say in other words.
_FIRST_RULES: Final[tuple[_Rule, ...]] = (_unevaluated_properties, _unevaluated_items)
_RULES: Final[tuple[_Rule, ...]] = (
    *_FIRST_RULES, _property_names, _dependent, _contains, _not, _if, _one_of,
)  # fmt: skip
