"""One loaded model per process for the same key, shared by all engines that ask for it.

The key is what was loaded: source, precision and device. An entry is cheap until its tokenizer or its weights are
asked for. Nothing here holds a caller's settings beyond the key. "auto" and "cpu" are one device on a machine without
GPUs; only torch can tell, so they are two until it was asked, and nothing is loaded before that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..conversation import Grammar
from ..errors import ModelLoadError
from ..templates import Family
from .canary import differences
from .checkpoint import Checkpoint, Source, notify
from .generating import translate
from .grammars import Grammars
from .loading import Loaded, load
from .precision import Precision
from .tokens import Tokens, load_tokenizer
from .worker import Job, Worker, refuse_fork

if TYPE_CHECKING:
    from .batching import Batch
    from .drafting import Draft

__all__ = ["Key", "Shared", "settle", "settled", "shared"]

_CLOSE_WAIT: Final = 5.0  # seconds that close() waits for the step that runs


@dataclass(frozen=True)
class Key:
    """What identifies a loaded model."""

    source: Source
    precision: Precision
    device: str
    draft: Source | None = None


class Shared:
    """A tokenizer and a worker with the loaded model, each made on first use and once."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.checkpoint = Checkpoint(key.source)
        #: How the weights come into memory, instead of `load`. Who measures may put random ones there.
        self.loader: Callable[[Checkpoint, Precision, str, str], Loaded] | None = None
        self._draft = Checkpoint(key.draft) if key.draft is not None else None
        #: Forward passes made so far, over all loads.
        self.steps = 0
        self._tokenizer: tuple[Any, Tokens] | None = None
        self._tokenizer_lock = threading.Lock()
        self._canaries: dict[str, tuple[str, ...]] = {}
        self._grammars: Grammars | None = None
        self._worker: Worker[Batch] | None = None
        self._worker_lock = threading.Lock()

    @property
    def tokens(self) -> Tokens:
        return self._tokenizers()[1]

    @property
    def tokens_ready(self) -> bool:
        return self._tokenizer is not None

    def _tokenizers(self) -> tuple[Any, Tokens]:
        if self._tokenizer is None:
            with self._tokenizer_lock:
                if self._tokenizer is None:
                    own = load_tokenizer(self.checkpoint)
                    self._tokenizer = own, Tokens(own.backend_tokenizer)
        return self._tokenizer

    def grammar_ready(self, grammar: Grammar) -> bool:
        """Whether it is compiled already."""
        return self._grammars is not None and grammar in self._grammars

    def grammars(self, end: int) -> Grammars:
        """The grammars of this tokenizer, made on first use; `end` is the id that ends a reply."""
        own, tokens = self._tokenizers()
        with self._tokenizer_lock:
            if self._grammars is None:
                size = self.checkpoint.config.get("vocab_size")
                width = size if isinstance(size, int) else len(own)
                self._grammars = Grammars(own.backend_tokenizer.to_str(), len(own), width, end, tokens.bytes_of)
        return self._grammars

    def canary(self, family: Family) -> tuple[str, ...]:
        """What differs between the checkpoint's template and tokenizer and ours; warned of the first time."""
        found = self._canaries.get(family.name)
        if found is None:
            own, tokens = self._tokenizers()
            found = self._canaries[family.name] = differences(own, tokens, family)
            if found:
                notify(
                    f"{self.key.source.name} differs from the prompt format {family.name}: {'; '.join(found)}. Answers "
                    "may be worse; check the checkpoint, or pass template= with the format it was trained on"
                )
        return found

    def submit(self, job: Job[Batch], max_queue: int, family: Family, max_batch: int = 1) -> Worker[Batch]:
        """Queue a job, starting a worker (which loads the model for its first job) where none runs."""
        refuse_fork()
        with self._worker_lock:
            worker = self._worker
            if worker is None or not worker.alive() or worker.closing:
                worker = self._worker = Worker(partial(self._load, family), translate, after=worker)
            worker.submit(job, max_queue, max_batch)
        return worker

    def _load(self, family: Family, job: Job[Batch]) -> Batch:
        if self._draft is not None:
            self._check_draft(self._draft)
        held_in = getattr(job, "kv_cache_dtype", "auto")  # of those that need keys and values at all
        loaded = (self.loader or load)(self.checkpoint, self.key.precision, self.key.device, held_in)
        self.canary(family)
        from .batching import Batch  # imports torch, which `load` has found to be there

        return Batch(loaded, self.stepped, self._drafting(loaded.model.config.vocab_size))

    def _check_draft(self, draft: Checkpoint) -> None:
        """Before anything large is loaded: the same text must be the same ids."""
        own, other = self._tokenizers()[0], load_tokenizer(draft)
        if own.get_vocab() != other.get_vocab():
            raise ModelLoadError(
                f"draft_model {draft.source.name} has another tokenizer than {self.key.source.name} "
                f"({len(other)} and {len(own)} tokens); a draft model must have the same vocabulary"
            )

    def _drafting(self, vocabulary: int) -> Draft | None:
        if self._draft is None:
            return None
        from .drafting import Draft

        loaded = load(self._draft, self.key.precision, self.key.device)
        return Draft(loaded, vocabulary, self._draft.window or loaded.model.config.max_position_embeddings)

    def stepped(self) -> None:
        self.steps += 1

    def close(self) -> None:
        """Free the model for everyone; running calls end with EngineClosedError."""
        worker = self._worker
        if worker is not None and worker.alive():
            worker.close(_CLOSE_WAIT)


_entries: dict[Key, Shared] = {}
_lock = threading.Lock()
_auto: str | None = None  # what the device "auto" stands for, once torch was asked


def shared(key: Key) -> Shared:
    """The process's entry for a key."""
    with _lock:
        key = _as_settled(key)
        entry = _entries.get(key)
        if entry is None:
            entry = _entries[key] = Shared(key)
        return entry


def settled() -> bool:
    """Whether it is known what the device "auto" stands for."""
    return _auto is not None


def settle() -> None:
    """Ask torch what the device "auto" stands for; the first time may take as long as torch's import.

    What was kept under the one name is kept under the other from then on.
    """
    global _auto
    if _auto is not None:
        return
    gpus = False
    with suppress(ImportError):  # an error of its own, with what to install, when something is loaded
        import torch

        gpus = torch.cuda.is_available()
    with _lock:
        _auto = "auto" if gpus else "cpu"  # one of several GPUs is chosen when the model is loaded
        for entry in list(_entries.values()):
            key = _as_settled(entry.key)
            if key != entry.key:
                del _entries[entry.key]
                entry.key = key
                _entries.setdefault(key, entry)


def _as_settled(key: Key) -> Key:
    return replace(key, device=_auto) if _auto is not None and key.device == "auto" else key


def _in_child() -> None:
    """After fork: no lock, tokenizer or worker of the parent can be used in the child."""
    global _lock
    _lock = threading.Lock()
    _entries.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
