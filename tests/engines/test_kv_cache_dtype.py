"""Keys and values in 8 bits: how far they are off, what they take, and that all that is done with them stays exact."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import LocalEngine, decoding, loading
from karakuri_integrations.engines.checkpoint import Checkpoint, source_of
from karakuri_integrations.engines.key_values import KeyValues, Pass
from karakuri_integrations.engines.memory import KV_CACHE_DTYPES, cache_bytes, estimate
from karakuri_integrations.engines.precision import PRECISIONS
from karakuri_integrations.engines.safety import tensors
from karakuri_integrations.errors import InsufficientMemoryError, OptionError

from .conftest import FAMILY, answer, loaded_model, make_tokenizer, prompt_of
from .test_batching import QUESTIONS, SAMPLINGS, at_once, open_when, plain, raw, text_of, usage
from .test_cancel import Gate
from .test_faults import wait_until
from .test_loading import SEVENTY

REPEATING = "京都の寺は古い。 奈良の寺も古い。 " * 12


@pytest.fixture
def eight(checkpoint):
    """In 8 bits, one call after another, nothing kept, nothing guessed."""
    found = plain(checkpoint, max_batch=1, prefix_cache_mib=0, prompt_lookup=False, kv_cache_dtype="int8")
    yield found
    found.close()


# Numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_number_is_within_half_a_step_of_its_own_token_and_head(dtype):
    torch.manual_seed(0)
    keys = (torch.randn(2, 3, 5, 64) * torch.logspace(-3, 2, 5)[:, None]).to(dtype)
    values = KeyValues("int8")
    parts = values.parts(keys, -keys)
    assert [one.dtype for one in parts] == [torch.int8, dtype]
    found = values.whole(parts)
    rounding = torch.finfo(dtype).eps
    for one, exact in zip(found, (keys, -keys), strict=True):
        assert one.dtype == dtype
        largest = exact.float().abs().amax(-1, keepdim=True)
        off = (one.float() - exact.float()).abs() / largest
        assert off.max() <= 0.5 / 127 + 2 * rounding
        assert off.max() > 0.4 / 127  # they are quantised


def test_zeros_and_what_is_too_small_for_a_scale_become_zeros():
    values = KeyValues("int8")
    least = torch.full((1, 2, 3, 4), torch.finfo(torch.float16).tiny / 1000, dtype=torch.float16)
    keys, others = values.whole(values.parts(torch.zeros_like(least), least))
    assert not keys.any() and not others.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_found_and_wiped(bad):
    values, keys = KeyValues("int8"), torch.ones(1, 2, 3, 4)
    keys[0, 1, 2, 3] = bad
    values.reserve(2, 8, 10**6)
    found = Pass(values, 1, [0], 3).update(keys, torch.ones_like(keys), 0)[0]
    assert not found[0, 1, 2].isfinite().any()
    assert found[0, 0].isfinite().all() and found[0, 1, :2].isfinite().all()
    assert values.sound(1, 2) and not values.sound(1, 3)
    values.wipe(1)
    assert values.sound(1, 8)


def test_layers_are_held_where_they_are_computed():
    values = KeyValues("int8")
    values.reserve(1, 4, 10**6)
    one = Pass(values, 0, [0], 2)
    for number, device in enumerate(("cpu", "meta")):
        keys, _ = one.update(*[torch.ones(1, 2, 2, 4, device=device)] * 2, number)
        assert keys.device.type == device
        assert {part.device.type for part in values.layer(number, [])} == {device}


# Memory


@pytest.mark.parametrize(("dtype", "size"), [("auto", 320 * 1024), ("int8", 80 * 2 * 8 * (128 + 2))])
def test_what_a_token_of_the_70b_takes(dtype, size):
    assert cache_bytes(SEVENTY, 2, dtype) == size
    whole = estimate([], SEVENTY, PRECISIONS["nf4"], stored=False, window=4096, kv_cache_dtype=dtype)
    assert whole.cache == 4096 * size


@pytest.mark.parametrize("dtype", KV_CACHE_DTYPES)
def test_what_is_held_and_kept_is_what_was_estimated(checkpoint, dtype):
    engine = LocalEngine(checkpoint, device="cpu", quantization="bf16", kv_cache_dtype=dtype)
    running = engine.stream(prompt_of(), Sampling(max_tokens=300))
    next(running)
    batch = batch_of_running(engine)
    each = cache_bytes(batch.model.config.to_dict(), 2, dtype)
    assert batch._values.size(1) == each
    assert batch._values.bytes == each * batch._values._rows * batch._values._columns
    assert 1.7 < batch._fit["int8"] / batch._fit["auto"] < 2
    batch.prefixes.clear()
    running.close()
    loaded_model(engine)  # the reply has left
    kept = next(iter(batch.prefixes._kept.values()))
    assert kept.bytes == len(kept.ids) * (each + 8)
    engine.close()


def batch_of_running(engine):
    """What the worker runs, while it runs."""
    from karakuri_integrations.engines.channel import Channel, Deadline
    from karakuri_integrations.engines.generating import Reporting

    class Look(Reporting):
        def run(self, batch) -> None:
            self.found.append(batch)
            self.channel.put(None)

    look = Look(Channel(Deadline(None)))
    worker = engine._shared.submit(look, 128, engine.family)
    assert look.channel.take(worker.alive) is None
    return look.found[0]


def test_memory_that_holds_eight_bits_only_is_enough_for_them(checkpoint, monkeypatch):
    def needed(dtype: str) -> int:
        own = Checkpoint(source_of(checkpoint))
        return estimate(
            tensors(own), own.config, PRECISIONS["bf16"], stored=False, window=own.window, kv_cache_dtype=dtype
        ).total

    assert needed("int8") < needed("auto")
    monkeypatch.setattr(loading, "free_ram", lambda: needed("int8"))
    fields = {"device": "cpu", "quantization": "bf16"}
    with pytest.raises(InsufficientMemoryError):
        LocalEngine(checkpoint, **fields).report()
    engine = LocalEngine(checkpoint, kv_cache_dtype="int8", **fields)
    assert engine.report().dtype == "bfloat16"
    engine.close()


# Replies


def test_it_is_used(checkpoint, eight, monkeypatch):
    """Logits differ from those of the model's own type by little, but they differ."""
    logits = {}
    for dtype in KV_CACHE_DTYPES:
        engine = plain(checkpoint, prefix_cache_mib=0, kv_cache_dtype=dtype)
        seen = []
        hook = loaded_model(engine).register_forward_hook(lambda _m, _g, output, seen=seen: seen.append(output.logits))
        answer(engine, REPEATING, max_tokens=1)
        hook.remove()
        logits[dtype] = seen[-1][0, -1]
    off = (logits["int8"] - logits["auto"]).norm() / logits["auto"].norm()
    assert 1e-4 < off < 0.1


@pytest.mark.parametrize("fields", [{}, {"prefix_cache_mib": 0}, {"max_batch": 3}], ids=["all", "unkept", "three"])
def test_sixteen_at_once_are_as_one_after_another(checkpoint, eight, fields):
    right = [text_of(eight, prompt_of(one), how) for one, how in zip(QUESTIONS, SAMPLINGS, strict=True)]
    engine = plain(checkpoint, kv_cache_dtype="int8", **fields)
    gate = Gate(loaded_model(engine))
    calls = [
        lambda one=one, how=how: text_of(engine, prompt_of(one), how)
        for one, how in zip(QUESTIONS, SAMPLINGS, strict=True)
    ]
    threading.Thread(target=open_when, args=(engine, gate, 16)).start()
    assert at_once(calls) == right
    gate.remove()


def test_how_a_prompt_is_divided_changes_nothing(checkpoint, eight, monkeypatch):
    """Each pass reads its own tokens in 8 bits too, so that none depends on where the passes begin."""
    right = answer(eight, REPEATING, max_tokens=40)
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 32)
    assert answer(eight, REPEATING, max_tokens=40) == right


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "seed": 5}])
def test_what_is_kept_and_what_is_guessed_changes_nothing(checkpoint, eight, how):
    sampling = Sampling(max_tokens=60, **how)
    right = text_of(eight, raw(REPEATING), sampling)
    engine = plain(checkpoint, kv_cache_dtype="int8")
    for _ in range(2):
        assert text_of(engine, raw(REPEATING), sampling) == right
    assert usage(engine, raw(REPEATING)).cache_read == engine.count_tokens(raw(REPEATING)) - 1


def test_a_draft_model_that_reads_in_its_own_type_changes_nothing(checkpoint, eight):
    """The same weights, so that many of its guesses are right and some are not."""
    right = [answer(eight, one, max_tokens=40) for one in QUESTIONS[:4]]
    engine = plain(checkpoint, draft_model=checkpoint, kv_cache_dtype="int8")
    assert [answer(engine, one, max_tokens=40) for one in QUESTIONS[:4]] == right
    engine.close()


def test_a_sliding_window_slides(tmp_path_factory):
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("sliding") / "tiny-mixtral"
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": 400, "num_key_value_heads": 2, "num_local_experts": 2}
    config = MixtralConfig(sliding_window=24, initializer_range=0.2, **shape)
    MixtralForCausalLM(config).save_pretrained(folder)
    make_tokenizer(folder, template=None)
    for dtype in KV_CACHE_DTYPES:
        engine = plain(folder, prefix_cache_mib=0, kv_cache_dtype=dtype, template=FAMILY.name)
        right = [answer(engine, one, max_tokens=30) for one in QUESTIONS[:4]]
        assert at_once([lambda one=one: answer(engine, one, max_tokens=30) for one in QUESTIONS[:4]]) == right  # noqa: B023
        engine.close()


# Engines of one model


def test_engines_that_differ_in_it_share_the_model_and_nothing_else(checkpoint, eight):
    """Their calls come by turns and at once; each has the reply of its own kind, and neither reads what the other kept."""
    sixteen = plain(checkpoint, max_batch=1, prefix_cache_mib=0, prompt_lookup=False)
    pairs = [(one, other) for one in QUESTIONS[:6] for other in (eight, sixteen)]
    right = [answer(engine, one, max_tokens=30) for one, engine in pairs]
    assert right[::2] != right[1::2]
    both = {id(eight): plain(checkpoint, kv_cache_dtype="int8"), id(sixteen): plain(checkpoint)}
    assert loaded_model(both[id(eight)]) is loaded_model(both[id(sixteen)])
    engines = [both[id(one)] for _, one in pairs]
    calls = [
        lambda one=one, engine=engine: answer(engine, one, max_tokens=30)
        for (one, _), engine in zip(pairs, engines, strict=True)
    ]
    for _ in range(2):
        assert at_once(calls) == right
    first, second = (both[id(one)] for one in (eight, sixteen))
    assert usage(first, prompt_of("別々の文書 " * 40)).cache_read < 60
    assert usage(second, prompt_of("別々の文書 " * 40)).cache_read < 60
    assert usage(first, prompt_of("別々の文書 " * 40)).cache_read > 100


def test_a_call_of_the_other_kind_waits_until_those_that_run_have_ended(checkpoint, eight):
    engine, other = plain(checkpoint), plain(checkpoint, kv_cache_dtype="int8")
    right = answer(eight, max_tokens=5)
    running = engine.stream(prompt_of("長い"), Sampling(max_tokens=3000))
    next(running)
    got = []
    thread = threading.Thread(target=lambda: got.append(answer(other, max_tokens=5)))
    thread.start()
    worker = engine._shared._worker
    wait_until(lambda: len(worker._jobs) == 1)
    next(running)
    assert not got and len(worker._running) == 1
    running.close()
    thread.join(60)
    assert got == [right]


# The option


@pytest.mark.parametrize("value", ["int4", "fp8", None, 8, ["int8"]])
def test_another_name_is_refused(value):
    with pytest.raises(OptionError, match="kv_cache_dtype must be one of auto, int8, got"):
        LocalEngine(kv_cache_dtype=value)


def test_it_belongs_to_the_handle():
    one, other = LocalEngine(kv_cache_dtype="int8"), LocalEngine()
    assert pickle.loads(pickle.dumps(one)) == one != other
    assert repr(one) != repr(other)
    assert one._shared is other._shared
