"""Conversations with tools, and replies that are JSON, as requests of the package: it writes the training text itself.

Half of the questions are for one of the tools; the others are questions on topics, unknown things, or questions whose
tool is not there, and are answered as they would be without tools.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import tool_words as words
from answers import Content, Dials, render
from facts import topics
from passages import passage_task
from systems import system_text
from tool_asks import UNSEEN, Ask, Field, Step, arguments_of, ask, draw_fields, stated, tool_of
from unknown import NOUNS, pseudo_word

from karakuri_integrations import SteeringAttributes
from karakuri_integrations.conversation import Message, Request, Tool, ToolCall, Tooling

FROM_TOOL = {
    "en": ["This is what the tool returned.", "I pass it on as it came."],
    "ja": ["これはツールが返した内容です。", "そのままお伝えします。"],
}
FAILED = {"en": "The tool {n} failed: {e}", "ja": "ツール{n}は失敗しました：{e}"}
ERRORS = (
    "timeout|connection refused|not found|no such {w}|{w} is unknown|invalid {w}|permission denied|rate limit reached|server error {n}|division by zero|"
    "タイムアウト|見つかりません|{w}は不明です|接続できません|権限がありません",
    "the {w} is broken|quota of {n} exceeded|{w}が壊れています",
)


@dataclass
class Talk:
    """A conversation that is being made."""

    rng: random.Random
    lang: str
    held: bool = False
    messages: list[Message] = field(default_factory=list)
    calls: int = 0

    def say(self, role: Any, text: str, dials: Dials | None, calls: tuple[ToolCall, ...] = ()) -> None:
        values = None if dials is None else SteeringAttributes(dials)
        self.messages.append(Message(role, text, values, len(self.messages), calls))

    def call(self, steps: tuple[Step, ...], dials: Dials) -> list[str]:
        """The turn that calls; the ids of its calls."""
        made = []
        for step in steps:
            self.calls += 1
            made.append(ToolCall(step.tool, json.dumps(step.arguments, ensure_ascii=False), f"c{self.calls}"))
        self.say("assistant", "", dials, tuple(made))
        return [one.id for one in made]

    def results(self, ids: list[str], texts: list[str], failed: bool = False) -> None:
        for id_, text in zip(ids, texts, strict=True):
            self.messages.append(Message("tool", text, None, len(self.messages), call_id=id_, failed=failed))


def answer(made: Ask, lang: str, dials: Dials) -> str:
    """The answer from the results, as the dials ask for it."""
    return render(Content([made.answer, *FROM_TOOL[lang]]), lang, dials)


def use(talk: Talk, made: Ask, dials: Dials, cut: bool = False) -> None:
    """The question, its calls, their results and the answer; with cut=True only up to a call."""
    rng, lang = talk.rng, talk.lang
    talk.say("user", made.question, dials)
    fails = rng.random() < 0.1
    stop_at = rng.randrange(len(made.rounds)) if cut or fails else None
    for place, steps in enumerate(made.rounds):
        ids = talk.call(steps, dials)
        if place == stop_at and cut:
            return
        if place == stop_at:
            name = steps[0].tool
            error = rng.choice(ERRORS[talk.held].split("|")).format(
                w=pseudo_word(rng, "en").lower(), n=rng.randrange(100, 999)
            )
            flagged = rng.random() < 0.7
            talk.results(ids, [error if flagged else f"Error: {error}"] * len(ids), flagged)
            text = FAILED[lang].format(n=name, e=error) + ("." if lang == "en" else "。")
            talk.say("assistant", render(Content([text, *FROM_TOOL[lang]]), lang, dials), dials)
            return
        talk.results(ids, [step.result for step in steps])
    talk.say("assistant", answer(made, lang, dials), dials)


def _without(talk: Talk, dials: Dials, keys: set[str]) -> None:
    """A question that none of the tools answers, and its answer."""
    question, text = _unrelated(talk, dials, keys)
    talk.say("user", question, dials)
    talk.say("assistant", text, dials)


def unanswerable(rng: random.Random, lang: str, tools: tuple[Tool, ...], held: bool = False) -> str:
    """A question that none of these tools answers."""
    keys = {name for tool in tools for name in _names(tool)}
    return _unrelated(Talk(rng, lang, held), _dials(rng, True), keys)[0]


def _unrelated(talk: Talk, dials: Dials, keys: set[str]) -> tuple[str, str]:
    from conversations import REFUSAL, _aspects, chat_turn, refusal_turn, topic_turn

    rng, lang, roll = talk.rng, talk.lang, talk.rng.random()
    if roll < 0.42:
        topic = rng.choice(topics())
        turn = topic_turn(rng, topic, rng.choice(_aspects(topic)), lang, dials, held=talk.held)
    elif roll < 0.62:
        turn = refusal_turn(rng, lang, dials, talk.held)
    elif roll < 0.72:
        turn = chat_turn(rng, lang, dials)
    else:
        while True:
            made = ask(rng, lang, talk.held)
            if not made.keys & keys and not any(sign in "+-*/" for sign in made.keys):
                break
        question = made.question
        if any(hint in question.lower() for hint in ("tool", "ツール", "道具")):
            question = question[
                : max(question.rfind("."), question.rfind("?"), question.rfind("？"), question.rfind("。"), 8)
            ]
        turn = [{"content": question}, {"content": render(Content(REFUSAL[lang]), lang, dials)}]
    return turn[0]["content"], turn[1]["content"]


def _system(rng: random.Random, lang: str, rules: int = 0) -> Message:
    return Message("system", system_text(rng, rng.choice((lang, lang, "en")), rules))


def _request(talk: Talk, tooling: Tooling) -> Request:
    rng, own = talk.rng, SteeringAttributes()
    messages = talk.messages
    if rng.random() < 0.2:
        messages = [_system(rng, talk.lang, rng.choice((0, 0, 0, 0, 3))), *messages]
    return Request(tuple(messages), own, own, tooling)


def tools_for(rng: random.Random, lang: str, asks: list[Ask], count: int, held: bool) -> tuple[Tool, ...] | None:
    """The tools of the questions among others, all of different names; None where two questions clash."""
    tools = {tool.name: tool for made in asks for tool in made.tools}
    keys = [key for made in asks for key in made.keys]
    if len(set(keys)) < len(keys) or len(tools) < sum(len(made.tools) for made in asks):
        return None
    while len(tools) < count:
        other = ask(rng, lang, held)
        if not other.keys & set(keys) and not any(tool.name in tools for tool in other.tools):
            tools |= {tool.name: tool for tool in other.tools[:1]}
            keys += other.keys
    found = list(tools.values())
    rng.shuffle(found)
    return tuple(found)


def _dials(rng: random.Random, quiet: bool) -> Dials:
    from conversations import DEFAULTS, brief_dials, quiet_dials

    roll = rng.random()
    if quiet or roll < 0.35:
        return quiet_dials(rng)
    return dict(DEFAULTS) if roll < 0.55 else brief_dials(rng)


def tool_talk(rng: random.Random, lang: str, held: bool = False, drill: bool = False) -> Request:
    """One to four questions in the presence of one to five tools; a drill has more, nearly all for its tools."""
    turns = rng.choice((3, 4, 5, 6)) if drill else rng.choice((1, 1, 2, 3, 4))
    calls = [rng.random() < (0.9 if drill else 0.5) for _ in range(turns)]
    talk = Talk(rng, lang, held)
    tools = None
    while tools is None:
        asks = [ask(rng, lang, held) for _ in range(sum(calls))]
        tools = tools_for(rng, lang, asks, rng.choice((1, 1, 2, 2, 3, 3, 4, 5)), held)
    keys = {key for made in asks for key in made.keys} | {name for tool in tools for name in _names(tool)}
    dials, same = _dials(rng, drill), rng.random() < 0.6
    for place, calling in enumerate(calls):
        dials = dials if same else _dials(rng, drill)
        if calling:
            use(talk, asks.pop(), dials, cut=place == turns - 1 and rng.random() < 0.3)
        else:
            _without(talk, dials, keys)
    return _request(talk, Tooling(tools, language=_words(rng)))


def _words(rng: random.Random) -> Any:
    return "auto" if rng.random() < 0.9 else rng.choice(("en", "ja"))


def _names(tool: Tool) -> set[str]:
    """What a question must not be about where this tool is not meant."""
    words_ = set(tool.name.replace("_", " ").lower().split())
    return (
        words_
        | {word.strip(".,").lower() for word in tool.description.split()}
        | {tool.description.rstrip("。").split("を")[0].split("の")[-1]}
    )


def forced_talk(rng: random.Random, lang: str) -> Request:
    """A call that is forced whatever is asked: texts are the question's, all else is nothing."""
    talk = Talk(rng, lang)
    tool = ask(rng, lang).tools[0]
    _without(talk, _dials(rng, True), {tool.name})
    question, schema = talk.messages[0].text, json.loads(tool.parameters)
    required = schema.get("required", ())
    arguments = {name: _nothing(one, question) for name, one in schema["properties"].items() if name in required}
    last = talk.messages.pop()
    talk.call((Step(tool.name, arguments, ""),), dict(last.attributes or {}))  # type: ignore[arg-type]
    return _request(talk, Tooling((tool,), "required"))


def _nothing(schema: dict[str, Any], question: str) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: _nothing(one, question) for name, one in schema["properties"].items()}
    return {"integer": 0, "number": 0, "boolean": False, "array": []}.get(str(kind), question)


# --- replies that are JSON ------------------------------------------------------------------------------------------

_FRAMES = {
    "en": ("{s}|{s}.|Extract the data: {s}.|Read this. {s}.|There is an entry with {s}.|We have {s}.|Note: {s}|The record: {s}.|Fill in the form: {s}.|Here it is: {s}. Give it as JSON.",
           "Turn this into data: {s}.|Somebody wrote: {s}."),
    "ja": ("{s}|{s}。|次の内容を抜き出して。{s}|{s}です。|記録：{s}。|{s}という項目があります。|JSONにして：{s}", "{s}、とのことです。|データにまとめて：{s}。"),
}  # fmt: skip
_JOKES = {
    "en": ("Make a joke about {x}.|I want a joke about {x}|Joke about {x}, please|Say something funny about {x}.|A joke on {x}!|Do you have a joke about {x}?",
           "Let us laugh about {x}.|Entertain me with {x}."),
    "ja": ("{x}の冗談を言って|{x}についてのジョークをお願い|{x}で笑わせて|{x}の小話をください", "{x}の面白い話をして|{x}で一つ冗談を"),
}  # fmt: skip
_JOKE_PARTS = {
    "en": ("What do you call happy {x}?|Why do {x} never sleep?|What did {x} say to the Moon?", "Very good {x}.|Because of all the noise.|See you tomorrow night."),
    "ja": ("{x}が笑うと何と言いますか？|{x}が眠らないのはなぜでしょう？|{x}は月に何と言いましたか？", "とても良い{x}です。|うるさいからです。|また明日の夜に。"),
}  # fmt: skip
_JOKE_KEYS = ("setup punchline|question answer|first second|start end|line1 line2", "opening closing|intro finish")
_ANSWER_KEYS = ("answer|value|result|output|found", "finding|content")


def _schema(fields: list[Field]) -> str:
    return tool_of(random.Random(0), "x", "", fields).parameters


def structured_talk(rng: random.Random, lang: str, held: bool = False, jokes: bool = True) -> Request:
    """Replies that are JSON of a schema: entries, the answer from a passage, or a joke (of several that fit)."""
    roll = rng.random()
    if not jokes and 0.3 <= roll < 0.5:
        roll = 1.0
    if roll < 0.3:
        return _from_passage(rng, lang, held)
    talk, dials = Talk(rng, lang, held), _dials(rng, rng.random() < 0.5)
    if roll < 0.5:
        setup, punchline = rng.choice(_JOKE_KEYS[held].split("|")).split()
        schema = {setup: {"type": "string"}, punchline: {"type": "string"}}
        if rng.random() < 0.6:
            schema[setup]["description"] = rng.choice(
                ("how the joke begins", "the question of a joke", "first part of the joke")
            )
            schema[punchline]["description"] = rng.choice(
                ("how the joke ends", "the answer of a joke", "last part of the joke")
            )
        for _ in range(rng.choice((1, 2, 3))):
            noun = rng.choice(NOUNS[lang][held].split(",")) if rng.random() < 0.7 else rng.choice(topics()).name(lang)
            place = rng.randrange(3)
            parts = [part.split("|")[place].format(x=noun) for part in _JOKE_PARTS[lang]]
            talk.say("user", rng.choice(_JOKES[lang][held].split("|")).format(x=noun), dials)
            talk.say("assistant", _json(dict(zip(schema, parts, strict=True))), dials)
        return _json_request(talk, {"type": "object", "properties": schema, "required": list(schema)})
    fields: list[Field] = []
    while not any(one.value is not None for one in fields):
        fields = draw_fields(rng, lang, rng.choice((1, 2, 3, 3, 4, 5)), held)
    parameters = _schema(fields)
    for _ in range(rng.choice((1, 1, 2, 3))):
        frame = rng.choice(_FRAMES[lang][held].split("|"))
        talk.say("user", frame.format(s=stated(rng, fields, lang, held)), dials)
        talk.say("assistant", _json(arguments_of(fields)), dials)
        fields = [_again(rng, one, lang, held) for one in fields]
    return _json_request(talk, json.loads(parameters))


def _again(rng: random.Random, one: Field, lang: str, held: bool) -> Field:
    """The same parameter with another value."""
    if "enum" in one.schema:
        value: Any = rng.choice(one.schema["enum"])
    elif one.schema["type"] == "array":
        value = words.value(rng, one.schema["items"]["type"] + "s", lang, held)
    else:
        kind = {"string": rng.choice(("any", "person", "phrase", "place"))}.get(one.schema["type"], one.schema["type"])
        value = words.value(rng, kind, lang, held)
    return Field(one.name, one.said, one.schema, value, one.required)


def _from_passage(rng: random.Random, lang: str, held: bool) -> Request:
    talk, dials = Talk(rng, lang, held), _dials(rng, True)
    task = passage_task(rng, lang, rng.choice((1, 2, 3, 5, 8)), held, rng.choice((1, 2, 3)))
    key = rng.choice(_ANSWER_KEYS[held].split("|"))
    schema = {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}
    for item in task.items:
        text = item.question if talk.messages else "\n\n".join([*task.chunks, item.question])
        talk.say("user", text, dials)
        talk.say("assistant", _json({key: item.value or ("not stated" if lang == "en" else "記載なし")}), dials)
    return _json_request(talk, schema)


def _json_request(talk: Talk, schema: dict[str, Any]) -> Request:
    """As a response format, or as a tool that must be called."""
    rng = talk.rng
    schema = {**schema, "additionalProperties": False}
    if rng.random() < 0.7:
        return _request(talk, Tooling(schema=_json(schema), language=_words(rng)))
    name = "Joke"
    while name in UNSEEN:
        name = rng.choice((pseudo_word(rng, "en"), words.nonsense(rng), "Entry", "Record", "Answer", "Form", "Data"))
    tool = Tool(name, rng.choice(("", "An entry.", "A record for the user.", "記録")), _json(schema))
    first = talk.messages[:1]
    last = talk.messages[1]
    talk.messages = first
    talk.call((Step(name, json.loads(last.text), ""),), dict(last.attributes or {}))  # type: ignore[arg-type]
    return _request(talk, Tooling((tool,), "required"))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- dense practice -------------------------------------------------------------------------------------------------

_LISTS = {
    "en": "List these: {l}|{l}|Put in a list: {l}.|Items: {l}|Keep {l}.|We need {l}.|There are {l}.|Names: {l}",
    "ja": "一覧にして：{l}|{l}|{l}をまとめて|{l}があります。|項目：{l}|{l}です。|名前：{l}。",
}


def list_practice(rng: random.Random, lang: str) -> Request:
    """Many values as a JSON list: a value begins with other tokens behind a quotation mark than in a sentence."""
    talk, dials = Talk(rng, lang), _dials(rng, True)
    key = rng.choice(("items", "names", "values", "list", pseudo_word(rng, "en").lower()))
    schema = {"type": "object", "properties": {key: {"type": "array", "items": {"type": "string"}}}, "required": [key]}
    for _ in range(rng.choice((1, 2, 3))):
        kinds = ("person", "word", "place", "any", "phrase", "code", "email", "date", "text")
        found = [str(words.value(rng, rng.choice(kinds), lang)).replace(", ", " ") for _ in range(rng.randrange(3, 15))]
        if rng.random() < 0.3:
            found = [words.nonsense(rng) if rng.random() < 0.6 else one for one in found]
        mark = rng.choice((", ", ", ", "; ", "\n", " / ") if lang == "en" else ("、", "、", ", ", "\n", "と"))
        text = rng.choice(_LISTS[lang].split("|")).format(l=mark.join(found))
        talk.say("user", text, dials)
        talk.say("assistant", _json({key: found}), dials)
    return _request(talk, Tooling(schema=_json({**schema, "additionalProperties": False}), language=_words(rng)))


def many_calls(rng: random.Random, lang: str) -> Request:
    """Two to five questions at once, each for another tool: all are called in their order."""
    talk, tools = Talk(rng, lang), None
    while tools is None:
        asks = [made for made in (ask(rng, lang) for _ in range(rng.choice((2, 3, 3, 4, 5)))) if len(made.rounds) == 1]
        tools = tools_for(rng, lang, asks, rng.choice((2, 3, 4, 5, 6)), False) if len(asks) > 1 else None
    stop = "." if lang == "en" else "。"
    parts = [one.question if one.question[-1] in ".?!。？！" else one.question + stop for one in asks]
    dials = _dials(rng, False)
    talk.say("user", rng.choice((" ", "\n")).join(parts), dials)
    talk.call(tuple(step for one in asks for step in one.rounds[0]), dials)
    return _request(talk, Tooling(tools, language=_words(rng)))
