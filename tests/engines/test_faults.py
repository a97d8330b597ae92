"""What goes wrong while generating is a prompt, typed error, and the next call works."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import LocalEngine, registry, worker
from karakuri_integrations.errors import (
    DeviceMemoryError,
    EngineClosedError,
    InsufficientMemoryError,
    ModelLoadError,
    NumericalError,
    WorkerError,
)

from .conftest import answer, loaded_model, prompt_of

SECRET = "合言葉は山川"


def failing(model, step: int, act):
    """Make the model's forward pass number `step` (from 0, the prompt's pass included) do `act` with its output."""
    calls = iter(range(10**6))

    def hook(_module, _given, output):
        return act(output) if next(calls) == step else None

    return model.register_forward_hook(hook)


def poisoned(value: float):
    def act(output):
        output.logits[0, -1, 7] = value
        return output

    return act


def raising(make):
    def act(_output):
        raise make()

    return act


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("step", [0, 3])
def test_logits_that_are_no_numbers_end_the_reply_before_their_token(engine, value, temperature, step):
    right = answer(engine)
    hook = failing(loaded_model(engine), step, poisoned(value))
    pieces = []
    with pytest.raises(NumericalError, match="NaN or infinite") as caught:
        for piece in engine.stream(prompt_of(SECRET), Sampling(max_tokens=9, temperature=temperature, seed=1)):
            pieces.append(piece)
    hook.remove()
    assert caught.value.step == step
    assert len(pieces) == step
    assert SECRET not in str(caught.value)
    assert answer(engine) == right


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 8 bytes",
    ],
)
def test_out_of_memory_is_typed_and_keeps_no_tensor_alive(engine, message):
    import torch

    right = answer(engine)
    engine.close()  # with what was kept of that call: it would be given up, and the next one go on
    ghosts = []

    def run_out(_output):
        big = torch.zeros(1000)
        ghosts.append(weakref.ref(big))
        raise (torch.OutOfMemoryError if "CUDA" in message else RuntimeError)(message)

    hook = failing(loaded_model(engine), 2, run_out)
    with pytest.raises(DeviceMemoryError, match="next call works") as caught:
        answer(engine)
    hook.remove()
    gc.collect()
    assert ghosts[0]() is None
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert answer(engine) == right


@pytest.mark.parametrize("kind", [ValueError, KeyError, StopIteration, SystemExit, KeyboardInterrupt, RuntimeError])
def test_any_other_failure_is_a_worker_error_with_its_cause(engine, kind):
    right = answer(engine)
    hook = failing(loaded_model(engine), 2, raising(kind))
    with pytest.raises(WorkerError, match=kind.__name__) as caught:
        answer(engine, SECRET)
    hook.remove()
    assert isinstance(caught.value.__cause__, kind)
    assert SECRET not in str(caught.value)
    assert answer(engine) == right


async def test_failures_reach_async_callers_too(engine):
    right = answer(engine)
    hook = failing(loaded_model(engine), 2, poisoned(float("nan")))
    got = []
    with pytest.raises(NumericalError):
        async for piece in engine.astream(prompt_of(SECRET), Sampling(max_tokens=9)):
            got.append(piece)
    hook.remove()
    assert len(got) == 2
    assert "".join([one.text async for one in engine.astream(prompt_of(), Sampling(max_tokens=12))]) == right


def test_a_worker_that_dies_is_noticed_and_replaced(engine, monkeypatch):
    right = answer(engine)

    def die(*_):
        raise RuntimeError("bug")

    monkeypatch.setattr(worker.Worker, "_begin", die)
    with pytest.raises(WorkerError):
        answer(engine)
    monkeypatch.undo()
    assert answer(engine) == right


def test_a_worker_that_vanishes_without_a_word_is_noticed(engine, monkeypatch):
    right = answer(engine)
    monkeypatch.setattr(worker.Worker, "_guarded", lambda *_: sys.exit())
    monkeypatch.setattr(worker.Worker, "_end_all", lambda *_: None)
    began = time.monotonic()
    with pytest.raises(WorkerError, match="ended without"):
        answer(engine)
    assert time.monotonic() - began < 10
    monkeypatch.undo()
    assert answer(engine) == right


def test_a_load_that_fails_fails_all_who_wait_for_it_and_is_tried_again(checkpoint, monkeypatch):
    engine = LocalEngine(checkpoint, device="cpu", quantization="fp16")
    tries, errors = [], []
    release = threading.Event()

    def fail(*_):
        tries.append(1)
        release.wait(10)
        raise InsufficientMemoryError("needs 80 GiB and 2 are free")

    monkeypatch.setattr(registry, "load", fail)

    def call() -> None:
        try:
            answer(engine)
        except ModelLoadError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for one in threads:
        one.start()
    queue = engine._shared
    wait_until(lambda: queue._worker is not None and len(queue._worker._jobs) == 7)
    release.set()
    for one in threads:
        one.join(10)
    assert tries == [1]
    assert [type(one) for one in errors] == [InsufficientMemoryError] * 8
    assert len({id(one) for one in errors}) == 8
    monkeypatch.undo()
    assert len(answer(engine)) > 0
    engine.close()


def wait_until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_close_ends_running_and_waiting_calls_promptly(checkpoint):
    engine = LocalEngine(checkpoint, device="cpu", max_batch=3)
    answer(engine)
    errors = []

    def call() -> None:
        try:
            list(engine.stream(prompt_of(), Sampling(max_tokens=3000)))
        except EngineClosedError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for one in threads:
        one.start()
    wait_until(lambda: len(engine._shared._worker._running) == 3 and len(engine._shared._worker._jobs) == 1)
    began = time.monotonic()
    engine.close()
    for one in threads:
        one.join(5)
    assert time.monotonic() - began < 5
    assert len(errors) == 4
    assert len(answer(engine)) > 0


def test_close_during_a_load_does_not_wait_for_it(checkpoint, monkeypatch):
    engine = LocalEngine(checkpoint, device="cpu", quantization="fp32")
    engine.close()
    loading, release = threading.Event(), threading.Event()
    load = registry.load

    def slow(*given):
        loading.set()
        release.wait(20)
        return load(*given)

    monkeypatch.setattr(registry, "load", slow)
    monkeypatch.setattr(registry, "_CLOSE_WAIT", 0.05)
    errors = []

    def call() -> None:
        try:
            answer(engine)
        except EngineClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert loading.wait(20)
    engine.close()
    thread.join(5)
    assert len(errors) == 1
    release.set()
    assert len(answer(engine)) > 0  # by a new worker, after the old one let its model go
    engine.close()


# Processes


def run(code: str, *arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        **settings,
    )


PRELUDE = """
import os, sys, time
from karakuri_integrations.conversation import Control, Prompt, Sampling
from karakuri_integrations.engines import LocalEngine
engine = LocalEngine(sys.argv[1], device="cpu", quantization="bf16")
prompt = Prompt((Control("<s>"), "[INST] hello [/INST]"))
def ask(n=4):
    return "".join(piece.text for piece in engine.stream(prompt, Sampling(max_tokens=n)))
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
def test_a_loaded_model_in_a_forked_child_is_a_typed_error_at_once(checkpoint):
    done = run(
        PRELUDE
        + textwrap.dedent("""
        from karakuri_integrations.errors import ForkedProcessError
        import asyncio
        ask()
        other = LocalEngine(sys.argv[1], device="cpu", quantization="fp32")
        open_stream = engine.stream(prompt, Sampling(max_tokens=3000)); next(open_stream)
        pid = os.fork()
        if pid == 0:
            began = time.monotonic()
            async def aask():
                return [one async for one in engine.astream(prompt, Sampling(max_tokens=4))]
            for call in (ask, lambda: asyncio.run(aask()), engine.report, lambda: [*other.stream(prompt, Sampling())]):
                try:
                    call()
                except ForkedProcessError:
                    continue
                os._exit(3)
            try:
                list(open_stream)
            except ForkedProcessError:
                os._exit(0 if time.monotonic() - began < 5 else 4)
            os._exit(5)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        open_stream.close()
        assert ask() == ask()
        sys.exit(status)
        """),
        str(checkpoint),
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


@needs_fork
def test_an_engine_that_was_not_used_before_the_fork_works_in_the_child(checkpoint):
    done = run(
        PRELUDE
        + textwrap.dedent("""
        assert engine.count_tokens(prompt) > 2
        pid = os.fork()
        if pid == 0:
            os._exit(0 if ask() else 3)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """),
        str(checkpoint),
    )
    assert done.returncode == 0, done.stderr


def test_the_interpreter_ends_quickly_and_quietly_with_an_open_stream(checkpoint):
    done = run(
        # What is registered first runs last: after the engine's own end, and before torch is torn down.
        "import atexit, time; atexit.register(lambda: print(time.monotonic() - ended))"
        + PRELUDE
        + textwrap.dedent("""
        import asyncio
        pieces = engine.stream(prompt, Sampling(max_tokens=3000)); next(pieces)
        loop = asyncio.new_event_loop()
        other = LocalEngine(sys.argv[1], device="cpu", quantization="fp32")
        kept = other.astream(prompt, Sampling(max_tokens=3000))
        loop.run_until_complete(anext(kept))
        ended = time.monotonic()
        """),
        str(checkpoint),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "FATAL" not in done.stderr
    assert float(done.stdout) < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_that_streams(checkpoint, number):
    code = PRELUDE + textwrap.dedent("""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
        print("ready", ask(2) is not None, flush=True)
        try:
            while True:
                for piece in engine.stream(prompt, Sampling(max_tokens=3000)):
                    pass
        except KeyboardInterrupt:
            print("stopped", flush=True)
            sys.exit(0 if ask() else 3)  # Ctrl-C ends the answer, and the next one comes
        """)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(checkpoint)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("ready")
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(number)
        process.stdout.readline()  # "stopped", or the end
        assert time.monotonic() - began < 5
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == (-signal.SIGTERM if number == signal.SIGTERM else 0), stderr
    assert "Traceback" not in stderr
