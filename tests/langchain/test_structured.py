"""with_structured_output: three methods, four kinds of schema, raw replies, streams, and replies that are cut."""

import json
from datetime import date
from itertools import pairwise
from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator
from pydantic.v1 import BaseModel as OldModel

from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.errors import OptionError, ToolDefinitionError
from karakuri_integrations.langchain import ChatKarakuri

METHODS = ["json_schema", "function_calling", "json_mode"]
OPENER = "[TOOL_CALLS]\n"
Value = TypeVar("Value")


class Joke(BaseModel):
    """A joke."""

    setup: str = Field(description="how it begins")
    rating: int = 0


class OldJoke(OldModel):
    """A joke."""

    setup: str
    rating: int = 0


class TypedJoke(TypedDict):
    """A joke."""

    setup: Annotated[str, ..., "how it begins"]
    rating: Annotated[int, 0, ""]


FORMS: list[tuple[Any, Any]] = [
    (Joke, Joke(setup="猫 }{", rating=3)),
    (OldJoke, OldJoke(setup="猫 }{", rating=3)),
    (TypedJoke, {"setup": "猫 }{", "rating": 3}),
    (Joke.model_json_schema(), {"setup": "猫 }{", "rating": 3}),
    ({"name": "Joke", "parameters": Joke.model_json_schema()}, {"setup": "猫 }{", "rating": 3}),
]
VALUE = '{"setup": "猫 }{", "rating": 3}'


def scripted(json_text: str, **fields: Any) -> ChatKarakuri:
    """Answers with this JSON, or with a call that has it as arguments, as the prompt asks for."""

    def reply(prompt: str) -> str:
        return f'[{{"name": "Joke", "arguments": {json_text}}}]' if prompt.endswith(OPENER) else json_text

    return ChatKarakuri(engine=ScriptedEngine(reply), **fields)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("form", "value"), FORMS, ids=["v2", "v1", "TypedDict", "schema", "function"])
async def test_every_method_with_every_kind_of_schema(form: Any, value: Any, method: str) -> None:
    name = getattr(form, "__name__", "Joke")
    call = f'[{{"name": "{name}", "arguments": {VALUE}}}]'
    llm = ChatKarakuri(engine=ScriptedEngine(lambda prompt: call if prompt.endswith(OPENER) else VALUE))
    structured = llm.with_structured_output(form, method=method)
    assert structured.invoke("q") == value
    assert await structured.ainvoke("q") == value
    assert list(structured.stream("q"))[-1] == value
    assert [chunk async for chunk in structured.astream("q")][-1] == value
    assert structured.batch(["q", "q"]) == [value, value]
    prompt = llm.engine.prompts[0]
    assert prompt.endswith(OPENER) is (method == "function_calling")
    assert "setup: string" in prompt


def test_the_default_method_is_the_schemas() -> None:
    llm = scripted(VALUE)
    bound = llm.with_structured_output(Joke).first
    assert bound.kwargs["response_format"]["json_schema"]["name"] == "Joke"
    assert bound.kwargs["ls_structured_output_format"] == {"kwargs": {"method": "json_schema"}, "schema": Joke}
    forced = llm.with_structured_output(Joke, method="function_calling", strict=True).first
    assert forced.kwargs["ls_structured_output_format"]["kwargs"] == {"method": "function_calling", "strict": True}
    assert (forced.kwargs["tool_choice"], forced.kwargs["parallel_tool_calls"]) == ("Joke", False)


def test_strict_reaches_the_grammar() -> None:
    def grammar(**options: Any) -> Any:
        bound = scripted(VALUE).with_structured_output(Joke, **options).first
        kwargs = {name: value for name, value in bound.kwargs.items() if name != "ls_structured_output_format"}
        provider = bound.bound._provider()
        return provider.render([provider.user("q", {}, 0)], kwargs).grammar

    for method in METHODS[:2]:
        assert [grammar(method=method, strict=strict).strict for strict in (None, False, True)] == [False, False, True]
    assert json.loads(grammar(method="json_mode").schema)["required"] == ["setup"]


def test_json_mode_without_a_schema() -> None:
    llm = scripted('{"a": [1]}')
    assert llm.with_structured_output(None, method="json_mode").invoke("q") == {"a": [1]}
    assert llm.engine.prompts == [llm.render_prompt("q")]
    assert llm.bind(response_format={"type": "json_object"}).invoke("q").text == '{"a": [1]}'


def test_schemas_whose_value_is_no_object() -> None:
    assert scripted("[1, 2]").with_structured_output(RootModel[list[int]]).invoke("q") == RootModel[list[int]]([1, 2])
    assert scripted("[1, 2]").with_structured_output({"type": "array", "items": {"type": "integer"}}).invoke("q") == [
        1,
        2,
    ]
    assert scripted('"b"').with_structured_output({"enum": ["a", "b"]}).invoke("q") == "b"


def test_pydantics_own_rules_hold() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True, populate_by_name=True)

        day: date = Field(alias="Day")
        kind: Literal["a", "b"]

        @field_validator("kind")
        @classmethod
        def _known(cls, kind: str) -> str:
            if kind == "b":
                raise ValueError("b is sold out")
            return kind

    day = scripted('{"Day": "2024-01-02", "kind": "a"}').with_structured_output(Strict).invoke("q")
    assert (day.day.isoformat(), day.kind) == ("2024-01-02", "a")
    with pytest.raises(OutputParserException, match="kind: value_error") as caught:
        scripted('{"Day": "2024-01-02", "kind": "b"}').with_structured_output(Strict).invoke("q")
    assert caught.value.llm_output == '{"Day": "2024-01-02", "kind": "b"}'


# --- streams ---


@pytest.mark.parametrize("method", METHODS)
def test_dicts_grow_and_instances_come_whole(method: str) -> None:
    value = '{"setup": "abc", "rating": 3}'
    grown = list(scripted(value).with_structured_output(Joke.model_json_schema(), method=method).stream("q"))
    setups = [one["setup"] for one in grown if "setup" in one]
    assert [one for one in dict.fromkeys(setups) if one] == ["a", "ab", "abc"]
    assert grown[-1] == {"setup": "abc", "rating": 3}
    assert all(one != other for one, other in pairwise(grown))
    assert list(scripted(value).with_structured_output(Joke, method=method).stream("q")) == [
        Joke(setup="abc", rating=3)
    ]


# --- replies that are no value ---

CUT = {"json_schema": 12, "json_mode": 12, "function_calling": 45}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", [Joke, Joke.model_json_schema()], ids=["class", "dict"])
async def test_a_reply_that_was_cut_is_an_error_everywhere(form: Any, method: str) -> None:
    structured = scripted(VALUE, max_tokens=CUT[method]).with_structured_output(form, method=method)

    async def astream() -> None:
        async for _ in structured.astream("q"):
            pass

    with pytest.raises(OutputParserException, match="ended before its JSON did; raise max_tokens") as caught:
        structured.invoke("q")
    assert caught.value.llm_output.startswith('{"setup": "')
    assert "猫" not in str(caught.value)
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        list(structured.stream("q"))
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        await structured.ainvoke("q")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        await astream()


def test_json_that_was_led_to_its_end_is_an_error_too() -> None:
    """The grammar closes it in time, with the smallest values that fit; nobody chose them."""
    pytest.importorskip("llguidance", reason="the grammars need the extra `local`")
    long = {"title": "Long", "type": "object", "properties": {"text": {"type": "string", "minLength": 20}}}
    llm = ChatKarakuri(max_tokens=24)
    structured = llm.with_structured_output({**long, "required": ["text"]}, include_raw=True)
    found = structured.invoke("富士山について教えてください。")
    assert isinstance(json.loads(found["raw"].text)["text"], str)
    assert found["raw"].response_metadata["finish_reason"] == "length"
    assert found["parsed"] is None
    assert "raise max_tokens" in str(found["parsing_error"])


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("No.", "the reply is no JSON"),
        ("", "the reply is no JSON"),
        ('{"rating": "many"}', "does not fit the schema: setup: missing; rating: int_parsing"),
        ("[" * 2000, "the reply is no JSON"),
    ],
    ids=["text", "nothing", "misfit", "deep"],
)
def test_what_a_server_without_grammars_may_send(reply: str, says: str) -> None:
    with pytest.raises(OutputParserException, match=says) as caught:
        scripted(reply).with_structured_output(Joke).invoke("q")
    assert "many" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caught.value.llm_output == reply


def test_keys_that_the_reply_made_up_are_not_in_the_error() -> None:
    class Counts(BaseModel, extra="forbid"):
        counts: dict[str, int] = {}

    class OldCounts(OldModel):
        counts: dict[str, int] = {}

        class Config:
            extra = "forbid"

    for form in (Counts, OldCounts):
        for reply, where in (('{"secret": 1}', r"\*: "), ('{"counts": {"secret": "x"}}', r"counts\.\*: ")):
            with pytest.raises(OutputParserException, match=f"does not fit the schema: {where}") as caught:
                scripted(reply).with_structured_output(form).invoke("q")
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize("form", [Joke, Joke.model_json_schema()], ids=["class", "schema"])
def test_a_call_of_another_tool_is_no_answer(form: Any) -> None:
    """A server without grammars may call what it likes."""
    reply = f'[{{"name": "Story", "arguments": {VALUE}}}]'
    structured = ChatKarakuri(engine=ScriptedEngine(lambda _: reply)).with_structured_output(
        form, method="function_calling"
    )
    with pytest.raises(OutputParserException, match="makes no call of 'Joke'") as caught:
        structured.invoke("q")
    assert caught.value.llm_output == f"Story: {VALUE}"
    with pytest.raises(OutputParserException, match="makes no call of 'Joke'"):
        list(structured.stream("q"))
    both = reply[:-1] + f', {{"name": "Joke", "arguments": {VALUE}}}]'
    llm = ChatKarakuri(engine=ScriptedEngine(lambda _: both))
    found = llm.with_structured_output(form, method="function_calling").invoke("q")
    assert (found if isinstance(found, dict) else found.model_dump())["rating"] == 3


def test_a_reply_in_words_where_a_call_was_asked_for_is_kept() -> None:
    llm = ChatKarakuri(engine=ScriptedEngine(lambda _: "No joke."))
    with pytest.raises(OutputParserException, match="makes no call of 'Joke'") as caught:
        llm.with_structured_output(Joke, method="function_calling").invoke("q")
    assert caught.value.llm_output.endswith("No joke.")


class Box(BaseModel, Generic[Value]):
    """A box."""

    content: Value


async def test_generic_classes() -> None:
    call = '[{"name": "Box_int_", "arguments": {"content": 3}}]'
    llm = ChatKarakuri(engine=ScriptedEngine(lambda prompt: call if prompt.endswith(OPENER) else '{"content": 3}'))
    for method in METHODS:
        structured = llm.with_structured_output(Box[int], method=method)
        assert structured.invoke("q") == Box[int](content=3)
        assert [one async for one in structured.astream("q")][-1] == Box[int](content=3)
    with pytest.raises(ToolDefinitionError, match=r"got 'Box\[int\]': .*a subclass"):
        llm.bind_tools([Box[int]])


def test_fenced_json_is_read() -> None:
    fenced = f"```json\n{VALUE}\n```"
    assert scripted(fenced).with_structured_output(Joke).invoke("q").rating == 3
    assert list(scripted(fenced).with_structured_output(Joke.model_json_schema()).stream("q"))[-1]["rating"] == 3


@pytest.mark.parametrize("method", METHODS)
async def test_raw(method: str) -> None:
    for form in (Joke, Joke.model_json_schema()):
        structured = scripted(VALUE).with_structured_output(form, method=method, include_raw=True)
        for found in (structured.invoke("q"), await structured.ainvoke("q")):
            assert list(found) == ["raw", "parsed", "parsing_error"]
            assert isinstance(found["raw"], AIMessage)
            assert found["parsing_error"] is None
            assert (found["parsed"] if isinstance(form, dict) else found["parsed"].model_dump())["rating"] == 3
        cut = scripted(VALUE, max_tokens=CUT[method]).with_structured_output(form, method=method, include_raw=True)
        streamed: dict[str, Any] = {}
        for chunk in cut.stream("q"):
            streamed |= chunk
        for found in (cut.invoke("q"), await cut.ainvoke("q"), streamed):
            assert found["parsed"] is None
            assert isinstance(found["parsing_error"], OutputParserException)
            assert found["raw"].response_metadata["finish_reason"] == "length"


# --- what is refused, shown and passed on ---


@pytest.mark.parametrize(
    ("schema", "options", "error", "says"),
    [
        (Joke, {"method": "json"}, OptionError, "method must be one of json_schema, function_calling, json_mode"),
        (Joke, {"foo": 1}, OptionError, "unknown option 'foo'"),
        (Joke, {"response_format": {"type": "text"}}, OptionError, "response_format= is what"),
        (Joke, {"method": "function_calling", "tool_choice": "any"}, OptionError, "tool_choice= is what"),
        (Joke, {"method": "json_mode", "strict": True}, OptionError, "strict= does not go with"),
        (None, {}, OptionError, "schema must be given"),
        (5, {}, ToolDefinitionError, "of the type int cannot be made a tool"),
        ({"type": "object"}, {"method": "function_calling"}, ToolDefinitionError, "schema with a title"),
    ],
)
def test_refused(schema: Any, options: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        scripted(VALUE).with_structured_output(schema, **options)
    assert isinstance(caught.value, ValueError)


def test_further_options_are_the_calls() -> None:
    llm = scripted(VALUE)
    llm.with_structured_output(Joke, attributes={"humor": 4}, max_tokens=100).invoke("q")
    assert "humor: 4" in llm.engine.prompts[0]
    assert llm.engine.samplings[0].max_tokens == 100


def test_traces_and_cache_keys() -> None:
    seen: list[dict[str, Any]] = []

    class Starts(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append(kwargs)

    llm = scripted(VALUE)
    for form in (Joke, OldJoke):
        llm.with_structured_output(form).invoke("q", config={"callbacks": [Starts()]})
    assert seen[0]["options"]["ls_structured_output_format"]["schema"]["title"] == "Joke"
    assert seen[0]["invocation_params"]["response_format"]["type"] == "json_schema"
    keys = {llm._get_llm_string(response_format=one) for one in (Joke, OldJoke, Joke.model_json_schema())}
    assert len(keys) == 2  # a class and its own schema ask for the same


def test_in_a_chain() -> None:
    chain = ChatPromptTemplate.from_messages([("system", "s"), ("user", "{q}")]) | scripted(
        VALUE
    ).with_structured_output(Joke)
    assert chain.invoke({"q": "?"}) == Joke(setup="猫 }{", rating=3)
