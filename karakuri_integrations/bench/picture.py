"""Figures as a picture: the curve of several at once, and one stream beside others. SVG, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Final

from .figures import Figure
from .measures import CURVE, MANY, ONE, OURS
from .shown import number

__all__ = ["bars", "picture"]

_WIDTH, _LEFT, _RIGHT = 760, 60, 20
_INK, _PALE, _OURS, _OTHER = "#222", "#ddd", "#b5332e", "#8aa0b4"
_ROW: Final = 26
_CHART: Final = 240


def picture(figures: Sequence[Figure], title: str) -> str:
    """A picture that stands alone: light background, no script, no font of its own."""
    curve = [one for one in figures if one.section == MANY and one.value is not None][: len(CURVE)]
    rows = [one for one in figures if one.section == ONE and one.value is not None]
    parts = [
        *_paper(60 + _CHART + 80 + _ROW * len(rows) + 20, title),
        *_curve(curve, 60),
        *_bars(rows, 60 + _CHART + 70, "One stream: tokens a second"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def bars(figures: Sequence[Figure], title: str) -> str:
    """A picture of the rows in tokens a second: a group of bars for each section."""
    shown = [one for one in figures if one.value is not None and one.unit == "tokens/s"]
    groups = [(section, [*rows]) for section, rows in groupby(shown, key=lambda one: one.section)]
    parts, top = [], 60
    for section, rows in groups:
        parts += _bars(rows, top, f"{section}: tokens a second")
        top += _ROW * len(rows) + 50
    return "\n".join([*_paper(top, title), *parts, "</svg>"]) + "\n"


def _paper(height: int, title: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(_LEFT, 24, title, size=15, weight="bold"),
    ]


def _curve(figures: Sequence[Figure], top: int) -> list[str]:
    spreads = [one.value for one in figures if one.value is not None]
    most = max((one.most for one in spreads), default=1.0)
    bottom, wide = top + _CHART, _WIDTH - _LEFT - _RIGHT
    step = _nice(most / 4)
    scale = _CHART / (step * (int(most / step) + 1))
    parts = [_text(_LEFT, top - 12, "Replies at once: tokens a second of all together (median, least to most)")]
    for line in range(int(most / step) + 2):
        y = bottom - line * step * scale
        parts += [
            _line(_LEFT, y, _WIDTH - _RIGHT, y, _PALE),
            _text(_LEFT - 6, y + 4, f"{line * step:,g}", anchor="end"),
        ]
    places = [_LEFT + wide * (n + 0.5) / len(CURVE) for n in range(len(spreads))]
    points = " ".join(f"{x:.1f},{bottom - one.median * scale:.1f}" for x, one in zip(places, spreads, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{_OURS}" stroke-width="2"/>')
    for x, one, figure, count in zip(places, spreads, figures, CURVE, strict=False):
        y = bottom - one.median * scale
        parts += [
            _line(x, bottom - one.least * scale, x, bottom - one.most * scale, _OURS),
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_OURS}"/>',
            _text(x, bottom + 18, str(count), anchor="middle"),
        ]
        if figure.ratio is not None:
            parts.append(_text(x - 10, y - 8, f"{number(figure.ratio.median)}x", anchor="end"))
    return parts


def _bars(figures: Sequence[Figure], top: int, heading: str) -> list[str]:
    most = max((one.value.most for one in figures if one.value is not None), default=1.0)
    begin = 300
    scale = (_WIDTH - begin - 80) / most
    parts = [_text(_LEFT, top, heading)]
    for row, one in enumerate(figures):
        if one.value is None:
            continue
        y = top + 14 + row * _ROW
        long = one.value.median * scale
        middle = y + 9
        ours = "Karakuri" in one.name or OURS in one.name
        parts += [
            _text(begin - 8, y + 13, one.name.removeprefix("transformers: "), anchor="end"),
            f'<rect x="{begin}" y="{y}" width="{long:.1f}" height="18" fill="{_OURS if ours else _OTHER}"/>',
            _line(begin + one.value.least * scale, middle, begin + one.value.most * scale, middle, _INK),
            _text(begin + one.value.most * scale + 6, y + 13, number(one.value.median)),
        ]
    return parts


def _nice(value: float) -> float:
    """1, 2 or 5 times a power of ten, not below `value`."""
    power = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 0.1
    return next(one * power for one in (1, 2, 5, 10) if one * power >= value)


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{_INK}">{escape(text)}</text>'
    )
