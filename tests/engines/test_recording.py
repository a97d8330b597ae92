"""Passes that are recorded and replayed. What records is a stand-in that repeats the work on the same tensors, so that
all but CUDA's own part is what a GPU would do."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from karakuri_integrations.conversation import Control, Prompt, Sampling
from karakuri_integrations.engines import LocalEngine, forward, recording
from karakuri_integrations.engines.key_values import KeyValues
from karakuri_integrations.engines.llama_pass import LlamaPass
from karakuri_integrations.engines.memory import KV_CACHE_DTYPES
from karakuri_integrations.engines.recording import Recordings
from karakuri_integrations.errors import OptionError

from .conftest import answer, loaded_model, make_model, make_tokenizer, prompt_of

QUESTIONS = [f"{n} 番の山は？" + "どこですか。" * (n % 5) for n in range(16)]


def repeated(work):
    result = work().clone()

    def replay() -> torch.Tensor:
        result.copy_(work())
        return result

    return replay


class Repeated:
    """A Recorder that counts. `act` takes what is replayed."""

    def __init__(self, act=lambda logits: logits) -> None:
        self.made = self.replayed = 0
        self._act = act

    def __call__(self, work):
        self.made += 1
        replay = repeated(work)

        def counted() -> torch.Tensor:
            self.replayed += 1
            return self._act(replay())

        return counted


@pytest.fixture
def recorder(monkeypatch):
    def use(record) -> None:
        monkeypatch.setattr(forward, "_recorder", lambda _device: record)

    return use


def plain(checkpoint, **options) -> LocalEngine:
    """On the CPU, as device="auto" may be: "cpu" itself is refused with graphs."""
    given = {"prompt_lookup": False, "cuda_graphs": True, **options}
    return LocalEngine(checkpoint, device="auto", quantization="fp32", **given)


def sampling(number: int) -> Sampling:
    how = {"temperature": 0.8, "seed": number} if number % 3 == 2 else {}
    return Sampling(max_tokens=10 + 7 * (number % 6), stop=("山",) if number % 4 == 3 else (), **how)


def replies(engine: LocalEngine, at_once: int) -> list[str]:
    def call(number: int) -> str:
        return "".join(one.text for one in engine.stream(prompt_of(QUESTIONS[number]), sampling(number)))

    with ThreadPoolExecutor(at_once) as pool:
        return [*pool.map(call, range(len(QUESTIONS)))]


@pytest.fixture(scope="module")
def right(checkpoint):
    engine = plain(checkpoint)
    found = replies(engine, 1)
    engine.close()
    return found


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_replies_are_those_of_passes_that_are_not_recorded(checkpoint, right, recorder, at_once):
    """Rows join and leave, of different lengths, beside prompts that are read: not one token differs."""
    record = Repeated()
    recorder(record)
    engine = plain(checkpoint, max_batch=at_once)
    assert replies(engine, at_once) == right
    engine.close()
    assert record.replayed > 2 * record.made > 0


def test_keys_and_values_in_8_bits(checkpoint, recorder):
    engine = plain(checkpoint, kv_cache_dtype="int8")
    right = replies(engine, 1)
    engine.close()
    record = Repeated()
    recorder(record)
    engine = plain(checkpoint, kv_cache_dtype="int8")
    assert replies(engine, 8) == right
    engine.close()
    assert record.replayed


def test_a_reply_that_outgrows_its_room_is_recorded_anew(checkpoint, recorder):
    engine = plain(checkpoint)
    right = answer(engine, max_tokens=700)
    engine.close()
    record = Repeated()
    recorder(record)
    engine = plain(checkpoint)
    assert answer(engine, max_tokens=700) == right
    engine.close()
    assert record.made >= 2


def test_a_recording_that_gives_other_logits_is_never_used(checkpoint, right, recorder, caplog):
    record = Repeated(lambda logits: logits.roll(1, -1))
    recorder(record)
    engine = plain(checkpoint)
    with caplog.at_level(logging.WARNING, "karakuri_integrations"):
        assert replies(engine, 4) == right
    engine.close()
    assert (record.made, record.replayed) == (1, 2)  # replayed to be compared
    assert "off by" in caplog.text


def test_what_cannot_be_recorded_is_tried_once(checkpoint, right, recorder, caplog):
    tried = []

    def record(_work):
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    recorder(record)
    engine = plain(checkpoint)
    with caplog.at_level(logging.WARNING, "karakuri_integrations"):
        assert replies(engine, 4) == right
    engine.close()
    assert len(tried) == 1
    assert "cannot be recorded (RuntimeError)" in caplog.text


def test_a_full_device_is_no_reason_to_stop_for_good(checkpoint, recorder):
    tried = []

    def record(_work):
        tried.append(1)
        raise torch.OutOfMemoryError

    recorder(record)
    engine = plain(checkpoint)
    right = answer(engine, max_tokens=60)
    assert answer(engine, max_tokens=60) == right
    assert len(tried) == 1
    answer(engine, max_tokens=1200)
    assert len(tried) == 2
    engine.close()


def test_numbers_that_are_none_are_no_fault_of_the_recording(checkpoint, recorder):
    """They are the caller's error, as ever, and recording goes on."""
    recorder(record := Repeated())
    engine = plain(checkpoint)
    model = loaded_model(engine)
    weight = model.model.norm.weight
    before = weight.data.clone()
    weight.data[:] = float("nan")
    with pytest.raises(Exception, match="NaN"):
        answer(engine)
    weight.data[:] = before
    answer(engine)
    assert record.replayed
    engine.close()


@pytest.mark.parametrize("dtype", KV_CACHE_DTYPES)
def test_rows_too_many_touch_nothing(checkpoint, dtype):
    """A recording of three rows has a fourth, where the prompt of the next reply may be read at the same time."""
    engine = plain(checkpoint)
    one = forward.Forward(loaded_model(engine))
    values = KeyValues(dtype)
    values.reserve(4, 512, 10**6)
    for row in range(4):
        one(values, row, [[5 + row, 6, 7, 8]], [0], 1)
    recordings = Recordings(one._run(), repeated, torch.device("cpu"))
    before = values.taken(3, 512)
    with torch.inference_mode():
        found = [recordings(values, [9, 10, 11], [4, 2, 3], 4) for _ in range(3)]
    assert found[0] is None
    assert len(found[2]) == 3
    assert all(torch.equal(a[:, :4], b[:, :4]) for a, b in zip(before, values.taken(3, 512), strict=True))
    engine.close()


@pytest.mark.parametrize("act", [lambda result: lambda: result, lambda result: lambda: torch.zeros_like(result)])
def test_a_recording_that_does_nothing_is_never_used(checkpoint, right, recorder, act, caplog):
    """As a graph that was recorded on another device than the one the work ran on."""
    recorder(lambda work: act(work().clone()))
    engine = plain(checkpoint)
    with caplog.at_level(logging.WARNING, "karakuri_integrations"):
        assert replies(engine, 4) == right
    engine.close()
    assert "off by 100.0%" in caplog.text


def test_no_more_than_so_many_are_kept(checkpoint, right, recorder, monkeypatch):
    monkeypatch.setattr(recording, "_MOST", 1)
    record = Repeated()
    recorder(record)
    engine = plain(checkpoint, max_batch=4)
    for _ in range(2):
        assert replies(engine, 4) == right
    engine.close()
    assert record.made >= 3


def test_nothing_is_recorded_unless_all_who_share_a_pass_ask_for_it(checkpoint, right, recorder, monkeypatch):
    record, asked = Repeated(), []
    recorder(record)
    ask = forward.Forward._recorded
    monkeypatch.setattr(forward.Forward, "_recorded", lambda self, run: (asked.append(1), ask(self, run))[1])
    engine = plain(checkpoint, cuda_graphs=False)
    assert replies(engine, 4) == right
    for count in (1, 2, 3):  # a prompt of two is read by a pass of one
        [*engine.stream(Prompt(tuple(Control("<s>") for _ in range(count))), Sampling(max_tokens=2))]
    engine.close()
    assert record.made == 0
    assert asked == []


def test_where_nothing_can_be_recorded_it_is_said(checkpoint, right, caplog):
    engine = plain(checkpoint)
    with caplog.at_level(logging.WARNING, "karakuri_integrations"):
        assert replies(engine, 4) == right
    engine.close()
    assert caplog.text.count("cuda_graphs=True has no effect: the model is on cpu") == 1


def test_passes_that_ask_the_device_are_not_recorded(checkpoint, tmp_path):
    make_model(tmp_path, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    make_tokenizer(tmp_path)
    name = "karakuri-lm-70b-chat-v0.1"
    for folder, quantization, can in (
        (checkpoint, "int8", False),
        (tmp_path, "fp32", False),
        (checkpoint, "nf4", True),
    ):
        engine = LocalEngine(folder, device="cpu", quantization=quantization, template=name)
        assert LlamaPass.of(loaded_model(engine)).recordable is can
        engine.close()


@pytest.mark.parametrize("device", ["cpu", "balanced", "offload"])
def test_where_there_are_no_graphs_they_are_refused(device):
    with pytest.raises(OptionError, match=f"cuda_graphs is for a model on one GPU, and device is '{device}'"):
        LocalEngine(device=device, cuda_graphs=True)
    with pytest.raises(OptionError, match="cuda_graphs must be True or False, got 1"):
        LocalEngine(cuda_graphs=1)


def test_sizes():
    assert Recordings.size(1, 1) == (1, 512)
    assert Recordings.size(3, 512) == (4, 512)
    assert Recordings.size(8, 513) == (8, 1024)
    assert Recordings.size(9, 1) == (16, 512)
    assert Recordings.size(24, 4096) == (24, 4096)
