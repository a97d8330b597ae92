"""What a tool syntax is: the record that `brackets` and `command_r` fill in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..conversation import CallForm, Tool, ToolCall

__all__ = ["Result", "Syntax"]


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
    def describe(self, tools: Sequence[Tool], language: Literal["ja", "en"]) -> str:
        """What the system text says of the tools and of how to call them."""

    @abstractmethod
    def describe_schema(self, schema: str, language: Literal["ja", "en"]) -> str:
        """What the system text says of a reply that must be JSON of this schema; "" where nothing is to be said."""

    @abstractmethod
    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        """Calls of a past reply, exactly as a reply makes them: opener, list, closer."""

    @abstractmethod
    def write_results(self, results: Sequence[Result]) -> str:
        """The results of one reply's calls, as the text of the turn that follows it."""
