"""Warnings point at the user's line, and errors of what was passed say the number, the name or the library to mend."""

import asyncio
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from llama_index.core.llms import ChatMessage, ImageBlock

from karakuri_integrations import notices, provider
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.errors import (
    ContextOverflowError,
    MessageError,
    MissingDependencyError,
    OptionError,
    ToolDefinitionError,
)
from karakuri_integrations.langchain import ChatKarakuri
from karakuri_integrations.llama_index import KarakuriLLM

REAL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
BOTH = pytest.mark.parametrize("make", [ChatKarakuri, KarakuriLLM])
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda chat, _: chat.invoke("hi"),
    "stream": lambda chat, _: list(chat.stream("hi")),
    "ainvoke": lambda chat, _: asyncio.run(chat.ainvoke("hi")),
    "complete": lambda _, llm: llm.complete("hi"),
    "stream_complete": lambda _, llm: list(llm.stream_complete("hi")),
    "achat": lambda _, llm: asyncio.run(llm.achat([ChatMessage("hi")])),
}


@pytest.fixture
def noticing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something of ours notices while the prompt is rendered, far below the framework's own functions."""
    ours = {"__name__": "karakuri_integrations.noticing", "warn": notices.warn, "render": provider.render}
    exec("def noticing(*given, **more):\n    warn('noticed')\n    return render(*given, **more)", ours)
    monkeypatch.setattr(provider, "render", ours["noticing"])


@pytest.mark.parametrize("call", CALLS)
def test_a_calls_warning_points_at_the_line_that_called(call: str, noticing: None) -> None:
    engine = ScriptedEngine(["a"])
    with pytest.warns(UserWarning, match="noticed") as told:
        CALLS[call](ChatKarakuri(engine=engine), KarakuriLLM(engine=engine))
    assert {one.filename for one in told} == {__file__}


async def test_a_coroutines_warning_points_at_its_await(noticing: None) -> None:
    """With LangChain, which runs a call as a task of its own, at the line that runs the event loop."""
    llm = KarakuriLLM(engine=ScriptedEngine(["a"]))
    with pytest.warns(UserWarning, match="noticed") as told:
        await llm.achat([ChatMessage("hi")])
    here = test_a_coroutines_warning_points_at_its_await.__code__
    assert [(one.filename, one.lineno - here.co_firstlineno) for one in told] == [(__file__, 4)]


@BOTH
def test_a_constructors_warning_points_at_the_line_that_made_the_model(make: Any) -> None:
    pytest.importorskip("urllib3")
    with pytest.warns(UserWarning, match="sent to http://.*without encryption") as told:
        make(base_url=f"http://{make.__name__}.example.com/v1", model=REAL, api_key="sk-some-key")
    assert [one.filename for one in told] == [__file__]


def test_where_nobody_reads_the_log_a_notice_is_shown_once() -> None:
    # Not the word itself: Python 3.13 shows the line of a script that warned.
    script = "from karakuri_integrations.notices import notify; notify('no' + 'ticed')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.count("noticed") == 1


def test_a_thread_that_is_all_ours_still_warns() -> None:
    thread = threading.Thread(target=notices.warn, args=("noticed",))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        thread.start()
        thread.join()
    assert [str(one.message) for one in told] == ["noticed"]


# --- words ---


@pytest.mark.parametrize(
    ("numbers", "ways"),
    [
        (
            (90, 20, 100),
            'shorten the conversation, lower max_tokens to at most 10, or pass overflow="drop_oldest_turns"',
        ),
        ((20, 100, 100), "lower max_tokens to at most 80"),
        ((120, 9, 100), 'shorten the conversation, lower max_tokens, or pass overflow="drop_oldest_turns"'),
        ((120, 200, 100), 'shorten the conversation, lower max_tokens, or pass overflow="drop_oldest_turns"'),
        ((100, None, 100), 'shorten the conversation, or pass overflow="drop_oldest_turns"'),
    ],
)
def test_what_can_be_done_about_a_window_that_is_too_small(numbers: tuple[int, int | None, int], ways: str) -> None:
    assert str(ContextOverflowError(*numbers)).partition("; ")[2].endswith(ways)
    assert ("overflow" in str(ContextOverflowError(*numbers))) == ("overflow" in ways)


@BOTH
def test_clients_of_ones_own_are_named_by_their_library(make: Any) -> None:
    pytest.importorskip("urllib3")
    for name, kind in (("http_client", "urllib3.PoolManager"), ("http_async_client", "aiohttp.ClientSession")):
        with pytest.raises(OptionError, match=f"{name} must be of the class {kind}, got object"):
            make(base_url="http://127.0.0.1:9/v1", model=REAL, **{name: object()})


def test_an_image_is_an_image() -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(["a"]))
    with pytest.raises(MessageError, match="message 0: an image block"):
        llm.render_prompt([ChatMessage(role="user", blocks=[ImageBlock(image=b"")])])


def test_a_tool_without_a_name_says_that_it_has_none() -> None:
    llm = ChatKarakuri(engine=ScriptedEngine(["a"]))
    with pytest.raises(
        ToolDefinitionError, match=r"tools\[0\] of the type dict cannot be made a tool: it has no `name`"
    ):
        llm.bind_tools([{"description": "a tool", "parameters": {"type": "object", "properties": {}}}])


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_a_library_that_is_missing_names_the_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from karakuri_integrations.engines.safety import check_versions

    def version(name: str) -> str:
        if name == library:
            raise metadata.PackageNotFoundError(name)
        return "99.0"

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MissingDependencyError, match=f'the extra "local" \\({library} is missing\\): pip install'):
        check_versions()
