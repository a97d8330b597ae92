"""How the fault table's calls are made and judged: one call, one way, through one client; each in a thread with a watchdog.

Knows the two frameworks' ways of asking (whole or streamed, sync or async) and what "right" means for a row. Clients of
others come in through `Client` as well (`cookbook/remote/faults.py`), so that all are judged by the same eyes.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fault_table import KEY, MARK, PROMPT, STREAMED, WAYS, Bad, Good, Row, Site, gap
from loopback import Exchange, Loopback, full_port, refusing_port
from wires import TEXT

__all__ = ["OURS", "PATIENCE", "Client", "Outcome", "Run", "problems", "run_row", "servers"]

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
#: Seconds after which another client's call counts as hung; ours must keep to the row's own limit.
PATIENCE = 20.0


@dataclass
class Outcome:
    """What a caller saw. `chunks` are a stream's texts; `text` is the whole of what was handed out as success."""

    text: str | None = None
    finish: str | None = None
    chunks: list[str] = field(default_factory=list)
    error: BaseException | None = None
    trace: str = ""
    seconds: float = 0.0
    hung: bool = False


#: Asks one way and fills the outcome in; async for the ways that begin with "a".
Ask = Callable[[Any, str, Outcome], Any]


@dataclass(frozen=True)
class Client:
    """One class under test, and the module it comes from. `make` gets the base url and a row."""

    name: str
    module: str
    make: Callable[[str, Row], Any]
    ask: Ask


# --- LangChain ---


def ask_langchain(llm: Any, way: str, outcome: Outcome) -> Any:
    return getattr(_LangChain, way)(llm, outcome)


class _LangChain:
    @staticmethod
    def invoke(llm: Any, outcome: Outcome) -> None:
        _whole_langchain(llm.invoke(PROMPT), outcome)

    @staticmethod
    async def ainvoke(llm: Any, outcome: Outcome) -> None:
        _whole_langchain(await llm.ainvoke(PROMPT), outcome)

    @staticmethod
    def stream(llm: Any, outcome: Outcome) -> None:
        for chunk in llm.stream(PROMPT):
            _chunk_langchain(chunk, outcome)
        outcome.text = "".join(outcome.chunks)

    @staticmethod
    async def astream(llm: Any, outcome: Outcome) -> None:
        async for chunk in llm.astream(PROMPT):
            _chunk_langchain(chunk, outcome)
        outcome.text = "".join(outcome.chunks)


def _whole_langchain(message: Any, outcome: Outcome) -> None:
    outcome.text = message.content
    outcome.finish = message.response_metadata.get("finish_reason")


def _chunk_langchain(chunk: Any, outcome: Outcome) -> None:
    outcome.chunks.append(chunk.content)
    outcome.finish = chunk.response_metadata.get("finish_reason") or outcome.finish


# --- LlamaIndex ---


def ask_llama_index(llm: Any, way: str, outcome: Outcome) -> Any:
    from llama_index.core.llms import ChatMessage

    return getattr(_LlamaIndex, way)(llm, [ChatMessage(role="user", content=PROMPT)], outcome)


class _LlamaIndex:
    @staticmethod
    def invoke(llm: Any, messages: Any, outcome: Outcome) -> None:
        _whole_llama_index(llm.chat(messages), outcome)

    @staticmethod
    async def ainvoke(llm: Any, messages: Any, outcome: Outcome) -> None:
        _whole_llama_index(await llm.achat(messages), outcome)

    @staticmethod
    def stream(llm: Any, messages: Any, outcome: Outcome) -> None:
        for item in llm.stream_chat(messages):
            _item_llama_index(item, outcome)
        outcome.text = "".join(outcome.chunks)

    @staticmethod
    async def astream(llm: Any, messages: Any, outcome: Outcome) -> None:
        async for item in await llm.astream_chat(messages):
            _item_llama_index(item, outcome)
        outcome.text = "".join(outcome.chunks)


def _whole_llama_index(response: Any, outcome: Outcome) -> None:
    outcome.text = response.message.content
    outcome.finish = _finish_of(response.raw)


def _item_llama_index(item: Any, outcome: Outcome) -> None:
    outcome.chunks.append(item.delta or "")
    outcome.finish = _finish_of(item.raw) or outcome.finish


def _finish_of(raw: Any) -> str | None:
    return raw.get("finish_reason") if isinstance(raw, dict) else None


# --- ours ---


def our_fields(url: str, row: Row) -> dict[str, Any]:
    timeouts = {"connect": 5, "pool": 5, "first_token": 20, "idle": 20}
    return {
        "model": MODEL,
        "base_url": url,
        "server": "vllm",
        "api_key": KEY,
        "max_tokens": 400,
        "timeouts": timeouts,
        **row.fields,
    }


def _chat_karakuri(url: str, row: Row) -> Any:
    from karakuri_integrations.langchain import ChatKarakuri

    return ChatKarakuri(**our_fields(url, row))


def _karakuri_llm(url: str, row: Row) -> Any:
    from karakuri_integrations.llama_index import KarakuriLLM

    return KarakuriLLM(**our_fields(url, row))


OURS = (
    Client("ChatKarakuri", "karakuri_integrations.langchain", _chat_karakuri, ask_langchain),
    Client("KarakuriLLM", "karakuri_integrations.llama_index", _karakuri_llm, ask_llama_index),
)


# --- running ---


@dataclass(frozen=True)
class Servers:
    """The servers that rows are run against."""

    main: Loopback
    elsewhere: Loopback
    site: Site


@contextmanager
def servers(clients: tuple[Client, ...] = OURS) -> Iterator[Servers]:
    """Start them; all are closed on leaving. The clients' modules are imported here, once, and not by many threads."""
    for client in clients:
        importlib.import_module(client.module)
    with Loopback() as main, Loopback() as elsewhere, refusing_port() as refused, full_port() as full:
        there = f"http://127.0.0.1:{elsewhere.port}"
        site = Site(there, f"http://127.0.0.1:{refused}/v1", f"http://127.0.0.1:{full}/v1")
        yield Servers(main, elsewhere, site)


_numbers = itertools.count()


@dataclass(frozen=True)
class Run:
    """One call that was made, and what the server saw of it."""

    client: Client
    way: str
    outcome: Outcome
    exchanges: list[Exchange]
    elsewhere: list[Exchange]


def run_row(row: Row, clients: tuple[Client, ...], at: Servers) -> list[Run]:
    """Make the row's call with every client in every way, all at once; nothing outlives the row's limit.

    Where it is heavy, one client after the other, so that none has to wait for another's work.
    """
    if row.heavy and len(clients) > 1:
        return [run for client in clients for run in run_row(row, (client,), at)]
    pending = [_start(row, client, way, at) for client in clients for way in _ways(row, client)]
    runs = []
    for client, way, key, thread, outcome, started in pending:
        limit = row.limit if client in OURS else max(row.limit, PATIENCE)
        thread.join(max(0.0, started + limit - time.monotonic()))
        if thread.is_alive():
            outcome = Outcome(hung=True, chunks=list(outcome.chunks), seconds=limit)
            at.main.drop(key)
        there = [one for one in at.elsewhere.exchanges() if key in one.request.path]
        runs.append(Run(client, way, outcome, at.main.exchanges(key), there))
    return runs


def _ways(row: Row, client: Client) -> tuple[str, ...]:
    if row.heavy:
        return STREAMED
    return WAYS if client in OURS else row.ways


def _start(row: Row, client: Client, way: str, at: Servers) -> tuple[Any, ...]:
    key = f"{next(_numbers)}-{client.name}-{way}"
    url = at.main.script(key, row.script(at.site))
    outcome = Outcome()
    target = row.url(at.site) if row.url else url
    thread = threading.Thread(target=_call, args=(row, client, way, target, outcome), daemon=True, name=f"row-{way}")
    thread.start()
    return client, way, key, thread, outcome, time.monotonic()


def _call(row: Row, client: Client, way: str, url: str, outcome: Outcome) -> None:
    started = time.monotonic()
    try:
        llm = client.make(url, row)
        if way.startswith("a"):
            asyncio.run(client.ask(llm, way, outcome))
        else:
            client.ask(llm, way, outcome)
    except BaseException as error:
        outcome.text, outcome.error = None, error
        outcome.trace = "".join(traceback.format_exception(error))
    outcome.seconds = time.monotonic() - started


# --- judging ---


def problems(row: Row, run: Run) -> list[str]:
    """What is wrong with a run of ours; empty when the row holds."""
    outcome = run.outcome
    if outcome.hung:
        return [f"hung for more than {row.limit} s after {''.join(outcome.chunks)!r}"]
    verdicts = [_good(one, outcome) if isinstance(one, Good) else _bad(one, run) for one in row.expect]
    found = [] if not all(verdicts) else next(one for one in verdicts if one)
    tries = len(run.exchanges)
    if row.tries is not None and tries not in row.tries:
        found = [*found, f"{tries} tries, expected {row.tries}"]
    between = gap(run.exchanges)
    if row.gap and between is not None and not row.gap[0] <= between <= row.gap[1]:
        found = [*found, f"{between:.2f} s between the tries, expected {row.gap}"]
    if run.elsewhere:
        found = [*found, "a request went to the other origin"]
    return found


def _good(want: Good, outcome: Outcome) -> list[str]:
    if outcome.error is not None:
        return [f"{type(outcome.error).__name__} in place of an answer: {outcome.error}"]
    found = [] if outcome.text == want.text else [f"wrong text as success: {outcome.text!r:.200}"]
    if want.finish and outcome.finish != want.finish:
        found.append(f"finish_reason {outcome.finish!r}, expected {want.finish!r}")
    return found


def _bad(want: Bad, run: Run) -> list[str]:
    from karakuri_integrations.errors import RemoteError

    outcome, error = run.outcome, run.outcome.error
    if error is None:
        return [f"success with {outcome.text!r:.200}, expected {' or '.join(want.kinds)}"]
    names = {base.__name__ for base in type(error).__mro__}
    if not isinstance(error, RemoteError) or not names & set(want.kinds):
        return [f"{type(error).__name__} ({error!s:.300}), expected {' or '.join(want.kinds)}"]
    return [*_partial(want, outcome, error), *_facts(want, error), *_clean(run.client, outcome, error)]


def _partial(want: Bad, outcome: Outcome, error: Any) -> list[str]:
    found = []
    if want.partial is None:
        if not TEXT.startswith(error.partial_text):
            found.append(f"partial_text {error.partial_text!r} is no beginning of the text")
    elif error.partial_text != want.partial:
        found.append(f"partial_text {error.partial_text!r:.100}, expected {want.partial!r:.100}")
    shown = "".join(outcome.chunks)
    if outcome.chunks and shown != error.partial_text:
        found.append(f"the chunks say {shown!r} and partial_text {error.partial_text!r}")
    return found


def _facts(want: Bad, error: Any) -> list[str]:
    found = []
    if want.status is not None and error.status != want.status:
        found.append(f"status {error.status}, expected {want.status}")
    if want.stage is not None and error.stage != want.stage:
        found.append(f"stage {error.stage}, expected {want.stage}")
    if want.said not in error.server_text:
        found.append(f"server_text {error.server_text!r:.200} lacks {want.said!r}")
    if len(error.server_text) > 500:
        found.append(f"server_text of {len(error.server_text)} characters")
    return found


def _clean(client: Client, outcome: Outcome, error: Any) -> list[str]:
    """Neither key nor prompt in any form of the error; in LangChain it is a ModelError too."""
    shown = {"str": str(error), "repr": repr(error), "vars": repr(vars(error)), "traceback": outcome.trace}
    found = [f"{name} holds {secret!r}" for name, text in shown.items() for secret in (KEY, MARK) if secret in text]
    if client.name == "ChatKarakuri":
        from langchain_core.exceptions import ModelError

        if not isinstance(error, ModelError):
            found.append("no ModelError of langchain-core")
    return found
