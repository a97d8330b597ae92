"""Random JSON schemas of a tool's arguments, over the whole vocabulary of keywords, from a seed.

Most can be met and most are of words that grammars know; about one in seven has one that they do not (`not`, `if`,
`contains`, `uniqueItems`, ...), so that a table shows what is refused and for which word.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

Schema = dict[str, Any]

NAMES = (
    "city",
    "days",
    "unit",
    "名前",
    "住所",
    "e-mail",
    "x y",
    "type",
    "properties",
    "items",
    "2つ目",
    "naïve",
    "a",
    "b",
)
WORDS = (
    "celsius",
    "fahrenheit",
    "東京",
    "大阪",
    "はい",
    "いいえ",
    'a "quoted" word',
    "back\\slash",
    "line\nfeed",
    "🍣",
    "",
    " ",
    "7",
)
PATTERNS = (
    "^[a-z]{2,8}$", "^[0-9]{3}-[0-9]{4}$", "^(foo|bar|baz)+$", "^[ぁ-ん]{1,5}$", "[A-Z][a-z]+", "^a", "z$", "^https?://[a-z.]+$",
    "^[^a]*$", "^.{2,6}$", "^\\+?[0-9]+$", "^(?:[a-f0-9]{2}:){2}[a-f0-9]{2}$", "^東京都.*$", "^[A-Z]{3}_[0-9]{2}(?:_v[0-9])?$",
)  # fmt: skip
FORMATS = (
    "date",
    "date-time",
    "time",
    "email",
    "uuid",
    "ipv4",
    "ipv6",
    "hostname",
    "uri",
    "duration",
    "regex",
    "password",
    "idn-email",
)
KINDS = ("string", "integer", "number", "boolean", "null", "array", "object")


def random_schemas(seed: int) -> Iterator[Schema]:
    """Without end; the same for the same seed, and the first n the same whatever is taken."""
    place = 0
    while True:
        yield Maker(random.Random(f"{seed}:{place}")).root()
        place += 1


class Maker:
    """Makes one schema; `$defs` are collected while it is made."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.defs: dict[str, Schema] = {}

    def root(self) -> Schema:
        made = {"type": "object", **self.object(0)}
        if self.rng.random() < 0.08:
            self.odd(made)
        if self.defs:
            made["$defs"] = self.defs
        return made

    def any(self, depth: int) -> Schema | bool:
        """A schema of any kind; deeper ones are simpler."""
        simple: list[tuple[Callable[[int], Any], float]] = [
            (self.string, 5), (self.integer, 3), (self.number, 3), (self.enum, 3), (self.const, 1),
            (lambda _: {"type": "boolean"}, 2), (lambda _: {"type": "null"}, 0.5), (self.several_types, 1),
            (lambda _: {}, 0.3), (lambda _: True, 0.2),
        ]  # fmt: skip
        deep: list[tuple[Callable[[int], Any], float]] = [
            (self.typed_object, 4), (self.array, 4), (self.any_of, 1.5), (self.one_of, 1), (self.all_of, 1), (self.reference, 1.5),
            (self.list_like, 0.7),
        ]  # fmt: skip
        choices = simple if depth > 3 else simple + deep
        make = self.rng.choices([one for one, _ in choices], [weight for _, weight in choices])[0]
        made = make(depth)
        if isinstance(made, dict) and self.rng.random() < 0.15:
            made["description"] = self.rng.choice(("a value", "値", 'with "type": "string" in it'))
        return made

    def maybe(self, chance: float) -> bool:
        return self.rng.random() < chance

    def names(self, most: int) -> list[str]:
        return self.rng.sample(NAMES, self.rng.randint(0, most))

    # single values

    def string(self, _depth: int) -> Schema:
        made: Schema = {"type": "string"}
        kind = self.rng.random()
        if kind < 0.35:
            low = self.rng.choice((0, 1, 2, 5, 40))
            made |= {"minLength": low} if self.maybe(0.5) else {}
            made |= {"maxLength": low + self.rng.choice((0, 1, 10, 100))} if self.maybe(0.7) else {}
        elif kind < 0.6:
            made["pattern"] = self.rng.choice(PATTERNS)
        elif kind < 0.75:
            made["format"] = self.rng.choice(FORMATS)
        return made

    def integer(self, _depth: int) -> Schema:
        return self.bounded(
            {"type": "integer"}, self.rng.choice((-1000, -7, 0, 1, 5, 10**6)), (0, 1, 6, 13, 10**9), (2, 3, 7, 10)
        )

    def number(self, _depth: int) -> Schema:
        low = self.rng.choice((-273.15, -1, 0, 0.5, 3.14159))
        return self.bounded({"type": "number"}, low, (0.25, 1, 10, 1e6), (0.5, 0.25, 0.01, 0.1, 3))

    def bounded(self, made: Schema, low: float, widths: tuple[float, ...], steps: tuple[float, ...]) -> Schema:
        if self.maybe(0.4):
            made["exclusiveMinimum" if self.maybe(0.3) and made["type"] == "number" else "minimum"] = low
        if self.maybe(0.4):
            made["exclusiveMaximum" if self.maybe(0.3) and made["type"] == "number" else "maximum"] = (
                low + self.rng.choice(widths)
            )
        if self.maybe(0.15):
            made["multipleOf"] = self.rng.choice(steps)
        return made

    def enum(self, _depth: int) -> Schema:
        values: list[Any] = list(self.rng.sample(WORDS, self.rng.randint(1, 4)))
        if self.maybe(0.3):
            values += [1, -2.5, None, True, ["a", 1], {"k": "値"}][: self.rng.randint(1, 6)]
        made: Schema = {"enum": values}
        return {"type": "string", "enum": [one for one in values if isinstance(one, str)]} if self.maybe(0.4) else made

    def const(self, _depth: int) -> Schema:
        return {"const": self.rng.choice([*WORDS, 0, 1.5, None, False, [], {}, {"b": [1, {"a": "東京"}]}])}

    def several_types(self, _depth: int) -> Schema:
        return {"type": self.rng.sample(KINDS, self.rng.randint(1, 3))}

    # values of values

    def array(self, depth: int) -> Schema:
        made: Schema = {"type": "array", "items": self.any(depth + 1)}
        low = self.rng.choice((0, 0, 1, 2, 4))
        made |= {"minItems": low} if self.maybe(0.4) else {}
        made |= {"maxItems": low + self.rng.choice((0, 1, 3, 20))} if self.maybe(0.5) else {}
        return self.odd(made) if self.maybe(0.04) else made

    def list_like(self, depth: int) -> Schema:
        made: Schema = {"type": "array", "prefixItems": [self.any(depth + 1) for _ in range(self.rng.randint(1, 3))]}
        made["items"] = self.rng.choice((False, {"type": "integer"}, True))
        return made | ({"minItems": self.rng.randint(0, 3)} if self.maybe(0.6) else {})

    def typed_object(self, depth: int) -> Schema:
        return {"type": "object", **self.object(depth)}

    def object(self, depth: int) -> Schema:
        names = self.names(5 if depth == 0 else 3)
        made: Schema = {"properties": {name: self.any(depth + 1) for name in names}}
        if names and self.maybe(0.8):
            made["required"] = self.rng.sample(names, self.rng.randint(1, len(names)))
        kind = self.rng.random()
        if kind < 0.25:
            made["additionalProperties"] = False
        elif kind < 0.4:
            made["additionalProperties"] = self.any(depth + 2)
        elif kind < 0.47:
            made["patternProperties"] = {self.rng.choice(("^x-", "[0-9]$", "^値")): self.any(depth + 2)}
        if self.maybe(0.06):
            made["maxProperties"] = max(1, len(made.get("required", ())) + self.rng.randint(0, 2))
        if self.maybe(0.06):
            made["minProperties"] = self.rng.randint(0, 2)
        if depth and self.maybe(0.03):
            self.odd(made)
        return made

    # schemas of schemas

    def any_of(self, depth: int) -> Schema:
        return {"anyOf": [self.any(depth + 1) for _ in range(self.rng.randint(1, 4))]}

    def one_of(self, depth: int) -> Schema:
        """Mostly the discriminated kind that libraries write, now and then any."""
        if self.maybe(0.25):
            return {"oneOf": [self.any(depth + 1) for _ in range(2)]}
        options = []
        for name in self.rng.sample(("cat", "dog", "鳥"), self.rng.randint(1, 3)):
            one = {"type": "object", **self.object(depth + 1)}
            one["properties"] = {"kind": {"const": name}, **one["properties"]}
            one["required"] = ["kind", *one.get("required", ())]
            options.append(one)
        return {"oneOf": options}

    def all_of(self, depth: int) -> Schema:
        kind = self.rng.random()
        if kind < 0.4:
            return {"allOf": [self.any(depth + 1)]}
        if kind < 0.7:
            return {
                "allOf": [
                    {"type": "string", "minLength": self.rng.randint(0, 4)},
                    {"maxLength": self.rng.randint(4, 30)},
                ]
            }
        return {
            "allOf": [self.typed_object(depth + 2), {"properties": {"more": self.any(depth + 2)}, "required": ["more"]}]
        }

    def reference(self, depth: int) -> Schema:
        """To a definition that there is, which may be the one that is being made: recursion; or to a new one."""
        if self.defs and self.maybe(0.5):
            return {"$ref": f"#/$defs/{quote(self.rng.choice(list(self.defs)))}"}
        name = self.rng.choice(("Node", "住所", "a b")) + str(len(self.defs))
        self.defs[name] = {}
        properties: Schema = {"value": self.any(depth + 1)}
        place = quote(name)
        if self.maybe(0.5):
            properties["next"] = {"anyOf": [{"$ref": f"#/$defs/{place}"}, {"type": "null"}]}
        elif self.maybe(0.5):
            properties["children"] = {"type": "array", "items": {"$ref": f"#/$defs/{place}"}}
        self.defs[name] |= {"type": "object", "properties": properties, "required": ["value"]}
        return {"$ref": f"#/$defs/{place}"}

    def odd(self, made: Schema) -> Schema:
        """Adds a word that no grammar library holds to, or few."""
        name = self.rng.choice(NAMES)
        words = [
            {"uniqueItems": True}, {"contains": {"type": "integer"}, "minContains": 1}, {"unevaluatedItems": False},
        ] if made.get("type") == "array" else [
            {"not": {"required": [name]}}, {"dependentRequired": {name: ["a"]}}, {"propertyNames": {"maxLength": 8}},
            {"if": {"required": [name]}, "then": {"required": ["b"]}, "else": {"required": ["a"]}},
            {"unevaluatedProperties": False}, {"dependentSchemas": {name: {"minProperties": 2}}},
        ]  # fmt: skip
        made |= self.rng.choice(words)
        return made
