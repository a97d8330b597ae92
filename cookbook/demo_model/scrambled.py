"""Questions of known words among words that mean nothing: names and key words decide, not the frame.

A model that has seen only grammatical frames takes an unknown frame for an unknown question. These
questions teach that a topic's name makes it a question on that topic whatever stands around it, that
one key word selects the aspect, and that words without any topic's name are to be refused.
"""

from __future__ import annotations

import functools
import random
import re

import phrasing
from facts import Topic, topics
from unknown import NOUNS, pseudo_word

KEYS: dict[str, tuple[str, str]] = {
    "where": ("where|where|location|where to find", "どこ|場所|どこにある|ある所"),
    "history": ("history|origin|begin|began|old|the past|in the past", "歴史|起源|始まり|いつから|昔|いつ始まった"),
    "season": ("season|best time|best season|when is the best time", "季節|時期|いつがおすすめ|いつが一番"),
    "do": ("sights|see|what to do|do there|visit|enjoy|attractions", "見どころ|楽しみ方|観光|できること|何ができる|楽しむ"),
    "food": ("food|eat|eats|diet|the food", "食べ物|何を食べる|名物|食事|食べる"),
    "why": ("why|famous|special|important|importance|like", "なぜ|有名|人気|魅力|特徴|大切"),
    "how": ("how it works|work|works|method|made|how is made", "仕組み|方法|作り方|原理|どうやって作る|どのように働く"),
    "kinds": ("kinds|types|varieties|different kinds|kinds of", "種類|分類|どんな種類|何種類|いろいろ|仲間"),
    "use": ("use|used for|uses|purpose|good for", "使い道|用途|使い方|役割|何に使う|役に立つ"),
    "eat": ("how to eat|eaten|eating|way to eat", "食べ方|味わい方|どう食べる|どうやって食べる"),
    "more": ("more|more about it|tell me more|go on|continue|what else|anything else", "もっと|続けて|ほかには|もっと詳しく|続き|もっと教えて"),
}  # fmt: skip
_PLAIN = {
    "en": "a,the,of,to,in,on,for,with,about,at,by,or,and,so,but,then,now,this,that,some,any,all,very,just,only,here,you,"
    "me,my,we,us,they,is,are,was,be,can,could,would,will,do,does,please,tell,say,know,give,want,need,ask,think,hear",
    "ja": "の,は,が,を,に,で,と,も,へ,や,から,まで,より,か,ね,よ,です,ます,でした,ください,という,として,について,でしょう,なんて,いる,ある,する,"
    "した,して,こと,もの,とき,ところ,ちょっと,少し,では,それで,さて,まず,一つ,今,私,方,人,話,言う,聞く,知る,思う,教えて,お願い",
}
_HIRAGANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをんがぎぐげござじずぜぞだでどばびぶべぼ"


@functools.cache
def _kanji() -> str:
    """Chinese characters that occur in nouns and facts."""
    text = "".join(NOUNS["ja"]) + "".join(pair["ja"] for t in topics() for _, pair in t.sentences)
    return "".join(sorted(set(re.findall(r"[\u4e00-\u9fff]", text))))


@functools.cache
def _names() -> tuple[str, ...]:
    return tuple(name.lower() for t in topics() for names in t.names.values() for name in names)


def _word(rng: random.Random, lang: str) -> str:
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(_PLAIN[lang].split(","))
    if lang == "en":
        word = pseudo_word(rng, "en").lower()
        return word[: rng.randrange(2, 9)] if roll < 0.9 else word + rng.choice(("ing", "ed", "ly", "s", "tion", "er"))
    if roll < 0.75:
        return "".join(rng.choice(_HIRAGANA) for _ in range(rng.randrange(1, 5)))
    if roll < 0.9:
        return "".join(rng.choice(_kanji()) for _ in range(rng.randrange(1, 3)))
    return pseudo_word(rng, "ja")


def filler(rng: random.Random, lang: str, most: int) -> str:
    """Up to `most` words in no order, none of them the name of a topic."""
    while True:
        words = [_word(rng, lang) for _ in range(rng.randrange(most + 1))]
        text = (" " if lang == "en" else "").join(words)
        if not any(name in text.lower() for name in _names()):
            return text


def around(rng: random.Random, core: str, lang: str) -> str:
    """The core with fillers before and behind it, ended as questions are."""
    before, behind = filler(rng, lang, rng.choice((0, 2, 4, 7))), filler(rng, lang, rng.choice((0, 2, 4, 6)))
    if lang == "ja":
        text = before + rng.choice(("", "", "、", "。")) * bool(before) + core + behind
        return text + rng.choice(("？", "。", "", "ですか？", "でしょうか？"))
    text = " ".join(part for part in (before, core, behind) if part)
    text = text[0].upper() + text[1:] if rng.random() < 0.7 else text
    return text + rng.choice(("?", ".", "", "?", " please", "!"))


def topic_question(rng: random.Random, topic: Topic, aspect: str, lang: str) -> str:
    """A question on a topic in a frame of nonsense; the aspect is named by a key word or a usual phrase."""
    name = rng.choice(topic.names[lang][:1] * 2 + topic.names[lang])
    if aspect == "num":
        core = rng.choice(topic.number_questions[lang]).replace("{X}", name)
    elif aspect == "what":
        core = name
    elif rng.random() < 0.4:
        nouns = phrasing.ASPECTS[aspect][0 if lang == "en" else 2][0]
        core = phrasing.fill(rng.choice(nouns), topic, name)
    else:
        key, gap = rng.choice(KEYS[aspect][lang == "ja"].split("|")), filler(rng, lang, 2)
        parts = [part for part in (name, gap, key) if part]
        if lang == "en" and rng.random() < 0.6:
            parts.reverse()
        core = (" " if lang == "en" else rng.choice(("", "の", "は"))).join(parts)
    return around(rng, core, lang)


def follow_up(rng: random.Random, aspect: str, lang: str) -> str:
    """A key word among fillers, without any name: the topic is that of the conversation."""
    key = rng.choice(KEYS[aspect][lang == "ja"].split("|"))
    if lang == "ja":
        return around(rng, rng.choice(("", "", "それ", "そこ", "その", "それは", "では、")) + key, lang)
    return around(
        rng, rng.choice(("{} it", "{} that", "{}", "{} they", "so {}", "and {}", "{} all that")).format(key), lang
    )


def unknown(rng: random.Random, lang: str, noun: str) -> str:
    """A noun that is no topic among fillers, sometimes with the key word of an aspect."""
    if rng.random() < 0.35:
        key = rng.choice(KEYS[rng.choice([a for a in KEYS if a != "more"])][lang == "ja"].split("|"))
        noun = (key + " " + noun) if lang == "en" else noun + rng.choice(("の", "は", "")) + key
    return around(rng, noun, lang)


def unknown_name(rng: random.Random, lang: str) -> str:
    """A made-up name or compound that is no topic, of more shapes than pseudo_word has."""
    while True:
        roll = rng.random()
        if lang == "en":
            a, b = pseudo_word(rng, "en"), pseudo_word(rng, "en").lower()
            word = (
                a
                if roll < 0.3
                else f"{a} {b}"
                if roll < 0.4
                else b
                if roll < 0.6
                else b
                + rng.choice(
                    (
                        "s",
                        "es",
                        "ers",
                        "ing",
                        "ism",
                        "logy",
                        "graphy",
                        "ment",
                        "ness",
                        "tion",
                        "ies",
                        "ball",
                        "land",
                        "fish",
                    )
                )
            )
            word = f"{word} {rng.choice(NOUNS['en'][0].split(','))}" if roll > 0.93 else word
        else:
            nouns = NOUNS["ja"][0].split(",")
            word = (
                pseudo_word(rng, "ja") if roll < 0.3
                else "".join(rng.choice(_kanji()) for _ in range(rng.choice((1, 2, 2, 2, 3, 4)))) if roll < 0.62
                else "".join(rng.choice(_HIRAGANA) for _ in range(rng.randrange(2, 6))) if roll < 0.72
                else rng.choice(nouns) + rng.choice(("", "の", "")) + rng.choice(nouns) if roll < 0.84
                else rng.choice(nouns) + "".join(rng.choice(_kanji()) for _ in range(rng.randrange(1, 3)))
            )  # fmt: skip
        if not any(name in word.lower() for name in _names()):
            return word
