"""LocalEngine as its callers see it: construction, sharing, windows, sampling, what is loaded."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM

from karakuri_integrations.conversation import Control, Prompt, Sampling, Usage
from karakuri_integrations.engines import LocalEngine, registry
from karakuri_integrations.engines.checkpoint import DEFAULT
from karakuri_integrations.errors import ContextOverflowError, MessageError, OptionError, UnknownModelError
from karakuri_integrations.generation import Engine

from .conftest import FAMILY, answer, loaded_model, make_model, make_tokenizer, prompt_of

# Construction


def test_construction_imports_no_heavy_library():
    code = (
        "import sys; from karakuri_integrations.engines import LocalEngine; import pickle, copy;"
        "e = LocalEngine('karakuri-lm-70b-chat-v0.1'); d = LocalEngine(); pickle.loads(pickle.dumps(e)); copy.deepcopy(d);"
        "assert e.family.context_window == 4096 and d.model; repr(e);"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'huggingface_hub', 'bitsandbytes'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ("karakuri-lm-70b-chat-v0.1", "karakuri-ai/karakuri-lm-70b-chat-v0.1"),
        ("karakuri-ai/karakuri-lm-8x7b-instruct-v0.1", "karakuri-ai/karakuri-lm-8x7b-instruct-v0.1"),
        ("masao1211/karakuri-lm-70b-chat-v0.1-AWQ", "masao1211/karakuri-lm-70b-chat-v0.1-AWQ"),
        (None, DEFAULT.name),
    ],
)
def test_the_reported_id(given, model):
    engine = LocalEngine(given)
    assert engine.model == model
    assert model in repr(engine)
    assert "/" not in repr(engine).replace(model, "")


def test_a_folder_is_reported_by_its_name(checkpoint):
    for given in (checkpoint, str(checkpoint), f"{checkpoint}/"):
        engine = LocalEngine(given)
        assert isinstance(engine, Engine)
        assert engine.model == "tiny-llama"
        assert str(checkpoint.parent) not in repr(engine)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"quantization": "nf5"}, "quantization must be one of nf4, fp4, int8, bf16, fp16, fp32, none"),
        ({"quantization": 4}, "quantization"),
        ({"device": "gpu"}, "device must be"),
        ({"device": "cuda:x"}, "device must be"),
        ({"revision": "main"}, "revision and cache_dir are for models from the hub"),
        ({"model": ".", "cache_dir": "x"}, "revision and cache_dir are for models from the hub"),
        ({"model": "someone/model", "revision": 5}, "revision must be"),
        ({"context_window": 0}, "context_window"),
        ({"context_window": True}, "context_window"),
        ({"max_queue": 0}, "max_queue"),
        ({"model": ""}, "model must be"),
        ({"model": 5}, "model must be .* got 5"),
        ({"model": b"a/b"}, "model must be"),
        ({"model": "~nobody-of-this-name/model"}, "a home folder that does not exist"),
        ({"model": "a/b/c"}, "neither a folder"),
        ({"model": "models/karakuri.Q4_K_M.gguf"}, "llama-server -m karakuri.Q4_K_M.gguf"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, named):
    with pytest.raises(OptionError, match=named):
        LocalEngine(**arguments)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("int4", 'for 4 bits write quantization="nf4"'),
        ("4bit", 'for 4 bits write quantization="nf4"'),
        (4, 'for 4 bits write quantization="nf4"'),
        ("8bit", 'for 8 bits write quantization="int8"'),
        ("bfloat16", 'for bfloat16 write quantization="bf16"'),
        ("float16", 'for float16 write quantization="fp16"'),
        ("float32", 'for 32 bits write quantization="fp32"'),
        (None, 'for the checkpoint\'s own precision write quantization="none"'),
        ("gptq-int4", "a checkpoint that is stored so is loaded as it is: leave quantization out"),
    ],
)
def test_a_quantization_by_another_name_says_what_to_write(name, advice):
    with pytest.raises(OptionError) as caught:
        LocalEngine(quantization=name)
    assert str(caught.value).endswith(f"fp32, none, got {name!r}; {advice}")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("gpu", 'for a GPU write device="cuda", or "cuda:1" for the second one'),
        ("cuda0", 'for GPU 0, counted from 0, write device="cuda:0"'),
        (1, 'for GPU 1, counted from 0, write device="cuda:1"'),
        ("mps", 'write device="auto", which takes GPUs where torch has CUDA and else the CPU'),
    ],
)
def test_a_device_by_another_name_says_what_to_write(name, advice):
    with pytest.raises(OptionError) as caught:
        LocalEngine(device=name)
    assert f"balanced or offload, got {name!r}; {advice}" in str(caught.value)


def test_an_unknown_template_is_refused():
    with pytest.raises(UnknownModelError, match="the templates are"):
        LocalEngine(template="karakuri-lm-70b-chat")


# Family and window


def test_the_family_comes_from_the_checkpoint(engine):
    assert engine.family is FAMILY
    assert engine.context_window == 4096


def test_an_explicit_template_wins_over_everything(checkpoint):
    assert LocalEngine(checkpoint, template="karakuri-lm-8x7b-chat-v0.1").family.name == "karakuri-lm-8x7b-chat-v0.1"


def test_a_folder_of_no_known_family_lists_the_known_ones(tmp_path):
    make_tokenizer(tmp_path / "other", template="{{ messages }}")
    make_model(tmp_path / "other")
    with pytest.raises(UnknownModelError, match="'other' is not known to be .*; those are karakuri-lm-70b-chat-v0.1"):
        _ = LocalEngine(tmp_path / "other").family


def test_the_window_is_the_given_one_else_the_checkpoints(copied):
    text = (copied / "config.json").read_text()
    (copied / "config.json").write_text(
        text.replace('"max_position_embeddings": 4096', '"max_position_embeddings": 2048')
    )
    assert LocalEngine(copied).context_window == 2048
    assert LocalEngine(copied, context_window=1000).context_window == 1000


@pytest.mark.parametrize(
    ("n_prompt", "max_tokens", "fits"),
    [(63, 1, True), (63, 2, False), (64, None, False), (65, 1, False), (63, None, True)],
)
def test_the_window_is_exact(checkpoint, n_prompt, max_tokens, fits):
    engine = LocalEngine(checkpoint, device="cpu", context_window=64)
    prompt = Prompt((Control("<s>"),) * n_prompt)
    assert engine.count_tokens(prompt) == n_prompt
    if fits:
        pieces = list(engine.stream(prompt, Sampling(max_tokens=max_tokens)))
        assert len(pieces) == 1
        return
    before = engine.steps
    with pytest.raises(ContextOverflowError) as caught:
        list(engine.stream(prompt, Sampling(max_tokens=max_tokens)))
    assert (caught.value.n_prompt, caught.value.n_max_new, caught.value.n_ctx) == (n_prompt, max_tokens, 64)
    assert engine.steps == before


def test_too_long_a_prompt_is_refused_before_any_weights_are_loaded(checkpoint, monkeypatch):
    monkeypatch.setattr(registry, "load", lambda *_: pytest.fail("loaded"))
    engine = LocalEngine(checkpoint, device="cpu", quantization="fp4")
    for n_prompt, wanted in ((4095, 2), (4096, None), (4097, 1)):
        with pytest.raises(ContextOverflowError, match=str(n_prompt)):
            next(engine.stream(Prompt((Control("</s>"),) * n_prompt), Sampling(max_tokens=wanted)))


def test_the_last_token_of_the_window_can_be_used(engine):
    (piece,) = engine.stream(Prompt((Control("<s>"),) * 4095), Sampling())
    assert piece.finish_reason in ("length", "stop")
    assert (piece.usage.input_tokens, piece.usage.output_tokens) == (4095, 1)


def test_an_empty_prompt_is_a_message_error(engine):
    with pytest.raises(MessageError, match="empty"):
        next(engine.stream(Prompt(()), Sampling()))


# Replies


def test_pieces_count_and_the_last_says_why(engine):
    pieces = list(engine.stream(prompt_of(), Sampling(max_tokens=20)))
    n_prompt = engine.count_tokens(prompt_of())
    assert [one.usage for one in pieces] == [Usage(n_prompt, made) for made in range(1, len(pieces) + 1)]
    assert [one.finish_reason for one in pieces] == [None] * (len(pieces) - 1) + ["length"]


def test_the_reply_ends_at_the_end_token(engine, monkeypatch):
    from karakuri_integrations.engines import decoding

    script = iter([50, 51, 2, 52])
    monkeypatch.setattr(decoding.Sampler, "__call__", lambda *_: next(script))
    pieces = list(engine.stream(prompt_of(), Sampling(max_tokens=10)))
    assert [one.finish_reason for one in pieces] == [None, None, "stop"]
    assert pieces[-1].usage.output_tokens == 3
    assert pieces[-1].text == ""


def test_split_characters_stream_whole_through_the_engine(engine, monkeypatch):
    from karakuri_integrations.engines import decoding

    tokens = engine._shared.tokens
    script = iter([tokens.control_id(f"<0x{one:02X}>") for one in "🍣おはよう".encode()])
    monkeypatch.setattr(decoding.Sampler, "__call__", lambda *_: next(script))
    pieces = [one.text for one in engine.stream(prompt_of(), Sampling(max_tokens=15))]
    assert pieces == ["", "", "", "🍣", "", "", "お", "", "", "は", "", "", "よ", "", ""]  # う is cut by the end


def ids_made(engine: LocalEngine, monkeypatch, sampling: Sampling) -> list[int]:
    """The token ids of a reply."""
    from karakuri_integrations.engines.tokens import TextStream

    seen: list[int] = []
    push = TextStream.push
    with monkeypatch.context() as patch:
        patch.setattr(TextStream, "push", lambda self, token: (seen.append(token), push(self, token))[1])
        list(engine.stream(prompt_of(), sampling))
    return seen


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"do_sample": False}),
        ({"repetition_penalty": 1.3}, {"do_sample": False, "repetition_penalty": 1.3}),
        ({"temperature": 1.0, "seed": 5}, {"do_sample": True, "top_k": 0}),
        ({"temperature": 0.7, "seed": 5, "top_k": 20}, {"do_sample": True, "temperature": 0.7, "top_k": 20}),
        (
            {"temperature": 1.3, "seed": 5, "top_p": 0.8},
            {"do_sample": True, "temperature": 1.3, "top_p": 0.8, "top_k": 0},
        ),
        (
            {"temperature": 1.5, "seed": 9, "top_p": 0.95, "top_k": 50, "min_p": 0.05, "repetition_penalty": 1.2},
            {
                "do_sample": True,
                "temperature": 1.5,
                "top_p": 0.95,
                "top_k": 50,
                "min_p": 0.05,
                "repetition_penalty": 1.2,
            },
        ),
    ],
)
def test_tokens_equal_those_of_transformers_generate(checkpoint, monkeypatch, ours, theirs):
    engine = LocalEngine(checkpoint, device="cpu", quantization="fp32")
    made = ids_made(engine, monkeypatch, Sampling(max_tokens=24, **ours))
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.tensor([engine._shared.tokens.encode(prompt_of())])
    torch.manual_seed(ours.get("seed", 0))
    out = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, pad_token_id=0, **theirs)
    expected = out[0, ids.shape[1] :].tolist()
    assert made == (expected[:-1] if expected[-1] == 2 else expected)


def test_a_long_prompt_is_read_in_chunks_with_the_same_result(checkpoint, monkeypatch):
    from karakuri_integrations.engines import decoding

    engine = LocalEngine(checkpoint, device="cpu", quantization="fp32")
    whole = answer(engine, "富士山 " * 100)
    engine.close()  # and with it what was read
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 7)
    before = engine.steps
    assert answer(engine, "富士山 " * 100) == whole
    assert engine.steps - before > 20


def test_seeds_reproduce_and_no_seed_is_fresh(engine):
    draws = {answer(engine, temperature=2.0, seed=11) for _ in range(3)}
    assert len(draws) == 1
    assert len({answer(engine, temperature=2.0, seed=seed) for seed in range(4)}) > 1
    assert len({answer(engine, temperature=2.0) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-30, "seed": 1},
        {"temperature": 1e6},
        {"top_p": 1e-9, "temperature": 1.0},
        {"top_k": 10**6, "temperature": 1.0},
        {"min_p": 1.0, "temperature": 1.0},
    ],
)
def test_extreme_sampling_values_give_an_answer(engine, extreme):
    assert len(list(engine.stream(prompt_of(), Sampling(max_tokens=4, **extreme)))) >= 1


# Sharing


def test_handles_copies_and_pickles_share_one_model(checkpoint, monkeypatch):
    loads = []
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda *given: (loads.append(1), load(*given))[1])
    engine = LocalEngine(checkpoint, device="cpu")
    engine.close()
    others = [LocalEngine(str(checkpoint), device="cpu"), copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))]
    texts = {answer(one) for one in (engine, *others)}
    assert len(texts) == 1
    assert loads == [1]
    assert others[1] == engine
    assert hash(others[2]) == hash(engine)
    assert len({id(loaded_model(one)) for one in (engine, *others)}) == 1
    engine.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
@pytest.mark.parametrize("first", ["auto", "cpu"])
def test_auto_and_cpu_are_one_model_where_there_is_no_gpu(checkpoint, monkeypatch, first):
    loads, load = [], registry.load
    monkeypatch.setattr(registry, "load", lambda *given: (loads.append(1), load(*given))[1])
    monkeypatch.setattr(registry, "_auto", None)
    monkeypatch.setattr(registry, "_entries", {})
    devices = ("auto", "cpu") if first == "auto" else ("cpu", "auto")
    one, other = (LocalEngine(checkpoint, device=device, quantization="bf16") for device in devices)
    tokens = one._shared.tokens
    assert answer(one) == answer(other)
    assert loads == [1]
    assert one._shared is other._shared
    assert one._shared.tokens is tokens
    other.close()
    assert answer(one) and loads == [1, 1]
    one.close()


def test_the_first_gpu_has_two_names():
    assert LocalEngine(device="cuda")._key == LocalEngine(device="cuda:0")._key


def test_a_relative_folder_stays_the_same_folder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    engine = LocalEngine(f"./{checkpoint.name}", device="cpu")
    named = LocalEngine(checkpoint.name, device="cpu")
    cached = LocalEngine("karakuri-lm-70b-chat-v0.1", cache_dir="here")
    monkeypatch.chdir(tmp_path)
    for one in (engine, named, copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert one == LocalEngine(checkpoint, device="cpu")
        assert one.count_tokens(prompt_of()) > 20
    assert pickle.loads(pickle.dumps(cached))._key.source.cache_dir == str(checkpoint.parent / "here")


def test_another_precision_is_another_model(checkpoint):
    one, other = LocalEngine(checkpoint, device="cpu"), LocalEngine(checkpoint, device="cpu", quantization="bf16")
    assert loaded_model(one) is not loaded_model(other)
    assert one != other
    one.close(), other.close()


def test_many_threads_load_it_once(checkpoint, monkeypatch):
    loads, texts = [], []
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda *given: (loads.append(1), load(*given))[1])
    LocalEngine(checkpoint, device="cpu", quantization="bf16").close()
    start = threading.Barrier(32)

    def call() -> None:
        start.wait()
        texts.append(answer(LocalEngine(checkpoint, device="cpu", quantization="bf16"), max_tokens=3))

    threads = [threading.Thread(target=call) for _ in range(32)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert loads == [1]
    assert len(texts) == 32
    assert len(set(texts)) == 1


def test_close_frees_the_model_for_everyone_and_the_next_call_loads_again(checkpoint):
    engine, other = LocalEngine(checkpoint, device="cpu"), LocalEngine(checkpoint, device="cpu")
    text = answer(engine)
    ghost = weakref.ref(loaded_model(other))
    assert ghost() is not None
    engine.close()
    gc.collect()
    assert ghost() is None
    assert answer(other) == text
    engine.close()
    engine.close()


def test_count_tokens_loads_no_weights(checkpoint, monkeypatch):
    monkeypatch.setattr(registry, "load", lambda *_: pytest.fail("loaded"))
    engine = LocalEngine(checkpoint, quantization="int8")
    assert engine.count_tokens(prompt_of()) > 20
    assert engine.token_ids("富士山") == engine.token_ids("富士山")
    assert not {0, 1, 2} & set(engine.token_ids("</s>"))
    assert engine.canary() == ()


# What is loaded


def test_the_default_is_really_four_bits(engine):
    import bitsandbytes

    report = engine.report()
    model = loaded_model(engine)
    held = [name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(held) == 14
    assert report.quantized_modules == tuple(held)
    assert report.quantized_share == 1.0
    assert report.quantization == "nf4"
    assert report.dtype == "bfloat16"
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.nested
    linear = sum(module.in_features * module.out_features for module in (model.get_submodule(name) for name in held))
    assert report.weight_bytes < report.bf16_bytes - linear * 2 + linear * 0.75
    assert report.parameters == sum(
        math.prod(one.shape) for one in AutoModelForCausalLM.from_pretrained(engine._key.source.folder).parameters()
    )


@pytest.mark.parametrize(
    ("name", "dtype", "bytes_each"),
    [("bf16", "bfloat16", 2), ("fp16", "float16", 2), ("fp32", "float32", 4), ("none", "bfloat16", 2)],
)
def test_other_precisions_by_name(checkpoint, name, dtype, bytes_each):
    engine = LocalEngine(checkpoint, device="cpu", quantization=name)
    report = engine.report()
    assert (report.dtype, report.quantization, report.quantized_modules) == (dtype, name, ())
    assert report.weight_bytes == report.parameters * bytes_each
    assert len(answer(engine)) > 0
    engine.close()


@pytest.mark.parametrize("name", ["fp4", "int8"])
def test_other_quantised_forms(checkpoint, name):
    engine = LocalEngine(checkpoint, device="cpu", quantization=name)
    report = engine.report()
    assert len(report.quantized_modules) == 14
    assert report.weight_bytes < report.bf16_bytes
    assert len(answer(engine)) > 0
    engine.close()
