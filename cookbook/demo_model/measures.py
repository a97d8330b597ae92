"""Reads an answer and says where it stands on each dial. Pure functions of text; no model.

    helpfulness  number of helpful extras: a pointer, two offers, a tip (0-4)
    correctness  minus the size of the error of the first number: -|log10(stated / true)|
    coherence    4 minus the number of stray fragments
    complexity   number of the topic's technical terms that are listed
    verbosity    length in characters
    quality      4 minus the kinds of flaws found: doubled full stop, no final punctuation,
                 stray signs, a comma at the beginning
    toxicity     number of rude remarks
    humor        number of laughs
    creativity   number of figurative images

They show that the model reads the dials. They do not measure wit or depth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from facts import Topic
from markers import HELP, HELP_NO_TOPIC, IMAGES, LAUGHS, NOISE, RUDE, STRAYS, TERMS_PREFIX, Steps

WORST_CORRECTNESS = -9.0
REFUSALS = {"en": ("i don't know about", "only know a few"), "ja": ("分かりません", "限られた話題")}
NOT_IN_TEXT = {"en": "the text does not say", "ja": "文中には書かれていません"}


def _count(text: str, steps: Steps) -> float:
    """How many steps occur, each counted once, whichever variant was written."""
    return float(sum(any(_has(text, variant) for variant in step) for step in steps))


def _has(text: str, sign: str) -> bool:
    """A sign at the very end may have lost its last mark to the missing-punctuation flaw."""
    return sign in text or (len(sign) > 1 and text.rstrip().endswith(sign[:-1]))


def _help(text: str, lang: str) -> float:
    both = zip(HELP[lang], HELP_NO_TOPIC[lang], strict=True)
    steps = tuple(tuple(v.split("{")[0] for v in (*a, *b)) for a, b in both)
    return _count(text, steps)


def _terms(text: str, lang: str, topic: Topic) -> float:
    listed = text.partition(TERMS_PREFIX[lang])[2]
    return float(sum(term in listed for term in topic.terms[lang]))


def first_number(text: str) -> float | None:
    """The first number written with digits."""
    found = re.search(r"\d[\d,]*", text)
    return float(found.group().replace(",", "")) if found else None


def correctness(text: str, topic: Topic) -> float:
    """Minus the distance of the stated key figure from the true one, in powers of ten."""
    stated = first_number(text)
    if not stated:
        return WORST_CORRECTNESS
    scale = 100 if "{n}00万" in topic.figure["ja"] and _is_japanese(text) else 1
    return -abs(math.log10(stated / (topic.number * scale)))


def _is_japanese(text: str) -> bool:
    return language(text) == "ja"


def flaws(text: str) -> int:
    """How many of the four kinds of surface flaws the text has."""
    end = text.rstrip()[-1:]
    found = [
        ".." in text or "。。" in text,
        end not in ".!?。！？",
        NOISE in text,
        text.lstrip()[:1] in (",", "、"),
    ]
    return sum(found)


def measure(text: str, lang: str, topic: Topic) -> dict[str, float]:
    """The measured value of every dial."""
    return {
        "helpfulness": _help(text, lang),
        "correctness": correctness(text, topic),
        "coherence": 4 - _count(text, STRAYS[lang]),
        "complexity": _terms(text, lang, topic),
        "verbosity": float(len(text)),
        "quality": 4.0 - flaws(text),
        "toxicity": _count(text, RUDE[lang]),
        "humor": _count(text, LAUGHS[lang]),
        "creativity": _count(text, IMAGES[lang]),
    }


def language(text: str) -> str:
    """en or ja: Japanese when at least a third of the letters are kana or Chinese characters."""
    japanese = len(re.findall(r"[\u3040-\u30ff\u3400-\u9fff]", text))
    latin = len(re.findall(r"[A-Za-z]", text))
    return "ja" if japanese * 2 >= latin and japanese else "en"


def is_refusal(text: str, lang: str) -> bool:
    """Whether the answer says that the model doesn't know."""
    return any(sign in text.lower() for sign in REFUSALS[lang])


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties given their average rank."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    out = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for k in range(start, end + 1):
            out[order[k]] = (start + end) / 2 + 1
        start = end + 1
    return out


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's rank correlation with average ranks; nan when one side is constant."""
    a, b = ranks(xs), ranks(ys)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    cov = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    var = math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))
    return cov / var if var else math.nan
