"""Calls out of replies: the same however the text is cut, and never an exception."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karakuri_integrations.conversation import CallForm, Piece, Prompt, ToolCall, Usage
from karakuri_integrations.reply import Decoder
from karakuri_integrations.tools import SYNTAXES, CallReader

FORM = SYNTAXES["brackets"].form
OPENER = FORM.opener


def read(parts: list[str], form: CallForm = FORM) -> tuple[str, list[ToolCall], list[ToolCall]]:
    """(text, calls put together from the fragments, calls of the end)."""
    reader, shown, built = CallReader(form), [], {}
    for part in [*parts, ""]:
        text, fragments = reader.push(part, last=part == "")
        shown.append(text)
        for one in fragments:
            name, number, arguments = built.get(one.index, ("", "", ""))
            built[one.index] = (one.name or name, one.id or number, arguments + one.arguments)
    return (
        "".join(shown),
        [ToolCall(n, a, i) for n, i, a in (built[key] for key in sorted(built))],
        list(reader.calls()),
    )


def cuts(text: str, seed: int) -> list[str]:
    chance, parts = random.Random(seed), []
    while text:
        size = chance.randint(1, 6)
        parts.append(text[:size])
        text = text[size:]
    return parts


def listed(*calls: tuple[str, object]) -> str:
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls], ensure_ascii=False)


NESTED = {"件名": '見積"書" [1] {2}', "a": {"b": [1, -2.5e3, {"c": None}], "d": True}, "e\\n": "\\", "絵": "🍣\n"}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("before", ["", "調べます。\n", "[TOOL_CALL] [TOOL_CALLS] "])
def test_text_and_calls_come_apart_at_every_cut(before: str, seed: int) -> None:
    calls = [("天気", NESTED), ("noop", {}), ("noop", {}), ("f", {"x": 1})]
    text, streamed, whole = read(cuts(before + OPENER + listed(*calls), seed))
    assert text == before
    assert [(one.name, json.loads(one.arguments)) for one in whole] == calls
    assert streamed == whole
    assert len({one.id for one in whole}) == len(calls)


@pytest.mark.parametrize("seed", range(5))
def test_a_forced_call_has_no_opener_and_may_repeat_it(seed: int) -> None:
    form = CallForm(OPENER, begun=True)
    for text in (listed(("f", {"x": 1})), " " + OPENER + listed(("f", {"x": 1})), "\n" + listed(("f", {"x": 1}))):
        shown, streamed, whole = read(cuts(text, seed), form)
        assert (shown, [(one.name, one.arguments, one.error) for one in whole]) == ("", [("f", '{"x": 1}', None)])
        assert streamed == whole


@pytest.mark.parametrize(
    ("said", "name", "arguments"),
    [
        ("", "", ""),
        ("[", "", "["),
        ("[]", "", "[]"),
        ("no list", "", "no list"),
        ('[{"na', "", '{"na'),
        ('[{"name": "f"', "f", ""),
        ('[{"name": "f", "arguments": {"city": "Par', "f", '{"city": "Par'),
        ('[{"name": "f", "arguments": {"city": "Par"}', "f", '{"city": "Par"}'),
        ('[{"name": "f", "arguments": "x"}]', "f", '"x"'),
        ('[{"name": "f", "arguments": 12}]', "f", "12"),
        ('[{"name": "f", "arguments": {"a": nope}}]', "f", '{"a": nope}'),
        ('[{"arguments": {"a": 1}}]', "", '{"arguments": {"a": 1}}'),
        ("]}]}", "", "]}]}"),
        ('{"a": ' * 3000, "", None),
    ],
)
def test_what_is_no_call_keeps_its_text_and_says_why(said: str, name: str, arguments: str | None) -> None:
    _, streamed, whole = read([OPENER, said])
    assert [one.name for one in whole] == [name]
    assert arguments is None or whole[0].arguments == arguments
    complete = said == '[{"name": "f", "arguments": {"city": "Par"}'
    assert (whole[0].error is None) == complete  # its arguments are whole, only the list was not closed
    assert all(one.name for one in streamed)


def test_a_call_before_a_broken_one_stands() -> None:
    _, _, whole = read([OPENER + '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x'])
    assert [(one.name, one.error is None) for one in whole] == [("f", True), ("g", False)]


def test_arguments_before_the_name_and_a_lone_object_are_calls() -> None:
    _, streamed, whole = read(list(OPENER + '{"arguments": {"x": [1]}, "name": "f"}'))
    assert [(one.name, one.arguments) for one in whole] == [("f", '{"x": [1]}')]
    assert streamed == whole


def test_missing_arguments_are_an_empty_object() -> None:
    assert [(one.arguments, one.error) for one in read([OPENER + '[{"name": "f"}]'])[2]] == [("{}", None)]


@given(st.text(alphabet='[]{}":,\\ \nab1T', max_size=60))
def test_nothing_raises_and_nothing_is_lost(said: str) -> None:
    reader = CallReader(FORM)
    text, _ = reader.push("前" + OPENER + said, last=False)
    assert text == "前"
    assert reader.held == OPENER + said
    reader.calls()


def test_the_other_syntax_is_read_the_same_way() -> None:
    form = SYNTAXES["command_r"].form
    said = 'ok\nAction: ```json\n[\n    {\n        "tool_name": "f",\n        "parameters": {"x": 1}\n    }\n]\n```'
    for seed in range(5):
        text, streamed, whole = read(cuts(said, seed), form)
        assert (text, [(one.name, one.arguments) for one in whole]) == ("ok\n", [("f", '{"x": 1}')])
        assert streamed == whole


@pytest.mark.parametrize("before", ["はい。", "Sure [1]: "])
def test_text_before_a_forced_call_is_text(before: str) -> None:
    form = CallForm(OPENER, begun=True)
    for seed in range(5):
        text, streamed, whole = read(cuts(before + OPENER + listed(("f", {})), seed), form)
        assert (text, [(one.name, one.error) for one in whole]) == (before, [("f", None)])
        assert streamed == whole


def test_an_opener_without_its_line_feed_opens_a_list_and_nothing_else() -> None:
    for seed in range(5):
        assert read(cuts("a[TOOL_CALLS]" + listed(("f", {})), seed)[:])[2][0].name == "f"
        assert read(cuts("a [TOOL_CALLS]  [ " + listed(("f", {}))[1:], seed))[2][0].name == "f"
        assert read(cuts("[TOOL_CALLS] is a tag. [TOOL_CALLS] [", seed))[::2] == (
            "[TOOL_CALLS] is a tag. [TOOL_CALLS] [",
            [],
        )


def test_what_follows_the_list_is_not_lost() -> None:
    whole = read([OPENER + listed(("f", {})) + "\n[TOOL_CALLS]\n[{}]"])[2]
    assert [(one.name, one.error is None) for one in whole] == [("f", True), ("", False)]
    assert whole[1].arguments == "[TOOL_CALLS]\n[{}]"


@pytest.mark.parametrize("arguments", ['{"a": NaN}', '{"a": "\\ud800"}', '{"a": -Infinity}'])
def test_values_that_json_or_text_cannot_hold_are_no_good_call(arguments: str) -> None:
    assert read([OPENER + f'[{{"name": "f", "arguments": {arguments}}}]'])[2][0].error


def test_the_first_name_counts_and_must_be_text() -> None:
    said = '[{"name": "f", "name": "g", "arguments": {}}, {"name": null, "arguments": {}}]'
    _, streamed, whole = read([OPENER + said])
    assert [one.name for one in whole] == ["f", ""]
    assert [one.name for one in streamed] == ["f"]
    assert whole[1].error


def test_more_calls_than_were_asked_for_are_errors() -> None:
    whole = read([OPENER + listed(("f", {}), ("f", {}))], CallForm(OPENER, most=1))[2]
    assert [one.error is None for one in whole] == [True, False]


# --- in the decoder -------------------------------------------------------------------------------------------------


def decoded(
    text: str, reason: str = "stop", stop: tuple[str, ...] = (), **fields: object
) -> tuple[str, str | None, list]:
    decoder, shown, last = Decoder(Prompt((), calls=FORM, **fields), stop), "", None  # type: ignore[arg-type]
    for place, character in enumerate([*text, ""]):
        for delta in decoder.push(Piece(character, Usage(1, place), reason if character == "" else None)):  # type: ignore[arg-type]
            shown, last = shown + delta.text, delta
        if decoder.done:
            break
    assert last is not None
    return shown, last.finish_reason, list(last.calls)


def test_the_reason_says_that_there_are_calls() -> None:
    assert decoded("はい。\n" + OPENER + listed(("f", {})))[:2] == ("はい。", "tool_calls")
    assert decoded("はい。")[1:] == ("stop", [])
    assert decoded(OPENER + '[{"name": "f", "argu', "length")[1] == "length"


def test_stop_strings_end_text_and_not_calls() -> None:
    assert decoded('a "b' + OPENER + listed(("f", {"x": "END"})), stop=("END",))[1] == "tool_calls"
    assert decoded("aEND" + OPENER + listed(("f", {})), stop=("END",)) == ("a", "stop", [])


def test_escaped_literals_are_taken_back_in_arguments() -> None:
    said = OPENER + listed(("f", {"x": "[\u2060INST] [\u2060TOOL_CALLS]"}))
    calls = decoded(said, literals=("[INST]", "[TOOL_CALLS]"))[2]
    assert json.loads(calls[0].arguments) == {"x": "[INST] [TOOL_CALLS]"}


def test_what_was_received_is_exact_when_the_stream_breaks() -> None:
    decoder = Decoder(Prompt((), calls=FORM))
    for part in ("はい ", "[TOOL_CA", 'LLS]\n[{"name": "f"'):
        list(decoder.push(Piece(part)))
    assert decoder.received == 'はい [TOOL_CALLS]\n[{"name": "f"'


def test_an_opener_that_is_escaped_data_opens_nothing() -> None:
    """The model repeats what a user or a tool wrote; a call that nobody held to a schema must not come out of that."""
    literals = ("[INST]", "[TOOL_CALLS]")
    said = "[\u2060TOOL_CALLS]\n" + listed(("f", {}))
    for text in (said, f"はい {said}"):
        shown, reason, calls = decoded(text, literals=literals)
        assert (shown, reason, calls) == (text.replace("\u2060", ""), "stop", [])
    call = listed(("g", {"x": "[\u2060INST]"}))
    shown, reason, calls = decoded(f"{said} {OPENER}{call}", literals=literals)
    assert shown == said.replace("\u2060", "")
    assert [(call.name, call.arguments) for call in calls] == [("g", '{"x": "[INST]"}')]


def test_what_was_received_is_exact_where_data_is_escaped() -> None:
    literals = ("[INST]", "[TOOL_CALLS]")
    for cut in range(40):
        decoder = Decoder(Prompt((), calls=FORM, literals=literals))
        whole = f"a [\u2060INST] b {OPENER}[[\u2060INST]"[:cut]
        for character in whole:
            list(decoder.push(Piece(character)))
        assert decoder.received == whole.replace("[\u2060INST]", "[INST]")
