"""transformers' `generate` on several prompts at once, as its documentation shows it, timed.

It runs on the very modules that the engine has loaded: a second copy of a large model would not fit.
"""

from __future__ import annotations

import time
from typing import Any

from .subject import Run, Subject

__all__ = ["PlainGenerate", "synchronized"]


def synchronized(device: Any) -> float:
    """The time, after all that was given to the device has been done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PlainGenerate:
    """Greedy replies of `tokens` tokens each."""

    def __init__(self, subject: Subject, tokens: int) -> None:
        self._model = subject.look(lambda batch: batch.model)
        self._device = self._model.get_input_embeddings().weight.device
        self._tokens = tokens
        self._stream = subject.shared.tokens.text_stream
        self._ends = subject.shared.checkpoint.eos_ids

    def run(self, ids: list[int], count: int, chunk: int | None) -> Run:
        """`count` times the same prompt. `chunk`: its tokens are read by so many at once; None: all at once.

        Tokens and seconds are those after the first token of each.
        """
        import torch

        given = torch.tensor([ids] * count, device=self._device)
        first = _First(self._device)
        began = synchronized(self._device)
        made = self._model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=self._tokens,
            do_sample=False,
            pad_token_id=min(self._ends, default=0),
            logits_processor=[first],
            **({} if chunk is None else {"prefill_chunk_size": chunk}),
        )
        ended = synchronized(self._device)
        new = made[:, len(ids) :]
        texts = tuple(self._stream().push_all([one for one in row if one not in self._ends]) for row in new.tolist())
        return Run(count * (new.shape[1] - 1), ended - first.seconds, texts, first.seconds - began)


class _First:
    """Among the processors of logits, it changes nothing and notes when the first ones were computed."""

    def __init__(self, device: Any) -> None:
        self.seconds = 0.0
        self._device = device

    def __call__(self, _ids: Any, scores: Any) -> Any:
        if not self.seconds:
            self.seconds = synchronized(self._device)
        return scores
