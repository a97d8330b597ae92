"""What a tool syntax is: the record that `brackets` and `command_r` fill in."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..conversation import CallForm, Tool, ToolCall

__all__ = ["Result", "Syntax", "one_line", "written_arguments"]

_BREAKS: Final = re.compile(r"[\r\n]+")


@dataclass(frozen=True)
class Result:
    """What a tool returned. `name` of the tool; `failed`: it raised, and the text says why."""

    name: str
    text: str
    failed: bool = False


class Syntax(ABC):
    """One wire syntax, both ways.

    name: as a Family names it. form: how calls stand in a reply. literals: texts that data must not hold unescaped
    while tools are in use, beside the family's own.
    """

    name: str
    form: CallForm
    literals: tuple[str, ...]

    @abstractmethod
    def describe(self, tools: Sequence[Tool], language: Literal["ja", "en"], clean: Callable[[str], str]) -> str:
        """What the system text says of the tools and of how to call them; `clean` what is data in it."""

    @abstractmethod
    def describe_schema(self, schema: str, language: Literal["ja", "en"], clean: Callable[[str], str]) -> str:
        """What the system text says of a reply that must be JSON of this schema; "" where nothing is to be said."""

    @abstractmethod
    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        """Calls of a past reply, exactly as a reply makes them: opener, list, closer."""

    @abstractmethod
    def write_results(self, results: Sequence[Result]) -> str:
        """The results of one reply's calls, as the text of the turn that follows it."""


def one_line(text: str) -> str:
    """JSON as one line of JSON, any other text as a JSON string: no result can end what it stands in."""
    try:
        json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    # Line breaks stand between tokens only: a JSON string holds none.
    return " ".join(part.strip(" \t") for part in _BREAKS.split(text.strip()))


def written_arguments(call: ToolCall) -> str:
    """A past call's arguments as they came; where they are no JSON object, as a JSON string."""
    text = call.arguments or "{}"
    try:
        good = isinstance(json.loads(text, parse_constant=_refused), dict)
    except (ValueError, RecursionError):
        good = False
    return text if good else json.dumps(text, ensure_ascii=False)


def _refused(name: str) -> Any:
    raise ValueError(name)
