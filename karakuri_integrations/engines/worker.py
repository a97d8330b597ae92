"""One worker thread per loaded model: a first-in first-out queue of jobs, loading, failures, shutdown.

Knows no torch. All compute of a model, its loading too, runs in this one persistent thread (a fresh thread per call
costs three times as much per token). Jobs join the loaded model's batch between two of its steps, as long as it has
room. A job that fails fails alone; the worker goes on.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from ..errors import BusyError, EngineClosedError, EngineError, ForkedProcessError, ModelLoadError
from .channel import Channel, copied

__all__ = ["Job", "Worker", "refuse_fork"]

LoadedT = TypeVar("LoadedT", bound="Loaded")
LoadedT_contra = TypeVar("LoadedT_contra", contravariant=True)

_EXIT_WAIT = 3.0  # seconds that the end of the interpreter waits for the step that runs

_computing_pid: int | None = None  # the process in which a worker was started
_workers: weakref.WeakSet[Worker[Any]] = weakref.WeakSet()


class Job(Protocol[LoadedT_contra]):
    """One unit of work on the loaded model."""

    @property
    def channel(self) -> Channel: ...

    def run(self, loaded: LoadedT_contra) -> None:
        """Do the work, or begin it: `loaded.active` then has this job, and its steps do the work."""
        ...

    def fits(self, loaded: LoadedT_contra) -> bool:
        """Whether it can be run now, beside those that are."""
        ...


class Loaded(Protocol):
    """A loaded model and the jobs that it is doing."""

    @property
    def active(self) -> Sequence[Any]:
        """The jobs that have not ended."""
        ...

    def step(self) -> None:
        """Go on with all of them: pieces and ends into their channels; those that are cancelled end."""
        ...

    def drop(self) -> Sequence[Any]:
        """Forget the jobs that shared a step that failed, and give them back; others stay active and begin anew."""
        ...


class Worker(Generic[LoadedT]):
    """Runs jobs in its own thread, in their order. The model is loaded for the first job and freed at the end.

    Args:
        load: makes the loaded model, for the job that is given; called in the thread.
        translate: the error to raise for an exception of a job, and what cleans up after it; it takes the frames of
            this thread from the exception, so that who keeps the error does not keep the model.
        after: a worker that must have ended before this one loads.
    """

    def __init__(
        self,
        load: Callable[[Job[LoadedT]], LoadedT],
        translate: Callable[[BaseException], tuple[EngineError, Callable[[], None]]],
        after: Worker[LoadedT] | None = None,
    ) -> None:
        global _computing_pid
        refuse_fork()
        self._load, self._translate = load, translate
        self._after = after if after is not None and after.alive() else None
        self._jobs: deque[Job[LoadedT]] = deque()
        self._running: list[Job[LoadedT]] = []
        self._changed = threading.Condition()
        self._closing = False
        _computing_pid = os.getpid()
        # A daemon: an open stream must not keep the interpreter from ending; `_at_exit` ends it in order.
        self._thread = threading.Thread(target=self._run, name="karakuri-engine", daemon=True)
        _workers.add(self)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._jobs)

    def alive(self) -> bool:
        """Whether the thread runs.

        Raises:
            ForkedProcessError: it runs in the parent of this process.
        """
        refuse_fork()
        return self._thread.is_alive()

    @property
    def closing(self) -> bool:
        return self._closing

    def submit(self, job: Job[LoadedT], max_queue: int, max_batch: int = 1) -> None:
        """Queue a job. What counts is how many there are, not how many of them happen to run already.

        Raises:
            BusyError: as many as may run at once, and `max_queue` more, are there already.
            EngineClosedError: the worker is closing.
        """
        with self._changed:
            if self._closing:
                raise _closed()
            self._jobs = deque(one for one in self._jobs if not one.channel.cancelled)
            others = len(self._jobs) + sum(not (one.channel.ended or one.channel.cancelled) for one in self._running)
            if others >= max_batch + max_queue:
                raise BusyError(
                    f"{others} calls are made by this model or wait for it already (max_batch={max_batch} at once, "
                    f"max_queue={max_queue} more); make fewer at a time (in LangChain max_concurrency of the config), "
                    "try again later, or pass engine=LocalEngine(..., max_queue=...) with a larger number"
                )
            self._jobs.append(job)
            self._changed.notify()

    def close(self, wait: float) -> None:
        """End every call now, and the thread as soon as its step is done; wait for that up to `wait` seconds."""
        self._end_all(_closed())
        if threading.current_thread() is not self._thread:
            self._thread.join(wait)

    def _end_all(self, failure: EngineError) -> None:
        """Take no more calls, and end those that run or wait with copies of one error."""
        with self._changed:
            self._closing = True
            waiting = [*self._running, *self._jobs]
            self._jobs.clear()
            self._changed.notify_all()
        for job in waiting:
            job.channel.put(copied(failure))
            job.channel.cancel()

    def _run(self) -> None:
        try:
            if self._after is not None:
                self._after._thread.join()
                self._after = None
            self._serve_all()
        except BaseException as error:  # noqa: BLE001  # whatever ends this thread, nobody may wait for it
            self._end_all(self._translate(error)[0])

    def _serve_all(self) -> None:
        loaded: list[LoadedT] = []  # a list, so that nothing else holds the model when it is cleared
        while not self._closing:
            while (job := self._next(loaded)) is not None:
                self._guarded(lambda job=job: self._begin(job, loaded), loaded, job)  # type: ignore[misc]
                del job
            if loaded and loaded[0].active:
                self._guarded(loaded[0].step, loaded)
            with self._changed:
                self._running = [*loaded[0].active] if loaded else []

    def _next(self, loaded: list[LoadedT]) -> Job[LoadedT] | None:
        """The next job that somebody waits for and that fits; waits for one where nothing else is to be done."""
        with self._changed:
            while not self._closing:
                while self._jobs and self._jobs[0].channel.cancelled:
                    self._jobs.popleft()
                if self._jobs and (not loaded or self._jobs[0].fits(loaded[0])):
                    self._running.append(self._jobs[0])
                    return self._jobs.popleft()
                if loaded and loaded[0].active:
                    return None
                self._running = []
                self._changed.wait()
            return None

    def _begin(self, job: Job[LoadedT], loaded: list[LoadedT]) -> None:
        if not loaded:
            loaded.append(self._load(job))
        if not job.channel.cancelled:
            job.run(loaded[0])

    def _guarded(self, work: Callable[[], None], loaded: list[LoadedT], job: Job[LoadedT] | None = None) -> None:
        """What fails goes to those whom it concerns: the job that was beginning, or all that shared the step."""
        failure, clean = None, None
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # it goes to the consumers
            failure, clean = self._translate(error)
        if failure is None or clean is None:
            return
        concerned = [job] if job is not None else loaded[0].drop()
        clean()
        if isinstance(failure, ModelLoadError):
            self._fail_waiting(failure)
        for one in concerned:
            one.channel.put(copied(failure))

    def _fail_waiting(self, failure: EngineError) -> None:
        """Those who wait for the same load get the same answer, each a copy of its own."""
        with self._changed:
            waiting, self._jobs = self._jobs, deque()
        for job in waiting:
            job.channel.put(copied(failure))


def refuse_fork() -> None:
    """Raise in a child of a process that has computed: its threads are gone, and compute would hang."""
    if _computing_pid not in (None, os.getpid()):
        raise ForkedProcessError(
            "a local model was used in the parent process before fork(), and it cannot be used in the child; start "
            'processes with multiprocessing.get_context("spawn"), or use the model only after the fork'
        )


def _closed() -> EngineClosedError:
    return EngineClosedError("close() ended this call; call again to load the model again")


def _at_exit() -> None:
    """A thread that is inside native code when the interpreter ends can abort the process; let the step end first."""
    if _computing_pid == os.getpid():
        end = time.monotonic() + _EXIT_WAIT
        for worker in list(_workers):
            worker.close(0)
        for worker in list(_workers):
            worker.close(max(0.0, end - time.monotonic()))


atexit.register(_at_exit)
