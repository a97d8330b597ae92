"""How much of a prompt is read between two tokens of others: durations in, tokens out."""

from __future__ import annotations

import pytest

from karakuri_integrations.engines.decoding import PREFILL_CHUNK
from karakuri_integrations.engines.pace import Pace


def measured(begin: float, each: float, step: float, sizes: list[int]) -> Pace:
    """As after so many passes, the first of which, slower than all others, is not counted."""
    pace = Pace()
    pace.read(100, 5.0)
    for size in sizes:
        pace.read(size, begin + each * size)
    for one in (5.0, step):
        pace.stepped(1, one)
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
    for size, seconds in ((32, 1.0), (32, 0.032), (64, 0.01), (48, 0.02)):
        pace.read(size, seconds)
    for one in (1.0, 0.01):
        pace.stepped(1, one)
    assert 32 <= pace.chunk(1, 1) <= PREFILL_CHUNK


def test_it_follows_a_machine_that_becomes_slower():
    pace = measured(0.001, 0.001, 0.05, [32, 64] * 9)
    for size in [32, 64] * 9:
        pace.read(size, 0.001 + 0.002 * size)
    assert pace.chunk(1, 1) == pytest.approx(50, abs=3)


def test_a_pass_that_was_held_up_changes_little():
    pace = measured(0.001, 0.001, 0.05, [32, 64] * 9)
    before = pace.chunk(1, 1)
    pace.read(64, 60.0)
    assert pace.chunk(1, 1) > before / 3
    pace.stepped(1, 60.0)
    assert pace.chunk(1, 1) < 2 * before


def test_where_more_wait_for_their_first_token_more_is_read_at_once():
    pace = measured(0.0, 0.001, 0.02, [16, 32] * 20)
    assert pace.chunk(1, 1) == pace.chunk(4, 2) == 40
    assert pace.chunk(1, 2) == 80
    assert pace.chunk(2, 20) == pace.chunk(1, 3) == 120  # and no more than three times


def test_a_step_counts_as_long_as_it_takes_when_all_are_being_made():
    pace = measured(0.0, 0.001, 0.01, [16, 32] * 20)
    for making in [1, 4, 8, 12] * 9:
        pace.stepped(making, 0.008 + 0.002 * making)
    assert pace.chunk(8, 4) == pytest.approx(64, abs=1)  # two steps of 12: 2 times 8 + 24 ms


@pytest.mark.parametrize(
    ("prompts", "together"),
    [
        ([50, 50], True),
        ([50, 40], True),
        ([50, 20], False),  # 30 of 100 would be filled
        ([20, 50], False),
        ([40, 40, 40, 40], True),
        ([40, 40, 40, 41, 40], False),  # too long together
        ([200, 1], False),
        ([250], False),
    ],
)
def test_which_prompts_are_read_together(prompts, together):
    assert measured(0.0, 0.001, 0.01, [16, 32] * 20).fill(prompts, 200) is together


def test_where_a_pass_by_itself_takes_long_more_is_filled():
    """As on a GPU, which reads all weights for one token: 100 tokens more cost as much."""
    pace = measured(0.1, 0.001, 0.1, [16, 32, 64] * 20)
    assert pace.fill([100, 10], 512)
    assert not pace.fill([200, 10], 512)
    assert pace.fill([100, 100, 10, 10], 512)
