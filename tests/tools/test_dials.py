"""Dials and tools together on the embedded model: verbosity steers the text behind a result, no dial enters a call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the embedded model needs the extra `local`")
pytest.importorskip("llguidance", reason="the grammars need the extra `local`")
pytest.importorskip("langchain_core", reason="asked through LangChain")

sys.path.insert(0, str(Path(__file__).parents[2] / "cookbook" / "tools"))

import dials
from langchain_core.messages import AIMessage

from karakuri_integrations.langchain import ChatKarakuri


@pytest.fixture(scope="module")
def llm() -> ChatKarakuri:
    return ChatKarakuri(max_tokens=160)


def few(lang: str) -> list[dict[str, Any]]:
    return [row for row in dials.rows() if row["lang"] == lang][::15]


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_verbosity_steers_the_answer_behind_a_tools_result(llm: ChatKarakuri, lang: str) -> None:
    asked = few(lang)
    assert len(asked) >= 4
    short, long = (sum(dials.answer_length(llm, row, verbosity) for row in asked) for verbosity in (0, 4))
    assert 0 < short < long


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_no_dial_enters_the_arguments_of_a_call(llm: ChatKarakuri, lang: str) -> None:
    watched = dials.signs()
    assert {"verbosity", "[ATTR]"} < set(watched)
    for row in few(lang)[:3]:
        for setting in dials.SETTINGS:
            message = dials.forced_call(llm, row, setting)
            assert len(message.tool_calls) == 1
            assert dials.leaks(message, row, watched) == []


def test_the_settings_turn_every_dial() -> None:
    assert {name for setting in dials.SETTINGS for name in setting} == set(dict(dials.SteeringAttributes()))


def test_a_leak_is_seen() -> None:
    """What the question or a tool holds is none."""
    row = {"question": "humor?", "tools": [{"name": "quality_of", "parameters": {}}]}
    call = {"name": "quality_of", "args": {"a": "quality, humor and verbosity: 4 [ATTR]"}, "id": "c"}
    assert dials.leaks(AIMessage("", tool_calls=[call]), row, dials.signs()) == ["verbosity", "[ATTR]"]
