"""LocalEngine: a 4-bit transformers model in this process. A cheap handle; the loaded model behind it is shared.

Knows the order of a call: family and window, prompt ids, the window's check, the queue, the pieces. Loading is
`loading`'s, sharing `registry`'s, the thread `worker`'s, the loop `decoding`'s, text and ids `tokens`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..conversation import Piece, Prompt, Sampling
from ..errors import ContextOverflowError, MessageError, MissingDependencyError, ModelLoadError, OptionError
from ..templates import Family, family_of_checkpoint, family_of_model, family_of_template, unknown_model
from ..threads import in_thread
from .channel import Channel, Deadline
from .checkpoint import Source, check_folder, source_of
from .generating import Generation, Reporting
from .grammars import Constraint
from .loading import Report
from .memory import check_kv_cache_dtype
from .precision import precision_of
from .registry import Key, Shared, settle, settled, shared
from .worker import Worker, refuse_fork

if TYPE_CHECKING:
    from .batching import Batch

__all__ = ["LocalEngine", "Report"]

_T = TypeVar("_T")
_DEVICE: Final = re.compile(r"auto|cpu|balanced|offload|cuda(:\d+)?")
_INLINE_CHARACTERS: Final = 10_000  # a prompt up to this long is encoded on the event loop; it takes about 5 ms


class LocalEngine:
    """Runs a model in this process: 4-bit by default, on GPU or CPU.

    Args:
        model: a hub id (`karakuri-ai/` may be left out), a folder in Hugging Face format, or None (as an id:
            `karakuri-demo`) for the embedded demo model.
        template: a prompt family's name, where the id and the checkpoint do not tell.
        quantization: "nf4" (default), "fp4", "int8", "bf16", "fp16", "fp32", or "none" for the checkpoint's own
            precision. A checkpoint that is stored quantised (bitsandbytes, GPTQ, AWQ) is loaded as it is.
        device: "auto" (GPUs where there are any), "cpu", "cuda", "cuda:1", "balanced" (spread over all GPUs), or
            "offload" (of a Llama, the layers that do not fit the GPU stay in main memory, and the CPU computes them
            there: a warning says what each token then takes).
        revision: a commit, branch or tag of a hub model; only a full commit hash stays the same.
        cache_dir: where hub files are kept.
        local_files_only: never ask the hub.
        context_window: tokens; by default the checkpoint's, else the family's.
        max_queue: calls that may wait for the model beside the `max_batch` that it answers; one more is a BusyError.
        max_batch: replies that are made at once, sharing forward passes; 1 makes them one after another.
        prefix_cache_mib: memory in MiB for the keys and values of earlier prompts and replies, reused by prompts that
            begin alike; 0 keeps and reuses none. By default two windows of the model, of at most a fifth of the memory
            that is free beside the weights, and at least 256 MiB. Where a device is full, what is kept is given up.
        prompt_lookup: a reply that is made alone guesses from the text what comes next, and reads several tokens at
            once where the guess is right. What is generated stays the same.
        draft_model: a smaller model (hub id or folder) with the same vocabulary, which guesses what a reply that is
            made alone says next; loaded beside the model, in the same precision on the same device. What is generated
            stays the same. A model is loaded once for each draft model that it is used with.
        draft_revision: as `revision`, for a draft model from the hub.
        kv_cache_dtype: "auto" holds keys and values in the model's type, "int8" in 8 bits with a scale for each token
            and head (vLLM's int8_per_token_head): twice the tokens in the same memory, a small error in the logits and
            slower steps over long contexts (`karakuri bench` measures all three); a draft model's stay in its type.
            Engines that share a model may differ in it; a call then waits until no reply is made in the other one.
        cuda_graphs: on one GPU, record the passes that make one token for each reply and replay them, so that the GPU
            does not wait for Python. Each recording is compared with the pass it records before it is used. It has
            been run on no GPU yet, so it is off unless you ask for it.

    Construction loads nothing. The model is loaded for the first call, once per process for the same source,
    quantization and device, whatever number of engines, copies and unpickled copies ask for it; `close` frees it for
    all of them and the next call loads it again. A hub token is read by huggingface_hub from HF_TOKEN or its login.

    Raises:
        OptionError: an argument that is not valid.
        UnknownModelError: a `template` that does not exist.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        template: str | None = None,
        quantization: str = "nf4",
        device: str = "auto",
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        context_window: int | None = None,
        max_queue: int = 1024,
        max_batch: int = 16,
        prefix_cache_mib: int | None = None,
        prompt_lookup: bool = True,
        draft_model: str | os.PathLike[str] | None = None,
        draft_revision: str | None = None,
        kv_cache_dtype: str = "auto",
        cuda_graphs: bool = False,
    ) -> None:
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise OptionError(
                f"device must be auto, cpu, cuda, cuda:<number>, balanced or offload, got {device!r:.40}; "
                f"{_device_advice(device)}"
            )
        at_least = {"context_window": 1, "max_queue": 1, "max_batch": 1, "prefix_cache_mib": 0}
        given = (context_window, max_queue, max_batch, prefix_cache_mib)
        for (name, least), value in zip(at_least.items(), given, strict=True):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise OptionError(f"{name} must be an integer of at least {least}, got {value!r:.40}")
        for name, flag in (("prompt_lookup", prompt_lookup), ("cuda_graphs", cuda_graphs)):
            if not isinstance(flag, bool):
                raise OptionError(f"{name} must be True or False, got {flag!r:.40}")
        if cuda_graphs and device in ("cpu", "balanced", "offload"):
            raise OptionError(f'cuda_graphs is for a model on one GPU, and device is {device!r}; pass device="cuda"')
        check_kv_cache_dtype(kv_cache_dtype)
        self._prompt_lookup, self._kv_cache_dtype, self._cuda_graphs = prompt_lookup, kv_cache_dtype, cuda_graphs
        if device == "offload" and draft_model is not None:
            raise OptionError('draft_model does not go with device="offload"; leave one of them out')
        source = source_of(model, revision, cache_dir, bool(local_files_only))
        draft = _draft_source(draft_model, draft_revision, source)
        self._key = Key(source, precision_of(quantization), "cuda:0" if device == "cuda" else device, draft)
        self._template = family_of_template(template).name if template is not None else None
        self._given_window = context_window
        self._max_queue, self._max_batch = max_queue, max_batch
        self._cache_bytes = None if prefix_cache_mib is None else prefix_cache_mib * 2**20
        self._known_family = family_of_template(template) if template is not None else family_of_model(source.name)
        self._arguments: dict[str, Any] = {
            "model": (source.folder or os.fspath(model)) if model is not None and not source.packaged else model,
            "template": template,
            "quantization": quantization,
            "device": device,
            "revision": revision,
            "cache_dir": source.cache_dir,
            "local_files_only": local_files_only,
            "context_window": context_window,
            "max_queue": max_queue,
            "max_batch": max_batch,
            "prefix_cache_mib": prefix_cache_mib,
            "prompt_lookup": prompt_lookup,
            "draft_model": None if draft is None else draft.name if draft.packaged else draft.folder or draft.name,
            "draft_revision": draft_revision,
            "kv_cache_dtype": kv_cache_dtype,
            "cuda_graphs": cuda_graphs,
        }

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], LocalEngine], tuple[dict[str, Any]]]:
        return _rebuilt, (self._arguments,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalEngine) and self._arguments == other._arguments

    def __hash__(self) -> int:
        return hash(tuple(self._arguments.values()))

    def __repr__(self) -> str:
        """The id and how it is loaded; folders of the same name, which are never shown, differ in the fingerprint."""
        fingerprint = hashlib.sha256(repr(sorted(self._arguments.items())).encode()).hexdigest()[:12]
        return (
            f"LocalEngine(model={self.model!r}, quantization={self._key.precision.name!r}, "
            f"device={self._key.device!r}, fingerprint={fingerprint!r})"
        )

    @property
    def model(self) -> str:
        """The model's public id; of a folder its name, never its path."""
        return self._key.source.name

    @property
    def family(self) -> Family:
        """The prompt family: by `template`, else by id, else by the checkpoint's configuration and chat template.

        Raises:
            UnknownModelError: none of them tells, or the hub cannot be asked.
            ModelLoadError: a folder's configuration had to be read and cannot be; ModelFolderError: there is none.
        """
        if self._known_family is None:
            self._known_family = self._family_of_files()
        if self._known_family is None:
            raise unknown_model(self.model)
        return self._known_family

    def _family_of_files(self) -> Family | None:
        checkpoint = self._shared.checkpoint
        try:
            return family_of_checkpoint(checkpoint.config, checkpoint.chat_template)
        except MissingDependencyError:
            raise
        except ModelLoadError as error:
            if self._key.source.folder is not None:
                raise
            raise unknown_model(self.model, str(error)) from error

    @property
    def family_known(self) -> bool:
        """Whether `family` can be told without asking a hub."""
        here = self._key.source.folder is not None and self._shared.checkpoint.known_locally() is not None
        return here or self._known_family is not None

    @property
    def embedded(self) -> bool:
        """Whether this is the demo model that ships with the package."""
        return self._key.source.packaged

    def check_folder(self) -> None:
        """Look whether a folder that was named as the model is there.

        Whoever makes a model of this engine asks at once. The engine itself may be made, or unpickled, before its files
        are there.

        Raises:
            ModelFolderError: it is not, or holds no config.json.
        """
        check_folder(self._key.source)

    @property
    def context_window(self) -> int:
        """Tokens of prompt and reply together."""
        return self._given_window or self._shared.checkpoint.window or self.family.context_window

    @property
    def max_batch(self) -> int:
        """Replies that are made at once."""
        return self._max_batch

    @property
    def steps(self) -> int:
        """Forward passes that the shared model has made in this process."""
        return self._shared.steps

    @property
    def _shared(self) -> Shared:
        return shared(self._key)

    def count_tokens(self, prompt: Prompt) -> int:
        return len(self._shared.tokens.encode(prompt))

    def token_ids(self, text: str) -> list[int]:
        return self._shared.tokens.encode_text(text)

    def canary(self) -> tuple[str, ...]:
        """What differs between the checkpoint's own chat template and tokenizer and our rendering; empty when nothing.

        Loads the tokenizer at most. The same is checked, and warned of, when the model is loaded.
        """
        return self._shared.canary(self.family)

    def report(self) -> Report:
        """What is loaded, and in how many bytes; loads the model if it is not."""
        settle()
        job = Reporting(Channel(Deadline(None)), self._kv_cache_dtype)
        worker = self._submit(job)
        while job.channel.take(worker.alive) is not None:
            pass
        return job.found[0]

    def close(self) -> None:
        """Free the model for every engine that shares it; running calls end with EngineClosedError."""
        self._shared.close()

    def stream(self, prompt: Prompt, sampling: Sampling, *, whole: bool = False) -> Iterator[Piece]:
        """One Piece a token as soon as it is made; `whole`: few, at the end. Closing the iterator stops the compute."""
        job = self._job(prompt, sampling, Channel(Deadline(sampling.timeout), whole=whole))
        try:
            worker = self._submit(job)
            while (piece := job.channel.take(worker.alive)) is not None:
                yield piece
        finally:
            job.channel.cancel()

    async def astream(self, prompt: Prompt, sampling: Sampling, *, whole: bool = False) -> AsyncIterator[Piece]:
        """As `stream`, natively async: nothing here blocks the event loop, not even loading or a long prompt."""
        channel = Channel(Deadline(sampling.timeout), whole=whole)
        entry = self._shared
        ready = settled() and entry.tokens_ready and (prompt.grammar is None or entry.grammar_ready(prompt.grammar))
        if ready and sum(len(str(one)) for one in prompt.segments) <= _INLINE_CHARACTERS:
            job = self._job(prompt, sampling, channel)
        else:
            job = await _in_thread(lambda: self._job(prompt, sampling, channel), channel.deadline)
        try:
            worker = self._submit(job)
            while (piece := await job.channel.atake(worker.alive)) is not None:
                yield piece
        finally:
            job.channel.cancel()

    def _job(self, prompt: Prompt, sampling: Sampling, channel: Channel) -> Generation:
        """The call, checked against the window before anything is computed or loaded but the tokenizer."""
        refuse_fork()
        entry = self._shared
        ids = entry.tokens.encode(prompt)
        _check_vocabulary(ids, entry)
        window = self.context_window
        room = window - len(ids)
        if not ids:
            raise MessageError("the prompt is empty; it needs at least one token")
        if room < 1 or (sampling.max_tokens or 0) > room:
            raise ContextOverflowError(len(ids), sampling.max_tokens, window)
        end = entry.tokens.control_id(self.family.end_token)
        limit = sampling.max_tokens or room
        settle()
        entry = self._shared
        return Generation(
            channel=channel,
            prompt_ids=ids,
            sampling=sampling,
            limit=limit,
            eos=entry.checkpoint.eos_ids | ({end} if end is not None else set()),
            tokens=entry.tokens,
            constraint=self._constraint(prompt, end, limit),
            max_batch=self._max_batch,
            cache_bytes=self._cache_bytes,
            prompt_lookup=self._prompt_lookup,
            kv_cache_dtype=self._kv_cache_dtype,
            cuda_graphs=self._cuda_graphs,
        )

    def _constraint(self, prompt: Prompt, end: int | None, limit: int) -> Constraint | None:
        if prompt.grammar is None:
            return None
        eos = end if end is not None else min(self._shared.checkpoint.eos_ids, default=None)
        if eos is None:
            raise ModelLoadError(
                f"neither the tokenizer of {self.model} nor its configuration has a token that ends a reply, so none "
                "can be held to a grammar; fetch the checkpoint again"
            )
        return self._shared.grammars(eos).constraint(prompt.grammar, limit)

    def _submit(self, job: Generation | Reporting) -> Worker[Batch]:
        return self._shared.submit(job, self._max_queue, self.family, self._max_batch)


def _device_advice(device: object) -> str:
    """What to write instead of what other libraries, or people, call a device."""
    text = str(device).lower()
    number = re.search(r"\d+", text)
    if number and not re.search("[a-z]", text.replace("cuda", "").replace("gpu", "")):
        return f'for GPU {number[0]}, counted from 0, write device="cuda:{number[0]}"'
    if re.search("gpu|cuda|nvidia|hip|rocm", text):
        return 'for a GPU write device="cuda", or "cuda:1" for the second one; "auto" takes one where there is one'
    return 'write device="auto", which takes GPUs where torch has CUDA and else the CPU'


def _draft_source(model: str | os.PathLike[str] | None, revision: str | None, large: Source) -> Source | None:
    """Where the draft model is: as the large one, from the hub's cache or asked for."""
    if model is None:
        if revision is not None:
            raise OptionError("draft_revision is for a draft_model from the hub; pass draft_model too, or leave it out")
        return None
    if not isinstance(model, str | os.PathLike) or not os.fspath(model):
        raise OptionError(f"draft_model must be a hub id or a folder, got {model!r:.40}")
    found = source_of(model, revision, None, large.local_files_only)
    return found if found.folder is not None else replace(found, cache_dir=large.cache_dir)


def _rebuilt(arguments: dict[str, Any]) -> LocalEngine:
    return LocalEngine(**arguments)


def _check_vocabulary(ids: list[int], entry: Shared) -> None:
    """An id beyond the embeddings is an assertion in a GPU, after which CUDA is lost for the whole process."""
    size = entry.checkpoint.config.get("vocab_size")
    if isinstance(size, int) and (largest := max(ids, default=0)) >= size:
        raise ModelLoadError(
            f"the tokenizer of {entry.key.source.name} gives the id {largest} and its config.json has vocab_size "
            f"{size}; they do not belong together: fetch the checkpoint again"
        )


async def _in_thread(work: Callable[[], _T], deadline: Deadline) -> _T:
    """Run short work beside the event loop, until the deadline."""
    done = in_thread(work)
    while not done.done():
        if deadline.passed:
            raise deadline.error()
        await asyncio.wait([done], timeout=deadline.left())
    return done.result()
