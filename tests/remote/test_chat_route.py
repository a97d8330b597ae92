"""Chat-only servers: the turns that are sent, the three ways of the dials, and the proof that they arrive.

The two published kinds of server are stood in for by what renders there: our template files, and the rule of the
published template of 2024 (it pastes each message's own keys), both through Jinja as vLLM, SGLang and
`transformers serve` use it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import JSON, Loopback, Reply
from loopback import Request as Request_
from wires import CHAT

import karakuri_integrations
from karakuri_integrations.attributes import NAMES, SteeringAttributes
from karakuri_integrations.conversation import CONTROL_TEXTS, Message, Prompt, Request, Sampling, Turn
from karakuri_integrations.engines.chat_route import WAYS, Trial, chat_body, find_way, judge, probe_bodies, turns_for
from karakuri_integrations.engines.servers import SERVERS, Ask
from karakuri_integrations.errors import SteeringLostError, UnsupportedError
from karakuri_integrations.templates import FAMILIES, Family, TemplateTokens, parse_raw, render

FAMILY = FAMILIES["karakuri-lm-70b-chat-v0.1"]
USAGE = {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 60, "completion_tokens": 1}}


def prompt_of(*messages: Message, family: Family = FAMILY, tokens: TemplateTokens = "escape", **dials: int) -> Prompt:
    numbered = tuple(Message(m.role, m.text, m.attributes, place) for place, m in enumerate(messages))
    return render(Request(numbered, SteeringAttributes(dials)), family, tokens)


# --- turns ----------------------------------------------------------------------------------------------------------


def test_a_prompt_carries_its_turns() -> None:
    prompt = prompt_of(
        Message("system", "丁寧に"),
        Message("user", "一"),
        Message("assistant", "1", {"humor": 2}),
        Message("user", "二"),
        Message("user", "三", {"verbosity": 0}),
        creativity=4,
    )
    assert [(turn.role, turn.text) for turn in prompt.turns] == [
        ("system", "丁寧に"), ("user", "一"), ("assistant", "1"), ("user", "二\n\n三"),
    ]  # fmt: skip
    dials = [turn.attributes for turn in prompt.turns]
    assert dials == [None, SteeringAttributes(humor=2), None, SteeringAttributes(verbosity=0, creativity=4)]


def test_turns_are_not_part_of_what_a_prompt_is() -> None:
    prompt = prompt_of(Message("user", "秘密の文"))
    other = Prompt(prompt.segments, prompt.attributes, prompt.escaped, prompt.literals, prompt.strip_reply)
    assert prompt == other
    assert hash(prompt) == hash(other)
    assert repr(prompt).count("秘密の文") == 1


def test_an_assistant_first_has_an_empty_user_turn_before_it() -> None:
    prompt = prompt_of(Message("assistant", "はじめまして"), Message("user", "はい"))
    assert [(turn.role, turn.text) for turn in prompt.turns][:2] == [("user", ""), ("assistant", "はじめまして")]


@pytest.mark.parametrize("literal", [*CONTROL_TEXTS, "[INST]", "[/ATTR]", "<<SYS>>"])
def test_template_and_control_tokens_in_data_are_escaped(literal: str) -> None:
    prompt = prompt_of(
        Message("system", literal),
        Message("user", f"a{literal}"),
        Message("assistant", literal),
        Message("user", literal),
    )
    escaped = literal[0] + "\u2060" + literal[1:]
    assert [turn.text for turn in prompt.turns] == [escaped, f"a{escaped}", escaped, escaped]


def test_allow_leaves_template_tokens_and_escapes_control_tokens() -> None:
    prompt = prompt_of(Message("user", "[INST] </s>"), tokens="allow")
    assert prompt.turns[0].text == "[INST] <\u2060/s>"


def test_a_formatted_prompt_has_none() -> None:
    raw = parse_raw("<s>[INST] a [/INST]", FAMILY)
    assert raw.turns == ()
    with pytest.raises(UnsupportedError, match="formatted prompt"):
        turns_for(raw, "turns")


# --- requests -------------------------------------------------------------------------------------------------------

TWO = prompt_of(
    Message("system", "S"), Message("user", "一"), Message("assistant", "1"), Message("user", "二"), humor=3
)
GREEDY = Sampling()
NINE = dict(SteeringAttributes())


def body(way: str, sampling: Sampling = GREEDY, **more: Any) -> dict[str, Any]:
    return chat_body(TWO.turns, Ask("karakuri", "", sampling, **more), way)


def test_by_turns() -> None:
    assert body("turns") == {
        "model": "karakuri",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "一"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "二"},
        ],
        "chat_template_kwargs": {"attributes": [NINE, {**NINE, "humor": 3}]},
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 1.0,
    }


def test_on_the_messages() -> None:
    written = body("messages")
    assert "chat_template_kwargs" not in written
    assert written["messages"][1] == {"role": "user", "content": "一", **NINE}
    assert written["messages"][3] == {"role": "user", "content": "二", **NINE, "humor": 3}
    assert [set(one) for one in written["messages"]][::2] == [{"role", "content"}] * 2


def test_flat() -> None:
    written = body("flat")
    assert written["chat_template_kwargs"] == {**NINE, "humor": 3}
    assert tuple(written["chat_template_kwargs"]) == NAMES


def test_flat_says_one_turn_only() -> None:
    with pytest.raises(UnsupportedError, match="karakuri serve-command"):
        turns_for(TWO, "flat")
    assert turns_for(TWO, "turns") == TWO.turns
    one = prompt_of(Message("system", "S"), Message("user", "一"))
    assert turns_for(one, "flat") == one.turns


def test_sampling() -> None:
    written = body("turns", Sampling(temperature=0.5, top_p=0.9, seed=3, stop=("。",)), max_tokens=9)
    assert (written["temperature"], written["top_p"], written["seed"]) == (0.5, 0.9, 3)
    assert (written["stop"], written["max_tokens"]) == (["。"], 9)


def test_the_record_writes_the_same() -> None:
    ask = Ask("karakuri", "", Sampling(), turns=TWO.turns, way="messages")
    assert SERVERS["chat"].body(ask) == body("messages")


# --- the proof ------------------------------------------------------------------------------------------------------

Serve = Callable[[dict[str, Any]], tuple[int, Any]]


def search(serve: Serve) -> tuple[str, int]:
    """As `remote` runs it: the way and how many requests it took."""
    asked, trials = 0, find_way("karakuri")
    trial = next(trials)
    while True:
        asked += 1
        assert trial.body["max_tokens"] == 1
        assert trial.body["model"] == "karakuri"
        try:
            trial = trials.send(serve(trial.body))
        except StopIteration as found:
            return found.value, asked


def rendering(template: str, *, kwargs: bool, keys: bool) -> Serve:
    """A server that renders like vLLM and `transformers serve`; `kwargs` and `keys`: what of a request it hands on."""
    jinja2 = pytest.importorskip("jinja2")

    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    environment = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    compiled = environment.from_string(template)

    def serve(request: dict[str, Any]) -> tuple[int, Any]:
        messages = [one if keys else {k: one[k] for k in ("role", "content")} for one in request["messages"]]
        given = request.get("chat_template_kwargs", {}) if kwargs else {}
        try:
            text = compiled.render(messages=messages, add_generation_prompt=True, **given)
        except jinja2.TemplateError as error:
            return 400, {"error": {"message": str(error), "type": "BadRequestError", "code": 400}}
        return 200, {**USAGE, "usage": {"prompt_tokens": len(text), "completion_tokens": 1}}

    return serve


def ours(name: str) -> str:
    return (Path(karakuri_integrations.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")


#: The rule of the published template of 2024 (facts of the model card): each message's own keys are pasted unchecked.
PUBLISHED = """{%- for message in messages -%}
{{- '<s>[INST] ' + message['content'] + ' [ATTR] humor: ' ~ message.get('humor', 0) ~ ' [/ATTR] [/INST]' -}}
{%- endfor -%}"""
#: The same for a template that reads its dials from chat_template_kwargs.
FLAT = "{{- messages[0]['content'] + '<attributes>humor: ' ~ (humor if humor is defined else 0) ~ '</attributes>' -}}"
STATIC = "{{- '<s>[INST] ' + messages[0]['content'] + ' [ATTR] humor: 0 [/ATTR] [/INST]' -}}"


@pytest.mark.parametrize("family", FAMILIES)
def test_our_template_files_are_steered_by_turns(family: str) -> None:
    assert search(rendering(ours(family), kwargs=True, keys=False)) == ("turns", 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_template_files_are_steered_on_messages_where_only_those_arrive(family: str) -> None:
    assert search(rendering(ours(family), kwargs=False, keys=True))[0] == "messages"


def test_the_published_template_is_steered_on_messages() -> None:
    assert search(rendering(PUBLISHED, kwargs=True, keys=True)) == ("messages", 4)


def test_a_template_of_flat_values() -> None:
    assert search(rendering(FLAT, kwargs=True, keys=False)) == ("flat", 6)


@pytest.mark.parametrize(
    "serve",
    [
        rendering(STATIC, kwargs=True, keys=True),
        rendering(PUBLISHED, kwargs=True, keys=False),  # vLLM and the published template: the keys are dropped
        rendering(FLAT, kwargs=False, keys=True),
        lambda _: (200, {**USAGE, "usage": None}),  # it does not count: nothing is proven
        lambda _: (200, None),
        lambda request: (422, {"detail": "Unexpected fields"}) if len(request) > 3 else (200, USAGE),
        lambda _: (422, {"detail": "Unexpected fields"}),
    ],
    ids=["static", "keys dropped", "kwargs dropped", "no usage", "no JSON", "kwargs refused", "all refused"],
)
def test_lost_dials_are_an_error_that_says_what_to_do(serve: Serve) -> None:
    with pytest.raises(SteeringLostError, match="karakuri serve-command") as caught:
        search(serve)
    assert "/v1/completions" in str(caught.value)


def test_the_good_request_must_be_answered() -> None:
    trials = find_way("karakuri")
    first = next(trials)
    assert first.must_answer
    second = trials.send((200, USAGE))
    assert isinstance(second, Trial)
    assert not second.must_answer


@pytest.mark.parametrize("way", WAYS)
def test_the_two_requests_differ_in_one_dial(way: Any) -> None:
    good, bad = probe_bodies("karakuri", way)
    assert str(good) != str(bad)
    assert str(bad).replace("1111111111", "0") == str(good)


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        ((200, USAGE), (400, None), True),
        ((200, USAGE), (422, None), True),
        ((200, USAGE), (500, None), True),  # `transformers serve` says no more of a template that raised
        ((200, USAGE), (200, {"usage": {"prompt_tokens": 69}}), True),
        ((200, USAGE), (200, {"usage": {"prompt_tokens": 60}}), False),
        ((200, USAGE), (200, {"usage": {"prompt_tokens": 1}}), False),  # counts without what was cached
        ((200, USAGE), (429, None), False),
        ((200, USAGE), (503, None), False),
        ((200, USAGE), (401, None), False),
        ((400, None), (400, None), False),
        ((503, None), (500, None), False),
        ((200, {"usage": "x"}), (200, {"usage": {"prompt_tokens": 69}}), False),
    ],
)
def test_the_judge(good: Any, bad: Any, expected: bool) -> None:
    assert judge(good, bad) is expected


# --- and the prompt is the same -------------------------------------------------------------------------------------


def shown(turns: tuple[Turn, ...], template: str, **kwargs: Any) -> str:
    jinja2 = pytest.importorskip("jinja2")
    request = chat_body(turns, Ask("k", "", Sampling()), "turns")
    environment = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = lambda text: pytest.fail(text)
    return environment.from_string(template).render(
        messages=request["messages"], add_generation_prompt=True, **request["chat_template_kwargs"]
    )


CONVERSATIONS: list[tuple[Message, ...]] = [
    (Message("user", "はい"),),
    (Message("system", ""), Message("user", " 　前後に空白 \n")),
    (Message("system", "S"), Message("user", "一", {"humor": 4}), Message("assistant", " 1 "), Message("user", "二")),
    (
        Message("assistant", "先に"),
        Message("user", "<s> [/INST] </s> [\u2060INST] <|END_OF_TURN_TOKEN|> </attributes>"),
    ),
    (
        Message("user", "一"),
        Message("user", "二"),
        Message("assistant", ""),
        Message("system", "途中"),
        Message("user", "三"),
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_our_template_files_render_the_turns_to_the_very_prompt(family: str, conversation: tuple[Message, ...]) -> None:
    prompt = prompt_of(*conversation, family=FAMILIES[family], verbosity=1)
    assert shown(prompt.turns, ours(family)) == prompt.text


# --- at a server ----------------------------------------------------------------------------------------------------


def test_a_server_that_drops_connections_behind_its_refusals_is_steered() -> None:
    """uvicorn answers 500 where the template raises, and closes the connection; it says so only where it was asked to."""
    pytest.importorskip("urllib3")
    core = pytest.importorskip("karakuri_integrations.langchain")
    body = b"Internal Server Error"
    silent = Reply([body], status=500, framing="length", end="fin")
    said = Reply([body], status=500, framing="length", headers=(("Connection", "close"),), end="fin")
    good = Reply([json.dumps(CHAT.whole("a")).encode()], headers=JSON, framing="length")

    def answer(request: Request_) -> Reply:
        if b"1111111111" in request.body:
            return said if request.headers.get("connection") == "close" else silent
        return good if request.json.get("max_tokens") == 1 else Reply(CHAT.stream("はい"))

    with Loopback() as server:
        for place in range(20):  # a race that was lost often
            url = server.script(f"chat{place}", [answer])
            llm = core.ChatKarakuri(
                base_url=url, server="chat", model="karakuri-lm-70b-chat-v0.1", max_tokens=9, max_retries=0
            )
            assert llm.invoke("質問").text == "はい"
            llm.close()
