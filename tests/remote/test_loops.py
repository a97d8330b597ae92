"""Event loops, threads, fork, cancelling and the pool: on one object every answer is its own, and nothing stays open."""

import asyncio
import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from loopback import Exchange, Loopback, Reply
from numbered import Question, answer, verdict

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from llama_index.core.llms import ChatMessage

from karakuri_integrations.errors import KarakuriError, StreamInterruptedError
from karakuri_integrations.langchain import ChatKarakuri
from karakuri_integrations.llama_index import KarakuriLLM

PROMPT_CLOSE = 0.25


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(answer) as running:
        yield running


def fields(server: Loopback, **more: Any) -> dict[str, Any]:
    return {
        "model": "karakuri-ai/karakuri-lm-70b-chat-v0.1",
        "base_url": server.url("any"),
        "server": "vllm",
        "api_key": "sk-test",
        "max_tokens": 500,
        **more,
    }


class LangChain:
    """One ChatKarakuri, asked by Question."""

    name = "ChatKarakuri"

    def __init__(self, server: Loopback, **more: Any) -> None:
        self.llm = ChatKarakuri(**fields(server, **more))

    def ask(self, question: Question) -> str:
        return str(self.llm.invoke(question.prompt).content)

    async def aask(self, question: Question) -> str:
        return str((await self.llm.ainvoke(question.prompt)).content)

    def opened(self, question: Question) -> Any:
        return self.llm.stream(question.prompt)

    async def aopened(self, question: Question) -> Any:
        return self.llm.astream(question.prompt)

    @staticmethod
    def text(item: Any) -> str:
        return str(item.content)


class LlamaIndex:
    """As LangChain, for KarakuriLLM."""

    name = "KarakuriLLM"

    def __init__(self, server: Loopback, **more: Any) -> None:
        self.llm = KarakuriLLM(**fields(server, **more))

    def ask(self, question: Question) -> str:
        return str(self.llm.chat([ChatMessage(question.prompt)]).message.content)

    async def aask(self, question: Question) -> str:
        return str((await self.llm.achat([ChatMessage(question.prompt)])).message.content)

    def opened(self, question: Question) -> Any:
        return self.llm.stream_chat([ChatMessage(question.prompt)])

    async def aopened(self, question: Question) -> Any:
        return await self.llm.astream_chat([ChatMessage(question.prompt)])

    @staticmethod
    def text(item: Any) -> str:
        return item.delta or ""


BOTH = pytest.mark.parametrize("make", [LangChain, LlamaIndex], ids=lambda one: one.name)
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio reports what was forgotten (unclosed sessions, errors in tasks) only in its log."""
    yield
    gc.collect()
    said = [record.getMessage() for record in caplog.records if record.name in ("asyncio", "aiohttp")]
    assert not said, said


# --- loops and threads ---


@BOTH
def test_event_loops_one_after_another(make: Make, server: Loopback) -> None:
    model = make(server)
    for number in range(4):
        question = Question(f"loop{number}", 5)
        assert asyncio.run(model.aask(question)) == question.text()


@BOTH
def test_event_loops_in_eight_threads(make: Make, server: Loopback) -> None:
    model = make(server)

    def ten(thread: int) -> list[str]:
        wrong = []
        for number in range(10):
            question = Question(f"t{thread}n{number}", 5)
            got = asyncio.run(asyncio.wait_for(model.aask(question), 30))
            wrong += [] if got == question.text() else [got]
        return wrong

    with ThreadPoolExecutor(8) as threads:
        assert [one for found in threads.map(ten, range(8)) for one in found] == []
    assert len(server.exchanges()) == 80


@BOTH
def test_loops_leave_no_sockets(make: Make, server: Loopback) -> None:
    model = make(server)
    for number in range(5):
        asyncio.run(model.aask(Question(f"s{number}", 3)))
    assert until(lambda: server.open() == 0), f"{server.open()} connections of closed loops stand open"


@BOTH
def test_sync_threads_on_one_object(make: Make, server: Loopback) -> None:
    model = make(server)
    questions = [Question(f"sync{number}", 7) for number in range(64)]
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(model.ask, questions)) == [question.text() for question in questions]


@BOTH
def test_connections_are_used_again(make: Make, server: Loopback) -> None:
    model = make(server)
    for number in range(5):
        model.ask(Question(f"again{number}", 3))
    assert server.accepted == 1

    async def five() -> None:
        for number in range(5):
            await model.aask(Question(f"aagain{number}", 3))

    asyncio.run(five())
    assert server.accepted == 2


@BOTH
def test_a_connection_that_the_server_closed_while_idle(make: Make, server: Loopback) -> None:
    model = make(server)

    async def twice() -> list[str]:
        first = await model.aask(Question("idle1", 3))
        server.drop()
        await asyncio.sleep(0.1)
        return [first, await model.aask(Question("idle2", 3))]

    assert asyncio.run(twice()) == [Question("idle1", 3).text(), Question("idle2", 3).text()]
    assert model.ask(Question("idle3", 3)) == Question("idle3", 3).text()
    server.drop()
    time.sleep(0.1)
    assert model.ask(Question("idle4", 3)) == Question("idle4", 3).text()


# --- fork ---

_FORK = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[1])
from loopback import LoopbackProcess
from numbered import Question, answer

def both(model, who):
    for number in range(15):
        question = Question(f"{who}{number}", 5)
        assert model.ask(question) == question.text(), "a wrong answer"
        question = Question(f"{who}a{number}", 5)
        assert asyncio.run(model.aask(question)) == question.text(), "a wrong answer"

def main():
    import test_loops as tools  # not at the top: the server's process reads this file too

    with LoopbackProcess(answer) as server:
        for make in (tools.LangChain, tools.LlamaIndex):
            model = make(server)
            both(model, make.name + "before")
            open_stream = iter(model.opened(Question(make.name + "open", 200, 0.005)))
            first = make.text(next(open_stream))
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(60)
                    both(model, make.name + "child")
                    code = 0
                finally:
                    os._exit(code)
            both(model, make.name + "parent")
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"
            rest = [make.text(item) for item in open_stream]
            assert "".join([first, *rest]) == Question(make.name + "open", 200).text(), "the parent's open stream"
            both(model, make.name + "after")
    print("right")

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_after_use(tmp_path: Path) -> None:
    script = tmp_path / "forked.py"
    script.write_text(_FORK, encoding="utf-8")
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr


# --- closing and cancelling ---


def until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def endless(name: str) -> Question:
    return Question(name, 100_000, 0.01)


def closed_after(server: Loopback, since: float) -> float:
    """Seconds until the server saw the connection close."""
    exchange: Exchange = server.exchanges()[-1]
    assert until(lambda: exchange.closed_at is not None), "the server never saw the connection close"
    assert exchange.closed_at is not None
    return exchange.closed_at - since


@BOTH
def test_breaking_out_of_a_sync_stream(make: Make, server: Loopback) -> None:
    model = make(server)
    for number, _ in enumerate(model.opened(endless("break"))):
        if number == 3:
            break
    assert closed_after(server, time.monotonic()) <= PROMPT_CLOSE


@BOTH
def test_closing_a_sync_stream_that_is_kept(make: Make, server: Loopback) -> None:
    items = make(server).opened(endless("close"))
    next(items)
    items.close()
    assert closed_after(server, time.monotonic()) <= PROMPT_CLOSE


@BOTH
def test_aclose(make: Make, server: Loopback) -> None:
    async def run() -> float:
        items = await make(server).aopened(endless("aclose"))
        await anext(items)
        await items.aclose()
        return time.monotonic()

    async def both() -> float:
        since = await run()
        return await asyncio.to_thread(closed_after, server, since)

    assert asyncio.run(both()) <= PROMPT_CLOSE


@BOTH
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "stream"])
def test_cancelling_a_task(make: Make, whole: bool, server: Loopback) -> None:
    async def consume(model: Any) -> None:
        if whole:
            await model.aask(endless("cancel"))
        async for _ in await model.aopened(endless("cancel")):
            pass

    async def run() -> float:
        task = asyncio.create_task(consume(make(server)))
        await asyncio.sleep(0.2)
        since = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.to_thread(closed_after, server, since)

    assert asyncio.run(run()) <= PROMPT_CLOSE


@BOTH
def test_cancelling_before_the_first_token(make: Make, server: Loopback) -> None:
    server.script("silent", [Reply(framing="raw", end="stall")])
    model = make(server, base_url=server.url("silent"))

    async def run() -> float:
        task = asyncio.create_task(model.aask(Question("silent")))
        await asyncio.sleep(0.2)
        since = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.to_thread(closed_after, server, since)

    assert asyncio.run(run()) <= PROMPT_CLOSE


@BOTH
def test_cancelling_between_two_tries(make: Make, server: Loopback) -> None:
    server.script("busy", [Reply([b""], status=429, headers=(("Retry-After", "60"),), framing="length")])
    model = make(server, base_url=server.url("busy"))

    async def run() -> None:
        task = asyncio.create_task(model.aask(Question("busy")))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 2


@BOTH
def test_two_hundred_cancels_at_seeded_moments(make: Make, server: Loopback) -> None:
    """Not one cancel is swallowed, wherever it falls."""
    model, chance = make(server), random.Random(52)

    async def consume(question: Question) -> None:
        async for _ in await model.aopened(question):
            pass

    async def one(number: int) -> bool:
        task = asyncio.create_task(consume(endless(f"seeded{number}")))
        await asyncio.sleep(chance.random() * 0.3)
        task.cancel()
        try:
            async with asyncio.timeout(PROMPT_CLOSE * 4):
                await task
        except asyncio.CancelledError:
            return True
        return False

    async def run() -> int:
        cancelled = 0
        for start in range(0, 200, 20):
            cancelled += sum(await asyncio.gather(*(one(number) for number in range(start, start + 20))))
        return cancelled

    assert asyncio.run(run()) == 200
    assert until(lambda: server.open() == 0)


@BOTH
@pytest.mark.slow
def test_a_thousand_cancels_on_a_pool_of_ten(make: Make, server: Loopback) -> None:
    """The pool loses no place: afterwards, and in between, every answer comes and is its own."""
    import aiohttp

    chance, wrong = random.Random(1000), []

    async def cancelled(model: Any, number: int) -> None:
        task = asyncio.create_task(model.aask(Question(f"c{number}", 1000, 0.002)))
        await asyncio.sleep(chance.random() * 0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def answered(model: Any, number: int) -> None:
        question = Question(f"r{number}", 3)
        async with asyncio.timeout(30):
            got = await model.aask(question)
        if got != question.text():
            wrong.append((question.text(), got))

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=10)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            model = make(server, http_async_client=session)
            for start in range(0, 1000, 40):
                numbers = range(start, start + 40)
                await asyncio.gather(*(cancelled(model, number) for number in numbers), answered(model, start))
            await asyncio.gather(*(answered(model, 10_000 + number) for number in range(40)))

    asyncio.run(asyncio.wait_for(run(), 240))
    assert not wrong
    assert until(lambda: server.open() == 0)
    late = [one for one in server.exchanges() if one.closed_at is None and one.ended_at is None]
    assert not late, f"{len(late)} requests are still answered"


@BOTH
def test_a_pool_of_one_is_waited_for(make: Make, server: Loopback) -> None:
    import aiohttp

    async def run() -> BaseException | None:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            model = make(server, http_async_client=session, timeouts={"pool": 0.3, "connect": 5})
            items = await model.aopened(endless("holds"))
            await anext(items)
            try:
                await asyncio.wait_for(model.aask(Question("waits", 3)), 10)
            except KarakuriError as error:
                return error
            finally:
                await items.aclose()
        return None

    error: Any = asyncio.run(run())
    assert type(error).__name__ == "RemoteTimeoutError"
    assert error.stage == "pool"


# --- what had arrived is never lost ---


async def slowly(items: Any, text: Callable[[Any], str], chunks: list[str]) -> None:
    async for item in items:
        chunks.append(text(item))
        await asyncio.sleep(0.02)


@BOTH
@pytest.mark.parametrize("fault", ["drop", "reset", "error event", "broken JSON", "no finish", "late reset", ""])
def test_a_slow_reader_gets_all_that_arrived(make: Make, fault: str, server: Loopback) -> None:
    """The connection is long gone when the reader comes to what stood in front of it."""
    question = Question(f"slow {fault}", 30, 0.004, fault, 20)
    model = make(server)

    async def run() -> tuple[list[str], BaseException | None]:
        chunks: list[str] = []
        try:
            await slowly(await model.aopened(question), model.text, chunks)
        except KarakuriError as error:
            return chunks, error
        return chunks, None

    assert verdict(question, *asyncio.run(run())) == ""
    question = Question(f"sync slow {fault}", 30, 0.004, fault, 20)
    chunks: list[str] = []
    failed: BaseException | None = None
    try:
        for item in model.opened(question):
            chunks.append(model.text(item))
            time.sleep(0.02)
    except KarakuriError as error:
        failed = error
    assert verdict(question, chunks, failed) == ""


@BOTH
def test_one_delta_per_event(make: Make, server: Loopback) -> None:
    question = Question("deltas", 20)
    model = make(server)
    chunks = [model.text(item) for item in model.opened(question)]
    assert [one for one in chunks if one] == [question.piece(number) for number in range(20)]


@BOTH
def test_a_slow_reader_is_no_idle_server(make: Make, server: Loopback) -> None:
    """The caller's own time does not count against the server's limits."""
    question = Question("unhurried", 6)
    model = make(server, timeouts={"idle": 0.2, "first_token": 5})
    chunks = []
    for item in model.opened(question):
        chunks.append(model.text(item))
        time.sleep(0.3)
    assert "".join(chunks) == question.text()

    async def run() -> str:
        got = []
        async for item in await model.aopened(Question("unhurried", 6)):
            got.append(model.text(item))
            await asyncio.sleep(0.3)
        return "".join(got)

    assert asyncio.run(run()) == question.text()


@BOTH
def test_a_drop_is_told_at_once(make: Make, server: Loopback) -> None:
    waits = []
    model = make(server)
    for number in range(20):
        question = Question(f"told{number}", 30, fault="drop", after=10)
        with pytest.raises(StreamInterruptedError):
            for _ in model.opened(question):
                pass
        now = time.monotonic()
        exchange = server.exchanges()[-1]
        assert exchange.ended_at is not None
        waits.append(now - exchange.ended_at)
    assert sorted(waits)[-1] <= PROMPT_CLOSE


@BOTH
@pytest.mark.parametrize("fault", ["", "stall", "drop", "reset", "dead"])
def test_memory_of_the_loops_is_given_back(make: Make, fault: str, server: Loopback) -> None:
    """Closed loops, their sessions and their tasks are not kept, however the last stream on them ended."""
    import weakref

    model, loops = make(server, timeouts={"idle": 0.2, "first_token": 5}, max_retries=0), []

    async def one(number: int) -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        with nullcontext() if fault == "" else pytest.raises(KarakuriError):
            await model.aask(Question(f"m{number}{fault}", 3, fault=fault, after=2))

    for number in range(6):
        asyncio.run(one(number))
    gc.collect()
    assert sum(ref() is not None for ref in loops) <= 1


@BOTH
def test_no_threads_are_left(make: Make, server: Loopback) -> None:
    before = threading.active_count()
    model = make(server)
    model.ask(Question("threads", 3))
    asyncio.run(model.aask(Question("athreads", 3)))
    assert threading.active_count() <= before


# --- the end of the process ---

_EXIT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from loopback import LoopbackProcess
from numbered import Question, answer

def sync(models):
    globals()["kept"] = streams = [iter(model.opened(Question(model.name, 100_000, 0.01))) for model in models]
    for stream in streams:
        next(stream)

async def aopen(models):
    globals()["akept"] = streams = [await model.aopened(Question("a" + model.name, 100_000, 0.01)) for model in models]
    for stream in streams:
        await anext(stream)

if __name__ == "__main__":
    import test_loops as tools  # not at the top: the server's process reads this file too

    server = LoopbackProcess(answer).__enter__()
    models = [tools.LangChain(server), tools.LlamaIndex(server)]
    sync(models) if sys.argv[2] == "sync" else asyncio.run(aopen(models))
    print("leaving", flush=True)
"""


@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_interpreter_ends_with_open_streams(way: str, tmp_path: Path) -> None:
    script = tmp_path / "leaving.py"
    script.write_text(_EXIT, encoding="utf-8")
    command = [sys.executable, str(script), str(Path(__file__).parent), way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "leaving", "")


@BOTH
def test_the_event_loop_knows_only_the_stream_that_the_caller_holds(make: Make, server: Loopback) -> None:
    """It closes all that it knows at once, in no order; of two that lie in each other it would report an error."""

    async def run() -> list[Any]:
        model, known = make(server), []
        await model.aask(Question("first", 2))  # what is kept for the loop is opened
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=known.append)
        try:
            stream = await model.aopened(endless("known"))
            await anext(stream)
        finally:
            sys.set_asyncgen_hooks(*hooks)
        await stream.aclose()
        return [one is stream for one in known]

    assert asyncio.run(run()) == [True]


def test_the_shapes_are_the_completion_routes(server: Loopback) -> None:
    LangChain(server).ask(Question("route", 2))
    sent = server.exchanges()[0].request
    assert sent.path.endswith("/v1/completions")
    assert sent.json["stream"] is True
    assert sent.headers["authorization"] == "Bearer sk-test"


@BOTH
def test_a_call_makes_one_engine_and_few_for_what_is_shown_of_it(
    make: Make, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one reads addresses and headers; at 50 tokens a reply it would cost more than the tokens."""
    from karakuri_integrations import provider

    model, made, open_engine = make(server), [], provider.open_engine
    monkeypatch.setattr(provider, "open_engine", lambda fields: made.append(fields) or open_engine(fields))
    model.ask(Question("engines", 2))
    assert 1 <= len(made) <= 3  # for the call; for LangChain's parameters and tracing, for LlamaIndex's payload
