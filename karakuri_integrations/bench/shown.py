"""Figures as a table for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from .figures import Figure, Spread

__all__ = ["number", "table"]

_HEADINGS = ("", "median", "", "least to most", "ratio", "least to most", "", "same")


def table(figures: Iterable[Figure], machine: Mapping[str, Any]) -> str:
    """One block a section. Medians of all rounds; ratios round by round; `same`: greedy replies that are identical."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items())]
    for section, group in groupby(figures, key=lambda one: one.section):
        rows = list(group)
        lines += ["", f"── {section}", "", *_aligned([_HEADINGS, *map(_cells, rows)], [one.note for one in rows])]
    return "\n".join(lines) + "\n"


def _cells(figure: Figure) -> tuple[str, ...]:
    if figure.value is None:
        return (figure.name, *[""] * (len(_HEADINGS) - 1))
    return (
        figure.name,
        number(figure.value.median),
        figure.unit,
        _range(figure.value),
        "" if figure.ratio is None else f"{number(figure.ratio.median)}x",
        "" if figure.ratio is None else _range(figure.ratio),
        figure.ratio_to,
        "" if figure.same is None else f"{figure.same[0]}/{figure.same[1]}",
    )


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _range(spread: Spread) -> str:
    return "" if spread.least == spread.most else f"{number(spread.least)} to {number(spread.most)}"


def _aligned(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> list[str]:
    widths = [max(_width(row[place]) for row in rows) for place in range(len(rows[0]))]
    right = {1, 4}
    lines = []
    for row, note in zip(rows, ["", *notes], strict=True):
        cells = [
            " " * (widths[place] - _width(cell)) + cell
            if place in right
            else cell + " " * (widths[place] - _width(cell))
            for place, cell in enumerate(row)
            if widths[place]
        ]
        lines.append("  ".join([*cells, note]).rstrip())
    return lines


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)
