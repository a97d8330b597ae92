"""The decoding loop of one reply: prompt ids in, token ids out, one forward pass at a time, held to a grammar.

Knows torch and a loaded causal model; knows no text, no threads and no queues. A Sequence holds the state of one
reply (its cache, its sampler), so that a scheduler may interleave several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING, Any, Final

from ..conversation import Sampling
from ..errors import NumericalError

if TYPE_CHECKING:
    from .grammars import Constraint

__all__ = ["PREFILL_CHUNK", "Sampler", "Sequence"]

#: Prompt tokens per forward pass; between two of them a call can be cancelled.
PREFILL_CHUNK: Final = 512

_LEAST_TEMPERATURE: Final = 1e-5  # below it scores divided by it become infinite; it is greedy but for exact ties


class Sampler:
    """Chooses the next token from logits, in transformers' order and by its own processors.

    Repetition penalty, temperature, top_k, top_p, min_p. Temperature 0 takes the best token. The random numbers come
    from a generator of its own, so that a seed reproduces whatever else runs.
    """

    def __init__(self, sampling: Sampling, device: Any) -> None:
        import torch

        self._greedy = sampling.temperature == 0
        self._processors = _processors(sampling, device)
        self._random = torch.Generator(device=device)
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def __call__(self, logits: Any, history: Any, allowed: Any = None) -> int | None:
        """The chosen id, or None when a logit is NaN or infinite.

        `logits` is (1, vocabulary), `history` (1, n), `allowed` a bool for each token (those after its end are not),
        or None where all are.
        """
        import torch

        scores = logits.float()
        finite = torch.isfinite(scores).all()
        if allowed is not None:
            kept = torch.zeros(scores.shape[-1], dtype=torch.bool)
            kept[: len(allowed)] = torch.from_numpy(allowed[: len(kept)])
            scores = scores.masked_fill(~kept.to(scores.device), float("-inf"))
        if self._processors:
            scores = self._processors(history, scores)
        if self._greedy:
            chosen = scores.argmax(-1)
        else:
            chances = torch.softmax(scores, -1)
            finite &= torch.isfinite(chances).all()
            # NaN in multinomial is an assertion in the device, after which CUDA is lost for the whole process.
            chosen = torch.multinomial(torch.nan_to_num(chances, nan=1.0), 1, generator=self._random)[:, 0]
        # One transfer from the device for both answers.
        token, good = torch.stack((chosen[0], finite.to(chosen.dtype))).tolist()
        return int(token) if good else None


def _processors(sampling: Sampling, device: Any) -> Any:
    from transformers import generation as hf

    steps = hf.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature == 0:
        return steps
    if sampling.temperature != 1:
        steps.append(hf.TemperatureLogitsWarper(max(float(sampling.temperature), _LEAST_TEMPERATURE)))
    if sampling.top_k:
        steps.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(hf.TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p:
        steps.append(hf.MinPLogitsWarper(float(sampling.min_p)))
    return steps


class Sequence:
    """One reply being decoded. Call `prefill` while there is something `unread`, then `next_token` for each token.

    `stepped` is called after each forward pass.
    """

    def __init__(
        self,
        model: Any,
        prompt_ids: Ids[int],
        sampling: Sampling,
        limit: int,
        constraint: Constraint | None = None,
        stepped: Callable[[], None] = lambda: None,
    ) -> None:
        import torch
        from transformers import DynamicCache

        self._model = model
        self._device = model.get_input_embeddings().weight.device
        self._cache = DynamicCache(config=model.config)
        self._ids = torch.empty((1, len(prompt_ids) + limit), dtype=torch.long, device=self._device)
        self._ids[0, : len(prompt_ids)] = torch.tensor(prompt_ids, dtype=torch.long, device=self._device)
        self._filled = len(prompt_ids)
        self._done = 0
        self._made = 0
        self._sampling = sampling
        self._sampler: Sampler | None = None
        self._constraint = constraint
        self._forced = deque[int]()
        self._stepped = stepped

    @property
    def ended_early(self) -> bool:
        """The grammar led the reply to its end because its tokens ran out."""
        return self._constraint is not None and self._constraint.ended_early

    @property
    def complete(self) -> bool:
        """Nothing may follow what was made so far but the token that ends the reply."""
        return self._constraint is not None and self._constraint.finished and not self._forced and not self.ended_early

    @property
    def unread(self) -> bool:
        """Whether more of the prompt than its last token has not been read."""
        return self._made == 0 and self._done < self._filled - 1

    def prefill(self) -> None:
        """Read one chunk of the prompt."""
        self._forward(min(self._done + PREFILL_CHUNK, self._filled - 1))

    def next_token(self) -> int:
        """Make one more token: what the grammar leaves no choice of needs no forward pass.

        Raises:
            NumericalError: the model's logits are not numbers.
        """
        token = self._forced.popleft() if self._forced else self._chosen()
        if self._filled < self._ids.shape[1]:
            self._ids[0, self._filled] = token
        self._filled += 1
        self._made += 1
        return token

    def _chosen(self) -> int:
        constraint = self._constraint
        if constraint is None:
            return self._sampled(self._forward(self._filled))
        if constraint.finished:
            return constraint.end
        allowed = constraint.beside(constraint.allowed)  # computed while the model computes
        try:
            logits = self._forward(self._filled)
        finally:
            mask = allowed.result()
        token, *forced = constraint.take(self._sampled(logits, mask))
        self._forced.extend(forced)
        return token

    def _sampled(self, logits: Any, allowed: Any = None) -> int:
        if self._sampler is None:
            self._sampler = Sampler(self._sampling, logits.device)
        token = self._sampler(logits, self._ids[:, : self._filled].to(logits.device), allowed)
        if token is None:
            raise NumericalError(
                f"the model's logits are NaN or infinite after {self._made} tokens; check the weights and the sampling "
                'options, or load the model with quantization="bf16" or "fp32"',
                self._made,
            )
        return token

    def _forward(self, end: int) -> Any:
        """Logits of the position before `end`; (1, vocabulary)."""
        import torch

        with torch.inference_mode():
            output = self._model(
                input_ids=self._ids[:, self._done : end],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._done = end
        self._stepped()
        return output.logits[:, -1, :]
