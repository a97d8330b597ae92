"""The reply decoder: stop strings, escaped literals and white space, at every way to cut the text into pieces."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karakuri_integrations.conversation import Piece, Prompt, Usage
from karakuri_integrations.escaping import escape, find, unescape
from karakuri_integrations.reply import Decoder
from karakuri_integrations.templates import FAMILIES

LITERALS = FAMILIES["karakuri-lm-70b-chat-v0.1"].literals
PROMPT = Prompt((), literals=LITERALS)
_parts = st.lists(st.sampled_from(["[", "]", "<", ">", "/", "INST]", "[INST]", "<<SYS>>", "\u2060", "あ", " ", "s>"]))


def decode(parts: list[str], stop: tuple[str, ...] = (), prompt: Prompt = PROMPT) -> tuple[str, str | None, list[str]]:
    decoder, shown, reason = Decoder(prompt, stop), [], None
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        for delta in decoder.push(Piece(part, Usage(3, place + 1), "length" if last else None)):
            shown.append(delta.text)
            reason = delta.finish_reason
        if decoder.done:
            break
    assert decoder.text == "".join(shown)
    return "".join(shown), reason, shown


@given(_parts)
def test_escaping_is_reversible_and_leaves_no_literal(parts: list[str]) -> None:
    text = "".join(parts)
    escaped, _ = escape(text, LITERALS)
    assert unescape(escaped, LITERALS) == text
    assert find(escaped, LITERALS) is None


@given(_parts)
def test_a_stream_of_characters_unescapes_like_the_whole(parts: list[str]) -> None:
    text = "".join(parts)
    escaped, _ = escape(text, LITERALS)
    assert decode([*escaped, ""])[0] == text.strip()


@pytest.mark.parametrize("stop", ["。終", "Observation:", "\n\n", "🍣🍣"])
def test_a_stop_string_never_shows_at_any_cut(stop: str) -> None:
    whole = f"答え。は終わり Obs{stop}and more"
    generator = random.Random(0)
    for _ in range(200):
        parts, left = [], whole
        while left:
            cut = generator.randint(1, 4)
            parts.append(left[:cut])
            left = left[cut:]
        text, reason, _ = decode([*parts, ""], (stop,))
        assert text == "答え。は終わり Obs"
        assert reason == "stop"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert decode([*"abcdef", ""], ("ef", "cd"))[0] == "ab"


def test_what_only_began_a_stop_string_is_given_out_at_the_end() -> None:
    assert decode([*"answer Obs", ""], ("Observation:",))[0] == "answer Obs"


def test_received_includes_what_is_held_back() -> None:
    decoder = Decoder(PROMPT, ("Observation:",))
    for part in ("a", "b \n", "Obs", "[\u2060"):
        list(decoder.push(Piece(part)))
    assert decoder.text == "ab"
    assert decoder.received == "ab \nObs[\u2060"


def test_kana_is_never_held_back() -> None:
    decoder = Decoder(PROMPT, ("Observation:",))
    shown = [d.text for c in "おはよう" for d in decoder.push(Piece(c))]
    assert shown == list("おはよう")


def test_white_space_around_a_reply_is_dropped_where_the_family_strips() -> None:
    assert decode([" ", "\n a", " ", "b", " \n", ""])[0] == "a b"
    assert decode([" a ", ""], prompt=Prompt((), strip_reply=False))[0] == " a "


def test_usage_and_reason_come_once_and_last() -> None:
    decoder = Decoder(PROMPT)
    deltas = [d for p in (Piece("a"), Piece("b"), Piece("", Usage(5, 2), "stop")) for d in decoder.push(p)]
    assert [d.finish_reason for d in deltas] == [None, None, "stop"]
    assert [d.usage for d in deltas] == [None, None, Usage(5, 2)]
