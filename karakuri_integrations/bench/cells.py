"""The cells of the large measurement (so many replies at once, so much context): records, and figures made of them.

Values only; knows no engine and no model. A record is what a file keeps, so that a run that was cut off goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .figures import Figure, Spread, ratios
from .measures import OURS, same
from .subject import Run, rate

__all__ = ["GENERATE", "LEAST_RATIO", "LEAST_SHARE", "Ceiling", "Cell", "Record", "figures_of", "missed", "section_of"]

GENERATE: Final = "transformers: generate"
#: The aims on a GPU: this share of the ceiling for one reply, and so many times `generate` at least.
LEAST_SHARE: Final = 0.6
LEAST_RATIO: Final = 5.0
_GIB: Final = 2**30


@dataclass(frozen=True)
class Cell:
    """So many replies at once, after a prompt of so many tokens."""

    batch: int
    context: int


@dataclass(frozen=True)
class Ceiling:
    """What no reply can be faster than: what a token reads, over how fast the device copies.

    weights: bytes that a pass reads once. per_token: bytes of keys and values of one token. copied: GB/s.
    """

    weights: int
    per_token: int
    copied: Spread

    def rate(self, cell: Cell, tokens: int) -> float:
        """Tokens a second of all replies together, in the middle of replies of so many tokens."""
        read = self.weights + cell.batch * (cell.context + tokens / 2) * self.per_token
        return cell.batch * self.copied.median * 1e9 / read


@dataclass
class Record:
    """What was measured of a cell: for each name its runs, two a round, as tokens, seconds, seconds to the first token.

    equal: of how many replies how many are the same. peaks: bytes of device memory. absent: why one was not measured.
    notes: how it was called where that is not plain. profile: where a step's time goes, when an aim was missed.
    """

    cell: Cell
    runs: dict[str, list[list[tuple[int, float, float]]]] = field(default_factory=dict)
    equal: tuple[int, int] = (0, 0)
    peaks: dict[str, int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    profile: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return max((len(one) for one in self.runs.values()), default=0)

    def add(self, pairs: Mapping[str, Sequence[Run]]) -> None:
        """A round."""
        for name, pair in pairs.items():
            self.runs.setdefault(name, []).append([(one.tokens, one.seconds, one.first_text) for one in pair])
        if OURS in pairs and GENERATE in pairs:
            equal, of = same([pairs[OURS]], [pairs[GENERATE]])
            self.equal = (self.equal[0] + equal, self.equal[1] + of)

    def rates(self, name: str) -> list[float]:
        """Tokens a second, by rounds."""
        return [rate([Run(*one[:2], ()) for one in pair]) for pair in self.runs.get(name, [])]

    def first(self, name: str) -> Spread:
        """Seconds to the first token."""
        return Spread.of(one[2] for pair in self.runs[name] for one in pair)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Record:
        return cls(**{**found, "cell": Cell(**found["cell"]), "equal": tuple(found["equal"])})


def missed(record: Record, ceiling: Ceiling, tokens: int) -> list[str]:
    """The aims that a cell did not reach, in words."""
    own, theirs = record.rates(OURS), record.rates(GENERATE)
    found = []
    if own and record.cell.batch == 1:
        share = Spread.of(own).median / ceiling.rate(record.cell, tokens)
        if share < LEAST_SHARE:
            found.append(f"{share:.2f} of the ceiling, aim {LEAST_SHARE:g}")
    if own and len(own) == len(theirs):
        ratio = ratios(own, theirs).median
        if ratio < LEAST_RATIO:
            found.append(f"{ratio:.2f} times generate, aim {LEAST_RATIO:g}")
    return found


def section_of(cell: Cell) -> str:
    return f"After {cell.context} tokens of prompt"


def figures_of(records: Iterable[Record], ceiling: Ceiling, tokens: int) -> list[Figure]:
    """The table: by context, then by how many at once."""
    ordered = sorted(records, key=lambda one: (one.cell.context, one.cell.batch))
    return [row for one in ordered for row in (_ours(one, ceiling, tokens), _generate(one))]


def _ours(record: Record, ceiling: Ceiling, tokens: int) -> Figure:
    most = ceiling.rate(record.cell, tokens)
    found = record.rates(OURS)
    shares = Spread.of(one / most for one in found) if found else None
    return _figure(record, OURS, shares, "of the ceiling", f"ceiling {most:,.1f} tokens/s", *_note(record, OURS))


def _generate(record: Record) -> Figure:
    own, theirs = record.rates(OURS), record.rates(GENERATE)
    both = ratios(own, theirs) if own and len(own) == len(theirs) else None
    return _figure(record, GENERATE, both, f"{OURS} over it", *_note(record, GENERATE))


def _note(record: Record, name: str) -> list[str]:
    return [record.notes[name]] if name in record.notes else []


def _figure(record: Record, name: str, ratio: Spread | None, ratio_to: str, *notes: str) -> Figure:
    section, title = section_of(record.cell), f"{record.cell.batch} at once, {name.removeprefix('transformers: ')}"
    found = record.rates(name)
    if not found:
        return Figure(section, title, note=record.absent.get(name, "not measured yet"))
    said = [*notes, f"first token after {1000 * record.first(name).median:,.0f} ms"]
    if name in record.peaks:
        said.append(f"at most {record.peaks[name] / _GIB:.1f} GiB of device memory")
    if name in record.absent:
        said.append(f"after {len(found)} rounds: {record.absent[name]}")
    return Figure(
        section,
        title,
        "tokens/s",
        Spread.of(found),
        ratio,
        ratio_to if ratio is not None else "",
        same=record.equal if name == GENERATE and record.equal[1] else None,
        note="; ".join(said),
    )
