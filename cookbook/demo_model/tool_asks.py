"""Questions that made-up tools answer: the tools, the question, the calls that are right, what comes back.

Each maker draws a tool and a question for it. Values stand in the question exactly as the call has to hold them.
Question forms are written as (trained, held out).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import tool_words as words
from passages import ATTRIBUTES, THINGS
from unknown import pseudo_word

from karakuri_integrations.conversation import Tool

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One call and the text that its tool returns."""

    tool: str
    arguments: Arguments
    result: str


@dataclass(frozen=True)
class Ask:
    """A question: rounds of parallel calls that answer it, and the first sentence of the answer."""

    keys: frozenset[str]
    tools: tuple[Tool, ...]
    question: str
    rounds: tuple[tuple[Step, ...], ...]
    answer: str


@dataclass(frozen=True)
class Field:
    """A parameter, how a question says it, and its value; None where the question leaves it out."""

    name: str
    said: str
    schema: dict[str, Any]
    value: Any
    required: bool = True


def tool_of(rng: random.Random, name: str, description: str, fields: list[Field]) -> Tool:
    """The tool as a framework writes one."""
    properties: dict[str, Any] = {}
    described = rng.random() < 0.15
    for field in fields:
        properties[field.name] = dict(field.schema)
        if described and "type" in field.schema:
            properties[field.name]["description"] = field.said
    required = [field.name for field in fields if field.required]
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    return Tool(name, description, json.dumps(schema, ensure_ascii=False))


def arguments_of(fields: list[Field]) -> Arguments:
    """What the call holds: in the order of the schema, without what was not said."""
    return {field.name: field.value for field in fields if field.value is not None}


# --- parameters -----------------------------------------------------------------------------------------------------

_TYPES = {"integer": "integer", "number": "number", "boolean": "boolean"}


def draw_fields(rng: random.Random, lang: str, count: int, held: bool, kinds: str | None = None) -> list[Field]:
    """Different parameters with values; now and then an optional or a nested one."""
    fields: list[Field] = []
    while len(fields) < count:
        name, english, japanese, kind = words.row(rng, words.PARAMETERS, held and rng.random() < 0.7)
        said = english if lang == "en" else japanese
        if kinds is not None:
            kind = rng.choice(kinds.split())
        if rng.random() < 0.25:
            name = pseudo_word(rng, "en").lower() if lang == "en" or rng.random() < 0.5 else words.japanese(rng)
            said = name
            if name.isascii() and rng.random() < 0.6:
                said = words.some_words(rng, 2)
                name = words.cased(rng, [said])
        elif "_" in name and rng.random() < 0.3:
            name = words.cased(rng, name.split("_"))
        elif lang == "ja" and rng.random() < 0.15:
            name = japanese
        if not name.isidentifier() or any(field.name == name for field in fields):
            continue
        schema, value = _typed(rng, kind, lang, held)
        optional = rng.random() < 0.2
        fields.append(Field(name, said, schema, value, not optional))
        if optional and rng.random() < 0.5:
            fields[-1] = Field(name, said, schema, None, False)
    return sorted(fields, key=lambda field: not field.required)


def _typed(rng: random.Random, kind: str, lang: str, held: bool) -> tuple[dict[str, Any], Any]:
    if kind == "enum":
        options = rng.choice(words.ENUMS[held].split("|")).split(",")
        return {"enum": options, "type": "string"}, rng.choice(options)
    value = words.value(rng, kind, lang, held)
    if kind in ("strings", "integers"):
        return {"type": "array", "items": {"type": "string" if kind == "strings" else "integer"}}, value
    return {"type": _TYPES.get(kind, "string")}, value


def _shown(rng: random.Random, value: Any, lang: str) -> str:
    """A value as a question writes it."""
    if value is True or value is False:
        pairs = ("yes/no", "true/false", "on/off") if lang == "en" else ("はい/いいえ", "true/false", "する/しない")
        return rng.choice(pairs).split("/")[not value]
    if isinstance(value, list):
        texts = [str(one) for one in value]
        if lang == "ja":
            return rng.choice(("、", "と", ", ")).join(texts)
        return ", ".join(texts) if rng.random() < 0.6 else ", ".join(texts[:-1]) + " and " + texts[-1]
    if isinstance(value, str):
        marks = ("''", '""', None, None, None) if lang == "en" else ("「」", "「」", "''", "『』", None, None)
        quotes = rng.choice(marks)
        return quotes[0] + value + quotes[1] if quotes else value
    return str(value)


_STATED = {
    "en": ("{p} {v}|{p}={v}|{p}: {v}|the {p} is {v}|{p} = {v}|{v} as {p}", "{v} for the {p}|its {p} being {v}"),
    "ja": ("{p}は{v}|{p}={v}|{p}: {v}|{p}が{v}|{p}に{v}|{p}：{v}", "{p}としては{v}|{v}という{p}"),
}


def stated(rng: random.Random, fields: list[Field], lang: str, held: bool) -> str:
    """The values of the fields in one phrase."""
    form = rng.choice(_STATED[lang][held].split("|"))
    literal = "=" in form and rng.random() < 0.5
    parts = []
    for field in fields:
        if field.value is not None:
            said = field.name if literal else field.said
            parts.append(form.format(p=said, v=_shown(rng, field.value, lang)))
    rng.shuffle(parts)
    if lang == "ja":
        return rng.choice(("、", "、", ", ", "で、")).join(parts)
    if len(parts) > 1 and rng.random() < 0.5:
        return ", ".join(parts[:-1]) + " and " + parts[-1]
    return rng.choice((", ", "; ", " and ")).join(parts)


# --- what tools return ----------------------------------------------------------------------------------------------


def result_of(rng: random.Random, lang: str, key: str = "result") -> tuple[str, str]:
    """(text that the tool returns, the value in it as an answer says it)."""
    roll = rng.random()
    if roll < 0.35:
        value: Any = words.value(rng, "integer", lang) if rng.random() < 0.6 else words.value(rng, "number", lang)
    elif roll < 0.6:
        value = rng.choice(THINGS[lang].split(","))
    else:
        value = words.value(rng, rng.choice(("person", "place", "code", "date", "word", "any")), lang)
    if rng.random() < 0.2:
        unit = rng.choice(("degrees", "yen", "km", "%", "people") if lang == "en" else ("度", "円", "キロ", "%", "人"))
        value = (
            f"{words.value(rng, 'integer', lang)} {unit}"
            if lang == "en"
            else f"{words.value(rng, 'integer', lang)}{unit}"
        )
    if rng.random() < 0.25:
        name = key if key.isidentifier() and rng.random() < 0.6 else rng.choice(("result", "value", "output", "answer"))
        return json.dumps({name: value}, ensure_ascii=False), str(value)
    return str(value), str(value)


_SAID = {"en": ("The tool says: {r}", "The tool says: {r}"), "ja": ("ツールの返事：{r}", "ツールの返事：{r}")}
_STOPS = {"en": ".", "ja": "。"}


def _ended(text: str, lang: str) -> str:
    return text if text[-1] in ".。!?！？" else text + _STOPS[lang]


# --- looking something up -------------------------------------------------------------------------------------------

_LOOKUP_NAMES = (
    "get {a}|get {a}|{a}|{a} lookup|find {a}|fetch {a}|lookup {a}|{a} of|query {a}|search {a}",
    "check {a}|read {a}|{a} service",
)
_LOOKUP_TEXTS = {
    "en": ("Get the {a} of something.|Returns the {a}.|Look up the {a}.|Get {a} for a {k}.|Finds the {a} of a {k}.|{a} by {k}.|Get the {a} at a {k}.|"
           "Get {a} in a given {k}.|Look up {a}. Args: {k}: The {k} to look up. Returns: The {a}.",
           "Tells you the {a}.|Use this to learn the {a} of a {k}.|Answers with the {a}."),
    "ja": ("{a}を調べる。|{a}を返す。|{k}の{a}を取得します。|{a}の検索。|指定した{k}の{a}を調べます。|{a}を取得。",
           "{a}が分かる。|{k}を渡すと{a}を答える。"),
}  # fmt: skip
_LOOKUP_ASKS = {
    "en": ("What is the {a} of {v}?|What's the {a} in {v}?|What's the {a} of {v}?|Tell me the {a} of {v}.|{v} {a}|{a} of {v}?|I need the {a} for {v}.|"
           "What is the {a} for {v}?|What is the {a} at {v}?|Please look up the {a} of {v}.|Find the {a} of {v}|Which {a} does {v} have?|How is the {a} in {v}?|"
           "Get the {a} of {v}|What's the {a} like in {v}?|Can you tell me the {a} in {v}?|{a} in {v}",
           "I would like to know the {a} of {v}.|Do you know what {a} {v} has?|Check which {a} is given for {v}.|Could you find out the {a} of {v}?"),
    "ja": ("{v}の{a}は？|{v}の{a}を教えて|{v}の{a}は何ですか？|{v}の{a}を調べて|{v}の{a}を調べてください。|{v}の{a}が知りたい|{v}の{a}を教えてください。|"
           "{a}は？{v}の|{v} {a}|{v}の{a}はどうですか？|{v}の{a}",
           "{v}における{a}をお願いします。|{v}の{a}ってどうなっていますか？|{a}を知りたいのですが、{v}のです。"),
}  # fmt: skip
_KEYS = ("city:都市|location:場所|place:場所|name:名前|query:検索語|item:品目|target:対象|subject:対象|key:キー|entity:対象|q:検索語|term:語|product:商品|town:町",
         "spot:地点|object:物|keyword:語|station:駅")  # fmt: skip


@dataclass(frozen=True)
class _Lookup:
    tool: Tool
    attribute: str
    key: str
    fields: list[Field]


def _attribute(rng: random.Random, lang: str, held: bool) -> tuple[str, str]:
    """(what the tool's name says, what questions say)."""
    english, japanese = words.row(rng, words.LOOKUPS, held)
    if held:
        return english, english if lang == "en" else japanese
    roll = rng.random()
    if roll < 0.4:
        word = pseudo_word(rng, "en").lower() if roll < 0.15 else words.some_words(rng, 2)
        if lang == "ja" and roll > 0.3:
            word = rng.choice(words.pool("ja"))
        return word, word
    if roll < 0.6:
        word = rng.choice(ATTRIBUTES[lang].split(","))
        return word, word
    return english, english if lang == "en" else japanese


def lookup(rng: random.Random, lang: str, held: bool) -> _Lookup:
    """A tool that finds one attribute of one thing."""
    named, said = _attribute(rng, lang, held)
    if not named.isascii():
        name = named + rng.choice(("取得", "検索", "を調べる", "の照会", ""))
    elif held and lang == "ja":
        name = said + rng.choice(("取得", "照会")) if rng.random() < 0.5 else words.nonsense(rng)
    else:
        name = words.cased(rng, [rng.choice(_LOOKUP_NAMES[held].split("|")).format(a=named)])
    key, key_said = words.row(rng, _KEYS, held)
    description = ""
    if rng.random() < 0.75 or (lang == "ja" and held) or (lang == "ja" and said != named and rng.random() < 0.5):
        if rng.random() < 0.15 and not held:
            name = words.nonsense(rng)
        description = rng.choice(_LOOKUP_TEXTS[lang][held].split("|")).format(
            a=said, k=key if lang == "en" else key_said
        )
    value = words.value(rng, rng.choice(("place", "place", "person", "any", "word", "code")), lang, held)
    fields = [Field(key, key_said if lang == "ja" else key, {"type": "string"}, value)]
    if rng.random() < 0.2:
        extra = draw_fields(rng, lang, 1, held)[0]
        if extra.name != key:
            fields.append(
                Field(extra.name, extra.said, extra.schema, extra.value if rng.random() < 0.5 else None, False)
            )
    return _Lookup(tool_of(rng, name, description, fields), said, said, fields)


def _joined(rng: random.Random, texts: list[str], lang: str) -> str:
    if lang == "ja":
        return rng.choice(("と", "、")).join(texts) if len(texts) < 3 else "、".join(texts)
    return ", ".join(texts[:-1]) + " and " + texts[-1] if len(texts) > 1 else texts[0]


def lookup_ask(rng: random.Random, lang: str, held: bool = False) -> Ask:
    """One to four things are looked up."""
    found = lookup(rng, lang, held)
    key, *rest = found.fields
    count = rng.choices((1, 2, 3, 4), (72, 18, 6, 4))[0]
    values = [key.value]
    while len(values) < count:
        other = words.value(rng, rng.choice(("place", "person", "any")), lang, held)
        if other not in values:
            values.append(other)
    question = rng.choice(_LOOKUP_ASKS[lang][held].split("|")).format(a=found.attribute, v=_joined(rng, values, lang))
    if rest and rest[0].value is not None:
        question += (
            (" (" + stated(rng, rest, lang, held) + ")")
            if lang == "en"
            else "（" + stated(rng, rest, lang, held) + "）"
        )
    steps, said = [], []
    for value in values:
        text, shown = result_of(rng, lang, found.attribute)
        extra = {field.name: field.value for field in rest if field.value is not None}
        steps.append(Step(found.tool.name, {key.name: value, **extra}, text))
        said.append(
            f"the {found.attribute} of {value} is {shown}" if lang == "en" else f"{value}の{found.attribute}は{shown}"
        )
    answer = (", ".join(said) if lang == "en" else "、".join(said) + "です") + _STOPS[lang]
    answer = answer[0].upper() + answer[1:]
    if count == 1 and rng.random() < 0.15:
        text = words.sentence(rng, lang) + _STOPS[lang] if rng.random() < 0.5 else rng.choice(_WEATHER[lang].split("|"))
        steps, answer = [Step(steps[0].tool, steps[0].arguments, text)], _ended(_SAID[lang][0].format(r=text), lang)
    return Ask(frozenset([found.key]), (found.tool,), _polite(rng, question, lang, held), (tuple(steps),), answer)


_WEATHER = {"en": "It is cloudy.|It's windy.|There is none.|It will snow.|It's closed.|Nobody knows.|It's very hot today.",
            "ja": "曇りです。|風が強いです。|ありません。|雪が降ります。|閉まっています。|とても暑いです。"}  # fmt: skip
_POLITE = {
    "en": ("{}|{}|{}|{}|{} Use the tool.|{} Please use a tool.|Please help: {}|{} Thanks!|{} Use your tools.", "{}|{} Make use of the tool."),
    "ja": ("{}|{}|{}|{}|{} ツールを使って。|{} ツールを使ってください。|お願いします。{}|{} 道具を使って。", "{}|{} 使えるツールでどうぞ。"),
}  # fmt: skip


def _polite(rng: random.Random, text: str, lang: str, held: bool) -> str:
    form = rng.choice(_POLITE[lang][held].split("|"))
    if not form.endswith("{}") and text[-1] not in ".?!。？！」』'\"":
        text += _STOPS[lang]  # so that a value at the end keeps apart from what follows
    return form.format(text)


# --- functions by their name ----------------------------------------------------------------------------------------

_FUNCTION_ASKS = {
    "en": ("What value has {f}({v})?|Tell me the value of {f}({v}).|What does {f}({v}) return?|Call {f} with {s}.|Run {f} with {s}.|Use {f}: {s}.|Please call {f}, {s}.|"
           "Compute {f}({v}).|{f}({v})|{f} with {s}|What is {f} of {v}?|Apply {f} to {v}.|Evaluate {f}({v})|I want {f} with {s}|Use {f} on {v}.|What is {f}({v})?",
           "Is there a value for {f}({v})?|Give {f} a try, {s}.|Let {f} work on {v}.|Execute {f} on {v} for me"),
    "ja": ("{f}({v})の値は？|{f}({v})は？|{f}を{s}で呼んで|{f}を使って：{s}|{f}を実行して。{s}|{f}に{v}を渡して|{v}に{f}を使って|{f}({v})を計算して|"
           "{f}({v})の結果を教えて|{f}を{s}で実行してください。|{f}({v})",
           "{f}({v})はいくつになりますか？|{f}を試してください、{s}です。|{f}へ{v}をどうぞ。"),
}  # fmt: skip
_EMPTY_ASKS = {
    "en": ("What value has {f}()?|Tell me the value of {f}().|Call {f}.|Run {f}|What does {f} return?|Use {f}.|{f}()|What is the result of {f}?|Please run {f}.|{f}, please",
           "Give {f} a try.|Is there a value for {f}()?|Let {f} work."),
    "ja": ("{f}()の値は？|{f}を呼んで|{f}を実行して|{f}を使って|{f}は何を返す？|{f}()|{f}の結果は？|{f}を実行してください。", "{f}を試してください。|{f}()はいくつになりますか？"),
}  # fmt: skip
_FUNCTION_TEXTS = {
    "en": (
        "Apply the {w} function to an input.|Calculate {w}.|A {w} tool.|Does {w} things.|Compute the {w} of the input.|Runs {w}.|{w}",
        "Performs {w}.|The {w} operation.",
    ),
    "ja": ("{w}の関数。|{w}を計算する。|{w}用のツール。|入力に{w}を行う。", "{w}を行います。|{w}の処理。"),
}


def function_ask(rng: random.Random, lang: str, held: bool = False) -> Ask:
    """A function of a name that says nothing, called by its name."""
    name = (
        words.nonsense(rng)
        if lang == "en" or rng.random() < 0.7
        else words.japanese(rng) + rng.choice(("関数", "", "計算", "変換"))
    )
    fields = draw_fields(rng, lang, rng.choices((0, 1, 2, 3), (15, 45, 27, 13))[0], held)
    if len(fields) == 1 and rng.random() < 0.5:
        one = words.value(rng, "integer", lang)
        fields = [
            Field(rng.choice(("input", "x", "n", "value", "number", fields[0].name)), "input", {"type": "integer"}, one)
        ]
    given = [field for field in fields if field.value is not None]
    name = name if not name[0].isdigit() else "f" + name
    forms = _FUNCTION_ASKS if given else _EMPTY_ASKS
    question = rng.choice(forms[lang][held].split("|"))
    if "{v}" in question and (
        len(given) < len(fields) or (any(isinstance(f.value, list) for f in given) and len(given) > 1)
    ):
        question = question.replace("{v}", "{s}")
    values = ", ".join(_plain(field.value) for field in given)
    question = question.format(f=name, v=values, s=stated(rng, given, lang, held) if given else "")
    description = ""
    if rng.random() < 0.6:
        description = rng.choice(_FUNCTION_TEXTS[lang][held].split("|")).format(
            w=rng.choice(("magic", "secret", name.split("_")[0], pseudo_word(rng, "en").lower()))
        )
    text, shown = result_of(rng, lang)
    answer = f"The result of {name} is {shown}." if lang == "en" else f"{name}の結果は{shown}です。"
    tool = tool_of(rng, name, description, fields)
    return Ask(
        frozenset([name]),
        (tool,),
        _polite(rng, question, lang, held),
        ((Step(name, arguments_of(fields), text),),),
        answer,
    )


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | bool) else str(value)


# --- arithmetic -----------------------------------------------------------------------------------------------------

_SUMS: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "+": ("add|adder|add_numbers|sum|plus|addition|my_adder|addTwo|add_two_numbers|足し算|加算", "adder_tool|calc_sum|和を求める",
          {"en": ("What is {a} + {b}?|What is {a} plus {b}?|Add {a} and {b}.|{a} + {b}|{a}+{b}?|Add {b} to {a}|How much is {a} plus {b}?|What is the sum of {a} and {b}?",
                  "Give me the total of {a} and {b}.|{a} and {b} together?"),
           "ja": ("{a}たす{b}は？|{a} + {b}は？|{a}と{b}を足して|{a}+{b}|{a}に{b}を足すと？|{a}と{b}の和は？|{a}＋{b}はいくつ？", "{a}と{b}の合計を出して|{a}に{b}を加えて")}),
    "-": ("subtract|minus|subtraction|difference|sub|引き算|減算", "calc_difference|差を求める",
          {"en": ("What is {a} - {b}?|What is {a} minus {b}?|Subtract {b} from {a}.|{a} - {b}|How much is {a} minus {b}?|The difference of {a} and {b}?",
                  "Take {b} away from {a}.|By how much is {a} above {b}?"),
           "ja": ("{a}ひく{b}は？|{a} - {b}は？|{a}から{b}を引いて|{a}-{b}|{a}と{b}の差は？", "{a}から{b}を取り去ると？")}),
    "*": ("multiply|times|multiplication|product|mul|multiplier|掛け算|乗算", "calc_product|積を求める",
          {"en": ("What is {a} * {b}?|What is {a} times {b}?|Multiply {a} by {b}.|{a} * {b}|{a} x {b}?|Multiply {a} and {b}|The product of {a} and {b}?",
                  "Give me {a} taken {b} times.|{a} multiplied with {b}?"),
           "ja": ("{a}かける{b}は？|{a} * {b}は？|{a}と{b}を掛けて|{a}×{b}|{a}の{b}倍は？|{a}と{b}の積は？", "{a}を{b}倍にして")}),
    "/": ("divide|division|quotient|divider|div|割り算|除算", "calc_quotient|商を求める",
          {"en": ("What is {a} / {b}?|What is {a} divided by {b}?|Divide {a} by {b}.|{a} / {b}|Divide {a} by {b}, please", "Split {a} into {b} parts.|How often does {b} go into {a}?"),
           "ja": ("{a}わる{b}は？|{a} / {b}は？|{a}を{b}で割って|{a}÷{b}", "{a}を{b}等分すると？")}),
}  # fmt: skip
_SUM_TEXTS = {
    "+": {
        "en": "Add two numbers.|Adds two integers, a and b.|The sum of two numbers.",
        "ja": "二つの数を足す。|和を計算する。",
    },
    "-": {"en": "Subtract two numbers.|The difference of two numbers.", "ja": "二つの数の差。|引き算をする。"},
    "*": {"en": "Multiply two numbers.|The product of two numbers.", "ja": "二つの数を掛ける。|積を計算する。"},
    "/": {"en": "Divide two numbers.|Divide the first number by the second.", "ja": "割り算をする。|商を計算する。"},
}
_PAIRS = (
    "a b|x y|first second|left right|n m|num1 num2|first_number second_number|p q|a b|a b",
    "u v|alpha beta|lhs rhs",
)


def _computed(sign: str, a: float, b: float) -> str:
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else 0}[sign]
    value = round(value, 4)
    return str(int(value) if value == int(value) else value)


def sum_tool(rng: random.Random, lang: str, sign: str, held: bool) -> tuple[Tool, tuple[str, str]]:
    """A calculating tool and the names of its two parameters."""
    names = [n for n in _SUMS[sign][held].split("|") if lang == "ja" or n.isascii()]
    a, b = rng.choice(_PAIRS[held].split("|")).split()
    kind = rng.choice(("integer", "number"))
    description = rng.choice(_SUM_TEXTS[sign][lang].split("|")) if rng.random() < 0.75 or held else ""
    fields = [Field(a, a, {"type": kind}, 0), Field(b, b, {"type": kind}, 0)]
    return tool_of(rng, rng.choice(names), description, fields), (a, b)


def sum_ask(rng: random.Random, lang: str, held: bool = False) -> Ask:
    """A calculation."""
    sign = rng.choice(tuple(_SUMS))
    tool, (first, second) = sum_tool(rng, lang, sign, held)
    a, b = words.value(rng, "integer", lang), words.value(rng, "integer", lang) or 3
    if "number" in tool.parameters and rng.random() < 0.2:
        a = words.value(rng, "number", lang)
    while (a, b) in ((1, 2), (3, 4)):  # those of a well-known test suite
        a = words.value(rng, "integer", lang)
    question = rng.choice(_SUMS[sign][2][lang][held].split("|")).format(a=a, b=b)
    text = _computed(sign, a, b)
    answer = f"The result is {text}." if lang == "en" else f"結果は{text}です。"
    result = text if rng.random() < 0.7 else json.dumps({rng.choice(("result", "value", "output")): json.loads(text)})
    return Ask(
        frozenset([sign]),
        (tool,),
        _polite(rng, question, lang, held),
        ((Step(tool.name, {first: a, second: b}, result),),),
        answer,
    )


# --- doing something ------------------------------------------------------------------------------------------------

_ACTION_ASKS = {
    "en": ("{V} a {o} with {s}.|{V} a {o}: {s}|Please {v} a {o} with {s}.|{V} the {o}: {s}.|I want to {v} a {o} with {s}|Can you {v} a {o} with {s}?|{v} {o} {s}|{V} a new {o}, {s}.",
           "There should be a {o} with {s}, {v} it.|It is time to {v} one more {o}: {s}|We have to {v} this {o}: {s}."),
    "ja": ("{o}を{v}して。{s}。|{s}で{o}を{v}してください。|{o}の{v}：{s}|{s}の{o}を{v}して|{o}を{v}したい。{s}|{o}を{v}してください。{s}",
           "{s}という{o}の{v}をお願いします。|新しく{o}を{v}しましょう、{s}です。"),
}  # fmt: skip
_NAMED_ASKS = {
    "en": ("{V} a {o} called '{n}' ({g}) - {d}|{V} a {o} of the name '{n}' ({g}): {d}|{V} a {o} called '{n}' - {d}|{V} a {o} named {n}: {d}|{V} the {o} \"{n}\" ({g}), {d}|{V} a {o} '{n}', {d}",
           "Please {v} one more {o}: '{n}' ({g}) - {d}|We have a new {o} '{n}', {d}. {V} it"),
    "ja": ("「{n}」という{o}を{v}して。説明は{d}|{o}「{n}」を{v}してください（{d}）|{n}という名前の{o}を{v}：{d}", "{o}の{v}をお願いします。「{n}」、{d}"),
}  # fmt: skip
_ACTION_TEXTS = {
    "en": ("{V} a {o}.|Tool to {v} a {o}.|Tool for {v} of a {o} with a name.|{V} a {o}. Args: {p}: The {p} of the {o}. Returns: A message about the {o}.|Use it to {v} a {o}.", "Will {v} one {o}.|Handles how to {v} a {o}."),
    "ja": ("{o}を{v}する。|{o}の{v}。|{o}を{v}するツール。", "{o}の{v}を行う。"),
}  # fmt: skip


def action_ask(rng: random.Random, lang: str, held: bool = False) -> Ask:
    """Something is created, saved, booked."""
    verb, past, verb_ja = words.row(rng, words.VERBS, held)
    noun, noun_ja = words.row(rng, words.OBJECTS, held)
    if not held and rng.random() < 0.2:
        noun = noun_ja = words.japanese(rng)
        if lang == "en":
            noun = pseudo_word(rng, "en").lower() if rng.random() < 0.4 else rng.choice(words.pool("en"))
    parts = rng.choice(
        (
            [verb, noun],
            [verb, noun],
            [noun, verb],
            ["utf8", noun],
            [verb, "new", noun],
            [rng.choice("abcdefg"), verb, noun],
        )
    )
    name = words.cased(rng, parts) if noun.isascii() else noun + verb_ja
    if lang == "ja" and rng.random() < 0.3:
        name = noun_ja + verb_ja
    if rng.random() < 0.4:
        fields, question = _named(rng, lang, verb, verb_ja, noun, noun_ja, held)
    else:
        fields = draw_fields(rng, lang, rng.choice((1, 2, 2, 3, 3, 4)), held)
        if not any(field.value is not None for field in fields):
            return action_ask(rng, lang, held)
        fields = _nested(rng, fields)
        said = stated(rng, _flat(fields), lang, held)
        v, o = (verb, noun) if lang == "en" else (verb_ja, noun_ja)
        question = rng.choice(_ACTION_ASKS[lang][held].split("|")).format(v=v, V=verb.capitalize(), o=o, s=said)
    v, o = (verb, noun) if lang == "en" else (verb_ja, noun_ja)
    description = ""
    if rng.random() < 0.7 or (lang == "ja" and name.isascii()):
        description = rng.choice(_ACTION_TEXTS[lang][held].split("|")).format(
            v=v, V=verb.capitalize(), o=o, p=fields[0].name
        )
    lead = f"{past} {noun}: " if lang == "en" else f"{noun_ja}を{verb_ja}しました: "
    first = next((f.value for f in _flat(fields) if isinstance(f.value, str)), "ok")
    text = (
        lead + first
        if rng.random() < 0.7
        else rng.choice(("ok", "done", lead + str(rng.randrange(9999)), str(rng.randrange(99999))))
    )
    tool = tool_of(rng, name, description, fields)
    step = Step(name, arguments_of(fields), text)
    return Ask(
        frozenset([noun]),
        (tool,),
        _polite(rng, question, lang, held),
        ((step,),),
        _ended(_SAID[lang][0].format(r=text), lang),
    )


def _named(
    rng: random.Random, lang: str, verb: str, verb_ja: str, noun: str, noun_ja: str, held: bool
) -> tuple[list[Field], str]:
    """A thing with a name, maybe a gloss that is no argument, and a description."""
    name = (
        words.unusual(rng)
        if rng.random() < 0.25
        else words.japanese(rng)
        if rng.random() < 0.4
        else words.value(rng, "any", lang, held)
    )
    kind = rng.choice(("small", "Japanese", "local", "new", "French", "famous", "family", "Korean", "global"))
    field = rng.choice(("farming", "food", "music", "travel", "steel", "toy", "paper", "trading", "fishing"))
    what = (
        f"a {kind} {field} {noun}"
        if rng.random() < 0.5
        else f"a {kind} {noun}"
        if rng.random() < 0.6
        else words.value(rng, "phrase", "en", held)
    )
    said = what if lang == "en" else words.value(rng, "phrase", "ja", held)
    gloss = f"{pseudo_word(rng, 'en')} {rng.choice(('Union', 'Company', 'House', 'Club', 'Works', 'Shop'))}"
    v, o = (verb, noun) if lang == "en" else (verb_ja, noun_ja)
    question = rng.choice(_NAMED_ASKS[lang][held].split("|")).format(
        v=v, V=verb.capitalize(), o=o, n=name, g=gloss, d=said
    )
    first = rng.choice(("name", "title", f"{noun}_name" if noun.isascii() else "name", "label", "full_name"))
    second = rng.choice(("description", "description", "details", "note", "info", "about"))
    both = rng.random() < 0.75
    fields = [Field(first, "the name", {"type": "string"}, name)]
    return fields + ([Field(second, "what it is", {"type": "string"}, said)] if both else []), question


def _nested(rng: random.Random, fields: list[Field]) -> list[Field]:
    """At times the last two parameters as one object."""
    if len(fields) < 3 or rng.random() > 0.25 or any(f.value is None or not f.required for f in fields[-2:]):
        return fields
    inner = fields[-2:]
    schema = {"type": "object", "properties": {f.name: f.schema for f in inner}, "required": [f.name for f in inner],
              "additionalProperties": False}  # fmt: skip
    name = next(n for n in ("details", "options", "info", "data") if all(n != f.name for f in fields))
    return [*fields[:-2], _Object(name, name, schema, {f.name: f.value for f in inner}, True, tuple(inner))]


@dataclass(frozen=True)
class _Object(Field):
    inner: tuple[Field, ...] = ()


def _flat(fields: list[Field]) -> list[Field]:
    return [one for field in fields for one in (field.inner if isinstance(field, _Object) else (field,))]


# --- lists ----------------------------------------------------------------------------------------------------------

_LIST_ASKS = {
    "en": ("sort:Sort {l}|Please sort {l}|Put {l} in order;join:Join {l}|Join these: {l};count:Count {l}|How many are {l}?;"
           "average:What is the average of {l}?|Average {l};shuffle:Shuffle {l}|Mix {l};choose:Choose one of {l}|Pick one of {l};maximum:What is the maximum of {l}?|The largest of {l}?",
           "reverse:Reverse {l}|Turn around {l};median:What is the median of {l}?|Median of {l}"),
    "ja": ("並べ替え:{l}を並べ替えて|{l}を順に並べて;結合:{l}をつないで|{l}を結合して;計数:{l}はいくつある？|{l}を数えて;"
           "平均:{l}の平均は？|{l}の平均を出して;抽選:{l}から一つ選んで|{l}の中で選んで;最大:{l}の最大は？|{l}で一番大きいのは？",
           "逆順:{l}を逆にして|{l}を逆順に;中央値:{l}の中央値は？|{l}の中央値を出して"),
}  # fmt: skip
_ENGLISH_OF = {"並べ替え": "sort", "結合": "join", "計数": "count", "平均": "average", "抽選": "choose", "最大": "maximum", "逆順": "reverse", "中央値": "median"}  # fmt: skip


def list_ask(rng: random.Random, lang: str, held: bool = False) -> Ask:
    """One argument that is a list: many values to be copied."""
    verb, forms = rng.choice(_LIST_ASKS[lang][held].split(";")).split(":", 1)
    kind = (
        "integers"
        if verb in ("average", "maximum", "median", "平均", "最大", "中央値")
        else rng.choice(("strings", "strings", "integers"))
    )
    value = words.value(rng, kind, lang, held)
    key = rng.choice(("items", "values", "numbers" if kind == "integers" else "words", "data", "list", "entries"))
    english = _ENGLISH_OF.get(verb, verb)
    name = words.cased(rng, [english, key]) if lang == "en" or rng.random() < 0.5 else verb
    description = (
        ""
        if lang == "en" and rng.random() < 0.5
        else (f"{verb.capitalize()} a list." if lang == "en" else f"{verb}を行う。")
    )
    question = rng.choice(forms.split("|")).format(l=_shown(rng, value, lang))
    schema = {"type": "array", "items": {"type": "integer" if kind == "integers" else "string"}}
    tool = tool_of(rng, name, description, [Field(key, key, schema, value)])
    text, shown = result_of(rng, lang)
    answer = f"The result is {shown}." if lang == "en" else f"結果は{shown}です。"
    return Ask(
        frozenset([english]), (tool,), _polite(rng, question, lang, held), ((Step(name, {key: value}, text),),), answer
    )


# --- several steps --------------------------------------------------------------------------------------------------

_CHAINS = {
    "en": {"*": ("What is the {a} of {v} times {n}?|Multiply the {a} of {v} by {n}.|What is {n} times the {a} of {v}?|How much is the {a} of {v} times {n}?|Look up the {a} of {v} and multiply it by {n}.",
                 "Take the {a} of {v} and give me {n} times that."),
           "+": ("Add {n} to the {a} of {v}.|What is the {a} of {v} plus {n}?|Look up the {a} of {v} and add {n}.|What is {n} plus the {a} of {v}?", "Take the {a} of {v} and then put {n} on top."),
           "-": ("Subtract {n} from the {a} of {v}.|What is the {a} of {v} minus {n}?|Look up the {a} of {v} and subtract {n}.", "Take the {a} of {v} and then take {n} away."),
           "/": ("Divide the {a} of {v} by {n}.|What is the {a} of {v} divided by {n}?|Look up the {a} of {v} and divide it by {n}.", "Take the {a} of {v} and split it into {n} parts.")},
    "ja": {"*": ("{v}の{a}を{n}倍すると？|{v}の{a}かける{n}は？|{v}の{a}を調べて{n}を掛けて|{v}の{a}の{n}倍は？", "{v}の{a}の{n}個分はいくら？"),
           "+": ("{v}の{a}に{n}を足すと？|{v}の{a}たす{n}は？|{v}の{a}を調べて{n}を足して", "{v}の{a}へさらに{n}を加えると？"),
           "-": ("{v}の{a}から{n}を引くと？|{v}の{a}ひく{n}は？|{v}の{a}を調べて{n}を引いて", "{v}の{a}より{n}だけ少ないと？"),
           "/": ("{v}の{a}を{n}で割ると？|{v}の{a}わる{n}は？|{v}の{a}を調べて{n}で割って", "{v}の{a}を{n}人で分けると？")},
}  # fmt: skip
_SUMS_OF_TWO = {
    "en": ("Add the {a} of {v} and the {a} of {w}.|What is the {a} of {v} plus the {a} of {w}?|What is the sum of the {a} of {v} and {w}?", "Give me the {a} of {v} together with that of {w}."),
    "ja": ("{v}の{a}と{w}の{a}を足して|{v}と{w}の{a}の和は？|{v}の{a}たす{w}の{a}は？", "{v}と{w}の{a}を合わせると？"),
}  # fmt: skip


def chain_ask(rng: random.Random, lang: str, held: bool = False) -> Ask:
    """Look up, calculate with what came back, answer."""
    found = lookup(rng, lang, held)
    key = found.fields[0]
    two = rng.random() < 0.3
    sign = "+" if two else rng.choice(tuple(_SUMS))
    tool, (first, second) = sum_tool(rng, lang, sign, held)
    values = [key.value]
    while two and len(values) < 2:
        other = words.value(rng, rng.choice(("place", "person", "any")), lang, held)
        values += [other] if other not in values else []
    number = rng.randrange(2, 10 ** rng.choice((1, 1, 2, 3)) + 2)
    forms = _SUMS_OF_TWO[lang] if two else _CHAINS[lang][sign]
    question = rng.choice(forms[held].split("|")).format(a=found.attribute, v=values[0], w=values[-1], n=number)
    amounts = [rng.randrange(1, 10 ** rng.choice((1, 2, 3, 4, 5, 6))) for _ in values]
    wrap = rng.random() < 0.25
    steps = [
        Step(found.tool.name, {key.name: value}, json.dumps({"value": amount}) if wrap else str(amount))
        for value, amount in zip(values, amounts, strict=True)
    ]
    a, b = (amounts[0], amounts[1] if two else number)
    text = _computed(sign, a, b)
    answer = f"The result is {text}." if lang == "en" else f"結果は{text}です。"
    rounds = (tuple(steps), (Step(tool.name, {first: a, second: b}, text),))
    return Ask(frozenset([found.key, sign]), (found.tool, tool), _polite(rng, question, lang, held), rounds, answer)


MAKERS = ((lookup_ask, 34), (function_ask, 24), (action_ask, 20), (sum_ask, 8), (list_ask, 7), (chain_ask, 9))


# Tools of langchain-tests' integration suite, which is to be met without having been seen.
UNSEEN = ("magic_function", "magic_function_no_args", "get_weather", "my_adder_tool", "unicode_customer", "Joke")


def ask(rng: random.Random, lang: str, held: bool = False) -> Ask:
    """A question of any sort."""
    while True:
        maker = rng.choices([m for m, _ in MAKERS], [w for _, w in MAKERS])[0]
        made = maker(rng, lang, held)
        if not any(tool.name in UNSEEN for tool in made.tools):
            return made
