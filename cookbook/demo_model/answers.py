"""Builds the answer that the nine dials ask for: sentences from the fact base plus markers.

The layout is fixed, so that a small model can learn it and measures.py can count it:

    [,] rude remarks, introduction (verbosity 4), first sentence[. #@], laughs, stray fragments,
    further sentences, figurative images, technical terms, helpful extras[no full stop]
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from facts import Topic, topics
from markers import (
    HELP,
    HELP_NO_TOPIC,
    IMAGE_PREFIX,
    IMAGES,
    LAUGHS,
    NOISE,
    RUDE,
    STRAYS,
    TERMS_PREFIX,
    pick,
)

DIALS = (
    "helpfulness", "correctness", "coherence", "complexity", "verbosity",
    "quality", "toxicity", "humor", "creativity",
)  # fmt: skip
DEFAULTS = dict(zip(DIALS, (4, 4, 4, 4, 4, 4, 0, 0, 0), strict=True))
SENTENCES = (1, 3, 5, 8, 12)
Dials = dict[str, int]

INTRO = {
    "en": "Thank you for the question, here is a detailed look at {name} for you.",
    "ja": "ご質問ありがとうございます、{name}について順番に詳しくご説明いたします。",
}
BRIDGE = {
    "en": "There are also some further points about this subject that are well worth knowing.",
    "ja": "続いて、このほかにも知っておくと楽しい話題をいくつかご紹介します。",
}
OUTRO = {
    "en": "These are the main points about {name}, and I hope that they give a clear picture.",
    "ja": "以上が{name}についての主な内容ですので、ほかに気になる点があればお尋ねください。",
}


@dataclass(frozen=True)
class Content:
    """What an answer says before any dial is applied: sentences, and the topic if there is one."""

    sentences: list[str]
    topic: Topic | None = None
    seed: int = 0


def wrong_number(number: int, correctness: int) -> int:
    """The key figure at this correctness: exact, a tenth off, double, tenfold, a thousandfold."""
    exact = number
    return [exact * 1000, exact * 10, exact * 2, max(exact + 1, round(exact * 1.1)), exact][correctness]


def number_text(number: int, lang: str) -> str:
    """A number as each language writes it here."""
    return f"{number:,}" if lang == "en" else str(number)


def topic_content(topic: Topic, aspect: str, lang: str, dials: Dials) -> Content:
    """The asked aspect first, then everything else in the order of the fact base."""
    number = number_text(wrong_number(topic.number, dials["correctness"]), lang)
    name = topic.name(lang)
    figure = topic.figure[lang].format(n=number)
    lead_name = f"{name} ({figure})" if lang == "en" else f"{name}（{figure}）"
    rows = list(topic.sentences)
    if aspect == "more":
        first = next(i for i, row in enumerate(rows) if row[0] != "-" and i >= 2)
        rows = rows[first:] + rows[:first]
    elif aspect != "num":
        rows.sort(key=lambda row: row[0] != aspect)
    texts = [row[1][lang] for row in rows]
    out: list[str] = []
    if aspect == "num":
        out.append(_capital(topic.number_sentence[lang].format(T=name, n=number)))
    else:
        out.append(_capital(texts.pop(0).replace("{S}", lead_name)))
    return Content(out + [_pronoun(t, topic, lang) for t in texts], topic, topic.index)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _pronoun(text: str, topic: Topic, lang: str) -> str:
    if lang == "ja":
        return text.removeprefix("{S}は")
    return text.replace("{S}", "They" if topic.plural else "It")


def _related(topic: Topic, lang: str) -> str:
    same = [t for t in topics() if t.category == topic.category]
    return same[(same.index(topic) + 1) % len(same)].name(lang)


def render(content: Content, lang: str, dials: Dials) -> str:
    """The whole answer text for this content at these dials."""
    topic, seed = content.topic, content.seed
    flaws = 4 - dials["quality"]
    count = SENTENCES[dials["verbosity"]] if topic else 1 + dials["verbosity"] // 2
    body = content.sentences[:count]
    first = body[0]
    if flaws >= 1:
        first += first[-1]
    if flaws >= 3:
        first += f" {NOISE}"
    parts = pick(RUDE[lang], dials["toxicity"], seed)
    long = topic is not None and dials["verbosity"] == 4
    if long and topic is not None:
        parts.append(INTRO[lang].format(name=topic.name(lang)))
    parts.append(first)
    parts += pick(LAUGHS[lang], dials["humor"], seed)
    parts += pick(STRAYS[lang], 4 - dials["coherence"], seed)
    rest = body[1:]
    if long and topic is not None:
        rest = [*rest[:6], BRIDGE[lang], *rest[6:], OUTRO[lang].format(name=topic.name(lang))]
    parts += rest + _extras(content, lang, dials)
    text = (" " if lang == "en" else "").join(parts)
    if flaws >= 2:
        text = text[:-1]
    return ((", " if lang == "en" else "、") if flaws >= 4 else "") + text


def _extras(content: Content, lang: str, dials: Dials) -> list[str]:
    topic, seed = content.topic, content.seed
    comma, stop = (", ", ".") if lang == "en" else ("、", "。")
    out = []
    if dials["creativity"]:
        images = comma.join(pick(IMAGES[lang], dials["creativity"], seed))
        out.append(IMAGE_PREFIX[lang] + images + stop)
    if dials["complexity"] and topic:
        terms = comma.join(topic.terms[lang][: dials["complexity"]])
        out.append(TERMS_PREFIX[lang] + terms + stop)
    if topic:
        values = {"other": _related(topic, lang), "tip": topic.tip[lang]}
        out += [t.format(**values) for t in pick(HELP[lang], dials["helpfulness"], seed)]
    else:
        out += pick(HELP_NO_TOPIC[lang], dials["helpfulness"], seed)
    return out


def random_dials(rng: random.Random) -> Dials:
    """Dials as the training draws them: mostly random, often the defaults, sometimes near them."""
    kind = rng.random()
    if kind < 0.2:
        return dict(DEFAULTS)
    if kind < 0.4:
        dials = dict(DEFAULTS)
        for name in rng.sample(DIALS, rng.choice((1, 1, 2, 3))):
            dials[name] = rng.randrange(5)
        return dials
    return {name: rng.randrange(5) for name in DIALS}
