"""How tools, their calls and their results are written into a prompt and read back from a reply; one file per syntax.

KARAKURI's chat models have no tool format of their own, so `brackets` defines one; 8x7b-instruct was trained on
`command_r`. `schemas` prepares the JSON schemas that a reply is held to, `signatures` writes tools shortly, `reading`
reads calls from a stream, and `given` takes what both frameworks pass. Pure: knows no engine and no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .brackets import BRACKETS
from .command_r import COMMAND_R
from .given import TOOL_OPTIONS, tooling_of, usable_name
from .reading import CallReader
from .schemas import list_of_calls, shown_place, tools_in
from .syntax import Result, Syntax

__all__ = [
    "SYNTAXES",
    "TOOL_OPTIONS",
    "CallReader",
    "Result",
    "Syntax",
    "list_of_calls",
    "shown_place",
    "syntax_of",
    "tooling_of",
    "tools_in",
    "usable_name",
]

SYNTAXES: Final[Mapping[str, Syntax]] = {one.name: one for one in (BRACKETS, COMMAND_R)}


def syntax_of(name: str) -> Syntax:
    """The syntax of this name, as a Family names it."""
    return SYNTAXES[name]
