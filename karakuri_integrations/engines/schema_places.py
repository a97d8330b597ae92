"""Where in a schema that was refused the cause stands: which tool, which property.

Knows how schemas hold schemas; what is refused is for its caller to try. Looked for only once a schema was refused, so
what it costs does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from ..errors import UnsupportedSchemaError
from ..tools import tools_in
from ..tools.schema_logic import named

__all__ = ["Trial", "cause"]

#: Why a schema is refused; None where it is not.
Trial: TypeAlias = Callable[[Any], UnsupportedSchemaError | None]

#: So many parts are tried at most.
_MOST: Final = 200
_REQUIRED: Final = re.compile(r"required property '(.*)' is unsatisfiable")


def cause(schema: Any, refusal: UnsupportedSchemaError, trial: Trial) -> str:
    """The smallest part of the schema that is refused for the same reason, in words for an error."""
    search, whole = _Search(schema, trial), "this JSON schema"
    for name, parameters in tools_in(schema):
        found = search.tried(parameters)
        if found is not None:
            schema, refusal, whole = parameters, found, f"the parameters of tool {name!r}"
            break
    place = ".".join(search.below(schema, refusal, frozenset()))
    return f"{whole}, at {place!r}" if place else whole


class _Search:
    def __init__(self, root: Any, trial: Trial) -> None:
        self._root, self._trial, self._left = root, trial, _MOST
        definitions = ("$defs", "definitions")
        self._kept = {word: root[word] for word in definitions if isinstance(root, Mapping) and word in root}

    def below(self, schema: Any, refusal: UnsupportedSchemaError, seen: frozenset[str]) -> list[str]:
        """The names from this schema to the cause."""
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        further = seen | {reference} if isinstance(reference, str) else seen
        for name, inner in _inner(schema, self._root, seen):
            found = self.tried(inner)
            if found is not None and _same(refusal, found, name):
                return [*([name] if name else []), *self.below(inner, found, further)]
        return []

    def tried(self, schema: Any) -> UnsupportedSchemaError | None:
        self._left -= 1
        alone = {**schema, **self._kept} if isinstance(schema, Mapping) else schema
        return self._trial(alone) if self._left >= 0 else None


def _same(refusal: UnsupportedSchemaError, inner: UnsupportedSchemaError, name: str) -> bool:
    """Whether the part is refused for what the whole is refused for."""
    required = _REQUIRED.search(str(refusal))
    return str(refusal) == str(inner) or (required is not None and required[1] == name)


def _inner(schema: Any, root: Any, seen: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """(name, schema) of what a schema holds; "" for what has no name."""
    if not isinstance(schema, Mapping):
        return
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        yield "", named(root, reference)
    properties = schema.get("properties")
    yield from properties.items() if isinstance(properties, Mapping) else ()
    for word in ("allOf", "anyOf", "oneOf", "prefixItems"):
        yield from (("", one) for one in schema.get(word) or ())
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), Mapping):
            yield "", schema[word]
