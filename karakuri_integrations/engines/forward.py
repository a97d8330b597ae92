"""One forward pass of a model: new ids of several rows in, logits out.

Runs in a model's worker thread, which imports it; imports torch.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from .checkpoint import notify
from .cores import Cores
from .key_values import KeyValues, Pass
from .llama_pass import LlamaPass, chosen
from .recording import Recorder, Recordings, cuda_graphs

__all__ = ["Forward", "cache_name"]

_thread = threading.local()


class Forward:
    """A model and where it is."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        # A Llama reads everything, whatever else its configuration may say.
        self._sliding = None if model.config.model_type == "llama" else getattr(model.config, "sliding_window", None)
        self._transformers = _Transformers(model)
        self._llama: LlamaPass | None = None
        self._begun = False
        self._recordings: Recordings | None = None
        self._asked = False
        self._cores = _cores() if {one.device.type for one in model.parameters()} == {"cpu"} else None

    def __call__(
        self,
        values: KeyValues,
        first: int,
        new: Sequence[Sequence[int]],
        starts: Sequence[int],
        wanted: int | Sequence[int],
        free: int | None = None,
    ) -> Any:
        """Logits of the last `wanted` new columns, (rows, wanted, vocabulary). Shorter rows are filled on the right.

        `wanted` may be 0 (no logits), or say for each row which one new column it is. Row i reads the ids new[i]
        behind its first starts[i] columns of `values`, whose rows begin at `first`.
        `free`: the pass may be recorded. Each of the rows 0, 1, 2, ... reads one id then, and in those behind them
        nothing stands in this column.
        """
        count = max(map(len, new))
        if not isinstance(wanted, int) and all(one == count - 1 for one in wanted):
            wanted = 1
        run = self._run()
        if isinstance(run, LlamaPass) and run.reach(max(starts) + count):
            self.forget()
        recordings = self._recorded(run) if free is not None else None
        if recordings is not None and free is not None:
            with torch.inference_mode():
                recorded = recordings(values, [one[0] for one in new], starts, free)
            if recorded is not None:
                return recorded
        planes = [
            [[*one, *[0] * (count - len(one))] for one in new],
            [[*range(start, start + count)] for start in starts],
        ]
        if not isinstance(wanted, int) and isinstance(run, LlamaPass):
            planes.append([[one] * count for one in wanted])
        # One transfer: on a GPU each costs about as long as a small kernel, and waits for what runs.
        ids, positions, *more = torch.tensor(planes, device=self.device)
        tokens, began = len(new) * count, time.perf_counter()
        if self._cores is not None:
            self._cores.begin(tokens)
        unmasked = not any(starts) or (len(new) == 1 and count == 1)
        with torch.inference_mode():
            logits = run(
                ids,
                positions,
                None if unmasked else self._mask(positions, starts),
                Pass(values, first, [*starts], count, positions),
                more[0][:, 0] if more else wanted,
            )
        if self._cores is not None:
            self._cores.took(tokens, time.perf_counter() - began)
        return logits

    def room(self, rows: int, columns: int) -> tuple[int, int]:
        """What a pass of one new token a row would have of the keys and values, to be fast: no fewer than those."""
        if self._recordings is None or self._recordings.given_up:
            return rows, columns
        return Recordings.size(rows, columns)

    def wait(self) -> None:
        """Until a pass is done, so that it can be seen how long it took: on a GPU the call returns before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Free what is held beside the model."""
        if self._recordings is not None:
            self._recordings.forget()

    def _run(self) -> LlamaPass | _Transformers:
        """Ours where it knows the model; transformers' where somebody wants to see its modules called."""
        if not self._begun:  # not before: bitsandbytes turns its weights into another format for the first pass
            self._begun, self._llama = True, LlamaPass.of(self.model)
        return self._transformers if self._llama is None or self._llama.watched else self._llama

    def _recorded(self, run: LlamaPass | _Transformers) -> Recordings | None:
        """Where somebody asks for them for the first time they are made, or it is said that they cannot be."""
        if not isinstance(run, LlamaPass):
            return None
        if not self._asked:
            self._asked = True
            record = _recorder(self.device) if run.recordable else None
            if record is not None:
                self._recordings = Recordings(run, record, self.device)
            else:
                why = f"the model is on {self.device}" if run.recordable else "it is in 8 bits, or its angles vary"
                notify(f"cuda_graphs=True has no effect: {why}, and graphs are for one GPU and other models")
        return self._recordings

    def _mask(self, positions: Any, starts: Sequence[int]) -> Any:
        """Which columns each new token sees, (rows, 1, new, columns). Without it all is seen, or what stands before."""
        columns = torch.arange(max(starts) + positions.shape[1], device=positions.device)
        seen = columns <= positions[:, None, :, None]
        if self._sliding:
            seen &= columns > positions[:, None, :, None] - self._sliding
        return seen


class _Transformers:
    """A model's own forward, as `LlamaPass`; without a mask it knows itself what is seen."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = cache_name(model)

    def __call__(self, ids: Any, positions: Any, mask: Any, cache: Pass, wanted: int | Sequence[int]) -> Any:
        first = ids.shape[1] - wanted if isinstance(wanted, int) else min(wanted)
        logits = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=max(1, ids.shape[1] - first),  # 0 would be all of them
            **{self._cache: cache},
        ).logits
        if isinstance(wanted, int):
            return chosen(logits, wanted)
        return torch.stack([own[one - first] for own, one in zip(logits, wanted, strict=True)])[:, None]


def cache_name(model: Any) -> str:
    """What the model calls its cache: `cache` in transformers 5.24 and later, where its code was changed already."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _recorder(device: Any) -> Recorder | None:
    return cuda_graphs(device) if device.type == "cuda" else None


def _cores() -> Cores | None:
    """None where there is one core, or torch's threads are not OpenMP's.

    torch.set_num_threads would not do: threads that begin to compute later take its last number for their own.
    """
    if not hasattr(_thread, "most"):  # a draft model comes later, perhaps while this thread has one
        _thread.most = torch.get_num_threads()
    most = _thread.most
    pools = ThreadpoolController().select(user_api="openmp").lib_controllers

    def use(threads: int) -> None:
        for one in pools:
            one.set_num_threads(threads)

    return Cores(most, use) if most > 1 and pools else None
