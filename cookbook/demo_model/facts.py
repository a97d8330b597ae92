"""The fact base: what the demo model knows, read from facts.txt into frozen values.

Format of facts.txt, one block per topic, fields separated by " ; ":

    @ id ; category ; sg|pl ; English names ; Japanese names
    = number ; English key figure ; Japanese key figure      ({n} is the number)
    num ; English ; Japanese                                 (the sentence that states the key figure)
    ? English questions for the figure ; Japanese ones       ({X} is the topic)
    aspect ; English ; Japanese                              ({S} is the topic with its key figure)
    - ; English ; Japanese                                   (a further sentence)
    terms ; four technical terms ; the same in Japanese
    tip ; English ; Japanese

How a question is worded lives in phrasing.py, how an answer is built in answers.py.
"""

from __future__ import annotations

import functools
import pathlib
from dataclasses import dataclass, field

LANGUAGES = ("en", "ja")
Pair = dict[str, str]


@dataclass(frozen=True)
class Topic:
    """One topic: its names, its key figure and its sentences in both languages."""

    id: str
    category: str
    plural: bool
    names: dict[str, list[str]]
    number: int
    figure: Pair
    number_sentence: Pair
    number_questions: dict[str, list[str]]
    sentences: list[tuple[str, Pair]]
    terms: dict[str, list[str]]
    tip: Pair
    index: int = field(compare=False, default=0)

    @property
    def aspects(self) -> list[str]:
        """What can be asked: the key figure and every tagged sentence."""
        return ["num"] + [aspect for aspect, _ in self.sentences if aspect != "-"]

    def name(self, lang: str) -> str:
        """The name that answers use."""
        return self.names[lang][0]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _parse(block: list[str], index: int) -> Topic:
    rows = [[part.strip() for part in line.split(" ; ")] for line in block]
    head = rows[0]
    figure, number, questions, terms, tip = rows[1], rows[2], rows[3], rows[-2], rows[-1]
    return Topic(
        id=head[0].lstrip("@ "),
        category=head[1],
        plural=head[2] == "pl",
        names={"en": _split(head[3]), "ja": _split(head[4])},
        number=int(figure[0].lstrip("= ")),
        figure={"en": figure[1], "ja": figure[2]},
        number_sentence={"en": number[1], "ja": number[2]},
        number_questions={"en": _split(questions[0].lstrip("? ")), "ja": _split(questions[1])},
        sentences=[(row[0], {"en": row[1], "ja": row[2]}) for row in rows[4:-2]],
        terms={"en": _split(terms[1]), "ja": _split(terms[2])},
        tip={"en": tip[1], "ja": tip[2]},
        index=index,
    )


@functools.cache
def topics() -> tuple[Topic, ...]:
    """Every topic, in the order of the file."""
    text = (pathlib.Path(__file__).parent / "facts.txt").read_text(encoding="utf-8")
    blocks = [("@" + block).splitlines() for block in text.split("@")[1:]]
    return tuple(_parse([ln for ln in b if ln.strip()], i) for i, b in enumerate(blocks))


@functools.cache
def topic(topic_id: str) -> Topic:
    """The topic with this id."""
    return next(item for item in topics() if item.id == topic_id)
