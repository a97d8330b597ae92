"""How many threads a pass gets: what was fastest, soon after that has changed."""

from __future__ import annotations

import threading

import pytest

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import forward
from karakuri_integrations.engines.cores import Cores

from .conftest import prompt_of
from .test_batching import batch_of, plain, text_of


class Machine:
    """Passes last as long as this says; it counts the threads that each was given."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.used: list[int] = []
        self.cores = Cores(4, self.used.append)

    def run(self, passes: int, tokens: int = 1) -> list[int]:
        """The threads of each pass."""
        for _ in range(passes):
            self.cores.begin(tokens)
            self.cores.took(tokens, self.seconds[self.used[-1]])
        return self.used[-passes:]


@pytest.mark.parametrize(
    ("seconds", "best"), [({1: 0.004, 2: 0.006, 4: 0.009}, 1), ({1: 0.009, 2: 0.006, 4: 0.004}, 4)]
)
def test_the_faster_number_is_kept(seconds, best):
    machine = Machine(seconds)
    assert machine.run(1) == [4]
    machine.run(40)
    found = machine.run(1000)
    assert found.count(best) > 0.97 * len(found)


def test_another_machine_is_found_out():
    machine = Machine({1: 0.009, 2: 0.006, 4: 0.004})
    machine.run(3000)
    machine.seconds = {1: 0.004, 2: 0.006, 4: 0.009}  # other threads of the process have begun to compute
    machine.run(1000)
    assert set(machine.run(10)) == {1}


def test_a_pass_that_was_once_slow_does_not_decide():
    machine = Machine({1: 0.005, 2: 0.0045, 4: 0.004})
    machine.run(400)
    machine.seconds = {1: 0.005, 2: 0.0045, 4: 0.1}
    machine.run(1)
    machine.seconds = {1: 0.005, 2: 0.0045, 4: 0.004}
    machine.run(1600)
    assert machine.run(100).count(4) > 90


def test_the_best_number_may_lie_between():
    machine = Machine({1: 0.009, 2: 0.004, 4: 0.007})
    machine.run(100)
    found = machine.run(2000)
    assert found.count(2) > 0.97 * len(found)


def test_of_long_passes_none_gets_one_thread_where_half_of_them_are_slower():
    machine = Machine({1: 4.0, 2: 2.0, 4: 1.0})
    found = machine.run(2000)
    assert found.count(4) > 0.97 * len(found)
    assert 1 not in found


def test_when_something_else_takes_the_cores_fewer_are_tried_at_once():
    machine = Machine({1: 0.009, 2: 0.006, 4: 0.004})
    machine.run(20_000)  # there is a trial every 768 passes by now
    machine.seconds = {1: 0.01, 2: 0.2, 4: 0.35}
    machine.run(60)
    assert set(machine.run(5)) == {1}


def test_a_machine_that_is_slow_altogether_is_not_tried_without_end():
    machine = Machine({1: 0.009, 2: 0.006, 4: 0.004})
    machine.run(20_000)
    machine.seconds = {1: 0.09, 2: 0.06, 4: 0.04}
    found = machine.run(5000)
    assert found.count(4) > 0.97 * len(found)


def test_prompts_of_about_the_same_length_share_a_choice():
    machine = Machine({1: 0.004, 2: 0.006, 4: 0.009})
    found = [machine.run(1, tokens=64 + place % 32)[0] for place in range(100)]
    assert found.count(1) > 60
    assert machine.run(1, tokens=96) == [4]


def test_each_number_of_tokens_has_its_own_choice():
    machine = Machine({1: 0.004, 2: 0.006, 4: 0.009})
    machine.run(100, tokens=1)
    machine.seconds = {1: 0.009, 2: 0.006, 4: 0.004}
    machine.run(100, tokens=16)
    assert machine.run(1, tokens=16) == [4]
    assert machine.run(1, tokens=1) == [1]


def test_the_choice_is_the_workers_own_and_changes_no_text(checkpoint, monkeypatch):
    how = Sampling(max_tokens=120)
    usual = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)
    right = text_of(usual, prompt_of(), how)
    usual.close()
    asked: list[tuple[str, int]] = []

    class Noting(Cores):
        def __init__(self, most, use):
            super().__init__(2, lambda count: (asked.append((threading.current_thread().name, count)), use(count)))

    monkeypatch.setattr(forward, "Cores", Noting)
    monkeypatch.setattr(forward.torch, "get_num_threads", lambda: 2)
    engine = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)
    assert text_of(engine, prompt_of(), how) == right
    assert {name for name, _ in asked} == {"karakuri-engine"}
    assert {count for _, count in asked} == {1, 2}
    engine.close()


def test_other_threads_keep_their_number(checkpoint):
    pools = forward.ThreadpoolController().select(user_api="openmp").lib_controllers

    def numbers() -> list[int]:
        return [one.get_num_threads() for one in pools]

    before = numbers()
    assert before
    others = before[0] + 2
    engine = plain(checkpoint)
    text_of(engine, prompt_of(), Sampling(max_tokens=2))
    inside: list[list[int]] = []

    def use(_count: int) -> None:
        for one in pools:
            one.set_num_threads(others)
        inside.append(numbers())

    batch_of(engine).forward._cores = Cores(2, use)
    text_of(engine, prompt_of(), Sampling(max_tokens=4))
    assert inside[-1] == [others] * len(pools)
    thread = threading.Thread(target=lambda: inside.append(numbers()))
    thread.start()
    thread.join()
    assert inside[-1] == numbers() == before
    engine.close()


def test_a_model_that_comes_later_may_use_all_threads_too(monkeypatch):
    numbers = iter([4, 1])  # of the second there is what the first model's last pass was given
    monkeypatch.setattr(forward.torch, "get_num_threads", lambda: next(numbers))
    found: list[Cores | None] = []
    worker = threading.Thread(target=lambda: found.extend([forward._cores(), forward._cores()]))
    worker.start()
    worker.join()
    assert [one is not None for one in found] == [True, True]
