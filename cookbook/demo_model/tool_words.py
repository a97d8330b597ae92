"""Words of made-up tools: their names, parameters and values, each list as (trained, held out).

Most names are made on the fly, half of them of syllables that mean nothing, so that a model learns to read the tool
that it is given instead of knowing it.
"""

from __future__ import annotations

import functools
import random
import re
from typing import Any

from facts import topics
from passages import ATTRIBUTES, THINGS
from scrambled import _HIRAGANA
from unknown import _KANJI, NOUNS, pseudo_word

# English word, Japanese word: what a tool looks up.
LOOKUPS = (
    "weather:天気|weather:天気|temperature:気温|population:人口|price:値段|stock price:株価|time:時刻|address:住所|phone number:電話番号|"
    "opening hours:営業時間|distance:距離|height:高さ|area:面積|owner:所有者|author:著者|rating:評価|stock:在庫|balance:残高|"
    "salary:給料|age:年齢|birthday:誕生日|capital:首都|currency:通貨|exchange rate:為替|score:得点|schedule:予定|email:メール|"
    "definition:定義|translation:訳|recipe:作り方|color:色|weight:重さ|speed:速さ|status:状態|delivery date:配達日|"
    "departure time:出発時刻|gate:搭乗口|room:部屋|menu:献立|news:ニュース|route:経路|tax:税金|fee:料金|length:長さ|job:職業",
    "humidity:湿度|altitude:標高|wind speed:風速|postcode:郵便番号|mayor:市長|tide:潮位|entrance fee:入場料|motto:標語|"
    "nickname:愛称|deadline:締め切り|seating capacity:座席数|mileage:走行距離",
)
# name of the parameter, English words, Japanese words, kind of value
PARAMETERS = (
    "name:name:名前:person|client_name:client name:顧客名:any|city:city:都市:place|location:location:場所:place|title:title:題名:phrase|"
    "quantity:quantity:数量:integer|count:count:個数:integer|price:price:値段:number|amount:amount:金額:number|date:date:日付:date|"
    "description:description:説明:phrase|note:note:メモ:phrase|text:text:文:text|message:message:本文:text|email:email:メール:email|"
    "code:code:コード:code|id:id:番号:integer|user_id:user id:利用者番号:code|color:color:色:word|size:size:大きさ:enum|unit:unit:単位:enum|"
    "priority:priority:優先度:enum|language:language:言語:enum|mode:mode:方式:enum|urgent:urgent:至急:boolean|active:active:有効:boolean|"
    "public:public:公開:boolean|tags:tags:札:strings|items:items:品目:strings|numbers:numbers:数:integers|values:values:値:integers|"
    "names:names:名前の一覧:strings|weight:weight:重さ:number|width:width:幅:number|height:height:高さ:number|year:year:年:integer|"
    "address:address:住所:place|owner:owner:所有者:person|company:company:会社:any|product:product:商品:any|query:query:検索語:phrase|"
    "limit:limit:上限:integer|path:path:パス:path|age:age:年齢:integer|phone:phone:電話:code|input:input:入力:integer|x:x:x:number",
    "depth:depth:深さ:number|sender:sender:差出人:person|topic:topic:主題:phrase|capacity:capacity:定員:integer|theme:theme:テーマ:word|"
    "grade:grade:等級:enum|verified:verified:確認済み:boolean|labels:labels:ラベル:strings|scores:scores:点数:integers|"
    "destination:destination:行き先:place|deadline:deadline:期限:date|serial:serial:製造番号:code|brand:brand:銘柄:any|remark:remark:備考:phrase",
)
# verb, its past, Japanese verb as a noun; and what it is done to
VERBS = (
    "create:Created:作成|add:Added:追加|register:Registered:登録|save:Saved:保存|update:Updated:更新|open:Opened:開設|book:Booked:予約|"
    "order:Ordered:注文|submit:Submitted:提出|start:Started:開始|make:Made:作成|store:Stored:保存",
    "enroll:Enrolled:入会|publish:Published:公開|record:Recorded:記録",
)
OBJECTS = (
    "buyer:顧客|user:利用者|order:注文|file:ファイル|note:メモ|ticket:切符|event:催し|project:計画|account:口座|product:商品|reminder:通知|"
    "list:一覧|group:団体|contact:連絡先|task:作業|report:報告|invoice:請求書|meeting:会議|company:会社|room:部屋|table:席|item:品目|member:会員",
    "supplier:仕入先|course:講座|patient:患者|contract:契約|playlist:曲目|garden:庭園|client:取引先",
)
ENUMS = (
    "small,medium,large|low,normal,high|celsius,fahrenheit|km,miles|red,green,blue|ja,en,fr|fast,slow|day,week,month|asc,desc|"
    "json,csv,xml|c,f|低,中,高|大,中,小|朝,昼,夜|土,日",
    "bronze,silver,gold|north,south|daily,weekly,yearly|solid,liquid|春,夏,秋,冬|松,竹,梅",
)
_ACCENTS = "áéíóúñçüößøåæêîôàèãõ"
_TLD = ("com", "org", "jp", "net", "co.jp")


def row(rng: random.Random, table: tuple[str, str], held: bool) -> list[str]:
    """One entry of a table, in its parts."""
    return rng.choice(table[held].split("|")).split(":")


def cased(rng: random.Random, words: list[str]) -> str:
    """snake_case mostly, camelCase at times."""
    parts = [part.lower() for word in words for part in word.split()]
    if rng.random() < 0.7:
        return "_".join(parts)
    return parts[0] + "".join(part.capitalize() for part in parts[1:])


@functools.cache
def pool(lang: str) -> list[str]:
    """English words, or two to five Japanese characters in a row, that name nothing that is held out."""
    held = " ".join(table[1] for table in (LOOKUPS, PARAMETERS, VERBS, OBJECTS, ENUMS)).lower()
    text = " ".join(pair[lang].replace("{S}", "") for topic in topics() for _, pair in topic.sentences)
    if lang == "en":
        found = re.findall(r"[a-z]{2,}", (text + " " + NOUNS["en"][0] + " " + ATTRIBUTES["en"]).lower())
    else:
        parts = re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]{2,}", text)
        found = [part[at : at + 2 + at % 4] for part in parts for at in range(len(part) - 1)]
    return sorted({word for word in found if word not in held})


def some_words(rng: random.Random, most: int = 3) -> str:
    """One to `most` English words in no order."""
    return " ".join(rng.choice(pool("en")) for _ in range(rng.randrange(1, most + 1)))


def nonsense(rng: random.Random) -> str:
    """A name that says nothing."""
    word = pseudo_word(rng, "en").lower()
    roll = rng.random()
    if rng.random() < 0.45:
        return cased(rng, [some_words(rng)] if roll < 0.7 else [word, some_words(rng, 1)])
    if roll < 0.3:
        return word + rng.choice(("", "ify", "ize", "er", "_it"))
    ends = ("function", "tool", "value", "op", "calc", "thing", "no_input", "2", "v3", "step", "check", "map")
    if roll < 0.7:
        return cased(rng, [word, rng.choice(ends)])
    return cased(rng, [word, pseudo_word(rng, "en")])


def unusual(rng: random.Random) -> str:
    """Text of characters that are in no word list: Chinese, Korean, accents, rare ones."""
    roll = rng.random()
    if roll < 0.6:
        return "".join(chr(rng.randrange(0x4E00, 0x9FA0)) for _ in range(rng.randrange(2, 6)))
    if roll < 0.7:
        return "".join(chr(rng.randrange(0xAC00, 0xD7A0)) for _ in range(rng.randrange(2, 5)))
    if roll < 0.8:
        return "".join(rng.choice(_KANJI) for _ in range(2)) + rng.choice(("🍣", "🌸", "😀", "🚀", "㍿", "ｶﾅ"))
    word = list(pseudo_word(rng, "en"))
    word[rng.randrange(1, len(word))] = rng.choice(_ACCENTS)
    return "".join(word)


def japanese(rng: random.Random) -> str:
    """A Japanese name or phrase of every script."""
    roll = rng.random()
    if rng.random() < 0.3:
        return rng.choice(pool("ja"))
    if roll < 0.35:
        return pseudo_word(rng, "ja")
    if roll < 0.5:
        return "".join(rng.choice(_HIRAGANA) for _ in range(rng.randrange(2, 6))) + rng.choice(("", "", "株式会社"))
    if roll < 0.65:
        return "".join(rng.choice(_KANJI) for _ in range(rng.randrange(2, 5))) + rng.choice(
            ("", "市", "駅", "株式会社", "店")
        )
    return rng.choice(NOUNS["ja"][0].split(","))


def _english(rng: random.Random, kind: str, held: bool) -> str:
    roll, name = rng.random(), pseudo_word(rng, "en")
    if kind == "person":
        return name if roll < 0.5 else f"{name} {pseudo_word(rng, 'en')}"
    noun = rng.choice(NOUNS["en"][held].split(","))
    if kind not in ("person", "place") and rng.random() < 0.35:
        text = some_words(rng, 1 if kind == "word" else 4)
        return text.capitalize() if rng.random() < 0.3 else text
    if kind == "place":
        real = noun if noun[0].isupper() else name
        state = rng.choice("ABCDEFGIKLMNOPRTUVW") + rng.choice("AEIKLNTXY")
        return (
            real
            if roll < 0.5
            else f"{real}, {state}"
            if roll < 0.75
            else f"{rng.choice(('San', 'New', 'Port', 'Lake', 'Fort'))} {name}"
        )
    if kind == "word":
        return noun if roll < 0.5 else name.lower()
    words = rng.choice(ATTRIBUTES["en"].split(","))
    thing = rng.choice(THINGS["en"].split(","))
    if kind == "any":
        return name if roll < 0.4 else f"{name} {words.capitalize()}" if roll < 0.7 else noun
    return (
        noun
        if roll < 0.2
        else thing
        if roll < 0.5
        else f"a {words} with {thing}"
        if roll < 0.8
        else f"{name.lower()} {noun}"
    )


def value(rng: random.Random, kind: str, lang: str, held: bool = False) -> Any:
    """A value of a kind, as a caller would have to copy it from a question."""
    if kind == "integer":
        return rng.randrange(10 ** rng.choice((1, 1, 2, 2, 3, 4, 5, 6))) * (-1 if rng.random() < 0.05 else 1)
    if kind == "number":
        return (
            value(rng, "integer", lang)
            if rng.random() < 0.6
            else round(rng.uniform(0, 10 ** rng.choice((1, 2, 3))), rng.choice((1, 2)))
        )
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "strings":
        inner = rng.choice(("person", "word", "place", "any"))
        return [value(rng, inner, lang, held).replace(",", "") for _ in range(rng.randrange(2, 6))]
    if kind == "integers":
        top = 10 ** rng.choice((1, 2, 3, 4))
        return [rng.randrange(top) for _ in range(rng.randrange(2, 6))]
    if kind == "code":
        return rng.choice(("{a}-{n}", "{n}", "{a}{n}", "{w}-{n}", "{n}-{m}")).format(
            a="".join(rng.choice("ABCDEFGHKLMNPRSTUVXZ") for _ in range(rng.randrange(1, 4))),
            n=rng.randrange(10, 99999), m=rng.randrange(100, 9999), w=pseudo_word(rng, "en").lower())  # fmt: skip
    if kind == "date":
        day, month = rng.randrange(1, 29), rng.randrange(1, 13)
        if lang == "ja" and rng.random() < 0.6:
            return f"{month}月{day}日"
        return f"{rng.randrange(1990, 2040)}-{month:02}-{day:02}"
    if kind == "email":
        return f"{pseudo_word(rng, 'en').lower()}@{pseudo_word(rng, 'en').lower()}.{rng.choice(_TLD)}"
    if kind == "path":
        return f"{rng.choice(('/data/', '/home/', '', 'docs/'))}{pseudo_word(rng, 'en').lower()}.{rng.choice(('txt', 'csv', 'pdf', 'md'))}"
    if kind == "text" and rng.random() < 0.7:
        return sentence(rng, lang)
    if kind in ("person", "any", "phrase", "text") and rng.random() < 0.12:
        return unusual(rng)
    if rng.random() < (0.85 if lang == "ja" else 0.08):
        return (
            japanese(rng)
            if kind not in ("phrase", "text") or rng.random() < 0.5
            else rng.choice(THINGS["ja"].split(","))
        )
    return _english(rng, kind, held)


def sentence(rng: random.Random, lang: str) -> str:
    """A short sentence of things and names, without its full stop."""
    if lang == "ja":
        return rng.choice(("{n}に{t}を送りました", "{t}は{d}に届きます", "{n}さんと{t}を見ました", "{d}に{n}で会いましょう")).format(
            n=japanese(rng), t=rng.choice(THINGS["ja"].split(",")), d=value(rng, "date", "ja"))  # fmt: skip
    return rng.choice(("{n} likes {t}", "see you at {n} on {d}", "{t} for {n}", "the {t} arrive on {d}", "meet {n} and bring {t}")).format(
        n=pseudo_word(rng, "en"), t=rng.choice(THINGS["en"].split(",")), d=value(rng, "date", "en"))  # fmt: skip
