"""A model of 70 billion parameters in its true shape: 1, 8 and 24 replies at once, after short and long prompts.

Beside it `generate` on the same weights, and the ceiling: the bytes that a token reads, at the speed at which the
device copies. Every round is written down when it ends, so that a run that is cut off can go on. What of it fits is
`fitting`'s, the weights are `random_model`'s, what is written down and shown is `book`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from ..conversation import Prompt
from ..engines import LocalEngine
from ..engines.channel import Channel, Deadline
from ..engines.checkpoint import Checkpoint, source_of
from ..engines.generating import translate
from ..engines.loading import import_torch
from ..engines.precision import precision_of
from ..errors import DeviceMemoryError, EngineError, ModelLoadError, OptionError
from .book import Book
from .cells import GENERATE, Cell, Record, missed
from .fitting import CHUNK, Fit, fit_of
from .machine import copy_rate, describe, read_bytes
from .measures import OURS
from .plain_generate import PlainGenerate
from .profiling import profiled
from .random_model import FORMS, make_model
from .subject import Answer, Effort, Run, Subject, alternate, ask, in_threads, questions
from .synthetic import make_outline

if TYPE_CHECKING:
    from ..engines.batching import Batch

__all__ = ["BATCHES", "CONTEXTS", "Request", "measure"]

BATCHES: Final = (1, 8, 24)
CONTEXTS: Final = (256, 4000)
_GIB: Final = 2**30
_TRIES: Final = 3  # on a busy machine a reader may sleep while its whole reply is made


@dataclass(frozen=True)
class Request:
    """What is to be measured. `book`: the file that is written after each round; `resume`: go on with what it holds."""

    size: str
    layers: int | None
    quantization: str
    device: str
    book: Path | None
    resume: bool
    cuda_graphs: bool = False


def measure(request: Request, effort: Effort, folder: Path) -> Book:
    """All cells that fit.

    Raises:
        OptionError: an option that does not go with this measurement, or a file of another one to go on with.
        InsufficientMemoryError: nothing of it fits.
    """
    import_torch()
    device, precision = _device(request.device), precision_of(request.quantization)
    if precision.name not in FORMS:
        raise OptionError(f"--quantization must be one of {', '.join(FORMS)} with this size, got {precision.name!r}")
    outline = make_outline(request.size, folder, request.layers)
    checkpoint = Checkpoint(source_of(str(outline)))
    _check_tokens(checkpoint, effort)
    if request.cuda_graphs and device.type != "cuda":
        raise OptionError(f"--cuda-graphs is for a GPU, and the device is {device}; leave it out")
    cells = [Cell(batch, context) for context in CONTEXTS for batch in BATCHES]
    fit = fit_of(checkpoint, precision, device, effort.tokens, cells)
    book = Book.opened(request.book, _about(checkpoint, request, effort, device), request.resume)
    _say_fit(fit, cells, effort)
    effort.say("how fast the device copies")
    book.copied = book.copied or [copy_rate(device) for _ in range(effort.rounds + 1)]
    _release(device)
    subject = Subject(str(outline), None, request.quantization, str(device))
    subject.shared.loader = lambda one, form, place, _: make_model(one, form, place, effort.say)
    try:
        bench = _Bench(subject, effort, fit, device, request)
        book.weights, book.per_token = subject.look(lambda batch: read_bytes(batch.model)), fit.per_token
        for cell in cells:
            bench.measure(book, cell)
    finally:
        subject.close()
    return book


def _device(name: str) -> Any:
    import torch

    cards = torch.cuda.is_available()
    if name in ("balanced", "offload"):
        raise OptionError(f"--device {name} spreads a model; this measurement is of one device: auto, cpu or cuda:1")
    if name == "cpu" or (name == "auto" and not cards):
        return torch.device("cpu")
    if not cards:
        raise ModelLoadError(f"device={name!r}: torch sees no CUDA device; pass --device cpu or install a CUDA torch")
    return torch.device("cuda:0" if name in ("auto", "cuda") else name)


def _release(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


def _check_tokens(checkpoint: Checkpoint, effort: Effort) -> None:
    room = int(checkpoint.config["max_position_embeddings"]) - max(CONTEXTS)
    if not 2 <= effort.tokens <= room:
        raise OptionError(f"--tokens must be 2 to {room} with this size, got {effort.tokens}")


def _about(checkpoint: Checkpoint, request: Request, effort: Effort, device: Any) -> dict[str, Any]:
    config = checkpoint.config
    return {
        "model": checkpoint.source.name,
        "quantization": request.quantization,
        "layers": config["num_hidden_layers"],
        "tokens": effort.tokens,
        **({"cuda_graphs": True} if request.cuda_graphs else {}),
        **describe(device),
        **{name: metadata.version(name) for name in ("transformers", "bitsandbytes")},
    }


def _say_fit(fit: Fit, cells: list[Cell], effort: Effort) -> None:
    effort.say(
        f"{fit.name}: {fit.needed.weights / _GIB:.1f} GiB of weights, {fit.free / _GIB:.1f} GiB free on {fit.device}"
    )
    for cell in cells:
        for name in (OURS, GENERATE):
            if why := fit.why_not(cell, name):
                effort.say(f"{cell.batch} at once after {cell.context} tokens, {name}: not measured, {why}")


class _Bench:
    """Engine and `generate` on the same weights, and how a cell is measured."""

    def __init__(self, subject: Subject, effort: Effort, fit: Fit, device: Any, request: Request) -> None:
        self._subject, self._effort, self._fit, self._device, self._request = subject, effort, fit, device, request
        # Replies to the same prompt take what was read from each other, so that all begin at once. Nothing else is
        # reused: `_ours` forgets what was kept.
        self._engine = LocalEngine(
            subject.folder,
            quantization=request.quantization,
            device=str(device),
            prefix_cache_mib=1,
            prompt_lookup=False,
            max_batch=max(BATCHES),
            max_queue=max(BATCHES) + 1,  # all calls, and what keeps them from beginning
            cuda_graphs=request.cuda_graphs,
        )
        self._generate = PlainGenerate(subject, effort.tokens)

    def measure(self, book: Book, cell: Cell) -> None:
        """The rounds that a cell still lacks, and its profile where it misses an aim."""
        record = next((one for one in book.records if one.cell == cell), None)
        if record is None:
            record = Record(cell)
            book.records.append(record)
        for name in (OURS, GENERATE):
            if why := self._fit.why_not(cell, name):
                record.absent[name] = why
        while record.rounds < self._effort.rounds and (runs := self._runs(record)):
            self._rounds(book, record, runs)
        if record.runs.get(OURS) and not record.profile and missed(record, book.ceiling, self._effort.tokens):
            self._effort.say("a profile of one step")
            record.profile = self._profile(cell)
        book.write()

    def _profile(self, cell: Cell) -> list[str]:
        try:
            return profiled(self._subject, self._engine, self._prompt(cell, 0), cell.batch)
        except EngineError as error:  # the figures are more than their explanation
            cause = "" if error.__cause__ is None else f" ({type(error.__cause__).__name__})"
            return [f"no profile could be taken: {error}{cause}"]

    def _rounds(self, book: Book, record: Record, runs: dict[str, Callable[[int], Run]]) -> None:
        def done(pairs: dict[str, list[Run]]) -> None:
            record.add(pairs)
            book.write()

        what = f"{record.cell.batch} at once after {record.cell.context} tokens"
        try:
            alternate(self._effort, what, runs, record.rounds, done)
        except _FullError as error:  # the others go on without it
            record.absent[error.name] = str(error)
            book.write()

    def _runs(self, record: Record) -> dict[str, Callable[[int], Run]]:
        cell = record.cell
        chunk = self._fit.chunk(cell)
        if chunk is not None:
            record.notes[GENERATE] = f"prompts read by {CHUNK} tokens (prefill_chunk_size), whole they do not fit"
        if cell.batch > 1:
            record.notes[OURS] = "the prompt, the same for all, is read once"
        ways: dict[str, Callable[[Prompt], Run]] = {
            OURS: lambda prompt: self._ours(prompt, cell.batch),
            GENERATE: lambda prompt: self._generate.run(self._subject.ids(prompt), cell.batch, chunk),
        }
        return {
            name: lambda number, name=name, way=way: self._guarded(
                record, name, lambda: way(self._prompt(cell, number))
            )  # type: ignore[misc]
            for name, way in ways.items()
            if name not in record.absent
        }

    def _guarded(self, record: Record, name: str, work: Callable[[], Run]) -> Run:
        """With the most memory that it took; the device's full memory ends it for this cell only."""
        import torch

        card = self._device.type == "cuda"
        if card:
            torch.cuda.reset_peak_memory_stats(self._device)
        try:
            run = work()
        except Exception as error:
            failure, clean = translate(error)
            if not isinstance(failure, DeviceMemoryError):
                raise
            clean()
        else:
            if card:
                record.peaks[name] = max(record.peaks.get(name, 0), torch.cuda.max_memory_allocated(self._device))
            return run
        raise _FullError(name, str(failure))

    def _ours(self, prompt: Prompt, count: int) -> Run:
        for _ in range(_TRIES):
            answers = self._together(lambda: ask(self._engine, prompt, self._effort.tokens), count)
            self._subject.look(lambda batch: batch.prefixes.clear())
            if (run := _while_all(answers)) is not None:
                return run
        raise DeviceMemoryError(
            f"{count} such replies were never made all at once: the device's memory does not hold them, or they are "
            "too short to meet; try a larger --tokens"
        )

    def _together(self, call: Callable[[], Answer], count: int) -> list[Answer]:
        """The same call by so many threads; the first is not begun before the last one waits."""
        answers: list[Answer] = []
        failures: list[BaseException] = []
        if count > 1:
            gate = _Gate(lambda: bool(failures) or worker.waiting == count)
            worker = self._subject.shared.submit(gate, 1, self._engine.family)
        in_threads(lambda: answers.append(call()), count, failures)
        return answers

    def _prompt(self, cell: Cell, number: int) -> Prompt:
        return _prompt(self._subject, cell.context, number)


class _FullError(Exception):
    """One of those that are compared does not fit after all."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


@dataclass
class _Gate:
    """A job that keeps the worker until something is so: until then all calls only wait."""

    ready: Callable[[], bool]
    channel: Channel = field(default_factory=lambda: Channel(Deadline(None)))

    def run(self, loaded: Batch) -> None:
        while not self.ready():
            time.sleep(0.001)
        self.channel.put(None)

    def fits(self, loaded: Batch) -> bool:
        return True


def _while_all(answers: list[Answer]) -> Run | None:
    """The tokens that came while all replies were being made, and the seconds that these took; None for too few.

    A token is with its reader once the device has computed it, so the readers' clocks need no synchronisation. Each
    reader's are compared with its own only: which one of a step comes first is chance.
    """
    begin, end = max(one.times[0] for one in answers), min(one.times[-1] for one in answers)
    within = [[time for time in one.times if begin <= time <= end] for one in answers]
    if min(map(len, within)) < 2:
        return None
    made = sum(len(one) - 1 for one in within)
    rate = sum((len(one) - 1) / (one[-1] - one[0]) for one in within)
    return Run(made, made / rate, tuple(one.text for one in answers), max(one.first for one in answers))


def _prompt(subject: Subject, tokens: int, number: int) -> Prompt:
    """A prompt of so many tokens, the same for the same number."""
    random = Random(number)  # noqa: S311  # the same text in each run of the command
    words = [word for one in questions() for word in one.split()]
    text = [f"{random.randrange(10**6)}", *random.choices(words, k=tokens)]

    def rendered(count: int, tail: str = "") -> Prompt:
        return subject.prompt(" ".join(text[:count]) + tail)

    low, high = 1, len(text)
    while low < high:  # the most words that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(subject.ids(rendered(middle))) <= tokens else (low, middle - 1)
    tail = ""
    while len(subject.ids(rendered(low, f"{tail} a"))) <= tokens:
        tail += " a"
    return rendered(low, tail)
