"""Does a value fit its JSON schema? For replies that a server held by means of its own, which may let through more.

The jsonschema library says so. Numbers are compared as they are written, so `loads` reads them: a binary fraction is no
multiple of 0.01. What nobody can tell, fits: a reference that leads nowhere, a pattern that Python does not know, a
value that is nested too deeply, or one that takes too long to look at. No reference is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from decimal import Context, Decimal, localcontext
from functools import cache, partial
from typing import Any, Final, TypeAlias

from ..errors import MissingDependencyError
from .repeats import number
from .schema_logic import Schema

__all__ = ["loads", "misfit"]

#: The word that does not fit, and where.
Misfit: TypeAlias = tuple[str, tuple[object, ...]]

#: So many words are looked at for one value: about a third of a second. References that branch can ask for any number.
_MOST: Final = 50_000
#: Of a quotient; a multiple with more of them cannot be told.
_DIGITS: Final = 60
_left: ContextVar[list[int]] = ContextVar("left")


def loads(text: str) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, strict=False, parse_float=number)


def misfit(value: Any, schema: Schema, root: Schema) -> Misfit | None:
    """What of the schema the value does not fit, and where in the value; None where it fits or nobody can tell.

    Args:
        value: as `loads` reads it.
        schema: what it is to fit, as `loads` reads it.
        root: what the schema's references refer to.
    """
    made = _validators()
    _left.set([_MOST])
    try:
        with localcontext(Context(prec=_DIGITS)):  # the caller's own may round
            found = next(made(root).evolve(schema=schema).iter_errors(value), None)
    except Exception:  # noqa: BLE001  # whatever a schema of a caller's own makes of the library
        return None
    return None if found is None else (str(found.validator or "false"), tuple(found.absolute_path))


@cache
def _validators() -> Callable[[Schema], Any]:
    """What makes a validator. The library takes a whole float for an integer, but no Decimal."""
    try:
        from jsonschema import Draft202012Validator, validators
        from referencing import Registry
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'checking what a server wrote needs {error.name}: pip install "karakuri-integrations[remote]"'
        ) from error
    known = Draft202012Validator.TYPE_CHECKER
    integer = known.redefine("integer", lambda _, one: known.is_type(one, "integer") or _whole(one))
    counted = {word: partial(_counted, word, check) for word, check in Draft202012Validator.VALIDATORS.items()}
    made = validators.extend(Draft202012Validator, validators=counted, type_checker=integer)
    return partial(made, registry=Registry())  # which knows no way to fetch anything


def _counted(
    word: str, check: Callable[..., Any], validator: Any, asked: Any, value: Any, schema: Any
) -> Iterator[Any]:
    """The library's check of one word, which counts."""
    left = _left.get()
    left[0] -= _pairs(value) if word == "uniqueItems" and isinstance(value, list) else 1
    if left[0] < 0:
        raise TimeoutError("this takes too long to look at")
    return check(validator, asked, value, schema) or iter(())


def _pairs(items: list[object]) -> int:
    """What it takes to tell whether each is there once: lists and objects are compared with each other, two by two."""
    return len(items) + (len(items) ** 2 // 4 if any(isinstance(one, list | dict) for one in items) else 0)


def _whole(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value()
