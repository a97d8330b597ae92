"""One reply's choices: logits in, token ids out, sampled, held to a grammar, with guesses of what comes next.

Knows ids and logits; knows no model, no text, no threads and no queues. The forward passes, which several replies
share, are `batching`'s.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from concurrent.futures import Future
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from ..conversation import Sampling
from ..errors import NumericalError

if TYPE_CHECKING:
    from .grammars import Constraint
    from .guessing import Guesser

__all__ = ["PREFILL_CHUNK", "Sampler", "Sequence", "best"]

#: Prompt tokens per forward pass at most; between two of them a call can be cancelled.
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
        self._device = device
        self._processors = _processors(sampling, device)
        self._looks_back = sampling.repetition_penalty != 1  # the other processors see the scores only
        self._random = torch.Generator(device=device)
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """It takes the best token, whatever came before."""
        return self._greedy and not self._processors

    def __call__(self, logits: Any, ids: Ids[int], allowed: Any = None) -> int | None:
        """The chosen id, or None when a logit is NaN or infinite.

        `logits` is (1, vocabulary), `ids` what there is so far, `allowed` a bool for each token (those after its end
        are not), or None where all are.
        """
        import torch

        if self.plain and allowed is None:
            return best(logits)[0]
        scores = logits.float()
        finite = torch.isfinite(scores).all()
        if allowed is not None:
            kept = torch.zeros(scores.shape[-1], dtype=torch.bool)
            kept[: len(allowed)] = torch.from_numpy(allowed[: len(kept)])
            scores = scores.masked_fill(~kept.to(scores.device), float("-inf"))
        if self._processors:
            seen = torch.tensor([ids], device=self._device) if self._looks_back else None
            scores = self._processors(seen, scores)
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


def best(logits: Any) -> list[int | None]:
    """Of each row its best token, or None when a logit is NaN or infinite; `logits` is (rows, vocabulary).

    The least and the most are numbers if all are. `max` and `amin`: on a CPU `argmax` and `aminmax` take five times as
    long of bfloat16, and of equal ones the first is the best to all. One transfer from the device for everything, as
    doubles, which hold every id.
    """
    import torch

    most, place = logits.max(-1)
    found = torch.stack((place.double(), most.double(), logits.amin(-1).double()), 1).tolist()
    return [int(token) if isfinite(high) and isfinite(low) else None for token, high, low in found]


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
    """One reply being made. `ids` are the prompt's and the reply's; how many of them the model has read is `read`.

    The scheduler reads `unread` ids and the guesses that `prepare` gives in one pass, and hands their logits to `take`.
    """

    def __init__(
        self,
        prompt_ids: Ids[int],
        sampling: Sampling,
        limit: int,
        ends: frozenset[int],
        constraint: Constraint | None = None,
        guessers: Ids[Guesser] = (),
    ) -> None:
        self.ids = list(prompt_ids)
        self.read = 0
        #: Tokens of the prompt that were taken from other calls.
        self.reused = 0
        self._prompt = len(self.ids)
        self._limit, self._ends = limit, ends
        self._sampling = sampling
        self._sampler: Sampler | None = None
        self._constraint = constraint
        self._mask: Future[Any] | None = None
        self._guessers = guessers
        self._guesser: Guesser | None = None  # whose guesses these are
        self._guesses: list[int] = []

    @property
    def made(self) -> int:
        """Tokens of the reply so far."""
        return len(self.ids) - self._prompt

    @property
    def unread(self) -> int:
        return len(self.ids) - self.read

    @property
    def ended_early(self) -> bool:
        """The grammar led the reply to its end because its tokens ran out."""
        return self._constraint is not None and self._constraint.ended_early

    @property
    def complete(self) -> bool:
        """Nothing may follow what was made so far but the token that ends the reply."""
        return self._constraint is not None and self._constraint.finished and not self.ended_early

    def without_a_pass(self) -> list[int]:
        """The end, where nothing else can follow."""
        if self._constraint is None or not self._constraint.finished:
            return []
        return self._add([self._constraint.end])

    def prepare(self, guess: bool) -> list[int]:
        """What to read beside the unread ids; and the grammar's mask is begun, to be made while the model computes.

        Guesses are for a reply that has the pass to itself: then more tokens in it cost little.
        """
        self._guesses, self._guesser = [], None
        for one in self._guessers if guess else ():
            self._guesses, self._guesser = one.guess(self.ids, self._limit - self.made - 1), one
            if self._guesses:
                break
        if self._constraint is not None:
            self._mask = self._constraint.beside(self._constraint.allowed)
        return self._guesses

    def forget(self) -> None:
        """The pass failed; nothing computes beside it any more."""
        if self._mask is not None:
            self._mask.exception()
            self._mask = None

    def plain(self, device: Any) -> bool:
        """Whether the best token is taken as it is."""
        return self._constraint is None and self._sampler_on(device).plain

    def take(self, logits: Any) -> list[int]:
        """The new ids. `logits` (1 + guesses, vocabulary) are those behind the last unread id and behind each guess.

        Raises:
            NumericalError: logits are not numbers.
        """
        length, right, new = len(self.ids), 0, list[int]()
        while right < len(logits):
            found = self._add(self._chosen(logits[right : right + 1]))
            new += found
            if self._guesses[right : right + len(found)] != found:
                break
            right += len(found)
            if self.made >= self._limit or not self._ends.isdisjoint(found):
                break
        self.read = length + right
        if self._guesses and self._guesser is not None:
            self._guesser.learn(len(self.ids), len(self._guesses), right)
        return new

    def took(self, token: int | None) -> list[int]:
        """As `take`, for a token that was chosen for several replies at once; None where its logits are no numbers."""
        self.read = len(self.ids)
        return self._add([self._good(token)])

    def _add(self, new: list[int]) -> list[int]:
        new = new[: self._limit - self.made]
        self.ids += new
        return new

    def _chosen(self, logits: Any) -> list[int]:
        """A token and what must follow it."""
        constraint = self._constraint
        if constraint is None:
            return [self._sampled(logits)]
        mask = self._mask.result() if self._mask is not None else constraint.allowed()
        self._mask = None
        new = constraint.take(self._sampled(logits, mask))
        return [*new, constraint.end] if constraint.finished and new[-1:] != [constraint.end] else new

    def _sampled(self, logits: Any, allowed: Any = None) -> int:
        return self._good(self._sampler_on(logits.device)(logits, self.ids, allowed))

    def _sampler_on(self, device: Any) -> Sampler:
        if self._sampler is None:
            self._sampler = Sampler(self._sampling, device)
        return self._sampler

    def _good(self, token: int | None) -> int:
        if token is None:
            raise NumericalError(
                f"the model's logits are NaN or infinite after {self.made} tokens; check the weights and the sampling "
                'options, or load the model with quantization="bf16" or "fp32"',
                self.made,
            )
        return token
