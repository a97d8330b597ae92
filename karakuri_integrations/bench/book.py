"""All that the large measurement found, as it is written down, gone on with and shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import OptionError
from .cells import Ceiling, Record, figures_of, missed
from .figures import Figure, Spread
from .machine import CEILING

__all__ = ["Book"]

_GIB: Final = 2**30


@dataclass
class Book:
    """about: what was measured on what. copied: GB/s. weights, per_token: bytes. path: where it is written, or None."""

    about: dict[str, Any]
    path: Path | None = None
    copied: list[float] = field(default_factory=list)
    weights: int = 0
    per_token: int = 0
    records: list[Record] = field(default_factory=list)

    @property
    def ceiling(self) -> Ceiling:
        return Ceiling(self.weights, self.per_token, Spread.of(self.copied))

    def figures(self) -> list[Figure]:
        top = self.ceiling
        held = self.weights / _GIB
        return [
            *figures_of(self.records, top, self.about["tokens"]),
            Figure(CEILING, "copying, read and written", "GB/s", top.copied),
            Figure(CEILING, "weights that a token reads", "GiB", Spread(held, held, held),
                   note=f"{self.per_token / 2**10:,.1f} KiB of keys and values for each token before it"),
        ]  # fmt: skip

    def closing(self) -> list[str]:
        """Which aims were missed, and the profiles that were taken for that."""
        lines = []
        for one in self.records:
            name = f"{one.cell.batch} at once after {one.cell.context} tokens"
            lines += [f"{name}: {why}" for why in missed(one, self.ceiling, self.about["tokens"])]
            lines += [f"  {line}" for line in one.profile]
        return ["", "── Aims on a GPU that were not reached", "", *lines] if lines else []

    def as_json(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "copied": self.copied,
            "weights": self.weights,
            "per_token": self.per_token,
            "cells": [one.as_json() for one in self.records],
            "figures": [one.as_json() for one in self.figures()],
        }

    def write(self) -> None:
        """Whole or not at all."""
        if self.path is None:
            return
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            new.write_text(json.dumps(self.as_json(), ensure_ascii=False, indent=1) + "\n", "utf-8")
            new.replace(self.path)
        except OSError as error:
            raise OptionError(f"{str(self.path)!r:.120} cannot be written: {error.strerror}") from error

    @classmethod
    def opened(cls, path: Path | None, about: dict[str, Any], resume: bool) -> Book:
        """A new one, or the one that is gone on with.

        Raises:
            OptionError: the file is none of this measurement, or was made with other options, versions or devices.
        """
        if not resume or path is None or not path.is_file():
            return cls(about, path)
        try:
            book = cls._read(path)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise OptionError(f"{str(path)!r:.120} is no file of this measurement; leave out --resume") from error
        different = sorted(name for name in {*about, *book.about} if about.get(name) != book.about.get(name))
        if different:
            raise OptionError(
                f"{str(path)!r:.120} differs from this run in {', '.join(different)}; leave out --resume, or give "
                "--json another file"
            )
        return book

    @classmethod
    def _read(cls, path: Path) -> Book:
        found = json.loads(path.read_text("utf-8"))
        records = [Record.from_json(one) for one in found["cells"]]
        return cls(found["about"], path, found["copied"], found["weights"], found["per_token"], records)
