"""Keys, URL passwords and header values are planted everywhere, and nothing that leaves the model shows them.

Neither does a log or an error show the prompt. The values may be in the request and nowhere else.
"""

import asyncio
import base64
import copy
import json
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from fault_table import MARK, PROMPT, echo, redirect
from loopback import RESET, Loopback, Reply, Request, refusing_port
from wires import COMPLETION, sse

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd, dumps
from langchain_core.tracers.base import BaseTracer
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler as LlamaIndexHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import ChatMessage

from karakuri_integrations.errors import KarakuriError
from karakuri_integrations.langchain import ChatKarakuri
from karakuri_integrations.llama_index import KarakuriLLM

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
KEY = "sk-planted-key-90210"
USER = "planted-user"
PASSWORD = "p@ss/planted:4711"
HEADER = "planted-header-value-x7"
COOKIE = "session=planted-cookie-q9"
PLANTED = {
    "key": KEY,
    "user": USER,
    "password": PASSWORD,
    "password, quoted": quote(PASSWORD, safe=""),
    "basic": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
    "header": HEADER,
    "cookie": COOKIE.partition("=")[2],
}
HEADERS = {"X-Team-Token": HEADER, "Cookie": COOKIE}


def leaks(shown: object, *more: str) -> list[str]:
    """Which planted values stand in a text, in bytes, or in the repr of anything else."""
    text = shown.decode("latin-1") if isinstance(shown, bytes) else shown if isinstance(shown, str) else repr(shown)
    return [name for name, value in {**PLANTED, **{one: one for one in more}}.items() if value in text]


def by_key(server: Loopback, key: str, **more: Any) -> dict[str, Any]:
    return {"base_url": server.url(key), "api_key": KEY, "default_headers": HEADERS, **more}


def by_url(server: Loopback, key: str, **more: Any) -> dict[str, Any]:
    host = f"{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}"
    return {"base_url": f"http://{host}/{key}/v1", "default_headers": HEADERS, **more}


def by_list(server: Loopback, key: str, **more: Any) -> dict[str, Any]:
    one = by_url(server, key)["base_url"]
    return {"base_url": [one, one.replace("/v1", "/second/v1")], "default_headers": HEADERS, **more}


def by_environment(server: Loopback, key: str, **more: Any) -> dict[str, Any]:
    return {"base_url": server.url(key), "default_headers": HEADERS, **more}


@pytest.fixture(params=[by_key, by_url, by_list, by_environment], ids=lambda one: one.__name__)
def plant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How the secrets come into the model."""
    monkeypatch.delenv("KARAKURI_API_KEY", raising=False)
    if request.param is by_environment:
        monkeypatch.setenv("KARAKURI_API_KEY", KEY)
    return request.param


def common(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": MODEL, "server": "vllm", "max_tokens": 400, "max_retries": 0, **fields}


CLASSES = pytest.mark.parametrize("make", [ChatKarakuri, KarakuriLLM])


@pytest.fixture
def good(loopback: Loopback) -> Loopback:
    loopback.script("good", [lambda request: Reply(COMPLETION.stream("はい。"))])
    return loopback


# --- what a model shows of itself ---


def langchain_views(llm: ChatKarakuri) -> dict[str, object]:
    chain = llm.bind(max_tokens=5) | (lambda message: message)
    return {
        "dumpd": dumpd(llm),
        "dumps": dumps(llm),
        "dumps pretty": dumps(llm, pretty=True),
        "to_json": llm.to_json(),
        "chain": repr(chain),
        "chain dumps": dumps(llm.bind(max_tokens=5)),
        "identifying": llm._identifying_params,
        "llm string": llm._get_llm_string(),
        "ls params": llm._get_ls_params(),
        "invocation": llm._get_invocation_params(),
        "lc_attributes": llm.lc_attributes,
        "lc_kwargs": getattr(llm, "_lc_kwargs", None),
        "dict": llm.dict(),
        "profile": llm.profile,
    }


def llama_index_views(llm: KarakuriLLM) -> dict[str, object]:
    return {
        "to_dict": llm.to_dict(),
        "to_json": llm.to_json(),
        "to_payload": llm.to_payload(),
        "metadata": llm.metadata,
        "dict": llm.dict(),
        "json": llm.json(),
        "template": (llm.messages_to_prompt, llm.completion_to_prompt),
    }


def views(llm: Any) -> dict[str, object]:
    own = langchain_views(llm) if isinstance(llm, ChatKarakuri) else llama_index_views(llm)
    engine = llm._provider().engine() if isinstance(llm, ChatKarakuri) else llm._provider.engine()
    return {
        "repr": repr(llm),
        "str": str(llm),
        "format": f"{llm!r:.9999} {llm}",
        "vars": repr(vars(llm)),
        "model_dump": llm.model_dump(),
        "model_dump_json": llm.model_dump_json(),
        "model_dump python": repr(llm.model_dump(mode="python")),
        "copy": repr(copy.copy(llm)),
        "deepcopy": repr(copy.deepcopy(llm)),
        "pickle": pickle.dumps(llm),
        "engine": (repr(engine), str(engine)),
        **own,
    }


@CLASSES
def test_a_model_shows_no_secret(make: Any, plant: Any, good: Loopback) -> None:
    llm = make(**common(plant(good, "good")))
    found = {name: leaks(view) for name, view in views(llm).items()}
    assert not {name: what for name, what in found.items() if what}


@CLASSES
def test_nor_after_calls(make: Any, plant: Any, good: Loopback) -> None:
    llm = make(**common(plant(good, "good")))
    for way in WAYS:
        ask(llm, way)
    found = {name: leaks(view) for name, view in views(llm).items()}
    assert not {name: what for name, what in found.items() if what}
    assert good.exchanges("good")


@CLASSES
def test_the_secrets_are_sent(make: Any, plant: Any, good: Loopback) -> None:
    """They are planted where they matter: the server gets every one of them, in each way of asking."""
    llm = make(**common(plant(good, "good")))
    for way in WAYS:
        ask(llm, way)
        sent = good.exchanges("good")[-1].request
        expected = f"Bearer {KEY}" if plant in (by_key, by_environment) else f"Basic {PLANTED['basic']}"
        assert sent.headers["authorization"] == expected
        assert sent.headers["x-team-token"] == HEADER
        assert sent.headers["cookie"] == COOKIE
        assert not leaks(sent.path + sent.headers["host"])


@CLASSES
def test_a_copy_keeps_them(make: Any, plant: Any, good: Loopback) -> None:
    llm = make(**common(plant(good, "good")))
    for one in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy()):
        ask(one, "invoke")
        sent = good.exchanges("good")[-1].request
        assert (sent.headers["x-team-token"], "authorization" in sent.headers) == (HEADER, True)


@CLASSES
def test_a_pickle_loads_and_takes_the_environments_key(
    make: Any, good: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make(**common(by_key(good, "good")))
    stored = pickle.dumps(llm)
    monkeypatch.setenv("KARAKURI_API_KEY", "sk-of-the-environment")
    ask(pickle.loads(stored), "invoke")
    assert good.exchanges("good")[-1].request.headers["authorization"] == "Bearer sk-of-the-environment"


# --- errors ---

WAYS = ("invoke", "ainvoke", "stream", "astream")


def ask(llm: Any, way: str, **options: Any) -> Any:
    call = _langchain if isinstance(llm, ChatKarakuri) else _llama_index
    if way.startswith("a"):
        return asyncio.run(call(llm, way, options), debug=True)
    return _sync_langchain(llm, way, options) if isinstance(llm, ChatKarakuri) else _sync_llama_index(llm, way, options)


def _sync_langchain(llm: Any, way: str, options: dict[str, Any]) -> Any:
    return llm.invoke(PROMPT, **options) if way == "invoke" else list(llm.stream(PROMPT, **options))


def _sync_llama_index(llm: Any, way: str, options: dict[str, Any]) -> Any:
    messages = [ChatMessage(PROMPT)]
    return llm.chat(messages, **options) if way == "invoke" else list(llm.stream_chat(messages, **options))


async def _langchain(llm: Any, way: str, options: dict[str, Any]) -> Any:
    if way == "ainvoke":
        return await llm.ainvoke(PROMPT, **options)
    return [chunk async for chunk in llm.astream(PROMPT, **options)]


async def _llama_index(llm: Any, way: str, options: dict[str, Any]) -> Any:
    messages = [ChatMessage(PROMPT)]
    if way == "ainvoke":
        return await llm.achat(messages, **options)
    return [item async for item in await llm.astream_chat(messages, **options)]


def _echo_event(request: Request) -> Reply:
    error = {"message": f"cannot serve {dict(request.headers)} {request.prompt}", "code": 500}
    return Reply([*COMPLETION.half(), sse({"error": error})])


def _echo_finish(request: Request) -> Reply:
    word = f"{request.headers.get('authorization', '')} {request.headers.get('x-team-token')}"
    return Reply(COMPLETION.stream("はい。", word))


def _echo_type(request: Request) -> Reply:
    word = f"text/{request.headers.get('x-team-token')}"
    return Reply([b"<html>" + request.body], headers=(("Content-Type", word), ("X-Request-Id", HEADER)))


def _echo_location(request: Request) -> Reply:
    target = f"http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:1/{KEY}?key={HEADER}#{MARK}"
    return Reply(status=307, framing="length", headers=(("Location", target),))


def _echo_html(request: Request) -> Reply:
    page = f"<html>{dict(request.headers)} {request.prompt}</html>".encode()
    return Reply([page], status=502, framing="length", headers=(("Content-Type", "text/html"),))


def _echo_retry(request: Request) -> Reply:
    headers = (("Retry-After", HEADER), ("X-Request-Id", request.headers.get("authorization", KEY)))
    return Reply([request.prompt.encode()], status=429, framing="length", headers=headers)


FAULTS: dict[str, Callable[[Request], Reply] | Reply] = {
    "422": echo(422),
    "401": echo(401),
    "500": echo(500),
    "event": _echo_event,
    "type": _echo_type,
    "location": _echo_location,
    "html": _echo_html,
    "retry": _echo_retry,
    "reset": RESET,
    "interrupted": Reply(COMPLETION.half(), end="fin"),
    "stall": Reply(COMPLETION.half(), end="stall"),
    "silent": Reply(framing="raw", end="stall"),
    "garbage": lambda request: Reply([b"data: " + request.body[:-3] + b"\n\n"]),
    "no-json": lambda request: Reply([request.body], headers=(("Content-Type", "text/plain"),)),
    "whole": lambda request: Reply([request.body], headers=(("Content-Type", "application/json"),), framing="length"),
    "status-line": lambda request: Reply(
        [f"HTTP/1.1 {KEY} {request.headers}\r\n\r\n".encode()], framing="raw", end="fin"
    ),
    "chunk": lambda request: Reply(
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + KEY.encode() + request.body], framing="raw"
    ),
}
SHORT = {"connect": 5, "pool": 5, "first_token": 0.5, "idle": 0.5}
PATIENT = {**SHORT, "first_token": 10}


def error_views(error: BaseException) -> dict[str, object]:
    """Everything that is usually shown of an error, its causes and contexts included."""
    shown: dict[str, object] = {"traceback": "".join(traceback.format_exception(error))}
    number, one = 0, error
    while one is not None and number < 10:
        shown[f"{number} str"] = str(one)
        shown[f"{number} repr"] = repr(one)
        shown[f"{number} args"] = repr(one.args)
        shown[f"{number} vars"] = repr(getattr(one, "__dict__", {}))
        shown[f"{number} notes"] = repr(getattr(one, "__notes__", []))
        number, one = number + 1, one.__cause__ or one.__context__  # type: ignore[assignment]
    shown["pickle"] = pickle.dumps(error)
    return shown


@CLASSES
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_shows_neither_secret_nor_prompt(make: Any, fault: str, plant: Any, loopback: Loopback) -> None:
    loopback.script("bad", [FAULTS[fault]])
    llm = make(**common(plant(loopback, "bad", timeouts=SHORT if fault == "silent" else PATIENT)))
    found = {}
    for way in WAYS:
        with pytest.raises(KarakuriError) as caught:
            ask(llm, way)
        found |= {f"{way}: {name}": leaks(view, MARK) for name, view in error_views(caught.value).items()}
    assert not {name: what for name, what in found.items() if what}


@CLASSES
def test_an_unknown_finish_reason_is_not_repeated(
    make: Any, plant: Any, loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    loopback.script("finish", [_echo_finish])
    llm = make(**common(plant(loopback, "finish")))
    for way in WAYS:
        ask(llm, way)
    assert not leaks(caplog.text)


@CLASSES
def test_a_refused_connection(make: Any, plant: Any, loopback: Loopback) -> None:
    with refusing_port() as port:
        loopback.port, kept = port, loopback.port
        llm = make(**common(plant(loopback, "any")))
        loopback.port = kept
        for way in WAYS:
            with pytest.raises(KarakuriError) as caught:
                ask(llm, way)
            assert not [leaks(view, MARK) for view in error_views(caught.value).values() if leaks(view, MARK)]


@CLASSES
def test_a_proxys_password(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_port() as port:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        llm = make(**common({"base_url": "http://karakuri.invalid/v1", "timeouts": SHORT}))
        for way in WAYS:
            with pytest.raises(KarakuriError) as caught:
                ask(llm, way)
            assert not [leaks(view, MARK) for view in error_views(caught.value).values() if leaks(view, MARK)]


WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "misspelt": {"apikey": KEY},
    "key of another type": {"api_key": [KEY]},
    "key with a line end": {"api_key": KEY + "\n"},
    "key in Japanese": {"api_key": KEY + "鍵"},
    "headers no mapping": {"default_headers": HEADER},
    "header of another type": {"default_headers": {"X-Team-Token": [HEADER]}},
    "header with a line end": {"default_headers": {"X-Team-Token": HEADER + "\r\nX-Evil: 1"}},
    "url without scheme": {"base_url": f"{USER}:{PASSWORD}@host/v1"},
    "url with a query": {"base_url": f"http://host/v1?key={KEY}"},
    "url with a bad port": {"base_url": f"http://{USER}:{quote(PASSWORD, safe='')}@host:port/v1"},
    "url of another type": {"base_url": {KEY: 1}},
    "urls of two users": {"base_url": [f"http://{USER}:a@host/v1", f"http://b:{quote(PASSWORD, safe='')}@host/v1"]},
    "key and url password": {"base_url": f"http://{USER}:{quote(PASSWORD, safe='')}@host/v1", "api_key": KEY},
    "extra_body no mapping": {"extra_body": KEY},
    "timeouts no mapping": {"timeouts": KEY},
}


@CLASSES
@pytest.mark.parametrize("wrong", WRONG_FIELDS)
def test_a_refused_field_is_not_shown(make: Any, wrong: str) -> None:
    with pytest.raises(KarakuriError) as caught:
        make(**common({"base_url": "http://127.0.0.1:9/v1", **WRONG_FIELDS[wrong]}))
    assert not {name: leaks(view) for name, view in error_views(caught.value).items() if leaks(view)}


@CLASSES
def test_the_warning_of_a_key_over_plain_http(make: Any, plant: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Elsewhere:
        port = 80

        def url(self, key: str) -> str:
            return f"http://karakuri.example.com/{key}/v1"

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        fields = plant(Elsewhere(), "any")
        swap = lambda url: url.replace("127.0.0.1", "karakuri.example.com")  # noqa: E731
        urls = fields["base_url"]
        make(**common({**fields, "base_url": swap(urls) if isinstance(urls, str) else [swap(one) for one in urls]}))
    text = caplog.text + "".join(str(one.message) for one in shown)
    assert not leaks(text)


# --- logs of the whole process ---


class Everything(logging.Handler):
    """Keeps every form of every record."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info and record.exc_info[1] else ""
        forms = (record.getMessage(), repr(record.args), repr(record.__dict__), told, str(record.stack_info))
        self.seen.append((record.name, "\n".join(forms)))


@pytest.fixture
def every_log() -> Iterator[Everything]:
    """All loggers at DEBUG, of every library, whether they pass their records on or not; warnings too."""
    handler = Everything()
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    before = [(one, one.level, one.propagate, one.disabled) for one in (logging.root, *loggers)]
    for one in loggers:
        one.setLevel(logging.DEBUG)
        one.propagate, one.disabled = True, False
    logging.root.setLevel(logging.DEBUG)
    logging.root.addHandler(handler)
    logging.captureWarnings(True)
    yield handler
    logging.captureWarnings(False)
    logging.root.removeHandler(handler)
    for one, level, propagate, disabled in before:
        one.setLevel(level)
        one.propagate, one.disabled = propagate, disabled


@CLASSES
def test_no_log_holds_a_secret_or_the_prompt(make: Any, plant: Any, loopback: Loopback, every_log: Everything) -> None:
    loopback.script("good", [lambda request: Reply(COMPLETION.stream("はい。"))])
    for fault, reply in FAULTS.items():
        loopback.script(fault, [reply])
    for name in ("good", *FAULTS):
        llm = make(**common(plant(loopback, name, timeouts=SHORT if name == "silent" else PATIENT)))
        for way in ("invoke", "astream"):
            try:
                ask(llm, way)
            except KarakuriError as error:
                logging.getLogger("an application").exception("it failed: %s", error, exc_info=error)
    loopback.script("twice", [Reply(status=503, framing="length"), lambda request: Reply(COMPLETION.stream("はい。"))])
    ask(make(**common({**plant(loopback, "twice"), "max_retries": 1})), "ainvoke")
    found = [(name, leaks(text, MARK), text[:300]) for name, text in every_log.seen if leaks(text, MARK)]
    assert not found
    assert {name for name, _ in every_log.seen} >= {"asyncio", "urllib3.connectionpool"}, "nothing was logged at all"


# --- traces ---


class Recorder(BaseCallbackHandler):
    """Keeps the repr of all that LangChain's callbacks are told."""

    raise_error = True

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.told.append(("start", repr((args, kwargs))))

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.told.append(("end", repr((args, kwargs))))

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told.append(("error", repr((error_views(error), kwargs))))


class Tracer(BaseTracer):
    """Keeps runs as a tracer would store them."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[str] = []

    def _persist_run(self, run: Any) -> None:
        self.stored.append(repr(run) + run.model_dump_json(fallback=repr))


def test_langchains_traces(plant: Any, loopback: Loopback) -> None:
    loopback.script("good", [lambda request: Reply(COMPLETION.stream("はい。"))])
    loopback.script("bad", [echo(422)])
    recorder, tracer = Recorder(), Tracer()
    config = {"callbacks": [recorder, tracer]}
    for name in ("good", "bad"):
        llm = ChatKarakuri(**common(plant(loopback, name)))
        for way in WAYS:
            with suppress(KarakuriError):
                ask(llm, way, config=config)
    assert {kind for kind, _ in recorder.told} == {"start", "end", "error"}
    assert len(tracer.stored) == 8
    assert not [(kind, leaks(text)) for kind, text in recorder.told if leaks(text)]
    assert not [leaks(text) for text in tracer.stored if leaks(text)]


def test_langchains_event_stream(plant: Any, good: Loopback) -> None:
    llm = ChatKarakuri(**common(plant(good, "good")))

    async def run() -> list[Any]:
        return [event async for event in llm.astream_events(PROMPT)]

    events = asyncio.run(run())
    assert events
    assert not leaks(events)


class Events(BaseEventHandler):
    """Keeps LlamaIndex's events."""

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: Any, **kwargs: Any) -> None:
        EVENTS.append((event.class_name(), repr(event) + event.model_dump_json(fallback=repr)))


class Spans(SimpleSpanHandler):
    """Keeps what LlamaIndex's spans are told."""

    def new_span(self, id_: str, bound_args: Any, instance: Any = None, *args: Any, **kwargs: Any) -> Any:
        EVENTS.append(("span", repr((bound_args, instance, args, kwargs))))
        return super().new_span(id_, bound_args, instance, *args, **kwargs)

    def prepare_to_drop_span(
        self, id_: str, bound_args: Any, instance: Any = None, err: BaseException | None = None, **kwargs: Any
    ) -> SimpleSpan | None:
        EVENTS.append(("dropped span", repr((bound_args, instance, error_views(err) if err else None, kwargs))))
        return super().prepare_to_drop_span(id_, bound_args, instance, err, **kwargs)


EVENTS: list[tuple[str, str]] = []


class Payloads(LlamaIndexHandler):
    """Keeps the payloads of LlamaIndex's callbacks."""

    def __init__(self) -> None:
        super().__init__([], [])

    def on_event_start(self, event_type: Any, payload: Any = None, *args: Any, **kwargs: Any) -> str:
        EVENTS.append(("payload", repr((payload, kwargs))))
        return str(kwargs.get("event_id", ""))

    def on_event_end(self, event_type: Any, payload: Any = None, *args: Any, **kwargs: Any) -> None:
        EVENTS.append(("payload", repr((payload, kwargs))))

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None: ...


@pytest.fixture
def llama_index_events() -> Iterator[list[tuple[str, str]]]:
    dispatcher = get_dispatcher()
    events, spans = Events(), Spans()
    EVENTS.clear()
    dispatcher.add_event_handler(events)
    dispatcher.add_span_handler(spans)
    yield EVENTS
    dispatcher.event_handlers.remove(events)
    dispatcher.span_handlers.remove(spans)


def test_llama_indexs_events(plant: Any, loopback: Loopback, llama_index_events: list[tuple[str, str]]) -> None:
    loopback.script("good", [lambda request: Reply(COMPLETION.stream("はい。"))])
    loopback.script("bad", [echo(422)])
    for name in ("good", "bad"):
        llm = KarakuriLLM(**common(plant(loopback, name)), callback_manager=CallbackManager([Payloads()]))
        for way in WAYS:
            with suppress(KarakuriError):
                ask(llm, way)
    kinds = {kind for kind, _ in llama_index_events}
    assert {"LLMChatStartEvent", "LLMChatEndEvent", "span", "dropped span", "payload"} <= kinds
    assert not [(kind, leaks(text)) for kind, text in llama_index_events if leaks(text)]


# --- and nothing goes elsewhere ---


@CLASSES
@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_another_origin_gets_nothing(make: Any, code: int, plant: Any, loopback: Loopback) -> None:
    with Loopback() as elsewhere:
        site: Any = type("Site", (), {"elsewhere": f"http://127.0.0.1:{elsewhere.port}"})
        loopback.script("moved", redirect(code).make(site))
        llm = make(**common(plant(loopback, "moved")))
        for way in WAYS:
            with pytest.raises(KarakuriError):
                ask(llm, way)
        assert elsewhere.accepted == 0


def test_the_planted_values_differ() -> None:
    assert len(set(PLANTED.values())) == len(PLANTED)
    assert leaks(json.dumps({"a": KEY})) == ["key"]
