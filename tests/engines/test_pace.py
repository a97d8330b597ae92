"""How much of a prompt is read between two tokens of others: durations in, tokens out."""

from __future__ import annotations

import pytest

from karakuri_integrations.engines.decoding import PREFILL_CHUNK
from karakuri_integrations.engines.pace import Pace


def measured(begin: float, each: float, step: float, sizes: list[int]) -> Pace:
    pace = Pace()
    for size in sizes:
        pace.read(size, begin + each * size)
    pace.stepped(1, step)
    return pace


def test_without_others_or_figures_a_prompt_is_read_in_the_largest_chunks():
    assert Pace().chunk(1, 1) == PREFILL_CHUNK
    assert measured(0.004, 0.001, 0.005, [32, 64]).chunk(0, 1) == PREFILL_CHUNK


@pytest.mark.parametrize("sizes", [[32, 16] * 20, [512, 512, 100, 32, 16, 32], [64, 8, 32, 200] * 5])
def test_what_a_pass_takes_by_itself_is_not_counted_as_the_tokens(sizes):
    """Two steps of 4 ms: 3.5 ms for the pass leave 4.5 ms, 0.03 ms a token."""
    assert measured(0.0035, 0.00003, 0.004, sizes).chunk(1, 1) == pytest.approx(150, abs=2)


def test_where_tokens_take_the_time_chunks_are_small_but_not_tiny():
    assert measured(0.001, 0.001, 0.02, [32, 64] * 9).chunk(1, 1) == pytest.approx(39, abs=1)
    assert measured(0.001, 0.1, 0.02, [32, 64] * 9).chunk(1, 1) == 32


@pytest.mark.parametrize("sizes", [[32], [32] * 30])
def test_chunks_of_one_size_tell_nothing_of_the_pass(sizes):
    assert measured(0.0, 0.001, 0.05, sizes).chunk(1, 1) == 100


def test_longer_chunks_that_took_no_longer():
    """As where the machine was busy with something else."""
    pace = Pace()
    for size, seconds in ((32, 0.032), (64, 0.01), (48, 0.02)):
        pace.read(size, seconds)
    pace.stepped(1, 0.01)
    assert 32 <= pace.chunk(1, 1) <= PREFILL_CHUNK


def test_it_follows_a_machine_that_becomes_slower():
    pace = measured(0.001, 0.001, 0.05, [32, 64] * 9)
    for size in [32, 64] * 9:
        pace.read(size, 0.001 + 0.002 * size)
    assert pace.chunk(1, 1) == pytest.approx(50, abs=3)
