"""argparse's parser, whose errors for unknown options and commands say what was probably meant.

Values are never shown: what stands after an option that does not exist may be a key, and loose words a question.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from .attributes import NAMES, PRESETS

__all__ = ["Parser"]

_OPTION: Final = re.compile(r"--?[^\W\d]")
_KEYS: Final = frozenset({"api-key", "key", "token", "apikey"})


class Parser(argparse.ArgumentParser):
    """A command's parser, or with `commands` that of all of them. Wrong input ends it with exit code 2."""

    commands: Mapping[str, Parser] = {}

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # An option that is written short by chance would be another one as soon as there are two that begin so.
        super().__init__(*arguments, **{"allow_abbrev": False, **named})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but nothing is left over: the command that was given names it."""
        given = sys.argv[1:] if args is None else list(args)
        if self.commands and given:
            self._check_first(given)
        found, left = super().parse_known_args(given, namespace)
        if left:
            self._refuse(self._left_over(left))
        return found, left

    def _check_first(self, given: Sequence[str]) -> None:
        """The first word is a command, or an option of none."""
        first = given[0]
        if first in self.commands or first.partition("=")[0] in self._options:
            return
        self._refuse(self._too_early(given) if _OPTION.match(first) else self._unknown_command(first))

    def _too_early(self, given: Sequence[str]) -> str:
        """About an option before the command."""
        name = _name(given[0])
        owners = [word for word, command in self.commands.items() if name in command._options]
        if not owners:
            return self._unknown_option(name)
        owner = next((word for word in given if word in owners), owners[0])
        return f"{name} comes after the command: {self.prog} {owner} {name}; {self.prog} --help lists the commands"

    def _unknown_command(self, word: str) -> str:
        near = difflib.get_close_matches(word, self.commands, 1)
        if near:
            return f"unknown command {word!r:.40}; did you mean {near[0]}? {self.prog} --help lists the commands"
        return (
            f"the first word is no command; the commands are {', '.join(self.commands)}, and a question stands after "
            f'ask: {self.prog} ask "..."'
        )

    def _left_over(self, left: Sequence[str]) -> str:
        named = [one for one in left if _OPTION.match(one)]
        if named:
            return self._unknown_option(_name(named[0]))
        if all(one.option_strings for one in self._actions):
            return f"a word too many was given ({len(left)} in all); {self.prog} --help lists the options, all it takes"
        return (
            f"a word too many was given ({len(left)} in all), which no option takes; write what is no option in one "
            f"place, a question in quotes: {self.prog} --help shows where"
        )

    def _unknown_option(self, name: str) -> str:
        known = self._known()
        word = name.lstrip("-").replace("_", "-").lower()
        if word in _KEYS and "base-url" in known:
            return f"{name} is no option: a server's key is KARAKURI_API_KEY in the environment, never an argument"
        near = difflib.get_close_matches(word, known, 1)
        meant = f" did you mean {known[near[0]]}?" if near else ""
        return f"unknown option {name};{meant} {self.prog} --help lists {'all' if near else 'the options'}"

    def _known(self) -> dict[str, str]:
        """How to write what an option that does not exist may mean: this command's, the dials, the presets."""
        known = {one.lstrip("-"): one for one in self._options if one.startswith("--")}
        dials = {name: f"-a {name}=1" for name in NAMES} if "attr" in known else {}
        presets = {name: f"--preset {name}" for name in PRESETS} if "preset" in known else {}
        return {**presets, **dials, **known}

    @property
    def _options(self) -> Mapping[str, argparse.Action]:
        return self._option_string_actions

    def _refuse(self, text: str) -> NoReturn:
        self.exit(2, f"karakuri: {text}\n")


def _name(option: str) -> str:
    """An option as it was written, without what may be its value, or a sentence that begins with a dash."""
    found = re.match(r"--[\w-]{1,38}|-.", option)
    return found[0] if found else "-"
