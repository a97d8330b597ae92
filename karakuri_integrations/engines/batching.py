"""Continuous batching: replies join and leave between two forward passes, and those that are being made share them.

Each step reads a chunk of a prompt, or several prompts to their ends, if any of them is unread, and then makes a token
(or several, see `lookup`) for each reply. The rows 0, 1, 2, ... of the keys and values belong to the replies that are
being made, those behind them to the ones whose prompts are read, in the order they came. What a reply has read is kept
when it leaves, and a prompt that begins alike begins there. Replies that outgrow the memory together wait their turn,
the youngest first: see `parking`. Runs in a model's worker thread, which imports it; imports torch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Final

import torch

from .channel import copied
from .decoding import best
from .drafting import Draft, DraftGuesser
from .forward import Forward
from .generating import Generation, out_of_memory, translate
from .guessing import MOST_GUESSES, Guesser
from .key_values import KeyValues
from .loading import Loaded
from .lookup import Lookup
from .memory import KV_CACHE_DTYPES, cache_bytes, free_ram, usual_cache
from .pace import Pace
from .parking import Parking
from .prefixes import Prefixes
from .rows import WORTH, Row

__all__ = ["Batch"]

_MARGIN: Final = 128  # columns for a reply to begin with
_FREE: Final = 0.8  # the share of the memory left beside the weights that keys and values may take


class Batch:
    """A loaded model and the replies that it is making."""

    def __init__(self, loaded: Loaded, stepped: Any, draft: Draft | None = None) -> None:
        self._draft = draft
        self.model, self.report = loaded.model, loaded.report
        self._stepped = stepped
        self.forward = Forward(loaded.model)
        free = _free(self.model)
        sizes = {one: _token_bytes(self.model, one) for one in KV_CACHE_DTYPES}
        self._fit = {one: int(_FREE * free / size) for one, size in sizes.items()}
        self._usual = {one: usual_cache(free, self.model.config.max_position_embeddings, sizes[one]) for one in sizes}
        self._values = KeyValues()
        self.prefixes = Prefixes()
        self._rows: list[Row] = []
        self._reading: list[Row] = []
        self._parking = Parking[Row]()
        self._ages = count()
        self._pace = Pace()

    @property
    def active(self) -> list[Generation]:
        """The jobs that have not ended."""
        return [row.job for row in (*self._everyone(), *self._parking.rows)]

    def has_room(self, job: Generation) -> bool:
        """Whether it may join: nobody waits for memory, and who share are alike, few, short enough."""
        everyone = self._everyone()
        if self._parking.rows:
            return False
        if not everyone:
            return True
        if job.kv_cache_dtype != self._values.dtype:
            return False
        few = len(everyone) < min(job.max_batch, *(row.job.max_batch for row in everyone))
        return few and self._room_beside(len(job.prompt_ids))

    @property
    def _most(self) -> int:
        """Tokens that the memory holds, in all rows together."""
        return self._fit[self._values.dtype]

    def join(self, job: Generation) -> None:
        """Begin a reply, behind those whose prompts are unread."""
        if not self._everyone():
            self._values = KeyValues(job.kv_cache_dtype)
        self._enter(Row(job, next(self._ages), (*_guessers(job, self._draft),)))

    def _enter(self, row: Row) -> None:
        rows, sequence = len(self._everyone()) + 1, row.sequence
        try:
            self._reserve(rows, len(sequence.ids) + min(row.job.limit - sequence.made, _MARGIN))
        except Exception as error:
            if out_of_memory(error) and (rows > 1 or self._spare):
                self._give_up()
                if rows == 1:
                    self._values.clear()
                self._parking.was_full(self._values.least(rows, max(len(sequence.ids), self._longest())))
                self._parking.put(row)
                return
            if rows == 1:  # no step will come that frees what was made
                self._values.clear()
            raise
        self._reading.append(row)

    def step(self) -> None:
        """One round. Raises what a forward pass raises; then `drop` tells whom it concerned."""
        clean = None
        try:
            self._round()
        except Exception as error:
            if not out_of_memory(error) or not (len(self._everyone()) > 1 or self._spare):
                raise
            _, clean = translate(error)
        if clean is not None:  # only here are the error and what it holds of the memory gone
            self._start_over(clean)
            self._round()
        if not self._everyone():
            self._values.clear()
            if self._draft is not None:
                self._draft.rest()
        self._parking.stepped(idle=not self.active)

    def _round(self) -> None:
        for row in [one for one in self._everyone() if one.stopped]:
            self._leave(row)
        self._parking.rows = [one for one in self._parking.rows if not one.stopped]
        self._make_room()
        self._come_back()
        self._read()
        for row in [one for one in self._rows if self._ended(one)]:
            self._leave(row)
        if self._rows:
            self._decode()

    def drop(self) -> list[Generation]:
        """Forget the replies that shared a pass after it failed, and what was read. Who was not in it begins anew."""
        waiting = self._reading if self._rows else []
        dropped = [row.job for row in self._emptied() if row not in waiting]
        self._reading = waiting
        return dropped

    def _everyone(self) -> list[Row]:
        return [*self._rows, *self._reading]

    # --- memory ---

    def _holds(self, rows: int, columns: int) -> bool:
        return self._values.least(rows, columns) <= self._parking.room(self._most)

    def _longest(self) -> int:
        """Columns that this round's passes need: a prompt that is read to its end has its first token read as well."""
        everyone = self._everyone()
        guesses = MOST_GUESSES if len(everyone) == 1 else 0
        return max((len(one.sequence.ids) + (one in self._reading) for one in everyone), default=0) + guesses

    def _make_room(self) -> None:
        """The youngest leave, until the memory holds what the next pass needs."""
        while len(everyone := self._everyone()) > 1 and not self._holds(len(everyone), self._longest()):
            youngest = max(everyone, key=lambda row: row.age)
            self._leave(youngest)
            youngest.put_back()
            self._parking.put(youngest)

    def _come_back(self) -> None:
        """The oldest of those who wait, where there is room for a while or nobody else."""
        waiting = self._parking.rows
        if waiting and not self._reading and self._room_beside(len(waiting[0].sequence.ids)):
            row = waiting.pop(0)
            self._alone(row, lambda: self._enter(row))

    def _room_beside(self, ids: int) -> bool:
        rows = len(self._everyone())
        return not rows or self._holds(rows + 1, max(ids, self._longest()) + _MARGIN)

    @property
    def _spare(self) -> bool:
        """Whether memory is taken that no reply needs."""
        return len(self.prefixes) > 0 or (self._draft is not None and self._draft.bytes > 0)

    def _give_up(self) -> None:
        self.prefixes.clear()
        self.forward.forget()
        if self._draft is not None:
            self._draft.give_up()

    def _start_over(self, clean: Callable[[], None]) -> None:
        """The device is full, whatever the estimate said: nothing is kept, and the oldest goes on alone."""
        self._parking.was_full(self._values.least(len(self._everyone()), self._longest()))
        for row in reversed(self._emptied()):
            self._parking.put(row)
        self._give_up()
        clean()

    def _emptied(self) -> list[Row]:
        """All replies, the oldest first. They have no rows any more, and what was read is forgotten."""
        rows = sorted(self._everyone(), key=lambda row: row.age)
        for row in rows:
            row.put_back()
        self._rows, self._reading = [], []
        self._values.clear()
        self.prefixes.clear()
        self.forward.forget()
        if self._draft is not None:
            self._draft.clear()
        return rows

    # --- prompts ---

    def _begin(self, row: Row) -> bool:
        """Take from others what they have read of its ids, not before it is its turn; whether it has ended already."""
        if row.begun:
            return False
        row.begun, sequence = True, row.sequence
        if row.job.keeps:
            self._reuse(row)
        if not row.counted:  # what it takes when it comes back it had read itself, perhaps
            row.counted, sequence.reused = True, sequence.read
        return self._ended(row)

    def _reuse(self, row: Row) -> None:
        everyone = self._everyone()
        place = everyone.index(row)
        kept, length = self.prefixes.longest(row.sequence.ids, row.job.scope)
        nearest = None
        for number, other in enumerate(everyone[:place]):
            found = other.shared(row, other.sequence.read)
            if found > length:
                nearest, length = number, found
        if length < WORTH:
            return
        if nearest is not None:
            self._values.copy(nearest, place, length)
        elif kept is not None:
            self._values.put(place, kept.values, length)
        row.sequence.read = length

    def _together(self, chunk: int) -> list[Row]:
        """The first of those that wait whose prompts are read to their ends in one pass, or the first alone.

        Shorter ones are filled up to the longest, as far as that costs less than passes of their own.
        """
        taken, unread = list[Row](), list[int]()
        for row in list(self._reading):
            if any(one.ahead_of(row) for one in taken):
                break
            if self._alone(row, lambda row=row: self._begin(row)):  # type: ignore[misc]
                self._leave(row)
                continue
            if row.sequence.unread == 1 and not taken:  # as a token of a reply
                self._rows.append(self._reading.pop(0))
                continue
            if taken and not self._pace.fill([*unread, row.sequence.unread], chunk):
                break
            start = max(one.sequence.read for one in (*taken, row))
            if taken and start + max(*unread, row.sequence.unread) > self._longest():
                break  # what is filled would take memory that was not counted
            taken.append(row)
            unread.append(row.sequence.unread)
            if unread[0] > chunk:
                break
        return taken

    def _unprepared(self, row: Row) -> bool:
        """Begin what is made beside the pass that gives it its first token; whether that failed, and it is gone."""
        failed = self._alone(row, lambda: bool(row.sequence.prepare(guess=False)))
        if failed:
            self._leave(row)
        return failed

    def _read(self) -> None:
        """A pass over the prompts that came first; those that are read to their ends get their first token."""
        chunk = self._pace.chunk(len(self._rows), len(self._reading))
        rows = self._together(chunk)
        if rows and rows[0].sequence.unread <= chunk:
            rows = [one for one in rows if not self._unprepared(one)]
        if not rows:
            return
        began, whole = time.perf_counter(), rows[0].sequence.unread <= chunk
        new = [one.sequence.ids[one.sequence.read :][:chunk] for one in rows]
        try:
            starts, ends = [one.sequence.read for one in rows], [len(one) - 1 for one in new]
            logits = self._forward(len(self._rows), new, starts, ends if whole else 0)
            self.forward.wait()
        except Exception as error:
            if out_of_memory(error) and (len(self._everyone()) > 1 or self._spare):
                raise
            failure, clean = translate(error)
        else:
            self._pace.read(len(new) * max(map(len, new)), time.perf_counter() - began)
            if whole:
                self._rows += rows
                del self._reading[: len(rows)]
                self._take(rows, logits)
            else:
                rows[0].sequence.read += chunk
            return
        clean()
        for row in rows:
            row.failed = True
            row.job.channel.put(copied(failure))
            self._leave(row)

    # --- replies ---

    def _ended(self, row: Row) -> bool:
        """Put what needs no pass."""
        new = row.sequence.without_a_pass()
        return bool(new) and row.output.put(new)

    def _decode(self) -> None:
        rows, alone = list(self._rows), len(self._rows) == 1
        began = time.perf_counter()
        new = [[*one.sequence.ids[one.sequence.read :], *one.sequence.prepare(alone)] for one in rows]
        starts = [one.sequence.read for one in rows]
        longest = max(map(len, new))
        logits = self._forward(0, new, starts, longest - rows[0].sequence.unread + 1 if alone else longest)
        self._take(rows, logits)
        self._pace.stepped(len(rows), time.perf_counter() - began)

    def _found(self, rows: list[Row], logits: Any) -> list[Any]:
        """For each row its logits, or its token where that is simply the best one."""
        if logits.shape[1] == 1:  # as nearly always; nothing has to be moved to the device behind the pass
            scores = logits[:, 0]
        else:
            last = torch.tensor([one.sequence.unread - 1 for one in rows], device=logits.device)
            scores = logits[torch.arange(len(rows), device=logits.device), last]
        plain = [one.sequence.plain(logits.device) for one in rows]
        tokens = best(scores) if any(plain) else []
        return [tokens[place] if plain[place] else scores[place : place + 1] for place in range(len(rows))]

    def _take(self, rows: list[Row], logits: Any) -> None:
        """Their tokens. Nobody leaves before all took theirs: only then is it known how much of each row is filled."""
        found = [logits[0]] if len(rows) == 1 else self._found(rows, logits)
        for row in [one for one, own in zip(rows, found, strict=True) if self._took(one, own)]:
            self._leave(row)

    def _took(self, row: Row, found: Any) -> bool:
        """A row's new tokens into its channel; whether it has ended."""
        made = row.sequence.take if isinstance(found, torch.Tensor) else row.sequence.took
        return self._alone(row, lambda: row.output.put(made(found)))

    def _alone(self, row: Row, work: Callable[[], bool | None]) -> bool:
        """Work that concerns one reply: if it fails, that one fails alone. Whether the reply has ended."""
        try:
            return bool(work())
        except Exception as error:
            if row in self._reading and (len(self._everyone()) > 1 or self._spare) and out_of_memory(error):
                raise
            failure, clean = translate(error)  # it goes to the consumer
        row.failed = True
        clean()
        row.job.channel.put(failure)
        return True

    def _leave(self, row: Row) -> None:
        """Take a reply out, keep what it has read, and close the gap."""
        row.sequence.forget()
        place = self._everyone().index(row)
        # The logits of a prompt that was not read to its end have not been looked at.
        if row.failed or (row in self._reading and not self._values.sound(place, row.sequence.read)):
            self._values.wipe(place)
        elif row.job.keeps:
            self._keep(row, place)
        self._close_gap(place)
        # Not before: should a copy fail, `drop` tells all who are in the lists.
        if row in self._reading:
            self._reading.remove(row)
        else:
            self._rows[place] = self._rows[-1]
            self._rows.pop()

    def _close_gap(self, place: int) -> None:
        """The last reply that is being made moves to a place that is left, and those behind it, to be read, move up."""
        everyone, made = self._everyone(), len(self._rows)
        doubtful = False  # whether the place that nobody has then may hold numbers that are none
        if place < made - 1:
            self._values.copy(made - 1, place, self._rows[-1].sequence.read)
            doubtful = self._rows[-1].failed
        for number in range(made - 1 if place < made else place, len(everyone) - 1):
            behind = everyone[number + 1]
            self._values.copy(number + 1, number, behind.sequence.read)
            doubtful = doubtful or behind.sequence.read > 0
        if doubtful:
            self._values.wipe(len(everyone) - 1)

    def _budget(self, job: Generation) -> int:
        return self._usual[job.kv_cache_dtype] if job.cache_bytes is None else job.cache_bytes

    def _keep(self, row: Row, place: int) -> None:
        ids = row.sequence.ids[: row.sequence.read]
        scope, budget = row.job.scope, self._budget(row.job)
        if len(ids) < WORTH or self._values.size(len(ids)) > budget or self.prefixes.covers(ids, scope):
            return
        try:
            self.prefixes.keep(ids, self._values.taken(place, len(ids)), budget, scope)
        except (MemoryError, RuntimeError):  # a full device: nobody fails for what would only have been good to have
            self.prefixes.clear()

    # --- the model ---

    def _forward(self, first: int, new: list[list[int]], starts: list[int], wanted: int | list[int]) -> Any:
        """As `forward`, with room made for it."""
        count = max(map(len, new))
        rows, columns = self._needed(first + len(new), max(starts) + count)
        free = self._free_column() if count == 1 and not first else None
        wished = (rows, columns) if free is None else self.forward.room(rows, columns)
        rows, columns = wished if self._holds(*wished) else (rows, columns)
        self._values.reserve(rows, columns, self._parking.room(self._most))
        logits = self.forward(self._values, first, new, starts, wanted, free)
        self._stepped()
        return logits

    def _free_column(self) -> int | None:
        """In the rows behind those being made nothing stands there; None where their passes are not to be recorded."""
        if not self._rows or not all(row.job.cuda_graphs for row in self._rows):
            return None
        return max((one.sequence.read for one in self._reading), default=0)

    def _reserve(self, rows: int, columns: int) -> None:
        """Room for this beside all that was read."""
        self._values.reserve(*self._needed(rows, columns), self._parking.room(self._most))

    def _needed(self, rows: int, columns: int) -> tuple[int, int]:
        """So many, and all ids of everyone: also of those that have not begun, who may go on from much that is kept."""
        everyone = self._everyone()
        return max(rows, len(everyone)), max([columns, *(len(one.sequence.ids) for one in everyone)])


def _guessers(job: Generation, draft: Draft | None) -> Iterator[Guesser]:
    """What is copied is guessed best by looking it up, which costs nothing; the draft model guesses the rest."""
    if job.prompt_lookup:
        yield Lookup()
    if draft is not None:
        yield DraftGuesser(draft, job.sampling.cache_scope, job.keeps)


def _token_bytes(model: Any, kv_cache_dtype: str) -> int:
    number = model.get_input_embeddings().weight.element_size()
    return max(1, cache_bytes(model.config.to_dict(), number, kv_cache_dtype))


def _free(model: Any) -> int:
    """Bytes that are free where a model is, for what is divided between its devices as its weights are."""
    held = Counter[Any]()
    for one in model.parameters():
        held[one.device] += one.nbytes
    free = {one: torch.cuda.mem_get_info(one)[0] if one.type == "cuda" else free_ram() for one in held}
    return int(min(free[one] * held.total() / held[one] for one in held))
