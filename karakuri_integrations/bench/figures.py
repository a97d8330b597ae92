"""What a measurement gives: a median with its least and most, and rows of them. Values only; knows no engine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Figure", "Spread", "quantile", "ratios"]


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, and how far they lay apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    section: what it belongs to. value: None where nothing was measured, and `note` says why. ratio: to what
    `ratio_to` names, taken round by round. same: of how many replies how many are the very same text.
    """

    section: str
    name: str
    unit: str = ""
    value: Spread | None = None
    ratio: Spread | None = None
    ratio_to: str = ""
    same: tuple[int, int] | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Round by round: what changes between two rounds, such as other load, is in both."""
    return Spread.of(one / other for one, other in zip(over, under, strict=True))


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of all lie, one that was measured."""
    found = sorted(values)
    return found[min(int(share * len(found)), len(found) - 1)]
